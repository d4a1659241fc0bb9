//! CPUID computed from a model (Intel SDM vol. 2, "CPUID"): feature bits by table, the leaves that describe caches, topology,
//! state sizes and frequencies by rule, and what depends on the running machine from [`Dynamic`].

use super::{CacheKind, Model};
use crate::features::Features;
use crate::regs::xcr0;

/// What CPUID gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Cpuid {
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

/// Logical processors of the machine: one package. Numbers need not be powers of two; APIC ids are laid out as if they were.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Topology {
    pub cores: u32,
    pub threads_per_core: u32,
}

impl Topology {
    pub const SINGLE: Topology = Topology { cores: 1, threads_per_core: 1 };

    /// APIC id bits that number the thread in its core.
    pub fn thread_bits(self) -> u32 {
        bits_for(self.threads_per_core)
    }

    /// APIC id bits that number the logical processor in its package.
    pub fn package_bits(self) -> u32 {
        self.thread_bits() + bits_for(self.cores)
    }

    pub fn logical_processors(self) -> u32 {
        self.cores.max(1).saturating_mul(self.threads_per_core.max(1))
    }

    /// The APIC id of logical processor `n`, as firmware assigns them.
    pub fn apic_id(self, n: u32) -> u32 {
        let threads = self.threads_per_core.max(1);
        ((n / threads) << self.thread_bits()) | (n % threads)
    }
}

/// Bits that number `count` things; no package has more than 4096 of a kind.
fn bits_for(count: u32) -> u32 {
    count.clamp(1, 1 << 12).next_power_of_two().trailing_zeros()
}

/// What the answer depends on besides the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Dynamic {
    /// The initial (x2)APIC id of this logical processor.
    pub apic_id: u32,
    pub topology: Topology,
    /// IA32_APIC_BASE bit 11.
    pub apic_enabled: bool,
    /// CR4.OSXSAVE.
    pub osxsave: bool,
    /// XCR0, for the size of the enabled state.
    pub xcr0: u64,
    /// CS.L in long mode: Intel shows SYSCALL only there.
    pub in_64bit_mode: bool,
    /// Frequency of the time-stamp counter in kHz; exact in leaf 15h if a multiple of 100 kHz.
    pub tsc_khz: u32,
}

impl Dynamic {
    /// After reset, with a single processor.
    pub fn reset(tsc_khz: u32) -> Dynamic {
        Dynamic {
            apic_id: 0,
            topology: Topology::SINGLE,
            apic_enabled: true,
            osxsave: false,
            xcr0: xcr0::X87,
            in_64bit_mode: false,
            tsc_khz,
        }
    }
}

/// Registers of a CPUID answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// One feature bit: leaf, subleaf, register, bit number.
type Place = (u32, u32, Register, u32, Features);

use Register::{Eax, Ebx, Ecx, Edx};

