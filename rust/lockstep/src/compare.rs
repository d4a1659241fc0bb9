//! Our machine and QEMU side by side: which instruction first ends in different states.
//!
//! Ours leads. It goes a stretch ahead, instruction by instruction, and QEMU follows to the same place; there both are
//! compared. A stretch ends early before an instruction that hears from outside (devices, time, the CPU model) and at an
//! interrupt: QEMU is brought there, compared, and then given the result. A stretch that ends in a difference is run
//! again from its start one instruction at a time.

use std::collections::VecDeque;
use std::fmt;

use trapgate_machine::{Exit, Limits, MachineError};
use trapgate_x86::class::{Class, class};
use trapgate_x86::features::Features;
use trapgate_x86::insn::Bits;

use crate::guest::Guest;
use crate::instruction::{Instruction, read_linear};
use crate::ours::{Kind, Ours, Step, repeats};
use crate::qemu::{MemoryDifference, Path, Qemu, QemuError, linear_rip};
use crate::registers::{Difference, Registers};

/// How often states are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Every {
    Instruction,
    /// At each control transfer.
    Block,
    /// About each so many instructions, at a place that QEMU can run to.
    Count(u64),
}

/// Which part of a run is compared.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Ours runs alone up to here.
    pub start: u64,
    pub end: u64,
    pub every: Every,
    /// All of memory is compared after about this many instructions.
    pub memory_every: u64,
    /// Where the guest does little but ask devices or the time, ours runs alone for a while.
    pub skip: bool,
}

/// What came out.
#[derive(Debug)]
pub enum Verdict {
    Same(Summary),
    Differs(Box<Divergence>),
}

/// A run without a difference.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Completed instructions at its end.
    pub count: u64,
    /// Set if the machine went no further.
    pub exit: Option<Exit>,
    /// How often states were compared.
    pub compared: u64,
    /// Instructions and interrupts whose result QEMU was given.
    pub given: u64,
    /// Instructions that ours ran alone.
    pub skipped: u64,
    /// Words of memory that differ in A and D flags or in undefined arithmetic flags only.
    pub soft: u64,
    /// Stretches that differed at their end and not when they were run again in steps.
    pub unexplained: Vec<String>,
}

/// The first difference.
#[derive(Debug)]
pub struct Divergence {
    /// Completed instructions before it.
    pub count: u64,
    pub instruction: Instruction,
    /// What led to it.
    pub recent: Vec<Instruction>,
    pub before: Registers,
    pub ours: Registers,
    pub theirs: Registers,
    pub registers: Vec<Difference>,
    pub memory: Option<MemoryDifference>,
    /// QEMU did not come to where it should.
    pub lost: bool,
}

impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "after {} completed instructions:", self.count)?;
        for instruction in &self.recent {
            writeln!(f, "   {instruction}")?;
        }
        writeln!(f, "-> {}", self.instruction)?;
        writeln!(f, "ours / QEMU{}:", if self.lost { ", which did not come to the same place" } else { "" })?;
        for difference in &self.registers {
            writeln!(f, "   {difference}")?;
        }
        if let Some(memory) = &self.memory {
            writeln!(f, "   memory at {:#x}: {:#018x} / {:#018x}", memory.gpa, memory.ours, memory.theirs)?;
        }
        writeln!(f, "before:\n{}", self.before)?;
        writeln!(f, "ours, afterwards:\n{}", self.ours)?;
        write!(f, "QEMU, afterwards:\n{}", self.theirs)
    }
}

