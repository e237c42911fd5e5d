//! The public surface, written down.
//!
//! `public-api.txt` beside this file is the crate as its users see it: every public item by its public path, signatures
//! without bodies, fields and variants, implemented traits, `#[non_exhaustive]` and `#[must_use]`. It is made from the
//! sources, so any toolchain makes the same. A change of it is a change for users: an item that goes, or a signature
//! that is another, breaks them (and is a major version, or a minor one before 1.0); one that comes does not.
//!
//! To accept a change: `UPDATE_EXPECT=1 cargo test --test policies public_surface`, and commit the file with it.

use std::collections::BTreeMap;

use quote::{ToTokens, quote};
use syn::visit_mut::VisitMut;
use syn::{Ident, Item, Visibility, parse_quote};

use super::tree;

/// The items of all modules, by the path of their module from the root of the crate.
struct Crate {
    modules: BTreeMap<Vec<String>, Vec<Item>>,
}

/// A module that is shown: by name, its items.
#[derive(Default)]
struct Shown {
    modules: BTreeMap<String, Shown>,
    items: Vec<Item>,
}

impl Crate {
    fn read() -> Crate {
        let mut modules = BTreeMap::new();
        for (path, file) in tree::sources() {
            let path = path.strip_prefix("src").expect("a source").with_extension("");
            let mut path: Vec<String> = path.iter().map(|part| part.to_str().expect("UTF-8").to_owned()).collect();
            if path.last().is_some_and(|name| name == "mod" || name == "lib") {
                path.pop();
            }
            modules.insert(path, file.items);
        }
        Crate { modules }
    }

    /// What a module shows.
    fn shown(&self, module: &[String]) -> Shown {
        let mut shown = Shown::default();
        for item in &self.modules[module] {
            match item {
                Item::Mod(inner) if is_public(&inner.vis) && !is_hidden(&inner.attrs) => {
                    let path = [module, &[inner.ident.to_string()]].concat();
                    shown.modules.insert(inner.ident.to_string(), self.shown(&path));
                }
                Item::Use(reexport) if is_public(&reexport.vis) => {
                    self.reexported(module, &[], &reexport.tree, &mut shown.items)
                }
                Item::Use(_) | Item::Mod(_) | Item::Impl(_) => {}
                item if visibility(item).is_some_and(is_public) => self.show(item, &mut shown.items),
                _ => {}
            }
        }
        shown.items.sort_by_cached_key(|item| {
            (item_name(item), matches!(item, Item::Impl(_)), item.to_token_stream().to_string())
        });
        shown
    }

    fn reexported(&self, module: &[String], path: &[String], tree: &syn::UseTree, items: &mut Vec<Item>) {
        match tree {
            syn::UseTree::Path(next) => {
                let path = [path, &[next.ident.to_string()]].concat();
                self.reexported(module, &path, &next.tree, items);
            }
            syn::UseTree::Group(group) => {
                group.items.iter().for_each(|tree| self.reexported(module, path, tree, items));
            }
            syn::UseTree::Name(name) => self.show(self.find(module, path, &name.ident), items),
            _ => panic!("public items are re-exported by name, and as they are"),
        }
    }

    /// The item that a re-export leads to.
    fn find(&self, module: &[String], path: &[String], name: &Ident) -> &Item {
        let mut from = module.to_vec();
        for part in path {
            match part.as_str() {
                "crate" => from.clear(),
                "self" => {}
                part => from.push(part.to_owned()),
            }
        }
        let items = self.modules.get(&from).unwrap_or_else(|| panic!("there is a module {from:?}"));
        if let Some(item) = items.iter().find(|item| *name == item_name(item) && visibility(item).is_some()) {
            return item;
        }
        // A façade: it re-exports the item itself.
        for item in items {
            if let Item::Use(reexport) = item
                && let Some(path) = path_to(&reexport.tree, name)
            {
                return self.find(&from, &path, name);
            }
        }
        panic!("{from:?} has {name}");
    }

    /// Adds an item and everything that is implemented for it.
    fn show(&self, item: &Item, items: &mut Vec<Item>) {
        items.push(item.clone());
        if !matches!(item, Item::Struct(_) | Item::Enum(_) | Item::Union(_)) {
            return;
        }
        let name = item_name(item);
        for other in self.modules.values().flatten() {
            let Item::Impl(block) = other else { continue };
            let syn::Type::Path(of) = &*block.self_ty else { continue };
            if of.path.segments.last().is_none_or(|segment| segment.ident != name) {
                continue;
            }
            let mut block = block.clone();
            block.items.retain(|item| match item {
                syn::ImplItem::Fn(function) => is_public(&function.vis),
                syn::ImplItem::Const(constant) => is_public(&constant.vis),
                syn::ImplItem::Type(_) => true,
                _ => false,
            });
            if block.trait_.is_some() || !block.items.is_empty() {
                items.push(Item::Impl(block));
            }
        }
    }
}

/// Where a `use` has a name from.
fn path_to(tree: &syn::UseTree, name: &Ident) -> Option<Vec<String>> {
    match tree {
        syn::UseTree::Path(next) => {
            let path = path_to(&next.tree, name)?;
            Some([&[next.ident.to_string()], &path[..]].concat())
        }
        syn::UseTree::Group(group) => group.items.iter().find_map(|tree| path_to(tree, name)),
        syn::UseTree::Name(leaf) if leaf.ident == *name => Some(Vec::new()),
        _ => None,
    }
}

