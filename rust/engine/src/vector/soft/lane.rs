//! One lane of an SSE operation: single and double values as the same code over a layout, with MXCSR's rules for NaNs,
//! denormals-are-zeros, flush-to-zero and the order of exceptions (Intel SDM vol. 1, 4.8.3.5, 4.9 and 11.5).

use super::super::fp::mxcsr::{DAZ, DE, FLAGS, FZ, IE, MASK_SHIFT, OE, PE, RC_SHIFT, UE, ZE};
use super::super::fp::{Arith, SseResult};
use super::number::{Fit, Number, Range, Rounding};

/// Where sign, exponent and fraction of a format stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    fraction: u32,
    exponent: u32,
}

pub(super) const SINGLE: Layout = Layout { fraction: 23, exponent: 8 };
pub(super) const DOUBLE: Layout = Layout { fraction: 52, exponent: 11 };
pub(super) const HALF: Layout = Layout { fraction: 10, exponent: 5 };

/// What a bit pattern stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Zero { sign: bool },
    Finite(Number),
    Infinite { sign: bool },
    Nan { signaling: bool },
}

impl Layout {
    const fn bias(self) -> i32 {
        (1 << (self.exponent - 1)) - 1
    }

    pub(super) const fn sign_bit(self) -> u64 {
        1 << (self.fraction + self.exponent)
    }

    const fn fraction_mask(self) -> u64 {
        (1 << self.fraction) - 1
    }

    pub(super) const fn zero(self, sign: bool) -> u64 {
        if sign { self.sign_bit() } else { 0 }
    }

    pub(super) const fn infinity(self, sign: bool) -> u64 {
        self.zero(sign) | ((1 << self.exponent) - 1) << self.fraction
    }

    pub(super) const fn largest(self, sign: bool) -> u64 {
        self.infinity(sign) - 1
    }

    /// The QNaN floating-point indefinite.
    pub(super) const fn indefinite(self) -> u64 {
        self.infinity(true) | 1 << (self.fraction - 1)
    }

    pub(super) const fn quiet(self, bits: u64) -> u64 {
        bits | 1 << (self.fraction - 1)
    }

    pub(super) const fn range(self) -> Range {
        Range { precision: self.fraction + 1, least: 1 - self.bias(), greatest: self.bias() }
    }

    /// Takes a pattern apart; denormals are normalised.
    pub(super) fn unpack(self, bits: u64) -> Value {
        let sign = bits & self.sign_bit() != 0;
        let fraction = bits & self.fraction_mask();
        let top = (1 << self.exponent) - 1;
        let biased = (bits >> self.fraction) as i32 & top;
        let unit = -self.bias() - self.fraction as i32;
        match (biased, fraction) {
            (0, 0) => Value::Zero { sign },
            (0, _) => Value::Finite(Number::from_integer(sign, fraction.into(), unit + 1)),
            (biased, 0) if biased == top => Value::Infinite { sign },
            (biased, _) if biased == top => Value::Nan { signaling: fraction >> (self.fraction - 1) == 0 },
            _ => {
                let significand = fraction | 1 << self.fraction;
                Value::Finite(Number::from_integer(sign, significand.into(), unit + biased))
            }
        }
    }

    pub(super) const fn is_denormal(self, bits: u64) -> bool {
        let magnitude = bits & !self.sign_bit();
        magnitude != 0 && magnitude >> self.fraction == 0
    }

    /// The pattern of a significand with exactly the precision's bits.
    pub(super) fn pack(self, sign: bool, exponent: i32, significand: u64) -> u64 {
        self.zero(sign)
            | ((exponent + self.bias()) as u64) << self.fraction
            | significand & self.fraction_mask()
    }
}

/// The exceptions of one instruction. Those found before a result is computed come first: if one of them is unmasked no
/// other is reported.
#[derive(Clone, Copy, Debug)]
pub(super) struct Exceptions {
    mxcsr: u32,
    early: u32,
    late: u32,
}

impl Exceptions {
    pub(super) fn new(mxcsr: u32) -> Exceptions {
        Exceptions { mxcsr, early: 0, late: 0 }
    }

    pub(super) fn rounding(&self) -> Rounding {
        Rounding::from_control(self.mxcsr >> RC_SHIFT)
    }

    fn masked(&self, flag: u32) -> bool {
        self.mxcsr >> MASK_SHIFT & flag != 0
    }

