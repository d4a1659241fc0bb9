//! The binary translator: guest code is copied into host code with its registers renamed, its memory operands checked and its
//! transfers of control linked, and runs there. What it has no form for the interpreter runs, one instruction at a time.
//!
//! `path` finds the instructions of a unit, `unit` and `flow` make it, `access` and `loops` find out which checks it can do
//! without, `plan` says what becomes of each instruction; `emit`, `memory`, `stack`, `special`, `strings`, `modes`, `para` and `asm`
//! make the code; `vectors`, `vex` and `x87` list what is copied, `upper` and `fpu` see to what else of the host's registers is lent.
//! `context` is what that code works on, `exits` and `thunks` how it leaves; `passage` goes into it and sees to what it left
//! for. `pages` knows which code stands where and whether it is still good, `tlb` keeps the translations that code may use;
//! `cache` holds the code and enters it. `explain` makes units to be looked at.

mod access;
mod asm;
mod cache;
mod context;
mod emit;
mod exits;
pub mod explain;
mod flow;
mod fpu;
mod loops;
mod memory;
mod modes;
mod names;
mod pages;
mod para;
mod passage;
mod path;
mod plan;
mod special;
mod stack;
mod strings;
mod thunks;
mod tlb;
mod unit;
mod upper;
mod vectors;
mod vex;
mod x87;

use self::asm::Asm;
use self::cache::{CodeCache, ContextBox};
use self::context::BUDGET_BIAS;
use self::exits::{Exit, Exits};
use self::pages::Pages;
use self::thunks::Thunks;
use self::tlb::Filled;
pub use crate::options::{TranslateOptions, TranslatorStats};

use crate::state::Vcpu;

/// Bytes of a code cache at least.
const LEAST_CACHE: usize = 64 << 10;

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
    /// Of a para-virtual guest: what its two modes are.
    modes: Option<para::Modes>,
    hooks: u32,
    /// A unit has needed upper halves of YMM registers.
    upper_wanted: bool,
    /// Steps since one completed an instruction.
    idle: u32,
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
    /// Let it run as far as it likes: the unit at RIP cannot, and neither could those that begin inside.
    Block,
    /// Return to the caller.
    Exit(crate::exit::Exit),
    /// The branch at RIP led to no canonical address: #GP(0).
    Fault,
}

impl Translator {
    /// A translator with an empty cache; an error where the host has no executable memory for it.
    pub fn new(options: TranslateOptions) -> std::io::Result<Translator> {
        let longest = options.longest.clamp(1, unit::LONGEST);
        let options = TranslateOptions { cache: options.cache.max(LEAST_CACHE), longest, ..options };
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
            modes: None,
            hooks: 0,
            upper_wanted: false,
            idle: 0,
            options,
            stats: TranslatorStats::default(),
        };
        translator.asm.start(translator.cache.next());
        translator.thunks = thunks::emit(&mut translator.asm, cache::helpers());
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

    /// Called by translated code for a page that it did not find; gives the cache address to go on at.
    fn refill(&mut self, cpu: &mut Vcpu, linear: u64) -> u64 {
        self.stats.misses += 1;
        self.take_mode(cpu);
        let exit = self.context.get().exit as u32;
        let Some(Exit::Miss { rip, done, retry, access, .. }) = self.exits.get(exit) else {
            return self.thunks.exit;
        };
        let on = match self.fill(cpu, linear, access) {
            true => Some(retry),
            // A group may miss what its first access alone finds.
            false if access.group => self.go_on_alone(cpu, exit, rip, done),
            false => None,
        };
        // A walk that has set a flag in a page of code: no unit may run before it was looked at.
        on.filter(|_| self.is_current(cpu)).unwrap_or(self.thunks.exit)
    }

    /// The unit that checks each access alone, for where a unit has missed with `done` instructions complete, which are
    /// charged. `None` if the budget is used up, or there is none.
    fn go_on_alone(&mut self, cpu: &mut Vcpu, exit: u32, rip: u64, done: u32) -> Option<u64> {
        let left = self.context.get().budget.checked_sub(u64::from(done))?;
        if left < BUDGET_BIAS {
            return None;
        }
        let (missed, pointer) = (self.exits.get(exit)?, self.exits.pointer_at(exit));
        let flushes = self.stats.flushes;
        cpu.rip = rip;
        let entry = self.find_alone(cpu).filter(|_| self.is_current(cpu));
        if entry.is_some() {
            self.context.get_mut().budget = left;
            self.note_pointer(pointer);
        } else if flushes != self.stats.flushes {
            // The exit went with everything else.
            self.note_pointer(pointer);
            self.context.get_mut().exit = self.exits.add(missed).into();
        }
        entry
    }

    /// The time-stamp counter behind `done` instructions of the unit that runs.
    fn clock(&mut self, cpu: &mut Vcpu, done: u64) -> u64 {
        let context = self.context.get();
        let left = context.budget.saturating_sub(BUDGET_BIAS);
        let before = cpu.count;
        cpu.count = before.wrapping_add(context.granted - left).wrapping_add(done);
        let now = cpu.tsc_now();
        cpu.count = before;
        now
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
