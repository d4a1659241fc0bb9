//! Packed integer, logic, shuffle, insert and extract instructions: which function of [`super::lanes`] or
//! [`super::shuffle`] an operation is, for XMM and for MMX registers, and the fetch and commit around it.

use trapgate_x86::insn::{Insn, Operand};
use trapgate_x86::op::Op;

use super::super::interface::{Control, Operands, eflags};
use super::super::operand::{
    check_aligned, check_pending, mmx_of, source, source_unaligned, unexpected, write, xmm_of,
};
use super::super::state::VectorState;
use super::lanes::{self, Bytes, u32s};
use super::{crypto, shuffle};

/// Operands are passed in memory, see [`lanes`].
pub(in crate::vector) type Binary = fn(&mut Bytes, &Bytes);
pub(in crate::vector) type WithImmediate = fn(&mut Bytes, &Bytes, u8);

/// A match from operations to functions of two values, wrapped to work in place.
macro_rules! functions {
    ($op:expr, { $($($name:ident)|+ => $function:path,)* }) => {{
        let function: Binary = match $op {
            $($(Op::$name)|+ => |a, b| *a = $function(*a, *b),)*
            _ => return None,
        };
        Some(function)
    }};
}

/// Operations of destination and source.
#[inline]
pub(in crate::vector) fn binary(op: Op) -> Option<Binary> {
    functions!(op, {
        Pxor | Xorps | Xorpd => lanes::pxor,
        Pand | Andps | Andpd => lanes::pand,
        Por | Orps | Orpd => lanes::por,
        Pandn | Andnps | Andnpd => lanes::pandn,
        Paddb => lanes::paddb,
        Paddw => lanes::paddw,
        Paddd => lanes::paddd,
        Paddq => lanes::paddq,
        Psubb => lanes::psubb,
        Psubw => lanes::psubw,
        Psubd => lanes::psubd,
        Psubq => lanes::psubq,
        Paddsb => lanes::paddsb,
        Paddsw => lanes::paddsw,
        Paddusb => lanes::paddusb,
        Paddusw => lanes::paddusw,
        Psubsb => lanes::psubsb,
        Psubsw => lanes::psubsw,
        Psubusb => lanes::psubusb,
        Psubusw => lanes::psubusw,
        Pmullw => lanes::pmullw,
        Pmulhw => lanes::pmulhw,
        Pmulhuw => lanes::pmulhuw,
        Pmulhrsw => lanes::pmulhrsw,
        Pmulld => lanes::pmulld,
        Pmuludq => lanes::pmuludq,
        Pmuldq => lanes::pmuldq,
        Pmaddwd => lanes::pmaddwd,
        Pmaddubsw => lanes::pmaddubsw,
        Pavgb => lanes::pavgb,
        Pavgw => lanes::pavgw,
        Pminub => lanes::pminub,
        Pminuw => lanes::pminuw,
        Pminud => lanes::pminud,
        Pminsb => lanes::pminsb,
        Pminsw => lanes::pminsw,
        Pminsd => lanes::pminsd,
        Pmaxub => lanes::pmaxub,
        Pmaxuw => lanes::pmaxuw,
        Pmaxud => lanes::pmaxud,
        Pmaxsb => lanes::pmaxsb,
        Pmaxsw => lanes::pmaxsw,
        Pmaxsd => lanes::pmaxsd,
        Pcmpeqb => lanes::pcmpeqb,
        Pcmpeqw => lanes::pcmpeqw,
        Pcmpeqd => lanes::pcmpeqd,
        Pcmpeqq => lanes::pcmpeqq,
        Pcmpgtb => lanes::pcmpgtb,
        Pcmpgtw => lanes::pcmpgtw,
        Pcmpgtd => lanes::pcmpgtd,
        Pcmpgtq => lanes::pcmpgtq,
        Psignb => lanes::psignb,
        Psignw => lanes::psignw,
        Psignd => lanes::psignd,
        Pabsb => lanes::pabsb,
        Pabsw => lanes::pabsw,
        Pabsd => lanes::pabsd,
        Psadbw => lanes::psadbw,
        Phminposuw => lanes::phminposuw,
        Phaddw => lanes::phaddw,
        Phaddd => lanes::phaddd,
        Phaddsw => lanes::phaddsw,
        Phsubw => lanes::phsubw,
        Phsubd => lanes::phsubd,
        Phsubsw => lanes::phsubsw,
        Packsswb => lanes::packsswb,
        Packuswb => lanes::packuswb,
        Packssdw => lanes::packssdw,
        Packusdw => lanes::packusdw,
        Psllw => lanes::psllw,
        Pslld => lanes::pslld,
        Psllq => lanes::psllq,
        Psrlw => lanes::psrlw,
        Psrld => lanes::psrld,
        Psrlq => lanes::psrlq,
        Psraw => lanes::psraw,
        Psrad => lanes::psrad,
        Pslldq => lanes::pslldq,
        Psrldq => lanes::psrldq,
        Punpcklbw => shuffle::punpcklbw,
        Punpcklwd => shuffle::punpcklwd,
        Punpckldq | Unpcklps => shuffle::punpckldq,
        Punpcklqdq | Unpcklpd => shuffle::punpcklqdq,
        Punpckhbw => shuffle::punpckhbw,
        Punpckhwd => shuffle::punpckhwd,
        Punpckhdq | Unpckhps => shuffle::punpckhdq,
        Punpckhqdq | Unpckhpd => shuffle::punpckhqdq,
        Pshufb => shuffle::pshufb,
        Pmovsxbw => shuffle::pmovsxbw,
        Pmovsxbd => shuffle::pmovsxbd,
        Pmovsxbq => shuffle::pmovsxbq,
        Pmovsxwd => shuffle::pmovsxwd,
        Pmovsxwq => shuffle::pmovsxwq,
        Pmovsxdq => shuffle::pmovsxdq,
        Pmovzxbw => shuffle::pmovzxbw,
        Pmovzxbd => shuffle::pmovzxbd,
        Pmovzxbq => shuffle::pmovzxbq,
        Pmovzxwd => shuffle::pmovzxwd,
        Pmovzxwq => shuffle::pmovzxwq,
        Pmovzxdq => shuffle::pmovzxdq,
        Movddup => shuffle::movddup,
        Movsldup => shuffle::movsldup,
        Movshdup => shuffle::movshdup,
        Aesenc => crypto::aesenc,
        Aesenclast => crypto::aesenclast,
        Aesdec => crypto::aesdec,
        Aesdeclast => crypto::aesdeclast,
        Aesimc => crypto::aesimc,
    })
}

