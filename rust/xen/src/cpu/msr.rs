//! RDMSR and WRMSR of a para-virtual kernel: its segment bases, what the model tells of itself, and Xen's own.

use trapgate_engine::mmu::access::canonical;
use trapgate_engine::state::Vcpu;
use trapgate_x86::insn::Seg;
use trapgate_x86::model::Model;
use trapgate_x86::msr::{self, IA32_APIC_BASE};
use trapgate_x86::regs::efer;

use super::PvCpu;

/// A write of a machine address here fills that frame with hypercall stubs (CPUID leaf 40000002h).
const HYPERCALL_PAGE: u32 = 0x4000_0000;
const PLATFORM_INFO: u32 = 0xce;
const MISC_FEATURES_ENABLES: u32 = 0x140;
const FEATURE_CONTROL: u32 = 0x3a;
const MISC_ENABLE: u32 = 0x1a0;
const PAT: u32 = 0x277;
const BIOS_SIGN: u32 = 0x8b;
const PERF_CAPABILITIES: u32 = 0x345;
const ARCH_CAPABILITIES: u32 = 0x10a;
const SPEC_CTRL: u32 = 0x48;
const PRED_CMD: u32 = 0x49;

/// Xen's PAT is part of the interface: WB, WT, UC-, UC, WC, WP, UC, UC.
const XEN_PAT: u64 = 0x0000_0501_0007_0406;
/// Fast strings; BTS and PEBS unavailable; xTPR messages disabled.
const MISC_ENABLE_VALUE: u64 = 1 | 1 << 11 | 1 << 12 | 1 << 23;

impl PvCpu {
    /// The value of an MSR; `None` is #GP(0).
    pub(super) fn read_msr(&self, cpu: &mut Vcpu, number: u32, model: &Model) -> Option<u64> {
        Some(match number {
            msr::IA32_FS_BASE => cpu.segment(Seg::Fs).base,
            msr::IA32_GS_BASE => cpu.segment(Seg::Gs).base,
            msr::IA32_KERNEL_GS_BASE => cpu.kernel_gs_base,
            msr::IA32_EFER => efer::SCE | efer::LME | efer::LMA | efer::NXE,
            IA32_APIC_BASE => 0xfee0_0900,
            msr::IA32_TIME_STAMP_COUNTER => cpu.machine_tsc(),
            msr::IA32_TSC_AUX => cpu.tsc_aux,
            PAT => XEN_PAT,
            MISC_ENABLE => MISC_ENABLE_VALUE,
            BIOS_SIGN => u64::from(model.microcode) << 32,
            PLATFORM_INFO | MISC_FEATURES_ENABLES | PERF_CAPABILITIES | HYPERCALL_PAGE => 0,
            FEATURE_CONTROL => 1,
            ARCH_CAPABILITIES => model.arch_capabilities,
            SPEC_CTRL => cpu.msrs.get(&SPEC_CTRL).copied()?,
            _ => return None,
        })
    }

    /// Writes an MSR; false is #GP(0).
    pub(super) fn write_msr(&mut self, cpu: &mut Vcpu, number: u32, value: u64) -> bool {
        match number {
            msr::IA32_FS_BASE | msr::IA32_GS_BASE | msr::IA32_KERNEL_GS_BASE if !canonical(value) => false,
            msr::IA32_FS_BASE => set(&mut cpu.seg[Seg::Fs as usize].base, value),
            msr::IA32_GS_BASE => set(&mut cpu.seg[Seg::Gs as usize].base, value),
            msr::IA32_KERNEL_GS_BASE => set(&mut cpu.kernel_gs_base, value),
            msr::IA32_EFER => value == efer::SCE | efer::LME | efer::LMA | efer::NXE,
            msr::IA32_TSC_AUX => value >> 32 == 0 && set(&mut cpu.tsc_aux, value),
            BIOS_SIGN | PLATFORM_INFO | MISC_FEATURES_ENABLES => value == 0,
            MISC_ENABLE => true,
            // Enhanced IBRS, STIBP, SSBD and BHI_DIS_S: what the model offers; nothing speculates here.
            SPEC_CTRL => value & !0x407 == 0 && cpu.msrs.insert(SPEC_CTRL, value).is_some(),
            PRED_CMD => value & !1 == 0,
            HYPERCALL_PAGE => self.fill_hypercall_page(cpu, value),
            _ => false,
        }
    }

    fn fill_hypercall_page(&mut self, cpu: &mut Vcpu, value: u64) -> bool {
        if value % 4096 != 0 {
            return false;
        }
        let mfn = crate::paging::Mfn(value >> 12);
        let mut paging = self.domain.paging();
        // The frame must be one that may be written to; it is held only while it is.
        if paging.hold_writable(&mut super::CpuTlb(cpu), mfn).is_err() {
            return false;
        }
        let written = self.domain.memory().write(value, &crate::hypercall::page::stubs()).is_ok();
        let released = paging.release_writable(&mut super::CpuTlb(cpu), mfn).is_ok();
        written && released
    }
}

fn set(place: &mut u64, value: u64) -> bool {
    *place = value;
    true
}
