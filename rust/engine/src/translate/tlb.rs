//! The translator's inline TLB and what else depends on translations of the guest's: filled when code misses, emptied by the
//! changes that the vCPU's own TLB has noted.

use trapgate_x86::insn::Seg;
use trapgate_x86::regs::rflags;

use super::Translator;
use super::context::{Context, Entry, JUMPS, PAIRS, empty};
use super::exits::Access;
use crate::memory::PAGE;
use crate::mmu::access::Intent;
use crate::mmu::tlb::{Change, Marks};
use crate::mmu::walk;
use crate::state::Vcpu;

/// What was filled since the last flush, so that a flush costs what was filled.
#[derive(Debug, Default)]
pub struct Filled {
    /// Index and view of TLB entries: those of this address space, and global ones. Some may hold another page by now.
    local: Vec<(u32, bool)>,
    global: Vec<(u32, bool)>,
    jumps: Vec<Jump>,
    pairs: Vec<Pair>,
    /// Pages of the jumps and pairs, by a hash: few pages that are flushed have any.
    code: Marks,
}

/// A slot of the table of indirect targets in use.
#[derive(Clone, Copy, Debug)]
struct Jump {
    index: u32,
    user: bool,
    page: u64,
    global: bool,
}

/// A pair that is set.
#[derive(Clone, Copy, Debug)]
struct Pair {
    number: u16,
    page: u64,
    global: bool,
}

impl Translator {
    /// Takes over what the vCPU's TLB has dropped since the last time.
    pub(super) fn follow_changes(&mut self, cpu: &mut Vcpu) {
        if cpu.tlb.changes.is_empty() {
            return;
        }
        for change in std::mem::take(&mut cpu.tlb.changes) {
            match change {
                Change::All => self.flush_all(),
                Change::Local => self.flush_local(),
                Change::Page(page) => self.flush_page(page),
                Change::Protect(host) => self.protect(cpu.memory.host_base() as u64 + host),
            }
        }
        self.forget_stack();
    }

    /// Drops everything.
    fn flush_all(&mut self) {
        self.flush_local();
        let context = self.context.get_mut();
        for (index, user) in self.filled.global.drain(..) {
            context.tlb[usize::from(user)][index as usize] = empty(index as usize);
        }
        self.reset_targets();
    }

    /// Drops what is not global.
    fn flush_local(&mut self) {
        let context = self.context.get_mut();
        for (index, user) in self.filled.local.drain(..) {
            let entry = &mut context.tlb[usize::from(user)][index as usize];
            if entry.page & 1 == 0 {
                *entry = empty(index as usize);
            }
        }
        self.flush_code(|_, global| !global);
    }

    /// Drops one linear page.
    fn flush_page(&mut self, page: u64) {
        let context = self.context.get_mut();
        let index = Context::index(page);
        for view in &mut context.tlb {
            if view[index].page & !1 == page {
                view[index] = empty(index);
            }
        }
        if self.filled.code.marked(page >> 12) {
            self.flush_code(|at, _| at == page);
        }
    }

    /// Drops what leads to code that `dropped` names by its linear page and whether that is global.
    fn flush_code(&mut self, dropped: impl Fn(u64, bool) -> bool) {
        let context = self.context.get_mut();
        let nowhere = self.thunks.exit;
        self.filled.jumps.retain(|jump| {
            let keep = !dropped(jump.page, jump.global);
            if !keep {
                context.jumps[usize::from(jump.user)][jump.index as usize] = nowhere;
            }
            keep
        });
        self.filled.pairs.retain(|pair| {
            let keep = !dropped(pair.page, pair.global);
            if !keep {
                context.pairs[usize::from(pair.number)] = 0;
            }
            keep
        });
    }

    /// Takes the right to write from the entries of a host page, which now holds translated code.
    fn protect(&mut self, host: u64) {
        let context = self.context.get_mut();
        for &(index, user) in self.filled.local.iter().chain(&self.filled.global) {
            let entry = &mut context.tlb[usize::from(user)][index as usize];
            if (entry.page & !1).wrapping_add(entry.delta) == host {
                entry.minus_write = empty(index as usize).minus_write;
            }
        }
    }

    /// No page is the stack's any more. A tag always fits some page: it is one that is not canonical and that no guest
    /// knows, and leads into the pit.
    pub(super) fn forget_stack(&mut self) {
        let page = self.nowhere;
        let context = self.context.get_mut();
        context.minus_stack = page.wrapping_neg();
        let pit = &raw const context.pit as u64;
        context.stack_delta = pit.wrapping_sub(page);
    }

