//! Bit tests, bit scans, POPCNT, BSWAP, MOVBE and the bit manipulation of BMI1 and BMI2.

use trapgate_x86::insn::{Operand, Prefixes};
use trapgate_x86::regs::rflags;

use super::{Uop, mask, sign_extend, undefined};
use crate::fault::Done;
use crate::memory::Word;
use crate::state::Vcpu;

/// What happens to the tested bit.
pub(super) trait BitOp: 'static {
    const WRITES: bool = true;
    fn apply(value: u64, bit: u64) -> u64;
}
pub(super) struct Keep;
pub(super) struct Set;
pub(super) struct Reset;
pub(super) struct Complement;

impl BitOp for Keep {
    const WRITES: bool = false;
    #[inline(always)]
    fn apply(value: u64, _: u64) -> u64 {
        value
    }
}
impl BitOp for Set {
    #[inline(always)]
    fn apply(value: u64, bit: u64) -> u64 {
        value | bit
    }
}
impl BitOp for Reset {
    #[inline(always)]
    fn apply(value: u64, bit: u64) -> u64 {
        value & !bit
    }
}
impl BitOp for Complement {
    #[inline(always)]
    fn apply(value: u64, bit: u64) -> u64 {
        value ^ bit
    }
}

/// BT, BTS, BTR, BTC. With a register offset the memory form reaches beyond its operand (SDM vol. 2, BT).
pub(super) fn bit_test<T: Word, O: BitOp>(cpu: &mut Vcpu, u: &Uop) -> Done {
    let bits = 8 * T::SIZE as u64;
    let immediate = matches!(u.insn.operands[1], Operand::Imm { .. });
    let index = if immediate { u.insn.imm } else { cpu.get_b::<T>(u) };
    let bit = 1u64 << (index & (bits - 1));
    let Operand::Mem { .. } = u.insn.operands[0] else {
        let a = cpu.get_a::<T>(u);
        cpu.flags.set_cf(a & bit != 0);
        if O::WRITES {
            cpu.set_a::<T>(u, O::apply(a, bit));
        }
        return Ok(());
    };
    let mut offset = cpu.ea(u);
    if !immediate {
        let signed = sign_extend::<T>(index) as i64;
        let step = (signed >> bits.trailing_zeros()).wrapping_mul(T::SIZE as i64);
        offset = offset.wrapping_add(step as u64) & u.address_mask;
    }
    let seg = u.insn.mem.seg;
    let linear = cpu.linear_in(seg, offset, T::SIZE as u32, O::WRITES)?;
    if !O::WRITES {
        let a = cpu.load::<T>(seg, linear)?.to_u64();
        cpu.flags.set_cf(a & bit != 0);
        return Ok(());
    }
    cpu.modify::<T>(seg, linear, u.insn.prefixes.contains(Prefixes::LOCK), |flags, a| {
        let a = a.to_u64();
        flags.set_cf(a & bit != 0);
        T::from_u64(O::apply(a, bit))
    })
}

/// BSF (and TZCNT where it is not offered): the destination keeps its value for a source of 0, as on silicon.
pub(super) fn bsf<T: Word>(cpu: &mut Vcpu, u: &Uop) -> Done {
    let b = cpu.read_second::<T>(u)?;
    if b != 0 {
        cpu.set_a::<T>(u, u64::from(b.trailing_zeros()));
    }
    cpu.flags.set_zf_only(b == 0);
    undefined::after_scan(&mut cpu.flags, if b == 0 { 0 } else { u64::from(b.trailing_zeros()) });
    Ok(())
}

/// BSR.
pub(super) fn bsr<T: Word>(cpu: &mut Vcpu, u: &Uop) -> Done {
    let b = cpu.read_second::<T>(u)?;
    if b != 0 {
        cpu.set_a::<T>(u, u64::from(63 - b.leading_zeros()));
    }
    cpu.flags.set_zf_only(b == 0);
    undefined::after_scan(&mut cpu.flags, if b == 0 { 0 } else { u64::from(63 - b.leading_zeros()) });
    Ok(())
}

/// POPCNT: clears all flags but ZF.
pub(super) fn popcnt<T: Word>(cpu: &mut Vcpu, u: &Uop) -> Done {
    let b = cpu.read_second::<T>(u)?;
    cpu.set_a::<T>(u, u64::from(b.count_ones()));
    cpu.flags.set_arithmetic(if b == 0 { rflags::ZF } else { 0 });
    Ok(())
}

