//! The PC board of `full` and `hardware`: which chips there are, where they answer, and how they are wired.
//!
//! This file only wires. Addresses and interrupt numbers are those of [`crate::firmware::layout`], which the ACPI tables
//! are made from as well.

mod platform;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use trapgate_devices::acpi_pm::{AcpiPm, AcpiPmConfig, PM_BLOCK_LENGTH};
use trapgate_devices::apic::{
    ApicFabric, ApicPort, IoApic, IoApicConfig, IoApicInput, Kick, LocalApic, LocalApicConfig, LocalPin,
    TscClock,
};
use trapgate_devices::debug::{DebugConsole, DebugExit};
use trapgate_devices::dma::{DMA_PAGES, DMA_SECOND, Dma};
use trapgate_devices::hpet::{Hpet, HpetLines};
use trapgate_devices::i8042::I8042;
use trapgate_devices::line::{Junction, Selector, Splitter};
use trapgate_devices::pci::{
    HostBridge, IsaBridge, PIRQ_FIRST_PIN, PciAddress, PciError, PciFunction, PciHost, PirqRouter,
    PowerManagement, PowerManagementConfig, Regions,
};
use trapgate_devices::pic::{PicInput, PicPair};
use trapgate_devices::pit::Pit;
use trapgate_devices::port61::Port61;
use trapgate_devices::rtc::{Rtc, RtcConfig};
use trapgate_devices::system::{CoprocessorError, Port92, SmBus};
use trapgate_devices::uart::Uart;
use trapgate_devices::{
    Bus, BusError, ByteSink, Device, Line, MachineControl, Nanos, NoLine, PhysAddr, Port, lock,
};
use trapgate_engine::Requests;
use trapgate_x86::features::Features;
use trapgate_x86::model::Model;

use crate::boot::MemoryMap;
use crate::clock::TSC_HZ;
use crate::console::Console;
use crate::firmware::layout;
use crate::signal::Signal;

pub(crate) use platform::PcPlatform;

/// Why the board cannot be wired.
#[derive(Debug, thiserror::Error)]
pub enum BoardError {
    #[error(transparent)]
    Bus(#[from] BusError),
    #[error(transparent)]
    Pci(#[from] PciError),
}

type Chip = Arc<Mutex<dyn Device>>;

/// Every chip once, in a fixed order: for reset and state.
#[derive(Debug, Default)]
struct Chips {
    all: Vec<Chip>,
    /// Those of them that change an output by themselves; asked for their deadline after every access to a device.
    timed: Vec<Chip>,
    /// Wiring that remembers levels.
    junctions: Vec<Arc<dyn Junction>>,
}

impl Chips {
    fn add<D: Device + 'static>(&mut self, chip: Arc<Mutex<D>>) {
        self.all.push(chip);
    }

    fn add_timed<D: Device + 'static>(&mut self, chip: Arc<Mutex<D>>) {
        self.timed.push(Arc::clone(&chip) as Chip);
        self.all.push(chip);
    }
}

/// The chips of one machine and the buses they are on.
#[derive(Debug)]
pub struct PcBoard {
    pub ports: Arc<Bus<Port>>,
    pub memory: Arc<Bus<PhysAddr>>,
    chips: Chips,
    pub(crate) pic: Arc<Mutex<PicPair>>,
    pub(crate) local_apic: Arc<Mutex<LocalApic>>,
    /// The part of the local APIC that needs no lock.
    pub(crate) apic_port: Arc<ApicPort>,
    pub(crate) com1: Arc<Mutex<Uart>>,
    pub(crate) power: Arc<Mutex<AcpiPm>>,
    io_apic: Arc<Mutex<IoApic>>,
    /// Count at which the run loop last served the chips.
    served: AtomicU64,
    /// How often a vCPU asked its surroundings for anything.
    accesses: AtomicU64,
}

