//! Elementary functions of [`Number`]s to about 120 bits: argument reduction and Taylor series. What is computed here is
//! inexact by nature and says so in bit 0.

use super::number::Number;

/// Terms smaller than the sum by this power of two end a series.
const NEGLIGIBLE: i32 = 126;

pub(super) const ONE: Number = Number { sign: false, exponent: 0, significand: 1 << 127 };
pub(super) const PI: Number = constant(1, 0xc90f_daa2_2168_c234_c4c6_628b_80dc_1cd1);
const LN_2: Number = constant(-1, 0xb172_17f7_d1cf_79ab_c9e3_b398_03f2_f6af);
const TWO_BY_LN_2: Number = constant(1, 0xb8aa_3b29_5c17_f0bb_be87_fed0_691d_3e89);

/// atan(k / 8) for k from 1 to 8.
const ATAN_EIGHTHS: [Number; 8] = [
    constant(-4, 0xfead_d4d5_617b_6e32_c897_989f_3e88_8ef8),
    constant(-3, 0xfadb_afc9_6406_eb15_6dc7_9ef5_f7a2_17e6),
    constant(-2, 0xb7b0_ca0f_26f7_8473_8aa3_2122_dcfe_4483),
    constant(-2, 0xed63_382b_0dda_7b45_6fe4_45ec_bc3a_8d03),
    constant(-1, 0x8f00_5d5e_f7f5_9f9b_5c83_5e16_65c4_3748),
    constant(-1, 0xa4bc_7d19_34f7_0924_19a8_7f2a_457d_ac9f),
    constant(-1, 0xb805_3e2b_c231_9e73_cb2d_a552_10a4_443d),
    constant(-1, 0xc90f_daa2_2168_c234_c4c6_628b_80dc_1cd1),
];

/// pi / 2 in units of 2^-67, with the 66 bits that the FPU's argument reduction uses (Intel SDM vol. 1, 8.3.8).
const HALF_PI_UNITS: u128 = 0xc_90fd_aa22_168c_234c;

const fn constant(exponent: i32, significand: u128) -> Number {
    Number { sign: false, exponent, significand }
}

impl Number {
    pub(super) fn abs(self) -> Number {
        Number { sign: false, ..self }
    }

    /// Multiplies by a power of two.
    pub(super) fn scaled(self, by: i32) -> Number {
        Number { exponent: self.exponent + by, ..self }
    }

    /// Says that the value is not exact.
    pub(super) fn inexact(self) -> Number {
        Number { significand: self.significand | 1, ..self }
    }

    /// The product to nearly 128 bits.
    pub(super) fn times(self, other: Number) -> Number {
        let half = |value: u128| (value >> 64, value & u128::from(u64::MAX));
        let ((ah, al), (bh, bl)) = (half(self.significand), half(other.significand));
        let (high_low, low_high) = (ah * bl, al * bh);
        let carry = ((al * bl) >> 64) + (high_low & u128::from(u64::MAX)) + (low_high & u128::from(u64::MAX));
        let product = ah * bh + (high_low >> 64) + (low_high >> 64) + (carry >> 64);
        Number::from_integer(self.sign ^ other.sign, product, self.exponent + other.exponent - 126)
    }

    /// The quotient to nearly 128 bits: one Newton step from a reciprocal of 64.
    pub(super) fn over(self, other: Number) -> Number {
        let short = Number { significand: other.significand >> 64 << 64, ..other };
        let estimate = ONE.divide(short);
        // estimate * (2 - other * estimate)
        let correction = ONE.scaled(1).add(other.times(estimate).negate());
        self.times(correction.map_or(estimate, |correction| estimate.times(correction)))
    }

    /// The quotient by a small integer.
    fn over_integer(self, by: u32) -> Number {
        Number::from_integer(self.sign, self.significand / u128::from(by), self.exponent - 127)
    }

    /// The sum, where it is known not to be zero or may be taken for negligible.
    fn plus(self, other: Number) -> Number {
        self.add(other).unwrap_or(Number { exponent: self.exponent - 128, ..self })
    }
}

/// Adds terms that `next` makes from their number (from 1 on) and the term before, until they are negligible. The first
/// that is negligible still counts: it tells on which side of the sum the truth lies.
fn sum(first: Number, mut next: impl FnMut(u32, Number) -> Number) -> Number {
    let (mut sum, mut term) = (first, first);
    for k in 1..200 {
        term = next(k, term);
        let negligible = term.exponent < sum.exponent - NEGLIGIBLE;
        sum = sum.plus(term);
        if negligible {
            break;
        }
    }
    sum
}

/// x + x^3/3 + x^5/5 ... or, `alternating`, x - x^3/3 + x^5/5 ...
fn odd_powers(x: Number, alternating: bool) -> Number {
    let square = x.times(x);
    let square = if alternating { square.negate() } else { square };
    let mut power = x;
    sum(x, |k, _| {
        power = power.times(square);
        power.over_integer(2 * k + 1)
    })
}

