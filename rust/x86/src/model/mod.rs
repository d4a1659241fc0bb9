//! CPU models as data: what a processor is and offers. A model is a value; nothing else in the crate knows one by name.

mod cpuid;
mod host;
mod x86_64_v2;
mod x86_64_v3;

pub use cpuid::{Cpuid, Dynamic, Topology};
pub use host::{RUNNABLE, host};
pub use x86_64_v2::X86_64_V2;
pub use x86_64_v3::X86_64_V3;

use crate::features::Features;
use crate::regs::{cr4, efer, xcr0};

/// Kind of a cache in CPUID leaf 4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheKind {
    Data,
    Instruction,
    Unified,
}

/// A cache with lines of 64 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cache {
    pub level: u32,
    pub kind: CacheKind,
    pub kib: u32,
    pub ways: u32,
    /// Shared by the package, else by the threads of a core.
    pub shared_by_package: bool,
    /// Holds all that lower levels hold.
    pub inclusive: bool,
}

/// A processor.
#[derive(Clone, Copy, Debug)]
pub struct Model {
    /// The name that users choose it by.
    pub name: &'static str,
    pub vendor: [u8; 12],
    /// CPUID leaf 1, EAX: stepping, model, family.
    pub signature: u32,
    pub brand: &'static str,
    /// Microcode revision, as IA32_BIOS_SIGN_ID gives it.
    pub microcode: u32,
    pub features: Features,
    pub physical_bits: u8,
    pub linear_bits: u8,
    /// Highest basic CPUID leaf.
    pub highest_leaf: u32,
    /// CPUID leaf 2.
    pub descriptors: Cpuid,
    pub caches: &'static [Cache],
    /// The core crystal clock; the local APIC timer counts it.
    pub crystal_hz: u32,
    pub arch_capabilities: u64,
}

impl Model {
    /// The models that are the same on every host.
    pub const ALL: &'static [&'static Model] = &[&X86_64_V2, &X86_64_V3];

    /// The model that can be chosen by this name: one of [`Model::ALL`] or [`host`].
    pub fn by_name(name: &str) -> Option<&'static Model> {
        Model::ALL.iter().copied().chain([host()]).find(|model| model.name == name)
    }

    /// Bits of CR4 that may be set; any other is #GP.
    pub fn cr4_mask(&self) -> u64 {
        let table = [
            (Features::VME, cr4::VME | cr4::PVI),
            (Features::TSC, cr4::TSD),
            (Features::DE, cr4::DE),
            (Features::PSE, cr4::PSE),
            (Features::PAE, cr4::PAE),
            (Features::MCE, cr4::MCE),
            (Features::PGE, cr4::PGE),
            (Features::RDPMC, cr4::PCE),
            (Features::FXSR, cr4::OSFXSR),
            (Features::SSE, cr4::OSXMMEXCPT),
            (Features::UMIP, cr4::UMIP),
            (Features::FSGSBASE, cr4::FSGSBASE),
            (Features::PCID, cr4::PCIDE),
            (Features::XSAVE, cr4::OSXSAVE),
            (Features::SMEP, cr4::SMEP),
            (Features::SMAP, cr4::SMAP),
            (Features::PKU, cr4::PKE),
            (Features::CET_IBT, cr4::CET),
        ];
        self.mask(&table)
    }

    /// Bits of IA32_EFER that exist.
    pub fn efer_mask(&self) -> u64 {
        self.mask(&[
            (Features::SYSCALL, efer::SCE),
            (Features::LM, efer::LME | efer::LMA),
            (Features::NX, efer::NXE),
        ])
    }

    /// Bits of XCR0 that may be set; 0 without XSAVE.
    pub fn xcr0_mask(&self) -> u64 {
        if !self.features.contains(Features::XSAVE) {
            return 0;
        }
        xcr0::X87 | self.mask(&[(Features::SSE, xcr0::SSE), (Features::AVX, xcr0::AVX)])
    }

    fn mask(&self, table: &[(Features, u64)]) -> u64 {
        table
            .iter()
            .filter(|(feature, _)| self.features.contains(*feature))
            .fold(0, |mask, (_, bits)| mask | bits)
    }
}

#[cfg(test)]
mod tests;
