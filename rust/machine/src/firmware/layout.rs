//! Addresses, ports and interrupt lines of the PC board.
//!
//! The board that wires the chips and the tables that describe them to the operating system both take them from here, so
//! that they cannot disagree.

use std::ops::Range;

/// The size of a small page.
pub const PAGE: u64 = 0x1000;

// Memory.

/// The interrupt vectors and the data area of the BIOS below this are left alone by the loaders.
pub const BIOS_DATA: u64 = 0x400;
/// The extended BIOS data area: the last KiB of base memory.
pub const EBDA: u64 = 0x9_FC00;
/// Size of the extended BIOS data area in KiB.
pub const EBDA_KIB: u8 = 1;
/// Base memory in KiB, as the word at 0x413 and INT 12h give it.
pub const BASE_MEMORY_KIB: u16 = 639;
/// The video memory, where base memory ends.
pub const VGA: u64 = 0xA_0000;
/// Option ROMs.
pub const OPTION_ROMS: u64 = 0xC_0000;
/// The BIOS segment, where operating systems look for the RSDP and the SMBIOS entry points.
pub const BIOS: u64 = 0xF_0000;
/// The first address above the first MiB.
pub const HIGH_MEMORY: u64 = 0x10_0000;
/// RAM goes up to here; what is left continues at 4 GiB.
pub const LOW_RAM_LIMIT: u64 = 0xC000_0000;
/// Where the 32-bit address space ends.
pub const FOUR_GIB: u64 = 0x1_0000_0000;

/// Room for the ACPI tables below the top of low RAM.
pub const ACPI_TABLES_SIZE: u64 = 0x1_0000;
/// Room for the FACS, the last page of low RAM.
pub const ACPI_NVS_SIZE: u64 = PAGE;

/// Registers of the I/O APIC.
pub const IO_APIC: Range<u64> = 0xFEC0_0000..0xFEC0_1000;
/// Registers of the high precision event timer.
pub const HPET: Range<u64> = 0xFED0_0000..0xFED0_0400;
/// Registers of the local APIC.
pub const LOCAL_APIC: Range<u64> = 0xFEE0_0000..0xFEE0_1000;
/// The firmware's ROM below 4 GiB, with the reset vector.
pub const FIRMWARE_ROM: Range<u64> = 0xFFFC_0000..0x1_0000_0000;