/// The same for MMX registers, where it is not simply the low half of the 128-bit operation.
fn binary_mmx(op: Op) -> Option<Binary> {
    let own = || {
        functions!(op, {
            Phaddw => lanes::phaddw_mmx,
            Phaddd => lanes::phaddd_mmx,
            Phaddsw => lanes::phaddsw_mmx,
            Phsubw => lanes::phsubw_mmx,
            Phsubd => lanes::phsubd_mmx,
            Phsubsw => lanes::phsubsw_mmx,
            Packsswb => lanes::packsswb_mmx,
            Packuswb => lanes::packuswb_mmx,
            Packssdw => lanes::packssdw_mmx,
            Punpckhbw => shuffle::punpckhbw_mmx,
            Punpckhwd => shuffle::punpckhwd_mmx,
            Punpckhdq => shuffle::punpckhdq_mmx,
            Pshufb => shuffle::pshufb_mmx,
        })
    };
    own().or_else(|| binary(op))
}

/// Operations of destination, source and immediate.
#[inline]
pub(in crate::vector) fn with_immediate(op: Op) -> Option<WithImmediate> {
    let function: WithImmediate = match op {
        Op::Pshufd => |a, b, imm| *a = shuffle::pshufd(*a, *b, imm),
        Op::Pshuflw | Op::Pshufw => |a, b, imm| *a = shuffle::pshuflw(*a, *b, imm),
        Op::Pshufhw => |a, b, imm| *a = shuffle::pshufhw(*a, *b, imm),
        Op::Shufps => |a, b, imm| *a = shuffle::shufps(*a, *b, imm),
        Op::Shufpd => |a, b, imm| *a = shuffle::shufpd(*a, *b, imm),
        Op::Palignr => |a, b, imm| *a = shuffle::palignr(*a, *b, imm),
        Op::Blendps => |a, b, imm| *a = shuffle::blendps(*a, *b, imm),
        Op::Blendpd => |a, b, imm| *a = shuffle::blendpd(*a, *b, imm),
        Op::Pblendw => |a, b, imm| *a = shuffle::pblendw(*a, *b, imm),
        Op::Mpsadbw => |a, b, imm| *a = lanes::mpsadbw(*a, *b, imm),
        Op::Pclmulqdq => |a, b, imm| *a = crypto::pclmulqdq(*a, *b, imm),
        Op::Aeskeygenassist => |a, b, imm| *a = crypto::aeskeygenassist(*a, *b, imm),
        _ => return None,
    };
    Some(function)
}

/// Whether this module executes the operation.
#[cfg(test)]
pub(in crate::vector) fn handles(op: Op) -> bool {
    binary(op).is_some() || with_immediate(op).is_some()
}

