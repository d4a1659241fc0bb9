//! Moves: MOV, MOVZX, MOVSX, LEA, XCHG, CMOVcc, SETcc, XLAT, sign conversions, LAHF, SAHF.

use trapgate_x86::insn::{Insn, Operand, Seg};

use super::{Handler, Uop, by_width, mask, sign_extend};
use crate::fault::Done;
use crate::memory::Word;
use crate::state::Vcpu;

fn mov_rr<T: Word>(cpu: &mut Vcpu, u: &Uop) -> Done {
    let b = cpu.get_b::<T>(u);
    cpu.set_a::<T>(u, b);
    Ok(())
}
fn mov_ri<T: Word>(cpu: &mut Vcpu, u: &Uop) -> Done {
    cpu.set_a::<T>(u, u.insn.imm);
    Ok(())
}
fn mov_rm<T: Word>(cpu: &mut Vcpu, u: &Uop) -> Done {
    let b = cpu.load_operand::<T>(u)?;
    cpu.set_a::<T>(u, b);
    Ok(())
}
fn mov_mr<T: Word>(cpu: &mut Vcpu, u: &Uop) -> Done {
    let b = cpu.get_b::<T>(u);
    cpu.store_operand::<T>(u, b)
}
fn mov_mi<T: Word>(cpu: &mut Vcpu, u: &Uop) -> Done {
    cpu.store_operand::<T>(u, u.insn.imm)
}

/// MOV between general registers, memory and immediates.
pub(super) fn mov(insn: &Insn) -> Handler {
    by_width!(insn.opsize, T => match (insn.operands[0], insn.operands[1]) {
        (Operand::Mem { .. }, Operand::Imm { .. }) => mov_mi::<T>,
        (Operand::Mem { .. }, _) => mov_mr::<T>,
        (_, Operand::Mem { .. }) => mov_rm::<T>,
        (_, Operand::Imm { .. }) => mov_ri::<T>,
        _ => mov_rr::<T>,
    })
}

/// MOV from a segment register: a register destination takes the operand size, memory always 16 bits.
pub(super) fn mov_from_seg(cpu: &mut Vcpu, u: &Uop) -> Done {
    let Operand::Seg(seg) = u.insn.operands[1] else { return cpu.undefined() };
    let selector = u64::from(cpu.segment(seg).selector);
    match u.insn.operands[0] {
        Operand::Mem { .. } => cpu.store_operand::<u16>(u, selector),
        Operand::Gpr { size: 2, .. } => {
            cpu.set_a::<u16>(u, selector);
            Ok(())
        }
        _ => {
            cpu.set_a::<u64>(u, selector);
            Ok(())
        }
    }
}

/// MOV to a segment register.
pub(super) fn mov_to_seg(cpu: &mut Vcpu, u: &Uop) -> Done {
    let Operand::Seg(seg) = u.insn.operands[0] else { return cpu.undefined() };
    if seg == Seg::Cs {
        return cpu.undefined();
    }
    let selector = match u.insn.operands[1] {
        Operand::Mem { .. } => cpu.load_operand::<u16>(u)?,
        _ => cpu.get_b::<u16>(u),
    };
    cpu.load_segment(seg, selector as u16)?;
    cpu.after_segment_load(seg);
    Ok(())
}

fn extend_reg<T: Word, S: Word, const SIGNED: bool>(cpu: &mut Vcpu, u: &Uop) -> Done {
    let b = cpu.get_b::<S>(u);
    cpu.set_a::<T>(u, if SIGNED { sign_extend::<S>(b) } else { b });
    Ok(())
}
fn extend_mem<T: Word, S: Word, const SIGNED: bool>(cpu: &mut Vcpu, u: &Uop) -> Done {
    let b = cpu.load_operand::<S>(u)?;
    cpu.set_a::<T>(u, if SIGNED { sign_extend::<S>(b) } else { b });
    Ok(())
}

/// MOVZX, MOVSX, MOVSXD.
pub(super) fn extend<const SIGNED: bool>(insn: &Insn) -> Handler {
    let (memory, source) = match insn.operands[1] {
        Operand::Mem { size } => (true, size as u8),
        Operand::Gpr { size, .. } => (false, size),
        _ => (false, 1),
    };
    by_width!(insn.opsize, T => by_width!(source, S => if memory {
        extend_mem::<T, S, SIGNED>
    } else {
        extend_reg::<T, S, SIGNED>
    }))
}

/// LEA: the effective address, no segment.
pub(super) fn lea<T: Word>(cpu: &mut Vcpu, u: &Uop) -> Done {
    let ea = cpu.ea(u);
    cpu.set_a::<T>(u, ea & mask::<T>());
    Ok(())
}

