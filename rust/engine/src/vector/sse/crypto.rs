//! AES-NI (FIPS 197 rounds on one register), PCLMULQDQ and CRC32.

use std::array::from_fn;

use trapgate_x86::insn::{Insn, Operand};

use super::super::interface::Operands;
use super::super::operand::{size_mask, source_unaligned, unexpected};
use super::super::state::VectorState;
use super::lanes::{Bytes, from_u32s, from_u64s, pxor, u32s, u64s};

/// Doubles in GF(2^8) with the polynomial x^8 + x^4 + x^3 + x + 1.
const fn double(value: u8) -> u8 {
    value << 1 ^ (if value & 0x80 != 0 { 0x1b } else { 0 })
}

/// The substitution box of FIPS 197, 5.1.1: inverse in GF(2^8), then an affine map. The inverses are found by walking
/// the powers of the generator 3 upwards and of its inverse downwards.
const SBOX: [u8; 256] = {
    let mut table = [0; 256];
    let (mut power, mut inverse) = (1u8, 1u8);
    loop {
        power ^= double(power);
        inverse ^= inverse << 1;
        inverse ^= inverse << 2;
        inverse ^= inverse << 4;
        if inverse & 0x80 != 0 {
            inverse ^= 0x09;
        }
        let i = inverse;
        table[power as usize] =
            i ^ i.rotate_left(1) ^ i.rotate_left(2) ^ i.rotate_left(3) ^ i.rotate_left(4) ^ 0x63;
        if power == 1 {
            break;
        }
    }
    table[0] = 0x63;
    table
};

const INVERSE_SBOX: [u8; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        table[SBOX[i] as usize] = i as u8;
        i += 1;
    }
    table
};

/// MixColumns on one column, as rows 0 to 3 of a little-endian word (FIPS 197, 5.1.3).
const fn mix(column: u32) -> u32 {
    let high = (column >> 7) & 0x0101_0101;
    let doubled = ((column & 0x7f7f_7f7f) << 1) ^ (high * 0x1b);
    doubled ^ (doubled ^ column).rotate_right(8) ^ column.rotate_right(16) ^ column.rotate_right(24)
}

/// InvMixColumns (FIPS 197, 5.3.3), which is MixColumns after a multiplication by 4x^2 + 5.
const fn inverse_mix(column: u32) -> u32 {
    let times4 = times2(times2(column));
    mix(column ^ times4 ^ times4.rotate_right(16))
}

const fn times2(column: u32) -> u32 {
    ((column & 0x7f7f_7f7f) << 1) ^ (((column >> 7) & 0x0101_0101) * 0x1b)
}

fn mix_columns(state: Bytes, map: fn(u32) -> u32) -> Bytes {
    from_u32s(u32s(state).map(map))
}

/// ShiftRows and SubBytes together; they commute.
fn shift_and_substitute(state: Bytes) -> Bytes {
    from_fn(|i| SBOX[usize::from(state[(i + 4 * (i % 4)) % 16])])
}

fn inverse_shift_and_substitute(state: Bytes) -> Bytes {
    from_fn(|i| INVERSE_SBOX[usize::from(state[(i + 12 * (i % 4)) % 16])])
}

#[inline(always)]
pub(super) fn aesenc(state: Bytes, key: Bytes) -> Bytes {
    pxor(mix_columns(shift_and_substitute(state), mix), key)
}

#[inline(always)]
pub(super) fn aesenclast(state: Bytes, key: Bytes) -> Bytes {
    pxor(shift_and_substitute(state), key)
}

#[inline(always)]
pub(super) fn aesdec(state: Bytes, key: Bytes) -> Bytes {
    pxor(mix_columns(inverse_shift_and_substitute(state), inverse_mix), key)
}

#[inline(always)]
pub(super) fn aesdeclast(state: Bytes, key: Bytes) -> Bytes {
    pxor(inverse_shift_and_substitute(state), key)
}

#[inline(always)]
pub(super) fn aesimc(_a: Bytes, b: Bytes) -> Bytes {
    mix_columns(b, inverse_mix)
}

#[inline(always)]
pub(super) fn aeskeygenassist(_a: Bytes, b: Bytes, round: u8) -> Bytes {
    let substitute = |word: u32| u32::from_le_bytes(word.to_le_bytes().map(|byte| SBOX[usize::from(byte)]));
    let [_, x1, _, x3] = u32s(b).map(substitute);
    let round = u32::from(round);
    from_u32s([x1, x1.rotate_right(8) ^ round, x3, x3.rotate_right(8) ^ round])
}

