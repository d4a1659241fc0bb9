//! Instances of an encoding: which registers, what form of memory operand, which immediates and prefixes.
//!
//! A memory operand is chosen by its form only; its address is solved for later, when the registers have values.

use iced_x86::{Code, Instruction, Mnemonic, OpCodeOperandKind as Kind, OpKind, Register};

use crate::assemble;
use crate::case::Mode;
use crate::random::Random;

/// The form of a memory operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    /// General registers by encoding; RIP-relative has neither.
    pub base: Option<usize>,
    pub index: Option<usize>,
    pub scale: u32,
    /// Bytes of the displacement: 0, 1, 4 for as many as the form has, or 8 for the absolute addresses of MOV.
    pub displacement: u32,
    pub rip: bool,
    /// Bytes of an address: so much of the registers counts.
    pub width: u32,
}

/// An encoding with its operands; the memory operand still without an address.
#[derive(Clone, Debug)]
pub struct Instance {
    pub insn: Instruction,
    pub form: Option<Form>,
    /// Bytes of an address, for operands that no form names as well.
    pub width: u32,
    /// A prefix to put before the instruction if it has no effect there.
    pub prefix: Option<u8>,
}

/// Registers by width and encoding.
fn gpr(size: usize, n: usize) -> Register {
    let first = match size {
        1 if n >= 4 => return [Register::SPL, Register::R8L][n / 8] + (n as u32 - [4, 8][n / 8]),
        1 => Register::AL,
        2 => Register::AX,
        4 => Register::EAX,
        _ => Register::RAX,
    };
    first + n as u32
}

/// Chooses the operands of an encoding.
pub fn instance(code: Code, mode: Mode, random: &mut Random) -> Instance {
    let info = code.op_code();
    let mut insn = Instruction::default();
    insn.set_code(code);
    // A third of the instances uses few registers, so that they coincide.
    let few = random.one_in(3);
    let vsib = info.op_kinds().iter().any(|&kind| is_vsib32(kind) || is_vsib64(kind));
    let narrow = random.one_in(8) && (mode == Mode::Long || !vsib);
    let width = mode.address() / if narrow { 2 } else { 1 };
    let mut form = None;
    let register = |random: &mut Random| random.below(if few { 3 } else { mode.registers() }) as usize;
    for (n, &kind) in info.op_kinds().iter().enumerate() {
        let n = n as u32;
        let memory = form_allowed(kind) && (register_of(kind).is_none() || random.one_in(2));
        if memory {
            let chosen = memory_form(kind, code, (mode, width), random, register);
            set_form(&mut insn, n, &chosen);
            form = Some(chosen);
        } else if let Some(choose) = register_of(kind) {
            insn.set_op_kind(n, OpKind::Register);
            let number = register(random);
            insn.set_op_register(n, choose(random, number, mode));
        } else {
            other(&mut insn, n, kind, width, random);
        }
    }
    if vsib {
        // Destination, index and mask must differ.
        let first = register(random) as u32;
        let [destination, index, mask] = [0, 1, 2].map(|i| (first + i) % mode.registers() as u32);
        let rename = |old: Register, n| if old.is_ymm() { Register::YMM0 + n } else { Register::XMM0 + n };
        insn.set_op_register(0, rename(insn.op0_register(), destination));
        insn.set_op_register(2, rename(insn.op2_register(), mask));
        let long = info.op_kinds().iter().any(|kind| matches!(kind, Kind::mem_vsib32y | Kind::mem_vsib64y));
        insn.set_memory_index(if long { Register::YMM0 } else { Register::XMM0 } + index);
        insn.set_memory_index_scale(random.pick(&[1, 2, 4, 8]));
    }
    let in_memory = form.is_some();
    if in_memory && info.can_use_lock_prefix() && random.one_in(3) {
        insn.set_has_lock_prefix(true);
    }
    match (info.can_use_rep_prefix(), info.can_use_repne_prefix()) {
        (true, both) if insn.is_string_instruction() => match random.below(3) {
            0 => {}
            1 if both => insn.set_has_repne_prefix(true),
            _ => insn.set_has_rep_prefix(true),
        },
        _ => {}
    }
    Instance { insn, form, width, prefix: assemble::prefix(random) }
}

