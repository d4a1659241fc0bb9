//! MUL, IMUL, DIV, IDIV and the decimal adjustments of AX.

use trapgate_x86::exception::Vector;
use trapgate_x86::insn::Operand;

use super::{Uop, mask, sign_extend, undefined};
use crate::fault::{Done, Exception};
use crate::memory::Word;
use crate::state::Vcpu;

impl Vcpu {
    /// Writes a double-width product or dividend to AX or (E/R)DX:(E/R)AX.
    #[inline(always)]
    fn set_wide<T: Word>(&mut self, wide: u128) {
        if T::SIZE == 1 {
            self.set_reg::<u16>(0, wide as u64);
        } else {
            self.set_reg::<T>(0, wide as u64);
            self.set_reg::<T>(2, (wide >> (8 * T::SIZE)) as u64);
        }
    }

    #[inline(always)]
    fn wide<T: Word>(&self) -> u128 {
        if T::SIZE == 1 {
            u128::from(self.regs[0] & 0xffff)
        } else {
            u128::from(self.regs[2] & mask::<T>()) << (8 * T::SIZE) | u128::from(self.regs[0] & mask::<T>())
        }
    }
}

/// MUL.
pub(super) fn mul<T: Word>(cpu: &mut Vcpu, u: &Uop) -> Done {
    let b = cpu.read_first::<T>(u)?;
    let product = u128::from(cpu.regs[0] & mask::<T>()) * u128::from(b);
    cpu.set_wide::<T>(product);
    let carry = product >> (8 * T::SIZE) != 0;
    undefined::after_multiply(&mut cpu.flags, sign_extend::<T>(product as u64));
    cpu.flags.set_cf_of(carry, carry);
    Ok(())
}

/// IMUL with one operand.
pub(super) fn imul1<T: Word>(cpu: &mut Vcpu, u: &Uop) -> Done {
    let b = i128::from(sign_extend::<T>(cpu.read_first::<T>(u)?) as i64);
    let product = i128::from(sign_extend::<T>(cpu.regs[0]) as i64) * b;
    cpu.set_wide::<T>(product as u128);
    signed_flags::<T>(cpu, product);
    Ok(())
}

fn signed_flags<T: Word>(cpu: &mut Vcpu, product: i128) {
    let low = sign_extend::<T>(product as u64) as i64;
    let overflow = i128::from(low) != product;
    undefined::after_multiply(&mut cpu.flags, low as u64);
    cpu.flags.set_cf_of(overflow, overflow);
}

/// IMUL with two or three operands.
pub(super) fn imul<T: Word>(cpu: &mut Vcpu, u: &Uop) -> Done {
    let b = sign_extend::<T>(cpu.read_second::<T>(u)?) as i64;
    let a = match u.insn.operands[2] {
        Operand::Imm { .. } => sign_extend::<T>(u.insn.imm) as i64,
        _ => sign_extend::<T>(cpu.get_a::<T>(u)) as i64,
    };
    let product = i128::from(a) * i128::from(b);
    cpu.set_a::<T>(u, product as u64);
    signed_flags::<T>(cpu, product);
    Ok(())
}

fn divide_error(cpu: &mut Vcpu) -> Done {
    cpu.raise(Exception::fault(Vector::De))
}

/// DIV. All flags are undefined.
pub(super) fn div<T: Word>(cpu: &mut Vcpu, u: &Uop) -> Done {
    let divisor = cpu.read_first::<T>(u)?;
    let dividend = cpu.wide::<T>();
    // The common case of a small dividend avoids the 128-bit division.
    let (quotient, remainder) = if divisor == 0 {
        return divide_error(cpu);
    } else if dividend >> 64 == 0 {
        (u128::from(dividend as u64 / divisor), dividend as u64 % divisor)
    } else {
        (dividend / u128::from(divisor), (dividend % u128::from(divisor)) as u64)
    };
    if quotient > u128::from(mask::<T>()) {
        return divide_error(cpu);
    }
    set_quotient::<T>(cpu, quotient as u64, remainder);
    Ok(())
}

