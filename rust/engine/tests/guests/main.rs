//! Bare-metal guests for what booting an operating system does not show: each test is a few instructions and the state
//! that the manual demands after them. One binary, so that the harness is built once.

mod common;

mod accesses;
mod smoke;
mod tlb;
mod walk;
