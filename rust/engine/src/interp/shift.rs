//! Shifts and rotates (SDM vol. 2, SAL/SAR/SHL/SHR, RCL/RCR/ROL/ROR, SHLD, SHRD).
//!
//! Flags that the manual leaves undefined keep what the host family shows where that is known, else their old value.

use trapgate_x86::insn::{Insn, Operand, Prefixes};

use super::{Handler, Uop, by_width, mask, sign_extend, undefined};
use crate::fault::Done;
use crate::memory::Word;
use crate::state::{Flags, Vcpu};

/// A shift or rotate by a count that is already masked and not zero.
pub(super) trait Shift: 'static {
    fn apply<T: Word>(flags: &mut Flags, a: u64, count: u32) -> u64;
}

pub(super) struct Rol;
pub(super) struct Ror;
pub(super) struct Rcl;
pub(super) struct Rcr;
pub(super) struct Shl;
pub(super) struct Shr;
pub(super) struct Sar;

#[inline(always)]
fn top<T: Word>(value: u64) -> bool {
    value >> (8 * T::SIZE - 1) & 1 != 0
}

impl Shift for Shl {
    #[inline(always)]
    fn apply<T: Word>(flags: &mut Flags, a: u64, count: u32) -> u64 {
        let bits = 8 * T::SIZE as u32;
        let wide = u128::from(a) << count;
        let r = wide as u64 & mask::<T>();
        let cf = wide >> bits & 1 != 0;
        flags.set_logic(sign_extend::<T>(r));
        flags.set_cf_of(cf, top::<T>(r) != cf);
        undefined::after_shift(flags);
        r
    }
}

impl Shift for Shr {
    #[inline(always)]
    fn apply<T: Word>(flags: &mut Flags, a: u64, count: u32) -> u64 {
        let cf = a.checked_shr(count - 1).unwrap_or(0) & 1 != 0;
        let r = a.checked_shr(count).unwrap_or(0);
        flags.set_logic(sign_extend::<T>(r));
        flags.set_cf_of(cf, count == 1 && top::<T>(a));
        undefined::after_shift(flags);
        r
    }
}

impl Shift for Sar {
    #[inline(always)]
    fn apply<T: Word>(flags: &mut Flags, a: u64, count: u32) -> u64 {
        let wide = sign_extend::<T>(a) as i64;
        let cf = wide >> (count - 1).min(63) & 1 != 0;
        let r = (wide >> count.min(63)) as u64;
        flags.set_logic(r);
        flags.set_cf_of(cf, false);
        undefined::after_shift(flags);
        r & mask::<T>()
    }
}

impl Shift for Rol {
    #[inline(always)]
    fn apply<T: Word>(flags: &mut Flags, a: u64, count: u32) -> u64 {
        let bits = 8 * T::SIZE as u32;
        let n = count % bits;
        let r = if n == 0 { a } else { (a << n | a >> (bits - n)) & mask::<T>() };
        let cf = r & 1 != 0;
        flags.set_cf_of(cf, top::<T>(r) != cf);
        r
    }
}

impl Shift for Ror {
    #[inline(always)]
    fn apply<T: Word>(flags: &mut Flags, a: u64, count: u32) -> u64 {
        let bits = 8 * T::SIZE as u32;
        let n = count % bits;
        let r = if n == 0 { a } else { (a >> n | a << (bits - n)) & mask::<T>() };
        let cf = top::<T>(r);
        flags.set_cf_of(cf, cf != (r >> (bits - 2) & 1 != 0));
        r
    }
}

impl Shift for Rcl {
    #[inline(always)]
    fn apply<T: Word>(flags: &mut Flags, a: u64, count: u32) -> u64 {
        let bits = 8 * T::SIZE as u32;
        let n = count % (bits + 1);
        let ring = u128::from(flags.cf()) << bits | u128::from(a);
        let turned = if n == 0 { ring } else { ring << n | ring >> (bits + 1 - n) };
        let r = turned as u64 & mask::<T>();
        let cf = turned >> bits & 1 != 0;
        flags.set_cf_of(cf, top::<T>(r) != cf);
        r
    }
}

