//! SSE operations over whole registers: which lanes, conversions between formats and integers, rounding to integers.

use super::super::fp::mxcsr::{DE, IE, PE};
use super::super::fp::{Arith, Convert, Estimate, Form, SseResult};
use super::super::interface::eflags;
use super::lane::{DOUBLE, Exceptions, Layout, SINGLE, Value};
use super::number::{Number, Rounding};

pub(super) const fn layout(form: Form) -> Layout {
    if form.double() { DOUBLE } else { SINGLE }
}

pub(super) fn width(form: Form) -> u32 {
    if form.double() { 64 } else { 32 }
}

/// The lane at `i`.
pub(super) fn lane(value: u128, width: u32, i: usize) -> u64 {
    (value >> (width * i as u32)) as u64 & u64::MAX >> (64 - width)
}

/// `value` with the lane at `i` replaced.
pub(super) fn with_lane(value: u128, width: u32, i: usize, lane: u64) -> u128 {
    let mask = u128::from(u64::MAX >> (64 - width)) << (width * i as u32);
    value & !mask | u128::from(lane) << (width * i as u32)
}

/// Applies a function to every lane that the form works on; the others stay as in `a`.
fn each(form: Form, a: u128, b: u128, mut function: impl FnMut(Layout, u64, u64) -> u64) -> u128 {
    let width = width(form);
    (0..form.lanes()).fold(a, |result, i| {
        with_lane(result, width, i, function(layout(form), lane(a, width, i), lane(b, width, i)))
    })
}

pub(super) fn arith(op: Arith, form: Form, a: u128, b: u128, mxcsr: u32) -> SseResult {
    let mut exceptions = Exceptions::new(mxcsr);
    let value = each(form, a, b, |layout, a, b| exceptions.arith(op, layout, a, b));
    exceptions.result(value)
}

pub(super) fn sqrt(form: Form, a: u128, b: u128, mxcsr: u32) -> SseResult {
    let mut exceptions = Exceptions::new(mxcsr);
    let value = each(form, a, b, |layout, _, b| exceptions.sqrt(layout, b));
    exceptions.result(value)
}

/// What predicates 0 to 15 hold for: less in bit 0, equal, greater, unordered in bit 3 (SDM vol. 2, table 3-1). 16 to 31 are
/// the same once more.
const RELATIONS: [u8; 16] = {
    const LESS: u8 = 1;
    const EQUAL: u8 = 2;
    const GREATER: u8 = 4;
    const UNORDERED: u8 = 8;
    const ALL: u8 = 15;
    [
        EQUAL,
        LESS,
        LESS | EQUAL,
        UNORDERED,
        ALL - EQUAL,
        ALL - LESS,
        GREATER | UNORDERED,
        ALL - UNORDERED,
        EQUAL | UNORDERED,
        LESS | UNORDERED,
        ALL - GREATER,
        0,
        LESS | GREATER,
        EQUAL | GREATER,
        GREATER,
        ALL,
    ]
};

/// Predicates of order signal quiet NaNs too, those of equality do not; from 16 on it is the other way round.
pub(super) fn compare(predicate: u8, form: Form, a: u128, b: u128, mxcsr: u32) -> SseResult {
    use std::cmp::Ordering::{Equal, Greater, Less};
    let mut exceptions = Exceptions::new(mxcsr);
    let signals = matches!(predicate & 3, 1 | 2) != (predicate & 16 != 0);
    let value = each(form, a, b, |layout, a, b| {
        let relation = match exceptions.order(layout, a, b, signals) {
            Some(Less) => 0,
            Some(Equal) => 1,
            Some(Greater) => 2,
            None => 3,
        };
        let holds = RELATIONS[usize::from(predicate & 15)] >> relation & 1 != 0;
        if holds { u64::MAX >> (64 - width(form)) } else { 0 }
    });
    exceptions.result(value)
}

pub(super) fn order(quiet: bool, double: bool, a: u128, b: u128, mxcsr: u32) -> SseResult {
    use std::cmp::Ordering::{Equal, Greater, Less};
    let mut exceptions = Exceptions::new(mxcsr);
    let (layout, width) = if double { (DOUBLE, 64) } else { (SINGLE, 32) };
    let flags = match exceptions.order(layout, lane(a, width, 0), lane(b, width, 0), !quiet) {
        None => eflags::ZF | eflags::PF | eflags::CF,
        Some(Greater) => 0,
        Some(Less) => eflags::CF,
        Some(Equal) => eflags::ZF,
    };
    exceptions.result(flags.into())
}

