//! What chance alone makes of the comparison with the best of several.
//!
//! Who is compared with the best of seven others in every row is compared with the luckiest of them: were all eight the same
//! allocator, each would come out above 1. By how much follows from how far the rounds of a row are apart (a bootstrap: B. Efron,
//! Bootstrap methods: another look at the jackknife, 1979).

use crate::suite::{Measure, Results, Row, median};

/// So often is every row drawn anew.
const DRAWS: usize = 2000;

/// For every row, what an allocator's number would be over the best of all others', in the mean, if all were the same.
pub fn to_best_by_chance(results: &Results, measure: &Measure) -> Vec<f64> {
    let mut random = Random(1);
    let rows = results.rows.iter().filter_map(|row| {
        let residuals = residuals(results, row, measure);
        let rounds = row.runs[0].len();
        (!residuals.is_empty()).then(|| by_chance(&residuals, results.allocators.len() - 1, rounds, &mut random))
    });
    rows.collect()
}

/// By what each run of a row differs from its allocator's median, less what all of its round do, as logarithms.
fn residuals(results: &Results, row: &Row, measure: &Measure) -> Vec<f64> {
    let logarithm = |line: &serde_json::Value| line[measure.key].as_f64().filter(|&n| n > 0.0).map(f64::ln);
    let of_each = row.runs.iter().enumerate().filter_map(|(allocator, runs)| {
        let middle = (results.median(row, allocator, measure)? * measure.divisor).ln();
        Some(runs.iter().map(|line| logarithm(line).map(|n| n - middle)).collect::<Vec<_>>())
    });
    let of_each: Vec<Vec<Option<f64>>> = of_each.filter(|runs| runs.iter().flatten().all(|n| n.is_finite())).collect();
    let of_round = |round: usize| of_each.iter().filter_map(move |runs| *runs.get(round)?);
    (0..row.runs[0].len())
        .flat_map(|round| {
            let shared = median(of_round(round).collect()).unwrap_or_default();
            of_round(round).map(move |n| n - shared)
        })
        .collect()
}

/// The geometric mean over many draws of the largest of the ratios to so many others, each a median over the rounds.
fn by_chance(residuals: &[f64], others: usize, rounds: usize, random: &mut Random) -> f64 {
    let mut sum = 0.0;
    for _ in 0..DRAWS {
        let ours: Vec<f64> = (0..rounds).map(|_| random.pick(residuals)).collect();
        let ratios = (0..others).filter_map(|_| median(ours.iter().map(|n| n - random.pick(residuals)).collect()));
        sum += ratios.fold(f64::NEG_INFINITY, f64::max);
    }
    (sum / DRAWS as f64).exp()
}

/// SplitMix64 (G. Steele, D. Lea, C. Flood, OOPSLA 2014).
struct Random(u64);

impl Random {
    fn pick(&mut self, from: &[f64]) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        from[((z ^ (z >> 31)) % from.len() as u64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const TIME: Measure = Measure { key: "ms", title: "Time, ms", divisor: 1.0, decimals: 0 };

    fn results(number: impl Fn(usize, usize) -> f64) -> Results {
        let runs = |allocator| (0..6).map(|round| json!({ "ms": number(allocator, round) })).collect();
        let row = Row { name: "row".into(), what: String::new(), runs: (0..8).map(runs).collect() };
        Results { allocators: vec!["a", "b", "c", "d", "e", "f", "g", "h"], measures: &[TIME], rows: vec![row] }
    }

    /// What differs from allocator to allocator, and what from round to round, is no chance; what else does, is.
    ///
    /// Red if `residuals` leaves out the allocator's median or the round's, or if `by_chance` looks at one other alone.
    #[test]
    fn chance_is_what_neither_allocator_nor_round_explains() {
        let explained = results(|allocator, round| (1 + allocator) as f64 * (10.0 + round as f64));
        assert!(to_best_by_chance(&explained, &TIME).iter().all(|ratio| (ratio - 1.0).abs() < 1e-9));
        // A tenth up or down, one of them as often as the other in every round and for each allocator: 1.066, by another simulation.
        let noisy = results(|allocator, round| if (allocator + round) % 2 == 0 { 100.0 } else { 121.0 });
        let ratio = to_best_by_chance(&noisy, &TIME)[0];
        assert!((1.055..1.08).contains(&ratio), "{ratio}");
    }
}