impl Shift for Rcr {
    #[inline(always)]
    fn apply<T: Word>(flags: &mut Flags, a: u64, count: u32) -> u64 {
        let bits = 8 * T::SIZE as u32;
        let n = count % (bits + 1);
        let ring = u128::from(flags.cf()) << bits | u128::from(a);
        let turned = if n == 0 { ring } else { ring >> n | ring << (bits + 1 - n) };
        let r = turned as u64 & mask::<T>();
        let cf = turned >> bits & 1 != 0;
        flags.set_cf_of(cf, top::<T>(r) != (r >> (bits - 2) & 1 != 0));
        r
    }
}

#[inline(always)]
fn count_mask<T: Word>() -> u32 {
    if T::SIZE == 8 { 63 } else { 31 }
}

/// The count: an immediate (1 included) or CL.
#[inline(always)]
fn count_of<T: Word>(cpu: &Vcpu, operand: Operand, u: &Uop) -> u32 {
    let raw = if let Operand::Imm { .. } = operand { u.insn.imm } else { cpu.regs[1] };
    raw as u32 & count_mask::<T>()
}

fn shift_reg<T: Word, O: Shift>(cpu: &mut Vcpu, u: &Uop) -> Done {
    let count = count_of::<T>(cpu, u.insn.operands[1], u);
    let a = cpu.get_a::<T>(u);
    let r = if count == 0 { a } else { O::apply::<T>(&mut cpu.flags, a, count) };
    // A 32-bit form clears the upper half even with a count of 0.
    cpu.set_a::<T>(u, r);
    Ok(())
}

fn shift_mem<T: Word, O: Shift>(cpu: &mut Vcpu, u: &Uop) -> Done {
    let count = count_of::<T>(cpu, u.insn.operands[1], u);
    let linear = cpu.linear(u, T::SIZE as u32, true)?;
    cpu.modify::<T>(u.insn.mem.seg, linear, false, |flags, a| {
        if count == 0 { a } else { T::from_u64(O::apply::<T>(flags, a.to_u64(), count)) }
    })
}

/// The handler of a shift or rotate.
pub(super) fn shift<O: Shift>(insn: &Insn) -> Handler {
    by_width!(insn.opsize, T => match insn.operands[0] {
        Operand::Mem { .. } => shift_mem::<T, O>,
        _ => shift_reg::<T, O>,
    })
}

#[inline(always)]
fn double<T: Word, const LEFT: bool>(flags: &mut Flags, a: u64, b: u64, count: u32) -> u64 {
    let bits = 8 * T::SIZE as u32;
    if count == 0 {
        return a;
    }
    // Counts above 16 of the 16-bit form are undefined; the wide ring gives what Intel processors give.
    let (r, cf) = if LEFT {
        let ring = (u128::from(a) << bits | u128::from(b)) << if bits == 16 { 16 } else { 0 }
            | if bits == 16 { u128::from(a) } else { 0 };
        let width = if bits == 16 { 48 } else { 2 * bits };
        let r = (ring >> (width - bits - count)) as u64 & mask::<T>();
        (r, ring >> (width - count) & 1 != 0)
    } else {
        let ring = u128::from(b) << bits | u128::from(a) | if bits == 16 { u128::from(a) << 32 } else { 0 };
        ((ring >> count) as u64 & mask::<T>(), ring >> (count - 1) & 1 != 0)
    };
    flags.set_logic(sign_extend::<T>(r));
    flags.set_cf_of(cf, top::<T>(r) != top::<T>(a));
    undefined::after_double_shift(flags, LEFT, top::<T>(r), r >> (bits - 2) & 1 != 0);
    r
}

/// SHLD and SHRD.
pub(super) fn shift_double<T: Word, const LEFT: bool>(cpu: &mut Vcpu, u: &Uop) -> Done {
    let count = count_of::<T>(cpu, u.insn.operands[2], u);
    let b = cpu.get_b::<T>(u);
    if let Operand::Mem { .. } = u.insn.operands[0] {
        let linear = cpu.linear(u, T::SIZE as u32, true)?;
        return cpu.modify::<T>(
            u.insn.mem.seg,
            linear,
            u.insn.prefixes.contains(Prefixes::LOCK),
            |flags, a| T::from_u64(double::<T, LEFT>(flags, a.to_u64(), b, count)),
        );
    }
    let a = cpu.get_a::<T>(u);
    let r = double::<T, LEFT>(&mut cpu.flags, a, b, count);
    cpu.set_a::<T>(u, r);
    Ok(())
}
