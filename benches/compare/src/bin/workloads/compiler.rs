//! A compiler's passes over trees of boxes.

use std::collections::HashMap;

use crate::object::Random;
use crate::usage::Watch;
use crate::{Row, Scale, mix};

pub const ROWS: &[Row] = &[Row {
    name: "compiler",
    what: "200 functions of some 15,000 words each are parsed from text to trees of boxes, desugared, folded, and lowered to \
           instructions, then dropped",
    run: compile,
}];

enum Expr {
    Number(i64),
    Name(String),
    Unary(char, Box<Expr>),
    Binary(char, Box<Expr>, Box<Expr>),
    Call(String, Vec<Expr>),
    Let(String, Box<Expr>, Box<Expr>),
}

use Expr::{Binary, Call, Let, Name, Number, Unary};

/// Prints a random expression in prefix form.
fn write(text: &mut String, random: &mut Random, depth: u32) {
    let bits = random.next();
    let mut inner = |text: &mut String, count: u64| (0..count).for_each(|_| write(text, random, depth - 1));
    match if depth == 0 { bits % 2 } else { 2 + bits % 6 } {
        0 => text.push_str(&format!("{} ", bits >> 8 & 0xff)),
        1 => text.push_str(&format!("v{} ", bits >> 8 & 31)),
        2 => {
            text.push_str("neg ");
            inner(text, 1);
        }
        3 => {
            text.push_str(&format!("call f{} {} ", bits >> 8 & 63, bits >> 16 & 3));
            inner(text, bits >> 16 & 3);
        }
        4 => {
            text.push_str(&format!("let v{} ", bits >> 8 & 31));
            inner(text, 2);
        }
        op => {
            text.push_str(["+ ", "* ", "- "][op as usize - 5]);
            inner(text, 2);
        }
    }
}

fn parse<'a>(words: &mut impl Iterator<Item = &'a str>) -> Expr {
    let word = words.next().expect("the text is whole");
    let mut inner = || Box::new(parse(words));
    match word {
        "neg" => Unary('-', inner()),
        "+" | "-" | "*" => Binary(word.as_bytes()[0].into(), inner(), inner()),
        "let" => {
            let name = words.next().expect("a name").to_string();
            let value = Box::new(parse(words));
            Let(name, value, Box::new(parse(words)))
        }
        "call" => {
            let name = words.next().expect("a name").to_string();
            let count: usize = words.next().expect("a count").parse().expect("a count");
            Call(name, (0..count).map(|_| parse(words)).collect())
        }
        _ => word.parse().map_or_else(|_| Name(word.into()), Number),
    }
}

/// Subtraction as addition, negation as multiplication.
fn desugar(expr: Expr) -> Expr {
    let again = |expr: Box<Expr>| Box::new(desugar(*expr));
    match expr {
        Binary('-', a, b) => Binary('+', again(a), Box::new(desugar(Unary('-', b)))),
        Binary(op, a, b) => Binary(op, again(a), again(b)),
        Unary(_, a) => Binary('*', Box::new(Number(-1)), again(a)),
        Call(name, arguments) => Call(name, arguments.into_iter().map(desugar).collect()),
        Let(name, value, body) => Let(name, again(value), again(body)),
        leaf => leaf,
    }
}

/// Constants are computed and names that stand for them replaced.
fn fold(expr: Expr, known: &mut HashMap<String, Vec<Option<i64>>>) -> Expr {
    match expr {
        Name(name) => match known.get(&name).and_then(|values| *values.last()?) {
            Some(value) => Number(value),
            None => Name(name),
        },
        Binary(op, a, b) => match (op, fold(*a, known), fold(*b, known)) {
            ('+', Number(a), Number(b)) => Number(a.wrapping_add(b)),
            ('*', Number(a), Number(b)) => Number(a.wrapping_mul(b)),
            ('*', Number(0), _) | ('*', _, Number(0)) => Number(0),
            ('+', Number(0), other) | ('*', Number(1), other) => other,
            (op, a, b) => Binary(op, Box::new(a), Box::new(b)),
        },
        Let(name, value, body) => {
            let value = fold(*value, known);
            let constant = if let Number(value) = value { Some(value) } else { None };
            known.entry(name.clone()).or_default().push(constant);
            let body = fold(*body, known);
            known.get_mut(&name).and_then(Vec::pop);
            match constant {
                Some(_) => body,
                None => Let(name, Box::new(value), Box::new(body)),
            }
        }
        Call(name, arguments) => Call(name, arguments.into_iter().map(|argument| fold(argument, known)).collect()),
        other => other,
    }
}

/// An instruction: what, from which registers, to which.
struct Instruction {
    what: String,
    from: Vec<usize>,
    to: usize,
}

fn lower(expr: &Expr, code: &mut Vec<Instruction>) -> usize {
    let (what, from) = match expr {
        Number(value) => (format!("const {value}"), Vec::new()),
        Name(name) => (format!("load {name}"), Vec::new()),
        Unary(op, a) => (op.to_string(), vec![lower(a, code)]),
        Binary(op, a, b) => (op.to_string(), vec![lower(a, code), lower(b, code)]),
        Call(name, arguments) => {
            (format!("call {name}"), arguments.iter().map(|argument| lower(argument, code)).collect())
        }
        Let(name, value, body) => {
            let value = lower(value, code);
            code.push(Instruction { what: format!("store {name}"), from: vec![value], to: value });
            return lower(body, code);
        }
    };
    let to = code.len();
    code.push(Instruction { what, from, to });
    to
}

fn compile(scale: &Scale, watch: &mut Watch) -> u64 {
    let mut random = Random::new(0);
    let texts: Vec<String> = (0..40)
        .map(|_| {
            let mut text = String::new();
            (0..6).for_each(|_| write(&mut text, &mut random, 12));
            text
        })
        .collect();
    watch.begin();
    let mut sum = 0;
    for function in 0..scale.of(200) {
        let mut words = texts[function % texts.len()].split_whitespace();
        let trees: Vec<Expr> = (0..6).map(|_| desugar(parse(&mut words))).collect();
        let mut known = HashMap::new();
        let folded: Vec<Expr> = trees.into_iter().map(|tree| fold(tree, &mut known)).collect();
        let mut code = Vec::new();
        folded.iter().for_each(|tree| {
            lower(tree, &mut code);
        });
        sum = code.iter().fold(mix(sum, code.len() as u64), |sum, instruction| {
            mix(sum, instruction.what.len() as u64 ^ (instruction.to + instruction.from.iter().sum::<usize>()) as u64)
        });
    }
    sum
}
