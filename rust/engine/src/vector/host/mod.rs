//! The floating-point unit of an x86-64 host as executor: the guest's control word stands in the host's register for
//! the few instructions of one assembly block and never outside it. Only this folder may hold `unsafe` code.
#![allow(unsafe_code)]

#[cfg(all(test, target_os = "linux"))]
mod image;
#[cfg(all(test, target_os = "linux"))]
mod oracle;
#[cfg(all(test, target_os = "linux"))]
mod oracle_fused;
#[cfg(all(test, target_os = "linux"))]
mod oracle_save;
#[cfg(all(test, target_os = "linux"))]
mod oracle_soft;
#[cfg(all(test, target_os = "linux"))]
mod sample;
#[cfg(all(test, target_os = "linux"))]
mod silicon;
mod sse;
#[cfg(all(test, target_os = "linux"))]
mod vendor;
mod x87;

use super::fp::mxcsr::{FLAGS, MASK_SHIFT, UE};
use super::fp::{
    Arith, Convert, Estimate, Form, FpUnit, Fused, SseResult, X87Arith, X87Binary, X87Result, X87Source,
    X87Stored, X87Target, X87Unary,
};
use super::soft::SoftFp;
use super::state::F80;

/// All exception masks of MXCSR.
const MASKED: u32 = FLAGS << MASK_SHIFT;

/// The host's unit. SSE operations with unmasked exceptions, which would trap on the host, go to [`SoftFp`].
#[derive(Clone, Copy, Debug, Default)]
pub struct HostFp;

/// Runs the operation on the host with all exceptions masked; if that may differ from what the guest's masks ask for,
/// in software.
#[inline(always)]
fn masked_or_soft(
    mxcsr: u32,
    run: impl FnOnce() -> SseResult,
    soft: impl FnOnce() -> SseResult,
) -> SseResult {
    if mxcsr & MASKED == MASKED {
        return run();
    }
    // An unmasked underflow is signalled for exact tiny results too, and switches flush-to-zero off.
    if mxcsr & UE << MASK_SHIFT != 0 {
        let result = run();
        if result.flags & !(mxcsr >> MASK_SHIFT) & FLAGS == 0 {
            return result;
        }
    }
    soft()
}

impl FpUnit for HostFp {
    #[inline(always)]
    fn arith(&self, op: Arith, form: Form, a: u128, b: u128, mxcsr: u32) -> SseResult {
        masked_or_soft(mxcsr, || sse::arith(op, form, a, b, mxcsr), || SoftFp.arith(op, form, a, b, mxcsr))
    }

    #[inline(always)]
    fn sqrt(&self, form: Form, a: u128, b: u128, mxcsr: u32) -> SseResult {
        masked_or_soft(mxcsr, || sse::sqrt(form, a, b, mxcsr), || SoftFp.sqrt(form, a, b, mxcsr))
    }

    #[inline(always)]
    fn compare(&self, predicate: u8, form: Form, a: u128, b: u128, mxcsr: u32) -> SseResult {
        let soft = || SoftFp.compare(predicate, form, a, b, mxcsr);
        // NGE, NGT, GE and GT are their counterparts with the operands exchanged; packed ones have no lane to keep.
        if let (9 | 10 | 13 | 14, Form::Ps | Form::Pd) = (predicate, form) {
            let exchanged = [6, 5, 0, 0, 2, 1][usize::from(predicate - 9)];
            return masked_or_soft(mxcsr, || sse::compare(exchanged, form, b, a, mxcsr), soft);
        }
        if predicate > 7 {
            return soft();
        }
        masked_or_soft(mxcsr, || sse::compare(predicate, form, a, b, mxcsr), soft)
    }

    #[inline(always)]
    fn order(&self, quiet: bool, double: bool, a: u128, b: u128, mxcsr: u32) -> SseResult {
        let soft = || SoftFp.order(quiet, double, a, b, mxcsr);
        masked_or_soft(mxcsr, || sse::order(quiet, double, a, b, mxcsr), soft)
    }

    fn round(&self, control: u8, form: Form, a: u128, b: u128, mxcsr: u32) -> SseResult {
        let soft = || SoftFp.round(control, form, a, b, mxcsr);
        if !std::arch::is_x86_feature_detected!("sse4.1") {
            return soft();
        }
        // SAFETY: the host has SSE4.1.
        masked_or_soft(mxcsr, || unsafe { sse::round(control, form, a, b, mxcsr) }, soft)
    }

    #[inline(always)]
    fn convert(&self, op: Convert, a: u128, b: u128, mxcsr: u32) -> SseResult {
        masked_or_soft(mxcsr, || sse::convert(op, a, b, mxcsr), || SoftFp.convert(op, a, b, mxcsr))
    }

    fn estimate(&self, op: Estimate, form: Form, a: u128, b: u128) -> u128 {
        sse::estimate(op, form, a, b)
    }

    fn fused(&self, op: Fused, form: Form, x: u128, y: u128, z: u128, mxcsr: u32) -> SseResult {
        let soft = || SoftFp.fused(op, form, x, y, z, mxcsr);
        if !std::arch::is_x86_feature_detected!("fma") {
            return soft();
        }
        // SAFETY: the host has FMA.
        masked_or_soft(mxcsr, || unsafe { sse::fused(op, form, x, y, z, mxcsr) }, soft)
    }

    fn half_to_single(&self, b: u128, mxcsr: u32) -> SseResult {
        SoftFp.half_to_single(b, mxcsr)
    }

    fn single_to_half(&self, control: u8, b: u128, mxcsr: u32) -> SseResult {
        SoftFp.single_to_half(control, b, mxcsr)
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
        x87::unary(op, a, fcw)
    }

    fn x87_binary(&self, op: X87Binary, st0: F80, st1: F80, fcw: u16) -> X87Result {
        x87::binary(op, st0, st1, fcw)
    }
}
