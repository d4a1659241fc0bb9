use std::sync::{Arc, Mutex};

use super::*;
use crate::debug::RecordedControl;
use crate::line::Probe;
use crate::system::SmBus;
use crate::{Bus, Device, Line, NoLine, PhysAddr, Port};

struct Rig {
    ports: Arc<Bus<Port>>,
    memory: Arc<Bus<PhysAddr>>,
    host: Arc<Mutex<PciHost>>,
    control: Arc<RecordedControl>,
    router: Arc<PirqRouter>,
    pins: [Arc<Probe>; 4],
    pic: Vec<Arc<Probe>>,
}

fn rig() -> Rig {
    let (ports, memory) = (Arc::new(Bus::new()), Arc::new(Bus::new()));
    let control = Arc::new(RecordedControl::default());
    let pins = [0; 4].map(|_| Probe::new());
    let pic: Vec<_> = (0..16).map(|_| Probe::new()).collect();
    let pic_lines = pic.iter().map(|probe| Arc::clone(probe) as Arc<dyn Line>).collect();
    let router = PirqRouter::new(pins.clone().map(|probe| probe as Arc<dyn Line>), pic_lines);
    let mut host = PciHost::new(&ports, &memory, control.clone());
    let none = Regions::default;
    host.insert(PciAddress::new(0, 0), Arc::new(Mutex::new(HostBridge::new())), none()).unwrap();
    host.insert(PciAddress::new(1, 0), Arc::new(Mutex::new(IsaBridge::new(router.clone()))), none()).unwrap();
    let power = PowerManagement::new(PowerManagementConfig::default());
    host.insert(PciAddress::new(1, 3), Arc::new(Mutex::new(power)), none()).unwrap();
    let host = Arc::new(Mutex::new(host));
    ports.insert(Port(0xCF8), 8, &host, 0).unwrap();
    Rig { ports, memory, host, control, router, pins, pic }
}

impl Rig {
    fn select(&self, slot: u32, function: u32, register: u32) {
        self.ports.write(Port(0xCF8), 4, (1 << 31 | slot << 11 | function << 8 | register & 0xFC).into(), 0);
    }
    fn get(&self, slot: u32, function: u32, register: u32, size: u8) -> u64 {
        self.select(slot, function, register);
        self.ports.read(Port(0xCFC + (register & 3) as u16), size, 0)
    }
    fn put(&self, slot: u32, function: u32, register: u32, size: u8, value: u64) {
        self.select(slot, function, register);
        self.ports.write(Port(0xCFC + (register & 3) as u16), size, value, 0);
    }
}

/// A card with an I/O region, a memory region and a 64-bit one, all answered by an SMBus.
struct Card {
    config: ConfigSpace,
}

impl Card {
    fn new() -> Card {
        let identity =
            Identity { vendor: 0x1AF4, device: 1, class: 0xFF_0000, interrupt_pin: 1, ..Default::default() };
        let mut config = ConfigSpace::new(identity);
        config.add_bar(0, BarKind::Io, 0x20);
        config.add_bar(1, BarKind::Memory, 0x1000);
        config.add_bar(4, BarKind::Prefetchable64, 0x4000);
        assert_eq!(config.add_capability(0x11, &[1, 2, 3, 4, 5]), Some(0x40));
        assert_eq!(config.add_capability(0x09, &[6]), Some(0x48));
        Card { config }
    }
}

impl PciFunction for Card {
    fn name(&self) -> &'static str {
        "card"
    }
    fn config(&self) -> &ConfigSpace {
        &self.config
    }
    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }
    fn save(&self) -> State {
        self.config.save("card")
    }
    fn restore(&mut self, state: &State) -> Result<(), StateError> {
        self.config.restore("card", state)
    }
}

fn with_card() -> Rig {
    let r = rig();
    let region = || Some(Arc::new(Mutex::new(SmBus::new())) as Arc<Mutex<dyn Device>>);
    let regions = [region(), region(), None, None, region(), None];
    r.host.lock().unwrap().insert(PciAddress::new(3, 0), Arc::new(Mutex::new(Card::new())), regions).unwrap();
    r
}

#[test]
fn linux_finds_type_1_access_and_the_chipset() {
    let r = rig();
    r.ports.write(Port(0xCFB), 1, 1, 0);
    r.ports.write(Port(0xCF8), 4, 0x8000_0000, 0);
    assert_eq!(r.ports.read(Port(0xCF8), 4, 0), 0x8000_0000);
    assert_eq!(r.get(0, 0, 0, 4), 0x1237_8086);
    assert_eq!(r.get(0, 0, 0x0A, 2), 0x0600);
    assert_eq!(r.get(1, 0, 0, 4), 0x7000_8086);
    assert_eq!(r.get(1, 0, 0x0A, 2), 0x0601);
    assert_eq!(r.get(1, 0, 0x0E, 1), 0x80);
    assert_eq!(r.get(1, 3, 0, 4), 0x7113_8086);
    assert_eq!(r.get(1, 3, 0x40, 4), 0x601);
    for (slot, function) in [(0, 1), (1, 1), (2, 0), (31, 7)] {
        assert_eq!(r.get(slot, function, 0, 4), 0xFFFF_FFFF);
    }
    r.ports.write(Port(0xCF8), 4, 0x8001_0000, 0);
    assert_eq!(r.ports.read(Port(0xCFC), 4, 0), 0xFFFF_FFFF, "another bus");
    r.ports.write(Port(0xCF8), 4, 0, 0);
    assert_eq!(r.ports.read(Port(0xCFC), 4, 0), 0xFFFF_FFFF, "not enabled");
}

