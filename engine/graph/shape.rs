//! Symbolic shapes: a dimension is a number or a multiple of one named size.
//!
//! In: names of sizes. Out: shapes, and their values for one batch. Owns: the list of named sizes.

use std::fmt;

/// A size that varies from step to step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(usize)]
pub enum Sym {
    /// Tokens of all sequences in a step, flat.
    Tokens,
    /// Sequences in a step.
    Seqs,
    /// Rows of hidden states that become logits.
    LogitRows,
    /// Patches of all images in an encoder run, flat.
    Patches,
    /// Images (or tiles of one) in an encoder run.
    Images,
    /// Rows of patches and latents joined per image, flat.
    ContextRows,
    /// Columns of the block table.
    Blocks,
    /// Pages of the KV cache; constant after load.
    Pages,
    /// Rows of the encoder slab; constant after load.
    SlabRows,
}

/// Number of named sizes.
pub const NUM_SYMS: usize = 9;

/// Values of the named sizes: of one batch, or the largest ones of a bucket.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sizes([usize; NUM_SYMS]);

impl Sizes {
    /// This with `sym` set to `value`.
    pub fn with(mut self, sym: Sym, value: usize) -> Sizes {
        self.0[sym as usize] = value;
        self
    }

    pub fn get(&self, sym: Sym) -> usize {
        self.0[sym as usize]
    }
}

/// A constant, or `sym * mul + plus`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Dim {
    sym: Option<Sym>,
    mul: usize,
    plus: usize,
}

impl Dim {
    /// `sym * mul`.
    pub fn times(sym: Sym, mul: usize) -> Dim {
        Dim { sym: Some(sym), mul, plus: 0 }
    }

    /// This and `n` more; cumulative lengths have one element more than there are segments.
    pub fn plus(self, n: usize) -> Dim {
        Dim { plus: self.plus + n, ..self }
    }

    /// This without what was added: the segments of cumulative lengths.
    pub fn without_plus(self) -> Dim {
        Dim { plus: 0, ..self }
    }

    /// The value under `sizes`.
    pub fn eval(self, sizes: &Sizes) -> usize {
        self.mul * self.sym.map_or(1, |s| sizes.get(s)) + self.plus
    }

    /// The value of a constant dimension.
    pub fn constant(self) -> Option<usize> {
        self.sym.is_none().then_some(self.mul + self.plus)
    }
}

impl From<usize> for Dim {
    fn from(n: usize) -> Dim {
        Dim { sym: None, mul: n, plus: 0 }
    }
}

impl From<Sym> for Dim {
    fn from(s: Sym) -> Dim {
        Dim::times(s, 1)
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.sym, self.mul) {
            (None, n) => return write!(f, "{}", n + self.plus),
            (Some(s), 1) => write!(f, "{s:?}")?,
            (Some(s), n) => write!(f, "{s:?}*{n}")?,
        }
        if self.plus > 0 { write!(f, "+{}", self.plus) } else { Ok(()) }
    }
}

/// Dimensions, slowest first; row-major and contiguous.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Shape(pub Vec<Dim>);

impl Shape {
    pub fn new(dims: impl IntoIterator<Item = Dim>) -> Shape {
        Shape(dims.into_iter().collect())
    }

    /// `[rows, cols]`.
    pub fn matrix(rows: impl Into<Dim>, cols: usize) -> Shape {
        Shape(vec![rows.into(), cols.into()])
    }

    /// Number of elements under `sizes`.
    pub fn elements(&self, sizes: &Sizes) -> usize {
        self.0.iter().map(|d| d.eval(sizes)).product()
    }

    /// Values under `sizes`.
    pub fn eval(&self, sizes: &Sizes) -> Vec<usize> {
        self.0.iter().map(|d| d.eval(sizes)).collect()
    }

    /// The first dimension.
    pub fn rows(&self) -> Dim {
        self.0.first().copied().unwrap_or(Dim::from(1))
    }

    /// The last dimension where it is constant; the width of a row.
    pub fn cols(&self) -> Option<usize> {
        self.0.last().and_then(|d| d.constant())
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (i, d) in self.0.iter().enumerate() {
            write!(f, "{}{d}", if i > 0 { ", " } else { "" })?;
        }
        f.write_str("]")
    }
}
