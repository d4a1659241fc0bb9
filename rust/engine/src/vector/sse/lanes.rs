//! Packed-integer arithmetic on 16 bytes, lane by lane. Each function is `dst = f(dst, src)`; operations that only look
//! at their source ignore the first argument. MMX uses the same functions on the low 8 bytes.
//!
//! Everything is inlined into functions that have their operands in memory: from there compilers make one vector
//! instruction of most of these, from a `u128` in general registers they do not.

use std::array::from_fn;

/// A register, lowest byte first.
pub(in crate::vector) type Bytes = [u8; 16];

/// The lanes of a register, lowest first, and back.
macro_rules! lane_type {
    ($split:ident, $join:ident, $ty:ty, $bytes:literal) => {
        #[inline(always)]
        pub(in crate::vector) fn $split(bytes: Bytes) -> [$ty; 16 / $bytes] {
            from_fn(|i| <$ty>::from_le_bytes(from_fn(|j| bytes[$bytes * i + j])))
        }

        #[inline(always)]
        pub(in crate::vector) fn $join(lanes: [$ty; 16 / $bytes]) -> Bytes {
            let mut bytes = [0; 16];
            for (i, lane) in lanes.iter().enumerate() {
                bytes[$bytes * i..$bytes * (i + 1)].copy_from_slice(&lane.to_le_bytes());
            }
            bytes
        }
    };
}
lane_type!(u8s, from_u8s, u8, 1);
lane_type!(i8s, from_i8s, i8, 1);
lane_type!(u16s, from_u16s, u16, 2);
lane_type!(i16s, from_i16s, i16, 2);
lane_type!(u32s, from_u32s, u32, 4);
lane_type!(i32s, from_i32s, i32, 4);
lane_type!(u64s, from_u64s, u64, 8);
lane_type!(i64s, from_i64s, i64, 8);

/// Operations that combine lane i of both operands to lane i of the result.
macro_rules! lanewise {
    ($($name:ident $split:ident $join:ident |$a:ident, $b:ident| $body:expr;)*) => {$(
        #[inline(always)]
        pub(super) fn $name(a: Bytes, b: Bytes) -> Bytes {
            let (a, b) = ($split(a), $split(b));
            $join(from_fn(|i| { let ($a, $b) = (a[i], b[i]); $body }))
        }
    )*};
}

