//! Floating point: the plans of the legacy instructions on each half, fused operations and half precision. The exceptions
//! of both halves are found before any is reported (Intel SDM vol. 1, 14.5 and 11.5).

use trapgate_x86::insn::{Insn, Operand};
use trapgate_x86::op::Op;

use super::super::fp::{Convert, Form, FpUnit, Fused, SseResult};
use super::super::interface::{Control, Operands};
use super::super::operand::unexpected;
use super::super::sse::float::{self, Plan, compute, settle, settle_all};
use super::super::state::VectorState;
use super::operand::{Wide, is_ymm, read, register, sources, write};

const LOW: u128 = u64::MAX as u128;

/// Both halves of a 256-bit operation, or the only one.
#[inline(always)]
fn each<O: Operands>(
    state: &mut VectorState,
    control: &Control,
    long: bool,
    operation: impl Fn(usize, u32) -> Option<SseResult>,
) -> Result<Wide, O::Fault> {
    let low = operation(0, state.mxcsr).ok_or_else(unexpected)?;
    if !long {
        return Ok([settle(state, control, low)?, 0]);
    }
    let high = operation(1, state.mxcsr).ok_or_else(unexpected)?;
    Ok(settle_all(state, control, [low, high])?)
}

pub(super) fn execute<O: Operands, F: FpUnit>(
    state: &mut VectorState,
    control: &Control,
    fp: &F,
    insn: &Insn,
    ops: &mut O,
    legacy: Op,
) -> Result<(), O::Fault> {
    let plan = float::plan(legacy).ok_or_else(unexpected)?;
    let [dst, src, ..] = insn.operands;
    let imm = insn.imm as u8;
    let value = match plan {
        Plan::Integer(narrow, wide) => return integer(state, control, fp, insn, ops, narrow, wide),
        Plan::Order { quiet, double } => {
            let [b, _] = read(state, ops, src)?;
            let [a, _] = register(state, dst)?;
            return float::order(state, control, fp, ops, quiet, double, a, b);
        }
        Plan::Convert(op @ (Convert::DqToPd | Convert::PsToPd)) => {
            let [b, _] = read(state, ops, src)?;
            let parts = [b, b >> 64];
            each::<O>(state, control, is_ymm(dst), |i, csr| Some(fp.convert(op, 0, parts[i], csr)))?
        }
        Plan::Convert(op @ (Convert::PdToDq | Convert::PdToDqTruncated | Convert::PdToPs)) => {
            let b = read(state, ops, src)?;
            let long = is_ymm(src) || src == Operand::Mem { size: 32 };
            let parts = each::<O>(state, control, long, |i, csr| Some(fp.convert(op, 0, b[i], csr)))?;
            [parts[0] & LOW | parts[1] << 64, 0]
        }
        Plan::Dot(form) => {
            let (a, b) = sources(state, insn, ops)?;
            if is_ymm(dst) {
                float::dot(state, control, fp, form, a, b, imm)?
            } else {
                let [low] = float::dot(state, control, fp, form, [a[0]], [b[0]], imm)?;
                [low, 0]
            }
        }
        _ => {
            let (a, b) = sources(state, insn, ops)?;
            // Bits 7:5 of a predicate are reserved and ignored.
            let imm = if let Plan::Compare(_) = plan { imm & 31 } else { imm };
            each::<O>(state, control, is_ymm(dst), |i, csr| compute(fp, plan, a[i], b[i], imm, csr))?
        }
    };
    write(state, ops, dst, value)
}

/// VCVTSI2SS and its kin, both ways.
fn integer<O: Operands, F: FpUnit>(
    state: &mut VectorState,
    control: &Control,
    fp: &F,
    insn: &Insn,
    ops: &mut O,
    narrow: Convert,
    wide: Convert,
) -> Result<(), O::Fault> {
    let dst = insn.operands[0];
    let size = match (dst, insn.operands[2]) {
        (Operand::Gpr { size, .. }, _) | (_, Operand::Gpr { size, .. }) => u16::from(size),
        (_, Operand::Mem { size }) => size,
        _ => return Err(unexpected()),
    };
    let (a, b) = sources(state, insn, ops)?;
    let convert = if size == 8 { wide } else { narrow };
    let result = fp.convert(convert, a[0], b[0], state.mxcsr);
    let value = settle(state, control, result)?;
    write(state, ops, dst, [value, 0])
}

/// The order of the factors and the addend: which operands they are.
#[derive(Clone, Copy)]
enum Order {
    /// First times third plus second.
    O132,
    /// Second times first plus third.
    O213,
    /// Second times third plus first.
    O231,
}

