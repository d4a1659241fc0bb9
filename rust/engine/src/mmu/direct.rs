//! Translation for a para-virtual guest: its own page tables, which its monitor has validated, are walked at every miss of
//! the TLB; there is no second level. Stores to such a table go to the monitor where it wants them.

use trapgate_x86::insn::Seg;
use trapgate_x86::regs::pf;

use super::access::{Intent, Place};
use super::kept::{ANYWHERE, Change, NOWHERE};
use super::walk::{self, Access, Mapping, PageFault, Paging};
use crate::fault::{Done, Exception};
use crate::memory::{PAGE, Word};
use crate::monitor::{Stored, TableStore, Window, WindowTo};
use crate::state::{Flags, Vcpu};

/// Rounds of a read-modify-write that found its entry changed; somebody else makes headway in each.
const MOST_ROUNDS: u32 = 1000;

/// First linear address of the half that is the kernel's.
const UPPER_HALF: u64 = 1 << 63;

impl Vcpu {
    /// An entry of a live page table of a para-virtual guest, at this guest-physical address, no longer allows what it
    /// allowed, or a walk is to set its flags again.
    #[inline]
    pub fn table_changed(&mut self, gpa: u64) {
        self.entry_changed(gpa, true);
    }

    fn entry_changed(&mut self, gpa: u64, global: bool) {
        if let Some(page) = self.memory.page(gpa) {
            self.kept.changed(page.offset + gpa % PAGE, global);
        }
    }

    /// An entry of a live page table has lost the right to write to a host page, and nothing else. A kernel makes a page
    /// read-only before it becomes a page table: that right is taken at once, and nothing is left for a flush to do.
    pub fn table_protected(&mut self, gpa: u64, host: u64) {
        match self.kept.writable(host) {
            NOWHERE => {}
            ANYWHERE => self.entry_changed(gpa, true),
            page if page >= UPPER_HALF => self.protect_host(host),
            // Nobody can write to it by the kernel's half.
            _ => self.entry_changed(gpa, false),
        }
    }

    /// A para-virtual guest has another root of page tables for its kernel, whose upper half is that of the old one if
    /// `same_upper_half`. That is a flush.
    pub fn root_changed(&mut self, root: u64, same_upper_half: bool) {
        if !same_upper_half {
            self.upper_half_changed();
        }
        self.flush_guest();
        self.change_root(false, root);
    }

    /// It has another one for its user code: only user mode walks it.
    pub fn user_root_changed(&mut self, root: u64) {
        self.change_root(true, root);
    }

    /// An entry of a root for the upper half has changed, by which translations of all roots may have come.
    pub fn upper_half_changed(&mut self) {
        self.flush_tlb();
        self.end_block();
    }

    /// A root is a page table no more.
    pub fn root_gone(&mut self, root: u64) {
        self.kept.forget_root(root);
    }

    /// Changes the space of a view: what is known of the old one stays for when it comes back.
    pub(crate) fn change_root(&mut self, user: bool, root: u64) {
        match self.kept.change_root(user, root) {
            Change::Nothing => {}
            Change::Drop => self.tlb.drop_view(user),
            Change::Switch { from, keep, to, right } => {
                if keep {
                    self.tlb.leave(user, from);
                } else {
                    self.tlb.drop_view(user);
                }
                self.tlb.enter(user, to, right);
            }
        }
        self.end_block();
    }

    /// Changes both views to the space of a PCID, of which nothing that is not global stays unless `keep`.
    pub(crate) fn change_pcid(&mut self, pcid: u16, keep: bool) {
        // No space has this number at first.
        let number = u64::from(pcid) + 1;
        if !keep {
            self.kept.forget_root(number);
        }
        for user in [false, true] {
            self.change_root(user, number);
        }
    }

    /// Drops every translation of a para-virtual guest that may be wrong: all others are known to be right while nothing that
    /// they came from has changed.
    pub fn flush_guest(&mut self) {
        if self.kept.stale {
            self.flush_tlb();
        }
        for user in [false, true] {
            if self.kept.take_stale(user) {
                self.tlb.drop_view(user);
            }
        }
        self.end_block();
    }

    /// Takes the right to write from every cached translation of a host page. Page tables are mapped at one place, so that
    /// there is seldom more to drop than one page.
    pub fn protect_host(&mut self, host: u64) {
        match self.kept.take_writable(host) {
            NOWHERE => {}
            ANYWHERE => self.tlb.protect_host(host),
            page => self.tlb.protect_page(host, page & !1),
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
        // Which entries a translation came from is noted, so that a change of one can be seen to matter.
        let view = (!global).then_some(access.user);
        let note = |step: walk::Step| {
            if let Some(page) = memory.page(step.entry_gpa) {
                kept.note(page.offset + step.entry_gpa % PAGE, (memory.len() / PAGE) as usize, view);
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
        let Some((gpa, global, page)) =
            shown.and_then(|(gpa, global)| Some((gpa, global, self.memory.page(gpa)?)))
        else {
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
            global,
        };
        Ok(self.enter(linear, paging, &mapping, false))
    }

    /// Where what is shown at a linear address lies, and whether that hangs on no page table.
    fn shown(&self, linear: u64, paging: &Paging, system: bool) -> Option<(u64, bool)> {
        let of =
            |window: &&Window| window.system == system && linear.wrapping_sub(window.linear) < window.bytes;
        let window = self.windows.shown.iter().find(of)?;
        let offset = linear - window.linear;
        match window.to {
            WindowTo::Physical(gpa) => Some((gpa + offset, true)),
            WindowTo::Linear { root, linear } => {
                let paging = Paging { cr3: root, ..*paging };
                walk::walk(&self.memory, &paging, linear.wrapping_add(offset), |_| {})
                    .ok()
                    .map(|found| (found.gpa, false))
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
            self.after_write(page.offset, store.size.into());
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
