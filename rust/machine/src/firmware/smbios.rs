//! SMBIOS structures (DSP0134, version 2.8): what dmidecode and the kernel's DMI quirks read.

use super::{FirmwareConfig, bios, checksum, layout};
use crate::boot::Segment;

const VERSION: (u8, u8) = (2, 8);
/// What a string says that would name something on a real board.
const UNKNOWN: &str = "Not Specified";
const GENERIC: &str = "Generic";
const VERSION_STRING: &str = "1.0";
/// Handle of a structure that does not exist, and of an error record that there cannot be.
const NO_HANDLE: u16 = 0xFFFF;
const NO_ERROR_RECORD: u16 = 0xFFFE;

/// Handles of the structures that others refer to.
const CHASSIS: u16 = 0x0300;
const MEMORY_ARRAY: u16 = 0x1000;

/// Characteristics of the BIOS (7.1.1) and their first extension byte (7.1.2).
const BIOS_PCI: u64 = 1 << 7;
const BIOS_SHADOWED: u64 = 1 << 12;
const EXTENSION_ACPI: u8 = 1 << 0;

/// One structure: a header, a formatted area, and the strings that fields refer to by number.
struct Structure {
    formatted: Vec<u8>,
    strings: Vec<u8>,
    count: u8,
}

impl Structure {
    fn new(kind: u8, handle: u16) -> Self {
        let mut structure = Self { formatted: vec![kind, 0], strings: Vec::new(), count: 0 };
        structure.u16(handle);
        structure
    }

    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.formatted.extend_from_slice(bytes);
        self
    }

    fn u8(&mut self, value: u8) -> &mut Self {
        self.bytes(&[value])
    }

    fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    /// A string field: its number is stored, its text follows the formatted area. NULs, which would end the set, are left
    /// out, and an empty text is number zero, "no string".
    fn string(&mut self, text: &str) -> &mut Self {
        let text: Vec<u8> = text.trim().bytes().filter(|&byte| byte != 0).collect();
        if text.is_empty() {
            return self.u8(0);
        }
        self.strings.extend_from_slice(&text);
        self.strings.push(0);
        self.count += 1;
        self.u8(self.count)
    }

    fn finish(mut self) -> Vec<u8> {
        self.formatted[1] = self.formatted.len() as u8;
        self.formatted.append(&mut self.strings);
        // The set ends with an empty string, and is two zeros if there is none at all.
        self.formatted.extend_from_slice(if self.count == 0 { &[0, 0] } else { &[0] });
        self.formatted
    }
}

