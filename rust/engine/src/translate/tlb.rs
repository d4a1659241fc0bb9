//! The translator's inline TLB and what else depends on translations of the guest's: filled when code misses, emptied by the
//! changes that the vCPU's own TLB has noted.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;

use trapgate_x86::insn::Seg;
use trapgate_x86::regs::rflags;

use super::Translator;
use super::context::{Context, PAIRS, TLB_SIZE, View, empty};
use super::exits::Access;
use crate::memory::PAGE;
use crate::mix::Mix;
use crate::mmu::access::Intent;
use crate::mmu::kept::SPACES;
use crate::mmu::tlb::{Change, Entry};
use crate::mmu::walk;
use crate::state::Vcpu;

/// What was filled since the last flush, so that a flush costs what was filled.
#[derive(Debug, Default)]
pub struct Filled {
    /// TLB entries of this address space by view, and global ones. Some may hold another page by now.
    local: [Vec<FilledEntry>; 2],
    global: Vec<FilledEntry>,
    /// What leads to code, by linear page: of this address space by view, and of global pages.
    code: [HashMap<u64, Leads, BuildHasherDefault<Mix>>; 2],
    global_code: HashMap<u64, Leads, BuildHasherDefault<Mix>>,
    /// What led to code of address spaces that may come back.
    spaces: [Vec<KeptLeads>; SPACES],
}

/// What led to code of one page of an address space that is not the present one.
#[derive(Debug)]
struct KeptLeads {
    /// Page number.
    page: u64,
    /// Jumps with the code that they led to.
    jumps: Vec<(Jump, u64)>,
    pairs: Vec<u16>,
}

/// What leads to code of one page. Some of it may lead to another page's code by now.
#[derive(Debug, Default)]
struct Leads {
    jumps: Vec<Jump>,
    pairs: Vec<u16>,
}

/// Jumps of a page that are noted before those that are noted twice are taken out: as many as a page can have.
const MOST_JUMPS: usize = 2 * PAGE as usize;

/// A TLB entry in use.
#[derive(Clone, Copy, Debug)]
struct FilledEntry {
    /// Page number.
    page: u64,
    user: bool,
}

impl FilledEntry {
    fn index(self) -> usize {
        Context::index(self.page << 12)
    }
}

/// Which of the pages that are at hand for stacks: that of the view in use, that of the other, the supervisor's one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stack {
    Now,
    Other,
    Former,
}

impl Stack {
    /// Whether it is one of a view, where the view in use is `now`.
    fn is_of(self, user: bool, now: bool) -> bool {
        match self {
            Stack::Now => user == now,
            Stack::Other => user != now,
            Stack::Former => !user,
        }
    }
}

impl View {
    fn clear(&mut self, index: usize) {
        (self.minus_read[index], self.minus_write[index], self.delta[index]) =
            (empty(index), empty(index), 0);
    }
}

/// A slot of the table of indirect targets in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Jump {
    index: u16,
    user: bool,
}

impl Leads {
    fn add(&mut self, jump: Jump) {
        if self.jumps.len() >= MOST_JUMPS {
            self.jumps.sort_unstable();
            self.jumps.dedup();
        }
        self.jumps.push(jump);
    }

    /// What there is of it, to be led there again.
    fn keep(&self, page: u64, context: &Context, nowhere: u64) -> KeptLeads {
        let code = |jump: &Jump| context.jumps[usize::from(jump.user)][usize::from(jump.index)];
        let jumps = self.jumps.iter().map(|jump| (*jump, code(jump)));
        let jumps = jumps.filter(|(_, code)| *code != nowhere).collect();
        KeptLeads { page, jumps, pairs: self.pairs.clone() }
    }

    /// Nothing leads to the page any more.
    fn end(&mut self, context: &mut Context, nowhere: u64) {
        for jump in self.jumps.drain(..) {
            context.jumps[usize::from(jump.user)][usize::from(jump.index)] = nowhere;
        }
        for pair in self.pairs.drain(..) {
            context.pairs[usize::from(pair)] = 0;
        }
    }
}

