//! A small assembler: encodes what the translator emits, guest instructions with renamed registers included, into a buffer
//! that will lie at a known address (SDM vol. 2, chapter 2).

use super::explain::Note;

/// Host registers by encoding.
pub const RAX: u8 = 0;
pub const RCX: u8 = 1;
pub const RDX: u8 = 2;
pub const RSP: u8 = 4;
pub const RBP: u8 = 5;
pub const RSI: u8 = 6;
pub const RDI: u8 = 7;
pub const R8: u8 = 8;
pub const R9: u8 = 9;
pub const R10: u8 = 10;
pub const R11: u8 = 11;

/// An address: base, optional scaled index, displacement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// `None` is an absolute address of 32 bits, or the index alone.
    pub base: Option<u8>,
    /// Register and log2 of the scale.
    pub index: Option<(u8, u8)>,
    pub disp: i32,
}

/// `[base + disp]`.
pub const fn at(base: u8, disp: i32) -> Address {
    Address { base: Some(base), index: None, disp }
}

/// `[base + index * 2^scale + disp]`.
pub const fn indexed(base: u8, index: u8, scale: u8, disp: i32) -> Address {
    Address { base: Some(base), index: Some((index, scale)), disp }
}

/// What ModRM.rm names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rm {
    Reg(u8),
    Mem(Address),
}

/// Opcode maps that are emitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Escape {
    None,
    M0f,
    M0f38,
    M0f3a,
}

/// The parts of a VEX prefix beyond those of legacy encodings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vex {
    pub vvvv: u8,
    pub l: bool,
    /// 0 none, 1 66, 2 F3, 3 F2.
    pub pp: u8,
}

/// One instruction with ModRM.
#[derive(Clone, Copy, Debug)]
pub struct Encoding<'a> {
    pub lock: bool,
    pub opsize: bool,
    /// Address size of 32 bits.
    pub addrsize: bool,
    /// F2 or F3, or 0.
    pub rep: u8,
    pub w: bool,
    /// A REX prefix even if it says nothing (SPL, BPL, SIL, DIL).
    pub rex: bool,
    pub escape: Escape,
    pub opcode: u8,
    /// ModRM.reg: a register or an opcode extension.
    pub reg: u8,
    pub rm: Rm,
    pub imm: &'a [u8],
    pub vex: Option<Vex>,
}

impl Encoding<'_> {
    /// A plain legacy instruction.
    pub const fn new(escape: Escape, opcode: u8, w: bool, reg: u8, rm: Rm) -> Encoding<'static> {
        Encoding {
            lock: false,
            opsize: false,
            addrsize: false,
            rep: 0,
            w,
            rex: false,
            escape,
            opcode,
            reg,
            rm,
            imm: &[],
            vex: None,
        }
    }
}

/// A place in the code whose relative offset is filled in later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fixup {
    /// Offset of the first byte behind the field.
    end: usize,
    wide: bool,
}

/// The buffer.
#[derive(Debug, Default)]
pub struct Asm {
    pub code: Vec<u8>,
    /// Address of the buffer's first byte when it runs.
    pub base: u64,
    /// Where code that is rarely run goes, if not behind the other; and from which byte of the buffer on it does.
    aside: Option<u64>,
    cut: Option<usize>,
    /// What the code from which offset on is for, if anybody wants to know.
    pub notes: Option<Vec<(usize, Note)>>,
}

impl Asm {
    /// Begins with code to be run at an address.
    pub fn start(&mut self, base: u64) {
        self.code.clear();
        (self.base, self.aside, self.cut) = (base, None, None);
    }

    /// The same; code that is rarely run goes elsewhere, so that what is run lies close together.
    pub fn start_parted(&mut self, base: u64, aside: u64) {
        self.start(base);
        self.aside = Some(aside);
    }

    /// What follows is rarely run.
    pub fn go_aside(&mut self) {
        self.cut = self.aside.map(|_| self.code.len());
    }

    /// The code, and what of it goes aside.
    pub fn parts(&self) -> (&[u8], &[u8]) {
        self.code.split_at(self.cut.unwrap_or(self.code.len()))
    }

