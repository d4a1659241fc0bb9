//! What surrounds the vCPU of a para-virtual domain: time. Everything else it gets by hypercalls.

use std::sync::Arc;

use trapgate_engine::platform::{Interrupt, NoMsr, Platform};

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
    fn port_read(&mut self, _: u64, _: u16, _: u8) -> u32 {
        u32::MAX
    }
    fn port_write(&mut self, _: u64, _: u16, _: u8, _: u32) {}
    fn mmio_read(&mut self, _: u64, _: u64, _: u8) -> u64 {
        u64::MAX
    }
    fn mmio_write(&mut self, _: u64, _: u64, _: u8, _: u64) {}
    fn pending(&mut self, _: u64, _: bool, _: bool) -> Option<Interrupt> {
        None
    }
    fn acknowledge(&mut self, _: u64, _: Interrupt) -> Option<u8> {
        None
    }
    fn tsc(&mut self, count: u64) -> u64 {
        self.board.note_access();
        self.clock.now(count)
    }
    fn msr_read(&mut self, _: u64, _: u32) -> Option<Result<u64, NoMsr>> {
        None
    }
    fn msr_write(&mut self, _: u64, _: u32, _: u64) -> Option<Result<(), NoMsr>> {
        None
    }
    fn tpr(&mut self) -> u8 {
        0
    }
    fn set_tpr(&mut self, _: u64, _: u8) {}
    fn set_tsc_offset(&mut self, _: u64, _: u64) {}

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
    fn apic_enabled(&self) -> bool {
        false
    }
    fn apic_id(&self) -> u32 {
        0
    }
}
