//! In which order allocators take turns.
//!
//! What runs before a program decides how fast it gets its memory: what a process leaves behind is in the caches, and on
//! a virtual machine that reports free pages to its host (`VIRTIO_BALLOON_F_REPORTING`) it has memory behind it for two more
//! seconds, so that a gigabyte of huge pages took half a second after a program that used huge pages, and three after one
//! that did not. In turns that only rotate every allocator has the same one before it in every round. These are balanced:
//! E. J. Williams, Experimental designs balanced for the estimation of residual effects of treatments, 1949.

/// Which allocator has which turn in a round: each comes first once in `count` rounds, and once right after each other one,
/// or, where `count` is odd, twice in twice as many.
pub fn turns(round: usize, count: usize) -> Vec<usize> {
    // First, second, last, third, last but one and so on.
    let zigzag = |turn: usize| if turn % 2 == 1 { turn.div_ceil(2) } else { (count - turn / 2) % count };
    let mut order: Vec<usize> = (0..count).map(|turn| (zigzag(turn) + round) % count).collect();
    if count % 2 == 1 && (round / count) % 2 == 1 {
        order.reverse();
    }
    order
}

#[cfg(test)]
mod tests {
    use super::turns;

    /// Control: have `zigzag` return its argument.
    #[test]
    fn everybody_comes_first_and_after_everybody_else() {
        for count in 1..10 {
            let (rounds, times) = if count % 2 == 0 { (count, 1) } else { (2 * count, 2) };
            let mut at = vec![vec![0; count]; count];
            let mut after = vec![vec![0; count]; count];
            for round in 0..rounds {
                let order = turns(round, count);
                order.iter().enumerate().for_each(|(turn, allocator)| at[turn][*allocator] += 1);
                order.windows(2).for_each(|pair| after[pair[0]][pair[1]] += 1);
            }
            assert!(at.iter().flatten().all(|n| *n == times), "{count}: {at:?}");
            for (one, others) in after.iter().enumerate() {
                for (other, n) in others.iter().enumerate() {
                    assert_eq!(*n, if one == other { 0 } else { times }, "{count}: {other} after {one}");
                }
            }
        }
    }
}
