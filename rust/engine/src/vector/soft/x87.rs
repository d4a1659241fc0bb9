//! The x87 operations with exact results: arithmetic, comparison, conversion, square root, rounding, remainders, scaling.

use std::cmp::Ordering;

use super::super::fp::{X87Arith, X87Binary, X87Result, X87Source, X87Stored, X87Target, X87Unary};
use super::super::state::{F80, fsw};
use super::extended::{Extended, Operand, Unit, canonical, exact, infinity, zero};
use super::lane::{DOUBLE, Layout, SINGLE};
use super::number::{Fit, Number, Rounding};

const UNORDERED: u16 = fsw::C0 | fsw::C2 | fsw::C3;

pub(super) fn arith(op: X87Arith, a: F80, b: X87Source, fcw: u16) -> X87Result {
    let mut unit = Unit::new(fcw);
    let (mut a, mut b): (Operand, Operand) = (a.into(), b.into());
    if let Some(value) = unit.special(&[a, b]) {
        return unit.result(value);
    }
    if matches!(op, X87Arith::SubReversed | X87Arith::DivReversed) {
        (a, b) = (b, a);
    }
    let value = match op {
        X87Arith::Add => add(&mut unit, a, b),
        X87Arith::Sub | X87Arith::SubReversed => {
            add(&mut unit, a, Operand { denormal: b.denormal, ..b.bits.negate().into() })
        }
        X87Arith::Mul => multiply(&mut unit, a, b),
        X87Arith::Div | X87Arith::DivReversed => divide(&mut unit, a, b),
    };
    unit.result(value)
}

fn add(unit: &mut Unit, a: Operand, b: Operand) -> F80 {
    if let (Extended::Infinite { sign }, Extended::Infinite { sign: other }) = (a.value, b.value)
        && sign != other
    {
        return unit.invalid();
    }
    unit.denormals(&[a, b]);
    let precision = unit.precision();
    match (a.value, b.value) {
        (Extended::Infinite { .. }, _) => a.bits,
        (_, Extended::Infinite { .. }) => b.bits,
        (Extended::Finite(x), Extended::Finite(y)) => match x.add(y) {
            Some(sum) => unit.round(sum, precision),
            None => unit.zero_sum(),
        },
        (Extended::Finite(x), _) | (_, Extended::Finite(x)) => unit.round(x, precision),
        _ if a.bits.sign() == b.bits.sign() => a.bits,
        _ => unit.zero_sum(),
    }
}

fn multiply(unit: &mut Unit, a: Operand, b: Operand) -> F80 {
    let sign = a.bits.sign() != b.bits.sign();
    match (a.value, b.value) {
        (Extended::Zero { .. }, Extended::Infinite { .. })
        | (Extended::Infinite { .. }, Extended::Zero { .. }) => {
            return unit.invalid();
        }
        _ => unit.denormals(&[a, b]),
    }
    match (a.value, b.value) {
        (Extended::Finite(x), Extended::Finite(y)) => unit.round(x.multiply(y), unit.precision()),
        (Extended::Infinite { .. }, _) | (_, Extended::Infinite { .. }) => infinity(sign),
        _ => zero(sign),
    }
}

fn divide(unit: &mut Unit, a: Operand, b: Operand) -> F80 {
    let sign = a.bits.sign() != b.bits.sign();
    match (a.value, b.value) {
        (Extended::Zero { .. }, Extended::Zero { .. })
        | (Extended::Infinite { .. }, Extended::Infinite { .. }) => {
            return unit.invalid();
        }
        (Extended::Finite(_), Extended::Zero { .. }) => {
            // The division by zero precedes the denormal operand, which is not looked for.
            unit.raise(fsw::ZE);
            return infinity(sign);
        }
        _ => unit.denormals(&[a, b]),
    }
    match (a.value, b.value) {
        (Extended::Finite(x), Extended::Finite(y)) => unit.round(x.divide(y), unit.precision()),
        (Extended::Infinite { .. }, _) | (_, Extended::Zero { .. }) => infinity(sign),
        _ => zero(sign),
    }
}