/// What the board is built from, besides the chips.
#[derive(Debug)]
pub(crate) struct Parts<'a> {
    pub requests: &'a Arc<Requests>,
    pub signal: &'a Arc<Signal>,
    pub console: &'a Arc<Console>,
    pub model: &'a Model,
    pub memory: &'a MemoryMap,
    pub epoch_seconds: i64,
    pub debug_console: Option<&'a Arc<Console>>,
    pub debug_exit: bool,
}

/// The other end of a serial line that nothing is plugged into.
#[derive(Debug)]
struct Unplugged;

impl ByteSink for Unplugged {
    fn put(&mut self, _byte: u8) {}
}

/// Tells the vCPU that its local APIC has something for it.
struct VcpuKick {
    requests: Arc<Requests>,
    signal: Arc<Signal>,
}

impl Kick for VcpuKick {
    fn kick(&self) {
        self.requests.post(Requests::INTERRUPT);
        self.signal.wake();
    }
}

/// The interrupt controllers, and the lines that lead to them.
struct Interrupts {
    pic: Arc<Mutex<PicPair>>,
    io_apic: Arc<Mutex<IoApic>>,
    local_apic: Arc<Mutex<LocalApic>>,
    apic_port: Arc<ApicPort>,
}

impl Interrupts {
    fn new(parts: &Parts<'_>) -> Self {
        let fabric = ApicFabric::new();
        let kick = VcpuKick { requests: Arc::clone(parts.requests), signal: Arc::clone(parts.signal) };
        let config = LocalApicConfig {
            id: 0,
            bootstrap: true,
            x2apic: parts.model.features.contains(Features::X2APIC),
            physical_bits: parts.model.physical_bits,
            timer_hz: u64::from(parts.model.crystal_hz),
            tsc: TscClock { hz: TSC_HZ, offset: 0 },
            virtual_wire: true,
        };
        let local_apic = LocalApic::new(config, Arc::clone(&fabric) as _, Arc::new(kick));
        let apic_port = Arc::clone(local_apic.port());
        let io = IoApicConfig { id: layout::IO_APIC_ID };
        let io_apic = Arc::new(Mutex::new(IoApic::new(io, Arc::clone(&fabric) as _)));
        fabric.attach_io(&io_apic);
        let pic = Arc::new(Mutex::new(PicPair::new(LocalPin::new(&apic_port, 0))));
        Interrupts { pic, io_apic, local_apic: Arc::new(Mutex::new(local_apic)), apic_port }
    }

    fn isa(&self, irq: u8) -> Arc<dyn Line> {
        isa_line(&self.pic, &self.io_apic, irq)
    }
}

/// An ISA interrupt line: to its 8259 input, and to the I/O APIC input that the MADT names for it.
fn isa_line(pic: &Arc<Mutex<PicPair>>, io_apic: &Arc<Mutex<IoApic>>, irq: u8) -> Arc<dyn Line> {
    let pin = if irq == layout::IRQ_TIMER { layout::GSI_TIMER as u8 } else { irq };
    Splitter::new(vec![PicInput::new(pic, irq), IoApicInput::new(io_apic, pin)])
}