/// IDIV.
pub(super) fn idiv<T: Word>(cpu: &mut Vcpu, u: &Uop) -> Done {
    let divisor = i128::from(sign_extend::<T>(cpu.read_first::<T>(u)?) as i64);
    let bits = if T::SIZE == 1 { 16 } else { 16 * T::SIZE as u32 };
    let dividend = (cpu.wide::<T>() as i128) << (128 - bits) >> (128 - bits);
    if divisor == 0 {
        return divide_error(cpu);
    }
    let (Some(quotient), Some(remainder)) = (dividend.checked_div(divisor), dividend.checked_rem(divisor))
    else {
        return divide_error(cpu);
    };
    if i128::from(sign_extend::<T>(quotient as u64) as i64) != quotient {
        return divide_error(cpu);
    }
    set_quotient::<T>(cpu, quotient as u64, remainder as u64);
    Ok(())
}

fn set_quotient<T: Word>(cpu: &mut Vcpu, quotient: u64, remainder: u64) {
    if T::SIZE == 1 {
        cpu.set_reg::<u16>(0, (remainder & 0xff) << 8 | quotient & 0xff);
    } else {
        cpu.set_reg::<T>(0, quotient);
        cpu.set_reg::<T>(2, remainder);
    }
    undefined::after_divide(&mut cpu.flags);
}

/// AAM: #DE for a base of 0.
pub(super) fn aam(cpu: &mut Vcpu, u: &Uop) -> Done {
    let base = u.insn.imm & 0xff;
    if base == 0 {
        return divide_error(cpu);
    }
    let al = cpu.regs[0] & 0xff;
    cpu.set_reg::<u16>(0, ((al / base) << 8) | (al % base));
    cpu.flags.set_logic(sign_extend::<u8>(al % base));
    Ok(())
}

/// AAD.
pub(super) fn aad(cpu: &mut Vcpu, u: &Uop) -> Done {
    let (al, ah) = (cpu.regs[0] & 0xff, cpu.regs[0] >> 8 & 0xff);
    let r = (al + ah * (u.insn.imm & 0xff)) & 0xff;
    cpu.set_reg::<u16>(0, r);
    cpu.flags.set_logic(sign_extend::<u8>(r));
    Ok(())
}

/// AAA and AAS.
pub(super) fn aaa<const ADD: bool>(cpu: &mut Vcpu, _: &Uop) -> Done {
    let adjust = cpu.regs[0] & 0xf > 9 || cpu.flags.af();
    let ax = cpu.regs[0] & 0xffff;
    let r = match (adjust, ADD) {
        (false, _) => ax,
        (true, true) => ax.wrapping_add(0x106),
        (true, false) => ax.wrapping_sub(0x106),
    };
    cpu.set_reg::<u16>(0, r & 0xff0f);
    cpu.flags.set_logic(sign_extend::<u8>(r & 0xf));
    cpu.flags.set_cf_of(adjust, false);
    cpu.flags.set_af(adjust);
    Ok(())
}

/// DAA and DAS.
pub(super) fn daa<const ADD: bool>(cpu: &mut Vcpu, _: &Uop) -> Done {
    let (old, cf) = (cpu.regs[0] & 0xff, cpu.flags.cf());
    let low = old & 0xf > 9 || cpu.flags.af();
    let high = old > 0x99 || cf;
    let step = |r: u64, n: u64| if ADD { r.wrapping_add(n) } else { r.wrapping_sub(n) };
    let mut r = old;
    let mut carry = false;
    if low {
        carry = cf || if ADD { r + 6 > 0xff } else { r < 6 };
        r = step(r, 6);
    }
    if high {
        r = step(r, 0x60);
        carry = true;
    }
    cpu.set_reg::<u8>(0, r & 0xff);
    cpu.flags.set_logic(sign_extend::<u8>(r));
    cpu.flags.set_cf_of(carry, false);
    cpu.flags.set_af(low);
    Ok(())
}
