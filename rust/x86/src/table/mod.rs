//! The opcode table: one row per encoding, written as the manual's opcode maps list them (Intel SDM vol. 2, appendix A).
//! Layout scan, decode, classification of lengths and the enumeration of encodings are all derived from these rows.

mod index;
mod primary;
mod three_byte;
mod two_byte;
mod vex;
mod x87;

pub(crate) use index::{ATTRIBUTES, ROWS, attribute, candidates};

use crate::features::Features;
use crate::op::Op;

/// The opcode maps by the escape that leads to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Map {
    /// One-byte opcodes.
    Primary = 0,
    /// 0F.
    M0f = 1,
    /// 0F 38.
    M0f38 = 2,
    /// 0F 3A.
    M0f3a = 3,
    /// VEX with map 1, 2 or 3.
    Vex0f = 4,
    Vex0f38 = 5,
    Vex0f3a = 6,
    /// EVEX, any map: laid out, but no row describes it.
    Evex = 7,
}

/// How many maps have rows.
pub(crate) const MAPS: usize = 7;

/// What the decoder knows about an instruction before it chooses a row: one bit set in each group.
/// A row lists the bits that it accepts; it fits when no bit of the state is outside that list.
pub(crate) mod state {
    /// No prefix of 66, F3, F2 that could be mandatory (or VEX.pp = 0).
    pub const NP: u64 = 1 << 0;
    /// 66, with neither F3 nor F2.
    pub const P66: u64 = 1 << 1;
    pub const PF3: u64 = 1 << 2;
    pub const PF2: u64 = 1 << 3;
    pub const PP: u64 = NP | P66 | PF3 | PF2;
    pub const M16: u64 = 1 << 4;
    pub const M32: u64 = 1 << 5;
    pub const M64: u64 = 1 << 6;
    pub const MODES: u64 = M16 | M32 | M64;
    /// ModRM.mod is not 11b. Opcodes without ModRM count as register forms.
    pub const MEM: u64 = 1 << 7;
    pub const REG: u64 = 1 << 8;
    /// REX.W or VEX.W.
    pub const W0: u64 = 1 << 9;
    pub const W1: u64 = 1 << 10;
    /// VEX.L.
    pub const L0: u64 = 1 << 11;
    pub const L1: u64 = 1 << 12;
    /// REX.B, for opcodes without ModRM.
    pub const B0: u64 = 1 << 13;
    pub const B1: u64 = 1 << 14;
    /// VEX.vvvv is 1111b (or there is none).
    pub const V0: u64 = 1 << 15;
    pub const V1: u64 = 1 << 16;
    /// ModRM.reg is n: bit 24 + n.
    pub const SLASH_SHIFT: u32 = 24;
    pub const SLASH: u64 = 0xff << SLASH_SHIFT;
    /// ModRM.rm is n: bit 32 + n.
    pub const RM_SHIFT: u32 = 32;
    pub const RM: u64 = 0xff << RM_SHIFT;
    pub const ALL: u64 = PP | MODES | MEM | REG | W0 | W1 | L0 | L1 | B0 | B1 | V0 | V1 | SLASH | RM;
}

