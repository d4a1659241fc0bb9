//! Finds where a linear address lies when the TLB does not know: what was found before, in the second level or in shadow page
//! tables, and then the guest's own tables.

use trapgate_x86::exception::Vector;
use trapgate_x86::insn::Seg;
use trapgate_x86::regs::rflags;

use super::access::{Intent, Place, canonical};
use super::shadow_pages::ShadowPages;
use super::tlb::Rights;
use super::walk::{self, Access, Mapping, Paging, Step};
use crate::fault::{Done, Exception};
use crate::memory::PAGE;
use crate::state::Vcpu;

/// Entries that a walk meets at most.
const MOST_STEPS: usize = 4;

impl Vcpu {
    /// Finds where a linear address lies, for an access that does not cross a page.
    pub fn place(&mut self, seg: Seg, linear: u64, intent: Intent, size: u64) -> Done<Place> {
        if self.mode.long && !canonical(linear) {
            let vector = if seg == Seg::Ss { Vector::Ss } else { Vector::Gp };
            return self.raise(Exception::with_error(vector, 0));
        }
        let linear = if self.mode.long { linear } else { linear & u64::from(u32::MAX) };
        debug_assert!((linear & 0xfff) + size <= PAGE);
        let system = matches!(intent, Intent::SystemRead | Intent::SystemWrite);
        let user = self.cpl == 3 && !self.kernel_mode && !system;
        let access = Access {
            write: intent.writes(),
            fetch: intent == Intent::Fetch,
            user,
            smap_off: !system && self.flags.is_set(rflags::AC),
        };
        let paging = self.paging();
        if self.is_para() {
            return self.place_direct(linear, &paging, access, system);
        }
        if let Some(known) = self.found_before(&paging, linear)
            && paging.allows(&known, access)
            && (known.dirty || !access.write)
        {
            return Ok(self.enter(linear, &paging, &known, user));
        }
        let mut steps = [Step::default(); MOST_STEPS];
        let mut met = 0;
        let note = |step| {
            steps[met] = step;
            met += 1;
        };
        match walk::translate_by(&self.memory, &paging, linear, access, note) {
            Ok(mapping) => {
                self.remember(&paging, linear, &steps[..met], mapping);
                Ok(self.enter(linear, &paging, &mapping, user))
            }
            Err(fault) => {
                // A fault is raised by a fresh walk only and takes what was cached of its page with it.
                self.flush_page(linear);
                self.raise(Exception::page_fault(linear, fault.error))
            }
        }
    }

    /// What is known of a linear address besides the TLB.
    pub(crate) fn found_before(&mut self, paging: &Paging, linear: u64) -> Option<Mapping> {
        match &mut self.shadow_pages {
            None => self.shadow_tables.get(linear),
            Some(shadows) => shadows.get(&self.memory, paging, linear),
        }
    }

    /// Remembers what a walk has found, by these entries.
    fn remember(&mut self, paging: &Paging, linear: u64, steps: &[Step], mapping: Mapping) {
        let Some(shadows) = &mut self.shadow_pages else {
            return self.shadow_tables.insert(linear, mapping);
        };
        self.departures.hidden_faults += u64::from(!steps.is_empty());
        for host in shadows.insert(&self.memory, paging, linear, steps, &mapping) {
            self.protect_host(host);
        }
    }

    /// Enters a translation into the TLB where that is allowed, and gives its place.
    pub(super) fn enter(&mut self, linear: u64, paging: &Paging, m: &Mapping, user: bool) -> Place {
        let offset = m.gpa & 0xfff;
        let Some(page) = self.memory.page(m.gpa) else { return Place::Device(m.gpa) };
        let watched = self.memory.code_state(page.offset) & 1 == 1 || self.is_traced(page.offset);
        let smap_off = self.flags.is_set(rflags::AC);
        let may = |write, fetch| paging.allows(m, Access { write, fetch, user, smap_off });
        let slow = self.alignment_checks() || self.page_has_breakpoint(linear) || self.page_is_hooked(linear);
        let rights = Rights {
            read: may(false, false) && !slow,
            write: may(true, false) && m.dirty && !watched && !page.read_only && !slow,
            fetch: may(false, true),
            global: m.global,
        };
        if rights.write && (self.para || self.shadow_pages.is_some()) {
            let pages = (self.memory.len() / PAGE) as usize;
            self.kept.note_writable(page.offset, linear, pages);
        }
        self.tlb.fill(linear, user, page.offset, m.page_size, rights);
        if page.read_only { Place::Rom(page.offset + offset) } else { Place::Ram(page.offset + offset) }
    }

    /// Finds the host page of an instruction fetch.
    pub fn fetch_place(&mut self, linear: u64) -> Done<Place> {
        let entry = self.tlb.entry(linear, self.user_view);
        if entry.fetch == linear & !0xfff {
            return Ok(Place::Ram(entry.host + (linear & 0xfff)));
        }
        self.place(Seg::Cs, linear, Intent::Fetch, 1)
    }

    /// Keeps shadow page tables, and sees every store to the guest's own, or no longer. A guest cannot tell, but by the time
    /// that it takes. Not for a para-virtual guest, whose tables are its monitor's to look after.
    pub fn set_shadow_paging(&mut self, on: bool) {
        if let Some(shadows) = &mut self.shadow_pages {
            shadows.clear(&self.memory);
        }
        self.shadow_pages = (on && !self.para).then(Box::<ShadowPages>::default);
        self.flush_tlb();
    }

    /// Whether a host page holds a page table with a shadow: stores go the slow way.
    #[inline]
    pub(crate) fn is_traced(&self, host: u64) -> bool {
        self.shadow_pages.is_some() && self.memory.table_state(host) & 1 == 1
    }

    /// A store of so many bytes was made by the slow way.
    #[inline]
    pub(super) fn follow_store(&mut self, host: u64, len: usize) {
        if let Some(shadows) = &mut self.shadow_pages
            && self.memory.table_state(host) & 1 == 1
        {
            self.departures.table_stores += 1;
            shadows.written(&self.memory, host, len as u64);
        }
    }
}
