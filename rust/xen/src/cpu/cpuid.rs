//! CPUID of a para-virtual guest: the model without what only hardware virtualization can offer, and Xen's own leaves
//! (xen/include/public/arch-x86/cpuid.h).

use trapgate_engine::state::Vcpu;
use trapgate_x86::features::Features;
use trapgate_x86::model::{Cpuid, Model};

use super::PvCpu;

const BASE: u32 = 0x4000_0000;
/// Highest of Xen's leaves.
const LAST: u32 = BASE + 5;
/// Width of machine addresses (leaf 5): below 44, so that version 1 of grant tables reaches all of them.
const MACHINE_ADDRESS_BITS: u32 = 40;

/// What a guest of this kind cannot use: the MMU is the monitor's, and there is no APIC.
const HIDDEN: Features = Features::VME
    .union(Features::PSE)
    .union(Features::PSE36)
    .union(Features::MTRR)
    .union(Features::PGE)
    .union(Features::MCE)
    .union(Features::MCA)
    .union(Features::APIC)
    .union(Features::X2APIC)
    .union(Features::MONITOR)
    .union(Features::PCID)
    .union(Features::INVPCID)
    .union(Features::TSC_DEADLINE)
    .union(Features::TSC_ADJUST)
    .union(Features::ARAT)
    .union(Features::SMEP)
    .union(Features::SMAP)
    .union(Features::UMIP)
    .union(Features::PKU)
    .union(Features::PDPE1GB)
    .union(Features::XSAVES)
    .union(Features::CET_IBT)
    .union(Features::XSAVE)
    .union(Features::XSAVEOPT)
    .union(Features::XSAVEC)
    .union(Features::AVX)
    .union(Features::AVX2)
    .union(Features::FMA)
    .union(Features::F16C)
    .union(Features::VAES)
    .union(Features::VPCLMULQDQ);

/// The processor that a domain sees.
pub fn model(of: &Model) -> Model {
    Model { features: of.features.difference(HIDDEN).union(Features::HYPERVISOR), ..*of }
}

impl PvCpu {
    pub(super) fn cpuid_view(&self, cpu: &Vcpu, leaf: u32, subleaf: u32) -> Cpuid {
        match leaf {
            BASE..=LAST => xen_leaf(leaf - BASE, subleaf, cpu.tsc_khz()),
            // Topology and power leaves: Linux masks the first, and no domain owns the others.
            0x4000_0006..=0x4000_ffff | 5 | 6 | 0xa | 0xb => Cpuid::default(),
            _ => cpu.model_cpuid(leaf, subleaf),
        }
    }
}

fn xen_leaf(leaf: u32, subleaf: u32, tsc_khz: u32) -> Cpuid {
    match (leaf, subleaf) {
        // "XenVMMXenVMM".
        (0, _) => Cpuid { eax: LAST, ebx: 0x566e_6558, ecx: 0x6558_4d4d, edx: 0x4d4d_566e },
        (1, _) => Cpuid { eax: crate::hypercall::version::VERSION, ..Cpuid::default() },
        // One hypercall page, the MSR that asks for it, and MMU_PT_UPDATE_PRESERVE_AD.
        (2, _) => Cpuid { eax: 1, ebx: BASE, ecx: 1, edx: 0 },
        // The counter is reliable; it runs at this rate, and system time is it.
        (3, 0) => Cpuid { eax: 2, ebx: 0, ecx: tsc_khz, edx: 0 },
        (3, 1) => Cpuid { eax: 0, ebx: 0, ecx: 0x8000_0000, edx: 1 },
        (3, 2) => Cpuid { eax: tsc_khz, ..Cpuid::default() },
        (5, 0) => Cpuid { ebx: MACHINE_ADDRESS_BITS, ..Cpuid::default() },
        _ => Cpuid::default(),
    }
}
