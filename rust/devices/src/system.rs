//! The small system ports: 92h (fast A20 and reset), CF9h (reset control) and F0h (coprocessor error). PIIX4 data sheet
//! 82371AB, 4.2.6 and 4.2.8; PS/2 Hardware Interface Technical Reference, "System Control Port A".
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::line::Output;
use crate::{Device, Line, MachineControl, Nanos, State, StateError, all_ones};

/// Port 92h: bit 1 opens the A20 gate, bit 0 resets the processor when it goes from 0 to 1.
#[derive(Debug)]
pub struct Port92 {
    value: u8,
    control: Arc<dyn MachineControl>,
    a20: Output,
}

impl Port92 {
    const KIND: &'static str = "port-92";
    const RESET: u8 = 0x01;
    const A20: u8 = 0x02;

    /// A port whose A20 output, low at first, is to be or-ed with the keyboard controller's.
    pub fn new(control: Arc<dyn MachineControl>, a20: Arc<dyn Line>) -> Port92 {
        Port92 { value: 0, control, a20: Output::new(a20) }
    }
}

impl Device for Port92 {
    fn name(&self) -> &'static str {
        Self::KIND
    }

    fn read(&mut self, offset: u64, size: u8, _now: Nanos) -> u64 {
        crate::read_bytes(offset, size, |_| self.value)
    }

    fn write(&mut self, offset: u64, size: u8, value: u64, _now: Nanos) {
        crate::write_bytes(offset, size, value, |_, byte| {
            if byte & !self.value & Self::RESET != 0 {
                self.control.reset();
            }
            self.value = byte & (Self::RESET | Self::A20);
        });
        self.a20.set(self.value & Self::A20 != 0);
    }

    fn reset(&mut self, _now: Nanos) {
        self.value = 0;
        self.a20.set(false);
    }

    fn save(&self) -> State {
        State::encode(Self::KIND, 1, &self.value)
    }

    fn restore(&mut self, state: &State) -> Result<(), StateError> {
        self.value = state.decode(Self::KIND, 1)?;
        self.a20.assume(self.value & Self::A20 != 0);
        Ok(())
    }
}

/// Port CF9h: bit 2 going from 0 to 1 resets the machine; bits 1 and 3 say how hard, which is one and the same here. It lies
/// among the PCI configuration ports, so [`crate::pci::PciHost`] holds one.
#[derive(Debug)]
pub struct ResetControl {
    value: u8,
    control: Arc<dyn MachineControl>,
}

impl ResetControl {
    const KIND: &'static str = "reset-control";
    const RESET: u8 = 0x04;
    const KEPT: u8 = 0x0E;

    /// A register that asks `control` for the reset.
    pub fn new(control: Arc<dyn MachineControl>) -> ResetControl {
        ResetControl { value: 0, control }
    }
}

impl Device for ResetControl {
    fn name(&self) -> &'static str {
        Self::KIND
    }

    fn read(&mut self, offset: u64, size: u8, _now: Nanos) -> u64 {
        crate::read_bytes(offset, size, |_| self.value)
    }

    fn write(&mut self, offset: u64, size: u8, value: u64, _now: Nanos) {
        crate::write_bytes(offset, size, value, |_, byte| {
            if byte & !self.value & Self::RESET != 0 {
                self.control.reset();
            }
            self.value = byte & Self::KEPT;
        });
    }

    fn reset(&mut self, _now: Nanos) {
        self.value = 0;
    }

    fn save(&self) -> State {
        State::encode(Self::KIND, 1, &self.value)
    }

    fn restore(&mut self, state: &State) -> Result<(), StateError> {
        self.value = state.decode(Self::KIND, 1)?;
        Ok(())
    }
}

/// Ports F0h and F1h: the latch between the processor's FERR# and IRQ 13, for operating systems that leave CR0.NE clear.
/// A write to F0h lowers the request and tells the processor to ignore the error that is still pending (IGNNE#).
#[derive(Debug)]
pub struct CoprocessorError {
    requested: bool,
    ignoring: bool,
    irq: Output,
}

impl CoprocessorError {
    const KIND: &'static str = "coprocessor-error";

    /// A latch on `irq` (IRQ 13).
    pub fn new(irq: Arc<dyn Line>) -> CoprocessorError {
        CoprocessorError { requested: false, ignoring: false, irq: Output::new(irq) }
    }

    /// The processor's FERR# output: an unmasked floating-point error is pending.
    pub fn set_error(&mut self, pending: bool) {
        if pending {
            self.requested = true;
        } else {
            self.ignoring = false;
        }
        self.irq.set(self.requested);
    }

    /// The processor's IGNNE# input.
    pub fn ignoring(&self) -> bool {
        self.ignoring
    }
}

