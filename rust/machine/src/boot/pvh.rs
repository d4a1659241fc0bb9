//! Starts an ELF kernel at its PVH entry (the "HVM direct boot" ABI of xen/include/public/arch-x86/hvm/start_info.h):
//! 32-bit protected mode, paging off, EBX pointing to a structure with modules, command line, ACPI root and memory map.

use super::elf::Elf;
use super::entry::{self, RBX};
use super::image::BootImage;
use super::place::{Placer, Record};
use super::{BootError, BootRequest, Protocol};

/// The note that holds the physical address of the 32-bit entry.
const NOTE_OWNER: &[u8] = b"Xen";
const NOTE_PHYS32_ENTRY: u32 = 18;

const START_MAGIC: u32 = 0x336E_C578;
const START_VERSION: u32 = 1;

/// The longest command line: what Linux keeps.
const COMMAND_LINE_LIMIT: u64 = 2047;
/// Modules end below these, as the initrd of Linux must.
const CEILING_64: u64 = 0x8000_0000;
const CEILING_32: u64 = 0x3800_0000;

/// The entry address that the note gives, if there is one.
pub(super) fn entry_point(elf: &Elf<'_>) -> Option<u64> {
    let address = elf.note(NOTE_OWNER, Some(NOTE_PHYS32_ENTRY))?;
    // The size of the field is that of a word of the kernel; the address has 32 bits in any case.
    let low = address.first_chunk::<4>()?;
    Some(u32::from_le_bytes(*low).into())
}

/// Places the kernel and everything that the start structure names.
pub(super) fn load<'a>(
    request: &BootRequest<'a>,
    elf: &Elf<'a>,
    rip: u64,
) -> Result<BootImage<'a>, BootError> {
    let mut placer = Placer::new(request.memory);
    elf.place(&mut placer, request.kernel)?;
    if !elf.is_loaded(rip) {
        return Err(BootError::Malformed { what: "the PVH entry point, in no loaded segment,", value: rip });
    }
    let ceiling = if elf.is_64 { CEILING_64 } else { CEILING_32 };
    let command_line = placer.low("the command line", request.command_line(COMMAND_LINE_LIMIT)?, 1)?;
    let mut modules = Vec::new();
    for module in request.all_modules() {
        let line = placer.low("a module's command line", module.command_line()?, 1)?;
        let address = placer.high("a module", module.bytes, ceiling)?;
        modules.push([address, module.bytes.len() as u64, line, 0]);
    }
    let module_list = low_words(&mut placer, "the module list", modules.as_flattened())?;
    let regions = request.memory.regions();
    let map: Vec<u64> = regions
        .iter()
        .flat_map(|region| [region.start, region.size, u64::from(region.kind as u32)])
        .collect();
    let map = low_words(&mut placer, "the memory map", &map)?;
    let mut start = Record::default();
    start.u32(START_MAGIC).u32(START_VERSION).u32(0).u32(modules.len() as u32);
    start.u64(module_list).u64(command_line).u64(request.rsdp).u64(map).u32(regions.len() as u32).u32(0);
    let start = placer.low("the start information", start.into_bytes(), 8)?;
    let mut entry = entry::protected32(&mut placer, rip)?;
    entry.regs[RBX] = start;
    Ok(BootImage { segments: placer.into_segments(), entry, protocol: Protocol::Pvh, decompressed: false })
}

/// Places an array of 64-bit words; an empty one has no address.
fn low_words(placer: &mut Placer<'_>, what: &'static str, words: &[u64]) -> Result<u64, BootError> {
    if words.is_empty() {
        return Ok(0);
    }
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    placer.low(what, bytes, 8)
}
