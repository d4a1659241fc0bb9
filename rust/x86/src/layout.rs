//! The layout scan: where prefixes, opcode, ModRM, SIB, displacement and immediates of one instruction stand, and how long it
//! is (Intel SDM vol. 2, chapter 2). It knows no CPU model; whether the encoding exists for one is decided by [`crate::decode`].

use crate::insn::{Bits, DecodeError, Prefixes, Seg};
use crate::table::{ATTRIBUTES, Map, attribute};

/// The longest instruction (SDM vol. 2, 2.3.11).
pub const MAX_LENGTH: usize = 15;

/// Where the parts of an instruction are. Offsets count from its first byte; 0 stands for "absent", since none of the parts
/// below can be at 0 (the opcode and `head` can).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    pub bits: Bits,
    /// Length in bytes.
    pub len: u8,
    /// First byte after the legacy prefixes: REX, VEX, EVEX, escape or opcode.
    pub head: u8,
    pub map: Map,
    pub opcode_at: u8,
    pub opcode: u8,
    pub modrm_at: u8,
    pub modrm: u8,
    pub sib_at: u8,
    pub sib: u8,
    /// Displacement, or the absolute offset of MOV's moffs forms.
    pub disp_at: u8,
    pub disp_size: u8,
    /// First immediate: value, relative branch, or a far pointer's offset.
    pub imm_at: u8,
    pub imm_size: u8,
    /// Second immediate, or a far pointer's selector.
    pub imm2_at: u8,
    pub imm2_size: u8,
    /// All prefixes present, mandatory ones included. Of F2 and F3 the last counts.
    pub prefixes: Prefixes,
    /// Segment override that takes effect.
    pub segment: Option<Seg>,
    /// W, R, X, B as bits 3 to 0, from REX, VEX or EVEX; not inverted.
    pub rex: u8,
    /// VEX.vvvv, not inverted; 0 where there is none. As a register number its bit 3 is ignored outside 64-bit mode.
    pub vvvv: u8,
    /// VEX.L, EVEX.L'L.
    pub vector_length: u8,
    /// VEX.pp: 0 none, 1 66, 2 F3, 3 F2.
    pub pp: u8,
    /// Operand size by mode, 66 and W, before an opcode's own rule.
    pub opsize: u8,
    pub addrsize: u8,
}

/// What a byte is when it stands before an opcode.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    Opcode,
    Rex,
    Lock,
    Repne,
    Rep,
    Opsize,
    Addrsize,
    /// ES, CS, SS, DS: ignored in 64-bit mode.
    Segment,
    /// FS, GS.
    FsGs,
}

static KINDS: [Kind; 256] = {
    let mut kinds = [Kind::Opcode; 256];
    let mut byte = 0x40;
    while byte < 0x50 {
        kinds[byte] = Kind::Rex;
        byte += 1;
    }
    kinds[0xf0] = Kind::Lock;
    kinds[0xf2] = Kind::Repne;
    kinds[0xf3] = Kind::Rep;
    kinds[0x66] = Kind::Opsize;
    kinds[0x67] = Kind::Addrsize;
    kinds[0x26] = Kind::Segment;
    kinds[0x2e] = Kind::Segment;
    kinds[0x36] = Kind::Segment;
    kinds[0x3e] = Kind::Segment;
    kinds[0x64] = Kind::FsGs;
    kinds[0x65] = Kind::FsGs;
    kinds
};

const fn segment(byte: u8) -> Seg {
    match byte {
        0x26 => Seg::Es,
        0x2e => Seg::Cs,
        0x36 => Seg::Ss,
        0x64 => Seg::Fs,
        0x65 => Seg::Gs,
        _ => Seg::Ds,
    }
}

/// Reads forward and knows why it cannot.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Cursor<'_> {
    /// More bytes can help only while fewer than the longest instruction were there.
    #[cold]
    fn failure(&self) -> DecodeError {
        if self.bytes.len() >= MAX_LENGTH { DecodeError::TooLong } else { DecodeError::Truncated }
    }

    #[inline]
    fn peek(&self) -> Result<u8, DecodeError> {
        match self.bytes.get(self.at) {
            Some(&byte) if self.at < MAX_LENGTH => Ok(byte),
            _ => Err(self.failure()),
        }
    }

    #[inline]
    fn next(&mut self) -> Result<u8, DecodeError> {
        let byte = self.peek()?;
        self.at += 1;
        Ok(byte)
    }

    /// Passes `size` bytes and gives where they start (0 if there are none).
    #[inline]
    fn skip(&mut self, size: u8) -> Result<u8, DecodeError> {
        if size == 0 {
            return Ok(0);
        }
        let start = self.at as u8;
        self.at += usize::from(size);
        if self.at > self.bytes.len().min(MAX_LENGTH) { Err(self.failure()) } else { Ok(start) }
    }
}

