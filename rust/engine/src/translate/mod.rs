//! The binary translator: guest code is copied into host code with its registers renamed, its memory operands checked and its
//! transfers of control linked, and runs there. What it has no form for the interpreter runs, one instruction at a time.
//!
//! `unit` makes units, `access` and `loops` find out which checks they can do without, `plan` says what becomes of each
//! instruction; `emit`, `memory`, `special` and `asm` make the code. `context` is what that code works on, `exits` and
//! `thunks` how it leaves; `pages` knows which code stands where and whether it is still good, `tlb` keeps the translations
//! that code may use; `cache` holds the code and enters it. `explain` makes units to be looked at.

mod access;
mod asm;
mod cache;
mod context;
mod emit;
mod exits;
pub mod explain;
mod loops;
mod memory;
mod pages;
mod plan;
mod special;
mod thunks;
mod tlb;
mod unit;

use trapgate_x86::regs::{cr0, cr4, rflags};

use self::asm::Asm;
use self::cache::{CodeCache, ContextBox};
use self::context::BUDGET_BIAS;
use self::exits::{Exit, Exits};
use self::pages::Pages;
use self::thunks::Thunks;
use self::tlb::Filled;
pub use crate::options::{TranslateOptions, TranslatorStats};

use crate::interp::{Step, may_translate, run_one};
use crate::mmu::access::canonical;
use crate::state::{Vcpu, flags::ARITHMETIC};

/// More than this are not run at once: requests are looked at in between.
const MOST_ROOM: u64 = 1 << 20;

/// Number of the exit of a unit that was reached by mistake.
const ASTRAY: u32 = 0;

/// Translated code of one vCPU and what it takes to run it.
#[derive(Debug)]
pub struct Translator {
    cache: CodeCache,
    context: ContextBox,
    asm: Asm,
    exits: Exits,
    thunks: Thunks,
    /// Address behind the thunks, where units begin.
    start: u64,
    pages: Pages,
    filled: Filled,
    /// A page that no guest knows and that is not canonical.
    nowhere: u64,
    /// Privilege view and page tables' state that the context was last used with.
    user: bool,
    /// Tag and delta of the stack's page in the view that is not in use.
    other_stack: (u64, u64),
    hooks: u32,
    options: TranslateOptions,
    /// Counters for the statistics.
    pub stats: TranslatorStats,
}

/// What the caller is to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Look around: the budget is used up, or nothing is to be done.
    Look,
    /// Let the interpreter run one instruction.
    Interpret,
    /// Return to the caller.
    Exit(crate::exit::Exit),
    /// The branch at RIP led to no canonical address: #GP(0).
    Fault,
}

