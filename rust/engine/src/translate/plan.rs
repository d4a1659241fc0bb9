//! What becomes of each instruction: the list of those that the host executes exactly as the guest's processor would, and of
//! those that the translator knows a form for. Everything else is the interpreter's.

use trapgate_x86::insn::{Insn, Operand, Prefixes, Seg};
use trapgate_x86::op::Op;

use super::vectors::is_vector;
use super::vex;
use super::x87;

/// How an instruction is translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Re-encoded with its registers renamed and its memory operand translated.
    Copy,
    /// The same, and it needs the guest's vector registers in the host's.
    Vector,
    /// The same, and it needs the guest's x87 state in the host's unit.
    X87(x87::Kind),
    /// No effect besides being counted.
    Nothing,
    Lea,
    Push,
    Pop,
    Leave,
    /// Division: its faults are looked for first.
    Divide,
    Cli,
    Sti,
    Swapgs,
    /// SYSCALL at CPL 3.
    Syscall,
    /// SYSRET to 64-bit code at CPL 0.
    Sysret,
    /// RDTSC and RDTSCP.
    ReadClock,
    /// RDFSBASE and RDGSBASE, WRFSBASE and WRGSBASE.
    ReadBase(Seg),
    WriteBase(Seg),
    Pushf,
    Cld,
    /// MOV from CR0, CR2, CR3 or CR4.
    ReadControl,
    /// MOV from a segment register to a general one.
    ReadSelector,
    /// REP MOVS and REP STOS.
    Repeat,
    /// BT, BTS, BTR and BTC on a string of bits in memory.
    BitString,
    Jump,
    Branch,
    Call,
    Return,
    /// A jump or call to where the unit goes on, and a return that is expected to lead to an address where it does.
    Follow,
    CallInside,
    ReturnInside(u64),
    /// Left to the interpreter, which runs it alone.
    Interpret,
}

impl Plan {
    /// Whether nothing of the unit follows.
    pub fn ends_unit(self) -> bool {
        use Plan::*;
        matches!(self, Interpret | Jump | Call | Return | Syscall | Sysret | ReadClock)
    }
}

/// The plan for an instruction in 64-bit mode.
pub fn plan(insn: &Insn, user: bool) -> Plan {
    let read = matches!(insn.operands[0], Operand::Gpr { .. });
    match insn.op {
        Op::MovCr if read && !user && matches!(insn.operands[1], Operand::Cr(0 | 2 | 3 | 4)) => {
            return Plan::ReadControl;
        }
        Op::Mov if read && matches!(insn.operands[1], Operand::Seg(_)) => return Plan::ReadSelector,
        _ => {}
    }
    let high = insn.operands.iter().any(|operand| matches!(operand, Operand::High { .. }));
    let special = insn.operands.iter().any(|operand| {
        matches!(operand, Operand::Seg(_) | Operand::Cr(_) | Operand::Dr(_) | Operand::Mmx(_) | Operand::Far)
    });
    let kind = x87::kind(insn);
    if special && kind.is_none()
        || insn.addrsize == 2
        || insn.prefixes.contains(Prefixes::LOCK) && !is_lockable(insn)
    {
        return Plan::Interpret;
    }
    if let Some(kind) = kind {
        return Plan::X87(kind);
    }
    match insn.op {
        Op::Nop | Op::Pause | Op::Prefetch | Op::Endbr32 | Op::Endbr64 => Plan::Nothing,
        Op::Lea if insn.opsize >= 4 => Plan::Lea,
        Op::Push | Op::Pop if insn.opsize == 8 => {
            if insn.op == Op::Push {
                Plan::Push
            } else {
                pop(insn)
            }
        }
        Op::Leave if insn.opsize == 8 => Plan::Leave,
        Op::Div | Op::Idiv if insn.opsize >= 4 && !high => Plan::Divide,
        Op::Cli if !user => Plan::Cli,
        Op::Sti if !user => Plan::Sti,
        Op::Swapgs if !user => Plan::Swapgs,
        Op::Syscall if user => Plan::Syscall,
        Op::Sysret if !user && insn.opsize == 8 => Plan::Sysret,
        Op::Rdtsc | Op::Rdtscp => Plan::ReadClock,
        Op::Rdfsbase => Plan::ReadBase(Seg::Fs),
        Op::Rdgsbase => Plan::ReadBase(Seg::Gs),
        Op::Wrfsbase => Plan::WriteBase(Seg::Fs),
        Op::Wrgsbase => Plan::WriteBase(Seg::Gs),
        Op::Pushf if insn.opsize == 8 => Plan::Pushf,
        Op::Cld => Plan::Cld,
        Op::Bt | Op::Bts | Op::Btr | Op::Btc
            if insn.opsize >= 4
                && matches!(insn.operands[0], Operand::Mem { .. })
                && matches!(insn.operands[1], Operand::Gpr { .. }) =>
        {
            Plan::BitString
        }
        Op::Movs | Op::Stos if is_repeated(insn) => Plan::Repeat,
        Op::Jmp => Plan::Jump,
        Op::Jcc => Plan::Branch,
        Op::Call if insn.opsize == 8 => Plan::Call,
        Op::Ret if insn.opsize == 8 => Plan::Return,
        _ if is_integer(insn, high) => Plan::Copy,
        _ if is_vector(insn.op) || vex::is_vex(insn) => Plan::Vector,
        _ => Plan::Interpret,
    }
}

/// POP to memory computes its address after RSP has moved: rare, and the interpreter's.
fn pop(insn: &Insn) -> Plan {
    if matches!(insn.operands[0], Operand::Gpr { .. }) { Plan::Pop } else { Plan::Interpret }
}

