//! Checked trees: what the gbdt crate trained, in a form that cannot panic or loop, and the
//! bridge to and from the crate's own (serde) form.

use serde::{Deserialize, Serialize};

use super::AffinityError;
use super::codec::{Reader, Writer};
use super::schema::{Inputs, N};

/// Bounds of a model from a file.
const MAX_TREES: u32 = 10_000;
const MAX_NODES: u32 = 1 << 16;
const MAX_DEPTH: u16 = 64;

/// A node; a leaf has both children 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Node {
    /// Mean of the (standardised) labels that reached the node.
    pub(super) pred: f32,
    /// Column that is compared.
    pub(super) column: u16,
    /// Inputs below it go left.
    pub(super) split: f32,
    pub(super) left: u32,
    pub(super) right: u32,
}

/// One tree, root first; children always behind their parent.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Tree(Vec<Node>);

fn damaged(why: &str) -> AffinityError {
    AffinityError::Damaged(why.to_owned())
}

impl Tree {
    fn checked(nodes: Vec<Node>) -> Result<Self, AffinityError> {
        let len = nodes.len() as u32;
        if len == 0 || len > MAX_NODES {
            return Err(damaged("a tree has no root or too many nodes"));
        }
        let mut depth = vec![0u16; nodes.len()];
        for (i, n) in nodes.iter().enumerate() {
            if !n.pred.is_finite() || !n.split.is_finite() || usize::from(n.column) >= N {
                return Err(damaged("a node's value or column is out of range"));
            }
            if n.left == 0 && n.right == 0 {
                continue;
            }
            for child in [n.left, n.right] {
                // Children behind their parent: no cycles.
                if child as usize <= i || child >= len {
                    return Err(damaged("a node's child is out of place"));
                }
                depth[child as usize] = depth[i] + 1;
            }
            if depth[i] >= MAX_DEPTH {
                return Err(damaged("a tree is too deep"));
            }
        }
        Ok(Self(nodes))
    }

    /// A node; 0 is the root.
    pub(super) fn node(&self, n: u32) -> Node {
        self.0[n as usize]
    }

    /// Walks to the leaf; `step` learns of every edge: column and change of the prediction.
    fn walk(&self, x: &Inputs, mut step: impl FnMut(usize, f64)) -> f64 {
        let mut n = self.0[0];
        while n.left != 0 {
            let column = usize::from(n.column);
            let next = self.0[if x[column] < n.split { n.left } else { n.right } as usize];
            step(column, f64::from(next.pred) - f64::from(n.pred));
            n = next;
        }
        f64::from(n.pred)
    }
}

/// A sum of trees.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Ensemble {
    pub(crate) trees: Vec<Tree>,
    /// Factor of every tree.
    pub(crate) shrinkage: f32,
}

impl Ensemble {
    /// Part that does not depend on the inputs, and what each column adds to it; together the
    /// prediction.
    pub(crate) fn contributions(&self, x: &Inputs) -> (f64, [f64; N]) {
        let (mut base, mut parts) = (0.0, [0.0; N]);
        let s = f64::from(self.shrinkage);
        for t in &self.trees {
            base += s * f64::from(t.0[0].pred);
            t.walk(x, |column, change| parts[column] += s * change);
        }
        (base, parts)
    }

    pub(crate) fn write(&self, w: &mut Writer) {
        w.f32(self.shrinkage);
        w.u32(self.trees.len() as u32);
        for t in &self.trees {
            w.u32(t.0.len() as u32);
            for n in &t.0 {
                w.f32(n.pred);
                w.u16(n.column);
                w.f32(n.split);
                w.u32(n.left);
                w.u32(n.right);
            }
        }
    }

    pub(crate) fn read(r: &mut Reader<'_>) -> Result<Self, AffinityError> {
        let shrinkage = r.f32()?;
        if !shrinkage.is_finite() {
            return Err(damaged("the shrinkage is not a number"));
        }
        let count = r.u32()?;
        if count == 0 || count > MAX_TREES {
            return Err(damaged("it has no trees or too many"));
        }
        let mut trees = Vec::new();
        for _ in 0..count {
            let n = r.u32()?;
            if n > MAX_NODES {
                return Err(damaged("a tree has too many nodes"));
            }
            let mut nodes = Vec::new();
            for _ in 0..n {
                nodes.push(Node {
                    pred: r.f32()?,
                    column: r.u16()?,
                    split: r.f32()?,
                    left: r.u32()?,
                    right: r.u32()?,
                });
            }
            trees.push(Tree::checked(nodes)?);
        }
        Ok(Self { trees, shrinkage })
    }
}

// The crate's serde form; its fields are private there.

#[derive(Serialize, Deserialize)]
struct CrateModel {
    conf: gbdt::config::Config,
    trees: Vec<CrateTree>,
    bias: f32,
}
#[derive(Serialize, Deserialize)]
struct CrateTree {
    tree: CrateNodes,
    feature_size: usize,
    max_depth: u32,
    min_leaf_size: usize,
    loss: gbdt::config::Loss,
    feature_sample_ratio: f64,
}
#[derive(Serialize, Deserialize)]
struct CrateNodes {
    tree: Vec<CrateNode>,
}
#[derive(Serialize, Deserialize)]
struct CrateNode {
    value: CrateValue,
    index: usize,
    left: usize,
    right: usize,
}
#[derive(Serialize, Deserialize)]
struct CrateValue {
    feature_index: usize,
    feature_value: f32,
    pred: f32,
    missing: i8,
    is_leaf: bool,
}

