//! The decoded form of one instruction: what the scan found, in types that an executor can consume.
//! An operand lists what the manual's syntax lists, in that order; implicit operands are known to the executor.

use crate::op::Op;

/// Width of the code segment an instruction is decoded for (Intel SDM vol. 2, 2.1 and 2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bits {
    /// Real mode, virtual-8086 mode and 16-bit code segments.
    B16,
    /// 32-bit code segments, compatibility mode included.
    B32,
    /// 64-bit mode.
    B64,
}

bitflags::bitflags! {
    /// Prefixes that were present. A mandatory 66/F2/F3 prefix, consumed as part of the opcode, is not listed here.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct Prefixes: u16 {
        const LOCK = 1;
        /// F3 as REP, REPE or REPZ.
        const REP = 2;
        /// F2 as REPNE or REPNZ.
        const REPNE = 4;
        const OPSIZE = 8;
        const ADDRSIZE = 16;
        /// Any REX prefix that took effect (it is directly before the opcode).
        const REX = 32;
        const REX_W = 64;
        /// A segment override that takes effect: in 64-bit mode only FS and GS.
        const SEGMENT = 128;
        const VEX = 256;
        const EVEX = 512;
        /// VEX.L: 256 bits, where the instruction heeds it.
        const VEX_L = 1024;
    }
}

/// Segment registers by their encoding (SDM vol. 2, table B-8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Seg {
    Es = 0,
    Cs = 1,
    Ss = 2,
    Ds = 3,
    Fs = 4,
    Gs = 5,
}

/// Register number that stands for "none" in [`Mem::base`] and [`Mem::index`].
pub const NO_REG: u8 = 0xff;
/// Register number that stands for the next instruction's RIP in [`Mem::base`].
pub const RIP: u8 = 0xfe;

/// The memory operand of an instruction; an instruction has at most one with a ModRM or moffs form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mem {
    /// Base register 0 to 15, [`RIP`] or [`NO_REG`]. 16-bit forms are unfolded to base and index as well.
    pub base: u8,
    /// Index register 0 to 15 or [`NO_REG`].
    pub index: u8,
    /// log2 of the scale: 0 to 3.
    pub scale: u8,
    /// Effective segment, override applied.
    pub seg: Seg,
    /// Displacement, sign-extended (moffs: the absolute offset). The sum wraps at [`Insn::addrsize`].
    pub disp: i64,
}

impl Mem {
    /// No memory operand; `seg` is still the effective segment of string instructions' source.
    pub const NONE: Mem = Mem { base: NO_REG, index: NO_REG, scale: 0, seg: Seg::Ds, disp: 0 };
}

/// One operand as the manual's syntax lists it. Sizes are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Operand {
    #[default]
    None,
    /// General register 0 (RAX) to 15, low `size` bytes.
    Gpr {
        reg: u8,
        size: u8,
    },
    /// AH, CH, DH, BH as `reg` 0 to 3 (no REX).
    High {
        reg: u8,
    },
    Seg(Seg),
    Cr(u8),
    Dr(u8),
    /// x87 stack register ST(i).
    St(u8),
    Mmx(u8),
    Xmm(u8),
    Ymm(u8),
    /// The operand in memory described by [`Insn::mem`]; size 0 where the operand has none (LEA, INVLPG).
    Mem {
        size: u16,
    },
    /// [`Insn::imm`], already extended to the operation's size by the rule of its encoding.
    Imm {
        size: u8,
    },
    /// [`Insn::imm2`], the second immediate (ENTER, EXTRQ) zero-extended.
    Imm2 {
        size: u8,
    },
    /// Relative branch: the target is next RIP + [`Insn::imm`] as signed, wrapped at the operand size.
    Rel,
    /// Far pointer in the code: selector in [`Insn::imm2`], offset in [`Insn::imm`].
    Far,
}

/// One decoded instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Insn {
    pub op: Op,
    /// Length in bytes, 1 to 15.
    pub len: u8,
    /// Effective operand size in bytes (1, 2, 4, 8): prefixes, REX.W, defaults of 64 and forced sizes applied.
    pub opsize: u8,
    /// Effective address size in bytes: 2, 4 or 8.
    pub addrsize: u8,
    /// Condition code 0 to 15 of Jcc, SETcc and CMOVcc (SDM vol. 1, appendix B), else 0.
    pub cond: u8,
    pub prefixes: Prefixes,
    pub operands: [Operand; 4],
    pub mem: Mem,
    /// First immediate, sign- or zero-extended by its encoding's rule, as a 64-bit pattern.
    pub imm: u64,
    /// Second immediate or far selector.
    pub imm2: u16,
}

/// Why bytes do not give an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum DecodeError {
    /// Not an instruction of this CPU model in this mode: #UD.
    #[error("undefined opcode")]
    Invalid,
    /// More than 15 bytes: #GP(0) (SDM vol. 3, 6.15).
    #[error("instruction longer than 15 bytes")]
    TooLong,
    /// The bytes end within the instruction; more are needed (the next page).
    #[error("instruction is cut off")]
    Truncated,
}
