//! Our decoder against iced-x86: validity, length, mnemonic and every operand, over the whole opcode space.

mod support;

use iced_x86::{
    Code, CodeSize, Decoder, DecoderOptions, EncodingKind, Instruction, Mnemonic, OpKind, Register,
};
use support::{Disagreements, MODES, hex, opcode_space, vex_space};
use trapgate_x86::decode::decode;
use trapgate_x86::features::Features;
use trapgate_x86::insn::{Bits, DecodeError, Insn, NO_REG, Operand, Prefixes, RIP, Seg};
use trapgate_x86::op::Op;

const IP: u64 = 0x10_0000;

fn width(bits: Bits) -> u32 {
    match bits {
        Bits::B16 => 16,
        Bits::B32 => 32,
        Bits::B64 => 64,
    }
}

fn iced(bytes: &[u8], bits: Bits) -> Instruction {
    Decoder::with_ip(width(bits), &bytes[..bytes.len().min(15)], IP, DecoderOptions::NONE).decode()
}

/// Our name for one of iced's mnemonics: families and sizes are folded.
fn op_name(mnemonic: Mnemonic, insn: &Instruction) -> String {
    use Mnemonic::*;
    let name = format!("{mnemonic:?}").to_lowercase();
    let string = matches!(
        insn.op0_kind(),
        OpKind::MemorySegSI
            | OpKind::MemorySegESI
            | OpKind::MemorySegRSI
            | OpKind::MemoryESDI
            | OpKind::MemoryESEDI
            | OpKind::MemoryESRDI
    ) || insn.is_string_instruction();
    match mnemonic {
        Movsd | Cmpsd if !string => name,
        Movsb | Movsw | Movsd | Movsq | Cmpsb | Cmpsw | Cmpsd | Cmpsq | Stosb | Stosw | Stosd | Stosq
        | Lodsb | Lodsw | Lodsd | Lodsq | Scasb | Scasw | Scasd | Scasq | Insb | Insw | Insd | Outsb
        | Outsw | Outsd => name[..4].trim_end_matches(['b', 'w', 'd']).to_string(),
        Jcxz | Jecxz | Jrcxz => "jrcxz".into(),
        Cbw | Cwde | Cdqe => "cbw".into(),
        Cwd | Cdq | Cqo => "cwd".into(),
        Pushf | Pushfd | Pushfq => "pushf".into(),
        Popf | Popfd | Popfq => "popf".into(),
        Pusha | Pushad => "pusha".into(),
        Popa | Popad => "popa".into(),
        Iret | Iretd | Iretq => "iret".into(),
        Retf | Sysretq | Sysexitq if name.ends_with('q') => name[..name.len() - 1].into(),
        Xlatb => "xlat".into(),
        Wait => "fwait".into(),
        Call if insn.is_call_far() || insn.is_call_far_indirect() => "callf".into(),
        Jmp if insn.is_jmp_far() || insn.is_jmp_far_indirect() => "jmpf".into(),
        Reservednop => "nop".into(),
        Prefetch | Prefetchw | Prefetchwt1 | Prefetchnta | Prefetcht0 | Prefetcht1 | Prefetcht2 => {
            "prefetch".into()
        }
        Fstpnce => "fstp".into(),
        Fcmovb | Fcmove | Fcmovbe | Fcmovu | Fcmovnb | Fcmovne | Fcmovnbe | Fcmovnu => "fcmovcc".into(),
        Sal => "shl".into(),
        _ if insn.is_jcc_short_or_near() => "jcc".into(),
        _ if is_setcc(insn.code()) => "setcc".into(),
        _ if is_cmovcc(insn.code()) => "cmovcc".into(),
        _ => match name.strip_suffix("64") {
            Some(short) if short.starts_with('x') || short.starts_with("fx") => short.into(),
            _ => name,
        },
    }
}

fn is_setcc(code: Code) -> bool {
    format!("{code:?}").starts_with("Set") && code != Code::Setssbsy
}

fn is_cmovcc(code: Code) -> bool {
    format!("{code:?}").starts_with("Cmov")
}

/// iced's code to our name, computed once.
fn names() -> Vec<std::cell::OnceCell<String>> {
    (0..Code::values().len()).map(|_| std::cell::OnceCell::new()).collect()
}

