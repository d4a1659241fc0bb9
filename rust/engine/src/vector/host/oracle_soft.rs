//! The portable unit against the host's: every operation on random and special values, under all rounding, precision and
//! mask settings. Results and flags must be equal; estimates and transcendental functions may differ by a stated error.

use super::super::fp::{
    Arith, Convert, Estimate, Form, FpUnit, SseResult, X87Arith, X87Binary, X87Result, X87Source, X87Target,
    X87Unary,
};
use super::super::state::{F80, fsw};
use super::super::{HostFp, SoftFp};
use super::sample::Random;
use super::vendor::Counts;

const FORMS: [Form; 4] = [Form::Ps, Form::Pd, Form::Ss, Form::Sd];
/// Random operands for each operation and form.
const TIMES: u32 = 8_000;

fn same(name: impl std::fmt::Debug, a: u128, b: u128, mxcsr: u32, host: SseResult, soft: SseResult) {
    assert_eq!(
        (format!("{:032x}", soft.value), soft.flags),
        (format!("{:032x}", host.value), host.flags),
        "{name:?} {a:032x} {b:032x} mxcsr {mxcsr:#x}: soft, then host"
    );
}

/// All exceptions masked, the rest at random.
fn masked_mxcsr(random: &mut Random) -> u32 {
    0x1f80 | random.bits() as u32 & 0xe040
}

#[test]
fn sse_arithmetic_is_equal() {
    let (host, mut random) = (HostFp, Random::new(11));
    for form in FORMS {
        for _ in 0..TIMES {
            let (a, b, mxcsr) = (random.vector(), random.vector(), masked_mxcsr(&mut random));
            for op in [Arith::Add, Arith::Sub, Arith::Mul, Arith::Div, Arith::Min, Arith::Max] {
                same(
                    (op, form),
                    a,
                    b,
                    mxcsr,
                    host.arith(op, form, a, b, mxcsr),
                    SoftFp.arith(op, form, a, b, mxcsr),
                );
            }
            same(("sqrt", form), a, b, mxcsr, host.sqrt(form, a, b, mxcsr), SoftFp.sqrt(form, a, b, mxcsr));
            for predicate in 0..8 {
                let (h, s) = (
                    host.compare(predicate, form, a, b, mxcsr),
                    SoftFp.compare(predicate, form, a, b, mxcsr),
                );
                same(("compare", predicate, form), a, b, mxcsr, h, s);
            }
            for control in 0..16 {
                let (h, s) =
                    (host.round(control, form, a, b, mxcsr), SoftFp.round(control, form, a, b, mxcsr));
                same(("round", control, form), a, b, mxcsr, h, s);
            }
        }
    }
    for _ in 0..TIMES {
        let (a, b, mxcsr) = (random.vector(), random.vector(), masked_mxcsr(&mut random));
        for (quiet, double) in [(false, false), (false, true), (true, false), (true, true)] {
            let (h, s) = (host.order(quiet, double, a, b, mxcsr), SoftFp.order(quiet, double, a, b, mxcsr));
            same(("order", quiet, double), a, b, mxcsr, h, s);
        }
    }
}

#[test]
fn sse_conversions_are_equal() {
    use Convert::*;
    let all = [
        DqToPs,
        DqToPd,
        PsToDq,
        PsToDqTruncated,
        PdToDq,
        PdToDqTruncated,
        PsToPd,
        PdToPs,
        SsToSd,
        SdToSs,
        Si32ToSs,
        Si64ToSs,
        Si32ToSd,
        Si64ToSd,
        SsToSi32,
        SsToSi64,
        SdToSi32,
        SdToSi64,
        SsToSi32Truncated,
        SsToSi64Truncated,
        SdToSi32Truncated,
        SdToSi64Truncated,
    ];
    let (host, mut random) = (HostFp, Random::new(12));
    for op in all {
        for _ in 0..TIMES {
            let (a, b, mxcsr) = (random.vector(), random.vector(), masked_mxcsr(&mut random));
            same(op, a, b, mxcsr, host.convert(op, a, b, mxcsr), SoftFp.convert(op, a, b, mxcsr));
        }
    }
}

/// A control word: exceptions masked, or at random.
fn control(random: &mut Random) -> u16 {
    let fcw = random.bits() as u16 & 0x1f00 | 0x40;
    fcw | if random.below(2) == 0 { 0x3f } else { random.bits() as u16 & 0x3f }
}

