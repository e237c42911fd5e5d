//! Rust source is parsed to syntax trees, which are copied and taken apart.

use std::fmt::Write;

use crate::object::Random;
use crate::usage::Watch;
use crate::{Row, Scale, mix};

pub const ROWS: &[Row] = &[Row {
    name: "syn",
    what: "a source file of 400 items, 0.46 MB, is parsed with syn, its tree copied, the functions of the copy sorted \
           and counted, 4 times",
    run: parse,
}];

fn expression(text: &mut String, random: &mut Random, depth: u32) {
    let bits = random.next();
    if depth == 0 {
        let _ = write!(text, "value_{}", bits % 40);
        return;
    }
    let mut inner = |text: &mut String| expression(text, random, depth - 1);
    match bits % 7 {
        0 => {
            text.push('(');
            inner(text);
            text.push_str([" + ", " * ", " ^ ", " - "][(bits >> 8) as usize % 4]);
            inner(text);
            text.push(')');
        }
        1 => {
            let _ = write!(text, "function_{}(", bits >> 8 & 0xff);
            inner(text);
            text.push_str(", ");
            inner(text);
            text.push(')');
        }
        2 => {
            text.push_str("match ");
            text.push_str("input { Some(value_1) if value_1 > 3 => ");
            inner(text);
            text.push_str(", None | Some(_) => ");
            inner(text);
            text.push_str(" }");
        }
        3 => {
            text.push_str("list.iter().map(|value_2: &u64| ");
            inner(text);
            text.push_str(").collect::<Vec<_>>().len()");
        }
        4 => {
            text.push_str("{ let value_3: Option<Box<[u8; 16]>> = None; ");
            inner(text);
            text.push_str(" }");
        }
        5 => {
            text.push_str("if value_4 < 10 { ");
            inner(text);
            text.push_str(" } else { ");
            inner(text);
            text.push_str(" }");
        }
        _ => {
            text.push_str("Point { x: ");
            inner(text);
            text.push_str(", y: \"a string\", z: [1, 2, 3] }");
        }
    }
}

fn file() -> String {
    let mut random = Random::new(0);
    let mut text = String::new();
    for number in 0..200 {
        // Writing to a `String` cannot fail, here and above.
        let _ = write!(
            text,
            "/// A structure.\n#[derive(Clone, Debug)]\npub struct Structure{number}<'a, T: Clone + 'a> {{\n    \
             pub first: Vec<&'a T>,\n    second: std::collections::HashMap<String, Option<T>>,\n}}\n\n\
             pub fn function_{number}<T>(input: Option<u64>, list: &[u64]) -> Result<T, Error>\nwhere\n    \
             T: Iterator<Item = u8> + Default,\n{{\n"
        );
        for value in 0..3 {
            let _ = write!(text, "    let value_{value} = ");
            expression(&mut text, &mut random, 5);
            text.push_str(";\n");
        }
        text.push_str("    Ok(T::default())\n}\n\n");
    }
    text
}

fn parse(scale: &Scale, watch: &mut Watch) -> u64 {
    let text = file();
    watch.begin();
    (0..scale.of(4)).fold(0, |sum, _| {
        let tree = syn::parse_file(&text).expect("the file is Rust");
        let mut items = tree.items.clone();
        drop(tree);
        items.sort_by_cached_key(|item| match item {
            syn::Item::Fn(function) => function.sig.ident.to_string(),
            syn::Item::Struct(structure) => structure.ident.to_string(),
            _ => String::new(),
        });
        items.iter().fold(sum, |sum, item| match item {
            syn::Item::Fn(function) => mix(sum, function.block.stmts.len() as u64),
            syn::Item::Struct(structure) => mix(sum, structure.fields.len() as u64 + 100),
            _ => sum,
        })
    })
}
