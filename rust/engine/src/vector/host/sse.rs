//! SSE floating-point operations run on the host, one assembly block each: load the guest's MXCSR with every exception
//! masked and no flag set, operate, read the flags, put the host's MXCSR back.

use std::arch::asm;
use std::arch::x86_64::__m128i;

use super::super::fp::mxcsr::{FLAGS, MASKS};
use super::super::fp::{Arith, Convert, Estimate, Form, SseResult};
use super::super::interface::eflags;

/// The host's MXCSR while the guest's is loaded, and the guest's.
#[repr(C)]
struct Csr {
    host: u32,
    guest: u32,
}

impl Csr {
    #[inline(always)]
    fn new(mxcsr: u32) -> Csr {
        Csr { host: 0, guest: mxcsr & !FLAGS | MASKS }
    }

    #[inline(always)]
    fn result(&self, value: u128) -> SseResult {
        SseResult { value, flags: self.guest & FLAGS }
    }
}

#[inline(always)]
fn vector(value: u128) -> __m128i {
    // SAFETY: both are 16 bytes of plain data, and every bit pattern is valid for both.
    unsafe { std::mem::transmute(value) }
}

#[inline(always)]
fn number(value: __m128i) -> u128 {
    // SAFETY: as in `vector`.
    unsafe { std::mem::transmute(value) }
}

/// `$insn` with destination `{a}` and source `{b}`.
macro_rules! run {
    ($insn:expr, $a:expr, $b:expr, $mxcsr:expr) => {{
        let mut csr = Csr::new($mxcsr);
        let mut a = vector($a);
        // SAFETY: the block touches `csr` and the registers it names. MXCSR is on exit what it was on entry, in between
        // all its exceptions are masked, and its reserved bits are clear in any MXCSR that a guest can have loaded.
        unsafe {
            asm!("stmxcsr [{csr}]", "ldmxcsr [{csr} + 4]", $insn, "stmxcsr [{csr} + 4]", "ldmxcsr [{csr}]",
                csr = in(reg) &mut csr, a = inout(xmm_reg) a, b = in(xmm_reg) vector($b),
                options(nostack, preserves_flags));
        }
        csr.result(number(a))
    }};
}

/// The same with general register `{r}` as destination.
macro_rules! run_to_gpr {
    ($insn:literal, $b:expr, $mxcsr:expr) => {{
        let mut csr = Csr::new($mxcsr);
        let value: u64;
        // SAFETY: as in `run`.
        unsafe {
            asm!("stmxcsr [{csr}]", "ldmxcsr [{csr} + 4]", $insn, "stmxcsr [{csr} + 4]", "ldmxcsr [{csr}]",
                csr = in(reg) &mut csr, r = out(reg) value, b = in(xmm_reg) vector($b),
                options(nostack, preserves_flags));
        }
        csr.result(value.into())
    }};
}

/// The same with general register `{r}` as source.
macro_rules! run_from_gpr {
    ($insn:literal, $a:expr, $b:expr, $mxcsr:expr) => {{
        let mut csr = Csr::new($mxcsr);
        let mut a = vector($a);
        // SAFETY: as in `run`.
        unsafe {
            asm!("stmxcsr [{csr}]", "ldmxcsr [{csr} + 4]", $insn, "stmxcsr [{csr} + 4]", "ldmxcsr [{csr}]",
                csr = in(reg) &mut csr, a = inout(xmm_reg) a, r = in(reg) $b as u64,
                options(nostack, preserves_flags));
        }
        csr.result(number(a))
    }};
}

macro_rules! forms {
    ($form:expr, $a:expr, $b:expr, $mxcsr:expr, $ps:literal $pd:literal $ss:literal $sd:literal) => {
        match $form {
            Form::Ps => run!($ps, $a, $b, $mxcsr),
            Form::Pd => run!($pd, $a, $b, $mxcsr),
            Form::Ss => run!($ss, $a, $b, $mxcsr),
            Form::Sd => run!($sd, $a, $b, $mxcsr),
        }
    };
}

