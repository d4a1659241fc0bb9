//! The Differentiated System Description Table: the board's devices, their ports and interrupts, and how PCI interrupts
//! are wired, in AML (ACPI specification 6.5, chapters 6 and 20). Addresses and lines come from [`layout`].

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Arg, Device, EISAName, Else, IO, If, Memory32Fixed, Method, Name,
    Package, PackageBuilder, Path, ResourceTemplate, Return, Scope, Store,
};
use acpi_tables::{Aml, AmlSink};

use super::acpi::Table;
use super::layout;

/// Every status bit that matters: present, enabled, shown, working (6.3.7).
const STATUS_WORKING: u8 = 0x0F;
/// PCI device numbers.
const PCI_SLOTS: u8 = 32;
const PCI_PINS: u8 = 4;
/// The variable that _PIC sets: 0 for the 8259s, 1 for the I/O APIC.
const INTERRUPT_MODEL: &str = "PICF";

/// An ISA interrupt, edge-triggered and active high (6.4.2.1, the form without flags).
struct Irq(u8);

impl Aml for Irq {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.byte(0x22);
        sink.word(1u16.wrapping_shl(self.0.into()));
    }
}

/// An 8-bit DMA channel, compatibility mode, not a bus master (6.4.2.2).
struct Dma(u8);

impl Aml for Dma {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.byte(0x2A);
        sink.byte(1u8.wrapping_shl(self.0.into()));
        sink.byte(0);
    }
}

fn ports(first: u16, count: u8) -> IO {
    IO::new(first, first, 1, count)
}

/// Several objects one after the other.
struct Sequence(Vec<u8>);

impl Sequence {
    fn new() -> Self {
        Self(Vec::new())
    }

    fn push(&mut self, object: &dyn Aml) {
        object.to_aml_bytes(&mut self.0);
    }
}