/// Operand codes, after the manual's (SDM vol. 2, A.2.1 and A.2.2): the first letter says where, the rest how wide.
/// E/G/R: general registers of ModRM.rm, ModRM.reg; P/Q: MMX; V/W: XMM of reg, rm; H: VEX.vvvv; L: is4; M: memory only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub(crate) enum Spec {
    None,
    Eb,
    Ew,
    Ed,
    Eq,
    /// By operand size: 2, 4 or 8.
    Ev,
    /// 4, or 8 with W.
    Ey,
    /// 2 with an operand size of 2, else 4.
    Ez,
    /// Register by operand size, memory of 2 bytes.
    RvMw,
    /// Register of 4 (8 with W) bytes, memory of 1, 2 or 4 bytes.
    RyMb,
    RyMw,
    RyMd,
    /// Register of 8 bytes in 64-bit mode, else 4 (control and debug register moves).
    Rm,
    Gb,
    Gw,
    Gv,
    Gy,
    /// 8 in 64-bit mode, else 4.
    Gm,
    /// By address size.
    Ga,
    /// VEX.vvvv as a general register of 4 (8 with W) bytes.
    By,
    /// Low three opcode bits with REX.B: 1 byte, or by operand size.
    Zb,
    Zv,
    Al,
    Ax,
    /// AL, AX, EAX or RAX by operand size.
    RAx,
    Cl,
    Dx,
    /// Memory without a size.
    M,
    Mb,
    Mw,
    Md,
    Mq,
    Mt,
    Mx16,
    /// Far pointer: selector and offset.
    Mp,
    /// Two words or doublewords (BOUND).
    Ma,
    /// Pseudo-descriptor: 6 or 10 bytes.
    Ms,
    /// x87 environment of 14 or 28 bytes, state of 94 or 108.
    Menv,
    Mstate,
    /// 512 bytes (FXSAVE), 64 bytes (MOVDIR64B).
    Mfx,
    M64b,
    /// 4, or 8 with W.
    My,
    /// Memory at an absolute offset in the code.
    Ob,
    Ov,
    One,
    Ib,
    /// One byte, sign-extended to the operand size.
    Ibs,
    Iw,
    /// 2 or 4 bytes, sign-extended to the operand size.
    Iz,
    /// 2, 4 or 8 bytes.
    Iv,
    /// A second byte (ENTER, EXTRQ, INSERTQ).
    Ib2,
    Jb,
    /// 2 or 4 bytes; always 4 in 64-bit mode.
    Jz,
    /// 2 or 4 bytes, in every mode by the operand size (XBEGIN).
    Jo,
    Ap,
    Sw,
    Es,
    Cs,
    Ss,
    Ds,
    Fs,
    Gs,
    Cr,
    Dr,
    St0,
    StI,
    P,
    /// MMX register, or memory of 8 or 4 bytes.
    Q,
    Qd,
    V,
    /// XMM register, or memory of 16, 8, 4, 2 or 1 bytes.
    W,
    Wq,
    Wd,
    Ww,
    Wb,
    H,
    /// XMM or YMM by VEX.L.
    Vx,
    Hx,
    Wx,
    Lx,
    Mx,
    /// YMM always.
    Vy,
    Hy,
    Wy,
    /// XMM register always or memory: half, a quarter, an eighth of the vector length.
    Wh,
    Wf,
    We,
    /// As `Wh`, but memory of 8 bytes at L = 0 and a YMM register at L = 1 (VMOVDDUP).
    Wdup,
    /// Memory with a vector index: elements of 4 or 8 bytes.
    VsibD,
    VsibQ,
}

/// Properties of a row beyond opcode and operands.
pub(crate) mod flag {
    /// Byte operation: operand size 1.
    pub const BYTE: u16 = 1 << 0;
    /// In 64-bit mode the operand size is 8, or 2 with 66 (pushes and pops).
    pub const DEF64: u16 = 1 << 1;
    /// In 64-bit mode the operand size is 8 whatever the prefixes (near branches, SDM vol. 2, "JMP").
    pub const FORCE64: u16 = 1 << 2;
    /// The operand size never exceeds 4 (port I/O).
    pub const MAX4: u16 = 1 << 3;
    /// LOCK is allowed with a memory destination.
    pub const LOCK: u16 = 1 << 4;
    /// The low four opcode bits are a condition.
    pub const COND: u16 = 1 << 5;
    /// ModRM.mod is ignored and taken as 11b (MOV to and from control and debug registers).
    pub const MODREG: u16 = 1 << 6;
    /// Has a ModRM byte though no operand says so.
    pub const MODRM: u16 = 1 << 7;
    /// The operand size is that of the mode: 8 in 64-bit mode, else 4.
    pub const NATIVE: u16 = 1 << 8;
    /// The condition is x87's: opcode DA or DB and ModRM.reg.
    pub const FCOND: u16 = 1 << 9;
    /// 16-bit addressing is #UD (VSIB), and the three registers of a gather must differ.
    pub const GATHER: u16 = 1 << 10;
}

/// One encoding.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    /// Bits of [`state`] that fit.
    pub accept: u64,
    /// Encoding features that must all be offered.
    pub needs: u64,
    pub op: Op,
    pub flags: u16,
    pub specs: [Spec; 4],
    pub opcode: u8,
    /// How many consecutive opcodes the row stands for.
    pub span: u8,
    pub map: Map,
}

/// A row that accepts everything; the methods below narrow it.
pub(crate) const fn row<const N: usize>(opcode: u8, op: Op, specs: [Spec; N]) -> Row {
    let mut four = [Spec::None; 4];
    let mut accept = state::ALL & !(state::V1 | state::L1);
    let mut n = 0;
    while n < N {
        four[n] = specs[n];
        if matches!(specs[n], Spec::H | Spec::Hx | Spec::Hy | Spec::By) {
            accept |= state::V1;
        }
        n += 1;
    }
    Row { accept, needs: 0, op, flags: 0, specs: four, opcode, span: 1, map: Map::Primary }
}

