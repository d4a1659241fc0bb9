//! Where translated code leaves: what each exit means, and the stubs that say which one was taken.

use std::num::NonZeroU32;

use trapgate_x86::insn::{Bits, Insn};
use trapgate_x86::layout::MAX_LENGTH;

use super::asm::Fixup;
use super::loops::Iteration;
use super::passage::leaves_vectors;
use crate::interp::{Uop, handler};

/// What an exit says about the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Goes on at a known address. The jump's field can be made to lead straight there.
    Link {
        rip: u64,
        /// Address in the cache of the relative field of the jump.
        field: u64,
        /// Of the displacement of the test whether the other page is where the link expects it.
        guard: Option<u64>,
    },
    /// Goes on at the address in R10, which the branch at `rip` computed. `undo` is what it added to RSP.
    Indirect { rip: u64, undo: i32 },
    /// The instruction at `rip` is the interpreter's, as one of [`Exits::step`]; `done` ones of the unit are complete and not
    /// yet charged. Behind it the unit goes on at the host address `resume`, if there is one.
    Interpret { rip: u64, done: u32, step: u32, resume: u64 },
    /// A memory access at `rip` did not find its page; the instruction starts again at the host address `retry`. Where that
    /// is of no use it is the interpreter's, as a step that is decoded when it is first needed.
    Miss { rip: u64, done: u32, retry: u64, access: Access, step: Option<NonZeroU32> },
    /// The unit at `rip` needs the vector registers, with their upper halves or without; nothing of it has run. It is entered
    /// again at `entry`.
    Vectors { rip: u64, entry: u64, upper: bool },
    /// The same of the x87 state.
    X87 { rip: u64, entry: u64 },
    /// The slot of an address led to another address's unit: nothing has run.
    Astray,
    /// The unit that was translated from `rip` is no more.
    Gone { rip: u64 },
}

impl Exit {
    /// The exit of a unit that lacks registers, with the place where it is entered again.
    pub fn with_entry(self, entry: u64) -> Exit {
        match self {
            Exit::Vectors { rip, upper, .. } => Exit::Vectors { rip, entry, upper },
            Exit::X87 { rip, .. } => Exit::X87 { rip, entry },
            other => other,
        }
    }
}

/// An access that translated code checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Bytes, from the address in R10 on.
    pub size: u16,
    pub write: bool,
    /// The operand must be aligned to its size, 16 or 32 bytes.
    pub aligned: bool,
    /// By the page that is kept for the stack.
    pub stack: bool,
    /// The check is for more than the instruction's own access.
    pub group: bool,
}

/// An instruction that the interpreter runs for a unit.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    pub uop: Uop,
    /// The host page that it lies on.
    pub page: u64,
    /// Where the rest of it lies, if it goes on in the next page.
    pub second: Option<Second>,
    /// It has to do with the vector registers, or with whether they may be used.
    pub vectors: bool,
}

impl Step {
    pub fn new(insn: Insn, page: u64, second: Option<Second>) -> Step {
        let uop = Uop::new(insn, handler(&insn), 0, Bits::B64, true);
        Step { uop, page, second, vectors: !leaves_vectors(insn.op) }
    }
}

/// The second page of an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Second {
    /// Offset in the host mapping.
    pub host: u64,
    /// Code counter of the page when the instruction was last known good.
    pub state: u32,
    /// Number of the pair (next linear page, this host page): while its byte is set the instruction goes on here.
    pub pair: u16,
    /// The page's first bytes, of which some are the instruction's.
    pub bytes: [u8; MAX_LENGTH],
}

/// All exits of the cache, by number.
#[derive(Debug, Default)]
pub struct Exits {
    all: Vec<Exit>,
    steps: Vec<Step>,
    /// The last x87 instruction of the unit that is made, while its address is not yet where the state is looked for.
    pub pointer: Option<u64>,
    /// What that was when an exit was added, by its number.
    pointers: Vec<(u32, u64)>,
}

impl Exits {
    pub fn add(&mut self, exit: Exit) -> u32 {
        self.all.push(exit);
        let n = (self.all.len() - 1) as u32;
        self.pointers.extend(self.pointer.map(|pointer| (n, pointer)));
        n
    }

    /// The x87 instruction pointer that an exit leaves with, if it is not the one that was stored.
    pub fn pointer_at(&self, n: u32) -> Option<u64> {
        let at = self.pointers.binary_search_by_key(&n, |(exit, _)| *exit).ok()?;
        Some(self.pointers[at].1)
    }

    pub fn set(&mut self, n: u32, exit: Exit) {
        if let Some(slot) = self.all.get_mut(n as usize) {
            *slot = exit;
        }
    }

    pub fn get(&self, n: u32) -> Option<Exit> {
        self.all.get(n as usize).copied()
    }

    /// Keeps an instruction that the interpreter is to run.
    pub fn add_step(&mut self, step: Step) -> u32 {
        self.steps.push(step);
        (self.steps.len() - 1) as u32
    }

    pub fn step(&self, n: u32) -> Option<&Step> {
        self.steps.get(n as usize)
    }

    /// The second page of a step was looked at again, and holds what it did.
    pub fn renew_second(&mut self, n: u32, state: u32) {
        if let Some(Step { second: Some(second), .. }) = self.steps.get_mut(n as usize) {
            second.state = state;
        }
    }

    /// Bytes that all of it takes.
    pub fn bytes(&self) -> usize {
        self.all.capacity() * size_of::<Exit>()
            + self.steps.capacity() * size_of::<Step>()
            + self.pointers.capacity() * size_of::<(u32, u64)>()
    }

    pub fn clear(&mut self) {
        *self = Exits::default();
    }
}

/// Code that is not run in a row with its unit's: branches are put behind it, stubs where they are out of the way.
#[derive(Clone, Copy, Debug)]
pub enum Cold {
    /// `jump` leads to a stub that asks for a page, perhaps the stack's. The address is in R10, or `base + low`; the access
    /// starts again at `retry`.
    Miss { jump: Fixup, exit: u32, address: Option<(u8, i32)>, stack: bool, retry: u64 },
    /// `jump` leads out.
    Leave { jump: Fixup, exit: u32 },
    /// `jump` leads out after the flags have been put back: they and RAX stand in the context.
    Restore { jump: Fixup, exit: u32 },
    /// A conditional branch that is taken: `count` instructions are complete.
    Taken { jump: Fixup, target: u64, count: u32 },
    /// The same out of the fast form of a loop: `count` instructions of the iteration are complete.
    Broken { jump: Fixup, target: u64, count: u32, iteration: Iteration },
    /// A return that led elsewhere than was expected, to the address in R10; RSP is still to be moved.
    Elsewhere { jump: Fixup, rip: u64, count: u32, moved: i32 },
    /// Round a loop, of which `count` instructions are complete.
    Back { jump: Fixup, count: u32 },
}

impl Cold {
    /// Whether it leaves and is rarely run: what a linked jump or an access that finds its page never comes by.
    pub fn is_stub(self) -> bool {
        matches!(self, Cold::Leave { .. } | Cold::Restore { .. } | Cold::Miss { .. })
    }
}
