//! One sequence: its tokens, its images, how far it is computed, which pages it holds.
//!
//! In: a [`SequenceSpec`]; sampled tokens. Out: the hash chain of its blocks, positions of its tokens.
//! Owns: the state of one request in the scheduler. Not here: text, pixels, sampling parameters.

use std::ops::Range;

use super::{BlockTable, EncoderRef, Hash};
use crate::{Error, Result};

/// Names a sequence; chosen by the caller, unique among live sequences.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SeqId(pub u64);

impl std::fmt::Display for SeqId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "sequence {}", self.0)
    }
}

/// A run of placeholder tokens that the rows of one encoder output replace. A photograph may be several
/// spans (tiles).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageSpan {
    /// Hash of everything the rows depend on: pixels, preprocessing, model.
    pub hash: Hash,
    /// Index of the first placeholder token in the prompt.
    pub start: usize,
    /// Encoder output rows, which is also the number of placeholder tokens.
    pub rows: usize,
    /// Encoder work in the caller's unit, that of `SchedulerConfig::max_encode_work` (patches, say).
    pub work: usize,
}

impl ImageSpan {
    /// The placeholder tokens.
    pub fn range(&self) -> Range<usize> {
        self.start..self.start + self.rows
    }
}

/// Positions that are not the token's index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Positions {
    /// `[components, prompt_len]`, component by component.
    pub prompt: Vec<i32>,
    /// An answer token at index `t` has position `t + delta` in every component.
    pub delta: i32,
}

/// What the caller wants run.
#[derive(Debug, Clone, Default)]
pub struct SequenceSpec {
    pub id: SeqId,
    /// Prompt token ids after placeholder expansion.
    pub prompt: Vec<u32>,
    /// By ascending start, not overlapping.
    pub images: Vec<ImageSpan>,
    /// `None`: every component is the token's index.
    pub positions: Option<Positions>,
    /// Answer tokens at most, at least 1; the context length caps it.
    pub max_new_tokens: usize,
    /// Mixed into every block hash: sequences with different salts share no pages (adapters, tenants).
    pub salt: Hash,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SequenceState {
    /// Queued: new, or preempted and to be recomputed. Holds no pages.
    Waiting,
    Running,
    /// Handed back by `commit` or `abort`. Holds no pages.
    Finished,
}

/// A sequence in the scheduler.
#[derive(Debug, Clone)]
pub struct Sequence {
    pub(super) id: SeqId,
    pub(super) arrival: u64,
    pub(super) state: SequenceState,
    pub(super) tokens: Vec<u32>,
    pub(super) prompt_len: usize,
    /// Length at which it ends, prompt included.
    pub(super) limit: usize,
    /// Leading tokens whose KV values lie in `table`.
    pub(super) num_computed: usize,
    pub(super) images: Vec<ImageSpan>,
    /// Per image: its place in the encoder cache, while this sequence is its user.
    pub(super) pins: Vec<Option<EncoderRef>>,
    pub(super) positions: Option<Positions>,
    pub(super) table: BlockTable,
    /// Leading blocks of `table` that the pool knows by hash.
    pub(super) num_cached_blocks: usize,
    /// Hash chain of full blocks, extended when needed, kept over preemptions.
    pub(super) hashes: Vec<Hash>,
    salt: Hash,
    pub(super) admitted: bool,
    pub(super) num_prefix_tokens: usize,
    pub(super) num_preemptions: usize,
}

impl Sequence {
    /// Checks a spec's own consistency; what depends on sizes of the engine is the scheduler's.
    pub(super) fn new(spec: SequenceSpec, arrival: u64, limit: usize, components: usize) -> Result<Sequence> {
        let SequenceSpec { id, prompt, images, positions, salt, .. } = spec;
        let mut end = 0;
        for (i, span) in images.iter().enumerate() {
            // Written without sums that could overflow.
            let fits = span.start >= end && span.rows > 0 && span.rows <= prompt.len().saturating_sub(span.start);
            if !fits {
                let (s, r, n) = (span.start, span.rows, prompt.len());
                return Err(Error::Internal(format!(
                    "{id}: image span {i} takes {r} tokens from {s}; expected at least 1 token, from {end} on, within a prompt of {n}"
                )));
            }
            end = span.start + span.rows;
        }
        if let Some(p) = &positions
            && p.prompt.len() != components * prompt.len()
        {
            return Err(Error::Internal(format!(
                "{id}: {} positions; expected {components} components x {} tokens",
                p.prompt.len(),
                prompt.len()
            )));
        }
        if let Some(t) = prompt.iter().find(|&&t| t > i32::MAX as u32) {
            return Err(Error::Internal(format!("{id}: token id {t} exceeds {}", i32::MAX)));
        }
        Ok(Sequence {
            id,
            arrival,
            state: SequenceState::Waiting,
            prompt_len: prompt.len(),
            tokens: prompt,
            limit,
            num_computed: 0,
            pins: vec![None; images.len()],
            images,
            positions,
            table: BlockTable::default(),
            num_cached_blocks: 0,
            hashes: Vec::new(),
            salt,
            admitted: false,
            num_prefix_tokens: 0,
            num_preemptions: 0,
        })
    }

