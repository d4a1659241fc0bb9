//! Our machine, one instruction or one delivered event at a time, and what each of them depended on.

use trapgate_engine::HookKind;
use trapgate_machine::{Exit, Limits, Machine};
use trapgate_x86::flags::flag_use;
use trapgate_x86::insn::Prefixes;
use trapgate_x86::op::Op;

use crate::instruction::Instruction;
use crate::registers::Registers;

/// What a step was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An instruction (or one iteration of a repeated one) that depends on registers and RAM alone, whether it completed
    /// or raised an exception: another executor does the same.
    Plain,
    /// An instruction whose result comes from devices, time, randomness or the CPU model, or is an approximation.
    Outside,
    /// No instruction: an interrupt was delivered.
    Interrupt(u8),
    /// A plain instruction, and an interrupt right behind it.
    PlainThenInterrupt(u8),
    /// The machine came to an end.
    Ended(Exit),
}

/// One step of [`Ours`].
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// Completed instructions before it.
    pub count: u64,
    pub before: Registers,
    pub instruction: Instruction,
    pub kind: Kind,
    /// The exception or interrupt that was delivered.
    pub vector: Option<u8>,
    /// Flags whose value was undefined before it.
    pub undefined: u64,
}

/// A machine that is stepped.
#[derive(Debug)]
pub struct Ours {
    machine: Machine,
    /// Flags whose value the manual leaves open since the last instruction that defined them.
    undefined: u64,
}

impl Ours {
    /// Takes a machine over. Its boundaries are where the count is whole, so it may have run before.
    pub fn new(mut machine: Machine) -> Ours {
        machine.cpu_mut().add_hook(HookKind::Interrupt, 0, 255);
        Ours { machine, undefined: 0 }
    }

    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    pub fn machine_mut(&mut self) -> &mut Machine {
        &mut self.machine
    }

    /// Runs `more` instructions at full speed; gives the exit if the machine did not get there.
    pub fn run(&mut self, more: u64) -> Option<Exit> {
        self.undefined = 0;
        let limits = Limits { count: Some(self.count().saturating_add(more)), ..Limits::default() };
        loop {
            match self.machine.run(&limits) {
                Exit::Hook => drop(self.machine.cpu_mut().take_hook_events()),
                Exit::CountReached => return None,
                exit => return Some(exit),
            }
        }
    }

    pub fn count(&self) -> u64 {
        self.machine.count()
    }

    /// Flags whose value is undefined now.
    pub fn undefined(&self) -> u64 {
        self.undefined
    }

    pub fn registers(&mut self) -> Registers {
        Registers::of(self.machine.cpu_mut())
    }

    /// Goes on by one instruction, one iteration or one interrupt.
    pub fn step(&mut self) -> Step {
        let count = self.machine.count();
        let before = self.registers();
        let instruction = Instruction::next(self.machine.cpu());
        let accesses = self.machine.board().accesses();
        let limits = Limits { count: Some(count.saturating_add(1)), ..Limits::default() };
        let exit = self.machine.run(&limits);
        let events: Vec<u8> =
            self.machine.cpu_mut().take_hook_events().iter().map(|event| event.at as u8).collect();
        let done = self.machine.count() > count;
        let outside = self.machine.board().accesses() != accesses;
        let kind = classify(&instruction, exit, &events, done, outside);
        let undefined = self.undefined;
        if done {
            self.note_flags(&instruction);
        }
        Step { count, before, instruction, kind, vector: events.last().copied(), undefined }
    }

    fn note_flags(&mut self, instruction: &Instruction) {
        let Some(insn) = &instruction.insn else { return };
        let flags = flag_use(insn);
        let defined = (flags.written | flags.cleared | flags.set) & !flags.kept;
        self.undefined = self.undefined & !u64::from(defined) | u64::from(flags.undefined);
    }
}

