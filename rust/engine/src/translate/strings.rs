//! REP MOVS and REP STOS by the host's own, where all that they touch lies in one page at each end (SDM vol. 2, REP). Kernels
//! clear and copy small structures by them.
//!
//! Every iteration counts as one instruction: those beyond the first are charged here, and only if the budget allows them
//! all, so nothing can come between. What runs backward, over a page's end or past the budget is the interpreter's.

use trapgate_x86::op::Op;

use super::asm::{R8, R10, R11, RCX, RDI, RSI, RSP, at, indexed};
use super::context::field;
use super::emit::{Emitter, Fetched};
use super::exits::Access;

impl Emitter<'_> {
    /// REP MOVS and REP STOS with 64-bit addresses.
    pub(super) fn repeat(&mut self, f: &Fetched<'_>) {
        let moves = f.insn.op == Op::Movs;
        self.leave_if_set(f, field!(direction));
        // The guest's RCX: not zero, and no more than bytes fit a page.
        self.asm.mov(RCX, R8);
        self.leave_if_zero(f);
        self.asm.lea(RCX, at(R8, -1));
        self.asm.shrx(RCX, RCX, RSP);
        self.leave_unless_zero(f);
        if moves {
            self.whole_range(f, RSI, false);
            self.asm.store(field!(source_delta), R11);
        }
        self.whole_range(f, RDI, true);
        self.charge_iterations(f);
        self.asm.mov(RCX, R8);
        self.asm.lea(R10, indexed(RDI, R8, f.insn.opsize.trailing_zeros() as u8, 0));
        self.asm.lea(RDI, indexed(RDI, R11, 0, 0));
        if moves {
            self.asm.load(R11, field!(source_delta));
            self.asm.lea(RSI, indexed(RSI, R11, 0, 0));
        }
        self.repeated(f);
        self.asm.mov(RDI, R10);
        if moves {
            self.complement(R11);
            self.asm.lea(RSI, indexed(RSI, R11, 0, 1));
        }
        self.asm.constant(R8, 0);
    }

    /// Checks that all elements from the address in a register on lie in one page, and leaves its delta in R11.
    fn whole_range(&mut self, f: &Fetched<'_>, from: u8, write: bool) {
        let size = u16::from(f.insn.opsize);
        let retry = self.asm.here();
        self.asm.mov(R10, from);
        self.check(f, retry, Access { size, write, aligned: false, stack: false, group: false });
        // The page of the last byte less that of the first.
        self.asm.shrx(R10, from, RSP);
        self.complement(R10);
        self.asm.lea(RCX, indexed(from, R8, size.trailing_zeros() as u8, -1));
        self.asm.shrx(RCX, RCX, RSP);
        self.asm.lea(RCX, indexed(RCX, R10, 0, 1));
        self.leave_unless_zero(f);
    }

    /// Takes the iterations beyond the first off the budget, or leaves if it does not last. Uses RCX and R10.
    fn charge_iterations(&mut self, f: &Fetched<'_>) {
        self.asm.mov(R10, R8);
        self.complement(R10);
        self.asm.load(RCX, field!(budget));
        self.asm.lea(R10, indexed(RCX, R10, 0, 2));
        self.asm.shrx(RCX, R10, RSP);
        self.leave_if_zero(f);
        self.asm.store(field!(budget), R10);
    }

    /// The instruction itself, on RDI, RSI and RCX of the host.
    fn repeated(&mut self, f: &Fetched<'_>) {
        self.asm.bytes(&[0xf3]);
        match f.insn.opsize {
            2 => self.asm.bytes(&[0x66]),
            8 => self.asm.bytes(&[0x48]),
            _ => {}
        }
        let opcode = if f.insn.op == Op::Movs { 0xa4 } else { 0xaa };
        self.asm.bytes(&[opcode | u8::from(f.insn.opsize > 1)]);
    }

    /// NOT of a register, which leaves flags alone: adding it and one more is a subtraction.
    pub(super) fn complement(&mut self, reg: u8) {
        self.asm.bytes(&[0x48 | reg >> 3, 0xf7, 0xd0 | reg & 7]);
    }
}
