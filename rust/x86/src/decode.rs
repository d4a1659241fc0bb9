//! From layout to [`Insn`]: chooses the row of the opcode table that fits the bytes, the mode and the CPU model, and builds the
//! operands that the row lists.

use crate::features::Features;
use crate::insn::{Bits, DecodeError, Insn, Mem, NO_REG, Operand, Prefixes, RIP, Seg};
use crate::layout::Layout;
use crate::op::Op;
use crate::table::{Map, ROWS, Row, Spec, candidates, flag, state};

/// Decodes the instruction at the start of `bytes` (of which at most 15 are looked at) as a processor that offers `features`
/// does. [`DecodeError::Truncated`] asks for the same call with more bytes.
pub fn decode(bytes: &[u8], bits: Bits, features: &Features) -> Result<Insn, DecodeError> {
    decode_layout(bytes, &Layout::scan(bytes, bits)?, features)
}

/// The second half of [`decode`], for callers that need the layout as well. `bytes` must be those of the scan.
pub fn decode_layout(bytes: &[u8], layout: &Layout, features: &Features) -> Result<Insn, DecodeError> {
    let row = choose(layout, features)?;
    Ok(build(bytes, layout, row))
}

/// The row for this layout: the first that fits and whose features are offered.
#[inline]
pub(crate) fn choose(layout: &Layout, features: &Features) -> Result<&'static Row, DecodeError> {
    if layout.map == Map::Evex {
        return Err(DecodeError::Invalid);
    }
    let (state, offered) = (state_of(layout), features.encodings());
    let fits = |row: &&Row| state & !row.accept == 0 && row.needs & !offered == 0;
    let row =
        candidates(layout.map, layout.opcode, layout.modrm).iter().map(|&n| &ROWS[usize::from(n)]).find(fits);
    match row {
        Some(row) if is_allowed(layout, row) => Ok(row),
        _ => Err(DecodeError::Invalid),
    }
}

/// What a row cannot say: LOCK, and register numbers that do not exist or must differ.
#[inline]
fn is_allowed(layout: &Layout, row: &Row) -> bool {
    if layout.prefixes.contains(Prefixes::LOCK) && !(has_memory(layout, row) && row.has_flag(flag::LOCK)) {
        return false;
    }
    if row.has_flag(flag::MODREG) {
        let reg = layout.modrm >> 3 & 7 | layout.rex << 1 & 8;
        return match row.op {
            Op::MovCr => matches!(reg, 0 | 2 | 3 | 4 | 8),
            _ => reg < 8,
        };
    }
    !row.has_flag(flag::GATHER) || is_gather(layout)
}

/// Whether ModRM names memory.
#[inline]
pub(crate) fn has_memory(layout: &Layout, row: &Row) -> bool {
    layout.modrm_at != 0 && layout.modrm < 0xc0 && !row.has_flag(flag::MODREG)
}

/// The bits of [`state`] that hold for this layout.
#[inline]
fn state_of(layout: &Layout) -> u64 {
    let vex = layout.prefixes.contains(Prefixes::VEX);
    let pp = if vex {
        1 << layout.pp
    } else if layout.prefixes.contains(Prefixes::REP) {
        state::PF3
    } else if layout.prefixes.contains(Prefixes::REPNE) {
        state::PF2
    } else if layout.prefixes.contains(Prefixes::OPSIZE) {
        state::P66
    } else {
        state::NP
    };
    let mode = match layout.bits {
        Bits::B16 => state::M16,
        Bits::B32 => state::M32,
        Bits::B64 => state::M64,
    };
    let register = layout.modrm_at == 0 || layout.modrm >= 0xc0;
    pp | mode
        | if register { state::REG } else { state::MEM }
        | if layout.rex & 8 != 0 { state::W1 } else { state::W0 }
        | if layout.vector_length != 0 { state::L1 } else { state::L0 }
        | if layout.rex & 1 != 0 { state::B1 } else { state::B0 }
        | if layout.vvvv != 0 { state::V1 } else { state::V0 }
        | 1 << (state::SLASH_SHIFT + u32::from(layout.modrm >> 3 & 7))
        | 1 << (state::RM_SHIFT + u32::from(layout.modrm & 7))
}

