//! The unit that serves best on this host: the host's own for what it does faster, the portable one for the rest. Both give
//! the same results but for estimates, transcendental functions and, on AMD's processors, the underflow of some remainders
//! and scales.

#[cfg(target_arch = "x86_64")]
use super::fp::{
    Arith, Convert, Estimate, Form, FpUnit, Fused, SseResult, X87Arith, X87Binary, X87Result, X87Source,
    X87Stored, X87Target, X87Unary,
};
#[cfg(target_arch = "x86_64")]
use super::host::HostFp;
#[cfg(target_arch = "x86_64")]
use super::soft::SoftFp;
#[cfg(target_arch = "x86_64")]
use super::state::F80;

#[cfg(not(target_arch = "x86_64"))]
pub use super::soft::SoftFp as NativeFp;

/// The fastest combination: changing the x87 control word twice takes longer than an addition in software. Only what gives
/// the same on every maker's processors is left to the host.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug, Default)]
pub struct NativeFp;

#[cfg(target_arch = "x86_64")]
impl FpUnit for NativeFp {
    #[inline(always)]
    fn arith(&self, op: Arith, form: Form, a: u128, b: u128, mxcsr: u32) -> SseResult {
        HostFp.arith(op, form, a, b, mxcsr)
    }

    #[inline(always)]
    fn sqrt(&self, form: Form, a: u128, b: u128, mxcsr: u32) -> SseResult {
        HostFp.sqrt(form, a, b, mxcsr)
    }

    fn compare(&self, predicate: u8, form: Form, a: u128, b: u128, mxcsr: u32) -> SseResult {
        HostFp.compare(predicate, form, a, b, mxcsr)
    }

    #[inline(always)]
    fn order(&self, quiet: bool, double: bool, a: u128, b: u128, mxcsr: u32) -> SseResult {
        HostFp.order(quiet, double, a, b, mxcsr)
    }

    fn round(&self, control: u8, form: Form, a: u128, b: u128, mxcsr: u32) -> SseResult {
        HostFp.round(control, form, a, b, mxcsr)
    }

    #[inline(always)]
    fn convert(&self, op: Convert, a: u128, b: u128, mxcsr: u32) -> SseResult {
        HostFp.convert(op, a, b, mxcsr)
    }

    fn estimate(&self, op: Estimate, form: Form, a: u128, b: u128) -> u128 {
        HostFp.estimate(op, form, a, b)
    }

    #[inline(always)]
    fn fused(&self, op: Fused, form: Form, x: u128, y: u128, z: u128, mxcsr: u32) -> SseResult {
        HostFp.fused(op, form, x, y, z, mxcsr)
    }

    fn half_to_single(&self, b: u128, mxcsr: u32) -> SseResult {
        SoftFp.half_to_single(b, mxcsr)
    }

    fn single_to_half(&self, control: u8, b: u128, mxcsr: u32) -> SseResult {
        SoftFp.single_to_half(control, b, mxcsr)
    }

    fn x87_arith(&self, op: X87Arith, a: F80, b: X87Source, fcw: u16) -> X87Result {
        SoftFp.x87_arith(op, a, b, fcw)
    }

    fn x87_compare(&self, quiet: bool, a: F80, b: X87Source, fcw: u16) -> u16 {
        SoftFp.x87_compare(quiet, a, b, fcw)
    }

    fn x87_load(&self, source: X87Source, fcw: u16) -> X87Result {
        SoftFp.x87_load(source, fcw)
    }

    fn x87_store(&self, target: X87Target, a: F80, fcw: u16) -> X87Stored {
        SoftFp.x87_store(target, a, fcw)
    }

    fn x87_unary(&self, op: X87Unary, a: F80, fcw: u16) -> X87Result {
        HostFp.x87_unary(op, a, fcw)
    }

    /// The remainders and the scale are exact, but processors of two makers do not agree when they signal an unmasked
    /// underflow: what a guest sees must not follow from the host.
    fn x87_binary(&self, op: X87Binary, st0: F80, st1: F80, fcw: u16) -> X87Result {
        match op {
            X87Binary::PartialRemainder | X87Binary::PartialRemainder1 | X87Binary::Scale => {
                SoftFp.x87_binary(op, st0, st1, fcw)
            }
            X87Binary::PartialArctangent | X87Binary::YLog2X | X87Binary::YLog2XPlus1 => {
                HostFp.x87_binary(op, st0, st1, fcw)
            }
        }
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::super::state::fsw;
    use super::*;

    /// What Intel's processors do, on any host: a denormal that is given back is no underflow.
    #[test]
    fn unmasked_underflow_does_not_follow_the_hosts_maker() {
        let unmasked = 0x37f & !fsw::UE;
        let denormal = F80::new(0x8000, 0x0446_e558_73db_5dd5);
        let infinity = F80::new(0x7fff, 1 << 63);
        let unchanged = X87Result { value: denormal, pushed: None, status: fsw::DE };
        assert_eq!(NativeFp.x87_binary(X87Binary::Scale, denormal, F80::ZERO, unmasked), unchanged);
        for op in [X87Binary::PartialRemainder, X87Binary::PartialRemainder1] {
            assert_eq!(NativeFp.x87_binary(op, denormal, infinity, unmasked), unchanged);
            // By a finite divisor it is one.
            let rounded = NativeFp.x87_binary(op, denormal, F80::ONE, unmasked);
            assert_eq!(rounded.status, fsw::DE | fsw::UE);
        }
    }
}
