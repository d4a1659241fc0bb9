//! The inline TLB: per privilege view a direct-mapped table from linear page to host page.
//!
//! A tag is the linear page's address, or [`NONE`]; read, write and fetch have a tag each, so one compare tells both
//! that the page is cached and that the access is allowed.

use super::kept::SPACES;

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
    /// It is on the list of those that may hold something of this address space, and of global pages.
    local_listed: bool,
    global_listed: bool,
}

const EMPTY: Entry = Entry {
    read: NONE,
    write: NONE,
    fetch: NONE,
    host: 0,
    global: false,
    local_listed: false,
    global_listed: false,
};

impl Entry {
    /// Empties it where it stays on the list.
    fn drop_tags(&mut self) {
        (self.read, self.write, self.fetch) = (NONE, NONE, NONE);
    }

    fn is_empty(&self) -> bool {
        self.read == NONE && self.fetch == NONE
    }
}

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
    /// The same, where only one linear page may have it.
    ProtectPage { host: u64, page: u64 },
    /// What is of this address space in a view.
    View { user: bool },
    /// The same, which may come back.
    Leave { user: bool, space: usize },
    /// It has come back if it is `right`, and otherwise will not.
    Enter { user: bool, space: usize, right: bool },
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

/// A set of numbers that may claim too many but never too few. A kernel maps all of memory by large pages: with a bit for
/// each of a few GiB, pages of programs are seldom taken for parts of one, which costs everything that is cached.
#[derive(Clone, Debug)]
struct Marks {
    bits: Box<[u64; MARKS / 64]>,
    any: bool,
}

/// Bits of a set, a power of two.
const MARKS: usize = 1 << 14;

impl Default for Marks {
    fn default() -> Self {
        Marks { bits: Box::new([0; MARKS / 64]), any: false }
    }
}

impl Marks {
    fn place(n: u64) -> (usize, u64) {
        let hash = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - MARKS.trailing_zeros());
        ((hash / 64) as usize, 1 << (hash % 64))
    }
    fn mark(&mut self, n: u64) {
        let (word, bit) = Self::place(n);
        self.bits[word] |= bit;
        self.any = true;
    }
    fn marked(&self, n: u64) -> bool {
        let (word, bit) = Self::place(n);
        self.bits[word] & bit != 0
    }
    fn clear(&mut self) {
        if self.any {
            self.bits.fill(0);
            self.any = false;
        }
    }
}

