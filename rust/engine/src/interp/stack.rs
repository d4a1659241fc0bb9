//! The stack: PUSH, POP and their kin, ENTER, LEAVE.

use trapgate_x86::insn::{Bits, Operand, Seg};
use trapgate_x86::regs::rflags;

use super::Uop;
use crate::fault::Done;
use crate::memory::Word;
use crate::state::Vcpu;

const RSP: usize = 4;
const RBP: usize = 5;

impl Vcpu {
    /// What the stack pointer wraps at (SDM vol. 1, 6.2.3).
    #[inline(always)]
    pub(crate) fn stack_mask(&self) -> u64 {
        if self.mode.bits == Bits::B64 {
            u64::MAX
        } else if self.segment(Seg::Ss).big() {
            u64::from(u32::MAX)
        } else {
            0xffff
        }
    }

    /// Sets the stack pointer's part that the stack's width covers.
    #[inline(always)]
    pub(crate) fn set_sp(&mut self, sp: u64) {
        let mask = self.stack_mask();
        self.regs[RSP] = if mask == 0xffff { self.regs[RSP] & !mask | sp & mask } else { sp & mask };
    }

    #[inline(always)]
    pub(crate) fn push<T: Word>(&mut self, value: u64) -> Done {
        let sp = self.regs[RSP].wrapping_sub(T::SIZE as u64) & self.stack_mask();
        let linear = self.linear_in(Seg::Ss, sp, T::SIZE as u32, true)?;
        self.store::<T>(Seg::Ss, linear, T::from_u64(value))?;
        self.set_sp(sp);
        Ok(())
    }

    /// Value `depth` bytes above the stack pointer, which stays.
    #[inline(always)]
    pub(crate) fn peek<T: Word>(&mut self, depth: u64) -> Done<u64> {
        let sp = self.regs[RSP].wrapping_add(depth) & self.stack_mask();
        let linear = self.linear_in(Seg::Ss, sp, T::SIZE as u32, false)?;
        Ok(self.load::<T>(Seg::Ss, linear)?.to_u64())
    }

    #[inline(always)]
    pub(crate) fn pop<T: Word>(&mut self) -> Done<u64> {
        let value = self.peek::<T>(0)?;
        self.drop_stack(T::SIZE as u64);
        Ok(value)
    }

    #[inline(always)]
    pub(crate) fn drop_stack(&mut self, bytes: u64) {
        self.set_sp(self.regs[RSP].wrapping_add(bytes));
    }
}

/// PUSH of a general register.
pub(super) fn push_reg<T: Word>(cpu: &mut Vcpu, u: &Uop) -> Done {
    let value = cpu.regs[usize::from(u.a & 15)];
    cpu.push::<T>(value)
}

/// PUSH of anything else.
pub(super) fn push<T: Word>(cpu: &mut Vcpu, u: &Uop) -> Done {
    let value = match u.insn.operands[0] {
        Operand::Imm { .. } => u.insn.imm,
        Operand::Mem { .. } => cpu.load_operand::<T>(u)?,
        Operand::Seg(seg) => return push_segment::<T>(cpu, seg),
        _ => cpu.get_a::<T>(u),
    };
    cpu.push::<T>(value)
}

/// A segment register takes a slot of the operand size, but only its 16 bits are written, as current processors do.
fn push_segment<T: Word>(cpu: &mut Vcpu, seg: Seg) -> Done {
    let selector = u64::from(cpu.segment(seg).selector);
    if T::SIZE == 4 {
        let sp = cpu.regs[RSP].wrapping_sub(4) & cpu.stack_mask();
        let linear = cpu.linear_in(Seg::Ss, sp, 4, true)?;
        cpu.store::<u16>(Seg::Ss, linear, selector as u16)?;
        cpu.set_sp(sp);
        return Ok(());
    }
    cpu.push::<T>(selector)
}

/// POP to a general register.
pub(super) fn pop_reg<T: Word>(cpu: &mut Vcpu, u: &Uop) -> Done {
    let value = cpu.pop::<T>()?;
    cpu.set_a::<T>(u, value);
    Ok(())
}

/// POP to memory or a segment register. An address based on RSP is computed after the increment (SDM vol. 2, POP).
pub(super) fn pop<T: Word>(cpu: &mut Vcpu, u: &Uop) -> Done {
    let value = cpu.peek::<T>(0)?;
    let before = cpu.regs[RSP];
    // By the width of the stack that the value came from, which POP SS may change.
    cpu.drop_stack(T::SIZE as u64);
    if let Operand::Seg(seg) = u.insn.operands[0] {
        if let Err(stop) = cpu.load_segment(seg, value as u16) {
            cpu.regs[RSP] = before;
            return Err(stop);
        }
        cpu.after_segment_load(seg);
        return Ok(());
    }
    let done = cpu.write_first::<T>(u, value);
    if done.is_err() {
        cpu.regs[RSP] = before;
    }
    done
}

