//! Why the engine returned to its caller.

use serde::{Deserialize, Serialize};

/// Reasons for which [`crate::Engine::run`] returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Exit {
    /// The instruction count that was asked for, or the next event's, has been reached.
    Budget,
    /// HLT (or MWAIT) with nothing pending; the vCPU waits for an interrupt.
    Halted,
    /// Somebody asked for a stop through [`crate::Requests`].
    Requested,
    /// A fault while delivering a double fault: the processor shut down (SDM vol. 3, 6.15, interrupt 8).
    TripleFault {
        /// RIP of the instruction whose fault started it.
        rip: u64,
        /// Vector of the first exception of the chain.
        vector: u8,
    },
    /// The guest entered a state that this engine does not run.
    Unsupported {
        /// What it is.
        what: Unsupported,
        rip: u64,
    },
    /// Hooks were hit; [`crate::Vcpu::take_hook_events`] tells which. An execution hook stops before its instruction.
    Hook,
}

/// States that the engine does not run yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Unsupported {
    #[error("real mode (CR0.PE = 0)")]
    RealMode,
    #[error("virtual-8086 mode")]
    Virtual8086,
    #[error("a hardware task switch")]
    TaskSwitch,
    #[error("a call gate")]
    CallGate,
    #[error("system management mode (RSM)")]
    Smm,
}
