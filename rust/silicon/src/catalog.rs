//! The encodings of a CPU model, and which of them are not run on the host and why.
//!
//! The list comes from iced-x86's table of encodings, so that it does not depend on the decoder under test.

use std::collections::BTreeMap;

use iced_x86::{Code, CpuidFeature, EncodingKind, Mnemonic, OpCodeOperandKind};
use trapgate_x86::features::Features;
use trapgate_x86::model::host;

use crate::MODEL;
use crate::case::Mode;

/// Which test an encoding belongs to, and how its states are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    Integer,
    X87,
    /// MMX and SSE, with AES and PCLMULQDQ.
    Vector,
    /// AVX, AVX2, FMA and F16C.
    Avx,
}

/// What is done with an encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Run,
    /// Not run, for this reason.
    Skip(&'static str),
    /// This host has not got the feature.
    HostLacks(CpuidFeature),
}

/// An encoding of the model.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    pub code: Code,
    pub group: Group,
    pub verdict: Verdict,
}

/// Every encoding that the model offers in a mode.
pub fn catalog(mode: Mode) -> Vec<Entry> {
    let host = HostFeatures::default();
    Code::values()
        .filter(|&code| is_offered(code, mode))
        .map(|code| Entry { code, group: group(code), verdict: verdict(code, &host) })
        .collect()
}

fn is_offered(code: Code, mode: Mode) -> bool {
    let info = code.op_code();
    let there = match mode {
        Mode::Long => info.mode64() && info.intel_decoder64(),
        Mode::Compatibility => info.mode32() && info.intel_decoder32() && info.compatibility_mode(),
    };
    info.is_instruction()
        && matches!(info.encoding(), EncodingKind::Legacy | EncodingKind::VEX)
        && there
        && info.mnemonic() != Mnemonic::INVALID
        && code.cpuid_features().iter().all(|&feature| model_has(feature))
}

/// The model's answer to the library's name of a feature. What the model's set has no bit for, because no model can be
/// without it, is offered.
fn model_has(feature: CpuidFeature) -> bool {
    use CpuidFeature::*;
    let ours = match feature {
        INTEL8086 | INTEL186 | INTEL286 | INTEL386 | INTEL486 | X64 | CPUID | MULTIBYTENOP | PAUSE => {
            return true;
        }
        FPU | FPU287 | FPU387 => Features::FPU,
        MMX => Features::MMX,
        SSE => Features::SSE,
        SSE2 => Features::SSE2,
        SSE3 => Features::SSE3,
        SSSE3 => Features::SSSE3,
        SSE4_1 => Features::SSE4_1,
        SSE4_2 => Features::SSE4_2,
        AES => Features::AES,
        PCLMULQDQ => Features::PCLMULQDQ,
        CMOV => Features::CMOV,
        CX8 => Features::CX8,
        CMPXCHG16B => Features::CX16,
        POPCNT => Features::POPCNT,
        FXSR => Features::FXSR,
        XSAVE => Features::XSAVE,
        XSAVEOPT => Features::XSAVEOPT,
        XSAVEC => Features::XSAVEC,
        AVX => Features::AVX,
        AVX2 => Features::AVX2,
        FMA => Features::FMA,
        F16C => Features::F16C,
        VAES => Features::VAES,
        VPCLMULQDQ => Features::VPCLMULQDQ,
        RDSEED => Features::RDSEED,
        RDPID => Features::RDPID,
        CLFLUSHOPT => Features::CLFLUSHOPT,
        CLWB => Features::CLWB,
        CLFSH => Features::CLFSH,
        FSGSBASE => Features::FSGSBASE,
        RDRAND => Features::RDRAND,
        TSC => Features::TSC,
        RDTSCP => Features::RDTSCP,
        RDPMC => Features::RDPMC,
        MSR => Features::MSR,
        SEP => Features::SEP,
        SYSCALL => Features::SYSCALL,
        INVPCID => Features::INVPCID,
        BMI1 => Features::BMI1,
        BMI2 => Features::BMI2,
        ADX => Features::ADX,
        LZCNT => Features::LZCNT,
        MOVBE => Features::MOVBE,
        PREFETCHW => Features::PREFETCHW,
        SMAP => Features::SMAP,
        _ => return false,
    };
    MODEL.features.contains(ours)
}

