//! Boards, loaders, run loop and time.
#![deny(unsafe_code)]

mod bell;
pub mod board;
pub mod boot;
mod clock;
mod console;
mod exit;
pub mod firmware;
mod machine;
mod para;
mod random;
mod signal;

pub use bell::Bell;
pub use clock::{Clock, ClockKind, TSC_HZ};
pub use console::Console;
pub use exit::{Exit, Limits};
pub use machine::{Config, Machine, MachineError, Payload, Stats};
pub use para::ParaPayload;
pub use signal::Signal;