impl Layout {
    /// Scans the instruction at the start of `bytes`, of which at most 15 are looked at.
    ///
    /// An opcode that no CPU model has is [`DecodeError::Invalid`] as soon as it is read, since it has no layout. What
    /// another mode has is laid out first, as processors do: with the end of a page in it, the fetch faults before #UD.
    pub fn scan(bytes: &[u8], bits: Bits) -> Result<Layout, DecodeError> {
        let mut cursor = Cursor { bytes, at: 0 };
        let mut layout = Layout::empty(bits);
        let first = layout.scan_prefixes(&mut cursor)?;
        let attributes = match first {
            0x0f => layout.scan_escape(&mut cursor)?,
            0xc4 | 0xc5 if bits == Bits::B64 || cursor.peek()? >= 0xc0 => {
                layout.scan_vex(&mut cursor, first)?
            }
            0x62 if bits == Bits::B64 || cursor.peek()? >= 0xc0 => layout.scan_evex(&mut cursor)?,
            opcode => {
                layout.opcode = opcode;
                layout.opcode_at = (cursor.at - 1) as u8;
                ATTRIBUTES[0][usize::from(opcode)]
            }
        };
        if attributes == 0 {
            return Err(DecodeError::Invalid);
        }
        if attributes & attribute::MODRM != 0 {
            layout.scan_modrm(&mut cursor, attributes)?;
        }
        layout.scan_immediates(&mut cursor, attributes)?;
        layout.len = cursor.at as u8;
        let mode = match bits {
            Bits::B16 => 1,
            Bits::B32 => 2,
            Bits::B64 => 4,
        };
        if attributes & mode << attribute::MODES_SHIFT == 0 || layout.is_refused() {
            return Err(DecodeError::Invalid);
        }
        Ok(layout)
    }

    const fn empty(bits: Bits) -> Layout {
        Layout {
            bits,
            len: 0,
            head: 0,
            map: Map::Primary,
            opcode_at: 0,
            opcode: 0,
            modrm_at: 0,
            modrm: 0,
            sib_at: 0,
            sib: 0,
            disp_at: 0,
            disp_size: 0,
            imm_at: 0,
            imm_size: 0,
            imm2_at: 0,
            imm2_size: 0,
            prefixes: Prefixes::empty(),
            segment: None,
            rex: 0,
            vvvv: 0,
            vector_length: 0,
            pp: 0,
            opsize: 0,
            addrsize: 0,
        }
    }

    /// Legacy prefixes and REX; gives the byte after them. A REX that is not directly before the opcode is ignored.
    #[inline]
    fn scan_prefixes(&mut self, cursor: &mut Cursor<'_>) -> Result<u8, DecodeError> {
        let long = self.bits == Bits::B64;
        let mut rex = 0;
        let first = loop {
            let byte = cursor.next()?;
            match KINDS[usize::from(byte)] {
                Kind::Opcode => break byte,
                Kind::Rex if long => {
                    rex = byte;
                    continue;
                }
                Kind::Rex => break byte,
                Kind::Lock => self.prefixes |= Prefixes::LOCK,
                Kind::Repne => self.prefixes = (self.prefixes - Prefixes::REP) | Prefixes::REPNE,
                Kind::Rep => self.prefixes = (self.prefixes - Prefixes::REPNE) | Prefixes::REP,
                Kind::Opsize => self.prefixes |= Prefixes::OPSIZE,
                Kind::Addrsize => self.prefixes |= Prefixes::ADDRSIZE,
                Kind::Segment if long => {}
                Kind::Segment | Kind::FsGs => {
                    self.prefixes |= Prefixes::SEGMENT;
                    self.segment = Some(segment(byte));
                }
            }
            rex = 0;
        };
        self.head = (cursor.at - 1) as u8;
        if rex != 0 {
            self.head -= 1;
            self.rex = rex & 0xf;
            self.prefixes |= Prefixes::REX;
            if rex & 8 != 0 {
                self.prefixes |= Prefixes::REX_W;
            }
        }
        let other_size = self.prefixes.contains(Prefixes::OPSIZE);
        self.opsize = match self.bits {
            Bits::B64 if self.rex & 8 != 0 => 8,
            Bits::B16 if !other_size => 2,
            Bits::B32 | Bits::B64 if other_size => 2,
            _ => 4,
        };
        let other_address = self.prefixes.contains(Prefixes::ADDRSIZE);
        self.addrsize = match (self.bits, other_address) {
            (Bits::B64, false) => 8,
            (Bits::B16, false) | (Bits::B32, true) => 2,
            _ => 4,
        };
        Ok(first)
    }

