//! Starts Linux by its 32- and 64-bit boot protocols (Documentation/arch/x86/boot.rst).
//!
//! A bzImage is a decompressor with the kernel, an ELF file, compressed inside. The kernel is started directly, at the
//! physical address it was linked for, when everything that its decompressor would have done is known to come to the
//! same:
//!
//! - no relocation is needed, since randomising the load address is optional and off when the loader does not set
//!   KASLR_FLAG; the guest runs as with `nokaslr`, and who wants it randomised lets the guest decompress;
//! - five-level paging is chosen by the decompressor alone and stays off;
//! - the boot parameters are made here and need no sanitising;
//! - the kernel clears its own BSS;
//! - the entry conditions (flat segments, identity map, RSI) are the same at both entries.
//!
//! Protocols older than 2.12 predate the 64-bit entry's documentation: those kernels decompress in the guest.

use std::sync::Arc;

use super::bzimage::{self, BzImage, DEFAULT_LOAD_ADDRESS, field};
use super::decompress::{self, DecompressError};
use super::elf::{Elf, MACHINE_X86_64};
use super::entry::{self, RSI};
use super::image::{BootImage, Bytes, Entry, Segment};
use super::place::Placer;
use super::{BootError, BootRequest, Decompression, MemoryMap, Protocol};
use crate::firmware::layout;

/// `type_of_loader` of a boot loader without an assigned number.
const LOADER_UNASSIGNED: u8 = 0xFF;
/// The longest command line of a kernel without a setup header (COMMAND_LINE_SIZE of x86, less the NUL).
const ELF_COMMAND_LINE_LIMIT: u64 = 2047;
/// Where the initrd of a 32-bit kernel must end, since it maps no more memory early.
const INITRD_CEILING_32: u64 = 0x3800_0000;
/// The same for a 64-bit kernel without a setup header.
const INITRD_CEILING_64: u64 = 0x8000_0000;
/// The earliest boot protocol whose kernels are started directly.
const DIRECT_SINCE: u16 = 0x020C;
/// The 64-bit entry point of the decompressor lies this far into it.
const ENTRY_64: u64 = 0x200;
const KERNEL: &str = "the kernel";

/// What differs between the kinds of kernel once they are in place.
struct Start<'h> {
    protocol: Protocol,
    rip: u64,
    /// The file's setup header, from 1F1h, if it has one.
    header: &'h [u8],
    /// The address that goes into `code32_start`, if any.
    code32_start: Option<u64>,
    command_line_limit: u64,
    initrd_ceiling: u64,
    decompressed: bool,
}

/// Boots a bzImage, decompressing it here if that is correct and wanted.
pub(super) fn load_bzimage<'a>(
    request: &BootRequest<'a>,
    image: &BzImage<'a>,
) -> Result<BootImage<'a>, BootError> {
    if request.protocol == Protocol::Linux64 && !image.is_64() {
        let reason = "the bzImage has no 64-bit entry; use linux32";
        return Err(BootError::Unsuitable { protocol: Protocol::Linux64, reason });
    }
    let mut placer = Placer::new(request.memory);
    if let Some(buffer) = host_decompressed(request, image)? {
        if let Some(start) = direct_start(&mut placer, request, image, buffer)? {
            return finish(placer, request, start);
        }
        placer = Placer::new(request.memory);
    }
    let start = decompressor_start(&mut placer, request, image)?;
    finish(placer, request, start)
}

/// The kernel inside, if it may be decompressed here and the compression is known.
fn host_decompressed(request: &BootRequest<'_>, image: &BzImage<'_>) -> Result<Option<Vec<u8>>, BootError> {
    let payload = image.payload()?;
    // The 32-bit entry of a 64-bit kernel exists in the decompressor alone.
    let forced = request.protocol == Protocol::Linux32 && image.is_64();
    if request.decompression == Decompression::Guest || image.version < DIRECT_SINCE || forced {
        return Ok(None);
    }
    let Some(payload) = payload else { return Ok(None) };
    match decompress::kernel(payload, request.memory.low_usable_end()) {
        Ok(buffer) => Ok(Some(buffer)),
        Err(DecompressError::UnknownFormat { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Places a decompressed kernel at its linked address, or gives `None` if it is not of the kind that may be started so.
fn direct_start<'h>(
    placer: &mut Placer<'_>,
    request: &BootRequest<'_>,
    image: &BzImage<'h>,
    buffer: Vec<u8>,
) -> Result<Option<Start<'h>>, BootError> {
    let buffer = Arc::new(buffer);
    let Some(elf) = Elf::parse(&buffer)? else { return Ok(None) };
    let lowest = elf.loads().map(|header| header.paddr).min();
    let is_64 = elf.is_64 && elf.machine == MACHINE_X86_64;
    let (Some(rip), Some(lowest)) = (elf.physical_entry(), lowest) else { return Ok(None) };
    if is_64 != image.is_64() || image.preferred_address() != Some(lowest) || lowest < layout::HIGH_MEMORY {
        return Ok(None);
    }
    if let Some(size) = image.init_size() {
        require_memory(request.memory, lowest, size)?;
    }
    for header in elf.loads() {
        let bytes = Bytes::Shared(Arc::clone(&buffer), Elf::file_range(header));
        placer.fixed(Segment { what: KERNEL, address: header.paddr, bytes, size: header.memsz })?;
    }
    Ok(Some(Start { rip, decompressed: true, code32_start: None, ..bzimage_start(image) }))
}

/// What every way of starting a bzImage shares; the addresses are filled in by the caller.
fn bzimage_start<'h>(image: &BzImage<'h>) -> Start<'h> {
    let is_64 = image.is_64();
    let ceiling = image.initrd_ceiling();
    Start {
        protocol: if is_64 { Protocol::Linux64 } else { Protocol::Linux32 },
        rip: 0,
        header: image.header(),
        code32_start: None,
        command_line_limit: image.command_line_limit(),
        initrd_ceiling: if is_64 { ceiling } else { ceiling.min(INITRD_CEILING_32) },
        decompressed: false,
    }
}