impl Translator {
    /// Takes over what the vCPU's TLB has dropped since the last time.
    pub(super) fn follow_changes(&mut self, cpu: &mut Vcpu) {
        if cpu.tlb.changes.is_empty() {
            return;
        }
        let mut changes = std::mem::take(&mut cpu.tlb.changes);
        for change in changes.drain(..) {
            match change {
                Change::All => self.flush_all(),
                Change::Local => self.flush_local(),
                Change::Page(page) => self.flush_page(page),
                Change::Protect(host) => self.protect(cpu.memory.host_base() as u64 + host),
                Change::ProtectPage { host, page } => {
                    self.protect_page(cpu.memory.host_base() as u64 + host, page);
                }
                Change::View { user } => self.drop_view(cpu, user),
                Change::Leave { user, space } => self.leave_space(cpu, user, space),
                Change::Enter { user, space, right } => self.enter_space(cpu, user, space, right),
            }
        }
        // The list keeps its memory.
        cpu.tlb.changes = changes;
    }

    /// Drops everything.
    pub(super) fn flush_all(&mut self) {
        self.flush_local();
        self.flush_entries();
        self.reset_targets();
    }

    /// Drops all entries of the TLB.
    fn flush_entries(&mut self) {
        let context = self.context.get_mut();
        let local = self.filled.local.iter_mut().flat_map(|list| list.drain(..));
        for filled in local.chain(self.filled.global.drain(..)) {
            context.tlb[usize::from(filled.user)].clear(filled.index());
        }
    }

    /// Drops what is not global, of all address spaces.
    fn flush_local(&mut self) {
        self.filled.spaces.iter_mut().for_each(Vec::clear);
        self.empty_view(false);
        self.empty_view(true);
        self.forget_stack();
    }

    /// Drops what is not global of a view.
    fn drop_view(&mut self, cpu: &Vcpu, user: bool) {
        self.empty_view(user);
        // A stack on a global page stays at hand, as those of kernels are.
        let global = |minus: u64| {
            let page = minus.wrapping_neg();
            let entry = cpu.tlb.entry(page, user);
            entry.write == page && entry.global
        };
        let now = self.user;
        self.forget_stacks_where(|stack, minus, _| stack.is_of(user, now) && !global(minus));
    }

    fn empty_view(&mut self, user: bool) {
        let context = self.context.get_mut();
        for filled in self.filled.local[usize::from(user)].drain(..) {
            // A global page may stand there by now: losing it costs a miss.
            context.tlb[usize::from(filled.user)].clear(filled.index());
        }
        for (_, mut leads) in self.filled.code[usize::from(user)].drain() {
            leads.end(context, self.thunks.exit);
        }
    }

    /// Drops what is not global of a view, and keeps what led to code for when the space comes back.
    fn leave_space(&mut self, cpu: &Vcpu, user: bool, space: usize) {
        let (context, nowhere) = (self.context.get(), self.thunks.exit);
        let code = self.filled.code[usize::from(user)].iter();
        self.filled.spaces[space] = code.map(|(page, leads)| leads.keep(*page, context, nowhere)).collect();
        self.drop_view(cpu, user);
    }

    /// An address space has come to a view: if it is right, what the vCPU knows of it is filled in, and what led to its code
    /// does so again.
    fn enter_space(&mut self, cpu: &Vcpu, user: bool, space: usize, right: bool) {
        let kept = std::mem::take(&mut self.filled.spaces[space]);
        if !right {
            return;
        }
        for entry in cpu.tlb.of_view(user) {
            self.install(cpu, entry, user);
        }
        for KeptLeads { page, jumps, pairs } in kept {
            jumps.into_iter().for_each(|(jump, code)| self.set_slot(jump, page << 12, false, code));
            pairs.into_iter().for_each(|pair| self.set_pair(pair, page << 12, false, user));
        }
    }