    pub(super) fn daz(&self) -> bool {
        self.mxcsr & DAZ != 0
    }

    pub(super) fn raise(&mut self, flags: u32) {
        self.early |= flags & (IE | DE | ZE);
        self.late |= flags & (OE | UE | PE);
    }

    pub(super) fn result(&self, value: u128) -> SseResult {
        let unmasked = !(self.mxcsr >> MASK_SHIFT) & FLAGS;
        let flags = if self.early & unmasked != 0 { self.early } else { self.early | self.late };
        SseResult { value, flags }
    }

    /// A source value with denormals as zeros if MXCSR says so; the exception is not raised here.
    pub(super) fn source(&self, layout: Layout, bits: u64) -> u64 {
        if self.daz() && layout.is_denormal(bits) { bits & layout.sign_bit() } else { bits }
    }

    /// The result for operands of which at least one is a NaN: the first one, quiet.
    pub(super) fn nan(&mut self, layout: Layout, a: u64, b: u64) -> u64 {
        let (va, vb) = (layout.unpack(a), layout.unpack(b));
        if va == (Value::Nan { signaling: true }) || vb == (Value::Nan { signaling: true }) {
            self.raise(IE);
        }
        layout.quiet(if matches!(va, Value::Nan { .. }) { a } else { b })
    }

    pub(super) fn invalid(&mut self, layout: Layout) -> u64 {
        self.raise(IE);
        layout.indefinite()
    }

    pub(super) fn denormals(&mut self, layout: Layout, a: u64, b: u64) {
        if layout.is_denormal(a) || layout.is_denormal(b) {
            self.raise(DE);
        }
    }

    /// Rounds a result to the format.
    pub(super) fn round(&mut self, layout: Layout, number: Number) -> u64 {
        let (rounding, sign) = (self.rounding(), number.sign);
        let inexact = |inexact| if inexact { PE } else { 0 };
        match layout.range().fit(number, rounding) {
            Fit::Normal { exponent, rounded } => {
                self.raise(inexact(rounded.inexact));
                layout.pack(sign, exponent, rounded.kept as u64)
            }
            Fit::Huge { rounded, .. } => {
                // An unmasked overflow reports whether the significand was rounded; a masked one always lost something.
                self.raise(OE | inexact(rounded.inexact || self.masked(OE)));
                if rounding.overflows_to_infinity(sign) {
                    layout.infinity(sign)
                } else {
                    layout.largest(sign)
                }
            }
            Fit::Tiny { normal, denormal, .. } => {
                if !self.masked(UE) {
                    self.raise(UE | inexact(normal.inexact));
                } else if self.mxcsr & FZ != 0 {
                    self.raise(UE | PE);
                    return layout.zero(sign);
                } else if denormal.inexact {
                    self.raise(UE | PE);
                }
                // A carry makes the smallest normal number of itself.
                layout.zero(sign) | denormal.kept as u64
            }
        }
    }

    /// The sign of an exact zero sum.
    pub(super) fn zero_sum(&self, layout: Layout) -> u64 {
        layout.zero(self.rounding() == Rounding::Down)
    }

    pub(super) fn arith(&mut self, op: Arith, layout: Layout, a: u64, b: u64) -> u64 {
        let (a, b) = (self.source(layout, a), self.source(layout, b));
        match op {
            Arith::Min | Arith::Max => return self.extremum(op, layout, a, b),
            _ => {}
        }
        let (va, vb) = (layout.unpack(a), layout.unpack(b));
        if matches!(va, Value::Nan { .. }) || matches!(vb, Value::Nan { .. }) {
            return self.nan(layout, a, b);
        }
        match op {
            Arith::Add => self.add(layout, (a, va), (b, vb)),
            Arith::Sub => {
                let negative = b ^ layout.sign_bit();
                self.add(layout, (a, va), (negative, layout.unpack(negative)))
            }
            Arith::Mul => self.multiply(layout, (a, va), (b, vb)),
            _ => self.divide(layout, (a, va), (b, vb)),
        }
    }