    /// After 0F.
    #[inline]
    fn scan_escape(&mut self, cursor: &mut Cursor<'_>) -> Result<u16, DecodeError> {
        let mut opcode = cursor.next()?;
        self.map = match opcode {
            0x38 => Map::M0f38,
            0x3a => Map::M0f3a,
            _ => Map::M0f,
        };
        if self.map != Map::M0f {
            opcode = cursor.next()?;
        }
        self.opcode = opcode;
        self.opcode_at = (cursor.at - 1) as u8;
        // The three-byte maps are uniform, so that even their undefined opcodes have a layout.
        Ok(match (ATTRIBUTES[self.map as usize][usize::from(opcode)], self.map) {
            (0, Map::M0f38) => attribute::MODRM,
            (0, Map::M0f3a) => attribute::MODRM | attribute::BYTE,
            (attributes, _) => attributes,
        })
    }

    /// VEX and EVEX are #UD after 66, F2, F3, LOCK and REX (SDM vol. 2, 2.3.2 to 2.3.4).
    fn is_refused(&self) -> bool {
        let refused = Prefixes::OPSIZE | Prefixes::REP | Prefixes::REPNE | Prefixes::LOCK | Prefixes::REX;
        self.prefixes.intersects(Prefixes::VEX | Prefixes::EVEX) && self.prefixes.intersects(refused)
    }

    /// Takes W, R, X, B; outside 64-bit mode only W has a meaning.
    fn set_vex_bits(&mut self, rex: u8, second: u8) {
        self.rex = if self.bits == Bits::B64 { rex } else { rex & 8 };
        self.vvvv = !(second >> 3) & 0xf;
        self.pp = second & 3;
    }

    /// After C4 or C5.
    fn scan_vex(&mut self, cursor: &mut Cursor<'_>, first: u8) -> Result<u16, DecodeError> {
        self.prefixes |= Prefixes::VEX;
        let byte = cursor.next()?;
        let (map, rex, last) = if first == 0xc5 {
            (1, (!byte >> 5) & 4, byte)
        } else {
            let last = cursor.next()?;
            (byte & 0x1f, (!byte >> 5) & 7 | last >> 4 & 8, last)
        };
        self.set_vex_bits(rex, last);
        self.vector_length = last >> 2 & 1;
        if self.vector_length != 0 {
            self.prefixes |= Prefixes::VEX_L;
        }
        self.map = match map {
            1 => Map::Vex0f,
            2 => Map::Vex0f38,
            3 => Map::Vex0f3a,
            _ => return Err(DecodeError::Invalid),
        };
        self.opcode = cursor.next()?;
        self.opcode_at = (cursor.at - 1) as u8;
        Ok(ATTRIBUTES[self.map as usize][usize::from(self.opcode)])
    }

    /// After 62. No row describes EVEX; the layout follows from the map alone (SDM vol. 2, 2.7).
    fn scan_evex(&mut self, cursor: &mut Cursor<'_>) -> Result<u16, DecodeError> {
        self.prefixes |= Prefixes::EVEX;
        let (first, second, third) = (cursor.next()?, cursor.next()?, cursor.next()?);
        let map = first & 7;
        if first & 8 != 0 || second & 4 == 0 || !matches!(map, 1 | 2 | 3 | 5 | 6) {
            return Err(DecodeError::Invalid);
        }
        self.set_vex_bits((!first >> 5) & 7 | second >> 4 & 8, second);
        self.vector_length = third >> 5 & 3;
        self.map = Map::Evex;
        self.opcode = cursor.next()?;
        self.opcode_at = (cursor.at - 1) as u8;
        let byte = map == 3 || map == 1 && matches!(self.opcode, 0x70..=0x73 | 0xc2 | 0xc4..=0xc6);
        Ok(attribute::MODES | attribute::MODRM | if byte { attribute::BYTE } else { 0 })
    }

    /// ModRM, SIB and displacement (SDM vol. 2, tables 2-1 to 2-3).
    #[inline]
    fn scan_modrm(&mut self, cursor: &mut Cursor<'_>, attributes: u16) -> Result<(), DecodeError> {
        self.modrm_at = cursor.at as u8;
        self.modrm = cursor.next()?;
        let (mode, rm) = (self.modrm >> 6, self.modrm & 7);
        if mode == 3 || attributes & attribute::MODREG != 0 {
            return Ok(());
        }
        self.disp_size = if self.addrsize == 2 {
            match (mode, rm) {
                (0, 6) | (2, _) => 2,
                (0, _) => 0,
                _ => 1,
            }
        } else {
            let mut base = rm;
            if rm == 4 {
                self.sib_at = cursor.at as u8;
                self.sib = cursor.next()?;
                base = self.sib & 7;
            }
            match (mode, base) {
                (0, 5) | (2, _) => 4,
                (0, _) => 0,
                _ => 1,
            }
        };
        self.disp_at = cursor.skip(self.disp_size)?;
        Ok(())
    }

