//! Moving lanes about: unpack, shuffle, blend, align, widen and duplicate. Functions are `dst = f(dst, src)` or take the
//! immediate as a third argument.

use std::array::from_fn;

use super::lanes::{
    Bytes, from_i16s, from_i32s, from_i64s, from_u8s, from_u16s, from_u32s, from_u64s, i8s, i16s, i32s, low,
    low_halves, u8s, u16s, u32s, u64s,
};

/// Interleaves the low or the high halves; the MMX forms those of the low 64 bits.
macro_rules! unpack {
    ($($low:ident $high:ident $high_mmx:ident $split:ident $join:ident $n:literal;)*) => {$(
        #[inline(always)]
        pub(in crate::vector) fn $low(a: Bytes, b: Bytes) -> Bytes {
            let (a, b) = ($split(a), $split(b));
            $join(from_fn(|i| if i % 2 == 0 { a[i / 2] } else { b[i / 2] }))
        }

        #[inline(always)]
        pub(in crate::vector) fn $high(a: Bytes, b: Bytes) -> Bytes {
            let (a, b) = ($split(a), $split(b));
            $join(from_fn(|i| if i % 2 == 0 { a[($n + i) / 2] } else { b[($n + i) / 2] }))
        }

        #[inline(always)]
        pub(in crate::vector) fn $high_mmx(a: Bytes, b: Bytes) -> Bytes {
            let wide = $low(a, b);
            from_fn(|i| if i < 8 { wide[i + 8] } else { 0 })
        }
    )*};
}

unpack! {
    punpcklbw punpckhbw punpckhbw_mmx u8s from_u8s 16;
    punpcklwd punpckhwd punpckhwd_mmx u16s from_u16s 8;
    punpckldq punpckhdq punpckhdq_mmx u32s from_u32s 4;
}

#[inline(always)]
pub(in crate::vector) fn punpcklqdq(a: Bytes, b: Bytes) -> Bytes {
    low_halves(a, b)
}

#[inline(always)]
pub(in crate::vector) fn punpckhqdq(a: Bytes, b: Bytes) -> Bytes {
    from_fn(|i| if i < 8 { a[i + 8] } else { b[i] })
}

#[inline(always)]
pub(in crate::vector) fn pshufb(a: Bytes, b: Bytes) -> Bytes {
    let a = u8s(a);
    from_u8s(u8s(b).map(|index| if index & 0x80 != 0 { 0 } else { a[usize::from(index & 15)] }))
}

#[inline(always)]
pub(in crate::vector) fn pshufb_mmx(a: Bytes, b: Bytes) -> Bytes {
    pshufb(a, low(b).map(|index| index & 0x87))
}

/// Lane number `i` of a two-bit selector list.
const fn select(imm: u8, i: usize) -> usize {
    (imm >> (2 * i) & 3) as usize
}

#[inline(always)]
pub(in crate::vector) fn pshufd(_a: Bytes, b: Bytes, imm: u8) -> Bytes {
    let b = u32s(b);
    from_u32s(from_fn(|i| b[select(imm, i)]))
}

#[inline(always)]
pub(in crate::vector) fn pshuflw(_a: Bytes, b: Bytes, imm: u8) -> Bytes {
    let lanes = u16s(b);
    from_u16s(from_fn(|i| if i < 4 { lanes[select(imm, i)] } else { lanes[i] }))
}

#[inline(always)]
pub(in crate::vector) fn pshufhw(_a: Bytes, b: Bytes, imm: u8) -> Bytes {
    let lanes = u16s(b);
    from_u16s(from_fn(|i| if i < 4 { lanes[i] } else { lanes[4 + select(imm, i - 4)] }))
}

#[inline(always)]
pub(in crate::vector) fn shufps(a: Bytes, b: Bytes, imm: u8) -> Bytes {
    let (a, b) = (u32s(a), u32s(b));
    from_u32s(from_fn(|i| if i < 2 { a[select(imm, i)] } else { b[select(imm, i)] }))
}

#[inline(always)]
pub(in crate::vector) fn shufpd(a: Bytes, b: Bytes, imm: u8) -> Bytes {
    let (a, b) = (u64s(a), u64s(b));
    from_u64s([a[usize::from(imm & 1)], b[usize::from(imm >> 1 & 1)]])
}

