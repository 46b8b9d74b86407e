//! The slab of encoder output rows and which image lies where in it.
//!
//! In: image hashes with their number of rows. Out: the first row of a contiguous run. Owns: the places,
//! their users, which may be overwritten. Not here: the rows' values, pixels, sequences.
//!
//! An entry is locked during the step that uses it, pinned while a running sequence will still read
//! it, and otherwise kept until its rows are needed. Pins are a preference, locks are not: a caller may
//! ask to evict pinned entries, whose images are then encoded again. That is how the oldest sequence
//! always finds its rows, however the slab is cut up.

use std::collections::HashMap;

use super::Hash;

/// Names an entry; goes stale when the entry is evicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EncoderRef {
    entry: u32,
    generation: u32,
}

#[derive(Debug, Clone)]
struct Entry {
    hash: Hash,
    row: usize,
    rows: usize,
    users: u32,
    generation: u32,
    /// Clock of the latest use; unique, so the order of eviction is total.
    last_use: u64,
    /// Step of the latest use: locked while that is the current step.
    step: u64,
    /// False between the step that encodes it and that step's commit.
    ready: bool,
}

/// Encoder output rows by image.
#[derive(Debug, Clone)]
pub struct EncoderCache {
    rows: usize,
    entries: Vec<Entry>,
    /// Entries not in use.
    vacant: Vec<u32>,
    /// Entries in use, by ascending row.
    order: Vec<u32>,
    /// The number of rows is part of the key, so that two encodings of one image never mix.
    by_image: HashMap<(Hash, usize), u32>,
    clock: u64,
    step: u64,
    rows_used: usize,
    num_pending: usize,
}

impl EncoderCache {
    /// An empty slab of `rows` rows.
    pub fn new(rows: usize) -> EncoderCache {
        EncoderCache {
            rows,
            entries: Vec::new(),
            vacant: Vec::new(),
            order: Vec::new(),
            by_image: HashMap::new(),
            clock: 0,
            step: 0,
            rows_used: 0,
            num_pending: 0,
        }
    }

    /// Rows in all.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Rows that hold an image, in use or kept.
    pub fn rows_used(&self) -> usize {
        self.rows_used
    }

    /// Images in the slab.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Starts a step: locks are lifted, and images whose encoding was never confirmed by
    /// [`EncoderCache::commit_step`] are dropped.
    pub fn begin_step(&mut self) {
        self.step += 1;
        if self.num_pending == 0 {
            return;
        }
        for place in (0..self.order.len()).rev() {
            if !self.entries[self.order[place] as usize].ready {
                self.evict(place);
            }
        }
    }

    /// The device has run the step: its images are in the slab.
    pub fn commit_step(&mut self) {
        if self.num_pending > 0 {
            for &e in &self.order {
                self.entries[e as usize].ready = true;
            }
            self.num_pending = 0;
        }
    }

    /// The entry of an image, if it is in the slab or being encoded in this step.
    pub fn lookup(&self, hash: &Hash, rows: usize) -> Option<EncoderRef> {
        let &entry = self.by_image.get(&(*hash, rows))?;
        Some(EncoderRef { entry, generation: self.entries[entry as usize].generation })
    }

    /// First row of an entry; `None` when it was evicted.
    pub fn row(&self, r: EncoderRef) -> Option<usize> {
        self.get(r).map(|e| e.row)
    }

    /// Marks an entry used in this step and locks it until the next; false when it was evicted.
    pub fn touch(&mut self, r: EncoderRef) -> bool {
        let (clock, step) = (self.clock + 1, self.step);
        let Some(e) = self.get_mut(r) else { return false };
        (e.last_use, e.step) = (clock, step);
        self.clock = clock;
        true
    }

    /// Adds a user.
    pub fn pin(&mut self, r: EncoderRef) {
        if let Some(e) = self.get_mut(r) {
            e.users += 1;
        }
    }