impl PcBoard {
    /// Builds and wires the board.
    pub(crate) fn new(parts: &Parts<'_>) -> Result<Self, BoardError> {
        let ports = Arc::new(Bus::new());
        let memory = Arc::new(Bus::new());
        let interrupts = Interrupts::new(parts);
        let mut chips = Chips::default();
        timers(parts, &interrupts, &ports, &memory, &mut chips)?;
        let com1 = Uart::new(parts.console.sink(), interrupts.isa(layout::IRQ_COM1));
        let com1 = Arc::new(Mutex::new(com1));
        ports.insert(Port(layout::COM1), 8, &com1, 0)?;
        chips.add_timed(Arc::clone(&com1));
        let com2 = Uart::new(Box::new(Unplugged), interrupts.isa(layout::IRQ_COM2));
        let com2 = Arc::new(Mutex::new(com2));
        ports.insert(Port(layout::COM2), 8, &com2, 0)?;
        chips.add_timed(com2);
        let power = power(parts, &interrupts, &ports, &mut chips)?;
        keyboard(parts, &interrupts, &ports, &mut chips)?;
        chipset(parts, &interrupts, &ports, &memory, &mut chips)?;
        debug_ports(parts, &ports, &mut chips)?;
        let Interrupts { pic, io_apic, local_apic, apic_port } = interrupts;
        ports.insert(Port(layout::PIC_1), 2, &pic, 0)?;
        ports.insert(Port(layout::PIC_2), 2, &pic, 2)?;
        ports.insert(Port(layout::ELCR), 2, &pic, 4)?;
        // What firmware does: the SCI and the PCI lines are level-triggered.
        let level = layout::PCI_IRQS.iter().fold(1u64 << layout::IRQ_SCI, |bits, irq| bits | 1 << irq);
        ports.write(Port(layout::ELCR), 2, level, 0);
        let size = layout::IO_APIC.end - layout::IO_APIC.start;
        memory.insert(PhysAddr(layout::IO_APIC.start), size, &io_apic, 0)?;
        chips.add(Arc::clone(&pic));
        chips.add(Arc::clone(&io_apic));
        chips.add_timed(Arc::clone(&local_apic));
        Ok(PcBoard {
            ports,
            memory,
            chips,
            pic,
            local_apic,
            apic_port,
            com1,
            power,
            io_apic,
            served: AtomicU64::new(0),
            accesses: AtomicU64::new(0),
        })
    }

    /// The earliest time at which a chip changes an output by itself.
    pub fn deadline(&self) -> Option<Nanos> {
        self.chips.timed.iter().filter_map(|chip| lock(chip).deadline()).min()
    }

    /// Brings every chip whose time has come up to `now`.
    pub fn advance(&self, now: Nanos) {
        for chip in &self.chips.timed {
            let mut chip = lock(chip);
            if chip.deadline().is_some_and(|due| due <= now) {
                chip.advance(now);
            }
        }
    }

    /// What the reset line of the board does.
    pub fn reset(&self, now: Nanos) {
        for chip in &self.chips.all {
            lock(chip).reset(now);
        }
    }

    /// State records of all chips and junctions, in their fixed order.
    pub fn save(&self) -> Vec<trapgate_devices::State> {
        let chips = self.chips.all.iter().map(|chip| lock(chip).save());
        chips.chain(self.chips.junctions.iter().map(|junction| junction.save())).collect()
    }

    /// An ISA interrupt line (0 to 15) for a device that the user adds; lines that the board's own chips drive are
    /// theirs.
    pub fn irq_line(&self, irq: u8) -> Arc<dyn Line> {
        isa_line(&self.pic, &self.io_apic, irq & 15)
    }

    /// Presses the power button: the guest gets an ACPI event and decides.
    pub fn press_power_button(&self) {
        lock(&self.power).press_power_button();
    }

    /// The run loop has looked at the chips: no timer calls for it again before the guest has made some headway.
    pub(crate) fn served(&self, count: u64) {
        self.served.store(count, Ordering::Relaxed);
    }

    pub(crate) fn last_served(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }

    pub(crate) fn note_access(&self) {
        self.accesses.fetch_add(1, Ordering::Relaxed);
    }

    /// How often a vCPU has asked its surroundings for anything: ports, device memory, its local APIC, time, randomness.
    /// An instruction that does not change it depends on registers and RAM alone.
    pub fn accesses(&self) -> u64 {
        self.accesses.load(Ordering::Relaxed)
    }

    /// Hands console input to the UART as far as there is room.
    pub(crate) fn feed(&self, console: &Console, now: Nanos) {
        if console.has_input() {
            let mut uart = lock(&self.com1);
            let bytes = console.take_input(uart.room());
            uart.receive(&bytes, now);
        }
    }

