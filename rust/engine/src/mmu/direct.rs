//! Translation for a para-virtual guest: its own page tables, which its monitor has validated, are walked at every miss of
//! the TLB; there is no second level. Stores to such a table go to the monitor where it wants them.

use trapgate_x86::insn::Seg;
use trapgate_x86::regs::pf;

use super::access::{Intent, Place};
use super::walk::{self, Access, Mapping, PageFault, Paging};
use crate::fault::{Done, Exception};
use crate::memory::{PAGE, Word};
use crate::monitor::{Stored, TableStore, Window, WindowTo};
use crate::state::{Flags, Vcpu};

/// Rounds of a read-modify-write that found its entry changed; somebody else makes headway in each.
const MOST_ROUNDS: u32 = 1000;

/// First linear address of the half that is the kernel's.
const UPPER_HALF: u64 = 1 << 63;

/// What is known of the translations of the kernel's half, which all address spaces of a guest have in common: they may
/// outlive any flush as long as no entry of a page table that they came from has changed.
///
/// The tables are the guest's own, but every change of a live one is seen by the monitor. A guest that unmaps a program
/// changes hundreds of entries at a time, so what is kept of them is exact: one that is taken for another by mistake would
/// cost all that is known of the kernel.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    /// By host page: one more than the place in `marks` of a page table that such translations came from; 0 for others.
    tables: Vec<u32>,
    /// A bit for each of their entries that did.
    marks: Vec<Marks>,
    /// An entry with a bit has changed since.
    stale: bool,
    /// By host page: the linear page under which it may be written, see [`Kept::writable`].
    writable: Vec<u64>,
}

/// In [`Kept::writable`]: no linear page, and more than one.
const NOWHERE: u64 = 0;
const ANYWHERE: u64 = u64::MAX;

/// Entries of a page table.
const ENTRIES: usize = 512;

/// Which entries of one page table.
#[derive(Debug)]
struct Marks {
    /// Number of its host page.
    page: u32,
    bits: [u64; ENTRIES / 64],
}

impl Kept {
    /// The word and the bit of an entry at a host offset.
    fn place(host: u64) -> (usize, u64) {
        let entry = (host % PAGE / 8) as usize;
        (entry / 64, 1 << (entry % 64))
    }

    /// Translations come from the entry at a host offset, in memory of so many `pages`.
    fn note(&mut self, host: u64, pages: usize) {
        if self.tables.is_empty() {
            self.tables = vec![0; pages];
        }
        let page = host / PAGE;
        let Some(table) = self.tables.get_mut(page as usize) else { return };
        if *table == 0 {
            self.marks.push(Marks { page: page as u32, bits: [0; ENTRIES / 64] });
            *table = self.marks.len() as u32;
        }
        let (word, bit) = Self::place(host);
        if let Some(marks) = self.marks.get_mut(*table as usize - 1) {
            marks.bits[word] |= bit;
        }
    }

    /// Whether translations came from the entry at a host offset.
    fn noted(&self, host: u64) -> bool {
        let table = self.tables.get((host / PAGE) as usize).copied().unwrap_or(0) as usize;
        let (word, bit) = Self::place(host);
        table.checked_sub(1).and_then(|n| self.marks.get(n)).is_some_and(|marks| marks.bits[word] & bit != 0)
    }

    /// Everything was dropped.
    pub fn clear(&mut self) {
        for marks in self.marks.drain(..) {
            self.tables[marks.page as usize] = 0;
        }
        self.stale = false;
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

    /// Under which linear page a host page may be written, as far as is known; it no longer is.
    fn take_writable(&mut self, host: u64) -> u64 {
        self.writable
            .get_mut((host / PAGE) as usize)
            .map_or(NOWHERE, |place| std::mem::replace(place, NOWHERE))
    }
}

impl Vcpu {
    /// An entry of a live page table of a para-virtual guest, at this guest-physical address, no longer allows what it
    /// allowed.
    #[inline]
    pub fn table_changed(&mut self, gpa: u64) {
        let page = self.memory.page(gpa);
        self.kept.stale |= page.is_some_and(|page| self.kept.noted(page.offset + gpa % PAGE));
    }

