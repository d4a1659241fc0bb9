//! SSE floating-point instructions: operands to the unit, flags and exceptions back (Intel SDM vol. 1, 11.5). An
//! instruction with an unmasked exception changes MXCSR's flags and nothing else.

use std::array::from_fn;

use trapgate_x86::insn::{Insn, Operand};
use trapgate_x86::op::Op;

use super::super::fp::{Arith, Convert, Estimate, Form, FpUnit, SseResult, mxcsr};
use super::super::interface::{Control, Operands, VectorException};
use super::super::operand::{check_pending, mmx_of, source, source_unaligned, unexpected, xmm_of};
use super::super::state::VectorState;
use super::lanes::{from_u32s, from_u64s, u32s, u64s};

/// What an instruction asks of the unit.
#[derive(Clone, Copy)]
pub(in crate::vector) enum Plan {
    Arith(Arith, Form),
    Sqrt(Form),
    Compare(Form),
    Round(Form),
    Estimate(Estimate, Form),
    /// COMISx or, quiet, UCOMISx.
    Order {
        quiet: bool,
        double: bool,
    },
    AddSub(Form),
    Horizontal(Arith, Form),
    Dot(Form),
    Convert(Convert),
    /// By the size of the general register or memory operand: 4 or 8 bytes.
    Integer(Convert, Convert),
    FromMmx(Convert),
    ToMmx(Convert),
}

#[inline(always)]
pub(in crate::vector) fn plan(op: Op) -> Option<Plan> {
    use Arith::*;
    use Form::*;
    Some(match op {
        Op::Addps => Plan::Arith(Add, Ps),
        Op::Addpd => Plan::Arith(Add, Pd),
        Op::Addss => Plan::Arith(Add, Ss),
        Op::Addsd => Plan::Arith(Add, Sd),
        Op::Subps => Plan::Arith(Sub, Ps),
        Op::Subpd => Plan::Arith(Sub, Pd),
        Op::Subss => Plan::Arith(Sub, Ss),
        Op::Subsd => Plan::Arith(Sub, Sd),
        Op::Mulps => Plan::Arith(Mul, Ps),
        Op::Mulpd => Plan::Arith(Mul, Pd),
        Op::Mulss => Plan::Arith(Mul, Ss),
        Op::Mulsd => Plan::Arith(Mul, Sd),
        Op::Divps => Plan::Arith(Div, Ps),
        Op::Divpd => Plan::Arith(Div, Pd),
        Op::Divss => Plan::Arith(Div, Ss),
        Op::Divsd => Plan::Arith(Div, Sd),
        Op::Minps => Plan::Arith(Min, Ps),
        Op::Minpd => Plan::Arith(Min, Pd),
        Op::Minss => Plan::Arith(Min, Ss),
        Op::Minsd => Plan::Arith(Min, Sd),
        Op::Maxps => Plan::Arith(Max, Ps),
        Op::Maxpd => Plan::Arith(Max, Pd),
        Op::Maxss => Plan::Arith(Max, Ss),
        Op::Maxsd => Plan::Arith(Max, Sd),
        Op::Sqrtps => Plan::Sqrt(Ps),
        Op::Sqrtpd => Plan::Sqrt(Pd),
        Op::Sqrtss => Plan::Sqrt(Ss),
        Op::Sqrtsd => Plan::Sqrt(Sd),
        Op::Cmpps => Plan::Compare(Ps),
        Op::Cmppd => Plan::Compare(Pd),
        Op::Cmpss => Plan::Compare(Ss),
        Op::CmpsdXmm => Plan::Compare(Sd),
        Op::Roundps => Plan::Round(Ps),
        Op::Roundpd => Plan::Round(Pd),
        Op::Roundss => Plan::Round(Ss),
        Op::Roundsd => Plan::Round(Sd),
        Op::Rcpps => Plan::Estimate(Estimate::Reciprocal, Ps),
        Op::Rcpss => Plan::Estimate(Estimate::Reciprocal, Ss),
        Op::Rsqrtps => Plan::Estimate(Estimate::ReciprocalRoot, Ps),
        Op::Rsqrtss => Plan::Estimate(Estimate::ReciprocalRoot, Ss),
        Op::Comiss => Plan::Order { quiet: false, double: false },
        Op::Comisd => Plan::Order { quiet: false, double: true },
        Op::Ucomiss => Plan::Order { quiet: true, double: false },
        Op::Ucomisd => Plan::Order { quiet: true, double: true },
        Op::Addsubps => Plan::AddSub(Ps),
        Op::Addsubpd => Plan::AddSub(Pd),
        Op::Haddps => Plan::Horizontal(Add, Ps),
        Op::Haddpd => Plan::Horizontal(Add, Pd),
        Op::Hsubps => Plan::Horizontal(Sub, Ps),
        Op::Hsubpd => Plan::Horizontal(Sub, Pd),
        Op::Dpps => Plan::Dot(Ps),
        Op::Dppd => Plan::Dot(Pd),
        Op::Cvtdq2ps => Plan::Convert(Convert::DqToPs),
        Op::Cvtdq2pd => Plan::Convert(Convert::DqToPd),
        Op::Cvtps2dq => Plan::Convert(Convert::PsToDq),
        Op::Cvttps2dq => Plan::Convert(Convert::PsToDqTruncated),
        Op::Cvtpd2dq => Plan::Convert(Convert::PdToDq),
        Op::Cvttpd2dq => Plan::Convert(Convert::PdToDqTruncated),
        Op::Cvtps2pd => Plan::Convert(Convert::PsToPd),
        Op::Cvtpd2ps => Plan::Convert(Convert::PdToPs),
        Op::Cvtss2sd => Plan::Convert(Convert::SsToSd),
        Op::Cvtsd2ss => Plan::Convert(Convert::SdToSs),
        Op::Cvtsi2ss => Plan::Integer(Convert::Si32ToSs, Convert::Si64ToSs),
        Op::Cvtsi2sd => Plan::Integer(Convert::Si32ToSd, Convert::Si64ToSd),
        Op::Cvtss2si => Plan::Integer(Convert::SsToSi32, Convert::SsToSi64),
        Op::Cvtsd2si => Plan::Integer(Convert::SdToSi32, Convert::SdToSi64),
        Op::Cvttss2si => Plan::Integer(Convert::SsToSi32Truncated, Convert::SsToSi64Truncated),
        Op::Cvttsd2si => Plan::Integer(Convert::SdToSi32Truncated, Convert::SdToSi64Truncated),
        Op::Cvtpi2ps => Plan::FromMmx(Convert::DqToPs),
        Op::Cvtpi2pd => Plan::FromMmx(Convert::DqToPd),
        Op::Cvtps2pi => Plan::ToMmx(Convert::PsToDq),
        Op::Cvttps2pi => Plan::ToMmx(Convert::PsToDqTruncated),
        Op::Cvtpd2pi => Plan::ToMmx(Convert::PdToDq),
        Op::Cvttpd2pi => Plan::ToMmx(Convert::PdToDqTruncated),
        _ => return None,
    })
}

