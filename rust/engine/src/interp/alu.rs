//! Two-operand arithmetic and logic, INC, DEC, NEG, NOT, XADD, CMPXCHG.

use trapgate_x86::insn::{Insn, Operand, Prefixes};

use super::{Handler, Uop, by_width, mask, sign_extend};
use crate::fault::{Done, Stop};
use crate::memory::Word;
use crate::state::{Flags, Vcpu};

/// An operation on two values of one width that sets the flags.
pub(super) trait Binary: 'static {
    /// Whether the result goes to the first operand (CMP and TEST only set flags).
    const WRITES: bool = true;
    fn apply<T: Word>(flags: &mut Flags, a: u64, b: u64) -> u64;
}

pub(super) struct Add;
pub(super) struct Or;
pub(super) struct Adc;
pub(super) struct Sbb;
pub(super) struct And;
pub(super) struct Sub;
pub(super) struct Xor;
pub(super) struct Cmp;
pub(super) struct Test;

#[inline(always)]
fn add<T: Word>(flags: &mut Flags, a: u64, b: u64, carry: u64) -> u64 {
    let r = a.wrapping_add(b).wrapping_add(carry);
    let carries = (a & b) | ((a | b) & !r);
    flags.set_sum(sign_extend::<T>(r), carries, 8 * T::SIZE as u32);
    r
}

#[inline(always)]
fn subtract<T: Word>(flags: &mut Flags, a: u64, b: u64, borrow: u64) -> u64 {
    let r = a.wrapping_sub(b).wrapping_sub(borrow);
    let borrows = (!a & b) | ((!a | b) & r);
    flags.set_sum(sign_extend::<T>(r), borrows, 8 * T::SIZE as u32);
    r
}

#[inline(always)]
fn logic<T: Word>(flags: &mut Flags, r: u64) -> u64 {
    flags.set_logic(sign_extend::<T>(r));
    r
}

macro_rules! binary {
    ($name:ident, $writes:expr, |$t:ident, $f:ident, $a:ident, $b:ident| $e:expr) => {
        impl Binary for $name {
            const WRITES: bool = $writes;
            #[inline(always)]
            fn apply<$t: Word>($f: &mut Flags, $a: u64, $b: u64) -> u64 {
                $e
            }
        }
    };
}
binary!(Add, true, |T, f, a, b| add::<T>(f, a, b, 0));
binary!(Adc, true, |T, f, a, b| {
    let c = u64::from(f.cf());
    add::<T>(f, a, b, c)
});
binary!(Sub, true, |T, f, a, b| subtract::<T>(f, a, b, 0));
binary!(Sbb, true, |T, f, a, b| {
    let c = u64::from(f.cf());
    subtract::<T>(f, a, b, c)
});
binary!(Cmp, false, |T, f, a, b| subtract::<T>(f, a, b, 0));
binary!(And, true, |T, f, a, b| logic::<T>(f, a & b));
binary!(Or, true, |T, f, a, b| logic::<T>(f, a | b));
binary!(Xor, true, |T, f, a, b| logic::<T>(f, a ^ b));
binary!(Test, false, |T, f, a, b| logic::<T>(f, a & b));

/// Sets flags as CMP does; for the string compares.
#[inline(always)]
pub(super) fn compare<T: Word>(flags: &mut Flags, a: u64, b: u64) {
    subtract::<T>(flags, a, b, 0);
}

fn reg_reg<T: Word, O: Binary>(cpu: &mut Vcpu, u: &Uop) -> Done {
    let (a, b) = (cpu.get_a::<T>(u), cpu.get_b::<T>(u));
    let r = O::apply::<T>(&mut cpu.flags, a, b);
    if O::WRITES {
        cpu.set_a::<T>(u, r);
    }
    Ok(())
}

fn reg_imm<T: Word, O: Binary>(cpu: &mut Vcpu, u: &Uop) -> Done {
    let a = cpu.get_a::<T>(u);
    let r = O::apply::<T>(&mut cpu.flags, a, u.insn.imm & mask::<T>());
    if O::WRITES {
        cpu.set_a::<T>(u, r);
    }
    Ok(())
}

fn reg_mem<T: Word, O: Binary>(cpu: &mut Vcpu, u: &Uop) -> Done {
    let b = cpu.load_operand::<T>(u)?;
    let a = cpu.get_a::<T>(u);
    let r = O::apply::<T>(&mut cpu.flags, a, b);
    if O::WRITES {
        cpu.set_a::<T>(u, r);
    }
    Ok(())
}

