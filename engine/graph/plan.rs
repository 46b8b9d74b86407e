//! Memory plan: a place in one arena for every value, from when it is made to when it is last read.
//!
//! In: a graph and the bucket's largest sizes. Out: byte offsets. Values may share memory when they do not
//! live at the same time; operations that may do so overwrite their first input where nobody
//! reads it later.

use std::fmt;

use super::{Graph, Kind, NodeId, Op, Shape, Sizes, Type};

/// How a backend lays out values: rows, one after another, each rounded up to whole vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Bytes of a float. Outputs of a graph are f32 in any case, their rows without a gap, as the host reads them.
    pub float_bytes: usize,
    /// Floats: a row takes a multiple of so many.
    pub row_align: usize,
    /// Bytes: every value starts at a multiple of so many.
    pub value_align: usize,
}

impl Layout {
    /// f32 without gaps; values start on a cache line, which also is the widest vector register.
    pub const HOST: Layout = Layout { float_bytes: 4, row_align: 1, value_align: 64 };

    /// Elements from one row of floats to the next.
    pub fn stride(&self, cols: usize) -> usize {
        cols.next_multiple_of(self.row_align)
    }

    /// Bytes of a value that is no output.
    pub fn value_bytes(&self, ty: &Type, sizes: &Sizes) -> usize {
        match ty.kind {
            Kind::Int => ty.shape.elements(sizes) * 4,
            // Whole words, so that bytes may be read as such.
            Kind::Byte => ty.shape.elements(sizes).next_multiple_of(4),
            Kind::Float => self.rows_bytes(&ty.shape, sizes),
        }
    }

    /// Bytes of a state. Those of two dimensions have rows as values do, others are arrays without a gap.
    pub fn state_bytes(&self, shape: &Shape, sizes: &Sizes) -> usize {
        if shape.0.len() == 2 { self.rows_bytes(shape, sizes) } else { shape.elements(sizes) * self.float_bytes }
    }

    fn rows_bytes(&self, shape: &Shape, sizes: &Sizes) -> usize {
        let Some((last, rest)) = shape.0.split_last() else { return 0 };
        let rows: usize = rest.iter().map(|d| d.eval(sizes)).product();
        rows * self.stride(last.eval(sizes)) * self.float_bytes
    }
}

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
    pub layout: Layout,
    /// Every value has memory of its own.
    pub keep_all: bool,
}

/// Plans `graph` for runs of at most `bucket`. `keep_all` gives every value memory of its own, so that all can be
/// read after the run.
pub fn plan(graph: Graph, bucket: Sizes, layout: Layout, keep_all: bool) -> Plan {
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

    let is_output = |i: usize| graph.outputs.iter().any(|o| o.0 as usize == i);
    let mut places: Vec<Option<Place>> = vec![None; n];
    // Values that hold memory now, by offset: (place, index of the node that owns it).
    let mut live: Vec<(Place, usize)> = Vec::new();
    let mut arena_bytes = 0;
    for (i, node) in graph.nodes.iter().enumerate() {
        // A value whose last reader ran before this node gives its memory back.
        live.retain(|(_, owner)| last_use[*owner] >= i);
        let bytes = match node.op {
            Op::Input | Op::KvWrite { .. } | Op::ScatterRows { .. } => continue,
            _ if is_output(i) => node.ty.shape.elements(&bucket) * 4,
            _ => layout.value_bytes(&node.ty, &bucket),
        }
        .next_multiple_of(layout.value_align);
        if node.op.in_place() && !keep_all {
            let x = node.inputs[0].0 as usize;
            let alike = layout == Layout::HOST || !is_output(i) && !is_output(x);
            if last_use[x] == i && alike && places[x].is_some_and(|p| p.bytes == bytes) {
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
    Plan { graph, places, arena_bytes, bucket, layout, keep_all }
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
                assert!(a.offset + a.bytes <= p.arena_bytes && a.offset.is_multiple_of(p.layout.value_align));
            }
        }
    }

    #[test]
    fn live_values_never_overlap_and_memory_is_shared() {
        let sizes = Sizes::default().with(Sym::Tokens, 10);
        for layout in [Layout::HOST, GPU] {
            let shared = plan(chain(), sizes, layout, false);
            check(&shared);
            let apart = plan(chain(), sizes, layout, true);
            check(&apart);
            assert!(shared.arena_bytes * 2 < apart.arena_bytes, "{} {}", shared.arena_bytes, apart.arena_bytes);
        }
    }

    const GPU: Layout = Layout { float_bytes: 2, row_align: 8, value_align: 256 };

    #[test]
    fn rows_are_rounded_up_and_outputs_are_f32_without_gaps() {
        let b = Builder::new("g");
        let x = b.float_input("x", Shape::matrix(Sym::Tokens, 12));
        let y = b.activation("a", x, Activation::Silu);
        let z = b.linear("last", y, 700);
        let p = plan(b.finish(&[z]).unwrap(), Sizes::default().with(Sym::Tokens, 100), GPU, false);
        let bytes: Vec<usize> = p.places.iter().flatten().map(|p| p.bytes).collect();
        assert_eq!(bytes, [(100 * 16 * 2usize).next_multiple_of(256), (100 * 700 * 4usize).next_multiple_of(256)]);
        let kv = Shape::new([Sym::Pages.into(), 2.into(), 3.into(), 16.into(), 14.into()]);
        assert_eq!(GPU.state_bytes(&kv, &Sizes::default().with(Sym::Pages, 5)), 5 * 2 * 3 * 16 * 14 * 2);
        let slab = Shape::matrix(Sym::SlabRows, 12);
        assert_eq!(GPU.state_bytes(&slab, &Sizes::default().with(Sym::SlabRows, 5)), 5 * 16 * 2);
    }
}
