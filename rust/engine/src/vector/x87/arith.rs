//! Arithmetic, comparisons and functions of the x87: operands from the stack or memory, results and condition codes back.

use trapgate_x86::insn::{Insn, Operand};
use trapgate_x86::op::Op;

use super::super::fp::{FpUnit, X87Arith, X87Binary, X87Source, X87Unary};
use super::super::interface::{Operands, eflags};
use super::super::operand::unexpected;
use super::super::state::{F80, X87State, fsw};
use super::last_st;

const UNORDERED: u16 = fsw::C0 | fsw::C2 | fsw::C3;

/// The memory operand, floating point or integer by the operation.
fn memory_source<O: Operands>(insn: &Insn, size: u16, ops: &mut O) -> Result<X87Source, O::Fault> {
    let integer = matches!(
        insn.op,
        Op::Fiadd | Op::Fimul | Op::Fisub | Op::Fisubr | Op::Fidiv | Op::Fidivr | Op::Ficom | Op::Ficomp
    );
    Ok(match (integer, size) {
        (false, 4) => X87Source::F32(ops.load_u32()?),
        (false, 8) => X87Source::F64(ops.load_u64()?),
        (true, 2) => X87Source::I16(ops.load_u16()? as i16),
        (true, 4) => X87Source::I32(ops.load_u32()? as i32),
        _ => return Err(unexpected()),
    })
}

/// FADD and its kin, the integer forms and those that pop.
pub(super) fn arith<O: Operands, F: FpUnit>(
    x87: &mut X87State,
    fp: &F,
    insn: &Insn,
    ops: &mut O,
    op: X87Arith,
    pop: bool,
) -> Result<(), O::Fault> {
    let (dst, source) = match (insn.operands[0], insn.operands[1]) {
        (Operand::Mem { size }, _) | (_, Operand::Mem { size }) => (0, Some(memory_source(insn, size, ops)?)),
        (Operand::St(dst), Operand::St(src)) => {
            (dst, (!x87.is_empty(src)).then(|| X87Source::F80(x87.st(src))))
        }
        (Operand::St(src), _) => (0, (!x87.is_empty(src)).then(|| X87Source::F80(x87.st(src)))),
        _ => return Err(unexpected()),
    };
    let value = match source {
        Some(source) if !x87.is_empty(dst) => {
            let result = fp.x87_arith(op, x87.st(dst), source, x87.fcw);
            x87.merge(result.status).then_some(result.value)
        }
        _ => x87.underflow().then_some(F80::INDEFINITE),
    };
    if let Some(value) = value {
        x87.set_st(dst, value);
        if pop {
            x87.pop();
        }
    }
    Ok(())
}

/// FCOM and its kin, with `pops` of 0 to 2.
pub(super) fn compare<O: Operands, F: FpUnit>(
    x87: &mut X87State,
    fp: &F,
    insn: &Insn,
    ops: &mut O,
    quiet: bool,
    pops: u8,
) -> Result<(), O::Fault> {
    let source = match (insn.operands[0], insn.operands[1]) {
        (Operand::Mem { size }, _) | (_, Operand::Mem { size }) => Some(memory_source(insn, size, ops)?),
        _ => {
            // FCOMPP and FUCOMPP list no operands.
            let i = last_st(insn).unwrap_or(1);
            (!x87.is_empty(i)).then(|| X87Source::F80(x87.st(i)))
        }
    };
    compare_codes(x87, fp, source, quiet, pops);
    Ok(())
}

fn compare_codes<F: FpUnit>(x87: &mut X87State, fp: &F, source: Option<X87Source>, quiet: bool, pops: u8) {
    let (codes, proceeds) = match source {
        Some(source) if !x87.is_empty(0) => {
            let status = fp.x87_compare(quiet, x87.st(0), source, x87.fcw);
            (status, x87.merge(status & !fsw::C1))
        }
        _ => (UNORDERED, x87.underflow()),
    };
    // Processors set the condition codes even when the exception is unmasked.
    x87.set_codes(codes);
    if proceeds {
        (0..pops).for_each(|_| x87.pop());
    }
}

/// FTST.
pub(super) fn test<F: FpUnit>(x87: &mut X87State, fp: &F) {
    compare_codes(x87, fp, Some(X87Source::F80(F80::ZERO)), false, 0);
}