/// Places the bzImage's own decompressor and enters it.
fn decompressor_start<'a>(
    placer: &mut Placer<'a>,
    request: &BootRequest<'a>,
    image: &BzImage<'a>,
) -> Result<Start<'a>, BootError> {
    let base = Start { protocol: request.protocol, ..bzimage_start(image) };
    let protocol = match request.protocol {
        Protocol::Auto if image.is_64() => Protocol::Linux64,
        Protocol::Auto => Protocol::Linux32,
        asked => asked,
    };
    // A kernel that can be moved is loaded where it will run, so that it does not have to.
    let run = image.preferred_address().unwrap_or(DEFAULT_LOAD_ADDRESS).max(DEFAULT_LOAD_ADDRESS);
    let address = if image.is_relocatable() { run } else { DEFAULT_LOAD_ADDRESS };
    let size = image.code.len() as u64;
    placer.fixed(Segment::new(KERNEL, address, image.code))?;
    let loaded_end = address + size;
    let needed_end = image.init_size().map_or(loaded_end, |size| run.saturating_add(size));
    if needed_end > loaded_end {
        placer.claim("the kernel's working memory", loaded_end, needed_end - loaded_end)?;
    }
    let rip = if protocol == Protocol::Linux64 { address + ENTRY_64 } else { address };
    Ok(Start { protocol, rip, code32_start: Some(address), ..base })
}

fn require_memory(memory: &MemoryMap, start: u64, size: u64) -> Result<(), BootError> {
    let end = start.saturating_add(size);
    if memory.is_usable(start, end) {
        return Ok(());
    }
    Err(BootError::OutsideMemory { what: KERNEL, start, end, low_end: memory.low_end() })
}

/// Boots an uncompressed kernel (vmlinux), which has no setup header.
pub(super) fn load_elf<'a>(request: &BootRequest<'a>, elf: &Elf<'a>) -> Result<BootImage<'a>, BootError> {
    let is_64 = elf.is_64 && elf.machine == MACHINE_X86_64;
    let protocol = if is_64 { Protocol::Linux64 } else { Protocol::Linux32 };
    if request.protocol != Protocol::Auto && request.protocol != protocol {
        let reason = if is_64 { "the ELF file is a 64-bit one" } else { "the ELF file is a 32-bit one" };
        return Err(BootError::Unsuitable { protocol: request.protocol, reason });
    }
    let Some(rip) = elf.physical_entry().or_else(|| elf.translated_entry()) else {
        return Err(BootError::Malformed {
            what: "the ELF entry point, in no loaded segment,",
            value: elf.entry,
        });
    };
    let mut placer = Placer::new(request.memory);
    elf.place(&mut placer, request.kernel)?;
    let header = synthetic_header();
    let start = Start {
        protocol,
        rip,
        header: &header,
        code32_start: None,
        command_line_limit: ELF_COMMAND_LINE_LIMIT,
        initrd_ceiling: if is_64 { INITRD_CEILING_64 } else { INITRD_CEILING_32 },
        decompressed: false,
    };
    finish(placer, request, start)
}

/// The setup header of a kernel whose file has none: what a bzImage of the same kernel would say, as far as the kernel
/// itself reads it.
fn synthetic_header() -> Vec<u8> {
    let mut params = vec![0; field::END];
    put(&mut params, field::BOOT_FLAG, &bzimage::BOOT_FLAG.to_le_bytes());
    put(&mut params, field::HEADER, bzimage::MAGIC);
    put(&mut params, field::VERSION, &0x020Fu16.to_le_bytes());
    put(&mut params, field::LOADFLAGS, &[bzimage::LOADED_HIGH]);
    put(&mut params, field::KERNEL_ALIGNMENT, &0x20_0000u32.to_le_bytes());
    params.split_off(field::SETUP_SECTS)
}