fn classify(instruction: &Instruction, exit: Exit, events: &[u8], done: bool, outside: bool) -> Kind {
    if !matches!(exit, Exit::CountReached | Exit::Hook) {
        return Kind::Ended(exit);
    }
    let op = instruction.insn.map(|insn| insn.op);
    let outside = outside
        || match op {
            Some(Op::Cpuid | Op::Rdmsr | Op::Rdpmc | Op::Hlt | Op::Monitor | Op::Mwait) => true,
            // Approximations: processors differ within an error that the manual allows.
            Some(Op::Rcpps | Op::Rcpss | Op::Rsqrtps | Op::Rsqrtss) => true,
            // Which MSRs there are is the CPU model's.
            Some(Op::Wrmsr) => !done,
            _ => false,
        };
    match (events, done) {
        ([], _) if outside => Kind::Outside,
        ([], _) => Kind::Plain,
        // More than one event before the first instruction of a handler: taken over as they are.
        ([_, _, ..], _) => Kind::Outside,
        ([vector], false) if is_exception(*vector) && outside => Kind::Outside,
        ([vector], false) if is_exception(*vector) => Kind::Plain,
        ([vector], false) => Kind::Interrupt(*vector),
        ([vector], true) => {
            let own = matches!(op, Some(Op::Int | Op::Int3 | Op::Int1 | Op::Into)) || *vector == DEBUG;
            match (own, outside) {
                (_, true) => Kind::Outside,
                (true, false) => Kind::Plain,
                (false, false) => Kind::PlainThenInterrupt(*vector),
            }
        }
    }
}

const DEBUG: u8 = 1;
const NMI: u8 = 2;

/// Exceptions belong to the instruction; a vector beyond them, or NMI, comes from a controller.
fn is_exception(vector: u8) -> bool {
    vector < 32 && vector != NMI
}

/// Whether an instruction is one that executors may interrupt between its iterations.
pub fn repeats(instruction: &Instruction) -> bool {
    instruction.insn.is_some_and(|insn| {
        insn.prefixes.intersects(Prefixes::REP | Prefixes::REPNE)
            && matches!(insn.op, Op::Movs | Op::Cmps | Op::Stos | Op::Lods | Op::Scas | Op::Ins | Op::Outs)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::Guest;
    use iced_x86::code_asm::*;
    use trapgate_x86::insn::Bits;
    use trapgate_x86::regs::rflags;

    #[test]
    fn steps_are_told_apart_by_what_they_depend_on() {
        let guest = Guest::program(Bits::B64, |a| {
            a.xor(eax, eax)?;
            a.cpuid()?;
            a.rdtsc()?;
            a.in_(al, 0x64)?;
            a.mov(rbx, 0xfee0_0020u64)?;
            a.mov(eax, dword_ptr(rbx))?;
            a.shl(eax, 3)?;
            a.add(eax, 1)?;
            a.hlt()
        });
        let mut ours = Ours::new(guest.unwrap().machine().unwrap());
        let kinds: Vec<_> = (0..6).map(|_| ours.step().kind).collect();
        use Kind::{Outside, Plain};
        assert_eq!(kinds, [Plain, Outside, Outside, Outside, Plain, Outside]);
        ours.step();
        assert_eq!(ours.undefined(), rflags::AF | rflags::OF, "shl by 3");
        ours.step();
        assert_eq!(ours.undefined(), 0);
        assert_eq!(ours.step().kind, Outside, "hlt itself");
        assert_eq!(ours.step().kind, Kind::Ended(Exit::Halted));
    }

    #[test]
    fn exceptions_are_the_instructions_own() {
        // No IDT: the fault cannot be delivered.
        let guest = Guest::program(Bits::B64, |a| a.ud2());
        let mut ours = Ours::new(guest.unwrap().machine().unwrap());
        assert!(matches!(ours.step().kind, Kind::Ended(Exit::TripleFault { vector: 6, .. })));
    }
}