pub(super) fn compare(quiet: bool, a: F80, b: X87Source, fcw: u16) -> u16 {
    let mut unit = Unit::new(fcw);
    let (a, b): (Operand, Operand) = (a.into(), b.into());
    if unit.special(&[a, b]).is_some() {
        if !quiet {
            unit.raise(fsw::IE);
        }
        return unit.status | UNORDERED;
    }
    unit.denormals(&[a, b]);
    let codes = match order(a, b) {
        Ordering::Greater => 0,
        Ordering::Less => fsw::C0,
        Ordering::Equal => fsw::C3,
    };
    unit.status | codes
}

/// The order of operands that are no NaNs.
fn order(a: Operand, b: Operand) -> Ordering {
    let sign = |operand: Operand| match operand.value {
        Extended::Zero { .. } => 0,
        _ if operand.bits.sign() => -1,
        _ => 1,
    };
    let magnitude = match (a.value, b.value) {
        (Extended::Finite(x), Extended::Finite(y)) => x.magnitude_cmp(y),
        (Extended::Infinite { .. }, Extended::Infinite { .. }) => Ordering::Equal,
        (Extended::Infinite { .. }, _) => Ordering::Greater,
        (_, Extended::Infinite { .. }) => Ordering::Less,
        _ => Ordering::Equal,
    };
    sign(a).cmp(&sign(b)).then(if sign(a) < 0 { magnitude.reverse() } else { magnitude })
}

/// Loads are exact; single and double denormals and signaling NaNs raise what arithmetic with them would.
pub(super) fn load(source: X87Source, fcw: u16) -> X87Result {
    let mut unit = Unit::new(fcw);
    let operand = Operand::from(source);
    if !matches!(source, X87Source::F32(_) | X87Source::F64(_)) {
        return unit.result(operand.bits);
    }
    if let Some(value) = unit.special(&[operand]) {
        return unit.result(value);
    }
    unit.denormals(&[operand]);
    unit.result(operand.bits)
}

pub(super) fn store(target: X87Target, a: F80, fcw: u16) -> X87Stored {
    let mut unit = Unit::new(fcw);
    let rounding = unit.rounding();
    let value: u128 = match target {
        X87Target::F32 => narrow(&mut unit, SINGLE, a, 40).into(),
        X87Target::F64 => narrow(&mut unit, DOUBLE, a, 11).into(),
        X87Target::I16 => integer(&mut unit, a, 16, rounding),
        X87Target::I32 => integer(&mut unit, a, 32, rounding),
        X87Target::I64 => integer(&mut unit, a, 64, rounding),
        X87Target::I16Truncated => integer(&mut unit, a, 16, Rounding::Truncate),
        X87Target::I32Truncated => integer(&mut unit, a, 32, Rounding::Truncate),
        X87Target::I64Truncated => integer(&mut unit, a, 64, Rounding::Truncate),
        X87Target::Bcd => decimal(&mut unit, a),
    };
    let bytes = value.to_le_bytes();
    X87Stored { bytes: std::array::from_fn(|i| bytes[i]), status: unit.status }
}

/// A register value in a shorter format, whose fraction starts `shift` bits above the register's.
fn narrow(unit: &mut Unit, layout: Layout, a: F80, shift: u32) -> u64 {
    let operand = Operand::from(a);
    if let Some(nan) = unit.special(&[operand]) {
        // The payload keeps its most significant bits; the significand's integer bit falls on the exponent's last.
        return layout.infinity(nan.sign()) | (nan.significand & (u64::MAX >> 1)) >> shift;
    }
    let (number, sign) = match operand.value {
        Extended::Finite(number) => (number, number.sign),
        Extended::Infinite { sign } => return layout.infinity(sign),
        _ => return layout.zero(a.sign()),
    };
    match layout.range().fit(number, unit.rounding()) {
        Fit::Normal { exponent, rounded } => {
            unit.lost(rounded.inexact, rounded.up);
            layout.pack(sign, exponent, rounded.kept as u64)
        }
        Fit::Huge { .. } => {
            let infinite = unit.rounding().overflows_to_infinity(sign);
            unit.raise(fsw::OE);
            // Nothing is stored, so nothing is rounded, if the exception is unmasked.
            if unit.masked(fsw::OE) {
                unit.lost(true, infinite);
            }
            if infinite { layout.infinity(sign) } else { layout.largest(sign) }
        }
        Fit::Tiny { denormal, .. } => {
            if !unit.masked(fsw::UE) {
                unit.raise(fsw::UE);
            } else {
                unit.raise(if denormal.inexact { fsw::UE } else { 0 });
                unit.lost(denormal.inexact, denormal.up);
            }
            layout.zero(sign) | denormal.kept as u64
        }
    }
}

