//! The second level of translation: per address space, what walks of the guest's tables have found.
//!
//! Together with the inline TLB above it this is a TLB in the manual's sense (SDM vol. 3, 4.10): filled on demand, tagged by
//! PCID, global pages apart, dropped by INVLPG, INVPCID and writes of control registers. Leaves keep the guest's own rights,
//! so one entry serves every privilege, and a page of any size is one entry.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;

use super::walk::Mapping;
use crate::mix::Mix;

/// Address spaces kept; more than a guest's kernel uses PCIDs.
const MOST_SPACES: usize = 16;
/// Bytes that all tables together may take, the moment included in which one of them grows.
pub(crate) const BUDGET: usize = 24 << 20;
/// A table of more leaves than this gives its memory back when it is emptied.
const SMALL: usize = 2048;

/// Sizes of pages, smallest first, as powers of two. 4 MiB pages of 32-bit paging are entered as two of 2 MiB.
const SHIFTS: [u32; 3] = [12, 21, 30];

type Map = HashMap<u64, Mapping, BuildHasherDefault<Mix>>;

/// Leaves of one size by page number.
#[derive(Debug, Default)]
struct Leaves {
    map: Map,
    /// The most leaves that there was room for: unlike the map's own capacity it does not shrink by removals.
    room: usize,
}

impl Leaves {
    /// Bytes taken by a map with room for so many leaves: seven of eight slots may be used, and their number is a
    /// power of two; each has a byte of its own besides.
    fn bytes_of(room: usize) -> usize {
        if room == 0 {
            return 0;
        }
        (room * 8).div_ceil(7).next_power_of_two().max(4) * (size_of::<(u64, Mapping)>() + 1) + 16
    }

    fn bytes(&self) -> usize {
        Self::bytes_of(self.room)
    }

    /// Bytes that the next insertion may take in addition, while the old table is still there.
    fn growth(&self) -> usize {
        if self.map.len() < self.map.capacity() { 0 } else { Self::bytes_of(self.room + 1) }
    }

    fn insert(&mut self, page: u64, mapping: Mapping) {
        self.map.insert(page, mapping);
        self.room = self.room.max(self.map.capacity());
    }

    fn clear(&mut self) {
        if self.room > SMALL {
            *self = Leaves::default();
        } else {
            self.map.clear();
        }
    }
}

/// Translations of one address space, or the global ones.
#[derive(Debug, Default)]
struct Space {
    pcid: u16,
    /// By size.
    leaves: [Leaves; 3],
    last_used: u64,
}

/// Which of [`SHIFTS`] a page is of.
fn class_of(mapping: &Mapping) -> usize {
    match mapping.page_size {
        0x1000 => 0,
        0x4000_0000 => 2,
        _ => 1,
    }
}

impl Space {
    fn get(&self, linear: u64) -> Option<&Mapping> {
        self.leaves
            .iter()
            .zip(SHIFTS)
            .filter(|(leaves, _)| !leaves.map.is_empty())
            .find_map(|(leaves, shift)| leaves.map.get(&(linear >> shift)))
    }

    fn insert(&mut self, linear: u64, mapping: Mapping) {
        let class = class_of(&mapping);
        let shift = SHIFTS[class];
        let inside = linear & ((1 << shift) - 1);
        self.leaves[class].insert(linear >> shift, Mapping { gpa: mapping.gpa - inside, ..mapping });
    }

    fn remove(&mut self, linear: u64) {
        for (leaves, shift) in self.leaves.iter_mut().zip(SHIFTS) {
            leaves.map.remove(&(linear >> shift));
        }
        // The other half of a 4 MiB page.
        self.leaves[1].map.remove(&(linear >> 21 ^ 1));
    }

    fn clear(&mut self) {
        self.leaves.iter_mut().for_each(Leaves::clear);
    }

    /// Gives all memory back.
    fn release(&mut self) {
        self.leaves = Default::default();
    }

    fn bytes(&self) -> usize {
        self.leaves.iter().map(Leaves::bytes).sum()
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.leaves.iter().map(|leaves| leaves.map.len()).sum()
    }
}