    /// Finds the page of an access for translated code; whether the access can be made now.
    pub(super) fn fill(&mut self, cpu: &mut Vcpu, linear: u64, access: Access) -> bool {
        let Access { size, write, aligned, stack, group } = access;
        let crosses = (linear & 0xfff) + u64::from(size) > PAGE;
        if crosses || aligned && linear & 15 != 0 || stack && size == 8 && linear & 7 != 0 {
            return false;
        }
        let seg = if stack { Seg::Ss } else { Seg::Ds };
        let intent = if write { Intent::Write } else { Intent::Read };
        let known = |cpu: &Vcpu| {
            let entry = *cpu.tlb.entry(linear, cpu.user_view);
            let tag = if write { entry.write } else { entry.read };
            (tag == linear & !0xfff).then_some(entry)
        };
        let mut found = known(cpu);
        if found.is_none() && group && write && !self.may_write(cpu, linear) {
            // To make the page writable is up to the member that writes.
            return false;
        }
        if found.is_none() {
            // Whatever it would raise the interpreter raises when it runs the instruction.
            let outcome = cpu.place(seg, linear, intent, 1);
            cpu.fault = None;
            if outcome.is_err() {
                return false;
            }
            found = known(cpu);
        }
        let Some(entry) = found else { return false };
        let page = linear & !0xfff;
        let delta = (cpu.memory.host_base() as u64 + entry.host).wrapping_sub(page);
        let index = Context::index(linear);
        let none = empty(index);
        let tag = |tag: u64, none: u64| if tag == page { page.wrapping_neg() } else { none };
        let context = self.context.get_mut();
        let slot = &mut context.tlb[usize::from(cpu.user_view)][index];
        // Those that were filled before are in a list already, but perhaps not in the right one.
        let list = if entry.global { &mut self.filled.global } else { &mut self.filled.local };
        if slot.delta == 0 || slot.page & 1 != u64::from(entry.global) {
            list.push((index as u32, cpu.user_view));
        }
        *slot = Entry {
            minus_read: tag(entry.read, none.minus_read),
            minus_write: tag(entry.write, none.minus_write),
            delta,
            page: page | u64::from(entry.global),
        };
        if stack {
            if entry.write != page {
                return false;
            }
            context.minus_stack = page.wrapping_neg();
            context.stack_delta = delta;
        }
        true
    }

    /// Whether a page is known to be writable and dirty: looking further would mark it so.
    fn may_write(&self, cpu: &Vcpu, linear: u64) -> bool {
        let access = walk::Access {
            write: true,
            fetch: false,
            user: cpu.user_view,
            smap_off: cpu.flags.is_set(rflags::AC),
        };
        cpu.shadow_tables.get(linear).is_some_and(|known| known.dirty && cpu.paging().allows(&known, access))
    }

    /// Lets indirect branches find a unit.
    pub(super) fn set_jump(&mut self, rip: u64, user: bool, global: bool, code: u64) {
        let index = Context::jump(rip);
        let slot = &mut self.context.get_mut().jumps[usize::from(user)][index];
        *slot = code;
        if self.filled.jumps.len() >= 4 * JUMPS {
            // Slots that were set again and again: start over.
            self.reset_jumps();
            self.context.get_mut().jumps[usize::from(user)][index] = code;
        }
        self.filled.code.mark(rip >> 12);
        self.filled.jumps.push(Jump { index: index as u32, user, page: rip & !(PAGE - 1), global });
    }

    /// Says that a page of code is where the links of a pair expect it.
    pub(super) fn set_pair(&mut self, number: u16, page: u64, global: bool) {
        if usize::from(number) >= PAIRS || number == 0 {
            return;
        }
        let slot = &mut self.context.get_mut().pairs[usize::from(number)];
        if *slot == 0 {
            *slot = 1;
            self.filled.code.mark(page >> 12);
            self.filled.pairs.push(Pair { number, page, global });
        }
    }

    /// Forgets all of it, when the cache is emptied.
    pub(super) fn reset_targets(&mut self) {
        self.reset_jumps();
        let context = self.context.get_mut();
        for pair in self.filled.pairs.drain(..) {
            context.pairs[usize::from(pair.number)] = 0;
        }
        self.filled.code = Marks::default();
    }

    fn reset_jumps(&mut self) {
        let nowhere = self.thunks.exit;
        let context = self.context.get_mut();
        for jump in self.filled.jumps.drain(..) {
            context.jumps[usize::from(jump.user)][jump.index as usize] = nowhere;
        }
    }
}
