//! The fixed ACPI hardware: power-management events, control and timer, general-purpose events and the SMI command port
//! (ACPI 6.4, 4.8; PIIX4 data sheet 82371AB, 7.2). The reset register of the FADT is port CF9h ([`crate::pci`]).
//!
//! Offsets: 0 PM1a event block (status, enable), 4 PM1a control, 8 PM timer, 0Ch general-purpose event block 0 (16 status
//! bits, 16 enable bits), 10h SMI command and 11h its data (ports B2h and B3h).
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::line::Output;
use crate::{Device, Frequency, Line, MachineControl, Nanos, State, StateError, all_ones};

const KIND: &str = "acpi-pm";
/// The timer's frequency (ACPI 6.4, 4.8.3.3).
pub const PM_TIMER_HZ: u64 = 3_579_545;
const TIMER: Frequency = Frequency::hz(PM_TIMER_HZ);

/// SLP_TYP of the soft-off state, as in the PIIX4; the DSDT's \_S5 says the same.
pub const SLP_TYP_S5: u8 = 0;
/// What the FADT calls ACPI_ENABLE and ACPI_DISABLE: values for the SMI command port.
pub const ACPI_ENABLE: u8 = 0xF1;
/// See [`ACPI_ENABLE`].
pub const ACPI_DISABLE: u8 = 0xF0;
/// The size of the I/O region from the event to the general-purpose block.
pub const PM_BLOCK_LENGTH: u64 = 0x10;
/// The offset of the SMI command port.
pub const SMI_COMMAND: u64 = 0x10;

/// PM1 status and enable bits.
const TIMER_CARRY: u16 = 1 << 0;
const GLOBAL: u16 = 1 << 5;
const POWER_BUTTON: u16 = 1 << 8;
const SLEEP_BUTTON: u16 = 1 << 9;
const RTC_ALARM: u16 = 1 << 10;
const STATUS: u16 = TIMER_CARRY | 1 << 4 | GLOBAL | POWER_BUTTON | SLEEP_BUTTON | RTC_ALARM | 1 << 15;
const ENABLE: u16 = TIMER_CARRY | GLOBAL | POWER_BUTTON | SLEEP_BUTTON | RTC_ALARM;

/// PM1 control.
const SCI_EN: u16 = 1 << 0;
const SLP_TYP_SHIFT: u16 = 10;
const SLP_EN: u16 = 1 << 13;
const CONTROL: u16 = SCI_EN | 1 << 1 | 7 << SLP_TYP_SHIFT;

/// What is particular to one board.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AcpiPmConfig {
    /// Reset leaves ACPI mode on, so that no SMI command is needed to enter it.
    pub sci_enabled: bool,
    /// The timer has 32 bits instead of 24 (the FADT's TMR_VAL_EXT).
    pub timer_32_bits: bool,
}

