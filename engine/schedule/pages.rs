//! KV pages: reference counts, a prefix cache by hash chain, least-recently-used reuse.
//!
//! In: requests for pages, hashes of full blocks. Out: page numbers. Owns: who holds which page and
//! which page holds which block. Not here: the KV values, token ids, what goes into a hash.
//!
//! A free page keeps its content and hash until it is reused, so "free" and "cached" overlap. Free pages
//! wait in one list: pages without content in front, then cached pages, longest unused first. A holder
//! gives its pages back last block first, and whoever holds a block holds its parents too, so a child is
//! always evicted before its parent and no cached block is ever unreachable.

use std::collections::HashMap;

/// A blake3 hash; all 256 bits are kept and compared.
pub type Hash = [u8; 32];

/// Number of a page, `0..num_pages`.
pub type PageId = u32;

/// The pages of one sequence: block `b` (tokens `b*page_size..`) lies in `pages()[b]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BlockTable {
    pages: Vec<PageId>,
}

impl BlockTable {
    /// Pages in block order.
    pub fn pages(&self) -> &[PageId] {
        &self.pages
    }

    /// KV slot of token `position`: `page * page_size + offset`. The block must be allocated.
    pub fn slot(&self, position: usize, page_size: usize) -> usize {
        self.pages[position / page_size] as usize * page_size + position % page_size
    }
}

/// The block a cached page holds.
#[derive(Debug, Clone, Copy)]
struct Block {
    hash: Hash,
    /// Page of the parent block, for [`PagePool::debug_validate`]; `NIL` for a first block.
    parent: PageId,
}

#[derive(Debug, Clone)]
struct Page {
    ref_count: u32,
    /// Neighbours in the free list; only meaningful while `ref_count == 0`.
    prev: PageId,
    next: PageId,
    block: Option<Block>,
}

const NIL: PageId = PageId::MAX;

/// A fixed number of KV pages of `page_size` tokens.
#[derive(Debug, Clone)]
pub struct PagePool {
    page_size: usize,
    /// `num_pages` pages and a sentinel that is both ends of the free list.
    pages: Vec<Page>,
    cached: HashMap<Hash, PageId>,
    num_free: usize,
    num_free_cached: usize,
}

impl PagePool {
    /// A pool with every page free and empty. `num_pages` must be below `u32::MAX`.
    pub fn new(num_pages: usize, page_size: usize) -> PagePool {
        assert!(num_pages < NIL as usize && page_size > 0, "pool of {num_pages} pages of {page_size} tokens");
        let n = num_pages as PageId;
        // A circular list through the sentinel, in page order.
        let pages = (0..=n)
            .map(|i| Page {
                ref_count: 0,
                prev: if i == 0 { n } else { i - 1 },
                next: if i == n { 0 } else { i + 1 },
                block: None,
            })
            .collect();
        PagePool { page_size, pages, cached: HashMap::new(), num_free: num_pages, num_free_cached: 0 }
    }

    /// Tokens in a page.
    pub fn page_size(&self) -> usize {
        self.page_size
    }

    /// Pages in all.
    pub fn num_pages(&self) -> usize {
        self.pages.len() - 1
    }

    /// Pages that some sequence holds.
    pub fn num_used(&self) -> usize {
        self.num_pages() - self.num_free
    }

    /// Pages that nobody holds, those with cached content included.
    pub fn num_free(&self) -> usize {
        self.num_free
    }

    /// Pages that nobody holds and whose content can still be found by its hash.
    pub fn num_cached(&self) -> usize {
        self.num_free_cached
    }

    /// Pages that `num_tokens` tokens take.
    pub fn blocks_for(&self, num_tokens: usize) -> usize {
        num_tokens.div_ceil(self.page_size)
    }

    /// How many sequences hold `page`.
    pub fn ref_count(&self, page: PageId) -> usize {
        self.pages[page as usize].ref_count as usize
    }

    /// How many leading blocks of the hash chain are cached, and how many of their pages are free now
    /// (taking those lowers `num_free`). Changes nothing, the order of reuse included.
    pub fn lookup_prefix(&self, hashes: &[Hash]) -> (usize, usize) {
        let (mut hits, mut free) = (0, 0);
        for hash in hashes {
            let Some(&page) = self.cached.get(hash) else { break };
            hits += 1;
            free += (self.pages[page as usize].ref_count == 0) as usize;
        }
        (hits, free)
    }

    /// Takes the cached pages of `hashes` for `table`, which must be empty; stops at the first miss and
    /// returns how many blocks were found.
    pub fn take_prefix(&mut self, table: &mut BlockTable, hashes: &[Hash]) -> usize {
        debug_assert!(table.pages.is_empty());
        for hash in hashes {
            let Some(&page) = self.cached.get(hash) else { break };
            self.retain(page);
            table.pages.push(page);
        }
        table.pages.len()
    }

