//! An instruction as it lay in guest memory when it was reached: bytes, text, and the memory that it writes.

use std::fmt;

use trapgate_engine::mmu::walk;
use trapgate_engine::state::Vcpu;
use trapgate_x86::decode::decode;
use trapgate_x86::facts::{self, Access, Register};
use trapgate_x86::features::Features;
use trapgate_x86::insn::{Bits, Insn};
use trapgate_x86::layout::MAX_LENGTH;

use crate::registers::Registers;

/// Size of a page.
const PAGE: u64 = 0x1000;

/// Guest-physical address of a linear one, permissions aside.
pub fn physical(cpu: &Vcpu, linear: u64) -> Option<u64> {
    walk::walk(cpu.memory(), &cpu.paging(), linear, |_| ()).ok().map(|mapping| mapping.gpa)
}

/// Reads RAM at a linear address up to the first byte that is not mapped to RAM; gives how many bytes there were.
pub fn read_linear(cpu: &Vcpu, linear: u64, bytes: &mut [u8]) -> usize {
    let mut done = 0;
    while done < bytes.len() {
        let at = linear.wrapping_add(done as u64);
        let end = bytes.len().min(done + (PAGE - at % PAGE) as usize);
        let read = physical(cpu, at).map(|gpa| cpu.memory().read(gpa, &mut bytes[done..end]));
        if !matches!(read, Some(Ok(()))) {
            break;
        }
        done = end;
    }
    done
}

/// An instruction at the RIP that a processor had reached.
#[derive(Clone, Copy, Debug)]
pub struct Instruction {
    pub rip: u64,
    pub bits: Bits,
    bytes: [u8; MAX_LENGTH],
    /// Bytes that could be read.
    have: u8,
    /// What they decode to on the CPU model, if it is an instruction.
    pub insn: Option<Insn>,
}

impl Instruction {
    /// The one that the processor runs next.
    pub fn next(cpu: &Vcpu) -> Instruction {
        let bits = cpu.mode().bits;
        let linear = match bits {
            Bits::B64 => cpu.rip,
            _ => cpu.seg[1].base.wrapping_add(cpu.rip) & u64::from(u32::MAX),
        };
        let mut bytes = [0; MAX_LENGTH];
        let have = read_linear(cpu, linear, &mut bytes);
        let insn = decode(&bytes[..have], bits, &cpu.features()).ok();
        Instruction { rip: cpu.rip, bits, bytes, have: have as u8, insn }
    }

    /// Its bytes; those of some other processor's instruction, or all that could be read, where it is none here.
    pub fn bytes(&self) -> &[u8] {
        let have = &self.bytes[..usize::from(self.have)];
        let len = match self.insn {
            Some(insn) => usize::from(insn.len),
            None => {
                decode(have, self.bits, &Features::all()).map_or(have.len(), |insn| usize::from(insn.len))
            }
        };
        &have[..len]
    }

    /// Linear ranges that it writes, as far as its bytes tell: address and length.
    pub fn writes(&self, before: &Registers, cpu: &Vcpu) -> Vec<(u64, u64)> {
        let Some(facts) = facts::facts(self.bytes(), self.bits, self.rip) else { return Vec::new() };
        let value = |register: Option<Register>| match register {
            Some(Register::Gpr { reg, size: 8 }) => before.general[usize::from(reg & 15)],
            Some(Register::Gpr { reg, size }) => {
                before.general[usize::from(reg & 15)] & ((1 << (8 * u32::from(size & 7))) - 1)
            }
            _ => 0,
        };
        let base = |segment: Option<Register>| match (segment, self.bits) {
            (Some(Register::Seg(seg)), Bits::B64) if (seg as u8) < 4 => 0,
            (Some(Register::Seg(seg)), _) => cpu.segment(seg).base,
            _ => 0,
        };
        let written = |access| {
            matches!(access, Access::Write | Access::MayWrite | Access::ReadWrite | Access::ReadMayWrite)
        };
        let uses = facts.memory.iter().filter(|used| written(used.access));
        let ranges = uses.map(|used| {
            let offset = value(used.base)
                .wrapping_add(value(used.index).wrapping_mul(u64::from(used.scale)))
                .wrapping_add(used.displacement);
            let linear = base(used.segment).wrapping_add(offset);
            let linear = if self.bits == Bits::B64 { linear } else { linear & u64::from(u32::MAX) };
            // The size of what XSAVE and the like write is not in their bytes.
            (linear, if used.size == 0 { 1024 } else { used.size.into() })
        });
        ranges.collect()
    }
}

impl fmt::Display for Instruction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}  ", self.rip)?;
        let bytes: Vec<String> = self.bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        let text = facts::text(self.bytes(), self.bits, self.rip);
        write!(f, "{:<32} {}", bytes.join(" "), text.as_deref().unwrap_or("(no instruction)"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::Guest;
    use iced_x86::code_asm::*;
    use trapgate_machine::Limits;

    #[test]
    fn an_instruction_is_read_where_it_runs_and_tells_what_it_writes() {
        let guest = Guest::program(Bits::B64, |a| {
            a.mov(rsp, 0x9000u64)?;
            a.push(rax)?;
            a.mov(dword_ptr(rsp + 8 * rcx - 0x10), eax)
        });
        let mut machine = guest.unwrap().machine().unwrap();
        let at = |machine: &mut trapgate_machine::Machine, n| {
            machine.run(&Limits { count: Some(n), ..Limits::default() });
            let before = Registers::of(machine.cpu_mut());
            let next = Instruction::next(machine.cpu());
            (next.to_string(), next.writes(&before, machine.cpu()))
        };
        assert!(at(&mut machine, 0).0.ends_with("mov rsp, 0x9000"));
        let (text, writes) = at(&mut machine, 1);
        assert!(text.contains("50 ") && text.ends_with("push rax"), "{text}");
        assert_eq!(writes, [(0x8ff8, 8)]);
        assert_eq!(at(&mut machine, 2).1, [(0x8ff8 - 0x10, 4)]);
    }
}