/// REP with flat addresses of 64 bits.
fn is_repeated(insn: &Insn) -> bool {
    insn.prefixes.contains(Prefixes::REP) && insn.addrsize == 8 && own_base(insn).is_none()
}

/// LOCK is copied with the operations for which a host atomic is all there is to it.
fn is_lockable(insn: &Insn) -> bool {
    use Op::*;
    matches!(
        insn.op,
        Add | Or
            | Adc
            | Sbb
            | And
            | Sub
            | Xor
            | Inc
            | Dec
            | Neg
            | Not
            | Xadd
            | Cmpxchg
            | Cmpxchg8b
            | Cmpxchg16b
            | Xchg
            | Bts
            | Btr
            | Btc
    )
}

/// Whether a memory operand is written; it is then checked for the write before anything is read.
pub fn writes_memory(insn: &Insn) -> bool {
    use Op::*;
    if !matches!(insn.operands[0], Operand::Mem { .. }) {
        // The register comes first in the manual's syntax of some encodings.
        return matches!(insn.op, Xchg | Xadd)
            && insn.operands.iter().any(|operand| matches!(operand, Operand::Mem { .. }));
    }
    !matches!(insn.op, Cmp | Test | Bt | Push | Jmp | Call | Mul | Imul | Div | Idiv | Ldmxcsr)
        && !x87::reads_memory(insn.op)
}

/// Whether a register operand is written.
pub fn writes_register(insn: &Insn, operand: u8) -> bool {
    use Op::*;
    match insn.op {
        Cmp | Test | Bt | Push | Mul | Div | Idiv => false,
        Imul if insn.operands[1] == Operand::None => false,
        Xchg | Xadd => true,
        Mulx => operand < 2,
        _ => operand == 0,
    }
}

/// Whether the first operand, a register of at least 32 bits, is written without being read.
pub fn overwrites(insn: &Insn) -> bool {
    use Op::*;
    matches!(
        crate::vector::legacy(insn.op).unwrap_or(insn.op),
        Mov | Movzx
            | Movsx
            | Movsxd
            | Lea
            | Popcnt
            | Tzcnt
            | Lzcnt
            | Movbe
            | Andn
            | Bextr
            | Bzhi
            | Rorx
            | Sarx
            | Shlx
            | Shrx
            | Pdep
            | Pext
            | Movd
            | Movq
            | Pextrb
            | Pextrd
            | Pextrq
            | Pextrw
            | Pmovmskb
            | Movmskps
            | Movmskpd
            | Cvtsd2si
            | Cvtss2si
            | Cvttsd2si
            | Cvttss2si
            | Extractps
    ) || insn.op == Imul && insn.operands[2] != Operand::None
}

/// Whether a register that lives in memory may be the memory operand of the same encoding. The memory forms of others mean
/// something else (a bit string, a LOCK, another width).
pub fn takes_slot(insn: &Insn) -> bool {
    use Op::*;
    matches!(
        insn.op,
        Add | Or
            | Adc
            | Sbb
            | And
            | Sub
            | Xor
            | Cmp
            | Test
            | Mov
            | Inc
            | Dec
            | Neg
            | Not
            | Rol
            | Ror
            | Rcl
            | Rcr
            | Shl
            | Shr
            | Sar
            | Setcc
            | Movsxd
            | Mul
            | Movzx
            | Movsx
            | Imul
            | Cmovcc
    )
}

/// Integer instructions on registers, flags and one memory operand.
fn is_integer(insn: &Insn, high: bool) -> bool {
    use Op::*;
    let register_bits =
        !matches!(insn.operands[0], Operand::Mem { .. }) || matches!(insn.operands[1], Operand::Imm { .. });
    match insn.op {
        Add | Or | Adc | Sbb | And | Sub | Xor | Cmp | Test | Inc | Dec | Neg | Not | Rol | Ror | Rcl
        | Rcr | Shl | Shr | Sar | Mov | Movzx | Movsx | Setcc => true,
        _ if high => false,
        // Beyond their width the 16-bit forms differ from processor to processor.
        Shld | Shrd => insn.opsize > 2,
        Cmpxchg8b | Cmpxchg16b | Xadd | Cmpxchg | Mul | Imul | Bsf | Bsr | Popcnt | Tzcnt | Lzcnt | Bswap
        | Movbe | Movnti | Movsxd | Xchg | Cmovcc | Cbw | Cwd | Lahf | Sahf | Clc | Stc | Cmc | Mfence
        | Lfence | Sfence | Crc32 => true,
        // A bit offset in a register reaches beyond the operand.
        Bt | Bts | Btr | Btc => register_bits,
        Andn | Bextr | Blsi | Blsr | Blsmsk | Bzhi | Rorx | Sarx | Shlx | Shrx | Pdep | Pext | Adcx
        | Adox => true,
        _ => false,
    }
}

/// Whether a memory operand must be aligned to its 16 or 32 bytes: legacy SSE's must, but for these (SDM vol. 2, table 2-23),
/// and that of CMPXCHG16B; of VEX only some.
pub fn must_align(insn: &Insn) -> bool {
    use Op::*;
    if insn.prefixes.contains(Prefixes::VEX) {
        return vex::must_align(insn);
    }
    insn.operands.contains(&Operand::Mem { size: 16 })
        && (is_vector(insn.op) || insn.op == Op::Cmpxchg16b)
        && !matches!(
            insn.op,
            Lddqu | Movdqu | Movupd | Movups | Pcmpestri | Pcmpestrm | Pcmpistri | Pcmpistrm
        )
}

/// The segment whose base is to be added, if it can have one.
pub fn own_base(insn: &Insn) -> Option<Seg> {
    Some(insn.mem.seg).filter(|seg| matches!(seg, Seg::Fs | Seg::Gs))
}