    /// Removes a user; nothing happens when the entry was evicted.
    pub fn unpin(&mut self, r: EncoderRef) {
        if let Some(e) = self.get_mut(r) {
            e.users -= 1;
        }
    }

    /// Makes room for an image that is to be encoded in this step and locks it; no users yet. `None`
    /// when no run of `rows` rows can be freed; entries without users are evicted as needed, entries
    /// with users too when `evict_pinned`, locked ones never.
    pub fn allocate(&mut self, hash: &Hash, rows: usize, evict_pinned: bool) -> Option<EncoderRef> {
        debug_assert!(rows > 0 && self.lookup(hash, rows).is_none());
        let mut found = self.find_run(rows, false);
        if found.is_none() && evict_pinned {
            found = self.find_run(rows, true);
        }
        let (place, row) = found?;
        while self.order.get(place).is_some_and(|&e| self.entries[e as usize].row < row + rows) {
            self.evict(place);
        }
        self.clock += 1;
        let entry = self.vacant.pop().unwrap_or(self.entries.len() as u32);
        let generation = self.entries.get(entry as usize).map_or(0, |e| e.generation);
        let (last_use, step) = (self.clock, self.step);
        let new = Entry { hash: *hash, row, rows, users: 0, generation, last_use, step, ready: false };
        match self.entries.get_mut(entry as usize) {
            Some(e) => *e = new,
            None => self.entries.push(new),
        }
        self.order.insert(place, entry);
        self.by_image.insert((*hash, rows), entry);
        self.rows_used += rows;
        self.num_pending += 1;
        Some(EncoderRef { entry, generation })
    }

    /// The best run of `rows` rows as (place in `order`, first row): the first gap that is free, else
    /// the run whose most recently used entry is the longest unused. A run may be shifted down to the
    /// end of the entry before it without meeting another one, so only those starts are tried.
    fn find_run(&self, rows: usize, evict_pinned: bool) -> Option<(usize, usize)> {
        let mut best = None;
        for place in 0..=self.order.len() {
            let row = match place {
                0 => 0,
                p => self.at(p - 1).row + self.at(p - 1).rows,
            };
            if self.rows.saturating_sub(row) < rows {
                break;
            }
            let mut cost = 0;
            for &e in &self.order[place..] {
                let e = &self.entries[e as usize];
                if e.row >= row + rows {
                    break;
                }
                let locked = e.step == self.step || (e.users > 0 && !evict_pinned);
                cost = if locked { u64::MAX } else { cost.max(e.last_use) };
                if locked {
                    break;
                }
            }
            if cost == 0 {
                return Some((place, row));
            }
            if cost < u64::MAX && best.is_none_or(|(c, _, _)| cost < c) {
                best = Some((cost, place, row));
            }
        }
        best.map(|(_, place, row)| (place, row))
    }

    fn at(&self, place: usize) -> &Entry {
        &self.entries[self.order[place] as usize]
    }

    fn evict(&mut self, place: usize) {
        let entry = self.order.remove(place);
        let e = &mut self.entries[entry as usize];
        e.generation = e.generation.wrapping_add(1);
        self.num_pending -= !e.ready as usize;
        self.rows_used -= e.rows;
        self.by_image.remove(&(e.hash, e.rows));
        self.vacant.push(entry);
    }

    /// An entry in use has the generation of its references: `evict` raises it at once.
    fn get(&self, r: EncoderRef) -> Option<&Entry> {
        self.entries.get(r.entry as usize).filter(|e| e.generation == r.generation)
    }

    fn get_mut(&mut self, r: EncoderRef) -> Option<&mut Entry> {
        self.entries.get_mut(r.entry as usize).filter(|e| e.generation == r.generation)
    }