    /// Whether [`Self::feed`] would hand over something.
    pub(crate) fn can_feed(&self, console: &Console) -> bool {
        console.has_input() && lock(&self.com1).room() > 0
    }
}

/// PIT with port 61h, RTC and HPET. IRQ 0 and IRQ 8 belong to the HPET while it replaces the older timers.
fn timers(
    parts: &Parts<'_>,
    interrupts: &Interrupts,
    ports: &Bus<Port>,
    memory: &Bus<PhysAddr>,
    chips: &mut Chips,
) -> Result<(), BusError> {
    let irq0 = Selector::new(interrupts.isa(layout::IRQ_TIMER));
    let irq8 = Selector::new(interrupts.isa(layout::IRQ_RTC));
    let pit = Arc::new(Mutex::new(Pit::new(irq0.source(0))));
    let nmi = LocalPin::new(&interrupts.apic_port, 1);
    let port61 = Arc::new(Mutex::new(Port61::new(Arc::clone(&pit), nmi)));
    let low = parts.memory.low_end();
    let config = RtcConfig {
        epoch_seconds: parts.epoch_seconds,
        low_memory: low,
        high_memory: parts.memory.ram() - low,
    };
    let rtc = Arc::new(Mutex::new(Rtc::new(config, irq8.source(0), NoLine::new())));
    let pin = |n: u8| IoApicInput::new(&interrupts.io_apic, n);
    let hpet = Arc::new(Mutex::new(Hpet::new(HpetLines {
        legacy: [irq0.source(1), irq8.source(1)],
        legacy_select: Splitter::new(vec![irq0.select(), irq8.select()]),
        pins: [pin(20), pin(21), pin(22), pin(23)],
    })));
    ports.insert(Port(layout::PIT), 4, &pit, 0)?;
    ports.insert(Port(layout::PORT_61), 1, &port61, 0)?;
    ports.insert(Port(layout::RTC), 4, &rtc, 0)?;
    memory.insert(PhysAddr(layout::HPET.start), layout::HPET.end - layout::HPET.start, &hpet, 0)?;
    chips.add_timed(pit);
    chips.add(port61);
    chips.add_timed(rtc);
    chips.add_timed(hpet);
    chips.junctions.push(irq0);
    chips.junctions.push(irq8);
    Ok(())
}

/// ACPI power management.
fn power(
    parts: &Parts<'_>,
    interrupts: &Interrupts,
    ports: &Bus<Port>,
    chips: &mut Chips,
) -> Result<Arc<Mutex<AcpiPm>>, BusError> {
    let control = Arc::clone(parts.signal) as Arc<dyn MachineControl>;
    let config = AcpiPmConfig { sci_enabled: true, timer_32_bits: false };
    let pm = Arc::new(Mutex::new(AcpiPm::new(config, control, interrupts.isa(layout::IRQ_SCI))));
    ports.insert(Port(layout::PM_BASE), PM_BLOCK_LENGTH, &pm, 0)?;
    chips.add_timed(Arc::clone(&pm));
    Ok(pm)
}

/// The keyboard controller; A20 is always open, as on every board that such guests run on.
fn keyboard(
    parts: &Parts<'_>,
    interrupts: &Interrupts,
    ports: &Bus<Port>,
    chips: &mut Chips,
) -> Result<(), BusError> {
    let control = Arc::clone(parts.signal) as Arc<dyn MachineControl>;
    let lines = (interrupts.isa(layout::IRQ_KEYBOARD), interrupts.isa(layout::IRQ_MOUSE));
    let chip = Arc::new(Mutex::new(I8042::new(control, lines.0, lines.1, NoLine::new())));
    ports.insert(Port(layout::KEYBOARD_DATA), 1, &chip, 0)?;
    ports.insert(Port(layout::KEYBOARD_COMMAND), 1, &chip, 4)?;
    chips.add(chip);
    Ok(())
}

