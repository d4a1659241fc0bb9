//! The I/O APIC: 82093AA with the end-of-interrupt register of later versions (Intel data sheet 290566; ICH9 data sheet
//! 316972, 13.5). 24 pins, each turned into a message by its redirection entry.
//!
//! Lines carry "asserted", not a voltage, so the polarity bit is kept and otherwise ignored: a pin is active when its
//! line is high.
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use super::{ApicBus, Delivery, Message, byte_destination};
use crate::{Device, Line, Nanos, State, StateError, all_ones, lock};

const KIND: &str = "io-apic";
/// Interrupt inputs.
const PINS: usize = 24;
/// Version 20h has the end-of-interrupt register; the maximum entry number is in bits 23:16.
const VERSION: u32 = (PINS as u32 - 1) << 16 | 0x20;

/// Register window offsets.
const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;
const END_OF_INTERRUPT: u64 = 0x40;

/// Redirection entry (data sheet, 3.2.4).
const LOGICAL: u64 = 1 << 11;
const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
const WRITABLE: u64 = 0xFF00_0000_0001_AFFF;

/// What is particular to one I/O APIC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoApicConfig {
    /// The ID after reset, 0 to 15. Firmware gives it the number in the MADT.
    pub id: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Registers {
    id: u8,
    select: u8,
    entries: [u64; PINS],
    /// Asserted inputs.
    lines: u32,
}

/// The I/O APIC.
#[derive(Debug)]
pub struct IoApic {
    config: IoApicConfig,
    registers: Registers,
    bus: Arc<dyn ApicBus>,
}

impl IoApic {
    /// An I/O APIC that sends to `bus`.
    pub fn new(config: IoApicConfig, bus: Arc<dyn ApicBus>) -> IoApic {
        IoApic { config, registers: Self::initial(config), bus }
    }

    fn initial(config: IoApicConfig) -> Registers {
        Registers { id: config.id & 0xF, select: 0, entries: [MASKED; PINS], lines: 0 }
    }

    /// Drives input `pin`.
    pub fn set_pin(&mut self, pin: u8, level: bool) {
        let Some(&entry) = self.registers.entries.get(usize::from(pin)) else { return };
        let bit = 1u32 << pin;
        let was = self.registers.lines & bit != 0;
        if level {
            self.registers.lines |= bit;
        } else {
            self.registers.lines &= !bit;
        }
        // An edge on a masked pin is lost, a level is looked at again (data sheet, "Interrupt Mask").
        if level && !was && entry & LEVEL == 0 && entry & MASKED == 0 {
            self.send(pin.into());
        } else {
            self.serve_level(pin.into());
        }
    }

    /// A local APIC has ended `vector`, or the guest has written the end-of-interrupt register.
    pub fn end_of_interrupt(&mut self, vector: u8) {
        for pin in 0..PINS {
            let entry = self.registers.entries[pin];
            if entry & (LEVEL | REMOTE_IRR) == LEVEL | REMOTE_IRR && entry as u8 == vector {
                self.registers.entries[pin] &= !REMOTE_IRR;
                self.serve_level(pin);
            }
        }
    }

    /// Sends for a level-triggered pin that is asserted, unmasked and not already being served.
    fn serve_level(&mut self, pin: usize) {
        let entry = self.registers.entries[pin];
        if self.registers.lines & 1 << pin != 0 && entry & (LEVEL | MASKED | REMOTE_IRR) == LEVEL {
            self.registers.entries[pin] |= REMOTE_IRR;
            self.send(pin);
        }
    }

    fn send(&self, pin: usize) {
        let entry = self.registers.entries[pin];
        let Some(delivery) = Delivery::from_bits((entry >> 8) as u8) else { return };
        // NMI, INIT and ExtINT are edge-triggered whatever the entry says.
        let vectored = matches!(delivery, Delivery::Fixed | Delivery::LowestPriority);
        self.bus.send(
            Message {
                destination: byte_destination((entry >> 56) as u8, entry & LOGICAL != 0),
                delivery,
                vector: entry as u8,
                level: vectored && entry & LEVEL != 0,
            },
            None,
        );
    }

    fn read_register(&self) -> u32 {
        match self.registers.select {
            0x00 | 0x02 => u32::from(self.registers.id) << 24,
            0x01 => VERSION,
            0x03 => 1, // Boot configuration: interrupt messages go over the system bus.
            select => match self.registers.entries.get(usize::from(select.wrapping_sub(0x10) / 2)) {
                Some(entry) if select >= 0x10 => (entry >> (32 * u32::from(select & 1))) as u32,
                _ => u32::MAX,
            },
        }
    }

    fn write_register(&mut self, value: u32) {
        let select = self.registers.select;
        if select == 0x00 {
            self.registers.id = (value >> 24) as u8 & 0xF;
        }
        let pin = usize::from(select.wrapping_sub(0x10) / 2);
        if select < 0x10 || pin >= PINS {
            return;
        }
        let entry = &mut self.registers.entries[pin];
        let (shift, other) = if select & 1 != 0 { (32, 0xFFFF_FFFF) } else { (0, 0xFFFF_FFFF_0000_0000) };
        let kept = *entry & (other | !WRITABLE);
        *entry = kept | u64::from(value) << shift & WRITABLE;
        // Switching an entry to edge forgets the interrupt in service; older I/O APICs are ended that way.
        if *entry & LEVEL == 0 {
            *entry &= !REMOTE_IRR;
        }
        self.serve_level(pin);
    }
}

impl Device for IoApic {
    fn name(&self) -> &'static str {
        KIND
    }

    /// Narrow reads give their part of the 32-bit register.
    fn read(&mut self, offset: u64, size: u8, _now: Nanos) -> u64 {
        let value = match offset & !3 {
            SELECT => u32::from(self.registers.select),
            WINDOW => self.read_register(),
            _ => u32::MAX,
        };
        if size == 8 {
            u64::from(value) | !0xFFFF_FFFF
        } else {
            u64::from(value) >> (8 * (offset & 3)) & all_ones(size)
        }
    }

    /// The index register is eight bits wide; the others take 32-bit writes only.
    fn write(&mut self, offset: u64, size: u8, value: u64, _now: Nanos) {
        match offset {
            SELECT => self.registers.select = value as u8,
            WINDOW if size >= 4 => self.write_register(value as u32),
            END_OF_INTERRUPT => self.end_of_interrupt(value as u8),
            _ => {}
        }
    }

    fn reset(&mut self, _now: Nanos) {
        self.registers = Registers { lines: self.registers.lines, ..Self::initial(self.config) };
    }

    fn save(&self) -> State {
        State::encode(KIND, 1, &self.registers)
    }

    fn restore(&mut self, state: &State) -> Result<(), StateError> {
        self.registers = state.decode(KIND, 1)?;
        Ok(())
    }
}

/// One input of an [`IoApic`] as a line.
#[derive(Debug)]
pub struct IoApicInput {
    chip: Arc<Mutex<IoApic>>,
    pin: u8,
}

impl IoApicInput {
    /// The line into `pin`.
    #[expect(clippy::new_ret_no_self, reason = "a line is only ever held as one")]
    pub fn new(chip: &Arc<Mutex<IoApic>>, pin: u8) -> Arc<dyn Line> {
        Arc::new(IoApicInput { chip: Arc::clone(chip), pin })
    }
}

impl Line for IoApicInput {
    fn set(&self, level: bool) {
        lock(&self.chip).set_pin(self.pin, level);
    }
}