/// What the processor that runs this offers.
#[derive(Debug, Default)]
struct HostFeatures {
    known: std::cell::RefCell<BTreeMap<u32, bool>>,
}

impl HostFeatures {
    fn has(&self, feature: CpuidFeature) -> bool {
        *self.known.borrow_mut().entry(feature as u32).or_insert_with(|| match feature {
            CpuidFeature::SSE3 => is_x86_feature_detected!("sse3"),
            CpuidFeature::SSSE3 => is_x86_feature_detected!("ssse3"),
            CpuidFeature::SSE4_1 => is_x86_feature_detected!("sse4.1"),
            CpuidFeature::SSE4_2 => is_x86_feature_detected!("sse4.2"),
            CpuidFeature::AES => is_x86_feature_detected!("aes"),
            CpuidFeature::PCLMULQDQ => is_x86_feature_detected!("pclmulqdq"),
            CpuidFeature::CMPXCHG16B => is_x86_feature_detected!("cmpxchg16b"),
            CpuidFeature::POPCNT => is_x86_feature_detected!("popcnt"),
            CpuidFeature::XSAVE => is_x86_feature_detected!("xsave"),
            CpuidFeature::XSAVEOPT => is_x86_feature_detected!("xsaveopt"),
            // The others by the model that was made from them.
            CpuidFeature::AVX => host().features.contains(Features::AVX),
            CpuidFeature::AVX2 => host().features.contains(Features::AVX2),
            CpuidFeature::FMA => host().features.contains(Features::FMA),
            CpuidFeature::F16C => host().features.contains(Features::F16C),
            CpuidFeature::VAES => host().features.contains(Features::VAES),
            CpuidFeature::VPCLMULQDQ => host().features.contains(Features::VPCLMULQDQ),
            CpuidFeature::BMI1 => host().features.contains(Features::BMI1),
            CpuidFeature::BMI2 => host().features.contains(Features::BMI2),
            CpuidFeature::LZCNT => host().features.contains(Features::LZCNT),
            CpuidFeature::MOVBE => host().features.contains(Features::MOVBE),
            CpuidFeature::XSAVEC => host().features.contains(Features::XSAVEC),
            CpuidFeature::CLFLUSHOPT => host().features.contains(Features::CLFLUSHOPT),
            CpuidFeature::CLWB => host().features.contains(Features::CLWB),
            CpuidFeature::FSGSBASE => user_fsgsbase(),
            // The rest is what every x86-64 processor has.
            _ => true,
        })
    }
}

/// Whether the kernel lets user code read FS and GS bases: bit 1 of AT_HWCAP2.
#[allow(unsafe_code)]
fn user_fsgsbase() -> bool {
    // SAFETY: reads the auxiliary vector.
    unsafe { libc::getauxval(libc::AT_HWCAP2) & 2 != 0 }
}

pub(crate) fn group(code: Code) -> Group {
    let vector = |feature: &CpuidFeature| {
        use CpuidFeature::*;
        matches!(feature, MMX | SSE | SSE2 | SSE3 | SSSE3 | SSE4_1 | SSE4_2 | AES | PCLMULQDQ)
    };
    let features = code.cpuid_features();
    let avx = |feature: &CpuidFeature| {
        use CpuidFeature::*;
        matches!(feature, AVX | AVX2 | FMA | F16C | VAES | VPCLMULQDQ)
    };
    if features.iter().any(avx) {
        Group::Avx
    } else if features
        .iter()
        .any(|feature| matches!(feature, CpuidFeature::FPU | CpuidFeature::FPU287 | CpuidFeature::FPU387))
    {
        Group::X87
    } else if features.iter().any(vector) || code.op_code().is_save_restore() {
        Group::Vector
    } else {
        Group::Integer
    }
}