    /// Checks every invariant; `users` are the references of all sequences, stale ones included.
    pub fn debug_validate(&self, users: impl IntoIterator<Item = EncoderRef>) -> Result<(), String> {
        let mut counts = vec![0u32; self.entries.len()];
        for r in users {
            counts[r.entry as usize] += self.get(r).is_some() as u32;
        }
        let (mut end, mut used, mut pending) = (0, 0, 0);
        for &i in &self.order {
            let e = &self.entries[i as usize];
            if e.row < end || e.row + e.rows > self.rows {
                return Err(format!("rows {}..{} overlap or lie outside", e.row, e.row + e.rows));
            }
            if self.by_image.get(&(e.hash, e.rows)) != Some(&i) {
                return Err(format!("entry {i}: its image leads elsewhere"));
            }
            if e.users != counts[i as usize] {
                return Err(format!("entry {i}: {} users counted, {} hold it", e.users, counts[i as usize]));
            }
            end = e.row + e.rows;
            used += e.rows;
            pending += !e.ready as usize;
        }
        if (used, pending) != (self.rows_used, self.num_pending)
            || self.by_image.len() != self.order.len()
            || self.order.len() + self.vacant.len() != self.entries.len()
        {
            return Err("encoder cache counts disagree".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(c: &mut EncoderCache, image: u8, rows: usize) -> Option<EncoderRef> {
        c.allocate(&[image; 32], rows, false)
    }

    #[test]
    fn an_image_is_found_again_and_keeps_its_rows() {
        let mut c = EncoderCache::new(10);
        c.begin_step();
        let a = put(&mut c, 1, 4).unwrap();
        let b = put(&mut c, 2, 4).unwrap();
        c.commit_step();
        assert_eq!((c.row(a), c.row(b)), (Some(0), Some(4)));
        c.begin_step();
        assert_eq!(c.lookup(&[1; 32], 4), Some(a));
        assert_eq!(c.lookup(&[1; 32], 5), None);
        assert_eq!((c.len(), c.rows_used()), (2, 8));
        c.debug_validate([]).unwrap();
    }

    #[test]
    fn the_longest_unused_image_is_evicted_pinned_ones_are_not() {
        let mut c = EncoderCache::new(9);
        c.begin_step();
        let [a, b, d] = [1, 2, 3].map(|i| put(&mut c, i, 3).unwrap());
        c.pin(a);
        assert_eq!(put(&mut c, 4, 3), None, "all are locked in this step");
        c.commit_step();
        c.begin_step();
        assert!(c.touch(b));
        let e = put(&mut c, 4, 3).unwrap();
        assert_eq!((c.row(a), c.row(b), c.row(d), c.row(e)), (Some(0), Some(3), None, Some(6)));
        assert!(!c.touch(d));
        c.unpin(d);
        c.debug_validate([a]).unwrap();
        c.unpin(a);
        c.debug_validate([]).unwrap();
    }

    #[test]
    fn a_slab_cut_up_by_pins_yields_when_asked() {
        let mut c = EncoderCache::new(8);
        c.begin_step();
        let refs = [1, 2, 3, 4].map(|i| put(&mut c, i, 2).unwrap());
        c.pin(refs[1]);
        c.commit_step();
        c.begin_step();
        assert_eq!(put(&mut c, 9, 6), None, "entry 2 cuts the slab");
        let big = c.allocate(&[9; 32], 6, true).unwrap();
        assert_eq!(c.row(big), Some(0));
        assert_eq!(refs.map(|r| c.row(r)), [None, None, None, Some(6)]);
        c.debug_validate([refs[1]]).unwrap();
    }

    #[test]
    fn an_encoding_that_was_not_confirmed_is_dropped() {
        let mut c = EncoderCache::new(8);
        c.begin_step();
        let a = put(&mut c, 1, 2).unwrap();
        c.commit_step();
        c.begin_step();
        let b = put(&mut c, 2, 2).unwrap();
        c.pin(b);
        c.begin_step();
        assert_eq!((c.row(a), c.row(b)), (Some(0), None));
        assert_eq!(c.lookup(&[2; 32], 2), None);
        c.debug_validate([b]).unwrap();
    }
}
