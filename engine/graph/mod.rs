//! The intermediate representation: a list of named nodes in SSA form and the tables they refer to.
//!
//! In: what a family builds. Out: a verified graph, fused and planned for a bucket.
//! Owns: nodes, weight table, state table. Not here: backends, families, weights' bytes.

pub mod builder;
pub mod fuse;
pub mod normalization;
pub mod op;
pub mod plan;
pub mod rotary;
pub mod shape;
pub mod verify;

use std::fmt;

pub use builder::Builder;
pub use normalization::Normalization;
pub use op::{Activation, Arg, Cost, Heads, Kind, Norm, Op, Qkv, Type};
pub use plan::{Layout, Plan};
pub use rotary::Rotary;
pub use shape::{Dim, Shape, Sizes, Sym};

/// Index of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u32);

/// Index into the weight table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WeightId(pub u32);

/// Index into the state table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StateId(pub u32);

/// A named value and how it comes about.
#[derive(Debug, Clone)]
pub struct Node {
    /// The checkpoint's module path and, where one module has several values, a suffix.
    pub name: String,
    pub op: Op,
    pub inputs: Vec<NodeId>,
    pub ty: Type,
}

/// A tensor that the graph reads from the checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Weight {
    /// Name in the checkpoint.
    pub name: String,
    /// Shape in the checkpoint. An operation that reads a matrix takes `[shape[0], product of the rest]`.
    pub shape: Vec<usize>,
    /// Whether it is a large matrix that keeps its stored form, or a small vector that every backend turns to f32.
    pub matrix: bool,
}

/// A buffer that lives from step to step and is shared by name between the programs of one backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    pub name: String,
    pub shape: Shape,
}

/// A graph. Nodes stand in the order in which they may run.
#[derive(Debug, Clone, Default)]
pub struct Graph {
    pub name: String,
    pub nodes: Vec<Node>,
    pub weights: Vec<Weight>,
    pub states: Vec<State>,
    /// Values read back by the host, by node.
    pub outputs: Vec<NodeId>,
}

impl Graph {
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0 as usize]
    }

    pub fn weight(&self, id: WeightId) -> &Weight {
        &self.weights[id.0 as usize]
    }

    pub fn state(&self, id: StateId) -> &State {
        &self.states[id.0 as usize]
    }

    /// The input nodes, in the order in which a program takes its arrays.
    pub fn inputs(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        self.nodes.iter().enumerate().filter(|(_, n)| matches!(n.op, Op::Input)).map(|(i, n)| (NodeId(i as u32), n))
    }

    /// Floating-point operations and elements moved under `sizes`, summed over the nodes.
    pub fn cost(&self, sizes: &Sizes) -> Cost {
        self.nodes.iter().fold(Cost::default(), |a, n| {
            let inputs: Vec<&Type> = n.inputs.iter().map(|i| &self.node(*i).ty).collect();
            let c = n.op.cost(self, &inputs, &n.ty, sizes);
            Cost {
                flops: a.flops + c.flops,
                weight_elements: a.weight_elements + c.weight_elements,
                activation_elements: a.activation_elements + c.activation_elements,
            }
        })
    }
}

impl fmt::Display for Graph {
    /// One line a node: `%id name = op(inputs; weights) kind shape`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "graph {}: {} nodes, {} weights, {} states",
            self.name,
            self.nodes.len(),
            self.weights.len(),
            self.states.len()
        )?;
        for (i, n) in self.nodes.iter().enumerate() {
            write!(f, "%{i} {} = {}(", n.name, n.op.name())?;
            for (j, x) in n.inputs.iter().enumerate() {
                write!(f, "{}%{}", if j > 0 { ", " } else { "" }, x.0)?;
            }
            for w in n.op.weights() {
                write!(f, "; {}{:?}", self.weight(w).name, self.weight(w).shape)?;
            }
            writeln!(f, ") {:?} {}", n.ty.kind, n.ty.shape)?;
        }
        write!(f, "outputs:")?;
        for o in &self.outputs {
            write!(f, " %{}", o.0)?;
        }
        writeln!(f)
    }
}