impl Translator {
    /// A translator with an empty cache; an error where the host has no executable memory for it.
    pub fn new(options: TranslateOptions) -> std::io::Result<Translator> {
        let longest = options.longest.clamp(1, unit::LONGEST);
        let options = TranslateOptions { cache: options.cache.max(4 * unit::MOST_BYTES), longest, ..options };
        let cache = CodeCache::new(options.cache)?;
        let context = ContextBox::new()?;
        // Any secret will do; where the host put the block is one.
        let secret = (context.get() as *const _ as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut translator = Translator {
            cache,
            context,
            asm: Asm::default(),
            exits: Exits::default(),
            thunks: Thunks::default(),
            start: 0,
            pages: Pages::default(),
            filled: Filled::default(),
            nowhere: 1 << 62 | secret & 0x0fff_ffff_ffff_f000,
            user: false,
            other_stack: (0, 0),
            hooks: 0,
            options,
            stats: TranslatorStats::default(),
        };
        translator.asm.start(translator.cache.next());
        translator.thunks = thunks::emit(&mut translator.asm, cache::refill_address());
        let code = std::mem::take(&mut translator.asm.code);
        translator.cache.append(&code);
        translator.start = translator.cache.next();
        translator.exits.add(Exit::Astray);
        let nowhere = translator.thunks.exit;
        translator.context.get_mut().jumps.iter_mut().for_each(|view| view.fill(nowhere));
        translator.forget_stack();
        Ok(translator)
    }

    /// Whether this host can run translated code for a model: it must have every instruction that the model offers, and the
    /// flag-neutral ones that the checks are made of.
    pub fn is_possible() -> bool {
        std::arch::is_x86_feature_detected!("bmi2")
            && std::arch::is_x86_feature_detected!("bmi1")
            && std::arch::is_x86_feature_detected!("lzcnt")
            && std::arch::is_x86_feature_detected!("sse4.2")
            && std::arch::is_x86_feature_detected!("popcnt")
            && std::arch::is_x86_feature_detected!("aes")
            && std::arch::is_x86_feature_detected!("pclmulqdq")
            && std::arch::is_x86_feature_detected!("movbe")
    }

    /// With no more room than this the interpreter runs: a unit must fit, and an instruction behind it, which an STI at the
    /// unit's end holds interrupts back from.
    pub fn least_room(&self) -> u64 {
        u64::from(self.options.longest) + 1
    }

    /// Runs translated code for at most `room` instructions.
    pub fn run(&mut self, cpu: &mut Vcpu, room: u64) -> Next {
        self.prepare(cpu);
        let mut left = room.saturating_sub(self.least_room()).clamp(1, MOST_ROOM);
        loop {
            let Some(target) = self.known(cpu).or_else(|| self.find(cpu)) else {
                self.stats.interpreted += 1;
                return Next::Interpret;
            };
            if !self.is_current(cpu) {
                // The walk for the unit's own page has set a flag in another page of code.
                self.follow_writes(cpu);
                continue;
            }
            match self.enter(cpu, target, &mut left) {
                Some(next) => return next,
                None if left == 0 => return Next::Look,
                None => {}
            }
        }
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
            let other = std::mem::replace(&mut self.other_stack, (context.minus_stack, context.stack_delta));
            (context.minus_stack, context.stack_delta) = other;
        }
        let context = self.context.get_mut();
        // Vector registers that were lent when the budget ran out were never used, and may have changed since.
        context.vector = 0;
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

    /// Runs from a cache address until the code leaves, and acts on how it left. `None`: go on.
    fn enter(&mut self, cpu: &mut Vcpu, target: u64, left: &mut u64) -> Option<Next> {
        let context = self.context.get_mut();
        context.gpr.copy_from_slice(&cpu.regs[..16]);
        context.resident.copy_from_slice(&cpu.regs[8..12]);
        context.flags = pack_flags(cpu.flags.bits());
        context.budget = BUDGET_BIAS + *left;
        (context.target, context.exit) = (cpu.rip, u64::from(ASTRAY));
        self.stats.entries += 1;
        let thunks = self.thunks;
        cache::enter(self, cpu, &thunks, target);
        let context = self.context.get_mut();
        cpu.regs[..16].copy_from_slice(&context.gpr);
        cpu.regs[8..12].copy_from_slice(&context.resident);
        cpu.flags.set_arithmetic(unpack_flags(context.flags));
        cpu.flags.remove(rflags::IF);
        cpu.flags.insert(if context.interrupts != 0 { rflags::IF } else { 0 });
        (cpu.seg[5].base, cpu.kernel_gs_base) = (context.gs_base, context.kernel_gs_base);
        // The last unit may have gone beyond zero, by less than a unit: that much room was kept.
        let over = BUDGET_BIAS.saturating_sub(context.budget);
        let now = context.budget.saturating_sub(BUDGET_BIAS);
        cpu.count = cpu.count.wrapping_add(*left - now).wrapping_add(over);
        *left = now;
        if over > 0 {
            *left = 0;
        }
        if context.vector != 0 {
            context.vector = 0;
            let (xmm, mxcsr) = (context.xmm, context.mxcsr);
            let state = cpu.vector();
            for (register, value) in state.xmm.iter_mut().zip(xmm) {
                *register = u128::from(value[1]) << 64 | u128::from(value[0]);
            }
            state.mxcsr = mxcsr;
        }
        let (exit, target) = (self.context.get().exit as u32, self.context.get().target);
        match self.exits.get(exit) {
            Some(Exit::Link { rip, field, guard }) => {
                cpu.rip = rip;
                if *left > 0 && self.options.link {
                    self.link(cpu, rip, field, guard);
                }
                None
            }
            Some(Exit::Indirect { rip, undo }) => self.arrive(cpu, rip, undo, target),
            Some(Exit::Interpret { rip, done, step }) => {
                cpu.rip = rip;
                cpu.count = cpu.count.wrapping_add(u64::from(done));
                *left = left.saturating_sub(u64::from(done));
                self.step(cpu, step, left)
            }
            Some(Exit::Miss { rip, done, access, .. }) => {
                cpu.rip = rip;
                cpu.count = cpu.count.wrapping_add(u64::from(done));
                *left = left.saturating_sub(u64::from(done));
                // A group may miss what its first access alone finds.
                let alone = if access.group && *left > 0 { self.find_alone(cpu) } else { None };
                if let Some(target) = alone {
                    return self.enter(cpu, target, left);
                }
                self.stats.interpreted += 1;
                Some(Next::Interpret)
            }
            Some(Exit::Vectors { rip, entry }) => {
                cpu.rip = rip;
                if !self.lend_vectors(cpu) {
                    self.stats.interpreted += 1;
                    return Some(Next::Interpret);
                }
                self.enter(cpu, entry, left)
            }
            Some(Exit::Astray) => self.enter_found(cpu, left),
            Some(Exit::Gone { rip }) => {
                cpu.rip = rip;
                self.enter_found(cpu, left)
            }
            None => {
                debug_assert!(false, "an exit that was never made");
                Some(Next::Interpret)
            }
        }
    }

    /// Lets the interpreter run an instruction that was decoded for it.
    fn step(&mut self, cpu: &mut Vcpu, step: u32, left: &mut u64) -> Option<Next> {
        self.stats.interpreted += 1;
        let Some((uop, page)) = self.exits.step(step) else { return Some(Next::Interpret) };
        let before = cpu.count;
        if let Step::Exit(exit) = run_one(cpu, uop, page) {
            return Some(Next::Exit(exit));
        }
        *left = left.saturating_sub(cpu.count.wrapping_sub(before));
        if *left == 0 || cpu.requests.any() || cpu.hooks.waiting() || !may_translate(cpu) {
            return Some(Next::Look);
        }
        self.prepare(cpu);
        None
    }

    /// What is known of the address leads nowhere: looks for its unit, or makes it, and enters that.
    fn enter_found(&mut self, cpu: &mut Vcpu, left: &mut u64) -> Option<Next> {
        let Some(target) = self.find(cpu) else {
            self.stats.interpreted += 1;
            return Some(Next::Interpret);
        };
        if *left == 0 { None } else { self.enter(cpu, target, left) }
    }

    /// An indirect branch has computed its target.
    fn arrive(&mut self, cpu: &mut Vcpu, rip: u64, undo: i32, target: u64) -> Option<Next> {
        if !canonical(target) {
            // The fault belongs to the branch. It is taken back but not run again: the return address that a call has
            // written may lie over its target.
            cpu.regs[4] = cpu.regs[4].wrapping_sub(i64::from(undo) as u64);
            cpu.count = cpu.count.wrapping_sub(1);
            cpu.rip = rip;
            return Some(Next::Fault);
        }
        cpu.rip = target;
        if self.options.link {
            self.remember_target(cpu, target);
        }
        None
    }

    /// A unit needs the vector registers: gives them to it, unless an instruction of its kind would fault or the interpreter
    /// must see to unmasked exceptions.
    fn lend_vectors(&mut self, cpu: &mut Vcpu) -> bool {
        const MASKS: u32 = 0x1f80;
        let usable = cpu.cr0 & (cr0::TS | cr0::EM) == 0 && cpu.cr4 & cr4::OSFXSR != 0;
        let state = cpu.vector();
        if !usable || state.mxcsr & MASKS != MASKS {
            return false;
        }
        let (xmm, mxcsr) = (state.xmm, state.mxcsr);
        let context = self.context.get_mut();
        for (place, value) in context.xmm.iter_mut().zip(xmm) {
            *place = [value as u64, (value >> 64) as u64];
        }
        context.mxcsr = mxcsr;
        context.vector = 1;
        true
    }

    /// Called by translated code for a page that it did not find; gives the cache address to go on at.
    fn refill(&mut self, cpu: &mut Vcpu, linear: u64) -> u64 {
        self.stats.misses += 1;
        let exit = self.context.get().exit as u32;
        match self.exits.get(exit) {
            // A walk that has set a flag in a page of code: no unit may run before it was looked at.
            Some(Exit::Miss { retry, access, .. })
                if self.fill(cpu, linear, access) && self.is_current(cpu) =>
            {
                retry
            }
            _ => self.thunks.exit,
        }
    }

    /// Forgets all code.
    fn empty(&mut self) {
        self.stats.flushes += 1;
        self.cache.truncate(self.start);
        self.exits.clear();
        self.exits.add(Exit::Astray);
        self.pages.clear(self.stats.units);
        self.reset_targets();
    }
}

/// Flags as the thunks load them: OF in bit 0, the others as SAHF takes them from AH.
fn pack_flags(flags: u64) -> u64 {
    let low = rflags::CF | rflags::PF | rflags::AF | rflags::ZF | rflags::SF;
    (flags & low) << 8 | u64::from(flags & rflags::OF != 0)
}

fn unpack_flags(packed: u64) -> u64 {
    (packed >> 8 & ARITHMETIC & 0xff) | if packed & 1 != 0 { rflags::OF } else { 0 }
}