#[inline(always)]
fn mem_value<T: Word, O: Binary>(cpu: &mut Vcpu, u: &Uop, b: u64) -> Done {
    if !O::WRITES {
        let a = cpu.load_operand::<T>(u)?;
        O::apply::<T>(&mut cpu.flags, a, b);
        return Ok(());
    }
    let linear = cpu.linear(u, T::SIZE as u32, true)?;
    let lock = u.insn.prefixes.contains(Prefixes::LOCK);
    cpu.modify::<T>(u.insn.mem.seg, linear, lock, |flags, a| T::from_u64(O::apply::<T>(flags, a.to_u64(), b)))
}

fn mem_reg<T: Word, O: Binary>(cpu: &mut Vcpu, u: &Uop) -> Done {
    let b = cpu.get_b::<T>(u);
    mem_value::<T, O>(cpu, u, b)
}

fn mem_imm<T: Word, O: Binary>(cpu: &mut Vcpu, u: &Uop) -> Done {
    mem_value::<T, O>(cpu, u, u.insn.imm & mask::<T>())
}

/// The handler of a two-operand operation.
pub(super) fn binary<O: Binary>(insn: &Insn) -> Handler {
    by_width!(insn.opsize, T => match (insn.operands[0], insn.operands[1]) {
        (Operand::Mem { .. }, Operand::Imm { .. }) => mem_imm::<T, O>,
        (Operand::Mem { .. }, _) => mem_reg::<T, O>,
        (_, Operand::Mem { .. }) => reg_mem::<T, O>,
        (_, Operand::Imm { .. }) => reg_imm::<T, O>,
        _ => reg_reg::<T, O>,
    })
}

/// An operation on one value.
pub(super) trait Unary: 'static {
    fn apply<T: Word>(flags: &mut Flags, a: u64) -> u64;
}

pub(super) struct Inc;
pub(super) struct Dec;
pub(super) struct Neg;
pub(super) struct Not;

impl Unary for Inc {
    #[inline(always)]
    fn apply<T: Word>(flags: &mut Flags, a: u64) -> u64 {
        let r = a.wrapping_add(1);
        let carries = (a & 1) | ((a | 1) & !r);
        flags.set_sum_keep_cf(sign_extend::<T>(r), carries, 8 * T::SIZE as u32);
        r
    }
}
impl Unary for Dec {
    #[inline(always)]
    fn apply<T: Word>(flags: &mut Flags, a: u64) -> u64 {
        let r = a.wrapping_sub(1);
        let borrows = (!a & 1) | ((!a | 1) & r);
        flags.set_sum_keep_cf(sign_extend::<T>(r), borrows, 8 * T::SIZE as u32);
        r
    }
}
impl Unary for Neg {
    #[inline(always)]
    fn apply<T: Word>(flags: &mut Flags, a: u64) -> u64 {
        subtract::<T>(flags, 0, a, 0)
    }
}
impl Unary for Not {
    #[inline(always)]
    fn apply<T: Word>(_: &mut Flags, a: u64) -> u64 {
        !a
    }
}

fn unary_reg<T: Word, O: Unary>(cpu: &mut Vcpu, u: &Uop) -> Done {
    let a = cpu.get_a::<T>(u);
    let r = O::apply::<T>(&mut cpu.flags, a);
    cpu.set_a::<T>(u, r);
    Ok(())
}

fn unary_mem<T: Word, O: Unary>(cpu: &mut Vcpu, u: &Uop) -> Done {
    let linear = cpu.linear(u, T::SIZE as u32, true)?;
    let lock = u.insn.prefixes.contains(Prefixes::LOCK);
    cpu.modify::<T>(u.insn.mem.seg, linear, lock, |flags, a| T::from_u64(O::apply::<T>(flags, a.to_u64())))
}

/// The handler of a one-operand operation.
pub(super) fn unary<O: Unary>(insn: &Insn) -> Handler {
    by_width!(insn.opsize, T => match insn.operands[0] {
        Operand::Mem { .. } => unary_mem::<T, O>,
        _ => unary_reg::<T, O>,
    })
}

