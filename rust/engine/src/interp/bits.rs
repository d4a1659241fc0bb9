//! Bit tests, bit scans, POPCNT, BSWAP and CRC32's integer relatives.

use trapgate_x86::insn::{Operand, Prefixes};

use super::{Uop, mask, undefined};
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
        let signed = super::sign_extend::<T>(index) as i64;
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
    cpu.flags.set_arithmetic(if b == 0 { trapgate_x86::regs::rflags::ZF } else { 0 });
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
