//! Translations that outlive a change of the address space: a space that is left keeps its own until it comes back, unless they
//! are not right any more.
//!
//! A processor's spaces have PCIDs, and the guest says what is to go (SDM vol. 3, 4.10.4). Those of a para-virtual guest are
//! the roots of each view. Its tables are its own, but every change of a live one is seen by the monitor: which entries
//! translations came from is noted, and as long as none of them has changed they are right, whatever is flushed.
//! Translations of the kernel's half are the same in all of its spaces.

use crate::memory::PAGE;

/// Spaces of each view that are remembered.
const IN_VIEW: usize = 8;
/// Spaces of both views: first those of the kernel's.
pub(crate) const SPACES: usize = 2 * IN_VIEW;

/// In [`Kept::writable`]: no linear page, and more than one.
pub(super) const NOWHERE: u64 = 0;
pub(super) const ANYWHERE: u64 = u64::MAX;

/// Entries of a page table.
const ENTRIES: usize = 512;

/// A bit for each entry of a table.
type Bits = [u64; ENTRIES / 64];

/// Of one page table, which entries translations came from.
#[derive(Debug)]
struct Marks {
    /// Number of its host page.
    page: u32,
    /// For all spaces, and for some of them, which are bits of `spaces`.
    global: Bits,
    local: Bits,
    spaces: u16,
}

/// An address space.
#[derive(Debug, Default)]
struct Space {
    /// What tells it from others of its view.
    root: u64,
    /// Its translations may be wrong.
    stale: bool,
    /// Places in `marks` of the tables that they came from.
    tables: Vec<u32>,
    last_used: u64,
}

/// What is known of a guest's translations.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    /// By host page: one more than the place in `marks` of a page table that translations came from; 0 for others.
    tables: Vec<u32>,
    marks: Vec<Marks>,
    /// An entry that translations of all spaces came from has changed.
    pub stale: bool,
    spaces: [Space; SPACES],
    current: [u8; 2],
    uses: u64,
    /// By host page: the linear page under which it may be written, see [`Kept::writable`].
    writable: Vec<u64>,
}

/// What becomes of a view of the TLB with a change of its root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Nothing: it is the same root, and all is right.
    Nothing,
    /// What is of the space goes.
    Drop,
    /// Another space comes: what is of `from` goes, or stays for later; what stayed of `to` comes back if it is right.
    Switch { from: usize, keep: bool, to: usize, right: bool },
}

impl Kept {
    /// The word and the bit of an entry at a host offset.
    fn place(host: u64) -> (usize, u64) {
        let entry = (host % PAGE / 8) as usize;
        (entry / 64, 1 << (entry % 64))
    }

    /// The space that a view is in.
    fn current(&self, user: bool) -> usize {
        usize::from(self.current[usize::from(user)]) + IN_VIEW * usize::from(user)
    }

    /// A translation comes from the entry at a host offset, in memory of so many `pages`: one of all spaces, or one of the
    /// space that a view is in.
    pub fn note(&mut self, host: u64, pages: usize, view: Option<bool>) {
        if self.tables.is_empty() {
            self.tables = vec![0; pages];
        }
        let page = host / PAGE;
        let Some(table) = self.tables.get_mut(page as usize) else { return };
        if *table == 0 {
            let none = [0; ENTRIES / 64];
            self.marks.push(Marks { page: page as u32, global: none, local: none, spaces: 0 });
            *table = self.marks.len() as u32;
        }
        let place = *table - 1;
        let (word, bit) = Self::place(host);
        let space = view.map(|user| self.current(user));
        let Some(marks) = self.marks.get_mut(place as usize) else { return };
        match space {
            None => marks.global[word] |= bit,
            Some(space) => {
                marks.local[word] |= bit;
                if marks.spaces & 1 << space == 0 {
                    marks.spaces |= 1 << space;
                    self.spaces[space].tables.push(place);
                }
            }
        }
    }

    /// The entry at a host offset has changed: what came from it is stale, for all spaces only if `global`.
    pub fn changed(&mut self, host: u64, global: bool) {
        let table = self.tables.get((host / PAGE) as usize).copied().unwrap_or(0) as usize;
        let Some(marks) = table.checked_sub(1).and_then(|n| self.marks.get(n)) else { return };
        let (word, bit) = Self::place(host);
        self.stale |= global && marks.global[word] & bit != 0;
        if marks.local[word] & bit != 0 {
            for (n, space) in self.spaces.iter_mut().enumerate() {
                space.stale |= marks.spaces & 1 << n != 0;
            }
        }
    }

    /// Everything was dropped.
    pub fn clear(&mut self) {
        for marks in self.marks.drain(..) {
            self.tables[marks.page as usize] = 0;
        }
        for space in &mut self.spaces {
            space.tables.clear();
            space.stale = false;
        }
        self.stale = false;
    }

    /// A flush: whether what a view has of its space must go. It is right again behind that.
    pub fn take_stale(&mut self, user: bool) -> bool {
        let current = self.current(user);
        std::mem::take(&mut self.spaces[current].stale)
    }

    /// A view has another root, or the same again.
    pub fn change_root(&mut self, user: bool, root: u64) -> Change {
        let from = self.current(user);
        let stale = self.take_stale(user);
        let to = self.space(user, root);
        if to == from {
            return if stale { Change::Drop } else { Change::Nothing };
        }
        self.current[usize::from(user)] = (to % IN_VIEW) as u8;
        let right = !std::mem::take(&mut self.spaces[to].stale);
        Change::Switch { from, keep: !stale, to, right }
    }

