//! High precision event timer (IA-PC HPET specification 1.0a; ICH9 data sheet 316972, 20). One 64-bit counter and three
//! comparators as functions of machine time. Interrupts go to the I/O APIC pins that each timer's capability names, or, in
//! legacy replacement mode, in place of the PIT and the RTC. Front-side-bus delivery is not offered.
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::line::Output;
use crate::{Device, Frequency, Line, MIN_TIMER_PERIOD, Nanos, State, StateError, all_ones};

const KIND: &str = "hpet";
/// The counter's period: 14.31818 MHz.
pub const HPET_PERIOD_FEMTOSECONDS: u32 = 69_841_279;
const CLOCK: Frequency = Frequency::period_femtoseconds(HPET_PERIOD_FEMTOSECONDS as u64);
const TIMERS: usize = 3;
/// The size of the register block.
pub const HPET_LENGTH: u64 = 0x400;
/// The first I/O APIC pin that a timer can be routed to.
pub const HPET_FIRST_PIN: u8 = 20;
const PINS: usize = 4;
const ROUTES: u64 = 0xF << HPET_FIRST_PIN << 32;

/// Vendor 8086h, legacy replacement capable, 64-bit counter, number of the last timer, revision 1 (specification 2.3.4).
const CAPABILITIES: u64 =
    (HPET_PERIOD_FEMTOSECONDS as u64) << 32 | 0x8086 << 16 | 1 << 15 | 1 << 13 | (TIMERS as u64 - 1) << 8 | 1;

/// General configuration.
const ENABLE: u64 = 1;
const LEGACY: u64 = 2;

/// Timer configuration (specification 2.3.8).
const LEVEL: u64 = 1 << 1;
const INTERRUPT: u64 = 1 << 2;
const PERIODIC: u64 = 1 << 3;
const VALUE_SET: u64 = 1 << 6;
const BITS_32: u64 = 1 << 8;
const ROUTE_SHIFT: u32 = 9;
const ROUTE: u64 = 0x1F << ROUTE_SHIFT;
/// Periodic mode and 64 bits are possible.
const TIMER_CAPABILITIES: u64 = ROUTES | 1 << 4 | 1 << 5;
const TIMER_WRITABLE: u64 = LEVEL | INTERRUPT | PERIODIC | VALUE_SET | BITS_32 | ROUTE;