/// Where CPUID shows each feature. OSXSAVE, APIC, HTT and SYSCALL also depend on [`Dynamic`].
const PLACES: &[Place] = &[
    (1, 0, Ecx, 0, Features::SSE3),
    (1, 0, Ecx, 1, Features::PCLMULQDQ),
    (1, 0, Ecx, 3, Features::MONITOR),
    (1, 0, Ecx, 9, Features::SSSE3),
    (1, 0, Ecx, 12, Features::FMA),
    (1, 0, Ecx, 13, Features::CX16),
    (1, 0, Ecx, 17, Features::PCID),
    (1, 0, Ecx, 19, Features::SSE4_1),
    (1, 0, Ecx, 20, Features::SSE4_2),
    (1, 0, Ecx, 21, Features::X2APIC),
    (1, 0, Ecx, 22, Features::MOVBE),
    (1, 0, Ecx, 23, Features::POPCNT),
    (1, 0, Ecx, 24, Features::TSC_DEADLINE),
    (1, 0, Ecx, 25, Features::AES),
    (1, 0, Ecx, 26, Features::XSAVE),
    (1, 0, Ecx, 28, Features::AVX),
    (1, 0, Ecx, 29, Features::F16C),
    (1, 0, Ecx, 30, Features::RDRAND),
    (1, 0, Ecx, 31, Features::HYPERVISOR),
    (1, 0, Edx, 0, Features::FPU),
    (1, 0, Edx, 1, Features::VME),
    (1, 0, Edx, 2, Features::DE),
    (1, 0, Edx, 3, Features::PSE),
    (1, 0, Edx, 4, Features::TSC),
    (1, 0, Edx, 5, Features::MSR),
    (1, 0, Edx, 6, Features::PAE),
    (1, 0, Edx, 7, Features::MCE),
    (1, 0, Edx, 8, Features::CX8),
    (1, 0, Edx, 9, Features::APIC),
    (1, 0, Edx, 11, Features::SEP),
    (1, 0, Edx, 12, Features::MTRR),
    (1, 0, Edx, 13, Features::PGE),
    (1, 0, Edx, 14, Features::MCA),
    (1, 0, Edx, 15, Features::CMOV),
    (1, 0, Edx, 16, Features::PAT),
    (1, 0, Edx, 17, Features::PSE36),
    (1, 0, Edx, 19, Features::CLFSH),
    (1, 0, Edx, 23, Features::MMX),
    (1, 0, Edx, 24, Features::FXSR),
    (1, 0, Edx, 25, Features::SSE),
    (1, 0, Edx, 26, Features::SSE2),
    (1, 0, Edx, 27, Features::SS),
    (6, 0, Eax, 2, Features::ARAT),
    (7, 0, Ebx, 0, Features::FSGSBASE),
    (7, 0, Ebx, 1, Features::TSC_ADJUST),
    (7, 0, Ebx, 3, Features::BMI1),
    (7, 0, Ebx, 5, Features::AVX2),
    (7, 0, Ebx, 6, Features::FDP_EXCPTN_ONLY),
    (7, 0, Ebx, 7, Features::SMEP),
    (7, 0, Ebx, 8, Features::BMI2),
    (7, 0, Ebx, 9, Features::ERMS),
    (7, 0, Ebx, 10, Features::INVPCID),
    (7, 0, Ebx, 11, Features::RTM),
    (7, 0, Ebx, 13, Features::FCS_FDS_DEPRECATED),
    (7, 0, Ebx, 18, Features::RDSEED),
    (7, 0, Ebx, 19, Features::ADX),
    (7, 0, Ebx, 20, Features::SMAP),
    (7, 0, Ebx, 23, Features::CLFLUSHOPT),
    (7, 0, Ebx, 24, Features::CLWB),
    (7, 0, Ebx, 29, Features::SHA),
    (7, 0, Ecx, 2, Features::UMIP),
    (7, 0, Ecx, 3, Features::PKU),
    (7, 0, Ecx, 8, Features::GFNI),
    (7, 0, Ecx, 9, Features::VAES),
    (7, 0, Ecx, 10, Features::VPCLMULQDQ),
    (7, 0, Ecx, 22, Features::RDPID),
    (7, 0, Ecx, 27, Features::MOVDIRI),
    (7, 0, Ecx, 28, Features::MOVDIR64B),
    (7, 0, Edx, 4, Features::FSRM),
    (7, 0, Edx, 14, Features::SERIALIZE),
    (7, 0, Edx, 20, Features::CET_IBT),
    (7, 0, Edx, 26, Features::SPEC_CTRL),
    (7, 0, Edx, 27, Features::STIBP),
    (7, 0, Edx, 29, Features::ARCH_CAPABILITIES),
    (7, 0, Edx, 31, Features::SSBD),
    (7, 2, Edx, 4, Features::BHI_CTRL),
    (7, 2, Edx, 5, Features::MCDT_NO),
    (0xd, 1, Eax, 0, Features::XSAVEOPT),
    (0xd, 1, Eax, 1, Features::XSAVEC),
    (0xd, 1, Eax, 3, Features::XSAVES),
    (0x8000_0001, 0, Ecx, 0, Features::LAHF64),
    (0x8000_0001, 0, Ecx, 5, Features::LZCNT),
    (0x8000_0001, 0, Ecx, 6, Features::SSE4A),
    (0x8000_0001, 0, Ecx, 8, Features::PREFETCHW),
    (0x8000_0001, 0, Edx, 11, Features::SYSCALL),
    (0x8000_0001, 0, Edx, 20, Features::NX),
    (0x8000_0001, 0, Edx, 26, Features::PDPE1GB),
    (0x8000_0001, 0, Edx, 27, Features::RDTSCP),
    (0x8000_0001, 0, Edx, 29, Features::LM),
    (0x8000_0007, 0, Edx, 8, Features::INVARIANT_TSC),
    (0x8000_0008, 0, Ebx, 9, Features::WBNOINVD),
];

impl Cpuid {
    fn register(&mut self, register: Register) -> &mut u32 {
        match register {
            Eax => &mut self.eax,
            Ebx => &mut self.ebx,
            Ecx => &mut self.ecx,
            Edx => &mut self.edx,
        }
    }
}

