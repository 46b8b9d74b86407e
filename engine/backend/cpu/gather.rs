//! Moving rows: embeddings, gathers, scatters, segments.
//!
//! In: tables, row numbers. Out: rows. Owns: nothing. Not here: arithmetic; values are copied or widened exactly.
//! Errors are `Internal`: row numbers come from the scheduler, which has checked what the user sent.

use crate::{Error, Result};

use super::matrix::{Matrix, WeightData, bad_index, check_len};
use super::parallel::for_row_blocks;
use super::simd::Element;

/// `y[t] = table[ids[t]]`; `y` is `[ids.len(), table.k]`.
pub fn embedding(y: &mut [f32], table: &Matrix, ids: &[i32]) -> Result<()> {
    let op = "embedding";
    table.check(op)?;
    check_len(op, "y", y.len(), ids.len().checked_mul(table.k))?;
    check_rows(op, "token id", ids, table.n, false)?;
    for_row_blocks(y, table.k, |t, y| {
        for (y, &id) in y.chunks_exact_mut(table.k).zip(&ids[t..]) {
            widen(y, table, id as usize);
        }
    });
    Ok(())
}

/// As [`embedding`], but where `image_rows[t] >= 0` that row of `slab` (`[rows, table.k]`) instead; the token
/// id is not looked at then.
pub fn embed_merge(y: &mut [f32], table: &Matrix, ids: &[i32], image_rows: &[i32], slab: &[f32]) -> Result<()> {
    let (op, dim) = ("embed_merge", table.k);
    table.check(op)?;
    check_len(op, "y", y.len(), ids.len().checked_mul(dim))?;
    check_len(op, "image_rows", image_rows.len(), Some(ids.len()))?;
    check_rows(op, "slab row", image_rows, slab.len() / dim.max(1), true)?;
    for (&id, &row) in ids.iter().zip(image_rows) {
        if row < 0 && (id < 0 || id as usize >= table.n) {
            return Err(bad_index(op, "token id", id.into(), table.n));
        }
    }
    for_row_blocks(y, dim, |t, y| {
        for ((y, &id), &row) in y.chunks_exact_mut(dim).zip(&ids[t..]).zip(&image_rows[t..]) {
            if row < 0 {
                widen(y, table, id as usize);
            } else {
                y.copy_from_slice(&slab[row as usize * dim..][..dim]);
            }
        }
    });
    Ok(())
}

/// `y[i] = x[rows[i]]`; `x` is `[.., dim]`, `y` `[rows.len(), dim]`.
pub fn gather_rows(y: &mut [f32], x: &[f32], rows: &[i32], dim: usize) -> Result<()> {
    let op = "gather_rows";
    check_len(op, "y", y.len(), rows.len().checked_mul(dim))?;
    check_rows(op, "row", rows, x.len() / dim.max(1), false)?;
    for_row_blocks(y, dim, |i, y| {
        for (y, &row) in y.chunks_exact_mut(dim).zip(&rows[i..]) {
            y.copy_from_slice(&x[row as usize * dim..][..dim]);
        }
    });
    Ok(())
}

/// `slab[rows[i]] = x[i]`; a negative row is skipped. Where a row occurs twice the last one stays.
pub fn scatter_rows(slab: &mut [f32], x: &[f32], rows: &[i32], dim: usize) -> Result<()> {
    let op = "scatter_rows";
    check_len(op, "x", x.len(), rows.len().checked_mul(dim))?;
    check_rows(op, "slab row", rows, slab.len() / dim.max(1), true)?;
    for (x, &row) in x.chunks_exact(dim.max(1)).zip(rows) {
        if row >= 0 {
            slab[row as usize * dim..][..dim].copy_from_slice(x);
        }
    }
    Ok(())
}

/// `y[i] = w` for each of the `y.len() / w.len()` copies; `w` is `[r, d]`.
pub fn broadcast_rows(y: &mut [f32], w: &Matrix) -> Result<()> {
    let op = "broadcast_rows";
    w.check(op)?;
    let size = w.n * w.k;
    if size == 0 || !y.len().is_multiple_of(size) {
        return Err(Error::Internal(format!("{op}: y: {} elements are not copies of [{}, {}]", y.len(), w.n, w.k)));
    }
    for_row_blocks(y, w.k, |row, y| {
        for (i, y) in y.chunks_exact_mut(w.k).enumerate() {
            widen(y, w, (row + i) % w.n);
        }
    });
    Ok(())
}

/// For each segment s: rows `cu_a[s]..cu_a[s+1]` of `a`, then rows `cu_b[s]..cu_b[s+1]` of `b`. Rows of `dim`;
/// `y` must hold all of them.
pub fn concat_segments(y: &mut [f32], a: &[f32], cu_a: &[i32], b: &[f32], cu_b: &[i32], dim: usize) -> Result<()> {
    let op = "concat_segments";
    check_cu(op, "cu_a", cu_a, a.len() / dim.max(1))?;
    check_cu(op, "cu_b", cu_b, b.len() / dim.max(1))?;
    check_len(op, "cu_b", cu_b.len(), Some(cu_a.len()))?;
    let rows = |cu: &[i32]| cu.last().map_or(0, |&l| l as usize) - cu.first().map_or(0, |&f| f as usize);
    check_len(op, "y", y.len(), (rows(cu_a) + rows(cu_b)).checked_mul(dim))?;
    let mut at = 0;
    for (wa, wb) in cu_a.windows(2).zip(cu_b.windows(2)) {
        for (from, w) in [(a, wa), (b, wb)] {
            let rows = &from[w[0] as usize * dim..w[1] as usize * dim];
            y[at..at + rows.len()].copy_from_slice(rows);
            at += rows.len();
        }
    }
    Ok(())
}

/// Row `row` of the table as f32.
fn widen(y: &mut [f32], table: &Matrix, row: usize) {
    fn copy<E: Element>(y: &mut [f32], from: &[E]) {
        for (y, f) in y.iter_mut().zip(from) {
            *y = f.to_f32();
        }
    }
    let range = row * table.k..(row + 1) * table.k;
    match table.data {
        WeightData::F32(d) => y.copy_from_slice(&d[range]),
        WeightData::F16(d) => copy(y, &d[range]),
        WeightData::Bf16(d) => copy(y, &d[range]),
    }
}

/// Error unless every number is a row below `limit`, or negative where that is allowed.
fn check_rows(op: &str, what: &str, rows: &[i32], limit: usize, negative: bool) -> Result<()> {
    match rows.iter().find(|&&r| if r < 0 { !negative } else { r as usize >= limit }) {
        Some(&r) => Err(bad_index(op, what, r.into(), limit)),
        None => Ok(()),
    }
}

/// Error unless `cu` ascends from 0 or more to at most `limit`.
pub(super) fn check_cu(op: &str, what: &str, cu: &[i32], limit: usize) -> Result<()> {
    let ascends = cu.first().is_none_or(|&f| f >= 0) && cu.windows(2).all(|w| w[0] <= w[1]);
    match cu.last() {
        Some(&last) if !ascends || last as usize > limit => {
            Err(Error::Internal(format!("{op}: {what}: {cu:?} does not ascend within 0..={limit}")))
        }
        _ => Ok(()),
    }
}