lanewise! {
    paddb u8s from_u8s |a, b| a.wrapping_add(b);
    paddw u16s from_u16s |a, b| a.wrapping_add(b);
    paddd u32s from_u32s |a, b| a.wrapping_add(b);
    paddq u64s from_u64s |a, b| a.wrapping_add(b);
    psubb u8s from_u8s |a, b| a.wrapping_sub(b);
    psubw u16s from_u16s |a, b| a.wrapping_sub(b);
    psubd u32s from_u32s |a, b| a.wrapping_sub(b);
    psubq u64s from_u64s |a, b| a.wrapping_sub(b);
    paddsb i8s from_i8s |a, b| a.saturating_add(b);
    paddsw i16s from_i16s |a, b| a.saturating_add(b);
    paddusb u8s from_u8s |a, b| a.saturating_add(b);
    paddusw u16s from_u16s |a, b| a.saturating_add(b);
    psubsb i8s from_i8s |a, b| a.saturating_sub(b);
    psubsw i16s from_i16s |a, b| a.saturating_sub(b);
    psubusb u8s from_u8s |a, b| a.saturating_sub(b);
    psubusw u16s from_u16s |a, b| a.saturating_sub(b);
    pmullw u16s from_u16s |a, b| a.wrapping_mul(b);
    pmulhw i16s from_i16s |a, b| (i32::from(a).wrapping_mul(i32::from(b)) >> 16) as i16;
    pmulhuw u16s from_u16s |a, b| (u32::from(a).wrapping_mul(u32::from(b)) >> 16) as u16;
    pmulhrsw i16s from_i16s |a, b| (((i32::from(a).wrapping_mul(i32::from(b)) >> 14).wrapping_add(1)) >> 1) as i16;
    pmulld u32s from_u32s |a, b| a.wrapping_mul(b);
    pmuludq u64s from_u64s |a, b| (a & 0xffff_ffff).wrapping_mul(b & 0xffff_ffff);
    pmuldq i64s from_i64s |a, b| i64::from(a as i32).wrapping_mul(i64::from(b as i32));
    pavgb u8s from_u8s |a, b| (u16::from(a).wrapping_add(u16::from(b)).wrapping_add(1) >> 1) as u8;
    pavgw u16s from_u16s |a, b| (u32::from(a).wrapping_add(u32::from(b)).wrapping_add(1) >> 1) as u16;
    pminub u8s from_u8s |a, b| a.min(b);
    pminuw u16s from_u16s |a, b| a.min(b);
    pminud u32s from_u32s |a, b| a.min(b);
    pminsb i8s from_i8s |a, b| a.min(b);
    pminsw i16s from_i16s |a, b| a.min(b);
    pminsd i32s from_i32s |a, b| a.min(b);
    pmaxub u8s from_u8s |a, b| a.max(b);
    pmaxuw u16s from_u16s |a, b| a.max(b);
    pmaxud u32s from_u32s |a, b| a.max(b);
    pmaxsb i8s from_i8s |a, b| a.max(b);
    pmaxsw i16s from_i16s |a, b| a.max(b);
    pmaxsd i32s from_i32s |a, b| a.max(b);
    pcmpeqb u8s from_u8s |a, b| if a == b { u8::MAX } else { 0 };
    pcmpeqw u16s from_u16s |a, b| if a == b { u16::MAX } else { 0 };
    pcmpeqd u32s from_u32s |a, b| if a == b { u32::MAX } else { 0 };
    pcmpeqq u64s from_u64s |a, b| if a == b { u64::MAX } else { 0 };
    pcmpgtb i8s from_i8s |a, b| if a > b { -1 } else { 0 };
    pcmpgtw i16s from_i16s |a, b| if a > b { -1 } else { 0 };
    pcmpgtd i32s from_i32s |a, b| if a > b { -1 } else { 0 };
    pcmpgtq i64s from_i64s |a, b| if a > b { -1 } else { 0 };
    psignb i8s from_i8s |a, b| if b < 0 { a.wrapping_neg() } else if b == 0 { 0 } else { a };
    psignw i16s from_i16s |a, b| if b < 0 { a.wrapping_neg() } else if b == 0 { 0 } else { a };
    psignd i32s from_i32s |a, b| if b < 0 { a.wrapping_neg() } else if b == 0 { 0 } else { a };
    pand u8s from_u8s |a, b| a & b;
    pandn u8s from_u8s |a, b| !a & b;
    por u8s from_u8s |a, b| a | b;
    pxor u8s from_u8s |a, b| a ^ b;
    pabsb i8s from_i8s |_a, b| b.wrapping_abs();
    pabsw i16s from_i16s |_a, b| b.wrapping_abs();
    pabsd i32s from_i32s |_a, b| b.wrapping_abs();
}

/// Sums of products of neighbouring words; only 8000h four times over overflows, and wraps.
#[inline(always)]
pub(super) fn pmaddwd(a: Bytes, b: Bytes) -> Bytes {
    let (a, b) = (i16s(a), i16s(b));
    let product = |i: usize| i32::from(a[i]).wrapping_mul(i32::from(b[i]));
    from_i32s(from_fn(|i| product(2 * i).wrapping_add(product(2 * i + 1))))
}

/// Sums of products of neighbouring unsigned bytes of `a` and signed bytes of `b`, saturated.
#[inline(always)]
pub(super) fn pmaddubsw(a: Bytes, b: Bytes) -> Bytes {
    let (a, b) = (u8s(a), i8s(b));
    let product = |i: usize| i32::from(a[i]).wrapping_mul(i32::from(b[i]));
    from_i16s(from_fn(|i| word(product(2 * i).wrapping_add(product(2 * i + 1)))))
}

