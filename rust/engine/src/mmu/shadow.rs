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
/// Leaves kept in all; beyond it everything is dropped. Bounds the memory to some 10 MiB.
const MOST_LEAVES: usize = 1 << 17;

/// Sizes of pages, smallest first, as powers of two. 4 MiB pages of 32-bit paging are entered as two of 2 MiB.
const SHIFTS: [u32; 3] = [12, 21, 30];

/// Translations of one address space, or the global ones.
#[derive(Debug, Default)]
struct Space {
    pcid: u16,
    /// By page number within each size.
    leaves: [HashMap<u64, Mapping, BuildHasherDefault<Mix>>; 3],
    last_used: u64,
}

impl Space {
    fn get(&self, linear: u64) -> Option<&Mapping> {
        self.leaves
            .iter()
            .zip(SHIFTS)
            .filter(|(map, _)| !map.is_empty())
            .find_map(|(map, shift)| map.get(&(linear >> shift)))
    }

    fn insert(&mut self, linear: u64, mapping: Mapping) {
        let class = match mapping.page_size {
            0x1000 => 0,
            0x4000_0000 => 2,
            _ => 1,
        };
        let shift = SHIFTS[class];
        let inside = linear & ((1 << shift) - 1);
        self.leaves[class].insert(linear >> shift, Mapping { gpa: mapping.gpa - inside, ..mapping });
    }

    fn remove(&mut self, linear: u64) {
        for (map, shift) in self.leaves.iter_mut().zip(SHIFTS) {
            map.remove(&(linear >> shift));
        }
        // The other half of a 4 MiB page.
        self.leaves[1].remove(&(linear >> 21 ^ 1));
    }

    fn clear(&mut self) {
        self.leaves.iter_mut().for_each(HashMap::clear);
    }

    fn len(&self) -> usize {
        self.leaves.iter().map(HashMap::len).sum()
    }
}

/// All translations that a vCPU remembers.
#[derive(Debug, Default)]
pub(crate) struct Shadow {
    spaces: Vec<Space>,
    global: Space,
    current: usize,
    uses: u64,
    leaves: usize,
}

impl Shadow {
    /// What is known of a linear address; the mapping's `gpa` is that of the address.
    pub fn get(&self, linear: u64) -> Option<Mapping> {
        let space = self.spaces.get(self.current);
        let found = space.and_then(|space| space.get(linear)).or_else(|| self.global.get(linear))?;
        let size = if found.page_size == 4 << 20 { 2 << 20 } else { found.page_size };
        Some(Mapping { gpa: found.gpa + (linear & (size - 1)), ..*found })
    }

    /// Remembers what a walk found.
    pub fn insert(&mut self, linear: u64, mapping: Mapping) {
        if self.leaves >= MOST_LEAVES {
            self.flush_all();
        }
        if self.spaces.is_empty() {
            self.switch(0);
        }
        let space = if mapping.global { &mut self.global } else { &mut self.spaces[self.current] };
        let before = space.len();
        space.insert(linear, mapping);
        self.leaves += space.len() - before;
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
        self.leaves -= self.spaces[oldest].len();
        self.spaces[oldest].clear();
        oldest
    }

    /// Drops one page of the current space and of the global ones (INVLPG).
    pub fn flush_page(&mut self, linear: u64) {
        if let Some(space) = self.spaces.get_mut(self.current) {
            space.remove(linear);
        }
        self.global.remove(linear);
        self.recount();
    }

    /// Drops one page of a PCID's space; global ones stay (INVPCID type 0).
    pub fn flush_page_of(&mut self, pcid: u16, linear: u64) {
        for space in self.spaces.iter_mut().filter(|space| space.pcid == pcid) {
            space.remove(linear);
        }
        self.recount();
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
        self.leaves = self.global.len() + self.spaces.iter().map(Space::len).sum::<usize>();
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
        assert_eq!(shadow.leaves, 1);
        shadow.flush_page(0x4000_0000);
        assert_eq!((shadow.get(0x4012_3456), shadow.leaves), (None, 0));
        shadow.insert(0x0060_0000, mapping(0x0060_0000, 4 << 20, false));
        shadow.insert(0x0040_0000, mapping(0x0040_0000, 4 << 20, false));
        shadow.flush_page(0x0040_0000);
        assert_eq!(shadow.leaves, 0);
    }

    #[test]
    fn the_number_of_spaces_is_bounded() {
        let mut shadow = Shadow::default();
        for pcid in 0..100 {
            shadow.switch(pcid);
            shadow.insert(0x1000, mapping(u64::from(pcid) << 12, 0x1000, false));
        }
        assert_eq!((shadow.spaces.len(), shadow.leaves), (MOST_SPACES, MOST_SPACES));
        assert_eq!(shadow.get(0x1000).unwrap().gpa, 99 << 12);
    }
}