    /// Drops one linear page.
    fn flush_page(&mut self, page: u64) {
        self.forget_stacks_on(|minus, _| minus == page.wrapping_neg());
        let context = self.context.get_mut();
        let index = Context::index(page);
        for view in &mut context.tlb {
            view.clear(index);
        }
        for code in self.filled.code.iter_mut().chain([&mut self.filled.global_code]) {
            if let Some(leads) = code.get_mut(&(page >> 12)) {
                leads.end(context, self.thunks.exit);
            }
        }
    }

    /// Takes the right to write from the entries of a host page, which now holds translated code.
    fn protect(&mut self, host: u64) {
        self.close_gates_on(host);
        let context = self.context.get_mut();
        for filled in self.filled.local.iter().flatten().chain(&self.filled.global) {
            let (view, index) = (&mut context.tlb[usize::from(filled.user)], filled.index());
            if view.delta[index].wrapping_sub(view.minus_write[index]) == host {
                view.minus_write[index] = empty(index);
            }
        }
        self.forget_stacks_on(|minus, delta| delta.wrapping_sub(minus) == host);
    }

    /// The same where only one linear page may have it.
    fn protect_page(&mut self, host: u64, page: u64) {
        self.close_gates_on(host);
        let (context, index, tag) = (self.context.get_mut(), Context::index(page), page.wrapping_neg());
        for view in context.tlb.iter_mut().filter(|view| view.minus_read[index] == tag) {
            view.minus_write[index] = empty(index);
        }
        self.forget_stacks_on(|minus, _| minus == tag);
    }

    /// No page is the stack's any more.
    pub(super) fn forget_stack(&mut self) {
        self.forget_stacks_on(|_, _| true);
    }

    /// Pages with the given tags and deltas are the stack's no more. A tag always fits some page: it is one that is not
    /// canonical and that no guest knows, and leads into the pit. The page before has one of its own, so that changing
    /// places with it ends.
    fn forget_stacks_on(&mut self, forgotten: impl Fn(u64, u64) -> bool) {
        self.forget_stacks_where(|_, minus, delta| forgotten(minus, delta));
    }

    fn forget_stacks_where(&mut self, forgotten: impl Fn(Stack, u64, u64) -> bool) {
        let page = self.nowhere;
        let context = self.context.get_mut();
        let pit = &raw const context.pit as u64;
        let stacks = [
            (Stack::Now, &mut context.minus_stack, &mut context.stack_delta, page),
            (Stack::Other, &mut context.other_minus, &mut context.other_delta, page),
            (Stack::Former, &mut context.former_minus, &mut context.former_delta, page.wrapping_add(PAGE)),
        ];
        for (stack, minus, delta, page) in stacks {
            if forgotten(stack, *minus, *delta) {
                *minus = page.wrapping_neg();
                *delta = pit.wrapping_sub(page);
            }
        }
    }