    fn add(&mut self, layout: Layout, (a, va): (u64, Value), (b, vb): (u64, Value)) -> u64 {
        if let (Value::Infinite { sign }, Value::Infinite { sign: other }) = (va, vb)
            && sign != other
        {
            return self.invalid(layout);
        }
        self.denormals(layout, a, b);
        match (va, vb) {
            (Value::Infinite { .. }, _) => a,
            (_, Value::Infinite { .. }) => b,
            (Value::Zero { sign }, Value::Zero { sign: other }) if sign == other => a,
            (Value::Zero { .. }, Value::Zero { .. }) => self.zero_sum(layout),
            (Value::Finite(x), Value::Finite(y)) => match x.add(y) {
                Some(sum) => self.round(layout, sum),
                None => self.zero_sum(layout),
            },
            (Value::Finite(x), _) | (_, Value::Finite(x)) => self.round(layout, x),
            (Value::Nan { .. }, _) | (_, Value::Nan { .. }) => layout.indefinite(),
        }
    }

    fn multiply(&mut self, layout: Layout, (a, va): (u64, Value), (b, vb): (u64, Value)) -> u64 {
        let sign = (a ^ b) & layout.sign_bit() != 0;
        if let (Value::Zero { .. }, Value::Infinite { .. }) | (Value::Infinite { .. }, Value::Zero { .. }) =
            (va, vb)
        {
            return self.invalid(layout);
        }
        self.denormals(layout, a, b);
        match (va, vb) {
            (Value::Finite(x), Value::Finite(y)) => self.round(layout, x.multiply(y)),
            (Value::Infinite { .. }, _) | (_, Value::Infinite { .. }) => layout.infinity(sign),
            _ => layout.zero(sign),
        }
    }

    fn divide(&mut self, layout: Layout, (a, va): (u64, Value), (b, vb): (u64, Value)) -> u64 {
        let sign = (a ^ b) & layout.sign_bit() != 0;
        match (va, vb) {
            (Value::Zero { .. }, Value::Zero { .. }) | (Value::Infinite { .. }, Value::Infinite { .. }) => {
                return self.invalid(layout);
            }
            (Value::Finite(_), Value::Zero { .. }) => {
                // The division by zero precedes the denormal operand, which is not looked for.
                self.raise(ZE);
                return layout.infinity(sign);
            }
            _ => self.denormals(layout, a, b),
        }
        match (va, vb) {
            (Value::Finite(x), Value::Finite(y)) => self.round(layout, x.divide(y)),
            (Value::Infinite { .. }, _) | (_, Value::Zero { .. }) => layout.infinity(sign),
            _ => layout.zero(sign),
        }
    }

    /// MINPS and MAXPS: the second operand unless the first is less (greater), so for NaNs and two zeros too.
    fn extremum(&mut self, op: Arith, layout: Layout, a: u64, b: u64) -> u64 {
        match self.order(layout, a, b, true) {
            Some(std::cmp::Ordering::Less) if op == Arith::Min => a,
            Some(std::cmp::Ordering::Greater) if op == Arith::Max => a,
            _ => b,
        }
    }

    /// The order of two values, none if a NaN is among them, which is invalid if `signals` or if it is a signaling one.
    pub(super) fn order(
        &mut self,
        layout: Layout,
        a: u64,
        b: u64,
        signals: bool,
    ) -> Option<std::cmp::Ordering> {
        let (a, b) = (self.source(layout, a), self.source(layout, b));
        let (va, vb) = (layout.unpack(a), layout.unpack(b));
        let nan = |value| matches!(value, Value::Nan { signaling } if signaling || signals);
        if nan(va) || nan(vb) {
            self.raise(IE);
        }
        if matches!(va, Value::Nan { .. }) || matches!(vb, Value::Nan { .. }) {
            return None;
        }
        self.denormals(layout, a, b);
        // Sign and magnitude as an integer: both zeros are 0.
        let key = |bits: u64| {
            let magnitude = (bits & !layout.sign_bit()) as i64;
            if bits & layout.sign_bit() != 0 { -magnitude } else { magnitude }
        };
        Some(key(a).cmp(&key(b)))
    }

    pub(super) fn sqrt(&mut self, layout: Layout, a: u64) -> u64 {
        let a = self.source(layout, a);
        match layout.unpack(a) {
            Value::Nan { .. } => self.nan(layout, a, a),
            Value::Zero { .. } | Value::Infinite { sign: false } => a,
            Value::Infinite { sign: true } => self.invalid(layout),
            Value::Finite(number) if number.sign => self.invalid(layout),
            Value::Finite(number) => {
                self.denormals(layout, a, a);
                self.round(layout, number.square_root())
            }
        }
    }
}
