//! Moving lanes about: unpack, shuffle, blend, align, widen and duplicate. Functions are `dst = f(dst, src)` or take the
//! immediate as a third argument.

use std::array::from_fn;

use super::lanes::{
    from_i16s, from_i32s, from_i64s, from_u8s, from_u16s, from_u32s, from_u64s, i8s, i16s, i32s, u8s, u16s,
    u32s, u64s,
};

const LOW: u128 = u64::MAX as u128;

/// Interleaves the low or the high halves; the MMX forms those of the low 64 bits.
macro_rules! unpack {
    ($($low:ident $high:ident $high_mmx:ident $split:ident $join:ident $n:literal;)*) => {$(
        pub(super) fn $low(a: u128, b: u128) -> u128 {
            let (a, b) = ($split(a), $split(b));
            $join(from_fn(|i| if i % 2 == 0 { a[i / 2] } else { b[i / 2] }))
        }

        pub(super) fn $high(a: u128, b: u128) -> u128 {
            let (a, b) = ($split(a), $split(b));
            $join(from_fn(|i| if i % 2 == 0 { a[($n + i) / 2] } else { b[($n + i) / 2] }))
        }

        pub(super) fn $high_mmx(a: u128, b: u128) -> u128 {
            $low(a, b) >> 64
        }
    )*};
}

unpack! {
    punpcklbw punpckhbw punpckhbw_mmx u8s from_u8s 16;
    punpcklwd punpckhwd punpckhwd_mmx u16s from_u16s 8;
    punpckldq punpckhdq punpckhdq_mmx u32s from_u32s 4;
}

pub(super) fn punpcklqdq(a: u128, b: u128) -> u128 {
    a & LOW | b << 64
}

pub(super) fn punpckhqdq(a: u128, b: u128) -> u128 {
    a >> 64 | b & !LOW
}

pub(super) fn pshufb(a: u128, b: u128) -> u128 {
    let a = u8s(a);
    from_u8s(u8s(b).map(|index| if index & 0x80 != 0 { 0 } else { a[usize::from(index & 15)] }))
}

pub(super) fn pshufb_mmx(a: u128, b: u128) -> u128 {
    pshufb(a, b & 0x8787_8787_8787_8787)
}

/// Lane number `i` of a two-bit selector list.
const fn select(imm: u8, i: usize) -> usize {
    (imm >> (2 * i) & 3) as usize
}

pub(super) fn pshufd(_a: u128, b: u128, imm: u8) -> u128 {
    let b = u32s(b);
    from_u32s(from_fn(|i| b[select(imm, i)]))
}

pub(super) fn pshuflw(_a: u128, b: u128, imm: u8) -> u128 {
    let lanes = u16s(b);
    from_u16s(from_fn(|i| if i < 4 { lanes[select(imm, i)] } else { lanes[i] }))
}

pub(super) fn pshufhw(_a: u128, b: u128, imm: u8) -> u128 {
    let lanes = u16s(b);
    from_u16s(from_fn(|i| if i < 4 { lanes[i] } else { lanes[4 + select(imm, i - 4)] }))
}

pub(super) fn shufps(a: u128, b: u128, imm: u8) -> u128 {
    let (a, b) = (u32s(a), u32s(b));
    from_u32s(from_fn(|i| if i < 2 { a[select(imm, i)] } else { b[select(imm, i)] }))
}

pub(super) fn shufpd(a: u128, b: u128, imm: u8) -> u128 {
    let (a, b) = (u64s(a), u64s(b));
    from_u64s([a[usize::from(imm & 1)], b[usize::from(imm >> 1 & 1)]])
}

/// The concatenation of `a` and `b` shifted right by `imm` bytes.
pub(super) fn palignr(a: u128, b: u128, imm: u8) -> u128 {
    match u32::from(imm) {
        0 => b,
        n @ 1..16 => b >> (8 * n) | a << (8 * (16 - n)),
        n @ 16..32 => a >> (8 * (n - 16)),
        _ => 0,
    }
}

pub(super) fn palignr_mmx(a: u128, b: u128, imm: u8) -> u128 {
    if imm > 15 { 0 } else { (b & LOW | a << 64) >> (8 * u32::from(imm)) & LOW }
}

