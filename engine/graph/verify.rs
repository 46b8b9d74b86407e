//! Checks that a graph is well formed: order, types, names, tables.
//!
//! In: a graph. Out: nothing, or the first fault with the node's name. Run after building and after every pass.

use std::collections::HashSet;

use super::{Graph, Node, Op, Type};
use crate::{Error, Result};

/// Verifies `graph`; errors are [`Error::Model`] and name the node.
pub fn verify(graph: &Graph) -> Result<()> {
    let fault = |node: &Node, what: String| Err(Error::Model(format!("graph {}: {}: {what}", graph.name, node.name)));
    let mut names = HashSet::new();
    for (i, node) in graph.nodes.iter().enumerate() {
        if !names.insert(node.name.as_str()) {
            return fault(node, "two nodes have this name".to_string());
        }
        if let Some(x) = node.inputs.iter().find(|x| x.0 as usize >= i) {
            return fault(node, format!("reads %{}, which comes later", x.0));
        }
        if let Some(w) = node.op.weights().iter().find(|w| w.0 as usize >= graph.weights.len()) {
            return fault(node, format!("weight {} is not in the table", w.0));
        }
        if matches!(node.op, Op::Input) {
            continue;
        }
        let types: Vec<&Type> = node.inputs.iter().map(|x| &graph.node(*x).ty).collect();
        match node.op.infer(graph, &types) {
            Ok(ty) if ty == node.ty => {}
            Ok(ty) => {
                return fault(
                    node,
                    format!("type is {} {:?}, inferred {} {:?}", node.ty.shape, node.ty.kind, ty.shape, ty.kind),
                );
            }
            Err(e) => return fault(node, format!("{}: {e}", node.op.name())),
        }
    }
    match graph.outputs.iter().find(|o| o.0 as usize >= graph.nodes.len()) {
        Some(o) => Err(Error::Model(format!("graph {}: output %{} does not exist", graph.name, o.0))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Builder, Dim, NodeId, Shape, Sym};
    use super::*;

    fn small() -> Graph {
        let b = Builder::new("g");
        let x = b.float_input("x", Shape::matrix(Sym::Tokens, 8));
        let y = b.scope("layer").linear_bias("fc", x, 4);
        let y = b.rms_norm("norm", y, 1e-5);
        b.finish(&[y]).unwrap()
    }

    #[test]
    fn names_and_shapes_are_those_of_the_checkpoint() {
        let g = small();
        let names: Vec<&str> = g.weights.iter().map(|w| w.name.as_str()).collect();
        assert_eq!(names, ["layer.fc.weight", "layer.fc.bias", "norm.weight"]);
        assert_eq!(g.weights[0].shape, [4, 8]);
        assert_eq!(g.nodes[1].name, "layer.fc");
        assert_eq!(g.nodes[2].ty.shape, Shape::matrix(Sym::Tokens, 4));
    }

    #[test]
    fn the_first_mistake_is_named() {
        let b = Builder::new("g");
        let x = b.float_input("x", Shape::matrix(Sym::Tokens, 8));
        let ids = b.int_input("ids", [Dim::from(Sym::Seqs)]);
        let y = b.linear("a", x, 4);
        let bad = b.scope("layers.3").add("sum", x, y);
        let _ = b.linear("later", ids, 4);
        let e = b.finish(&[bad]).unwrap_err().to_string();
        assert!(e.contains("layers.3.sum: add: input 1: expected Float [Tokens, 8], got Float [Tokens, 4]"), "{e}");
    }

    #[test]
    fn a_damaged_graph_is_refused() {
        let mut g = small();
        g.nodes[1].inputs = vec![NodeId(2)];
        assert!(verify(&g).unwrap_err().to_string().contains("comes later"));
        let mut g = small();
        g.nodes[2].name = "x".into();
        assert!(verify(&g).unwrap_err().to_string().contains("two nodes"));
        let mut g = small();
        g.nodes[2].ty.shape = Shape::matrix(Sym::Seqs, 4);
        assert!(verify(&g).unwrap_err().to_string().contains("inferred"));
    }
}