/// TZCNT.
pub(super) fn tzcnt<T: Word>(cpu: &mut Vcpu, u: &Uop) -> Done {
    let b = cpu.read_second::<T>(u)?;
    let r = u64::from(b.trailing_zeros()).min(8 * T::SIZE as u64);
    cpu.set_a::<T>(u, r);
    cpu.flags.set_cf(b == 0);
    cpu.flags.set_zf_only(r == 0);
    Ok(())
}

/// LZCNT.
pub(super) fn lzcnt<T: Word>(cpu: &mut Vcpu, u: &Uop) -> Done {
    let b = cpu.read_second::<T>(u)?;
    let r = u64::from(b.leading_zeros()) - (64 - 8 * T::SIZE as u64);
    cpu.set_a::<T>(u, r);
    cpu.flags.set_cf(b == 0);
    cpu.flags.set_zf_only(r == 0);
    Ok(())
}

/// BSWAP; the 16-bit form, undefined by the manual, clears the word as processors do.
pub(super) fn bswap<T: Word>(cpu: &mut Vcpu, u: &Uop) -> Done {
    let a = cpu.get_a::<T>(u);
    let r = match T::SIZE {
        4 => u64::from((a as u32).swap_bytes()),
        8 => a.swap_bytes(),
        _ => 0,
    };
    cpu.set_a::<T>(u, r & mask::<T>());
    Ok(())
}

/// MOVBE: a byte-swapped load or store.
pub(super) fn movbe<T: Word>(cpu: &mut Vcpu, u: &Uop) -> Done {
    let swap = |v: u64| v.swap_bytes() >> (64 - 8 * T::SIZE as u32);
    if let Operand::Mem { .. } = u.insn.operands[0] {
        let b = cpu.get_b::<T>(u);
        return cpu.store_operand::<T>(u, swap(b));
    }
    let b = cpu.load_operand::<T>(u)?;
    cpu.set_a::<T>(u, swap(b));
    Ok(())
}

impl Vcpu {
    /// The third operand, a register, zero-extended.
    #[inline(always)]
    fn get_c<T: Word>(&self, u: &Uop) -> u64 {
        let Operand::Gpr { reg, .. } = u.insn.operands[2] else { return 0 };
        self.regs[usize::from(reg & 15)] & mask::<T>()
    }

    /// The third operand, register or memory.
    #[inline(always)]
    fn read_third<T: Word>(&mut self, u: &Uop) -> Done<u64> {
        match u.insn.operands[2] {
            Operand::Mem { .. } => self.load_operand::<T>(u),
            _ => Ok(self.get_c::<T>(u)),
        }
    }
}

/// ANDN: the second operand's complement and the third.
pub(super) fn andn<T: Word>(cpu: &mut Vcpu, u: &Uop) -> Done {
    let r = !cpu.get_b::<T>(u) & cpu.read_third::<T>(u)?;
    cpu.set_a::<T>(u, r);
    cpu.flags.set_logic(sign_extend::<T>(r));
    Ok(())
}

/// What BLSR, BLSMSK and BLSI make of their source; CF says whether the source was zero, for BLSI that it was not.
pub(super) trait LowestBit: 'static {
    const CF_OF_ZERO: bool = true;
    fn apply(value: u64) -> u64;
}
pub(super) struct Blsr;
pub(super) struct Blsmsk;
pub(super) struct Blsi;

impl LowestBit for Blsr {
    #[inline(always)]
    fn apply(value: u64) -> u64 {
        value & value.wrapping_sub(1)
    }
}
impl LowestBit for Blsmsk {
    #[inline(always)]
    fn apply(value: u64) -> u64 {
        value ^ value.wrapping_sub(1)
    }
}
impl LowestBit for Blsi {
    const CF_OF_ZERO: bool = false;
    #[inline(always)]
    fn apply(value: u64) -> u64 {
        value & value.wrapping_neg()
    }
}

pub(super) fn lowest_bit<T: Word, O: LowestBit>(cpu: &mut Vcpu, u: &Uop) -> Done {
    let b = cpu.read_second::<T>(u)?;
    let r = O::apply(b) & mask::<T>();
    cpu.set_a::<T>(u, r);
    cpu.flags.set_logic(sign_extend::<T>(r));
    cpu.flags.set_cf_of((b == 0) == O::CF_OF_ZERO, false);
    Ok(())
}

