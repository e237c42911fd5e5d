//! A table of blocks that several threads replace, and a pipeline of threads.

use std::sync::Mutex;
use std::sync::mpsc::sync_channel;
use std::thread;

use crate::object::{Object, Random};
use crate::usage::Watch;
use crate::{Row, Scale};

pub const ROWS: &[Row] = &[
    Row {
        name: "shared_table",
        what: "4 threads that replace random ones of 50,000 shared blocks of 8 to 511 bytes, in parts of the table that \
               are locked for 16 at a time; 8 million",
        run: shared,
    },
    Row {
        name: "producer_consumer",
        what: "a thread makes records of a few strings, a second changes them, a third drops them, in parcels of 64; 1.2 \
               million records",
        run: pipeline,
    },
];

fn shared(scale: &Scale, watch: &mut Watch) -> u64 {
    const PARTS: usize = 500;
    const PART: usize = 100;
    let sizes = Random::new(0).sizes(4096);
    watch.begin();
    let parts: Vec<Mutex<Vec<(Object, u64)>>> =
        (0..PARTS).map(|_| Mutex::new((0..PART as u64).map(|tag| (Object::new(64, tag), tag)).collect())).collect();
    let sum = thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|number| {
                let (parts, sizes) = (&parts, &sizes);
                scope.spawn(move || {
                    let mut random = Random::new(number + 1);
                    let mut sum = 0u64;
                    for _ in 0..scale.of(8_000_000) / 4 / 16 {
                        let mut part = parts[random.next() as usize % PARTS].lock().expect("no thread has panicked");
                        for _ in 0..16 {
                            let bits = random.next();
                            let slot = &mut part[bits as u32 as usize % PART];
                            assert_eq!(slot.0.difference(slot.1), 0, "a block has changed");
                            sum = sum.wrapping_add(slot.1);
                            *slot = (Object::new(sizes[(bits >> 40) as usize % sizes.len()], bits), bits);
                        }
                    }
                    sum
                })
            })
            .collect();
        threads.into_iter().fold(0, |sum: u64, thread| sum.wrapping_add(thread.join().expect("a thread")))
    });
    let parts = parts.into_iter().flat_map(|part| part.into_inner().expect("no thread has panicked"));
    parts.fold(sum, |sum, (_, tag)| sum.wrapping_add(tag))
}

struct Record {
    number: u64,
    fields: Vec<String>,
}

fn pipeline(scale: &Scale, watch: &mut Watch) -> u64 {
    const PARCEL: usize = 64;
    watch.begin();
    let (made, to_change) = sync_channel::<Vec<Box<Record>>>(16);
    let (changed, to_drop) = sync_channel::<Vec<Box<Record>>>(16);
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut random = Random::new(0);
            for _ in 0..scale.of(1_200_000) / PARCEL {
                let record = |_| {
                    let number = random.next();
                    let field = |n: u64| "abcdefghijklmnopqrstuvwxyz"[..(number >> (n * 4)) as usize & 15].to_string();
                    Box::new(Record { number, fields: (0..number >> 60 & 3).map(field).collect() })
                };
                made.send((0..PARCEL).map(record).collect()).expect("the second goes on");
            }
        });
        scope.spawn(move || {
            for mut parcel in to_change {
                for record in &mut parcel {
                    record.fields.push(format!("changed {}", record.number & 0xffff));
                    if record.number & 1 == 0 {
                        record.fields[0] = record.fields[0].to_uppercase();
                    }
                }
                changed.send(parcel).expect("the third goes on");
            }
        });
        to_drop.into_iter().flatten().fold(0u64, |sum, record| {
            let length: usize = record.fields.iter().map(String::len).sum();
            sum.wrapping_add(record.number.wrapping_mul(length as u64))
        })
    })
}
