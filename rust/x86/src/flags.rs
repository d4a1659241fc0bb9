//! What instructions do to RFLAGS: a table by operation with the few cases that depend on the operands. It is our own so that
//! bulk decode and the translator's liveness need no library call; a test holds it against iced-x86's (SDM vol. 1, appendix A).

use crate::insn::{Insn, Operand, Prefixes};
use crate::op::Op;
use crate::regs::rflags;

/// Flags by what happens to them, as bits of RFLAGS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct FlagUse {
    pub read: u32,
    /// Given a value that depends on the operands.
    pub written: u32,
    pub cleared: u32,
    pub set: u32,
    /// Left with a value that the manual does not define.
    pub undefined: u32,
    /// Of the above, those that an execution may leave as they were: shifts by CL, REP with rCX = 0, POPF without privilege.
    /// Such a flag is not dead before the instruction.
    pub kept: u32,
}

impl FlagUse {
    pub const NONE: FlagUse = FlagUse { read: 0, written: 0, cleared: 0, set: 0, undefined: 0, kept: 0 };

    /// Every flag that may differ afterwards.
    pub const fn modified(self) -> u32 {
        self.written | self.cleared | self.set | self.undefined
    }

    /// Every flag whose value before does not matter afterwards.
    pub const fn killed(self) -> u32 {
        self.modified() & !self.kept
    }

    const fn read(mut self, flags: u32) -> FlagUse {
        self.read |= flags;
        self
    }

    const fn cleared(mut self, flags: u32) -> FlagUse {
        self.cleared |= flags;
        self
    }

    const fn undefined(mut self, flags: u32) -> FlagUse {
        self.undefined |= flags;
        self
    }

    const fn kept(mut self, flags: u32) -> FlagUse {
        self.kept |= flags;
        self
    }
}

const C: u32 = rflags::CF as u32;
const P: u32 = rflags::PF as u32;
const A: u32 = rflags::AF as u32;
const Z: u32 = rflags::ZF as u32;
const S: u32 = rflags::SF as u32;
const O: u32 = rflags::OF as u32;
const D: u32 = rflags::DF as u32;
const I: u32 = rflags::IF as u32;
const AC: u32 = rflags::AC as u32;
const STATUS: u32 = rflags::STATUS as u32;
const ALL: u32 = rflags::ALL as u32;
/// What POPF changes at most; VM, RF, VIP and VIF are not popped.
const POPPED: u32 = STATUS
    | (rflags::TF | rflags::IF | rflags::DF | rflags::IOPL | rflags::NT | rflags::AC | rflags::ID) as u32;
const LOW_WORD: u32 = 0xffff;

const fn written(flags: u32) -> FlagUse {
    FlagUse { written: flags, ..FlagUse::NONE }
}

const fn read(flags: u32) -> FlagUse {
    FlagUse { read: flags, ..FlagUse::NONE }
}

/// The common case of each operation; [`flag_use`] refines it.
const fn by_op(op: Op) -> FlagUse {
    use Op::*;
    match op {
        Add | Sub | Cmp | Neg | Cmpxchg | Xadd => written(STATUS),
        Adc | Sbb => written(STATUS).read(C),
        And | Or | Xor | Test => written(S | Z | P).cleared(O | C).undefined(A),
        Inc | Dec => written(STATUS & !C),
        Mul | Imul => written(C | O).undefined(S | Z | A | P),
        Div | Idiv => FlagUse::NONE.undefined(STATUS),
        Aaa | Aas => written(A | C).read(A).undefined(O | S | Z | P),
        Aad | Aam => written(S | Z | P).undefined(O | A | C),
        Daa | Das => written(S | Z | A | C | P).read(A | C).undefined(O),
        Adcx => written(C).read(C),
        Adox => written(O).read(O),
        Andn => written(S | Z).cleared(O | C).undefined(A | P),
        Bextr => written(Z).cleared(O | C).undefined(S | A | P),
        Blsi | Blsr | Bzhi => written(S | Z | C).cleared(O).undefined(A | P),
        Blsmsk => written(S | C).cleared(O | Z).undefined(A | P),
        Bsf | Bsr => written(Z).undefined(STATUS & !Z),
        Bt | Btc | Btr | Bts => written(C).undefined(O | S | A | P),
        Tzcnt | Lzcnt => written(Z | C).undefined(O | S | A | P),
        Popcnt => written(Z).cleared(STATUS & !Z),
        Rol | Ror => written(C).undefined(O),
        Rcl | Rcr => written(C).read(C).undefined(O),
        Shl | Shr | Sar | Shld | Shrd => written(S | Z | C | P).undefined(O | A),
        Arpl | Lar | Lsl | Verr | Verw | Cmpxchg8b | Cmpxchg16b => written(Z),
        Rdrand | Rdseed => written(C).cleared(STATUS & !C),
        Comisd | Comiss | Ucomisd | Ucomiss | Vcomisd | Vcomiss | Vucomisd | Vucomiss | Fcomi | Fcomip
        | Fucomi | Fucomip => written(Z | C | P).cleared(O | S | A),
        Pcmpestri | Pcmpestrm | Pcmpistri | Pcmpistrm | Vpcmpestri | Vpcmpestrm | Vpcmpistri | Vpcmpistrm => {
            written(O | S | Z | C).cleared(A | P)
        }
        Ptest | Vptest | Vtestps | Vtestpd => written(Z | C).cleared(O | S | A | P),
        Xtest => written(Z).cleared(STATUS & !Z),
        Cmc => written(C).read(C),
        Clc => FlagUse::NONE.cleared(C),
        Stc => FlagUse { set: C, ..FlagUse::NONE },
        Cld => FlagUse::NONE.cleared(D),
        Std => FlagUse { set: D, ..FlagUse::NONE },
        Cli => FlagUse::NONE.cleared(I),
        Sti => FlagUse { set: I, ..FlagUse::NONE },
        Clac => FlagUse::NONE.cleared(AC),
        Stac => FlagUse { set: AC, ..FlagUse::NONE },
        Sahf => written(S | Z | A | C | P),
        Lahf => read(S | Z | A | C | P),
        Salc => read(C),
        Into => read(O),
        Loope | Loopne => read(Z),
        Cmps | Scas => written(STATUS).read(D),
        Movs | Stos | Lods | Ins | Outs => read(D),
        Pushf => read(ALL),
        Popf => written(POPPED).kept((rflags::IF | rflags::IOPL) as u32),
        Iret => {
            written(ALL).kept((rflags::IF | rflags::IOPL | rflags::VM | rflags::VIF | rflags::VIP) as u32)
        }
        Rsm => written(ALL),
        MovCr | MovDr => FlagUse::NONE.undefined(STATUS),
        // R11 receives the flags, then IA32_FMASK's are cleared and RF always.
        Syscall => written(ALL).read(ALL).kept(ALL & !rflags::RF as u32),
        Sysret => written(ALL).kept(rflags::VM as u32),
        Sysenter => FlagUse::NONE.cleared((rflags::IF | rflags::VM) as u32),
        _ => FlagUse::NONE,
    }
}

