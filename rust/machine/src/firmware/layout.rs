//! Addresses, ports and interrupt lines of the PC board.
//!
//! The board that wires the chips and the tables that describe them to the operating system both take them from here, so
//! that they cannot disagree.

use std::ops::Range;

use trapgate_devices::pci::{PIRQ_FIRST_PIN, pirq_of};

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
/// What the PCI host bridge passes on below 4 GiB: where memory BARs go.
pub const PCI_MEMORY: Range<u64> = LOW_RAM_LIMIT..IO_APIC.start;

// What firmware leaves in the BIOS segment.

/// The ACPI root pointer.
pub const RSDP: u64 = BIOS;
/// The SMBIOS 2 entry point.
pub const SMBIOS_ENTRY: u64 = BIOS + 0x40;
/// The SMBIOS structures.
pub const SMBIOS_TABLE: u64 = BIOS + 0x100;
/// An IRET, where every interrupt vector of a machine without a BIOS points; the traditional place.
pub const DUMMY_INTERRUPT: u64 = BIOS + 0xFF53;
/// The last 32 bytes of the BIOS segment: reset code, release date and model byte.
pub const BIOS_TAIL: u64 = BIOS + 0xFFE0;

// Ports. The chips' widths are in their own documentation.

/// 8237 DMA controller, channels 0 to 3.
pub const DMA_1: u16 = 0x00;
/// Page registers of the DMA controllers.
pub const DMA_PAGES: u16 = 0x81;
/// 8237 DMA controller, channels 4 to 7.
pub const DMA_2: u16 = 0xC0;
/// The first 8259.
pub const PIC_1: u16 = 0x20;
/// The second 8259.
pub const PIC_2: u16 = 0xA0;
/// Edge or level control of the two 8259s.
pub const ELCR: u16 = 0x4D0;
/// 8254 timer.
pub const PIT: u16 = 0x40;
/// Keyboard controller, data.
pub const KEYBOARD_DATA: u16 = 0x60;
/// NMI status, speaker and the gate of timer channel 2.
pub const PORT_61: u16 = 0x61;
/// Keyboard controller, status and command.
pub const KEYBOARD_COMMAND: u16 = 0x64;
/// MC146818 address (with the NMI mask) and data, and the same for its second bank.
pub const RTC: u16 = 0x70;
/// Diagnostic codes of the power-on self-test.
pub const POST_CODE: u16 = 0x80;
/// Fast A20 and fast reset.
pub const PORT_92: u16 = 0x92;
/// Coprocessor error: clears IRQ 13.
pub const COPROCESSOR: u16 = 0xF0;
/// First serial port.
pub const COM1: u16 = 0x3F8;
/// Second serial port.
pub const COM2: u16 = 0x2F8;
/// Power management: PM1 event (4 bytes), PM1 control (2) and the timer (4), at these offsets.
pub const PM_BASE: u16 = 0x600;
/// Ports reserved for power management.
pub const PM_SIZE: u16 = 0x40;
/// PM1a event block: status, then enable.
pub const PM1_EVENT: u16 = PM_BASE;
/// PM1a control block.
pub const PM1_CONTROL: u16 = PM_BASE + 4;
/// The power management timer; 24 bits count.
pub const PM_TIMER: u16 = PM_BASE + 8;
/// SMBus host controller of the chipset.
pub const SMBUS: u16 = 0x700;
/// PCI configuration address.
pub const PCI_ADDRESS: u16 = 0xCF8;
/// PCI configuration data.
pub const PCI_DATA: u16 = 0xCFC;
/// Reset control, a byte inside the configuration address that only word and dword accesses do not see.
pub const RESET_CONTROL: u16 = 0xCF9;
/// What a write to [`RESET_CONTROL`] must be to reset the whole machine: full reset, and now.
pub const RESET_VALUE: u8 = 0x06;

/// Debug console, on request: what QEMU and Bochs have there.
pub const DEBUG_CONSOLE: u16 = 0xE9;
/// Debug exit, on request.
pub const DEBUG_EXIT: u16 = 0xF4;

// Interrupts: ISA numbers are those of the 8259 inputs.

/// The 8254's channel 0.
pub const IRQ_TIMER: u8 = 0;
/// Keyboard.
pub const IRQ_KEYBOARD: u8 = 1;
/// The second 8259.
pub const IRQ_CASCADE: u8 = 2;
/// Second serial port.
pub const IRQ_COM2: u8 = 3;
/// First serial port.
pub const IRQ_COM1: u8 = 4;
/// MC146818.
pub const IRQ_RTC: u8 = 8;
/// ACPI events: level-triggered, active high.
pub const IRQ_SCI: u8 = 9;
/// Mouse.
pub const IRQ_MOUSE: u8 = 12;
/// Coprocessor.
pub const IRQ_COPROCESSOR: u8 = 13;

/// The I/O APIC input that the 8254 is wired to; every other ISA interrupt has its own number there.
pub const GSI_TIMER: u32 = 2;
/// Inputs of the I/O APIC.
pub const IO_APIC_INPUTS: u32 = 24;
/// What the I/O APIC's identification register holds after firmware has run.
pub const IO_APIC_ID: u8 = 0;
/// PCI interrupt lines (PIRQA to PIRQD): at the I/O APIC they are four inputs from this one on.
pub const PCI_GSI: u32 = PIRQ_FIRST_PIN as u32;
/// The same four lines at the 8259s, as the ISA bridge routes them after reset; level-triggered. They do not reach the I/O
/// APIC inputs of these numbers.
pub const PCI_IRQS: [u8; 4] = [10, 10, 11, 11];
/// PCI device number of the ISA bridge.
pub const ISA_BRIDGE: u8 = 1;

/// Which of the four PCI interrupt lines a device's pin (INTA# is 0) is wired to.
pub fn pci_line(device: u8, pin: u8) -> usize {
    pirq_of(device, pin.wrapping_add(1)).into()
}

// Values that chips and tables share.

/// Slot of the ISA bridge and the chipset's other functions on PCI bus 0.
pub const CHIPSET_SLOT: u8 = 1;
/// Sleep type that PM1a control takes for soft-off.
pub const SLEEP_TYPE_S5: u8 = trapgate_devices::acpi_pm::SLP_TYP_S5;
/// CMOS byte with the century.
pub const CMOS_CENTURY: u8 = 0x32;
/// Low half of the HPET's capability register: revision 1, three comparators of 64 bits, legacy routing, vendor 8086h.
pub const HPET_CAPABILITIES: u32 = 0x8086_A201;