/// A signed integer of `bits` bits; what does not fit is invalid and gives the integer indefinite.
fn integer(unit: &mut Unit, a: F80, bits: u32, rounding: Rounding) -> u128 {
    let indefinite = 1u64 << (bits - 1);
    let rounded = match Operand::from(a).value {
        Extended::Zero { .. } => return 0,
        Extended::Finite(number) => number.to_integer(rounding),
        _ => None,
    };
    match rounded {
        Some((magnitude, rounded)) if magnitude <= indefinite - u64::from(!a.sign()) => {
            unit.lost(rounded.inexact, rounded.up);
            (if a.sign() { magnitude.wrapping_neg() } else { magnitude }).into()
        }
        _ => {
            unit.raise(fsw::IE);
            indefinite.into()
        }
    }
}

/// Eighteen decimal digits and a sign, or the packed BCD indefinite.
fn decimal(unit: &mut Unit, a: F80) -> u128 {
    let sign = u128::from(a.sign()) << 79;
    let rounded = match Operand::from(a).value {
        Extended::Zero { .. } => return sign,
        Extended::Finite(number) => number.to_integer(unit.rounding()),
        _ => None,
    };
    match rounded {
        Some((magnitude, rounded)) if magnitude < 1_000_000_000_000_000_000 => {
            unit.lost(rounded.inexact, rounded.up);
            let mut rest = magnitude;
            let digits = (0..18).fold(0, |digits, i| {
                let digit = rest % 10;
                rest /= 10;
                digits | u128::from(digit) << (4 * i)
            });
            digits | sign
        }
        _ => {
            unit.raise(fsw::IE);
            0xffff_c000_0000_0000_0000
        }
    }
}

/// FSQRT, FRNDINT and FXTRACT.
pub(super) fn unary(op: X87Unary, a: F80, fcw: u16) -> X87Result {
    let mut unit = Unit::new(fcw);
    let operand = Operand::from(a);
    if let Some(value) = unit.special(&[operand]) {
        let pushed = (op == X87Unary::Extract).then_some(value);
        return X87Result { pushed, ..unit.result(value) };
    }
    match op {
        X87Unary::SquareRoot => {
            let value = square_root(&mut unit, operand);
            unit.result(value)
        }
        X87Unary::RoundToInteger => {
            let value = round_to_integer(&mut unit, operand);
            unit.result(value)
        }
        _ => extract(&mut unit, operand),
    }
}

fn square_root(unit: &mut Unit, a: Operand) -> F80 {
    match a.value {
        Extended::Zero { .. } | Extended::Infinite { sign: false } => a.bits,
        Extended::Finite(number) if !number.sign => {
            unit.denormals(&[a]);
            unit.round(number.square_root(), unit.precision())
        }
        _ => unit.invalid(),
    }
}

fn round_to_integer(unit: &mut Unit, a: Operand) -> F80 {
    let Extended::Finite(number) = a.value else { return a.bits };
    unit.denormals(&[a]);
    let Some((integer, rounded)) = number.to_integer(unit.rounding()) else { return a.bits };
    unit.lost(rounded.inexact, rounded.up);
    match integer {
        0 => zero(number.sign),
        _ => exact(Number::from_integer(number.sign, integer.into(), 0)),
    }
}

/// FXTRACT: the exponent as a number, and the significand pushed above it.
fn extract(unit: &mut Unit, a: Operand) -> X87Result {
    let (exponent, significand) = match a.value {
        Extended::Zero { .. } => {
            unit.raise(fsw::ZE);
            (infinity(true), a.bits)
        }
        Extended::Finite(number) => {
            unit.denormals(&[a]);
            let exponent = Operand::from(X87Source::I32(number.exponent)).bits;
            (exponent, exact(Number { exponent: 0, ..number }))
        }
        _ => (infinity(false), a.bits),
    };
    X87Result { pushed: Some(significand), ..unit.result(exponent) }
}

