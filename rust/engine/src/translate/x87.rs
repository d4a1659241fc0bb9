//! x87 and MMX instructions as host code. The guest's registers, status and control word stand in the host's unit while a
//! unit of translation runs that needs them (see `fpu`), so most instructions are copied byte for byte.
//!
//! Not copied is what gives different results on processors of different makers, which the interpreter computes in software
//! (FPREM, FPREM1, FSCALE; FBLD and FBSTP of digits above 9), and what shows or sets the pointers (FNSTENV, FNSAVE, FLDENV,
//! FRSTOR, FNINIT). The transcendental functions differ as well, but the interpreter has them from the host, too.

use trapgate_x86::insn::{Insn, Operand};
use trapgate_x86::op::Op;

use super::asm::{Encoding, Escape, RCX, Rm, at};
use super::context::field;
use super::emit::{Emitter, Fetched, Untranslatable};

/// What an instruction has to do with the x87 unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Works on MMX registers, which leaves the pointers alone (as EMMS does).
    Mmx,
    /// The same, with an XMM register or by MXCSR.
    Mixed,
    /// Not a control instruction: becomes the last that the instruction pointer tells of (SDM vol. 1, 8.1.8).
    Numeric,
    /// FNSTCW, FNSTSW and FNCLEX.
    Control,
    /// FLDCW, which must not unmask anything while the host has the state.
    LoadControl,
    /// FWAIT: nothing is pending where the state is lent.
    Wait,
}

impl Kind {
    /// Whether XMM registers and MXCSR must be in the host's as well.
    pub fn needs_vectors(self) -> bool {
        self == Kind::Mixed
    }

    /// Whether the fast form of a loop may have it: what is done there does not leave for the interpreter.
    pub fn fits_loops(self) -> bool {
        self != Kind::LoadControl
    }
}

/// The kind of an instruction; `None` if it is none of the x87 or MMX, or the interpreter's.
pub fn kind(insn: &Insn) -> Option<Kind> {
    use Op::*;
    match insn.op {
        Fwait => Some(Kind::Wait),
        Fldcw => Some(Kind::LoadControl),
        Fnstcw | Fnstsw | Fnclex => Some(Kind::Control),
        Emms => Some(Kind::Mmx),
        op if is_numeric(op) => Some(Kind::Numeric),
        // Its memory operand is implicit.
        Maskmovq => None,
        // By MXCSR. A memory operand of 16 bytes must be aligned: CVTPD2PI and CVTTPD2PI from memory are the interpreter's.
        Cvtpi2ps | Cvtpi2pd | Cvtps2pi | Cvttps2pi | Cvtpd2pi | Cvttpd2pi => {
            (!insn.operands.contains(&Operand::Mem { size: 16 })).then_some(Kind::Mixed)
        }
        _ => {
            let mmx = insn.operands.iter().any(|operand| matches!(operand, Operand::Mmx(_)));
            let xmm = insn.operands.iter().any(|operand| matches!(operand, Operand::Xmm(_)));
            mmx.then_some(if xmm { Kind::Mixed } else { Kind::Mmx })
        }
    }
}

/// The x87 instructions that are copied, control instructions apart.
fn is_numeric(op: Op) -> bool {
    use Op::*;
    matches!(
        op,
        F2xm1
            | Fabs
            | Fadd
            | Faddp
            | Fchs
            | Fcmovcc
            | Fcom
            | Fcomi
            | Fcomip
            | Fcomp
            | Fcompp
            | Fcos
            | Fdecstp
            | Fdiv
            | Fdivp
            | Fdivr
            | Fdivrp
            | Ffree
            | Ffreep
            | Fiadd
            | Ficom
            | Ficomp
            | Fidiv
            | Fidivr
            | Fild
            | Fimul
            | Fincstp
            | Fist
            | Fistp
            | Fisttp
            | Fisub
            | Fisubr
            | Fld
            | Fld1
            | Fldl2e
            | Fldl2t
            | Fldlg2
            | Fldln2
            | Fldpi
            | Fldz
            | Fmul
            | Fmulp
            | Fnop
            | Fpatan
            | Fptan
            | Frndint
            | Fsin
            | Fsincos
            | Fsqrt
            | Fst
            | Fstp
            | Fsub
            | Fsubp
            | Fsubr
            | Fsubrp
            | Ftst
            | Fucom
            | Fucomi
            | Fucomip
            | Fucomp
            | Fucompp
            | Fxam
            | Fxch
            | Fxtract
            | Fyl2x
            | Fyl2xp1
    )
}

