//! Fetching and storing the operands of vector instructions, with the alignment rule of legacy SSE
//! (Intel SDM vol. 2, 2.8, exception classes 1 to 5 and vol. 3, 23.25).

use trapgate_x86::insn::Operand;

use super::interface::{Operands, VectorException};
use super::state::{VectorState, fsw};

/// An operand that the operation does not have: the decoder's tables and these disagree.
#[cold]
pub(super) fn unexpected<F: From<VectorException>>() -> F {
    VectorException::InvalidOpcode.into()
}

/// A 16-byte operand of legacy SSE must be aligned, whatever the segment.
#[inline(always)]
pub(super) fn check_aligned<O: Operands>(ops: &O) -> Result<(), O::Fault> {
    if ops.linear_address() & 15 == 0 { Ok(()) } else { Err(VectorException::GeneralProtection.into()) }
}

/// Reports a pending x87 exception, as waiting instructions do before they execute.
#[inline(always)]
pub(super) fn check_pending(state: &VectorState) -> Result<(), VectorException> {
    if state.x87.fsw & fsw::ES == 0 { Ok(()) } else { Err(VectorException::FpuError) }
}

/// The value of a source operand, zero-extended; 16 bytes in memory must be aligned.
#[inline(always)]
pub(super) fn source<O: Operands>(
    state: &VectorState,
    ops: &mut O,
    operand: Operand,
) -> Result<u128, O::Fault> {
    match operand {
        Operand::Xmm(reg) => Ok(state.xmm[usize::from(reg & 15)]),
        Operand::Mem { size: 16 } => {
            check_aligned(ops)?;
            ops.load_u128()
        }
        other => narrow(state, ops, other),
    }
}

/// The value of a source operand, zero-extended; memory need not be aligned.
#[inline(always)]
pub(super) fn source_unaligned<O: Operands>(
    state: &VectorState,
    ops: &mut O,
    operand: Operand,
) -> Result<u128, O::Fault> {
    match operand {
        Operand::Xmm(reg) => Ok(state.xmm[usize::from(reg & 15)]),
        Operand::Mem { size: 16 } => ops.load_u128(),
        other => narrow(state, ops, other),
    }
}

fn narrow<O: Operands>(state: &VectorState, ops: &mut O, operand: Operand) -> Result<u128, O::Fault> {
    Ok(match operand {
        Operand::Mem { size: 8 } => ops.load_u64()?.into(),
        Operand::Mem { size: 4 } => ops.load_u32()?.into(),
        Operand::Mem { size: 2 } => ops.load_u16()?.into(),
        Operand::Mem { size: 1 } => {
            let mut byte = [0];
            ops.load(0, &mut byte)?;
            byte[0].into()
        }
        Operand::Gpr { reg, size } => (ops.gpr(reg) & size_mask(size)).into(),
        Operand::High { reg } => (ops.gpr(reg) >> 8 & 0xff).into(),
        Operand::Mmx(reg) => state.x87.mmx(reg).into(),
        _ => return Err(unexpected()),
    })
}

/// The low `size` bytes.
pub(super) fn size_mask(size: u8) -> u64 {
    if size >= 8 { u64::MAX } else { (1 << (8 * u32::from(size))) - 1 }
}

/// Writes an XMM register whole, a general register, an MMX register or that many bytes of unaligned memory.
#[inline(always)]
pub(super) fn write<O: Operands>(
    state: &mut VectorState,
    ops: &mut O,
    operand: Operand,
    value: u128,
) -> Result<(), O::Fault> {
    match operand {
        Operand::Xmm(reg) => state.xmm[usize::from(reg & 15)] = value,
        Operand::Mem { size } if size <= 16 => ops.store(0, &value.to_le_bytes()[..usize::from(size)])?,
        Operand::Gpr { reg, size } => ops.set_gpr(reg, value as u64, size),
        Operand::Mmx(reg) => state.x87.set_mmx(reg, value as u64),
        _ => return Err(unexpected()),
    }
    Ok(())
}

/// The XMM register an operand names.
#[inline(always)]
pub(super) fn xmm_of<F: From<VectorException>>(operand: Operand) -> Result<u8, F> {
    match operand {
        Operand::Xmm(reg) => Ok(reg & 15),
        _ => Err(unexpected()),
    }
}

/// The MMX register an operand names.
#[inline(always)]
pub(super) fn mmx_of<F: From<VectorException>>(operand: Operand) -> Result<u8, F> {
    match operand {
        Operand::Mmx(reg) => Ok(reg & 7),
        _ => Err(unexpected()),
    }
}

pub(super) const fn is_mmx(operand: Operand) -> bool {
    matches!(operand, Operand::Mmx(_))
}