    /// An entry of a live page table has lost the right to write to a host page, and nothing else. A kernel makes a page
    /// read-only before it becomes a page table: that right is taken at once, and nothing is left for a flush to do.
    pub fn table_protected(&mut self, gpa: u64, host: u64) {
        match self.kept.writable.get((host / PAGE) as usize).copied().unwrap_or(NOWHERE) {
            NOWHERE => {}
            ANYWHERE => self.table_changed(gpa),
            page if page >= UPPER_HALF => self.protect_host(host),
            // The lower half goes with every flush.
            _ => {}
        }
    }

    /// A para-virtual guest has another root of page tables, whose upper half is that of the old one if `same_upper_half`.
    pub fn root_changed(&mut self, same_upper_half: bool) {
        if same_upper_half {
            self.flush_guest();
        } else {
            self.flush_tlb();
        }
        self.end_block();
    }

    /// Drops every translation of a para-virtual guest that may be wrong: those of the kernel's half are known to be
    /// right while nothing that they came from has changed.
    pub fn flush_guest(&mut self) {
        if self.kept.stale {
            self.flush_tlb();
        } else {
            self.tlb.flush_local();
        }
        self.end_block();
    }

    /// Takes the right to write from every cached translation of a host page. Page tables are mapped at one place, so that
    /// there is seldom more to drop than one page.
    pub fn protect_host(&mut self, host: u64) {
        match self.kept.take_writable(host) {
            NOWHERE => {}
            ANYWHERE => self.tlb.protect_host(host),
            page => self.tlb.flush_page(page & !1),
        }
    }

    /// Finds where a linear address lies.
    pub(super) fn place_direct(
        &mut self,
        linear: u64,
        paging: &Paging,
        access: Access,
        system: bool,
    ) -> Done<Place> {
        if self.windows.range.contains(&linear) {
            return self.place_window(linear, paging, access, system);
        }
        if access.write
            && !access.user
            && let Some(gpa) = self.known_table(linear)
        {
            return Ok(Place::Table(gpa));
        }
        let global = !access.user && linear >= UPPER_HALF;
        let (kept, memory) = (&mut self.kept, &self.memory);
        // Which entries a translation that is kept came from is noted, so that a change of one can be seen to matter.
        let note = |step: walk::Step| {
            if global && let Some(page) = memory.page(step.entry_gpa) {
                kept.note(page.offset + step.entry_gpa % PAGE, (memory.len() / PAGE) as usize);
            }
        };
        match walk::translate_by(memory, paging, linear, access, note) {
            Ok(mapping) => Ok(self.enter(linear, paging, &Mapping { global, ..mapping }, access.user)),
            Err(fault) => match self.trapped(linear, paging, access, fault) {
                Some(gpa) => Ok(Place::Table(gpa)),
                None => {
                    self.flush_page(linear);
                    self.raise(Exception::page_fault(linear, fault.error))
                }
            },
        }
    }

    /// The part of linear memory that is the monitor's: what it shows there, the guest's kernel may read.
    fn place_window(&mut self, linear: u64, paging: &Paging, access: Access, system: bool) -> Done<Place> {
        let shown =
            if access.user || access.write && !system { None } else { self.shown(linear, paging, system) };
        let Some((gpa, page)) = shown.and_then(|gpa| Some((gpa, self.memory.page(gpa)?))) else {
            let write = if access.write { pf::W } else { 0 };
            let user = if access.user { pf::U } else { 0 };
            return self.raise(Exception::page_fault(linear, write | user));
        };
        if system {
            // Descriptors are the processor's to read; the guest sees its own mapping of them.
            return Ok(Place::Ram(page.offset + gpa % PAGE));
        }
        let mapping = Mapping {
            gpa,
            page_size: PAGE,
            user: true,
            writable: false,
            executable: false,
            dirty: true,
            global: false,
        };
        Ok(self.enter(linear, paging, &mapping, false))
    }

    /// Where what is shown at a linear address lies.
    fn shown(&self, linear: u64, paging: &Paging, system: bool) -> Option<u64> {
        let of =
            |window: &&Window| window.system == system && linear.wrapping_sub(window.linear) < window.bytes;
        let window = self.windows.shown.iter().find(of)?;
        let offset = linear - window.linear;
        match window.to {
            WindowTo::Physical(gpa) => Some(gpa + offset),
            WindowTo::Linear { root, linear } => {
                let paging = Paging { cr3: root, ..*paging };
                walk::walk(&self.memory, &paging, linear.wrapping_add(offset), |_| {})
                    .ok()
                    .map(|found| found.gpa)
            }
        }
    }

