//! Factoring by continued fractions, every number a block of its own (after Barrett's `cfrac`).

use crate::usage::Watch;
use crate::{Row, Scale, mix};

pub const ROWS: &[Row] = &[Row {
    name: "bignum",
    what: "300,000 steps of the continued fraction of the root of a number of 38 digits, with the convergents modulo the \
           number and trial division of the remainders; a natural number is a boxed slice, each result a new one",
    run: factor,
}];

/// A natural number: digits to the base of 2³², the lowest first, none of them a leading zero.
type Number = Box<[u32]>;

fn number(mut digits: Vec<u32>) -> Number {
    while digits.last() == Some(&0) {
        digits.pop();
    }
    digits.into_boxed_slice()
}

fn small(value: u32) -> Number {
    number(vec![value])
}

fn add(a: &[u32], b: &[u32]) -> Number {
    let (long, short) = if a.len() >= b.len() { (a, b) } else { (b, a) };
    let mut digits = Vec::with_capacity(long.len() + 1);
    let mut carry = 0;
    for (n, digit) in long.iter().enumerate() {
        carry += u64::from(*digit) + u64::from(short.get(n).copied().unwrap_or(0));
        digits.push(carry as u32);
        carry >>= 32;
    }
    digits.push(carry as u32);
    number(digits)
}

/// `a - b`, which is not negative.
fn subtract(a: &[u32], b: &[u32]) -> Number {
    let mut digits = a.to_vec();
    let mut borrow = false;
    for (n, digit) in digits.iter_mut().enumerate() {
        let (less, one) = digit.overflowing_sub(b.get(n).copied().unwrap_or(0));
        let (less, two) = less.overflowing_sub(borrow.into());
        (*digit, borrow) = (less, one || two);
    }
    assert!(!borrow, "the difference is negative");
    number(digits)
}

fn multiply(a: &[u32], b: &[u32]) -> Number {
    let mut digits = vec![0; a.len() + b.len()];
    for (i, x) in a.iter().enumerate() {
        let mut carry = 0;
        for (j, y) in b.iter().enumerate() {
            carry += u64::from(*x) * u64::from(*y) + u64::from(digits[i + j]);
            digits[i + j] = carry as u32;
            carry >>= 32;
        }
        digits[i + b.len()] = carry as u32;
    }
    number(digits)
}

/// Quotient and remainder (Knuth, volume 2, 4.3.1, algorithm D).
fn divide(a: &[u32], b: &[u32]) -> (Number, Number) {
    assert!(!b.is_empty(), "a division by zero");
    if a.len() < b.len() {
        return (number(Vec::new()), a.into());
    }
    if let [digit] = b {
        let mut quotient = a.to_vec();
        let remainder = quotient.iter_mut().rev().fold(0u64, |rest, place| {
            let value = rest << 32 | u64::from(*place);
            *place = (value / u64::from(*digit)) as u32;
            value % u64::from(*digit)
        });
        return (number(quotient), small(remainder as u32));
    }
    let shift = b[b.len() - 1].leading_zeros();
    let shifted = |digits: &[u32]| {
        let mut carry = 0;
        let mut shifted: Vec<u32> = digits
            .iter()
            .map(|digit| {
                let wide = u64::from(*digit) << shift | carry;
                carry = wide >> 32;
                wide as u32
            })
            .collect();
        shifted.push(carry as u32);
        shifted
    };
    let (mut rest, b) = (shifted(a), number(shifted(b)));
    let top = u64::from(b[b.len() - 1]);
    let mut quotient = vec![0; rest.len() - b.len()];
    for at in (0..quotient.len()).rev() {
        let high = u64::from(rest[at + b.len()]) << 32 | u64::from(rest[at + b.len() - 1]);
        let (mut guess, mut over) = (high / top, high % top);
        while guess >> 32 != 0 || guess * u64::from(b[b.len() - 2]) > (over << 32 | u64::from(rest[at + b.len() - 2])) {
            guess -= 1;
            over += top;
            if over >> 32 != 0 {
                break;
            }
        }
        let mut borrow = 0i64;
        for (n, digit) in b.iter().enumerate() {
            let product = guess * u64::from(*digit);
            let value = i64::from(rest[at + n]) - borrow - (product & 0xffff_ffff) as i64;
            rest[at + n] = value as u32;
            borrow = (product >> 32) as i64 - (value >> 32);
        }
        let value = i64::from(rest[at + b.len()]) - borrow;
        rest[at + b.len()] = value as u32;
        if value < 0 {
            guess -= 1;
            let mut carry = 0;
            for (n, digit) in b.iter().enumerate() {
                carry += u64::from(rest[at + n]) + u64::from(*digit);
                rest[at + n] = carry as u32;
                carry >>= 32;
            }
            rest[at + b.len()] = (u64::from(rest[at + b.len()]) + carry) as u32;
        }
        quotient[at] = guess as u32;
    }
    rest.truncate(b.len());
    let back = (0..rest.len()).map(|n| {
        let high = rest.get(n + 1).copied().unwrap_or(0);
        ((u64::from(high) << 32 | u64::from(rest[n])) >> shift) as u32
    });
    (number(quotient), number(back.collect()))
}

/// The largest number whose square is not larger, by Newton's method.
fn root(of: &[u32]) -> Number {
    let mut guess = number([vec![0; of.len() / 2 + 1], vec![1]].concat());
    loop {
        let (next, _) = divide(&add(&guess, &divide(of, &guess).0), &[2]);
        if next.len() > guess.len() || next.iter().rev().ge(guess.iter().rev()) && next.len() == guess.len() {
            return guess;
        }
        guess = next;
    }
}

const PRIMES: [u32; 24] = [2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89];

fn factor(scale: &Scale, watch: &mut Watch) -> u64 {
    watch.begin();
    // A product of two primes of 19 digits: not to be factored.
    let n = multiply(&[0x89e8_0001, 0x8ac7_2304], &[0x89e8_0061, 0x8ac7_2304]);
    let whole = root(&n);
    // (n - p²) / q is q's successor but one; a is the term, h the convergents' numerators.
    let (mut p, mut q, mut a) = (small(0), small(1), whole.clone());
    let (mut before, mut h) = (small(1), whole.clone());
    let mut sum = 0;
    for _ in 0..scale.of(300_000) {
        p = subtract(&multiply(&a, &q), &p);
        q = divide(&subtract(&n, &multiply(&p, &p)), &q).0;
        a = divide(&add(&whole, &p), &q).0;
        let next = divide(&add(&multiply(&a, &h), &before), &n).1;
        before = std::mem::replace(&mut h, next);
        let mut rest = q.clone();
        for prime in PRIMES {
            // A remainder of nothing is a factor found.
            while !rest.is_empty() {
                let (quotient, remainder) = divide(&rest, &[prime]);
                if !remainder.is_empty() {
                    break;
                }
                rest = quotient;
            }
        }
        sum = rest.iter().chain(&h).fold(sum, |sum, digit| mix(sum, u64::from(*digit)));
    }
    sum
}