/// Where the HPET's interrupts go.
#[derive(Debug)]
pub struct HpetLines {
    /// IRQ 0 (timer 0) and IRQ 8 (timer 1) in legacy replacement mode.
    pub legacy: [Arc<dyn Line>; 2],
    /// High in legacy replacement mode: the PIT and the RTC are cut off. See [`crate::line::Selector`].
    pub legacy_select: Arc<dyn Line>,
    /// I/O APIC pins 20 to 23.
    pub pins: [Arc<dyn Line>; PINS],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Timer {
    config: u64,
    comparator: u64,
    period: u64,
    /// The clock tick at which the counter next matches.
    next: Option<u64>,
}

impl Default for Timer {
    /// Comparators are all ones after reset (ICH9 data sheet, 20.1.6).
    fn default() -> Self {
        Timer { config: 0, comparator: u64::MAX, period: 0, next: None }
    }
}

impl Timer {
    /// The bits that are compared.
    fn mask(&self) -> u64 {
        if self.config & BITS_32 != 0 { u32::MAX.into() } else { u64::MAX }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Registers {
    config: u64,
    status: u64,
    /// The counter while it stands; what must be added to the clock's ticks while it runs.
    counter: u64,
    timers: [Timer; TIMERS],
}

/// The event timer.
#[derive(Debug)]
pub struct Hpet {
    registers: Registers,
    legacy: [Output; 2],
    legacy_select: Output,
    pins: [Output; PINS],
}

impl Hpet {
    /// A timer block on `lines`.
    pub fn new(lines: HpetLines) -> Hpet {
        Hpet {
            registers: Registers::default(),
            legacy: lines.legacy.map(Output::new),
            legacy_select: Output::new(lines.legacy_select),
            pins: lines.pins.map(Output::new),
        }
    }

    fn running(&self) -> bool {
        self.registers.config & ENABLE != 0
    }

    fn counter(&self, now: Nanos) -> u64 {
        let r = &self.registers;
        if self.running() { CLOCK.ticks(now).wrapping_add(r.counter) } else { r.counter }
    }

    /// Works out when timer `i` next matches. A comparator that equals the counter matches now.
    fn plan(&mut self, i: usize, now: Nanos) {
        let (running, counter) = (self.running(), self.counter(now));
        let timer = &mut self.registers.timers[i];
        let ahead = timer.comparator.wrapping_sub(counter) & timer.mask();
        timer.next = if running { CLOCK.ticks(now).checked_add(ahead) } else { None };
    }

    fn plan_all(&mut self, now: Nanos) {
        (0..TIMERS).for_each(|i| self.plan(i, now));
    }

    /// Lets timer `i` match if it is due, once however late, and plans its next match.
    fn run(&mut self, i: usize, now: Nanos) {
        let ticks = CLOCK.ticks(now);
        let timer = &mut self.registers.timers[i];
        let Some(due) = timer.next.filter(|&due| due <= ticks) else { return };
        if timer.config & PERIODIC != 0 && timer.period != 0 {
            let period = timer.period.max(CLOCK.ticks(MIN_TIMER_PERIOD));
            let periods = (ticks - due) / period + 1;
            let passed = periods.saturating_mul(period);
            timer.comparator = timer.comparator.wrapping_add(passed) & timer.mask();
            timer.next = due.checked_add(passed);
        } else if timer.config & BITS_32 != 0 {
            // A 32-bit comparator matches again each time the low half of the counter comes round.
            timer.next = due.checked_add((((ticks - due) >> 32) + 1) << 32);
        } else {
            timer.next = None;
        }
        self.interrupt(i);
    }

    fn interrupt(&mut self, i: usize) {
        let config = self.registers.timers[i].config;
        if config & LEVEL != 0 {
            self.registers.status |= 1 << i;
        } else if config & INTERRUPT != 0 {
            match self.route(i) {
                // The 8259A wants its input to stay high until it is served.
                Some(Route::Legacy(line)) => self.legacy[line].rise(),
                Some(Route::Pin(pin)) => {
                    self.pins[pin].rise();
                    self.pins[pin].set(false);
                }
                None => {}
            }
        }
        self.update();
    }

    fn route(&self, i: usize) -> Option<Route> {
        if self.registers.config & LEGACY != 0 && i < 2 {
            return Some(Route::Legacy(i));
        }
        let pin = (self.registers.timers[i].config & ROUTE) >> ROUTE_SHIFT;
        let pin = usize::try_from(pin.checked_sub(HPET_FIRST_PIN.into())?).ok()?;
        (pin < PINS).then_some(Route::Pin(pin))
    }

    /// Drives the level-triggered interrupts.
    fn update(&mut self) {
        let legacy_mode = self.registers.config & LEGACY != 0;
        let mut pins = [false; PINS];
        let mut legacy = [None; 2];
        for i in 0..TIMERS {
            let config = self.registers.timers[i].config;
            if config & LEVEL == 0 {
                continue;
            }
            let level = self.registers.status & 1 << i != 0 && config & INTERRUPT != 0 && self.running();
            match self.route(i) {
                Some(Route::Legacy(line)) => legacy[line] = Some(level),
                Some(Route::Pin(pin)) => pins[pin] |= level,
                None => {}
            }
        }
        for (pin, level) in self.pins.iter_mut().zip(pins) {
            pin.set(level);
        }
        for (line, level) in self.legacy.iter_mut().zip(legacy) {
            match level {
                Some(level) => line.set(level),
                None if !legacy_mode => line.set(false),
                None => {} // Left high by an edge.
            }
        }
        self.legacy_select.set(legacy_mode);
    }

    fn read_register(&self, offset: u64, now: Nanos) -> u64 {
        let r = &self.registers;
        match offset {
            0x000 => CAPABILITIES,
            0x010 => r.config,
            0x020 => r.status,
            0x0F0 => self.counter(now),
            _ => match timer_register(offset) {
                Some((i, 0x00)) => r.timers[i].config | TIMER_CAPABILITIES,
                Some((i, 0x08)) => r.timers[i].comparator & r.timers[i].mask(),
                _ => 0,
            },
        }
    }

    /// `written` marks the bits that the access covers.
    fn write_register(&mut self, offset: u64, value: u64, written: u64, now: Nanos) {
        match offset {
            0x010 => self.write_config(value & written | self.registers.config & !written, now),
            0x020 => self.registers.status &= !(value & written),
            0x0F0 => {
                // Allowed only while the counter stands (specification 2.3.7); a running one takes it all the same.
                let counter = self.counter(now) & !written | value & written;
                self.set_counter(counter, now);
                self.plan_all(now);
            }
            _ => match timer_register(offset) {
                Some((i, 0x00)) => self.write_timer_config(i, value, written, now),
                Some((i, 0x08)) => self.write_comparator(i, value, written, now),
                _ => {}
            },
        }
        self.update();
    }

    fn set_counter(&mut self, counter: u64, now: Nanos) {
        let running = self.running();
        self.registers.counter = if running { counter.wrapping_sub(CLOCK.ticks(now)) } else { counter };
    }

    fn write_config(&mut self, value: u64, now: Nanos) {
        let counter = self.counter(now);
        self.registers.config = value & (ENABLE | LEGACY);
        self.set_counter(counter, now);
        self.plan_all(now);
    }

    fn write_timer_config(&mut self, i: usize, value: u64, written: u64, now: Nanos) {
        let timer = &mut self.registers.timers[i];
        let mut config = timer.config & !written | value & written & TIMER_WRITABLE;
        // A route that the timer does not have leaves the old one, which is how software finds out.
        let route = (config & ROUTE) >> ROUTE_SHIFT;
        if ROUTES >> 32 & 1 << route == 0 {
            config = config & !ROUTE | timer.config & ROUTE;
        }
        let resized = (config ^ timer.config) & BITS_32 != 0;
        timer.config = config;
        timer.comparator &= timer.mask();
        timer.period &= timer.mask();
        if config & LEVEL == 0 {
            self.registers.status &= !(1 << i);
        }
        if resized {
            self.plan(i, now);
        }
    }

    /// In periodic mode a plain write sets the period; after VAL_SET it also sets the next match (specification 2.3.9.2.2).
    fn write_comparator(&mut self, i: usize, value: u64, written: u64, now: Nanos) {
        let timer = &mut self.registers.timers[i];
        let mask = timer.mask();
        let periodic = timer.config & PERIODIC != 0;
        if !periodic || timer.config & VALUE_SET != 0 {
            timer.comparator = (timer.comparator & !written | value & written) & mask;
        }
        if periodic {
            timer.period = (timer.period & !written | value & written) & mask;
        }
        timer.config &= !VALUE_SET;
        self.plan(i, now);
    }
}

enum Route {
    Legacy(usize),
    Pin(usize),
}

/// The timer and its register that lie at `offset`.
fn timer_register(offset: u64) -> Option<(usize, u64)> {
    let i = usize::try_from(offset.checked_sub(0x100)? / 0x20).ok()?;
    (i < TIMERS).then_some((i, offset & 0x18))
}

impl Device for Hpet {
    fn name(&self) -> &'static str {
        KIND
    }

    /// Any aligned width reads its part of the 64-bit register.
    fn read(&mut self, offset: u64, size: u8, now: Nanos) -> u64 {
        self.advance(now);
        self.read_register(offset & !7, now) >> (8 * (offset & 7)) & all_ones(size)
    }

    /// 32- and 64-bit writes only, as the specification has it.
    fn write(&mut self, offset: u64, size: u8, value: u64, now: Nanos) {
        self.advance(now);
        if size >= 4 && offset % 4 == 0 {
            let shift = 8 * (offset & 7);
            self.write_register(offset & !7, value << shift, all_ones(size) << shift, now);
            // The comparator may have been set to the counter's very value.
            self.advance(now);
        }
    }

    fn reset(&mut self, _now: Nanos) {
        self.registers = Registers::default();
        self.update();
    }

    fn deadline(&self) -> Option<Nanos> {
        let timers = self.registers.timers.iter().filter(|timer| timer.config & INTERRUPT != 0);
        timers.filter_map(|timer| CLOCK.time(timer.next?)).min()
    }

    fn advance(&mut self, now: Nanos) {
        (0..TIMERS).for_each(|i| self.run(i, now));
    }

    fn save(&self) -> State {
        let levels = [self.legacy[0].level(), self.legacy[1].level()];
        State::encode(KIND, 1, &(self.registers, levels))
    }

    fn restore(&mut self, state: &State) -> Result<(), StateError> {
        let (registers, levels): (Registers, [bool; 2]) = state.decode(KIND, 1)?;
        self.registers = registers;
        for (line, level) in self.legacy.iter_mut().zip(levels) {
            line.assume(level);
        }
        self.legacy_select.assume(registers.config & LEGACY != 0);
        for pin in 0..PINS {
            let driven = (0..TIMERS).any(|i| {
                let level = registers.timers[i].config & (LEVEL | INTERRUPT) == LEVEL | INTERRUPT
                    && registers.status & 1 << i != 0;
                level && self.running() && matches!(self.route(i), Some(Route::Pin(routed)) if routed == pin)
            });
            self.pins[pin].assume(driven);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::line::Probe;

    struct Rig {
        hpet: Hpet,
        legacy: [Arc<Probe>; 2],
        select: Arc<Probe>,
        pins: [Arc<Probe>; PINS],
    }

    fn rig() -> Rig {
        let (legacy, select, pins) =
            ([Probe::new(), Probe::new()], Probe::new(), [0; PINS].map(|_| Probe::new()));
        let hpet = Hpet::new(HpetLines {
            legacy: legacy.clone().map(|probe| probe as Arc<dyn Line>),
            legacy_select: select.clone(),
            pins: pins.clone().map(|probe| probe as Arc<dyn Line>),
        });
        Rig { hpet, legacy, select, pins }
    }

    fn at(tick: u64) -> Nanos {
        CLOCK.time(tick).unwrap()
    }

    #[test]
    fn capabilities_are_what_linux_wants() {
        let mut r = rig();
        assert_eq!(r.hpet.read(0, 4, 0), 0x8086_A201);
        let period = r.hpet.read(4, 4, 0);
        assert!((100_000..=100_000_000).contains(&period));
        assert_eq!(r.hpet.read(0x100, 8, 0), 0x00F0_0000_0000_0030);
        assert_eq!(r.hpet.read(0x160, 4, 0), 0, "a fourth timer");
    }

    #[test]
    fn the_counter_stands_runs_and_can_be_set() {
        let mut r = rig();
        assert_eq!(r.hpet.read(0xF0, 8, at(100)), 0);
        r.hpet.write(0xF0, 8, 0xFFFF_FFFF, at(100));
        r.hpet.write(0x10, 4, ENABLE, at(200));
        assert_eq!(r.hpet.read(0xF0, 8, at(203)), 0x1_0000_0002);
        assert_eq!(r.hpet.read(0xF4, 4, at(203)), 1);
        r.hpet.write(0x10, 4, 0, at(204));
        assert_eq!(r.hpet.read(0xF0, 8, at(999)), 0x1_0000_0003);
    }

    #[test]
    fn linux_legacy_periodic_timer_replaces_the_pit() {
        let mut r = rig();
        r.hpet.write(0x10, 4, ENABLE | LEGACY, 0);
        assert!(r.select.level());
        r.hpet.write(0x100, 4, INTERRUPT | PERIODIC | VALUE_SET | BITS_32, 0);
        r.hpet.write(0x108, 4, 5_000, 0);
        r.hpet.write(0x108, 4, 1_000, at(10));
        assert_eq!(r.hpet.deadline(), Some(at(5_000)));
        r.hpet.advance(at(5_000));
        assert_eq!(r.legacy[0].take_rises(), 1);
        assert_eq!((r.hpet.read(0x108, 4, at(5_000)), r.hpet.deadline()), (6_000, Some(at(6_000))));
        r.hpet.advance(at(9_500));
        assert_eq!((r.legacy[0].take_rises(), r.hpet.deadline()), (1, Some(at(10_000))));
        r.hpet.write(0x10, 4, ENABLE, at(9_501));
        assert!(!r.select.level() && !r.legacy[0].level());
    }

    #[test]
    fn a_one_shot_interrupts_an_io_apic_pin_once() {
        let mut r = rig();
        r.hpet.write(0x10, 4, ENABLE, 0);
        r.hpet.write(0x140, 4, INTERRUPT | 21 << ROUTE_SHIFT, 0);
        r.hpet.write(0x148, 8, 300, 0);
        r.hpet.advance(at(299));
        assert_eq!(r.pins[1].take_rises(), 0);
        r.hpet.advance(at(300));
        assert_eq!((r.pins[1].take_rises(), r.pins[1].level(), r.hpet.deadline()), (1, false, None));
        r.hpet.write(0x140, 4, INTERRUPT | 3 << ROUTE_SHIFT, at(300));
        assert_eq!(r.hpet.read(0x140, 4, at(300)) & ROUTE, 21 << ROUTE_SHIFT, "no such route");
    }

    #[test]
    fn a_level_interrupt_stays_until_its_status_is_cleared() {
        let mut r = rig();
        r.hpet.write(0x10, 4, ENABLE, 0);
        r.hpet.write(0x100, 4, INTERRUPT | LEVEL | 20 << ROUTE_SHIFT, 0);
        r.hpet.write(0x108, 8, 50, 0);
        r.hpet.advance(at(60));
        assert!(r.pins[0].level());
        let saved = r.hpet.save();
        assert_eq!(r.hpet.read(0x20, 4, at(60)), 1);
        r.hpet.write(0x20, 4, 1, at(60));
        assert!(!r.pins[0].level());
        r.hpet.restore(&saved).unwrap();
        assert!(!r.pins[0].level(), "restore drives nothing");
        r.hpet.write(0x20, 4, 1, at(60));
        assert_eq!(r.hpet.save(), {
            r.hpet.advance(at(60));
            r.hpet.save()
        });
    }

    #[test]
    fn thirty_two_bit_comparators_wrap() {
        let mut r = rig();
        r.hpet.write(0xF0, 8, 0xFFFF_FFF0, 0);
        r.hpet.write(0x10, 4, ENABLE, 0);
        r.hpet.write(0x100, 4, INTERRUPT | BITS_32 | 20 << ROUTE_SHIFT, 0);
        r.hpet.write(0x108, 4, 0x10, 0);
        assert_eq!(r.hpet.deadline(), Some(at(0x20)));
        r.hpet.advance(at(0x20));
        assert_eq!(r.hpet.deadline(), Some(at(0x1_0000_0020)));
    }
}
