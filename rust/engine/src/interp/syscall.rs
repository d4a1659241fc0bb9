//! SYSCALL, SYSRET, SYSENTER, SYSEXIT, SWAPGS (SDM vol. 2).

use trapgate_x86::insn::{Bits, Seg};
use trapgate_x86::regs::{dr6, efer, rflags};

use super::Uop;
use crate::exit::Exit;
use crate::fault::{Done, Stop};
use crate::mmu::access::canonical;
use crate::monitor::Monitor;
use crate::state::{Segment, Vcpu};

/// Access words of the flat segments that these instructions load without reading a descriptor.
const CODE64: u16 = 0xa09b;
const CODE32: u16 = 0xc09b;
const DATA: u16 = 0xc093;
const RING3: u16 = 3 << 5;

impl Vcpu {
    fn flat_pair(&mut self, cs: u16, ss: u16, code: u16, cpl: u8) {
        let dpl = if cpl == 3 { RING3 } else { 0 };
        let rpl = u16::from(cpl);
        self.seg[Seg::Ss as usize] = Segment::flat(ss & !3 | rpl, DATA | dpl);
        self.cpl = cpl;
        self.seg[Seg::Cs as usize] = Segment::flat(cs & !3 | rpl, code | dpl);
        self.update_mode();
        self.attention = true;
    }

    /// Lets the monitor of a para-virtual guest do what the instruction asks for.
    fn call_monitor<T: Default>(
        &mut self,
        work: impl FnOnce(&mut dyn Monitor, &mut Vcpu) -> Result<T, Exit>,
    ) -> Done<T> {
        match self.with_monitor(work) {
            Some(Ok(value)) => Ok(value),
            Some(Err(exit)) => {
                self.exit = Some(exit);
                Err(Stop::Exit)
            }
            None => Ok(T::default()),
        }
    }

    /// Whether SYSCALL and SYSRET do what the manual says of 64-bit mode, and nobody else sees to them.
    pub(crate) fn native_system_calls(&self) -> bool {
        !self.is_para() && self.efer & efer::SCE != 0
    }

    /// CS and SS that SYSCALL loads, and those that SYSRET to 64-bit code does.
    pub(crate) fn call_selectors(&self) -> [u16; 4] {
        let (call, back) = ((self.star >> 32) as u16, (self.star >> 48) as u16);
        let inner = [call, call.wrapping_add(8)].map(|selector| selector & !3);
        let outer = [back.wrapping_add(16), back.wrapping_add(8)].map(|selector| selector | 3);
        [inner[0], inner[1], outer[0], outer[1]]
    }

    /// Loads what the translator's SYSCALL or SYSRET has loaded; they have seen to all that would ask for attention.
    pub(crate) fn load_call_segments(&mut self, user: bool) {
        let attention = self.attention;
        let [inner_cs, inner_ss, cs, ss] = self.call_selectors();
        if user {
            self.flat_pair(cs, ss, CODE64, 3);
        } else {
            self.flat_pair(inner_cs, inner_ss, CODE64, 0);
        }
        self.attention = attention;
    }
}

/// SYSCALL: only in 64-bit mode on Intel processors.
pub(super) fn syscall(cpu: &mut Vcpu, u: &Uop) -> Done {
    if cpu.mode.bits != Bits::B64 || cpu.efer & efer::SCE == 0 {
        return cpu.undefined();
    }
    if cpu.is_para() {
        let kernel = cpu.kernel_mode();
        let left = &mut cpu.departures;
        *(if kernel { &mut left.hypercalls } else { &mut left.system_calls }) += 1;
        return cpu.call_monitor(|monitor, cpu| monitor.system_call(cpu));
    }
    cpu.departures.system_calls += 1;
    let next = cpu.next_rip(u);
    cpu.regs[1] = next;
    cpu.regs[11] = cpu.rflags() & !rflags::RF;
    let selector = (cpu.star >> 32) as u16;
    cpu.flat_pair(selector, selector.wrapping_add(8), CODE64, 0);
    let flags = cpu.rflags() & !cpu.fmask & !rflags::RF;
    cpu.set_rflags(flags);
    cpu.rip = cpu.lstar;
    Ok(())
}

