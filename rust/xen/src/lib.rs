//! The Xen PV ABI for 64-bit guests: what a para-virtual domain is made of and what its hypercalls do.
//!
//! Names are those of Xen's public headers. Knows no board, no loader and no Python.
#![deny(unsafe_code)]

pub mod errno;
pub mod paging;

pub use errno::Errno;
