//! What a vCPU needs from the machine around it: ports, device memory, its local APIC, time and randomness.
//!
//! The engine knows no chip; a board implements this trait for each of its vCPUs. Times are counts of completed
//! instructions, as the vCPU sees them at the access.

use std::fmt;

/// An interrupt that may be delivered now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupt {
    /// Non-maskable: not held back by IF.
    Nmi,
    /// Maskable; [`Platform::acknowledge`] gives its vector.
    Maskable,
}

/// Why a model-specific register cannot be accessed: #GP(0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoMsr;

/// The surroundings of one vCPU. What a board does not have, it leaves out: nothing answers there.
pub trait Platform: Send + fmt::Debug {
    /// Reads `size` (1, 2, 4) bytes from an I/O port.
    fn port_read(&mut self, _count: u64, _port: u16, _size: u8) -> u32 {
        u32::MAX
    }
    /// Writes `size` (1, 2, 4) bytes to an I/O port.
    fn port_write(&mut self, _count: u64, _port: u16, _size: u8, _value: u32) {}
    /// Reads `size` (1, 2, 4, 8) bytes of guest-physical memory that is not RAM.
    fn mmio_read(&mut self, _count: u64, _gpa: u64, _size: u8) -> u64 {
        u64::MAX
    }
    /// Writes `size` (1, 2, 4, 8) bytes of guest-physical memory that is not RAM.
    fn mmio_write(&mut self, _count: u64, _gpa: u64, _size: u8, _value: u64) {}
    /// The most urgent interrupt that waits for this vCPU, of the kinds that may be taken now: `nmi` unless one is being
    /// handled, `maskable` if IF allows them.
    fn pending(&mut self, _count: u64, _nmi: bool, _maskable: bool) -> Option<Interrupt> {
        None
    }
    /// Takes the pending interrupt; gives the vector of a maskable one (`None` when it has gone meanwhile).
    fn acknowledge(&mut self, _count: u64, _interrupt: Interrupt) -> Option<u8> {
        None
    }
    /// Time-stamp counter of the machine, before TSC_ADJUST.
    fn tsc(&mut self, count: u64) -> u64;
    /// Reads an MSR that belongs to the platform (local APIC, TSC deadline); `None`: not one of its own.
    fn msr_read(&mut self, _count: u64, _msr: u32) -> Option<Result<u64, NoMsr>> {
        None
    }
    /// Writes such an MSR.
    fn msr_write(&mut self, _count: u64, _msr: u32, _value: u64) -> Option<Result<(), NoMsr>> {
        None
    }
    /// The task priority, CR8.
    fn tpr(&mut self) -> u8 {
        0
    }
    /// Sets the task priority from CR8.
    fn set_tpr(&mut self, _count: u64, _priority: u8) {}
    /// The guest moved its time-stamp counter: what it adds to [`Platform::tsc`].
    fn set_tsc_offset(&mut self, _count: u64, _offset: u64) {}
    /// The count at which the vCPU must return to its machine's loop for the next event.
    fn next_event(&mut self, _count: u64) -> u64 {
        u64::MAX
    }
    /// 64 random bits for RDRAND and RDSEED, seeded by the machine.
    fn random(&mut self) -> u64;
    /// Whether IA32_APIC_BASE has the local APIC enabled.
    fn apic_enabled(&self) -> bool {
        false
    }
    /// Initial local APIC ID, as CPUID shows it.
    fn apic_id(&self) -> u32 {
        0
    }
}
