//! x87 instructions (Intel SDM vol. 1, chapter 8): the register stack, its faults, exceptions and pointers here, the
//! numbers in [`super::fp::FpUnit`].

mod arith;
mod environment;
mod stack;
mod transfer;

use trapgate_x86::insn::{Insn, Operand};
use trapgate_x86::op::Op;

use super::fp::{FpUnit, X87Arith, X87Binary, X87Unary};
use super::interface::{CR0_MP, CR0_TS, Control, Operands, VectorException};
use super::operand::{check_pending, unexpected};
use super::state::{VectorState, X87State, fsw};

/// Executes an x87 instruction or EMMS.
pub(super) fn execute<O: Operands, F: FpUnit>(
    state: &mut VectorState,
    control: &Control,
    fp: &F,
    insn: &Insn,
    ops: &mut O,
) -> Result<(), O::Fault> {
    match insn.op {
        Op::Fwait => {
            if control.cr0 & (CR0_MP | CR0_TS) == CR0_MP | CR0_TS {
                return Err(VectorException::DeviceNotAvailable.into());
            }
            return Ok(check_pending(state)?);
        }
        Op::Emms => {
            control.check_mmx()?;
            check_pending(state)?;
            state.x87.enter_mmx();
            state.x87.tags = 0;
            return Ok(());
        }
        _ => control.check_x87()?,
    }
    match insn.op {
        Op::Fnclex | Op::Fninit | Op::Fnstcw | Op::Fnstsw | Op::Fnstenv | Op::Fnsave => {
            environment::without_wait(&mut state.x87, control, insn, ops)
        }
        // No operation since the 287 and 387 (SDM vol. 3, 23.18.6).
        Op::Fneni | Op::Fndisi | Op::Fnsetpm => Ok(()),
        Op::Fldcw | Op::Fldenv | Op::Frstor => {
            check_pending(state)?;
            environment::load(&mut state.x87, control, insn, ops)
        }
        _ => {
            check_pending(state)?;
            numeric(&mut state.x87, fp, insn, ops)?;
            record(&mut state.x87, control, insn, ops);
            Ok(())
        }
    }
}

/// Instructions that are not control instructions. Nothing has changed when one returns a fault.
fn numeric<O: Operands, F: FpUnit>(
    x87: &mut X87State,
    fp: &F,
    insn: &Insn,
    ops: &mut O,
) -> Result<(), O::Fault> {
    match insn.op {
        Op::Fadd | Op::Fiadd => arith::arith(x87, fp, insn, ops, X87Arith::Add, false),
        Op::Fmul | Op::Fimul => arith::arith(x87, fp, insn, ops, X87Arith::Mul, false),
        Op::Fsub | Op::Fisub => arith::arith(x87, fp, insn, ops, X87Arith::Sub, false),
        Op::Fsubr | Op::Fisubr => arith::arith(x87, fp, insn, ops, X87Arith::SubReversed, false),
        Op::Fdiv | Op::Fidiv => arith::arith(x87, fp, insn, ops, X87Arith::Div, false),
        Op::Fdivr | Op::Fidivr => arith::arith(x87, fp, insn, ops, X87Arith::DivReversed, false),
        Op::Faddp => arith::arith(x87, fp, insn, ops, X87Arith::Add, true),
        Op::Fmulp => arith::arith(x87, fp, insn, ops, X87Arith::Mul, true),
        Op::Fsubp => arith::arith(x87, fp, insn, ops, X87Arith::Sub, true),
        Op::Fsubrp => arith::arith(x87, fp, insn, ops, X87Arith::SubReversed, true),
        Op::Fdivp => arith::arith(x87, fp, insn, ops, X87Arith::Div, true),
        Op::Fdivrp => arith::arith(x87, fp, insn, ops, X87Arith::DivReversed, true),
        Op::Fcom | Op::Ficom => arith::compare(x87, fp, insn, ops, false, 0),
        Op::Fcomp | Op::Ficomp => arith::compare(x87, fp, insn, ops, false, 1),
        Op::Fcompp => arith::compare(x87, fp, insn, ops, false, 2),
        Op::Fucom => arith::compare(x87, fp, insn, ops, true, 0),
        Op::Fucomp => arith::compare(x87, fp, insn, ops, true, 1),
        Op::Fucompp => arith::compare(x87, fp, insn, ops, true, 2),
        Op::Fcomi => arith::compare_to_flags(x87, fp, insn, ops, false, false),
        Op::Fcomip => arith::compare_to_flags(x87, fp, insn, ops, false, true),
        Op::Fucomi => arith::compare_to_flags(x87, fp, insn, ops, true, false),
        Op::Fucomip => arith::compare_to_flags(x87, fp, insn, ops, true, true),
        Op::Fld | Op::Fild | Op::Fbld => transfer::load(x87, fp, insn, ops),
        Op::Fst | Op::Fist => transfer::store(x87, fp, insn, ops, false),
        Op::Fstp | Op::Fistp | Op::Fisttp | Op::Fbstp => transfer::store(x87, fp, insn, ops, true),
        Op::Fcmovcc => transfer::conditional_move(x87, insn, ops),
        _ => {
            on_stack(x87, fp, insn)?;
            Ok(())
        }
    }
}