impl Device for CoprocessorError {
    fn name(&self) -> &'static str {
        Self::KIND
    }

    fn read(&mut self, _offset: u64, size: u8, _now: Nanos) -> u64 {
        all_ones(size)
    }

    fn write(&mut self, offset: u64, size: u8, value: u64, _now: Nanos) {
        crate::write_bytes(offset, size, value, |offset, _| {
            if offset == 0 {
                self.ignoring |= self.requested;
                self.requested = false;
            }
        });
        self.irq.set(self.requested);
    }

    fn reset(&mut self, _now: Nanos) {
        (self.requested, self.ignoring) = (false, false);
        self.irq.set(false);
    }

    fn save(&self) -> State {
        State::encode(Self::KIND, 1, &(self.requested, self.ignoring))
    }

    fn restore(&mut self, state: &State) -> Result<(), StateError> {
        (self.requested, self.ignoring) = state.decode(Self::KIND, 1)?;
        self.irq.assume(self.requested);
        Ok(())
    }
}

/// The SMBus host controller of the PIIX4's power-management function (82371AB, 7.4) with nothing on its bus: every
/// transaction ends with "no device answered". It is here because Linux's driver otherwise complains about the firmware.
#[derive(Debug, Default)]
pub struct SmBus {
    registers: SmBusRegisters,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct SmBusRegisters {
    status: u8,
    /// Control, command, address, data 0, data 1.
    bytes: [u8; 5],
}

impl SmBus {
    const KIND: &'static str = "piix4-smbus";
    /// The size of the I/O region.
    pub const LENGTH: u64 = 16;
    const DEVICE_ERROR: u8 = 0x04;
    const STATUS: u8 = 0x1E;
    const START: u8 = 0x40;

    /// An empty bus.
    pub fn new() -> SmBus {
        SmBus::default()
    }
}

impl Device for SmBus {
    fn name(&self) -> &'static str {
        Self::KIND
    }

    fn read(&mut self, offset: u64, size: u8, _now: Nanos) -> u64 {
        crate::read_bytes(offset, size, |offset| match offset {
            0 => self.registers.status,
            2..=6 => self.registers.bytes[(offset - 2) as usize],
            _ => 0,
        })
    }

    fn write(&mut self, offset: u64, size: u8, value: u64, _now: Nanos) {
        crate::write_bytes(offset, size, value, |offset, byte| match offset {
            0 => self.registers.status &= !(byte & Self::STATUS),
            2 => {
                self.registers.bytes[0] = byte & !Self::START;
                if byte & Self::START != 0 {
                    self.registers.status |= Self::DEVICE_ERROR;
                }
            }
            3..=6 => self.registers.bytes[(offset - 2) as usize] = byte,
            _ => {}
        });
    }

    fn reset(&mut self, _now: Nanos) {
        self.registers = SmBusRegisters::default();
    }

    fn save(&self) -> State {
        State::encode(Self::KIND, 1, &self.registers)
    }

    fn restore(&mut self, state: &State) -> Result<(), StateError> {
        self.registers = state.decode(Self::KIND, 1)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::debug::RecordedControl;
    use crate::line::Probe;

    #[test]
    fn port_92_opens_a20_and_resets_on_a_rising_bit() {
        let (control, a20) = (Arc::new(RecordedControl::default()), Probe::new());
        let mut port = Port92::new(control.clone(), a20.clone());
        port.write(0, 1, 0x02, 0);
        assert!(a20.level());
        assert_eq!(port.read(0, 1, 0), 0x02);
        port.write(0, 1, 0x03, 0);
        port.write(0, 1, 0x03, 0);
        assert_eq!(control.take(), ["reset"]);
        port.write(0, 1, 0x00, 0);
        assert!(!a20.level());
    }

    #[test]
    fn reset_control_acts_as_linux_and_acpi_use_it() {
        let control = Arc::new(RecordedControl::default());
        let mut port = ResetControl::new(control.clone());
        port.write(0, 1, 0x02, 0);
        assert!(control.take().is_empty());
        port.write(0, 1, 0x06, 0);
        assert_eq!(control.take(), ["reset"]);
        port.reset(0);
        port.write(0, 1, 0x06, 0);
        assert_eq!(control.take(), ["reset"]);
    }

    #[test]
    fn a_coprocessor_error_is_latched_and_ignored_after_f0() {
        let irq = Probe::new();
        let mut latch = CoprocessorError::new(irq.clone());
        latch.set_error(true);
        assert!(irq.level() && !latch.ignoring());
        latch.write(0, 1, 0, 0);
        assert!(!irq.level() && latch.ignoring());
        latch.set_error(false);
        assert!(!latch.ignoring());
    }

    #[test]
    fn nobody_answers_on_the_smbus() {
        let mut bus = SmBus::new();
        bus.write(4, 1, 0xA1, 0);
        bus.write(2, 1, 0x48, 0);
        assert_eq!((bus.read(0, 1, 0), bus.read(2, 1, 0), bus.read(4, 1, 0)), (0x04, 0x08, 0xA1));
        bus.write(0, 1, 0xFF, 0);
        assert_eq!(bus.read(0, 1, 0), 0);
    }
}
