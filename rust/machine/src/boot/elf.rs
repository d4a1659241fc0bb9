//! Reads ELF executables: header, program headers and notes, for both word sizes (System V gABI, chapters 4 and 5).

use super::BootError;
use super::image::{Bytes, Segment};
use super::place::Placer;

const KERNEL: &str = "the kernel";

const MAGIC: &[u8] = b"\x7fELF";
const CLASS_32: u8 = 1;
const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const TYPE_EXECUTABLE: u16 = 2;
const TYPE_SHARED: u16 = 3;
pub(super) const MACHINE_386: u16 = 3;
pub(super) const MACHINE_X86_64: u16 = 62;
const SEGMENT_LOAD: u32 = 1;
const SEGMENT_NOTE: u32 = 4;

/// One program header, widened to 64 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ProgramHeader {
    kind: u32,
    pub(super) offset: u64,
    pub(super) vaddr: u64,
    pub(super) paddr: u64,
    pub(super) filesz: u64,
    pub(super) memsz: u64,
    align: u64,
}

/// A checked ELF executable: each segment's file part lies within the file.
#[derive(Debug, Clone)]
pub(super) struct Elf<'a> {
    file: &'a [u8],
    pub(super) is_64: bool,
    pub(super) machine: u16,
    pub(super) entry: u64,
    headers: Vec<ProgramHeader>,
}

/// Whether `file` starts like an ELF file.
pub(super) fn is_elf(file: &[u8]) -> bool {
    file.starts_with(MAGIC)
}

fn bytes<const N: usize>(file: &[u8], offset: u64) -> Option<[u8; N]> {
    let start = usize::try_from(offset).ok()?;
    file.get(start..start.checked_add(N)?)?.try_into().ok()
}

/// Little-endian reads that fail beyond the end.
pub(super) fn u16_at(file: &[u8], offset: u64) -> Option<u16> {
    bytes(file, offset).map(u16::from_le_bytes)
}

pub(super) fn u32_at(file: &[u8], offset: u64) -> Option<u32> {
    bytes(file, offset).map(u32::from_le_bytes)
}

pub(super) fn u64_at(file: &[u8], offset: u64) -> Option<u64> {
    bytes(file, offset).map(u64::from_le_bytes)
}

impl<'a> Elf<'a> {
    /// Reads the headers; `None` if the file is not ELF at all.
    ///
    /// # Errors
    /// When it is ELF, but not an x86 executable, or damaged.
    pub(super) fn parse(file: &'a [u8]) -> Result<Option<Self>, BootError> {
        if !is_elf(file) {
            return Ok(None);
        }
        let truncated =
            |needed| BootError::Truncated { what: "the ELF header", needed, size: file.len() as u64 };
        let ident: [u8; 16] = bytes(file, 0).ok_or_else(|| truncated(16))?;
        let is_64 = match ident[4] {
            CLASS_32 => false,
            CLASS_64 => true,
            class => return Err(wrong("class", class, "1 (32 bits) or 2 (64 bits)")),
        };
        if ident[5] != LITTLE_ENDIAN {
            return Err(wrong("byte order", ident[5], "1 (little-endian)"));
        }
        let header_size = if is_64 { 64 } else { 52 };
        if file.len() < header_size {
            return Err(truncated(header_size as u64));
        }
        let half = |offset| u16_at(file, offset).unwrap_or(0);
        let word = |offset32: u64, offset64: u64| {
            if is_64 { u64_at(file, offset64) } else { u32_at(file, offset32).map(u64::from) }.unwrap_or(0)
        };
        let kind = half(16);
        if kind != TYPE_EXECUTABLE && kind != TYPE_SHARED {
            return Err(wrong("type", kind, "2 (executable)"));
        }
        let machine = half(18);
        if machine != MACHINE_386 && machine != MACHINE_X86_64 {
            return Err(wrong("machine", machine, "3 (i386) or 62 (x86-64)"));
        }
        let (table, size, count) =
            if is_64 { (word(28, 32), half(54), half(56)) } else { (word(28, 32), half(42), half(44)) };
        let mut elf = Self { file, is_64, machine, entry: word(24, 24), headers: Vec::new() };
        elf.headers = elf.program_headers(table, size, count)?;
        Ok(Some(elf))
    }

    fn program_headers(&self, table: u64, size: u16, count: u16) -> Result<Vec<ProgramHeader>, BootError> {
        if count > 0 && size < if self.is_64 { 56 } else { 32 } {
            return Err(BootError::Malformed {
                what: "the size of an ELF program header",
                value: size.into(),
            });
        }
        let file_size = self.file.len() as u64;
        let needed = table.saturating_add(u64::from(size) * u64::from(count));
        if needed > file_size {
            return Err(BootError::Truncated {
                what: "the ELF program header table",
                needed,
                size: file_size,
            });
        }
        let mut headers = Vec::with_capacity(count.into());
        for index in 0..u64::from(count) {
            let header = self.program_header(table + index * u64::from(size));
            let end = header.offset.saturating_add(header.filesz);
            if matches!(header.kind, SEGMENT_LOAD | SEGMENT_NOTE) && end > file_size {
                return Err(BootError::Truncated { what: "an ELF segment", needed: end, size: file_size });
            }
            if header.kind == SEGMENT_LOAD && header.filesz > header.memsz {
                return Err(BootError::Malformed {
                    what: "the file size of an ELF segment, larger than its memory size,",
                    value: header.filesz,
                });
            }
            headers.push(header);
        }
        Ok(headers)
    }