/// ROUNDPS and its kin: bit 2 of the control takes MXCSR's rounding, bit 3 suppresses the precision exception.
pub(super) fn round(control: u8, form: Form, a: u128, b: u128, mxcsr: u32) -> SseResult {
    let mut exceptions = Exceptions::new(mxcsr);
    let rounding =
        if control & 4 != 0 { exceptions.rounding() } else { Rounding::from_control(control.into()) };
    let value = each(form, a, b, |layout, _, b| {
        let b = exceptions.source(layout, b);
        match layout.unpack(b) {
            Value::Nan { .. } => exceptions.nan(layout, b, b),
            Value::Zero { .. } | Value::Infinite { .. } => b,
            Value::Finite(number) => {
                // Numbers that do not fit the integer are integers.
                let Some((integer, rounded)) = number.to_integer(rounding) else { return b };
                if rounded.inexact && control & 8 == 0 {
                    exceptions.raise(PE);
                }
                match integer {
                    0 => layout.zero(number.sign),
                    _ => exceptions.round(layout, Number::from_integer(number.sign, integer.into(), 0)),
                }
            }
        }
    });
    exceptions.result(value)
}

/// A value as a signed integer of `bits` bits; what does not fit is invalid and gives the integer indefinite.
fn to_integer(exceptions: &mut Exceptions, layout: Layout, value: u64, bits: u32, rounding: Rounding) -> u64 {
    let indefinite = 1 << (bits - 1);
    let value = exceptions.source(layout, value);
    let (number, integer, inexact) = match layout.unpack(value) {
        Value::Zero { .. } => return 0,
        Value::Finite(number) => match number.to_integer(rounding) {
            Some((integer, rounded)) => (number, integer, rounded.inexact),
            None => (number, u64::MAX, false),
        },
        _ => {
            exceptions.raise(IE);
            return indefinite;
        }
    };
    if integer > indefinite - u64::from(!number.sign) {
        exceptions.raise(IE);
        return indefinite;
    }
    if inexact {
        exceptions.raise(PE);
    }
    let signed = if number.sign { integer.wrapping_neg() } else { integer };
    signed & u64::MAX >> (64 - bits)
}

fn from_integer(exceptions: &mut Exceptions, layout: Layout, value: i64) -> u64 {
    match value {
        0 => 0,
        _ => exceptions.round(layout, Number::from_integer(value < 0, value.unsigned_abs().into(), 0)),
    }
}

/// From one format to another.
fn resize(exceptions: &mut Exceptions, from: Layout, to: Layout, value: u64) -> u64 {
    let value = exceptions.source(from, value);
    match from.unpack(value) {
        Value::Zero { sign } => to.zero(sign),
        Value::Infinite { sign } => to.infinity(sign),
        Value::Nan { signaling } => {
            if signaling {
                exceptions.raise(IE);
            }
            // The payload keeps its most significant bits.
            let sign = to.zero(if from == SINGLE { value >> 31 != 0 } else { value >> 63 != 0 });
            let payload =
                if from == SINGLE { (value & 0x7f_ffff) << 29 } else { (value & 0xf_ffff_ffff_ffff) >> 29 };
            to.quiet(sign | to.infinity(false) | payload)
        }
        Value::Finite(number) => {
            if from.is_denormal(value) {
                exceptions.raise(DE);
            }
            exceptions.round(to, number)
        }
    }
}

