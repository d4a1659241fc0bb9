//! What a CPU model offers, as a set. The low 64 bits decide which encodings exist; the others concern the system only.
//! Names are those of the CPUID bits (Intel SDM vol. 2, CPUID).

bitflags::bitflags! {
    /// A set of CPU features.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct Features: u128 {
        // Encodings.
        const FPU = 1 << 0;
        const MMX = 1 << 1;
        const SSE = 1 << 2;
        const SSE2 = 1 << 3;
        const SSE3 = 1 << 4;
        const SSSE3 = 1 << 5;
        const SSE4_1 = 1 << 6;
        const SSE4_2 = 1 << 7;
        const SSE4A = 1 << 8;
        const AES = 1 << 9;
        const PCLMULQDQ = 1 << 10;
        const SHA = 1 << 11;
        const GFNI = 1 << 12;
        const AVX = 1 << 13;
        const AVX2 = 1 << 14;
        const FMA = 1 << 15;
        const F16C = 1 << 16;
        const VAES = 1 << 17;
        const VPCLMULQDQ = 1 << 18;
        const BMI1 = 1 << 19;
        const BMI2 = 1 << 20;
        const ADX = 1 << 21;
        const LZCNT = 1 << 22;
        const POPCNT = 1 << 23;
        const MOVBE = 1 << 24;
        const CMOV = 1 << 25;
        const CX8 = 1 << 26;
        const CX16 = 1 << 27;
        const FXSR = 1 << 28;
        const XSAVE = 1 << 29;
        const XSAVEOPT = 1 << 30;
        const XSAVEC = 1 << 31;
        const XSAVES = 1 << 32;
        const FSGSBASE = 1 << 33;
        const RDRAND = 1 << 34;
        const RDSEED = 1 << 35;
        const TSC = 1 << 36;
        const RDTSCP = 1 << 37;
        const RDPID = 1 << 38;
        const MSR = 1 << 39;
        /// SYSENTER and SYSEXIT.
        const SEP = 1 << 40;
        /// SYSCALL and SYSRET.
        const SYSCALL = 1 << 41;
        /// LAHF and SAHF in 64-bit mode.
        const LAHF64 = 1 << 42;
        /// CLFLUSH.
        const CLFSH = 1 << 43;
        const CLFLUSHOPT = 1 << 44;
        const CLWB = 1 << 45;
        const WBNOINVD = 1 << 46;
        const MONITOR = 1 << 47;
        const INVPCID = 1 << 48;
        const SMAP = 1 << 49;
        const PREFETCHW = 1 << 50;
        const PKU = 1 << 51;
        const CET_IBT = 1 << 52;
        const RTM = 1 << 53;
        const MOVDIRI = 1 << 54;
        const MOVDIR64B = 1 << 55;
        const SERIALIZE = 1 << 56;
        /// VMCALL, offered with a hypervisor's interface and not by a CPUID bit.
        const VMCALL = 1 << 57;
        /// VMMCALL, likewise.
        const VMMCALL = 1 << 58;
        /// RDPMC, which every family 6 processor has.
        const RDPMC = 1 << 59;

        // The system.
        const VME = 1 << 64;
        const DE = 1 << 65;
        const PSE = 1 << 66;
        const PAE = 1 << 67;
        const MCE = 1 << 68;
        const APIC = 1 << 69;
        const MTRR = 1 << 70;
        const PGE = 1 << 71;
        const MCA = 1 << 72;
        const PAT = 1 << 73;
        const PSE36 = 1 << 74;
        const SS = 1 << 75;
        const PCID = 1 << 76;
        const X2APIC = 1 << 77;
        const TSC_DEADLINE = 1 << 78;
        const HYPERVISOR = 1 << 79;
        const TSC_ADJUST = 1 << 80;
        const SMEP = 1 << 81;
        const ERMS = 1 << 82;
        const UMIP = 1 << 83;
        const ARAT = 1 << 84;
        const NX = 1 << 85;
        const PDPE1GB = 1 << 86;
        /// Long mode (CPUID's "Intel 64").
        const LM = 1 << 87;
        const INVARIANT_TSC = 1 << 88;
        const SPEC_CTRL = 1 << 89;
        const ARCH_CAPABILITIES = 1 << 90;
        const FSRM = 1 << 91;
        /// x87 FCS and FDS are saved as zero.
        const FCS_FDS_DEPRECATED = 1 << 92;
        /// The x87 data pointer is updated by unmasked exceptions only.
        const FDP_EXCPTN_ONLY = 1 << 93;
        const SSBD = 1 << 94;
        const STIBP = 1 << 95;
        /// IA32_SPEC_CTRL.BHI_DIS_S.
        const BHI_CTRL = 1 << 96;
        const MCDT_NO = 1 << 97;
    }
}

impl Features {
    /// The part that decides which encodings exist.
    pub const ENCODINGS: Features = Features::from_bits_truncate(u64::MAX as u128);

    /// The encoding-deciding part as a machine word, for the decoder's one-compare test.
    pub(crate) const fn encodings(self) -> u64 {
        self.bits() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodings_are_the_low_half() {
        assert!(Features::ENCODINGS.contains(Features::RDPMC | Features::FPU));
        assert!(!Features::ENCODINGS.intersects(Features::VME | Features::NX));
        assert_eq!((Features::FPU | Features::NX).encodings(), 1);
    }
}