#[inline(always)]
pub(super) fn psadbw(a: Bytes, b: Bytes) -> Bytes {
    let (a, b) = (u8s(a), u8s(b));
    from_u64s(from_fn(|half| (8 * half..8 * half + 8).map(|i| u64::from(a[i].abs_diff(b[i]))).sum()))
}

/// The smallest word of the source and its index.
#[inline(always)]
pub(super) fn phminposuw(_a: Bytes, b: Bytes) -> Bytes {
    let (index, least) = u16s(b).into_iter().enumerate().min_by_key(|&(_, word)| word).unwrap_or((0, 0));
    from_u16s([least, index as u16, 0, 0, 0, 0, 0, 0])
}

/// Sums of absolute differences of four bytes of `b` with eight windows of `a` (SDM vol. 2, MPSADBW).
#[inline(always)]
pub(super) fn mpsadbw(a: Bytes, b: Bytes, imm: u8) -> Bytes {
    let (a, b) = (u8s(a), u8s(b));
    let (first, block) = (usize::from(imm >> 2 & 1) * 4, usize::from(imm & 3) * 4);
    from_u16s(from_fn(|i| (0..4).map(|j| u16::from(a[first + i + j].abs_diff(b[block + j]))).sum()))
}

fn word(value: i32) -> i16 {
    value.clamp(i16::MIN.into(), i16::MAX.into()) as i16
}

/// Combines neighbouring lanes: those of `a` give the lower half of the result, those of `b` the upper.
macro_rules! horizontal {
    ($($name:ident $mmx:ident $split:ident $join:ident $n:literal |$x:ident, $y:ident| $body:expr;)*) => {$(
        #[inline(always)]
        pub(super) fn $name(a: Bytes, b: Bytes) -> Bytes {
            let (a, b) = ($split(a), $split(b));
            $join(from_fn(|i| {
                let (from, at) = if i < $n / 2 { (&a, 2 * i) } else { (&b, 2 * i - $n) };
                let ($x, $y) = (from[at], from[at + 1]);
                $body
            }))
        }

        #[inline(always)]
        pub(super) fn $mmx(a: Bytes, b: Bytes) -> Bytes {
            low($name(low_halves(a, b), [0; 16]))
        }
    )*};
}

/// The low halves of `a` and `b` beside each other.
#[inline(always)]
pub(super) fn low_halves(a: Bytes, b: Bytes) -> Bytes {
    from_fn(|i| if i < 8 { a[i] } else { b[i - 8] })
}

/// The low half, above it zeros.
#[inline(always)]
pub(super) fn low(a: Bytes) -> Bytes {
    low_halves(a, [0; 16])
}

/// The low 64 bits, which are the count of a shift.
#[inline(always)]
fn quadword(a: Bytes) -> u64 {
    u64s(a)[0]
}

horizontal! {
    phaddw phaddw_mmx u16s from_u16s 8 |x, y| x.wrapping_add(y);
    phaddd phaddd_mmx u32s from_u32s 4 |x, y| x.wrapping_add(y);
    phaddsw phaddsw_mmx i16s from_i16s 8 |x, y| x.saturating_add(y);
    phsubw phsubw_mmx u16s from_u16s 8 |x, y| x.wrapping_sub(y);
    phsubd phsubd_mmx u32s from_u32s 4 |x, y| x.wrapping_sub(y);
    phsubsw phsubsw_mmx i16s from_i16s 8 |x, y| x.saturating_sub(y);
}

/// Narrows lanes with saturation: those of `a` give the lower half of the result, those of `b` the upper.
macro_rules! pack {
    ($($name:ident $($mmx:ident)? : $split:ident $join:ident $n:literal $wide:ty => $narrow:ty;)*) => {$(
        #[inline(always)]
        pub(super) fn $name(a: Bytes, b: Bytes) -> Bytes {
            let (a, b) = ($split(a), $split(b));
            $join(from_fn(|i| {
                let lane: $wide = if i < $n { a[i] } else { b[i - $n] };
                lane.clamp(<$narrow>::MIN.into(), <$narrow>::MAX.into()) as $narrow
            }))
        }

        $(#[inline(always)]
        pub(super) fn $mmx(a: Bytes, b: Bytes) -> Bytes {
            low($name(low_halves(a, b), [0; 16]))
        })?
    )*};
}

