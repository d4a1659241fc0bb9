//! AVX, AVX2, FMA and F16C: instructions with a VEX prefix that work on vector registers (Intel SDM vol. 1, chapter 14).
//!
//! A YMM register is two halves of 128 bits, and most instructions do to each half what the legacy instruction of the same
//! name does to an XMM register, by the same functions. What is written through an XMM name clears the upper half; memory
//! operands need no alignment but for the moves that say so (SDM vol. 2, 2.4 and 2.7).

mod float;
mod lanes;
mod masked;
mod moves;
mod operand;
mod permute;
mod table;

use trapgate_x86::insn::Insn;
use trapgate_x86::op::Op;

use super::fp::FpUnit;
use super::interface::{Control, Operands};
use super::operand::unexpected;
use super::save::visible_registers;
use super::sse::strings;
use super::state::VectorState;
use table::{Kind, TABLE};

/// Whether [`execute`] takes an operation.
pub(super) const fn handles(op: Op) -> bool {
    !matches!(table::kind(op), Kind::None)
}

/// Whether the memory operand's index is a vector register.
pub(super) fn is_gather(op: Op) -> bool {
    TABLE[op as usize].0 == Kind::Gather
}

/// The legacy operation that does the same to 128 bits.
pub(super) fn legacy(op: Op) -> Option<Op> {
    let legacy = TABLE[op as usize].1;
    (legacy != op).then_some(legacy)
}

pub(super) fn execute<O: Operands, F: FpUnit>(
    state: &mut VectorState,
    control: &Control,
    fp: &F,
    insn: &Insn,
    ops: &mut O,
) -> Result<(), O::Fault> {
    control.check_avx()?;
    let (kind, legacy) = TABLE[insn.op as usize];
    match kind {
        Kind::Lanes => lanes::lanes(state, insn, ops, legacy),
        Kind::Widen => lanes::widen(state, insn, ops, legacy),
        Kind::Shift => lanes::shift(state, insn, ops, legacy),
        Kind::Immediate => lanes::immediate(state, insn, ops, legacy),
        Kind::Other => lanes::other(state, insn, ops),
        Kind::Float => float::execute(state, control, fp, insn, ops, legacy),
        Kind::Fused => float::fused(state, control, fp, insn, ops),
        Kind::Half => float::half(state, control, fp, insn, ops),
        Kind::Text => text(state, insn, ops, legacy),
        Kind::Move => moves::execute(state, insn, ops),
        Kind::Permute => permute::execute(state, insn, ops),
        Kind::Masked => masked::execute(state, insn, ops),
        Kind::Gather => masked::gather(state, insn, ops),
        Kind::Zero => {
            zero(state, control, insn.op);
            Ok(())
        }
        Kind::None => Err(unexpected()),
    }
}

/// VPCMPESTRI and its kin. W chooses the width of explicit lengths; XMM0 as result is written like any other.
fn text<O: Operands>(state: &mut VectorState, insn: &Insn, ops: &mut O, legacy: Op) -> Result<(), O::Fault> {
    strings::compare_strings(state, insn, ops, legacy, insn.opsize == 8)?;
    if matches!(insn.op, Op::Vpcmpestrm | Op::Vpcmpistrm) {
        state.ymm_high[0] = 0;
    }
    Ok(())
}

/// Outside 64-bit mode the registers that have no name there stay (SDM vol. 2, VZEROALL).
fn zero(state: &mut VectorState, control: &Control, op: Op) {
    let visible = visible_registers(control);
    state.ymm_high[..visible].fill(0);
    if op == Op::Vzeroall {
        state.xmm[..visible].fill(0);
    }
}
