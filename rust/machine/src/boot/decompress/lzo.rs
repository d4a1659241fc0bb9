//! The file format of lzop, which the kernel's build uses for lzo, and the LZO1X code inside (the instruction set is
//! described in the kernel's Documentation/staging/lzo.rst). Checksums are not compared: a damaged kernel shows itself by
//! not being an ELF file or not fitting its segments, and the kernel's own decoder does not compare them either.

use std::io;

const MAGIC_SIZE: usize = 9;
/// From this version on, the header has a few more fields.
const VERSION_WITH_LEVEL: u16 = 0x0940;
/// Flags of the header: which checksums each block has, of its contents and of its compressed form, and optional fields.
const ADLER32_CONTENTS: u32 = 1 << 0;
const ADLER32_COMPRESSED: u32 = 1 << 1;
const EXTRA_FIELD: u32 = 1 << 6;
const CRC32_CONTENTS: u32 = 1 << 8;
const CRC32_COMPRESSED: u32 = 1 << 9;
const FILTER: u32 = 1 << 11;
/// The largest block that lzop makes.
const BLOCK_MAX: u32 = 64 << 20;

/// Decodes a whole file; stops once there is more than `limit`.
pub(super) fn decode(stream: &[u8], limit: u64, output: &mut Vec<u8>) -> io::Result<()> {
    let mut input = Input(stream);
    let flags = skip_header(&mut input)?;
    let contents_sums = sums(flags, ADLER32_CONTENTS, CRC32_CONTENTS);
    let compressed_sums = sums(flags, ADLER32_COMPRESSED, CRC32_COMPRESSED);
    loop {
        let size = input.be32()?;
        if size == 0 || output.len() as u64 > limit {
            return Ok(());
        }
        let compressed = input.be32()?;
        if size > BLOCK_MAX || compressed > size {
            return Err(damaged("a block has an impossible size"));
        }
        input.take(contents_sums)?;
        if compressed == size {
            output.extend_from_slice(input.take(size as usize)?);
            continue;
        }
        input.take(compressed_sums)?;
        let end = output.len() + size as usize;
        decode_block(Input(input.take(compressed as usize)?), output, end)?;
    }
}

/// Reads the file's header and gives its flags.
fn skip_header(input: &mut Input<'_>) -> io::Result<u32> {
    input.take(MAGIC_SIZE)?;
    let version = input.be16()?;
    let is_new = version >= VERSION_WITH_LEVEL;
    // Library version and, in newer files, the version needed; the method; in newer files the level.
    input.take(if is_new { 6 } else { 3 })?;
    let flags = input.be32()?;
    if flags & FILTER != 0 {
        input.take(4)?;
    }
    // Mode and time.
    input.take(if is_new { 12 } else { 8 })?;
    let name = input.byte()?;
    // The name and the header's checksum.
    input.take(usize::from(name) + 4)?;
    if flags & EXTRA_FIELD != 0 {
        let size = input.be32()? as usize;
        input.take(size)?;
        input.take(4)?;
    }
    Ok(flags)
}

/// Bytes of the checksums that the two flags stand for.
fn sums(flags: u32, first: u32, second: u32) -> usize {
    4 * (usize::from(flags & first != 0) + usize::from(flags & second != 0))
}

fn damaged(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// What is left to read.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, count: usize) -> io::Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(io::ErrorKind::UnexpectedEof)?;
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> io::Result<u8> {
        Ok(self.take(1)?[0])
    }

    fn be16(&mut self) -> io::Result<u16> {
        Ok(u16::from(self.byte()?) << 8 | u16::from(self.byte()?))
    }

    fn be32(&mut self) -> io::Result<u32> {
        Ok(u32::from(self.be16()?) << 16 | u32::from(self.be16()?))
    }

    fn le16(&mut self) -> io::Result<usize> {
        Ok(usize::from(self.byte()?) | usize::from(self.byte()?) << 8)
    }

    /// A length: the field itself, or if it is zero `longest` plus 255 for each zero byte plus the byte after them.
    fn length(&mut self, field: u8, longest: usize) -> io::Result<usize> {
        if field != 0 {
            return Ok(field.into());
        }
        let mut length = longest;
        loop {
            match self.byte()? {
                0 => length += 255,
                last => return Ok(length + usize::from(last)),
            }
        }
    }
}

/// What the instruction before left, which decides what 0 to 15 mean.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Before {
    /// It copied no literals.
    NoLiterals,
    /// It copied one to three literals after a match.
    FewLiterals,
    /// It was a literal run.
    LiteralRun,
}

/// Decodes one block until `output` has `end` bytes, which the end-of-stream code must agree with.
fn decode_block(mut input: Input<'_>, output: &mut Vec<u8>, end: usize) -> io::Result<()> {
    let start = output.len();
    let mut before = Before::NoLiterals;
    if let Some(&first @ 18..) = input.0.first() {
        // A first byte above 17 is a literal run, or literals as after a match.
        input.byte()?;
        let count = usize::from(first) - 17;
        copy_literals(&mut input, output, count, end)?;
        before = if count < 4 { Before::FewLiterals } else { Before::LiteralRun };
    }
    loop {
        let code = input.byte()?;
        let (distance, length, literals) = match code {
            0..=15 if before == Before::NoLiterals => {
                let length = 3 + input.length(code, 15)?;
                copy_literals(&mut input, output, length, end)?;
                before = Before::LiteralRun;
                continue;
            }
            0..=15 => {
                let distance = (usize::from(input.byte()?) << 2) + usize::from(code >> 2);
                match before {
                    Before::LiteralRun => (distance + 2049, 3, code & 3),
                    _ => (distance + 1, 2, code & 3),
                }
            }
            16..=31 => {
                let length = 2 + input.length(code & 7, 7)?;
                let word = input.le16()?;
                let distance = 16384 + (usize::from(code & 8) << 11) + (word >> 2);
                if distance == 16384 {
                    let complete = output.len() == end;
                    return if complete { Ok(()) } else { Err(damaged("a block ends early")) };
                }
                (distance, length, (word & 3) as u8)
            }
            32..=63 => {
                let length = 2 + input.length(code & 31, 31)?;
                let word = input.le16()?;
                ((word >> 2) + 1, length, (word & 3) as u8)
            }
            _ => {
                let length =
                    if code < 128 { 3 + usize::from(code >> 5 & 1) } else { 5 + usize::from(code >> 5 & 3) };
                let distance = (usize::from(input.byte()?) << 3) + usize::from(code >> 2 & 7) + 1;
                (distance, length, code & 3)
            }
        };
        copy_match(output, start, distance, length, end)?;
        copy_literals(&mut input, output, literals.into(), end)?;
        before = if literals == 0 { Before::NoLiterals } else { Before::FewLiterals };
    }
}

fn copy_literals(input: &mut Input<'_>, output: &mut Vec<u8>, count: usize, end: usize) -> io::Result<()> {
    if count > end - output.len() {
        return Err(damaged("a block holds more than it says"));
    }
    output.extend_from_slice(input.take(count)?);
    Ok(())
}

/// Copies from `distance` bytes back, within the block that starts at `start`; the two may overlap, which repeats.
fn copy_match(
    output: &mut Vec<u8>,
    start: usize,
    distance: usize,
    length: usize,
    end: usize,
) -> io::Result<()> {
    if length > end - output.len() {
        return Err(damaged("a block holds more than it says"));
    }
    let from = output.len().checked_sub(distance).filter(|&from| from >= start);
    let from = from.ok_or_else(|| damaged("a match lies before the block"))?;
    for index in from..from + length {
        let byte = output[index];
        output.push(byte);
    }
    Ok(())
}
