//! Bare-metal guests for what booting an operating system does not show: each test is a few instructions and the state
//! that the manual demands after them. One binary, so that the harness is built once.

mod common;

mod accesses;
mod budget;
mod debug;
mod delivery;
mod gates;
mod limits;
mod returns;
mod selfmod;
mod shadows;
mod smoke;
mod strings;
mod tlb;
mod walk;