fn general(register: Register) -> Option<Operand> {
    let (mut number, size) = (register.number() as u8, register.size() as u8);
    if matches!(register, Register::AH | Register::CH | Register::DH | Register::BH) {
        return Some(Operand::High { reg: number - 4 });
    }
    if register.is_gpr8() && number >= 8 {
        // SPL follows BH there.
        number -= 4;
    }
    if register.is_gpr() {
        return Some(Operand::Gpr { reg: number, size });
    }
    if register.is_xmm() {
        return Some(Operand::Xmm(number));
    }
    if register.is_ymm() {
        return Some(Operand::Ymm(number));
    }
    if register.is_mm() {
        return Some(Operand::Mmx(number));
    }
    if register.is_st() {
        return Some(Operand::St(number));
    }
    if register.is_cr() {
        return Some(Operand::Cr(number));
    }
    if register.is_dr() {
        return Some(Operand::Dr(number));
    }
    None
}

fn memory_register(register: Register) -> u8 {
    match register {
        Register::None => NO_REG,
        Register::RIP | Register::EIP => RIP,
        other => other.number() as u8,
    }
}

/// The operands that the manual lists, of those that iced does: it also lists implicit ones.
fn listed(insn: &Instruction, ours: &Insn) -> Vec<u32> {
    let all = (0..insn.op_count()).collect::<Vec<_>>();
    match ours.op {
        Op::Movs | Op::Cmps | Op::Stos | Op::Lods | Op::Scas | Op::Ins | Op::Outs | Op::Xlat => vec![],
        // ST(0) of the one-operand forms; segment:rDI of the masked stores.
        Op::Fcom | Op::Fcomp | Op::Fucom | Op::Fucomp | Op::Fxch if all.len() == 2 => vec![1],
        Op::Fld | Op::Fst | Op::Fstp | Op::Fild | Op::Fist | Op::Fistp | Op::Fisttp if all.len() == 2 => {
            let memory_first = insn.op0_kind() != OpKind::Register || insn.op0_register() != Register::ST0;
            vec![if memory_first { 0 } else { 1 }]
        }
        Op::Maskmovq | Op::Maskmovdqu | Op::Vmaskmovdqu => vec![1, 2],
        _ => all,
    }
}

/// What differs between one of our operands and iced's, if anything does.
fn operand(insn: &Instruction, n: u32, ours: &Insn, operand: Operand) -> Result<(), String> {
    let fail = |what: &str| Err(format!("{what}, ours {operand:?}"));
    match insn.op_kind(n) {
        OpKind::Register => {
            let register = insn.op_register(n);
            if register.is_segment_register() {
                return match operand {
                    Operand::Seg(seg) if seg as u32 == register.number() as u32 => Ok(()),
                    _ => fail("segment register"),
                };
            }
            let mut register_operand = general(register);
            // The manual gives these 16-bit operands whatever the operand size; iced lets the register follow it.
            if let (
                Op::Arpl | Op::Lldt | Op::Ltr | Op::Verr | Op::Verw | Op::Lmsw,
                Some(Operand::Gpr { size, .. }),
            ) = (ours.op, &mut register_operand)
            {
                *size = 2;
            }
            if register_operand == Some(operand) { Ok(()) } else { fail(&format!("register {register:?}")) }
        }
        OpKind::Memory => memory(insn, ours, operand),
        OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => {
            let mask = match insn.op_kind(n) {
                OpKind::NearBranch16 => 0xffff,
                OpKind::NearBranch32 => 0xffff_ffff,
                _ => u64::MAX,
            };
            let target = (IP + u64::from(ours.len)).wrapping_add(ours.imm) & mask;
            if operand == Operand::Rel && target == insn.near_branch_target() {
                Ok(())
            } else {
                fail("branch")
            }
        }
        OpKind::FarBranch16 | OpKind::FarBranch32 => {
            let offset = match insn.op_kind(n) {
                OpKind::FarBranch16 => u64::from(insn.far_branch16()),
                _ => u64::from(insn.far_branch32()),
            };
            let same = ours.imm == offset && ours.imm2 == insn.far_branch_selector();
            if operand == Operand::Far && same { Ok(()) } else { fail("far pointer") }
        }
        OpKind::Immediate8_2nd => {
            let same = operand == Operand::Imm2 { size: 1 } && ours.imm2 == u16::from(insn.immediate8_2nd());
            if same { Ok(()) } else { fail("second immediate") }
        }
        kind => {
            let size = match kind {
                OpKind::Immediate8 => 1,
                OpKind::Immediate16 | OpKind::Immediate8to16 => 2,
                OpKind::Immediate32 | OpKind::Immediate8to32 => 4,
                OpKind::Immediate64 | OpKind::Immediate8to64 | OpKind::Immediate32to64 => 8,
                other => return fail(&format!("{other:?}")),
            };
            let value =
                insn.immediate(n) & if size == 8 { u64::MAX } else { (1 << (8 * u64::from(size))) - 1 };
            let same = operand == Operand::Imm { size } && ours.imm == value;
            if same { Ok(()) } else { fail(&format!("immediate {value:#x} of {size}, ours {:#x}", ours.imm)) }
        }
    }
}

