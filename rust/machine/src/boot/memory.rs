//! Where a PC's RAM lies, and the memory map that firmware hands to an operating system.
//!
//! RAM starts at zero, has the 384 KiB hole of the original PC, and leaves the last GiB below 4 GiB to devices: what
//! does not fit below 3 GiB continues at 4 GiB.

use std::ops::Range;

use super::BootError;
use crate::firmware::layout;

/// What a part of the address space is for, with the numbers of the E820 and ACPI memory maps (ACPI 6.5, 15.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum RegionKind {
    /// RAM that the operating system may use.
    Usable = 1,
    /// Not to be used.
    Reserved = 2,
    /// ACPI tables: usable once they have been read.
    AcpiTables = 3,
    /// ACPI non-volatile storage: to be preserved.
    AcpiNvs = 4,
}

/// One entry of the memory map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// First address.
    pub start: u64,
    /// Size in bytes.
    pub size: u64,
    /// What it is for.
    pub kind: RegionKind,
}

impl Region {
    /// The address after the last one.
    pub fn end(&self) -> u64 {
        self.start.saturating_add(self.size)
    }
}

/// The memory of one machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryMap {
    ram: u64,
    regions: Vec<Region>,
}

impl MemoryMap {
    /// The smallest RAM a machine can have: the first MiB, the tables at the top and something to load a kernel into.
    pub const MIN: u64 = 2 << 20;
    /// The largest, so that every address stays below 2^40, which is what the least of the 64-bit CPU models can address.
    pub const MAX: u64 = 512 << 30;

    /// The map of a machine with `ram` bytes.
    ///
    /// # Errors
    /// When a machine cannot have that much, that little, or not whole pages.
    pub fn new(ram: u64) -> Result<Self, BootError> {
        if !(Self::MIN..=Self::MAX).contains(&ram) || ram % layout::PAGE != 0 {
            return Err(BootError::MemorySize { size: ram, min: Self::MIN, max: Self::MAX });
        }
        let low_end = ram.min(layout::LOW_RAM_LIMIT);
        let mut map = Self { ram, regions: Vec::with_capacity(12) };
        map.push(0..layout::EBDA, RegionKind::Usable);
        map.push(layout::EBDA..layout::VGA, RegionKind::Reserved);
        map.push(layout::BIOS..layout::HIGH_MEMORY, RegionKind::Reserved);
        let nvs = low_end - layout::ACPI_NVS_SIZE;
        let tables = nvs - layout::ACPI_TABLES_SIZE;
        map.push(layout::HIGH_MEMORY..tables, RegionKind::Usable);
        map.push(tables..nvs, RegionKind::AcpiTables);
        map.push(nvs..low_end, RegionKind::AcpiNvs);
        for device in [&layout::IO_APIC, &layout::HPET, &layout::LOCAL_APIC, &layout::FIRMWARE_ROM] {
            map.push(device.clone(), RegionKind::Reserved);
        }
        if ram > low_end {
            map.push(layout::FOUR_GIB..layout::FOUR_GIB + (ram - low_end), RegionKind::Usable);
        }
        Ok(map)
    }

    fn push(&mut self, range: Range<u64>, kind: RegionKind) {
        self.regions.push(Region { start: range.start, size: range.end - range.start, kind });
    }

    /// Bytes of RAM.
    pub fn ram(&self) -> u64 {
        self.ram
    }

    /// End of the RAM below 4 GiB.
    pub fn low_end(&self) -> u64 {
        self.ram.min(layout::LOW_RAM_LIMIT)
    }

    /// End of the usable RAM below 4 GiB, where the ACPI tables start.
    pub fn low_usable_end(&self) -> u64 {
        self.low_end() - layout::ACPI_NVS_SIZE - layout::ACPI_TABLES_SIZE
    }

    /// Where RAM must stand: below 4 GiB and, if it does not all fit there, from 4 GiB on.
    pub fn ram_ranges(&self) -> impl Iterator<Item = Range<u64>> + use<> {
        let low = self.low_end();
        let high = self.ram - low;
        let high = (high > 0).then(|| layout::FOUR_GIB..layout::FOUR_GIB + high);
        std::iter::once(0..low).chain(high)
    }

    /// Where the ACPI tables go.
    pub fn acpi_tables(&self) -> Range<u64> {
        let end = self.low_end() - layout::ACPI_NVS_SIZE;
        end - layout::ACPI_TABLES_SIZE..end
    }

    /// Where the FACS goes.
    pub fn acpi_nvs(&self) -> Range<u64> {
        self.low_end() - layout::ACPI_NVS_SIZE..self.low_end()
    }

    /// The map, sorted by address, as firmware would return it.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Whether all of `start..end` is RAM that the operating system may use.
    pub fn is_usable(&self, start: u64, end: u64) -> bool {
        start <= end
            && self.regions.iter().any(|region| {
                region.kind == RegionKind::Usable && region.start <= start && end <= region.end()
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_sorted_and_disjoint() {
        for ram in [MemoryMap::MIN, 64 << 20, 3 << 30, (3 << 30) + 4096, 8 << 30, MemoryMap::MAX] {
            let map = MemoryMap::new(ram).unwrap();
            for pair in map.regions().windows(2) {
                assert!(pair[0].end() <= pair[1].start, "{pair:x?}");
            }
            let ranges: u64 = map.ram_ranges().map(|range| range.end - range.start).sum();
            assert_eq!(ranges, ram);
        }
    }

    #[test]
    fn ram_beyond_three_gib_continues_at_four() {
        let map = MemoryMap::new(5 << 30).unwrap();
        assert_eq!(map.low_end(), 0xC000_0000);
        assert!(map.is_usable(4 << 30, 6 << 30));
        assert!(!map.is_usable(4 << 30, (6 << 30) + 1));
        assert!(!map.is_usable(0xC000_0000, 0xC000_1000));
    }

    #[test]
    fn the_holes_of_the_first_mib_are_not_usable() {
        let map = MemoryMap::new(64 << 20).unwrap();
        assert!(map.is_usable(0x1000, 0x9FC00));
        assert!(!map.is_usable(0x1000, 0x9FC01));
        assert!(!map.is_usable(0xF0000, 0xF0001));
        assert!(map.is_usable(0x10_0000, map.low_usable_end()));
        assert!(!map.is_usable(0x10_0000, map.low_usable_end() + 1));
    }

    #[test]
    fn impossible_sizes_are_refused() {
        for ram in [0, 1, 4096, MemoryMap::MIN - 4096, MemoryMap::MIN + 1, MemoryMap::MAX + 4096, u64::MAX] {
            let error = MemoryMap::new(ram).unwrap_err().to_string();
            assert!(error.contains("not possible"), "{error}");
        }
    }
}