fn bridge(e: &serde_json::Error) -> AffinityError {
    AffinityError::Training(format!("the gbdt crate's model has an unknown form: {e}"))
}

/// The trees of a model that the crate trained. Fails when a value is not finite, as after a
/// training that diverged.
pub(crate) fn from_crate(model: &gbdt::gradient_boost::GBDT) -> Result<Vec<Tree>, AffinityError> {
    // NaN becomes null in JSON and fails here.
    let json = serde_json::to_value(model).map_err(|e| bridge(&e))?;
    let model: CrateModel = serde_json::from_value(json).map_err(|e| bridge(&e))?;
    let tree = |t: CrateTree| {
        let node = |n: CrateNode| {
            let child = |c: usize| u32::try_from(c).unwrap_or(u32::MAX);
            let leaf = n.value.is_leaf;
            if !leaf && (n.left == 0 || n.right == 0) {
                return Err(damaged("a node lacks a child"));
            }
            Ok(Node {
                pred: n.value.pred,
                column: u16::try_from(n.value.feature_index).unwrap_or(u16::MAX),
                split: n.value.feature_value,
                left: if leaf { 0 } else { child(n.left) },
                right: if leaf { 0 } else { child(n.right) },
            })
        };
        Tree::checked(
            t.tree
                .tree
                .into_iter()
                .map(node)
                .collect::<Result<_, _>>()?,
        )
    };
    model.trees.into_iter().map(tree).collect()
}

/// A predictor of the crate with these (checked) trees, to compare ours with.
#[cfg(test)]
pub(crate) fn to_crate(e: &Ensemble) -> Result<gbdt::gradient_boost::GBDT, AffinityError> {
    let mut conf = gbdt::config::Config::new();
    conf.set_feature_size(N);
    conf.set_iterations(e.trees.len());
    conf.set_shrinkage(e.shrinkage);
    let trees = e.trees.iter().map(|t| CrateTree {
        tree: CrateNodes {
            tree: t
                .0
                .iter()
                .enumerate()
                .map(|(index, n)| CrateNode {
                    value: CrateValue {
                        feature_index: usize::from(n.column),
                        feature_value: n.split,
                        pred: n.pred,
                        missing: 0,
                        is_leaf: n.left == 0,
                    },
                    index,
                    left: n.left as usize,
                    right: n.right as usize,
                })
                .collect(),
        },
        feature_size: N,
        max_depth: u32::from(MAX_DEPTH),
        min_leaf_size: 1,
        loss: gbdt::config::Loss::SquaredError,
        feature_sample_ratio: 1.0,
    });
    let model = CrateModel {
        conf,
        trees: trees.collect(),
        bias: 0.0,
    };
    let json = serde_json::to_value(model).map_err(|e| bridge(&e))?;
    serde_json::from_value(json).map_err(|e| bridge(&e))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(pred: f32, left: u32, right: u32) -> Node {
        Node {
            pred,
            column: 0,
            split: 0.5,
            left,
            right,
        }
    }

    #[test]
    fn bad_trees_are_refused() {
        let leaf = node(1.0, 0, 0);
        assert!(Tree::checked(vec![]).is_err());
        assert!(Tree::checked(vec![leaf]).is_ok());
        assert!(Tree::checked(vec![node(0.0, 1, 2), leaf, leaf]).is_ok());
        assert!(Tree::checked(vec![node(0.0, 1, 3), leaf, leaf]).is_err());
        assert!(Tree::checked(vec![node(0.0, 1, 0), leaf]).is_err());
        let cyclic = vec![node(0.0, 1, 2), node(0.0, 1, 2), leaf];
        assert!(Tree::checked(cyclic).is_err());
        assert!(Tree::checked(vec![node(f32::NAN, 0, 0)]).is_err());
        let mut wide = leaf;
        wide.column = N as u16;
        assert!(Tree::checked(vec![wide]).is_err());
        let mut deep: Vec<_> = (0..100).map(|i| node(0.0, i + 1, i + 1)).collect();
        deep.push(leaf);
        assert!(Tree::checked(deep).is_err());
    }

    #[test]
    fn both_forms_say_the_same() {
        let e = Ensemble {
            trees: vec![
                Tree::checked(vec![node(0.0, 1, 2), node(-1.0, 0, 0), node(0.3, 0, 0)]).unwrap(),
            ],
            shrinkage: 0.1,
        };
        let c = to_crate(&e).unwrap();
        assert_eq!(from_crate(&c).unwrap(), e.trees);
        for v in [0.0, 0.5, 1.0] {
            let x = [v; N];
            let d = gbdt::decision_tree::Data::new_test_data(x.to_vec(), None);
            let (base, parts) = e.contributions(&x);
            let sum = base + parts.iter().sum::<f64>();
            assert!((f64::from(c.predict(&vec![d])[0]) - sum).abs() < 1e-6);
        }
    }
}
