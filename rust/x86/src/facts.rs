//! Facts about single instructions from iced-x86, in types of our own so that the library can be replaced. It is given a
//! copy of at most 15 bytes and never guest memory; what it says about validity is not used.

use iced_x86::{
    Decoder, DecoderOptions, Formatter, Instruction, InstructionInfoFactory, IntelFormatter, OpAccess,
};
use iced_x86::{Register as Iced, RflagsBits};

use crate::flags::FlagUse;
use crate::insn::{Bits, Seg};
use crate::layout::MAX_LENGTH;
use crate::regs::rflags;

/// How an operand, register or memory is accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// Named only (LEA, NOP).
    None,
    Read,
    /// Read or not, by the data (CMOVcc, a REP with a count of 0).
    MayRead,
    Write,
    MayWrite,
    ReadWrite,
    /// Read, and written or not (CMPXCHG).
    ReadMayWrite,
}

/// A register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Register {
    /// General register 0 to 15, low `size` bytes.
    Gpr {
        reg: u8,
        size: u8,
    },
    /// AH, CH, DH, BH.
    High {
        reg: u8,
    },
    Seg(Seg),
    Cr(u8),
    Dr(u8),
    St(u8),
    Mmx(u8),
    Xmm(u8),
    Ymm(u8),
    /// One that the above have no name for, by the library's.
    Other(&'static str),
}

/// A register and how it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RegisterUse {
    pub register: Register,
    pub access: Access,
}

/// A stretch of memory and how it is used. The address is segment base + base + index * scale + displacement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MemoryUse {
    pub segment: Option<Register>,
    pub base: Option<Register>,
    pub index: Option<Register>,
    pub scale: u8,
    pub displacement: u64,
    /// Bytes; 0 if it depends on the state (XSAVE).
    pub size: u16,
    pub access: Access,
}

/// What is known about an instruction from its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    pub len: u8,
    /// Intel syntax.
    pub text: String,
    pub flags: FlagUse,
    /// Implicit ones included.
    pub registers: Vec<RegisterUse>,
    pub memory: Vec<MemoryUse>,
    /// Explicit and implicit operands in the library's order.
    pub operands: Vec<Access>,
    /// Names of the CPUID features that the encoding belongs to.
    pub features: Vec<String>,
}

/// Facts about the instruction at the start of `bytes`; `None` if the library knows none there.
pub fn facts(bytes: &[u8], bits: Bits, ip: u64) -> Option<Facts> {
    let insn = read(bytes, bits, ip)?;
    let mut factory = InstructionInfoFactory::new();
    let info = factory.info(&insn);
    Some(Facts {
        len: insn.len() as u8,
        text: format(&insn),
        flags: flags(&insn),
        registers: info
            .used_registers()
            .iter()
            .map(|used| RegisterUse { register: register(used.register()), access: access(used.access()) })
            .collect(),
        memory: info
            .used_memory()
            .iter()
            .map(|used| MemoryUse {
                segment: optional(used.segment()),
                base: optional(used.base()),
                index: optional(used.index()),
                scale: used.scale() as u8,
                displacement: used.displacement(),
                size: used.memory_size().size() as u16,
                access: access(used.access()),
            })
            .collect(),
        operands: (0..insn.op_count()).map(|n| access(info.op_access(n))).collect(),
        features: insn.cpuid_features().iter().map(|feature| format!("{feature:?}")).collect(),
    })
}

/// The instruction in Intel syntax, with branch targets as addresses; `None` if the library knows none there.
pub fn text(bytes: &[u8], bits: Bits, ip: u64) -> Option<String> {
    read(bytes, bits, ip).map(|insn| format(&insn))
}

/// A formatter kept for many instructions, which saves its set-up.
#[derive(Default)]
pub struct TextWriter {
    formatter: Option<IntelFormatter>,
}

impl std::fmt::Debug for TextWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TextWriter").finish_non_exhaustive()
    }
}

