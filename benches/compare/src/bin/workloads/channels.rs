//! Messages in boxes through channels.

use std::thread;

use crossbeam_channel::{bounded, unbounded};

use crate::object::Random;
use crate::usage::Watch;
use crate::{Row, Scale};

pub const ROWS: &[Row] = &[
    Row {
        name: "channel_bounded",
        what: "2 threads send 3 million messages, boxes with a string in them, to 2 others, through a channel of \
               crossbeam for 256",
        run: |scale, watch| send(Some(256), scale, watch),
    },
    Row {
        name: "channel_unbounded",
        what: "as channel_bounded, through a channel without bounds",
        run: |scale, watch| send(None, scale, watch),
    },
    Row {
        name: "channel_trade",
        what: "2 threads that send each other boxes of 64 bytes, and free what they get: 1 million each, 64 under way",
        run: trade,
    },
];

struct Message {
    number: u64,
    text: String,
    payload: Vec<u64>,
}

fn send(bound: Option<usize>, scale: &Scale, watch: &mut Watch) -> u64 {
    watch.begin();
    let (to, from) = bound.map_or_else(unbounded, bounded);
    thread::scope(|scope| {
        for number in 0..2 {
            let to = to.clone();
            scope.spawn(move || {
                let mut random = Random::new(number + 1);
                for _ in 0..scale.of(1_500_000) {
                    let number = random.next();
                    let text =
                        "a message of some length, or of another".get(..number as usize % 39).unwrap_or_default();
                    let payload = vec![number; number as usize >> 8 & 15];
                    let message = Box::new(Message { number, text: text.into(), payload });
                    to.send(message).expect("somebody receives");
                }
            });
        }
        drop(to);
        let receive = || {
            from.iter().fold(0u64, |sum, message: Box<Message>| {
                assert!(message.payload.iter().all(|word| *word == message.number), "a message has changed");
                sum.wrapping_add(message.number ^ message.text.len() as u64)
            })
        };
        let receivers = [scope.spawn(receive), scope.spawn(receive)];
        receivers.into_iter().fold(0u64, |sum, receiver| sum.wrapping_add(receiver.join().expect("a receiver")))
    })
}

fn trade(scale: &Scale, watch: &mut Watch) -> u64 {
    const UNDER_WAY: u64 = 64;
    watch.begin();
    let (to_first, first) = bounded::<Box<[u64; 8]>>(UNDER_WAY as usize);
    let (to_second, second) = bounded::<Box<[u64; 8]>>(UNDER_WAY as usize);
    let total = scale.of(1_000_000) as u64;
    let work = move |to: crossbeam_channel::Sender<Box<[u64; 8]>>, from: crossbeam_channel::Receiver<Box<[u64; 8]>>| {
        let mut sum = 0u64;
        for number in 0..total {
            // The other has sent as many, so it never waits for room here while we wait for it there.
            to.send(Box::new([number; 8])).expect("the other receives");
            if number >= UNDER_WAY / 2 {
                sum = sum.wrapping_add(from.recv().expect("the other sends")[number as usize % 8]);
            }
        }
        drop(to);
        from.iter().fold(sum, |sum, message| sum.wrapping_add(message[0]))
    };
    thread::scope(|scope| {
        let other = scope.spawn(move || work(to_first, second));
        let sum = work(to_second, first);
        sum.wrapping_add(other.join().expect("the other"))
    })
}