/// Whether the memory operand of an x87 instruction is read, which stands first as if it were written.
pub fn reads_memory(op: Op) -> bool {
    use Op::*;
    matches!(
        op,
        Fadd | Fmul
            | Fcom
            | Fcomp
            | Fsub
            | Fsubr
            | Fdiv
            | Fdivr
            | Fiadd
            | Fimul
            | Ficom
            | Ficomp
            | Fisub
            | Fisubr
            | Fidiv
            | Fidivr
            | Fld
            | Fild
            | Fbld
            | Fldcw
            | Fldenv
            | Frstor
    )
}

impl Emitter<'_> {
    /// Emits an instruction that [`kind`] knows.
    pub(super) fn x87(&mut self, f: &Fetched<'_>, kind: Kind) -> Result<(), Untranslatable> {
        match kind {
            Kind::Wait => return Ok(()),
            Kind::Mmx | Kind::Mixed => return self.copy(f),
            Kind::LoadControl => {
                self.load_control(f);
                return Ok(());
            }
            Kind::Numeric | Kind::Control => {}
        }
        let (opcode, modrm) = (f.layout.opcode, f.layout.modrm);
        if modrm < 0xc0 {
            self.copy(f)?;
        } else if opcode == 0xd9 && modrm & 0xf8 == 0xd8 {
            // An undocumented FSTP that copies emptiness, which the interpreter's does not.
            return Err(Untranslatable);
        } else {
            self.asm.bytes(&[opcode, modrm]);
        }
        if kind == Kind::Numeric {
            self.exits.pointer = Some(f.rip);
        }
        Ok(())
    }

    /// FLDCW. With an exception unmasked the host would get it: the interpreter goes on then. The value is looked at and
    /// loaded from a place that nobody else writes.
    fn load_control(&mut self, f: &Fetched<'_>) {
        let from = self.operand_address(f, 2);
        self.asm.emit(&Encoding::new(Escape::M0f, 0xb7, false, RCX, Rm::Mem(from))); // movzx ecx, word
        self.asm.store(field!(fpu.new_control), RCX);
        self.asm.pext(RCX, RCX, field!(fpu.masks));
        self.asm.lea(RCX, at(RCX, -0x3f));
        self.leave_unless_zero(f);
        self.asm.emit(&Encoding::new(Escape::None, 0xd9, false, 5, Rm::Mem(field!(fpu.new_control))));
    }

    /// Stores the instruction pointer of the last x87 instruction where the state is looked for, before control goes to where
    /// that instruction is not known. Until then each exit knows it ([`super::exits::Exits::pointer_at`]).
    pub(super) fn flush_pointer(&mut self) {
        let Some(rip) = self.exits.pointer.take() else { return };
        let mut place = field!(fpu.pointer);
        if let Ok(short) = i32::try_from(rip as i64) {
            return self.asm.store_short(place, short);
        }
        // No register is free in the fast forms of loops.
        self.asm.store_constant32(place, rip as u32);
        place.disp += 4;
        self.asm.store_constant32(place, (rip >> 32) as u32);
    }
}

#[cfg(test)]
mod tests {
    use trapgate_x86::decode::decode;
    use trapgate_x86::features::Features;
    use trapgate_x86::insn::Bits;

    use super::*;
    use crate::translate::plan::writes_memory;

    /// All x87 instructions, memory forms at `[rsi]`.
    fn all() -> impl Iterator<Item = Insn> {
        let modrms = (0xc0..=0xff).chain((0..8).map(|reg| reg << 3 | 6));
        modrms.flat_map(|modrm| {
            let decoded = move |opcode| decode(&[opcode, modrm], Bits::B64, &Features::all()).ok();
            (0xd8..=0xdfu8).filter_map(decoded)
        })
    }

    fn names(insns: impl Iterator<Item = Insn>) -> Vec<&'static str> {
        let mut names: Vec<_> = insns.map(|insn| insn.op.name()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    #[test]
    fn what_is_not_copied_has_a_reason() {
        let left = names(all().filter(|insn| kind(insn).is_none()));
        let differing = ["fbld", "fbstp", "fprem", "fprem1", "fscale"];
        let pointers = ["fldenv", "fninit", "fnsave", "fnstenv", "frstor"];
        let nothing = ["fndisi", "fneni", "fnsetpm"];
        let mut want = [&differing[..], &pointers, &nothing].concat();
        want.sort_unstable();
        assert_eq!(left, want);
    }

    #[test]
    fn stores_write_memory_and_nothing_else_does() {
        let stores = names(all().filter(writes_memory));
        let want =
            ["fbstp", "fist", "fistp", "fisttp", "fnsave", "fnstcw", "fnstenv", "fnstsw", "fst", "fstp"];
        assert_eq!(stores, want);
    }
}
