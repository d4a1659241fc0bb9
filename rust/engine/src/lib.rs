//! vCPU state, interpreter, MMU and guest memory. Knows no chip and no Python.
#![deny(unsafe_code)]

pub mod departures;
pub mod exit;
pub mod fault;
pub mod hooks;
pub mod host;
pub mod interp;
pub mod memory;
mod mix;
pub mod mmu;
pub mod monitor;
pub mod options;
pub mod platform;
pub mod state;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub mod translate;
/// What there is of the translator on hosts that it has no code for.
#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
pub mod translate {
    pub use crate::options::{TranslateOptions, TranslatorStats};
}
pub mod vector;

pub use departures::Departures;
pub use exit::{Exit, Unsupported};
pub use hooks::{HookEvent, HookId, HookKind};
pub use interp::Engine;
pub use memory::GuestMemory;
pub use monitor::Monitor;
pub use platform::Platform;
pub use state::{Requests, Vcpu};