impl TextWriter {
    pub fn new() -> TextWriter {
        TextWriter::default()
    }

    /// Appends the text of the instruction to `out`; false if the library knows none there.
    pub fn write(&mut self, bytes: &[u8], bits: Bits, ip: u64, out: &mut String) -> bool {
        let Some(insn) = read(bytes, bits, ip) else { return false };
        self.formatter.get_or_insert_with(formatter).format(&insn, out);
        true
    }
}

fn read(bytes: &[u8], bits: Bits, ip: u64) -> Option<Instruction> {
    let mut copy = [0; MAX_LENGTH];
    let length = bytes.len().min(MAX_LENGTH);
    copy[..length].copy_from_slice(&bytes[..length]);
    let (width, ip) = match bits {
        Bits::B16 => (16, ip & 0xffff),
        Bits::B32 => (32, ip & 0xffff_ffff),
        Bits::B64 => (64, ip),
    };
    let insn = Decoder::with_ip(width, &copy[..length], ip, DecoderOptions::NONE).decode();
    (!insn.is_invalid()).then_some(insn)
}

fn formatter() -> IntelFormatter {
    let mut formatter = IntelFormatter::new();
    let options = formatter.options_mut();
    options.set_space_after_operand_separator(true);
    options.set_hex_prefix("0x");
    options.set_hex_suffix("");
    options.set_uppercase_hex(false);
    options.set_small_hex_numbers_in_decimal(true);
    options.set_branch_leading_zeros(false);
    options.set_rip_relative_addresses(true);
    options.set_show_branch_size(false);
    formatter
}

fn format(insn: &Instruction) -> String {
    let mut text = String::new();
    formatter().format(insn, &mut text);
    text
}

/// The library's flag bits as those of RFLAGS; x87 condition codes are left out.
fn rflags_bits(bits: u32) -> u32 {
    const TABLE: [(u32, u64); 9] = [
        (RflagsBits::OF, rflags::OF),
        (RflagsBits::SF, rflags::SF),
        (RflagsBits::ZF, rflags::ZF),
        (RflagsBits::AF, rflags::AF),
        (RflagsBits::CF, rflags::CF),
        (RflagsBits::PF, rflags::PF),
        (RflagsBits::DF, rflags::DF),
        (RflagsBits::IF, rflags::IF),
        (RflagsBits::AC, rflags::AC),
    ];
    TABLE.iter().filter(|(theirs, _)| bits & theirs != 0).fold(0, |all, (_, ours)| all | *ours as u32)
}

fn flags(insn: &Instruction) -> FlagUse {
    FlagUse {
        read: rflags_bits(insn.rflags_read()),
        written: rflags_bits(insn.rflags_written()),
        cleared: rflags_bits(insn.rflags_cleared()),
        set: rflags_bits(insn.rflags_set()),
        undefined: rflags_bits(insn.rflags_undefined()),
        kept: 0,
    }
}

fn access(access: OpAccess) -> Access {
    match access {
        OpAccess::None | OpAccess::NoMemAccess => Access::None,
        OpAccess::Read => Access::Read,
        OpAccess::CondRead => Access::MayRead,
        OpAccess::Write => Access::Write,
        OpAccess::CondWrite => Access::MayWrite,
        OpAccess::ReadWrite => Access::ReadWrite,
        OpAccess::ReadCondWrite => Access::ReadMayWrite,
    }
}

fn optional(iced: Iced) -> Option<Register> {
    (iced != Iced::None).then(|| register(iced))
}

