//! The local APIC's timer (SDM 3A, 11.5.4): one-shot, periodic and TSC-deadline, as a function of machine time.
use serde::{Deserialize, Serialize};

use crate::{Frequency, MIN_TIMER_PERIOD, Nanos};

/// How a vCPU's time-stamp counter follows machine time. The offset changes when the guest writes the counter or
/// IA32_TSC_ADJUST.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TscClock {
    /// Counts a second.
    pub hz: u64,
    /// Added to the count since machine time zero, modulo 2^64.
    pub offset: u64,
}

impl TscClock {
    /// The counter at `now`.
    pub fn value(self, now: Nanos) -> u64 {
        Frequency::hz(self.hz).ticks(now).wrapping_add(self.offset)
    }

    /// The first time, not before `now`, at which the counter has reached `value`; `None` if that is beyond the end of
    /// machine time.
    pub fn time(self, value: u64, now: Nanos) -> Option<Nanos> {
        let clock = Frequency::hz(self.hz);
        let ahead = value.saturating_sub(self.value(now));
        if ahead == 0 {
            return Some(now);
        }
        clock.time(clock.ticks(now).checked_add(ahead)?)
    }
}

/// Bits 18:17 of the timer's vector table entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    OneShot,
    Periodic,
    TscDeadline,
}