#[inline(always)]
pub(super) fn arith(op: Arith, form: Form, a: u128, b: u128, mxcsr: u32) -> SseResult {
    match op {
        Arith::Add => {
            forms!(form, a, b, mxcsr, "addps {a}, {b}" "addpd {a}, {b}" "addss {a}, {b}" "addsd {a}, {b}")
        }
        Arith::Sub => {
            forms!(form, a, b, mxcsr, "subps {a}, {b}" "subpd {a}, {b}" "subss {a}, {b}" "subsd {a}, {b}")
        }
        Arith::Mul => {
            forms!(form, a, b, mxcsr, "mulps {a}, {b}" "mulpd {a}, {b}" "mulss {a}, {b}" "mulsd {a}, {b}")
        }
        Arith::Div => {
            forms!(form, a, b, mxcsr, "divps {a}, {b}" "divpd {a}, {b}" "divss {a}, {b}" "divsd {a}, {b}")
        }
        Arith::Min => {
            forms!(form, a, b, mxcsr, "minps {a}, {b}" "minpd {a}, {b}" "minss {a}, {b}" "minsd {a}, {b}")
        }
        Arith::Max => {
            forms!(form, a, b, mxcsr, "maxps {a}, {b}" "maxpd {a}, {b}" "maxss {a}, {b}" "maxsd {a}, {b}")
        }
    }
}

#[inline(always)]
pub(super) fn sqrt(form: Form, a: u128, b: u128, mxcsr: u32) -> SseResult {
    forms!(form, a, b, mxcsr, "sqrtps {a}, {b}" "sqrtpd {a}, {b}" "sqrtss {a}, {b}" "sqrtsd {a}, {b}")
}

/// One block for each predicate, which is an immediate.
macro_rules! predicates {
    ($predicate:expr, $a:expr, $b:expr, $mxcsr:expr, $insn:literal) => {
        match $predicate & 7 {
            0 => run!(concat!($insn, " {a}, {b}, 0"), $a, $b, $mxcsr),
            1 => run!(concat!($insn, " {a}, {b}, 1"), $a, $b, $mxcsr),
            2 => run!(concat!($insn, " {a}, {b}, 2"), $a, $b, $mxcsr),
            3 => run!(concat!($insn, " {a}, {b}, 3"), $a, $b, $mxcsr),
            4 => run!(concat!($insn, " {a}, {b}, 4"), $a, $b, $mxcsr),
            5 => run!(concat!($insn, " {a}, {b}, 5"), $a, $b, $mxcsr),
            6 => run!(concat!($insn, " {a}, {b}, 6"), $a, $b, $mxcsr),
            _ => run!(concat!($insn, " {a}, {b}, 7"), $a, $b, $mxcsr),
        }
    };
}

pub(super) fn compare(predicate: u8, form: Form, a: u128, b: u128, mxcsr: u32) -> SseResult {
    match form {
        Form::Ps => predicates!(predicate, a, b, mxcsr, "cmpps"),
        Form::Pd => predicates!(predicate, a, b, mxcsr, "cmppd"),
        Form::Ss => predicates!(predicate, a, b, mxcsr, "cmpss"),
        Form::Sd => predicates!(predicate, a, b, mxcsr, "cmpsd"),
    }
}

macro_rules! run_order {
    ($insn:literal, $a:expr, $b:expr, $mxcsr:expr) => {{
        let mut csr = Csr::new($mxcsr);
        let flags: u64;
        // SAFETY: as in `run`; the block changes the arithmetic flags, reads them from the stack it balances, and does
        // not claim otherwise.
        unsafe {
            asm!("stmxcsr [{csr}]", "ldmxcsr [{csr} + 4]", $insn, "stmxcsr [{csr} + 4]", "ldmxcsr [{csr}]",
                "pushfq", "pop {flags}",
                csr = in(reg) &mut csr, flags = lateout(reg) flags,
                a = in(xmm_reg) vector($a), b = in(xmm_reg) vector($b));
        }
        csr.result(u128::from(flags & (eflags::ZF | eflags::PF | eflags::CF)))
    }};
}

#[inline(always)]
pub(super) fn order(quiet: bool, double: bool, a: u128, b: u128, mxcsr: u32) -> SseResult {
    match (quiet, double) {
        (false, false) => run_order!("comiss {a}, {b}", a, b, mxcsr),
        (false, true) => run_order!("comisd {a}, {b}", a, b, mxcsr),
        (true, false) => run_order!("ucomiss {a}, {b}", a, b, mxcsr),
        (true, true) => run_order!("ucomisd {a}, {b}", a, b, mxcsr),
    }
}