/// Lets a function work on the bytes of an XMM register and of a source, where they are: a copy through general registers
/// and back to a vector register would have to wait for its stores.
#[inline(always)]
pub(in crate::vector) fn in_place(slot: &mut u128, source: &u128, function: impl FnOnce(&mut Bytes, &Bytes)) {
    if cfg!(target_endian = "little") {
        return function(bytemuck::cast_mut(slot), bytemuck::cast_ref(source));
    }
    let mut bytes = slot.to_le_bytes();
    function(&mut bytes, &source.to_le_bytes());
    *slot = u128::from_le_bytes(bytes);
}

/// Applies a function to destination `reg` and the second operand: a register, aligned memory, or an immediate count.
#[inline(always)]
fn apply<O: Operands>(
    state: &mut VectorState,
    insn: &Insn,
    ops: &mut O,
    reg: u8,
    function: impl Fn(&mut Bytes, &Bytes),
) -> Result<(), O::Fault> {
    let reg = usize::from(reg & 15);
    match insn.operands[1] {
        Operand::Xmm(src) => {
            let source = state.xmm[usize::from(src & 15)];
            in_place(&mut state.xmm[reg], &source, function);
        }
        Operand::Mem { size: 16 } => {
            check_aligned(ops)?;
            let mut source = [0; 16];
            ops.load(0, &mut source)?;
            in_place(&mut state.xmm[reg], &0, |a, _| function(a, &source));
        }
        Operand::Imm { .. } => in_place(&mut state.xmm[reg], &insn.imm.into(), function),
        other => {
            let source = source(state, ops, other)?;
            in_place(&mut state.xmm[reg], &source, function);
        }
    }
    Ok(())
}

/// Operations of two operands: those of [`binary`].
#[inline(always)]
pub(in crate::vector) fn execute_binary<O: Operands>(
    state: &mut VectorState,
    control: &Control,
    insn: &Insn,
    ops: &mut O,
) -> Result<(), O::Fault> {
    let Operand::Xmm(reg) = insn.operands[0] else { return execute_mmx(state, control, insn, ops) };
    control.check_sse()?;
    let function = binary(insn.op).ok_or_else(unexpected)?;
    apply(state, insn, ops, reg, function)
}

/// Operations with an immediate: those of [`with_immediate`].
pub(in crate::vector) fn execute_immediate<O: Operands>(
    state: &mut VectorState,
    control: &Control,
    insn: &Insn,
    ops: &mut O,
) -> Result<(), O::Fault> {
    let Operand::Xmm(reg) = insn.operands[0] else { return execute_mmx(state, control, insn, ops) };
    control.check_sse()?;
    let function = with_immediate(insn.op).ok_or_else(unexpected)?;
    apply(state, insn, ops, reg, |a, b| function(a, b, insn.imm as u8))
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
    let mut value = u128::from(state.x87.mmx(reg)).to_le_bytes();
    let b = if let Operand::Imm { .. } = src { insn.imm.into() } else { source_unaligned(state, ops, src)? };
    let b = b.to_le_bytes();
    match insn.op {
        Op::Palignr => value = shuffle::palignr_mmx(value, b, insn.imm as u8),
        op => match (with_immediate(op), binary_mmx(op)) {
            (Some(function), _) => function(&mut value, &b, insn.imm as u8),
            (None, Some(function)) => function(&mut value, &b),
            (None, None) => return Err(unexpected()),
        },
    }
    state.x87.enter_mmx();
    state.x87.set_mmx(reg, lanes::u64s(value)[0]);
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
            let mask = state.xmm[0].to_le_bytes();
            apply(state, insn, ops, xmm_of(dst)?, |a, b| {
                *a = match insn.op {
                    Op::Pblendvb => shuffle::pblendvb(*a, *b, mask),
                    Op::Blendvps => shuffle::blendvps(*a, *b, mask),
                    _ => shuffle::blendvpd(*a, *b, mask),
                };
            })
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
            let lane =
                u32s(b.to_le_bytes())[if let Operand::Xmm(_) = src { usize::from(imm >> 6) } else { 0 }];
            let slot = &mut state.xmm[usize::from(xmm_of(dst)?)];
            in_place(slot, &0, |a, _| *a = shuffle::insertps(*a, lane, imm));
            Ok(())
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
pub(in crate::vector) fn extract<O: Operands>(
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
    let at = u32::from(insn.imm as u8 & 3);
    if let Operand::Gpr { reg, size } = dst {
        let word = state.x87.mmx(mmx_of(src)?) >> (16 * at) & 0xffff;
        ops.set_gpr(reg, word, size.max(4));
    } else {
        let reg = mmx_of(dst)?;
        let word = source_unaligned(state, ops, src)? as u64 & 0xffff;
        let value = state.x87.mmx(reg) & !(0xffff << (16 * at)) | word << (16 * at);
        state.x87.set_mmx(reg, value);
    }
    state.x87.enter_mmx();
    Ok(())
}
