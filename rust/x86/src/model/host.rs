//! `host`: what the host's processor offers and the engine can run, on the processor of the other models. The host's own
//! identity, errata and timing are not shown, so that a guest takes no way that is meant for them.

use std::sync::LazyLock;

#[cfg(target_arch = "x86_64")]
use super::Cpuid;
use super::{Model, X86_64_V3, x86_64_v2};
use crate::features::Features;

/// Instructions that the engine runs beyond those of any named model.
const MORE: Features = Features::VAES
    .union(Features::VPCLMULQDQ)
    .union(Features::RDSEED)
    .union(Features::RDPID)
    .union(Features::CLFLUSHOPT)
    .union(Features::CLWB)
    .union(Features::FSRM);

/// Everything that the engine runs.
pub const RUNNABLE: Features = X86_64_V3.features.union(MORE);

/// What the host is asked for. The rest is either in every x86-64 processor or made by the machine alone.
const ASKED: Features = MORE
    .union(Features::SSE3)
    .union(Features::SSSE3)
    .union(Features::SSE4_1)
    .union(Features::SSE4_2)
    .union(Features::AES)
    .union(Features::PCLMULQDQ)
    .union(Features::AVX)
    .union(Features::AVX2)
    .union(Features::FMA)
    .union(Features::F16C)
    .union(Features::BMI1)
    .union(Features::BMI2)
    .union(Features::LZCNT)
    .union(Features::MOVBE)
    .union(Features::POPCNT)
    .union(Features::CX16)
    .union(Features::LAHF64)
    .union(Features::RDRAND)
    .union(Features::ERMS)
    .union(Features::XSAVEC);

/// What needs the state of AVX.
const YMM: Features = Features::AVX
    .union(Features::AVX2)
    .union(Features::FMA)
    .union(Features::F16C)
    .union(Features::VAES)
    .union(Features::VPCLMULQDQ);

static HOST: LazyLock<Model> = LazyLock::new(|| Model {
    name: "host",
    brand: "Intel(R) Processor, as the host",
    features: offered(present()),
    ..x86_64_v2::PROCESSOR
});

/// The model of the name. It is the same throughout a process.
pub fn host() -> &'static Model {
    &HOST
}

/// The features of the model on a host that has these.
fn offered(host: Features) -> Features {
    let features = RUNNABLE - (ASKED - host);
    if features.contains(Features::AVX) { features } else { features - YMM }
}

/// The features of this host that its operating system lets programs use.
#[cfg(target_arch = "x86_64")]
fn present() -> Features {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    let answer = |leaf: u32, subleaf| {
        let highest = __cpuid(leaf & 0x8000_0000).eax;
        if leaf > highest {
            return Cpuid::default();
        }
        let found = __cpuid_count(leaf, subleaf);
        Cpuid { eax: found.eax, ebx: found.ebx, ecx: found.ecx, edx: found.edx }
    };
    let features = Features::from_cpuid(answer);
    // Looks at OSXSAVE and XCR0 as well.
    if std::arch::is_x86_feature_detected!("avx") { features } else { features - YMM }
}

/// A host of another architecture leaves nothing out: the engine runs everything portably.
#[cfg(not(target_arch = "x86_64"))]
fn present() -> Features {
    Features::all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_takes_away_what_it_lacks_and_nothing_else() {
        assert_eq!(offered(Features::all()), RUNNABLE);
        assert_eq!(offered(Features::all() - Features::BMI2), RUNNABLE - Features::BMI2);
        assert_eq!(offered(Features::all() - Features::AVX), RUNNABLE - YMM, "AVX2 and FMA go with AVX");
        let least = offered(Features::empty());
        assert!(
            least.contains(Features::SSE2 | Features::LM | Features::APIC | Features::PCID | Features::XSAVE)
        );
        assert!(!least.intersects(ASKED));
        assert!(RUNNABLE.contains(host().features));
    }
}
