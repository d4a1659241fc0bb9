//! The transcendental x87 instructions: special operands by the manual's tables, the rest by [`super::series`] and one
//! rounding, so with an error of at most 0.51 units in the last place (and pi of 66 bits in argument reduction).

use super::super::fp::{X87Binary, X87Result, X87Unary};
use super::super::state::{F80, fsw};
use super::extended::{Extended, Operand, Unit, infinity, zero};
use super::number::Number;
use super::series;

/// FSIN, FCOS, FSINCOS, FPTAN and F2XM1.
pub(super) fn unary(op: X87Unary, a: F80, fcw: u16) -> X87Result {
    let mut unit = Unit::new(fcw);
    let operand = Operand::from(a);
    let two_results = matches!(op, X87Unary::SinCos | X87Unary::PartialTangent);
    if let Some(value) = unit.special(&[operand]) {
        return X87Result { pushed: two_results.then_some(value), ..unit.result(value) };
    }
    if op == X87Unary::TwoToXMinus1 {
        let value = two_to_x_minus_1(&mut unit, operand);
        return unit.result(value);
    }
    match operand.value {
        Extended::Zero { .. } => {
            let (value, pushed) = match op {
                X87Unary::Cos => (F80::ONE, None),
                X87Unary::Sin => (a, None),
                // FSINCOS leaves the cosine on top, FPTAN a one.
                _ => (a, Some(F80::ONE)),
            };
            X87Result { pushed, ..unit.result(value) }
        }
        Extended::Finite(number) if number.exponent >= 63 => {
            unit.raise(fsw::C2);
            unit.result(a)
        }
        Extended::Finite(number) => {
            unit.denormals(&[operand]);
            trigonometric(&mut unit, op, number)
        }
        _ => {
            let value = unit.invalid();
            X87Result { pushed: two_results.then_some(value), ..unit.result(value) }
        }
    }
}

fn trigonometric(unit: &mut Unit, op: X87Unary, x: Number) -> X87Result {
    let (sin, cos) = series::sin_cos(x);
    let (value, pushed) = match op {
        X87Unary::Sin => (unit.round(sin, 64), None),
        X87Unary::Cos => (unit.round(cos, 64), None),
        X87Unary::PartialTangent => (unit.round(sin.over(cos).inexact(), 64), Some(F80::ONE)),
        _ => (unit.round(sin, 64), Some(unit.round(cos, 64))),
    };
    X87Result { pushed, ..unit.result(value) }
}

/// Beyond -1 to 1, where the result is undefined, the operand is given back.
fn two_to_x_minus_1(unit: &mut Unit, a: Operand) -> F80 {
    match a.value {
        Extended::Infinite { sign: true } => F80::ONE.negate(),
        Extended::Finite(x) => {
            unit.denormals(&[a]);
            match x.magnitude_cmp(series::ONE) {
                std::cmp::Ordering::Less => unit.round(series::exp2_minus_1(x), 64),
                std::cmp::Ordering::Equal if x.sign => F80::new(0xbffe, 1 << 63),
                _ => a.bits,
            }
        }
        _ => a.bits,
    }
}

/// FPATAN, FYL2X and FYL2XP1.
pub(super) fn binary(op: X87Binary, st0: F80, st1: F80, fcw: u16) -> X87Result {
    let mut unit = Unit::new(fcw);
    let (x, y) = (Operand::from(st0), Operand::from(st1));
    if let Some(value) = unit.special(&[x, y]) {
        return unit.result(value);
    }
    let value = match op {
        X87Binary::PartialArctangent => arctangent(&mut unit, y, x),
        X87Binary::YLog2X => y_log2_x(&mut unit, y, x),
        _ => y_log2_x_plus_1(&mut unit, y, x),
    };
    unit.result(value)
}

