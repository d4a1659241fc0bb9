//! Model-specific registers: numbers, and for each model the list of those that exist, with reset values and what may be
//! written (Intel SDM vol. 4, chapter 2). Access to any other number is #GP(0).

use crate::features::Features;
use crate::model::Model;

pub const IA32_TIME_STAMP_COUNTER: u32 = 0x10;
pub const IA32_PLATFORM_ID: u32 = 0x17;
pub const IA32_APIC_BASE: u32 = 0x1b;
pub const IA32_FEATURE_CONTROL: u32 = 0x3a;
pub const IA32_TSC_ADJUST: u32 = 0x3b;
pub const IA32_SPEC_CTRL: u32 = 0x48;
pub const IA32_PRED_CMD: u32 = 0x49;
pub const IA32_BIOS_UPDT_TRIG: u32 = 0x79;
pub const IA32_BIOS_SIGN_ID: u32 = 0x8b;
pub const MSR_PLATFORM_INFO: u32 = 0xce;
pub const IA32_MTRRCAP: u32 = 0xfe;
pub const IA32_ARCH_CAPABILITIES: u32 = 0x10a;
pub const IA32_SYSENTER_CS: u32 = 0x174;
pub const IA32_SYSENTER_ESP: u32 = 0x175;
pub const IA32_SYSENTER_EIP: u32 = 0x176;
pub const IA32_MCG_CAP: u32 = 0x179;
pub const IA32_MCG_STATUS: u32 = 0x17a;
pub const IA32_MISC_ENABLE: u32 = 0x1a0;
pub const IA32_DEBUGCTL: u32 = 0x1d9;
pub const IA32_MTRR_PHYSBASE0: u32 = 0x200;
pub const IA32_MTRR_PHYSMASK0: u32 = 0x201;
pub const IA32_MTRR_FIX64K_00000: u32 = 0x250;
pub const IA32_MTRR_FIX16K_80000: u32 = 0x258;
pub const IA32_MTRR_FIX16K_A0000: u32 = 0x259;
pub const IA32_MTRR_FIX4K_C0000: u32 = 0x268;
pub const IA32_MTRR_FIX4K_F8000: u32 = 0x26f;
pub const IA32_PAT: u32 = 0x277;
pub const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;
pub const IA32_TSC_DEADLINE: u32 = 0x6e0;
/// First and last register of the x2APIC (SDM vol. 3, 11.12.1.2).
pub const X2APIC_FIRST: u32 = 0x800;
pub const X2APIC_LAST: u32 = 0x8ff;
pub const IA32_EFER: u32 = 0xc000_0080;
pub const IA32_STAR: u32 = 0xc000_0081;
pub const IA32_LSTAR: u32 = 0xc000_0082;
pub const IA32_CSTAR: u32 = 0xc000_0083;
pub const IA32_FMASK: u32 = 0xc000_0084;
pub const IA32_FS_BASE: u32 = 0xc000_0100;
pub const IA32_GS_BASE: u32 = 0xc000_0101;
pub const IA32_KERNEL_GS_BASE: u32 = 0xc000_0102;
pub const IA32_TSC_AUX: u32 = 0xc000_0103;

/// Variable-range MTRR pairs that IA32_MTRRCAP announces.
pub const VARIABLE_MTRRS: u32 = 8;

/// IA32_APIC_BASE (SDM vol. 3, 11.4.4 and 11.12.1).
pub mod apic_base {
    pub const BSP: u64 = 1 << 8;
    pub const EXTD: u64 = 1 << 10;
    pub const ENABLE: u64 = 1 << 11;
    /// Where the local APIC is after reset.
    pub const ADDRESS: u64 = 0xfee0_0000;
}

/// IA32_MISC_ENABLE.
pub mod misc_enable {
    pub const FAST_STRINGS: u64 = 1 << 0;
    pub const BTS_UNAVAILABLE: u64 = 1 << 11;
    pub const PEBS_UNAVAILABLE: u64 = 1 << 12;
}