pack! {
    packsswb packsswb_mmx: i16s from_i8s 8 i16 => i8;
    packuswb packuswb_mmx: i16s from_u8s 8 i16 => u8;
    packssdw packssdw_mmx: i32s from_i16s 4 i32 => i16;
    packusdw: i32s from_u16s 4 i32 => u16;
}

/// Shifts every lane by the low 64 bits of the source; a count of the lane's width or more clears it.
macro_rules! shifts {
    ($($name:ident $split:ident $join:ident $bits:literal |$a:ident, $count:ident| $body:expr;)*) => {$(
        #[inline(always)]
        pub(super) fn $name(a: Bytes, count: Bytes) -> Bytes {
            let count = quadword(count);
            if count >= $bits {
                return [0; 16];
            }
            let $count = count as u32;
            $join($split(a).map(|$a| $body))
        }
    )*};
}

shifts! {
    psllw u16s from_u16s 16 |a, count| a << count;
    pslld u32s from_u32s 32 |a, count| a << count;
    psllq u64s from_u64s 64 |a, count| a << count;
    psrlw u16s from_u16s 16 |a, count| a >> count;
    psrld u32s from_u32s 32 |a, count| a >> count;
    psrlq u64s from_u64s 64 |a, count| a >> count;
}

#[inline(always)]
pub(super) fn psraw(a: Bytes, count: Bytes) -> Bytes {
    let count = quadword(count).min(15) as u32;
    from_i16s(i16s(a).map(|a| a >> count))
}

#[inline(always)]
pub(super) fn psrad(a: Bytes, count: Bytes) -> Bytes {
    let count = quadword(count).min(31) as u32;
    from_i32s(i32s(a).map(|a| a >> count))
}

/// Shifts by whole bytes; the count stands in the source's place.
#[inline(always)]
pub(super) fn pslldq(a: Bytes, count: Bytes) -> Bytes {
    let count = u32::from(count[0]).min(16) * 8;
    u128::from_le_bytes(a).checked_shl(count).unwrap_or(0).to_le_bytes()
}

#[inline(always)]
pub(super) fn psrldq(a: Bytes, count: Bytes) -> Bytes {
    let count = u32::from(count[0]).min(16) * 8;
    u128::from_le_bytes(a).checked_shr(count).unwrap_or(0).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A function on numbers.
    fn on(function: fn(Bytes, Bytes) -> Bytes, a: u128, b: u128) -> u128 {
        u128::from_le_bytes(function(a.to_le_bytes(), b.to_le_bytes()))
    }

    #[test]
    fn saturation_and_wrap() {
        assert_eq!(on(paddsb, 0x7f, 0x01) & 0xff, 0x7f);
        assert_eq!(on(psubusb, 0x01, 0x02) & 0xff, 0);
        assert_eq!(on(pmaddwd, 0x8000_8000, 0x8000_8000) & 0xffff_ffff, 0x8000_0000);
        assert_eq!(on(packuswb, 0xffff_0100, 0) & 0xffff, 0x00ff);
        let packed = on(packssdw_mmx, 0x0001_0000_ffff_0000, 0x7fff_0000_0001);
        assert_eq!(packed, 0x7fff_0001_7fff_8000);
    }

    #[test]
    fn shift_counts_beyond_the_lane() {
        assert_eq!(on(psrlw, u128::MAX, 16), 0);
        assert_eq!(on(psllq, u128::MAX, 1 << 63), 0);
        assert_eq!(on(psraw, 0x8000, 1 << 40) & 0xffff, 0xffff);
        assert_eq!(on(pslldq, u128::MAX, 16), 0);
        assert_eq!(on(pslldq, u128::MAX, 255), 0);
        assert_eq!(on(psrldq, 0x1234 << 8, 1), 0x1234);
    }
}
