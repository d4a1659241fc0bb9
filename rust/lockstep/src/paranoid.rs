//! The interpreter against itself: one machine runs normally, an equal one in paranoid mode, in which nothing is kept from
//! one instruction to the next. What differs is a bug in a cache or in a short cut of the normal one.
//!
//! One thing may differ without being a bug: a guest that clears the A or D flag of a page-table entry and does not
//! invalidate the translation sees the flag set again by the next access in paranoid mode, as a processor with a smaller
//! TLB would set it.

use std::fmt;

use trapgate_engine::memory::PAGE;
use trapgate_engine::translate::TranslateOptions;
use trapgate_machine::{Exit, Limits, Machine, MachineError};
use trapgate_x86::insn::Bits;

use crate::guest::Guest;
use crate::instruction::Instruction;
use crate::ours::Ours;
use crate::registers::{Difference, Registers};

/// What the normal machine is compared with.
#[derive(Clone, Copy, Debug)]
pub enum Against {
    /// The interpreter with every short cut taken away.
    Paranoid,
    /// The translator.
    Translated(TranslateOptions),
    /// The translator, with shadow page tables.
    Shadowed(TranslateOptions),
}

impl Against {
    fn apply(self, machine: &mut Machine) {
        match self {
            Against::Paranoid => machine.set_paranoid(true),
            Against::Translated(options) => {
                machine.set_translate(Some(options));
            }
            Against::Shadowed(options) => {
                machine.set_translate(Some(options));
                machine.set_shadow_paging(true);
            }
        }
    }
}

/// Which part of a run is compared, and how often.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub against: Against,
    /// Both run normally up to here.
    pub start: u64,
    pub end: u64,
    /// Processor state is compared each so many instructions.
    pub every: u64,
    /// Everything, memory and devices included, each so many.
    pub hash_every: u64,
}

/// What came out.
#[derive(Debug)]
pub enum Verdict {
    /// Equal up to this count; the exit is set if the machine went no further.
    Same {
        count: u64,
        exit: Option<Exit>,
    },
    Differs(Box<Divergence>),
}

/// Where the two parted.
#[derive(Debug)]
pub struct Divergence {
    /// They were equal after this many instructions and no longer after the next one; where the difference does not come
    /// back when it is looked for, the last point at which they were seen equal.
    pub count: u64,
    /// The next point at which they were compared, and differed.
    pub seen: u64,
    pub instruction: Instruction,
    /// The last instructions before it, of the normal machine.
    pub recent: Vec<Instruction>,
    pub normal: Registers,
    pub paranoid: Registers,
    pub registers: Vec<Difference>,
    /// What else differs.
    pub others: Vec<String>,
}

impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.seen > self.count + 1 {
            writeln!(
                f,
                "equal at {}, different at {}, and equal again when looked at closely",
                self.count, self.seen
            )?;
        } else {
            writeln!(f, "the instruction after {} completed ones ended differently", self.count)?;
        }
        for instruction in &self.recent {
            writeln!(f, "   {instruction}")?;
        }
        writeln!(f, "-> {}", self.instruction)?;
        writeln!(f, "normal / paranoid:")?;
        for difference in &self.registers {
            writeln!(f, "   {difference}")?;
        }
        for other in &self.others {
            writeln!(f, "   {other}")?;
        }
        writeln!(f, "normal, afterwards:\n{}", self.normal)?;
        write!(f, "paranoid, afterwards:\n{}", self.paranoid)
    }
}

/// Runs a guest both ways and compares.
pub fn compare(guest: &Guest, plan: &Plan) -> Result<Verdict, MachineError> {
    let (mut normal, mut paranoid) = pair(guest, plan.against, plan.start)?;
    // Processors that are equal do not say that memory is: `good` is where everything was last seen equal.
    let (mut at, mut good) = (normal.count(), normal.count());
    loop {
        let next = |step: u64| (at / step.max(1) + 1).saturating_mul(step.max(1));
        at = next(plan.every).min(next(plan.hash_every)).min(plan.end);
        let exits = (run(&mut normal, at), run(&mut paranoid, at));
        let last = exits.0.is_some() || at == plan.end;
        let whole = last || at % plan.hash_every.max(1) == 0;
        let same = exits.0 == exits.1
            && normal.cpu().save() == paranoid.cpu().save()
            && (!whole || normal.digest() == paranoid.digest());
        if !same {
            let seen = normal.count().max(paranoid.count()).max(good + 1);
            return Ok(Verdict::Differs(Box::new(narrow(guest, plan.against, good, seen)?)));
        }
        if last {
            return Ok(Verdict::Same { count: normal.count(), exit: exits.0 });
        }
        if whole {
            good = at;
        }
    }
}

/// Two equal machines after `start` instructions, the second in paranoid mode from there on.
fn pair(guest: &Guest, against: Against, start: u64) -> Result<(Machine, Machine), MachineError> {
    let mut machines = (guest.machine()?, guest.machine()?);
    run(&mut machines.0, start);
    run(&mut machines.1, start);
    against.apply(&mut machines.1);
    Ok(machines)
}

/// Runs up to a count; gives the exit if the machine did not get there.
fn run(machine: &mut Machine, to: u64) -> Option<Exit> {
    if machine.count() >= to {
        return None;
    }
    let exit = machine.run(&Limits { count: Some(to), ..Limits::default() });
    (exit != Exit::CountReached).then_some(exit)
}

