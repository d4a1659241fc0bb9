//! The inline TLB: per privilege view a direct-mapped table from linear page to host page.
//!
//! A tag is the linear page's address, or [`NONE`]; read, write and fetch have a tag each, so one compare tells both
//! that the page is cached and that the access is allowed.

/// Tag that no page-aligned address equals.
const NONE: u64 = u64::MAX;
const SIZE: usize = 1024;

/// One cached translation.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    pub read: u64,
    pub write: u64,
    pub fetch: u64,
    /// Offset of the page in the host mapping.
    pub host: u64,
    /// The translation is a global one.
    pub global: bool,
}

const EMPTY: Entry = Entry { read: NONE, write: NONE, fetch: NONE, host: 0, global: false };

/// Something that was dropped, for whoever keeps translations of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Everything.
    All,
    /// Everything but global pages.
    Local,
    /// One linear page.
    Page(u64),
    /// The right to write to a host page.
    Protect(u64),
}

/// Changes that are noted before they become one [`Change::All`].
const MOST_CHANGES: usize = 64;

/// What a new entry allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rights {
    pub read: bool,
    pub write: bool,
    pub fetch: bool,
    pub global: bool,
}

/// A set of numbers that may claim too many but never too few.
#[derive(Clone, Copy, Debug, Default)]
struct Marks([u64; 8]);

impl Marks {
    fn place(n: u64) -> (usize, u64) {
        let hash = n.wrapping_add(n >> 9);
        ((hash >> 6 & 7) as usize, 1 << (hash & 63))
    }
    fn mark(&mut self, n: u64) {
        let (word, bit) = Self::place(n);
        self.0[word] |= bit;
    }
    fn marked(&self, n: u64) -> bool {
        let (word, bit) = Self::place(n);
        self.0[word] & bit != 0
    }
}

/// Both privilege views: supervisor first, then user.
#[derive(Debug)]
pub struct Tlb {
    entries: Box<[Entry; 2 * SIZE]>,
    /// Entries that may be in use, by index: of this address space, and of global pages. A flush costs what was filled.
    filled: [Vec<u16>; 2],
    /// Which 2 MiB blocks (by a hash) hold entries of large pages, and which 1 GiB blocks.
    large: Marks,
    giant: Marks,
    /// Counts every change that takes translations away: who keeps results of a lookup compares it.
    pub epoch: u64,
    /// What was dropped since somebody last took this list.
    pub changes: Vec<Change>,
}

impl Default for Tlb {
    fn default() -> Self {
        Tlb {
            entries: Box::new([EMPTY; 2 * SIZE]),
            filled: Default::default(),
            large: Marks::default(),
            giant: Marks::default(),
            epoch: 0,
            changes: Vec::new(),
        }
    }
}

impl Tlb {
    /// The additive hash spreads arrays that lie powers of two apart (measured; a plain index misses on each step).
    #[inline(always)]
    fn index(linear: u64, user: bool) -> usize {
        let page = linear >> 12;
        ((page.wrapping_add(page >> 8)) as usize & (SIZE - 1)) + usize::from(user) * SIZE
    }

    #[inline(always)]
    pub fn entry(&self, linear: u64, user: bool) -> &Entry {
        // The index is in range by construction of the mask; the compiler sees it too.
        &self.entries[Self::index(linear, user) & (2 * SIZE - 1)]
    }

    /// Enters a translation of one 4 KiB page that lies in a page of `page_size`.
    pub fn fill(&mut self, linear: u64, user: bool, host: u64, page_size: u64, rights: Rights) {
        let tag = linear & !0xfff;
        let index = Self::index(linear, user);
        let list = &mut self.filled[usize::from(rights.global)];
        if list.len() >= 4 * SIZE {
            // Entries that took each other's place again and again: start over.
            self.flush();
        }
        self.filled[usize::from(rights.global)].push(index as u16);
        let entry = &mut self.entries[index];
        let tag_if = |allowed: bool| if allowed { tag } else { NONE };
        *entry = Entry {
            read: tag_if(rights.read),
            write: tag_if(rights.write),
            fetch: tag_if(rights.fetch),
            host,
            global: rights.global,
        };
        match page_size {
            0x1000 => {}
            0x4000_0000 => self.giant.mark(linear >> 30),
            // Both halves, as a 4 MiB page covers two.
            _ => {
                self.large.mark(linear >> 21);
                self.large.mark(linear >> 21 ^ 1);
            }
        }
    }

    /// Drops everything.
    pub fn flush(&mut self) {
        self.empty(0);
        self.empty(1);
        self.large = Marks::default();
        self.giant = Marks::default();
        self.changes.clear();
        self.changes.push(Change::All);
    }

    /// Drops everything but global pages. The marks of large pages stay, since global ones may be among them.
    pub fn flush_local(&mut self) {
        self.empty(0);
        self.note(Change::Local);
    }

    fn note(&mut self, change: Change) {
        if self.changes.first() == Some(&Change::All) && !matches!(change, Change::Protect(_)) {
            return;
        }
        if self.changes.len() >= MOST_CHANGES {
            self.changes.clear();
            self.changes.push(Change::All);
        } else {
            self.changes.push(change);
        }
    }

    /// Empties what is of this address space (0) or global (1).
    fn empty(&mut self, kind: usize) {
        for index in self.filled[kind].drain(..) {
            let entry = &mut self.entries[usize::from(index) & (2 * SIZE - 1)];
            // Another page may have taken the place meanwhile.
            if usize::from(entry.global) == kind {
                *entry = EMPTY;
            }
        }
        self.epoch += 1;
    }

    /// Drops one linear page in both views; all of it where it may be part of a large page (SDM vol. 3, 4.10.4.1).
    pub fn flush_page(&mut self, linear: u64) {
        if self.giant.marked(linear >> 30) {
            self.flush_block(linear, 30);
            self.note(Change::All);
        } else if self.large.marked(linear >> 21) {
            // A 4 MiB page of 32-bit paging is two blocks of 2 MiB.
            self.flush_block(linear, 22);
            self.note(Change::All);
        } else {
            self.note(Change::Page(linear & !0xfff));
        }
        for user in [false, true] {
            self.entries[Self::index(linear, user)] = EMPTY;
        }
        self.epoch += 1;
    }

    fn flush_block(&mut self, linear: u64, shift: u32) {
        for entry in self.entries.iter_mut() {
            let tag = if entry.read != NONE { entry.read } else { entry.fetch };
            if tag >> shift == linear >> shift {
                *entry = EMPTY;
            }
        }
    }

    /// Takes the write right from every entry of a host page.
    pub fn protect_host(&mut self, host: u64) {
        self.note(Change::Protect(host));
        for entry in self.entries.iter_mut().filter(|e| e.host == host) {
            entry.write = NONE;
        }
    }
}
