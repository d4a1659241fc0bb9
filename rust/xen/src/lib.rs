//! The Xen PV ABI for 64-bit guests: what a para-virtual domain is made of and what its hypercalls do.
//!
//! Names are those of Xen's public headers. Knows no board, no loader and no Python.
#![deny(unsafe_code)]

pub mod backend;
pub mod cpu;
pub mod domain;
pub mod errno;
pub mod event;
#[cfg(test)]
mod fake;
pub mod grant;
pub mod hypercall;
mod interdomain;
pub mod paging;
pub mod public;
pub mod time;

pub use cpu::PvCpu;
pub use domain::{Domain, Layout};
pub use errno::Errno;
pub use interdomain::Neighbours;
