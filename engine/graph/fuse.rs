//! Fusion, once, at compile: sequences of primitives become fused operations.
//!
//! In: a verified graph. Out: an equal graph with fewer nodes. A fused node keeps the name of the last
//! primitive that it replaces. Patterns match only values that nothing else reads.

use super::op::{Arg, Heads, Norm, Op, Qkv};
use super::{Graph, Node, NodeId, verify};
use crate::Result;

/// How far operations are fused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fusion {
    /// What saves passes over memory.
    Passes,
    /// Also what saves launches: whole attention inputs, activations after a linear layer, norms before one.
    Launches,
}

/// Applies all fusions of a kind.
pub fn fuse(graph: &Graph, fusion: Fusion) -> Result<Graph> {
    let mut graph = graph.clone();
    // Nodes with an effect of their own that another one has taken over.
    let mut taken = vec![false; graph.nodes.len()];
    if fusion == Fusion::Launches {
        for i in 0..graph.nodes.len() {
            let node = &graph.nodes[i];
            let (at, op, inputs) = match &node.op {
                Op::PagedAttention { .. } => {
                    let Some(Paged { q, write, op, inputs }) = qkv_rope(&graph, node) else { continue };
                    taken[write] = true;
                    (q, op, inputs)
                }
                Op::Attention(heads) => {
                    let Some((op, inputs)) = self_attention(&graph, node, *heads) else { continue };
                    (i, op, inputs)
                }
                Op::Activation(activation) => {
                    let x = node.inputs[0];
                    let Op::Linear { weight, bias } = graph.node(x).op else { continue };
                    let multiplied = graph.nodes.iter().any(|n| n.op == Op::Mul && n.inputs[0].0 as usize == i);
                    // A gate goes with its product.
                    if multiplied || !read_once(&graph, x) {
                        continue;
                    }
                    (i, Op::LinearActivation { weight, bias, activation: *activation }, graph.node(x).inputs.clone())
                }
                _ => continue,
            };
            graph.nodes[at].op = op;
            graph.nodes[at].inputs = inputs;
        }
    }
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
    let mut graph = drop_dead(&graph, &taken);
    if fusion == Fusion::Launches {
        take_norms_in(&mut graph);
        graph = drop_dead(&graph, &vec![false; graph.nodes.len()]);
    }
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
    let op = Op::GatedLinear { gate: *gate_w, up: *up_w, activation, norm: None };
    (once && graph.node(up).inputs[0] == x).then_some((op, x))
}

fn linear_add(graph: &Graph, add: &Node) -> Option<(Op, Vec<NodeId>)> {
    let [residual, y] = [add.inputs[0], add.inputs[1]];
    let Op::Linear { weight, bias } = graph.node(y).op else { return None };
    let x = graph.node(y).inputs[0];
    read_once(graph, y).then(|| (Op::LinearAdd { weight, bias }, vec![residual, x]))
}

/// q, k and v where all are linear layers of one input that only attention reads.
fn qkv(graph: &Graph, linears: [NodeId; 3]) -> Option<(Qkv, NodeId)> {
    let part = |id: NodeId| match graph.node(id).op {
        Op::Linear { weight, bias } if read_once(graph, id) => Some((weight, bias, graph.node(id).inputs[0])),
        _ => None,
    };
    let [q, k, v] = linears.map(part);
    let (q, k, v) = (q?, k?, v?);
    let biases = match (q.1, k.1, v.1) {
        (Some(a), Some(b), Some(c)) => Some([a, b, c]),
        (None, None, None) => None,
        _ => return None,
    };
    (q.2 == k.2 && k.2 == v.2).then_some((Qkv { weights: [q.0, k.0, v.0], biases }, q.2))
}

fn self_attention(graph: &Graph, node: &Node, heads: Heads) -> Option<(Op, Vec<NodeId>)> {
    let [q, k, v, cu_q, cu_k] = *node.inputs.as_slice() else { return None };
    let (qkv, x) = qkv(graph, [q, k, v])?;
    (cu_q == cu_k).then_some((Op::SelfAttention { qkv, heads }, vec![x, cu_q]))
}

/// The inputs of attention over pages as one operation.
struct Paged {
    /// The node that it stands at: that of the turned q.
    q: usize,
    /// The node of the write that it takes over.
    write: usize,
    op: Op,
    inputs: Vec<NodeId>,
}