fn verdict(code: Code, host: &HostFeatures) -> Verdict {
    if let Some(reason) = reason(code) {
        return Verdict::Skip(reason);
    }
    match code.cpuid_features().iter().find(|&&feature| !host.has(feature)) {
        Some(&feature) => Verdict::HostLacks(feature),
        None => Verdict::Run,
    }
}

/// Why an encoding is never run on the host.
fn reason(code: Code) -> Option<&'static str> {
    use Mnemonic::*;
    let info = code.op_code();
    let loads_segment = || {
        info.op_count() > 0
            && matches!(
                info.op_kind(0),
                OpCodeOperandKind::seg_reg
                    | OpCodeOperandKind::es
                    | OpCodeOperandKind::ss
                    | OpCodeOperandKind::ds
                    | OpCodeOperandKind::fs
                    | OpCodeOperandKind::gs
            )
            && !matches!(code.mnemonic(), Push)
    };
    Some(match code.mnemonic() {
        Sgdt | Sidt | Sldt | Str | Smsw => "kernels with UMIP fake it",
        Lar | Lsl | Verr | Verw => "shows the host's descriptor tables",
        Lss | Lfs | Lgs | Lds | Les => "loads a segment register",
        Mov | Pop if loads_segment() => "loads a segment register",
        Retf | Iret | Iretd | Iretq => "far transfer through the host's descriptor tables",
        Call | Jmp if is_far(code) => "far transfer through the host's descriptor tables",
        Int | Int1 => "goes through the host's interrupt table",
        Syscall | Sysenter => "system call",
        Wrfsbase | Wrgsbase => "loads a segment base",
        Cpuid | Rdtsc | Rdtscp | Rdrand | Rdseed | Rdpid | Xgetbv | Rdpmc => "the host's answer differs",
        _ if info.is_privileged() || info.is_input_output() || info.must_be_cpl0() => "privileged",
        Cli | Sti => "privileged",
        _ => return None,
    })
}

fn is_far(code: Code) -> bool {
    let info = code.op_code();
    let pointer = matches!(info.op_kind(0), OpCodeOperandKind::farbr2_2 | OpCodeOperandKind::farbr4_2);
    pointer || info.instruction_string().contains(" m16:")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_catalogue_is_the_models() {
        let codes: BTreeSet<_> = catalog(Mode::Long).iter().map(|entry| entry.code as u32).collect();
        let has = |code: Code| codes.contains(&(code as u32));
        assert!(has(Code::Add_rm8_r8) && has(Code::Aesenc_xmm_xmmm128) && has(Code::Popcnt_r64_rm64));
        assert!(has(Code::Tzcnt_r64_rm64) && has(Code::VEX_Vaddps_xmm_xmm_xmmm128));
        assert!(!has(Code::Adcx_r32_rm32) && !has(Code::EVEX_Vaddps_xmm_k1z_xmm_xmmm128b32));
        assert!(!has(Code::Daa));
        let narrow: BTreeSet<_> =
            catalog(Mode::Compatibility).iter().map(|entry| entry.code as u32).collect();
        assert!(narrow.contains(&(Code::Daa as u32)) && !narrow.contains(&(Code::Add_rm64_r64 as u32)));
    }

    #[test]
    fn what_would_act_on_the_host_is_not_run() {
        let all = [catalog(Mode::Long), catalog(Mode::Compatibility)].concat();
        for entry in all.iter().filter(|entry| entry.verdict == Verdict::Run) {
            let info = entry.code.op_code();
            assert!(!info.is_privileged() && !info.is_input_output(), "{:?}", entry.code);
            use Mnemonic::*;
            let never = [
                Syscall, Sysenter, Int, Wrfsbase, Wrgsbase, Sgdt, Sidt, Sldt, Str, Smsw, Lss, Lfs, Lgs,
                Wrpkru,
            ];
            assert!(!never.contains(&entry.code.mnemonic()), "{:?}", entry.code);
        }
    }
}
