//! Moves of the elements that a mask selects, and gathers.

use trapgate_x86::insn::{Insn, Operand, Prefixes};
use trapgate_x86::op::Op;

use super::super::interface::{Operands, VectorException};
use super::super::operand::unexpected;
use super::super::state::VectorState;
use super::operand::{Wide, from_bytes, register, to_bytes, write};

/// The bits of the bytes that belong to elements whose sign bit is set.
fn selected(mask: Wide, size: usize, count: usize) -> u32 {
    let bytes = to_bytes(mask);
    let all = (1u32 << size) - 1;
    (0..count).filter(|i| bytes[size * i + size - 1] >> 7 != 0).fold(0, |bits, i| bits | all << (size * i))
}

/// Where each stretch of ones begins and how long it is.
fn runs(bits: u32) -> impl Iterator<Item = (usize, usize)> {
    let mut left = bits;
    std::iter::from_fn(move || {
        if left == 0 {
            return None;
        }
        let at = left.trailing_zeros();
        let len = (left >> at).trailing_ones();
        left &= !(u32::MAX >> (32 - len) << at);
        Some((at as usize, len as usize))
    })
}

/// VMASKMOVPS and its kin: elements that are not selected are neither read nor written, and cannot fault (SDM vol. 2,
/// VMASKMOV); loaded ones are zero instead.
pub(super) fn execute<O: Operands>(
    state: &mut VectorState,
    insn: &Insn,
    ops: &mut O,
) -> Result<(), O::Fault> {
    let [dst, mask, src, _] = insn.operands;
    let size = if matches!(insn.op, Op::Vmaskmovps | Op::Vpmaskmovd) { 4 } else { 8 };
    let bytes = if let Operand::Ymm(_) = mask { 32 } else { 16 };
    let bits = selected(register(state, mask)?, size, bytes / size);
    if let Operand::Mem { .. } = dst {
        let value = to_bytes(register(state, src)?);
        // Nothing is written before everything can be.
        for (at, len) in runs(bits) {
            ops.check_store(at as u64, len as u64)?;
        }
        for (at, len) in runs(bits) {
            ops.store(at as u64, &value[at..at + len])?;
        }
        return Ok(());
    }
    let mut value = [0; 32];
    for (at, len) in runs(bits) {
        ops.load(at as u64, &mut value[at..at + len])?;
    }
    write(state, ops, dst, from_bytes(value))
}

/// The elements of a gather: bytes of an index and of a value, and how many.
fn shape(insn: &Insn) -> Option<(usize, usize, usize)> {
    let (index, size) = match insn.op {
        Op::Vpgatherdd | Op::Vgatherdps => (4, 4),
        Op::Vpgatherdq | Op::Vgatherdpd => (4, 8),
        Op::Vpgatherqd | Op::Vgatherqps => (8, 4),
        Op::Vpgatherqq | Op::Vgatherqpd => (8, 8),
        _ => return None,
    };
    let length = if insn.prefixes.contains(Prefixes::VEX_L) { 32 } else { 16 };
    Some((index, size, length / index.max(size)))
}

/// Gathers (SDM vol. 2, VPGATHERDD and its kin): an element that is done with clears its part of the mask, so that after a
/// fault, which comes in the order of the elements, the instruction goes on where it was.
pub(super) fn gather<O: Operands>(state: &mut VectorState, insn: &Insn, ops: &mut O) -> Result<(), O::Fault> {
    let [dst, _, mask, _] = insn.operands;
    let (index_size, size, count) = shape(insn).ok_or_else(unexpected)?;
    let number = usize::from(insn.mem.index & 15);
    let indexes = to_bytes([state.xmm[number], state.ymm_high[number]]);
    let index = |i: usize| {
        let at = index_size * i;
        if index_size == 4 {
            i32::from_le_bytes(std::array::from_fn(|j| indexes[at + j])) as u64
        } else {
            u64::from_le_bytes(std::array::from_fn(|j| indexes[at + j]))
        }
    };
    let mut value = to_bytes(register(state, dst)?);
    let mut left = to_bytes(register(state, mask)?);
    let chosen = selected(from_bytes(left), size, count);
    for i in (0..count).map(|i| size * i) {
        if chosen >> i & 1 != 0
            && let Err(fault) = ops.load(index(i / size) << (insn.mem.scale & 3), &mut value[i..i + size])
        {
            partial(state, dst, value)?;
            partial(state, mask, left)?;
            return Err(fault);
        }
        left[i..i + size].fill(0);
    }
    // What lies beyond the last element is cleared in the value; of the mask everything is.
    value[size * count..].fill(0);
    write(state, ops, dst, from_bytes(value))?;
    write(state, ops, mask, [0; 2])
}

/// Writes a register as far as its name reaches. What a fault leaves is what has been done and no more: neither is the rest
/// of the mask made uniform nor are upper parts cleared, though the manual's pseudocode does that first (seen on a processor).
fn partial<F: From<VectorException>>(
    state: &mut VectorState,
    register: Operand,
    value: [u8; 32],
) -> Result<(), F> {
    let [low, high] = from_bytes(value);
    match register {
        Operand::Xmm(reg) => state.xmm[usize::from(reg & 15)] = low,
        Operand::Ymm(reg) => {
            let reg = usize::from(reg & 15);
            (state.xmm[reg], state.ymm_high[reg]) = (low, high);
        }
        _ => return Err(unexpected()),
    }
    Ok(())
}
