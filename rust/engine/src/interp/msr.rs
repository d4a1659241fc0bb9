//! RDMSR and WRMSR: which registers there are is the model's table; what the engine computes stands here.

use std::collections::BTreeMap;

use trapgate_x86::insn::Seg;
use trapgate_x86::regs::efer;

use crate::fault::Done;
use crate::mmu::access::canonical;
use crate::model::Model;
use crate::state::Vcpu;

pub const IA32_TSC: u32 = 0x10;
pub const IA32_TSC_ADJUST: u32 = 0x3b;
pub const IA32_SYSENTER_CS: u32 = 0x174;
pub const IA32_SYSENTER_ESP: u32 = 0x175;
pub const IA32_SYSENTER_EIP: u32 = 0x176;
pub const IA32_EFER: u32 = 0xc000_0080;
pub const IA32_STAR: u32 = 0xc000_0081;
pub const IA32_LSTAR: u32 = 0xc000_0082;
pub const IA32_CSTAR: u32 = 0xc000_0083;
pub const IA32_FMASK: u32 = 0xc000_0084;
pub const IA32_FS_BASE: u32 = 0xc000_0100;
pub const IA32_GS_BASE: u32 = 0xc000_0101;
pub const IA32_KERNEL_GS_BASE: u32 = 0xc000_0102;
pub const IA32_TSC_AUX: u32 = 0xc000_0103;

/// Values at reset of the registers that are plain storage.
pub fn reset_values(model: &Model) -> BTreeMap<u32, u64> {
    model.stored_msrs()
}

impl Vcpu {
    /// RDMSR: #GP(0) for a register that the model does not have.
    pub(crate) fn read_msr(&mut self, msr: u32) -> Done<u64> {
        let own = match msr {
            IA32_TSC => Some(self.tsc_now()),
            IA32_TSC_ADJUST => Some(self.tsc_adjust),
            IA32_SYSENTER_CS => Some(self.sysenter_cs),
            IA32_SYSENTER_ESP => Some(self.sysenter_esp),
            IA32_SYSENTER_EIP => Some(self.sysenter_eip),
            IA32_EFER => Some(self.efer),
            IA32_STAR => Some(self.star),
            IA32_LSTAR => Some(self.lstar),
            IA32_CSTAR => Some(self.cstar),
            IA32_FMASK => Some(self.fmask),
            IA32_FS_BASE => Some(self.segment(Seg::Fs).base),
            IA32_GS_BASE => Some(self.segment(Seg::Gs).base),
            IA32_KERNEL_GS_BASE => Some(self.kernel_gs_base),
            IA32_TSC_AUX => Some(self.tsc_aux),
            _ => None,
        };
        if let Some(value) = own {
            return Ok(value);
        }
        let count = self.count_now();
        match self.platform.msr_read(count, msr) {
            Some(Ok(value)) => return Ok(value),
            Some(Err(_)) => return self.protection(),
            None => {}
        }
        match self.msrs.get(&msr) {
            Some(value) => Ok(*value),
            None => self.protection(),
        }
    }

    /// WRMSR: #GP(0) for a register that the model does not have or a value that it refuses.
    pub(crate) fn write_msr(&mut self, msr: u32, value: u64) -> Done {
        match msr {
            IA32_EFER => return self.write_efer(value),
            IA32_TSC => {
                let now = self.tsc_now();
                return self.adjust_tsc(value.wrapping_sub(now).wrapping_add(self.tsc_adjust));
            }
            IA32_TSC_ADJUST => return self.adjust_tsc(value),
            IA32_SYSENTER_CS => self.sysenter_cs = value & 0xffff_ffff,
            IA32_STAR => self.star = value,
            IA32_FMASK => self.fmask = value & 0xffff_ffff,
            IA32_TSC_AUX if value >> 32 != 0 => return self.protection(),
            IA32_TSC_AUX => self.tsc_aux = value,
            IA32_SYSENTER_ESP | IA32_SYSENTER_EIP | IA32_LSTAR | IA32_CSTAR | IA32_FS_BASE | IA32_GS_BASE
            | IA32_KERNEL_GS_BASE => return self.write_address(msr, value),
            _ => return self.write_other(msr, value),
        }
        Ok(())
    }

    /// Registers that hold a linear address refuse one that is not canonical.
    fn write_address(&mut self, msr: u32, value: u64) -> Done {
        if !canonical(value) {
            return self.protection();
        }
        match msr {
            IA32_SYSENTER_ESP => self.sysenter_esp = value,
            IA32_SYSENTER_EIP => self.sysenter_eip = value,
            IA32_LSTAR => self.lstar = value,
            IA32_CSTAR => self.cstar = value,
            IA32_FS_BASE => self.seg[Seg::Fs as usize].base = value,
            IA32_GS_BASE => self.seg[Seg::Gs as usize].base = value,
            _ => self.kernel_gs_base = value,
        }
        Ok(())
    }

    fn write_other(&mut self, msr: u32, value: u64) -> Done {
        let count = self.count_now();
        match self.platform.msr_write(count, msr, value) {
            Some(Ok(())) => return Ok(()),
            Some(Err(_)) => return self.protection(),
            None => {}
        }
        let Some(old) = self.msrs.get(&msr).copied() else { return self.protection() };
        let Some(new) = self.model.msr_value(msr, old, value) else { return self.protection() };
        self.msrs.insert(msr, new);
        Ok(())
    }

    fn write_efer(&mut self, value: u64) -> Done {
        if value & !efer::ALL != 0 {
            return self.protection();
        }
        let changed = value ^ self.efer;
        if changed & efer::LME != 0 && self.cr0 & trapgate_x86::regs::cr0::PG != 0 {
            return self.protection();
        }
        self.efer = value & !efer::LMA | self.efer & efer::LMA;
        if changed & efer::NXE != 0 {
            self.tlb.flush();
        }
        self.update_mode();
        Ok(())
    }

    fn adjust_tsc(&mut self, adjust: u64) -> Done {
        self.tsc_adjust = adjust;
        let count = self.count_now();
        self.platform.set_tsc_offset(count, adjust);
        Ok(())
    }
}