fn register(iced: Iced) -> Register {
    let number = iced.number() as u8;
    match iced {
        Iced::AH | Iced::CH | Iced::DH | Iced::BH => Register::High { reg: number & 3 },
        // SPL follows BH there.
        _ if iced.is_gpr8() && number >= 8 => Register::Gpr { reg: number - 4, size: 1 },
        _ if iced.is_gpr() => Register::Gpr { reg: number, size: iced.size() as u8 },
        Iced::ES => Register::Seg(Seg::Es),
        Iced::CS => Register::Seg(Seg::Cs),
        Iced::SS => Register::Seg(Seg::Ss),
        Iced::DS => Register::Seg(Seg::Ds),
        Iced::FS => Register::Seg(Seg::Fs),
        Iced::GS => Register::Seg(Seg::Gs),
        _ if iced.is_cr() => Register::Cr(number),
        _ if iced.is_dr() => Register::Dr(number),
        _ if iced.is_st() => Register::St(number),
        _ if iced.is_mm() => Register::Mmx(number),
        _ if iced.is_xmm() => Register::Xmm(number),
        _ if iced.is_ymm() => Register::Ymm(number),
        Iced::RIP | Iced::EIP => Register::Other("rip"),
        _ if iced.is_zmm() => Register::Other("zmm"),
        _ if iced.is_k() => Register::Other("k"),
        _ if iced.is_bnd() => Register::Other("bnd"),
        _ if iced.is_tmm() => Register::Other("tmm"),
        _ => Register::Other("other"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_intel_syntax() {
        assert_eq!(text(&[0x48, 0x89, 0xd8], Bits::B64, 0).as_deref(), Some("mov rax, rbx"));
        assert_eq!(text(&[0xeb, 0xfe], Bits::B64, 0x1000).as_deref(), Some("jmp 0x1000"));
        assert_eq!(text(&[0x8b, 0x05, 0, 1, 0, 0], Bits::B64, 0x10).as_deref(), Some("mov eax, [rip+0x100]"));
        assert_eq!(text(&[0x83, 0xc0, 0x7f], Bits::B32, 0).as_deref(), Some("add eax, 0x7f"));
        assert_eq!(text(&[0x0f], Bits::B64, 0), None);
        assert_eq!(text(&[], Bits::B64, 0), None);
    }

    #[test]
    fn no_address_makes_the_library_panic() {
        // Relative branches and RIP-relative operands of every size, at both ends of each address space.
        let codes: [&[u8]; 7] = [
            &[0xe8, 0xff, 0xff, 0xff, 0x7f],
            &[0xe8, 0, 0, 0, 0x80],
            &[0xeb, 0x7f],
            &[0x74, 0x80],
            &[0x66, 0xe9, 0, 0x80, 0, 0],
            &[0x8b, 0x05, 0xff, 0xff, 0xff, 0x7f],
            &[0x67, 0x8b, 0x05, 0, 0, 0, 0x80],
        ];
        let mut writer = TextWriter::new();
        for ip in [0, 0x7fff, 0xffff, 0x7fff_ffff, 0xffff_fffe, u64::from(u32::MAX), 1 << 63, u64::MAX] {
            for code in codes {
                for bits in [Bits::B16, Bits::B32, Bits::B64] {
                    let mut out = String::new();
                    assert!(writer.write(code, bits, ip, &mut out));
                    assert_eq!(Some(out), text(code, bits, ip));
                }
            }
        }
    }

    #[test]
    fn facts_name_implicit_registers_and_memory() {
        let push = facts(&[0x50], Bits::B64, 0).unwrap();
        assert!(push.registers.contains(&RegisterUse {
            register: Register::Gpr { reg: 4, size: 8 },
            access: Access::ReadWrite
        }));
        assert_eq!((push.memory.len(), push.memory[0].size, push.memory[0].access), (1, 8, Access::Write));
        let cmpxchg = facts(&[0xf0, 0x0f, 0xb1, 0x0b], Bits::B64, 0).unwrap();
        assert_eq!(cmpxchg.flags.written, rflags::STATUS as u32);
        assert_eq!(cmpxchg.operands[0], Access::ReadMayWrite);
        let aes = facts(&[0x66, 0x0f, 0x38, 0xdc, 0xc1], Bits::B64, 0).unwrap();
        assert_eq!(aes.features, ["AES"]);
    }
}
