//! MC146818A real-time clock with CMOS memory (Motorola data sheet, 1988; PIIX4 data sheet 82371AB, 8.5, for the second
//! bank at 72h and 73h). The time of day is a function of machine time and of the wall-clock second given at construction,
//! so that a machine on virtual time reads the same clock in every run.
mod calendar;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::line::Output;
use crate::state::damaged;
use crate::{Device, Frequency, Line, NANOS_PER_SECOND, Nanos, State, StateError, all_ones};
use calendar::{DateTime, Format};

const KIND: &str = "rtc-mc146818";
const SECOND: i64 = NANOS_PER_SECOND as i64;
/// The divider chain's input.
const CRYSTAL: Frequency = Frequency::hz(32_768);
/// UIP is set 244 us before an update cycle, which takes 1984 us with the 32 kHz time base (data sheet, table 7).
const UPDATE_NANOS: i64 = 244_000 + 1_984_000;
const BANK: usize = 128;

/// Register numbers.
const SECONDS_ALARM: usize = 0x01;
const MINUTES_ALARM: usize = 0x03;
const HOURS_ALARM: usize = 0x05;
const REG_A: u8 = 0x0A;
const REG_B: u8 = 0x0B;
const REG_C: u8 = 0x0C;
const REG_D: u8 = 0x0D;
const CENTURY: u8 = 0x32;

/// Register A.
const A_UPDATING: u8 = 0x80;
const A_DIVIDER: u8 = 0x70;
const A_DIVIDER_32K: u8 = 0x20;
/// Register B.
const B_SET: u8 = 0x80;
const B_SQUARE_WAVE: u8 = 0x08;
const B_BINARY: u8 = 0x04;
const B_24_HOURS: u8 = 0x02;
/// Flags of register C and their enables in B.
const PERIODIC: u8 = 0x40;
const ALARM: u8 = 0x20;
const UPDATED: u8 = 0x10;
const SOURCES: u8 = PERIODIC | ALARM | UPDATED;
const C_REQUEST: u8 = 0x80;
/// Register D: the battery is good.
const D_VALID: u8 = 0x80;

/// What the firmware of the machine would have found and stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RtcConfig {
    /// The wall-clock time at machine time zero, in seconds since 1970-01-01 00:00 as the clock shall show it.
    pub epoch_seconds: i64,
    /// Bytes of RAM below 4 GiB.
    pub low_memory: u64,
    /// Bytes of RAM from 4 GiB on.
    pub high_memory: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Registers {
    index: u8,
    extended_index: u8,
    nmi_masked: bool,
    a: u8,
    b: u8,
    c: u8,
    /// Both banks. The time registers are kept here only while the clock stands.
    memory: Vec<u8>,
    /// At machine time `phase` the clock began to show `base`; seconds change at whole seconds from there.
    base: i64,
    phase: i64,
    /// Up to when events have been noted in register C.
    seen: Nanos,
}

/// The clock: index and data at offsets 0 and 1 (ports 70h, 71h), those of the second bank at 2 and 3.
#[derive(Debug)]
pub struct Rtc {
    registers: Registers,
    irq: Output,
    nmi_mask: Output,
    /// The next time at which register C's request flag would be set; follows from the registers.
    due: Option<Nanos>,
}

impl Rtc {
    /// A clock that interrupts on `irq`; `nmi_mask` is high while bit 7 of port 70h disables NMIs.
    pub fn new(config: RtcConfig, irq: Arc<dyn Line>, nmi_mask: Arc<dyn Line>) -> Rtc {
        let registers = Registers {
            index: REG_D,
            extended_index: 0,
            nmi_masked: false,
            a: A_DIVIDER_32K | 6,
            b: B_24_HOURS,
            c: 0,
            memory: firmware_memory(config),
            base: config.epoch_seconds,
            phase: 0,
            seen: 0,
        };
        Rtc { registers, irq: Output::new(irq), nmi_mask: Output::new(nmi_mask), due: None }
    }

