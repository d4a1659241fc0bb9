//! Packed integer, logic, shuffle, insert and extract instructions: which function of [`super::lanes`] or
//! [`super::shuffle`] an operation is, for XMM and for MMX registers, and the fetch and commit around it.

use trapgate_x86::insn::{Insn, Operand};
use trapgate_x86::op::Op;

use super::super::interface::{Control, Operands, eflags};
use super::super::operand::{check_pending, mmx_of, source, source_unaligned, unexpected, write, xmm_of};
use super::super::state::VectorState;
use super::lanes::{self, u16s, u32s};
use super::{crypto, shuffle};

type Binary = fn(u128, u128) -> u128;
type WithImmediate = fn(u128, u128, u8) -> u128;

/// Operations of destination and source.
fn binary(op: Op) -> Option<Binary> {
    Some(match op {
        Op::Pxor | Op::Xorps | Op::Xorpd => lanes::pxor,
        Op::Pand | Op::Andps | Op::Andpd => lanes::pand,
        Op::Por | Op::Orps | Op::Orpd => lanes::por,
        Op::Pandn | Op::Andnps | Op::Andnpd => lanes::pandn,
        Op::Paddb => lanes::paddb,
        Op::Paddw => lanes::paddw,
        Op::Paddd => lanes::paddd,
        Op::Paddq => lanes::paddq,
        Op::Psubb => lanes::psubb,
        Op::Psubw => lanes::psubw,
        Op::Psubd => lanes::psubd,
        Op::Psubq => lanes::psubq,
        Op::Paddsb => lanes::paddsb,
        Op::Paddsw => lanes::paddsw,
        Op::Paddusb => lanes::paddusb,
        Op::Paddusw => lanes::paddusw,
        Op::Psubsb => lanes::psubsb,
        Op::Psubsw => lanes::psubsw,
        Op::Psubusb => lanes::psubusb,
        Op::Psubusw => lanes::psubusw,
        Op::Pmullw => lanes::pmullw,
        Op::Pmulhw => lanes::pmulhw,
        Op::Pmulhuw => lanes::pmulhuw,
        Op::Pmulhrsw => lanes::pmulhrsw,
        Op::Pmulld => lanes::pmulld,
        Op::Pmuludq => lanes::pmuludq,
        Op::Pmuldq => lanes::pmuldq,
        Op::Pmaddwd => lanes::pmaddwd,
        Op::Pmaddubsw => lanes::pmaddubsw,
        Op::Pavgb => lanes::pavgb,
        Op::Pavgw => lanes::pavgw,
        Op::Pminub => lanes::pminub,
        Op::Pminuw => lanes::pminuw,
        Op::Pminud => lanes::pminud,
        Op::Pminsb => lanes::pminsb,
        Op::Pminsw => lanes::pminsw,
        Op::Pminsd => lanes::pminsd,
        Op::Pmaxub => lanes::pmaxub,
        Op::Pmaxuw => lanes::pmaxuw,
        Op::Pmaxud => lanes::pmaxud,
        Op::Pmaxsb => lanes::pmaxsb,
        Op::Pmaxsw => lanes::pmaxsw,
        Op::Pmaxsd => lanes::pmaxsd,
        Op::Pcmpeqb => lanes::pcmpeqb,
        Op::Pcmpeqw => lanes::pcmpeqw,
        Op::Pcmpeqd => lanes::pcmpeqd,
        Op::Pcmpeqq => lanes::pcmpeqq,
        Op::Pcmpgtb => lanes::pcmpgtb,
        Op::Pcmpgtw => lanes::pcmpgtw,
        Op::Pcmpgtd => lanes::pcmpgtd,
        Op::Pcmpgtq => lanes::pcmpgtq,
        Op::Psignb => lanes::psignb,
        Op::Psignw => lanes::psignw,
        Op::Psignd => lanes::psignd,
        Op::Pabsb => lanes::pabsb,
        Op::Pabsw => lanes::pabsw,
        Op::Pabsd => lanes::pabsd,
        Op::Psadbw => lanes::psadbw,
        Op::Phminposuw => lanes::phminposuw,
        Op::Phaddw => lanes::phaddw,
        Op::Phaddd => lanes::phaddd,
        Op::Phaddsw => lanes::phaddsw,
        Op::Phsubw => lanes::phsubw,
        Op::Phsubd => lanes::phsubd,
        Op::Phsubsw => lanes::phsubsw,
        Op::Packsswb => lanes::packsswb,
        Op::Packuswb => lanes::packuswb,
        Op::Packssdw => lanes::packssdw,
        Op::Packusdw => lanes::packusdw,
        Op::Psllw => lanes::psllw,
        Op::Pslld => lanes::pslld,
        Op::Psllq => lanes::psllq,
        Op::Psrlw => lanes::psrlw,
        Op::Psrld => lanes::psrld,
        Op::Psrlq => lanes::psrlq,
        Op::Psraw => lanes::psraw,
        Op::Psrad => lanes::psrad,
        Op::Pslldq => lanes::pslldq,
        Op::Psrldq => lanes::psrldq,
        Op::Punpcklbw => shuffle::punpcklbw,
        Op::Punpcklwd => shuffle::punpcklwd,
        Op::Punpckldq | Op::Unpcklps => shuffle::punpckldq,
        Op::Punpcklqdq | Op::Unpcklpd => shuffle::punpcklqdq,
        Op::Punpckhbw => shuffle::punpckhbw,
        Op::Punpckhwd => shuffle::punpckhwd,
        Op::Punpckhdq | Op::Unpckhps => shuffle::punpckhdq,
        Op::Punpckhqdq | Op::Unpckhpd => shuffle::punpckhqdq,
        Op::Pshufb => shuffle::pshufb,
        Op::Pmovsxbw => shuffle::pmovsxbw,
        Op::Pmovsxbd => shuffle::pmovsxbd,
        Op::Pmovsxbq => shuffle::pmovsxbq,
        Op::Pmovsxwd => shuffle::pmovsxwd,
        Op::Pmovsxwq => shuffle::pmovsxwq,
        Op::Pmovsxdq => shuffle::pmovsxdq,
        Op::Pmovzxbw => shuffle::pmovzxbw,
        Op::Pmovzxbd => shuffle::pmovzxbd,
        Op::Pmovzxbq => shuffle::pmovzxbq,
        Op::Pmovzxwd => shuffle::pmovzxwd,
        Op::Pmovzxwq => shuffle::pmovzxwq,
        Op::Pmovzxdq => shuffle::pmovzxdq,
        Op::Movddup => shuffle::movddup,
        Op::Movsldup => shuffle::movsldup,
        Op::Movshdup => shuffle::movshdup,
        Op::Aesenc => crypto::aesenc,
        Op::Aesenclast => crypto::aesenclast,
        Op::Aesdec => crypto::aesdec,
        Op::Aesdeclast => crypto::aesdeclast,
        Op::Aesimc => crypto::aesimc,
        _ => return None,
    })
}

