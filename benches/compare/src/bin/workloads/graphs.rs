//! Graphs of nodes that threads share.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, Weak};
use std::thread;

use crate::object::Random;
use crate::usage::Watch;
use crate::{Row, Scale};

pub const ROWS: &[Row] = &[Row {
    name: "arc_graph",
    what: "2 threads, 12 graphs of 30,000 nodes each: nodes are Arcs with a name and edges behind a mutex, and know where \
           they come from by a Weak; edges are added and cut, the graph is searched, and the other thread drops it",
    run: graphs,
}];

struct Node {
    number: u64,
    name: String,
    edges: Mutex<Vec<Arc<Node>>>,
    parent: Weak<Node>,
}

impl Node {
    fn new(number: u64, parent: Weak<Node>) -> Arc<Node> {
        Arc::new(Node { number, name: format!("node {number}"), edges: Mutex::new(Vec::new()), parent })
    }

    fn edges(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Node>>> {
        self.edges.lock().expect("no thread has panicked")
    }
}

/// Edges lead from nodes to later ones, so that there are no cycles.
fn graph(seed: u64, nodes: usize) -> (Vec<Arc<Node>>, u64) {
    let mut random = Random::new(seed);
    let mut all: Vec<Arc<Node>> = vec![Node::new(0, Weak::new())];
    for number in 1..nodes {
        // Not far back, and never deep: dropping a long chain would be a deep recursion.
        let parent = &all[number / 4];
        let node = Node::new(number as u64, Arc::downgrade(parent));
        parent.edges().push(node.clone());
        all.push(node);
    }
    for _ in 0..nodes * 3 {
        let bits = random.next();
        let from = bits as u32 as usize % nodes;
        let mut edges = all[from].edges();
        if bits >> 32 & 3 == 0 && edges.len() > 4 {
            edges.pop();
        } else {
            // Among the next tier's nodes.
            let to = (from * 4 + (bits >> 34) as usize % 64).min(nodes - 1);
            if to > from {
                edges.push(all[to].clone());
            }
        }
    }
    let (mut queue, mut seen, mut sum) = (VecDeque::from([all[0].clone()]), vec![false; nodes], 0u64);
    while let Some(node) = queue.pop_front() {
        if std::mem::replace(&mut seen[node.number as usize], true) {
            continue;
        }
        let parent = node.parent.upgrade().map_or(0, |parent| parent.number);
        sum = sum.wrapping_add((node.number ^ parent << 20).wrapping_mul(node.name.len() as u64));
        queue.extend(node.edges().iter().cloned());
    }
    (all, sum)
}

fn graphs(scale: &Scale, watch: &mut Watch) -> u64 {
    let nodes = scale.of(30_000).max(16);
    watch.begin();
    thread::scope(|scope| {
        let (to_first, first) = crossbeam_channel::bounded(2);
        let (to_second, second) = crossbeam_channel::bounded(2);
        let work = move |number: u64, to: crossbeam_channel::Sender<_>, from: crossbeam_channel::Receiver<_>| {
            let mut sum = 0u64;
            for turn in 0..12 {
                let (graph, found) = graph(number * 100 + turn, nodes);
                sum = sum.wrapping_add(found);
                to.send(graph).expect("the other receives");
                drop(from.recv());
            }
            sum
        };
        let other = scope.spawn(move || work(1, to_first, second));
        let sum = work(2, to_second, first);
        sum.wrapping_add(other.join().expect("the other"))
    })
}
