//! Memory plan: a place in one arena for every value, from when it is made to when it is last read.
//!
//! In: a graph and the bucket's largest sizes. Out: byte offsets. Values may share memory when they do not
//! live at the same time; operations that may do so overwrite their first input where nobody
//! reads it later.

use std::fmt;

use super::{Graph, Kind, NodeId, Op, Sizes};

/// Alignment of every value, in bytes: a cache line, and the widest vector register.
pub const ALIGN: usize = 64;

/// Where the value of a node lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Bytes from the start of the arena.
    pub offset: usize,
    /// Bytes under the bucket's sizes.
    pub bytes: usize,
}

/// A graph with places for its values.
#[derive(Debug, Clone)]
pub struct Plan {
    pub graph: Graph,
    /// By node; `None` for inputs, which the host gives, and for operations without a result.
    pub places: Vec<Option<Place>>,
    pub arena_bytes: usize,
    /// The largest sizes that a run may have.
    pub bucket: Sizes,
}

/// Plans `graph` for runs of at most `bucket`. `keep_all` gives every value memory of its own, so that all can be
/// read after the run.
pub fn plan(graph: Graph, bucket: Sizes, keep_all: bool) -> Plan {
    let n = graph.nodes.len();
    let mut last_use: Vec<usize> = (0..n).collect();
    for (i, node) in graph.nodes.iter().enumerate() {
        node.inputs.iter().for_each(|x| last_use[x.0 as usize] = i);
    }
    for o in &graph.outputs {
        last_use[o.0 as usize] = n;
    }
    if keep_all {
        last_use.fill(n);
    }

    let mut places: Vec<Option<Place>> = vec![None; n];
    // Values that hold memory now, by offset: (place, index of the node that owns it).
    let mut live: Vec<(Place, usize)> = Vec::new();
    let mut arena_bytes = 0;
    for (i, node) in graph.nodes.iter().enumerate() {
        // A value whose last reader ran before this node gives its memory back.
        live.retain(|(_, owner)| last_use[*owner] >= i);
        let bytes = match node.op {
            Op::Input | Op::KvWrite { .. } | Op::ScatterRows { .. } => continue,
            _ => (node.ty.shape.elements(&bucket) * element_bytes(node.ty.kind)).next_multiple_of(ALIGN),
        };
        if node.op.in_place() && !keep_all {
            let x = node.inputs[0].0 as usize;
            if last_use[x] == i && places[x].is_some_and(|p| p.bytes == bytes) {
                places[i] = places[x];
                live.iter_mut().filter(|(_, owner)| *owner == x).for_each(|(_, owner)| *owner = i);
                continue;
            }
        }
        // Best fit: the smallest gap between live values that holds it, otherwise the end.
        live.sort_by_key(|(p, _)| p.offset);
        let mut best: Option<(usize, usize)> = None;
        let mut end = 0;
        for (p, _) in &live {
            let gap = p.offset - end;
            if gap >= bytes && best.is_none_or(|(g, _)| gap < g) {
                best = Some((gap, end));
            }
            end = end.max(p.offset + p.bytes);
        }
        let offset = best.map_or(end, |(_, at)| at);
        arena_bytes = arena_bytes.max(offset + bytes);
        let place = Place { offset, bytes };
        places[i] = Some(place);
        live.push((place, i));
    }
    Plan { graph, places, arena_bytes, bucket }
}

fn element_bytes(kind: Kind) -> usize {
    match kind {
        Kind::Float | Kind::Int => 4,
    }
}

impl Plan {
    /// The place of a node's value, for nodes that have one.
    pub fn place(&self, id: NodeId) -> Option<Place> {
        self.places[id.0 as usize]
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let held: usize = self.places.iter().flatten().map(|p| p.bytes).sum();
        writeln!(f, "plan {}: arena {} bytes for {held} bytes of values", self.graph.name, self.arena_bytes)?;
        for (n, p) in self.graph.nodes.iter().zip(&self.places) {
            match p {
                Some(p) => writeln!(f, "{:>12} +{:<12} {} = {}", p.offset, p.bytes, n.name, n.op.name())?,
                None => writeln!(f, "{:>25}  {} = {}", "-", n.name, n.op.name())?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Activation, Builder, Graph, Shape, Sym};
    use super::*;

    fn chain() -> Graph {
        let b = Builder::new("g");
        let x = b.float_input("x", Shape::matrix(Sym::Tokens, 16));
        let mut y = b.linear("l0", x, 16);
        let first = y;
        for i in 1..6 {
            y = b.linear(&format!("l{i}"), y, 16 * (1 + i % 3));
            y = b.activation(&format!("a{i}"), y, Activation::Silu);
        }
        let z = b.linear("last", y, 16);
        let z = b.add("sum", z, first);
        b.finish(&[z]).unwrap()
    }

    /// No two values that live at the same time may overlap, unless one was overwritten in place.
    fn check(p: &Plan) {
        let g = &p.graph;
        let n = g.nodes.len();
        let last = |i: usize| {
            let used = g.nodes.iter().enumerate().filter(|(_, m)| m.inputs.iter().any(|x| x.0 as usize == i));
            let out = g.outputs.iter().any(|o| o.0 as usize == i);
            used.map(|(j, _)| j).max().unwrap_or(i).max(if out { n } else { 0 })
        };
        for i in 0..n {
            for j in i + 1..n {
                let (Some(a), Some(b)) = (p.places[i], p.places[j]) else { continue };
                let overlap = a.offset < b.offset + b.bytes && b.offset < a.offset + a.bytes;
                let taken_over = g.nodes[j].op.in_place() && g.nodes[j].inputs[0].0 as usize == i && last(i) == j;
                assert!(!overlap || last(i) < j || taken_over, "{} and {}", g.nodes[i].name, g.nodes[j].name);
                assert!(a.offset + a.bytes <= p.arena_bytes && a.offset.is_multiple_of(ALIGN));
            }
        }
    }

    #[test]
    fn live_values_never_overlap_and_memory_is_shared() {
        let sizes = Sizes::default().with(Sym::Tokens, 10);
        let shared = plan(chain(), sizes, false);
        check(&shared);
        let apart = plan(chain(), sizes, true);
        check(&apart);
        assert!(shared.arena_bytes * 2 < apart.arena_bytes, "{} {}", shared.arena_bytes, apart.arena_bytes);
    }
}
