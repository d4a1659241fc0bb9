//! PCMPESTRI, PCMPESTRM, PCMPISTRI and PCMPISTRM (Intel SDM vol. 1, 12.10 and vol. 2, 4.1).

use trapgate_x86::insn::{Insn, Prefixes};
use trapgate_x86::op::Op;

use super::super::interface::{Control, Operands, eflags};
use super::super::operand::{source_unaligned, xmm_of};
use super::super::state::VectorState;
use super::lanes::{i8s, i16s, u16s};

const RAX: u8 = 0;
const RCX: u8 = 1;
const RDX: u8 = 2;

/// One string operand: its elements widened and how many of them are valid.
struct Text {
    elements: [i32; 16],
    valid: usize,
}

/// What a comparison gives: IntRes2 and the status flags.
struct Outcome {
    result: u16,
    flags: u64,
}

/// The number of elements in a register: words or bytes.
fn count(imm: u8) -> usize {
    if imm & 1 != 0 { 8 } else { 16 }
}

/// Elements by the source data format in imm8\[1:0\].
fn elements(value: u128, imm: u8) -> [i32; 16] {
    let mut elements = [0; 16];
    match imm & 3 {
        0 => elements = value.to_le_bytes().map(i32::from),
        1 => elements[..8].copy_from_slice(&u16s(value.to_le_bytes()).map(i32::from)),
        2 => elements = i8s(value.to_le_bytes()).map(i32::from),
        _ => elements[..8].copy_from_slice(&i16s(value.to_le_bytes()).map(i32::from)),
    }
    elements
}

/// A string that ends before its first null element.
fn implicit(value: u128, imm: u8) -> Text {
    let (elements, n) = (elements(value, imm), count(imm));
    Text { elements, valid: elements[..n].iter().position(|&e| e == 0).unwrap_or(n) }
}

/// A string whose length is the saturated magnitude of a general register.
fn explicit(value: u128, length: u64, wide: bool, imm: u8) -> Text {
    let length = if wide { length as i64 } else { i64::from(length as i32) };
    let valid = length.unsigned_abs().min(count(imm) as u64) as usize;
    Text { elements: elements(value, imm), valid }
}

/// The aggregation of imm8\[3:2\]: IntRes1. `a` is the first operand, `b` the second; bit j belongs to element j of `b`.
fn aggregate(a: &Text, b: &Text, imm: u8) -> u16 {
    let n = count(imm);
    let bit = |j: usize| -> bool {
        match imm >> 2 & 3 {
            0 => j < b.valid && a.elements[..a.valid].contains(&b.elements[j]),
            1 => {
                let x = b.elements[j];
                j < b.valid
                    && a.elements[..a.valid].chunks_exact(2).any(|range| range[0] <= x && x <= range[1])
            }
            2 => match (j < a.valid, j < b.valid) {
                (true, true) => a.elements[j] == b.elements[j],
                (in_a, in_b) => in_a == in_b,
            },
            _ => (0..a.valid.min(n - j)).all(|i| i + j < b.valid && a.elements[i] == b.elements[i + j]),
        }
    };
    (0..n).fold(0, |result, j| result | u16::from(bit(j)) << j)
}

fn compare(a: &Text, b: &Text, imm: u8) -> Outcome {
    let n = count(imm);
    let ones = |n: usize| ((1u32 << n) - 1) as u16;
    let first = aggregate(a, b, imm);
    let result = match imm >> 4 & 3 {
        1 => first ^ ones(n),
        3 => first ^ ones(b.valid),
        _ => first,
    };
    let flag = |condition, bit| if condition { bit } else { 0 };
    let flags = flag(result != 0, eflags::CF)
        | flag(b.valid < n, eflags::ZF)
        | flag(a.valid < n, eflags::SF)
        | flag(result & 1 != 0, eflags::OF);
    Outcome { result, flags }
}

/// The index that imm8\[6\] asks for: of the lowest or the highest set bit, or the element count.
fn index(result: u16, imm: u8) -> u64 {
    match (result, imm & 0x40) {
        (0, _) => count(imm) as u64,
        (_, 0) => result.trailing_zeros().into(),
        _ => (15 - result.leading_zeros()).into(),
    }
}

/// The mask that imm8\[6\] asks for: bits, or whole elements.
fn mask(result: u16, imm: u8) -> u128 {
    let element = |i: usize| result >> i & 1 != 0;
    match (imm & 0x40, imm & 1) {
        (0, _) => result.into(),
        (_, 0) => u128::from_le_bytes(std::array::from_fn(|i| if element(i) { u8::MAX } else { 0 })),
        _ => u128::from_le_bytes(std::array::from_fn(|i| if element(i / 2) { u8::MAX } else { 0 })),
    }
}

/// Executes all four; their memory operand need not be aligned.
pub(in crate::vector) fn execute<O: Operands>(
    state: &mut VectorState,
    control: &Control,
    insn: &Insn,
    ops: &mut O,
) -> Result<(), O::Fault> {
    control.check_sse()?;
    let wide = insn.prefixes.contains(Prefixes::REX_W);
    compare_strings(state, insn, ops, insn.op, wide)
}

/// The comparison itself, of the legacy operation `op`; `wide` says that explicit lengths have 64 bits.
pub(in crate::vector) fn compare_strings<O: Operands>(
    state: &mut VectorState,
    insn: &Insn,
    ops: &mut O,
    op: Op,
    wide: bool,
) -> Result<(), O::Fault> {
    let [first, second, ..] = insn.operands;
    let imm = insn.imm as u8;
    let b = source_unaligned(state, ops, second)?;
    let a = state.xmm[usize::from(xmm_of(first)?)];
    let (a, b) = if matches!(op, Op::Pcmpestri | Op::Pcmpestrm) {
        (explicit(a, ops.gpr(RAX), wide, imm), explicit(b, ops.gpr(RDX), wide, imm))
    } else {
        (implicit(a, imm), implicit(b, imm))
    };
    let outcome = compare(&a, &b, imm);
    if matches!(op, Op::Pcmpestri | Op::Pcmpistri) {
        ops.set_gpr(RCX, index(outcome.result, imm), 4);
    } else {
        state.xmm[0] = mask(outcome.result, imm);
    }
    ops.set_status_flags(outcome.flags);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(string: &str) -> u128 {
        let mut bytes = [0; 16];
        bytes[..string.len()].copy_from_slice(string.as_bytes());
        u128::from_le_bytes(bytes)
    }

    #[test]
    fn finds_a_substring() {
        let (needle, hay) = (implicit(text("lo"), 0x0c), implicit(text("hello, hello"), 0x0c));
        let outcome = compare(&needle, &hay, 0x0c);
        assert_eq!(outcome.result, 1 << 3 | 1 << 10);
        assert_eq!((index(outcome.result, 0x0c), index(outcome.result, 0x4c)), (3, 10));
        assert_eq!(outcome.flags, eflags::CF | eflags::ZF | eflags::SF);
    }

    #[test]
    fn explicit_lengths_saturate() {
        assert_eq!(explicit(0, i64::MIN as u64, true, 0).valid, 16);
        assert_eq!(explicit(0, 0xffff_ffff_ffff_fffd, false, 0).valid, 3);
        assert_eq!(explicit(0, 1 << 32, false, 1).valid, 0);
    }
}
