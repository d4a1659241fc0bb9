//! Tools that find where two executors part: our machine against QEMU ([`compare`]), against itself with every short cut
//! taken away ([`paranoid`]), and against an earlier run of itself by state hashes ([`hash`]); and the bodies of the fuzz
//! targets ([`fuzz`]). See `docs/development.md`.

pub mod compare;
pub mod fuzz;
pub mod gdb;
pub mod guest;
pub mod hash;
pub mod instruction;
pub mod ours;
pub mod paranoid;
pub mod qemu;
pub mod registers;
pub mod transplant;
