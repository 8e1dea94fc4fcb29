//! Whether every move ends: from every state that can be reached, with whatever faults, an end
//! can be reached by steps that are no faults. As there are finitely many states, a run whose
//! faults cease and whose steps are taken fairly then does end.
//!
//! (stateright's `eventually` does not see a run that goes round in a circle.)

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt::Write;
use std::hash::{DefaultHasher, Hash, Hasher};

use stateright::Model;

use crate::{Move, World, ended};

/// All states of a scope, by number in the order in which they were found.
pub struct Graph<'a> {
    model: &'a Move,
    /// The state from which each was first found.
    parent: Vec<u32>,
    /// Ends.
    good: Vec<u32>,
    /// Steps that are no faults, as pairs (to, from), sorted.
    back: Vec<(u32, u32)>,
}

fn digest(world: &World) -> u64 {
    let mut hasher = DefaultHasher::new();
    world.hash(&mut hasher);
    hasher.finish()
}

/// Finds all states, breadth first.
pub fn explore(model: &Move) -> Graph<'_> {
    let mut graph = Graph {
        model,
        parent: Vec::new(),
        good: Vec::new(),
        back: Vec::new(),
    };
    let mut number: HashMap<u64, u32> = HashMap::new();
    let mut front = Vec::new();
    for world in model.init_states() {
        number.insert(digest(&world), graph.parent.len() as u32);
        front.push((graph.parent.len() as u32, world));
        graph.parent.push(u32::MAX);
    }
    while !front.is_empty() {
        let mut next_front = Vec::new();
        for (from, world) in front {
            if ended(&world) {
                graph.good.push(from);
            }
            for (step, next) in model.next_steps(&world) {
                let to = match number.entry(digest(&next)) {
                    Entry::Occupied(e) => *e.get(),
                    Entry::Vacant(e) => {
                        let n = graph.parent.len() as u32;
                        graph.parent.push(from);
                        next_front.push((n, next));
                        *e.insert(n)
                    }
                };
                if !step.is_fault() {
                    graph.back.push((to, from));
                }
            }
        }
        front = next_front;
    }
    graph.back.sort_unstable();
    graph
}

impl Graph<'_> {
    /// How many states there are.
    pub fn states(&self) -> usize {
        self.parent.len()
    }

    /// The first state found from which no end can be reached, as the steps to it.
    pub fn stuck(&self) -> Option<String> {
        let mut ends = vec![false; self.parent.len()];
        let mut open = self.good.clone();
        for n in &open {
            ends[*n as usize] = true;
        }
        while let Some(to) = open.pop() {
            let first = self.back.partition_point(|(t, _)| *t < to);
            for (_, from) in self.back[first..].iter().take_while(|(t, _)| *t == to) {
                if !std::mem::replace(&mut ends[*from as usize], true) {
                    open.push(*from);
                }
            }
        }
        let stuck = ends.iter().position(|e| !e)?;
        Some(self.trace(stuck as u32))
    }

    /// The steps to a state: its ancestors are numbers only, so they are walked again.
    fn trace(&self, state: u32) -> String {
        let mut path = vec![state];
        while let Some(n) = path.last().map(|n| self.parent[*n as usize]) {
            if n == u32::MAX {
                break;
            }
            path.push(n);
        }
        let mut text = String::new();
        let Some(mut world) = self.model.init_states().pop() else {
            return text;
        };
        // Numbers follow the order of discovery; a replay of the search up to each is the price
        // of keeping no states.
        let numbers = self.numbers(state);
        for wanted in path.iter().rev().skip(1) {
            let found = self
                .model
                .next_steps(&world)
                .into_iter()
                .find(|(_, next)| numbers.get(&digest(next)) == Some(wanted));
            let Some((step, next)) = found else { break };
            let _ = writeln!(text, "{step:?}");
            world = next;
        }
        let _ = writeln!(text, "{world:#?}");
        text
    }

    /// Numbers of the states up to `last`.
    fn numbers(&self, last: u32) -> HashMap<u64, u32> {
        let mut numbers = HashMap::new();
        let mut queue = std::collections::VecDeque::new();
        for world in self.model.init_states() {
            numbers.insert(digest(&world), 0);
            queue.push_back(world);
        }
        while let Some(world) = queue.pop_front() {
            for (_, next) in self.model.next_steps(&world) {
                let n = numbers.len() as u32;
                if n > last {
                    return numbers;
                }
                if let Entry::Vacant(e) = numbers.entry(digest(&next)) {
                    e.insert(n);
                    queue.push_back(next);
                }
            }
        }
        numbers
    }
}