    /// Address of a byte of the buffer.
    fn address(&self, at: usize) -> u64 {
        match (self.aside, self.cut) {
            (Some(aside), Some(cut)) if at >= cut => aside + (at - cut) as u64,
            _ => self.base + at as u64,
        }
    }

    /// Says what the code from here on is for.
    pub fn note(&mut self, note: Note) {
        let here = self.code.len();
        if let Some(notes) = &mut self.notes {
            // What was taken back leaves no notes.
            notes.retain(|(at, _)| *at <= here);
            notes.push((here, note));
        }
    }

    /// Address of the next byte.
    pub fn here(&self) -> u64 {
        self.address(self.code.len())
    }

    pub fn bytes(&mut self, bytes: &[u8]) {
        self.code.extend_from_slice(bytes);
    }

    /// An instruction with ModRM.
    pub fn emit(&mut self, e: &Encoding<'_>) {
        let (x, b) = match e.rm {
            Rm::Reg(reg) => (0, reg >> 3),
            Rm::Mem(a) => (a.index.map_or(0, |(i, _)| i >> 3), a.base.map_or(0, |b| b >> 3)),
        };
        let rex = u8::from(e.w) << 3 | (e.reg >> 3) << 2 | x << 1 | b;
        if e.addrsize {
            self.code.push(0x67);
        }
        if let Some(vex) = e.vex {
            self.vex(e, vex, rex);
        } else {
            if e.lock {
                self.code.push(0xf0);
            }
            if e.opsize {
                self.code.push(0x66);
            }
            if e.rep != 0 {
                self.code.push(e.rep);
            }
            if rex != 0 || e.rex {
                self.code.push(0x40 | rex);
            }
            match e.escape {
                Escape::None => {}
                Escape::M0f => self.code.push(0x0f),
                Escape::M0f38 => self.bytes(&[0x0f, 0x38]),
                Escape::M0f3a => self.bytes(&[0x0f, 0x3a]),
            }
        }
        self.code.push(e.opcode);
        self.modrm(e.reg, e.rm);
        self.bytes(e.imm);
    }

    fn vex(&mut self, e: &Encoding<'_>, vex: Vex, rex: u8) {
        let map = match e.escape {
            Escape::None | Escape::M0f => 1,
            Escape::M0f38 => 2,
            Escape::M0f3a => 3,
        };
        let last = (!vex.vvvv & 15) << 3 | u8::from(vex.l) << 2 | vex.pp;
        if map == 1 && rex & 0b1011 == 0 {
            self.bytes(&[0xc5, (!rex & 4) << 5 | last]);
        } else {
            self.bytes(&[0xc4, (!rex & 7) << 5 | map, (rex & 8) << 4 | last]);
        }
    }

    fn modrm(&mut self, reg: u8, rm: Rm) {
        let reg = (reg & 7) << 3;
        let Address { base, index, disp } = match rm {
            Rm::Reg(rm) => return self.code.push(0xc0 | reg | rm & 7),
            Rm::Mem(address) => address,
        };
        let index_bits = index.map_or(0x20, |(i, scale)| scale << 6 | (i & 7) << 3);
        let Some(base) = base else {
            self.bytes(&[reg | 4, index_bits | 5]);
            return self.bytes(&disp.to_le_bytes());
        };
        // RBP and R13 as a base need a displacement, RSP and R12 a SIB byte.
        let short = i8::try_from(disp);
        let mode = if disp == 0 && base & 7 != 5 {
            0
        } else if short.is_ok() {
            0x40
        } else {
            0x80
        };
        if index.is_some() || base & 7 == 4 {
            self.bytes(&[mode | reg | 4, index_bits | base & 7]);
        } else {
            self.code.push(mode | reg | base & 7);
        }
        match (mode, short) {
            (0x40, Ok(short)) => self.code.push(short as u8),
            (0x80, _) => self.bytes(&disp.to_le_bytes()),
            _ => {}
        }
    }

    /// `mov reg, [address]`, 64 bits.
    pub fn load(&mut self, reg: u8, address: Address) {
        self.emit(&Encoding::new(Escape::None, 0x8b, true, reg, Rm::Mem(address)));
    }

    /// `mov [address], reg`, 64 bits.
    pub fn store(&mut self, address: Address, reg: u8) {
        self.emit(&Encoding::new(Escape::None, 0x89, true, reg, Rm::Mem(address)));
    }