static BY_OP: [FlagUse; Op::COUNT] = {
    let mut table = [FlagUse::NONE; Op::COUNT];
    let mut n = 0;
    while n < Op::COUNT {
        table[n] = by_op(Op::ALL[n]);
        n += 1;
    }
    table
};

/// Flags that a condition code reads (SDM vol. 1, table B-1).
pub const fn condition_reads(cond: u8) -> u32 {
    match cond >> 1 & 7 {
        0 => O,
        1 => C,
        2 => Z,
        3 => C | Z,
        4 => S,
        5 => P,
        6 => S | O,
        _ => S | O | Z,
    }
}

/// What flags depend on besides the operation. Asked for only where it matters.
pub(crate) trait Form {
    fn condition(&self) -> u8;
    fn opsize(&self) -> u8;
    fn repeated(&self) -> bool;
    /// The immediate, if there is one.
    fn immediate(&self) -> Option<u64>;
}

impl Form for Insn {
    fn condition(&self) -> u8 {
        self.cond
    }

    fn opsize(&self) -> u8 {
        self.opsize
    }

    fn repeated(&self) -> bool {
        self.prefixes.intersects(Prefixes::REP | Prefixes::REPNE)
    }

    fn immediate(&self) -> Option<u64> {
        self.operands.iter().any(|operand| matches!(operand, Operand::Imm { .. })).then_some(self.imm)
    }
}

/// What this instruction does to RFLAGS.
pub fn flag_use(insn: &Insn) -> FlagUse {
    flag_use_of(insn.op, insn)
}

#[inline]
pub(crate) fn flag_use_of(op: Op, form: &impl Form) -> FlagUse {
    let table = BY_OP[op as usize];
    match op {
        Op::Jcc | Op::Setcc | Op::Cmovcc | Op::Fcmovcc => read(condition_reads(form.condition())),
        Op::Rol | Op::Ror | Op::Rcl | Op::Rcr | Op::Shl | Op::Shr | Op::Sar | Op::Shld | Op::Shrd => {
            shift(form, table)
        }
        Op::Cmps | Op::Scas if form.repeated() => table.kept(STATUS),
        Op::Popf | Op::Pushf | Op::Iret if form.opsize() == 2 => FlagUse {
            read: table.read & LOW_WORD,
            written: table.written & LOW_WORD,
            kept: table.kept & LOW_WORD,
            ..FlagUse::NONE
        },
        _ => table,
    }
}

/// A count of 0 changes nothing; OF is defined for a count of 1 only.
fn shift(form: &impl Form, table: FlagUse) -> FlagUse {
    let Some(immediate) = form.immediate() else { return table.kept(table.modified()) };
    match immediate & if form.opsize() == 8 { 0x3f } else { 0x1f } {
        0 => FlagUse::NONE,
        1 => FlagUse { written: table.written | O, undefined: table.undefined & !O, ..table },
        _ => table,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::decode;
    use crate::features::Features;
    use crate::insn::Bits;

    fn of(bytes: &[u8]) -> FlagUse {
        flag_use(&decode(bytes, Bits::B64, &Features::all()).unwrap())
    }

    #[test]
    fn shifts_depend_on_their_count() {
        assert_eq!(of(&[0xc1, 0xe0, 0x20]), FlagUse::NONE, "32 is 0 for 32 bits");
        assert_ne!(of(&[0x48, 0xc1, 0xe0, 0x20]), FlagUse::NONE, "but not for 64");
        assert_eq!(of(&[0xd1, 0xe0]).undefined, A);
        assert_eq!(of(&[0xc1, 0xe0, 4]).undefined, A | O);
        let by_cl = of(&[0xd3, 0xe0]);
        assert_eq!(by_cl.killed(), 0, "CL may be 0");
        assert_eq!(by_cl.modified(), STATUS);
    }

    #[test]
    fn a_repeated_compare_may_not_run_at_all() {
        assert_eq!(of(&[0xa6]).killed(), STATUS);
        assert_eq!(of(&[0xf3, 0xa6]).killed(), 0);
    }

    #[test]
    fn pushf_reads_what_it_pushes() {
        assert_ne!(of(&[0x9c]).read & rflags::ID as u32, 0);
        assert_eq!(of(&[0x66, 0x9c]).read & !LOW_WORD, 0);
    }
}