/// IA32_DEBUGCTL.
pub mod debugctl {
    pub const LBR: u64 = 1 << 0;
    /// Single-step on branches.
    pub const BTF: u64 = 1 << 1;
}

/// IA32_SPEC_CTRL.
pub mod spec_ctrl {
    pub const IBRS: u64 = 1 << 0;
    pub const STIBP: u64 = 1 << 1;
    pub const SSBD: u64 = 1 << 2;
    pub const BHI_DIS_S: u64 = 1 << 10;
}

/// Who keeps a register, and what a read and a write do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A value that nothing but RDMSR and WRMSR looks at: kept as written.
    Stored,
    /// Reads give the reset value; writes are #GP.
    Constant,
    /// Reads give the reset value; writes do nothing (IA32_BIOS_SIGN_ID, which software clears before CPUID loads it).
    Sink,
    /// Write-only command; reads are #GP.
    Command,
    /// State of the logical processor that the executor keeps elsewhere or computes.
    Engine,
    /// The local APIC's.
    Apic,
}

/// What values a write accepts; anything else is #GP(0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Bits outside the mask must keep their value: reserved ones are zero, read-only ones as they are.
    Mask(u64),
    /// A canonical address (SDM vol. 1, 3.3.7.1).
    Canonical,
    /// Eight memory types of the page-attribute table: 0, 1, 4 to 7.
    PatTypes,
    /// Eight memory types of a fixed-range MTRR: 0, 1, 4 to 6.
    MtrrTypes,
    /// A memory type in the low byte and bits of the mask.
    MtrrType(u64),
}

/// One register of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msr {
    pub number: u32,
    pub name: &'static str,
    pub kind: Kind,
    /// Value after reset of the bootstrap processor, memory types as firmware leaves them. [`Kind::Engine`] registers that
    /// depend on the machine (time, platform ratio) show 0 here.
    pub reset: u64,
    pub rule: Rule,
}

impl Msr {
    /// Whether WRMSR of `new` over `old` is accepted. Bit rules of the APIC's own registers are the APIC's.
    pub fn accepts(&self, old: u64, new: u64, linear_bits: u8) -> bool {
        let types = |allowed: u8| new.to_le_bytes().iter().all(|&kind| kind < 8 && allowed & 1 << kind != 0);
        match (self.kind, self.rule) {
            (Kind::Constant, _) => false,
            (Kind::Sink, _) => true,
            (Kind::Command, Rule::Mask(mask)) => new & !mask == 0,
            (_, Rule::Mask(mask)) => (old ^ new) & !mask == 0,
            (_, Rule::Canonical) => is_canonical(new, linear_bits),
            (_, Rule::PatTypes) => types(0b1111_0011),
            (_, Rule::MtrrTypes) => types(0b0111_0011),
            (_, Rule::MtrrType(mask)) => matches!(new & 0xff, 0 | 1 | 4..=6) && new & !(mask | 0xff) == 0,
        }
    }
}

/// Whether bits 63 to `linear_bits` - 1 are equal.
pub fn is_canonical(address: u64, linear_bits: u8) -> bool {
    let shift = 64 - u32::from(linear_bits.clamp(1, 64));
    ((address << shift) as i64 >> shift) as u64 == address
}

impl Model {
    /// The register with this number, if the model has it.
    pub fn msr(&self, number: u32) -> Option<Msr> {
        match number {
            X2APIC_FIRST..=X2APIC_LAST => self.features.contains(Features::X2APIC).then_some(Msr {
                number,
                name: "x2APIC",
                kind: Kind::Apic,
                reset: 0,
                rule: Rule::Mask(u64::MAX),
            }),
            _ => self.system_msr(number).or_else(|| self.memory_type_msr(number)),
        }
    }