    /// `mov to, from`, 64 bits.
    pub fn mov(&mut self, to: u8, from: u8) {
        self.emit(&Encoding::new(Escape::None, 0x8b, true, to, Rm::Reg(from)));
    }

    /// `mov to, from`, 32 bits: clears the upper half.
    pub fn mov32(&mut self, to: u8, from: u8) {
        self.emit(&Encoding::new(Escape::None, 0x8b, false, to, Rm::Reg(from)));
    }

    /// The shortest MOV of a constant; flags stay.
    pub fn constant(&mut self, reg: u8, value: u64) {
        if u32::try_from(value).is_ok() {
            if reg >= 8 {
                self.code.push(0x41);
            }
            self.code.push(0xb8 | reg & 7);
            self.bytes(&(value as u32).to_le_bytes());
        } else if let Ok(signed) = i32::try_from(value as i64) {
            let imm = signed.to_le_bytes();
            let plain = Encoding::new(Escape::None, 0xc7, true, 0, Rm::Reg(reg));
            self.emit(&Encoding { imm: &imm, ..plain });
        } else {
            self.bytes(&[0x48 | reg >> 3, 0xb8 | reg & 7]);
            self.bytes(&value.to_le_bytes());
        }
    }

    /// `mov dword [address], value`.
    pub fn store_constant32(&mut self, address: Address, value: u32) {
        let plain = Encoding::new(Escape::None, 0xc7, false, 0, Rm::Mem(address));
        self.emit(&Encoding { imm: &value.to_le_bytes(), ..plain });
    }

    /// `lea reg, [address]`, 64 bits.
    pub fn lea(&mut self, reg: u8, address: Address) {
        self.emit(&Encoding::new(Escape::None, 0x8d, true, reg, Rm::Mem(address)));
    }

    /// `lea reg, [rip + distance]`: the address of a place in the cache.
    pub fn place_of(&mut self, reg: u8, target: u64) {
        self.bytes(&[0x48 | (reg >> 3) << 2, 0x8d, (reg & 7) << 3 | 5]);
        self.relative(target);
    }

    /// `movzx reg, byte [address]`.
    pub fn load_byte(&mut self, reg: u8, address: Address) {
        self.emit(&Encoding::new(Escape::M0f, 0xb6, false, reg, Rm::Mem(address)));
    }

    /// `pext to, from, [mask]`, 64 bits: BMI2, leaves flags alone.
    pub fn pext(&mut self, to: u8, from: u8, mask: Address) {
        let vex = Vex { vvvv: from, l: false, pp: 2 };
        let plain = Encoding::new(Escape::M0f38, 0xf5, true, to, Rm::Mem(mask));
        self.emit(&Encoding { vex: Some(vex), ..plain });
    }

    /// `sarx to, from, count`, 64 bits: BMI2, leaves flags alone.
    pub fn sarx(&mut self, to: u8, from: u8, count: u8) {
        let vex = Vex { vvvv: count, l: false, pp: 2 };
        let plain = Encoding::new(Escape::M0f38, 0xf7, true, to, Rm::Reg(from));
        self.emit(&Encoding { vex: Some(vex), ..plain });
    }

    /// `shlx to, from, count`, 64 bits: BMI2, leaves flags alone.
    pub fn shlx(&mut self, to: u8, from: u8, count: u8) {
        let vex = Vex { vvvv: count, l: false, pp: 1 };
        let plain = Encoding::new(Escape::M0f38, 0xf7, true, to, Rm::Reg(from));
        self.emit(&Encoding { vex: Some(vex), ..plain });
    }

    /// `pdep to, from, [mask]`, 64 bits: BMI2, leaves flags alone.
    pub fn pdep(&mut self, to: u8, from: u8, mask: Address) {
        let vex = Vex { vvvv: from, l: false, pp: 3 };
        let plain = Encoding::new(Escape::M0f38, 0xf5, true, to, Rm::Mem(mask));
        self.emit(&Encoding { vex: Some(vex), ..plain });
    }