/// The carry-less product of one half of each operand.
#[inline(always)]
pub(super) fn pclmulqdq(a: Bytes, b: Bytes, imm: u8) -> Bytes {
    let (a, b) = (u64s(a)[usize::from(imm & 1)], u64s(b)[usize::from(imm >> 4 & 1)]);
    // Reversing the bits of the factors reverses those of the product, of which 127 can be set.
    let high = carry_less_low(a.reverse_bits(), b.reverse_bits()).reverse_bits() >> 1;
    from_u64s([carry_less_low(a, b), high])
}

/// The low half of a carry-less product, by multiplications of numbers with every fourth bit only: sums of their products
/// stay below 16 in all columns but the last, whose carry is lost, so the lowest bit of each column is the sum modulo 2.
fn carry_less_low(a: u64, b: u64) -> u64 {
    let mask = |i: usize| 0x1111_1111_1111_1111u64 << i;
    (0..4).fold(0, |product, column| {
        let sum = (0..4).fold(0, |sum, i| sum ^ (a & mask(i)).wrapping_mul(b & mask((column + 4 - i) % 4)));
        product | sum & mask(column)
    })
}

/// Remainders for CRC32: polynomial 11EDC6F41h, bits reflected (SDM vol. 2, CRC32).
/// Row n is for a byte that has n bytes behind it.
static CRC_TABLES: [[u32; 256]; 8] = {
    let mut tables = [[0; 256]; 8];
    let mut i = 0;
    while i < 256 {
        let mut crc = i as u32;
        let mut bit = 0;
        while bit < 64 {
            crc = crc >> 1 ^ (if crc & 1 != 0 { 0x82f6_3b78 } else { 0 });
            bit += 1;
            if bit % 8 == 0 {
                tables[bit / 8 - 1][i] = crc;
            }
        }
        i += 1;
    }
    tables
};

/// CRC32, which needs no vector state and is not subject to CR0 or CR4.
pub(in crate::vector) fn crc32<O: Operands>(
    state: &mut VectorState,
    insn: &Insn,
    ops: &mut O,
) -> Result<(), O::Fault> {
    let [dst, src, ..] = insn.operands;
    let Operand::Gpr { reg, size } = dst else { return Err(unexpected()) };
    let len = match src {
        Operand::Gpr { size, .. } => size,
        Operand::Mem { size } => size.min(8) as u8,
        _ => 1,
    };
    let value = source_unaligned(state, ops, src)? as u64 & size_mask(len);
    let (crc, len) = (ops.gpr(reg) as u32, usize::from(len));
    // The old remainder goes into the bytes it meets; what is longer than they are stays.
    let mixed = (value ^ u64::from(crc)).to_le_bytes();
    let kept = u64::from(crc) >> (8 * len.min(4));
    let crc = mixed[..len].iter().zip(CRC_TABLES[..len].iter().rev());
    let crc = crc.fold(kept as u32, |crc, (byte, table)| crc ^ table[usize::from(*byte)]);
    ops.set_gpr(reg, crc.into(), size);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of FIPS 197, appendix B: first round, and encryption undone by decryption.
    #[test]
    fn first_round_of_the_standards_example() {
        let bytes = |text: &str| -> Bytes {
            from_fn(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).expect("two hexadecimal digits"))
        };
        let start = bytes("193de3bea0f4e22b9ac68d2ae9f84808");
        let key = bytes("a0fafe1788542cb123a339392a6c7605");
        assert_eq!(aesenc(start, key), bytes("a49c7ff2689f352b6b5bea43026a5049"));
        assert_eq!(aesdeclast(aesenclast(start, [0; 16]), [0; 16]), start);
        assert_eq!(aesimc([0; 16], mix_columns(start, mix)), start);
        let schedule = aeskeygenassist([0; 16], bytes("2b7e151628aed2a6abf7158809cf4f3c"), 1);
        assert_eq!(u32s(schedule)[3], 0x01eb_848b, "RotWord, SubWord and Rcon of appendix A.1");
    }

    #[test]
    fn carry_less_product() {
        let product =
            |a: u128, b: u128, imm| u128::from_le_bytes(pclmulqdq(a.to_le_bytes(), b.to_le_bytes(), imm));
        let value = 0b1011 | 1u128 << 64;
        assert_eq!(product(value, 0b11, 0), 0b1_1101);
        assert_eq!(product(value, 0b11, 1), 0b11);
        assert_eq!(product(1 << 63, 1 << 127, 0x10), 1 << 126);
        // All ones times all ones: every second bit.
        assert_eq!(product(u64::MAX.into(), u64::MAX.into(), 0), 0x5555_5555_5555_5555_5555_5555_5555_5555);
    }
}