type Choose = fn(&mut Random, usize, Mode) -> Register;

/// How to name a register for an operand that is one or may be one.
fn register_of(kind: Kind) -> Option<Choose> {
    Some(match kind {
        Kind::r8_or_mem | Kind::r8_reg | Kind::r8_opcode => |random, n, mode| {
            // Half of the registers that could be a high byte are; without REX the numbers from 4 on are.
            let high = if n < 4 { random.one_in(2) } else { mode == Mode::Compatibility };
            if high { Register::AH + (n as u32 & 3) } else { gpr(1, n) }
        },
        Kind::r16_or_mem | Kind::r16_reg | Kind::r16_rm | Kind::r16_opcode => |_, n, _| gpr(2, n),
        Kind::r32_or_mem | Kind::r32_reg | Kind::r32_rm | Kind::r32_opcode | Kind::r32_vvvv => {
            |_, n, _| gpr(4, n)
        }
        Kind::r64_or_mem | Kind::r64_reg | Kind::r64_rm | Kind::r64_opcode | Kind::r64_vvvv => {
            |_, n, _| gpr(8, n)
        }
        Kind::mm_or_mem | Kind::mm_reg | Kind::mm_rm => |_, n, _| Register::MM0 + (n as u32 & 7),
        Kind::xmm_or_mem | Kind::xmm_reg | Kind::xmm_rm | Kind::xmm_vvvv | Kind::xmm_is4 => {
            |_, n, _| Register::XMM0 + n as u32
        }
        Kind::ymm_or_mem | Kind::ymm_reg | Kind::ymm_rm | Kind::ymm_vvvv | Kind::ymm_is4 => {
            |_, n, _| Register::YMM0 + n as u32
        }
        Kind::sti_opcode => |_, n, _| Register::ST0 + (n as u32 & 7),
        // Only stored: loads are not run.
        Kind::seg_reg => |random, _, _| Register::ES + random.below(6) as u32,
        _ => return None,
    })
}

fn form_allowed(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::mem
            | Kind::mem_offs
            | Kind::r8_or_mem
            | Kind::r16_or_mem
            | Kind::r32_or_mem
            | Kind::r64_or_mem
            | Kind::mm_or_mem
            | Kind::xmm_or_mem
            | Kind::ymm_or_mem
    ) || is_vsib32(kind)
        || is_vsib64(kind)
}

pub(crate) fn is_vsib32(kind: Kind) -> bool {
    matches!(kind, Kind::mem_vsib32x | Kind::mem_vsib32y)
}

pub(crate) fn is_vsib64(kind: Kind) -> bool {
    matches!(kind, Kind::mem_vsib64x | Kind::mem_vsib64y)
}

fn memory_form(
    kind: Kind,
    code: Code,
    (mode, width): (Mode, u32),
    random: &mut Random,
    register: impl Fn(&mut Random) -> usize,
) -> Form {
    let long = mode == Mode::Long;
    let mut form = Form { base: None, index: None, scale: 1, displacement: 4, rip: false, width };
    if kind == Kind::mem_offs {
        form.displacement = 8;
        return form;
    }
    if width == 2 {
        return form16(form, random);
    }
    if is_vsib32(kind) || is_vsib64(kind) {
        // The index is a vector's.
        form.base = Some(register(random)).filter(|_| !random.one_in(8));
        form.displacement = if form.base.is_some() { random.pick(&[0, 1, 4]) } else { 4 };
        return form;
    }
    // A base; base and index; index only; RIP-relative; absolute.
    let shape = random.below(12);
    if shape < 9 {
        form.base = Some(register(random));
        form.displacement = random.pick(&[0, 1, 1, 4]);
    }
    if (5..10).contains(&shape) {
        form.index = Some(register(random)).filter(|&n| n != 4);
        form.scale = random.pick(&[1, 2, 4, 8]);
        form.scale = if form.index.is_none() { 1 } else { form.scale };
    }
    form.rip = shape == 10 && long;
    // What is pushed to is RSP; only a displacement can then lead anywhere.
    if form.base == Some(4) && code.op_code().is_stack_instruction() {
        form.displacement = 4;
        form.index = None;
        form.scale = 1;
    }
    form
}