/// The same for MMX registers, where it is not simply the low half of the 128-bit operation.
fn binary_mmx(op: Op) -> Option<Binary> {
    Some(match op {
        Op::Phaddw => lanes::phaddw_mmx,
        Op::Phaddd => lanes::phaddd_mmx,
        Op::Phaddsw => lanes::phaddsw_mmx,
        Op::Phsubw => lanes::phsubw_mmx,
        Op::Phsubd => lanes::phsubd_mmx,
        Op::Phsubsw => lanes::phsubsw_mmx,
        Op::Packsswb => lanes::packsswb_mmx,
        Op::Packuswb => lanes::packuswb_mmx,
        Op::Packssdw => lanes::packssdw_mmx,
        Op::Punpckhbw => shuffle::punpckhbw_mmx,
        Op::Punpckhwd => shuffle::punpckhwd_mmx,
        Op::Punpckhdq => shuffle::punpckhdq_mmx,
        Op::Pshufb => shuffle::pshufb_mmx,
        other => return binary(other),
    })
}

/// Operations of destination, source and immediate.
fn with_immediate(op: Op) -> Option<WithImmediate> {
    Some(match op {
        Op::Pshufd => shuffle::pshufd,
        Op::Pshuflw | Op::Pshufw => shuffle::pshuflw,
        Op::Pshufhw => shuffle::pshufhw,
        Op::Shufps => shuffle::shufps,
        Op::Shufpd => shuffle::shufpd,
        Op::Palignr => shuffle::palignr,
        Op::Blendps => shuffle::blendps,
        Op::Blendpd => shuffle::blendpd,
        Op::Pblendw => shuffle::pblendw,
        Op::Mpsadbw => lanes::mpsadbw,
        Op::Pclmulqdq => crypto::pclmulqdq,
        Op::Aeskeygenassist => crypto::aeskeygenassist,
        _ => return None,
    })
}