    /// Every register of the model outside the x2APIC's range, in ascending order.
    pub fn msrs(&self) -> impl Iterator<Item = Msr> + '_ {
        (0..0x800).chain(0xc000_0000..0xc000_0200).filter_map(|number| self.msr(number))
    }

    fn system_msr(&self, number: u32) -> Option<Msr> {
        use Rule::{Canonical, Mask};
        const ALL: Rule = Mask(u64::MAX);
        const LOW: Rule = Mask(0xffff_ffff);
        let has = |feature| self.features.contains(feature);
        let long = has(Features::LM);
        let (offered, name, kind, reset, rule) = match number {
            IA32_TIME_STAMP_COUNTER => (has(Features::TSC), "IA32_TIME_STAMP_COUNTER", Kind::Engine, 0, ALL),
            IA32_PLATFORM_ID => (true, "IA32_PLATFORM_ID", Kind::Constant, 0, Mask(0)),
            IA32_APIC_BASE => {
                let reset = apic_base::ADDRESS | apic_base::ENABLE | apic_base::BSP;
                (has(Features::APIC), "IA32_APIC_BASE", Kind::Apic, reset, Mask(self.apic_base_mask()))
            }
            // Locked by firmware, with nothing enabled: there is no VMX to enable.
            IA32_FEATURE_CONTROL => (true, "IA32_FEATURE_CONTROL", Kind::Constant, 1, Mask(0)),
            IA32_TSC_ADJUST => (has(Features::TSC_ADJUST), "IA32_TSC_ADJUST", Kind::Engine, 0, ALL),
            IA32_SPEC_CTRL => {
                (has(Features::SPEC_CTRL), "IA32_SPEC_CTRL", Kind::Stored, 0, Mask(self.spec_ctrl_mask()))
            }
            IA32_PRED_CMD => (has(Features::SPEC_CTRL), "IA32_PRED_CMD", Kind::Command, 0, Mask(1)),
            // The address of an update; none is ever newer than what is loaded.
            IA32_BIOS_UPDT_TRIG => (true, "IA32_BIOS_UPDT_TRIG", Kind::Command, 0, ALL),
            IA32_BIOS_SIGN_ID => {
                (true, "IA32_BIOS_SIGN_ID", Kind::Sink, u64::from(self.microcode) << 32, ALL)
            }
            MSR_PLATFORM_INFO => (true, "MSR_PLATFORM_INFO", Kind::Engine, 0, Mask(0)),
            IA32_ARCH_CAPABILITIES => {
                let offered = has(Features::ARCH_CAPABILITIES);
                (offered, "IA32_ARCH_CAPABILITIES", Kind::Constant, self.arch_capabilities, Mask(0))
            }
            IA32_SYSENTER_CS => (has(Features::SEP), "IA32_SYSENTER_CS", Kind::Engine, 0, LOW),
            IA32_SYSENTER_ESP => {
                (has(Features::SEP), "IA32_SYSENTER_ESP", Kind::Engine, 0, if long { Canonical } else { LOW })
            }
            IA32_SYSENTER_EIP => {
                (has(Features::SEP), "IA32_SYSENTER_EIP", Kind::Engine, 0, if long { Canonical } else { LOW })
            }
            // No banks, no IA32_MCG_CTL.
            IA32_MCG_CAP => (has(Features::MCA), "IA32_MCG_CAP", Kind::Constant, 0, Mask(0)),
            // RIPV, EIPV, MCIP.
            IA32_MCG_STATUS => (has(Features::MCA), "IA32_MCG_STATUS", Kind::Stored, 0, Mask(7)),
            IA32_MISC_ENABLE => {
                use misc_enable::*;
                let reset = FAST_STRINGS | BTS_UNAVAILABLE | PEBS_UNAVAILABLE;
                (true, "IA32_MISC_ENABLE", Kind::Stored, reset, Mask(FAST_STRINGS))
            }
            IA32_DEBUGCTL => (true, "IA32_DEBUGCTL", Kind::Engine, 0, Mask(debugctl::LBR | debugctl::BTF)),
            IA32_TSC_DEADLINE => (has(Features::TSC_DEADLINE), "IA32_TSC_DEADLINE", Kind::Apic, 0, ALL),
            IA32_EFER => (self.efer_mask() != 0, "IA32_EFER", Kind::Engine, 0, Mask(self.efer_mask())),
            IA32_STAR => (has(Features::SYSCALL), "IA32_STAR", Kind::Engine, 0, ALL),
            IA32_LSTAR => (has(Features::SYSCALL) && long, "IA32_LSTAR", Kind::Engine, 0, Canonical),
            IA32_CSTAR => (has(Features::SYSCALL) && long, "IA32_CSTAR", Kind::Stored, 0, Canonical),
            IA32_FMASK => (has(Features::SYSCALL) && long, "IA32_FMASK", Kind::Engine, 0, LOW),
            IA32_FS_BASE => (long, "IA32_FS_BASE", Kind::Engine, 0, Canonical),
            IA32_GS_BASE => (long, "IA32_GS_BASE", Kind::Engine, 0, Canonical),
            IA32_KERNEL_GS_BASE => (long, "IA32_KERNEL_GS_BASE", Kind::Engine, 0, Canonical),
            IA32_TSC_AUX => {
                let offered = has(Features::RDTSCP) || has(Features::RDPID);
                (offered, "IA32_TSC_AUX", Kind::Engine, 0, LOW)
            }
            _ => return None,
        };
        offered.then_some(Msr { number, name, kind, reset, rule })
    }

    /// Memory types (SDM vol. 3, 12.11 and 12.12), as firmware leaves them: all write-back but the legacy video window.
    fn memory_type_msr(&self, number: u32) -> Option<Msr> {
        const WRITE_BACK: u64 = 6;
        const WRITE_BACK_8: u64 = 0x0606_0606_0606_0606;
        const LAST_VARIABLE: u32 = IA32_MTRR_PHYSBASE0 + 2 * VARIABLE_MTRRS - 1;
        let mtrr = self.features.contains(Features::MTRR);
        let address = (1u64 << self.physical_bits) - 0x1000;
        let (offered, name, kind, reset, rule) = match number {
            // Fixed ranges and write-combining exist.
            IA32_MTRRCAP => (
                mtrr,
                "IA32_MTRRCAP",
                Kind::Constant,
                u64::from(VARIABLE_MTRRS) | 1 << 8 | 1 << 10,
                Rule::Mask(0),
            ),
            IA32_MTRR_PHYSBASE0..=LAST_VARIABLE if number & 1 == 0 => {
                (mtrr, "IA32_MTRR_PHYSBASE", Kind::Stored, 0, Rule::MtrrType(address))
            }
            IA32_MTRR_PHYSBASE0..=LAST_VARIABLE => {
                (mtrr, "IA32_MTRR_PHYSMASK", Kind::Stored, 0, Rule::Mask(address | 1 << 11))
            }
            IA32_MTRR_FIX16K_A0000 => (mtrr, "IA32_MTRR_FIX16K_A0000", Kind::Stored, 0, Rule::MtrrTypes),
            IA32_MTRR_FIX64K_00000 => {
                (mtrr, "IA32_MTRR_FIX64K_00000", Kind::Stored, WRITE_BACK_8, Rule::MtrrTypes)
            }
            IA32_MTRR_FIX16K_80000 => {
                (mtrr, "IA32_MTRR_FIX16K_80000", Kind::Stored, WRITE_BACK_8, Rule::MtrrTypes)
            }
            IA32_MTRR_FIX4K_C0000..=IA32_MTRR_FIX4K_F8000 => {
                (mtrr, "IA32_MTRR_FIX4K", Kind::Stored, WRITE_BACK_8, Rule::MtrrTypes)
            }
            // Enabled, fixed ranges enabled.
            IA32_MTRR_DEF_TYPE => {
                let reset = 1 << 11 | 1 << 10 | WRITE_BACK;
                (mtrr, "IA32_MTRR_DEF_TYPE", Kind::Stored, reset, Rule::MtrrType(1 << 11 | 1 << 10))
            }
            IA32_PAT => {
                let pat = self.features.contains(Features::PAT);
                (pat, "IA32_PAT", Kind::Stored, 0x0007_0406_0007_0406, Rule::PatTypes)
            }
            _ => return None,
        };
        offered.then_some(Msr { number, name, kind, reset, rule })
    }

    /// Bits of IA32_APIC_BASE that software may change.
    fn apic_base_mask(&self) -> u64 {
        let x2apic = if self.features.contains(Features::X2APIC) { apic_base::EXTD } else { 0 };
        ((1u64 << self.physical_bits) - 0x1000) | apic_base::ENABLE | x2apic
    }

    fn spec_ctrl_mask(&self) -> u64 {
        let table = [
            (Features::SPEC_CTRL, spec_ctrl::IBRS),
            (Features::STIBP, spec_ctrl::STIBP),
            (Features::SSBD, spec_ctrl::SSBD),
            (Features::BHI_CTRL, spec_ctrl::BHI_DIS_S),
        ];
        table
            .iter()
            .filter(|(feature, _)| self.features.contains(*feature))
            .fold(0, |mask, (_, bit)| mask | bit)
    }

    /// MSR_PLATFORM_INFO: the base ratio to the 100 MHz bus in bits 15 to 8, the lowest in bits 47 to 40.
    pub fn platform_info(&self, tsc_khz: u32) -> u64 {
        let ratio = u64::from((tsc_khz / 100_000).clamp(1, 0xff));
        ratio << 8 | ratio << 40
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::X86_64_V2;

    #[test]
    fn canonical_addresses() {
        assert!(is_canonical(0x7fff_ffff_ffff, 48));
        assert!(!is_canonical(0x8000_0000_0000, 48));
        assert!(is_canonical(0xffff_8000_0000_0000, 48));
        assert!(!is_canonical(0xfffe_8000_0000_0000, 48));
    }

    #[test]
    fn unknown_numbers_do_not_exist() {
        for number in [0x40, 0x140, 0x345, 0x606, 0x4000_0000, 0x4b56_4d00, 0xc001_0015, 0xda0] {
            assert_eq!(X86_64_V2.msr(number), None, "{number:#x}");
        }
    }

    #[test]
    fn writes_are_checked_by_their_rules() {
        let accepts = |number, new| {
            let msr = X86_64_V2.msr(number).unwrap();
            msr.accepts(msr.reset, new, 48)
        };
        assert!(accepts(IA32_PAT, 0x0407_0506_0007_0406));
        assert!(!accepts(IA32_PAT, 0x0207_0506_0007_0406));
        assert!(accepts(IA32_LSTAR, 0xffff_ffff_8100_0000));
        assert!(!accepts(IA32_LSTAR, 0x8000_0000_0000));
        assert!(accepts(IA32_SPEC_CTRL, spec_ctrl::IBRS | spec_ctrl::BHI_DIS_S));
        assert!(!accepts(IA32_SPEC_CTRL, 1 << 9));
        assert!(!accepts(IA32_FEATURE_CONTROL, 1));
        assert!(accepts(IA32_BIOS_SIGN_ID, 0));
        assert!(!accepts(IA32_MTRRCAP, 0x508));
        assert!(accepts(IA32_MTRR_DEF_TYPE, 0xc00) && !accepts(IA32_MTRR_DEF_TYPE, 0xc02));
        assert!(
            accepts(IA32_MTRR_PHYSBASE0 + 1, 0xff_c000_0800) && !accepts(IA32_MTRR_PHYSBASE0 + 1, 1 << 40)
        );
        assert!(!accepts(IA32_EFER, 1 << 12));
        let misc = X86_64_V2.msr(IA32_MISC_ENABLE).unwrap();
        assert!(misc.accepts(misc.reset, misc.reset & !1, 48) && !misc.accepts(misc.reset, 0, 48));
    }

    #[test]
    fn resets_satisfy_their_own_rules() {
        for msr in X86_64_V2.msrs() {
            let writable = !matches!(msr.kind, Kind::Constant);
            assert_eq!(msr.accepts(msr.reset, msr.reset, 48), writable, "{} {:#x}", msr.name, msr.number);
        }
        let listed = X86_64_V2.msrs().count();
        assert_eq!(listed, 58, "the model's registers outside the x2APIC's range");
    }
}