pub(super) fn convert(op: Convert, a: u128, b: u128, mxcsr: u32) -> SseResult {
    use Convert::*;
    let mut e = Exceptions::new(mxcsr);
    let rounding = match op {
        PsToDqTruncated | PdToDqTruncated | SsToSi32Truncated | SsToSi64Truncated | SdToSi32Truncated
        | SdToSi64Truncated => Rounding::Truncate,
        _ => e.rounding(),
    };
    // Builds `n` lanes of `to` bits from lanes of `from` bits; the rest of the register is zero.
    let lanes = |n: usize, from: u32, to: u32, function: &mut dyn FnMut(u64) -> u64| {
        (0..n).fold(0, |result, i| with_lane(result, to, i, function(lane(b, from, i))))
    };
    let signed = |value: u64| i64::from(value as u32 as i32);
    let low = lane(b, 64, 0);
    let value = match op {
        DqToPs => lanes(4, 32, 32, &mut |x| from_integer(&mut e, SINGLE, signed(x))),
        DqToPd => lanes(2, 32, 64, &mut |x| from_integer(&mut e, DOUBLE, signed(x))),
        PsToDq | PsToDqTruncated => lanes(4, 32, 32, &mut |x| to_integer(&mut e, SINGLE, x, 32, rounding)),
        PdToDq | PdToDqTruncated => lanes(2, 64, 32, &mut |x| to_integer(&mut e, DOUBLE, x, 32, rounding)),
        PsToPd => lanes(2, 32, 64, &mut |x| resize(&mut e, SINGLE, DOUBLE, x)),
        PdToPs => lanes(2, 64, 32, &mut |x| resize(&mut e, DOUBLE, SINGLE, x)),
        SsToSd => with_lane(a, 64, 0, resize(&mut e, SINGLE, DOUBLE, lane(b, 32, 0))),
        SdToSs => with_lane(a, 32, 0, resize(&mut e, DOUBLE, SINGLE, low)),
        Si32ToSs => with_lane(a, 32, 0, from_integer(&mut e, SINGLE, signed(low))),
        Si64ToSs => with_lane(a, 32, 0, from_integer(&mut e, SINGLE, low as i64)),
        Si32ToSd => with_lane(a, 64, 0, from_integer(&mut e, DOUBLE, signed(low))),
        Si64ToSd => with_lane(a, 64, 0, from_integer(&mut e, DOUBLE, low as i64)),
        SsToSi32 | SsToSi32Truncated => to_integer(&mut e, SINGLE, lane(b, 32, 0), 32, rounding).into(),
        SsToSi64 | SsToSi64Truncated => to_integer(&mut e, SINGLE, lane(b, 32, 0), 64, rounding).into(),
        SdToSi32 | SdToSi32Truncated => to_integer(&mut e, DOUBLE, low, 32, rounding).into(),
        SdToSi64 | SdToSi64Truncated => to_integer(&mut e, DOUBLE, low, 64, rounding).into(),
    };
    e.result(value)
}

/// The approximations: correctly truncated to 12 bits of significand, which is within the architecture's bound of
/// 1.5 * 2^-12. Denormal sources count as zeros, tiny results become zeros, whatever MXCSR says.
pub(super) fn estimate(op: Estimate, form: Form, a: u128, b: u128) -> u128 {
    each(form, a, b, |layout, _, b| {
        let value = layout.unpack(b);
        let sign = b >> 31 != 0;
        match (op, value) {
            (_, Value::Nan { .. }) => layout.quiet(b),
            (_, Value::Zero { .. }) => layout.infinity(sign),
            (_, Value::Finite(_)) if layout.is_denormal(b) => layout.infinity(sign),
            (Estimate::Reciprocal, Value::Infinite { .. }) => layout.zero(sign),
            (Estimate::ReciprocalRoot, Value::Infinite { sign: false }) => 0,
            (Estimate::ReciprocalRoot, Value::Infinite { sign: true }) => layout.indefinite(),
            (Estimate::ReciprocalRoot, Value::Finite(number)) if number.sign => layout.indefinite(),
            // The reciprocal of 2^126 and more counts as tiny (SDM vol. 2, RCPPS).
            (Estimate::Reciprocal, Value::Finite(number)) if number.exponent >= 126 => layout.zero(sign),
            (_, Value::Finite(number)) => {
                let one = Number::from_integer(false, 1, 0);
                let number = if op == Estimate::ReciprocalRoot {
                    let root = number.square_root();
                    // The divisor has 64 bits.
                    Number { significand: root.significand >> 64 << 64, ..root }
                } else {
                    number
                };
                let quotient = one.divide(number);
                let short = Number { significand: quotient.significand >> 116 << 116, ..quotient };
                // All exceptions masked: no more than the bits are wanted.
                Exceptions::new(0x1f80).round(layout, short)
            }
        }
    })
}