    /// The space of a root, which may be a new one in place of the one that was not used for longest.
    fn space(&mut self, user: bool, root: u64) -> usize {
        let view = IN_VIEW * usize::from(user)..IN_VIEW * (usize::from(user) + 1);
        self.uses += 1;
        let known = view.clone().find(|n| self.spaces[*n].root == root);
        let current = self.current(user);
        let oldest = || view.filter(|n| *n != current).min_by_key(|n| self.spaces[*n].last_used);
        let space = known.or_else(oldest).unwrap_or(current);
        if known.is_none() {
            self.forget(space);
            self.spaces[space].root = root;
        }
        self.spaces[space].last_used = self.uses;
        space
    }

    /// Nothing of a space is right any more.
    fn forget(&mut self, space: usize) {
        for table in self.spaces[space].tables.drain(..) {
            if let Some(marks) = self.marks.get_mut(table as usize) {
                marks.spaces &= !(1 << space);
            }
        }
        self.spaces[space].stale = true;
    }

    /// Nothing of a root is right any more.
    pub fn forget_root(&mut self, root: u64) {
        for space in 0..SPACES {
            if self.spaces[space].root == root {
                self.forget(space);
                self.spaces[space].last_used = 0;
            }
        }
    }

    /// The TLB allows writes to a host page, of which there are `pages`, under a linear address.
    pub fn note_writable(&mut self, host: u64, linear: u64, pages: usize) {
        if self.writable.is_empty() {
            self.writable = vec![NOWHERE; pages];
        }
        if let Some(place) = self.writable.get_mut((host / PAGE) as usize) {
            let page = linear & !(PAGE - 1) | 1;
            *place = if *place == NOWHERE || *place == page { page } else { ANYWHERE };
        }
    }

    /// Under which linear page a host page may be written, as far as is known.
    pub fn writable(&self, host: u64) -> u64 {
        self.writable.get((host / PAGE) as usize).copied().unwrap_or(NOWHERE)
    }

    /// The same; it no longer may.
    pub fn take_writable(&mut self, host: u64) -> u64 {
        self.writable
            .get_mut((host / PAGE) as usize)
            .map_or(NOWHERE, |place| std::mem::replace(place, NOWHERE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGES: usize = 100;

    #[test]
    fn only_entries_that_translations_came_from_count() {
        let noted: Vec<u64> = (0..PAGES as u64).map(|n| n * 7 % 100 * PAGE + n * n % 512 * 8).collect();
        let mut kept = Kept::default();
        kept.changed(0, true);
        assert!(!kept.stale);
        for host in (0..=PAGES as u64 * PAGE).step_by(8) {
            for view in [None, Some(false), Some(true)] {
                kept.clear();
                noted.iter().for_each(|host| kept.note(*host, PAGES, view));
                kept.changed(host, false);
                assert!(!kept.stale);
                kept.changed(host, true);
                let right = noted.contains(&host);
                assert_eq!(kept.stale, right && view.is_none(), "{host:#x}");
                for user in [false, true] {
                    assert_eq!(kept.take_stale(user), right && view == Some(user), "{host:#x}");
                }
            }
            if host > 2 * PAGE {
                break;
            }
        }
    }

    #[test]
    fn a_space_comes_back_unless_something_of_it_has_changed() {
        let mut kept = Kept::default();
        assert_eq!(kept.change_root(true, 0), Change::Nothing);
        let Change::Switch { to: one, .. } = kept.change_root(true, 0x1000) else { panic!() };
        kept.note(0x5008, PAGES, Some(true));
        let Change::Switch { from, keep: true, to: two, .. } = kept.change_root(true, 0x2000) else {
            panic!()
        };
        assert_eq!(from, one);
        kept.changed(0x5000, true);
        let back = Change::Switch { from: two, keep: true, to: one, right: true };
        assert_eq!(kept.change_root(true, 0x1000), back);
        // One that changes while it is in use is not kept.
        kept.changed(0x5008, true);
        let Change::Switch { keep, .. } = kept.change_root(true, 0x2000) else { panic!() };
        assert!(!keep);
        // One that changes while it is not in use does not come back.
        kept.changed(0x5008, true);
        let Change::Switch { right, .. } = kept.change_root(true, 0x1000) else { panic!() };
        assert!(!right);
        kept.change_root(true, 0x2000);
        kept.forget_root(0x1000);
        let Change::Switch { right, .. } = kept.change_root(true, 0x1000) else { panic!() };
        assert!(!right);
    }

    #[test]
    fn a_space_that_took_anothers_place_is_not_that_one() {
        let mut kept = Kept::default();
        for round in 0..3 {
            for root in 1..20u64 {
                let Change::Switch { right, .. } = kept.change_root(false, root << 12) else { panic!() };
                assert!(!right, "{round}, {root}");
                kept.note(root * PAGE, PAGES, Some(false));
            }
        }
        kept.change_root(false, 18 << 12);
        // A change of what is in no space any more.
        kept.changed(3 * PAGE, true);
        assert_eq!(kept.change_root(false, 18 << 12), Change::Nothing);
    }
}
