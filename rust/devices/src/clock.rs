//! Machine time and the exact conversion between nanoseconds and a chip's clock ticks. Counters of every chip are pure
//! functions of machine time: nothing accumulates rounding errors and nothing needs to be stepped.

/// Machine time since power-on, sampled once per access by the caller.
pub type Nanos = u64;

/// Nanoseconds in a second.
pub const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// A clock of `ticks` per `nanos` nanoseconds, starting at machine time zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frequency {
    ticks: u64,
    nanos: u64,
}

impl Frequency {
    /// A clock of `hz` ticks a second.
    pub const fn hz(hz: u64) -> Frequency {
        Frequency { ticks: hz, nanos: NANOS_PER_SECOND }
    }

    /// A clock whose period is `femtoseconds`, the unit of the HPET's capability register.
    pub const fn period_femtoseconds(femtoseconds: u64) -> Frequency {
        Frequency { ticks: 1_000_000, nanos: femtoseconds }
    }

    /// This clock divided by `divisor`.
    pub const fn divided(self, divisor: u32) -> Frequency {
        Frequency {
            ticks: self.ticks,
            nanos: self.nanos.saturating_mul(if divisor == 0 { 1 } else { divisor as u64 }),
        }
    }

    /// How many whole ticks have passed at `now`.
    pub fn ticks(self, now: Nanos) -> u64 {
        let ticks = u128::from(now) * u128::from(self.ticks) / u128::from(self.nanos.max(1));
        u64::try_from(ticks).unwrap_or(u64::MAX)
    }

    /// The first nanosecond at which `ticks` ticks have passed; `None` if that is after the end of machine time.
    pub fn time(self, ticks: u64) -> Option<Nanos> {
        let nanos = (u128::from(ticks) * u128::from(self.nanos)).div_ceil(u128::from(self.ticks.max(1)));
        u64::try_from(nanos).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_second_of_the_pit_clock_is_its_frequency() {
        let pit = Frequency::hz(1_193_182);
        assert_eq!(pit.ticks(NANOS_PER_SECOND), 1_193_182);
        assert_eq!(pit.ticks(NANOS_PER_SECOND - 1), 1_193_181);
        assert_eq!(pit.ticks(86_400 * NANOS_PER_SECOND), 86_400 * 1_193_182);
    }

    proptest! {
        #[test]
        fn time_is_the_first_nanosecond_of_a_tick(hz in 1u64..10_000_000_000, tick in 1u64..1 << 40) {
            let clock = Frequency::hz(hz);
            if let Some(at) = clock.time(tick) {
                prop_assert!(clock.ticks(at) >= tick);
                prop_assert!(clock.ticks(at - 1) < tick);
            }
        }
    }
}