/// Whether a result is not written because of an unmasked exception.
fn unwritten(status: u16, fcw: u16) -> bool {
    status & !fcw & (fsw::IE | fsw::DE | fsw::ZE) != 0
}

/// What of a result is defined: only status counts where nothing is written.
fn seen(result: X87Result, fcw: u16) -> (Option<(F80, Option<F80>)>, String) {
    let values = (!unwritten(result.status, fcw)).then_some((result.value, result.pushed));
    let nan = result.value.exponent() == 0x7fff && result.value.significand << 1 != 0;
    let undefined = if nan { fsw::C0 | fsw::C3 } else { 0 };
    (values, format!("{:#x}", result.status & !undefined))
}

fn equal(
    name: impl std::fmt::Debug,
    inputs: impl std::fmt::Debug,
    fcw: u16,
    host: X87Result,
    soft: X87Result,
) {
    let (soft, host) = (seen(soft, fcw), seen(host, fcw));
    assert_eq!(soft, host, "{name:?} {inputs:x?} fcw {fcw:#x}: soft, then host");
}

fn source(random: &mut Random) -> X87Source {
    match random.below(8) {
        0 => X87Source::F32(random.f32()),
        1 => X87Source::F64(random.f64()),
        2 => X87Source::I16(random.integer() as i16),
        3 => X87Source::I32(random.integer() as i32),
        _ => X87Source::F80(random.f80()),
    }
}

#[test]
fn x87_arithmetic_is_equal() {
    use X87Arith::*;
    let (host, mut random) = (HostFp, Random::new(13));
    for _ in 0..8 * TIMES {
        let (mut a, b, fcw) = (random.f80(), source(&mut random), control(&mut random));
        if let X87Source::F80(value) = b
            && random.below(4) == 0
        {
            // Neighbours cancel; NaNs with equal significands.
            a = F80 { significand: value.significand.wrapping_add(random.below(3)), ..a };
        }
        for op in [Add, Mul, Sub, SubReversed, Div, DivReversed] {
            equal(op, (a, b), fcw, host.x87_arith(op, a, b, fcw), SoftFp.x87_arith(op, a, b, fcw));
        }
        for quiet in [false, true] {
            let (h, s) = (host.x87_compare(quiet, a, b, fcw), SoftFp.x87_compare(quiet, a, b, fcw));
            if matches!(b, X87Source::F80(_)) || !quiet {
                assert_eq!(
                    s & !fsw::C1,
                    h & !fsw::C1,
                    "compare {quiet} {a:x?} {b:x?} fcw {fcw:#x}: soft, then host"
                );
            }
        }
    }
}

#[test]
fn x87_loads_and_stores_are_equal() {
    use X87Target::*;
    let (host, mut random) = (HostFp, Random::new(14));
    for _ in 0..4 * TIMES {
        let (a, b, fcw) = (random.f80(), source(&mut random), control(&mut random));
        let wide = X87Source::I64(random.integer() as i64);
        for b in [b, wide] {
            equal("load", b, fcw, host.x87_load(b, fcw), SoftFp.x87_load(b, fcw));
        }
        let targets = [F32, F64, I16, I32, I64, I16Truncated, I32Truncated, I64Truncated, Bcd];
        for (target, size) in targets.into_iter().zip([4, 8, 2, 4, 8, 2, 4, 8, 10]) {
            let seen = |stored: super::super::fp::X87Stored| {
                let unmasked = stored.status & !fcw & fsw::EXCEPTIONS & !fsw::PE != 0;
                let bytes = (!unmasked).then(|| super::image::hex(&stored.bytes[..size]));
                (bytes, format!("{:#x}", stored.status))
            };
            let (h, s) = (host.x87_store(target, a, fcw), SoftFp.x87_store(target, a, fcw));
            assert_eq!(seen(s), seen(h), "{target:?} {a:x?} fcw {fcw:#x}: soft, then host");
        }
    }
}

#[test]
fn x87_exact_functions_are_equal() {
    let (host, mut random, mut vendor) = (HostFp, Random::new(15), Counts::default());
    for _ in 0..4 * TIMES {
        let (a, b, fcw) = (random.f80(), random.f80(), control(&mut random));
        for op in [X87Unary::SquareRoot, X87Unary::RoundToInteger, X87Unary::Extract] {
            equal(op, a, fcw, host.x87_unary(op, a, fcw), SoftFp.x87_unary(op, a, fcw));
        }
        for op in [X87Binary::Scale, X87Binary::PartialRemainder, X87Binary::PartialRemainder1] {
            let (h, mut s) = (host.x87_binary(op, a, b, fcw), SoftFp.x87_binary(op, a, b, fcw));
            if seen(h, fcw) != seen(s, fcw)
                && let Some(instead) = vendor.rounding(op, b)
            {
                s = SoftFp.x87_binary(op, a, instead, fcw);
            }
            equal(op, (a, b), fcw, h, s);
        }
    }
    println!("by maker: {vendor:?}");
}