/// SYSRET: to 64-bit code with REX.W, else to compatibility mode.
pub(super) fn sysret(cpu: &mut Vcpu, u: &Uop) -> Done {
    if cpu.mode.bits != Bits::B64 || cpu.efer & efer::SCE == 0 {
        return cpu.undefined();
    }
    cpu.require_cpl0()?;
    cpu.departures.returns += 1;
    let to_64 = u.insn.opsize == 8;
    // Intel processors check RCX here, with the privilege of the kernel.
    if to_64 && !canonical(cpu.regs[1]) {
        return cpu.protection();
    }
    let selector = (cpu.star >> 48) as u16;
    let (target, flags) = (cpu.regs[1], cpu.regs[11]);
    if to_64 {
        cpu.flat_pair(selector.wrapping_add(16), selector.wrapping_add(8), CODE64, 3);
        cpu.rip = target;
    } else {
        cpu.flat_pair(selector, selector.wrapping_add(8), CODE32, 3);
        cpu.rip = target & u64::from(u32::MAX);
    }
    cpu.set_rflags(flags & (rflags::ALL & !(rflags::RF | rflags::VM)));
    // TF traps at once, as if the SYSCALL had just completed; only IRET lets one instruction pass.
    if cpu.flags.is_set(rflags::TF) {
        cpu.pending_debug |= dr6::BS;
    }
    Ok(())
}

/// SYSENTER.
pub(super) fn sysenter(cpu: &mut Vcpu, _: &Uop) -> Done {
    cpu.departures.system_calls += 1;
    if cpu.is_para() {
        let entered = cpu.call_monitor(|monitor, cpu| monitor.system_enter(cpu))?;
        return if entered { Ok(()) } else { cpu.protection() };
    }
    let selector = cpu.sysenter_cs as u16;
    if selector & !3 == 0 {
        return cpu.protection();
    }
    let long = cpu.mode.long;
    cpu.flat_pair(selector, selector.wrapping_add(8), if long { CODE64 } else { CODE32 }, 0);
    let mask = if long { u64::MAX } else { u64::from(u32::MAX) };
    cpu.regs[4] = cpu.sysenter_esp & mask;
    cpu.rip = cpu.sysenter_eip & mask;
    cpu.flags.remove(rflags::VM | rflags::IF | rflags::RF);
    Ok(())
}

/// SYSEXIT.
pub(super) fn sysexit(cpu: &mut Vcpu, u: &Uop) -> Done {
    let selector = cpu.sysenter_cs as u16;
    if selector & !3 == 0 {
        return cpu.protection();
    }
    cpu.require_cpl0()?;
    cpu.departures.returns += 1;
    let to_64 = u.insn.opsize == 8;
    let (target, stack) = (cpu.regs[2], cpu.regs[1]);
    if to_64 && (!canonical(target) || !canonical(stack)) {
        return cpu.protection();
    }
    if to_64 {
        cpu.flat_pair(selector.wrapping_add(32), selector.wrapping_add(40), CODE64, 3);
        (cpu.rip, cpu.regs[4]) = (target, stack);
    } else {
        cpu.flat_pair(selector.wrapping_add(16), selector.wrapping_add(24), CODE32, 3);
        (cpu.rip, cpu.regs[4]) = (target & u64::from(u32::MAX), stack & u64::from(u32::MAX));
    }
    Ok(())
}

/// SWAPGS.
pub(super) fn swapgs(cpu: &mut Vcpu, _: &Uop) -> Done {
    if cpu.mode.bits != Bits::B64 {
        return cpu.undefined();
    }
    cpu.require_cpl0()?;
    std::mem::swap(&mut cpu.seg[Seg::Gs as usize].base, &mut cpu.kernel_gs_base);
    Ok(())
}
