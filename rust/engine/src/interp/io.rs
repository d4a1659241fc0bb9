//! IN and OUT, and the check of I/O permission (SDM vol. 1, 19.5).

use trapgate_x86::insn::{Operand, Seg};

use super::Uop;
use crate::fault::Done;
use crate::hooks::HookKind;
use crate::mmu::access::Intent;
use crate::state::Vcpu;

impl Vcpu {
    /// CPL against IOPL, else the bitmap of the TSS.
    pub(crate) fn check_port(&mut self, port: u16, size: u8) -> Done {
        if self.cpl <= self.flags.iopl() {
            return Ok(());
        }
        if self.tr.limit < 0x67 || self.tr.kind() & 0b1101 != 0b1001 {
            return self.protection();
        }
        let base = self.tr.base;
        let map: u16 = self.load_as(Seg::Ds, base.wrapping_add(0x66), Intent::SystemRead)?;
        let at = u32::from(map) + u32::from(port >> 3);
        if at + 1 > self.tr.limit {
            return self.protection();
        }
        let bits: u16 = self.load_as(Seg::Ds, base.wrapping_add(u64::from(at)), Intent::SystemRead)?;
        let mask = (1u16 << size) - 1;
        if bits >> (port & 7) & mask != 0 { self.protection() } else { Ok(()) }
    }

    pub(crate) fn port_in(&mut self, port: u16, size: u8) -> u32 {
        self.recheck();
        self.departures.ports += 1;
        self.io_breakpoint(port, size);
        let count = self.count_now();
        let value = self.platform.port_read(count, port, size);
        if !self.hooks.is_empty() {
            self.hook_hit(HookKind::PortRead, u64::from(port), u64::from(size), u64::from(value));
        }
        value
    }

    pub(crate) fn port_out(&mut self, port: u16, size: u8, value: u32) {
        self.recheck();
        self.departures.ports += 1;
        self.io_breakpoint(port, size);
        let count = self.count_now();
        self.platform.port_write(count, port, size, value);
        if !self.hooks.is_empty() {
            self.hook_hit(HookKind::PortWrite, u64::from(port), u64::from(size), u64::from(value));
        }
    }
}

fn port_of(cpu: &Vcpu, operand: Operand, u: &Uop) -> u16 {
    if let Operand::Imm { .. } = operand { u.insn.imm as u16 & 0xff } else { cpu.regs[2] as u16 }
}

/// IN.
pub(super) fn input(cpu: &mut Vcpu, u: &Uop) -> Done {
    let port = port_of(cpu, u.insn.operands[1], u);
    let size = u.insn.opsize.min(4);
    cpu.check_port(port, size)?;
    let value = u64::from(cpu.port_in(port, size));
    match size {
        1 => cpu.set_reg::<u8>(0, value),
        2 => cpu.set_reg::<u16>(0, value),
        _ => cpu.set_reg::<u32>(0, value),
    }
    Ok(())
}

/// OUT.
pub(super) fn output(cpu: &mut Vcpu, u: &Uop) -> Done {
    let port = port_of(cpu, u.insn.operands[0], u);
    let size = u.insn.opsize.min(4);
    cpu.check_port(port, size)?;
    let value = cpu.regs[0] as u32 & (u32::MAX >> (32 - 8 * u32::from(size)));
    cpu.port_out(port, size, value);
    Ok(())
}