impl Row {
    const fn narrow(mut self, group: u64, bits: u64) -> Row {
        self.accept = self.accept & !group | bits;
        self
    }

    const fn with(mut self, flags: u16) -> Row {
        self.flags |= flags;
        self
    }

    /// None of 66, F3, F2.
    pub const fn np(self) -> Row {
        self.narrow(state::PP, state::NP)
    }

    /// Mandatory 66.
    pub const fn p66(self) -> Row {
        self.narrow(state::PP, state::P66)
    }

    /// Mandatory F3.
    pub const fn f3(self) -> Row {
        self.narrow(state::PP, state::PF3)
    }

    /// Mandatory F2.
    pub const fn f2(self) -> Row {
        self.narrow(state::PP, state::PF2)
    }

    /// Neither F3 nor F2 (the manual's NFx).
    pub const fn nfx(self) -> Row {
        self.narrow(state::PP, state::NP | state::P66)
    }

    /// ModRM.reg is an opcode extension (the manual's /n).
    pub const fn slash(self, n: u8) -> Row {
        self.narrow(state::SLASH, 1 << (state::SLASH_SHIFT + n as u32)).with(flag::MODRM)
    }

    /// ModRM.rm is an opcode extension.
    pub const fn rm(self, n: u8) -> Row {
        self.narrow(state::RM, 1 << (state::RM_SHIFT + n as u32)).with(flag::MODRM)
    }

    /// Memory form only.
    pub const fn mem(self) -> Row {
        self.narrow(state::MEM | state::REG, state::MEM)
    }

    /// Register form only.
    pub const fn reg(self) -> Row {
        self.narrow(state::MEM | state::REG, state::REG)
    }

    pub const fn w0(self) -> Row {
        self.narrow(state::W0 | state::W1, state::W0)
    }

    pub const fn w1(self) -> Row {
        self.narrow(state::W0 | state::W1, state::W1)
    }

    /// REX.B is zero.
    pub const fn b0(self) -> Row {
        self.narrow(state::B0 | state::B1, state::B0)
    }

    /// Not in 64-bit mode.
    pub const fn no64(self) -> Row {
        self.narrow(state::MODES, state::M16 | state::M32)
    }

    pub const fn only64(self) -> Row {
        self.narrow(state::MODES, state::M64)
    }

    /// VEX.L is ignored, or chooses the vector length.
    pub const fn lig(self) -> Row {
        self.narrow(state::L0 | state::L1, state::L0 | state::L1)
    }

    /// VEX.L must be one.
    pub const fn l1(self) -> Row {
        self.narrow(state::L0 | state::L1, state::L1)
    }

    pub const fn needs(mut self, features: Features) -> Row {
        assert!(features.bits() >> 64 == 0, "not a feature of encodings");
        self.needs |= features.encodings();
        self
    }

    /// The row stands for this and the next `n - 1` opcodes.
    pub const fn span(mut self, n: u8) -> Row {
        self.span = n;
        self
    }

    pub const fn byte(self) -> Row {
        self.with(flag::BYTE)
    }

    pub const fn def64(self) -> Row {
        self.with(flag::DEF64)
    }

    pub const fn force64(self) -> Row {
        self.with(flag::FORCE64)
    }

    pub const fn max4(self) -> Row {
        self.with(flag::MAX4)
    }

    pub const fn native(self) -> Row {
        self.with(flag::NATIVE)
    }

    pub const fn lock(self) -> Row {
        self.with(flag::LOCK)
    }

    /// Sixteen opcodes, one per condition.
    pub const fn conditions(self) -> Row {
        self.span(16).with(flag::COND)
    }

    pub const fn fcond(self) -> Row {
        self.with(flag::FCOND)
    }

    pub const fn modreg(self) -> Row {
        self.with(flag::MODREG | flag::MODRM)
    }

    pub const fn gather(self) -> Row {
        self.with(flag::GATHER)
    }

    /// Whether an operand is a segment register.
    pub fn has_segment(&self) -> bool {
        use Spec::*;
        self.specs.iter().any(|spec| matches!(spec, Sw | Es | Cs | Ss | Ds | Fs | Gs))
    }

    /// Whether the second operand is the constant 1.
    pub fn shifts_by_one(&self) -> bool {
        self.specs[1] == Spec::One
    }

    pub const fn has_flag(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// Whether exactly one of 66, F3 and F2 (or none) selects this row, so that 66 is part of the opcode.
    pub const fn consumes_66(&self) -> bool {
        self.accept & state::PP == state::P66
    }
}