    /// Extends `table` to `num_blocks` blocks with pages that only it holds. All or nothing: false, and
    /// no change, when fewer pages are free. Evicts the longest-unused cached blocks where it must.
    pub fn allocate(&mut self, table: &mut BlockTable, num_blocks: usize) -> bool {
        let need = num_blocks.saturating_sub(table.pages.len());
        if need > self.num_free {
            return false;
        }
        for _ in 0..need {
            let page = self.pages[self.sentinel()].next;
            self.unlink(page);
            let p = &mut self.pages[page as usize];
            p.ref_count = 1;
            if let Some(block) = p.block.take() {
                self.cached.remove(&block.hash);
                self.num_free_cached -= 1;
            }
            table.pages.push(page);
        }
        true
    }

    /// Gives back every page of `table`, last block first. Pages that nobody else holds become free;
    /// those with a cached block go to the end of the list, the others to the front.
    pub fn free(&mut self, table: &mut BlockTable) {
        while let Some(page) = table.pages.pop() {
            self.release(page);
        }
    }

    /// Records that block `index` of `table` is full and computed, under `hash`; all earlier blocks must
    /// have been recorded. When another page already holds the same block, `table` moves over to that
    /// page and its own copy is freed: equal blocks are kept once, and whoever holds a cached block
    /// holds its cached parents.
    pub fn cache_block(&mut self, table: &mut BlockTable, index: usize, hash: Hash) {
        let page = table.pages[index];
        match self.cached.get(&hash) {
            Some(&same) if same == page => {}
            Some(&same) => {
                self.retain(same);
                table.pages[index] = same;
                self.release(page);
            }
            None => {
                let parent = if index == 0 { NIL } else { table.pages[index - 1] };
                self.cached.insert(hash, page);
                self.pages[page as usize].block = Some(Block { hash, parent });
            }
        }
    }

    fn retain(&mut self, page: PageId) {
        if self.pages[page as usize].ref_count == 0 {
            self.unlink(page);
            self.num_free_cached -= self.pages[page as usize].block.is_some() as usize;
        }
        self.pages[page as usize].ref_count += 1;
    }

    fn release(&mut self, page: PageId) {
        let p = &mut self.pages[page as usize];
        p.ref_count -= 1;
        if p.ref_count > 0 {
            return;
        }
        let cached = p.block.is_some();
        let sentinel = self.sentinel();
        let (prev, next) = if cached {
            (self.pages[sentinel].prev, sentinel as PageId)
        } else {
            (sentinel as PageId, self.pages[sentinel].next)
        };
        self.pages[page as usize].prev = prev;
        self.pages[page as usize].next = next;
        self.pages[prev as usize].next = page;
        self.pages[next as usize].prev = page;
        self.num_free += 1;
        self.num_free_cached += cached as usize;
    }

    /// Takes a page out of the free list.
    fn unlink(&mut self, page: PageId) {
        let Page { prev, next, .. } = self.pages[page as usize];
        self.pages[prev as usize].next = next;
        self.pages[next as usize].prev = prev;
        self.num_free -= 1;
    }

    fn sentinel(&self) -> usize {
        self.pages.len() - 1
    }