/// The PCI host bridge with the chipset's functions, and the small ISA system ports.
fn chipset(
    parts: &Parts<'_>,
    interrupts: &Interrupts,
    ports: &Arc<Bus<Port>>,
    memory: &Arc<Bus<PhysAddr>>,
    chips: &mut Chips,
) -> Result<(), BoardError> {
    let control = || Arc::clone(parts.signal) as Arc<dyn MachineControl>;
    let pin = |n: u8| IoApicInput::new(&interrupts.io_apic, n);
    let pic = (0..16).map(|irq| PicInput::new(&interrupts.pic, irq)).collect();
    let first = PIRQ_FIRST_PIN;
    let router = PirqRouter::new([pin(first), pin(first + 1), pin(first + 2), pin(first + 3)], pic);
    let mut host = PciHost::new(ports, memory, control());
    let none = || Regions::default();
    chips.junctions.push(Arc::clone(&router) as _);
    let mut isa = IsaBridge::new(router);
    // What firmware does: routes the four PCI lines to 8259 inputs (route registers 60h to 63h).
    for (register, irq) in (0x60..).zip(layout::PCI_IRQS) {
        isa.write_config(register, 1, u32::from(irq), 0);
    }
    let places = PowerManagementConfig { pm_base: layout::PM_BASE, smbus_base: layout::SMBUS };
    let slot = |function| PciAddress::new(layout::CHIPSET_SLOT, function);
    host.insert(PciAddress::new(0, 0), Arc::new(Mutex::new(HostBridge::new())), none())?;
    host.insert(slot(0), Arc::new(Mutex::new(isa)), none())?;
    host.insert(slot(3), Arc::new(Mutex::new(PowerManagement::new(places))), none())?;
    let host = Arc::new(Mutex::new(host));
    ports.insert(Port(layout::PCI_ADDRESS), 8, &host, 0)?;
    let smbus = Arc::new(Mutex::new(SmBus::new()));
    ports.insert(Port(layout::SMBUS), SmBus::LENGTH, &smbus, 0)?;
    let dma = Arc::new(Mutex::new(Dma::new()));
    ports.insert(Port(layout::DMA_1), 16, &dma, 0)?;
    ports.insert(Port(layout::POST_CODE), 16, &dma, DMA_PAGES)?;
    ports.insert(Port(layout::DMA_2), 32, &dma, DMA_SECOND)?;
    let port92 = Arc::new(Mutex::new(Port92::new(control(), NoLine::new())));
    ports.insert(Port(layout::PORT_92), 1, &port92, 0)?;
    let coprocessor = CoprocessorError::new(interrupts.isa(layout::IRQ_COPROCESSOR));
    let coprocessor = Arc::new(Mutex::new(coprocessor));
    ports.insert(Port(layout::COPROCESSOR), 1, &coprocessor, 0)?;
    chips.add(host);
    chips.add(smbus);
    chips.add(dma);
    chips.add(port92);
    chips.add(coprocessor);
    Ok(())
}

/// Ports that no PC has, on request.
fn debug_ports(parts: &Parts<'_>, ports: &Bus<Port>, chips: &mut Chips) -> Result<(), BusError> {
    if let Some(console) = parts.debug_console {
        let chip = Arc::new(Mutex::new(DebugConsole::new(console.sink())));
        ports.insert(Port(layout::DEBUG_CONSOLE), 1, &chip, 0)?;
        chips.add(chip);
    }
    if parts.debug_exit {
        let control = Arc::clone(parts.signal) as Arc<dyn MachineControl>;
        let chip = Arc::new(Mutex::new(DebugExit::new(control)));
        ports.insert(Port(layout::DEBUG_EXIT), 4, &chip, 0)?;
        chips.add(chip);
    }
    Ok(())
}