/// FCOMI and its kin: CF, PF and ZF instead of C0, C2 and C3.
pub(super) fn compare_to_flags<O: Operands, F: FpUnit>(
    x87: &mut X87State,
    fp: &F,
    insn: &Insn,
    ops: &mut O,
    quiet: bool,
    pop: bool,
) -> Result<(), O::Fault> {
    let i = last_st(insn)?;
    let (codes, proceeds) = if x87.is_empty(0) || x87.is_empty(i) {
        (UNORDERED, x87.underflow())
    } else {
        let status = fp.x87_compare(quiet, x87.st(0), X87Source::F80(x87.st(i)), x87.fcw);
        (status, x87.merge(status & !fsw::C1 | x87.fsw & fsw::C1))
    };
    let flag = |code, flag| if codes & code != 0 { flag } else { 0 };
    ops.set_status_flags(flag(fsw::C0, eflags::CF) | flag(fsw::C2, eflags::PF) | flag(fsw::C3, eflags::ZF));
    if proceeds && pop {
        x87.pop();
    }
    Ok(())
}

/// FXAM: C1 the sign, C3, C2 and C0 the class (SDM vol. 2, FXAM).
pub(super) fn examine(x87: &mut X87State) {
    let value = x87.st(0);
    let integer = value.significand >> 63 != 0;
    let class = match (x87.is_empty(0), value.exponent()) {
        (true, _) => fsw::C3 | fsw::C0,
        (_, 0) if value.significand == 0 => fsw::C3,
        (_, 0) => fsw::C3 | fsw::C2,
        (_, _) if !integer => 0,
        (_, 0x7fff) if value.significand << 1 == 0 => fsw::C2 | fsw::C0,
        (_, 0x7fff) => fsw::C0,
        _ => fsw::C2,
    };
    x87.set_codes(class);
    x87.fsw = x87.fsw & !fsw::C1 | if value.sign() { fsw::C1 } else { 0 };
}

/// Functions of ST(0) whose result replaces it. FSIN and FCOS tell by C2 that the operand was out of range.
pub(super) fn unary<F: FpUnit>(x87: &mut X87State, fp: &F, op: X87Unary) {
    if matches!(op, X87Unary::Sin | X87Unary::Cos) {
        x87.fsw &= !fsw::C2;
    }
    if x87.is_empty(0) {
        if x87.underflow() {
            x87.set_st(0, F80::INDEFINITE);
        }
        return;
    }
    let result = fp.x87_unary(op, x87.st(0), x87.fcw);
    if x87.merge(result.status) {
        x87.set_st(0, result.value);
    }
    if matches!(op, X87Unary::Sin | X87Unary::Cos) {
        x87.fsw |= result.status & fsw::C2;
    }
}

/// FSINCOS, FPTAN and FXTRACT: one result replaces ST(0), the other is pushed.
pub(super) fn unary_pushing<F: FpUnit>(x87: &mut X87State, fp: &F, op: X87Unary) {
    if op != X87Unary::Extract {
        x87.fsw &= !fsw::C2;
    }
    if x87.is_empty(0) || x87.is_full() {
        let masked = if x87.is_empty(0) { x87.underflow() } else { x87.overflow() };
        if masked {
            x87.set_st(0, F80::INDEFINITE);
            x87.push(F80::INDEFINITE);
        }
        return;
    }
    let result = fp.x87_unary(op, x87.st(0), x87.fcw);
    if x87.merge(result.status) {
        x87.set_st(0, result.value);
        if let Some(pushed) = result.pushed {
            x87.push(pushed);
        }
    }
    if op != X87Unary::Extract {
        x87.fsw |= result.status & fsw::C2;
    }
}

/// FPREM, FPREM1 and FSCALE; the remainders tell the quotient's low bits and completion by the condition codes.
pub(super) fn binary<F: FpUnit>(x87: &mut X87State, fp: &F, op: X87Binary) {
    if op != X87Binary::Scale {
        x87.fsw &= !fsw::C2;
    }
    if x87.is_empty(0) || x87.is_empty(1) {
        if x87.underflow() {
            x87.set_st(0, F80::INDEFINITE);
        }
        return;
    }
    let result = fp.x87_binary(op, x87.st(0), x87.st(1), x87.fcw);
    if x87.merge(result.status) {
        x87.set_st(0, result.value);
        // A NaN has no quotient to report.
        let nan = result.value.exponent() == 0x7fff && result.value.significand << 1 != 0;
        if op != X87Binary::Scale && !nan {
            x87.set_codes(result.status);
        }
    }
}

/// FPATAN, FYL2X and FYL2XP1: the result replaces ST(1), ST(0) is popped.
pub(super) fn binary_popping<F: FpUnit>(x87: &mut X87State, fp: &F, op: X87Binary) {
    let value = if x87.is_empty(0) || x87.is_empty(1) {
        x87.underflow().then_some(F80::INDEFINITE)
    } else {
        let result = fp.x87_binary(op, x87.st(0), x87.st(1), x87.fcw);
        x87.merge(result.status).then_some(result.value)
    };
    if let Some(value) = value {
        x87.set_st(1, value);
        x87.pop();
    }
}
