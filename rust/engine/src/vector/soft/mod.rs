//! The portable floating-point unit: single, double and double extended arithmetic in integers, exact in results and
//! flags. Transcendental functions have an error below one unit in the last place of a double extended result.

mod extended;
mod fused;
mod half;
mod lane;
mod number;
mod series;
mod sse;
mod transcendental;
mod x87;

use super::fp::{
    Arith, Convert, Estimate, Form, FpUnit, Fused, SseResult, X87Arith, X87Binary, X87Result, X87Source,
    X87Stored, X87Target, X87Unary,
};
use super::state::F80;

/// The portable unit.
#[derive(Clone, Copy, Debug, Default)]
pub struct SoftFp;

impl FpUnit for SoftFp {
    fn arith(&self, op: Arith, form: Form, a: u128, b: u128, mxcsr: u32) -> SseResult {
        sse::arith(op, form, a, b, mxcsr)
    }

    fn sqrt(&self, form: Form, a: u128, b: u128, mxcsr: u32) -> SseResult {
        sse::sqrt(form, a, b, mxcsr)
    }

    fn compare(&self, predicate: u8, form: Form, a: u128, b: u128, mxcsr: u32) -> SseResult {
        sse::compare(predicate, form, a, b, mxcsr)
    }

    fn order(&self, quiet: bool, double: bool, a: u128, b: u128, mxcsr: u32) -> SseResult {
        sse::order(quiet, double, a, b, mxcsr)
    }

    fn round(&self, control: u8, form: Form, a: u128, b: u128, mxcsr: u32) -> SseResult {
        sse::round(control, form, a, b, mxcsr)
    }

    fn convert(&self, op: Convert, a: u128, b: u128, mxcsr: u32) -> SseResult {
        sse::convert(op, a, b, mxcsr)
    }

    fn estimate(&self, op: Estimate, form: Form, a: u128, b: u128) -> u128 {
        sse::estimate(op, form, a, b)
    }

    fn fused(&self, op: Fused, form: Form, x: u128, y: u128, z: u128, mxcsr: u32) -> SseResult {
        fused::fused(op, form, [x, y, z], mxcsr)
    }

    fn half_to_single(&self, b: u128, mxcsr: u32) -> SseResult {
        half::half_to_single(b, mxcsr)
    }

    fn single_to_half(&self, control: u8, b: u128, mxcsr: u32) -> SseResult {
        half::single_to_half(control, b, mxcsr)
    }

    fn x87_arith(&self, op: X87Arith, a: F80, b: X87Source, fcw: u16) -> X87Result {
        x87::arith(op, a, b, fcw)
    }

    fn x87_compare(&self, quiet: bool, a: F80, b: X87Source, fcw: u16) -> u16 {
        x87::compare(quiet, a, b, fcw)
    }

    fn x87_load(&self, source: X87Source, fcw: u16) -> X87Result {
        x87::load(source, fcw)
    }

    fn x87_store(&self, target: X87Target, a: F80, fcw: u16) -> X87Stored {
        x87::store(target, a, fcw)
    }

    fn x87_unary(&self, op: X87Unary, a: F80, fcw: u16) -> X87Result {
        match op {
            X87Unary::SquareRoot | X87Unary::RoundToInteger | X87Unary::Extract => x87::unary(op, a, fcw),
            _ => transcendental::unary(op, a, fcw),
        }
    }

    fn x87_binary(&self, op: X87Binary, st0: F80, st1: F80, fcw: u16) -> X87Result {
        match op {
            X87Binary::PartialRemainder | X87Binary::PartialRemainder1 | X87Binary::Scale => {
                x87::binary(op, st0, st1, fcw)
            }
            _ => transcendental::binary(op, st0, st1, fcw),
        }
    }
}