/// Instructions without operands other than stack registers.
fn on_stack<F: FpUnit>(x87: &mut X87State, fp: &F, insn: &Insn) -> Result<(), VectorException> {
    match insn.op {
        Op::Fld1 | Op::Fldl2t | Op::Fldl2e | Op::Fldpi | Op::Fldlg2 | Op::Fldln2 | Op::Fldz => {
            transfer::constant(x87, insn.op)
        }
        Op::Fchs => transfer::sign(x87, |value| value.negate()),
        Op::Fabs => transfer::sign(x87, |value| value.abs()),
        Op::Fxch => transfer::exchange(x87, last_st(insn)?),
        Op::Ftst => arith::test(x87, fp),
        Op::Fxam => arith::examine(x87),
        Op::Fsqrt => arith::unary(x87, fp, X87Unary::SquareRoot),
        Op::Frndint => arith::unary(x87, fp, X87Unary::RoundToInteger),
        Op::Fsin => arith::unary(x87, fp, X87Unary::Sin),
        Op::Fcos => arith::unary(x87, fp, X87Unary::Cos),
        Op::F2xm1 => arith::unary(x87, fp, X87Unary::TwoToXMinus1),
        Op::Fsincos => arith::unary_pushing(x87, fp, X87Unary::SinCos),
        Op::Fptan => arith::unary_pushing(x87, fp, X87Unary::PartialTangent),
        Op::Fxtract => arith::unary_pushing(x87, fp, X87Unary::Extract),
        Op::Fpatan => arith::binary_popping(x87, fp, X87Binary::PartialArctangent),
        Op::Fyl2x => arith::binary_popping(x87, fp, X87Binary::YLog2X),
        Op::Fyl2xp1 => arith::binary_popping(x87, fp, X87Binary::YLog2XPlus1),
        Op::Fprem => arith::binary(x87, fp, X87Binary::PartialRemainder),
        Op::Fprem1 => arith::binary(x87, fp, X87Binary::PartialRemainder1),
        Op::Fscale => arith::binary(x87, fp, X87Binary::Scale),
        Op::Fincstp => {
            x87.set_top(x87.top().wrapping_add(1));
            x87.fsw &= !fsw::C1;
        }
        Op::Fdecstp => {
            x87.set_top(x87.top().wrapping_sub(1));
            x87.fsw &= !fsw::C1;
        }
        Op::Ffree | Op::Ffreep => {
            x87.free(last_st(insn)?);
            x87.fsw &= !fsw::C1;
            if insn.op == Op::Ffreep {
                x87.pop();
            }
        }
        Op::Fnop => {}
        _ => return Err(VectorException::InvalidOpcode),
    }
    Ok(())
}

/// The stack register an instruction lists last: its only one, or the one beside ST(0).
fn last_st(insn: &Insn) -> Result<u8, VectorException> {
    let st = |operand: &Operand| if let Operand::St(i) = operand { Some(i & 7) } else { None };
    insn.operands.iter().rev().find_map(st).ok_or_else(unexpected)
}

fn has_memory(insn: &Insn) -> bool {
    matches!(insn.operands[0], Operand::Mem { .. }) || matches!(insn.operands[1], Operand::Mem { .. })
}

/// Records where the instruction and its operand stand (SDM vol. 1, 8.1.8 and 8.1.9). ES was clear before it, so ES now
/// means that it met an unmasked exception, and only then does the opcode register change.
fn record<O: Operands>(x87: &mut X87State, control: &Control, insn: &Insn, ops: &O) {
    let (selector, offset) = ops.instruction_pointer();
    x87.fip = offset;
    let excepted = x87.fsw & fsw::ES != 0;
    if excepted {
        x87.fop = ops.x87_opcode() & 0x7ff;
    }
    if !control.no_fcs_fds {
        x87.fcs = selector;
    }
    if has_memory(insn) && (excepted || !control.fdp_exception_only) {
        let (selector, offset) = ops.data_pointer();
        x87.fdp = offset;
        if !control.no_fcs_fds {
            x87.fds = selector;
        }
    }
}
