//! Into translated code and out of it again: what the code must know of the vCPU, and what is to be done where it left.
//!
//! Each way out and in costs as much as some ten instructions of the guest, and a kernel takes one for every instruction that
//! is the interpreter's. So what seldom changes is brought over only when something may have changed it: vector registers stay
//! lent until an instruction has to do with them, and behind an instruction that changed no translation the unit goes on
//! without a look at any table.

use trapgate_x86::op::Op;
use trapgate_x86::regs::{cr0, cr4, rflags};

use super::context::BUDGET_BIAS;
use super::exits::{Exit, Step};
use super::{ASTRAY, Next, Translator, cache};
use crate::interp::{Step as Ran, is_calm, may_translate, run_one};
use crate::mmu::access::canonical;
use crate::state::{Vcpu, flags::ARITHMETIC};

/// More than this are not run at once: requests are looked at in between.
const MOST_ROOM: u64 = 1 << 20;

/// Steps without a completed instruction until the caller gets to look around.
const MOST_IDLE: u32 = 8;

/// What follows an exit.
enum After {
    /// Goes on: at a place in the cache that is known, or with the unit at RIP.
    Go(Option<u64>),
    Stop(Next),
}

/// Whether an instruction has nothing to do with the vector registers, nor with whether they may be used: they stay lent
/// while the interpreter runs it.
pub(super) fn leaves_vectors(op: Op) -> bool {
    use Op::*;
    matches!(
        op,
        Rdtsc
            | Rdtscp
            | Rdpid
            | Syscall
            | Sysret
            | Iret
            | Swapgs
            | Movs
            | Stos
            | Lods
            | Cmps
            | Scas
            | In
            | Out
            | Invlpg
            | Rdmsr
            | Wrmsr
            | Rdfsbase
            | Rdgsbase
            | Wrfsbase
            | Wrgsbase
            | Cpuid
            | Mov
            | Movzx
            | Movsx
            | Pop
            | Popf
            | Sti
            | Stac
            | Clac
    )
}

impl Translator {
    /// Runs translated code for at most `room` instructions.
    pub fn run(&mut self, cpu: &mut Vcpu, room: u64) -> Next {
        self.prepare(cpu);
        let mut left = room.saturating_sub(self.least_room()).clamp(1, MOST_ROOM);
        let mut at = None;
        let next = loop {
            let Some(target) = at.take().or_else(|| self.known(cpu)).or_else(|| self.find(cpu)) else {
                self.stats.interpreted += 1;
                break Next::Interpret;
            };
            if !self.is_current(cpu) {
                // The walk for the unit's own page has set a flag in another page of code.
                self.follow_writes(cpu);
                continue;
            }
            match self.enter(cpu, target, &mut left) {
                After::Go(_) if left == 0 => break Next::Look,
                After::Go(known) => at = known,
                After::Stop(next) => break next,
            }
        };
        self.take_vectors(cpu);
        next
    }

    /// Brings the context up to date with the vCPU.
    fn prepare(&mut self, cpu: &mut Vcpu) {
        if cpu.hooks.generation != self.hooks {
            self.hooks = cpu.hooks.generation;
            self.empty();
        }
        self.follow_changes(cpu);
        self.follow_writes(cpu);
        if self.user != cpu.user_view {
            self.user = cpu.user_view;
            let context = self.context.get_mut();
            std::mem::swap(&mut context.minus_stack, &mut context.other_minus);
            std::mem::swap(&mut context.stack_delta, &mut context.other_delta);
        }
        self.prepare_calls(cpu);
        let context = self.context.get_mut();
        context.fs_base = cpu.seg[4].base;
        context.gs_base = cpu.seg[5].base;
        context.kernel_gs_base = cpu.kernel_gs_base;
        context.other_flags = cpu.flags.other() & !(rflags::IF | rflags::RF | rflags::VM) | 2;
        context.interrupts = u64::from(cpu.flags.is_set(rflags::IF));
        context.quiet = u64::from(!cpu.interrupt_waiting);
        context.direction = u64::from(cpu.flags.is_set(rflags::DF));
        context.control = [cpu.cr0, 0, cpu.cr2, cpu.cr3, cpu.cr4];
        for (place, segment) in context.selectors.iter_mut().zip(&cpu.seg) {
            *place = u64::from(segment.selector);
        }
    }

