//! Flags that the manual leaves undefined: what the host's processor leaves in them, so that interpreted and translated code
//! leave the same. docs/testing-silicon.md has the table that was measured.

use trapgate_x86::regs::rflags;

use crate::host::AMD;
use crate::state::Flags;

/// After a shift by a count that is not zero: AF.
#[inline(always)]
pub(super) fn after_shift(flags: &mut Flags) {
    if *AMD {
        flags.set_af(true);
    }
}

/// After SHLD or SHRD: AF, and OF beyond a count of 1. `second` is the bit below the top of the result.
#[inline(always)]
pub(super) fn after_double_shift(flags: &mut Flags, left: bool, top: bool, second: bool) {
    if *AMD {
        let cf = flags.cf();
        flags.set_cf_of(cf, top != if left { cf } else { second });
        flags.set_af(true);
    }
}

/// After a multiplication: SF, ZF and PF, which `result` (the low half, sign-extended) gives on Intel's.
#[inline(always)]
pub(super) fn after_multiply(flags: &mut Flags, result: u64) {
    if !*AMD {
        flags.set_result(result);
    }
}

/// After BSF and BSR: all but ZF. `result` is 0 for a source of 0.
#[inline(always)]
pub(super) fn after_scan(flags: &mut Flags, result: u64) {
    if *AMD {
        let parity = if (result as u8).count_ones() & 1 == 0 { rflags::PF } else { 0 };
        let zero = if flags.zf() { rflags::ZF } else { 0 };
        flags.set_arithmetic(parity | zero);
    }
}

/// After a division: all but CF and OF.
#[inline(always)]
pub(super) fn after_divide(flags: &mut Flags) {
    if *AMD {
        let kept = flags.bits() & (rflags::CF | rflags::OF);
        flags.set_arithmetic(kept | rflags::AF);
    }
}