/// Sine and cosine of an angle whose magnitude is below 2^63, after reduction by the FPU's own pi.
pub(super) fn sin_cos(x: Number) -> (Number, Number) {
    let (quadrant, angle) = reduce(x.abs());
    let square = angle.times(angle).negate();
    let sin = sum(angle, |k, term| term.times(square).over_integer(2 * k * (2 * k + 1)));
    let cos = sum(ONE, |k, term| term.times(square).over_integer((2 * k - 1) * 2 * k));
    let (sin, cos) = match quadrant & 3 {
        0 => (sin, cos),
        1 => (cos, sin.negate()),
        2 => (sin.negate(), cos.negate()),
        _ => (cos.negate(), sin),
    };
    (if x.sign { sin.negate() } else { sin }.inexact(), cos.inexact())
}

/// Quadrant and rest between -pi/4 and pi/4 of a positive angle.
fn reduce(x: Number) -> (u64, Number) {
    if x.exponent < -1 {
        return (0, x);
    }
    // The angle in units of 2^-67 is its 64 bits shifted left by exponent + 4; divide bit by bit.
    let (mut rest, mut quadrant) = (0u128, 0u64);
    let mut feed = |bit: u128| {
        rest = rest << 1 | bit;
        quadrant <<= 1;
        if rest >= HALF_PI_UNITS {
            rest -= HALF_PI_UNITS;
            quadrant |= 1;
        }
    };
    (0..64).for_each(|i| feed(x.significand >> (127 - i) & 1));
    (0..x.exponent + 4).for_each(|_| feed(0));
    // Sixty-four bits are never a multiple of a number of sixty-six, so the rest is not zero.
    if rest > HALF_PI_UNITS / 2 {
        (quadrant.wrapping_add(1), Number::from_integer(true, HALF_PI_UNITS - rest, -67))
    } else {
        (quadrant, Number::from_integer(false, rest.max(1), -67))
    }
}

/// 2^x - 1 for a magnitude of at most 1.
pub(super) fn exp2_minus_1(x: Number) -> Number {
    let z = x.times(LN_2);
    sum(z, |k, term| term.times(z).over_integer(k + 1)).inexact()
}

/// The binary logarithm of a positive number, none if it is zero.
pub(super) fn log2(x: Number) -> Option<Number> {
    // A factor between sqrt(1/2) and sqrt(2), of which 0b5... are the leading bits.
    let up = i32::from(x.significand >> 64 > 0xb504_f333_f9de_6484);
    let (factor, exponent) = (Number { exponent: -up, ..x }, x.exponent + up);
    let part = factor.add(ONE.negate()).map(|numerator| log2_of_ratio(numerator, factor.plus(ONE)));
    let whole = match exponent {
        0 => None,
        _ => Some(Number::from_integer(exponent < 0, exponent.unsigned_abs().into(), 0)),
    };
    match (whole, part) {
        (Some(whole), Some(part)) => Some(whole.plus(part).inexact()),
        (whole, part) => whole.or(part),
    }
}

/// log2(1 + x) for x above -1/2 and below 1.
pub(super) fn log2_plus_1(x: Number) -> Number {
    log2_of_ratio(x, ONE.scaled(1).plus(x))
}

/// log2((1 + s) / (1 - s)) with s = numerator / denominator.
fn log2_of_ratio(numerator: Number, denominator: Number) -> Number {
    odd_powers(numerator.over(denominator), false).times(TWO_BY_LN_2).inexact()
}

/// The angle of the point (x, y), both positive.
pub(super) fn atan2(y: Number, x: Number) -> Number {
    let steep = y.magnitude_cmp(x).is_gt();
    let ratio = if steep { x.over(y) } else { y.over(x) };
    // The nearest eighth.
    let eighths =
        if ratio.exponent < -4 { 0 } else { ((ratio.significand >> (123 - ratio.exponent)) + 1) >> 1 };
    let angle = match eighths {
        0 => odd_powers(ratio, true),
        k => {
            let base = Number::from_integer(false, k, -3);
            let known = ATAN_EIGHTHS[(k as usize).min(8) - 1];
            match ratio.add(base.negate()) {
                Some(difference) => {
                    known.plus(odd_powers(difference.over(ONE.plus(ratio.times(base))), true))
                }
                None => known,
            }
        }
    };
    (if steep { PI.scaled(-1).plus(angle.negate()) } else { angle }).inexact()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: Number, b: Number) {
        let error = a.add(b.negate()).map_or(i32::MIN, |difference| difference.exponent);
        assert!(error < b.exponent - 110, "{a:x?} is not {b:x?}");
    }

    #[test]
    fn identities() {
        let three = Number::from_integer(false, 3, 0);
        close(three.over(three), ONE);
        close(three.times(ONE.over(three)), ONE);
        close(exp2_minus_1(ONE), ONE);
        close(log2(three.times(three)).expect("not one"), log2(three).expect("not one").scaled(1));
        close(atan2(ONE, ONE), PI.scaled(-2));
        close(atan2(three, ONE).plus(atan2(ONE, three)), PI.scaled(-1));
        let (sin, cos) = sin_cos(three);
        close(sin.times(sin).plus(cos.times(cos)), ONE);
        close(log2_plus_1(ONE.scaled(-2)), log2(Number::from_integer(false, 5, -2)).expect("not one"));
    }

    #[test]
    fn sine_of_one() {
        let (sin, cos) = sin_cos(ONE);
        // sin 1 = 0.84147098480789650665..., cos 1 = 0.54030230586813971740...
        assert_eq!(sin.significand >> 64, 0xd76a_a478_4867_7020);
        assert_eq!(cos.significand >> 64, 0x8a51_407d_a834_5c91);
    }
}