/// The angle of (x, y): the sign is that of y, the magnitude between 0 and pi (SDM vol. 2, table 3-30).
fn arctangent(unit: &mut Unit, y: Operand, x: Operand) -> F80 {
    unit.denormals(&[x, y]);
    let (sign, left) = (y.bits.sign(), x.bits.sign());
    let eighths = |unit: &mut Unit, n: u32| {
        let angle = series::PI.scaled(-3).times(Number::from_integer(sign, n.into(), 0));
        unit.round(angle.inexact(), 64)
    };
    match (y.value, x.value) {
        (Extended::Infinite { .. }, Extended::Infinite { .. }) => eighths(unit, if left { 6 } else { 2 }),
        (Extended::Infinite { .. }, _) | (Extended::Finite(_), Extended::Zero { .. }) => eighths(unit, 4),
        (Extended::Finite(b), Extended::Finite(a)) => {
            let angle = series::atan2(b.abs(), a.abs());
            let angle = if left { series::PI.add(angle.negate()).unwrap_or(series::PI) } else { angle };
            unit.round(Number { sign, ..angle }.inexact(), 64)
        }
        // Zero beside anything, or anything finite beside infinity.
        _ if left => eighths(unit, 8),
        _ => zero(sign),
    }
}

/// SDM vol. 2, table 3-52.
fn y_log2_x(unit: &mut Unit, y: Operand, x: Operand) -> F80 {
    let sign = y.bits.sign();
    match (x.value, y.value) {
        (Extended::Zero { .. }, Extended::Zero { .. }) => unit.invalid(),
        (Extended::Zero { .. }, Extended::Infinite { .. }) => infinity(!sign),
        (Extended::Zero { .. }, _) => {
            unit.raise(fsw::ZE);
            infinity(!sign)
        }
        (Extended::Infinite { sign: true }, _) => unit.invalid(),
        (Extended::Infinite { .. }, Extended::Zero { .. }) => unit.invalid(),
        (Extended::Infinite { .. }, _) => {
            unit.denormals(&[y]);
            infinity(sign)
        }
        (Extended::Finite(number), _) if number.sign => unit.invalid(),
        (Extended::Finite(number), Extended::Infinite { .. }) => match number {
            series::ONE => unit.invalid(),
            _ => {
                unit.denormals(&[x]);
                infinity(sign != (number.exponent < 0))
            }
        },
        (Extended::Finite(number), Extended::Zero { .. }) => {
            unit.denormals(&[x]);
            zero(sign != (number.exponent < 0))
        }
        (Extended::Finite(number), Extended::Finite(factor)) => {
            unit.denormals(&[x, y]);
            match series::log2(number) {
                None => zero(sign),
                // A power of two has an integer logarithm of few bits.
                Some(log) if number.significand << 1 == 0 => unit.round(factor.multiply(log), 64),
                Some(log) => unit.round(factor.times(log).inexact(), 64),
            }
        }
        _ => unit.invalid(),
    }
}

/// SDM vol. 2, table 3-53. Operands of 1/2 and more in magnitude, whose result is undefined, take the way of FYL2X.
fn y_log2_x_plus_1(unit: &mut Unit, y: Operand, x: Operand) -> F80 {
    let sign = y.bits.sign() != x.bits.sign();
    match (x.value, y.value) {
        (Extended::Zero { .. }, Extended::Infinite { .. }) => unit.invalid(),
        (Extended::Zero { .. }, _) => {
            unit.denormals(&[y]);
            zero(sign)
        }
        (Extended::Infinite { .. }, Extended::Zero { .. }) | (Extended::Infinite { sign: true }, _) => {
            unit.invalid()
        }
        (Extended::Infinite { .. }, _) | (Extended::Finite(_), Extended::Infinite { .. }) => {
            unit.denormals(&[x, y]);
            infinity(sign)
        }
        (_, Extended::Zero { .. }) => {
            unit.denormals(&[x]);
            zero(sign)
        }
        (Extended::Finite(number), Extended::Finite(factor)) => {
            unit.denormals(&[x, y]);
            let log = match number.exponent {
                ..-1 => Some(series::log2_plus_1(number)),
                _ => match number.add(series::ONE) {
                    Some(sum) if !sum.sign => series::log2(sum),
                    _ => return unit.invalid(),
                },
            };
            log.map_or(zero(sign), |log| unit.round(factor.times(log).inexact(), 64))
        }
        _ => unit.invalid(),
    }
}