/// Whether this module executes the operation.
#[cfg(test)]
pub(in crate::vector) fn handles(op: Op) -> bool {
    binary(op).is_some() || with_immediate(op).is_some()
}

/// Operations of two operands: those of [`binary`].
#[inline(always)]
pub(in crate::vector) fn execute_binary<O: Operands>(
    state: &mut VectorState,
    control: &Control,
    insn: &Insn,
    ops: &mut O,
) -> Result<(), O::Fault> {
    let [dst, src, ..] = insn.operands;
    let Operand::Xmm(reg) = dst else { return execute_mmx(state, control, insn, ops) };
    control.check_sse()?;
    let function = binary(insn.op).ok_or_else(unexpected)?;
    let b = if let Operand::Imm { .. } = src { insn.imm.into() } else { source(state, ops, src)? };
    let slot = &mut state.xmm[usize::from(reg & 15)];
    *slot = function(*slot, b);
    Ok(())
}

/// Operations with an immediate: those of [`with_immediate`].
pub(in crate::vector) fn execute_immediate<O: Operands>(
    state: &mut VectorState,
    control: &Control,
    insn: &Insn,
    ops: &mut O,
) -> Result<(), O::Fault> {
    let [dst, src, ..] = insn.operands;
    let Operand::Xmm(reg) = dst else { return execute_mmx(state, control, insn, ops) };
    control.check_sse()?;
    let function = with_immediate(insn.op).ok_or_else(unexpected)?;
    let b = source(state, ops, src)?;
    let slot = &mut state.xmm[usize::from(reg & 15)];
    *slot = function(*slot, b, insn.imm as u8);
    Ok(())
}

fn execute_mmx<O: Operands>(
    state: &mut VectorState,
    control: &Control,
    insn: &Insn,
    ops: &mut O,
) -> Result<(), O::Fault> {
    let [dst, src, ..] = insn.operands;
    let reg = mmx_of(dst)?;
    control.check_mmx()?;
    check_pending(state)?;
    let a = state.x87.mmx(reg).into();
    let b = if let Operand::Imm { .. } = src { insn.imm.into() } else { source_unaligned(state, ops, src)? };
    let value = match insn.op {
        Op::Palignr => shuffle::palignr_mmx(a, b, insn.imm as u8),
        op => match (with_immediate(op), binary_mmx(op)) {
            (Some(function), _) => function(a, b, insn.imm as u8),
            (None, Some(function)) => function(a, b),
            (None, None) => return Err(unexpected()),
        },
    };
    state.x87.enter_mmx();
    state.x87.set_mmx(reg, value as u64);
    Ok(())
}

