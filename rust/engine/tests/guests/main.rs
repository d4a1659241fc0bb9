//! Bare-metal guests for what booting an operating system does not show: each test is a few instructions and the state
//! that the manual demands after them. One binary, so that the harness is built once.

mod common;

mod accesses;
mod avx;
mod bounds;
mod breakpoints;
mod budget;
mod delivery;
mod descriptors;
mod engines;
mod gates;
mod hostile;
mod limits;
mod loops;
mod operands;
mod pae;
mod passage;
mod paths;
mod permissions;
mod programs;
mod property;
mod registers;
mod returns;
mod segments;
mod selfmod;
mod shadow_paging;
mod shadows;
mod smoke;
mod spaces;
mod steps;
mod straddle;
mod strings;
mod tasks;
mod tlb;
mod transfers;
mod translated;
mod unbroken;
mod vex;
mod walk;
mod x87;
