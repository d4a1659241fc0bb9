//! Registers by name. One table says what there is; reading and writing go through it.

use trapgate_engine::Vcpu;
use trapgate_engine::state::Segment;
use trapgate_engine::vector::F80;

/// One register: which it is, by the name that Python uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    General(u8),
    Rip,
    Rflags,
    Selector(u8),
    Base(u8),
    Limit(u8),
    Access(u8),
    TableBase(bool),
    TableLimit(bool),
    Cr0,
    Cr2,
    Cr3,
    Cr4,
    Efer,
    Xcr0,
    Cpl,
    Debug(u8),
    Star,
    Lstar,
    Fmask,
    KernelGsBase,
    TscAux,
    SysenterCs,
    SysenterEsp,
    SysenterEip,
    Xmm(u8),
    /// The upper half of a YMM register.
    YmmHigh(u8),
    St(u8),
    Mxcsr,
    Fcw,
    Fsw,
    Ftw,
}

const GENERAL: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15",
];
/// Segment registers by encoding, then LDTR and TR.
const SEGMENTS: [&str; 8] = ["es", "cs", "ss", "ds", "fs", "gs", "ldtr", "tr"];

const OTHERS: [(&str, Register); 25] = [
    ("rip", Register::Rip),
    ("rflags", Register::Rflags),
    ("gdtr_base", Register::TableBase(false)),
    ("gdtr_limit", Register::TableLimit(false)),
    ("idtr_base", Register::TableBase(true)),
    ("idtr_limit", Register::TableLimit(true)),
    ("cr0", Register::Cr0),
    ("cr2", Register::Cr2),
    ("cr3", Register::Cr3),
    ("cr4", Register::Cr4),
    ("efer", Register::Efer),
    ("xcr0", Register::Xcr0),
    ("cpl", Register::Cpl),
    ("star", Register::Star),
    ("lstar", Register::Lstar),
    ("fmask", Register::Fmask),
    ("kernel_gs_base", Register::KernelGsBase),
    ("tsc_aux", Register::TscAux),
    ("sysenter_cs", Register::SysenterCs),
    ("sysenter_esp", Register::SysenterEsp),
    ("sysenter_eip", Register::SysenterEip),
    ("mxcsr", Register::Mxcsr),
    ("fcw", Register::Fcw),
    ("fsw", Register::Fsw),
    ("ftw", Register::Ftw),
];

/// The names of all registers.
pub fn names() -> Vec<String> {
    let mut names: Vec<String> = GENERAL.iter().map(|&name| name.to_owned()).collect();
    names.extend(OTHERS.iter().map(|&(name, _)| name.to_owned()));
    for segment in SEGMENTS {
        names.push(segment.to_owned());
        names.extend(["base", "limit", "access"].map(|part| format!("{segment}_{part}")));
    }
    names.extend([0, 1, 2, 3, 6, 7].map(|n| format!("dr{n}")));
    names.extend((0..16).map(|n| format!("xmm{n}")));
    names.extend((0..16).map(|n| format!("ymm{n}h")));
    names.extend((0..8).map(|n| format!("st{n}")));
    names
}

impl Register {
    /// The register of that name.
    pub fn by_name(name: &str) -> Option<Register> {
        if let Some(n) = GENERAL.iter().position(|&known| known == name) {
            return Some(Register::General(n as u8));
        }
        if let Some(&(_, register)) = OTHERS.iter().find(|(known, _)| *known == name) {
            return Some(register);
        }
        for (n, segment) in SEGMENTS.iter().enumerate() {
            let n = n as u8;
            match name.strip_prefix(segment) {
                Some("") => return Some(Register::Selector(n)),
                Some("_base") => return Some(Register::Base(n)),
                Some("_limit") => return Some(Register::Limit(n)),
                Some("_access") => return Some(Register::Access(n)),
                _ => {}
            }
        }
        let numbered = |prefix, count: u8| {
            let digits: &str = name.strip_prefix(prefix)?;
            (0..count).find(|n| n.to_string() == digits)
        };
        numbered("dr", 8)
            .filter(|n| !matches!(n, 4 | 5))
            .map(Register::Debug)
            .or_else(|| numbered("xmm", 16).map(Register::Xmm))
            .or_else(|| Some(Register::YmmHigh(numbered_upper(name)?)))
            .or_else(|| numbered("st", 8).map(Register::St))
    }

    /// The width of the register in bits.
    pub fn bits(self) -> u32 {
        match self {
            Register::Cpl => 2,
            Register::Ftw => 8,
            Register::Selector(_)
            | Register::Access(_)
            | Register::TableLimit(_)
            | Register::Fcw
            | Register::Fsw => 16,
            Register::Limit(_) | Register::Mxcsr | Register::TscAux => 32,
            Register::St(_) => 80,
            Register::Xmm(_) | Register::YmmHigh(_) => 128,
            _ => 64,
        }
    }

