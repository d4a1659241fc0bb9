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
    .union(Features::CET_IBT);

/// CPUID.1:ECX.OSXSAVE.
const OSXSAVE: u32 = 1 << 27;

/// The processor that a domain sees.
pub fn model(of: &Model) -> Model {
    Model { features: of.features.difference(HIDDEN).union(Features::HYPERVISOR), ..*of }
}

impl PvCpu {
    /// What the CPUID answers that a kernel asks for by its prefix, so that it cannot go by the hypervisor.
    ///
    /// Xen has CR4.OSXSAVE set for itself, and processors without CPUID faulting have always shown that. Linux takes it for
    /// granted: it looks whether OSXSAVE is there before it sets CR4, and does without XSAVE if not. So the bit is part of the
    /// interface, in this view of the kernel's; CPUID as it is executes tells what the guest has in CR4.
    pub(super) fn forced_cpuid_view(&self, cpu: &Vcpu, leaf: u32, subleaf: u32) -> Cpuid {
        let mut answer = self.cpuid_view(cpu, leaf, subleaf);
        if leaf == 1 && cpu.kernel_mode() && cpu.features().contains(Features::XSAVE) {
            answer.ecx |= OSXSAVE;
        }
        answer
    }

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

#[cfg(test)]
mod tests {
    use trapgate_x86::model::{X86_64_V2, X86_64_V3};
    use trapgate_x86::regs::{cr4, xcr0};

    use super::*;

    #[test]
    fn vector_state_is_offered_and_supervisor_state_is_not() {
        let (plain, wide) = (model(&X86_64_V2), model(&X86_64_V3));
        assert_eq!(plain.xcr0_mask(), xcr0::X87 | xcr0::SSE);
        assert_eq!(wide.xcr0_mask(), xcr0::X87 | xcr0::SSE | xcr0::AVX);
        assert_ne!(wide.cr4_mask() & cr4::OSXSAVE, 0);
        let vectors = Features::AVX2 | Features::FMA | Features::F16C | Features::XSAVEOPT | Features::XSAVEC;
        assert!(wide.features.contains(vectors));
        let all = Model { features: Features::all(), ..X86_64_V3 };
        assert!(!model(&all).features.intersects(Features::XSAVES | Features::PKU));
        let without = Model { features: X86_64_V2.features - Features::XSAVE, ..X86_64_V2 };
        assert_eq!(model(&without).cr4_mask() & cr4::OSXSAVE, 0);
    }
}
