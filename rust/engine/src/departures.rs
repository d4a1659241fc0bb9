//! Why guest code is left: what a guest does that only its monitor can do for it, counted by reason.
//!
//! Both executors count by the same rule, so a guest's numbers do not depend on which of them ran it. Where the translator
//! has found a way to do a system call or the return from it in place, it counts in `TranslatorStats::in_place` as well.
//! CLI, STI, SWAPGS and reads of control registers are a move for the one and for the other, and are not counted. The counters are no
//! state of the guest: nothing saves or hashes them.

use trapgate_x86::exception::Vector;

use crate::fault::{Exception, Kind};

/// Counts since the processor was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Departures {
    /// SYSCALL and SYSENTER, but not those of a para-virtual kernel.
    pub system_calls: u64,
    /// SYSRET, SYSEXIT and IRET.
    pub returns: u64,
    /// SYSCALL of a para-virtual kernel.
    pub hypercalls: u64,
    /// Other instructions that only a kernel may execute: the monitor did what they say.
    pub privileged: u64,
    /// Reads and writes of I/O ports.
    pub ports: u64,
    /// Reads and writes of memory that is a device.
    pub device_memory: u64,
    /// Page faults that the guest was told of.
    pub page_faults: u64,
    /// Other exceptions, and software interrupts.
    pub exceptions: u64,
    /// Interrupts; of a para-virtual guest, event upcalls.
    pub interrupts: u64,
    /// With shadow page tables: stores to page tables that have a shadow.
    pub table_stores: u64,
    /// With shadow page tables: accesses for which an entry of a shadow had to be filled in, of which the guest learns nothing.
    pub hidden_faults: u64,
}

impl Departures {
    /// An event has been delivered to the guest.
    pub(crate) fn delivered(&mut self, event: &Exception) {
        match event.kind {
            Kind::External => self.interrupts += 1,
            Kind::Fault if event.vector == Vector::Pf as u8 => self.page_faults += 1,
            _ => self.exceptions += 1,
        }
    }
}
