//! Shadow page tables that follow the guest's own by traces: what monitors did before processors had a second level of
//! translation (Adams and Agesen, ASPLOS 2006, section 2).
//!
//! Each page table that a walk has met has a shadow with as many entries, empty at first. A miss of the TLB goes by the
//! shadows; where one is empty the guest's tables are walked and the entries filled (a hidden page fault). Pages that hold
//! tables with shadows cannot be written directly: each store is noticed, made, and empties the entry that it changed. So
//! shadows are right whatever the guest flushes or loads into CR3. Tables are found by where they lie and their level,
//! so that address spaces share what they share.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;

use super::reading::Reading;
use super::walk::{A, D, Format, G, Mapping, NX, P, PS, Paging, RW, Step, US};
use crate::memory::{GuestMemory, PAGE, after_a_write};
use crate::mix::Mix;
use trapgate_x86::regs::cr4;

/// Of an entry: what it maps, or the number of the next shadow. PS is set only if it maps a page.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

const LEVELS: usize = 4;
/// Shadows at most: 8 MiB of them, or 16 with tables of 1024 entries.
const MOST: usize = 2048;
/// Entries that lead from shadow to shadow at most: a guest may let millions lead to one.
const MOST_LINKS: usize = 1 << 17;
/// A table that no other leads to, a root, may be none any more, which nothing says: after so many stores without a walk.
const FLOOD: u8 = 3;

/// One table's shadow.
#[derive(Debug)]
struct ShadowPage {
    /// Host offset of the guest's table.
    table: u64,
    level: u8,
    /// Writes to the table that are accounted for.
    state: u32,
    entries: Vec<u64>,
    /// Entries that lead here.
    parents: Vec<(u32, u16)>,
    /// Stores since the last walk that came by.
    stores: u8,
    /// A walk came by since the last look for something to drop.
    walked: bool,
}

/// All shadows of a vCPU.
#[derive(Debug)]
pub(crate) struct ShadowPages {
    pages: Vec<Option<ShadowPage>>,
    free: Vec<u32>,
    /// By the host offset of a table's page: one more than the number of its shadow of each level.
    tables: HashMap<u64, [u32; LEVELS], BuildHasherDefault<Mix>>,
    reading: Option<Reading>,
    /// Entries that lead from shadow to shadow.
    links: usize,
    /// Where the next look for something to drop begins.
    hand: usize,
    most: usize,
}

impl Default for ShadowPages {
    fn default() -> Self {
        ShadowPages::new(MOST)
    }
}

impl ShadowPages {
    fn new(most: usize) -> Self {
        ShadowPages {
            pages: Vec::new(),
            free: Vec::new(),
            tables: HashMap::default(),
            reading: None,
            links: 0,
            hand: 0,
            most,
        }
    }

    /// Bytes that the shadows take.
    pub fn bytes(&self) -> usize {
        let of = |page: &ShadowPage| {
            let links = page.parents.capacity() * size_of::<(u32, u16)>();
            size_of::<ShadowPage>() + 8 * page.entries.len() + links
        };
        self.pages.iter().flatten().map(of).sum()
    }

    fn page(&mut self, at: u32) -> Option<&mut ShadowPage> {
        self.pages.get_mut(at as usize)?.as_mut()
    }

    fn find(&self, table: u64, level: u8) -> Option<u32> {
        self.tables.get(&table)?.get(usize::from(level) - 1)?.checked_sub(1)
    }

    /// What the registers say about entries; if that has changed, nothing that is known means anything.
    fn reading(&mut self, memory: &GuestMemory, paging: &Paging) -> Reading {
        let reading = Reading::of(paging);
        if self.reading != Some(reading) {
            self.clear(memory);
            self.reading = Some(reading);
        }
        reading
    }

    pub fn clear(&mut self, memory: &GuestMemory) {
        self.tables.drain().for_each(|(table, _)| memory.release_table(table));
        self.pages.clear();
        self.free.clear();
        (self.links, self.hand) = (0, 0);
    }