/// BZHI: clears the bits from an index on; CF says that the index lies beyond the operand.
pub(super) fn bzhi<T: Word>(cpu: &mut Vcpu, u: &Uop) -> Done {
    let b = cpu.read_second::<T>(u)?;
    let (index, bits) = (cpu.get_c::<T>(u) & 0xff, 8 * T::SIZE as u64);
    let r = if index < bits { b & ((1 << index) - 1) } else { b };
    cpu.set_a::<T>(u, r);
    cpu.flags.set_logic(sign_extend::<T>(r));
    cpu.flags.set_cf_of(index >= bits, false);
    Ok(())
}

/// BEXTR: as many bits from as many on as bytes 1 and 0 of the third operand say. Of the flags only ZF, CF and OF are defined.
pub(super) fn bextr<T: Word>(cpu: &mut Vcpu, u: &Uop) -> Done {
    let b = cpu.read_second::<T>(u)?;
    let control = cpu.get_c::<T>(u);
    let (start, len) = (control & 0xff, control >> 8 & 0xff);
    let shifted = if start < 64 { b >> start } else { 0 };
    let r = if len < 64 { shifted & ((1 << len) - 1) } else { shifted };
    cpu.set_a::<T>(u, r);
    cpu.flags.set_arithmetic(if r == 0 { rflags::ZF } else { 0 });
    Ok(())
}

/// Places the low bits of the second operand where the third, the mask, has ones.
pub(super) fn pdep<T: Word>(cpu: &mut Vcpu, u: &Uop) -> Done {
    let mut source = cpu.get_b::<T>(u);
    let mut left = cpu.read_third::<T>(u)?;
    let mut r = 0;
    while left != 0 {
        let bit = left & left.wrapping_neg();
        if source & 1 != 0 {
            r |= bit;
        }
        source >>= 1;
        left ^= bit;
    }
    cpu.set_a::<T>(u, r);
    Ok(())
}

/// Collects the bits of the second operand where the third, the mask, has ones.
pub(super) fn pext<T: Word>(cpu: &mut Vcpu, u: &Uop) -> Done {
    let source = cpu.get_b::<T>(u);
    let mut left = cpu.read_third::<T>(u)?;
    let (mut r, mut at) = (0, 0);
    while left != 0 {
        let bit = left & left.wrapping_neg();
        r |= u64::from(source & bit != 0) << at;
        at += 1;
        left ^= bit;
    }
    cpu.set_a::<T>(u, r);
    Ok(())
}

/// MULX: rDX times the third operand; the low half is written first, so that the high half wins where both name one register.
pub(super) fn mulx<T: Word>(cpu: &mut Vcpu, u: &Uop) -> Done {
    let product = u128::from(cpu.regs[2] & mask::<T>()) * u128::from(cpu.read_third::<T>(u)?);
    cpu.set_b::<T>(u, product as u64 & mask::<T>());
    cpu.set_a::<T>(u, (product >> (8 * T::SIZE)) as u64);
    Ok(())
}

/// The shifts of BMI2, which leave the flags alone.
pub(super) trait Shift: 'static {
    fn apply<T: Word>(value: u64, count: u32) -> u64;
}
pub(super) struct Left;
pub(super) struct Right;
pub(super) struct Arithmetic;
pub(super) struct Rotate;

impl Shift for Left {
    #[inline(always)]
    fn apply<T: Word>(value: u64, count: u32) -> u64 {
        value << count & mask::<T>()
    }
}
impl Shift for Right {
    #[inline(always)]
    fn apply<T: Word>(value: u64, count: u32) -> u64 {
        value >> count
    }
}
impl Shift for Arithmetic {
    #[inline(always)]
    fn apply<T: Word>(value: u64, count: u32) -> u64 {
        (sign_extend::<T>(value) as i64 >> count) as u64 & mask::<T>()
    }
}
impl Shift for Rotate {
    #[inline(always)]
    fn apply<T: Word>(value: u64, count: u32) -> u64 {
        if T::SIZE == 8 { value.rotate_right(count) } else { (value as u32).rotate_right(count).into() }
    }
}

/// SHLX, SHRX, SARX and RORX.
pub(super) fn shift<T: Word, S: Shift>(cpu: &mut Vcpu, u: &Uop) -> Done {
    let b = cpu.read_second::<T>(u)?;
    let count = if let Operand::Imm { .. } = u.insn.operands[2] { u.insn.imm } else { cpu.get_c::<T>(u) };
    cpu.set_a::<T>(u, S::apply::<T>(b, count as u32 & (8 * T::SIZE as u32 - 1)));
    Ok(())
}