    /// The register's value.
    pub fn read(self, cpu: &mut Vcpu) -> u128 {
        let value = match self {
            Register::General(n) => cpu.regs[usize::from(n)],
            Register::Rip => cpu.rip,
            Register::Rflags => cpu.rflags(),
            Register::Selector(n) => segment(cpu, n).selector.into(),
            Register::Base(n) => segment(cpu, n).base,
            Register::Limit(n) => segment(cpu, n).limit.into(),
            Register::Access(n) => segment(cpu, n).access.into(),
            Register::TableBase(idt) => if idt { cpu.idtr } else { cpu.gdtr }.base,
            Register::TableLimit(idt) => if idt { cpu.idtr } else { cpu.gdtr }.limit.into(),
            Register::Cr0 => cpu.cr0,
            Register::Cr2 => cpu.cr2,
            Register::Cr3 => cpu.cr3,
            Register::Cr4 => cpu.cr4,
            Register::Efer => cpu.efer,
            Register::Xcr0 => cpu.xcr0,
            Register::Cpl => cpu.cpl.into(),
            Register::Debug(6) => cpu.dr6,
            Register::Debug(7) => cpu.dr7,
            Register::Debug(n) => cpu.dr[usize::from(n & 3)],
            Register::Star => cpu.star,
            Register::Lstar => cpu.lstar,
            Register::Fmask => cpu.fmask,
            Register::KernelGsBase => cpu.kernel_gs_base,
            Register::TscAux => cpu.tsc_aux,
            Register::SysenterCs => cpu.sysenter_cs,
            Register::SysenterEsp => cpu.sysenter_esp,
            Register::SysenterEip => cpu.sysenter_eip,
            Register::Xmm(n) => return cpu.vector().xmm[usize::from(n & 15)],
            Register::YmmHigh(n) => return cpu.vector().ymm_high[usize::from(n & 15)],
            Register::St(n) => {
                let value = cpu.vector().x87.st(n);
                return u128::from(value.sign_exponent) << 64 | u128::from(value.significand);
            }
            Register::Mxcsr => cpu.vector().mxcsr.into(),
            Register::Fcw => cpu.vector().x87.fcw.into(),
            Register::Fsw => cpu.vector().x87.fsw.into(),
            Register::Ftw => cpu.vector().x87.tags.into(),
        };
        value.into()
    }

    /// Sets the register, from outside: whatever is derived from it is derived anew.
    pub fn write(self, cpu: &mut Vcpu, wide: u128) {
        let value = wide as u64;
        match self {
            Register::General(n) => cpu.regs[usize::from(n)] = value,
            Register::Rip => cpu.rip = value,
            Register::Rflags => cpu.set_rflags(value),
            Register::Selector(n) => segment_mut(cpu, n).selector = value as u16,
            Register::Base(n) => segment_mut(cpu, n).base = value,
            Register::Limit(n) => segment_mut(cpu, n).limit = value as u32,
            Register::Access(n) => segment_mut(cpu, n).access = value as u16,
            Register::TableBase(idt) => if idt { &mut cpu.idtr } else { &mut cpu.gdtr }.base = value,
            Register::TableLimit(idt) => {
                if idt { &mut cpu.idtr } else { &mut cpu.gdtr }.limit = value as u16;
            }
            Register::Cr0 => cpu.cr0 = value,
            Register::Cr2 => cpu.cr2 = value,
            Register::Cr3 => cpu.cr3 = value,
            Register::Cr4 => cpu.cr4 = value,
            Register::Efer => cpu.efer = value,
            Register::Xcr0 => cpu.xcr0 = value,
            Register::Cpl => cpu.cpl = value as u8 & 3,
            Register::Debug(6) => cpu.dr6 = value,
            Register::Debug(7) => cpu.dr7 = value,
            Register::Debug(n) => cpu.dr[usize::from(n & 3)] = value,
            Register::Star => cpu.star = value,
            Register::Lstar => cpu.lstar = value,
            Register::Fmask => cpu.fmask = value,
            Register::KernelGsBase => cpu.kernel_gs_base = value,
            Register::TscAux => cpu.tsc_aux = value,
            Register::SysenterCs => cpu.sysenter_cs = value,
            Register::SysenterEsp => cpu.sysenter_esp = value,
            Register::SysenterEip => cpu.sysenter_eip = value,
            Register::Xmm(n) => cpu.vector().xmm[usize::from(n & 15)] = wide,
            Register::YmmHigh(n) => cpu.vector().ymm_high[usize::from(n & 15)] = wide,
            Register::St(n) => cpu.vector().x87.set_st(n, F80::new((wide >> 64) as u16, value)),
            Register::Mxcsr => cpu.vector().mxcsr = value as u32,
            Register::Fcw => cpu.vector().x87.fcw = value as u16,
            Register::Fsw => cpu.vector().x87.fsw = value as u16,
            Register::Ftw => cpu.vector().x87.tags = value as u8,
        }
        cpu.update_mode();
        cpu.flush_tlb();
    }
}

/// The number in the name of an upper half, which is as GDB calls it.
fn numbered_upper(name: &str) -> Option<u8> {
    (0..16).find(|n| format!("ymm{n}h") == name)
}

fn segment(cpu: &Vcpu, n: u8) -> &Segment {
    match n {
        6 => &cpu.ldtr,
        7 => &cpu.tr,
        _ => &cpu.seg[usize::from(n)],
    }
}

fn segment_mut(cpu: &mut Vcpu, n: u8) -> &mut Segment {
    match n {
        6 => &mut cpu.ldtr,
        7 => &mut cpu.tr,
        _ => &mut cpu.seg[usize::from(n)],
    }
}
