//! Port 61h, the system control port of the AT: gate and output of PIT channel 2, the speaker's switch, the refresh toggle
//! and the NMI status bits (PIIX4 data sheet 82371AB, 4.2.6.1, "NMISC"). Linux calibrates its TSC through it.
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use crate::line::Output;
use crate::pit::Pit;
use crate::{Device, Line, Nanos, State, StateError, lock};

const KIND: &str = "port-61";
const GATE_2: u8 = 0x01;
const SPEAKER: u8 = 0x02;
/// Writing one disables and clears the source: system error, I/O channel check.
const SERR_DISABLE: u8 = 0x04;
const IOCHK_DISABLE: u8 = 0x08;
const REFRESH: u8 = 0x10;
const OUTPUT_2: u8 = 0x20;
const IOCHK: u8 = 0x40;
const SERR: u8 = 0x80;
const WRITABLE: u8 = GATE_2 | SPEAKER | SERR_DISABLE | IOCHK_DISABLE;
/// Half of the refresh toggle's period.
const REFRESH_NANOS: Nanos = 15_085;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Registers {
    control: u8,
    /// IOCHK and SERR as they were latched.
    errors: u8,
}

/// The port. Holds the PIT it is soldered to; its lock is taken before the PIT's.
#[derive(Debug)]
pub struct Port61 {
    registers: Registers,
    pit: Arc<Mutex<Pit>>,
    nmi: Output,
}

impl Port61 {
    /// A port on `pit`; `nmi` is high while an enabled error is latched.
    pub fn new(pit: Arc<Mutex<Pit>>, nmi: Arc<dyn Line>) -> Port61 {
        Port61 { registers: Registers::default(), pit, nmi: Output::new(nmi) }
    }

    /// An I/O channel check, as a parity error on an ISA card gives.
    pub fn channel_check(&mut self) {
        if self.registers.control & IOCHK_DISABLE == 0 {
            self.registers.errors |= IOCHK;
        }
        self.update();
    }

    /// A system error on the PCI bus.
    pub fn system_error(&mut self) {
        if self.registers.control & SERR_DISABLE == 0 {
            self.registers.errors |= SERR;
        }
        self.update();
    }

    /// Whether the speaker's data switch is on.
    pub fn speaker(&self) -> bool {
        self.registers.control & SPEAKER != 0
    }

    fn update(&mut self) {
        self.nmi.set(self.registers.errors != 0);
    }
}

impl Device for Port61 {
    fn name(&self) -> &'static str {
        KIND
    }

    fn read(&mut self, offset: u64, size: u8, now: Nanos) -> u64 {
        crate::read_bytes(offset, size, |_| {
            let refresh = if now / REFRESH_NANOS % 2 != 0 { REFRESH } else { 0 };
            let output = if lock(&self.pit).output(2, now) { OUTPUT_2 } else { 0 };
            self.registers.control | self.registers.errors | refresh | output
        })
    }

    fn write(&mut self, offset: u64, size: u8, value: u64, now: Nanos) {
        crate::write_bytes(offset, size, value, |_, byte| {
            self.registers.control = byte & WRITABLE;
            if byte & SERR_DISABLE != 0 {
                self.registers.errors &= !SERR;
            }
            if byte & IOCHK_DISABLE != 0 {
                self.registers.errors &= !IOCHK;
            }
            lock(&self.pit).set_gate(2, byte & GATE_2 != 0, now);
        });
        self.update();
    }

    fn reset(&mut self, now: Nanos) {
        self.registers = Registers::default();
        lock(&self.pit).set_gate(2, false, now);
        self.update();
    }

    fn save(&self) -> State {
        State::encode(KIND, 1, &self.registers)
    }

    fn restore(&mut self, state: &State) -> Result<(), StateError> {
        self.registers = state.decode(KIND, 1)?;
        self.nmi.assume(self.registers.errors != 0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NoLine;
    use crate::line::Probe;

    fn port() -> (Port61, Arc<Probe>, Arc<Mutex<Pit>>) {
        let (nmi, pit) = (Probe::new(), Arc::new(Mutex::new(Pit::new(NoLine::new()))));
        (Port61::new(pit.clone(), nmi.clone()), nmi, pit)
    }

    #[test]
    fn gate_and_output_of_channel_2_are_reached() {
        let (mut port, _, pit) = port();
        // Linux: gate on, speaker off, then mode 0 and wait for the output.
        port.write(0, 1, 0x01, 0);
        for (offset, value) in [(3, 0xB0), (2, 0x10), (2, 0x00)] {
            lock(&pit).write(offset, 1, value, 0);
        }
        assert_eq!(port.read(0, 1, 5_000) as u8 & OUTPUT_2, 0);
        assert_eq!(port.read(0, 1, 20_000) as u8 & OUTPUT_2, OUTPUT_2);
        port.write(0, 1, 0x00, 20_000);
        assert_eq!(port.read(0, 1, 20_000) as u8 & 0x0F, 0);
    }

    #[test]
    fn refresh_toggles() {
        let (mut port, _, _) = port();
        let bit = |now, port: &mut Port61| port.read(0, 1, now) as u8 & REFRESH;
        assert_ne!(bit(0, &mut port), bit(REFRESH_NANOS, &mut port));
        assert_eq!(bit(0, &mut port), bit(2 * REFRESH_NANOS, &mut port));
    }

    #[test]
    fn an_error_is_latched_until_its_source_is_disabled() {
        let (mut port, nmi, _) = port();
        port.channel_check();
        assert!(nmi.level());
        assert_eq!(port.read(0, 1, 0) as u8 & IOCHK, IOCHK);
        port.write(0, 1, 0x08, 0);
        assert!(!nmi.level());
        port.channel_check();
        assert!(!nmi.level());
        port.write(0, 1, 0x00, 0);
        port.system_error();
        assert!(nmi.level());
        assert_eq!(port.read(0, 1, 0) as u8 & (IOCHK | SERR), SERR);
    }
}
