//! Exceptions on their way to the guest, and the other ways in which an instruction does not complete.

use trapgate_x86::exception::Vector;

/// An exception to be delivered to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    pub vector: u8,
    pub error: Option<u32>,
    /// Faulting linear address of #PF.
    pub address: u64,
    /// How it entered: decides EXT, RF and what is pushed as RIP.
    pub kind: Kind,
}

/// Sources of an event (SDM vol. 3, 6.15 and 26.8.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Reported before the instruction: RIP points at it.
    Fault,
    /// Reported after the instruction: RIP points behind it.
    Trap,
    /// INT n, INT3, INTO: DPL of the gate is checked.
    Software,
    /// External interrupt or NMI.
    External,
}

impl Exception {
    pub fn fault(vector: Vector) -> Self {
        Exception { vector: vector as u8, error: None, address: 0, kind: Kind::Fault }
    }
    pub fn with_error(vector: Vector, error: u32) -> Self {
        Exception { error: Some(error), ..Exception::fault(vector) }
    }
    pub fn gp(error: u32) -> Self {
        Exception::with_error(Vector::Gp, error)
    }
    pub fn ud() -> Self {
        Exception::fault(Vector::Ud)
    }
    pub fn page_fault(address: u64, error: u32) -> Self {
        Exception { address, ..Exception::with_error(Vector::Pf, error) }
    }
}

/// Why an instruction did not complete. What there is to say about it stands in the vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// An exception waits in `Vcpu::fault`.
    Fault,
    /// The instruction is to be started again (a repeated string instruction at an interrupt point).
    Restart,
    /// The vCPU cannot go on: `Vcpu::exit`.
    Exit,
}

/// Result of an instruction or a part of it.
pub type Done<T = ()> = Result<T, Stop>;