impl Aml for Sequence {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

/// The whole table.
pub(super) fn build(processors: u8) -> Vec<u8> {
    let mut objects = Sequence::new();
    interrupt_model(&mut objects);
    let soft_off = (layout::SLEEP_TYPE_S5, 0u8);
    objects.push(&Name::new(
        "_S5_".into(),
        &Package::new(vec![&soft_off.0, &soft_off.0, &soft_off.1, &soft_off.1]),
    ));
    let mut system = Sequence::new();
    add_processors(&mut system, processors);
    system.push(&event_timer());
    system.push(&host_bridge());
    objects.push(&Scope::new("\\_SB_".into(), vec![&system]));
    // Revision 2: integers have 64 bits.
    let mut table = Table::new(b"DSDT", 2);
    table.bytes(&objects.0);
    table.finish()
}

/// The operating system says by _PIC which interrupt controller it uses (5.8.1); _PRT below answers accordingly.
fn interrupt_model(objects: &mut Sequence) {
    objects.push(&Name::new(INTERRUPT_MODEL.into(), &0u8));
    let model = Path::new(INTERRUPT_MODEL);
    let remember = Store::new(&model, &Arg(0));
    objects.push(&Method::new("_PIC".into(), 1, false, vec![&remember]));
}

fn add_processors(system: &mut Sequence, processors: u8) {
    for processor in 0..processors {
        let id = Name::new("_HID".into(), &"ACPI0007");
        let unique = Name::new("_UID".into(), &processor);
        system.push(&Device::new(format!("C{processor:03X}").as_str().into(), vec![&id, &unique]));
    }
}

/// A device with an identifier, and resources if it uses any.
fn device(name: &str, id: &str, unique: u8, resources: Vec<&dyn Aml>) -> Sequence {
    let mut sequence = Sequence::new();
    let id = Name::new("_HID".into(), &EISAName::new(id));
    let unique = Name::new("_UID".into(), &unique);
    let status = Name::new("_STA".into(), &STATUS_WORKING);
    let resources = Name::new("_CRS".into(), &ResourceTemplate::new(resources));
    sequence.push(&Device::new(name.into(), vec![&id, &unique, &status, &resources]));
    sequence
}

/// A region of a device register block below 4 GiB.
fn registers(range: &std::ops::Range<u64>, writable: bool) -> Memory32Fixed {
    Memory32Fixed::new(writable, range.start as u32, (range.end - range.start) as u32)
}

fn event_timer() -> Sequence {
    device("HPET", "PNP0103", 0, vec![&registers(&layout::HPET, false)])
}

/// The PCI host bridge with everything behind it.
fn host_bridge() -> Sequence {
    let mut contents = Sequence::new();
    contents.push(&Name::new("_HID".into(), &EISAName::new("PNP0A03")));
    contents.push(&Name::new("_UID".into(), &0u8));
    contents.push(&Name::new("_BBN".into(), &0u8));
    contents.push(&Name::new("_CRS".into(), &host_bridge_windows()));
    contents.push(&Name::new("PRTP".into(), &routing(|line| layout::PCI_IRQS[line].into())));
    contents.push(&Name::new("PRTA".into(), &routing(|line| layout::PCI_GSI + line as u32)));
    let (model, apic, pic) = (Path::new(INTERRUPT_MODEL), Path::new("PRTA"), Path::new("PRTP"));
    let (by_apic, by_pic) = (Return::new(&apic), Return::new(&pic));
    let choose = If::new(&model, vec![&by_apic]);
    let otherwise = Else::new(vec![&by_pic]);
    contents.push(&Method::new("_PRT".into(), 0, false, vec![&choose, &otherwise]));
    contents.push(&isa_bridge());
    contents.push(&reserved());
    let mut bridge = Sequence::new();
    bridge.push(&Device::new("PCI0".into(), vec![&contents]));
    bridge
}

/// What the bridge decodes: all buses, the configuration ports themselves, all other ports, and two ranges of memory.
fn host_bridge_windows() -> Sequence {
    let memory = |start: u64, end: u64| {
        AddressSpace::new_memory(
            AddressSpaceCacheable::NotCacheable,
            true,
            start as u32,
            (end - 1) as u32,
            None,
        )
    };
    let after = layout::PCI_DATA + 4;
    let mut windows = Sequence::new();
    windows.push(&ResourceTemplate::new(vec![
        &AddressSpace::new_bus_number(0u16, 0xFF),
        &ports(layout::PCI_ADDRESS, 8),
        &AddressSpace::new_io(0u16, layout::PCI_ADDRESS - 1, None),
        &AddressSpace::new_io(after, u16::MAX, None),
        &memory(layout::VGA, layout::OPTION_ROMS),
        &memory(layout::PCI_MEMORY.start, layout::PCI_MEMORY.end),
    ]));
    windows
}

/// A routing table (6.2.13): for each device and pin, the global interrupt that `interrupt` gives for its line.
fn routing(interrupt: impl Fn(usize) -> u32) -> PackageBuilder {
    const ANY_FUNCTION: u32 = 0xFFFF;
    let mut table = PackageBuilder::new();
    for slot in 0..PCI_SLOTS {
        for pin in 0..PCI_PINS {
            let address = (u32::from(slot) << 16) | ANY_FUNCTION;
            let global = interrupt(layout::pci_line(slot, pin));
            table.add_element(&Package::new(vec![&address, &pin, &0u8, &global]));
        }
    }
    table
}

/// The ISA bridge with the chips of its bus.
fn isa_bridge() -> Sequence {
    let mut bus = Sequence::new();
    bus.push(&Name::new("_ADR".into(), &(u32::from(layout::ISA_BRIDGE) << 16)));
    add_isa_devices(&mut bus);
    let mut bridge = Sequence::new();
    bridge.push(&Device::new("ISA_".into(), vec![&bus]));
    bridge
}

fn add_isa_devices(bus: &mut Sequence) {
    let mut serial = |name, unique, port, irq| {
        bus.push(&device(name, "PNP0501", unique, vec![&ports(port, 8), &Irq(irq)]));
    };
    serial("COM1", 1, layout::COM1, layout::IRQ_COM1);
    serial("COM2", 2, layout::COM2, layout::IRQ_COM2);
    let keyboard: [&dyn Aml; 3] =
        [&ports(layout::KEYBOARD_DATA, 1), &ports(layout::KEYBOARD_COMMAND, 1), &Irq(layout::IRQ_KEYBOARD)];
    bus.push(&device("KBD_", "PNP0303", 0, keyboard.to_vec()));
    bus.push(&device("MOU_", "PNP0F13", 0, vec![&Irq(layout::IRQ_MOUSE)]));
    bus.push(&device("RTC_", "PNP0B00", 0, vec![&ports(layout::RTC, 4), &Irq(layout::IRQ_RTC)]));
    bus.push(&device("TIMR", "PNP0100", 0, vec![&ports(layout::PIT, 4), &Irq(layout::IRQ_TIMER)]));
    let interrupts: [&dyn Aml; 4] = [
        &ports(layout::PIC_1, 2),
        &ports(layout::PIC_2, 2),
        &ports(layout::ELCR, 2),
        &Irq(layout::IRQ_CASCADE),
    ];
    bus.push(&device("PIC_", "PNP0000", 0, interrupts.to_vec()));
    let dma: [&dyn Aml; 4] =
        [&ports(layout::DMA_1, 16), &ports(layout::DMA_PAGES, 15), &ports(layout::DMA_2, 32), &Dma(4)];
    bus.push(&device("DMAC", "PNP0200", 0, dma.to_vec()));
    bus.push(&device("SPKR", "PNP0800", 0, vec![&ports(layout::PORT_61, 1)]));
    let coprocessor: [&dyn Aml; 2] = [&ports(layout::COPROCESSOR, 1), &Irq(layout::IRQ_COPROCESSOR)];
    bus.push(&device("COPR", "PNP0C04", 0, coprocessor.to_vec()));
}

/// Ports and memory of the board that no driver is to take (PNP0C02).
fn reserved() -> Sequence {
    let resources: [&dyn Aml; 5] = [
        &ports(layout::POST_CODE, 1),
        &ports(layout::PORT_92, 1),
        &ports(layout::PM_BASE, layout::PM_SIZE as u8),
        &registers(&layout::LOCAL_APIC, true),
        &registers(&layout::FIRMWARE_ROM, false),
    ];
    device("SYSR", "PNP0C02", 0, resources.to_vec())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Disassembles the table and compiles the result again, which checks it as a compiler would.
    #[test]
    fn iasl_accepts_the_table() {
        if Command::new("iasl").arg("-v").output().is_err() {
            eprintln!("skipped: no iasl (package acpica-tools)");
            return;
        }
        for processors in [1, 4, 255] {
            let folder = std::env::temp_dir().join(format!("dsdt-{}-{processors}", std::process::id()));
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join("dsdt.aml"), build(processors)).unwrap();
            let run = |arguments: &[&str]| {
                let output = Command::new("iasl").args(arguments).current_dir(&folder).output().unwrap();
                let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
                assert!(output.status.success(), "{text}");
                text
            };
            run(&["-d", "dsdt.aml"]);
            let text = run(&["-p", "again", "dsdt.dsl"]);
            assert!(text.contains("0 Errors, 0 Warnings"), "{text}");
            std::fs::remove_dir_all(&folder).unwrap();
        }
    }

    #[test]
    fn it_fits_its_place_with_the_most_processors() {
        assert!((build(255).len() as u64) < layout::ACPI_TABLES_SIZE / 2);
    }
}