/// PUSHA: the value of (E)SP pushed is that from before.
pub(super) fn pusha<T: Word>(cpu: &mut Vcpu, _: &Uop) -> Done {
    let before = cpu.regs[RSP];
    for reg in 0..8 {
        let value = if reg == RSP { before } else { cpu.regs[reg] };
        if let Err(stop) = cpu.push::<T>(value) {
            cpu.regs[RSP] = before;
            return Err(stop);
        }
    }
    Ok(())
}

/// POPA: the slot of (E)SP is skipped.
pub(super) fn popa<T: Word>(cpu: &mut Vcpu, _: &Uop) -> Done {
    let mut values = [0; 8];
    for (i, value) in values.iter_mut().enumerate() {
        *value = cpu.peek::<T>((7 - i) as u64 * T::SIZE as u64)?;
    }
    for (reg, value) in values.into_iter().enumerate().filter(|(reg, _)| *reg != RSP) {
        cpu.set_reg::<T>(reg as u8, value);
    }
    cpu.drop_stack(8 * T::SIZE as u64);
    Ok(())
}

/// PUSHF: VM and RF are clear in the image.
pub(super) fn pushf<T: Word>(cpu: &mut Vcpu, _: &Uop) -> Done {
    let value = cpu.rflags() & !(rflags::VM | rflags::RF);
    cpu.push::<T>(value)
}

/// POPF: which bits change depends on CPL and IOPL (SDM vol. 2, table 4-16).
pub(super) fn popf<T: Word>(cpu: &mut Vcpu, _: &Uop) -> Done {
    let value = cpu.pop::<T>()?;
    let mut change = rflags::STATUS | rflags::TF | rflags::DF | rflags::NT;
    if T::SIZE > 2 {
        change |= rflags::AC | rflags::ID;
    }
    if cpu.cpl <= cpu.flags.iopl() {
        change |= rflags::IF;
    }
    if cpu.cpl == 0 {
        change |= rflags::IOPL;
    }
    // RF is cleared; VIF and VIP are cleared at CPL 0 with a 32- or 64-bit operand only, where the image has them 0.
    let next = cpu.rflags() & !(change | rflags::RF) | value & change;
    cpu.set_rflags(next);
    Ok(())
}

/// ENTER (SDM vol. 2): the nesting level is taken modulo 32.
pub(super) fn enter<T: Word>(cpu: &mut Vcpu, u: &Uop) -> Done {
    let (size, level) = (u.insn.imm & 0xffff, u.insn.imm2 & 31);
    let (rsp, rbp) = (cpu.regs[RSP], cpu.regs[RBP]);
    let done = enter_frame::<T>(cpu, size, level);
    if done.is_err() {
        cpu.regs[RSP] = rsp;
        cpu.regs[RBP] = rbp;
    }
    done
}

fn enter_frame<T: Word>(cpu: &mut Vcpu, size: u64, level: u16) -> Done {
    cpu.push::<T>(cpu.regs[RBP])?;
    let frame = cpu.regs[RSP];
    let mut display = cpu.regs[RBP];
    for _ in 1..level {
        display = display.wrapping_sub(T::SIZE as u64) & cpu.stack_mask();
        let linear = cpu.linear_in(Seg::Ss, display, T::SIZE as u32, false)?;
        let value = cpu.load::<T>(Seg::Ss, linear)?.to_u64();
        cpu.push::<T>(value)?;
    }
    if level > 0 {
        cpu.push::<T>(frame)?;
    }
    let sp = cpu.regs[RSP].wrapping_sub(size) & cpu.stack_mask();
    // The new top must be writable, as the manual asks for a page-fault check of it.
    let linear = cpu.linear_in(Seg::Ss, sp, T::SIZE as u32, true)?;
    cpu.check_range(Seg::Ss, linear, T::SIZE as u64, crate::mmu::access::Intent::Write)?;
    cpu.set_sp(sp);
    cpu.set_reg::<T>(RBP as u8, frame);
    Ok(())
}

/// LEAVE.
pub(super) fn leave<T: Word>(cpu: &mut Vcpu, _: &Uop) -> Done {
    let sp = cpu.regs[RBP] & cpu.stack_mask();
    let linear = cpu.linear_in(Seg::Ss, sp, T::SIZE as u32, false)?;
    let value = cpu.load::<T>(Seg::Ss, linear)?.to_u64();
    cpu.set_sp(sp.wrapping_add(T::SIZE as u64));
    cpu.set_reg::<T>(RBP as u8, value);
    Ok(())
}
