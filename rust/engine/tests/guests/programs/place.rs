//! Where things lie for the random programs.

pub use crate::common::CODE;
use crate::common::TABLES;

/// The code once more.
pub const ALIAS: u64 = 0x8_0000;
/// Pages that accesses go to, of all kinds, and their number.
pub const DATA: u64 = 0x20_0000;
pub const DATA_PAGES: u64 = 16;
/// A function of which there are two, in the pages behind it.
pub const FUNCTION: u64 = 0x22_0000;
/// What the handlers and the programs keep for themselves: where to go on after a fault, counters, how pages are mended.
pub const KEPT: u64 = 0x23_0000;
pub const RECOVER: u64 = KEPT;
pub const COUNTERS: u64 = KEPT + 8;
pub const SCRATCH: u64 = KEPT + 0x20;
pub const TRAPS: u64 = KEPT + 0x28;
/// By page of the data: the bits that the handler of #PF sets in its entry, once.
pub const FIXES: u64 = KEPT + 0x100;
pub const CELLS: u64 = KEPT + 0x1000;
pub const WORDS: u64 = KEPT + 0x2000;
/// Four pages of stack.
pub const STACKS: u64 = 0x24_0000;
pub const FS: u64 = DATA - 0x123;
pub const GS: u64 = 0xffff_8000_0000_1000;
/// Tables: the roots, and the page tables of the data in each.
pub const ROOT_A: u64 = TABLES;
pub const ROOT_B: u64 = 0x7_0000;
pub const TABLE_A: u64 = 0x7_1000;
pub const TABLE_B: u64 = 0x7_2000;

/// Software interrupts: counts; changes the ring; the end.
pub const COUNT: u8 = 0x80;
pub const SWITCH: u8 = 0x82;
pub const OVER: u8 = 0x83;
pub const TIMER: u8 = 0x41;