/// All ones in each of `n` lanes of equal size whose bit in `bits` is set.
fn lane_mask(bits: u8, n: u32) -> u128 {
    let width = 128 / n;
    let lane = u128::MAX >> (128 - width);
    (0..n).filter(|i| bits >> i & 1 != 0).fold(0, |mask, i| mask | lane << (i * width))
}

fn merge(a: u128, b: u128, mask: u128) -> u128 {
    a & !mask | b & mask
}

pub(super) fn blendps(a: u128, b: u128, imm: u8) -> u128 {
    merge(a, b, lane_mask(imm, 4))
}

pub(super) fn blendpd(a: u128, b: u128, imm: u8) -> u128 {
    merge(a, b, lane_mask(imm, 2))
}

pub(super) fn pblendw(a: u128, b: u128, imm: u8) -> u128 {
    merge(a, b, lane_mask(imm, 8))
}

/// Blends by the sign bits of a third register.
pub(super) fn pblendvb(a: u128, b: u128, mask: u128) -> u128 {
    merge(a, b, from_u8s(i8s(mask).map(|lane| (lane >> 7) as u8)))
}

pub(super) fn blendvps(a: u128, b: u128, mask: u128) -> u128 {
    merge(a, b, from_i32s(i32s(mask).map(|lane| lane >> 31)))
}

pub(super) fn blendvpd(a: u128, b: u128, mask: u128) -> u128 {
    merge(a, b, from_u64s(u64s(mask).map(|lane| if lane >> 63 != 0 { u64::MAX } else { 0 })))
}

/// INSERTPS with its source lane already in the low bits of `b`.
pub(super) fn insertps(a: u128, lane: u32, imm: u8) -> u128 {
    let mut lanes = u32s(a);
    lanes[usize::from(imm >> 4 & 3)] = lane;
    from_u32s(from_fn(|i| if imm >> i & 1 != 0 { 0 } else { lanes[i] }))
}

/// Widening moves from the low lanes of the source.
macro_rules! widen {
    ($($name:ident $split:ident $join:ident;)*) => {$(
        pub(super) fn $name(_a: u128, b: u128) -> u128 {
            let lanes = $split(b);
            $join(from_fn(|i| lanes[i].into()))
        }
    )*};
}

widen! {
    pmovsxbw i8s from_i16s;
    pmovsxbd i8s from_i32s;
    pmovsxbq i8s from_i64s;
    pmovsxwd i16s from_i32s;
    pmovsxwq i16s from_i64s;
    pmovsxdq i32s from_i64s;
    pmovzxbw u8s from_u16s;
    pmovzxbd u8s from_u32s;
    pmovzxbq u8s from_u64s;
    pmovzxwd u16s from_u32s;
    pmovzxwq u16s from_u64s;
    pmovzxdq u32s from_u64s;
}

pub(super) fn movddup(_a: u128, b: u128) -> u128 {
    b & LOW | b << 64
}

pub(super) fn movsldup(a: u128, b: u128) -> u128 {
    pshufd(a, b, 0b10_10_00_00)
}

pub(super) fn movshdup(a: u128, b: u128) -> u128 {
    pshufd(a, b, 0b11_11_01_01)
}

/// The sign bits of the bytes as a number.
#[inline(always)]
pub(super) fn byte_signs(value: u128) -> u32 {
    let gather = |half: u64| ((half & 0x8080_8080_8080_8080) >> 7).wrapping_mul(0x0102_0408_1020_4080) >> 56;
    (gather(value as u64) | gather((value >> 64) as u64) << 8) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn align_over_the_whole_range() {
        let (a, b) = (0x1f1e_1d1c_1b1a_1918_1716_1514_1312_1110, 0x0f0e_0d0c_0b0a_0908_0706_0504_0302_0100);
        for imm in 0..=255u8 {
            let expected = from_u8s(from_fn(|i| {
                let at = usize::from(imm) + i;
                if at < 32 { at as u8 } else { 0 }
            }));
            assert_eq!(palignr(a, b, imm), expected, "imm {imm:#x}");
        }
    }

    #[test]
    fn byte_signs_are_in_order() {
        for bit in 0..16 {
            assert_eq!(byte_signs(0x80 << (8 * bit)), 1 << bit);
        }
        assert_eq!(byte_signs(!(0x80 * 0x0101_0101_0101_0101_0101_0101_0101_0101)), 0);
    }
}
