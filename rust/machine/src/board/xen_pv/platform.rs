//! What surrounds the vCPU of a para-virtual domain: time. Everything else it gets by hypercalls.

use std::sync::Arc;

use trapgate_engine::platform::Platform;

use super::XenPvBoard;
use crate::clock::{Clock, ClockKind, LEAST_SLICE};
use crate::random::Random;

#[derive(Debug)]
pub(crate) struct XenPvPlatform {
    pub board: Arc<XenPvBoard>,
    pub clock: Arc<Clock>,
    pub random: Random,
}

impl Platform for XenPvPlatform {
    fn tsc(&mut self, count: u64) -> u64 {
        self.board.note_access();
        self.clock.now(count)
    }
    fn next_event(&mut self, count: u64) -> u64 {
        let at = self.clock.count_at(self.board.domain.deadline(), count);
        // The guest makes headway between two services, whatever its timers are set to.
        let least = if self.clock.kind() == ClockKind::Virtual { 1 } else { LEAST_SLICE };
        at.max(self.board.last_served().saturating_add(least))
    }

    fn random(&mut self) -> u64 {
        self.board.note_access();
        self.random.next()
    }
}
