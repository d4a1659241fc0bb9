//! The silicon oracle: because the host runs the same instruction set, every unprivileged instruction of a CPU model can
//! be executed for real on random state in a scratch page, and compared with the engine register by register, flag by
//! flag, byte by byte. See `docs/testing-silicon.md`.
//!
//! [`host`] runs a [`case::Case`] on the processor, [`guest`] on the engine; [`catalog`] lists the encodings of the model
//! and what is not run; [`encode`], [`prepare`], `solve`, `values` and [`assemble`] make cases of them; [`compare`] knows what is defined;
//! [`suite`] puts these together, [`blocks`] runs several instructions at once, and
//! [`report`] says what was covered; [`vendor`] knows what differs by the processor's maker.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

use trapgate_x86::features::Features;
use trapgate_x86::model::{Model, RUNNABLE, X86_64_V3, host as host_model};

/// The processor under test: it offers everything that the engine runs. What the host has not got is not run.
pub static MODEL: Model = Model { features: RUNNABLE, ..X86_64_V3 };

/// Whether the host has the upper halves of YMM registers. Where it has not, their component is not enabled in the guest.
pub fn has_upper_halves() -> bool {
    host_model().features.contains(Features::AVX)
}

pub mod assemble;
pub mod blocks;
pub mod case;
pub mod catalog;
pub mod compare;
pub mod encode;
pub mod guest;
pub mod host;
pub mod prepare;
pub mod random;
pub mod report;
mod solve;
pub mod space;
pub mod suite;
mod values;
pub mod vendor;