/// The effective operand size: prefixes, W, and the row's rule; a 66 that is part of the opcode does not count.
pub(crate) fn opsize(layout: &Layout, row: &Row) -> u8 {
    let long = layout.bits == Bits::B64;
    let general = match layout.bits {
        // Without its 66, an opcode's operand size is the mode's.
        Bits::B64 if row.consumes_66() && layout.rex & 8 == 0 => 4,
        Bits::B32 if row.consumes_66() => 4,
        Bits::B16 if row.consumes_66() => 2,
        _ if layout.prefixes.contains(Prefixes::VEX) => 4 + (layout.rex & 8) / 2 * u8::from(long),
        _ => layout.opsize,
    };
    if row.has_flag(flag::BYTE) {
        1
    } else if row.has_flag(flag::NATIVE) {
        if long { 8 } else { 4 }
    } else if long && (row.has_flag(flag::FORCE64) || row.has_flag(flag::DEF64) && general == 4) {
        8
    } else if row.has_flag(flag::MAX4) {
        general.min(4)
    } else {
        general
    }
}

pub(crate) fn build(bytes: &[u8], layout: &Layout, row: &Row) -> Insn {
    let memory = has_memory(layout, row);
    let mut insn = Insn {
        op: row.op,
        len: layout.len,
        opsize: opsize(layout, row),
        addrsize: layout.addrsize,
        cond: condition(layout, row),
        prefixes: layout.prefixes - mandatory(row),
        operands: [Operand::None; 4],
        mem: Mem { seg: layout.segment.unwrap_or(Seg::Ds), ..Mem::NONE },
        imm: 0,
        imm2: read(bytes, layout.imm2_at, layout.imm2_size) as u16,
    };
    if memory {
        insn.mem = address(bytes, layout);
        if row.has_flag(flag::GATHER) {
            // Here index 4 is a register as well.
            insn.mem.index = gather_index(layout);
            insn.mem.scale = layout.sib >> 6;
        }
    }
    let mut builder = Builder { bytes, layout, memory, insn };
    for (n, &spec) in row.specs.iter().enumerate() {
        if spec == Spec::None {
            break;
        }
        let operand = builder.operand(spec);
        builder.insn.operands[n] = operand;
    }
    builder.insn
}

/// The prefix that selected the row, if exactly one does.
fn mandatory(row: &Row) -> Prefixes {
    match row.accept & state::PP {
        state::P66 => Prefixes::OPSIZE,
        state::PF3 => Prefixes::REP,
        state::PF2 => Prefixes::REPNE,
        _ => Prefixes::empty(),
    }
}

#[inline]
pub(crate) fn condition(layout: &Layout, row: &Row) -> u8 {
    if row.has_flag(flag::COND) {
        layout.opcode & 0xf
    } else if row.has_flag(flag::FCOND) {
        // FCMOVB, E, BE, U; opcode DB negates.
        [2, 4, 6, 10][usize::from(layout.modrm >> 3 & 3)] | layout.opcode & 1
    } else {
        0
    }
}

/// Little-endian value of `size` bytes, zero-extended.
#[inline]
pub(crate) fn read(bytes: &[u8], at: u8, size: u8) -> u64 {
    let at = usize::from(at);
    let part = bytes.get(at..at + usize::from(size)).unwrap_or_default();
    part.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
}

/// Sign-extends the low `size` bytes.
#[inline]
fn sign_extend(value: u64, size: u8) -> u64 {
    match size {
        1 => value as u8 as i8 as u64,
        2 => value as u16 as i16 as u64,
        4 => value as u32 as i32 as u64,
        _ => value,
    }
}

/// Keeps the low `size` bytes.
#[inline]
fn truncate(value: u64, size: u8) -> u64 {
    match size {
        1 => value & 0xff,
        2 => value & 0xffff,
        4 => value & 0xffff_ffff,
        _ => value,
    }
}