    /// What the shadows say of a linear address; the mapping's `gpa` is that of the address.
    pub fn get(&mut self, memory: &GuestMemory, paging: &Paging, linear: u64) -> Option<Mapping> {
        let reading = self.reading(memory, paging);
        let (root, level) = reading.root(paging, linear)?;
        let mut at = self.find(memory.page(root)?.offset, level)?;
        let mut rights = US | RW;
        let mut no_execute = 0;
        loop {
            let page = self.page(at)?;
            if memory.table_state(page.table) != page.state {
                // Somebody else has written there, a device perhaps.
                self.drop_page(memory, at);
                return None;
            }
            (page.walked, page.stores) = (true, 0);
            let entry = page.entries[reading.index(page.level, linear)];
            if entry == 0 {
                return None;
            }
            rights &= entry;
            no_execute |= entry & NX;
            if page.level > 1 && entry & PS == 0 {
                at = (entry >> 12) as u32;
                continue;
            }
            let page_size = 1 << reading.shift(page.level);
            return Some(Mapping {
                gpa: entry & ADDRESS | linear & (page_size - 1),
                page_size,
                user: rights & US != 0,
                writable: rights & RW != 0,
                executable: no_execute == 0,
                dirty: entry & D != 0,
                global: entry & G != 0 && paging.cr4 & cr4::PGE != 0,
            });
        }
    }

    /// Fills in what a walk has found by the entries that it met. Gives the host pages that must not be written directly
    /// any more.
    pub fn insert(
        &mut self,
        memory: &GuestMemory,
        paging: &Paging,
        linear: u64,
        steps: &[Step],
        mapping: &Mapping,
    ) -> Vec<u64> {
        let mut traced = Vec::new();
        let reading = self.reading(memory, paging);
        self.make_room(memory);
        let mut parent = None;
        for (n, step) in steps.iter().enumerate() {
            if reading.format == Format::Pae && step.level == 3 {
                // A register.
                continue;
            }
            let Some(table) = memory.page(step.entry_gpa).map(|page| page.offset) else { break };
            let Some(at) = self.page_for(memory, &reading, table, step.level, &mut traced) else { break };
            let host = table + step.entry_gpa % PAGE;
            let now: u64 =
                if reading.entry_size() == 4 { memory.load::<u32>(host).into() } else { memory.load(host) };
            if (now ^ step.entry) & !(A | D) != 0 {
                // It was written after the walk, and before anybody looked.
                break;
            }
            if let Some((parent, entry)) = parent {
                self.link(memory, parent, entry, at);
            }
            let index = reading.index(step.level, linear);
            let flags = P | step.entry & (RW | US | NX);
            if n + 1 < steps.len() {
                parent = Some(((at, index as u16), flags));
                continue;
            }
            let base = mapping.gpa & !(mapping.page_size - 1);
            let dirty = if mapping.dirty { D } else { 0 };
            let large = if step.level > 1 { PS } else { 0 };
            self.clear_entry(memory, at, index);
            if let Some(page) = self.page(at) {
                page.entries[index] = base | flags | dirty | large | step.entry & G;
            }
        }
        traced
    }

    /// The shadow of a table, which may be a new one.
    fn page_for(
        &mut self,
        memory: &GuestMemory,
        reading: &Reading,
        table: u64,
        level: u8,
        traced: &mut Vec<u64>,
    ) -> Option<u32> {
        if let Some(at) = self.find(table, level) {
            let known = self.page(at)?;
            if known.state == memory.table_state(table) {
                return Some(at);
            }
            self.drop_page(memory, at);
        }
        if memory.table_state(table) & 1 == 0 {
            traced.push(table);
        }
        let page = ShadowPage {
            table,
            level,
            state: memory.trace_table(table),
            entries: vec![0; (PAGE / reading.entry_size()) as usize],
            parents: Vec::new(),
            stores: 0,
            walked: true,
        };
        let at = self.free.pop().unwrap_or_else(|| {
            self.pages.push(None);
            self.pages.len() as u32 - 1
        });
        self.pages[at as usize] = Some(page);
        *self.tables.entry(table).or_default().get_mut(usize::from(level) - 1)? = at + 1;
        Some(at)
    }

    /// Lets an entry lead to a shadow.
    fn link(&mut self, memory: &GuestMemory, parent: (u32, u16), flags: u64, child: u32) {
        let entry = u64::from(child) << 12 | flags;
        if self.page(parent.0).is_some_and(|page| page.entries[usize::from(parent.1)] == entry) {
            return;
        }
        // First, so that a child is not dropped whose entry only changes its flags.
        if let Some(page) = self.page(child) {
            page.parents.push(parent);
            self.links += 1;
        }
        self.clear_entry(memory, parent.0, parent.1.into());
        if let Some(page) = self.page(parent.0) {
            page.entries[usize::from(parent.1)] = entry;
        }
    }

    /// Empties an entry. What it alone led to has no use any more.
    fn clear_entry(&mut self, memory: &GuestMemory, at: u32, index: usize) {
        let Some(page) = self.page(at) else { return };
        let entry = std::mem::take(&mut page.entries[index]);
        if entry != 0 && page.level > 1 && entry & PS == 0 {
            self.unlink(memory, (entry & ADDRESS) >> 12, (at, index as u16));
        }
    }