/// Why there is no verdict.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    #[error(transparent)]
    Machine(#[from] MachineError),
    #[error(transparent)]
    Qemu(#[from] QemuError),
    #[error("the guest ended with {exit:?} after {count} instructions, before the comparison began")]
    Early { exit: Exit, count: u64 },
}

/// A guest on a processor that QEMU's TCG can be: what it lacks is not offered.
pub fn for_qemu(guest: &Guest) -> Guest {
    let missing = Features::PCID | Features::INVPCID | Features::XSAVEC | Features::XSAVES;
    let mut guest = guest.clone();
    guest.model.features.remove(missing);
    guest
}

/// Runs a guest in both and compares; `progress` is told the count now and then.
pub fn compare(
    guest: &Guest,
    plan: &Plan,
    mut progress: impl FnMut(&Summary),
) -> Result<Verdict, CompareError> {
    let guest = &for_qemu(guest);
    let mut pair = Pair::at(guest, plan.start)?;
    let mut summary = Summary { count: plan.start, ..Summary::default() };
    // Where everything was last seen equal.
    let mut good = plan.start;
    let mut polling = Polling::default();
    loop {
        let from = pair.ours.count();
        let found = pair.stretch(&Goal { every: plan.every, end: plan.end, exact: false }, &mut summary)?;
        let end = found.exit;
        if let Some(divergence) = found.divergence {
            if plan.every == Every::Instruction {
                return Ok(Verdict::Differs(divergence));
            }
            match step_through(guest, from, pair.ours.count())? {
                Ok(stepped) => {
                    summary.unexplained.push(describe(&divergence, from));
                    pair = stepped;
                }
                Err(found) => return Ok(Verdict::Differs(found)),
            }
        }
        let count = pair.ours.count();
        summary.count = count;
        progress(&summary);
        let last = end.is_some() || count >= plan.end;
        let alone = plan.skip && !last && polling.note(count, summary.given);
        if last || alone || count - good >= plan.memory_every {
            let (difference, soft) = pair.qemu.compare_memory(pair.ours.machine())?;
            if difference.is_some() {
                return Ok(Verdict::Differs(Box::new(bisect(guest, good, count)?)));
            }
            summary.soft = soft;
            good = count;
        }
        if alone {
            summary.exit = pair.run_alone(polling.alone().min(plan.end - count))?;
            good = pair.ours.count();
            summary.skipped += good - count;
        }
        if last || summary.exit.is_some() {
            summary.exit = summary.exit.or(end);
            return Ok(Verdict::Same(summary));
        }
    }
}

/// Tells when a guest does little but poll.
#[derive(Debug, Default)]
struct Polling {
    /// Count and results given when it was last looked at.
    since: (u64, u64),
    /// How often it has been found polling without a pause.
    times: u32,
}

impl Polling {
    /// Notes what has been reached; whether many results had to be given within few instructions.
    fn note(&mut self, count: u64, given: u64) -> bool {
        const RESULTS: u64 = 500;
        const SHORT: u64 = 100;
        if given - self.since.1 < RESULTS {
            return false;
        }
        let short = count - self.since.0 < RESULTS * SHORT;
        *self = Polling { since: (count, given), times: if short { self.times + 1 } else { 0 } };
        short
    }

    /// How far ours runs alone now: the further, the longer polling goes on.
    fn alone(&mut self) -> u64 {
        let alone = 1_000_000 << self.times.min(5);
        self.since.0 += alone;
        alone
    }
}

fn describe(divergence: &Divergence, from: u64) -> String {
    let lines: Vec<String> = divergence.registers.iter().map(|difference| difference.to_string()).collect();
    format!("from {from} to {}: {}", divergence.count, lines.join(", "))
}

/// Runs a stretch again in steps; gives the pair at its end, or the first difference.
fn step_through(guest: &Guest, from: u64, to: u64) -> Result<Result<Pair, Box<Divergence>>, CompareError> {
    let mut pair = Pair::at(guest, from)?;
    let mut summary = Summary::default();
    // One further: events that the stretch ended with do not count.
    let goal = Goal { every: Every::Instruction, end: to + 1, exact: true };
    while pair.ours.count() <= to {
        let found = pair.stretch(&goal, &mut summary)?;
        if let Some(divergence) = found.divergence {
            return Ok(Err(divergence));
        }
        if found.exit.is_some() {
            break;
        }
    }
    Ok(Ok(pair))
}

/// Finds the instruction after which memory differs, between a count at which it did not and one at which it did.
fn bisect(guest: &Guest, good: u64, bad: u64) -> Result<Divergence, CompareError> {
    let (mut low, mut high) = (good, bad);
    loop {
        let middle = low + (high - low) / 2;
        let mut pair = Pair::at(guest, low)?;
        let mut summary = Summary::default();
        let to = if high - low <= 1 { high } else { middle };
        let every = if to - low <= FEW { Every::Instruction } else { Every::Count(STRETCH) };
        while pair.ours.count() < to {
            let found = pair.stretch(&Goal { every, end: to, exact: true }, &mut summary)?;
            if let Some(divergence) = found.divergence {
                return Ok(*divergence);
            }
            if found.exit.is_some() {
                break;
            }
        }
        let (difference, _) = pair.qemu.compare_memory(pair.ours.machine())?;
        if high - low <= 1 {
            let (ours, theirs) = (pair.ours.registers(), pair.qemu.registers()?);
            let before = Pair::at(guest, low)?.ours.registers();
            let instruction =
                pair.recent.pop_back().unwrap_or_else(|| Instruction::next(pair.ours.machine().cpu()));
            return Ok(Divergence {
                count: low,
                instruction,
                recent: pair.recent.into(),
                before,
                registers: ours.differences(&theirs, pair.ours.undefined(), instruction.bits),
                ours,
                theirs,
                memory: difference,
                lost: false,
            });
        }
        if difference.is_some() { high = middle } else { low = middle }
    }
}

/// A stretch of this many instructions is stepped rather than run.
const FEW: u64 = 64;
/// Length of a stretch where none is given.
const STRETCH: u64 = 10_000;
/// Instructions kept for the report.
const RECENT: usize = 16;
/// Bytes of the stack that an event may write: six words of 8 bytes, and alignment.
const FRAME: u64 = 64;

/// Both machines in the same state.
#[derive(Debug)]
struct Pair {
    ours: Ours,
    qemu: Qemu,
    recent: VecDeque<Instruction>,
}

/// Where a stretch is to end.
struct Goal {
    every: Every,
    end: u64,
    /// At this very count, whatever it costs QEMU to get there.
    exact: bool,
}

impl Goal {
    /// Whether a stretch of `steps` ends behind this one: at a place that QEMU can run to, if there is one before long.
    fn is_end(&self, step: &Step, steps: u64, fresh: bool, over: bool) -> bool {
        const LONGEST: u64 = 20_000_000;
        let enough = match self.every {
            Every::Instruction => return true,
            Every::Block => {
                let transfer = step.instruction.insn.is_none_or(|insn| class(&insn) >= Class::Control);
                return transfer || step.vector.is_some() || steps >= STRETCH && fresh;
            }
            Every::Count(count) => over || steps >= count,
        };
        enough && (fresh || steps >= LONGEST)
    }
}

/// How a stretch ended.
struct Found {
    divergence: Option<Box<Divergence>>,
    exit: Option<Exit>,
}

impl Pair {
    fn at(guest: &Guest, count: u64) -> Result<Pair, CompareError> {
        let mut machine = guest.machine()?;
        if count > 0 {
            let exit = machine.run(&Limits { count: Some(count), ..Limits::default() });
            if exit != Exit::CountReached {
                return Err(CompareError::Early { exit, count: machine.count() });
            }
        }
        let qemu = Qemu::like(&mut machine)?;
        Ok(Pair { ours: Ours::new(machine), qemu, recent: VecDeque::new() })
    }

    /// Ours runs alone, and a new QEMU takes its state over; gives the exit if the machine ended.
    fn run_alone(&mut self, count: u64) -> Result<Option<Exit>, CompareError> {
        let exit = self.ours.run(count);
        if exit.is_none() {
            self.qemu = Qemu::like(self.ours.machine_mut())?;
            self.recent.clear();
        }
        Ok(exit)
    }

    /// Goes on to the next comparison.
    fn stretch(&mut self, goal: &Goal, summary: &mut Summary) -> Result<Found, CompareError> {
        let mut path = Path::new(linear_rip(self.ours.machine().cpu()));
        let mut last;
        loop {
            last = self.ours.step();
            self.recent.push_back(last.instruction);
            if self.recent.len() > RECENT {
                self.recent.pop_front();
            }
            if last.kind != Kind::Plain {
                break;
            }
            let fresh = path.push(linear_rip(self.ours.machine().cpu()));
            let over = self.ours.count() >= goal.end;
            if over && goal.exact || goal.is_end(&last, path.steps(), fresh, over) {
                break;
            }
        }
        // Where QEMU is to be compared: behind a plain instruction, else before what is not one.
        let lost = match self.qemu.follow(&path) {
            Ok(()) => false,
            Err(error) if error.is_lost() => true,
            Err(error) => return Err(error.into()),
        };
        let plain = last.kind == Kind::Plain;
        let (expected, undefined) = if plain {
            (self.ours.registers(), self.ours.undefined())
        } else {
            (last.before, last.undefined)
        };
        let (theirs, divergence) = self.check(&last, &expected, undefined, lost)?;
        summary.compared += 1;
        if divergence.is_some() {
            return Ok(Found { divergence, exit: None });
        }
        match last.kind {
            Kind::Plain => {}
            Kind::Ended(exit) => return Ok(Found { divergence: None, exit: Some(exit) }),
            Kind::Outside | Kind::Interrupt(_) => {
                summary.given += 1;
                self.give(&last, &theirs)?;
            }
            Kind::PlainThenInterrupt(_) => {
                summary.given += 1;
                self.qemu.step()?;
                let expected = self.interrupted();
                let (theirs, divergence) = self.check(&last, &expected, self.ours.undefined(), false)?;
                if divergence.is_some() {
                    return Ok(Found { divergence, exit: None });
                }
                self.give(&last, &theirs)?;
            }
        }
        Ok(Found { divergence: None, exit: None })
    }

    /// Compares QEMU with what is expected of it; flags that are undefined are made equal.
    fn check(
        &mut self,
        last: &Step,
        expected: &Registers,
        undefined: u64,
        lost: bool,
    ) -> Result<(Registers, Option<Box<Divergence>>), CompareError> {
        let mut theirs = self.qemu.registers()?;
        let bits = self.ours.machine().cpu().mode().bits;
        let bits = if last.kind == Kind::Plain { bits } else { last.instruction.bits };
        if theirs.rip != expected.rip && repeats(&last.instruction) {
            // One of the two may take the last iteration and the end of the instruction for two steps.
            self.qemu.step()?;
            theirs = self.qemu.registers()?;
        }
        let registers = expected.differences(&theirs, undefined, bits);
        if !registers.is_empty() || lost {
            let mut recent: Vec<Instruction> = self.recent.iter().copied().collect();
            recent.pop();
            return Ok((
                theirs,
                Some(Box::new(Divergence {
                    count: last.count,
                    instruction: last.instruction,
                    recent,
                    before: last.before,
                    ours: *expected,
                    theirs,
                    registers,
                    memory: None,
                    lost,
                })),
            ));
        }
        if theirs.rflags != expected.rflags {
            let wanted = Registers { rflags: expected.rflags, ..theirs };
            self.qemu.force(&theirs, &wanted)?;
            theirs = wanted;
        }
        Ok((theirs, None))
    }

    /// Gives QEMU the outcome of what only ours could do: registers, and what was written to memory.
    fn give(&mut self, last: &Step, theirs: &Registers) -> Result<(), CompareError> {
        let wanted = self.ours.registers();
        let cpu = self.ours.machine().cpu();
        let mut ranges = Vec::new();
        if matches!(last.kind, Kind::Outside) {
            ranges = last.instruction.writes(&last.before, cpu);
        }
        if last.vector.is_some() {
            let stack = if cpu.mode().bits == Bits::B64 { 0 } else { cpu.seg[2].base };
            ranges.push((stack.wrapping_add(wanted.general[4]), FRAME));
        }
        self.qemu.copy_memory(cpu, &ranges)?;
        Ok(self.qemu.force(theirs, &wanted)?)
    }

    /// The state before the interrupt that ours has just taken, from what it pushed (SDM vol. 3, 6.12.1 and 6.14.2).
    fn interrupted(&mut self) -> Registers {
        let mut registers = self.ours.registers();
        let cpu = self.ours.machine().cpu();
        let long = cpu.mode().bits == Bits::B64;
        let word = if long { 8 } else { 4 };
        let stack = if long { 0 } else { cpu.seg[2].base };
        let mut frame = [0; 5];
        for (n, slot) in frame.iter_mut().enumerate() {
            let mut bytes = [0; 8];
            let at = stack.wrapping_add(registers.general[4]).wrapping_add(n as u64 * word);
            read_linear(cpu, at, &mut bytes[..word as usize]);
            *slot = u64::from_le_bytes(bytes);
        }
        let [rip, cs, rflags, rsp, ss] = frame;
        let outer = long || cs & 3 != u64::from(cpu.cpl);
        (registers.rip, registers.rflags) = (rip, rflags);
        registers.selectors[1] = cs as u16;
        if outer {
            registers.general[4] = rsp;
            registers.selectors[2] = ss as u16;
        } else {
            registers.general[4] = registers.general[4].wrapping_add(3 * word);
        }
        registers
    }
}
