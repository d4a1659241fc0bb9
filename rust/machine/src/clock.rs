//! Machine time: host time while the machine runs, or instructions counted.
//!
//! All of a machine's timers are functions of this one number of nanoseconds since power-on.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use trapgate_devices::Nanos;

/// Frequency of the guest's time-stamp counter: one tick a nanosecond under either clock.
pub const TSC_HZ: u64 = 1_000_000_000;

/// Which clock a machine runs by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ClockKind {
    /// The host's monotonic clock, stopped while the machine is.
    #[default]
    Real,
    /// Completed instructions at 1000 a microsecond: the same run twice is identical.
    Virtual,
}

/// The clock of one machine; shared by its run loop and its vCPUs' platforms.
#[derive(Debug)]
pub struct Clock {
    kind: ClockKind,
    /// Virtual: nanoseconds skipped by halts. Real: nanoseconds run until the last stop.
    base: AtomicU64,
    origin: Instant,
    /// Real: when the machine started to run, in nanoseconds since `origin`; [`STOPPED`] while it does not.
    started: AtomicU64,
    /// What an instruction has taken of late, in picoseconds of host time.
    pace: AtomicU64,
}

const STOPPED: u64 = u64::MAX;

impl Clock {
    pub fn new(kind: ClockKind) -> Self {
        Clock {
            kind,
            base: AtomicU64::new(0),
            origin: Instant::now(),
            started: AtomicU64::new(STOPPED),
            pace: AtomicU64::new(FIRST_PACE),
        }
    }

    pub fn kind(&self) -> ClockKind {
        self.kind
    }

    /// What a state record keeps: virtual time skipped, or real time run.
    pub fn base(&self) -> Nanos {
        self.base.load(Relaxed)
    }

    fn since_start(&self) -> Nanos {
        match self.started.load(Relaxed) {
            STOPPED => 0,
            at => (self.origin.elapsed().as_nanos() as u64).saturating_sub(at),
        }
    }

    /// The time after `count` instructions.
    #[inline]
    pub fn now(&self, count: u64) -> Nanos {
        let more = if self.kind == ClockKind::Virtual { count } else { self.since_start() };
        self.base.load(Relaxed).saturating_add(more)
    }

    /// The machine starts to run.
    pub fn start(&self) {
        if self.kind == ClockKind::Real && self.started.load(Relaxed) == STOPPED {
            self.started.store(self.origin.elapsed().as_nanos() as u64, Relaxed);
        }
    }

    /// The machine stops: real time does not pass for it meanwhile.
    pub fn stop(&self) {
        let ran = self.since_start();
        if self.started.swap(STOPPED, Relaxed) != STOPPED {
            self.base.fetch_add(ran, Relaxed);
        }
    }

    /// Virtual time jumps ahead over a halt, to `time`.
    pub fn skip_to(&self, time: Nanos, count: u64) {
        if self.kind == ClockKind::Virtual {
            self.base.fetch_max(time.saturating_sub(count), Relaxed);
        }
    }

    /// So many instructions have taken so long.
    pub fn measured(&self, instructions: u64, took: Duration) {
        if instructions >= LEAST_SLICE {
            let now = (took.as_nanos() as u64).saturating_mul(1000) / instructions;
            let before = self.pace.load(Relaxed);
            self.pace.store(((3 * before + now) / 4).clamp(FASTEST, SLOWEST), Relaxed);
        }
    }

    /// Instructions after which the machine looks around, under either clock: they bound the time by which a limit of host
    /// time is overrun. No guest can tell where a slice ended. Its end costs about a microsecond.
    pub fn slice(&self) -> u64 {
        (SLICE_PICOSECONDS / self.pace.load(Relaxed)).clamp(SHORTEST_SLICE, LONGEST_SLICE)
    }

    /// The count at which `deadline` is reached, as seen from `count`. Under the real clock a guess that is early
    /// enough: the loop looks at the time again when it gets there.
    pub fn count_at(&self, deadline: Option<Nanos>, count: u64) -> u64 {
        match self.kind {
            ClockKind::Virtual => deadline.map_or(u64::MAX, |d| d.saturating_sub(self.base())).max(count),
            ClockKind::Real => {
                let ahead = deadline.map_or(u64::MAX, |d| d.saturating_sub(self.now(count)));
                if ahead == 0 {
                    return count;
                }
                // A little early: what is left is then a short slice.
                let instructions = ahead.saturating_mul(875) / self.pace.load(Relaxed);
                count.saturating_add(instructions.clamp(LEAST_SLICE, self.slice()))
            }
        }
    }
}

/// What an instruction takes, before anything was measured, at least, and at most (each may flush the TLB).
const FIRST_PACE: u64 = 4_000;
const FASTEST: u64 = 50;
const SLOWEST: u64 = 1_000_000;
/// How long a slice is to take: long beside what its end costs, short for whoever waits for it.
const SLICE_PICOSECONDS: u64 = 200_000_000;
/// Instructions of a slice whatever was measured: what comes next may take a thousand times as long.
const SHORTEST_SLICE: u64 = 20_000;
const LONGEST_SLICE: u64 = 200_000;
/// Real clock: no timer fires faster than the guest can run this many instructions.
pub const LEAST_SLICE: u64 = 1_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtual_time_is_counted_and_skips_halts() {
        let clock = Clock::new(ClockKind::Virtual);
        assert_eq!(clock.now(500), 500);
        assert_eq!(clock.count_at(Some(700), 500), 700);
        clock.skip_to(10_000, 500);
        assert_eq!(clock.now(500), 10_000);
        assert_eq!(clock.count_at(Some(10_100), 500), 600);
        assert_eq!(clock.count_at(None, 500), u64::MAX);
        assert_eq!(clock.count_at(Some(3), 500), 500);
    }

    #[test]
    fn real_time_stands_still_while_stopped() {
        let clock = Clock::new(ClockKind::Real);
        clock.start();
        clock.stop();
        let at = clock.now(0);
        assert_eq!(clock.now(1_000_000), at);
        assert_eq!(clock.count_at(Some(at), 7), 7);
    }
}
