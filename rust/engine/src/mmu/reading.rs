//! How entries of page tables are to be read, which hangs on control registers and the model: their size, which bits of a linear
//! address select one, where translation begins.

use super::walk::{Format, P, Paging};
use crate::memory::PAGE;
use trapgate_x86::regs::{cr4, efer};

/// What the meaning of entries depends on besides themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reading {
    pub format: Format,
    nxe: bool,
    pse: bool,
    gigabyte_pages: bool,
    physical_bits: u8,
}

impl Reading {
    pub fn of(paging: &Paging) -> Reading {
        Reading {
            format: paging.format(),
            nxe: paging.efer & efer::NXE != 0,
            pse: paging.cr4 & cr4::PSE != 0,
            gigabyte_pages: paging.gigabyte_pages,
            physical_bits: paging.physical_bits,
        }
    }

    pub fn entry_size(&self) -> u64 {
        if self.format == Format::Bits32 { 4 } else { 8 }
    }

    /// The lowest bit of a linear address that selects an entry at a level: what an entry there maps is that big.
    pub fn shift(&self, level: u8) -> u32 {
        let bits = if self.format == Format::Bits32 { 10 } else { 9 };
        12 + bits * (u32::from(level) - 1)
    }

    pub fn index(&self, level: u8, linear: u64) -> usize {
        (linear >> self.shift(level) & (PAGE / self.entry_size() - 1)) as usize
    }

    /// Where translation of a linear address begins: a table in memory, and its level.
    pub fn root(&self, paging: &Paging, linear: u64) -> Option<(u64, u8)> {
        let address = ((1u64 << self.physical_bits) - 1) & !0xfff;
        match self.format {
            Format::Off => None,
            Format::Bits32 => Some((paging.cr3 & 0xffff_f000, 2)),
            Format::Pae => {
                let entry = paging.pdptes[(linear >> 30 & 3) as usize];
                (entry & P != 0).then_some((entry & address, 2))
            }
            Format::Level4 => Some((paging.cr3 & address, 4)),
        }
    }
}