    fn unlink(&mut self, memory: &GuestMemory, child: u64, parent: (u32, u16)) {
        let Some(page) = self.page(child as u32) else { return };
        let link = page.parents.iter().position(|known| *known == parent);
        link.map(|n| page.parents.swap_remove(n));
        let orphan = page.parents.is_empty();
        self.links -= usize::from(link.is_some());
        if orphan {
            self.drop_page(memory, child as u32);
        }
    }

    /// Drops a shadow, and what it alone led to. The table may be written directly again.
    fn drop_page(&mut self, memory: &GuestMemory, at: u32) {
        let Some(page) = self.pages.get_mut(at as usize).and_then(Option::take) else { return };
        self.links -= page.parents.len();
        for (parent, index) in page.parents {
            if let Some(parent) = self.page(parent) {
                parent.entries[usize::from(index)] = 0;
            }
        }
        if let Some(levels) = self.tables.get_mut(&page.table) {
            levels[usize::from(page.level) - 1] = 0;
            if *levels == [0; LEVELS] {
                self.tables.remove(&page.table);
                memory.release_table(page.table);
            }
        }
        self.free.push(at);
        if page.level > 1 {
            for (index, entry) in page.entries.into_iter().enumerate() {
                if entry != 0 && entry & PS == 0 {
                    self.unlink(memory, (entry & ADDRESS) >> 12, (at, index as u16));
                }
            }
        }
    }

    /// Makes sure that one walk's shadows fit in: the first ones go that no walk has come by since the last time.
    fn make_room(&mut self, memory: &GuestMemory) {
        while self.pages.len() - self.free.len() + LEVELS > self.most || self.links > MOST_LINKS {
            self.hand = (self.hand + 1) % self.pages.len();
            if let Some(page) = &mut self.pages[self.hand]
                && !std::mem::take(&mut page.walked)
            {
                self.drop_page(memory, self.hand as u32);
            }
        }
    }

