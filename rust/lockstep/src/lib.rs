//! Tools that find where two executors part: our machine against QEMU ([`qemu`]), against itself with every short cut
//! taken away ([`paranoid`]), and against an earlier run of itself by state hashes ([`hash`]). See `docs/testing.md`.

pub mod guest;
pub mod instruction;
pub mod ours;
pub mod registers;