    /// Runs from a cache address until the code leaves, and acts on how it left.
    fn enter(&mut self, cpu: &mut Vcpu, target: u64, left: &mut u64) -> After {
        if !self.options.keep {
            self.flush_all();
        }
        let context = self.context.get_mut();
        context.flags = pack_flags(cpu.flags.bits());
        (context.budget, context.granted) = (BUDGET_BIAS + *left, *left);
        (context.target, context.exit) = (cpu.rip, u64::from(ASTRAY));
        self.stats.entries += 1;
        let thunks = self.thunks;
        cache::enter(self, cpu, &thunks, target);
        self.take_mode(cpu);
        let exit = self.context.get().exit as u32;
        self.leave_x87(exit);
        let context = self.context.get_mut();
        (context.vector, context.upper) = (0, 0);
        cpu.flags.set_arithmetic(unpack_flags(context.flags));
        cpu.flags.remove(rflags::IF);
        cpu.flags.insert(if context.interrupts != 0 { rflags::IF } else { 0 });
        (cpu.seg[4].base, cpu.seg[5].base) = (context.fs_base, context.gs_base);
        cpu.kernel_gs_base = context.kernel_gs_base;
        // The last unit may have gone beyond zero, by less than a unit: that much room was kept.
        let over = BUDGET_BIAS.saturating_sub(context.budget);
        let now = context.budget.saturating_sub(BUDGET_BIAS);
        cpu.count = cpu.count.wrapping_add(*left - now).wrapping_add(over);
        *left = if over > 0 { 0 } else { now };
        let target = context.target;
        match self.exits.get(exit) {
            Some(Exit::Link { rip, field, guard }) => {
                cpu.rip = rip;
                let linked = *left > 0 && self.options.link;
                After::Go(if linked { self.link(cpu, rip, field, guard) } else { None })
            }
            Some(Exit::Indirect { rip, undo }) => self.arrive(cpu, rip, undo, target),
            Some(Exit::Interpret { rip, done, step, resume }) => {
                complete(cpu, rip, done, left);
                self.step(cpu, step, resume, left)
            }
            Some(Exit::Miss { rip, done, .. }) => {
                complete(cpu, rip, done, left);
                self.step_of_miss(cpu, exit, left)
            }
            Some(Exit::Vectors { rip, entry, upper }) => {
                cpu.rip = rip;
                if self.lend_vectors(cpu) && (!upper || self.lend_upper(cpu)) {
                    After::Go(Some(entry))
                } else {
                    self.leave_to_interpreter()
                }
            }
            Some(Exit::X87 { rip, entry }) => {
                cpu.rip = rip;
                if self.lend_x87(cpu) {
                    return After::Go(Some(entry));
                }
                self.stats.interpreted += 1;
                After::Stop(Next::Block)
            }
            // What is known of the address leads nowhere: its unit is looked for, or made.
            Some(Exit::Astray) => self.found(cpu),
            Some(Exit::Gone { rip }) => {
                cpu.rip = rip;
                self.found(cpu)
            }
            None => {
                debug_assert!(false, "an exit that was never made");
                After::Stop(Next::Interpret)
            }
        }
    }

    fn leave_to_interpreter(&mut self) -> After {
        self.stats.interpreted += 1;
        After::Stop(Next::Interpret)
    }

    fn found(&mut self, cpu: &mut Vcpu) -> After {
        match self.find(cpu) {
            None => self.leave_to_interpreter(),
            entry => After::Go(entry),
        }
    }

    /// Lets the interpreter run an instruction that was decoded for it; `resume` is where the unit goes on behind it.
    fn step(&mut self, cpu: &mut Vcpu, step: u32, resume: u64, left: &mut u64) -> After {
        self.stats.interpreted += 1;
        let Some(&Step { vectors, second, .. }) = self.exits.step(step) else {
            return After::Stop(Next::Interpret);
        };
        if vectors {
            self.take_vectors(cpu);
        }
        // The look for its second page may have set a flag in a page of code.
        if second.is_some() && !(self.goes_on(cpu, step) && self.is_current(cpu)) {
            return After::Stop(Next::Interpret);
        }
        let Some(step) = self.exits.step(step) else { return After::Stop(Next::Interpret) };
        let (before, next) = (cpu.count, cpu.rip.wrapping_add(u64::from(step.uop.next)));
        let second = step.second.map(|second| second.host);
        if let Ran::Exit(exit) = run_one(cpu, &step.uop, step.page, second) {
            return After::Stop(Next::Exit(exit));
        }
        let done = cpu.count.wrapping_sub(before);
        *left = left.saturating_sub(done);
        // A handler that faults for ever completes nothing: the caller must get to look around.
        self.idle = if done == 0 { self.idle + 1 } else { 0 };
        if self.idle > MOST_IDLE || *left == 0 || !is_calm(cpu) || !may_translate(cpu) {
            self.idle = 0;
            return After::Stop(Next::Look);
        }
        // Links inside a page hold while nothing has changed that the page is found by.
        let same = resume != 0
            && cpu.rip == next
            && cpu.user_view == self.user
            && cpu.tlb.changes.is_empty()
            && self.is_current(cpu)
            && self.options.link;
        let flushes = self.stats.flushes;
        self.prepare(cpu);
        After::Go((same && flushes == self.stats.flushes).then_some(resume))
    }