/// Places the initrd, the command line and the boot parameters, and makes the processor's state.
fn finish<'a>(
    mut placer: Placer<'a>,
    request: &BootRequest<'a>,
    start: Start<'_>,
) -> Result<BootImage<'a>, BootError> {
    if !request.modules.is_empty() {
        return Err(BootError::NoModules { protocol: start.protocol });
    }
    let command_line = request.command_line(start.command_line_limit)?;
    let mut entry: Entry = if start.protocol == Protocol::Linux64 {
        entry::long64(&mut placer, start.rip)?
    } else {
        entry::protected32(&mut placer, start.rip)?
    };
    let command_line = placer.low("the command line", command_line, layout::PAGE)?;
    let initrd = match request.initrd {
        Some(initrd) if !initrd.is_empty() => {
            Some((placer.high("the initrd", initrd, start.initrd_ceiling)?, initrd.len() as u64))
        }
        _ => None,
    };
    let params = boot_params(request, &start, command_line, initrd);
    entry.regs[RSI] = placer.low("the boot parameters", params, layout::PAGE)?;
    Ok(BootImage {
        segments: placer.into_segments(),
        entry,
        protocol: start.protocol,
        decompressed: start.decompressed,
    })
}

/// Fields of the boot parameters outside the setup header (Documentation/arch/x86/zero-page.rst).
mod zero_page {
    pub(super) const SIZE: usize = 0x1000;
    pub(super) const EXT_MEM_K: usize = 0x002;
    pub(super) const ACPI_RSDP: usize = 0x070;
    pub(super) const ALT_MEM_K: usize = 0x1E0;
    pub(super) const E820_ENTRIES: usize = 0x1E8;
    pub(super) const E820_TABLE: usize = 0x2D0;
    pub(super) const E820_ENTRY_SIZE: usize = 20;
    pub(super) const E820_MAX: usize = 128;
}

/// Makes the "zero page". What it does not fill stays zero: no screen, no drives, no firmware services.
fn boot_params(
    request: &BootRequest<'_>,
    start: &Start<'_>,
    command_line: u64,
    initrd: Option<(u64, u64)>,
) -> Vec<u8> {
    let mut params = vec![0; zero_page::SIZE];
    put(&mut params, field::SETUP_SECTS, start.header);
    // What the boot loader is to write; KASLR_FLAG and the others that the decompressor or the real-mode code set stay off.
    put(&mut params, field::TYPE_OF_LOADER, &[LOADER_UNASSIGNED, bzimage::LOADED_HIGH]);
    put32(&mut params, field::CMD_LINE_PTR, command_line);
    if let Some((address, size)) = initrd {
        // Both lie below 4 GiB, so that the ext_ramdisk fields stay zero.
        put32(&mut params, field::RAMDISK_IMAGE, address);
        put32(&mut params, field::RAMDISK_SIZE, size);
    }
    if let Some(address) = start.code32_start {
        put32(&mut params, field::CODE32_START, address);
    }
    put(&mut params, zero_page::ACPI_RSDP, &request.rsdp.to_le_bytes());
    put_memory(&mut params, request.memory);
    params
}

/// The memory map, and the sizes that kernels from before it read.
fn put_memory(params: &mut [u8], memory: &MemoryMap) {
    let above_one_mib = (memory.low_usable_end() - layout::HIGH_MEMORY) >> 10;
    put(params, zero_page::EXT_MEM_K, &(above_one_mib.min(0xFC00) as u16).to_le_bytes());
    put32(params, zero_page::ALT_MEM_K, above_one_mib);
    let regions = memory.regions().iter().take(zero_page::E820_MAX);
    params[zero_page::E820_ENTRIES] = regions.len() as u8;
    for (index, region) in regions.enumerate() {
        let at = zero_page::E820_TABLE + index * zero_page::E820_ENTRY_SIZE;
        put(params, at, &region.start.to_le_bytes());
        put(params, at + 8, &region.size.to_le_bytes());
        put(params, at + 16, &(region.kind as u32).to_le_bytes());
    }
}

/// Writes at fixed offsets of the boot parameters, which are large enough for every field.
fn put(params: &mut [u8], at: usize, bytes: &[u8]) {
    params[at..at + bytes.len()].copy_from_slice(bytes);
}

/// Writes the low 32 bits of an address or size that is below 4 GiB.
fn put32(params: &mut [u8], at: usize, value: u64) {
    put(params, at, &(value as u32).to_le_bytes());
}