fn memory(insn: &Instruction, ours: &Insn, operand: Operand) -> Result<(), String> {
    let Operand::Mem { size } = operand else { return Err(format!("memory, ours {operand:?}")) };
    let mem = ours.mem;
    if (mem.base, mem.index) != (memory_register(insn.memory_base()), memory_register(insn.memory_index())) {
        return Err(format!("base or index, ours {mem:?}"));
    }
    if mem.index != NO_REG && 1 << mem.scale != insn.memory_index_scale() {
        return Err(format!("scale, ours {mem:?}"));
    }
    let mut displacement = mem.disp as u64;
    if mem.base == RIP {
        displacement = displacement.wrapping_add(IP + u64::from(ours.len));
    }
    let mask = match ours.addrsize {
        2 => 0xffff,
        4 => 0xffff_ffff,
        _ => u64::MAX,
    };
    if displacement & mask != insn.memory_displacement64() & mask {
        return Err(format!("displacement {:#x}, ours {displacement:#x}", insn.memory_displacement64()));
    }
    // iced shows ES, CS, SS and DS prefixes in 64-bit mode, where they have no effect.
    let flat = insn.code_size() == CodeSize::Code64
        && !matches!(insn.memory_segment(), Register::FS | Register::GS)
        && matches!(mem.seg, Seg::Ds | Seg::Ss);
    if mem.seg as u32 != insn.memory_segment().number() as u32 && !flat {
        return Err(format!("segment {:?}, ours {:?}", insn.memory_segment(), mem.seg));
    }
    let theirs = insn.memory_size().size() as u16;
    // XSAVE areas have no size of their own; iced gives LEA that of its register.
    let sizeless = size == 0
        && matches!(
            ours.op,
            Op::Lea
                | Op::Nop
                | Op::Xsave
                | Op::Xsaveopt
                | Op::Xsavec
                | Op::Xsaves
                | Op::Xrstor
                | Op::Xrstors
                | Op::Invlpg
        );
    if sizeless || size == theirs { Ok(()) } else { Err(format!("memory of {theirs}, ours {size}")) }
}

fn compare(bytes: &[u8; 16], bits: Bits, names: &[std::cell::OnceCell<String>], found: &mut Disagreements) {
    found.compared += 1;
    let theirs = iced(bytes, bits);
    let ours = decode(bytes, bits, &Features::all());
    let example = || format!("{} in {bits:?} ({theirs})", hex(&bytes[..15]));
    let invalid = theirs.is_invalid();
    let name = names[theirs.code() as usize].get_or_init(|| op_name(theirs.mnemonic(), &theirs));
    let insn = match ours {
        Err(DecodeError::TooLong) if invalid => return,
        Err(DecodeError::Invalid) if invalid => return,
        Err(DecodeError::Invalid) if accepted_only_by_iced(&theirs, name) => return,
        Err(error) => return found.add(format!("{:?} is {error:?} here", theirs.code()), example()),
        Ok(insn) if invalid => return found.add(format!("{:?} is invalid there", insn.op), example()),
        Ok(insn) => insn,
    };
    if name != insn.op.name() {
        if known_by_another_name(name, &insn) {
            return;
        }
        return found.add(format!("{name} is {:?}", insn.op), example());
    }
    if theirs.len() != usize::from(insn.len) {
        return found
            .add(format!("{:?}: length {} here {}", theirs.code(), theirs.len(), insn.len), example());
    }
    let listed = listed(&theirs, &insn);
    let count = insn.operands.iter().take_while(|&&operand| operand != Operand::None).count();
    if count != listed.len() {
        return found.add(format!("{:?}: {} operands, here {count}", theirs.code(), listed.len()), example());
    }
    for (n, &place) in listed.iter().enumerate().take(count) {
        if let Err(difference) = operand(&theirs, place, &insn, insn.operands[n]) {
            found.add(format!("{:?} operand {n}: {difference}", theirs.code()), example());
        }
    }
    let condition = theirs.condition_code() as u8;
    if matches!(insn.op, Op::Jcc | Op::Setcc | Op::Cmovcc) && condition != insn.cond + 1 {
        found.add(format!("{:?}: condition {}", theirs.code(), insn.cond), example());
    }
    if let Some(size) = implied_size(&theirs, insn.op)
        && size != insn.opsize
    {
        found.add(format!("{:?}: operand size {}", theirs.code(), insn.opsize), example());
    }
    if theirs.is_string_instruction()
        && (theirs.has_repne_prefix(), theirs.has_rep_prefix())
            != (insn.prefixes.contains(Prefixes::REPNE), insn.prefixes.contains(Prefixes::REP))
    {
        found.add(format!("{:?}: REP", theirs.code()), example());
    }
    if theirs.has_lock_prefix() != insn.prefixes.contains(Prefixes::LOCK) {
        found.add(format!("{:?}: LOCK", theirs.code()), example());
    }
}