/// One of the eight forms of 16-bit addresses (SDM vol. 2, table 2-1).
fn form16(form: Form, random: &mut Random) -> Form {
    const BX: Option<usize> = Some(3);
    const BP: Option<usize> = Some(5);
    const SI: Option<usize> = Some(6);
    const DI: Option<usize> = Some(7);
    let forms = [
        (BX, SI),
        (BX, DI),
        (BP, SI),
        (BP, DI),
        (SI, None),
        (DI, None),
        (BP, None),
        (BX, None),
        (None, None),
    ];
    let (base, index) = random.pick(&forms);
    Form { base, index, displacement: if base.is_some() { random.pick(&[0, 1, 4]) } else { 4 }, ..form }
}

pub(crate) fn set_form(insn: &mut Instruction, operand: u32, form: &Form) {
    insn.set_op_kind(operand, OpKind::Memory);
    let size = form.width as usize;
    let rip = if size == 4 { Register::EIP } else { Register::RIP };
    let base = form.base.map_or(Register::None, |n| gpr(size, n));
    insn.set_memory_base(if form.rip { rip } else { base });
    insn.set_memory_index(form.index.map_or(Register::None, |n| gpr(size, n)));
    insn.set_memory_index_scale(form.scale);
}

/// Operands that are neither chosen registers nor ModRM memory.
fn other(insn: &mut Instruction, n: u32, kind: Kind, width: u32, random: &mut Random) {
    let fixed = match kind {
        Kind::al => Register::AL,
        Kind::cl => Register::CL,
        Kind::ax => Register::AX,
        Kind::dx => Register::DX,
        Kind::eax => Register::EAX,
        Kind::rax => Register::RAX,
        Kind::st0 => Register::ST0,
        Kind::es => Register::ES,
        Kind::cs => Register::CS,
        Kind::ss => Register::SS,
        Kind::ds => Register::DS,
        Kind::fs => Register::FS,
        Kind::gs => Register::GS,
        _ => Register::None,
    };
    if fixed != Register::None {
        insn.set_op_kind(n, OpKind::Register);
        insn.set_op_register(n, fixed);
        return;
    }
    let by_width = |kinds: [OpKind; 3]| kinds[width.trailing_zeros() as usize - 1];
    let op_kind = match kind {
        Kind::imm8 if n > 0 && insn.mnemonic() == Mnemonic::Enter => OpKind::Immediate8_2nd,
        Kind::imm8 | Kind::imm8_const_1 => OpKind::Immediate8,
        Kind::imm8sex16 => OpKind::Immediate8to16,
        Kind::imm8sex32 => OpKind::Immediate8to32,
        Kind::imm8sex64 => OpKind::Immediate8to64,
        Kind::imm16 => OpKind::Immediate16,
        Kind::imm32 => OpKind::Immediate32,
        Kind::imm32sex64 => OpKind::Immediate32to64,
        Kind::imm64 => OpKind::Immediate64,
        Kind::br64_1 | Kind::br64_4 => OpKind::NearBranch64,
        Kind::br32_1 | Kind::br32_4 => OpKind::NearBranch32,
        Kind::br16_1 | Kind::br16_2 => OpKind::NearBranch16,
        Kind::seg_rSI => by_width([OpKind::MemorySegSI, OpKind::MemorySegESI, OpKind::MemorySegRSI]),
        Kind::es_rDI => by_width([OpKind::MemoryESDI, OpKind::MemoryESEDI, OpKind::MemoryESRDI]),
        Kind::seg_rDI => by_width([OpKind::MemorySegDI, OpKind::MemorySegEDI, OpKind::MemorySegRDI]),
        Kind::seg_rBX_al => {
            insn.set_op_kind(n, OpKind::Memory);
            insn.set_memory_base(gpr(width as usize, 3));
            insn.set_memory_index(Register::AL);
            return;
        }
        _ => unreachable!("an operand kind that no encoding of the model has: {kind:?}"),
    };
    insn.set_op_kind(n, op_kind);
    if insn.try_immediate(n).is_ok() {
        let value = random.integer();
        insn.set_immediate_u64(n, if kind == Kind::imm8_const_1 { 1 } else { value });
    }
}