impl Features {
    /// The features that a processor's CPUID shows; `cpuid` answers leaf and subleaf. Leaves that it lacks must be zero.
    pub fn from_cpuid(mut cpuid: impl FnMut(u32, u32) -> Cpuid) -> Features {
        let mut features = Features::empty();
        let mut last = None;
        let mut answer = Cpuid::default();
        for &(leaf, subleaf, register, bit, feature) in PLACES {
            if last != Some((leaf, subleaf)) {
                answer = cpuid(leaf, subleaf);
                last = Some((leaf, subleaf));
            }
            if *answer.register(register) & 1 << bit != 0 {
                features |= feature;
            }
        }
        // Every family 6 processor has RDPMC.
        features | Features::RDPMC
    }
}

impl Model {
    /// The answer to CPUID with `leaf` in EAX and `subleaf` in ECX.
    ///
    /// A leaf above the highest gives the data of the highest basic leaf, as Intel processors do.
    pub fn cpuid(&self, leaf: u32, subleaf: u32, dynamic: &Dynamic) -> Cpuid {
        let leaf = match leaf {
            0x8000_0000..=0x8000_0008 => leaf,
            _ if leaf <= self.highest_leaf => leaf,
            _ => self.highest_leaf,
        };
        let mut answer = match leaf {
            0 => self.vendor_leaf(),
            1 => self.version_leaf(dynamic),
            2 => self.descriptors,
            4 => self.cache_leaf(subleaf, dynamic.topology),
            7 if subleaf == 0 => Cpuid { eax: 2, ..Cpuid::default() },
            0xb => topology_leaf(subleaf, dynamic),
            0xd => self.state_leaf(subleaf, dynamic.xcr0),
            0x15 => self.clock_leaf(dynamic.tsc_khz),
            0x16 => frequency_leaf(dynamic.tsc_khz),
            0x8000_0000 => Cpuid { eax: 0x8000_0008, ..Cpuid::default() },
            0x8000_0002..=0x8000_0004 => self.brand_leaf(leaf - 0x8000_0002),
            0x8000_0006 => self.level_2_leaf(),
            0x8000_0008 => Cpuid {
                eax: u32::from(self.physical_bits) | u32::from(self.linear_bits) << 8,
                ..Cpuid::default()
            },
            _ => Cpuid::default(),
        };
        let zero_extended = matches!(leaf, 1 | 6 | 0x8000_0001 | 0x8000_0007 | 0x8000_0008);
        for &(at, sub, register, bit, feature) in PLACES {
            if at == leaf && (zero_extended || sub == subleaf) && self.shows(feature, dynamic) {
                *answer.register(register) |= 1 << bit;
            }
        }
        answer
    }

    fn shows(&self, feature: Features, dynamic: &Dynamic) -> bool {
        self.features.contains(feature)
            && (feature != Features::APIC || dynamic.apic_enabled)
            && (feature != Features::X2APIC || dynamic.apic_enabled)
            && (feature != Features::SYSCALL || dynamic.in_64bit_mode)
    }

