//! Packed integers, logic, shuffles, inserts, extracts and tests: the functions of the legacy instructions on each half.

use trapgate_x86::insn::{Insn, Operand};
use trapgate_x86::op::Op;

use super::super::interface::{Operands, eflags};
use super::super::operand::{source_unaligned, unexpected};
use super::super::save::{load_mxcsr, store_mxcsr};
use super::super::sse::integer::{self, in_place};
use super::super::sse::shuffle;
use super::super::state::VectorState;
use super::operand::{Wide, is_ymm, read, register, sources, write};

/// How many halves an operand has.
fn halves(operand: Operand) -> usize {
    if is_ymm(operand) { 2 } else { 1 }
}

/// Both halves by a function of two values.
#[inline(always)]
pub(super) fn lanes<O: Operands>(
    state: &mut VectorState,
    insn: &Insn,
    ops: &mut O,
    legacy: Op,
) -> Result<(), O::Fault> {
    let function = integer::binary(legacy).ok_or_else(unexpected)?;
    let (mut a, b) = sources(state, insn, ops)?;
    let dst = insn.operands[0];
    for (a, b) in a.iter_mut().zip(&b).take(halves(dst)) {
        in_place(a, b, function);
    }
    write(state, ops, dst, a)
}

/// VPMOVSX and VPMOVZX: the upper half of the result comes from the lanes behind those of the lower half.
pub(super) fn widen<O: Operands>(
    state: &mut VectorState,
    insn: &Insn,
    ops: &mut O,
    legacy: Op,
) -> Result<(), O::Fault> {
    let function = integer::binary(legacy).ok_or_else(unexpected)?;
    let taken = match legacy {
        Op::Pmovsxbw | Op::Pmovsxwd | Op::Pmovsxdq | Op::Pmovzxbw | Op::Pmovzxwd | Op::Pmovzxdq => 64,
        Op::Pmovsxbd | Op::Pmovsxwq | Op::Pmovzxbd | Op::Pmovzxwq => 32,
        _ => 16,
    };
    let [source, _] = read(state, ops, insn.operands[1])?;
    let mut result = [0; 2];
    in_place(&mut result[0], &source, function);
    in_place(&mut result[1], &(source >> taken), function);
    write(state, ops, insn.operands[0], result)
}

/// Shifts of all lanes by one count: an immediate, or the low 64 bits of an XMM register or of memory.
pub(super) fn shift<O: Operands>(
    state: &mut VectorState,
    insn: &Insn,
    ops: &mut O,
    legacy: Op,
) -> Result<(), O::Fault> {
    let function = integer::binary(legacy).ok_or_else(unexpected)?;
    let [dst, value, count, _] = insn.operands;
    let count =
        if let Operand::Imm { .. } = count { insn.imm.into() } else { source_unaligned(state, ops, count)? };
    let mut value = register(state, value)?;
    for half in &mut value {
        in_place(half, &count, function);
    }
    write(state, ops, dst, value)
}

/// With an immediate. Most take the whole of it for either half; some have a part for each.
pub(super) fn immediate<O: Operands>(
    state: &mut VectorState,
    insn: &Insn,
    ops: &mut O,
    legacy: Op,
) -> Result<(), O::Fault> {
    let function = integer::with_immediate(legacy).ok_or_else(unexpected)?;
    let imm = insn.imm as u8;
    let upper = imm
        >> match legacy {
            Op::Blendps => 4,
            Op::Mpsadbw => 3,
            Op::Blendpd | Op::Shufpd => 2,
            _ => 0,
        };
    let (mut a, b) = sources(state, insn, ops)?;
    let dst = insn.operands[0];
    for ((a, b), imm) in a.iter_mut().zip(&b).zip([imm, upper]).take(halves(dst)) {
        in_place(a, b, |a, b| function(a, b, imm));
    }
    write(state, ops, dst, a)
}

