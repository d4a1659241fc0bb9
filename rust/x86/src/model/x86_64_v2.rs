//! `x86-64-v2`: the psABI's level 2 with what present kernels and hosts take for granted around it, as a processor that was
//! never built. Its model number is in no table of Linux's, so that neither errata nor mitigations of real processors strike;
//! what it says about speculation is in [`ARCH_CAPABILITIES`].

use super::{Cache, CacheKind, Cpuid, Model};
use crate::features::Features;

/// IA32_ARCH_CAPABILITIES (SDM vol. 4, table 2-2). An interpreter does not speculate: it is immune to each of these.
const ARCH_CAPABILITIES: u64 = {
    const RDCL_NO: u64 = 1 << 0;
    const IBRS_ALL: u64 = 1 << 1;
    const SKIP_L1DFL_VMENTRY: u64 = 1 << 3;
    const SSB_NO: u64 = 1 << 4;
    const MDS_NO: u64 = 1 << 5;
    const IF_PSCHANGE_MC_NO: u64 = 1 << 6;
    const TAA_NO: u64 = 1 << 8;
    const SBDR_SSDP_NO: u64 = 1 << 13;
    const FBSDP_NO: u64 = 1 << 14;
    const PSDP_NO: u64 = 1 << 15;
    const BHI_NO: u64 = 1 << 20;
    const PBRSB_NO: u64 = 1 << 24;
    const GDS_NO: u64 = 1 << 26;
    const RFDS_NO: u64 = 1 << 27;
    const ITS_NO: u64 = 1 << 62;
    RDCL_NO
        | IBRS_ALL
        | SKIP_L1DFL_VMENTRY
        | SSB_NO
        | MDS_NO
        | IF_PSCHANGE_MC_NO
        | TAA_NO
        | SBDR_SSDP_NO
        | FBSDP_NO
        | PSDP_NO
        | BHI_NO
        | PBRSB_NO
        | GDS_NO
        | RFDS_NO
        | ITS_NO
};

/// MONITOR is left out so that idle is HLT; SMAP and UMIP so that kernels do not pay for them on every access; XSAVEC and
/// XSAVES since with x87 and SSE state only they bring nothing.
///
/// BHI_CTRL is offered because Linux otherwise runs a loop that clears the branch history on every system call: BHI_NO alone
/// does not stop it on processors with IBRS_ALL, a bit in IA32_SPEC_CTRL does.
const FEATURES: Features = Features::from_bits_truncate(
    X87_TO_SSE4.bits() | GENERAL.bits() | STATE.bits() | SYSTEM.bits() | SPECULATION.bits(),
);

const X87_TO_SSE4: Features = Features::FPU
    .union(Features::MMX)
    .union(Features::SSE)
    .union(Features::SSE2)
    .union(Features::SSE3)
    .union(Features::SSSE3)
    .union(Features::SSE4_1)
    .union(Features::SSE4_2)
    .union(Features::AES)
    .union(Features::PCLMULQDQ);

const GENERAL: Features = Features::CMOV
    .union(Features::CX8)
    .union(Features::CX16)
    .union(Features::POPCNT)
    .union(Features::LAHF64)
    .union(Features::RDRAND)
    .union(Features::TSC)
    .union(Features::RDTSCP)
    .union(Features::RDPMC)
    .union(Features::CLFSH)
    .union(Features::ERMS);

const STATE: Features = Features::FXSR
    .union(Features::XSAVE)
    .union(Features::XSAVEOPT)
    .union(Features::FCS_FDS_DEPRECATED)
    .union(Features::FDP_EXCPTN_ONLY);

const SYSTEM: Features = Features::MSR
    .union(Features::SEP)
    .union(Features::SYSCALL)
    .union(Features::FSGSBASE)
    .union(Features::INVPCID)
    .union(Features::VME)
    .union(Features::DE)
    .union(Features::PSE)
    .union(Features::PAE)
    .union(Features::MCE)
    .union(Features::APIC)
    .union(Features::MTRR)
    .union(Features::PGE)
    .union(Features::MCA)
    .union(Features::PAT)
    .union(Features::PSE36)
    .union(Features::SS)
    .union(Features::PCID)
    .union(Features::X2APIC)
    .union(Features::TSC_DEADLINE)
    .union(Features::TSC_ADJUST)
    .union(Features::INVARIANT_TSC)
    .union(Features::ARAT)
    .union(Features::SMEP)
    .union(Features::NX)
    .union(Features::PDPE1GB)
    .union(Features::LM);

const SPECULATION: Features = Features::ARCH_CAPABILITIES
    .union(Features::SPEC_CTRL)
    .union(Features::STIBP)
    .union(Features::SSBD)
    .union(Features::BHI_CTRL)
    .union(Features::MCDT_NO);

const CACHES: &[Cache] = &[
    Cache { level: 1, kind: CacheKind::Data, kib: 32, ways: 8, shared_by_package: false, inclusive: false },
    Cache {
        level: 1,
        kind: CacheKind::Instruction,
        kib: 32,
        ways: 8,
        shared_by_package: false,
        inclusive: false,
    },
    Cache {
        level: 2,
        kind: CacheKind::Unified,
        kib: 256,
        ways: 8,
        shared_by_package: false,
        inclusive: false,
    },
    Cache {
        level: 3,
        kind: CacheKind::Unified,
        kib: 8192,
        ways: 16,
        shared_by_package: true,
        inclusive: true,
    },
];

/// The processor, which the other models are made from as well.
pub(super) const PROCESSOR: Model = Model {
    name: "x86-64-v2",
    vendor: *b"GenuineIntel",
    // Family 6, model F0h, stepping 1: no such processor exists.
    signature: 0x000f_0601,
    brand: "Intel(R) Processor, x86-64-v2",
    microcode: 0x0000_0100,
    features: FEATURES,
    physical_bits: 40,
    linear_bits: 48,
    highest_leaf: 0x16,
    // TLBs of 64 and 1536 entries and 64-byte prefetch; "caches: see leaf 4" (SDM vol. 2, table 3-12).
    descriptors: Cpuid { eax: 0x7603_6301, ebx: 0x00f0_b5ff, ecx: 0, edx: 0x00c3_0000 },
    caches: CACHES,
    crystal_hz: 25_000_000,
    arch_capabilities: ARCH_CAPABILITIES,
};

/// The model of the name.
pub static X86_64_V2: Model = PROCESSOR;