/// All translations that a vCPU remembers.
#[derive(Debug, Default)]
pub(crate) struct Shadow {
    spaces: Vec<Space>,
    global: Space,
    current: usize,
    uses: u64,
    /// What the tables take.
    bytes: usize,
}

impl Shadow {
    /// Bytes that the tables take.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// What is known of a linear address; the mapping's `gpa` is that of the address.
    pub fn get(&self, linear: u64) -> Option<Mapping> {
        let space = self.spaces.get(self.current);
        let found = space.and_then(|space| space.get(linear)).or_else(|| self.global.get(linear))?;
        let size = if found.page_size == 4 << 20 { 2 << 20 } else { found.page_size };
        Some(Mapping { gpa: found.gpa + (linear & (size - 1)), ..*found })
    }

    /// Remembers what a walk found.
    pub fn insert(&mut self, linear: u64, mapping: Mapping) {
        if self.spaces.is_empty() {
            self.switch(0);
        }
        let space = if mapping.global { &self.global } else { &self.spaces[self.current] };
        let growth = space.leaves[class_of(&mapping)].growth();
        if growth == 0 {
            self.space_of(&mapping).insert(linear, mapping);
            return;
        }
        self.make_bytes(growth);
        self.space_of(&mapping).insert(linear, mapping);
        self.recount();
    }

    fn space_of(&mut self, mapping: &Mapping) -> &mut Space {
        if mapping.global { &mut self.global } else { &mut self.spaces[self.current] }
    }

    /// Makes room for so many bytes more: drops the spaces that were not used for longest, in the end everything.
    #[cold]
    fn make_bytes(&mut self, more: usize) {
        while self.bytes + more > BUDGET {
            let others = (0..self.spaces.len()).filter(|i| *i != self.current && self.spaces[*i].bytes() > 0);
            match others.min_by_key(|i| self.spaces[*i].last_used) {
                Some(oldest) => self.spaces[oldest].release(),
                None => {
                    self.spaces.iter_mut().for_each(Space::release);
                    self.global.release();
                    self.recount();
                    return;
                }
            }
            self.recount();
        }
    }

    /// Makes the address space of a PCID the current one, what is known of it kept.
    pub fn switch(&mut self, pcid: u16) {
        self.uses += 1;
        let found = self.spaces.iter().position(|space| space.pcid == pcid);
        self.current = found.unwrap_or_else(|| self.make_room());
        let space = &mut self.spaces[self.current];
        (space.pcid, space.last_used) = (pcid, self.uses);
    }

    /// An empty space: a new one, or the one that was not used for longest.
    fn make_room(&mut self) -> usize {
        if self.spaces.len() < MOST_SPACES {
            self.spaces.push(Space::default());
            return self.spaces.len() - 1;
        }
        let oldest = (0..self.spaces.len()).min_by_key(|i| self.spaces[*i].last_used).unwrap_or(0);
        self.spaces[oldest].clear();
        self.recount();
        oldest
    }

    /// Drops one page of the current space and of the global ones (INVLPG).
    pub fn flush_page(&mut self, linear: u64) {
        if let Some(space) = self.spaces.get_mut(self.current) {
            space.remove(linear);
        }
        self.global.remove(linear);
    }

    /// Drops one page of a PCID's space; global ones stay (INVPCID type 0).
    pub fn flush_page_of(&mut self, pcid: u16, linear: u64) {
        for space in self.spaces.iter_mut().filter(|space| space.pcid == pcid) {
            space.remove(linear);
        }
    }

    /// Drops a PCID's space; global pages stay.
    pub fn flush_pcid(&mut self, pcid: u16) {
        for space in self.spaces.iter_mut().filter(|space| space.pcid == pcid) {
            space.clear();
        }
        self.recount();
    }

    /// Drops every space; global pages stay.
    pub fn flush_local(&mut self) {
        self.spaces.iter_mut().for_each(Space::clear);
        self.recount();
    }

    pub fn flush_all(&mut self) {
        self.global.clear();
        self.flush_local();
    }