    fn program_header(&self, at: u64) -> ProgramHeader {
        let word = |offset: u64| u32_at(self.file, at + offset).unwrap_or(0);
        let long = |offset: u64| u64_at(self.file, at + offset).unwrap_or(0);
        if self.is_64 {
            ProgramHeader {
                kind: word(0),
                offset: long(8),
                vaddr: long(16),
                paddr: long(24),
                filesz: long(32),
                memsz: long(40),
                align: long(48),
            }
        } else {
            ProgramHeader {
                kind: word(0),
                offset: word(4).into(),
                vaddr: word(8).into(),
                paddr: word(12).into(),
                filesz: word(16).into(),
                memsz: word(20).into(),
                align: word(28).into(),
            }
        }
    }

    /// The segments to be loaded that are not empty.
    pub(super) fn loads(&self) -> impl Iterator<Item = &ProgramHeader> {
        self.headers.iter().filter(|header| header.kind == SEGMENT_LOAD && header.memsz > 0)
    }

    /// Places every segment at its physical address; `file` is what was parsed.
    pub(super) fn place(&self, placer: &mut Placer<'a>, file: &'a [u8]) -> Result<(), BootError> {
        for header in self.loads() {
            let bytes = Bytes::Borrowed(&file[Self::file_range(header)]);
            placer.fixed(Segment { what: KERNEL, address: header.paddr, bytes, size: header.memsz })?;
        }
        Ok(())
    }

    /// Whether a segment covers the physical address `address`.
    pub(super) fn is_loaded(&self, address: u64) -> bool {
        self.loads().any(|header| contains(header.paddr, header, address))
    }

    /// Where `header`'s bytes lie in the file; checked when the headers were read.
    pub(super) fn file_range(header: &ProgramHeader) -> std::ops::Range<usize> {
        header.offset as usize..(header.offset + header.filesz) as usize
    }

    /// The entry point as a physical address if it is one: a Linux kernel's linker script makes it so.
    pub(super) fn physical_entry(&self) -> Option<u64> {
        self.is_loaded(self.entry).then_some(self.entry)
    }

    /// The entry point as a virtual address, translated by the segment that holds it.
    pub(super) fn translated_entry(&self) -> Option<u64> {
        let header = self.loads().find(|header| contains(header.vaddr, header, self.entry))?;
        header.paddr.checked_add(self.entry - header.vaddr)
    }

    /// The descriptor of the first note with this owner and, if one is given, this type.
    pub(super) fn note(&self, owner: &[u8], kind: Option<u32>) -> Option<&'a [u8]> {
        // Each header may name the whole file: no more is read than a file has whose notes do not overlap.
        let mut left = self.file.len() as u64;
        self.headers
            .iter()
            .filter(|header| header.kind == SEGMENT_NOTE)
            .take_while(|header| {
                let fits = header.filesz <= left;
                left = left.saturating_sub(header.filesz);
                fits
            })
            .find_map(|header| find_note(self.file.get(Self::file_range(header))?, header.align, owner, kind))
    }

    /// Whether this is a Linux kernel, by the notes that every build of one leaves (since 4.18).
    pub(super) fn is_linux(&self) -> bool {
        self.note(b"Linux", None).is_some()
    }
}

fn wrong(what: &'static str, value: impl Into<u64>, wanted: &'static str) -> BootError {
    BootError::WrongElf { what, value: value.into(), wanted }
}

fn contains(start: u64, header: &ProgramHeader, address: u64) -> bool {
    address >= start && address - start < header.memsz
}

/// Walks the notes of one segment. The name and the descriptor are each padded to 4 bytes, or to 8 in segments that ask
/// for such alignment.
fn find_note<'a>(mut notes: &'a [u8], align: u64, owner: &[u8], kind: Option<u32>) -> Option<&'a [u8]> {
    let align = if align == 8 { 8 } else { 4 };
    while notes.len() >= 12 {
        let name_size = u32_at(notes, 0)? as usize;
        let desc_size = u32_at(notes, 4)? as usize;
        let name_end = 12usize.checked_add(name_size)?;
        let name = notes.get(12..name_end)?;
        let desc_start = name_end.checked_next_multiple_of(align)?;
        let desc_end = desc_start.checked_add(desc_size)?;
        let desc = notes.get(desc_start..desc_end)?;
        let of_kind = kind.is_none_or(|kind| u32_at(notes, 8) == Some(kind));
        if of_kind && name.strip_suffix(b"\0").unwrap_or(name) == owner {
            return Some(desc);
        }
        notes = notes.get(desc_end.checked_next_multiple_of(align)?..)?;
    }
    None
}