    /// The second that the clock shows, since 1970-01-01 00:00.
    pub fn seconds(&self, now: Nanos) -> i64 {
        if self.running() { self.second_at(now) } else { self.stored_time().seconds() }
    }

    /// A byte of CMOS memory (0 to FFh, the second bank from 80h), without side effects.
    pub fn memory(&self, index: u8) -> u8 {
        self.registers.memory[usize::from(index)]
    }

    /// Changes a byte of CMOS memory, as firmware does before it starts the guest.
    pub fn set_memory(&mut self, index: u8, value: u8) {
        self.registers.memory[usize::from(index)] = value;
        self.plan();
    }

    fn format(&self) -> Format {
        let b = self.registers.b;
        Format { binary: b & B_BINARY != 0, hours_24: b & B_24_HOURS != 0 }
    }

    /// The divider chain runs.
    fn dividing(&self) -> bool {
        self.registers.a & A_DIVIDER == A_DIVIDER_32K
    }

    /// The time of day advances.
    fn running(&self) -> bool {
        self.dividing() && self.registers.b & B_SET == 0
    }

    /// Nanoseconds since the divider chain's origin.
    fn chain(&self, now: Nanos) -> i64 {
        i64::try_from(now).unwrap_or(i64::MAX).saturating_sub(self.registers.phase)
    }

    fn second_at(&self, now: Nanos) -> i64 {
        self.registers.base.saturating_add(self.chain(now).div_euclid(SECOND))
    }

    /// The machine time at which the clock begins to show `second`.
    fn time_of(&self, second: i64) -> Option<Nanos> {
        let offset = second.checked_sub(self.registers.base)?.checked_mul(SECOND)?;
        u64::try_from(offset.checked_add(self.registers.phase)?).ok()
    }

    fn stored_time(&self) -> DateTime {
        DateTime::from_registers(&self.registers.memory, self.format())
    }

    /// Freezes the time that the clock shows into its registers.
    fn stop(&mut self, now: Nanos) {
        let format = self.format();
        DateTime::from_seconds(self.second_at(now)).store(&mut self.registers.memory, format);
    }

    /// Starts the clock at what its registers say; `phase` is where the present second began.
    fn start(&mut self, phase: i64) {
        self.registers.base = self.stored_time().seconds();
        self.registers.phase = phase;
    }

    /// When the present second of the divider chain began.
    fn second_began(&self, now: Nanos) -> i64 {
        let now = i64::try_from(now).unwrap_or(i64::MAX);
        now.saturating_sub(self.chain(now.unsigned_abs()).rem_euclid(SECOND))
    }

    fn updating(&self, now: Nanos) -> bool {
        self.running() && self.chain(now).rem_euclid(SECOND) >= SECOND - UPDATE_NANOS
    }

    /// Crystal periods between two periodic events (data sheet, table 5).
    fn period(&self) -> Option<u64> {
        match self.registers.a & 0x0F {
            0 => None,
            rate @ (1 | 2) => Some(1 << (rate + 6)),
            rate => Some(1 << (rate - 1)),
        }
        .filter(|_| self.dividing())
    }

    fn periods(&self, now: Nanos, period: u64) -> u64 {
        CRYSTAL.ticks(u64::try_from(self.chain(now)).unwrap_or(0)) / period
    }

    /// How many seconds after `second` the alarm next matches.
    fn seconds_to_alarm(&self, second: i64) -> Option<i64> {
        let memory = &self.registers.memory;
        let alarm = [memory[HOURS_ALARM], memory[MINUTES_ALARM], memory[SECONDS_ALARM]];
        calendar::seconds_to_alarm(alarm, self.format(), second)
    }