pub(super) fn build(config: &FirmwareConfig<'_>) -> Vec<Segment<'static>> {
    let mut structures =
        vec![bios_information(), system(config.uuid), base_board(), chassis(), processor(config)];
    structures.extend([memory_array(config), memory_device(config)]);
    structures
        .extend(config.memory.ram_ranges().enumerate().map(|(index, range)| mapped_address(index, &range)));
    structures.extend([boot_status(), Structure::new(127, 0x7F00)]);
    let structures: Vec<Vec<u8>> = structures.into_iter().map(Structure::finish).collect();
    let entry = entry_point(&structures);
    vec![
        Segment::new("the SMBIOS entry point", layout::SMBIOS_ENTRY, entry),
        Segment::new("the SMBIOS structures", layout::SMBIOS_TABLE, structures.concat()),
    ]
}

/// The 32-bit entry point (5.2.1), with its older part, which has a checksum of its own.
fn entry_point(structures: &[Vec<u8>]) -> Vec<u8> {
    let total: usize = structures.iter().map(Vec::len).sum();
    let largest = structures.iter().map(Vec::len).max().unwrap_or(0);
    let mut entry = Vec::with_capacity(0x1F);
    entry.extend_from_slice(b"_SM_\0\x1F");
    entry.extend_from_slice(&[VERSION.0, VERSION.1]);
    entry.extend_from_slice(&(largest as u16).to_le_bytes());
    entry.extend_from_slice(&[0; 6]);
    entry.extend_from_slice(b"_DMI_\0");
    entry.extend_from_slice(&(total as u16).to_le_bytes());
    entry.extend_from_slice(&(layout::SMBIOS_TABLE as u32).to_le_bytes());
    entry.extend_from_slice(&(structures.len() as u16).to_le_bytes());
    entry.push((VERSION.0 << 4) | VERSION.1);
    entry[0x15] = checksum(&entry[0x10..]);
    entry[4] = checksum(&entry);
    entry
}

/// Type 0. The second extension byte, whose bit 4 would say that this is a virtual machine, is zero.
fn bios_information() -> Structure {
    let mut structure = Structure::new(0, 0x0000);
    structure.string(GENERIC).string(VERSION_STRING).u16((layout::BIOS >> 4) as u16);
    structure.string(&date_with_century()).u8(rom_size());
    structure.u64(BIOS_PCI | BIOS_SHADOWED).u8(EXTENSION_ACPI).u8(0);
    // Release of the BIOS and of the embedded controller, which there is none of.
    structure.bytes(&[1, 0, 0xFF, 0xFF]);
    structure
}

/// mm/dd/20yy, as the structure wants it.
fn date_with_century() -> String {
    let (day, year) = bios::DATE.split_at(6);
    format!("{day}20{year}")
}

/// Size of the ROM in 64 KiB, less one.
fn rom_size() -> u8 {
    ((layout::FIRMWARE_ROM.end - layout::FIRMWARE_ROM.start) / 0x1_0000 - 1) as u8
}

/// Type 1. Since version 2.6 the first three fields of the UUID are little-endian (7.2.1).
fn system(uuid: [u8; 16]) -> Structure {
    const POWER_SWITCH: u8 = 6;
    let mut uuid = uuid;
    uuid[0..4].reverse();
    uuid[4..6].reverse();
    uuid[6..8].reverse();
    let mut structure = Structure::new(1, 0x0100);
    structure.string(GENERIC).string("Desktop PC").string(VERSION_STRING).string(UNKNOWN).bytes(&uuid);
    structure.u8(POWER_SWITCH).string(UNKNOWN).string("Desktop");
    structure
}

/// Type 2.
fn base_board() -> Structure {
    const HOSTING_AND_REPLACEABLE: u8 = 0x09;
    const MOTHERBOARD: u8 = 0x0A;
    let mut structure = Structure::new(2, 0x0200);
    structure.string(GENERIC).string("Mainboard").string(VERSION_STRING).string(UNKNOWN).string(UNKNOWN);
    structure.u8(HOSTING_AND_REPLACEABLE).string(UNKNOWN).u16(CHASSIS).u8(MOTHERBOARD).u8(0);
    structure
}

/// Type 3.
fn chassis() -> Structure {
    const DESKTOP: u8 = 3;
    const SAFE: u8 = 3;
    const NO_SECURITY: u8 = 3;
    let mut structure = Structure::new(3, CHASSIS);
    structure.string(GENERIC).u8(DESKTOP).string(VERSION_STRING).string(UNKNOWN).string(UNKNOWN);
    // Boot-up, power supply and thermal state.
    structure.bytes(&[SAFE, SAFE, SAFE, NO_SECURITY]);
    // OEM word, height, power cords, contained elements and the length of their records.
    structure.u32(0).bytes(&[0, 1, 0, 0]).string(UNKNOWN);
    structure
}

/// Type 4: one socket with every processor as a core of it.
fn processor(config: &FirmwareConfig<'_>) -> Structure {
    const CENTRAL_PROCESSOR: u8 = 3;
    const FAMILY_OTHER: u8 = 1;
    const POPULATED_ENABLED: u8 = 0x41;
    const UPGRADE_OTHER: u8 = 1;
    const CAPABLE_OF_64_BITS: u16 = 1 << 2;
    let identity = &config.processor;
    let mut structure = Structure::new(4, 0x0400);
    structure.string("CPU 0").u8(CENTRAL_PROCESSOR).u8(FAMILY_OTHER).string(identity.vendor);
    structure.u32(identity.signature).u32(identity.features).string(identity.brand);
    // Voltage and external clock unknown; greatest and present speed.
    structure.u8(0).u16(0).u16(identity.megahertz).u16(identity.megahertz);
    structure.u8(POPULATED_ENABLED).u8(UPGRADE_OTHER).u16(NO_HANDLE).u16(NO_HANDLE).u16(NO_HANDLE);
    structure.string(UNKNOWN).string(UNKNOWN).string(UNKNOWN);
    structure.bytes(&[config.processors, config.processors, config.processors]);
    structure.u16(if identity.is_64 { CAPABLE_OF_64_BITS } else { 0 }).u16(FAMILY_OTHER.into());
    structure
}

fn mebibytes(config: &FirmwareConfig<'_>) -> u64 {
    config.memory.ram().div_ceil(1 << 20)
}

/// Type 16.
fn memory_array(config: &FirmwareConfig<'_>) -> Structure {
    const SYSTEM_BOARD: u8 = 3;
    const SYSTEM_MEMORY: u8 = 3;
    const NO_CORRECTION: u8 = 3;
    /// The capacity is in the extended field, in bytes.
    const SEE_EXTENDED: u32 = 0x8000_0000;
    let ram = config.memory.ram();
    let mut structure = Structure::new(16, MEMORY_ARRAY);
    structure.u8(SYSTEM_BOARD).u8(SYSTEM_MEMORY).u8(NO_CORRECTION);
    match u32::try_from(ram >> 10) {
        Ok(kibibytes) if kibibytes < SEE_EXTENDED => {
            structure.u32(kibibytes).u16(NO_ERROR_RECORD).u16(1).u64(0)
        }
        _ => structure.u32(SEE_EXTENDED).u16(NO_ERROR_RECORD).u16(1).u64(ram),
    };
    structure
}

/// Type 17: one module with all of the memory.
fn memory_device(config: &FirmwareConfig<'_>) -> Structure {
    const DIMM: u8 = 9;
    const DDR4: u8 = 0x1A;
    const SYNCHRONOUS: u16 = 1 << 7;
    /// The size is in the extended field, in MiB.
    const SEE_EXTENDED: u16 = 0x7FFF;
    let size = mebibytes(config);
    let short = if size < u64::from(SEE_EXTENDED) { size as u16 } else { SEE_EXTENDED };
    let extended = if short == SEE_EXTENDED { size as u32 } else { 0 };
    let mut structure = Structure::new(17, 0x1100);
    structure.u16(MEMORY_ARRAY).u16(NO_ERROR_RECORD).u16(64).u16(64).u16(short).u8(DIMM).u8(0);
    structure.string("DIMM 0").string("BANK 0").u8(DDR4).u16(SYNCHRONOUS);
    // Speed unknown, then manufacturer, serial number, asset tag, part number and rank.
    structure.u16(0).string(UNKNOWN).string(UNKNOWN).string(UNKNOWN).string(UNKNOWN).u8(0);
    // Configured speed and the three voltages: unknown.
    structure.u32(extended).u16(0).u16(0).u16(0).u16(0);
    structure
}

/// Type 19: where a part of the memory appears, in KiB, or in bytes when the end needs more than 32 bits.
fn mapped_address(index: usize, range: &std::ops::Range<u64>) -> Structure {
    const SEE_EXTENDED: u32 = u32::MAX;
    let mut structure = Structure::new(19, 0x1300 + index as u16);
    let last = range.end - 1;
    match u32::try_from(last >> 10) {
        Ok(last) if last != SEE_EXTENDED => {
            structure.u32((range.start >> 10) as u32).u32(last).u16(MEMORY_ARRAY).u8(1).u64(0).u64(0)
        }
        _ => structure.u32(SEE_EXTENDED).u32(SEE_EXTENDED).u16(MEMORY_ARRAY).u8(1).u64(range.start).u64(last),
    };
    structure
}

/// Type 32: no errors.
fn boot_status() -> Structure {
    let mut structure = Structure::new(32, 0x2000);
    structure.bytes(&[0; 6]).u8(0);
    structure
}

#[cfg(test)]
mod tests {
    use crate::boot::MemoryMap;
    use crate::firmware::{self, checksum, layout, tests};

    struct Found {
        kind: u8,
        formatted: Vec<u8>,
        strings: Vec<String>,
    }

    /// Walks the structures as the specification tells a reader to.
    fn walk(memory: &[u8]) -> Vec<Found> {
        let entry = &memory[layout::SMBIOS_ENTRY as usize..][..0x1F];
        assert_eq!((&entry[..4], &entry[0x10..0x15]), (&b"_SM_"[..], &b"_DMI_"[..]));
        assert_eq!(checksum(entry), 0);
        assert_eq!(checksum(&entry[0x10..]), 0);
        let length = usize::from(u16::from_le_bytes([entry[0x16], entry[0x17]]));
        let count = u16::from_le_bytes([entry[0x1C], entry[0x1D]]);
        let mut rest = &memory[layout::SMBIOS_TABLE as usize..][..length];
        let mut found = Vec::new();
        for _ in 0..count {
            let (formatted, after) = rest.split_at(rest[1].into());
            let end = after.windows(2).position(|pair| pair == [0, 0]).unwrap();
            let strings = String::from_utf8(after[..end].to_vec()).unwrap();
            let strings = strings.split('\0').filter(|s| !s.is_empty()).map(str::to_owned).collect();
            found.push(Found { kind: formatted[0], formatted: formatted.to_vec(), strings });
            rest = &after[end + 2..];
        }
        assert!(rest.is_empty());
        found
    }

    fn structures(ram: u64) -> Vec<Found> {
        let map = MemoryMap::new(ram).unwrap();
        let mut firmware = firmware::build(&tests::config(&map, 2));
        firmware.segments.retain(|segment| segment.address < layout::HIGH_MEMORY);
        walk(&tests::image(&firmware, 1 << 20))
    }

    #[test]
    fn all_types_are_there_with_the_lengths_of_their_version() {
        let found = structures(5 << 30);
        let lengths: Vec<(u8, usize)> = found.iter().map(|f| (f.kind, f.formatted.len())).collect();
        let expected = [
            (0, 0x18),
            (1, 0x1B),
            (2, 0x0F),
            (3, 0x16),
            (4, 0x2A),
            (16, 0x17),
            (17, 0x28),
            (19, 0x1F),
            (19, 0x1F),
            (32, 0x0B),
            (127, 4),
        ];
        assert_eq!(lengths, expected);
    }

    #[test]
    fn nothing_says_that_the_machine_is_virtual() {
        let bios = &structures(64 << 20)[0];
        assert_eq!(bios.formatted[0x13] & 1 << 4, 0);
        assert_eq!(bios.strings, ["Generic", "1.0", "06/15/2020"]);
    }

    #[test]
    fn memory_sizes_use_the_extended_fields_when_they_must() {
        let device = |ram| {
            let found = structures(ram).into_iter().find(|f| f.kind == 17).unwrap().formatted;
            (
                u16::from_le_bytes([found[0x0C], found[0x0D]]),
                u32::from_le_bytes(found[0x1C..0x20].try_into().unwrap()),
            )
        };
        assert_eq!(device(512 << 20), (512, 0));
        assert_eq!(device(64 << 30), (0x7FFF, 65536));
    }
}