/// Rows of operations that differ in their form.
macro_rules! fused_plans {
    ($op:expr; $($ps:ident $pd:ident $($ss:ident $sd:ident)? => $fused:ident $order:ident;)+) => {
        match $op {
            $(
                Op::$ps => (Fused::$fused, Order::$order, Form::Ps),
                Op::$pd => (Fused::$fused, Order::$order, Form::Pd),
                $(
                    Op::$ss => (Fused::$fused, Order::$order, Form::Ss),
                    Op::$sd => (Fused::$fused, Order::$order, Form::Sd),
                )?
            )+
            _ => return None,
        }
    };
}

#[inline(always)]
fn fused_plan(op: Op) -> Option<(Fused, Order, Form)> {
    Some(fused_plans! { op;
        Vfmadd132ps Vfmadd132pd Vfmadd132ss Vfmadd132sd => MulAdd O132;
        Vfmadd213ps Vfmadd213pd Vfmadd213ss Vfmadd213sd => MulAdd O213;
        Vfmadd231ps Vfmadd231pd Vfmadd231ss Vfmadd231sd => MulAdd O231;
        Vfmsub132ps Vfmsub132pd Vfmsub132ss Vfmsub132sd => MulSub O132;
        Vfmsub213ps Vfmsub213pd Vfmsub213ss Vfmsub213sd => MulSub O213;
        Vfmsub231ps Vfmsub231pd Vfmsub231ss Vfmsub231sd => MulSub O231;
        Vfnmadd132ps Vfnmadd132pd Vfnmadd132ss Vfnmadd132sd => NegatedMulAdd O132;
        Vfnmadd213ps Vfnmadd213pd Vfnmadd213ss Vfnmadd213sd => NegatedMulAdd O213;
        Vfnmadd231ps Vfnmadd231pd Vfnmadd231ss Vfnmadd231sd => NegatedMulAdd O231;
        Vfnmsub132ps Vfnmsub132pd Vfnmsub132ss Vfnmsub132sd => NegatedMulSub O132;
        Vfnmsub213ps Vfnmsub213pd Vfnmsub213ss Vfnmsub213sd => NegatedMulSub O213;
        Vfnmsub231ps Vfnmsub231pd Vfnmsub231ss Vfnmsub231sd => NegatedMulSub O231;
        Vfmaddsub132ps Vfmaddsub132pd => MulAddSub O132;
        Vfmaddsub213ps Vfmaddsub213pd => MulAddSub O213;
        Vfmaddsub231ps Vfmaddsub231pd => MulAddSub O231;
        Vfmsubadd132ps Vfmsubadd132pd => MulSubAdd O132;
        Vfmsubadd213ps Vfmsubadd213pd => MulSubAdd O213;
        Vfmsubadd231ps Vfmsubadd231pd => MulSubAdd O231;
    })
}

pub(super) fn fused<O: Operands, F: FpUnit>(
    state: &mut VectorState,
    control: &Control,
    fp: &F,
    insn: &Insn,
    ops: &mut O,
) -> Result<(), O::Fault> {
    let (op, order, form) = fused_plan(insn.op).ok_or_else(unexpected)?;
    let dst = insn.operands[0];
    let (second, third) = sources(state, insn, ops)?;
    let first: Wide = register(state, dst)?;
    let (x, y, z) = match order {
        Order::O132 => (first, third, second),
        Order::O213 => (second, first, third),
        Order::O231 => (second, third, first),
    };
    let mut value =
        each::<O>(state, control, is_ymm(dst), |i, csr| Some(fp.fused(op, form, x[i], y[i], z[i], csr)))?;
    // Scalar forms keep the destination's other lanes, wherever the addend came from.
    let lane = match form {
        Form::Ss => u32::MAX.into(),
        Form::Sd => LOW,
        Form::Ps | Form::Pd => u128::MAX,
    };
    value[0] = first[0] & !lane | value[0] & lane;
    write(state, ops, dst, value)
}

/// VCVTPH2PS and VCVTPS2PH.
pub(super) fn half<O: Operands, F: FpUnit>(
    state: &mut VectorState,
    control: &Control,
    fp: &F,
    insn: &Insn,
    ops: &mut O,
) -> Result<(), O::Fault> {
    let [dst, src, ..] = insn.operands;
    let source = read(state, ops, src)?;
    if insn.op == Op::Vcvtph2ps {
        let parts = [source[0], source[0] >> 64];
        let value = each::<O>(state, control, is_ymm(dst), |i, csr| Some(fp.half_to_single(parts[i], csr)))?;
        return write(state, ops, dst, value);
    }
    let imm = insn.imm as u8;
    if let Operand::Mem { size } = dst {
        // A store that cannot be made comes before the exceptions of the value (seen on a processor).
        ops.check_store(0, size.into())?;
    }
    let parts =
        each::<O>(state, control, is_ymm(src), |i, csr| Some(fp.single_to_half(imm, source[i], csr)))?;
    write(state, ops, dst, [parts[0] & LOW | parts[1] << 64, 0])
}