    /// Sets the flags of what has happened up to `now`, each once.
    fn note_events(&mut self, now: Nanos) {
        let seen = self.registers.seen;
        if now <= seen {
            return;
        }
        let mut flags = 0;
        if self.period().is_some_and(|period| self.periods(now, period) != self.periods(seen, period)) {
            flags |= PERIODIC;
        }
        if self.running() {
            let passed = self.second_at(now).saturating_sub(self.second_at(seen));
            if passed > 0 {
                flags |= UPDATED;
                let alarm = self.seconds_to_alarm(self.second_at(seen));
                if alarm.is_some_and(|ahead| ahead <= passed) {
                    flags |= ALARM;
                }
            }
        }
        self.registers.c |= flags;
        self.registers.seen = now;
    }

    fn requesting(&self) -> bool {
        self.registers.b & self.registers.c & SOURCES != 0
    }

    fn update(&mut self) {
        let level = self.requesting();
        self.irq.set(level);
        self.nmi_mask.set(self.registers.nmi_masked);
        self.plan();
    }

    /// Works out when the next enabled event comes.
    fn plan(&mut self) {
        let (seen, enabled) = (self.registers.seen, self.registers.b & SOURCES);
        self.due = None;
        if self.requesting() || enabled == 0 {
            return;
        }
        let mut times = [None; 3];
        if let Some(period) = self.period().filter(|_| enabled & PERIODIC != 0) {
            times[0] = self
                .periods(seen, period)
                .checked_add(1)
                .and_then(|next| CRYSTAL.time(next.checked_mul(period)?))
                .and_then(|at| {
                    u64::try_from(i64::try_from(at).ok()?.checked_add(self.registers.phase)?).ok()
                });
        }
        if self.running() {
            let second = self.second_at(seen);
            if enabled & UPDATED != 0 {
                times[1] = self.time_of(second.saturating_add(1));
            }
            if enabled & ALARM != 0 {
                times[2] = self
                    .seconds_to_alarm(second)
                    .and_then(|ahead| self.time_of(second.saturating_add(ahead)));
            }
        }
        self.due = times.into_iter().flatten().min();
    }

    fn read_register(&mut self, index: u8, now: Nanos) -> u8 {
        match index {
            REG_A => self.registers.a | if self.updating(now) { A_UPDATING } else { 0 },
            REG_B => self.registers.b,
            REG_C => {
                let request = if self.requesting() { C_REQUEST } else { 0 };
                std::mem::take(&mut self.registers.c) | request
            }
            REG_D => D_VALID,
            _ if self.running() && calendar::is_time_register(index) => {
                let mut shown = [0; BANK];
                DateTime::from_seconds(self.second_at(now)).store(&mut shown, self.format());
                shown[usize::from(index)]
            }
            _ => self.registers.memory[usize::from(index)],
        }
    }

    fn write_register(&mut self, index: u8, value: u8, now: Nanos) {
        match index {
            REG_A => self.write_a(value & !A_UPDATING, now),
            REG_B => self.write_b(value, now),
            REG_C | REG_D => {}
            _ if self.running() && calendar::is_time_register(index) => {
                self.stop(now);
                self.registers.memory[usize::from(index)] = value;
                self.start(self.second_began(now));
            }
            _ => self.registers.memory[usize::from(index)] = value,
        }
    }

    fn write_a(&mut self, value: u8, now: Nanos) {
        let (was_dividing, was_running) = (self.dividing(), self.running());
        if was_running && value & A_DIVIDER != A_DIVIDER_32K {
            self.stop(now);
        }
        self.registers.a = value;
        if self.dividing() && !was_dividing {
            // Out of divider reset, the first update comes half a second later (data sheet, "Divider Control").
            let phase = i64::try_from(now).unwrap_or(i64::MAX).saturating_sub(SECOND / 2);
            self.registers.phase = phase;
            if self.running() {
                self.start(phase);
            }
        }
    }

    fn write_b(&mut self, value: u8, now: Nanos) {
        let was_running = self.running();
        if was_running && value & B_SET != 0 {
            self.stop(now);
        }
        // Going into the SET state clears the update-ended enable (data sheet, register B).
        self.registers.b = if value & B_SET != 0 { value & !UPDATED } else { value };
        if self.running() && !was_running {
            self.start(self.second_began(now));
        }
    }

