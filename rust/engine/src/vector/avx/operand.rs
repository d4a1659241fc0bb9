//! Operands of VEX instructions as pairs of 128-bit halves, the lower one first.

use trapgate_x86::insn::{Insn, Operand};

use super::super::interface::{Operands, VectorException};
use super::super::operand::{source_unaligned, unexpected};
use super::super::state::VectorState;

/// A YMM register or as much memory. What is shorter has zeros above it.
pub(super) type Wide = [u128; 2];

pub(super) const fn is_ymm(operand: Operand) -> bool {
    matches!(operand, Operand::Ymm(_))
}

/// The value of a source operand; memory need not be aligned.
#[inline(always)]
pub(super) fn read<O: Operands>(
    state: &VectorState,
    ops: &mut O,
    operand: Operand,
) -> Result<Wide, O::Fault> {
    match operand {
        Operand::Ymm(reg) => {
            let reg = usize::from(reg & 15);
            Ok([state.xmm[reg], state.ymm_high[reg]])
        }
        Operand::Mem { size: 32 } => {
            let mut bytes = [0; 32];
            ops.load(0, &mut bytes)?;
            Ok(from_bytes(bytes))
        }
        other => Ok([source_unaligned(state, ops, other)?, 0]),
    }
}

/// Both halves of a vector register, whatever it is called.
#[inline(always)]
pub(super) fn register<F: From<VectorException>>(state: &VectorState, operand: Operand) -> Result<Wide, F> {
    match operand {
        Operand::Xmm(reg) => Ok([state.xmm[usize::from(reg & 15)], 0]),
        Operand::Ymm(reg) => {
            let reg = usize::from(reg & 15);
            Ok([state.xmm[reg], state.ymm_high[reg]])
        }
        _ => Err(unexpected()),
    }
}

/// The two sources of an instruction: the second and third operand, or of two operands the second for both.
#[inline(always)]
pub(super) fn sources<O: Operands>(
    state: &VectorState,
    insn: &Insn,
    ops: &mut O,
) -> Result<(Wide, Wide), O::Fault> {
    let [_, first, second, _] = insn.operands;
    if let Operand::None | Operand::Imm { .. } = second {
        let value = read(state, ops, first)?;
        return Ok((value, value));
    }
    let b = read(state, ops, second)?;
    Ok((register(state, first)?, b))
}

/// Writes a vector register, of which an XMM name clears the upper half, or as much memory as the operand says.
#[inline(always)]
pub(super) fn write<O: Operands>(
    state: &mut VectorState,
    ops: &mut O,
    operand: Operand,
    value: Wide,
) -> Result<(), O::Fault> {
    match operand {
        Operand::Xmm(reg) => {
            let reg = usize::from(reg & 15);
            (state.xmm[reg], state.ymm_high[reg]) = (value[0], 0);
            Ok(())
        }
        Operand::Ymm(reg) => {
            let reg = usize::from(reg & 15);
            (state.xmm[reg], state.ymm_high[reg]) = (value[0], value[1]);
            Ok(())
        }
        Operand::Mem { size } if size <= 32 => ops.store(0, &to_bytes(value)[..usize::from(size)]),
        Operand::Gpr { reg, size } => {
            ops.set_gpr(reg, value[0] as u64, size);
            Ok(())
        }
        _ => Err(unexpected()),
    }
}

pub(super) fn to_bytes(value: Wide) -> [u8; 32] {
    let halves = value.map(u128::to_le_bytes);
    std::array::from_fn(|i| halves[i / 16][i % 16])
}

pub(super) fn from_bytes(bytes: [u8; 32]) -> Wide {
    [0, 16].map(|at| u128::from_le_bytes(std::array::from_fn(|i| bytes[at + i])))
}
