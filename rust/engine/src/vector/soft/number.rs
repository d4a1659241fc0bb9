//! Finite numbers other than zero with 128 bits of significand, the operations on them, and rounding to a format. All
//! formats share this: 64 bits of input leave as many guard bits, and what is lost below them stays as a sticky bit.

/// (-1)^sign * significand / 2^127 * 2^exponent with bit 127 set; a lost non-zero rest is jammed into bit 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Number {
    pub(super) sign: bool,
    pub(super) exponent: i32,
    pub(super) significand: u128,
}

/// The rounding control of MXCSR and FCW (Intel SDM vol. 1, 4.8.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rounding {
    Nearest,
    Down,
    Up,
    Truncate,
}

impl Rounding {
    pub(super) const fn from_control(bits: u32) -> Rounding {
        match bits & 3 {
            0 => Rounding::Nearest,
            1 => Rounding::Down,
            2 => Rounding::Up,
            _ => Rounding::Truncate,
        }
    }

    /// Whether a magnitude that is too large becomes infinite and not the largest finite number.
    pub(super) const fn overflows_to_infinity(self, sign: bool) -> bool {
        match self {
            Rounding::Nearest => true,
            Rounding::Down => sign,
            Rounding::Up => !sign,
            Rounding::Truncate => false,
        }
    }
}

/// What rounding a significand gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rounded {
    /// The kept bits; one bit longer than asked for if the increment carried.
    pub(super) kept: u128,
    pub(super) inexact: bool,
    /// The magnitude was incremented.
    pub(super) up: bool,
}

/// Shifts right; what is lost is jammed into bit 0.
pub(super) const fn shift_right_jam(value: u128, by: u32) -> u128 {
    match by {
        0 => value,
        1..128 => value >> by | (value << (128 - by) != 0) as u128,
        _ => (value != 0) as u128,
    }
}

/// Rounds away the low `drop` bits (any number of them).
pub(super) fn round_bits(value: u128, drop: u32, sign: bool, rounding: Rounding) -> Rounded {
    // Two guard bits and a sticky one below the kept bits decide everything.
    let (kept, rest, half) = match drop {
        0 => (value, 0, 1),
        1..128 => (value >> drop, value & ((1 << drop) - 1), 1 << (drop - 1)),
        128 => (0, value, 1 << 127),
        _ => (0, u128::from(value != 0), 2),
    };
    let inexact = rest != 0;
    let up = match rounding {
        Rounding::Nearest => rest > half || rest == half && kept & 1 != 0,
        Rounding::Down => inexact && sign,
        Rounding::Up => inexact && !sign,
        Rounding::Truncate => false,
    };
    Rounded { kept: kept.wrapping_add(u128::from(up)), inexact, up }
}

impl Number {
    /// From an integer significand (not zero) whose bit 0 weighs 2^exponent.
    pub(super) fn from_integer(sign: bool, significand: u128, exponent: i32) -> Number {
        let zeros = significand.leading_zeros();
        Number { sign, exponent: exponent + 127 - zeros as i32, significand: significand << zeros }
    }

    pub(super) fn negate(self) -> Number {
        Number { sign: !self.sign, ..self }
    }

    /// The top 64 bits, which for an operand are all there are.
    fn top(self) -> u64 {
        (self.significand >> 64) as u64
    }

    /// The sum, or nothing if it is zero.
    pub(super) fn add(self, other: Number) -> Option<Number> {
        let (big, small) = if (self.exponent, self.significand) >= (other.exponent, other.significand) {
            (self, other)
        } else {
            (other, self)
        };
        let aligned = shift_right_jam(small.significand, (big.exponent - small.exponent) as u32);
        if big.sign == small.sign {
            return Some(match big.significand.checked_add(aligned) {
                Some(significand) => Number { significand, ..big },
                None => {
                    let sum = big.significand.wrapping_add(aligned);
                    let significand = 1 << 127 | sum >> 1 | sum & 1;
                    Number { significand, exponent: big.exponent + 1, sign: big.sign }
                }
            });
        }
        match big.significand - aligned {
            0 => None,
            difference => Some(Number::from_integer(big.sign, difference, big.exponent - 127)),
        }
    }

    /// The exact product of numbers of 64 bits.
    pub(super) fn multiply(self, other: Number) -> Number {
        let product = u128::from(self.top()) * u128::from(other.top());
        // Units of 2^-126 at the sum of the exponents.
        Number::from_integer(self.sign ^ other.sign, product, self.exponent + other.exponent - 126)
    }