/// XCHG: with memory it is locked, prefix or not (SDM vol. 3, 9.1.2.1).
pub(super) fn xchg<T: Word>(cpu: &mut Vcpu, u: &Uop) -> Done {
    match (u.insn.operands[0], u.insn.operands[1]) {
        (Operand::Mem { .. }, _) => {
            let b = cpu.get_b::<T>(u);
            let old = exchange::<T>(cpu, u, b)?;
            cpu.set_b::<T>(u, old);
        }
        (_, Operand::Mem { .. }) => {
            let a = cpu.get_a::<T>(u);
            let old = exchange::<T>(cpu, u, a)?;
            cpu.set_a::<T>(u, old);
        }
        _ => {
            let (a, b) = (cpu.get_a::<T>(u), cpu.get_b::<T>(u));
            cpu.set_a::<T>(u, b);
            cpu.set_b::<T>(u, a);
        }
    }
    Ok(())
}

fn exchange<T: Word>(cpu: &mut Vcpu, u: &Uop, new: u64) -> Done<u64> {
    let linear = cpu.linear(u, T::SIZE as u32, true)?;
    let seen = std::cell::Cell::new(0);
    cpu.modify::<T>(u.insn.mem.seg, linear, true, |_, old| {
        seen.set(old.to_u64());
        T::from_u64(new)
    })?;
    Ok(seen.get())
}

/// CMOVcc: memory is read, and the upper half of a 32-bit destination cleared, whether or not the condition holds.
pub(super) fn cmov<T: Word>(cpu: &mut Vcpu, u: &Uop) -> Done {
    let b = cpu.read_second::<T>(u)?;
    let r = if cpu.flags.condition(u.insn.cond) { b } else { cpu.get_a::<T>(u) };
    cpu.set_a::<T>(u, r);
    Ok(())
}

/// SETcc.
pub(super) fn setcc(cpu: &mut Vcpu, u: &Uop) -> Done {
    let r = u64::from(cpu.flags.condition(u.insn.cond));
    cpu.write_first::<u8>(u, r)
}

/// XLAT.
pub(super) fn xlat(cpu: &mut Vcpu, u: &Uop) -> Done {
    let offset = cpu.regs[3].wrapping_add(cpu.regs[0] & 0xff) & u.address_mask;
    let seg = u.insn.mem.seg;
    let linear = cpu.linear_in(seg, offset, 1, false)?;
    let value: u8 = cpu.load(seg, linear)?;
    cpu.set_reg::<u8>(0, u64::from(value));
    Ok(())
}

/// CBW, CWDE, CDQE.
pub(super) fn cbw(cpu: &mut Vcpu, u: &Uop) -> Done {
    let a = cpu.regs[0];
    match u.insn.opsize {
        2 => cpu.set_reg::<u16>(0, sign_extend::<u8>(a)),
        4 => cpu.set_reg::<u32>(0, sign_extend::<u16>(a)),
        _ => cpu.set_reg::<u64>(0, sign_extend::<u32>(a)),
    }
    Ok(())
}

/// CWD, CDQ, CQO.
pub(super) fn cwd(cpu: &mut Vcpu, u: &Uop) -> Done {
    let a = cpu.regs[0];
    match u.insn.opsize {
        2 => cpu.set_reg::<u16>(2, (sign_extend::<u16>(a) as i64 >> 63) as u64),
        4 => cpu.set_reg::<u32>(2, (sign_extend::<u32>(a) as i64 >> 63) as u64),
        _ => cpu.set_reg::<u64>(2, (a as i64 >> 63) as u64),
    }
    Ok(())
}

/// LAHF.
pub(super) fn lahf(cpu: &mut Vcpu, _: &Uop) -> Done {
    let low = cpu.rflags() & 0xff;
    cpu.regs[0] = cpu.regs[0] & !0xff00 | low << 8;
    Ok(())
}

/// SAHF: OF is kept.
pub(super) fn sahf(cpu: &mut Vcpu, _: &Uop) -> Done {
    use trapgate_x86::regs::rflags;
    let of = if cpu.flags.of() { rflags::OF } else { 0 };
    let ah = cpu.regs[0] >> 8 & 0xff;
    cpu.flags.set_arithmetic(ah & (rflags::STATUS & 0xff) | of);
    Ok(())
}

/// SALC (undocumented, 16- and 32-bit code).
pub(super) fn salc(cpu: &mut Vcpu, _: &Uop) -> Done {
    let value = if cpu.flags.cf() { 0xff } else { 0 };
    cpu.set_reg::<u8>(0, value);
    Ok(())
}

/// NOP and hints.
pub(super) fn nop(_: &mut Vcpu, _: &Uop) -> Done {
    Ok(())
}
