//! Double extended values under the control word: what a register's bits stand for, NaN selection, and rounding with
//! precision control and the responses to masked and unmasked exceptions (Intel SDM vol. 1, 4.8.3.5, 8.2 and 8.5).

use super::super::fp::{X87Result, X87Source};
use super::super::state::{F80, fsw};
use super::lane::{DOUBLE, Layout, SINGLE, Value};
use super::number::{Fit, Number, Range, Rounding};

/// The exponent adjustment of results that unmasked overflow and underflow leave in registers (SDM vol. 1, 8.5.4).
const BIAS_ADJUST: i32 = 24576;
const LEAST: i32 = -16382;
const GREATEST: i32 = 16383;

/// What a double extended operand stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extended {
    Zero {
        sign: bool,
    },
    Finite(Number),
    Infinite {
        sign: bool,
    },
    Nan {
        signaling: bool,
    },
    /// Pseudo-NaNs, pseudo-infinities and unnormals: invalid operands since the 387 (SDM vol. 1, 8.2.2).
    Unsupported,
}

/// An operand: its bits as a register has them, what they stand for, whether it is denormal in its own format.
#[derive(Clone, Copy, Debug)]
pub(super) struct Operand {
    pub(super) bits: F80,
    pub(super) value: Extended,
    pub(super) denormal: bool,
}

impl From<F80> for Operand {
    fn from(bits: F80) -> Operand {
        let (sign, exponent, significand) = (bits.sign(), i32::from(bits.exponent()), bits.significand);
        let finite = |exponent| {
            Extended::Finite(Number::from_integer(sign, significand.into(), exponent - 16383 - 63))
        };
        let value = match (exponent, significand) {
            (0, 0) => Extended::Zero { sign },
            // Pseudo-denormals have the integer bit and the same exponent.
            (0, _) => finite(1),
            (_, ..0x8000_0000_0000_0000) => Extended::Unsupported,
            (0x7fff, 0x8000_0000_0000_0000) => Extended::Infinite { sign },
            (0x7fff, _) => Extended::Nan { signaling: significand >> 62 & 1 == 0 },
            _ => finite(exponent),
        };
        Operand { bits, value, denormal: exponent == 0 && significand != 0 }
    }
}

impl From<X87Source> for Operand {
    /// Widens without rounding; a signaling NaN stays one.
    fn from(source: X87Source) -> Operand {
        match source {
            X87Source::F80(bits) => bits.into(),
            X87Source::F32(bits) => widen(SINGLE, bits.into(), u64::from(bits) << 40, bits >> 31 != 0),
            X87Source::F64(bits) => widen(DOUBLE, bits, bits << 11, bits >> 63 != 0),
            X87Source::I16(value) => integer(value.into()),
            X87Source::I32(value) => integer(value.into()),
            X87Source::I64(value) => integer(value),
        }
    }
}

/// A single or double operand; `fraction` is its fraction from bit 62 downwards, higher bits are ignored.
fn widen(layout: Layout, bits: u64, fraction: u64, sign: bool) -> Operand {
    let top = u16::from(sign) << 15;
    let wide = match layout.unpack(bits) {
        Value::Zero { .. } => F80::new(top, 0),
        Value::Infinite { .. } => F80::new(top | 0x7fff, 1 << 63),
        Value::Nan { .. } => F80::new(top | 0x7fff, fraction | 1 << 63),
        Value::Finite(number) => exact(number),
    };
    Operand { denormal: layout.is_denormal(bits), ..wide.into() }
}

fn integer(value: i64) -> Operand {
    match value {
        0 => F80::ZERO.into(),
        _ => exact(Number::from_integer(value < 0, value.unsigned_abs().into(), 0)).into(),
    }
}

/// A number of at most 64 bits in the normal range.
pub(super) fn exact(number: Number) -> F80 {
    pack(number.sign, number.exponent, (number.significand >> 64) as u64)
}

/// The bits of a significand whose bit 63 is set, or of a denormal one with the least exponent.
fn pack(sign: bool, exponent: i32, significand: u64) -> F80 {
    let biased = if significand >> 63 == 0 { 0 } else { (exponent + 16383) as u16 & 0x7fff };
    F80::new(u16::from(sign) << 15 | biased, significand)
}

/// The same value; a pseudo-denormal becomes the normal number it is.
pub(super) fn canonical(bits: F80) -> F80 {
    F80 {
        sign_exponent: bits.sign_exponent | u16::from(bits.exponent() == 0 && bits.significand >> 63 != 0),
        ..bits
    }
}

pub(super) fn zero(sign: bool) -> F80 {
    F80::new(u16::from(sign) << 15, 0)
}

pub(super) fn infinity(sign: bool) -> F80 {
    F80::new(u16::from(sign) << 15 | 0x7fff, 1 << 63)
}

pub(super) fn quiet(nan: F80) -> F80 {
    F80 { significand: nan.significand | 1 << 62, ..nan }
}