#[test]
fn identity_cannot_be_written_and_status_is_cleared_by_ones() {
    let r = rig();
    r.put(0, 0, 0, 4, 0);
    r.put(0, 0, 8, 4, 0);
    assert_eq!((r.get(0, 0, 0, 4), r.get(0, 0, 8, 4)), (0x1237_8086, 0x0600_0002));
    let mut config = ConfigSpace::new(Identity::default());
    config.poke(0x07, 0x42);
    config.write(0x06, 2, 0x4000);
    assert_eq!(config.read(0x06, 2), 0x0280);
}

#[test]
fn the_reset_register_lies_among_the_configuration_ports() {
    let r = rig();
    r.select(1, 0, 0x60);
    r.ports.write(Port(0xCF9), 1, 0x02, 0);
    r.ports.write(Port(0xCF9), 1, 0x06, 0);
    assert_eq!(r.control.take(), ["reset"]);
    assert_eq!(r.ports.read(Port(0xCFC), 1, 0), 10, "the address register is untouched");
}

#[test]
fn base_address_registers_are_sized_and_mapped() {
    let r = with_card();
    for (register, size) in
        [(0x10, 0xFFFF_FFE1), (0x14, 0xFFFF_F000), (0x20, 0xFFFF_C00C), (0x24, 0xFFFF_FFFF), (0x18, 0)]
    {
        r.put(3, 0, register, 4, 0xFFFF_FFFF);
        assert_eq!(r.get(3, 0, register, 4), size, "{register:#x}");
    }
    for (register, value) in [(0x10, 0xC000), (0x14, 0xFEB0_0000), (0x20, 0x8000_0000), (0x24, 0x10)] {
        r.put(3, 0, register, 4, value);
    }
    assert!(!r.ports.is_mapped(Port(0xC000)));
    r.put(3, 0, 0x04, 2, 3);
    assert!(r.ports.is_mapped(Port(0xC01F)) && !r.ports.is_mapped(Port(0xC020)));
    assert!(r.memory.is_mapped(PhysAddr(0xFEB0_0FFF)) && r.memory.is_mapped(PhysAddr(0x10_8000_3FFF)));
    r.ports.write(Port(0xC004), 1, 0x77, 0);
    assert_eq!(r.ports.read(Port(0xC004), 1, 0), 0x77);
    r.put(3, 0, 0x10, 4, 0xD000);
    assert_eq!((r.ports.read(Port(0xD004), 1, 0), r.ports.is_mapped(Port(0xC000))), (0x77, false));
    let saved = r.host.lock().unwrap().save();
    r.host.lock().unwrap().reset(0);
    assert!(!r.ports.is_mapped(Port(0xD000)) && !r.memory.is_mapped(PhysAddr(0xFEB0_0000)));
    r.host.lock().unwrap().restore(&saved).unwrap();
    assert!(r.ports.is_mapped(Port(0xD000)) && r.memory.is_mapped(PhysAddr(0xFEB0_0000)));
}

#[test]
fn a_region_on_top_of_another_device_stays_away() {
    let r = with_card();
    r.put(3, 0, 0x10, 4, 0xCE0);
    r.put(3, 0, 0x04, 2, 1);
    assert_eq!(r.get(3, 0, 0, 2), 0x1AF4, "the configuration ports still answer");
    r.put(3, 0, 0x10, 4, 0xC000);
    assert!(r.ports.is_mapped(Port(0xC000)));
}

#[test]
fn capabilities_are_chained() {
    let r = with_card();
    assert_eq!(r.get(3, 0, 0x06, 2) & 0x10, 0x10);
    assert_eq!(
        (r.get(3, 0, 0x34, 1), r.get(3, 0, 0x40, 2), r.get(3, 0, 0x48, 4)),
        (0x40, 0x4811, 0x0006_0009)
    );
}

#[test]
fn two_functions_cannot_share_an_address() {
    let r = rig();
    let again = r.host.lock().unwrap().insert(
        PciAddress::new(0, 0),
        Arc::new(Mutex::new(HostBridge::new())),
        Regions::default(),
    );
    assert!(matches!(again, Err(PciError::Occupied { .. })));
}

#[test]
fn interrupt_pins_go_to_the_io_apic_and_by_route_to_the_8259() {
    let r = rig();
    assert_eq!([pirq_of(1, 1), pirq_of(1, 2), pirq_of(3, 1), pirq_of(4, 4)], [0, 1, 2, 2]);
    let (a, b) = (r.router.line(PciAddress::new(3, 0), 1), r.router.line(PciAddress::new(7, 1), 1));
    a.set(true);
    b.set(true);
    assert!(r.pins[2].level() && r.pic[11].level());
    a.set(false);
    assert!(r.pins[2].level());
    r.put(1, 0, 0x62, 1, 5);
    assert!(r.pic[5].level() && !r.pic[11].level());
    r.put(1, 0, 0x62, 1, 0x80);
    assert!(!r.pic[5].level() && r.pins[2].level());
    r.put(1, 0, 0x62, 1, 11);
    let c = r.router.line(PciAddress::new(4, 0), 1); // PIRQD, also on IRQ 11.
    c.set(true);
    b.set(false);
    assert!(r.pic[11].level());
    c.set(false);
    assert!(!r.pic[11].level());
}

#[test]
fn a_host_bridge_without_buses_does_no_harm() {
    let mut host = {
        let (ports, memory) = (Arc::new(Bus::new()), Arc::new(Bus::new()));
        PciHost::new(&ports, &memory, Arc::new(RecordedControl::default()))
    };
    let router = PirqRouter::new([0; 4].map(|_| NoLine::new()), Vec::new());
    host.insert(PciAddress::new(0, 0), Arc::new(Mutex::new(IsaBridge::new(router))), Regions::default())
        .unwrap();
    host.write(0, 4, 1 << 31, 0);
    assert_eq!(host.read(4, 4, 0), 0x7000_8086);
}
