//! SSE floating-point operations run on the host, one assembly block each: see that MXCSR is the guest's with every
//! exception masked, operate, read the flags.

use std::arch::asm;
use std::arch::x86_64::__m128i;

use super::super::fp::mxcsr::FLAGS;
use super::super::fp::{Arith, Convert, Estimate, Form, Fused, SseResult};
use super::super::interface::eflags;
use super::super::state::MXCSR_MASK;
use super::MASKED;

/// What a block compares and exchanges.
///
/// Writing MXCSR costs tens of nanoseconds where it changes the register, reading it next to none. So the host's MXCSR is
/// replaced only if its control bits differ from the guest's or it has flags set that the guest's has not, and put back
/// only in the first case: flags that stay set in the host's register are those the guest has, and nobody else's matter.
#[repr(C)]
struct Csr {
    /// 0: the host's on entry.
    host: u32,
    /// 4: the guest's with all exceptions masked; afterwards with the flags that the operation added.
    guest: u32,
}

impl Csr {
    #[inline(always)]
    fn new(mxcsr: u32) -> Csr {
        Csr { host: 0, guest: mxcsr & MXCSR_MASK | MASKED }
    }

    /// What to keep of the host's register and what must then be left, if it can serve as it is.
    #[inline(always)]
    fn expected(mxcsr: u32) -> (u32, u32) {
        (!(mxcsr & FLAGS), mxcsr & MXCSR_MASK & !FLAGS | MASKED)
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

/// The assembly around `$insn` (with what must directly follow it): the operands go by their names.
macro_rules! block {
    ($mxcsr:expr, [$($insn:expr),+], $($operands:tt)*) => {{
        let mut csr = Csr::new($mxcsr);
        let (keep, control) = Csr::expected($mxcsr);
        // SAFETY: the block touches `csr` and the registers it names. All exceptions are masked while the instruction
        // runs; the control bits of MXCSR are on exit what they were on entry, its flags and EFLAGS are not claimed to be.
        // The value loaded has no reserved bit, which would fault.
        unsafe {
            asm!(
                "stmxcsr [{csr}]",
                "mov {difference:e}, [{csr}]",
                "and {difference:e}, {keep:e}",
                "xor {difference:e}, {control:e}",
                "jz 2f",
                "ldmxcsr [{csr} + 4]",
                "2:",
                $($insn,)+
                "stmxcsr [{csr} + 4]",
                "test {difference:e}, 0xffc0",
                "jz 3f",
                "ldmxcsr [{csr}]",
                "3:",
                csr = in(reg) &mut csr,
                keep = in(reg) keep,
                control = in(reg) control,
                difference = out(reg) _,
                $($operands)*
                options(nostack)
            );
        }
        csr
    }};
}

/// `$insn` with destination `{a}` and source `{b}`.
macro_rules! run {
    ($insn:expr, $a:expr, $b:expr, $mxcsr:expr) => {{
        let mut a = vector($a);
        let csr = block!($mxcsr, [$insn], a = inout(xmm_reg) a, b = in(xmm_reg) vector($b),);
        csr.result(number(a))
    }};
}

/// The same with general register `{r}` as destination.
macro_rules! run_to_gpr {
    ($insn:literal, $b:expr, $mxcsr:expr) => {{
        let value: u64;
        let csr = block!($mxcsr, [$insn], r = out(reg) value, b = in(xmm_reg) vector($b),);
        csr.result(value.into())
    }};
}

/// The same with general register `{r}` as source.
macro_rules! run_from_gpr {
    ($insn:literal, $a:expr, $b:expr, $mxcsr:expr) => {{
        let mut a = vector($a);
        let csr = block!($mxcsr, [$insn], a = inout(xmm_reg) a, r = in(reg) $b as u64,);
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
        let (zero, parity, carry): (u8, u8, u8);
        let csr = block!($mxcsr, [$insn, "setz {zero}", "setp {parity}", "setc {carry}"],
            zero = out(reg_byte) zero, parity = out(reg_byte) parity, carry = out(reg_byte) carry,
            a = in(xmm_reg) vector($a), b = in(xmm_reg) vector($b),);
        let flag = |set, flag| if set != 0 { flag } else { 0 };
        csr.result((flag(zero, eflags::ZF) | flag(parity, eflags::PF) | flag(carry, eflags::CF)).into())
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

macro_rules! run_fused {
    ($insn:expr, $x:expr, $y:expr, $z:expr, $mxcsr:expr) => {{
        let mut z = vector($z);
        let csr = block!($mxcsr, [$insn], z = inout(xmm_reg) z, x = in(xmm_reg) vector($x),
            y = in(xmm_reg) vector($y),);
        csr.result(number(z))
    }};
}

/// The fused operations in the order 231: the destination is the addend, and of several NaNs the first factor's wins.
macro_rules! fused_forms {
    ($form:expr, $x:expr, $y:expr, $z:expr, $mxcsr:expr, $name:literal) => {
        match $form {
            Form::Ps => run_fused!(concat!($name, "231ps {z}, {x}, {y}"), $x, $y, $z, $mxcsr),
            Form::Pd => run_fused!(concat!($name, "231pd {z}, {x}, {y}"), $x, $y, $z, $mxcsr),
            Form::Ss => run_fused!(concat!($name, "231ss {z}, {x}, {y}"), $x, $y, $z, $mxcsr),
            Form::Sd => run_fused!(concat!($name, "231sd {z}, {x}, {y}"), $x, $y, $z, $mxcsr),
        }
    };
}

/// The alternating ones have packed forms only.
macro_rules! fused_packed {
    ($form:expr, $x:expr, $y:expr, $z:expr, $mxcsr:expr, $name:literal) => {
        if $form.double() {
            run_fused!(concat!($name, "231pd {z}, {x}, {y}"), $x, $y, $z, $mxcsr)
        } else {
            run_fused!(concat!($name, "231ps {z}, {x}, {y}"), $x, $y, $z, $mxcsr)
        }
    };
}

/// # Safety
/// The host must have FMA.
pub(super) unsafe fn fused(op: Fused, form: Form, x: u128, y: u128, z: u128, mxcsr: u32) -> SseResult {
    match op {
        Fused::MulAdd => fused_forms!(form, x, y, z, mxcsr, "vfmadd"),
        Fused::MulSub => fused_forms!(form, x, y, z, mxcsr, "vfmsub"),
        Fused::NegatedMulAdd => fused_forms!(form, x, y, z, mxcsr, "vfnmadd"),
        Fused::NegatedMulSub => fused_forms!(form, x, y, z, mxcsr, "vfnmsub"),
        Fused::MulAddSub => fused_packed!(form, x, y, z, mxcsr, "vfmaddsub"),
        Fused::MulSubAdd => fused_packed!(form, x, y, z, mxcsr, "vfmsubadd"),
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

/// The estimates neither look at MXCSR nor set flags in it (Intel SDM vol. 2, RCPPS and RSQRTPS).
pub(super) fn estimate(op: Estimate, form: Form, a: u128, b: u128) -> u128 {
    macro_rules! run {
        ($insn:literal) => {{
            let mut a = vector(a);
            // SAFETY: the instruction touches the two registers alone.
            unsafe {
                asm!($insn, a = inout(xmm_reg) a, b = in(xmm_reg) vector(b), options(nomem, nostack, preserves_flags));
            }
            number(a)
        }};
    }
    match (op, form) {
        (Estimate::Reciprocal, Form::Ss) => run!("rcpss {a}, {b}"),
        (Estimate::Reciprocal, _) => run!("rcpps {a}, {b}"),
        (Estimate::ReciprocalRoot, Form::Ss) => run!("rsqrtss {a}, {b}"),
        (Estimate::ReciprocalRoot, _) => run!("rsqrtps {a}, {b}"),
    }
}
