//! RDMSR and WRMSR. Which registers there are, and what they take, is the model's table; what the engine computes or keeps
//! in a field of its own stands here, and the platform has those of the local APIC.

use std::collections::BTreeMap;

use trapgate_x86::insn::Seg;
use trapgate_x86::model::Model;
use trapgate_x86::msr::{self, Kind, Msr};
use trapgate_x86::regs::{cr0, efer};

use crate::fault::Done;
use crate::state::Vcpu;

/// Values at reset of the registers that are plain storage.
pub(crate) fn reset_values(model: &Model) -> BTreeMap<u32, u64> {
    model.msrs().filter(|m| m.kind == Kind::Stored).map(|m| (m.number, m.reset)).collect()
}

impl Vcpu {
    /// RDMSR: #GP(0) for a register that the model does not have.
    pub(crate) fn read_msr(&mut self, number: u32) -> Done<u64> {
        let Some(register) = self.model.msr(number) else { return self.protection() };
        match register.kind {
            Kind::Stored => Ok(self.msrs.get(&number).copied().unwrap_or(register.reset)),
            Kind::Constant | Kind::Sink => Ok(register.reset),
            Kind::Command => self.protection(),
            Kind::Engine => Ok(self.engine_msr(number)),
            Kind::Apic => {
                let count = self.count_now();
                match self.platform.msr_read(count, number) {
                    Some(Ok(value)) => Ok(value),
                    _ => self.protection(),
                }
            }
        }
    }

    fn engine_msr(&mut self, number: u32) -> u64 {
        match number {
            msr::IA32_TIME_STAMP_COUNTER => self.tsc_now(),
            msr::IA32_TSC_ADJUST => self.tsc_adjust,
            // The ratio of the TSC to 100 MHz, as the maximum without turbo and as the efficient one.
            msr::MSR_PLATFORM_INFO => {
                let ratio = u64::from(self.processor.tsc_khz / 100_000).clamp(1, 255);
                ratio << 8 | ratio << 40
            }
            msr::IA32_SYSENTER_CS => self.sysenter_cs,
            msr::IA32_SYSENTER_ESP => self.sysenter_esp,
            msr::IA32_SYSENTER_EIP => self.sysenter_eip,
            msr::IA32_DEBUGCTL => self.debugctl,
            msr::IA32_EFER => self.efer,
            msr::IA32_STAR => self.star,
            msr::IA32_LSTAR => self.lstar,
            msr::IA32_FMASK => self.fmask,
            msr::IA32_FS_BASE => self.segment(Seg::Fs).base,
            msr::IA32_GS_BASE => self.segment(Seg::Gs).base,
            msr::IA32_KERNEL_GS_BASE => self.kernel_gs_base,
            msr::IA32_TSC_AUX => self.tsc_aux,
            _ => 0,
        }
    }

    /// WRMSR: #GP(0) for a register that the model does not have or a value that it refuses.
    pub(crate) fn write_msr(&mut self, number: u32, value: u64) -> Done {
        let Some(register) = self.model.msr(number) else { return self.protection() };
        match register.kind {
            Kind::Apic => {
                let count = self.count_now();
                match self.platform.msr_write(count, number, value) {
                    Some(Ok(())) => Ok(()),
                    _ => self.protection(),
                }
            }
            Kind::Engine => self.write_engine_msr(&register, value),
            _ => {
                let old = self.msrs.get(&number).copied().unwrap_or(register.reset);
                if !register.accepts(old, value, self.model.linear_bits) {
                    return self.protection();
                }
                if register.kind == Kind::Stored {
                    self.msrs.insert(number, value);
                }
                Ok(())
            }
        }
    }

    fn write_engine_msr(&mut self, register: &Msr, value: u64) -> Done {
        let old = match register.number {
            // The counter itself moves, so any value may follow any other.
            msr::IA32_TIME_STAMP_COUNTER => value,
            number => self.engine_msr(number),
        };
        if register.number == msr::IA32_EFER {
            return self.write_efer(value);
        }
        if !register.accepts(old, value, self.model.linear_bits) {
            return self.protection();
        }
        match register.number {
            msr::IA32_TIME_STAMP_COUNTER => {
                let now = self.tsc_now();
                self.adjust_tsc(value.wrapping_sub(now).wrapping_add(self.tsc_adjust));
            }
            msr::IA32_TSC_ADJUST => self.adjust_tsc(value),
            msr::IA32_SYSENTER_CS => self.sysenter_cs = value,
            msr::IA32_SYSENTER_ESP => self.sysenter_esp = value,
            msr::IA32_SYSENTER_EIP => self.sysenter_eip = value,
            msr::IA32_DEBUGCTL => self.debugctl = value,
            msr::IA32_STAR => self.star = value,
            msr::IA32_LSTAR => self.lstar = value,
            msr::IA32_FMASK => self.fmask = value,
            msr::IA32_FS_BASE => self.seg[Seg::Fs as usize].base = value,
            msr::IA32_GS_BASE => self.seg[Seg::Gs as usize].base = value,
            msr::IA32_KERNEL_GS_BASE => self.kernel_gs_base = value,
            msr::IA32_TSC_AUX => self.tsc_aux = value,
            _ => return self.protection(),
        }
        Ok(())
    }

    /// LME cannot change while paging is on; LMA follows from LME and PG and ignores writes (SDM vol. 3, 2.2.1).
    fn write_efer(&mut self, value: u64) -> Done {
        if value & !self.model.efer_mask() != 0 {
            return self.protection();
        }
        let changed = value ^ self.efer;
        if changed & efer::LME != 0 && self.cr0 & cr0::PG != 0 {
            return self.protection();
        }
        self.efer = value & !efer::LMA | self.efer & efer::LMA;
        if changed & efer::NXE != 0 {
            self.flush_tlb();
        }
        self.update_mode();
        Ok(())
    }

    fn adjust_tsc(&mut self, adjust: u64) {
        self.tsc_adjust = adjust;
        let count = self.count_now();
        self.platform.set_tsc_offset(count, adjust);
    }
}
