//! A weight matrix in its stored form.
//!
//! In: a slice of a mapped file or of the heap. Out: [`Matrix`], and the error for arguments that do not fit.
//! Owns: nothing. Not here: where the bytes come from, arithmetic.

use half::{bf16, f16};

use crate::{Error, Result};

/// Elements of a matrix, row-major, as they are stored.
#[derive(Debug, Clone, Copy)]
pub enum WeightData<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    Bf16(&'a [bf16]),
}

impl WeightData<'_> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            WeightData::F32(d) => d.len(),
            WeightData::F16(d) => d.len(),
            WeightData::Bf16(d) => d.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// `[n, k]`, row-major.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    /// Rows: output features.
    pub n: usize,
    /// Columns: input features.
    pub k: usize,
    pub data: WeightData<'a>,
}

impl Matrix<'_> {
    /// Error when the number of elements is not `n * k`.
    pub(super) fn check(&self, op: &str) -> Result<()> {
        check_len(op, "matrix", self.data.len(), self.n.checked_mul(self.k))
    }
}

/// Error unless `got` elements are what the shape says. These are faults of the caller, the graph interpreter.
pub(super) fn check_len(op: &str, what: &str, got: usize, want: Option<usize>) -> Result<()> {
    match want {
        Some(w) if w == got => Ok(()),
        Some(w) => Err(Error::Internal(format!("{op}: {what}: expected {w} elements, got {got}"))),
        None => Err(Error::Internal(format!("{op}: {what}: its size overflows"))),
    }
}

/// Error for an index outside `0..limit`.
pub(super) fn bad_index(op: &str, what: &str, index: i64, limit: usize) -> Error {
    Error::Internal(format!("{op}: {what} {index} is outside 0..{limit}"))
}