    fn recount(&mut self) {
        self.bytes = self.global.bytes() + self.spaces.iter().map(Space::bytes).sum::<usize>();
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.global.len() + self.spaces.iter().map(Space::len).sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(gpa: u64, page_size: u64, global: bool) -> Mapping {
        Mapping { gpa, page_size, user: true, writable: true, executable: true, dirty: true, global }
    }

    #[test]
    fn spaces_are_kept_apart_and_global_pages_shared() {
        let mut shadow = Shadow::default();
        shadow.switch(1);
        shadow.insert(0x1234, mapping(0x9234, 0x1000, false));
        shadow.insert(0x5000, mapping(0xa000, 0x1000, true));
        shadow.switch(2);
        assert_eq!(shadow.get(0x1234), None);
        assert_eq!(shadow.get(0x5678).unwrap().gpa, 0xa678);
        shadow.switch(1);
        assert_eq!(shadow.get(0x1fff).unwrap().gpa, 0x9fff);
        shadow.flush_pcid(1);
        assert_eq!(shadow.get(0x1234), None);
        assert!(shadow.get(0x5000).is_some());
        shadow.flush_page(0x5abc);
        assert_eq!(shadow.get(0x5000), None);
    }

    #[test]
    fn a_large_page_is_one_entry() {
        let mut shadow = Shadow::default();
        shadow.insert(0x4012_3456, mapping(0x8012_3456, 2 << 20, false));
        assert_eq!(shadow.get(0x401f_ffff).unwrap().gpa, 0x801f_ffff);
        assert_eq!(shadow.get(0x4020_0000), None);
        assert_eq!(shadow.len(), 1);
        shadow.flush_page(0x4000_0000);
        assert_eq!((shadow.get(0x4012_3456), shadow.len()), (None, 0));
        shadow.insert(0x0060_0000, mapping(0x0060_0000, 4 << 20, false));
        shadow.insert(0x0040_0000, mapping(0x0040_0000, 4 << 20, false));
        shadow.flush_page(0x0040_0000);
        assert_eq!(shadow.len(), 0);
    }

    #[test]
    fn the_number_of_spaces_is_bounded() {
        let mut shadow = Shadow::default();
        for pcid in 0..100 {
            shadow.switch(pcid);
            shadow.insert(0x1000, mapping(u64::from(pcid) << 12, 0x1000, false));
        }
        assert_eq!((shadow.spaces.len(), shadow.len()), (MOST_SPACES, MOST_SPACES));
        assert_eq!(shadow.get(0x1000).unwrap().gpa, 99 << 12);
    }

    #[test]
    fn memory_is_bounded_whatever_is_filled() {
        let mut shadow = Shadow::default();
        let mut most = 0;
        for pcid in 0..100u16 {
            shadow.switch(pcid);
            for page in 0..60_000u64 {
                // Each size at a time, and then a mixture with pages removed again.
                let size = [0x1000, 2 << 20, 1 << 30, 4 << 20][usize::from(pcid / 8 % 4)];
                shadow.insert(page * size, mapping(page * size, size, pcid % 5 == 0));
                if pcid % 3 == 0 {
                    shadow.flush_page((page / 2) * size);
                }
                most = most.max(shadow.bytes());
            }
            shadow.flush_pcid(pcid);
        }
        assert!(most <= BUDGET && most > BUDGET / 2, "{most}");
        shadow.flush_all();
        assert!(shadow.bytes() < 10 << 20, "{}", shadow.bytes());
    }

    #[test]
    fn an_emptied_space_gives_its_memory_back() {
        let mut shadow = Shadow::default();
        for page in 0..100_000u64 {
            shadow.insert(page << 12, mapping(page << 12, 0x1000, false));
        }
        assert!(shadow.bytes() >= 100_000 * size_of::<Mapping>());
        shadow.flush_local();
        assert_eq!((shadow.bytes(), shadow.len()), (0, 0));
    }

    #[test]
    fn the_spaces_not_used_for_longest_go_first() {
        let mut shadow = Shadow::default();
        for pcid in 0..14 {
            shadow.switch(pcid);
            for page in 0..50_000u64 {
                shadow.insert(page << 12, mapping(page << 12, 0x1000, false));
            }
        }
        let kept: Vec<_> =
            shadow.spaces.iter().filter(|space| space.len() > 0).map(|space| space.pcid).collect();
        assert!(!kept.contains(&0) && kept.contains(&13) && kept.contains(&9), "{kept:?}");
    }
}
