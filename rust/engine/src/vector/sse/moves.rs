//! Moves between vector registers, memory and general registers (Intel SDM vol. 1, 10.4.1.1, 11.4.1 and 12.3).

use trapgate_x86::insn::{Insn, Operand};
use trapgate_x86::op::Op;

use super::super::interface::{Control, Operands};
use super::super::operand::{
    check_aligned, check_pending, is_mmx, mmx_of, size_mask, source, source_unaligned, unexpected, write,
    xmm_of,
};
use super::super::state::VectorState;
use super::shuffle::byte_signs;

const LOW: u128 = u64::MAX as u128;

#[inline(always)]
pub(in crate::vector) fn execute<O: Operands>(
    state: &mut VectorState,
    control: &Control,
    insn: &Insn,
    ops: &mut O,
) -> Result<(), O::Fault> {
    let [dst, src, ..] = insn.operands;
    match insn.op {
        Op::Movdqa | Op::Movaps | Op::Movapd | Op::Movntps | Op::Movntpd | Op::Movntdq | Op::Movntdqa => {
            control.check_sse()?;
            whole(state, ops, dst, src, true)
        }
        Op::Movdqu | Op::Movups | Op::Movupd | Op::Lddqu => {
            control.check_sse()?;
            whole(state, ops, dst, src, false)
        }
        Op::Movd | Op::Movq | Op::Movntq if is_mmx(dst) || is_mmx(src) => {
            control.check_mmx()?;
            check_pending(state)?;
            let value = source_unaligned(state, ops, src)?;
            write(state, ops, dst, value)?;
            state.x87.enter_mmx();
            Ok(())
        }
        Op::Movd | Op::Movq => {
            control.check_sse()?;
            let value = source_unaligned(state, ops, src)?;
            write(
                state,
                ops,
                dst,
                if insn.op == Op::Movq { value & LOW } else { value & size_mask_of(dst, src) },
            )
        }
        Op::Movss => {
            control.check_sse()?;
            match (dst, src) {
                (Operand::Xmm(dst), Operand::Xmm(src)) => {
                    let value = state.xmm[usize::from(src & 15)] as u32;
                    state.set_low32(dst, value);
                }
                (Operand::Xmm(dst), _) => state.xmm[usize::from(dst & 15)] = ops.load_u32()?.into(),
                _ => ops.store(0, &(state.xmm[usize::from(xmm_of(src)?)] as u32).to_le_bytes())?,
            }
            Ok(())
        }
        Op::MovsdXmm => {
            control.check_sse()?;
            match (dst, src) {
                (Operand::Xmm(dst), Operand::Xmm(src)) => {
                    let value = state.xmm[usize::from(src & 15)] as u64;
                    state.set_low64(dst, value);
                }
                (Operand::Xmm(dst), _) => state.xmm[usize::from(dst & 15)] = ops.load_u64()?.into(),
                _ => ops.store(0, &(state.xmm[usize::from(xmm_of(src)?)] as u64).to_le_bytes())?,
            }
            Ok(())
        }
        Op::Movlps | Op::Movlpd | Op::Movhps | Op::Movhpd | Op::Movhlps | Op::Movlhps => {
            control.check_sse()?;
            half(state, insn.op, dst, src, ops)
        }
        Op::Movmskps | Op::Movmskpd | Op::Pmovmskb => sign_mask(state, control, insn.op, dst, src, ops),
        _ => rare(state, control, insn, ops),
    }
}

/// All 16 bytes, to or from memory or between registers.
#[inline(always)]
fn whole<O: Operands>(
    state: &mut VectorState,
    ops: &mut O,
    dst: Operand,
    src: Operand,
    aligned: bool,
) -> Result<(), O::Fault> {
    match (dst, src) {
        (Operand::Xmm(dst), Operand::Xmm(src)) => {
            state.xmm[usize::from(dst & 15)] = state.xmm[usize::from(src & 15)];
        }
        (Operand::Xmm(dst), Operand::Mem { .. }) => {
            if aligned {
                check_aligned(ops)?;
            }
            state.xmm[usize::from(dst & 15)] = ops.load_u128()?;
        }
        (Operand::Mem { .. }, Operand::Xmm(src)) => {
            if aligned {
                check_aligned(ops)?;
            }
            ops.store(0, &state.xmm[usize::from(src & 15)].to_le_bytes())?;
        }
        _ => return Err(unexpected()),
    }
    Ok(())
}

/// MOVD's width is that of its general register or memory operand.
fn size_mask_of(dst: Operand, src: Operand) -> u128 {
    let size = |operand| match operand {
        Operand::Gpr { size, .. } => Some(size),
        Operand::Mem { size } => Some(size as u8),
        _ => None,
    };
    size_mask(size(dst).or(size(src)).unwrap_or(8)).into()
}