fn qkv_rope(graph: &Graph, attention: &Node) -> Option<Paged> {
    let Op::PagedAttention { cache, heads, .. } = attention.op else { return None };
    let writes = |n: &Node| matches!(n.op, Op::KvWrite { cache: c, .. } if c == cache);
    let write = graph.nodes.iter().position(writes)?;
    let [k, v, slots] = *graph.nodes[write].inputs.as_slice() else { return None };
    let q = attention.inputs[0];
    let turned = |id: NodeId| match &graph.node(id).op {
        Op::Rope { rotary, .. } if read_once(graph, id) => {
            Some((graph.node(id).inputs[0], graph.node(id).inputs[1], rotary.clone()))
        }
        _ => None,
    };
    let ((q_linear, q_positions, rotary), (k_linear, k_positions, k_rotary)) = (turned(q)?, turned(k)?);
    let (qkv, x) = qkv(graph, [q_linear, k_linear, v])?;
    if q_positions != k_positions || rotary != k_rotary || slots.0 >= q.0 {
        return None;
    }
    let op = Op::QkvRope { norm: None, qkv, heads, rotary, cache };
    Some(Paged { q: q.0 as usize, write, op, inputs: vec![x, q_positions, slots] })
}

/// Has linear layers compute the norms that only they read, a plain one also of rows chosen after the norm: a norm is of
/// each row alone.
fn take_norms_in(graph: &mut Graph) {
    let norm_of = |graph: &Graph, id: NodeId| match graph.node(id).op {
        Op::RmsNorm { weight, eps } if read_once(graph, id) => Some((Norm { weight, eps }, graph.node(id).inputs[0])),
        _ => None,
    };
    for i in 0..graph.nodes.len() {
        if !matches!(graph.nodes[i].op, Op::QkvRope { .. } | Op::GatedLinear { .. } | Op::Linear { .. }) {
            continue;
        }
        let x = graph.nodes[i].inputs[0];
        let plain = matches!(graph.nodes[i].op, Op::Linear { .. });
        let rows = (plain && graph.node(x).op == Op::GatherRows && read_once(graph, x)).then(|| graph.node(x));
        let (normed, index) = rows.map_or((x, None), |gather| (gather.inputs[0], Some(gather.inputs[1])));
        let Some((taken, input)) = norm_of(graph, normed) else { continue };
        let node = &mut graph.nodes[i];
        node.inputs[0] = input;
        node.inputs.extend(index);
        match &mut node.op {
            Op::QkvRope { norm, .. } | Op::GatedLinear { norm, .. } => *norm = Some(taken),
            op => {
                if let Op::Linear { weight, bias } = *op {
                    *op = Op::NormLinear { norm: taken, weight, bias, gathered: index.is_some() };
                }
            }
        }
    }
}

