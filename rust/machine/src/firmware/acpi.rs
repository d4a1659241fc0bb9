//! ACPI tables (ACPI specification 6.5, chapter 5): root pointer, RSDT and XSDT, FADT, MADT, HPET and FACS. The DSDT has a
//! module of its own.
//!
//! Every field that exists twice, in a 32-bit and in an X_ form, says the same in both, since Linux compares them. There
//! are no general-purpose events and no switch between legacy and ACPI mode: the board starts in ACPI mode.

use super::{FirmwareConfig, checksum, dsdt, layout};
use crate::boot::Segment;

const OEM_ID: [u8; 6] = *b"PCFIRM";
const OEM_TABLE_ID: [u8; 8] = *b"MAINBORD";
const CREATOR_ID: [u8; 4] = *b"PCFW";
const REVISION: u32 = 1;

/// Tables start on cache lines; the FACS must (5.2.10).
const ALIGN: usize = 64;

/// A table under construction; the header's length and checksum are filled in at the end.
#[derive(Debug)]
pub(super) struct Table(Vec<u8>);

impl Table {
    pub(super) fn new(signature: &[u8; 4], revision: u8) -> Self {
        let mut table = Self(Vec::with_capacity(256));
        table.bytes(signature).u32(0).u8(revision).u8(0).bytes(&OEM_ID).bytes(&OEM_TABLE_ID);
        table.u32(REVISION).bytes(&CREATOR_ID).u32(REVISION);
        table
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
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

    /// A generic address in I/O space (5.2.3.2) of `size` bytes, accessed in units of `access` bytes.
    fn io(&mut self, port: u16, size: u8, access: u8) -> &mut Self {
        let access_size = match access {
            1 => 1,
            2 => 2,
            _ => 3,
        };
        self.u8(SPACE_IO).u8(size * 8).u8(0).u8(access_size).u64(port.into())
    }

    /// A generic address for a register block that does not exist.
    fn no_register(&mut self) -> &mut Self {
        self.bytes(&[0; 12])
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        let length = (self.0.len() as u32).to_le_bytes();
        self.0[4..8].copy_from_slice(&length);
        self.0[9] = checksum(&self.0);
        self.0
    }
}

const SPACE_MEMORY: u8 = 0;
const SPACE_IO: u8 = 1;

/// The tables laid out one after the other from `base` on.
struct Area {
    base: u64,
    bytes: Vec<u8>,
}

impl Area {
    /// Appends a table and gives its address, which is below 4 GiB.
    fn push(&mut self, table: &[u8]) -> u32 {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGN), 0);
        let address = self.base + self.bytes.len() as u64;
        self.bytes.extend_from_slice(table);
        address as u32
    }
}