/// Finds the instruction between `good` and `seen` that ends differently.
fn narrow(guest: &Guest, against: Against, good: u64, seen: u64) -> Result<Divergence, MachineError> {
    // The normal machine runs without a stop, since a stop ends blocks and looks at events anew.
    let probe = |at: u64| -> Result<(Machine, Machine, bool), MachineError> {
        let (mut normal, mut paranoid) = (guest.machine()?, guest.machine()?);
        run(&mut paranoid, good);
        against.apply(&mut paranoid);
        let exits = (run(&mut normal, at), run(&mut paranoid, at));
        let same = exits.0 == exits.1 && normal.digest() == paranoid.digest();
        Ok((normal, paranoid, same))
    };
    let (mut low, mut high) = (good, seen);
    let (mut normal, mut paranoid, mut same) = probe(high)?;
    while !same && high - low > 1 {
        let middle = low + (high - low) / 2;
        let found = probe(middle)?;
        if found.2 {
            low = middle;
        } else {
            high = middle;
            (normal, paranoid, same) = found;
        }
    }
    if same {
        // It does not come back: the stops of the comparison are part of what made it.
        (low, high) = (good, seen);
    }
    let (instruction, recent) = leading_to(guest, low)?;
    let registers = (Registers::of(normal.cpu_mut()), Registers::of(paranoid.cpu_mut()));
    Ok(Divergence {
        count: low,
        seen: high,
        instruction,
        recent,
        normal: registers.0,
        paranoid: registers.1,
        registers: registers.0.differences(&registers.1, 0, Bits::B64),
        others: others(&normal, &paranoid),
    })
}

/// How many instructions before the one that differs are shown.
const RECENT: u64 = 80;

/// The instruction after `count` completed ones, and those that led to it.
fn leading_to(guest: &Guest, count: u64) -> Result<(Instruction, Vec<Instruction>), MachineError> {
    let mut machine = guest.machine()?;
    run(&mut machine, count.saturating_sub(RECENT));
    let mut ours = Ours::new(machine);
    let mut recent = Vec::new();
    while ours.count() < count {
        let step = ours.step();
        recent.push(step.instruction);
        if matches!(step.kind, crate::ours::Kind::Ended(_)) {
            break;
        }
    }
    Ok((Instruction::next(ours.machine().cpu()), recent))
}

/// What differs besides the registers that are printed.
fn others(normal: &Machine, paranoid: &Machine) -> Vec<String> {
    let mut found = Vec::new();
    if normal.count() != paranoid.count() {
        found.push(format!("completed instructions: {} / {}", normal.count(), paranoid.count()));
    }
    if normal.cpu().save() != paranoid.cpu().save() {
        found.push("the vCPU's state record".into());
    }
    let devices = |machine: &Machine| machine.pc().map(|board| board.save()).unwrap_or_default();
    for (one, other) in devices(normal).iter().zip(devices(paranoid)) {
        if *one != other {
            found.push(format!("device {}", other.kind));
        }
    }
    let (first, second) = (normal.cpu().memory(), paranoid.cpu().memory());
    let mut check =
        |gpa: u64, page: &[u8; PAGE as usize], other: &trapgate_engine::GuestMemory, swap: bool| {
            let mut bytes = [0; PAGE as usize];
            let read = other.read(gpa, &mut bytes);
            if let (Ok(()), Some(at)) = (read, (0..bytes.len()).find(|at| bytes[*at] != page[*at])) {
                let (one, other) = if swap { (bytes[at], page[at]) } else { (page[at], bytes[at]) };
                let line = format!("memory at {:#x}: {one:#04x} / {other:#04x}", gpa + at as u64);
                if found.len() < 20 && !found.contains(&line) {
                    found.push(line);
                }
            }
        };
    first.each_page_in_use(|gpa, page| check(gpa, page, second, false));
    second.each_page_in_use(|gpa, page| check(gpa, page, first, true));
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::code_asm::*;

    /// Stores to its own code and runs it, in a loop.
    fn rewriter() -> Guest {
        Guest::program(Bits::B64, |a| {
            let (mut again, mut patch) = (a.create_label(), a.create_label());
            a.mov(rsp, 0x20_0000u64)?;
            a.mov(ecx, 50)?;
            a.set_label(&mut again)?;
            a.lea(rbx, qword_ptr(patch))?;
            a.mov(byte_ptr(rbx + 1), cl)?;
            a.set_label(&mut patch)?;
            a.mov(al, 0)?;
            a.push(rax)?;
            a.dec(ecx)?;
            a.jnz(again)?;
            a.hlt()
        })
        .unwrap()
    }

    #[test]
    fn a_program_that_rewrites_itself_runs_the_same_way() {
        let plan = Plan { against: Against::Paranoid, start: 0, end: 1000, every: 1, hash_every: 7 };
        let verdict = compare(&rewriter(), &plan).unwrap();
        assert!(matches!(verdict, Verdict::Same { count: 303, exit: Some(Exit::Halted) }), "{verdict:?}");
    }

    #[test]
    fn stepping_changes_nothing() {
        let guest = rewriter();
        let mut ours = Ours::new(guest.machine().unwrap());
        let mut straight = guest.machine().unwrap();
        for _ in 0..200 {
            ours.step();
        }
        run(&mut straight, 200);
        assert_eq!(ours.machine().digest(), straight.digest());
    }

    #[test]
    fn a_difference_is_narrowed_to_its_instruction() {
        // No bug at hand: what narrowing prints is tried on machines that are equal.
        let found = narrow(&rewriter(), Against::Paranoid, 10, 20).unwrap();
        assert_eq!((found.count, found.seen, found.registers.len(), found.others.len()), (10, 20, 0, 0));
        let text = found.to_string();
        assert!(text.contains("equal again"), "{text}");
        assert!(text.contains("-> "), "{text}");
    }
}
