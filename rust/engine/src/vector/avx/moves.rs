//! Moves between vector registers, memory and general registers.

use trapgate_x86::insn::{Insn, Operand};
use trapgate_x86::op::Op;

use super::super::interface::{Operands, VectorException};
use super::super::operand::{size_mask, unexpected};
use super::super::sse::moves::store_masked;
use super::super::sse::shuffle::byte_signs;
use super::super::state::VectorState;
use super::operand::{Wide, is_ymm, read, register, sources, write};

const LOW: u128 = u64::MAX as u128;

#[inline(always)]
pub(super) fn execute<O: Operands>(
    state: &mut VectorState,
    insn: &Insn,
    ops: &mut O,
) -> Result<(), O::Fault> {
    let [dst, src, ..] = insn.operands;
    match insn.op {
        Op::Vmovdqu | Op::Vmovups | Op::Vmovupd | Op::Vlddqu => {
            let value = read(state, ops, src)?;
            write(state, ops, dst, value)
        }
        Op::Vmovdqa
        | Op::Vmovaps
        | Op::Vmovapd
        | Op::Vmovntps
        | Op::Vmovntpd
        | Op::Vmovntdq
        | Op::Vmovntdqa => {
            check_aligned(ops, dst, src)?;
            let value = read(state, ops, src)?;
            write(state, ops, dst, value)
        }
        Op::Vmovd | Op::Vmovq => {
            let [value, _] = read(state, ops, src)?;
            let mask = if insn.op == Op::Vmovq { LOW } else { size_mask(4).into() };
            write(state, ops, dst, [value & mask, 0])
        }
        Op::Vmovss => scalar(state, insn, ops, size_mask(4).into()),
        Op::Vmovsd => scalar(state, insn, ops, LOW),
        Op::Vmovlps | Op::Vmovlpd | Op::Vmovhps | Op::Vmovhpd | Op::Vmovhlps | Op::Vmovlhps => {
            half(state, insn, ops)
        }
        Op::Vmovmskps | Op::Vmovmskpd | Op::Vpmovmskb => sign_mask(state, insn, ops),
        Op::Vmaskmovdqu => {
            let ([value, _], [mask, _]): (Wide, Wide) = (register(state, dst)?, register(state, src)?);
            store_masked(ops, &value.to_le_bytes(), byte_signs(mask))
        }
        _ => Err(unexpected()),
    }
}

/// The moves whose memory operand must be aligned to its size (SDM vol. 2, 2.7.1, exception class 1).
fn check_aligned<O: Operands>(ops: &O, dst: Operand, src: Operand) -> Result<(), O::Fault> {
    let ((Operand::Mem { size }, _) | (_, Operand::Mem { size })) = (dst, src) else { return Ok(()) };
    if ops.linear_address() & (u64::from(size) - 1) == 0 {
        Ok(())
    } else {
        Err(VectorException::GeneralProtection.into())
    }
}

/// VMOVSS and VMOVSD: a load clears what is above the value, between registers that comes from the second operand.
fn scalar<O: Operands>(
    state: &mut VectorState,
    insn: &Insn,
    ops: &mut O,
    mask: u128,
) -> Result<(), O::Fault> {
    let ([a, _], [b, _]) = sources(state, insn, ops)?;
    let two = insn.operands[2] == Operand::None;
    let rest = if two { 0 } else { a & !mask };
    write(state, ops, insn.operands[0], [rest | b & mask, 0])
}

/// The moves of 64-bit halves of XMM.
fn half<O: Operands>(state: &mut VectorState, insn: &Insn, ops: &mut O) -> Result<(), O::Fault> {
    let ([a, _], [b, _]) = sources(state, insn, ops)?;
    let high = matches!(insn.op, Op::Vmovhps | Op::Vmovhpd);
    let value = match insn.op {
        _ if insn.operands[2] == Operand::None => {
            if high {
                b >> 64
            } else {
                b
            }
        }
        Op::Vmovhlps => a & !LOW | b >> 64,
        Op::Vmovlps | Op::Vmovlpd => a & !LOW | b & LOW,
        _ => a & LOW | b << 64,
    };
    write(state, ops, insn.operands[0], [value, 0])
}

/// VMOVMSKPS, VMOVMSKPD and VPMOVMSKB: sign bits to a general register.
fn sign_mask<O: Operands>(state: &VectorState, insn: &Insn, ops: &mut O) -> Result<(), O::Fault> {
    let [Operand::Gpr { reg, size }, src, ..] = insn.operands else { return Err(unexpected()) };
    let value: Wide = register(state, src)?;
    let signs = value.map(byte_signs);
    // The sign of a lane is that of its last byte.
    let every = |bytes: u32| {
        signs.map(|signs| {
            (0..16 / bytes).fold(0, |mask, i| mask | (signs >> (bytes * i + bytes - 1) & 1) << i)
        })
    };
    let (mask, lanes) = match insn.op {
        Op::Vpmovmskb => (signs, 16),
        Op::Vmovmskpd => (every(8), 2),
        _ => (every(4), 4),
    };
    let upper = if is_ymm(src) { mask[1] << lanes } else { 0 };
    ops.set_gpr(reg, (mask[0] | upper).into(), size);
    Ok(())
}