pub(super) fn build(config: &FirmwareConfig<'_>) -> Vec<Segment<'static>> {
    let facs = config.memory.acpi_nvs().start;
    let mut area = Area { base: config.memory.acpi_tables().start, bytes: Vec::new() };
    let dsdt = area.push(&dsdt::build(config.processors));
    let tables = [
        area.push(&fixed_description(facs as u32, dsdt)),
        area.push(&interrupt_controllers(config.processors)),
        area.push(&event_timer()),
    ];
    let rsdt = area.push(&root_table32(&tables));
    let xsdt = area.push(&root_table64(&tables));
    vec![
        Segment::new("the ACPI tables", area.base, area.bytes),
        Segment::new("the FACS", facs, facs_table()),
        Segment::new("the ACPI root pointer", layout::RSDP, root_pointer(rsdt, xsdt)),
    ]
}

/// Root System Description Pointer (5.2.5.3), with a checksum over the part of ACPI 1.0 and one over all of it.
fn root_pointer(rsdt: u32, xsdt: u32) -> Vec<u8> {
    let mut pointer = Table(Vec::new());
    pointer.bytes(b"RSD PTR ").u8(0).bytes(&OEM_ID).u8(2).u32(rsdt);
    pointer.u32(36).u64(xsdt.into()).u32(0);
    let mut bytes = pointer.0;
    bytes[8] = checksum(&bytes[..20]);
    bytes[32] = checksum(&bytes);
    bytes
}

fn root_table32(tables: &[u32]) -> Vec<u8> {
    let mut table = Table::new(b"RSDT", 1);
    for &address in tables {
        table.u32(address);
    }
    table.finish()
}

fn root_table64(tables: &[u32]) -> Vec<u8> {
    let mut table = Table::new(b"XSDT", 1);
    for &address in tables {
        table.u64(address.into());
    }
    table.finish()
}

/// Firmware ACPI Control Structure (5.2.10): no waking vector, no locks.
fn facs_table() -> Vec<u8> {
    let mut facs = Table(Vec::new());
    facs.bytes(b"FACS").u32(64);
    facs.0.resize(32, 0);
    facs.u8(2);
    facs.0.resize(64, 0);
    facs.0
}

/// FADT flags (5.2.9, table 5.10).
mod fadt_flags {
    pub(super) const WBINVD: u32 = 1 << 0;
    pub(super) const PROC_C1: u32 = 1 << 2;
    /// There is no fixed sleep button. Its counterpart for the power button is left clear: that one is fixed hardware.
    pub(super) const SLP_BUTTON: u32 = 1 << 5;
    /// Wake-up by the RTC has no status bit in the fixed registers.
    pub(super) const FIX_RTC: u32 = 1 << 6;
    pub(super) const RESET_REG_SUP: u32 = 1 << 10;
}

/// Boot architecture flags (5.2.9.3).
mod boot_flags {
    pub(super) const LEGACY_DEVICES: u16 = 1 << 0;
    pub(super) const KEYBOARD_CONTROLLER: u16 = 1 << 1;
    pub(super) const NO_VGA: u16 = 1 << 2;
}

/// A latency above 100 (C2) and above 1000 (C3) microseconds says that the state does not exist.
const NO_C2: u16 = 101;
const NO_C3: u16 = 1001;
const PROFILE_DESKTOP: u8 = 1;

/// Fixed ACPI Description Table (5.2.9) in the form of ACPI 3 and 4.
fn fixed_description(facs: u32, dsdt: u32) -> Vec<u8> {
    let mut table = Table::new(b"FACP", 4);
    table.u32(facs).u32(dsdt).u8(0).u8(PROFILE_DESKTOP).u16(layout::IRQ_SCI.into());
    // No SMI command port, hence neither ACPI_ENABLE, ACPI_DISABLE, S4BIOS_REQ nor PSTATE_CNT.
    table.u32(0).bytes(&[0; 4]);
    // Port addresses of the register blocks: PM1a/b event, PM1a/b control, PM2, timer, GPE0/1.
    table.u32(layout::PM1_EVENT.into()).u32(0).u32(layout::PM1_CONTROL.into()).u32(0);
    table.u32(0).u32(layout::PM_TIMER.into()).u32(0).u32(0);
    // Their lengths: PM1 event, PM1 control, PM2, timer, GPE0, GPE1; then GPE1 base and CST_CNT.
    table.bytes(&[4, 2, 0, 4, 0, 0, 0, 0]);
    // Latencies; FLUSH_SIZE and FLUSH_STRIDE, not needed with WBINVD; DUTY_OFFSET and DUTY_WIDTH: no throttling.
    table.u16(NO_C2).u16(NO_C3).u16(0).u16(0).u8(0).u8(0);
    // DAY_ALRM and MON_ALRM: none.
    table.u8(0).u8(0).u8(layout::CMOS_CENTURY);
    table.u16(boot_flags::LEGACY_DEVICES | boot_flags::KEYBOARD_CONTROLLER | boot_flags::NO_VGA).u8(0);
    {
        use fadt_flags::*;
        table.u32(WBINVD | PROC_C1 | SLP_BUTTON | FIX_RTC | RESET_REG_SUP);
    }
    table.io(layout::RESET_CONTROL, 1, 1).u8(layout::RESET_VALUE).bytes(&[0; 3]);
    table.u64(facs.into()).u64(dsdt.into());
    table.io(layout::PM1_EVENT, 4, 2).no_register().io(layout::PM1_CONTROL, 2, 2).no_register();
    table.no_register().io(layout::PM_TIMER, 4, 4).no_register().no_register();
    table.finish()
}

/// Flags of interrupt overrides (5.2.12.5): as the bus does it, and level-triggered with active high.
const CONFORMS: u16 = 0;
const LEVEL_HIGH: u16 = 0b1101;
const ALL_PROCESSORS: u8 = 0xFF;
const LINT1: u8 = 1;

/// Multiple APIC Description Table (5.2.12).
fn interrupt_controllers(processors: u8) -> Vec<u8> {
    const PCAT_COMPAT: u32 = 1;
    let mut table = Table::new(b"APIC", 3);
    table.u32(layout::LOCAL_APIC.start as u32).u32(PCAT_COMPAT);
    for processor in 0..processors {
        // Processor local APIC: unique id, APIC id, enabled.
        table.bytes(&[0, 8, processor, processor]).u32(1);
    }
    table.bytes(&[1, 12, layout::IO_APIC_ID, 0]).u32(layout::IO_APIC.start as u32).u32(0);
    table.bytes(&[2, 10, 0, layout::IRQ_TIMER]).u32(layout::GSI_TIMER).u16(CONFORMS);
    table.bytes(&[2, 10, 0, layout::IRQ_SCI]).u32(layout::IRQ_SCI.into()).u16(LEVEL_HIGH);
    table.bytes(&[4, 6, ALL_PROCESSORS]).u16(CONFORMS).u8(LINT1);
    table.finish()
}

/// HPET description table (IA-PC HPET specification 1.0a, 3.2.4).
fn event_timer() -> Vec<u8> {
    let mut table = Table::new(b"HPET", 1);
    table.u32(layout::HPET_CAPABILITIES);
    // Address: memory, 64 bits wide, no offset, access size undefined.
    table.bytes(&[SPACE_MEMORY, 64, 0, 0]).u64(layout::HPET.start);
    // Sequence number, minimum tick in periodic mode (none given), no page protection.
    table.u8(0).u16(0).u8(0);
    table.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::MemoryMap;
    use crate::firmware::{self, tests};

    const HEADER_SIZE: usize = 36;

    fn u32_at(memory: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(memory[at..at + 4].try_into().unwrap())
    }

    fn u64_at(memory: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(memory[at..at + 8].try_into().unwrap())
    }

    /// The table at `address`, its length and checksum checked.
    fn table(memory: &[u8], address: usize) -> &[u8] {
        let length = u32_at(memory, address + 4) as usize;
        let table = &memory[address..address + length];
        assert_eq!(checksum(table), 0, "checksum of {:?}", String::from_utf8_lossy(&table[..4]));
        table
    }

    fn memory(processors: u8) -> Vec<u8> {
        let map = MemoryMap::new(16 << 20).unwrap();
        tests::image(&firmware::build(&tests::config(&map, processors)), 16 << 20)
    }

    #[test]
    fn both_root_tables_lead_to_the_same_tables() {
        let memory = memory(1);
        let pointer = &memory[0xF0000..0xF0024];
        assert_eq!(&pointer[..8], b"RSD PTR ");
        assert_eq!(checksum(&pointer[..20]), 0);
        assert_eq!(checksum(pointer), 0);
        let rsdt = table(&memory, u32_at(pointer, 16) as usize);
        let xsdt = table(&memory, u64_at(pointer, 24) as usize);
        let from32: Vec<u64> = rsdt[HEADER_SIZE..].chunks(4).map(|entry| u32_at(entry, 0).into()).collect();
        let from64: Vec<u64> = xsdt[HEADER_SIZE..].chunks(8).map(|entry| u64_at(entry, 0)).collect();
        assert_eq!(from32, from64);
        let signatures: Vec<&[u8]> = from64.iter().map(|&at| &table(&memory, at as usize)[..4]).collect();
        assert_eq!(signatures, [b"FACP", b"APIC", b"HPET"]);
    }

    #[test]
    fn the_fadt_says_the_same_in_both_widths() {
        let memory = memory(1);
        let xsdt = u64_at(&memory, 0xF0018) as usize;
        let fadt = table(&memory, u64_at(&memory, xsdt + HEADER_SIZE) as usize);
        assert_eq!(fadt.len(), 244);
        assert_eq!(u64::from(u32_at(fadt, 36)), u64_at(fadt, 132), "FACS");
        assert_eq!(u64::from(u32_at(fadt, 40)), u64_at(fadt, 140), "DSDT");
        // (32-bit address, its length byte, generic address)
        for (block, length, generic) in [(56, 88, 148), (64, 89, 172), (76, 91, 208)] {
            assert_eq!(u64::from(u32_at(fadt, block)), u64_at(fadt, generic + 4));
            assert_eq!(fadt[length] * 8, fadt[generic + 1]);
            assert_eq!(fadt[generic], SPACE_IO);
        }
        assert_eq!((u64_at(fadt, 120), fadt[128]), (0xCF9, 6));
        assert_eq!(&memory[u32_at(fadt, 36) as usize..][..4], b"FACS");
        assert_eq!(u32_at(fadt, 36) % 64, 0);
        assert_eq!(&table(&memory, u32_at(fadt, 40) as usize)[..4], b"DSDT");
    }

    #[test]
    fn the_madt_has_one_entry_for_each_processor() {
        let bytes = interrupt_controllers(3);
        let mut rest = &bytes[HEADER_SIZE + 8..];
        let mut kinds = Vec::new();
        while !rest.is_empty() {
            kinds.push(rest[0]);
            rest = &rest[usize::from(rest[1])..];
        }
        assert_eq!(kinds, [0, 0, 0, 1, 2, 2, 4]);
    }
}