    /// The quotient of numbers of 64 bits.
    pub(super) fn divide(self, other: Number) -> Number {
        let (a, b) = (u128::from(self.top()) << 63, u128::from(other.top()));
        let (high, rest) = (a / b, (a % b) << 64);
        let (low, rest) = (rest / b, rest % b);
        let quotient = high << 64 | low;
        let mut result =
            Number::from_integer(self.sign ^ other.sign, quotient, self.exponent - other.exponent - 127);
        result.significand |= u128::from(rest != 0);
        result
    }

    /// The square root of a positive number of 64 bits.
    pub(super) fn square_root(self) -> Number {
        let odd = self.exponent & 1;
        let radicand = u128::from(self.top()) << (63 + odd);
        let root = radicand.isqrt();
        let rest = radicand - root * root;
        // The bit below the integer root is set if (root + 1/2)^2 still fits; a tie cannot be.
        let significand = root << 64 | u128::from(rest > root) << 63 | u128::from(rest != 0);
        Number { sign: false, exponent: (self.exponent - odd) / 2, significand }
    }

    /// The integer this rounds to, if its magnitude has at most 64 bits.
    pub(super) fn to_integer(self, rounding: Rounding) -> Option<(u64, Rounded)> {
        if self.exponent > 63 {
            return None;
        }
        let rounded = round_bits(self.significand, (127 - self.exponent) as u32, self.sign, rounding);
        Some((u64::try_from(rounded.kept).ok()?, rounded))
    }

    /// Compares magnitudes.
    pub(super) fn magnitude_cmp(self, other: Number) -> std::cmp::Ordering {
        (self.exponent, self.significand).cmp(&(other.exponent, other.significand))
    }
}

/// The range and precision of a format or of a register under precision control.
#[derive(Clone, Copy, Debug)]
pub(super) struct Range {
    /// Significand bits, the leading one included.
    pub(super) precision: u32,
    /// Exponents of the smallest and largest normal numbers.
    pub(super) least: i32,
    pub(super) greatest: i32,
}

/// How a rounded result lies in its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    /// `kept` has exactly the precision's bits.
    Normal { exponent: i32, rounded: Rounded },
    /// Smaller than the smallest normal number even after rounding with an unbounded exponent. `normal` is that rounding;
    /// `denormal` is the significand in units of the least denormal.
    Tiny { exponent: i32, normal: Rounded, denormal: Rounded },
    /// Larger than the largest number.
    Huge { exponent: i32, rounded: Rounded },
}

impl Range {
    /// Rounds a number to the range. Tininess is detected after rounding (SDM vol. 1, 4.9.1.5).
    pub(super) fn fit(&self, number: Number, rounding: Rounding) -> Fit {
        let drop = 128 - self.precision;
        let mut rounded = round_bits(number.significand, drop, number.sign, rounding);
        let mut exponent = number.exponent;
        if rounded.kept >> self.precision != 0 {
            rounded.kept >>= 1;
            exponent += 1;
        }
        if exponent > self.greatest {
            Fit::Huge { exponent, rounded }
        } else if exponent < self.least {
            let below = (self.least - number.exponent) as u32;
            let denormal = round_bits(number.significand, drop + below, number.sign, rounding);
            Fit::Tiny { exponent, normal: rounded, denormal }
        } else {
            Fit::Normal { exponent, rounded }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn integer(value: i64) -> Number {
        Number::from_integer(value < 0, value.unsigned_abs().into(), 0)
    }

    #[test]
    fn arithmetic_on_integers() {
        assert_eq!(integer(7).add(integer(-9)), Some(integer(-2)));
        assert_eq!(integer(7).add(integer(-7)), None);
        assert_eq!(integer(-6).multiply(integer(7)), integer(-42));
        assert_eq!(integer(-42).divide(integer(7)), integer(-6));
        assert_eq!(integer(144).square_root(), integer(12));
        assert_eq!(integer(3).divide(integer(2)).to_integer(Rounding::Nearest).map(|r| r.0), Some(2));
        assert_eq!(integer(5).divide(integer(2)).to_integer(Rounding::Nearest).map(|r| r.0), Some(2));
        assert_eq!(integer(-5).divide(integer(2)).to_integer(Rounding::Down).map(|r| r.0), Some(3));
    }

    #[test]
    fn rounding_far_below() {
        let one = integer(1).significand;
        assert_eq!(round_bits(one, 128, false, Rounding::Nearest).kept, 0, "a tie goes to even");
        assert_eq!(round_bits(one | 1, 128, false, Rounding::Nearest).kept, 1);
        assert_eq!(round_bits(u128::MAX, 129, false, Rounding::Nearest).kept, 0);
        assert_eq!(round_bits(1, 500, false, Rounding::Up).kept, 1);
        assert!(round_bits(1, 500, false, Rounding::Truncate).inexact);
    }
}
