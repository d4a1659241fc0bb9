//! Test support: operands in plain arrays.

use super::{Operands, VectorException, eflags};

/// What memory operands lie in.
#[repr(C, align(64))]
#[derive(Clone, PartialEq)]
pub(super) struct Memory(pub(super) [u8; 2048]);

/// Operands over plain arrays.
pub(super) struct Mock {
    pub(super) gpr: [u64; 16],
    pub(super) flags: u64,
    pub(super) memory: Memory,
    /// Where the processor has the memory.
    pub(super) address: u64,
    /// Where in the memory the operand starts.
    pub(super) base: usize,
    pub(super) rip: u64,
    pub(super) opcode: u16,
    /// Whether every memory access faults.
    pub(super) unmapped: bool,
}

/// What the operands raise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    Own(VectorException),
    Memory,
}

impl From<VectorException> for Fault {
    fn from(exception: VectorException) -> Fault {
        Fault::Own(exception)
    }
}

impl Mock {
    pub(super) fn new(memory: Memory) -> Mock {
        Mock { gpr: [0; 16], flags: 2, memory, address: 0x1000, base: 0, rip: 0, opcode: 0, unmapped: false }
    }
}

impl Operands for Mock {
    type Fault = Fault;

    fn load(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), Fault> {
        if self.unmapped {
            return Err(Fault::Memory);
        }
        let at = self.base + offset as usize;
        buffer.copy_from_slice(&self.memory.0[at..at + buffer.len()]);
        Ok(())
    }

    fn store(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Fault> {
        if self.unmapped {
            return Err(Fault::Memory);
        }
        let at = self.base + offset as usize;
        self.memory.0[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn check_store(&mut self, offset: u64, len: u64) -> Result<(), Fault> {
        assert!(self.base as u64 + offset + len <= 2048);
        if self.unmapped { Err(Fault::Memory) } else { Ok(()) }
    }

    fn linear_address(&self) -> u64 {
        self.address + self.base as u64
    }

    fn data_pointer(&self) -> (u16, u64) {
        (0x2b, self.address)
    }

    fn instruction_pointer(&self) -> (u16, u64) {
        (0x33, self.rip)
    }

    fn x87_opcode(&self) -> u16 {
        self.opcode
    }

    fn gpr(&self, reg: u8) -> u64 {
        self.gpr[usize::from(reg)]
    }

    fn set_gpr(&mut self, reg: u8, value: u64, size: u8) {
        let slot = &mut self.gpr[usize::from(reg)];
        *slot = match size {
            1 => *slot & !0xff | value & 0xff,
            2 => *slot & !0xffff | value & 0xffff,
            4 => value & 0xffff_ffff,
            _ => value,
        };
    }

    fn flags(&self) -> u64 {
        self.flags
    }

    fn set_status_flags(&mut self, value: u64) {
        self.flags = self.flags & !eflags::STATUS | value & eflags::STATUS;
    }
}