/// Whether this module executes the operation.
#[cfg(test)]
pub(in crate::vector) fn handles(op: Op) -> bool {
    plan(op).is_some()
}

/// Merges the flags an operation raised; an unmasked one is an exception.
#[inline(always)]
pub(in crate::vector) fn settle(
    state: &mut VectorState,
    control: &Control,
    result: SseResult,
) -> Result<u128, VectorException> {
    state.mxcsr |= result.flags & mxcsr::FLAGS;
    if result.flags & !(state.mxcsr >> mxcsr::MASK_SHIFT) & mxcsr::FLAGS != 0 {
        return Err(control.simd_exception());
    }
    Ok(result.value)
}

/// [`settle`] for an operation on several parts of a register, whose exceptions are reported together.
#[inline(always)]
pub(in crate::vector) fn settle_all<const N: usize>(
    state: &mut VectorState,
    control: &Control,
    results: [SseResult; N],
) -> Result<[u128; N], VectorException> {
    let flags = results.iter().fold(0, |flags, result| flags | result.flags);
    settle(state, control, SseResult { value: 0, flags: before_results(flags, state.mxcsr) })?;
    Ok(results.map(|result| result.value))
}

/// What an operation on 128 bits gives that is nothing but a function of its operands.
#[inline(always)]
pub(in crate::vector) fn compute<F: FpUnit>(
    fp: &F,
    plan: Plan,
    a: u128,
    b: u128,
    imm: u8,
    csr: u32,
) -> Option<SseResult> {
    Some(match plan {
        Plan::Arith(op, form) => fp.arith(op, form, a, b, csr),
        Plan::Sqrt(form) => fp.sqrt(form, a, b, csr),
        Plan::Compare(form) => fp.compare(imm, form, a, b, csr),
        Plan::Round(form) => fp.round(imm, form, a, b, csr),
        Plan::Estimate(op, form) => SseResult { value: fp.estimate(op, form, a, b), flags: 0 },
        Plan::Horizontal(op, form) => {
            let (x, y) = pairs(form, a, b);
            fp.arith(op, form, x, y, csr)
        }
        Plan::AddSub(form) => add_sub(fp, form, a, b, csr),
        Plan::Convert(convert) => fp.convert(convert, a, b, csr),
        _ => return None,
    })
}

