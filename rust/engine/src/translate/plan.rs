//! What becomes of each instruction: the list of those that the host executes exactly as the guest's processor would, and of
//! those that the translator knows a form for. Everything else is the interpreter's.

use trapgate_x86::insn::{Insn, Operand, Prefixes, Seg};
use trapgate_x86::op::Op;

/// How an instruction is translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Re-encoded with its registers renamed and its memory operand translated.
    Copy,
    /// The same, and it needs the guest's vector registers in the host's.
    Vector,
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
    Pushf,
    Jump,
    Branch,
    Call,
    Return,
    /// Left to the interpreter, which runs it alone.
    Interpret,
}

/// The plan for an instruction in 64-bit mode.
pub fn plan(insn: &Insn, user: bool) -> Plan {
    let high = insn.operands.iter().any(|operand| matches!(operand, Operand::High { .. }));
    let special = insn.operands.iter().any(|operand| {
        matches!(
            operand,
            Operand::Seg(_)
                | Operand::Cr(_)
                | Operand::Dr(_)
                | Operand::Mmx(_)
                | Operand::Far
                | Operand::Ymm(_)
        )
    });
    if special || insn.addrsize == 2 || insn.prefixes.contains(Prefixes::LOCK) && !is_lockable(insn) {
        return Plan::Interpret;
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
        Op::Pushf if insn.opsize == 8 => Plan::Pushf,
        Op::Jmp => Plan::Jump,
        Op::Jcc => Plan::Branch,
        Op::Call if insn.opsize == 8 => Plan::Call,
        Op::Ret if insn.opsize == 8 => Plan::Return,
        _ if is_integer(insn, high) => Plan::Copy,
        _ if is_vector(insn.op) => Plan::Vector,
        _ => Plan::Interpret,
    }
}

