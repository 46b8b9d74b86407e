//! What one step computes, and the flat arrays that the device is given for it.
//!
//! In: the scheduler's decisions. Out: [`Batch`]. Owns: the layout of [`BatchInputs`]. Not here:
//! padding to a bucket and copying to a device, which is the executor's.

use super::{EncoderCache, Hash, SeqId, Sequence};

/// An image to encode before the step's tokens are computed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodeItem {
    /// A sequence that has the image; others in the batch may have it too.
    pub seq: SeqId,
    /// Index into that sequence's images.
    pub span: usize,
    pub hash: Hash,
    /// The encoder's output goes to slab rows `slab_row..slab_row + rows`.
    pub slab_row: usize,
    pub rows: usize,
    pub work: usize,
}

/// A sequence's part of the step: tokens `start..start + num_tokens`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchSeq {
    pub id: SeqId,
    pub start: usize,
    pub num_tokens: usize,
    /// The chunk holds the last known token, so its logits give the next one.
    pub samples: bool,
    pub(super) arrival: u64,
}

/// The inputs of a step, all i32. `T` tokens of `S` sequences, `R` of which sample; tokens of a sequence
/// are contiguous, sequences are in the order of `Batch::seqs`. No padding, except in `block_table`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BatchInputs {
    /// `[T]` token ids.
    pub token_ids: Vec<i32>,
    /// `[T]` the encoder slab row that replaces the token's embedding, or -1.
    pub image_rows: Vec<i32>,
    /// `[components, T]` rope positions.
    pub positions: Vec<i32>,
    /// `[S + 1]` sequence `s` has tokens `cu_seqlens_q[s]..cu_seqlens_q[s + 1]`.
    pub cu_seqlens_q: Vec<i32>,
    /// `[S]` keys that the sequence's last token attends to, this step's own included.
    pub context_lens: Vec<i32>,
    /// `[S, block_table_stride]` page of each block; only the first `ceil(context_len / page_size)`
    /// entries of a row are meant. The rest is -1: a kernel that reads it is wrong and shall be seen.
    pub block_table: Vec<i32>,
    pub block_table_stride: usize,
    /// `[T]` KV slot to write the token's K and V to: `page * page_size + offset`.
    pub slot_mapping: Vec<i32>,
    /// `[R]` tokens whose logits are wanted; the r-th belongs to the r-th of `Batch::seqs` that samples.
    pub logit_rows: Vec<i32>,
}

/// One step.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    pub encode: Vec<EncodeItem>,
    /// In order of arrival.
    pub seqs: Vec<BatchSeq>,
    pub inputs: BatchInputs,
    /// Which step of the scheduler this is; `commit` refuses any but the latest.
    pub(super) step: u64,
}

impl Batch {
    /// Tokens to compute, `T`.
    pub fn num_tokens(&self) -> usize {
        self.inputs.token_ids.len()
    }

    /// The sequences that sample, in the order of `inputs.logit_rows`.
    pub fn sampling(&self) -> impl Iterator<Item = SeqId> {
        self.seqs.iter().filter(|s| s.samples).map(|s| s.id)
    }

    pub(super) fn clear(&mut self) {
        self.encode.clear();
        self.seqs.clear();
    }

    /// Fills `inputs` from `seqs`, keeping the arrays' memory. `running` holds every sequence of the
    /// batch, by ascending arrival. `stride` is the block table's; 0 takes the batch's longest row.
    pub(super) fn fill_inputs(
        &mut self,
        running: &[Sequence],
        encoder: &EncoderCache,
        page_size: usize,
        components: usize,
        stride: usize,
    ) {
        let Batch { seqs, inputs: x, .. } = self;
        let num_tokens: usize = seqs.iter().map(|s| s.num_tokens).sum();
        let longest = seqs.iter().map(|s| (s.start + s.num_tokens).div_ceil(page_size)).max();
        x.block_table_stride = if stride == 0 { longest.unwrap_or(0) } else { stride };
        for v in [&mut x.token_ids, &mut x.cu_seqlens_q, &mut x.context_lens, &mut x.slot_mapping, &mut x.logit_rows] {
            v.clear();
        }
        for (v, len, value) in [
            (&mut x.image_rows, num_tokens, -1),
            (&mut x.positions, components * num_tokens, 0),
            (&mut x.block_table, seqs.len() * x.block_table_stride, -1),
        ] {
            v.clear();
            v.resize(len, value);
        }
        x.cu_seqlens_q.push(0);
        let mut candidates = running.iter();
        for (s, part) in seqs.iter().enumerate() {
            let seq = candidates.find(|q| q.arrival == part.arrival).expect("a scheduled sequence is running");
            let (first, start, end) = (x.token_ids.len(), part.start, part.start + part.num_tokens);
            x.token_ids.extend(seq.tokens[start..end].iter().map(|&t| t as i32));
            x.slot_mapping.extend((start..end).map(|t| seq.table.slot(t, page_size) as i32));
            for c in 0..components {
                let to = &mut x.positions[c * num_tokens + first..][..end - start];
                to.iter_mut().zip(start..end).for_each(|(p, t)| *p = seq.position(c, t));
            }
            for i in seq.images_in(start..end) {
                let span = &seq.images[i];
                let row = seq.pins[i].and_then(|r| encoder.row(r)).expect("a scheduled image is in the slab");
                for t in start.max(span.start)..end.min(span.start + span.rows) {
                    x.image_rows[first + t - start] = (row + t - span.start) as i32;
                }
            }
            let pages = &seq.table.pages()[..end.div_ceil(page_size)];
            let to = &mut x.block_table[s * x.block_table_stride..][..pages.len()];
            to.iter_mut().zip(pages).for_each(|(b, &p)| *b = p as i32);
            x.context_lens.push(end as i32);
            x.cu_seqlens_q.push(x.token_ids.len() as i32);
            if part.samples {
                x.logit_rows.push(x.token_ids.len() as i32 - 1);
            }
        }
    }
}