pub(in crate::vector) fn execute<O: Operands, F: FpUnit>(
    state: &mut VectorState,
    control: &Control,
    fp: &F,
    insn: &Insn,
    ops: &mut O,
) -> Result<(), O::Fault> {
    control.check_sse()?;
    let [dst, src, ..] = insn.operands;
    let plan = plan(insn.op).ok_or_else(unexpected)?;
    match plan {
        Plan::Integer(narrow, wide) => return integer(state, control, fp, insn, ops, narrow, wide),
        Plan::FromMmx(convert) => return from_mmx(state, control, fp, insn, ops, convert),
        Plan::ToMmx(convert) => return to_mmx(state, control, fp, insn, ops, convert),
        _ => {}
    }
    let reg = usize::from(xmm_of(dst)?);
    let b = source(state, ops, src)?;
    let (a, csr, imm) = (state.xmm[reg], state.mxcsr, insn.imm as u8);
    let result = match plan {
        // Bits 7:3 are reserved and ignored without VEX.
        Plan::Compare(form) => fp.compare(imm & 7, form, a, b, csr),
        Plan::Order { quiet, double } => return order(state, control, fp, ops, quiet, double, a, b),
        Plan::Dot(form) => {
            [state.xmm[reg]] = dot(state, control, fp, form, [a], [b], imm)?;
            return Ok(());
        }
        _ => compute(fp, plan, a, b, imm, csr).ok_or_else(unexpected)?,
    };
    state.xmm[reg] = settle(state, control, result)?;
    Ok(())
}

/// COMISx and UCOMISx: the order of two values to the flags.
#[expect(clippy::too_many_arguments, reason = "an instruction's whole surroundings")]
#[inline(always)]
pub(in crate::vector) fn order<O: Operands, F: FpUnit>(
    state: &mut VectorState,
    control: &Control,
    fp: &F,
    ops: &mut O,
    quiet: bool,
    double: bool,
    a: u128,
    b: u128,
) -> Result<(), O::Fault> {
    let result = fp.order(quiet, double, a, b, state.mxcsr);
    let flags = settle(state, control, result)? as u64;
    ops.set_status_flags(flags);
    Ok(())
}

/// Even and odd lanes of `a` and `b` beside each other, for the horizontal operations.
fn pairs(form: Form, a: u128, b: u128) -> (u128, u128) {
    let (a, b) = (a.to_le_bytes(), b.to_le_bytes());
    let (even, odd) = if form.double() {
        let ([a0, a1], [b0, b1]) = (u64s(a), u64s(b));
        (from_u64s([a0, b0]), from_u64s([a1, b1]))
    } else {
        let ([a0, a1, a2, a3], [b0, b1, b2, b3]) = (u32s(a), u32s(b));
        (from_u32s([a0, a2, b0, b2]), from_u32s([a1, a3, b1, b3]))
    };
    (u128::from_le_bytes(even), u128::from_le_bytes(odd))
}

/// Subtracts the even lanes and adds the odd ones. The lanes that do not count are zero, which raises nothing. With
/// unmasked exceptions the flags of both halves are found before either is reported.
fn add_sub<F: FpUnit>(fp: &F, form: Form, a: u128, b: u128, csr: u32) -> SseResult {
    let even = if form.double() { u64::MAX.into() } else { 0xffff_ffff_0000_0000_ffff_ffff };
    let sub = fp.arith(Arith::Sub, form, a & even, b & even, csr);
    let add = fp.arith(Arith::Add, form, a & !even, b & !even, csr);
    SseResult {
        value: sub.value & even | add.value & !even,
        flags: before_results(sub.flags | add.flags, csr),
    }
}

/// If an unmasked invalid, denormal or zero-divide exception is among the flags, no result is computed, and only such
/// flags are set (SDM vol. 1, 11.5.2.3).
fn before_results(flags: u32, csr: u32) -> u32 {
    let early = mxcsr::IE | mxcsr::DE | mxcsr::ZE;
    if flags & early & !(csr >> mxcsr::MASK_SHIFT) != 0 { flags & early } else { flags }
}