    /// Lets the interpreter run an instruction whose access is not for translated code: it faults, or reaches a device, or
    /// two pages, or a page that somebody watches.
    fn step_of_miss(&mut self, cpu: &mut Vcpu, exit: u32, left: &mut u64) -> After {
        let Some(Exit::Miss { step, .. }) = self.exits.get(exit) else { return self.leave_to_interpreter() };
        // The first step is never that of a miss: it stands for none.
        let step = step.or_else(|| self.decode_miss(cpu, exit));
        match step {
            Some(step) => self.step(cpu, step.get(), 0, left),
            None => self.leave_to_interpreter(),
        }
    }

    /// An indirect branch has computed its target.
    fn arrive(&mut self, cpu: &mut Vcpu, rip: u64, undo: i32, target: u64) -> After {
        if !canonical(target) {
            // The fault belongs to the branch. It is taken back but not run again: the return address that a call has
            // written may lie over its target.
            cpu.regs[4] = cpu.regs[4].wrapping_sub(i64::from(undo) as u64);
            cpu.count = cpu.count.wrapping_sub(1);
            cpu.rip = rip;
            return After::Stop(Next::Fault);
        }
        cpu.rip = target;
        After::Go(if self.options.link { self.find(cpu) } else { None })
    }

    /// A unit needs the vector registers: gives them to it, unless an instruction of its kind would fault or the interpreter
    /// must see to unmasked exceptions.
    fn lend_vectors(&mut self, cpu: &mut Vcpu) -> bool {
        const MASKS: u32 = 0x1f80;
        let usable = cpu.cr0 & (cr0::TS | cr0::EM) == 0 && cpu.cr4 & cr4::OSFXSR != 0;
        if !usable {
            return false;
        }
        let context = self.context.get_mut();
        if context.lent != 0 {
            // It is their upper halves that are missing.
            context.vector = 1;
            return true;
        }
        let state = cpu.vector();
        if state.mxcsr & MASKS != MASKS {
            return false;
        }
        let (xmm, mxcsr) = (state.xmm, state.mxcsr);
        let context = self.context.get_mut();
        for (place, value) in context.xmm.iter_mut().zip(xmm) {
            *place = [value as u64, (value >> 64) as u64];
        }
        context.mxcsr = mxcsr;
        (context.lent, context.vector) = (1, 1);
        self.offer_upper(cpu);
        true
    }

    /// Takes lent vector registers back, and the x87 state.
    fn take_vectors(&mut self, cpu: &mut Vcpu) {
        self.take_upper(cpu);
        self.take_x87(cpu);
        let context = self.context.get_mut();
        context.vector = 0;
        if std::mem::take(&mut context.lent) == 0 {
            return;
        }
        let (xmm, mxcsr) = (context.xmm, context.mxcsr);
        let state = cpu.vector();
        for (register, value) in state.xmm.iter_mut().zip(xmm) {
            *register = u128::from(value[1]) << 64 | u128::from(value[0]);
        }
        state.mxcsr = mxcsr;
    }
}

/// Counts `done` instructions of a unit that left at `rip` and has not charged them.
fn complete(cpu: &mut Vcpu, rip: u64, done: u32, left: &mut u64) {
    cpu.rip = rip;
    cpu.count = cpu.count.wrapping_add(u64::from(done));
    *left = left.saturating_sub(u64::from(done));
}

/// Flags as the thunks load them: OF in bit 0, the others as SAHF takes them from AH.
fn pack_flags(flags: u64) -> u64 {
    let low = rflags::CF | rflags::PF | rflags::AF | rflags::ZF | rflags::SF;
    (flags & low) << 8 | u64::from(flags & rflags::OF != 0)
}

fn unpack_flags(packed: u64) -> u64 {
    (packed >> 8 & ARITHMETIC & 0xff) | if packed & 1 != 0 { rflags::OF } else { 0 }
}
