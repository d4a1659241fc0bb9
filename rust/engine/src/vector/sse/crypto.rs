//! AES-NI (FIPS 197 rounds on one register), PCLMULQDQ and CRC32.

use std::array::from_fn;

use trapgate_x86::insn::{Insn, Operand};

use super::super::interface::Operands;
use super::super::operand::{size_mask, source_unaligned, unexpected};
use super::super::state::VectorState;
use super::lanes::{from_u8s, from_u32s, u8s, u32s};

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

fn mix_columns(state: u128, map: fn(u32) -> u32) -> u128 {
    from_u32s(u32s(state).map(map))
}

/// ShiftRows and SubBytes together; they commute.
fn shift_and_substitute(state: u128) -> u128 {
    let state = u8s(state);
    from_u8s(from_fn(|i| SBOX[usize::from(state[(i + 4 * (i % 4)) % 16])]))
}

fn inverse_shift_and_substitute(state: u128) -> u128 {
    let state = u8s(state);
    from_u8s(from_fn(|i| INVERSE_SBOX[usize::from(state[(i + 12 * (i % 4)) % 16])]))
}

pub(super) fn aesenc(state: u128, key: u128) -> u128 {
    mix_columns(shift_and_substitute(state), mix) ^ key
}

pub(super) fn aesenclast(state: u128, key: u128) -> u128 {
    shift_and_substitute(state) ^ key
}

pub(super) fn aesdec(state: u128, key: u128) -> u128 {
    mix_columns(inverse_shift_and_substitute(state), inverse_mix) ^ key
}

pub(super) fn aesdeclast(state: u128, key: u128) -> u128 {
    inverse_shift_and_substitute(state) ^ key
}

pub(super) fn aesimc(_a: u128, b: u128) -> u128 {
    mix_columns(b, inverse_mix)
}

pub(super) fn aeskeygenassist(_a: u128, b: u128, round: u8) -> u128 {
    let substitute = |word: u32| u32::from_le_bytes(word.to_le_bytes().map(|byte| SBOX[usize::from(byte)]));
    let [_, x1, _, x3] = u32s(b).map(substitute);
    let round = u32::from(round);
    from_u32s([x1, x1.rotate_right(8) ^ round, x3, x3.rotate_right(8) ^ round])
}

/// The carry-less product of one half of each operand.
pub(super) fn pclmulqdq(a: u128, b: u128, imm: u8) -> u128 {
    let a = a >> (64 * u32::from(imm & 1)) & u128::from(u64::MAX);
    let b = (b >> (64 * u32::from(imm >> 4 & 1))) as u64;
    (0..64).fold(0, |product, i| if b >> i & 1 != 0 { product ^ a << i } else { product })
}

/// Remainders for CRC32: polynomial 11EDC6F41h, bits reflected (SDM vol. 2, CRC32).
const CRC_TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let mut crc = i as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = crc >> 1 ^ (if crc & 1 != 0 { 0x82f6_3b78 } else { 0 });
            bit += 1;
        }
        table[i] = crc;
        i += 1;
    }
    table
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
    let crc = value.to_le_bytes()[..usize::from(len)]
        .iter()
        .fold(ops.gpr(reg) as u32, |crc, byte| crc >> 8 ^ CRC_TABLE[usize::from(crc as u8 ^ byte)]);
    ops.set_gpr(reg, crc.into(), size);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of FIPS 197, appendix B: first round, and encryption undone by decryption.
    #[test]
    fn first_round_of_the_standards_example() {
        let bytes = |text: &str| {
            from_u8s(from_fn(|i| {
                u8::from_str_radix(&text[2 * i..2 * i + 2], 16).expect("two hexadecimal digits")
            }))
        };
        let start = bytes("193de3bea0f4e22b9ac68d2ae9f84808");
        let key = bytes("a0fafe1788542cb123a339392a6c7605");
        assert_eq!(aesenc(start, key), bytes("a49c7ff2689f352b6b5bea43026a5049"));
        assert_eq!(aesdeclast(aesenclast(start, key) ^ key, 0), start);
        assert_eq!(aesimc(0, mix_columns(start, mix)), start);
        let schedule = aeskeygenassist(0, bytes("2b7e151628aed2a6abf7158809cf4f3c"), 1);
        assert_eq!(u32s(schedule)[3], 0x01eb_848b, "RotWord, SubWord and Rcon of appendix A.1");
    }

    #[test]
    fn carry_less_product() {
        let value = 0b1011 | 1u128 << 64;
        assert_eq!(pclmulqdq(value, 0b11, 0), 0b1_1101);
        assert_eq!(pclmulqdq(value, 0b11, 1), 0b11);
        assert_eq!(pclmulqdq(1 << 63, 1 << 127, 0x10), 1 << 126);
    }
}