    /// Finds the page of an access for translated code; whether the access can be made now.
    pub(super) fn fill(&mut self, cpu: &mut Vcpu, linear: u64, access: Access) -> bool {
        let Access { size, write, aligned, stack, group } = access;
        let crosses = (linear & 0xfff) + u64::from(size) > PAGE;
        if crosses || aligned && linear & (u64::from(size) - 1) != 0 || stack && size == 8 && linear & 7 != 0
        {
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
        if write && found.is_none() {
            let entry = cpu.tlb.entry(linear, cpu.user_view);
            if entry.read == linear & !0xfff && cpu.is_traced(entry.host) {
                return false;
            }
        }
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
        if !self.options.keep
            || self.filled.local.iter().map(Vec::len).sum::<usize>() + self.filled.global.len() > 4 * TLB_SIZE
        {
            // Entries that took each other's place again and again: start over. The stack's page stays: the unit that runs
            // may have checked it.
            self.flush_entries();
        }
        let delta = self.install(cpu, &entry, cpu.user_view);
        let context = self.context.get_mut();
        if stack {
            if entry.write != page {
                return false;
            }
            let minus = page.wrapping_neg();
            if !cpu.user_view && context.minus_stack != minus {
                (context.former_minus, context.former_delta) = (context.minus_stack, context.stack_delta);
            }
            (context.minus_stack, context.stack_delta) = (minus, delta);
        }
        true
    }

    /// Fills in an entry of the vCPU's that allows reading, and gives its delta.
    fn install(&mut self, cpu: &Vcpu, entry: &Entry, user: bool) -> u64 {
        let page = entry.read;
        let delta = (cpu.memory.host_base() as u64 + entry.host).wrapping_sub(page);
        if page % PAGE != 0 {
            return delta;
        }
        let index = Context::index(page);
        let view = &mut self.context.get_mut().tlb[usize::from(user)];
        let read = page.wrapping_neg();
        let write = if entry.write == page { read } else { empty(index) };
        if view.minus_read[index] != read {
            let filled = &mut self.filled;
            let list = if entry.global { &mut filled.global } else { &mut filled.local[usize::from(user)] };
            list.push(FilledEntry { page: page >> 12, user });
        }
        (view.minus_read[index], view.minus_write[index], view.delta[index]) = (read, write, delta);
        delta
    }

    /// Whether a page is known to be writable and dirty: looking further would mark it so.
    fn may_write(&self, cpu: &mut Vcpu, linear: u64) -> bool {
        let access = walk::Access {
            write: true,
            fetch: false,
            user: cpu.user_view,
            smap_off: cpu.flags.is_set(rflags::AC),
        };
        if cpu.is_para() {
            let paging = cpu.paging();
            let found = walk::walk(&cpu.memory, &paging, linear, |_| {});
            return found.is_ok_and(|known| known.dirty && paging.allows(&known, access));
        }
        let paging = cpu.paging();
        let known = cpu.found_before(&paging, linear);
        known.is_some_and(|known| known.dirty && paging.allows(&known, access))
    }

    /// Lets indirect branches find a unit.
    pub(super) fn set_jump(&mut self, rip: u64, user: bool, global: bool, code: u64) {
        self.set_slot(Jump { index: Context::jump(rip) as u16, user }, rip, global, code);
    }

    fn set_slot(&mut self, jump: Jump, rip: u64, global: bool, code: u64) {
        let slot = &mut self.context.get_mut().jumps[usize::from(jump.user)][usize::from(jump.index)];
        if *slot != code {
            *slot = code;
            self.leads(rip, global, jump.user).add(jump);
        }
    }

    /// Says that a page of code is where the links of a pair expect it.
    pub(super) fn set_pair(&mut self, number: u16, page: u64, global: bool, user: bool) {
        if usize::from(number) >= PAIRS || number == 0 {
            return;
        }
        let slot = &mut self.context.get_mut().pairs[usize::from(number)];
        if *slot == 0 {
            *slot = 1;
            self.leads(page, global, user).pairs.push(number);
        }
    }

    fn leads(&mut self, linear: u64, global: bool, user: bool) -> &mut Leads {
        let filled = &mut self.filled;
        let code = if global { &mut filled.global_code } else { &mut filled.code[usize::from(user)] };
        code.entry(linear >> 12).or_default()
    }

    /// Forgets all that leads to code, when the cache is emptied.
    pub(super) fn reset_targets(&mut self) {
        let (context, filled) = (self.context.get_mut(), &mut self.filled);
        filled.spaces.iter_mut().for_each(Vec::clear);
        for code in filled.code.iter_mut().chain([&mut filled.global_code]) {
            code.drain().for_each(|(_, mut leads)| leads.end(context, self.thunks.exit));
        }
    }
}