/// Blends by XMM0, inserts, extracts and PTEST.
pub(in crate::vector) fn execute_other<O: Operands>(
    state: &mut VectorState,
    control: &Control,
    insn: &Insn,
    ops: &mut O,
) -> Result<(), O::Fault> {
    let [dst, src, ..] = insn.operands;
    let imm = insn.imm as u8;
    if let (Op::Pinsrw, Operand::Mmx(_)) | (Op::Pextrw, Operand::Gpr { .. }) = (insn.op, dst)
        && (matches!(dst, Operand::Mmx(_)) || matches!(src, Operand::Mmx(_)))
    {
        return mmx_words(state, control, insn, ops);
    }
    control.check_sse()?;
    match insn.op {
        Op::Pblendvb | Op::Blendvps | Op::Blendvpd => {
            let b = source(state, ops, src)?;
            let (a, mask) = (state.xmm[usize::from(xmm_of(dst)?)], state.xmm[0]);
            let value = match insn.op {
                Op::Pblendvb => shuffle::pblendvb(a, b, mask),
                Op::Blendvps => shuffle::blendvps(a, b, mask),
                _ => shuffle::blendvpd(a, b, mask),
            };
            write(state, ops, dst, value)
        }
        Op::Ptest => {
            let b = source(state, ops, src)?;
            let a = state.xmm[usize::from(xmm_of(dst)?)];
            let zero = if a & b == 0 { eflags::ZF } else { 0 };
            let carry = if !a & b == 0 { eflags::CF } else { 0 };
            ops.set_status_flags(zero | carry);
            Ok(())
        }
        Op::Insertps => {
            let b = source_unaligned(state, ops, src)?;
            let lane = u32s(b)[if let Operand::Xmm(_) = src { usize::from(imm >> 6) } else { 0 }];
            let a = state.xmm[usize::from(xmm_of(dst)?)];
            write(state, ops, dst, shuffle::insertps(a, lane, imm))
        }
        Op::Pinsrb => insert(state, ops, dst, src, u32::from(imm & 15) * 8, 8),
        Op::Pinsrw => insert(state, ops, dst, src, u32::from(imm & 7) * 16, 16),
        Op::Pinsrd => insert(state, ops, dst, src, u32::from(imm & 3) * 32, 32),
        Op::Pinsrq => insert(state, ops, dst, src, u32::from(imm & 1) * 64, 64),
        Op::Pextrb => extract(state, ops, dst, src, u32::from(imm & 15) * 8, 8),
        Op::Pextrw => extract(state, ops, dst, src, u32::from(imm & 7) * 16, 16),
        Op::Pextrd | Op::Extractps => extract(state, ops, dst, src, u32::from(imm & 3) * 32, 32),
        Op::Pextrq => extract(state, ops, dst, src, u32::from(imm & 1) * 64, 64),
        _ => Err(unexpected()),
    }
}

/// Replaces `width` bits from bit `shift` on by the source's low bits.
fn insert<O: Operands>(
    state: &mut VectorState,
    ops: &mut O,
    dst: Operand,
    src: Operand,
    shift: u32,
    width: u32,
) -> Result<(), O::Fault> {
    let mask = u128::MAX >> (128 - width);
    let lane = source_unaligned(state, ops, src)? & mask;
    let reg = xmm_of(dst)?;
    let slot = &mut state.xmm[usize::from(reg)];
    *slot = *slot & !(mask << shift) | lane << shift;
    Ok(())
}

/// Writes `width` bits from bit `shift` on, zero-extended where the destination is wider.
fn extract<O: Operands>(
    state: &mut VectorState,
    ops: &mut O,
    dst: Operand,
    src: Operand,
    shift: u32,
    width: u32,
) -> Result<(), O::Fault> {
    let value = state.xmm[usize::from(xmm_of(src)?)] >> shift & (u128::MAX >> (128 - width));
    match dst {
        // The destination register is written whole: a 32-bit write clears the upper half.
        Operand::Gpr { reg, size } => ops.set_gpr(reg, value as u64, size.max(4)),
        _ => write(state, ops, dst, value)?,
    }
    Ok(())
}

/// PINSRW and PEXTRW of MMX registers.
fn mmx_words<O: Operands>(
    state: &mut VectorState,
    control: &Control,
    insn: &Insn,
    ops: &mut O,
) -> Result<(), O::Fault> {
    let [dst, src, ..] = insn.operands;
    control.check_mmx()?;
    check_pending(state)?;
    let at = usize::from(insn.imm as u8 & 3);
    if let Operand::Gpr { reg, size } = dst {
        let word = u16s(state.x87.mmx(mmx_of(src)?).into())[at];
        ops.set_gpr(reg, word.into(), size.max(4));
    } else {
        let reg = mmx_of(dst)?;
        let word = source_unaligned(state, ops, src)? as u16;
        let mut words = u16s(state.x87.mmx(reg).into());
        words[at] = word;
        state.x87.set_mmx(reg, lanes::from_u16s(words) as u64);
    }
    state.x87.enter_mmx();
    Ok(())
}