/// The moves of 64-bit halves.
fn half<O: Operands>(
    state: &mut VectorState,
    op: Op,
    dst: Operand,
    src: Operand,
    ops: &mut O,
) -> Result<(), O::Fault> {
    let high = matches!(op, Op::Movhps | Op::Movhpd);
    if let Operand::Mem { .. } = dst {
        let value = state.xmm[usize::from(xmm_of(src)?)];
        return ops.store(0, &((if high { value >> 64 } else { value }) as u64).to_le_bytes());
    }
    let reg = xmm_of(dst)?;
    let (value, high) = match (op, src) {
        (Op::Movhlps, Operand::Xmm(src)) => ((state.xmm[usize::from(src & 15)] >> 64) as u64, false),
        (Op::Movlhps, Operand::Xmm(src)) => (state.xmm[usize::from(src & 15)] as u64, true),
        (_, Operand::Mem { .. }) => (ops.load_u64()?, high),
        _ => return Err(unexpected()),
    };
    if high {
        let slot = &mut state.xmm[usize::from(reg)];
        *slot = *slot & LOW | u128::from(value) << 64;
    } else {
        state.set_low64(reg, value);
    }
    Ok(())
}

/// MOVMSKPS, MOVMSKPD and PMOVMSKB: sign bits to a general register.
#[inline(always)]
fn sign_mask<O: Operands>(
    state: &mut VectorState,
    control: &Control,
    op: Op,
    dst: Operand,
    src: Operand,
    ops: &mut O,
) -> Result<(), O::Fault> {
    let Operand::Gpr { reg, size } = dst else { return Err(unexpected()) };
    let mask = match (op, src) {
        (Op::Pmovmskb, Operand::Mmx(src)) => {
            control.check_mmx()?;
            check_pending(state)?;
            state.x87.enter_mmx();
            byte_signs(state.x87.mmx(src).into())
        }
        (_, Operand::Xmm(src)) => {
            control.check_sse()?;
            let value = state.xmm[usize::from(src & 15)];
            match op {
                Op::Pmovmskb => byte_signs(value),
                Op::Movmskpd => (value >> 63 & 1 | value >> 126 & 2) as u32,
                _ => (0..4).fold(0, |mask, i| mask | ((value >> (32 * i + 31) & 1) as u32) << i),
            }
        }
        _ => return Err(unexpected()),
    };
    ops.set_gpr(reg, mask.into(), size);
    Ok(())
}

#[inline(never)]
fn rare<O: Operands>(
    state: &mut VectorState,
    control: &Control,
    insn: &Insn,
    ops: &mut O,
) -> Result<(), O::Fault> {
    let [dst, src, ..] = insn.operands;
    match insn.op {
        // Depends on neither CR0.TS nor CR4.OSFXSR (SDM vol. 3, 2.5).
        Op::Movnti => match (dst, src) {
            (Operand::Mem { .. }, Operand::Gpr { reg, size }) => {
                let value = ops.gpr(reg).to_le_bytes();
                ops.store(0, &value[..usize::from(size.min(8))])
            }
            _ => Err(unexpected()),
        },
        Op::Movdq2q => {
            control.check_sse()?;
            check_pending(state)?;
            let value = source(state, ops, src)? as u64;
            state.x87.enter_mmx();
            state.x87.set_mmx(mmx_of(dst)?, value);
            Ok(())
        }
        Op::Movq2dq => {
            control.check_sse()?;
            check_pending(state)?;
            let value = state.x87.mmx(mmx_of(src)?);
            state.x87.enter_mmx();
            write(state, ops, dst, value.into())
        }
        Op::Maskmovdqu => {
            control.check_sse()?;
            let value = state.xmm[usize::from(xmm_of(dst)?)];
            let mask = byte_signs(state.xmm[usize::from(xmm_of(src)?)]);
            store_masked(ops, &value.to_le_bytes(), mask)
        }
        Op::Maskmovq => {
            control.check_mmx()?;
            check_pending(state)?;
            let (value, mask) = (state.x87.mmx(mmx_of(dst)?), state.x87.mmx(mmx_of(src)?));
            store_masked(ops, &value.to_le_bytes(), byte_signs(mask.into()))?;
            state.x87.enter_mmx();
            Ok(())
        }
        _ => Err(unexpected()),
    }
}

/// Stores the bytes whose mask bit is set; bytes that are not selected are neither read nor written.
pub(in crate::vector) fn store_masked<O: Operands>(
    ops: &mut O,
    bytes: &[u8],
    mask: u32,
) -> Result<(), O::Fault> {
    if mask == 0 {
        return Ok(());
    }
    let (first, end) = (mask.trailing_zeros(), 32 - mask.leading_zeros());
    ops.check_store(first.into(), (end - first).into())?;
    let mut at = first;
    while at < end {
        let run = (mask >> at).trailing_ones();
        if run > 0 {
            ops.store(at.into(), &bytes[at as usize..(at + run) as usize])?;
        }
        at += run.max(1);
    }
    Ok(())
}
