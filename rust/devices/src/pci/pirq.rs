//! PCI interrupt routing. Each INTx pin is wired to one of four lines PIRQA to PIRQD, which go to I/O APIC pins 16 to 19 and,
//! by the ISA bridge's route registers, to inputs of the 8259A pair (82371SB data sheet 290550, 2.1.15 and 3.10).
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use super::PciAddress;
use crate::line::Junction;
use crate::{Line, State, StateError, lock};

const KIND: &str = "pirq-router";
/// The I/O APIC pin of PIRQA.
pub const PIRQ_FIRST_PIN: u8 = 16;
/// A route register's "not routed" bit; its reset value.
pub(super) const DISABLED: u8 = 0x80;
/// Inputs a PIRQ can be routed to.
const ROUTABLE: u16 = 0xDEF8;

/// Which PIRQ (0 to 3) the pin (1 to 4 for INTA to INTD) of a slot is wired to. The DSDT's _PRT says the same.
pub fn pirq_of(slot: u8, pin: u8) -> u8 {
    slot.wrapping_add(pin).wrapping_sub(2) & 3
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Registers {
    /// Which functions (slot times 8 plus function) assert each PIRQ.
    sources: [[u64; 4]; 4],
    routes: [u8; 4],
}

/// The four lines and where they lead.
#[derive(Debug)]
pub struct PirqRouter {
    registers: Mutex<Registers>,
    pins: [Arc<dyn Line>; 4],
    pic: Vec<Arc<dyn Line>>,
}

impl PirqRouter {
    /// A router to I/O APIC `pins` 16 to 19 and the inputs `pic` 0 to 15 of the 8259A pair.
    pub fn new(pins: [Arc<dyn Line>; 4], pic: Vec<Arc<dyn Line>>) -> Arc<PirqRouter> {
        let registers = Registers { sources: [[0; 4]; 4], routes: [DISABLED; 4] };
        Arc::new(PirqRouter { registers: Mutex::new(registers), pins, pic })
    }

    /// The line for interrupt pin `pin` (1 to 4) of a function.
    pub fn line(self: &Arc<Self>, address: PciAddress, pin: u8) -> Arc<dyn Line> {
        Arc::new(IntxLine {
            router: Arc::clone(self),
            pirq: pirq_of(address.slot, pin).into(),
            source: address.slot << 3 | address.function,
        })
    }

    /// A route register is written.
    pub(super) fn set_route(&self, pirq: usize, value: u8) {
        let mut registers = lock(&self.registers);
        let old = registers.routes[pirq & 3];
        if old == value {
            return;
        }
        registers.routes[pirq & 3] = value;
        for route in [old, value] {
            self.drive_pic(&registers, route);
        }
    }

    fn set_source(&self, pirq: usize, source: u8, level: bool) {
        let mut registers = lock(&self.registers);
        let before = registers.sources[pirq] != [0; 4];
        let (word, bit) = (usize::from(source >> 6), 1u64 << (source & 63));
        let sources = &mut registers.sources[pirq][word];
        *sources = if level { *sources | bit } else { *sources & !bit };
        if before != (registers.sources[pirq] != [0; 4]) {
            self.pins[pirq].set(level);
            self.drive_pic(&registers, registers.routes[pirq]);
        }
    }

    /// Drives the 8259A input of a route with all the PIRQs that share it.
    fn drive_pic(&self, registers: &Registers, route: u8) {
        if let Some(line) = destination(route).and_then(|irq| self.pic.get(irq)) {
            let asserted = |pirq: usize| registers.sources[pirq] != [0; 4];
            let here = |pirq: usize| destination(registers.routes[pirq]) == destination(route);
            line.set((0..4).any(|pirq| here(pirq) && asserted(pirq)));
        }
    }
}

impl Junction for PirqRouter {
    fn save(&self) -> State {
        State::encode(KIND, 1, &*lock(&self.registers))
    }

    fn restore(&self, state: &State) -> Result<(), StateError> {
        *lock(&self.registers) = state.decode(KIND, 1)?;
        Ok(())
    }
}

fn destination(route: u8) -> Option<usize> {
    let irq = route & 0xF;
    (route & DISABLED == 0 && ROUTABLE & 1 << irq != 0).then_some(irq.into())
}

#[derive(Debug)]
struct IntxLine {
    router: Arc<PirqRouter>,
    pirq: usize,
    source: u8,
}

impl Line for IntxLine {
    fn set(&self, level: bool) {
        self.router.set_source(self.pirq, self.source, level);
    }
}
