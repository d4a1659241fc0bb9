//! PCI: configuration space, the type-1 configuration ports of the host bridge, and the chipset functions that every board
//! has. A 440FX host bridge with a PIIX3 ISA bridge and a PIIX4 power-management function, as common a set as there is.
//! (PCI Local Bus Specification 3.0; 82441FX data sheet 290549; 82371SB data sheet 290550; 82371AB data sheet 290562.)
mod config;
mod host;
mod piix;
mod pirq;

use std::fmt;

pub use config::{BarKind, ConfigSpace, Decoded, Identity};
pub use host::{PciError, PciHost, Regions};
pub use piix::{HostBridge, IsaBridge, PowerManagement, PowerManagementConfig};
pub use pirq::{PIRQ_FIRST_PIN, PirqRouter, pirq_of};

use crate::{Nanos, State, StateError};

/// A function's place on bus 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    /// Device number, 0 to 31.
    pub slot: u8,
    /// Function number, 0 to 7.
    pub function: u8,
}

impl PciAddress {
    /// The function `function` of device `slot`.
    pub const fn new(slot: u8, function: u8) -> PciAddress {
        PciAddress { slot: slot & 0x1F, function: function & 7 }
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00:{:02x}.{}", self.slot, self.function)
    }
}

/// One PCI function as the host bridge sees it. Its BARs are part of its configuration space; what answers behind them is
/// given to [`PciHost::insert`].
pub trait PciFunction: Send {
    /// Short fixed name, also the kind of the state record.
    fn name(&self) -> &'static str;
    /// The configuration registers.
    fn config(&self) -> &ConfigSpace;
    /// The configuration registers, to be written.
    fn config_mut(&mut self) -> &mut ConfigSpace;

    /// Reads `size` (1, 2 or 4) bytes; the access does not cross a doubleword.
    fn read_config(&mut self, offset: u8, size: u8, _now: Nanos) -> u32 {
        self.config().read(offset, size)
    }

    /// Writes `size` (1, 2 or 4) bytes; the access does not cross a doubleword.
    fn write_config(&mut self, offset: u8, size: u8, value: u32, _now: Nanos) {
        self.config_mut().write(offset, size, value);
    }

    /// The RST# pin.
    fn reset(&mut self, _now: Nanos) {
        self.config_mut().reset();
    }

    /// The function's state.
    fn save(&self) -> State;

    /// Takes a state; on an error the function is unchanged.
    fn restore(&mut self, state: &State) -> Result<(), StateError>;
}

impl fmt::Debug for dyn PciFunction + '_ {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PciFunction({})", self.name())
    }
}

#[cfg(test)]
mod tests;