/// The concatenation of `a` and `b` shifted right by `imm` bytes.
#[inline(always)]
pub(in crate::vector) fn palignr(a: Bytes, b: Bytes, imm: u8) -> Bytes {
    let (a, b) = (u128::from_le_bytes(a), u128::from_le_bytes(b));
    let value = match u32::from(imm) {
        0 => b,
        n @ 1..16 => b >> (8 * n) | a << (8 * (16 - n)),
        n @ 16..32 => a >> (8 * (n - 16)),
        _ => 0,
    };
    value.to_le_bytes()
}

#[inline(always)]
pub(in crate::vector) fn palignr_mmx(a: Bytes, b: Bytes, imm: u8) -> Bytes {
    low(palignr([0; 16], low_halves(b, a), imm))
}

#[inline(always)]
pub(in crate::vector) fn blendps(a: Bytes, b: Bytes, imm: u8) -> Bytes {
    from_fn(|i| if imm >> (i / 4) & 1 != 0 { b[i] } else { a[i] })
}

#[inline(always)]
pub(in crate::vector) fn blendpd(a: Bytes, b: Bytes, imm: u8) -> Bytes {
    from_fn(|i| if imm >> (i / 8) & 1 != 0 { b[i] } else { a[i] })
}

#[inline(always)]
pub(in crate::vector) fn pblendw(a: Bytes, b: Bytes, imm: u8) -> Bytes {
    from_fn(|i| if imm >> (i / 2) & 1 != 0 { b[i] } else { a[i] })
}

/// Blends by the sign bits of a third register.
#[inline(always)]
pub(in crate::vector) fn pblendvb(a: Bytes, b: Bytes, mask: Bytes) -> Bytes {
    from_fn(|i| if mask[i] >> 7 != 0 { b[i] } else { a[i] })
}

#[inline(always)]
pub(in crate::vector) fn blendvps(a: Bytes, b: Bytes, mask: Bytes) -> Bytes {
    from_fn(|i| if mask[i | 3] >> 7 != 0 { b[i] } else { a[i] })
}

#[inline(always)]
pub(in crate::vector) fn blendvpd(a: Bytes, b: Bytes, mask: Bytes) -> Bytes {
    from_fn(|i| if mask[i | 7] >> 7 != 0 { b[i] } else { a[i] })
}

/// INSERTPS with its source lane already in the low bits of `b`.
#[inline(always)]
pub(in crate::vector) fn insertps(a: Bytes, lane: u32, imm: u8) -> Bytes {
    let mut lanes = u32s(a);
    lanes[usize::from(imm >> 4 & 3)] = lane;
    from_u32s(from_fn(|i| if imm >> i & 1 != 0 { 0 } else { lanes[i] }))
}

/// Widening moves from the low lanes of the source.
macro_rules! widen {
    ($($name:ident $split:ident $join:ident;)*) => {$(
        #[inline(always)]
        pub(in crate::vector) fn $name(_a: Bytes, b: Bytes) -> Bytes {
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

#[inline(always)]
pub(in crate::vector) fn movddup(_a: Bytes, b: Bytes) -> Bytes {
    low_halves(b, b)
}

#[inline(always)]
pub(in crate::vector) fn movsldup(a: Bytes, b: Bytes) -> Bytes {
    pshufd(a, b, 0b10_10_00_00)
}

#[inline(always)]
pub(in crate::vector) fn movshdup(a: Bytes, b: Bytes) -> Bytes {
    pshufd(a, b, 0b11_11_01_01)
}

/// The sign bits of the bytes as a number.
#[inline(always)]
pub(in crate::vector) fn byte_signs(value: u128) -> u32 {
    let gather = |half: u64| ((half & 0x8080_8080_8080_8080) >> 7).wrapping_mul(0x0102_0408_1020_4080) >> 56;
    (gather(value as u64) | gather((value >> 64) as u64) << 8) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn align_over_the_whole_range() {
        let (a, b) = (from_fn(|i| i as u8 + 16), from_fn(|i| i as u8));
        for imm in 0..=255u8 {
            let expected: Bytes = from_fn(|i| {
                let at = usize::from(imm) + i;
                if at < 32 { at as u8 } else { 0 }
            });
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
