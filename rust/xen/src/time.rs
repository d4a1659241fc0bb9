//! Time: the pvclock record, the timers of a vCPU, and when the next of them is due.
//!
//! System time is the machine's time in nanoseconds and the time-stamp counter runs at one tick a nanosecond, so one
//! record written at the start stays true (xen/include/public/xen.h, `vcpu_time_info`).

use crate::domain::Domain;
use crate::public::{shared, virq};

/// Multiplier and shift of the pvclock record for a counter of 1 GHz: ns = (tsc << 1) * 2^31 / 2^32.
const TSC_TO_SYSTEM_MUL: u32 = 0x8000_0000;
const TSC_SHIFT: i8 = 1;
/// `PVCLOCK_TSC_STABLE_BIT`: readings of one vCPU's counter can be compared with another's, so that user code may read the
/// clock without a system call.
const TSC_STABLE: u8 = 1;
/// Bytes of a pvclock record.
pub(crate) const RECORD: usize = 32;

/// A vCPU's periodic timer at the start (`VCPUOP_set_periodic_timer`).
const FIRST_PERIOD: u64 = 10_000_000;

/// The timers of one vCPU, in system time.
#[derive(Debug)]
pub struct Timers {
    pub single_shot: Option<u64>,
    /// `HYPERVISOR_set_timer_op`.
    pub legacy: Option<u64>,
    pub period: u64,
    pub next_period: u64,
    /// A `SCHEDOP_poll` that gives up.
    pub poll: Option<u64>,
}

impl Default for Timers {
    fn default() -> Self {
        Timers {
            single_shot: None,
            legacy: None,
            period: FIRST_PERIOD,
            next_period: FIRST_PERIOD,
            poll: None,
        }
    }
}

impl Timers {
    /// When the next timer is due.
    pub fn deadline(&self) -> Option<u64> {
        let periodic = (self.period != 0).then_some(self.next_period);
        [self.single_shot, self.legacy, periodic, self.poll].into_iter().flatten().min()
    }

    /// Takes what is due at `now`; tells whether VIRQ_TIMER is to be raised.
    fn expire(&mut self, now: u64) -> bool {
        let mut fired = false;
        for timer in [&mut self.single_shot, &mut self.legacy] {
            if timer.is_some_and(|at| at <= now) {
                *timer = None;
                fired = true;
            }
        }
        if self.period != 0 && self.next_period <= now {
            // One that fell behind gives one tick and drops the rest.
            self.next_period = now + self.period - (now - self.next_period) % self.period;
            fired = true;
        }
        fired
    }
}

impl Domain {
    /// Writes the pvclock record of a vcpu_info at a host offset.
    pub(crate) fn write_time(&self, vcpu_info: u64) {
        let at = vcpu_info + shared::TIME;
        let memory = self.memory();
        let version = memory.load::<u32>(at);
        memory.store::<u32>(at, version | 1);
        memory.store::<u64>(at + 8, 0);
        memory.store::<u64>(at + 16, 0);
        memory.store::<u32>(at + 24, TSC_TO_SYSTEM_MUL);
        memory.store::<u8>(at + 28, TSC_SHIFT as u8);
        memory.store::<u8>(at + 29, TSC_STABLE);
        memory.store::<u32>(at, (version | 1).wrapping_add(1));
    }

    /// The pvclock record as it stands in the vcpu_info.
    pub(crate) fn time_record(&self) -> [u8; RECORD] {
        let mut record = [0; RECORD];
        self.memory().read_host(self.vcpu_info() + shared::TIME, &mut record);
        record
    }

    /// When the domain has to be looked at next.
    pub fn deadline(&self) -> Option<u64> {
        // Nobody listens to a timer before it is bound.
        let bound = self.events().virq_port(virq::TIMER).is_some();
        let timers = self.timers();
        if bound { timers.deadline() } else { timers.poll }
    }

    /// The same for a vCPU that waits: a tick that is pending already, because the guest has masked it, will not wake it
    /// however often it comes again.
    pub fn next_wake(&self) -> Option<u64> {
        let port = self.events().virq_port(virq::TIMER);
        let ticks = port.is_some_and(|port| !self.is_pending(port));
        let timers = self.timers();
        if ticks { timers.deadline() } else { timers.poll }
    }

    /// Raises what is due at system time `now`.
    pub fn advance(&self, now: u64) {
        let (fired, gave_up) = {
            let mut timers = self.timers();
            let fired = timers.expire(now);
            let gave_up = timers.poll.is_some_and(|at| at <= now);
            if gave_up {
                timers.poll = None;
            }
            (fired, gave_up)
        };
        if fired {
            self.raise_virq(virq::TIMER);
        }
        if gave_up {
            self.kick();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::domain;

    #[test]
    fn a_tick_that_is_pending_wakes_nobody_again() {
        let domain = domain();
        assert_eq!(domain.next_wake(), None, "nobody listens");
        let port = domain.bind_virq(virq::TIMER, 0).unwrap();
        assert_eq!(domain.next_wake(), Some(FIRST_PERIOD));
        domain.advance(FIRST_PERIOD);
        assert_eq!(domain.next_wake(), None);
        domain.timers().poll = Some(FIRST_PERIOD + 1);
        assert_eq!(domain.next_wake(), Some(FIRST_PERIOD + 1));
        domain.timers().poll = None;
        assert_eq!(domain.deadline(), Some(2 * FIRST_PERIOD), "it goes on for a vCPU that runs");
        domain.clear_pending(port);
        assert_eq!(domain.next_wake(), Some(2 * FIRST_PERIOD));
    }
}
