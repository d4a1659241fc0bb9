//! Conversions between half and single precision (Intel SDM vol. 1, 14.4).

use super::super::fp::SseResult;
use super::super::fp::mxcsr::{DE, FZ, IE, RC_SHIFT};
use super::lane::{Exceptions, HALF, Layout, SINGLE, Value};
use super::sse::{lane, with_lane};

/// How many more bits of fraction single precision has.
const LONGER: u32 = 13;

fn nan(exceptions: &mut Exceptions, to: Layout, sign: bool, payload: u64, signaling: bool) -> u64 {
    if signaling {
        exceptions.raise(IE);
    }
    to.quiet(to.infinity(sign) | payload)
}

fn widen(exceptions: &mut Exceptions, half: u64) -> u64 {
    let sign = half & HALF.sign_bit() != 0;
    match HALF.unpack(half) {
        Value::Zero { .. } => SINGLE.zero(sign),
        Value::Infinite { .. } => SINGLE.infinity(sign),
        Value::Nan { signaling } => nan(exceptions, SINGLE, sign, (half & 0x3ff) << LONGER, signaling),
        // Every half is a normal single.
        Value::Finite(number) => exceptions.round(SINGLE, number),
    }
}

pub(super) fn half_to_single(b: u128, mxcsr: u32) -> SseResult {
    let mut exceptions = Exceptions::new(mxcsr);
    let value = (0..4).fold(0, |result, i| with_lane(result, 32, i, widen(&mut exceptions, lane(b, 16, i))));
    exceptions.result(value)
}

fn narrow(exceptions: &mut Exceptions, single: u64) -> u64 {
    let single = exceptions.source(SINGLE, single);
    let sign = single & SINGLE.sign_bit() != 0;
    match SINGLE.unpack(single) {
        Value::Zero { .. } => HALF.zero(sign),
        Value::Infinite { .. } => HALF.infinity(sign),
        Value::Nan { signaling } => nan(exceptions, HALF, sign, (single & 0x7f_ffff) >> LONGER, signaling),
        Value::Finite(number) => {
            if SINGLE.is_denormal(single) {
                exceptions.raise(DE);
            }
            exceptions.round(HALF, number)
        }
    }
}

/// Bit 2 of the control takes MXCSR's rounding, else bits 1:0 say it. Results are never flushed to zero.
pub(super) fn single_to_half(control: u8, b: u128, mxcsr: u32) -> SseResult {
    let rounding = if control & 4 != 0 { mxcsr >> RC_SHIFT & 3 } else { u32::from(control & 3) };
    let mut exceptions = Exceptions::new(mxcsr & !(FZ | 3 << RC_SHIFT) | rounding << RC_SHIFT);
    let value = (0..4).fold(0, |result, i| with_lane(result, 16, i, narrow(&mut exceptions, lane(b, 32, i))));
    exceptions.result(value)
}

#[cfg(test)]
mod tests {
    use super::super::super::fp::mxcsr::{OE, PE, UE};
    use super::*;

    #[test]
    fn every_half_survives_the_way_there_and_back() {
        for half in 0..=u16::MAX {
            let wide = half_to_single(half.into(), 0x1f80);
            let signaling = half & 0x7e00 == 0x7c00 && half & 0x3ff != 0;
            assert_eq!(wide.flags, if signaling { IE } else { 0 }, "{half:#x}");
            let back = single_to_half(0, wide.value & 0xffff_ffff, 0x1f80);
            let quiet = if signaling { 0x200 } else { 0 };
            assert_eq!((back.value, back.flags), (u128::from(half | quiet), 0), "{half:#x}");
        }
    }

    #[test]
    fn what_does_not_fit_is_rounded() {
        let of = |single: u32, control| {
            let result = single_to_half(control, single.into(), 0x1f80 | FZ);
            (result.value as u16, result.flags)
        };
        assert_eq!(of(0x477f_f000, 0), (0x7c00, OE | PE), "a tie with what would be 65536");
        assert_eq!(of(0x477f_efff, 0), (0x7bff, PE));
        assert_eq!(of(0x477f_f000, 3), (0x7bff, PE));
        assert_eq!(of(0x4780_0000, 3), (0x7bff, OE | PE));
        assert_eq!(of(0x3300_0000, 0), (0, UE | PE), "half of the least denormal, in spite of flush-to-zero");
        assert_eq!(of(0x3300_0001, 0), (1, UE | PE));
        assert_eq!(of(1, 2), (1, DE | UE | PE));
    }
}