/// Blends by a register, inserts, extracts, tests and MXCSR.
pub(super) fn other<O: Operands>(state: &mut VectorState, insn: &Insn, ops: &mut O) -> Result<(), O::Fault> {
    let [dst, src, ..] = insn.operands;
    let imm = insn.imm as u8;
    match insn.op {
        Op::Vpblendvb | Op::Vblendvps | Op::Vblendvpd => blend(state, insn, ops),
        Op::Vptest => test(state, ops, dst, src, u128::MAX),
        Op::Vtestps => test(state, ops, dst, src, 0x8000_0000_8000_0000_8000_0000_8000_0000),
        Op::Vtestpd => test(state, ops, dst, src, 1 << 127 | 1 << 63),
        Op::Vinsertps => insert_single(state, insn, ops),
        Op::Vpinsrb => insert(state, insn, ops, u32::from(imm & 15) * 8, 8),
        Op::Vpinsrw => insert(state, insn, ops, u32::from(imm & 7) * 16, 16),
        Op::Vpinsrd => insert(state, insn, ops, u32::from(imm & 3) * 32, 32),
        Op::Vpinsrq => insert(state, insn, ops, u32::from(imm & 1) * 64, 64),
        Op::Vpextrb => integer::extract(state, ops, dst, src, u32::from(imm & 15) * 8, 8),
        Op::Vpextrw => integer::extract(state, ops, dst, src, u32::from(imm & 7) * 16, 16),
        Op::Vpextrd | Op::Vextractps => integer::extract(state, ops, dst, src, u32::from(imm & 3) * 32, 32),
        Op::Vpextrq => integer::extract(state, ops, dst, src, u32::from(imm & 1) * 64, 64),
        Op::Vldmxcsr => load_mxcsr(state, ops),
        Op::Vstmxcsr => store_mxcsr(state, ops),
        _ => Err(unexpected()),
    }
}

fn blend<O: Operands>(state: &mut VectorState, insn: &Insn, ops: &mut O) -> Result<(), O::Fault> {
    let (mut a, b) = sources(state, insn, ops)?;
    let mask: Wide = register(state, insn.operands[3])?;
    for ((a, b), mask) in a.iter_mut().zip(&b).zip(mask.map(u128::to_le_bytes)) {
        in_place(a, b, |a, b| {
            *a = match insn.op {
                Op::Vpblendvb => shuffle::pblendvb(*a, *b, mask),
                Op::Vblendvps => shuffle::blendvps(*a, *b, mask),
                _ => shuffle::blendvpd(*a, *b, mask),
            };
        });
    }
    write(state, ops, insn.operands[0], a)
}

/// VPTEST, or of the sign bits alone VTESTPS and VTESTPD.
fn test<O: Operands>(
    state: &VectorState,
    ops: &mut O,
    dst: Operand,
    src: Operand,
    bits: u128,
) -> Result<(), O::Fault> {
    let b = read(state, ops, src)?;
    let a: Wide = register(state, dst)?;
    let both = (a[0] & b[0] | a[1] & b[1]) & bits;
    let second_only = (!a[0] & b[0] | !a[1] & b[1]) & bits;
    let zero = if both == 0 { eflags::ZF } else { 0 };
    let carry = if second_only == 0 { eflags::CF } else { 0 };
    ops.set_status_flags(zero | carry);
    Ok(())
}

fn insert_single<O: Operands>(state: &mut VectorState, insn: &Insn, ops: &mut O) -> Result<(), O::Fault> {
    let ([mut a, _], [b, _]) = sources(state, insn, ops)?;
    let imm = insn.imm as u8;
    let shift = if let Operand::Xmm(_) = insn.operands[2] { 32 * u32::from(imm >> 6) } else { 0 };
    in_place(&mut a, &0, |a, _| *a = shuffle::insertps(*a, (b >> shift) as u32, imm));
    write(state, ops, insn.operands[0], [a, 0])
}

/// The second operand with `width` bits from bit `shift` on replaced by the third's low bits.
fn insert<O: Operands>(
    state: &mut VectorState,
    insn: &Insn,
    ops: &mut O,
    shift: u32,
    width: u32,
) -> Result<(), O::Fault> {
    let mask = u128::MAX >> (128 - width);
    let ([a, _], [b, _]) = sources(state, insn, ops)?;
    write(state, ops, insn.operands[0], [a & !(mask << shift) | (b & mask) << shift, 0])
}
