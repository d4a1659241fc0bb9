//! Near branches, loops, software interrupts, HLT and flag instructions.

use trapgate_x86::exception::Vector;
use trapgate_x86::insn::{Bits, Operand, Seg};
use trapgate_x86::regs::{cr4, rflags};

use super::{Uop, by_width, mask};
use crate::fault::{Done, Exception, Kind};
use crate::memory::Word;
use crate::mmu::access::canonical;
use crate::state::{Shadow, Vcpu};

impl Vcpu {
    /// Checks a branch target: #GP(0) beyond the limit or not canonical.
    #[inline(always)]
    pub(crate) fn check_target(&mut self, target: u64) -> Done {
        let good = if self.mode.bits == Bits::B64 {
            canonical(target)
        } else {
            self.mode.flat || target <= u64::from(self.segment(Seg::Cs).limit)
        };
        if good { Ok(()) } else { self.protection() }
    }

    #[inline(always)]
    fn relative(&self, u: &Uop) -> u64 {
        let target = self.next_rip(u).wrapping_add(u.insn.imm);
        // Outside 64-bit mode a 16-bit operand size cuts the target to 16 bits.
        if u.insn.opsize == 2 { target & 0xffff } else { target & self.mode.rip_mask }
    }

    #[inline(always)]
    fn branch(&mut self, target: u64) -> Done {
        self.check_target(target)?;
        self.rip = target;
        Ok(())
    }
}

pub(super) fn jmp_rel(cpu: &mut Vcpu, u: &Uop) -> Done {
    let target = cpu.relative(u);
    cpu.branch(target)
}

pub(super) fn jcc(cpu: &mut Vcpu, u: &Uop) -> Done {
    if cpu.flags.condition(u.insn.cond) {
        let target = cpu.relative(u);
        return cpu.branch(target);
    }
    Ok(())
}

pub(super) fn jmp_indirect<T: Word>(cpu: &mut Vcpu, u: &Uop) -> Done {
    let target = cpu.read_first::<T>(u)?;
    cpu.branch(target)
}

pub(super) fn call_rel<T: Word>(cpu: &mut Vcpu, u: &Uop) -> Done {
    let target = cpu.relative(u);
    call::<T>(cpu, u, target)
}

pub(super) fn call_indirect<T: Word>(cpu: &mut Vcpu, u: &Uop) -> Done {
    let target = cpu.read_first::<T>(u)?;
    call::<T>(cpu, u, target)
}

/// In 64-bit mode processors write the return address before they look at the target, against the order of the manual's
/// pseudocode: a fault of the stack comes first.
fn call<T: Word>(cpu: &mut Vcpu, u: &Uop, target: u64) -> Done {
    if cpu.mode.bits != Bits::B64 {
        cpu.check_target(target)?;
    }
    let (next, before) = (cpu.next_rip(u), cpu.regs[4]);
    cpu.push::<T>(next)?;
    let done = cpu.branch(target);
    if done.is_err() {
        cpu.regs[4] = before;
    }
    done
}

/// RET, with the bytes to release as its immediate.
pub(super) fn ret<T: Word>(cpu: &mut Vcpu, u: &Uop) -> Done {
    let target = cpu.peek::<T>(0)? & mask::<T>();
    cpu.check_target(target)?;
    let release = if let Operand::Imm { .. } = u.insn.operands[0] { u.insn.imm } else { 0 };
    cpu.drop_stack(T::SIZE as u64 + release);
    cpu.rip = target;
    Ok(())
}

/// The count register at the address size, decremented.
fn decrement_count(cpu: &mut Vcpu, u: &Uop) -> u64 {
    by_width!(u.insn.addrsize, T => {
        let next = cpu.regs[1].wrapping_sub(1) & mask::<T>();
        cpu.set_reg::<T>(1, next);
        next
    })
}

/// LOOP, LOOPE, LOOPNE.
pub(super) fn loop_while(cpu: &mut Vcpu, u: &Uop) -> Done {
    use trapgate_x86::op::Op;
    let before = cpu.regs[1];
    let count = decrement_count(cpu, u);
    let also = match u.insn.op {
        Op::Loope => cpu.flags.zf(),
        Op::Loopne => !cpu.flags.zf(),
        _ => true,
    };
    if count != 0 && also {
        let target = cpu.relative(u);
        if let Err(stop) = cpu.branch(target) {
            cpu.regs[1] = before;
            return Err(stop);
        }
    }
    Ok(())
}

