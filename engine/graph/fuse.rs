//! Fusion, once, at compile: sequences of primitives become fused operations.
//!
//! In: a verified graph. Out: an equal graph with fewer nodes. A fused node keeps the name of the last
//! primitive that it replaces. Patterns match only values that nothing else reads.

use super::op::{Arg, Op};
use super::{Graph, Node, NodeId, verify};
use crate::Result;

/// Applies all fusions.
pub fn fuse(graph: &Graph) -> Result<Graph> {
    let mut graph = graph.clone();
    for i in 0..graph.nodes.len() {
        let node = &graph.nodes[i];
        if node.op == Op::Mul {
            if let Some((op, input)) = gated_linear(&graph, node) {
                graph.nodes[i].op = op;
                graph.nodes[i].inputs = vec![input];
            }
        } else if node.op == Op::Add
            && let Some((op, inputs)) = linear_add(&graph, node)
        {
            graph.nodes[i].op = op;
            graph.nodes[i].inputs = inputs;
        }
    }
    let graph = drop_dead(&graph);
    verify::verify(&graph)?;
    Ok(graph)
}

/// Replaces every fused node by its expansion; the inverse of [`fuse`] up to names.
pub fn expand(graph: &Graph) -> Result<Graph> {
    let mut out = Graph { nodes: Vec::new(), outputs: Vec::new(), ..graph.clone() };
    let mut map: Vec<NodeId> = Vec::with_capacity(graph.nodes.len());
    for node in &graph.nodes {
        let inputs: Vec<NodeId> = node.inputs.iter().map(|x| map[x.0 as usize]).collect();
        let Some(steps) = node.op.expand() else {
            out.nodes.push(Node { inputs, ..node.clone() });
            map.push(NodeId(out.nodes.len() as u32 - 1));
            continue;
        };
        let last = steps.len() - 1;
        let base = out.nodes.len() as u32;
        for (i, (op, args)) in steps.into_iter().enumerate() {
            let args: Vec<NodeId> = args
                .iter()
                .map(|a| match a {
                    Arg::Input(j) => inputs[*j],
                    Arg::Step(j) => NodeId(base + *j as u32),
                })
                .collect();
            let types: Vec<_> = args.iter().map(|x| out.node(*x).ty.clone()).collect();
            let ty = op
                .infer(&out, &types.iter().collect::<Vec<_>>())
                .map_err(|e| crate::Error::Internal(format!("expansion of {}: {e}", node.name)))?;
            let name = if i == last { node.name.clone() } else { format!("{}.step{i}", node.name) };
            out.nodes.push(Node { name, op, inputs: args, ty });
        }
        map.push(NodeId(out.nodes.len() as u32 - 1));
    }
    out.outputs = graph.outputs.iter().map(|o| map[o.0 as usize]).collect();
    verify::verify(&out)?;
    Ok(out)
}

fn read_once(graph: &Graph, id: NodeId) -> bool {
    let uses = graph.nodes.iter().flat_map(|n| &n.inputs).filter(|x| **x == id).count();
    uses == 1 && !graph.outputs.contains(&id)
}

fn gated_linear(graph: &Graph, mul: &Node) -> Option<(Op, NodeId)> {
    let [act, up] = [mul.inputs[0], mul.inputs[1]];
    let Op::Activation(activation) = graph.node(act).op else { return None };
    let gate = graph.node(act).inputs[0];
    let (Op::Linear { weight: gate_w, bias: None }, Op::Linear { weight: up_w, bias: None }) =
        (&graph.node(gate).op, &graph.node(up).op)
    else {
        return None;
    };
    let x = graph.node(gate).inputs[0];
    let once = [act, gate, up].iter().all(|id| read_once(graph, *id));
    (once && graph.node(up).inputs[0] == x).then_some((Op::GatedLinear { gate: *gate_w, up: *up_w, activation }, x))
}

fn linear_add(graph: &Graph, add: &Node) -> Option<(Op, Vec<NodeId>)> {
    let [residual, y] = [add.inputs[0], add.inputs[1]];
    let Op::Linear { weight, bias } = graph.node(y).op else { return None };
    let x = graph.node(y).inputs[0];
    read_once(graph, y).then(|| (Op::LinearAdd { weight, bias }, vec![residual, x]))
}

/// Removes nodes whose value nobody reads; inputs and operations with effects stay.
fn drop_dead(graph: &Graph) -> Graph {
    let mut live = vec![false; graph.nodes.len()];
    for (i, n) in graph.nodes.iter().enumerate().rev() {
        let effect = matches!(n.op, Op::Input | Op::KvWrite { .. } | Op::ScatterRows { .. });
        live[i] |= effect || graph.outputs.contains(&NodeId(i as u32));
        if live[i] {
            n.inputs.iter().for_each(|x| live[x.0 as usize] = true);
        }
    }
    let mut map = vec![NodeId(0); graph.nodes.len()];
    let mut out = Graph { nodes: Vec::new(), outputs: Vec::new(), ..graph.clone() };
    for (i, n) in graph.nodes.iter().enumerate().filter(|(i, _)| live[*i]) {
        map[i] = NodeId(out.nodes.len() as u32);
        out.nodes.push(Node { inputs: n.inputs.iter().map(|x| map[x.0 as usize]).collect(), ..n.clone() });
    }
    out.outputs = graph.outputs.iter().map(|o| map[o.0 as usize]).collect();
    out
}

#[cfg(test)]
mod tests {
    use super::super::{Activation, Builder, Shape, Sym};
    use super::*;

    fn mlp(read_gate_twice: bool) -> Graph {
        let b = Builder::new("g");
        let x = b.float_input("x", Shape::matrix(Sym::Tokens, 8));
        let g = b.linear("gate", x, 16);
        let a = b.activation("act", g, Activation::Silu);
        let u = b.linear("up", x, 16);
        let m = b.mul("mul", a, u);
        let d = b.linear("down", m, 8);
        let y = b.add("out", x, d);
        let outputs = if read_gate_twice { vec![y, g] } else { vec![y] };
        b.finish(&outputs).unwrap()
    }

    fn ops(g: &Graph) -> Vec<&'static str> {
        g.nodes.iter().map(|n| n.op.name()).collect()
    }

    #[test]
    fn an_mlp_becomes_two_nodes_and_expands_back() {
        let g = mlp(false);
        let f = fuse(&g).unwrap();
        assert_eq!(ops(&f), ["input", "gated_linear", "linear_add"]);
        assert_eq!(f.node(f.outputs[0]).name, "out");
        assert_eq!(ops(&expand(&f).unwrap()), ["input", "linear", "silu", "linear", "mul", "linear", "add"]);
    }

    #[test]
    fn a_value_that_is_read_elsewhere_is_kept() {
        assert!(ops(&fuse(&mlp(true)).unwrap()).contains(&"silu"));
    }
}
