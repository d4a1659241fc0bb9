//! The chipset's own functions: host bridge, ISA bridge, power management. Their registers are as firmware leaves them; of
//! those that can be written only the PIRQ routes have an effect.
use std::sync::Arc;

use super::PciFunction;
use super::config::{ConfigSpace, Identity};
use super::pirq::{DISABLED, PirqRouter};
use crate::{Nanos, State, StateError};

const INTEL: u16 = 0x8086;

/// 82441FX (440FX) host bridge, at 00:00.0. Its PAM registers are storage: the board's upper memory is RAM throughout.
#[derive(Debug)]
pub struct HostBridge {
    config: ConfigSpace,
}

impl Default for HostBridge {
    fn default() -> Self {
        Self::new()
    }
}

impl HostBridge {
    const KIND: &'static str = "host-bridge-440fx";

    /// The bridge.
    pub fn new() -> HostBridge {
        let identity =
            Identity { vendor: INTEL, device: 0x1237, revision: 2, class: 0x06_0000, ..Default::default() };
        let mut config = ConfigSpace::new(identity);
        config.set(0x04, &[0x06, 0x00]);
        config.allow(0x04, &[0x40, 0x01]);
        config.allow(0x3C, &[0]);
        config.allow(0x50, &[0xFF; 0x44]);
        config.set(0x72, &[0x02]); // SMRAM at A0000h, closed.
        HostBridge { config }
    }
}

impl PciFunction for HostBridge {
    fn name(&self) -> &'static str {
        Self::KIND
    }
    fn config(&self) -> &ConfigSpace {
        &self.config
    }
    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }
    fn save(&self) -> State {
        self.config.save(Self::KIND)
    }
    fn restore(&mut self, state: &State) -> Result<(), StateError> {
        self.config.restore(Self::KIND, state)
    }
}

/// 82371SB (PIIX3) ISA bridge, at 00:01.0.
#[derive(Debug)]
pub struct IsaBridge {
    config: ConfigSpace,
    router: Arc<PirqRouter>,
}

impl IsaBridge {
    const KIND: &'static str = "isa-bridge-piix3";
    /// PIRQRC[A:D].
    const ROUTES: usize = 0x60;

    /// A bridge whose route registers control `router`. After reset PIRQA and B go to IRQ 10, C and D to IRQ 11, which the
    /// board makes level-sensitive.
    pub fn new(router: Arc<PirqRouter>) -> IsaBridge {
        let identity = Identity {
            vendor: INTEL,
            device: 0x7000,
            class: 0x06_0100,
            multifunction: true,
            ..Default::default()
        };
        let mut config = ConfigSpace::new(identity);
        config.set(0x04, &[0x07, 0x00]);
        config.allow(0x04, &[0x08, 0x01]);
        config.allow(0x3C, &[0]);
        config.set(0x4C, &[0x4D, 0x00, 0x03, 0x00]);
        config.allow(0x4C, &[0xFF, 0x00, 0xFF, 0x01]);
        config.set(Self::ROUTES, &[10, 10, 11, 11]);
        config.allow(Self::ROUTES, &[DISABLED | 0xF; 4]);
        config.set(0x69, &[0x02, 0x00]);
        config.allow(0x69, &[0xFE, 0xFF, 0xFF]);
        config.allow(0x70, &[DISABLED | 0x6F; 2]);
        config.allow(0x76, &[0x8F, 0x8F, 0xFF, 0xFF]);
        config.allow(0x80, &[0x7F, 0x00, 0x0F]);
        // Passive release is on, as the 440FX wants it; Linux would otherwise say that it repairs this.
        config.set(0x82, &[0x02]);
        config.allow(0xA0, &[0xFF; 0x10]);
        let bridge = IsaBridge { config, router };
        bridge.route();
        bridge
    }

    fn route(&self) {
        for pirq in 0..4 {
            self.router.set_route(pirq, self.config.read((Self::ROUTES + pirq) as u8, 1) as u8);
        }
    }
}

impl PciFunction for IsaBridge {
    fn name(&self) -> &'static str {
        Self::KIND
    }
    fn config(&self) -> &ConfigSpace {
        &self.config
    }
    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }
    fn write_config(&mut self, offset: u8, size: u8, value: u32, _now: Nanos) {
        self.config.write(offset, size, value);
        self.route();
    }
    fn reset(&mut self, _now: Nanos) {
        self.config.reset();
        self.route();
    }
    fn save(&self) -> State {
        self.config.save(Self::KIND)
    }
    /// The routes are in the router's own record.
    fn restore(&mut self, state: &State) -> Result<(), StateError> {
        self.config.restore(Self::KIND, state)
    }
}

/// Where the board has put the blocks that the power-management function announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PowerManagementConfig {
    /// The port of [`crate::acpi_pm::AcpiPm`], a multiple of 64.
    pub pm_base: u16,
    /// The port of [`crate::system::SmBus`], a multiple of 16.
    pub smbus_base: u16,
}

impl Default for PowerManagementConfig {
    fn default() -> Self {
        PowerManagementConfig { pm_base: 0x600, smbus_base: 0x700 }
    }
}

/// 82371AB (PIIX4) power management, at 00:01.3. It announces fixed places: moving them is not possible.
#[derive(Debug)]
pub struct PowerManagement {
    config: ConfigSpace,
}

impl PowerManagement {
    const KIND: &'static str = "power-management-piix4";

    /// A function that announces the given places.
    pub fn new(places: PowerManagementConfig) -> PowerManagement {
        let identity = Identity {
            vendor: INTEL,
            device: 0x7113,
            revision: 3,
            class: 0x06_8000,
            interrupt_pin: 1,
            ..Default::default()
        };
        let mut config = ConfigSpace::new(identity);
        config.set(0x04, &[0x01, 0x00]);
        config.allow(0x04, &[0x00, 0x00]);
        config.set(0x3C, &[9]);
        config.set(0x40, &(u32::from(places.pm_base & 0xFFC0) | 1).to_le_bytes());
        config.set(0x80, &[0x01]); // The I/O space at 40h is decoded.
        config.set(0x90, &(u32::from(places.smbus_base & 0xFFF0) | 1).to_le_bytes());
        config.set(0xD2, &[0x09]); // SMBus host controller enabled, interrupting on IRQ 9.
        config.allow(0xD3, &[0xFF; 3]);
        PowerManagement { config }
    }
}

impl PciFunction for PowerManagement {
    fn name(&self) -> &'static str {
        Self::KIND
    }
    fn config(&self) -> &ConfigSpace {
        &self.config
    }
    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }
    fn save(&self) -> State {
        self.config.save(Self::KIND)
    }
    fn restore(&mut self, state: &State) -> Result<(), StateError> {
        self.config.restore(Self::KIND, state)
    }
}