/// Removes nodes whose value nobody reads; inputs and operations with effects stay, those in `taken` aside.
fn drop_dead(graph: &Graph, taken: &[bool]) -> Graph {
    let mut live = vec![false; graph.nodes.len()];
    for (i, n) in graph.nodes.iter().enumerate().rev() {
        let effect = matches!(n.op, Op::Input | Op::KvWrite { .. } | Op::ScatterRows { .. });
        live[i] |= (effect && !taken[i]) || graph.outputs.contains(&NodeId(i as u32));
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
    use super::super::{Activation, Builder, Rotary, Shape, Sym};
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
        let f = fuse(&g, Fusion::Passes).unwrap();
        assert_eq!(ops(&f), ["input", "gated_linear", "linear_add"]);
        assert_eq!(ops(&fuse(&g, Fusion::Launches).unwrap()), ops(&f));
        assert_eq!(f.node(f.outputs[0]).name, "out");
        assert_eq!(ops(&expand(&f).unwrap()), ["input", "linear", "silu", "linear", "mul", "linear", "add"]);
    }

    #[test]
    fn a_value_that_is_read_elsewhere_is_kept() {
        for fusion in [Fusion::Passes, Fusion::Launches] {
            assert!(ops(&fuse(&mlp(true), fusion).unwrap()).contains(&"silu"));
        }
    }

    /// A layer of a decoder and one of an encoder.
    fn layers() -> Graph {
        let b = Builder::new("g");
        let rotary = Rotary::in_sections([1.0, 0.1, 0.01].into(), &[1, 2]).unwrap();
        let step = b.decoder_inputs(rotary.components());
        let x = b.float_input("x", Shape::matrix(Sym::Tokens, 24));
        let heads = Heads { num_heads: 4, num_kv_heads: 2, head_dim: 6, scale: 0.4 };
        let a = b.scope("self_attn");
        let [q, k, v] = [("q", 24), ("k", 12), ("v", 12)].map(|(name, n)| a.linear(name, x, n));
        let q = a.rope("q_rope", q, step.positions, 6, &rotary);
        let k = a.rope("k_rope", k, step.positions, 6, &rotary);
        let h = a.cached_attention("attention", [q, k, v], 0, &step, heads, None);
        let cu = b.int_input("cu", [super::super::Dim::from(Sym::Images).plus(1)]);
        let e = b.scope("encoder");
        let qkv = [("q", 24), ("k", 12), ("v", 12)].map(|(name, n)| e.linear_bias(name, h, n));
        let h = e.attention("attention", qkv, [cu, cu], heads);
        let h = e.linear_bias("fc1", h, 30);
        let h = e.activation("act", h, Activation::GeluTanh);
        b.finish(&[h]).unwrap()
    }

    /// Norms before q, k and v, before a gated layer and before the rows that a last layer reads.
    fn normed(read_norm_twice: bool) -> Graph {
        let b = Builder::new("g");
        let step = b.decoder_inputs(1);
        let x = b.float_input("x", Shape::matrix(Sym::Tokens, 24));
        let heads = Heads { num_heads: 4, num_kv_heads: 2, head_dim: 6, scale: 0.4 };
        let rotary = Rotary::new([1.0, 0.1, 0.01].into());
        let h = b.rms_norm("norm1", x, 1e-5);
        let [q, k, v] = [("q", 24), ("k", 12), ("v", 12)].map(|(name, n)| b.linear(name, h, n));
        let q = b.rope("q_rope", q, step.positions, 6, &rotary);
        let k = b.rope("k_rope", k, step.positions, 6, &rotary);
        let h = b.cached_attention("attention", [q, k, v], 0, &step, heads, None);
        let x = b.add("sum", x, h);
        let h = b.rms_norm("norm2", x, 1e-6);
        let (gate, up) = (b.linear("gate", h, 30), b.linear("up", h, 30));
        let gate = b.activation("act", gate, Activation::Silu);
        let y = b.mul("product", gate, up);
        let y = b.linear("down", y, 24);
        let y = if read_norm_twice { b.add("twice", y, h) } else { y };
        let y = b.rms_norm("norm3", y, 1e-5);
        let y = b.push("rows", Op::GatherRows, &[y, step.logit_rows]);
        let y = b.linear("head", y, 50);
        b.finish(&[y]).unwrap()
    }

    #[test]
    fn norms_go_into_the_layers_that_alone_read_them() {
        let built = normed(false);
        let fused = fuse(&built, Fusion::Launches).unwrap();
        let kept = |g: &Graph| ops(g).into_iter().filter(|n| *n != "input").collect::<Vec<_>>();
        assert_eq!(kept(&fused), ["qkv_rope", "paged_attention", "add", "gated_linear", "linear", "norm_linear"]);
        let eps: Vec<f32> = fused
            .nodes
            .iter()
            .filter_map(|n| match &n.op {
                Op::QkvRope { norm, .. } | Op::GatedLinear { norm, .. } => norm.map(|n| n.eps),
                Op::NormLinear { norm, .. } => Some(norm.eps),
                _ => None,
            })
            .collect();
        assert_eq!(eps, [1e-5, 1e-6, 1e-5]);
        let (mut want, mut got) = (ops(&built), ops(&expand(&fused).unwrap()));
        want.sort_unstable();
        got.sort_unstable();
        assert_eq!(got, want);
        assert_eq!(fused.weights, built.weights);
        // Another reader keeps the norm.
        assert_eq!(
            kept(&fuse(&normed(true), Fusion::Launches).unwrap()).iter().filter(|n| **n == "rms_norm").count(),
            1
        );
        assert_eq!(kept(&fuse(&built, Fusion::Passes).unwrap()).iter().filter(|n| **n == "rms_norm").count(), 3);
    }

    #[test]
    fn attention_takes_its_inputs_in_and_expands_to_the_same_operations() {
        let built = layers();
        let fused = fuse(&built, Fusion::Launches).unwrap();
        let kept: Vec<&str> = ops(&fused).into_iter().filter(|n| *n != "input").collect();
        assert_eq!(kept, ["qkv_rope", "paged_attention", "self_attention", "linear_activation"]);
        assert_eq!(fused.nodes.iter().filter(|n| n.name == "self_attn.q_rope").count(), 1);
        let (mut want, mut got) = (ops(&built), ops(&expand(&fused).unwrap()));
        want.sort_unstable();
        got.sort_unstable();
        assert_eq!(got, want);
        // The write to the pages stays before they are read.
        let expanded = expand(&fused).unwrap();
        let at = |name: &str| expanded.nodes.iter().position(|n| n.op.name() == name).unwrap();
        assert!(at("kv_write") < at("paged_attention"));
        assert_eq!(ops(&fuse(&built, Fusion::Passes).unwrap()), ops(&built));
    }
}
