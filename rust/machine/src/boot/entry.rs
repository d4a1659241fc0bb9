//! The processor state that boot protocols ask for: flat segments, and for the 64-bit one an identity map.

use super::BootError;
use super::image::{Entry, Mode, SegmentRegister, TableRegister};
use super::place::Placer;
use crate::firmware::layout::{FOUR_GIB, PAGE};

/// Encodings of the general registers.
pub(super) const RAX: usize = 0;
pub(super) const RBX: usize = 3;
pub(super) const RSI: usize = 6;

/// Selectors that the Linux protocols prescribe (__BOOT_CS and __BOOT_DS); the others leave them open.
const CODE: u16 = 0x10;
const DATA: u16 = 0x18;

/// Present, ring 0, code, readable, accessed; 4 KiB granularity with D (32-bit) or L (64-bit).
const CODE32: u16 = 0xC09B;
const CODE64: u16 = 0xA09B;
/// Present, ring 0, data, writable, accessed; 4 KiB granularity, 32-bit.
const DATA32: u16 = 0xC093;

const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// Bit 1 of RFLAGS always reads as one.
const RFLAGS_FIXED: u64 = 1 << 1;

/// Present and writable; in a page-directory entry also a 2 MiB page.
const TABLE_ENTRY: u64 = 0x3;
const LARGE_PAGE: u64 = 0x83;

/// The descriptor of a flat segment with the given attributes (SDM vol. 3, 3.4.5).
fn flat_descriptor(attributes: u16) -> u64 {
    0x000F_0000_0000_FFFF | (u64::from(attributes) << 40)
}

fn flat(selector: u16, attributes: u16) -> SegmentRegister {
    SegmentRegister { selector, base: 0, limit: u32::MAX, attributes }
}

fn global_descriptor_table(code: u16) -> Vec<u8> {
    [0, 0, flat_descriptor(code), flat_descriptor(DATA32)]
        .iter()
        .flat_map(|entry| entry.to_le_bytes())
        .collect()
}

/// Maps the first 4 GiB to themselves with 2 MiB pages: one PML4, one directory-pointer table, four directories.
fn identity_map(base: u64) -> Vec<u8> {
    const WORDS: u64 = PAGE / 8;
    let mut words = vec![0u64; 2 * WORDS as usize];
    words[0] = (base + PAGE) | TABLE_ENTRY;
    for gib in 0..4 {
        words[(WORDS + gib) as usize] = (base + (2 + gib) * PAGE) | TABLE_ENTRY;
    }
    words.extend((0..4 * WORDS).map(|page| (page << 21) | LARGE_PAGE));
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Places a descriptor table and gives a state with flat segments, paging off.
fn flat_state(placer: &mut Placer<'_>, rip: u64, code: u16) -> Result<Entry, BootError> {
    if rip >= FOUR_GIB {
        // Neither mode could fetch from there: one has 32 bits, the other's map ends there.
        return Err(BootError::Malformed { what: "the entry point, not below 4 GiB,", value: rip });
    }
    let table = global_descriptor_table(code);
    let limit = (table.len() - 1) as u16;
    let base = placer.low("the descriptor table", table, PAGE)?;
    Ok(Entry {
        mode: Mode::Protected32,
        rip,
        regs: [0; 16],
        rflags: RFLAGS_FIXED,
        cr0: CR0_PE | CR0_ET,
        cr3: 0,
        cr4: 0,
        efer: 0,
        code: flat(CODE, code),
        data: flat(DATA, DATA32),
        gdt: TableRegister { base, limit },
        idt: TableRegister { base: 0, limit: 0 },
    })
}

/// The state for 32-bit protected mode without paging.
pub(super) fn protected32(placer: &mut Placer<'_>, rip: u64) -> Result<Entry, BootError> {
    flat_state(placer, rip, CODE32)
}

/// The state for 64-bit mode; its page tables are placed as well.
pub(super) fn long64(placer: &mut Placer<'_>, rip: u64) -> Result<Entry, BootError> {
    let entry = flat_state(placer, rip, CODE64)?;
    let cr3 = placer.low_with("the page tables", 6 * PAGE, PAGE, identity_map)?;
    Ok(Entry {
        mode: Mode::Long64,
        cr0: entry.cr0 | CR0_PG,
        cr3,
        cr4: CR4_PAE,
        efer: EFER_LME | EFER_LMA,
        ..entry
    })
}