fn is_public(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}

/// Whether documentation leaves it out, or only documentation has it.
fn is_hidden(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let text = attribute.meta.to_token_stream().to_string();
        text == "doc (hidden)" || text == "cfg (any (doc , doctest))" || text == "cfg (doctest)"
    })
}

fn visibility(item: &Item) -> Option<&Visibility> {
    Some(match item {
        Item::Const(item) => &item.vis,
        Item::Enum(item) => &item.vis,
        Item::Fn(item) => &item.vis,
        Item::Static(item) => &item.vis,
        Item::Struct(item) => &item.vis,
        Item::Trait(item) => &item.vis,
        Item::Type(item) => &item.vis,
        Item::Union(item) => &item.vis,
        _ => return None,
    })
}

/// The name by which items are in order: that of the type for what is implemented for it.
fn item_name(item: &Item) -> String {
    match item {
        Item::Const(item) => item.ident.to_string(),
        Item::Enum(item) => item.ident.to_string(),
        Item::Fn(item) => item.sig.ident.to_string(),
        Item::Static(item) => item.ident.to_string(),
        Item::Struct(item) => item.ident.to_string(),
        Item::Trait(item) => item.ident.to_string(),
        Item::Type(item) => item.ident.to_string(),
        Item::Union(item) => item.ident.to_string(),
        Item::Impl(item) => match &*item.self_ty {
            syn::Type::Path(of) => of.path.segments.last().map(|segment| segment.ident.to_string()).unwrap_or_default(),
            _ => String::new(),
        },
        _ => String::new(),
    }
}

/// Leaves what a user depends on: no bodies, documentation, or private fields.
struct Outline;

impl VisitMut for Outline {
    fn visit_attributes_mut(&mut self, attributes: &mut Vec<syn::Attribute>) {
        let kept = ["derive", "non_exhaustive", "must_use", "repr"];
        attributes.retain(|attribute| kept.iter().any(|name| attribute.path().is_ident(name)));
        for attribute in attributes {
            if attribute.path().is_ident("must_use") {
                *attribute = parse_quote!(#[must_use]);
            }
        }
    }

    fn visit_block_mut(&mut self, block: &mut syn::Block) {
        block.stmts.clear();
    }

    fn visit_fields_mut(&mut self, fields: &mut syn::Fields) {
        match fields {
            syn::Fields::Named(named) => {
                let all = named.named.len();
                named.named = std::mem::take(&mut named.named).into_iter().filter(|f| is_public(&f.vis)).collect();
                if named.named.len() < all {
                    named.named.push(syn::Field {
                        attrs: Vec::new(),
                        vis: Visibility::Inherited,
                        mutability: syn::FieldMutability::None,
                        ident: Some(parse_quote!(private)),
                        colon_token: Some(Default::default()),
                        ty: parse_quote!(_),
                    });
                }
            }
            syn::Fields::Unnamed(unnamed) => {
                for field in &mut unnamed.unnamed {
                    if !is_public(&field.vis) {
                        field.ty = parse_quote!(_);
                    }
                }
            }
            syn::Fields::Unit => {}
        }
        syn::visit_mut::visit_fields_mut(self, fields);
    }

    fn visit_variant_mut(&mut self, variant: &mut syn::Variant) {
        self.visit_attributes_mut(&mut variant.attrs);
    }
}

fn items_of(shown: Shown) -> Vec<Item> {
    let mut items = shown.items;
    for item in &mut items {
        Outline.visit_item_mut(item);
    }
    for (name, module) in shown.modules {
        let (name, inner) = (Ident::new(&name, proc_macro2::Span::call_site()), items_of(module));
        items.push(parse_quote!(pub mod #name { #(#inner)* }));
    }
    items
}

/// The surface as text.
fn surface() -> String {
    let items = items_of(Crate::read().shown(&[]));
    let file: syn::File = syn::parse2(quote!(#(#items)*)).expect("what was parsed");
    let heading =
        "// The public surface, as `public_api.rs` beside this file makes it from the sources. Not compiled.\n\n";
    format!("{heading}{}", prettyplease::unparse(&file))
}

#[test]
fn public_surface_is_as_written_down() {
    let surface = surface();
    for name in
        ["pub struct PcpAlloc", "pub mod rcu", "unsafe fn free_nolock", "impl<T: Send + Sync + 'static> RcuCell<T>"]
    {
        assert!(surface.contains(name), "{name}");
    }
    expect_test::expect_file!["public-api.txt"].assert_eq(&surface);
}

/// What users rely on without a line of source that says so.
#[test]
fn threads_may_share_what_they_may() {
    use pcpalloc::rcu::{Cookie, Domain, RcuCell, RcuHead};
    fn shared<T: Send + Sync>() {}
    shared::<pcpalloc::PcpAlloc>();
    shared::<pcpalloc::Stats>();
    shared::<pcpalloc::mempool::Pool>();
    shared::<(Cookie, Domain, RcuCell<String>, RcuHead)>();
    shared::<(pcpalloc::AllocError, pcpalloc::ConfigError)>();
}