impl Mode {
    pub(super) fn of(lvt: u32) -> Mode {
        match lvt >> 17 & 3 {
            0 => Mode::OneShot,
            1 => Mode::Periodic,
            _ => Mode::TscDeadline,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Timer {
    /// Input clock before the divider.
    hz: u64,
    /// Divide configuration register.
    divide: u8,
    initial: u32,
    /// The count at `start`; zero while the timer stands.
    from: u32,
    start: Nanos,
    /// Whether it starts again when it ends; follows the mode.
    periodic: bool,
    /// IA32_TSC_DEADLINE.
    deadline: u64,
    /// When the count next reaches zero, or the TSC its deadline.
    due: Option<Nanos>,
}

impl Timer {
    pub(super) fn new(hz: u64) -> Timer {
        Timer { hz, divide: 0, initial: 0, from: 0, start: 0, periodic: false, deadline: 0, due: None }
    }

    pub(super) fn due(&self) -> Option<Nanos> {
        self.due
    }

    pub(super) fn initial(&self) -> u32 {
        self.initial
    }

    pub(super) fn divide(&self) -> u8 {
        self.divide
    }

    pub(super) fn tsc_deadline(&self) -> u64 {
        self.deadline
    }

    /// The divided clock (SDM 3A, figure 11-10).
    fn clock(&self) -> Frequency {
        let code = self.divide & 3 | self.divide >> 1 & 4;
        let divisor = if code == 7 { 1 } else { 2 << code };
        Frequency::hz(self.hz).divided(divisor)
    }

    fn ticks(&self, now: Nanos) -> u64 {
        self.clock().ticks(now.saturating_sub(self.start))
    }

    /// The count that a periodic timer starts again from: no shorter than the shortest period.
    fn reload(&self) -> u64 {
        u64::from(self.initial).max(self.clock().ticks(MIN_TIMER_PERIOD)).max(1)
    }

    pub(super) fn current(&self, now: Nanos) -> u32 {
        let (from, ticks) = (u64::from(self.from), self.ticks(now));
        if self.from == 0 || ticks < from {
            from.saturating_sub(ticks) as u32
        } else if self.periodic {
            let reload = self.reload();
            (reload - (ticks - from) % reload).min(u64::from(self.initial)) as u32
        } else {
            0
        }
    }

    fn at(&self, ticks: u64) -> Option<Nanos> {
        self.clock().time(ticks)?.checked_add(self.start)
    }

    fn run_from(&mut self, count: u32, now: Nanos) {
        self.from = count;
        self.start = now;
        self.due = if count == 0 { None } else { self.at(count.into()) };
    }

    pub(super) fn set_initial(&mut self, count: u32, now: Nanos) {
        self.initial = count;
        self.run_from(count, now);
    }

    /// Goes on from the present count at the new rate.
    pub(super) fn set_divide(&mut self, value: u8, now: Nanos) {
        let current = self.current(now);
        self.divide = value & 0x0B;
        if self.from != 0 {
            self.run_from(current, now);
        }
    }

    /// The mode in the vector table entry has changed. Entering and leaving TSC-deadline mode disarms the timer
    /// (SDM 3A, 11.5.4.1).
    pub(super) fn set_mode(&mut self, old: Mode, new: Mode, now: Nanos) {
        let current = self.current(now);
        self.periodic = new == Mode::Periodic;
        if old == new {
            return;
        }
        if old == Mode::TscDeadline || new == Mode::TscDeadline {
            self.deadline = 0;
            self.initial = 0;
            self.run_from(0, now);
        } else if self.from != 0 {
            self.run_from(current, now);
        }
    }

    pub(super) fn set_tsc_deadline(&mut self, deadline: u64, tsc: TscClock, now: Nanos) {
        self.deadline = deadline;
        self.due = if deadline == 0 { None } else { tsc.time(deadline, now) };
    }

    /// The counter has been changed; an armed deadline moves with it.
    pub(super) fn tsc_changed(&mut self, tsc: TscClock, now: Nanos) {
        if self.deadline != 0 {
            self.due = tsc.time(self.deadline, now);
        }
    }

    /// Whether the timer has ended by `now`, however often; then it is set for the next time.
    pub(super) fn expired(&mut self, now: Nanos) -> bool {
        if self.due.is_none_or(|due| due > now) {
            return false;
        }
        self.due = None;
        if self.deadline != 0 {
            self.deadline = 0;
        } else if self.periodic && self.initial != 0 {
            let (reload, from) = (self.reload(), u64::from(self.from));
            let passed = self.ticks(now).saturating_sub(from) / reload;
            // Always counted from `start`, so that nothing drifts.
            let next =
                passed.checked_add(1).and_then(|n| n.checked_mul(reload)).and_then(|n| n.checked_add(from));
            self.due = next.and_then(|next| self.at(next));
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_periodic_timer_keeps_its_phase_and_drops_what_it_missed() {
        let mut timer = Timer::new(1_000_000_000);
        timer.set_divide(0x0B, 0); // Divide by one.
        timer.set_mode(Mode::OneShot, Mode::Periodic, 0);
        timer.set_initial(10_000, 500);
        assert_eq!(timer.due(), Some(10_500));
        assert!(!timer.expired(10_499));
        assert!(timer.expired(10_500));
        assert_eq!((timer.due(), timer.current(10_500)), (Some(20_500), 10_000));
        assert!(timer.expired(95_000));
        assert!(!timer.expired(95_000));
        assert_eq!((timer.due(), timer.current(95_000)), (Some(100_500), 5_500));
    }

    #[test]
    fn no_period_is_shorter_than_the_shortest() {
        let mut timer = Timer::new(1_000_000_000);
        timer.set_divide(0x0B, 0);
        timer.set_mode(Mode::OneShot, Mode::Periodic, 0);
        timer.set_initial(1, 0);
        assert!(timer.expired(1));
        assert_eq!(timer.due(), Some(1 + MIN_TIMER_PERIOD));
    }

    #[test]
    fn every_divisor() {
        for (bits, divisor) in [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (0xA, 128), (0xB, 1)] {
            let mut timer = Timer::new(1_000_000_000);
            timer.set_divide(bits, 0);
            timer.set_initial(100, 0);
            assert_eq!(timer.due(), Some(100 * divisor));
            timer.set_divide(0xB, 50 * divisor);
            assert_eq!(timer.due(), Some(50 * divisor + 50), "the rest runs at the new rate");
        }
    }

    proptest! {
        #[test]
        fn a_tsc_deadline_is_met_and_not_early(
            hz in 1_000_000u64..5_000_000_000, offset: u64, now in 0u64..1 << 40, ahead in 1u64..1 << 40,
        ) {
            let tsc = TscClock { hz, offset };
            if let Some(deadline) = tsc.value(now).checked_add(ahead) {
                let due = tsc.time(deadline, now).unwrap();
                prop_assert!(tsc.value(due).wrapping_sub(tsc.value(now)) >= ahead);
                prop_assert!(tsc.value(due - 1).wrapping_sub(tsc.value(now)) < ahead);
            }
        }
    }
}