/// The state of one operation: the control word and the status it has raised.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unit {
    fcw: u16,
    pub(super) status: u16,
}

impl Unit {
    pub(super) fn new(fcw: u16) -> Unit {
        Unit { fcw, status: 0 }
    }

    pub(super) fn rounding(&self) -> Rounding {
        Rounding::from_control(u32::from(self.fcw >> 10))
    }

    /// Precision control: 24, (reserved), 53, 64 bits.
    pub(super) fn precision(&self) -> u32 {
        match self.fcw >> 8 & 3 {
            0 => 24,
            2 => 53,
            _ => 64,
        }
    }

    pub(super) fn masked(&self, flag: u16) -> bool {
        self.fcw & flag != 0
    }

    pub(super) fn raise(&mut self, status: u16) {
        self.status |= status;
    }

    /// The outcome. An unmasked exception that is found before a result is computed is the only one reported.
    pub(super) fn result(&self, value: F80) -> X87Result {
        let early = fsw::IE | fsw::DE | fsw::ZE;
        let stopped = self.status & !self.fcw & early != 0;
        X87Result { value, pushed: None, status: if stopped { self.status & early } else { self.status } }
    }

    pub(super) fn invalid(&mut self) -> F80 {
        self.raise(fsw::IE);
        F80::INDEFINITE
    }

    /// Notes denormal operands, unless an invalid operation came first.
    pub(super) fn denormals(&mut self, operands: &[Operand]) {
        if operands.iter().any(|operand| operand.denormal) {
            self.raise(fsw::DE);
        }
    }

    /// The response to an operand that is a NaN or unsupported, if there is one (SDM vol. 1, table 4-7).
    pub(super) fn special(&mut self, operands: &[Operand]) -> Option<F80> {
        if operands.iter().any(|operand| operand.value == Extended::Unsupported) {
            return Some(self.invalid());
        }
        let mut chosen: Option<F80> = None;
        let mut quiet_one: Option<F80> = None;
        for operand in operands {
            let Extended::Nan { signaling } = operand.value else { continue };
            let slot = if signaling {
                self.raise(fsw::IE);
                &mut chosen
            } else {
                &mut quiet_one
            };
            *slot = Some(slot.map_or(operand.bits, |other| larger(other, operand.bits)));
        }
        quiet_one.or(chosen).map(quiet)
    }

    /// Rounds to a precision with the range of a register.
    pub(super) fn round(&mut self, number: Number, precision: u32) -> F80 {
        let (rounding, sign) = (self.rounding(), number.sign);
        let range = Range { precision, least: LEAST, greatest: GREATEST };
        let place = |kept: u128| (kept << (64 - precision)) as u64;
        match range.fit(number, rounding) {
            Fit::Normal { exponent, rounded } => {
                self.lost(rounded.inexact, rounded.up);
                pack(sign, exponent, place(rounded.kept))
            }
            Fit::Huge { exponent, rounded } if !self.masked(fsw::OE) => {
                self.raise(fsw::OE);
                // FSCALE can be beyond even the adjusted range.
                if exponent - BIAS_ADJUST > GREATEST {
                    self.lost(true, true);
                    return infinity(sign);
                }
                self.lost(rounded.inexact, rounded.up);
                pack(sign, exponent - BIAS_ADJUST, place(rounded.kept))
            }
            Fit::Huge { .. } => {
                let infinite = rounding.overflows_to_infinity(sign);
                self.raise(fsw::OE);
                self.lost(true, infinite);
                if infinite { infinity(sign) } else { pack(sign, GREATEST, u64::MAX << (64 - precision)) }
            }
            Fit::Tiny { exponent, normal, .. } if !self.masked(fsw::UE) => {
                self.raise(fsw::UE);
                if exponent + BIAS_ADJUST < LEAST {
                    self.lost(true, false);
                    return zero(sign);
                }
                self.lost(normal.inexact, normal.up);
                pack(sign, exponent + BIAS_ADJUST, place(normal.kept))
            }
            Fit::Tiny { denormal, .. } => {
                if denormal.inexact {
                    self.raise(fsw::UE);
                }
                self.lost(denormal.inexact, denormal.up);
                pack(sign, LEAST, place(denormal.kept))
            }
        }
    }

    /// Notes a rounding: PE, and C1 if the magnitude grew.
    pub(super) fn lost(&mut self, inexact: bool, up: bool) {
        if inexact {
            self.raise(fsw::PE | if up { fsw::C1 } else { 0 });
        }
    }

    /// The sign of an exact zero sum.
    pub(super) fn zero_sum(&self) -> F80 {
        zero(self.rounding() == Rounding::Down)
    }
}

/// The NaN with the larger significand; of equal ones the positive.
fn larger(a: F80, b: F80) -> F80 {
    match a.significand.cmp(&b.significand) {
        std::cmp::Ordering::Greater => a,
        std::cmp::Ordering::Less => b,
        std::cmp::Ordering::Equal => {
            if a.sign() {
                b
            } else {
                a
            }
        }
    }
}
