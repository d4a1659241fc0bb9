//! Writes random programs. A program is a list of pieces, each of which is made from its own number alone, so that a program
//! that fails can be made shorter by leaving pieces out.
//!
//! A piece may fault anywhere: it first says where the handlers go on. Flags that the manual leaves undefined are not read,
//! and are defined again before the piece ends; where they are undefined the program's text says so.

mod float;
mod flow;
mod system;
mod vectors;

use std::collections::HashMap;

use trapgate_x86::class::{Class, class};
use trapgate_x86::decode::decode;
use trapgate_x86::features::Features;
use trapgate_x86::flags::flag_use;
use trapgate_x86::insn::{Bits, Insn, Operand};
use trapgate_x86::op::Op;
use trapgate_x86::regs::rflags;

use super::place::*;
use crate::common::Noise;

/// What a piece is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Register,
    Memory,
    Branch,
    Loop,
    Call,
    Function,
    Jump,
    Stack,
    Patch,
    Ring,
    Pages,
    Flags,
    Float,
    Other,
}

/// Kinds by weight.
const KINDS: [Kind; 44] = {
    use Kind::*;
    [
        Register, Register, Register, Register, Register, Register, Register, Memory, Memory, Memory, Memory,
        Memory, Memory, Memory, Memory, Memory, Branch, Branch, Branch, Branch, Loop, Loop, Call, Call, Call,
        Function, Function, Jump, Jump, Stack, Stack, Stack, Stack, Patch, Patch, Ring, Pages, Pages, Flags,
        Float, Float, Float, Float, Other,
    ]
};

/// A part of a program.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    pub kind: Kind,
    pub seed: u64,
}