    pub fn id(&self) -> SeqId {
        self.id
    }

    pub fn state(&self) -> SequenceState {
        self.state
    }

    /// Prompt, then answer.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Answer tokens so far.
    pub fn output(&self) -> &[u32] {
        &self.tokens[self.prompt_len..]
    }

    pub fn prompt_len(&self) -> usize {
        self.prompt_len
    }

    /// Length, prompt included, at which the scheduler ends it.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Leading tokens whose KV values are in the cache.
    pub fn num_computed(&self) -> usize {
        self.num_computed
    }

    pub fn images(&self) -> &[ImageSpan] {
        &self.images
    }

    pub fn block_table(&self) -> &BlockTable {
        &self.table
    }

    /// Prompt tokens that the prefix cache supplied when it was first admitted.
    pub fn num_prefix_tokens(&self) -> usize {
        self.num_prefix_tokens
    }

    /// How often it lost its pages and was recomputed.
    pub fn num_preemptions(&self) -> usize {
        self.num_preemptions
    }

    /// Indices of the images with a placeholder token in `tokens`.
    pub(super) fn images_in(&self, tokens: Range<usize>) -> Range<usize> {
        let first = self.images.partition_point(|s| s.start + s.rows <= tokens.start);
        let count = self.images[first..].partition_point(|s| s.start < tokens.end);
        first..first + count
    }

    /// Position of token `index` in `component`.
    pub(super) fn position(&self, component: usize, index: usize) -> i32 {
        match &self.positions {
            None => index as i32,
            Some(p) if index < self.prompt_len => p.prompt[component * self.prompt_len + index],
            Some(p) => (index as i32).saturating_add(p.delta),
        }
    }

    /// Hashes of the first `num_blocks` blocks, which must be full.
    ///
    /// A block's hash covers its parent's hash (for the first block the salt), its token ids, every image
    /// that overlaps it with the image's place relative to the block, and explicit positions: all that
    /// its KV values depend on.
    pub(super) fn block_hashes(&mut self, num_blocks: usize, page_size: usize) -> &[Hash] {
        for b in self.hashes.len()..num_blocks {
            let range = b * page_size..(b + 1) * page_size;
            let mut h = blake3::Hasher::new();
            match self.hashes.last() {
                Some(parent) => h.update(b"block").update(parent),
                None => h.update(b"first").update(&self.salt),
            };
            h.update(bytemuck::cast_slice(&self.tokens[range.clone()]));
            let images = &self.images[self.images_in(range.clone())];
            h.update(&(images.len() as u64).to_le_bytes());
            for s in images {
                h.update(&s.hash);
                h.update(&(s.start as i64 - range.start as i64).to_le_bytes());
                h.update(&(s.rows as u64).to_le_bytes());
            }
            if let Some(p) = &self.positions {
                for component in 0..p.prompt.len() / self.prompt_len {
                    for t in range.clone() {
                        h.update(&self.position(component, t).to_le_bytes());
                    }
                }
            }
            self.hashes.push(*h.finalize().as_bytes());
        }
        &self.hashes[..num_blocks]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(prompt: &[u32], images: &[(u8, usize, usize)]) -> SequenceSpec {
        SequenceSpec {
            prompt: prompt.to_vec(),
            images: images.iter().map(|&(h, start, rows)| ImageSpan { hash: [h; 32], start, rows, work: 1 }).collect(),
            max_new_tokens: 1,
            ..Default::default()
        }
    }

    fn hashes(spec: SequenceSpec) -> Vec<Hash> {
        let components = spec.positions.as_ref().map_or(1, |p| p.prompt.len() / spec.prompt.len());
        let mut s = Sequence::new(spec, 0, 100, components).unwrap();
        let blocks = s.prompt_len / 4;
        s.block_hashes(blocks, 4).to_vec()
    }

    #[test]
    fn a_hash_covers_everything_before_it() {
        let base = hashes(spec(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 9], &[]));
        let late = hashes(spec(&[1, 2, 3, 4, 5, 6, 7, 0, 9, 9, 9, 9], &[]));
        assert_eq!(base[0], late[0]);
        assert!(base[1] != late[1] && base[2] != late[2]);
        // The same block at another depth is another block.
        let twice = hashes(spec(&[1, 2, 3, 4, 1, 2, 3, 4], &[]));
        assert_ne!(twice[0], twice[1]);
        let salted = hashes(SequenceSpec { salt: [7; 32], ..spec(&[1, 2, 3, 4], &[]) });
        assert_ne!(salted[0], base[0]);
    }