    fn vendor_leaf(&self) -> Cpuid {
        let word = |n: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| self.vendor[n + byte]));
        Cpuid { eax: self.highest_leaf, ebx: word(0), edx: word(4), ecx: word(8) }
    }

    fn version_leaf(&self, dynamic: &Dynamic) -> Cpuid {
        let ids = 1u32 << dynamic.topology.package_bits().min(7);
        const HTT: u32 = 1 << 28;
        const OSXSAVE: u32 = 1 << 27;
        Cpuid {
            eax: self.signature,
            // CLFLUSH line in 8 bytes, ids in the package, initial APIC id.
            ebx: 8 << 8 | ids << 16 | (dynamic.apic_id & 0xff) << 24,
            ecx: if dynamic.osxsave && self.features.contains(Features::XSAVE) { OSXSAVE } else { 0 },
            edx: if dynamic.topology.logical_processors() > 1 { HTT } else { 0 },
        }
    }

    /// Leaf 4: one cache each.
    fn cache_leaf(&self, subleaf: u32, topology: Topology) -> Cpuid {
        let Some(cache) = self.caches.get(subleaf as usize) else { return Cpuid::default() };
        let sharing: u32 = match cache.shared_by_package {
            true => 1 << topology.package_bits(),
            false => 1 << topology.thread_bits(),
        };
        let cores = 1u32 << (topology.package_bits() - topology.thread_bits());
        let kind = match cache.kind {
            CacheKind::Data => 1,
            CacheKind::Instruction => 2,
            CacheKind::Unified => 3,
        };
        const SELF_INITIALISING: u32 = 1 << 8;
        const LINE: u32 = 64;
        let sets = cache.kib * 1024 / (LINE * cache.ways);
        Cpuid {
            eax: kind
                | cache.level << 5
                | SELF_INITIALISING
                | (sharing.min(4096) - 1) << 14
                | (cores.min(64) - 1) << 26,
            ebx: (LINE - 1) | (cache.ways - 1) << 22,
            ecx: sets - 1,
            // Bit 1: includes the lower levels.
            edx: if cache.inclusive { 2 } else { 0 },
        }
    }

    /// Leaf 0Dh (SDM vol. 1, 13.2): x87 and SSE state are 512 bytes with the header of 64 behind them, AVX adds 256 at 576. With
    /// one component beyond the header the compacted format has the same size.
    fn state_leaf(&self, subleaf: u32, enabled: u64) -> Cpuid {
        let offered = self.xcr0_mask();
        if offered == 0 {
            return Cpuid::default();
        }
        let avx = offered & xcr0::AVX != 0;
        let size = |mask: u64| if mask & xcr0::AVX != 0 { 832 } else { 576 };
        match subleaf {
            0 => Cpuid {
                eax: offered as u32,
                ebx: size(enabled & offered),
                ecx: size(offered),
                edx: (offered >> 32) as u32,
            },
            // The feature bits are added by table.
            1 if self.features.intersects(Features::XSAVEC | Features::XSAVES) => {
                const XGETBV_1: u32 = 1 << 2;
                Cpuid { eax: XGETBV_1, ebx: size(enabled & offered), ..Cpuid::default() }
            }
            2 if avx => Cpuid { eax: 256, ebx: 576, ..Cpuid::default() },
            _ => Cpuid::default(),
        }
    }

    /// Leaf 15h: TSC = crystal * EBX / EAX. Kept small, since Linux multiplies the crystal's kHz by EBX in 32 bits.
    fn clock_leaf(&self, tsc_khz: u32) -> Cpuid {
        let crystal_khz = self.crystal_hz / 1000;
        let mut divisor = gcd(tsc_khz, crystal_khz);
        while u64::from(tsc_khz / divisor) * u64::from(crystal_khz) > u64::from(u32::MAX) {
            divisor *= 2;
        }
        let (numerator, denominator) = (tsc_khz / divisor, crystal_khz / divisor);
        if numerator == 0 || denominator == 0 {
            return Cpuid::default();
        }
        Cpuid { eax: denominator, ebx: numerator, ecx: self.crystal_hz, edx: 0 }
    }

    fn brand_leaf(&self, part: u32) -> Cpuid {
        let byte = |n: usize| self.brand.as_bytes().get(n).copied().unwrap_or(0);
        let word = |n: usize| {
            let at = part as usize * 16 + n * 4;
            u32::from_le_bytes([byte(at), byte(at + 1), byte(at + 2), byte(at + 3)])
        };
        Cpuid { eax: word(0), ebx: word(1), ecx: word(2), edx: word(3) }
    }

    /// Leaf 80000006h: size, associativity (8 ways are code 6) and line of the level 2 cache.
    fn level_2_leaf(&self) -> Cpuid {
        let kib = self.caches.iter().find(|cache| cache.level == 2).map_or(0, |cache| cache.kib);
        Cpuid { ecx: kib << 16 | 6 << 12 | 64, ..Cpuid::default() }
    }
}

/// Leaf 0Bh. Levels: threads of a core, then logical processors of the package.
fn topology_leaf(subleaf: u32, dynamic: &Dynamic) -> Cpuid {
    let topology = dynamic.topology;
    let (shift, count, kind) = match subleaf {
        0 => (topology.thread_bits(), topology.threads_per_core.max(1), 1),
        1 => (topology.package_bits(), topology.logical_processors(), 2),
        _ => (0, 0, 0),
    };
    Cpuid { eax: shift, ebx: count & 0xffff, ecx: subleaf & 0xff | kind << 8, edx: dynamic.apic_id }
}

/// Leaf 16h: base, maximum and bus frequency in MHz.
fn frequency_leaf(tsc_khz: u32) -> Cpuid {
    let mhz = tsc_khz / 1000;
    Cpuid { eax: mhz, ebx: mhz, ecx: 100, edx: 0 }
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a.max(1) } else { gcd(b, a % b) }
}
