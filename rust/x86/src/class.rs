//! Classes of instructions by what a monitor must do about them (Popek and Goldberg's terms, architecture section 3), and how
//! each way of running a guest treats them.

use crate::insn::{Insn, Operand};
use crate::op::Op;

/// The class of an instruction. Where more than one fits, the last in this order counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Class {
    /// Registers and flags only.
    Ordinary = 0,
    /// Reads or writes memory, the stack included.
    Memory = 1,
    /// Transfers control within the code segment and privilege level.
    Control = 2,
    /// Shows or changes state of the system without trapping when it is run deprivileged: what makes x86 hard to virtualise.
    Sensitive = 3,
    /// Traps when run without privilege (CPL 0, or IOPL for I/O and IF).
    Privileged = 4,
}

impl Class {
    pub const ALL: [Class; 5] =
        [Class::Ordinary, Class::Memory, Class::Control, Class::Sensitive, Class::Privileged];

    pub const fn name(self) -> &'static str {
        match self {
            Class::Ordinary => "ordinary",
            Class::Memory => "memory",
            Class::Control => "control",
            Class::Sensitive => "sensitive",
            Class::Privileged => "privileged",
        }
    }
}

/// The class by operation alone; memory and segment-register operands are added by [`class`].
const fn by_op(op: Op) -> Class {
    use Op::*;
    match op {
        Clts | Hlt | Invd | Invlpg | Invpcid | Lgdt | Lidt | Lldt | Lmsw | Ltr | Monitor | MovCr | MovDr
        | Mwait | Rdmsr | Rsm | Swapgs | Sysexit | Sysret | Wbinvd | Wbnoinvd | Wrmsr | Xrstors | Xsaves
        | Xsetbv | Clac | Stac | Cli | Sti | In | Out | Ins | Outs => Class::Privileged,
        // The violators of Robin and Irvine's list, and what came after it: gates, far transfers, flags with IF and IOPL,
        // segment loads, identification, counters, and base registers that a host's own code relies on.
        Sgdt | Sidt | Sldt | Smsw | Str | Pushf | Popf | Lar | Lsl | Verr | Verw | Arpl | CallFar
        | JmpFar | RetFar | Iret | Int | Int1 | Int3 | Into | Syscall | Sysenter | Vmcall | Vmmcall | Lds
        | Les | Lfs | Lgs | Lss | Cpuid | Rdtsc | Rdtscp | Rdpmc | Rdpid | Xgetbv | Rdfsbase | Rdgsbase
        | Wrfsbase | Wrgsbase | Rdpkru | Wrpkru => Class::Sensitive,
        Call | Jmp | Jcc | Jrcxz | Loop | Loope | Loopne | Ret | Ud0 | Ud1 | Ud2 | Xbegin | Xend | Xabort => {
            Class::Control
        }
        Movs | Cmps | Stos | Lods | Scas | Xlat | Push | Pop | Pusha | Popa | Enter | Leave | Maskmovq
        | Maskmovdqu | Vmaskmovdqu | Movdir64b => Class::Memory,
        _ => Class::Ordinary,
    }
}

static BY_OP: [Class; Op::COUNT] = {
    let mut table = [Class::Ordinary; Op::COUNT];
    let mut n = 0;
    while n < Op::COUNT {
        table[n] = by_op(Op::ALL[n]);
        n += 1;
    }
    table
};

/// The class of an instruction.
pub fn class(insn: &Insn) -> Class {
    let segment = || insn.operands.iter().any(|operand| matches!(operand, Operand::Seg(_)));
    let memory = || insn.operands.iter().any(|operand| matches!(operand, Operand::Mem { .. }));
    class_of(insn.op, segment, memory)
}

#[inline]
pub(crate) fn class_of(op: Op, segment: impl Fn() -> bool, memory: impl Fn() -> bool) -> Class {
    let class = BY_OP[op as usize];
    match op {
        // Selectors show the privilege level, and loading one changes what every access means.
        Op::Mov | Op::Push | Op::Pop if segment() => Class::Sensitive,
        // Name an address and do not access it.
        Op::Lea | Op::Nop | Op::Prefetch => Class::Ordinary,
        _ if class == Class::Ordinary && memory() => Class::Memory,
        _ => class,
    }
}

/// Why an instruction cannot run as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The address is the guest's and must be translated and checked.
    Address,
    /// The target is guest code, whose translation must be found first.
    Target,
    /// It would act on the host's system state.
    SystemState,
    /// It would show the host's state without a fault.
    HostState,
}

impl Reason {
    pub const fn text(self) -> &'static str {
        match self {
            Reason::Address => "its address is translated and checked",
            Reason::Target => "its target is looked up in translated code",
            Reason::SystemState => "it acts on the guest's system state",
            Reason::HostState => "it would show the host's state",
        }
    }
}

