//! Trees that share what they have in common, by reference counts (after what the Lean compiler's runtime does in
//! `leanN` and its own benchmarks).

use std::rc::Rc;

use crate::object::Random;
use crate::usage::Watch;
use crate::{Row, Scale, mix};

pub const ROWS: &[Row] = &[
    Row {
        name: "rc_map",
        what: "a persistent treap of 20,000 entries: each of 300,000 changes copies the path to an entry, and of every \
               1,000 versions one is kept, 100 at most",
        run: persistent,
    },
    Row {
        name: "rc_terms",
        what: "terms with shared subterms are differentiated eleven times over and simplified, 300 of them",
        run: derivatives,
    },
];

struct Node {
    key: u32,
    value: u64,
    priority: u32,
    left: Tree,
    right: Tree,
}

type Tree = Option<Rc<Node>>;

fn insert(tree: &Tree, key: u32, value: u64) -> Rc<Node> {
    // The priority follows from the key, so that the shape does not depend on the order.
    let priority = key.wrapping_mul(0x9e37_79b9).rotate_left(15).wrapping_mul(0x85eb_ca6b);
    let Some(node) = tree else { return Rc::new(Node { key, value, priority, left: None, right: None }) };
    let with =
        |left: Tree, right: Tree| Node { key: node.key, value: node.value, priority: node.priority, left, right };
    if key == node.key {
        return Rc::new(Node { value, ..with(node.left.clone(), node.right.clone()) });
    }
    if key < node.key {
        let left = insert(&node.left, key, value);
        if left.priority <= node.priority {
            return Rc::new(with(Some(left), node.right.clone()));
        }
        let right = Rc::new(with(left.right.clone(), node.right.clone()));
        return Rc::new(Node { right: Some(right), left: left.left.clone(), ..*left });
    }
    let right = insert(&node.right, key, value);
    if right.priority <= node.priority {
        return Rc::new(with(node.left.clone(), Some(right)));
    }
    let left = Rc::new(with(node.left.clone(), right.left.clone()));
    Rc::new(Node { left: Some(left), right: right.right.clone(), ..*right })
}

fn total(tree: &Tree, sum: u64) -> u64 {
    tree.as_ref().map_or(sum, |node| total(&node.right, mix(total(&node.left, sum), node.value)))
}

fn persistent(scale: &Scale, watch: &mut Watch) -> u64 {
    watch.begin();
    let mut random = Random::new(0);
    let mut tree = None;
    let mut versions: Vec<Tree> = Vec::new();
    for turn in 0..scale.of(300_000) {
        let bits = random.next();
        tree = Some(insert(&tree, bits as u32 % 20_000, bits));
        if turn % 1000 == 0 {
            if versions.len() == 100 {
                versions.swap_remove((bits >> 32) as usize % 100);
            }
            versions.push(tree.clone());
        }
    }
    total(&tree, 0)
}

enum Term {
    Number(i64),
    Variable,
    Sum(Rc<Term>, Rc<Term>),
    Product(Rc<Term>, Rc<Term>),
    Power(Rc<Term>, i64),
    Logarithm(Rc<Term>),
}

use Term::{Logarithm, Number, Power, Product, Sum, Variable};

fn sum(a: Rc<Term>, b: Rc<Term>) -> Rc<Term> {
    match (&*a, &*b) {
        (Number(0), _) => b,
        (_, Number(0)) => a,
        (Number(x), Number(y)) => Rc::new(Number(x.wrapping_add(*y))),
        (Number(_), Sum(c, d)) if matches!(**c, Number(_)) => sum(sum(a.clone(), c.clone()), d.clone()),
        (_, Number(_)) => sum(b, a),
        _ => Rc::new(Sum(a, b)),
    }
}

fn product(a: Rc<Term>, b: Rc<Term>) -> Rc<Term> {
    match (&*a, &*b) {
        (Number(0), _) | (_, Number(1)) => a,
        (_, Number(0)) | (Number(1), _) => b,
        (Number(x), Number(y)) => Rc::new(Number(x.wrapping_mul(*y))),
        (_, Number(_)) => product(b, a),
        _ => Rc::new(Product(a, b)),
    }
}

fn power(base: Rc<Term>, exponent: i64) -> Rc<Term> {
    match exponent {
        0 => Rc::new(Number(1)),
        1 => base,
        _ => Rc::new(Power(base, exponent)),
    }
}

fn derivative(term: &Rc<Term>) -> Rc<Term> {
    let number = |value| Rc::new(Number(value));
    match &**term {
        Number(_) => number(0),
        Variable => number(1),
        Sum(a, b) => sum(derivative(a), derivative(b)),
        Product(a, b) => sum(product(a.clone(), derivative(b)), product(derivative(a), b.clone())),
        Power(base, exponent) => {
            product(product(number(*exponent), power(base.clone(), exponent - 1)), derivative(base))
        }
        Logarithm(a) => product(power(a.clone(), -1), derivative(a)),
    }
}

fn fold(term: &Term, at: u64) -> u64 {
    match term {
        Number(value) => mix(at, *value as u64),
        Variable => mix(at, 1),
        Sum(a, b) => mix(fold(b, fold(a, at)), 2),
        Product(a, b) => mix(fold(b, fold(a, at)), 3),
        Power(a, exponent) => mix(fold(a, at), *exponent as u64),
        Logarithm(a) => mix(fold(a, at), 4),
    }
}

fn derivatives(scale: &Scale, watch: &mut Watch) -> u64 {
    watch.begin();
    let mut checksum = 0;
    for round in 0..scale.of(300) as i64 {
        let x = Rc::new(Variable);
        // (x + 3)^5 ln x + x^7 (x + 2)
        let shifted = |by| sum(Rc::new(Number(by)), x.clone());
        let first = product(power(shifted(3 + round), 5), Rc::new(Logarithm(x.clone())));
        let mut term = sum(first, product(power(x.clone(), 7), shifted(2)));
        for _ in 0..11 {
            term = derivative(&term);
        }
        checksum = fold(&term, checksum);
    }
    checksum
}