/// The operand size that iced puts in the name of a form whose operands do not show it.
fn implied_size(theirs: &Instruction, op: Op) -> Option<u8> {
    let code = format!("{:?}", theirs.code());
    let size = |letter: Option<char>| match letter {
        Some('b') => Some(1),
        Some('w') => Some(2),
        Some('d') => Some(4),
        Some('q') => Some(8),
        _ => None,
    };
    match op {
        Op::Movs
        | Op::Cmps
        | Op::Stos
        | Op::Lods
        | Op::Scas
        | Op::Ins
        | Op::Outs
        | Op::Ret
        | Op::RetFar
        | Op::Iret
        | Op::Pushf
        | Op::Popf
        | Op::Pusha
        | Op::Popa
        | Op::Enter
        | Op::Leave => size(code.split('_').next()?.chars().last()),
        Op::Cbw => Some(match theirs.mnemonic() {
            Mnemonic::Cbw => 2,
            Mnemonic::Cwde => 4,
            _ => 8,
        }),
        Op::Cwd => Some(match theirs.mnemonic() {
            Mnemonic::Cwd => 2,
            Mnemonic::Cdq => 4,
            _ => 8,
        }),
        Op::Call | Op::Jmp | Op::Jcc | Op::Loop | Op::Loope | Op::Loopne | Op::Jrcxz => {
            match theirs.op0_kind() {
                OpKind::NearBranch16 => Some(2),
                OpKind::NearBranch32 => Some(4),
                OpKind::NearBranch64 => Some(8),
                _ => None,
            }
        }
        _ => None,
    }
}

/// Instructions that iced knows and no model here offers.
fn accepted_only_by_iced(theirs: &Instruction, name: &str) -> bool {
    matches!(theirs.code().encoding(), EncodingKind::EVEX | EncodingKind::XOP | EncodingKind::D3NOW)
        || !Op::ALL.iter().any(|op| op.name() == name)
}

/// Hints that have a name there and are NOP where the feature is not offered; forms that the manual does not tell apart.
fn known_by_another_name(name: &str, ours: &Insn) -> bool {
    match ours.op {
        Op::Nop => ["cldemote", "prefetchit0", "prefetchit1", "rdsspd", "rdsspq"].contains(&name),
        // REX.W only widens the lengths in EAX and EDX.
        Op::Pcmpestri | Op::Pcmpestrm | Op::Vpcmpestri | Op::Vpcmpestrm => {
            name.strip_suffix("64") == Some(ours.op.name())
        }
        Op::Vmmcall => name == "vmgexit",
        _ => false,
    }
}

#[test]
fn the_opcode_space_reads_as_iced_reads_it() {
    let (names, mut found) = (names(), Disagreements::default());
    for bits in MODES {
        opcode_space(bits, |bytes| compare(bytes, bits, &names, &mut found));
    }
    found.assert_none();
}

#[test]
fn the_vex_space_reads_as_iced_reads_it() {
    let (names, mut found) = (names(), Disagreements::default());
    for bits in MODES {
        vex_space(bits, |bytes| compare(bytes, bits, &names, &mut found));
    }
    found.assert_none();
}