    fn read_byte(&mut self, offset: u64, now: Nanos) -> u8 {
        match offset {
            1 => self.read_register(self.registers.index, now),
            2 => self.registers.extended_index,
            3 => self.registers.memory[BANK + usize::from(self.registers.extended_index & 0x7F)],
            _ => all_ones(1) as u8, // Port 70h cannot be read.
        }
    }

    fn write_byte(&mut self, offset: u64, value: u8, now: Nanos) {
        match offset {
            0 => {
                self.registers.index = value & 0x7F;
                self.registers.nmi_masked = value & 0x80 != 0;
            }
            1 => self.write_register(self.registers.index, value, now),
            2 => self.registers.extended_index = value & 0x7F,
            3 => self.registers.memory[BANK + usize::from(self.registers.extended_index & 0x7F)] = value,
            _ => {}
        }
    }
}

/// CMOS memory as firmware leaves it: memory sizes, equipment, the standard checksum.
fn firmware_memory(config: RtcConfig) -> Vec<u8> {
    const KIB: u64 = 1 << 10;
    const MIB: u64 = 1 << 20;
    let mut memory = vec![0; 2 * BANK];
    let mut word = |index: usize, value: u64| {
        memory[index..index + 2].copy_from_slice(&u16::try_from(value).unwrap_or(u16::MAX).to_le_bytes());
    };
    word(0x15, config.low_memory.min(640 * KIB) / KIB);
    let extended = config.low_memory.saturating_sub(MIB) / KIB;
    word(0x17, extended);
    word(0x30, extended);
    word(0x34, config.low_memory.saturating_sub(16 * MIB) / (64 * KIB));
    let high = (config.high_memory / (64 * KIB)).min(0xFF_FFFF).to_le_bytes();
    memory[0x5B..0x5E].copy_from_slice(&high[..3]);
    memory[0x14] = 0x06; // Coprocessor and pointing device.
    let sum = memory[0x10..0x2E].iter().fold(0u16, |sum, &byte| sum.wrapping_add(byte.into()));
    memory[0x2E..0x30].copy_from_slice(&sum.to_be_bytes());
    memory
}

impl Device for Rtc {
    fn name(&self) -> &'static str {
        KIND
    }

    fn read(&mut self, offset: u64, size: u8, now: Nanos) -> u64 {
        self.note_events(now);
        let value = crate::read_bytes(offset, size, |offset| self.read_byte(offset, now));
        self.update();
        value
    }

    fn write(&mut self, offset: u64, size: u8, value: u64, now: Nanos) {
        self.note_events(now);
        crate::write_bytes(offset, size, value, |offset, byte| self.write_byte(offset, byte, now));
        self.update();
    }

    /// The RESET pin: interrupt enables and flags go, time and memory stay (data sheet, "RESET").
    fn reset(&mut self, now: Nanos) {
        self.note_events(now);
        self.registers.b &= !(SOURCES | B_SQUARE_WAVE);
        self.registers.c = 0;
        self.registers.index = REG_D;
        self.registers.extended_index = 0;
        self.registers.nmi_masked = false;
        self.update();
    }

    fn deadline(&self) -> Option<Nanos> {
        self.due
    }

    fn advance(&mut self, now: Nanos) {
        self.note_events(now);
        self.update();
    }

    fn save(&self) -> State {
        State::encode(KIND, 1, &self.registers)
    }

    fn restore(&mut self, state: &State) -> Result<(), StateError> {
        let registers: Registers = state.decode(KIND, 1)?;
        if registers.memory.len() != 2 * BANK {
            return Err(damaged(KIND, format!("{:#x} bytes of memory", registers.memory.len())));
        }
        let index = registers.index & 0x7F;
        self.registers = Registers { index, ..registers };
        self.irq.assume(self.requesting());
        self.nmi_mask.assume(self.registers.nmi_masked);
        self.plan();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