/// FPREM, FPREM1 and FSCALE.
pub(super) fn binary(op: X87Binary, st0: F80, st1: F80, fcw: u16) -> X87Result {
    let mut unit = Unit::new(fcw);
    let (a, b) = (Operand::from(st0), Operand::from(st1));
    if let Some(value) = unit.special(&[a, b]) {
        return unit.result(value);
    }
    let value = match op {
        X87Binary::Scale => scale(&mut unit, a, b),
        _ => remainder(&mut unit, a, b, op == X87Binary::PartialRemainder1),
    };
    unit.result(value)
}

fn scale(unit: &mut Unit, a: Operand, b: Operand) -> F80 {
    match (a.value, b.value) {
        (Extended::Infinite { .. }, Extended::Infinite { sign: true })
        | (Extended::Zero { .. }, Extended::Infinite { sign: false }) => return unit.invalid(),
        _ => unit.denormals(&[a, b]),
    }
    let sign = a.bits.sign();
    match (a.value, b.value) {
        (Extended::Finite(_), Extended::Infinite { sign: true }) => zero(sign),
        (Extended::Finite(_), Extended::Infinite { sign: false }) => infinity(sign),
        (Extended::Finite(number), Extended::Finite(by)) => {
            let by = match by.to_integer(Rounding::Truncate) {
                Some((magnitude, _)) => magnitude.min(0x1_0000) as i32 * if by.sign { -1 } else { 1 },
                None => {
                    if by.sign {
                        -0x1_0000
                    } else {
                        0x1_0000
                    }
                }
            };
            unit.round(Number { exponent: number.exponent + by, ..number }, 64)
        }
        _ => canonical(a.bits),
    }
}

/// The remainder of the truncating or (`nearest`) the rounding quotient; a difference of exponents of 64 or more is only
/// reduced, as C2 tells. C0, C3 and C1 are the quotient's bits 2, 1 and 0.
fn remainder(unit: &mut Unit, a: Operand, b: Operand, nearest: bool) -> F80 {
    match (a.value, b.value) {
        (Extended::Infinite { .. }, _) | (_, Extended::Zero { .. }) => return unit.invalid(),
        _ => unit.denormals(&[a, b]),
    }
    let (x, y) = match (a.value, b.value) {
        (Extended::Finite(x), Extended::Finite(y)) => (x, y),
        _ => return canonical(a.bits),
    };
    let difference = x.exponent - y.exponent;
    let (dividend, divisor) = (x.significand >> 64, y.significand >> 64);
    if difference >= 64 {
        unit.raise(fsw::C2);
        let step = difference & 31 | 32;
        let rest = (dividend << step) % divisor;
        return exact_or_zero(unit, x.sign, rest, x.exponent - step - 63);
    }
    if difference < -1 || difference < 0 && !nearest {
        return unit.round(x, 64);
    }
    // In units of the smaller exponent.
    let (dividend, divisor, exponent) = match difference {
        -1 => (dividend, divisor << 1, x.exponent),
        _ => (dividend << difference, divisor, y.exponent),
    };
    let (mut quotient, mut rest, mut sign) = (dividend / divisor, dividend % divisor, x.sign);
    if nearest && (rest << 1 > divisor || rest << 1 == divisor && quotient & 1 != 0) {
        (quotient, rest, sign) = (quotient + 1, divisor - rest, !sign);
    }
    for (bit, code) in [(2, fsw::C0), (1, fsw::C3), (0, fsw::C1)] {
        if quotient >> bit & 1 != 0 {
            unit.raise(code);
        }
    }
    if rest == 0 { zero(x.sign) } else { exact_or_zero(unit, sign, rest, exponent - 63) }
}

/// An exact value, which can be denormal and with an unmasked underflow is then adjusted.
fn exact_or_zero(unit: &mut Unit, sign: bool, significand: u128, exponent: i32) -> F80 {
    match significand {
        0 => zero(sign),
        _ => unit.round(Number::from_integer(sign, significand, exponent), 64),
    }
}