/// DPPS and DPPD: products of the lanes selected by imm8\[7:4\], summed pairwise, to the lanes of imm8\[3:0\]. Each step
/// raises its exceptions before the next, for all parts of the register together.
pub(in crate::vector) fn dot<F: FpUnit, const N: usize>(
    state: &mut VectorState,
    control: &Control,
    fp: &F,
    form: Form,
    a: [u128; N],
    b: [u128; N],
    imm: u8,
) -> Result<[u128; N], VectorException> {
    let lanes = form.lanes();
    let width = 128 / lanes;
    let lane = u128::MAX >> (128 - width);
    let spread = |bits: u8| (0..lanes).filter(|i| bits >> i & 1 != 0).fold(0, |m, i| m | lane << (i * width));
    let selected = spread(imm >> 4);
    let csr = state.mxcsr;
    let arith = |op, a: [u128; N], b: [u128; N]| from_fn(|i| fp.arith(op, form, a[i], b[i], csr));
    let products = arith(Arith::Mul, a.map(|a| a & selected), b.map(|b| b & selected));
    let products = settle_all(state, control, products)?;
    // Every lane sums for itself, as processors do; the order of the two decides which of two NaNs wins.
    let sum = if form.double() {
        settle_all(state, control, arith(Arith::Add, products, products.map(|p| swap(p, 64))))?
    } else {
        let pairs = arith(Arith::Add, products.map(|p| swap(p, 32)), products);
        let pairs = settle_all(state, control, pairs)?;
        settle_all(state, control, arith(Arith::Add, pairs, pairs.map(|p| swap(p, 64))))?
    };
    Ok(sum.map(|sum| sum & spread(imm)))
}

/// Exchanges neighbouring groups of `width` bits, 32 or 64.
fn swap(value: u128, width: usize) -> u128 {
    if width == 64 {
        return value.rotate_left(64);
    }
    let [a, b, c, d] = u32s(value.to_le_bytes());
    u128::from_le_bytes(from_u32s([b, a, d, c]))
}

/// CVTSI2SS and its kin, both ways.
fn integer<O: Operands, F: FpUnit>(
    state: &mut VectorState,
    control: &Control,
    fp: &F,
    insn: &Insn,
    ops: &mut O,
    narrow: Convert,
    wide: Convert,
) -> Result<(), O::Fault> {
    let [dst, src, ..] = insn.operands;
    let b = source_unaligned(state, ops, src)?;
    match (dst, src) {
        (Operand::Gpr { reg, size }, _) => {
            let convert = if size == 8 { wide } else { narrow };
            let result = fp.convert(convert, 0, b, state.mxcsr);
            let value = settle(state, control, result)?;
            ops.set_gpr(reg, value as u64, size);
        }
        (Operand::Xmm(reg), Operand::Gpr { size: 8, .. } | Operand::Mem { size: 8 }) => {
            let result = fp.convert(wide, state.xmm[usize::from(reg & 15)], b, state.mxcsr);
            state.xmm[usize::from(reg & 15)] = settle(state, control, result)?;
        }
        (Operand::Xmm(reg), _) => {
            let result = fp.convert(narrow, state.xmm[usize::from(reg & 15)], b, state.mxcsr);
            state.xmm[usize::from(reg & 15)] = settle(state, control, result)?;
        }
        _ => return Err(unexpected()),
    }
    Ok(())
}

/// CVTPI2PS and CVTPI2PD. With a memory operand they have nothing to do with MMX: the manual says so of CVTPI2PD alone
/// (SDM vol. 2), processors do so for both.
fn from_mmx<O: Operands, F: FpUnit>(
    state: &mut VectorState,
    control: &Control,
    fp: &F,
    insn: &Insn,
    ops: &mut O,
    convert: Convert,
) -> Result<(), O::Fault> {
    let [dst, src, ..] = insn.operands;
    let reg = usize::from(xmm_of(dst)?);
    let mmx = matches!(src, Operand::Mmx(_));
    if mmx {
        check_pending(state)?;
    }
    let b = source_unaligned(state, ops, src)?;
    // The transition to MMX comes before a SIMD exception and is not undone.
    if mmx {
        state.x87.enter_mmx();
    }
    let result = fp.convert(convert, 0, b, state.mxcsr);
    let value = settle(state, control, result)?;
    // Single results are two lanes, the upper two stay.
    if convert == Convert::DqToPs {
        state.set_low64(reg as u8, value as u64)
    } else {
        state.xmm[reg] = value
    }
    Ok(())
}

/// CVTPS2PI, CVTPD2PI and their truncating forms.
fn to_mmx<O: Operands, F: FpUnit>(
    state: &mut VectorState,
    control: &Control,
    fp: &F,
    insn: &Insn,
    ops: &mut O,
    convert: Convert,
) -> Result<(), O::Fault> {
    let [dst, src, ..] = insn.operands;
    let reg = mmx_of(dst)?;
    check_pending(state)?;
    let single = matches!(convert, Convert::PsToDq | Convert::PsToDqTruncated);
    let b = source(state, ops, src)? & if single { u64::MAX.into() } else { u128::MAX };
    state.x87.enter_mmx();
    let result = fp.convert(convert, 0, b, state.mxcsr);
    let value = settle(state, control, result)?;
    state.x87.set_mmx(reg, value as u64);
    Ok(())
}
