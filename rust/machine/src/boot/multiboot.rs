//! Starts kernels with a multiboot header (Multiboot Specification 0.6.96): ELF files, and flat images whose header says
//! where they go. 32-bit protected mode, paging off, EAX holding the loader's magic, EBX the information structure.

use super::elf::{Elf, u32_at};
use super::entry::{self, RAX, RBX};
use super::image::{BootImage, Bytes, Segment};
use super::place::{Placer, Record};
use super::{BootError, BootRequest, Protocol};
use crate::firmware::layout;

const HEADER_MAGIC: u32 = 0x1BAD_B002;
const LOADER_MAGIC: u64 = 0x2BAD_B002;
/// The header lies in this much of the file.
const SEARCH: usize = 8192;

/// Header flags (3.1.2). Modules are page-aligned and the memory map is given in any case.
const PAGE_ALIGNED_MODULES: u32 = 1 << 0;
const MEMORY_INFORMATION: u32 = 1 << 1;
/// The header's own load addresses are to be used instead of the file's.
const LOAD_ADDRESSES: u32 = 1 << 16;
/// A kernel must not be started if it sets one of these that the loader does not know.
const MANDATORY: u32 = 0xFFFF;

/// Flags of the information structure (3.3): which of its fields are valid.
const INFO_MEMORY: u32 = 1 << 0;
const INFO_COMMAND_LINE: u32 = 1 << 2;
const INFO_MODULES: u32 = 1 << 3;
const INFO_MEMORY_MAP: u32 = 1 << 6;
const INFO_LOADER_NAME: u32 = 1 << 9;
const INFO_SIZE: usize = 116;

const LOADER_NAME: &[u8] = b"Multiboot loader\0";
/// The first word of the command line: loaders put the image's name there, and kernels skip it.
const IMAGE_NAME: &[u8] = b"kernel";
/// There is no limit but the space: what is generous and fits.
const COMMAND_LINE_LIMIT: u64 = 0x3FFF;
const KERNEL: &str = "the kernel";

/// A header that was found: where in the file, and what it asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    offset: u64,
    flags: u32,
}

/// Looks for a header: aligned to 4 bytes, and its three words summing to zero.
pub(super) fn find(file: &[u8]) -> Option<Header> {
    let start = &file[..file.len().min(SEARCH)];
    (0..start.len() as u64).step_by(4).find_map(|offset| {
        let word = |index: u64| u32_at(start, offset + 4 * index);
        let flags = word(1)?;
        let sum = HEADER_MAGIC.wrapping_add(flags).wrapping_add(word(2)?);
        (word(0)? == HEADER_MAGIC && sum == 0).then_some(Header { offset, flags })
    })
}

/// Places the kernel, the modules and the information structure.
pub(super) fn load<'a>(request: &BootRequest<'a>, header: Header) -> Result<BootImage<'a>, BootError> {
    let unknown = header.flags & MANDATORY & !(PAGE_ALIGNED_MODULES | MEMORY_INFORMATION);
    if unknown != 0 {
        return Err(BootError::MultibootFeatures { flags: unknown });
    }
    let mut placer = Placer::new(request.memory);
    let rip = if header.flags & LOAD_ADDRESSES != 0 {
        place_flat(&mut placer, request.kernel, header)?
    } else {
        place_elf(&mut placer, request.kernel)?
    };
    let info = place_information(&mut placer, request)?;
    let mut entry = entry::protected32(&mut placer, rip)?;
    entry.regs[RAX] = LOADER_MAGIC;
    entry.regs[RBX] = info;
    Ok(BootImage {
        segments: placer.into_segments(),
        entry,
        protocol: Protocol::Multiboot,
        decompressed: false,
    })
}

fn place_elf<'a>(placer: &mut Placer<'a>, file: &'a [u8]) -> Result<u64, BootError> {
    let Some(elf) = Elf::parse(file)? else {
        let reason = "the file is not ELF, and its multiboot header has no load addresses";
        return Err(BootError::Unsuitable { protocol: Protocol::Multiboot, reason });
    };
    elf.place(placer, file)?;
    let rip = elf.translated_entry().or_else(|| elf.physical_entry());
    rip.ok_or(BootError::Malformed { what: "the ELF entry point, in no loaded segment,", value: elf.entry })
}