impl Default for AcpiPmConfig {
    fn default() -> Self {
        AcpiPmConfig { sci_enabled: true, timer_32_bits: true }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Registers {
    status: u16,
    enable: u16,
    control: u16,
    gpe_status: u16,
    gpe_enable: u16,
    smi_command: u8,
    smi_data: u8,
    /// Up to when carries of the timer have been noted.
    seen: Nanos,
}

/// The power-management block.
#[derive(Debug)]
pub struct AcpiPm {
    config: AcpiPmConfig,
    registers: Registers,
    control: Arc<dyn MachineControl>,
    sci: Output,
}

impl AcpiPm {
    /// A block that asks `control` for soft-off and raises `sci`, a level.
    pub fn new(config: AcpiPmConfig, control: Arc<dyn MachineControl>, sci: Arc<dyn Line>) -> AcpiPm {
        AcpiPm { config, registers: Self::initial(config, 0), control, sci: Output::new(sci) }
    }

    fn initial(config: AcpiPmConfig, now: Nanos) -> Registers {
        Registers {
            status: 0,
            enable: 0,
            control: if config.sci_enabled { SCI_EN } else { 0 },
            gpe_status: 0,
            gpe_enable: 0,
            smi_command: 0,
            smi_data: 0,
            seen: now,
        }
    }

    /// The user presses the power button. Before the guest has taken ACPI over there is only the firmware's answer, which
    /// is to switch off.
    pub fn press_power_button(&mut self) {
        if self.registers.control & SCI_EN == 0 {
            self.control.power_off();
        } else {
            self.registers.status |= POWER_BUTTON;
            self.update();
        }
    }

    /// Raises general-purpose event `event`, 0 to 15.
    pub fn raise_gpe(&mut self, event: u8) {
        self.registers.gpe_status |= 1u16.checked_shl(event.into()).unwrap_or(0);
        self.update();
    }

    /// The timer's value.
    pub fn timer(&self, now: Nanos) -> u32 {
        let ticks = TIMER.ticks(now) as u32;
        if self.config.timer_32_bits { ticks } else { ticks & 0xFF_FFFF }
    }

    /// TMR_STS is set whenever the timer's highest bit changes, so every this many ticks.
    fn carry_ticks(&self) -> u64 {
        if self.config.timer_32_bits { 1 << 31 } else { 1 << 23 }
    }

    fn carries(&self, now: Nanos) -> u64 {
        TIMER.ticks(now) / self.carry_ticks()
    }

    fn update(&mut self) {
        let r = &self.registers;
        let active = r.status & r.enable & ENABLE != 0 || r.gpe_status & r.gpe_enable != 0;
        let level = active && r.control & SCI_EN != 0;
        self.sci.set(level);
    }

    fn read_byte(&mut self, offset: u64, now: Nanos) -> u8 {
        let r = &self.registers;
        let half = |word: u16| word.to_le_bytes()[(offset & 1) as usize];
        match offset {
            0 | 1 => half(r.status),
            2 | 3 => half(r.enable),
            4 | 5 => half(r.control),
            6 | 7 => 0,
            8..=0xB => self.timer(now).to_le_bytes()[(offset & 3) as usize],
            0xC | 0xD => half(r.gpe_status),
            0xE | 0xF => half(r.gpe_enable),
            0x10 => r.smi_command,
            0x11 => r.smi_data,
            _ => all_ones(1) as u8,
        }
    }

    fn write_byte(&mut self, offset: u64, value: u8) {
        let shift = 8 * (offset & 1) as u32;
        let (new, mask) = (u16::from(value) << shift, 0xFFu16 << shift);
        let r = &mut self.registers;
        match offset {
            0 | 1 => r.status &= !(new & STATUS),
            2 | 3 => r.enable = r.enable & !mask | new & ENABLE,
            4 | 5 => {
                let kept = r.control & !mask | new & CONTROL;
                self.write_control(kept, new);
            }
            0xC | 0xD => r.gpe_status &= !new,
            0xE | 0xF => r.gpe_enable = r.gpe_enable & !mask | new,
            0x10 => {
                r.smi_command = value;
                match value {
                    ACPI_ENABLE => r.control |= SCI_EN,
                    ACPI_DISABLE => r.control &= !SCI_EN,
                    _ => {}
                }
            }
            0x11 => r.smi_data = value,
            _ => {}
        }
    }

    /// `new` are the bits just written, of which SLP_EN acts and is not kept; GBL_RLS would tell firmware that waits for the
    /// global lock, and none does. Sleep states other than soft-off are not offered by the DSDT: asking for one does
    /// nothing.
    fn write_control(&mut self, kept: u16, new: u16) {
        self.registers.control = kept;
        if new & SLP_EN != 0 && kept >> SLP_TYP_SHIFT & 7 == u16::from(SLP_TYP_S5) {
            self.control.power_off();
        }
    }
}

impl Device for AcpiPm {
    fn name(&self) -> &'static str {
        KIND
    }

    fn read(&mut self, offset: u64, size: u8, now: Nanos) -> u64 {
        self.advance(now);
        crate::read_bytes(offset, size, |offset| self.read_byte(offset, now))
    }

    fn write(&mut self, offset: u64, size: u8, value: u64, now: Nanos) {
        self.advance(now);
        crate::write_bytes(offset, size, value, |offset, byte| self.write_byte(offset, byte));
        self.update();
    }

    fn reset(&mut self, now: Nanos) {
        self.registers = Self::initial(self.config, now);
        self.update();
    }

    fn deadline(&self) -> Option<Nanos> {
        let r = &self.registers;
        if r.enable & TIMER_CARRY == 0 || r.status & TIMER_CARRY != 0 || r.control & SCI_EN == 0 {
            return None;
        }
        TIMER.time(self.carries(r.seen).checked_add(1)?.checked_mul(self.carry_ticks())?)
    }

    fn advance(&mut self, now: Nanos) {
        if now > self.registers.seen {
            if self.carries(now) != self.carries(self.registers.seen) {
                self.registers.status |= TIMER_CARRY;
            }
            self.registers.seen = now;
            self.update();
        }
    }

    fn save(&self) -> State {
        State::encode(KIND, 1, &(self.registers, self.sci.level()))
    }

    fn restore(&mut self, state: &State) -> Result<(), StateError> {
        let (registers, level) = state.decode(KIND, 1)?;
        self.registers = registers;
        self.sci.assume(level);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::debug::RecordedControl;
    use crate::line::Probe;

    fn pm(config: AcpiPmConfig) -> (AcpiPm, Arc<RecordedControl>, Arc<Probe>) {
        let (control, sci) = (Arc::new(RecordedControl::default()), Probe::new());
        (AcpiPm::new(config, control.clone(), sci.clone()), control, sci)
    }

    #[test]
    fn the_timer_counts_at_its_frequency_in_its_width() {
        let (mut wide, _, _) = pm(AcpiPmConfig::default());
        let (mut narrow, _, _) = pm(AcpiPmConfig { timer_32_bits: false, ..Default::default() });
        let now = 10 * crate::NANOS_PER_SECOND;
        assert_eq!(wide.read(8, 4, now), 35_795_450);
        assert_eq!(narrow.read(8, 4, now), 35_795_450 & 0xFF_FFFF);
        assert_eq!(wide.read(9, 1, now), 35_795_450 >> 8 & 0xFF);
    }

    #[test]
    fn a_carry_of_the_timer_raises_the_sci() {
        let (mut pm, _, sci) = pm(AcpiPmConfig { timer_32_bits: false, ..Default::default() });
        assert_eq!(pm.deadline(), None);
        pm.write(2, 2, TIMER_CARRY.into(), 0);
        let due = pm.deadline().unwrap();
        assert_eq!(TIMER.ticks(due), 1 << 23);
        pm.advance(due - 1);
        assert!(!sci.level());
        pm.advance(due);
        assert!(sci.level());
        pm.write(0, 2, TIMER_CARRY.into(), due);
        assert!(!sci.level());
        assert!(pm.deadline().unwrap() > due);
    }

    #[test]
    fn the_power_button_is_an_event_until_it_is_cleared() {
        let (mut pm, control, sci) = pm(AcpiPmConfig::default());
        pm.press_power_button();
        assert!(!sci.level(), "not enabled");
        pm.write(2, 2, POWER_BUTTON.into(), 0);
        assert!(sci.level());
        assert_eq!(pm.read(0, 2, 0) as u16, POWER_BUTTON);
        pm.write(1, 1, 1, 0);
        assert!(!sci.level());
        assert!(control.take().is_empty());
    }

    #[test]
    fn sleep_enable_with_type_five_switches_off() {
        let (mut pm, control, _) = pm(AcpiPmConfig::default());
        assert_eq!(pm.read(4, 2, 0) as u16, SCI_EN);
        pm.write(4, 2, (SCI_EN | 3 << SLP_TYP_SHIFT | SLP_EN).into(), 0);
        assert!(control.take().is_empty());
        pm.write(4, 2, (SCI_EN | u16::from(SLP_TYP_S5) << SLP_TYP_SHIFT).into(), 0);
        assert!(control.take().is_empty());
        pm.write(4, 2, (SCI_EN | u16::from(SLP_TYP_S5) << SLP_TYP_SHIFT | SLP_EN).into(), 0);
        assert_eq!(control.take(), ["power off"]);
        assert_eq!(pm.read(4, 2, 0) as u16 & SLP_EN, 0);
    }

    #[test]
    fn acpi_mode_is_switched_by_the_smi_command_port() {
        let (mut pm, control, sci) = pm(AcpiPmConfig { sci_enabled: false, ..Default::default() });
        pm.press_power_button();
        assert_eq!(control.take(), ["power off"]);
        pm.write(0x10, 1, ACPI_ENABLE.into(), 0);
        pm.write(0xE, 2, 1 << 3, 0);
        pm.raise_gpe(3);
        assert!(sci.level());
        pm.write(0x10, 1, ACPI_DISABLE.into(), 0);
        assert!(!sci.level());
        pm.write(0x10, 1, ACPI_ENABLE.into(), 0);
        pm.write(0xC, 2, 1 << 3, 0);
        assert!(!sci.level());
    }
}