/// One block for each rounding immediate: bits 1:0 mode, bit 2 the mode of MXCSR, bit 3 no precision exception.
macro_rules! controls {
    ($control:expr, $a:expr, $b:expr, $mxcsr:expr, $insn:literal) => {
        match $control & 15 {
            0 => run!(concat!($insn, " {a}, {b}, 0"), $a, $b, $mxcsr),
            1 => run!(concat!($insn, " {a}, {b}, 1"), $a, $b, $mxcsr),
            2 => run!(concat!($insn, " {a}, {b}, 2"), $a, $b, $mxcsr),
            3 => run!(concat!($insn, " {a}, {b}, 3"), $a, $b, $mxcsr),
            4..=7 => run!(concat!($insn, " {a}, {b}, 4"), $a, $b, $mxcsr),
            8 => run!(concat!($insn, " {a}, {b}, 8"), $a, $b, $mxcsr),
            9 => run!(concat!($insn, " {a}, {b}, 9"), $a, $b, $mxcsr),
            10 => run!(concat!($insn, " {a}, {b}, 10"), $a, $b, $mxcsr),
            11 => run!(concat!($insn, " {a}, {b}, 11"), $a, $b, $mxcsr),
            _ => run!(concat!($insn, " {a}, {b}, 12"), $a, $b, $mxcsr),
        }
    };
}

/// # Safety
/// The host must have SSE4.1.
pub(super) unsafe fn round(control: u8, form: Form, a: u128, b: u128, mxcsr: u32) -> SseResult {
    match form {
        Form::Ps => controls!(control, a, b, mxcsr, "roundps"),
        Form::Pd => controls!(control, a, b, mxcsr, "roundpd"),
        Form::Ss => controls!(control, a, b, mxcsr, "roundss"),
        Form::Sd => controls!(control, a, b, mxcsr, "roundsd"),
    }
}

#[inline(always)]
pub(super) fn convert(op: Convert, a: u128, b: u128, mxcsr: u32) -> SseResult {
    match op {
        Convert::DqToPs => run!("cvtdq2ps {a}, {b}", a, b, mxcsr),
        Convert::DqToPd => run!("cvtdq2pd {a}, {b}", a, b, mxcsr),
        Convert::PsToDq => run!("cvtps2dq {a}, {b}", a, b, mxcsr),
        Convert::PsToDqTruncated => run!("cvttps2dq {a}, {b}", a, b, mxcsr),
        Convert::PdToDq => run!("cvtpd2dq {a}, {b}", a, b, mxcsr),
        Convert::PdToDqTruncated => run!("cvttpd2dq {a}, {b}", a, b, mxcsr),
        Convert::PsToPd => run!("cvtps2pd {a}, {b}", a, b, mxcsr),
        Convert::PdToPs => run!("cvtpd2ps {a}, {b}", a, b, mxcsr),
        Convert::SsToSd => run!("cvtss2sd {a}, {b}", a, b, mxcsr),
        Convert::SdToSs => run!("cvtsd2ss {a}, {b}", a, b, mxcsr),
        Convert::Si32ToSs => run_from_gpr!("cvtsi2ss {a}, {r:e}", a, b, mxcsr),
        Convert::Si64ToSs => run_from_gpr!("cvtsi2ss {a}, {r}", a, b, mxcsr),
        Convert::Si32ToSd => run_from_gpr!("cvtsi2sd {a}, {r:e}", a, b, mxcsr),
        Convert::Si64ToSd => run_from_gpr!("cvtsi2sd {a}, {r}", a, b, mxcsr),
        Convert::SsToSi32 => run_to_gpr!("cvtss2si {r:e}, {b}", b, mxcsr),
        Convert::SsToSi64 => run_to_gpr!("cvtss2si {r}, {b}", b, mxcsr),
        Convert::SdToSi32 => run_to_gpr!("cvtsd2si {r:e}, {b}", b, mxcsr),
        Convert::SdToSi64 => run_to_gpr!("cvtsd2si {r}, {b}", b, mxcsr),
        Convert::SsToSi32Truncated => run_to_gpr!("cvttss2si {r:e}, {b}", b, mxcsr),
        Convert::SsToSi64Truncated => run_to_gpr!("cvttss2si {r}, {b}", b, mxcsr),
        Convert::SdToSi32Truncated => run_to_gpr!("cvttsd2si {r:e}, {b}", b, mxcsr),
        Convert::SdToSi64Truncated => run_to_gpr!("cvttsd2si {r}, {b}", b, mxcsr),
    }
}

pub(super) fn estimate(op: Estimate, form: Form, a: u128, b: u128, mxcsr: u32) -> u128 {
    let result = match (op, form) {
        (Estimate::Reciprocal, Form::Ss) => run!("rcpss {a}, {b}", a, b, mxcsr),
        (Estimate::Reciprocal, _) => run!("rcpps {a}, {b}", a, b, mxcsr),
        (Estimate::ReciprocalRoot, Form::Ss) => run!("rsqrtss {a}, {b}", a, b, mxcsr),
        (Estimate::ReciprocalRoot, _) => run!("rsqrtps {a}, {b}", a, b, mxcsr),
    };
    result.value
}
