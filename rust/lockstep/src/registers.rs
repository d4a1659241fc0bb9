//! The registers that two executors are compared by.

use std::fmt;

use trapgate_engine::state::Vcpu;
use trapgate_x86::insn::Bits;
use trapgate_x86::regs::rflags;

/// Names of the general registers by encoding.
pub const NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15",
];
/// Names of the segment registers by encoding.
pub const SEGMENTS: [&str; 6] = ["es", "cs", "ss", "ds", "fs", "gs"];

/// One processor's registers between two instructions, as far as QEMU's gdb stub shows them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Registers {
    pub general: [u64; 16],
    pub rip: u64,
    pub rflags: u64,
    /// ES, CS, SS, DS, FS, GS.
    pub selectors: [u16; 6],
    pub fs_base: u64,
    pub gs_base: u64,
    pub kernel_gs_base: u64,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    pub mxcsr: u32,
    pub xmm: [u128; 16],
}

/// A register that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    pub register: &'static str,
    pub first: u128,
    pub second: u128,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<8} {:#x} / {:#x}", self.register, self.first, self.second)?;
        if self.register == "rflags" {
            write!(f, " ({})", flag_names((self.first ^ self.second) as u64))?;
        }
        Ok(())
    }
}

impl Registers {
    /// Those of a vCPU of ours.
    pub fn of(cpu: &mut Vcpu) -> Registers {
        let mut general = [0; 16];
        general.copy_from_slice(&cpu.regs[..16]);
        let vector = cpu.vector();
        let (mxcsr, xmm) = (vector.mxcsr, vector.xmm);
        Registers {
            general,
            rip: cpu.rip,
            rflags: cpu.rflags(),
            selectors: cpu.seg.map(|segment| segment.selector),
            fs_base: cpu.seg[4].base,
            gs_base: cpu.seg[5].base,
            kernel_gs_base: cpu.kernel_gs_base,
            cr0: cpu.cr0,
            cr2: cpu.cr2,
            cr3: cpu.cr3,
            cr4: cpu.cr4,
            efer: cpu.efer,
            mxcsr,
            xmm,
        }
    }

    /// Every register with its name, in the order of a report.
    fn named(&self) -> impl Iterator<Item = (&'static str, u128)> {
        let general = NAMES.into_iter().zip(self.general.map(u128::from));
        let selectors = SEGMENTS.into_iter().zip(self.selectors.map(u128::from));
        let others = [
            ("fs_base", self.fs_base),
            ("gs_base", self.gs_base),
            ("k_gs_base", self.kernel_gs_base),
            ("cr0", self.cr0),
            ("cr2", self.cr2),
            ("cr3", self.cr3),
            ("cr4", self.cr4),
            ("efer", self.efer),
            ("mxcsr", self.mxcsr.into()),
        ];
        [("rip", u128::from(self.rip)), ("rflags", self.rflags.into())]
            .into_iter()
            .chain(general)
            .chain(selectors)
            .chain(others.into_iter().map(|(name, value)| (name, u128::from(value))))
            .chain(XMM.into_iter().zip(self.xmm))
    }

    /// What differs, but for flags that the manual leaves undefined and what cannot be seen in the mode.
    pub fn differences(&self, other: &Registers, undefined: u64, bits: Bits) -> Vec<Difference> {
        let (mut first, mut second) = (*self, *other);
        for registers in [&mut first, &mut second] {
            // RF: resuming from a debugger sets it or not.
            registers.rflags &= !(undefined | rflags::RF);
            if bits != Bits::B64 {
                // The stub shows neither upper halves nor what only 64-bit code can name.
                registers.general = registers.general.map(|value| value & 0xffff_ffff);
                registers.general[8..].fill(0);
                registers.xmm[8..].fill(0);
                registers.rip &= 0xffff_ffff;
            }
        }
        first
            .named()
            .zip(second.named())
            .filter(|(one, other)| one.1 != other.1)
            .map(|((register, first), (_, second))| Difference { register, first, second })
            .collect()
    }
}

const XMM: [&str; 16] = [
    "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11",
    "xmm12", "xmm13", "xmm14", "xmm15",
];

/// Names of the flags that are set in `bits`.
pub fn flag_names(bits: u64) -> String {
    const FLAGS: [(u64, &str); 15] = [
        (rflags::CF, "CF"),
        (rflags::PF, "PF"),
        (rflags::AF, "AF"),
        (rflags::ZF, "ZF"),
        (rflags::SF, "SF"),
        (rflags::TF, "TF"),
        (rflags::IF, "IF"),
        (rflags::DF, "DF"),
        (rflags::OF, "OF"),
        (rflags::IOPL, "IOPL"),
        (rflags::NT, "NT"),
        (rflags::RF, "RF"),
        (rflags::VM, "VM"),
        (rflags::AC, "AC"),
        (rflags::ID, "ID"),
    ];
    let set: Vec<&str> = FLAGS.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, name)| *name).collect();
    set.join(" ")
}

impl fmt::Display for Registers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (row, names) in NAMES.chunks(4).enumerate() {
            for (column, name) in names.iter().enumerate() {
                write!(f, "{name:>4} {:016x}  ", self.general[4 * row + column])?;
            }
            writeln!(f)?;
        }
        write!(f, " rip {:016x}  rflags {:08x} [{}]  ", self.rip, self.rflags, flag_names(self.rflags))?;
        for (name, selector) in SEGMENTS.iter().zip(self.selectors) {
            write!(f, "{name} {selector:04x} ")?;
        }
        writeln!(f)?;
        writeln!(
            f,
            " cr0 {:08x}  cr2 {:016x}  cr3 {:016x}  cr4 {:08x}  efer {:04x}  mxcsr {:04x}",
            self.cr0, self.cr2, self.cr3, self.cr4, self.efer, self.mxcsr
        )?;
        write!(
            f,
            " fs.base {:016x}  gs.base {:016x}  kernel gs.base {:016x}",
            self.fs_base, self.gs_base, self.kernel_gs_base
        )?;
        for (n, value) in self.xmm.iter().enumerate().filter(|(_, value)| **value != 0) {
            write!(f, "\n xmm{n} {value:032x}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_named_and_undefined_flags_are_not_compared() {
        let one = Registers { rflags: 0x46, ..Registers::default() };
        let mut other = Registers { rflags: 0x56, ..one };
        other.general[9] = 5;
        other.xmm[15] = 1;
        let names = |undefined, bits| -> Vec<_> {
            one.differences(&other, undefined, bits).into_iter().map(|d| d.register).collect()
        };
        assert_eq!(names(0, Bits::B64), ["rflags", "r9", "xmm15"]);
        assert_eq!(names(rflags::AF, Bits::B64), ["r9", "xmm15"]);
        assert_eq!(names(rflags::AF, Bits::B32), [""; 0]);
        assert!(one.differences(&other, 0, Bits::B64)[0].to_string().ends_with("(AF)"));
    }
}