/// What becomes of an instruction in one way of running the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Runs on the host as it is.
    Copied,
    /// Replaced by code that does the same for the guest.
    Rewritten(Reason),
    /// Faults, and the monitor carries it out or hands the fault to the guest; a para-virtual kernel calls the monitor instead.
    Faults,
    /// Runs on the host's virtualisation hardware.
    Native,
    /// Leaves the guest to the monitor.
    Exits,
}

/// How each way of running a guest treats an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Treatment {
    /// Full virtualisation by translation.
    pub full: Action,
    /// A Xen PV kernel at CPL 3.
    pub para: Action,
    /// The processor's virtualisation extensions.
    pub hardware: Action,
}

/// How each way of running a guest treats this instruction.
pub fn treatment(insn: &Insn) -> Treatment {
    let full = match class(insn) {
        Class::Ordinary => Action::Copied,
        Class::Memory => Action::Rewritten(Reason::Address),
        Class::Control => Action::Rewritten(Reason::Target),
        Class::Sensitive => Action::Rewritten(Reason::HostState),
        Class::Privileged => Action::Rewritten(Reason::SystemState),
    };
    let para = match class(insn) {
        Class::Privileged => Action::Faults,
        _ => full,
    };
    Treatment { full, para, hardware: if exits(insn.op) { Action::Exits } else { Action::Native } }
}

/// Instructions that leave the guest under VMX as KVM sets it up (SDM vol. 3, 26.1).
const fn exits(op: Op) -> bool {
    use Op::*;
    matches!(
        op,
        Cpuid
            | Hlt
            | In
            | Out
            | Ins
            | Outs
            | Invd
            | Wbinvd
            | Wbnoinvd
            | MovDr
            | Rdmsr
            | Wrmsr
            | Rdpmc
            | Xsetbv
            | Monitor
            | Mwait
            | Vmcall
            | Vmmcall
            | Rsm
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::decode;
    use crate::features::Features;
    use crate::insn::Bits;

    fn of(bytes: &[u8]) -> Class {
        class(&decode(bytes, Bits::B64, &Features::all()).unwrap())
    }

    #[test]
    fn the_violators_are_sensitive() {
        let violators: [&[u8]; 16] = [
            &[0x0f, 0x01, 0x00], // sgdt
            &[0x0f, 0x01, 0x08], // sidt
            &[0x0f, 0x00, 0xc0], // sldt
            &[0x0f, 0x01, 0xe0], // smsw
            &[0x0f, 0x00, 0xc8], // str
            &[0x9c],             // pushf
            &[0x9d],             // popf
            &[0x0f, 0x02, 0xc0], // lar
            &[0x0f, 0x03, 0xc0], // lsl
            &[0x0f, 0x00, 0xe0], // verr
            &[0x0f, 0x00, 0xe8], // verw
            &[0xff, 0x18],       // far call
            &[0xcb],             // far return
            &[0x8c, 0xc8],       // mov eax, cs
            &[0x0f, 0xa0],       // push fs
            &[0x0f, 0xa2],       // cpuid
        ];
        for bytes in violators {
            assert_eq!(of(bytes), Class::Sensitive, "{bytes:02x?}");
        }
    }

    #[test]
    fn the_rest_falls_into_its_class() {
        assert_eq!(of(&[0x01, 0xc0]), Class::Ordinary);
        assert_eq!(of(&[0x01, 0x00]), Class::Memory);
        assert_eq!(of(&[0x50]), Class::Memory, "push rax");
        assert_eq!(of(&[0x8d, 0x00]), Class::Ordinary, "lea");
        assert_eq!(of(&[0x0f, 0x1f, 0x00]), Class::Ordinary, "nop with an address");
        assert_eq!(of(&[0xff, 0x10]), Class::Control, "call through memory");
        assert_eq!(of(&[0xf4]), Class::Privileged);
        assert_eq!(of(&[0x0f, 0x01, 0x10]), Class::Privileged, "lgdt");
        assert_eq!(of(&[0x48, 0xa5]), Class::Memory);
        assert_eq!(of(&[0xec]), Class::Privileged);
    }

    #[test]
    fn treatments_differ_by_mode() {
        let hlt = treatment(&decode(&[0xf4], Bits::B64, &Features::all()).unwrap());
        assert_eq!(hlt.full, Action::Rewritten(Reason::SystemState));
        assert_eq!((hlt.para, hlt.hardware), (Action::Faults, Action::Exits));
        let add = treatment(&decode(&[0x01, 0xc0], Bits::B64, &Features::all()).unwrap());
        assert_eq!((add.full, add.para, add.hardware), (Action::Copied, Action::Copied, Action::Native));
    }
}