/// Places an image as its header's address fields say (3.1.3), and gives the entry point.
fn place_flat<'a>(placer: &mut Placer<'a>, file: &'a [u8], header: Header) -> Result<u64, BootError> {
    let size = file.len() as u64;
    let field = |index: u64| {
        let needed = header.offset + 12 + 4 * index + 4;
        let value = u32_at(file, needed - 4).map(u64::from);
        value.ok_or(BootError::Truncated { what: "the multiboot header", needed, size })
    };
    let (header_address, load, load_end, bss_end, rip) =
        (field(0)?, field(1)?, field(2)?, field(3)?, field(4)?);
    let malformed = |what, value| BootError::Malformed { what, value };
    let start = header_address
        .checked_sub(load)
        .and_then(|before| header.offset.checked_sub(before))
        .ok_or(malformed("the multiboot load address, before the file's start or after the header,", load))?;
    // An end of zero means all of the file, and no BSS.
    let length = match load_end {
        0 => size - start,
        end => end.checked_sub(load).ok_or(malformed("the multiboot load end, before its start,", end))?,
    };
    let end = start + length;
    if end > size {
        return Err(BootError::Truncated { what: "the multiboot image", needed: end, size });
    }
    let memory_size = match bss_end {
        0 => length,
        end => end.saturating_sub(load).max(length),
    };
    let bytes = Bytes::Borrowed(&file[start as usize..end as usize]);
    placer.fixed(Segment { what: KERNEL, address: load, bytes, size: memory_size })?;
    if rip < load || rip - load >= memory_size {
        return Err(malformed("the multiboot entry point, outside the image,", rip));
    }
    Ok(rip)
}

/// Places the information structure and what it points to.
fn place_information<'a>(placer: &mut Placer<'a>, request: &BootRequest<'a>) -> Result<u64, BootError> {
    let command_line = [IMAGE_NAME, b" ", &request.command_line(COMMAND_LINE_LIMIT)?].concat();
    let command_line = placer.low("the command line", command_line, 1)?;
    let name = placer.low("the loader's name", LOADER_NAME, 1)?;
    let mut modules = Record::default();
    let mut count = 0;
    for module in request.all_modules() {
        let line = placer.low("a module's command line", module.command_line()?, 1)?;
        let start = placer.above("a module", module.bytes)?;
        modules.u32(start as u32).u32((start + module.bytes.len() as u64) as u32).u32(line as u32).u32(0);
        count += 1;
    }
    let modules = placer.low("the module list", modules.into_bytes(), 4)?;
    let map = memory_map(request);
    let map_size = map.len() as u32;
    let map = placer.low("the memory map", map, 4)?;
    let mut info = Record::default();
    info.u32(INFO_MEMORY | INFO_COMMAND_LINE | INFO_MODULES | INFO_MEMORY_MAP | INFO_LOADER_NAME);
    // Base memory, and the memory above 1 MiB up to its first hole, in KiB.
    info.u32(layout::BASE_MEMORY_KIB.into());
    info.u32(((request.memory.low_usable_end() - layout::HIGH_MEMORY) >> 10) as u32);
    // No boot device; command line; modules; no symbols; memory map; no drives and no configuration table; name.
    info.u32(0).u32(command_line as u32).u32(count).u32(modules as u32);
    info.u64(0).u64(0).u32(map_size).u32(map as u32).u32(0).u32(0).u32(0).u32(name as u32);
    let mut info = info.into_bytes();
    info.resize(INFO_SIZE, 0);
    placer.low("the multiboot information", info, 4)
}

/// The map: each entry after its own size, which does not count itself.
fn memory_map(request: &BootRequest<'_>) -> Vec<u8> {
    let mut map = Record::default();
    for region in request.memory.regions() {
        map.u32(20).u64(region.start).u64(region.size).u32(region.kind as u32);
    }
    map.into_bytes()
}