    #[test]
    fn a_hash_covers_every_image_that_overlaps_the_block() {
        // Image tokens 3..9 overlap all three blocks; only block 0 is full of text in the last case.
        let prompt = [1, 2, 3, 0, 0, 0, 0, 0, 0, 4, 5, 6];
        let a = hashes(spec(&prompt, &[(1, 3, 6)]));
        let b = hashes(spec(&prompt, &[(2, 3, 6)]));
        let text = hashes(spec(&prompt, &[]));
        for block in 0..3 {
            assert!(a[block] != b[block] && a[block] != text[block]);
        }
        // A second image that begins in block 1 leaves block 0 alone.
        let c = hashes(spec(&prompt, &[(1, 3, 3), (3, 6, 3)]));
        let d = hashes(spec(&prompt, &[(1, 3, 3), (4, 6, 3)]));
        assert_eq!(c[0], d[0]);
        assert_ne!(c[1], d[1]);
        // The same rows cut differently are different content.
        let e = hashes(spec(&prompt, &[(1, 3, 2), (1, 5, 4)]));
        let f = hashes(spec(&prompt, &[(1, 3, 4), (1, 7, 2)]));
        assert_ne!(e[1], f[1]);
    }

    #[test]
    fn explicit_positions_are_part_of_the_content() {
        let with = |p: Vec<i32>| SequenceSpec {
            positions: Some(Positions { prompt: p, delta: -3 }),
            ..spec(&[1, 2, 3, 4, 5], &[])
        };
        let a = hashes(with(vec![0, 1, 1, 1, 2, 0, 1, 1, 1, 2]));
        let b = hashes(with(vec![0, 1, 1, 1, 2, 0, 1, 2, 1, 2]));
        assert_ne!(a[0], b[0]);
        let s = Sequence::new(with(vec![0, 1, 1, 1, 2, 0, 5, 6, 7, 2]), 0, 9, 2).unwrap();
        assert_eq!([s.position(0, 2), s.position(1, 2), s.position(0, 5), s.position(1, 7)], [1, 6, 2, 4]);
    }

    #[test]
    fn images_in_a_range() {
        let s = Sequence::new(spec(&[0; 20], &[(1, 2, 3), (2, 5, 4), (3, 15, 5)]), 0, 30, 1).unwrap();
        assert_eq!(s.images_in(0..2), 0..0);
        assert_eq!(s.images_in(0..3), 0..1);
        assert_eq!(s.images_in(4..6), 0..2);
        assert_eq!(s.images_in(5..15), 1..2);
        assert_eq!(s.images_in(9..15), 2..2);
        assert_eq!(s.images_in(19..25), 2..3);
        assert_eq!(s.images_in(20..25), 3..3);
    }

    #[test]
    fn malformed_specs_are_refused() {
        let bad = |s: SequenceSpec| matches!(Sequence::new(s, 0, 100, 1), Err(Error::Internal(_)));
        assert!(bad(spec(&[0; 4], &[(1, 2, 3)])));
        assert!(bad(spec(&[0; 4], &[(1, usize::MAX, 1)])));
        assert!(bad(spec(&[0; 4], &[(1, 1, 0)])));
        assert!(bad(spec(&[0; 8], &[(1, 0, 3), (2, 2, 3)])));
        assert!(bad(spec(&[u32::MAX], &[])));
        assert!(bad(SequenceSpec {
            positions: Some(Positions { prompt: vec![0; 3], delta: 0 }),
            ..spec(&[0; 4], &[])
        }));
    }
}