/// XADD: the old value goes to the second operand.
pub(super) fn xadd<T: Word>(cpu: &mut Vcpu, u: &Uop) -> Done {
    let b = cpu.get_b::<T>(u);
    if let Operand::Mem { .. } = u.insn.operands[0] {
        let linear = cpu.linear(u, T::SIZE as u32, true)?;
        let lock = u.insn.prefixes.contains(Prefixes::LOCK);
        let seen = std::cell::Cell::new(0);
        cpu.modify::<T>(u.insn.mem.seg, linear, lock, |flags, a| {
            seen.set(a.to_u64());
            T::from_u64(add::<T>(flags, a.to_u64(), b, 0))
        })?;
        cpu.set_b::<T>(u, seen.get());
    } else {
        let a = cpu.get_a::<T>(u);
        let r = add::<T>(&mut cpu.flags, a, b, 0);
        // The destination is written last: XADD of a register with itself doubles it.
        cpu.set_b::<T>(u, a);
        cpu.set_a::<T>(u, r);
    }
    Ok(())
}

/// CMPXCHG: the destination is written in either case (SDM vol. 2), so write permission is always checked.
pub(super) fn cmpxchg<T: Word>(cpu: &mut Vcpu, u: &Uop) -> Done {
    let accumulator = cpu.regs[0] & mask::<T>();
    let new = cpu.get_b::<T>(u);
    let old = if let Operand::Mem { .. } = u.insn.operands[0] {
        let linear = cpu.linear(u, T::SIZE as u32, true)?;
        let lock = u.insn.prefixes.contains(Prefixes::LOCK);
        let seen = std::cell::Cell::new(0);
        cpu.modify::<T>(u.insn.mem.seg, linear, lock, |_, a| {
            seen.set(a.to_u64());
            if a.to_u64() == accumulator { T::from_u64(new) } else { a }
        })?;
        seen.get()
    } else {
        let a = cpu.get_a::<T>(u);
        // A failing 32-bit form leaves the upper half of the destination as it is (observed on silicon).
        if a == accumulator {
            cpu.set_a::<T>(u, new);
        }
        a
    };
    compare::<T>(&mut cpu.flags, accumulator, old);
    if old != accumulator {
        cpu.set_reg::<T>(0, old);
    }
    Ok(())
}

/// CMPXCHG8B and CMPXCHG16B.
pub(super) fn cmpxchg_pair(cpu: &mut Vcpu, u: &Uop) -> Done {
    if u.insn.opsize == 8 { cmpxchg16b(cpu, u) } else { cmpxchg8b(cpu, u) }
}

fn cmpxchg8b(cpu: &mut Vcpu, u: &Uop) -> Done {
    let low = |v: u64| v & 0xffff_ffff;
    let want = low(cpu.regs[2]) << 32 | low(cpu.regs[0]);
    let new = low(cpu.regs[1]) << 32 | low(cpu.regs[3]);
    let linear = cpu.linear(u, 8, true)?;
    let seen = std::cell::Cell::new(0);
    cpu.modify::<u64>(u.insn.mem.seg, linear, u.insn.prefixes.contains(Prefixes::LOCK), |_, a| {
        seen.set(a);
        if a == want { new } else { a }
    })?;
    let old = seen.get();
    cpu.flags.set_zf_only(old == want);
    if old != want {
        cpu.regs[0] = low(old);
        cpu.regs[2] = old >> 32;
    }
    Ok(())
}

/// 16 bytes: atomic only against this vCPU; a host form follows with the second vCPU.
fn cmpxchg16b(cpu: &mut Vcpu, u: &Uop) -> Done {
    let linear = cpu.linear(u, 16, true)?;
    if linear & 15 != 0 {
        return cpu.protection();
    }
    let seg = u.insn.mem.seg;
    cpu.check_range(seg, linear, 16, crate::mmu::access::Intent::Write)?;
    let mut bytes = [0; 16];
    cpu.load_bytes(seg, linear, &mut bytes)?;
    let old = u128::from_le_bytes(bytes);
    let want = u128::from(cpu.regs[2]) << 64 | u128::from(cpu.regs[0]);
    let new = u128::from(cpu.regs[1]) << 64 | u128::from(cpu.regs[3]);
    let equal = old == want;
    cpu.store_bytes(seg, linear, &if equal { new } else { old }.to_le_bytes())?;
    cpu.flags.set_zf_only(equal);
    if !equal {
        cpu.regs[0] = old as u64;
        cpu.regs[2] = (old >> 64) as u64;
    }
    Ok(())
}

/// Used where a form cannot occur by decoding; a guest sees #UD.
pub(super) fn never(cpu: &mut Vcpu, _: &Uop) -> Done {
    let stop: Result<(), Stop> = cpu.undefined();
    stop
}