/// JCXZ, JECXZ, JRCXZ.
pub(super) fn jrcxz(cpu: &mut Vcpu, u: &Uop) -> Done {
    if cpu.regs[1] & u.address_mask == 0 {
        let target = cpu.relative(u);
        return cpu.branch(target);
    }
    Ok(())
}

/// RF is spent when the event is delivered; a fault on the way pushes it set again.
fn software(cpu: &mut Vcpu, vector: u8) -> Done {
    cpu.flags.remove(rflags::RF);
    cpu.raise(Exception { vector, error: None, address: 0, kind: Kind::Software })
}

/// INT n.
pub(super) fn int(cpu: &mut Vcpu, u: &Uop) -> Done {
    software(cpu, u.insn.imm as u8)
}

/// INT3.
pub(super) fn int3(cpu: &mut Vcpu, _: &Uop) -> Done {
    software(cpu, Vector::Bp as u8)
}

/// INT1: as a hardware #DB, without a check of the gate's DPL.
pub(super) fn int1(cpu: &mut Vcpu, _: &Uop) -> Done {
    cpu.flags.remove(rflags::RF);
    cpu.raise(Exception { kind: Kind::Trap, ..Exception::fault(Vector::Db) })
}

/// INTO.
pub(super) fn into(cpu: &mut Vcpu, _: &Uop) -> Done {
    if cpu.flags.of() { software(cpu, Vector::Of as u8) } else { Ok(()) }
}

/// BOUND: signed bounds. The upper one is read only if the lower one holds.
pub(super) fn bound<T: Word>(cpu: &mut Vcpu, u: &Uop) -> Done {
    let index = super::sign_extend::<T>(cpu.get_a::<T>(u)) as i64;
    let linear = cpu.linear(u, 2 * T::SIZE as u32, false)?;
    let seg = u.insn.mem.seg;
    let low = super::sign_extend::<T>(cpu.load::<T>(seg, linear)?.to_u64()) as i64;
    if index >= low {
        let high_at = linear.wrapping_add(T::SIZE as u64);
        let high = super::sign_extend::<T>(cpu.load::<T>(seg, high_at)?.to_u64()) as i64;
        if index <= high {
            return Ok(());
        }
    }
    cpu.raise(Exception::fault(Vector::Br))
}

/// HLT.
pub(super) fn hlt(cpu: &mut Vcpu, _: &Uop) -> Done {
    cpu.privileged()?;
    cpu.halted = true;
    cpu.recheck();
    Ok(())
}

impl Vcpu {
    /// Whether CLI and STI act on VIF instead: CR4.PVI at CPL 3 without I/O privilege (SDM vol. 3, 21.4).
    fn virtual_interrupt_flag(&self) -> bool {
        self.cpl == 3 && self.flags.iopl() < 3 && self.cr4 & cr4::PVI != 0
    }
}

/// CLI.
pub(super) fn cli(cpu: &mut Vcpu, _: &Uop) -> Done {
    if cpu.virtual_interrupt_flag() {
        cpu.flags.remove(rflags::VIF);
        return Ok(());
    }
    if cpu.cpl > cpu.flags.iopl() {
        return cpu.protection();
    }
    cpu.flags.remove(rflags::IF);
    Ok(())
}

/// STI: the next instruction runs before any maskable interrupt, if IF was clear (SDM vol. 2, STI).
pub(super) fn sti(cpu: &mut Vcpu, _: &Uop) -> Done {
    if cpu.virtual_interrupt_flag() && !cpu.flags.is_set(rflags::VIP) {
        cpu.flags.insert(rflags::VIF);
        return Ok(());
    }
    if cpu.cpl > cpu.flags.iopl() {
        return cpu.protection();
    }
    if !cpu.flags.is_set(rflags::IF) {
        cpu.flags.insert(rflags::IF);
        cpu.shadow = Shadow::Sti;
    }
    cpu.attention = true;
    Ok(())
}

pub(super) fn clc(cpu: &mut Vcpu, _: &Uop) -> Done {
    cpu.flags.set_cf(false);
    Ok(())
}
pub(super) fn stc(cpu: &mut Vcpu, _: &Uop) -> Done {
    cpu.flags.set_cf(true);
    Ok(())
}
pub(super) fn cmc(cpu: &mut Vcpu, _: &Uop) -> Done {
    let cf = cpu.flags.cf();
    cpu.flags.set_cf(!cf);
    Ok(())
}
pub(super) fn cld(cpu: &mut Vcpu, _: &Uop) -> Done {
    cpu.flags.remove(rflags::DF);
    Ok(())
}
pub(super) fn std(cpu: &mut Vcpu, _: &Uop) -> Done {
    cpu.flags.insert(rflags::DF);
    Ok(())
}