/// Both privilege views: supervisor first, then user.
#[derive(Debug)]
pub struct Tlb {
    entries: Box<[Entry; 2 * SIZE]>,
    /// Indices of entries that may hold something, so that emptying costs what was filled: of this address space by view, and
    /// of global pages.
    local: [Vec<u16>; 2],
    global: Vec<u16>,
    /// What was left of address spaces, with its indices.
    spaces: [Vec<(u16, Entry)>; SPACES],
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
            local: Default::default(),
            global: Vec::new(),
            spaces: Default::default(),
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
        let entry = &mut self.entries[index];
        let old = *entry;
        if rights.global && !old.global_listed {
            self.global.push(index as u16);
        } else if !rights.global && !old.local_listed {
            self.local[usize::from(user)].push(index as u16);
        }
        let tag_if = |allowed: bool| if allowed { tag } else { NONE };
        *entry = Entry {
            read: tag_if(rights.read),
            write: tag_if(rights.write),
            fetch: tag_if(rights.fetch),
            host,
            global: rights.global,
            local_listed: old.local_listed || !rights.global,
            global_listed: old.global_listed || rights.global,
        };
        match page_size {
            0x1000 => {}
            0x4000_0000 => self.giant.mark(linear >> 30),
            0x20_0000 => self.large.mark(linear >> 21),
            // Both halves, as a 4 MiB page covers two.
            _ => {
                self.large.mark(linear >> 21);
                self.large.mark(linear >> 21 ^ 1);
            }
        }
    }

    /// Drops everything.
    pub fn flush(&mut self) {
        self.spaces.iter_mut().for_each(Vec::clear);
        self.empty(false, false);
        self.empty(true, false);
        for index in self.global.drain(..) {
            self.entries[usize::from(index) & (2 * SIZE - 1)] = EMPTY;
        }
        self.large.clear();
        self.giant.clear();
        self.changes.clear();
        self.changes.push(Change::All);
    }

    /// Drops everything but global pages, of all address spaces. The marks of large pages stay, since global ones may be among them.
    pub fn flush_local(&mut self) {
        self.spaces.iter_mut().for_each(Vec::clear);
        self.empty(false, false);
        self.empty(true, false);
        self.note(Change::Local);
    }

    /// Drops everything of this address space in a view.
    pub fn drop_view(&mut self, user: bool) {
        self.empty(user, false);
        self.note(Change::View { user });
    }

    /// The same; it is kept for when the space comes back.
    pub fn leave(&mut self, user: bool, space: usize) {
        let kept = self.empty(user, true);
        self.spaces[space] = kept;
        self.note(Change::Leave { user, space });
    }

    /// Another space has come to a view: what was kept of it is taken back if it is `right`.
    pub fn enter(&mut self, user: bool, space: usize, right: bool) {
        let kept = std::mem::take(&mut self.spaces[space]);
        self.note(Change::Enter { user, space, right });
        for (index, kept) in kept.into_iter().filter(|_| right) {
            let entry = &mut self.entries[usize::from(index) & (2 * SIZE - 1)];
            if entry.is_empty() {
                if !entry.local_listed {
                    self.local[usize::from(user)].push(index);
                }
                *entry = Entry { local_listed: true, global_listed: entry.global_listed, ..kept };
            }
        }
    }

    /// Entries of this address space in a view.
    pub fn of_view(&self, user: bool) -> impl Iterator<Item = &Entry> {
        let entry = |index: &u16| &self.entries[usize::from(*index) & (2 * SIZE - 1)];
        self.local[usize::from(user)].iter().map(entry).filter(|entry| !entry.global)
    }

    fn note(&mut self, change: Change) {
        let protects = matches!(change, Change::Protect(_) | Change::ProtectPage { .. });
        if self.changes.first() == Some(&Change::All) && !protects {
            return;
        }
        if self.changes.len() >= MOST_CHANGES {
            self.changes.clear();
            self.changes.push(Change::All);
        } else {
            self.changes.push(change);
        }
    }

    /// Empties a view of what is of this address space, and gives it if it is to be kept.
    fn empty(&mut self, user: bool, keep: bool) -> Vec<(u16, Entry)> {
        let (entries, mut kept) = (&mut self.entries, Vec::new());
        for index in self.local[usize::from(user)].drain(..) {
            let entry = &mut entries[usize::from(index) & (2 * SIZE - 1)];
            // A global page may stand there by now.
            if entry.global {
                entry.local_listed = false;
                continue;
            }
            if keep && !entry.is_empty() {
                kept.push((index, *entry));
            }
            *entry = Entry { global_listed: entry.global_listed, ..EMPTY };
        }
        self.epoch += 1;
        kept
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
            self.entries[Self::index(linear, user)].drop_tags();
        }
        self.epoch += 1;
    }

    fn flush_block(&mut self, linear: u64, shift: u32) {
        for entry in self.entries.iter_mut() {
            let tag = if entry.read != NONE { entry.read } else { entry.fetch };
            if tag >> shift == linear >> shift {
                entry.drop_tags();
            }
        }
    }

    /// Takes the write right from every entry of a host page.
    pub fn protect_host(&mut self, host: u64) {
        self.note(Change::Protect(host));
        for entry in self.entries.iter_mut().filter(|e| e.host == host) {
            entry.write = NONE;
        }
        self.protect_kept(host);
    }

    /// The same where only one linear page may have that right.
    pub fn protect_page(&mut self, host: u64, linear: u64) {
        self.note(Change::ProtectPage { host, page: linear });
        for user in [false, true] {
            let entry = &mut self.entries[Self::index(linear, user) & (2 * SIZE - 1)];
            if entry.host == host {
                entry.write = NONE;
            }
        }
        self.protect_kept(host);
    }

    /// The same for what is kept of other address spaces.
    pub fn protect_kept(&mut self, host: u64) {
        for (_, entry) in self.spaces.iter_mut().flatten().filter(|(_, entry)| entry.host == host) {
            entry.write = NONE;
        }
    }
}