    /// A store of the guest's to a traced page has been made. An entry of its own loses its shadow; a page that is written
    /// otherwise is taken for no table any more.
    pub fn written(&mut self, memory: &GuestMemory, host: u64, len: u64) {
        let Some(reading) = self.reading else { return };
        let (table, offset) = (host & !(PAGE - 1), host % PAGE);
        let Some(levels) = self.tables.get(&table).copied() else { return };
        let size = reading.entry_size();
        let inside = offset % size + len <= size;
        // Systems change flags by a store of one byte, the lowest.
        let fits = inside && (len >= 4 || len == 1 && offset % size == 0);
        for at in levels.into_iter().filter_map(|n| n.checked_sub(1)) {
            let Some(page) = self.page(at) else { continue };
            page.state = after_a_write(page.state);
            page.stores = page.stores.saturating_add(1);
            let flood = page.parents.is_empty() && page.stores >= FLOOD;
            if !fits || flood || page.state != memory.table_state(table) {
                self.drop_page(memory, at);
            } else {
                self.clear_entry(memory, at, (offset / size) as usize);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Region;
    use crate::mmu::walk::walk;
    use trapgate_x86::regs::{cr0, efer};

    const PAGES: u64 = 24;
    /// Fewer than there are tables.
    const FEW: usize = 10;

    fn paging(format: Format, cr3: u64, memory: &GuestMemory) -> Paging {
        let long = format == Format::Level4;
        let entry = |n: u64| memory.load::<u64>(cr3 + 8 * n) & (ADDRESS | P);
        Paging {
            cr0: cr0::PG | cr0::PE,
            cr3,
            cr4: cr4::PSE | cr4::PGE | if format == Format::Bits32 { 0 } else { cr4::PAE },
            efer: if long { efer::LMA | efer::LME | efer::NXE } else { 0 },
            pdptes: if format == Format::Pae { [0, 1, 2, 3].map(entry) } else { [0; 4] },
            physical_bits: 40,
            gigabyte_pages: true,
            direct: false,
        }
    }

    /// A place for an entry of any table, near the beginning, so that walks meet it.
    fn place(n: u64) -> u64 {
        n % PAGES * PAGE + n / PAGES % 4 * 8
    }

    /// An entry that leads to one of the pages, present most of the time.
    fn entry(n: u64) -> u64 {
        let flags = [P | RW | US, P | RW | US, P | US, P | RW, P | RW | US | D, P | RW | US | PS, P | G, 0];
        let page = n % PAGES * PAGE;
        let flags = flags[(n / PAGES) as usize % flags.len()];
        // A page of more than 4 KiB begins at a multiple of its size.
        if flags & PS != 0 { flags } else { page | flags }
    }

    /// Linear addresses whose indices are small at every level, low ones more often at upper levels.
    fn linear(n: u64) -> u64 {
        (0..4).fold(0, |linear, level| linear | (n >> (2 * level) & 3) << (12 + 9 * level)) | n & 0xff8
    }

    fn compare(format: Format, steps: Vec<(u8, u64, u64)>) {
        let memory = GuestMemory::new(&[Region { start: 0, len: PAGES * PAGE, read_only: false }]).unwrap();
        let mut shadows = ShadowPages::new(FEW);
        let mut cr3 = 0;
        for (what, a, b) in steps {
            match what {
                // The guest's own stores, of one byte and of more.
                0..=3 => {
                    memory.store(place(a), entry(b));
                    shadows.written(&memory, place(a), 8);
                }
                4 => {
                    memory.store(place(a), entry(b) as u32);
                    shadows.written(&memory, place(a), 4);
                }
                5 => {
                    memory.store(place(a) + b % 8, a as u8 & 7);
                    shadows.written(&memory, place(a) + b % 8, 1);
                }
                // A device's.
                6 => memory.store(place(a), entry(b)),
                7 => cr3 = a % PAGES * PAGE,
                _ => {}
            }
            let paging = paging(format, cr3, &memory);
            let linear = if format == Format::Level4 { linear(a) } else { linear(a) & 0xffff_ffff };
            let mut met = Vec::new();
            let right = walk(&memory, &paging, linear, |step| met.push(step)).ok();
            if let Some(known) = shadows.get(&memory, &paging, linear) {
                assert_eq!(Some(known), right, "{linear:#x} in {cr3:#x}");
            } else if let Some(right) = right {
                shadows.insert(&memory, &paging, linear, &met, &right);
                // What is outside RAM has no shadow.
                if met.iter().all(|step| memory.page(step.entry_gpa).is_some()) {
                    assert_eq!(shadows.get(&memory, &paging, linear), Some(right), "{linear:#x} in {cr3:#x}");
                }
            }
            let live = shadows.pages.iter().flatten();
            assert!(live.clone().count() <= FEW);
            assert_eq!(live.map(|page| page.parents.len()).sum::<usize>(), shadows.links);
            for page in 0..PAGES {
                let shadow = shadows.pages.iter().flatten().any(|shadow| shadow.table == page * PAGE);
                assert_eq!(memory.table_state(page * PAGE) & 1 == 1, shadow, "page {page}");
            }
        }
    }

    #[test]
    fn entries_that_all_lead_to_one_table_are_bounded() {
        const DIRECTORIES: u64 = 300;
        let frames = DIRECTORIES + 8;
        let memory = GuestMemory::new(&[Region { start: 0, len: frames * PAGE, read_only: false }]).unwrap();
        // A root, a table for each level above the directories, and one page table for all of them.
        let (root, pointers, table) = (0, PAGE, 2 * PAGE);
        memory.store(root, pointers | P | RW);
        memory.store(table, table | P | RW);
        for n in 0..DIRECTORIES {
            let directory = (4 + n) * PAGE;
            memory.store(pointers + 8 * n, directory | P | RW);
            (0..512).for_each(|entry| memory.store(directory + 8 * entry, table | P | RW));
        }
        let paging = paging(Format::Level4, root, &memory);
        let mut shadows = ShadowPages::default();
        let mut most = 0;
        for linear in (0..DIRECTORIES << 30).step_by(2 << 20) {
            let mut met = Vec::new();
            let mapping = walk(&memory, &paging, linear, |step| met.push(step)).unwrap();
            assert_eq!(shadows.get(&memory, &paging, linear), None);
            shadows.insert(&memory, &paging, linear, &met, &mapping);
            assert_eq!(shadows.get(&memory, &paging, linear), Some(mapping));
            most = most.max(shadows.links);
        }
        assert!((MOST_LINKS..=MOST_LINKS + LEVELS).contains(&most), "{most}");
        assert!(shadows.bytes() < 4 << 20, "{}", shadows.bytes());
    }

    #[test]
    fn shadows_say_what_a_walk_says() {
        let mut random = 1u64;
        let mut next = || {
            // Marsaglia's xorshift, in the middle of which all bits are good enough.
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random >> 8
        };
        for round in 0..300 {
            let format = [Format::Level4, Format::Pae, Format::Bits32][round % 3];
            let steps = (0..400).map(|_| ((next() % 24) as u8, next(), next())).collect();
            compare(format, steps);
        }
    }
}