    #[inline]
    fn scan_immediates(&mut self, cursor: &mut Cursor<'_>, attributes: u16) -> Result<(), DecodeError> {
        let z = self.opsize.min(4);
        let (first, second) = match attributes & attribute::IMMEDIATE {
            0 => return Ok(()),
            _ if attributes & attribute::GROUP3 != 0 && self.modrm & 0x30 != 0 => (0, 0),
            attribute::BYTE => (1, 0),
            attribute::WORD => (2, 0),
            attribute::Z => (z, 0),
            attribute::V => (self.opsize, 0),
            attribute::REL => (if self.bits == Bits::B64 { 4 } else { z }, 0),
            attribute::FAR => (z, 2),
            attribute::WORD_BYTE => (2, 1),
            attribute::OFFSET => {
                self.disp_size = self.addrsize;
                self.disp_at = cursor.skip(self.disp_size)?;
                (0, 0)
            }
            _ => {
                let sse4a = self.prefixes.intersects(Prefixes::OPSIZE | Prefixes::REPNE);
                if sse4a { (1, 1) } else { (0, 0) }
            }
        };
        (self.imm_size, self.imm2_size) = (first, second);
        self.imm_at = cursor.skip(first)?;
        self.imm2_at = cursor.skip(second)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(bytes: &[u8], bits: Bits) -> Layout {
        Layout::scan(bytes, bits).unwrap()
    }

    #[test]
    fn every_part_is_located() {
        // lock add dword ptr fs:[rax+r12*4+0x12345678], 0x11223344 with a REX
        let bytes = [0xf0, 0x64, 0x42, 0x81, 0x84, 0xa0, 0x78, 0x56, 0x34, 0x12, 0x44, 0x33, 0x22, 0x11];
        let layout = scan(&bytes, Bits::B64);
        assert_eq!((layout.len, layout.head, layout.opcode_at, layout.modrm_at), (14, 2, 3, 4));
        assert_eq!((layout.sib_at, layout.disp_at, layout.disp_size), (5, 6, 4));
        assert_eq!((layout.imm_at, layout.imm_size, layout.rex), (10, 4, 2));
        assert_eq!(layout.segment, Some(Seg::Fs));
    }

    #[test]
    fn far_pointers_and_enter_have_two_immediates() {
        let layout = scan(&[0x66, 0xea, 1, 2, 3, 4, 5, 6], Bits::B16);
        assert_eq!(
            (layout.len, layout.imm_at, layout.imm_size, layout.imm2_at, layout.imm2_size),
            (8, 2, 4, 6, 2)
        );
        let layout = scan(&[0xc8, 1, 2, 3], Bits::B64);
        assert_eq!((layout.len, layout.imm_size, layout.imm2_at, layout.imm2_size), (4, 2, 3, 1));
    }

    #[test]
    fn a_rex_before_a_legacy_prefix_is_dropped() {
        let layout = scan(&[0x48, 0x66, 0x05, 1, 2], Bits::B64);
        assert_eq!((layout.len, layout.rex, layout.opsize), (5, 0, 2));
    }

    #[test]
    fn failures_are_told_apart() {
        let mut long = [0x66; 20];
        long[15] = 0x90;
        assert_eq!(Layout::scan(&long, Bits::B64), Err(DecodeError::TooLong));
        assert_eq!(Layout::scan(&long[..14], Bits::B64), Err(DecodeError::Truncated));
        assert_eq!(scan(&long[1..], Bits::B64).len, 15);
        assert_eq!(Layout::scan(&[0x0f, 0x04], Bits::B64), Err(DecodeError::Invalid));
        let fault = |bytes: &[u8]| Layout::scan(bytes, Bits::B64).unwrap_err();
        assert_eq!(fault(&[0x9a]), DecodeError::Truncated, "laid out before it is refused");
        assert_eq!(fault(&[0x9a, 1, 2, 3, 4, 5, 6]), DecodeError::Invalid);
        assert_eq!(fault(&[0x06]), DecodeError::Invalid);
        assert_eq!(fault(&[0x66, 0xc5, 0xf8, 0x28]), DecodeError::Truncated);
        assert_eq!(fault(&[0x66, 0xc5, 0xf8, 0x28, 0xc0]), DecodeError::Invalid);
        assert_eq!(fault(&[0x0f, 0x3a, 0xff, 0xc0]), DecodeError::Truncated);
        assert_eq!(Layout::scan(&[0x9a], Bits::B32), Err(DecodeError::Truncated));
        assert_eq!(Layout::scan(&[], Bits::B16), Err(DecodeError::Truncated));
    }
}
