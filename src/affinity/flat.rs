//! Trees laid out for predicting: 12 bytes per node, all in one array, siblings side by side.

use super::trees::{Ensemble, Tree};

/// Rows that are taken through a tree together, while its nodes are in the cache.
const BLOCK: usize = 64;
/// Column of a leaf.
const LEAF: u16 = u16::MAX;

#[derive(Debug, Clone, Copy, PartialEq)]
struct Node {
    /// Inputs below it go left; of a leaf, what the tree adds.
    value: f32,
    /// Index of the left child; the right one follows it.
    left: u32,
    column: u16,
}

/// An ensemble for predicting only.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Flat {
    nodes: Vec<Node>,
    roots: Vec<u32>,
}

impl Flat {
    /// Lays out checked trees.
    pub(crate) fn of(e: &Ensemble) -> Self {
        let mut flat = Self {
            nodes: Vec::new(),
            roots: Vec::with_capacity(e.trees.len()),
        };
        for t in &e.trees {
            flat.add(t, e.shrinkage);
        }
        flat
    }

    fn add(&mut self, tree: &Tree, shrinkage: f32) {
        const EMPTY: Node = Node {
            value: 0.0,
            left: 0,
            column: LEAF,
        };
        let root = self.nodes.len() as u32;
        self.roots.push(root);
        self.nodes.push(EMPTY);
        // Node of the tree, place here.
        let mut open = vec![(0u32, root)];
        while let Some((from, to)) = open.pop() {
            let n = tree.node(from);
            let node = if n.left == 0 {
                Node {
                    value: n.pred * shrinkage,
                    ..EMPTY
                }
            } else {
                let left = self.nodes.len() as u32;
                self.nodes.extend([EMPTY, EMPTY]);
                open.push((n.left, left));
                open.push((n.right, left + 1));
                Node {
                    value: n.split,
                    left,
                    column: n.column,
                }
            };
            self.nodes[to as usize] = node;
        }
    }

    fn leaf<const N: usize>(&self, root: u32, x: &[f32; N]) -> f32 {
        let mut n = self.nodes[root as usize];
        while n.column != LEAF {
            // Checked when the tree was made; written so that it costs no branch.
            let v = x[usize::from(n.column).min(N - 1)];
            let right = u32::from(v >= n.value);
            n = self.nodes[(n.left + right) as usize];
        }
        n.value
    }

    /// Sums of all trees for one row.
    pub(crate) fn sum<const N: usize>(&self, x: &[f32; N]) -> f64 {
        self.roots.iter().map(|r| f64::from(self.leaf(*r, x))).sum()
    }

    /// The same for many rows.
    pub(crate) fn sums<const N: usize>(&self, rows: &[[f32; N]]) -> Vec<f64> {
        let mut out = vec![0.0; rows.len()];
        for (rows, out) in rows.chunks(BLOCK).zip(out.chunks_mut(BLOCK)) {
            for root in &self.roots {
                for (x, sum) in rows.iter().zip(out.iter_mut()) {
                    *sum += f64::from(self.leaf(*root, x));
                }
            }
        }
        out
    }
}