/// Both are within 1.5 * 2^-12 of the truth, so within twice that of each other; special values are equal.
#[test]
fn estimates_agree_within_their_error() {
    let (host, mut random) = (HostFp, Random::new(16));
    for op in [Estimate::Reciprocal, Estimate::ReciprocalRoot] {
        for _ in 0..TIMES {
            let (a, b) = (random.vector(), random.vector());
            for form in [Form::Ps, Form::Ss] {
                let (h, s) = (host.estimate(op, form, a, b), SoftFp.estimate(op, form, a, b));
                for lane in 0..4 {
                    let [h, s] = [h, s].map(|value| (value >> (32 * lane)) as u32);
                    // 3 * 2^-12 of the significand, in units of its last place, and its double below a power of two.
                    let close = h.abs_diff(s) <= 3 << 12;
                    assert!(
                        close,
                        "{op:?} {form:?} {:08x}: soft {s:08x} host {h:08x}",
                        (b >> (32 * lane)) as u32
                    );
                }
            }
        }
    }
}

/// How far apart two finite results of one sign are, in units of the last place.
fn distance(a: F80, b: F80) -> u128 {
    let place =
        |value: F80| u128::from(value.exponent()) << 63 | u128::from(value.significand & (u64::MAX >> 1));
    if a.sign() == b.sign() { place(a).abs_diff(place(b)) } else { place(a) + place(b) }
}

/// Compares transcendental results: values within `ulps`; status equal but for C1, which tells the direction of rounding,
/// and PE and UE of exact results, where processors disagree.
fn near(
    name: impl std::fmt::Debug,
    inputs: impl std::fmt::Debug,
    fcw: u16,
    ulps: u128,
    host: X87Result,
    soft: X87Result,
) {
    let context = || format!("{name:?} {inputs:x?} fcw {fcw:#x}: soft {soft:x?}, host {host:x?}");
    let mut compared = !fsw::C1;
    if soft.status & fsw::PE == 0 {
        compared &= !(fsw::PE | fsw::UE);
    }
    // Next to the smallest and the largest number one may find an underflow or overflow where the other does not.
    match soft.value.exponent() {
        0 | 1 => compared &= !fsw::UE,
        0x7ffe.. => compared &= !fsw::OE,
        _ => {}
    }
    assert_eq!(soft.status & compared, host.status & compared, "{}", context());
    if unwritten(host.status, fcw) {
        return;
    }
    assert!(distance(soft.value, host.value) <= ulps, "{}", context());
    match (soft.pushed, host.pushed) {
        (None, None) => {}
        (Some(soft), Some(host)) => assert!(distance(soft, host) <= ulps, "{}", context()),
        _ => panic!("{}", context()),
    }
}

#[test]
fn x87_transcendental_functions_are_near() {
    let (host, mut random) = (HostFp, Random::new(17));
    for _ in 0..TIMES {
        // Underflow and overflow stay masked, so that values can be compared where only one finds them.
        let (a, b, fcw) = (random.f80(), random.f80(), control(&mut random) | fsw::UE | fsw::OE);
        for op in [X87Unary::Sin, X87Unary::Cos, X87Unary::SinCos, X87Unary::PartialTangent] {
            near(op, a, fcw, 1, host.x87_unary(op, a, fcw), SoftFp.x87_unary(op, a, fcw));
        }
        for op in [X87Binary::PartialArctangent, X87Binary::YLog2X] {
            near(op, (a, b), fcw, 1, host.x87_binary(op, a, b, fcw), SoftFp.x87_binary(op, a, b, fcw));
        }
        // Only where the result is defined.
        if a.exponent() < 0x3fff {
            let op = X87Unary::TwoToXMinus1;
            near(op, a, fcw, 1, host.x87_unary(op, a, fcw), SoftFp.x87_unary(op, a, fcw));
        }
        if a.exponent() < 0x3ffd {
            let op = X87Binary::YLog2XPlus1;
            near(op, (a, b), fcw, 1, host.x87_binary(op, a, b, fcw), SoftFp.x87_binary(op, a, b, fcw));
        }
    }
}