    /// `shrx to, from, count`, 64 bits: BMI2, leaves flags alone. The count is the low six bits of a register.
    pub fn shrx(&mut self, to: u8, from: u8, count: u8) {
        let vex = Vex { vvvv: count, l: false, pp: 3 };
        let plain = Encoding::new(Escape::M0f38, 0xf7, true, to, Rm::Reg(from));
        self.emit(&Encoding { vex: Some(vex), ..plain });
    }

    /// `movzx to, word from`.
    pub fn low_word(&mut self, to: u8, from: u8) {
        self.emit(&Encoding::new(Escape::M0f, 0xb7, false, to, Rm::Reg(from)));
    }

    /// `rorx to, from, count`, 64 bits: BMI2, leaves flags alone.
    pub fn rorx(&mut self, to: u8, from: u8, count: u8) {
        let vex = Vex { vvvv: 0, l: false, pp: 3 };
        let plain = Encoding::new(Escape::M0f3a, 0xf0, true, to, Rm::Reg(from));
        self.emit(&Encoding { vex: Some(vex), imm: &[count], ..plain });
    }

    /// `jrcxz` over a number of bytes (negative: back).
    pub fn jrcxz(&mut self, over: i8) {
        self.bytes(&[0xe3, over as u8]);
    }

    /// `jmp target`, always five bytes.
    pub fn jmp(&mut self, target: u64) {
        self.code.push(0xe9);
        self.relative(target);
    }

    /// `jcc target`, always six bytes.
    pub fn jcc(&mut self, condition: u8, target: u64) {
        self.bytes(&[0x0f, 0x80 | condition & 15]);
        self.relative(target);
    }

    /// `jmp` whose target is filled in later.
    pub fn jmp_later(&mut self) -> Fixup {
        self.bytes(&[0xe9, 0, 0, 0, 0]);
        Fixup { end: self.code.len(), wide: true }
    }

    /// `jcc` whose target is filled in later.
    pub fn jcc_later(&mut self, condition: u8) -> Fixup {
        self.bytes(&[0x0f, 0x80 | condition & 15, 0, 0, 0, 0]);
        Fixup { end: self.code.len(), wide: true }
    }

    /// `jrcxz` whose target is filled in later, near by.
    pub fn jrcxz_later(&mut self) -> Fixup {
        self.bytes(&[0xe3, 0]);
        Fixup { end: self.code.len(), wide: false }
    }

    /// Jumps to a target that is filled in later if RCX is zero, however far that is.
    pub fn jump_if_zero(&mut self) -> Fixup {
        // jrcxz over a jump that leads over the one out
        self.bytes(&[0xe3, 2, 0xeb, 5]);
        self.jmp_later()
    }

    /// The same unless RCX is zero.
    pub fn jump_unless_zero(&mut self) -> Fixup {
        self.jrcxz(5);
        self.jmp_later()
    }

    /// RCX is zero if a register plus a constant lies on the page that a tag stands for.
    pub fn off_page(&mut self, tag: Address, reg: u8, add: i32) {
        self.load(RCX, tag);
        self.lea(RCX, indexed(RCX, reg, 0, add));
        self.shrx(RCX, RCX, RSP);
    }

    /// `mov qword to, value`, sign-extended.
    pub fn store_short(&mut self, to: Address, value: i32) {
        let plain = Encoding::new(Escape::None, 0xc7, true, 0, Rm::Mem(to));
        self.emit(&Encoding { imm: &value.to_le_bytes(), ..plain });
    }

    /// Lets a jump lead to the next byte.
    pub fn bind(&mut self, fixup: Fixup) {
        let distance = self.here().wrapping_sub(self.address(fixup.end - 1) + 1);
        if fixup.wide {
            self.code[fixup.end - 4..fixup.end].copy_from_slice(&(distance as i32).to_le_bytes());
        } else {
            debug_assert!(distance < 128);
            self.code[fixup.end - 1] = distance as u8;
        }
    }

    /// `jmp [address]`.
    pub fn jmp_mem(&mut self, address: Address) {
        self.emit(&Encoding::new(Escape::None, 0xff, false, 4, Rm::Mem(address)));
    }