/// A list of pieces; `None` where one was left out.
pub fn pieces(seed: u64) -> Vec<Option<Piece>> {
    let mut noise = Noise(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    for _ in 0..4 {
        noise.next();
    }
    // Every second program has few kinds of pieces, and so more of each.
    let kinds: Vec<Kind> = if seed.is_multiple_of(2) {
        KINDS.to_vec()
    } else {
        (0..5).map(|_| KINDS[noise.below(44) as usize]).collect()
    };
    let length = 8 + noise.below(50);
    (0..length)
        .map(|_| {
            let kind = kinds[noise.below(kinds.len() as u64) as usize];
            Some(Piece { kind, seed: noise.next() })
        })
        .collect()
}

/// An assembled program.
#[derive(Debug, Default)]
pub struct Text {
    pub code: Vec<u8>,
    /// Instructions by address, with the flags that are undefined before each.
    pub starts: HashMap<u64, u64>,
    /// Code addresses that stand in memory.
    pub words: Vec<(u64, u64)>,
    /// Cells with their first values.
    pub cells: Vec<(u64, u32)>,
}

enum Field {
    /// 32 bits, from the end of the field.
    Relative,
    /// 32 bits.
    Absolute,
}

struct Fixup {
    at: usize,
    field: Field,
    label: usize,
    plus: u64,
}

struct Writer {
    text: Text,
    noise: Noise,
    /// Flags that are undefined here, and those that have been somewhere in this piece.
    undefined: u64,
    ever: u64,
    labels: Vec<Option<u64>>,
    fixups: Vec<Fixup>,
    words: Vec<(u64, usize)>,
    /// Index of the piece and their number.
    piece: usize,
    pieces: usize,
    functions: Vec<usize>,
    /// Data among the code.
    pools: Vec<u64>,
    /// Immediates that may be changed.
    immediates: Vec<u64>,
    features: Features,
}

/// Assembles a program.
pub fn write(pieces: &[Option<Piece>], features: Features) -> Text {
    let mut w = Writer {
        text: Text::default(),
        noise: Noise(1),
        undefined: 0,
        ever: 0,
        labels: vec![None; pieces.len() + 1],
        fixups: Vec::new(),
        words: Vec::new(),
        piece: 0,
        pieces: pieces.len(),
        functions: Vec::new(),
        pools: Vec::new(),
        immediates: Vec::new(),
        features,
    };
    for (n, piece) in pieces.iter().enumerate() {
        w.labels[n] = Some(w.here());
        if let Some(piece) = piece {
            w.piece = n;
            w.noise = Noise(piece.seed | 1);
            w.noise.next();
            w.one(piece.kind);
        }
    }
    w.labels[pieces.len()] = Some(w.here());
    w.insn(&[0xcd, OVER]);
    w.finish()
}

fn modrm(mode: u8, reg: u8, rm: u8) -> u8 {
    mode << 6 | (reg & 7) << 3 | rm & 7
}

impl Writer {
    fn here(&self) -> u64 {
        CODE + self.text.code.len() as u64
    }
    fn below(&mut self, n: u64) -> u64 {
        self.noise.below(n)
    }
    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
    fn pick<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len() as u64) as usize]
    }
    fn register(&mut self) -> u8 {
        self.below(16) as u8
    }
    /// Not RSP.
    fn general(&mut self) -> u8 {
        self.pick(&[0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15])
    }

    fn label(&mut self) -> usize {
        self.labels.push(None);
        self.labels.len() - 1
    }
    fn bind(&mut self, label: usize) {
        self.labels[label] = Some(self.here());
    }
    /// The last four bytes of what was written refer to a label.
    fn refer(&mut self, field: Field, label: usize, plus: u64) {
        self.fixups.push(Fixup { at: self.text.code.len() - 4, field, label, plus });
    }

    /// Writes an instruction.
    fn insn(&mut self, bytes: &[u8]) {
        let here = self.here();
        self.text.starts.insert(here, self.undefined);
        if let Ok(insn) = decode(bytes, Bits::B64, &self.features) {
            let flags = flag_use(&insn);
            let defined = (flags.written | flags.cleared | flags.set) & !flags.kept;
            self.undefined = self.undefined & !u64::from(defined) | u64::from(flags.undefined);
            self.ever |= self.undefined;
        }
        self.text.code.extend_from_slice(bytes);
    }

    /// Says where the handlers go on.
    fn recover(&mut self) -> usize {
        let label = self.label();
        self.insn(&[&[0x48, 0xc7, 0x04, 0x25][..], &(RECOVER as u32).to_le_bytes(), &[0; 4]].concat());
        self.refer(Field::Absolute, label, 0);
        label
    }

    fn one(&mut self, kind: Kind) {
        (self.undefined, self.ever) = (0, 0);
        let recover = self.recover();
        match kind {
            Kind::Register => {
                for _ in 0..1 + self.below(5) {
                    let vector = self.one_in(3);
                    self.random(false, vector);
                }
            }
            Kind::Memory => {
                for _ in 0..1 + self.below(3) {
                    let vector = self.one_in(4);
                    self.random(true, vector);
                }
            }
            Kind::Branch => self.branch(),
            Kind::Loop => self.again(),
            Kind::Call => self.call(),
            Kind::Function => self.function(),
            Kind::Jump => self.jump(),
            Kind::Stack => self.stack(),
            Kind::Patch if self.one_in(2) => self.written(),
            Kind::Patch => self.patch(),
            Kind::Ring => self.ring(),
            Kind::Pages => self.pages(),
            Kind::Flags => self.flags(),
            Kind::Float => self.float(),
            Kind::Other => self.other(),
        }
        self.undefined = self.ever;
        self.bind(recover);
        self.define();
    }

    /// Defines all flags, if one is undefined.
    fn define(&mut self) {
        if self.undefined == 0 {
            return;
        }
        let (a, b) = (self.register(), self.register());
        let rex = 0x48 | (a >> 3) << 2 | b >> 3;
        let n = self.noise.next() as u8;
        match self.below(3) {
            0 => self.insn(&[rex, 0x39, modrm(3, a, b)]),
            1 => self.insn(&[0x48 | b >> 3, 0x83, modrm(3, 7, b), n]),
            _ => self.insn(&[0x3c, n]),
        }
    }

    fn constant(&mut self, reg: u8, value: u64) {
        if let Ok(low) = u32::try_from(value) {
            let rex: &[u8] = if reg >= 8 { &[0x41] } else { &[] };
            self.insn(&[rex, &[0xb8 | reg & 7], &low.to_le_bytes()].concat());
        } else {
            self.insn(&[&[0x48 | reg >> 3, 0xb8 | reg & 7][..], &value.to_le_bytes()].concat());
        }
    }

    /// A code address in a register.
    fn address(&mut self, reg: u8, label: usize, plus: u64) {
        let rex: &[u8] = if reg >= 8 { &[0x41] } else { &[] };
        self.insn(&[rex, &[0xb8 | reg & 7], &[0; 4]].concat());
        self.refer(Field::Absolute, label, plus);
    }

    /// A 64-bit MOV between a register and an absolute address.
    fn absolute(&mut self, store: bool, reg: u8, at: u64) {
        let opcode = if store { 0x89 } else { 0x8b };
        let bytes = [0x48 | (reg >> 3) << 2, opcode, modrm(0, reg, 4), 0x25];
        self.insn(&[&bytes[..], &(at as u32).to_le_bytes()].concat());
    }

    fn store_word(&mut self, at: u64, value: u32) {
        self.insn(
            &[&[0x48, 0xc7, 0x04, 0x25][..], &(at as u32).to_le_bytes(), &value.to_le_bytes()].concat(),
        );
    }

    // ---- random instructions ----

    /// Where an access goes.
    fn place(&mut self) -> u64 {
        if self.one_in(12)
            && let Some(n) = (self.pools.len() as u64).checked_sub(1)
        {
            let pool = self.pools[self.noise.below(n + 1) as usize];
            let alias = if self.one_in(3) { ALIAS } else { 0 };
            return pool + alias + self.below(48);
        }
        let page = self.below(DATA_PAGES);
        let offset = match self.below(4) {
            0 => 0xff0 + self.below(16),
            1 => self.below(4) * 8,
            2 => self.below(0xfe) * 16,
            _ => self.below(0xff0),
        };
        DATA + page * 0x1000 + offset
    }

    /// One instruction of those that the decoder and the flags allow here; with a memory operand or without.
    fn random(&mut self, memory: bool, vector: bool) {
        for _ in 0..400 {
            let mut bytes = Vec::with_capacity(24);
            let segment = if memory && self.one_in(8) { self.pick(&[0x64, 0x65]) } else { 0 };
            let narrow = memory && segment != 0x65 && self.one_in(10);
            if segment != 0 {
                bytes.push(segment);
            }
            if narrow {
                bytes.push(0x67);
            }
            if memory && !vector && self.one_in(8) {
                bytes.push(0xf0);
            }
            let vex = vector && self.has_avx() && self.one_in(2);
            if !vex && self.one_in(if vector { 2 } else { 6 }) {
                bytes.push(0x66);
            }
            if !vex && self.one_in(if vector { 2 } else { 12 }) {
                let rep = self.pick(&[0xf2, 0xf3]);
                bytes.push(rep);
            }
            let mut rex = if self.one_in(4) { 0 } else { 0x40 | self.below(16) as u8 };
            let rex_at = bytes.len();
            let map = if vector { self.pick(&[1, 1, 1, 1, 2, 3]) } else { self.pick(&[0, 0, 0, 1, 1, 2]) };
            let opcode = self.noise.next() as u8;
            let opcode = match map {
                2 if !vector => 0xf0 | opcode & 1,
                _ => opcode,
            };
            // Prefixes and escapes are no opcodes.
            let prefix = match map {
                0 => matches!(
                    opcode,
                    0x0f | 0x26 | 0x2e | 0x36 | 0x3e | 0x40..=0x4f | 0x62 | 0x64..=0x67 | 0xc4 | 0xc5 | 0xd5 | 0xf0 | 0xf2 | 0xf3
                ),
                1 => matches!(opcode, 0x38 | 0x3a),
                _ => false,
            };
            if prefix || map == 0 && matches!(opcode, 0xa0..=0xa3) && !memory {
                continue;
            }
            let escape: &[u8] = [&[][..], &[0x0f], &[0x0f, 0x38], &[0x0f, 0x3a]][map];
            let target = self.place();
            let base_of = if segment == 0x64 {
                FS
            } else if segment == 0x65 {
                GS
            } else {
                0
            };
            let offset = target.wrapping_sub(base_of);
            let mut setup: Vec<(u8, u64)> = Vec::new();
            let mut tail = Vec::new();
            let mut relative = None;
            if map == 0 && matches!(opcode, 0xa0..=0xa3) {
                if narrow {
                    tail.extend_from_slice(&(offset as u32).to_le_bytes());
                } else {
                    tail.extend_from_slice(&offset.to_le_bytes());
                }
            } else {
                let reg = self.below(8) as u8;
                if memory {
                    let bits = self.operand(reg, offset, narrow, &mut tail, &mut setup, &mut relative);
                    // The address decides X and B.
                    if bits != 0 && rex == 0 {
                        rex = 0x40;
                    }
                    rex = if rex == 0 { 0 } else { rex & 0x4c | bits };
                } else {
                    tail.push(modrm(3, reg, self.below(8) as u8));
                }
            }
            for _ in 0..2 {
                tail.extend_from_slice(&self.noise.next().to_le_bytes()[..4]);
            }
            if vex {
                let (noise, last) = (self.noise.next() as u8, self.one_in(2));
                // No second source, in many encodings.
                let vvvv = if last { 0x78 } else { noise & 0x78 };
                bytes.extend([0xc4, !rex << 5 & 0xe0 | map as u8, (rex & 8) << 4 | vvvv | noise & 7]);
            } else {
                if rex != 0 {
                    bytes.insert(rex_at, rex);
                }
                bytes.extend_from_slice(escape);
            }
            bytes.push(opcode);
            let tail_at = bytes.len();
            bytes.extend_from_slice(&tail);
            let Ok(insn) = decode(&bytes, Bits::B64, &self.features) else { continue };
            if !self.allowed(&insn, memory) || u64::from(flag_use(&insn).read) & self.undefined != 0 {
                continue;
            }
            bytes.truncate(usize::from(insn.len));
            return self.place_insn(bytes, offset, &setup, relative.map(|at| tail_at + at));
        }
    }

    /// Writes an instruction behind what sets its registers up; `relative` is where its displacement counts from RIP.
    fn place_insn(&mut self, mut bytes: Vec<u8>, offset: u64, setup: &[(u8, u64)], relative: Option<usize>) {
        for &(reg, value) in setup {
            self.constant(reg, value);
        }
        if let Some(at) = relative {
            let next = self.here() + bytes.len() as u64;
            bytes[at..at + 4].copy_from_slice(&(offset.wrapping_sub(next) as u32).to_le_bytes());
        }
        self.insn(&bytes);
    }

    /// ModRM, SIB and displacement for an offset, with what registers must hold; gives X and B of REX.
    fn operand(
        &mut self,
        reg: u8,
        offset: u64,
        narrow: bool,
        tail: &mut Vec<u8>,
        setup: &mut Vec<(u8, u64)>,
        relative: &mut Option<usize>,
    ) -> u8 {
        let fits = i32::try_from(offset as i64).is_ok();
        let form = self.below(16);
        if form < 2 && fits {
            tail.push(modrm(0, reg, 5));
            *relative = Some(tail.len());
            tail.extend_from_slice(&[0; 4]);
            return 0;
        }
        if form == 2 && fits {
            tail.extend_from_slice(&[modrm(0, reg, 4), 0x25]);
            tail.extend_from_slice(&(offset as u32).to_le_bytes());
            return 0;
        }
        let base = self.register();
        let index = if self.one_in(2) || base & 7 == 4 { Some(self.general()) } else { None };
        let scale = self.below(4) as u8;
        let disp = match self.below(3) {
            0 => 0,
            1 => i64::from(self.noise.next() as i8),
            _ => i64::from(self.noise.next() as i32 >> self.below(24)),
        };
        let garbage = match (narrow, self.below(2)) {
            (true, 0) => BEYOND,
            (true, _) => self.noise.next() << 32,
            _ => 0,
        };
        let mut disp = disp as i32;
        if base == 4 {
            // The stack pointer is what it is.
            disp = self.below(256) as i32 - 64;
            let small = self.below(8);
            setup.push((index.unwrap_or(0), small));
        } else if index == Some(base) {
            let value = self.below(0x1000);
            disp = offset.wrapping_sub(value + (value << scale)) as i32;
            setup.push((base, value | garbage));
        } else {
            let mut value = offset.wrapping_sub(disp as i64 as u64);
            if let Some(index) = index {
                let n = match self.below(3) {
                    0 => self.below(64),
                    1 => self.noise.next(),
                    _ => (self.below(64) as i64).wrapping_neg() as u64,
                };
                value = value.wrapping_sub(n << scale);
                setup.push((index, n));
            }
            if narrow {
                value = value & 0xffff_ffff | garbage;
            }
            setup.push((base, value));
        }
        let short = i8::try_from(disp).ok();
        let mode = if disp == 0 && base & 7 != 5 {
            0
        } else if short.is_some() {
            1
        } else {
            2
        };
        match index {
            Some(index) => {
                tail.extend_from_slice(&[modrm(mode, reg, 4), scale << 6 | (index & 7) << 3 | base & 7])
            }
            None => tail.push(modrm(mode, reg, base)),
        }
        match (mode, short) {
            (1, Some(short)) => tail.push(short as u8),
            (2, _) => tail.extend_from_slice(&disp.to_le_bytes()),
            _ => {}
        }
        index.map_or(0, |index| index >> 3) << 1 | base >> 3
    }

    /// Whether a program may have an instruction at any place.
    fn allowed(&mut self, insn: &Insn, memory: bool) -> bool {
        use Op::*;
        let has = insn.operands.iter().any(|operand| matches!(operand, Operand::Mem { .. }));
        if has != memory || class(insn) > Class::Memory {
            return false;
        }
        let strange = |operand: &Operand| {
            matches!(operand, Operand::Seg(_) | Operand::St(_) | Operand::Cr(_) | Operand::Dr(_))
        };
        if insn.operands.iter().any(strange) {
            return false;
        }
        let mmx = insn.operands.iter().any(|operand| matches!(operand, Operand::Mmx(_)));
        if mmx && !self.one_in(50) {
            return false;
        }
        let name = format!("{:?}", insn.op);
        // The x87 has pieces of its own.
        if name.starts_with('F') || name.starts_with("Xsave") || name.starts_with("Xrstor") {
            return false;
        }
        let to_rsp = matches!(insn.operands[0], Operand::Gpr { reg: 4, .. })
            || matches!(insn.op, Xchg | Xadd)
                && insn.operands.contains(&Operand::Gpr { reg: 4, size: insn.opsize });
        if to_rsp && !self.one_in(30) {
            return false;
        }
        match insn.op {
            // Results that the manual leaves undefined.
            Shld | Shrd | Bswap => insn.opsize > 2,
            // A bit string reaches far.
            Bt | Bts | Btr | Btc => !memory || matches!(insn.operands[1], Operand::Imm { .. }),
            Movs | Cmps | Stos | Lods | Scas | Xlat | Maskmovdqu | Maskmovq | Vmaskmovdqu | Emms | Push
            | Pop | Enter | Leave | Nop | Pause => false,
            // Approximations, of which executors may have their own.
            Rcpps | Rcpss | Rsqrtps | Rsqrtss | Vrcpps | Vrcpss | Vrsqrtps | Vrsqrtss => false,
            _ => true,
        }
    }

    // ---- control ----

    fn stack(&mut self) {
        if self.one_in(3) {
            let near = self.pick(&[0x1000, 0x2000, 0x3000, 0x2000, 0x1800, 0x2800]);
            let off = self.pick(&[0, 8, 16, 0xffff_ffff_ffff_fff8, 4, 1, 0xffff_ffff_ffff_fffd, 24, 12]);
            let at = if self.one_in(5) { self.place() & !0xfff } else { STACKS + near };
            self.constant(4, at.wrapping_add(off));
        }
        for _ in 0..1 + self.below(6) {
            let reg = self.register();
            match self.below(12) {
                0..=2 => {
                    let push: &[u8] = if reg >= 8 { &[0x41, 0x50 | reg & 7] } else { &[0x50 | reg] };
                    self.insn(push);
                }
                3..=5 => {
                    let reg = if reg == 4 && !self.one_in(4) { 1 } else { reg };
                    let pop: &[u8] = if reg >= 8 { &[0x41, 0x58 | reg & 7] } else { &[0x58 | reg] };
                    self.insn(pop);
                }
                6 => {
                    let n = self.noise.next() as u32;
                    self.insn(&[&[0x68][..], &n.to_le_bytes()].concat());
                }
                7 => {
                    let n = self.noise.next() as u8;
                    self.insn(&[0x6a, n]);
                }
                8 => {
                    // PUSH or POP [rsp + n].
                    let n = self.below(64) as u8;
                    let word = self.pick(&[0xff, 0x8f]);
                    self.insn(&[word, modrm(1, if word == 0xff { 6 } else { 0 }, 4), 0x24, n]);
                }
                9 => {
                    let at =
                        STACKS + self.pick(&[0x1000, 0x2000, 0x2800]) + self.pick(&[0, 8, 0xff8, 0xffc, 2]);
                    self.constant(5, at);
                    self.insn(&[0xc9]);
                }
                10 => {
                    let (size, level) = (self.below(64) as u8, self.pick(&[0, 0, 1, 3]));
                    self.insn(&[0xc8, size, 0, level]);
                }
                _ => {
                    let target = self.place() as u32;
                    let (word, ext) = self.pick(&[(0xff, 6), (0x8f, 0)]);
                    self.insn(&[&[word, modrm(0, ext, 4), 0x25][..], &target.to_le_bytes()].concat());
                }
            }
        }
    }

    /// Flags that change how the next instructions run.
    fn flags(&mut self) {
        match self.below(6) {
            0 | 1 => {
                let bits = self.noise.next() & (rflags::STATUS | rflags::AC);
                let trap = if self.one_in(3) { rflags::TF } else { 0 };
                self.insn(&[0x9c]);
                let bytes = [&[0x81, 0x34, 0x24][..], &((bits | trap) as u32).to_le_bytes()].concat();
                self.insn(&bytes);
                self.define();
                self.insn(&[0x9d]);
            }
            2 => {
                self.insn(&[0xfa]);
                self.insn(&[0xfb]);
            }
            3 => {
                // MOV SS holds traps and interrupts back.
                let reg = self.general();
                let b = if reg >= 8 { 0x41 } else { 0x40 };
                self.insn(&[b, 0x8c, modrm(3, 2, reg)]);
                self.insn(&[b, 0x8e, modrm(3, 2, reg)]);
                self.random(false, false);
            }
            4 => {
                // CR0.TS; the handler of #NM clears it.
                self.insn(&[0x0f, 0x20, 0xc0]);
                self.insn(&[0x0c, 8]);
                self.insn(&[0x0f, 0x22, 0xc0]);
            }
            _ => {
                let word = self.pick(&[0x1f80, 0x1f80, 0x9fc0, 0x7f80, 0x1f00, 0x3f80, 0x0f80]);
                self.store_word(SCRATCH, word);
                self.insn(&[&[0x0f, 0xae, 0x14, 0x25][..], &(SCRATCH as u32).to_le_bytes()].concat());
            }
        }
    }

    fn other(&mut self) {
        if self.has_avx() && self.one_in(2) {
            return self.saved();
        }
        match self.below(6) {
            0 => self.insn(&[0x0f, 0x31]),
            1 => {
                self.constant(0, 1);
                self.insn(&[0x0f, 0xa2]);
            }
            2 => self.insn(&[0xe5, 0x40]),
            3 => self.insn(&[0xe7, 0x40]),
            4 => {
                let target = self.place();
                self.constant(7, target);
                let target = self.place();
                self.constant(6, target);
                let n = self.below(30);
                self.constant(1, n);
                let down = self.one_in(4);
                self.insn(&[if down { 0xfd } else { 0xfc }]);
                let op = self.pick(&[0xa4, 0xa5, 0xaa, 0xab, 0xa6, 0xae, 0xac]);
                let rep = self.pick(&[0xf3, 0xf2]);
                self.insn(&[rep, op]);
            }
            _ => {
                let n = self.below(4) as i8 + 1;
                let op = self.pick(&[0xe0, 0xe1, 0xe2, 0xe3]);
                let over = self.label();
                self.insn(&[op, n as u8]);
                for _ in 0..n {
                    self.insn(&[0x90]);
                }
                self.bind(over);
            }
        }
    }

    fn finish(mut self) -> Text {
        for fixup in &self.fixups {
            let target = self.labels[fixup.label].expect("a label that is set").wrapping_add(fixup.plus);
            let end = CODE + fixup.at as u64 + 4;
            let value = match fixup.field {
                Field::Relative => target.wrapping_sub(end) as u32,
                Field::Absolute => target as u32,
            };
            self.text.code[fixup.at..fixup.at + 4].copy_from_slice(&value.to_le_bytes());
        }
        let at = |label: usize| self.labels[label].expect("a label that is set");
        self.text.words = self.words.iter().map(|(word, label)| (*word, at(*label))).collect();
        assert!(self.text.code.len() < 0x8000, "a program of {} bytes", self.text.code.len());
        self.text
    }
}