/// The addressing form of ModRM, SIB and displacement (SDM vol. 2, tables 2-1 to 2-3 and 2-5, 2-7).
fn address(bytes: &[u8], layout: &Layout) -> Mem {
    let (mode, rm, rex) = (layout.modrm >> 6, layout.modrm & 7, layout.rex);
    let disp = sign_extend(read(bytes, layout.disp_at, layout.disp_size), layout.disp_size) as i64;
    let mut mem = Mem { base: NO_REG, index: NO_REG, scale: 0, seg: Seg::Ds, disp };
    if layout.addrsize == 2 {
        const BASES: [u8; 8] = [3, 3, 5, 5, 6, 7, 5, 3];
        const INDEXES: [u8; 8] = [6, 7, 6, 7, NO_REG, NO_REG, NO_REG, NO_REG];
        if mode != 0 || rm != 6 {
            mem.base = BASES[usize::from(rm)];
            mem.index = INDEXES[usize::from(rm)];
        }
    } else if rm == 4 {
        let (index, base) = (layout.sib >> 3 & 7 | rex << 2 & 8, layout.sib & 7);
        if index != 4 {
            mem.index = index;
            mem.scale = layout.sib >> 6;
        }
        if mode != 0 || base != 5 {
            mem.base = base | rex << 3 & 8;
        }
    } else if mode != 0 || rm != 5 {
        mem.base = rm | rex << 3 & 8;
    } else if layout.bits == Bits::B64 {
        mem.base = RIP;
    }
    // rBP and rSP as base go to the stack segment.
    if mem.base == 4 || mem.base == 5 {
        mem.seg = Seg::Ss;
    }
    mem.seg = layout.segment.unwrap_or(mem.seg);
    mem
}

fn register_of_vvvv(layout: &Layout) -> u8 {
    if layout.bits == Bits::B64 { layout.vvvv } else { layout.vvvv & 7 }
}

/// VSIB needs a SIB byte, and destination, index and mask must differ (SDM vol. 2, 2.3.12).
fn is_gather(layout: &Layout) -> bool {
    let destination = layout.modrm >> 3 & 7 | layout.rex << 1 & 8;
    let (index, mask) = (gather_index(layout), register_of_vvvv(layout));
    layout.sib_at != 0 && destination != index && destination != mask && index != mask
}

fn gather_index(layout: &Layout) -> u8 {
    layout.sib >> 3 & 7 | layout.rex << 2 & 8
}

/// Turns operand codes into operands; displacement and immediates go to the instruction on the way.
struct Builder<'a> {
    bytes: &'a [u8],
    layout: &'a Layout,
    memory: bool,
    insn: Insn,
}

