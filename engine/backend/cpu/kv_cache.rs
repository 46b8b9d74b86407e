//! Keys and values in pages.
//!
//! In: a layer's k and v of a step. Out: the cache `[page][K|V][kv_heads][page_size][head_dim]`. Owns: that
//! layout. Not here: which pages a sequence has (the scheduler), reading (`attention/paged.rs`).

use half::bf16;

use crate::Result;

use super::matrix::{bad_index, check_len};
use super::simd::Element;

/// Storage of a layer's pages.
#[derive(Debug, Clone, Copy)]
pub enum KvData<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
}

/// Storage of a layer's pages, to write.
#[derive(Debug)]
pub enum KvDataMut<'a> {
    F32(&'a mut [f32]),
    Bf16(&'a mut [bf16]),
}

/// Sizes of a layer's cache.
#[derive(Debug, Clone, Copy)]
pub struct KvShape {
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Tokens of a page.
    pub page_size: usize,
}

impl KvShape {
    /// Elements of one page, keys and values.
    pub fn page_elements(&self) -> usize {
        2 * self.kv_heads * self.page_size * self.head_dim
    }

    /// Where the keys of a page's first token start; `value` picks the values.
    pub(super) fn offset(&self, page: usize, value: bool, head: usize) -> usize {
        ((page * 2 + value as usize) * self.kv_heads + head) * self.page_size * self.head_dim
    }
}

/// Writes `k` and `v` (`[tokens, kv_heads, head_dim]`) to the slots `page * page_size + offset`. A negative slot
/// is skipped. bf16 rounds to nearest, ties to even.
pub fn kv_write(cache: KvDataMut, k: &[f32], v: &[f32], slot_mapping: &[i32], shape: KvShape) -> Result<()> {
    match cache {
        KvDataMut::F32(c) => write(c, k, v, slot_mapping, shape, |x| x),
        KvDataMut::Bf16(c) => write(c, k, v, slot_mapping, shape, bf16::from_f32),
    }
}

fn write<E: Element>(
    cache: &mut [E],
    k: &[f32],
    v: &[f32],
    slots: &[i32],
    shape: KvShape,
    narrow: impl Fn(f32) -> E,
) -> Result<()> {
    let op = "kv_write";
    let width = shape.kv_heads * shape.head_dim;
    check_len(op, "k", k.len(), slots.len().checked_mul(width))?;
    check_len(op, "v", v.len(), Some(k.len()))?;
    let num_slots = cache.len() / shape.page_elements().max(1) * shape.page_size;
    if let Some(&s) = slots.iter().find(|&&s| s >= 0 && s as usize >= num_slots) {
        return Err(bad_index(op, "slot", s.into(), num_slots));
    }
    let dim = shape.head_dim;
    for (t, &slot) in slots.iter().enumerate().filter(|(_, s)| **s >= 0) {
        let (page, at) = (slot as usize / shape.page_size, slot as usize % shape.page_size);
        for (x, value) in [(k, false), (v, true)] {
            for head in 0..shape.kv_heads {
                let to = &mut cache[shape.offset(page, value, head) + at * dim..][..dim];
                for (to, x) in to.iter_mut().zip(&x[t * width + head * dim..]) {
                    *to = narrow(*x);
                }
            }
        }
    }
    Ok(())
}