    /// The address of a page table that a store of the kernel's meets where it has been read already: a page that is a table
    /// now is mapped writable nowhere.
    fn known_table(&self, linear: u64) -> Option<u64> {
        let (entry, page) = (self.tlb.entry(linear, false), linear & !(PAGE - 1));
        if entry.read != page || entry.write == page {
            return None;
        }
        let gpa = self.memory.address_of(entry.host)? + linear % PAGE;
        self.monitor.as_ref()?.traps(gpa).then_some(gpa)
    }

    /// The address of a page table that a store has met, if the monitor makes such stores.
    fn trapped(&mut self, linear: u64, paging: &Paging, access: Access, fault: PageFault) -> Option<u64> {
        if !access.write || access.user || fault.error & pf::P == 0 {
            return None;
        }
        let mapping = walk::walk(&self.memory, paging, linear, |_| {}).ok()?;
        self.monitor.as_ref().is_some_and(|monitor| monitor.traps(mapping.gpa)).then_some(mapping.gpa)
    }

    /// Stores into a page table by way of the monitor; a refused entry is a page fault.
    pub(super) fn store_table(&mut self, linear: u64, store: TableStore) -> Done {
        match self.try_store_table(linear, store)? {
            Stored::Done | Stored::Changed => Ok(()),
            Stored::Refused => self.refuse_table(linear),
        }
    }

    fn try_store_table(&mut self, linear: u64, store: TableStore) -> Done<Stored> {
        let inside = store.gpa % 8 + u64::from(store.size) <= 8;
        if !inside {
            return self.refuse_table(linear);
        }
        let stored = self.with_monitor(|monitor, cpu| monitor.store(cpu, store)).unwrap_or(Stored::Refused);
        if let Some(page) = self.memory.page(store.gpa) {
            self.after_write(page.offset);
        }
        Ok(stored)
    }

    /// Reads, changes and writes back an entry of a page table, atomically.
    pub(super) fn modify_table<T: Word>(
        &mut self,
        linear: u64,
        gpa: u64,
        change: impl Fn(&mut Flags, T) -> T,
    ) -> Done {
        let before = self.flags;
        for _ in 0..MOST_ROUNDS {
            let old: T = self.load_as(Seg::Ds, linear, Intent::Read)?;
            self.flags = before;
            let new = change(&mut self.flags, old);
            let (old, new) = (old.to_u64(), new.to_u64());
            let store = TableStore { gpa, size: T::SIZE as u8, old: Some(old), new };
            match self.try_store_table(linear, store) {
                Ok(Stored::Done) => return Ok(()),
                Ok(Stored::Changed) => {}
                Ok(Stored::Refused) => {
                    self.flags = before;
                    return self.refuse_table(linear);
                }
                Err(stop) => {
                    self.flags = before;
                    return Err(stop);
                }
            }
        }
        self.flags = before;
        self.refuse_table(linear)
    }

    /// A store that a page table does not take: the fault that its read-only page stands for.
    #[cold]
    pub(super) fn refuse_table<T>(&mut self, linear: u64) -> Done<T> {
        self.raise(Exception::page_fault(linear, pf::P | pf::W))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_entries_that_translations_came_from_count() {
        const PAGES: usize = 100;
        let mut kept = Kept::default();
        assert!(!kept.noted(0));
        let noted: Vec<u64> = (0..PAGES as u64).map(|n| n * 7 % 100 * PAGE + n * n % 512 * 8).collect();
        noted.iter().for_each(|host| kept.note(*host, PAGES));
        for host in (0..PAGES as u64 * PAGE).step_by(8) {
            assert_eq!(kept.noted(host), noted.contains(&host), "{host:#x}");
        }
        // Beyond memory there is no page table.
        kept.note(PAGES as u64 * PAGE, PAGES);
        assert!(!kept.noted(PAGES as u64 * PAGE));
        kept.clear();
        assert!(noted.iter().all(|host| !kept.noted(*host)));
    }
}
