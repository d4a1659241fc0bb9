//! Bulk decode: a stretch of code as rows of fixed layout, for tables and arrays. Bytes that are no instruction are rows of
//! one byte, so that the rows cover the code without gaps.

use crate::class::class_of;
use crate::decode::{choose, condition, has_memory, opsize, read};
use crate::features::Features;
use crate::flags::{Form, flag_use_of};
use crate::insn::{Bits, DecodeError, Prefixes};
use crate::layout::Layout;
use crate::table;

/// One instruction. The layout is fixed (`repr(C)`, 24 bytes), so that the rows can be handed on as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Row {
    /// From the start of the code.
    pub offset: u64,
    /// Number of the [`Op`](crate::op::Op), or [`Row::INVALID`].
    pub mnemonic: u16,
    pub length: u8,
    /// The [`Class`](crate::class::Class) as a number, or [`Row::NO_CLASS`].
    pub class: u8,
    /// RFLAGS bits that are read.
    pub flags_read: u32,
    /// RFLAGS bits that may differ afterwards, undefined ones included.
    pub flags_written: u32,
    /// Keeps the size a multiple of eight; zero.
    pub reserved: u32,
}

impl Row {
    /// The mnemonic of a byte that is no instruction of the model in this mode.
    pub const INVALID: u16 = u16::MAX;
    /// The mnemonic of each byte of an instruction that the code's end cuts off.
    pub const TRUNCATED: u16 = u16::MAX - 1;
    pub const NO_CLASS: u8 = u8::MAX;

    fn bad(offset: usize, mnemonic: u16) -> Row {
        Row {
            offset: offset as u64,
            mnemonic,
            length: 1,
            class: Row::NO_CLASS,
            flags_read: 0,
            flags_written: 0,
            reserved: 0,
        }
    }
}

/// Decodes all of `code`, one instruction after the other.
pub fn decode_columns(code: &[u8], bits: Bits, features: &Features) -> Vec<Row> {
    // An instruction of compiled code is four bytes on average.
    let mut rows = Vec::with_capacity(code.len() / 4 + 1);
    decode_rows(code, bits, features, |row| rows.push(row));
    rows
}

/// As [`decode_columns`], handing each row on.
pub fn decode_rows(code: &[u8], bits: Bits, features: &Features, mut push: impl FnMut(Row)) {
    let mut offset = 0;
    while let Some(rest) = code.get(offset..).filter(|rest| !rest.is_empty()) {
        let row = decode_row(rest, offset, bits, features);
        offset += usize::from(row.length);
        push(row);
    }
}

/// Layout and row of the opcode table give all that a row here needs; no operands are built.
#[inline]
fn decode_row(bytes: &[u8], offset: usize, bits: Bits, features: &Features) -> Row {
    let found = Layout::scan(bytes, bits).and_then(|layout| Ok((layout, choose(&layout, features)?)));
    let (layout, row) = match found {
        Ok(found) => found,
        Err(DecodeError::Truncated) => return Row::bad(offset, Row::TRUNCATED),
        Err(DecodeError::Invalid | DecodeError::TooLong) => return Row::bad(offset, Row::INVALID),
    };
    let flags = flag_use_of(row.op, &Undecoded { bytes, layout: &layout, row });
    // An absolute offset is memory without ModRM.
    let memory = || has_memory(&layout, row) || layout.disp_size != 0;
    Row {
        offset: offset as u64,
        mnemonic: row.op as u16,
        length: layout.len,
        class: class_of(row.op, || row.has_segment(), memory) as u8,
        flags_read: flags.read,
        flags_written: flags.modified(),
        reserved: 0,
    }
}

/// An instruction whose operands are not built.
struct Undecoded<'a> {
    bytes: &'a [u8],
    layout: &'a Layout,
    row: &'a table::Row,
}

impl Form for Undecoded<'_> {
    fn condition(&self) -> u8 {
        condition(self.layout, self.row)
    }

    fn opsize(&self) -> u8 {
        opsize(self.layout, self.row)
    }

    fn repeated(&self) -> bool {
        self.layout.prefixes.intersects(Prefixes::REP | Prefixes::REPNE)
    }

    fn immediate(&self) -> Option<u64> {
        match self.layout.imm_size {
            0 if self.row.shifts_by_one() => Some(1),
            0 => None,
            size => Some(read(self.bytes, self.layout.imm_at, size)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::class::Class;
    use crate::op::Op;
    use crate::regs::rflags;

    #[test]
    fn rows_cover_the_code() {
        // add eax, ebx; (no instruction); jz $; mov eax, imm32 cut off
        let code = [0x01, 0xd8, 0x06, 0x74, 0xfe, 0xb8, 1, 2];
        let rows = decode_columns(&code, Bits::B64, &Features::all());
        let shape: Vec<_> = rows.iter().map(|row| (row.offset, row.length, row.mnemonic)).collect();
        assert_eq!(
            shape,
            [
                (0, 2, Op::Add as u16),
                (2, 1, Row::INVALID),
                (3, 2, Op::Jcc as u16),
                (5, 1, Row::TRUNCATED),
                (6, 2, Op::Add as u16),
            ]
        );
        assert_eq!(rows[0].class, Class::Ordinary as u8);
        assert_eq!(rows[0].flags_written, rflags::STATUS as u32);
        assert_eq!(rows[2].flags_read, rflags::ZF as u32);
        assert!(decode_columns(&[], Bits::B64, &Features::all()).is_empty());
    }

    #[test]
    fn the_layout_is_fixed() {
        assert_eq!(size_of::<Row>(), 24);
        assert_eq!(std::mem::offset_of!(Row, mnemonic), 8);
        assert_eq!(std::mem::offset_of!(Row, flags_written), 16);
    }
}
