//! Boards, loaders, run loop and time.
#![deny(unsafe_code)]

pub mod board;
pub mod boot;
mod clock;
mod console;
pub mod firmware;
mod machine;
mod para;
mod random;
mod signal;

pub use clock::{ClockKind, TSC_HZ};
pub use console::Console;
pub use machine::{Config, Exit, Limits, Machine, MachineError, Payload, Stats};
pub use para::ParaPayload;
pub use signal::Signal;