    /// Checks every invariant, in O(pages); `tables` are all the tables in use. Says what is broken.
    pub fn debug_validate<'a>(&self, tables: impl IntoIterator<Item = &'a BlockTable>) -> Result<(), String> {
        let mut held = vec![0u32; self.num_pages()];
        for &page in tables.into_iter().flat_map(|t| &t.pages) {
            *held.get_mut(page as usize).ok_or(format!("page {page} does not exist"))? += 1;
        }
        // Place in the free list, so that age can be compared.
        let mut place = vec![None; self.num_pages()];
        let (mut at, mut len, mut cached, mut seen_cached) = (self.pages[self.sentinel()].next, 0, 0, false);
        while at as usize != self.sentinel() {
            let page = &self.pages[at as usize];
            if len == self.num_pages() || self.pages[page.next as usize].prev != at {
                return Err(format!("free list broken at page {at}"));
            }
            if page.block.is_none() && seen_cached {
                return Err(format!("empty page {at} waits behind a cached one"));
            }
            seen_cached |= page.block.is_some();
            cached += page.block.is_some() as usize;
            place[at as usize] = Some(len);
            len += 1;
            at = page.next;
        }
        if len != self.num_free || cached != self.num_free_cached {
            let (f, c) = (self.num_free, self.num_free_cached);
            return Err(format!("{len} pages ({cached} cached) in the free list, counted {f} ({c})"));
        }
        let mut blocks = 0;
        for (i, page) in self.pages[..self.num_pages()].iter().enumerate() {
            if page.ref_count != held[i] {
                return Err(format!("page {i}: {} references counted, {} tables hold it", page.ref_count, held[i]));
            }
            if (page.ref_count == 0) != place[i].is_some() {
                return Err(format!("page {i}: {} references, in free list: {}", page.ref_count, place[i].is_some()));
            }
            let Some(block) = &page.block else { continue };
            blocks += 1;
            if self.cached.get(&block.hash) != Some(&(i as PageId)) {
                return Err(format!("page {i}: its hash leads elsewhere"));
            }
            if block.parent == NIL {
                continue;
            }
            let parent = &self.pages[block.parent as usize];
            if parent.block.is_none() || parent.ref_count < page.ref_count {
                return Err(format!("page {i}: parent {} evicted or held by fewer", block.parent));
            }
            if place[block.parent as usize].is_some_and(|p| place[i].is_none_or(|c| c > p)) {
                return Err(format!("page {i}: parent {} would be evicted first", block.parent));
            }
        }
        if blocks != self.cached.len() {
            return Err(format!("{blocks} pages hold blocks, {} hashes known", self.cached.len()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(n: u8) -> Hash {
        [n; 32]
    }

    fn cached_table(pool: &mut PagePool, hashes: &[Hash]) -> BlockTable {
        let mut table = BlockTable::default();
        assert!(pool.allocate(&mut table, hashes.len()));
        for (i, h) in hashes.iter().enumerate() {
            pool.cache_block(&mut table, i, *h);
        }
        table
    }

    #[test]
    fn allocation_is_all_or_nothing() {
        let mut pool = PagePool::new(4, 16);
        let (mut a, mut b) = (BlockTable::default(), BlockTable::default());
        assert!(pool.allocate(&mut a, 3));
        assert!(!pool.allocate(&mut b, 2));
        assert!(b.pages().is_empty());
        assert_eq!((pool.num_used(), pool.num_free()), (3, 1));
        // Blocks that the table already has are not asked for again.
        assert!(pool.allocate(&mut a, 4));
        assert_eq!(a.pages().len(), 4);
        pool.debug_validate([&a, &b]).unwrap();
        pool.free(&mut a);
        assert_eq!((pool.num_used(), pool.num_cached()), (0, 0));
        pool.debug_validate([]).unwrap();
    }

    #[test]
    fn slots_follow_the_table() {
        let mut pool = PagePool::new(4, 16);
        let (mut a, mut b) = (BlockTable::default(), BlockTable::default());
        assert!(pool.allocate(&mut a, 1) && pool.allocate(&mut b, 1) && pool.allocate(&mut a, 2));
        let second = a.pages()[1] as usize;
        assert_ne!(second, a.pages()[0] as usize + 1);
        assert_eq!(a.slot(21, 16), second * 16 + 5);
    }

    #[test]
    fn a_freed_prefix_is_found_until_its_pages_are_reused() {
        let mut pool = PagePool::new(4, 16);
        let chain = [hash(1), hash(2), hash(3)];
        let mut a = cached_table(&mut pool, &chain);
        let pages = a.pages().to_vec();
        pool.free(&mut a);
        assert_eq!((pool.num_free(), pool.num_cached()), (4, 3));
        assert_eq!(pool.lookup_prefix(&chain), (3, 3));
        // The empty page goes first, then the last block of the chain.
        let mut b = BlockTable::default();
        assert!(pool.allocate(&mut b, 2));
        assert_eq!(b.pages(), [3, pages[2]]);
        assert_eq!(pool.lookup_prefix(&chain), (2, 2));
        let mut c = BlockTable::default();
        assert_eq!(pool.take_prefix(&mut c, &chain), 2);
        assert_eq!(c.pages(), &pages[..2]);
        assert_eq!(pool.num_free(), 0);
        pool.debug_validate([&b, &c]).unwrap();
    }

    #[test]
    fn the_longest_unused_chain_goes_first() {
        let mut pool = PagePool::new(4, 16);
        let (old, new) = ([hash(1), hash(2)], [hash(3), hash(4)]);
        let (mut a, mut b) = (cached_table(&mut pool, &old), cached_table(&mut pool, &new));
        pool.free(&mut a);
        pool.free(&mut b);
        // Using the old chain again makes it the younger one.
        assert_eq!(pool.take_prefix(&mut a, &old), 2);
        pool.free(&mut a);
        assert!(pool.allocate(&mut b, 1));
        assert_eq!((pool.lookup_prefix(&old).0, pool.lookup_prefix(&new).0), (2, 1));
        pool.debug_validate([&b]).unwrap();
    }

    #[test]
    fn equal_blocks_are_kept_once() {
        let mut pool = PagePool::new(4, 16);
        let mut a = cached_table(&mut pool, &[hash(1), hash(2)]);
        let mut b = BlockTable::default();
        assert!(pool.allocate(&mut b, 2));
        pool.cache_block(&mut b, 0, hash(1));
        assert_eq!(b.pages()[0], a.pages()[0]);
        assert_eq!((pool.ref_count(a.pages()[0]), pool.num_free()), (2, 1));
        pool.cache_block(&mut b, 1, hash(9));
        pool.debug_validate([&a, &b]).unwrap();
        pool.free(&mut a);
        pool.debug_validate([&b]).unwrap();
        pool.free(&mut b);
        pool.debug_validate([]).unwrap();
        assert_eq!(pool.lookup_prefix(&[hash(1), hash(9)]).0, 2);
    }
}
