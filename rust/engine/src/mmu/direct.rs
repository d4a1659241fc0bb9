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
/// The tables are the guest's own, but every change of a live one is seen by the monitor.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    /// Entries of page tables (by a hash of their address) that such translations came from.
    entries: Marks,
    /// One of them has changed since.
    stale: bool,
    /// By host page: the linear page under which it may be written, see [`Kept::writable`].
    writable: Vec<u64>,
}

/// In [`Kept::writable`]: no linear page, and more than one.
const NOWHERE: u64 = 0;
const ANYWHERE: u64 = u64::MAX;

#[derive(Debug)]
struct Marks(Box<[u64; MARKS / 64]>);

const MARKS: usize = 1 << 14;

impl Default for Marks {
    fn default() -> Self {
        Marks(Box::new([0; MARKS / 64]))
    }
}

impl Kept {
    fn place(gpa: u64) -> (usize, u64) {
        let hash = (gpa / 8).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - MARKS.trailing_zeros());
        ((hash / 64) as usize, 1 << (hash % 64))
    }

    fn note(&mut self, gpa: u64) {
        let (word, bit) = Self::place(gpa);
        self.entries.0[word] |= bit;
    }

    /// Everything was dropped.
    pub fn clear(&mut self) {
        self.entries.0.fill(0);
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
        let (word, bit) = Kept::place(gpa);
        if self.kept.entries.0[word] & bit != 0 {
            self.kept.stale = true;
        }
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
        let global = !access.user && linear >= UPPER_HALF;
        let kept = &mut self.kept;
        // Which entries a translation that is kept came from is noted, so that a change of one can be seen to matter.
        let note = |step: walk::Step| {
            if global {
                kept.note(step.entry_gpa);
            }
        };
        match walk::translate_by(&self.memory, paging, linear, access, note) {
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