    fn relative(&mut self, target: u64) {
        let next = self.here() + 4;
        self.bytes(&(target.wrapping_sub(next) as i32).to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use trapgate_x86::facts::facts;
    use trapgate_x86::insn::Bits;

    use super::*;

    fn text(make: impl Fn(&mut Asm)) -> String {
        let mut asm = Asm { base: 0x1000, ..Asm::default() };
        make(&mut asm);
        let facts = facts(&asm.code, Bits::B64, 0x1000).expect("an instruction");
        assert_eq!(usize::from(facts.len), asm.code.len());
        facts.text
    }

    #[test]
    fn every_addressing_form_decodes_to_itself() {
        let mut asm = Asm::default();
        for base in 0..16 {
            for disp in [0, 1, -128, 127, 128, -129, i32::MIN, i32::MAX] {
                for index in (0..16).filter(|i| *i != RSP).map(Some).chain([None]) {
                    for scale in 0..4 {
                        let address = Address { base: Some(base), index: index.map(|i| (i, scale)), disp };
                        asm.start(0);
                        asm.lea(R11, address);
                        let insn = trapgate_x86::decode::decode(
                            &asm.code,
                            Bits::B64,
                            &trapgate_x86::features::Features::all(),
                        )
                        .unwrap();
                        assert_eq!(usize::from(insn.len), asm.code.len());
                        assert_eq!((insn.mem.base, insn.mem.disp), (base, i64::from(disp)));
                        let none = trapgate_x86::insn::NO_REG;
                        assert_eq!(insn.mem.index, index.unwrap_or(none));
                        assert!(index.is_none() || insn.mem.scale == scale);
                    }
                }
            }
        }
    }

    #[test]
    fn instructions_are_what_they_are_called() {
        assert_eq!(text(|a| a.load(R8, at(RSP, 0x20))), "mov r8, [rsp+0x20]");
        assert_eq!(text(|a| a.store(indexed(R9, R11, 0, -8), RAX)), "mov [r9+r11-8], rax");
        assert_eq!(text(|a| a.pext(R11, R10, at(RSP, 0x28))), "pext r11, r10, [rsp+0x28]");
        assert_eq!(text(|a| a.shrx(RCX, RCX, RSP)), "shrx rcx, rcx, rsp");
        assert_eq!(text(|a| a.rorx(R11, R10, 62)), "rorx r11, r10, 0x3e");
        assert_eq!(text(|a| a.constant(R10, 5)), "mov r10d, 5");
        assert_eq!(text(|a| a.constant(RCX, u64::MAX)), "mov rcx, 0xffffffffffffffff");
        assert_eq!(text(|a| a.constant(R10, 1 << 40)), "mov r10, 0x10000000000");
        assert_eq!(text(|a| a.load_byte(RCX, at(RSP, 0x27))), "movzx ecx, byte ptr [rsp+0x27]");
        assert_eq!(text(|a| a.jmp_mem(indexed(RSP, R11, 3, 0x1000))), "jmp qword ptr [rsp+r11*8+0x1000]");
        assert_eq!(text(|a| a.jmp(0x2000)), "jmp 0x2000");
        assert_eq!(text(|a| a.place_of(R11, 0x2000)), "lea r11, [rip+0xff9]");
    }

    #[test]
    fn jumps_between_the_usual_code_and_what_goes_aside_know_how_far_that_is() {
        for aside in [None, Some(0x9000)] {
            let mut asm = Asm::default();
            match aside {
                Some(aside) => asm.start_parted(0x1000, aside),
                None => asm.start(0x1000),
            }
            let early = asm.jmp_later();
            let back = asm.here();
            let last = asm.jmp_later();
            asm.go_aside();
            let stub = asm.here();
            assert_eq!(stub, aside.unwrap_or(0x100a));
            asm.bind(early);
            asm.bind(last);
            asm.jmp(back);
            asm.place_of(R11, back);
            let (usual, other) = asm.parts();
            assert_eq!((usual.len(), other.len()), if aside.is_some() { (10, 12) } else { (22, 0) });
            let target = |at: usize, end: u64| {
                let field = asm.code[at..at + 4].try_into().map(i32::from_le_bytes).expect("four bytes");
                end.wrapping_add(i64::from(field) as u64)
            };
            assert_eq!([target(1, 0x1005), target(6, 0x100a)], [stub; 2]);
            assert_eq!([target(11, stub + 5), target(18, stub + 12)], [back; 2]);
        }
    }
}