/// POP to memory computes its address after RSP has moved: rare, and the interpreter's.
fn pop(insn: &Insn) -> Plan {
    if matches!(insn.operands[0], Operand::Gpr { .. }) { Plan::Pop } else { Plan::Interpret }
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
        insn.op,
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

/// Vector instructions on XMM and general registers and one memory operand, which need no more than MXCSR.
fn is_vector(op: Op) -> bool {
    use Op::*;
    matches!(
        op,
        Lddqu
            | Movapd
            | Movaps
            | Movd
            | Movdqa
            | Movdqu
            | Movhlps
            | Movhpd
            | Movhps
            | Movlhps
            | Movlpd
            | Movlps
            | Movmskpd
            | Movmskps
            | Movntdq
            | Movntdqa
            | Movntpd
            | Movntps
            | Movq
            | MovsdXmm
            | Movss
            | Movupd
            | Movups
            | Pmovmskb
            | Aesdec
            | Aesdeclast
            | Aesenc
            | Aesenclast
            | Aesimc
            | Andnpd
            | Andnps
            | Andpd
            | Andps
            | Movddup
            | Movshdup
            | Movsldup
            | Orpd
            | Orps
            | Pabsb
            | Pabsd
            | Pabsw
            | Packssdw
            | Packsswb
            | Packusdw
            | Packuswb
            | Paddb
            | Paddd
            | Paddq
            | Paddsb
            | Paddsw
            | Paddusb
            | Paddusw
            | Paddw
            | Pand
            | Pandn
            | Pavgb
            | Pavgw
            | Pcmpeqb
            | Pcmpeqd
            | Pcmpeqq
            | Pcmpeqw
            | Pcmpgtb
            | Pcmpgtd
            | Pcmpgtq
            | Pcmpgtw
            | Phaddd
            | Phaddsw
            | Phaddw
            | Phminposuw
            | Phsubd
            | Phsubsw
            | Phsubw
            | Pmaddubsw
            | Pmaddwd
            | Pmaxsb
            | Pmaxsd
            | Pmaxsw
            | Pmaxub
            | Pmaxud
            | Pmaxuw
            | Pminsb
            | Pminsd
            | Pminsw
            | Pminub
            | Pminud
            | Pminuw
            | Pmovsxbd
            | Pmovsxbq
            | Pmovsxbw
            | Pmovsxdq
            | Pmovsxwd
            | Pmovsxwq
            | Pmovzxbd
            | Pmovzxbq
            | Pmovzxbw
            | Pmovzxdq
            | Pmovzxwd
            | Pmovzxwq
            | Pmuldq
            | Pmulhrsw
            | Pmulhuw
            | Pmulhw
            | Pmulld
            | Pmullw
            | Pmuludq
            | Por
            | Psadbw
            | Pshufb
            | Psignb
            | Psignd
            | Psignw
            | Pslld
            | Pslldq
            | Psllq
            | Psllw
            | Psrad
            | Psraw
            | Psrld
            | Psrldq
            | Psrlq
            | Psrlw
            | Psubb
            | Psubd
            | Psubq
            | Psubsb
            | Psubsw
            | Psubusb
            | Psubusw
            | Psubw
            | Punpckhbw
            | Punpckhdq
            | Punpckhqdq
            | Punpckhwd
            | Punpcklbw
            | Punpckldq
            | Punpcklqdq
            | Punpcklwd
            | Pxor
            | Unpckhpd
            | Unpckhps
            | Unpcklpd
            | Unpcklps
            | Xorpd
            | Xorps
            | Aeskeygenassist
            | Blendpd
            | Blendps
            | Mpsadbw
            | Palignr
            | Pblendw
            | Pclmulqdq
            | Pshufd
            | Pshufhw
            | Pshuflw
            | Shufpd
            | Shufps
            | Blendvpd
            | Blendvps
            | Extractps
            | Insertps
            | Pblendvb
            | Pextrb
            | Pextrd
            | Pextrq
            | Pextrw
            | Pinsrb
            | Pinsrd
            | Pinsrq
            | Pinsrw
            | Ptest
            | Addpd
            | Addps
            | Addsd
            | Addss
            | Addsubpd
            | Addsubps
            | Cmppd
            | Cmpps
            | CmpsdXmm
            | Cmpss
            | Comisd
            | Comiss
            | Cvtdq2pd
            | Cvtdq2ps
            | Cvtpd2dq
            | Cvtpd2ps
            | Cvtps2dq
            | Cvtps2pd
            | Cvtsd2si
            | Cvtsd2ss
            | Cvtsi2sd
            | Cvtsi2ss
            | Cvtss2sd
            | Cvtss2si
            | Cvttpd2dq
            | Cvttps2dq
            | Cvttsd2si
            | Cvttss2si
            | Divpd
            | Divps
            | Divsd
            | Divss
            | Dppd
            | Dpps
            | Haddpd
            | Haddps
            | Hsubpd
            | Hsubps
            | Maxpd
            | Maxps
            | Maxsd
            | Maxss
            | Minpd
            | Minps
            | Minsd
            | Minss
            | Mulpd
            | Mulps
            | Mulsd
            | Mulss
            | Roundpd
            | Roundps
            | Roundsd
            | Roundss
            | Sqrtpd
            | Sqrtps
            | Sqrtsd
            | Sqrtss
            | Subpd
            | Subps
            | Subsd
            | Subss
            | Ucomisd
            | Ucomiss
            | Rcpps
            | Rcpss
            | Rsqrtps
            | Rsqrtss
    )
}

/// Whether a 16-byte memory operand must be aligned: legacy SSE's must, but for these (SDM vol. 2, table 2-23), and that
/// of CMPXCHG16B.
pub fn must_align(insn: &Insn) -> bool {
    use Op::*;
    insn.operands.contains(&Operand::Mem { size: 16 })
        && !insn.prefixes.contains(Prefixes::VEX)
        && (is_vector(insn.op) || insn.op == Op::Cmpxchg16b)
        && !matches!(insn.op, Lddqu | Movdqu | Movupd | Movups)
}

/// The segment whose base is to be added, if it can have one.
pub fn own_base(insn: &Insn) -> Option<Seg> {
    Some(insn.mem.seg).filter(|seg| matches!(seg, Seg::Fs | Seg::Gs))
}