impl Builder<'_> {
    fn reg(&self) -> u8 {
        self.layout.modrm >> 3 & 7 | self.layout.rex << 1 & 8
    }

    fn rm(&self) -> u8 {
        self.layout.modrm & 7 | self.layout.rex << 3 & 8
    }

    /// Bytes of a general register by REX.W alone.
    fn y(&self) -> u8 {
        if self.layout.rex & 8 != 0 && self.long() { 8 } else { 4 }
    }

    /// The register of VEX.vvvv; its bit 3 is ignored outside 64-bit mode (SDM vol. 2, 2.3.5.6).
    fn vvvv(&self) -> u8 {
        register_of_vvvv(self.layout)
    }

    fn long(&self) -> bool {
        self.layout.bits == Bits::B64
    }

    fn native(&self) -> u8 {
        if self.long() { 8 } else { 4 }
    }

    /// Bytes of a vector.
    fn x(&self) -> u16 {
        16 << self.layout.vector_length
    }

    /// A general register; without REX, byte registers 4 to 7 are AH to BH.
    fn general(&self, reg: u8, size: u8) -> Operand {
        let uniform = self.layout.prefixes.intersects(Prefixes::REX | Prefixes::VEX);
        if size == 1 && !uniform && reg & 4 != 0 {
            Operand::High { reg: reg & 3 }
        } else {
            Operand::Gpr { reg, size }
        }
    }

    /// General register or memory, each with its own size.
    fn e(&self, register: u8, memory: u8) -> Operand {
        if self.memory { Operand::Mem { size: memory.into() } } else { self.general(self.rm(), register) }
    }

    fn xmm(&self, memory: u16) -> Operand {
        if self.memory { Operand::Mem { size: memory } } else { Operand::Xmm(self.rm()) }
    }

    fn mmx(&self, memory: u16) -> Operand {
        if self.memory { Operand::Mem { size: memory } } else { Operand::Mmx(self.layout.modrm & 7) }
    }

    /// XMM or YMM by VEX.L.
    fn vector(&self, reg: u8) -> Operand {
        if self.layout.vector_length == 0 { Operand::Xmm(reg) } else { Operand::Ymm(reg) }
    }

    fn vector_or_memory(&self, memory: u16) -> Operand {
        if self.memory { Operand::Mem { size: memory } } else { self.vector(self.rm()) }
    }

    /// Register number in bits 7 to 4 of the immediate; outside 64-bit mode bit 7 is ignored.
    fn is4(&self) -> u8 {
        let reg = (read(self.bytes, self.layout.imm_at, 1) >> 4) as u8;
        if self.long() { reg } else { reg & 7 }
    }

    /// Stores the first immediate; `size` is what the operand has after extension.
    fn immediate(&mut self, value: u64, size: u8) -> Operand {
        self.insn.imm = truncate(value, size);
        Operand::Imm { size }
    }

    fn raw(&self) -> u64 {
        read(self.bytes, self.layout.imm_at, self.layout.imm_size)
    }

    fn relative(&mut self) -> Operand {
        self.insn.imm = sign_extend(self.raw(), self.layout.imm_size);
        Operand::Rel
    }

    fn offset(&mut self, size: u8) -> Operand {
        self.insn.mem.disp = read(self.bytes, self.layout.disp_at, self.layout.disp_size) as i64;
        Operand::Mem { size: size.into() }
    }

    #[inline]
    fn operand(&mut self, spec: Spec) -> Operand {
        let size = self.insn.opsize;
        match spec {
            Spec::None => Operand::None,
            Spec::Eb => self.e(1, 1),
            Spec::Ew => self.e(2, 2),
            Spec::Ed => self.e(4, 4),
            Spec::Eq => self.e(8, 8),
            Spec::Ev => self.e(size, size),
            Spec::Ey => self.e(self.y(), self.y()),
            Spec::Ez => self.e(size.min(4), size.min(4)),
            Spec::RvMw => self.e(size, 2),
            Spec::RyMb => self.e(self.y(), 1),
            Spec::RyMw => self.e(self.y(), 2),
            Spec::RyMd => self.e(self.y(), 4),
            Spec::Rm => Operand::Gpr { reg: self.rm(), size: self.native() },
            Spec::Gb => self.general(self.reg(), 1),
            Spec::Gw => self.general(self.reg(), 2),
            Spec::Gv => self.general(self.reg(), size),
            Spec::Gy => self.general(self.reg(), self.y()),
            Spec::Gm => self.general(self.reg(), self.native()),
            Spec::Ga => self.general(self.reg(), self.layout.addrsize),
            Spec::By => Operand::Gpr { reg: self.vvvv(), size: self.y() },
            Spec::Zb => self.general(self.layout.opcode & 7 | self.layout.rex << 3 & 8, 1),
            Spec::Zv => self.general(self.layout.opcode & 7 | self.layout.rex << 3 & 8, size),
            Spec::Al => Operand::Gpr { reg: 0, size: 1 },
            Spec::Ax => Operand::Gpr { reg: 0, size: 2 },
            Spec::RAx => Operand::Gpr { reg: 0, size },
            Spec::Cl => Operand::Gpr { reg: 1, size: 1 },
            Spec::Dx => Operand::Gpr { reg: 2, size: 2 },
            Spec::M
            | Spec::Mb
            | Spec::Mw
            | Spec::Md
            | Spec::Mq
            | Spec::Mt
            | Spec::Mx16
            | Spec::Mp
            | Spec::Ma
            | Spec::Ms
            | Spec::Menv
            | Spec::Mstate
            | Spec::Mfx
            | Spec::M64b
            | Spec::My
            | Spec::Mx
            | Spec::VsibD
            | Spec::VsibQ => Operand::Mem { size: self.memory_size(spec) },
            Spec::Ob => self.offset(1),
            Spec::Ov => self.offset(size),
            Spec::One => self.immediate(1, 1),
            Spec::Ib => self.immediate(self.raw(), 1),
            Spec::Ibs => self.immediate(sign_extend(self.raw(), 1), size),
            Spec::Iw => self.immediate(self.raw(), 2),
            Spec::Iz => self.immediate(sign_extend(self.raw(), self.layout.imm_size), size),
            Spec::Iv => self.immediate(self.raw(), size),
            Spec::Ib2 => Operand::Imm2 { size: 1 },
            Spec::Jb | Spec::Jz | Spec::Jo => self.relative(),
            Spec::Ap => {
                self.insn.imm = self.raw();
                Operand::Far
            }
            Spec::Sw => Operand::Seg(SEGMENTS[usize::from(self.layout.modrm >> 3 & 7)]),
            Spec::Es => Operand::Seg(Seg::Es),
            Spec::Cs => Operand::Seg(Seg::Cs),
            Spec::Ss => Operand::Seg(Seg::Ss),
            Spec::Ds => Operand::Seg(Seg::Ds),
            Spec::Fs => Operand::Seg(Seg::Fs),
            Spec::Gs => Operand::Seg(Seg::Gs),
            Spec::Cr => Operand::Cr(self.reg()),
            Spec::Dr => Operand::Dr(self.reg()),
            Spec::St0 => Operand::St(0),
            Spec::StI => Operand::St(self.layout.modrm & 7),
            _ => self.vector_operand(spec),
        }
    }

    fn memory_size(&self, spec: Spec) -> u16 {
        let size = u16::from(self.insn.opsize);
        match spec {
            Spec::Mb => 1,
            Spec::Mw => 2,
            Spec::Md | Spec::VsibD => 4,
            Spec::Mq | Spec::VsibQ => 8,
            Spec::Mt => 10,
            Spec::Mx16 => 16,
            Spec::Mp => size + 2,
            Spec::Ma => size * 2,
            Spec::Ms => u16::from(self.native()) + 2,
            Spec::Menv => {
                if size == 2 {
                    14
                } else {
                    28
                }
            }
            Spec::Mstate => {
                if size == 2 {
                    94
                } else {
                    108
                }
            }
            Spec::Mfx => 512,
            Spec::M64b => 64,
            Spec::My => self.y().into(),
            Spec::Mx => self.x(),
            _ => 0,
        }
    }

    fn vector_operand(&self, spec: Spec) -> Operand {
        match spec {
            Spec::P => Operand::Mmx(self.layout.modrm >> 3 & 7),
            Spec::Q => self.mmx(8),
            Spec::Qd => self.mmx(4),
            Spec::V => Operand::Xmm(self.reg()),
            Spec::W => self.xmm(16),
            Spec::Wq => self.xmm(8),
            Spec::Wd => self.xmm(4),
            Spec::Ww => self.xmm(2),
            Spec::Wb => self.xmm(1),
            Spec::H => Operand::Xmm(self.vvvv()),
            Spec::Vx => self.vector(self.reg()),
            Spec::Hx => self.vector(self.vvvv()),
            Spec::Wx => self.vector_or_memory(self.x()),
            Spec::Lx => self.vector(self.is4()),
            Spec::Vy => Operand::Ymm(self.reg()),
            Spec::Hy => Operand::Ymm(self.vvvv()),
            Spec::Wy if self.memory => Operand::Mem { size: 32 },
            Spec::Wy => Operand::Ymm(self.rm()),
            Spec::Wh => self.xmm(self.x() / 2),
            Spec::Wf => self.xmm(self.x() / 4),
            Spec::We => self.xmm(self.x() / 8),
            Spec::Wdup => self.vector_or_memory(if self.layout.vector_length == 0 { 8 } else { 32 }),
            _ => Operand::None,
        }
    }
}

/// Segment registers by number; no row has 6 and 7.
const SEGMENTS: [Seg; 8] = [Seg::Es, Seg::Cs, Seg::Ss, Seg::Ds, Seg::Fs, Seg::Gs, Seg::Ds, Seg::Ds];
