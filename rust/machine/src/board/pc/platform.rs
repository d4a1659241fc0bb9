//! The board as a vCPU sees it: ports, device memory, interrupts, time.

use std::sync::Arc;

use trapgate_devices::apic::{LocalApic, TscClock};
use trapgate_devices::{Device, PhysAddr, Port, lock};
use trapgate_engine::platform::{Interrupt, NoMsr, Platform};

use super::PcBoard;
use trapgate_x86::msr::IA32_APIC_BASE;

use crate::clock::{Clock, ClockKind, LEAST_SLICE, TSC_HZ};
use crate::random::Random;

/// One vCPU's surroundings.
#[derive(Debug)]
pub(crate) struct PcPlatform {
    pub board: Arc<PcBoard>,
    pub clock: Arc<Clock>,
    pub random: Random,
    pub apic_id: u32,
}

impl PcPlatform {
    /// Offset into the local APIC's registers, while they answer at all.
    fn apic_offset(&self, gpa: u64) -> Option<u64> {
        let base = lock(&self.board.local_apic).base()?;
        let offset = gpa.wrapping_sub(base.0);
        (offset < 0x1000).then_some(offset)
    }
}

impl Platform for PcPlatform {
    fn port_read(&mut self, count: u64, port: u16, size: u8) -> u32 {
        self.board.note_access();
        self.board.ports.read(Port(port), size, self.clock.now(count)) as u32
    }

    fn port_write(&mut self, count: u64, port: u16, size: u8, value: u32) {
        self.board.note_access();
        self.board.ports.write(Port(port), size, u64::from(value), self.clock.now(count));
    }

    fn mmio_read(&mut self, count: u64, gpa: u64, size: u8) -> u64 {
        self.board.note_access();
        let now = self.clock.now(count);
        match self.apic_offset(gpa) {
            Some(offset) => lock(&self.board.local_apic).read(offset, size, now),
            None => self.board.memory.read(PhysAddr(gpa), size, now),
        }
    }

    fn mmio_write(&mut self, count: u64, gpa: u64, size: u8, value: u64) {
        self.board.note_access();
        let now = self.clock.now(count);
        match self.apic_offset(gpa) {
            Some(offset) => lock(&self.board.local_apic).write(offset, size, value, now),
            None => self.board.memory.write(PhysAddr(gpa), size, value, now),
        }
    }

    fn pending(&mut self, _count: u64, nmi: bool, maskable: bool) -> Option<Interrupt> {
        self.board.apic_port.take_attention();
        if nmi && self.board.apic_port.nmi_pending() {
            return Some(Interrupt::Nmi);
        }
        (maskable && lock(&self.board.local_apic).pending().is_some()).then_some(Interrupt::Maskable)
    }

    fn acknowledge(&mut self, _count: u64, interrupt: Interrupt) -> Option<u8> {
        match interrupt {
            Interrupt::Nmi => {
                self.board.apic_port.take_nmi();
                None
            }
            Interrupt::Maskable => {
                lock(&self.board.local_apic).acknowledge(|| lock(&self.board.pic).acknowledge())
            }
        }
    }

    fn tsc(&mut self, count: u64) -> u64 {
        self.board.note_access();
        self.clock.now(count)
    }

    fn msr_read(&mut self, count: u64, msr: u32) -> Option<Result<u64, NoMsr>> {
        if !LocalApic::has_msr(msr) {
            return None;
        }
        self.board.note_access();
        let now = self.clock.now(count);
        Some(lock(&self.board.local_apic).read_msr(msr, now).map_err(|_| NoMsr))
    }

    fn msr_write(&mut self, count: u64, msr: u32, value: u64) -> Option<Result<(), NoMsr>> {
        if !LocalApic::has_msr(msr) {
            return None;
        }
        self.board.note_access();
        let now = self.clock.now(count);
        Some(lock(&self.board.local_apic).write_msr(msr, value, now).map_err(|_| NoMsr))
    }

    fn tpr(&mut self) -> u8 {
        self.board.note_access();
        lock(&self.board.local_apic).cr8()
    }

    fn set_tpr(&mut self, _count: u64, priority: u8) {
        self.board.note_access();
        lock(&self.board.local_apic).set_cr8(priority);
    }

    fn set_tsc_offset(&mut self, count: u64, offset: u64) {
        self.board.note_access();
        let now = self.clock.now(count);
        lock(&self.board.local_apic).set_tsc(TscClock { hz: TSC_HZ, offset }, now);
    }

    fn next_event(&mut self, count: u64) -> u64 {
        let at = self.clock.count_at(self.board.deadline(), count);
        // The guest makes headway between two services, whatever the timers are set to.
        let least = if self.clock.kind() == ClockKind::Virtual { 1 } else { LEAST_SLICE };
        at.max(self.board.last_served().saturating_add(least))
    }

    fn random(&mut self) -> u64 {
        self.board.note_access();
        self.random.next()
    }

    fn apic_enabled(&self) -> bool {
        const ENABLE: u64 = 1 << 11;
        let mut apic = lock(&self.board.local_apic);
        apic.read_msr(IA32_APIC_BASE, 0).is_ok_and(|base| base & ENABLE != 0)
    }

    fn apic_id(&self) -> u32 {
        self.apic_id
    }
}
