//! Any page tables: the walker does what a plain reading of the manual's chapter on paging does, faults, A and D flags
//! included, and looking at an address space from outside ends.

use trapgate_engine::GuestMemory;
use trapgate_engine::memory::Region;
use trapgate_engine::mmu::inspect;
use trapgate_engine::mmu::walk::{Access, Format, Paging, translate};
use trapgate_x86::regs::{cr0, cr4, efer};

use super::Input;

const RAM: u64 = 0x1_0000;

/// Registers, entries, accesses.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let region = Region { start: 0, len: RAM, read_only: false };
    let memory = GuestMemory::new(&[region]).expect("64 KiB");
    let paging = paging(&mut input);
    fill(&memory, &mut input);
    // It takes long, and what is too short ends in zeros.
    let inspect_all = input.u8() == 0xff;
    for _ in 0..8 {
        check(&memory, &paging, linear(&paging, &mut input), access(input.u8()));
    }
    if inspect_all {
        let (ranges, more) = inspect::mappings(&memory, &paging, 64);
        assert!(ranges.len() <= 64 && (!more || !ranges.is_empty() || paging.format() != Format::Off));
    }
}

fn paging(input: &mut Input<'_>) -> Paging {
    let choice = input.u16();
    let on = |bit: u32, value: u64| if choice >> bit & 1 != 0 { value } else { 0 };
    let mut paging = Paging {
        cr0: cr0::PE | if choice & 0xf == 15 { 0 } else { cr0::PG } | on(4, cr0::WP),
        cr3: u64::from(input.u8() & 15) << 12,
        cr4: on(5, cr4::PAE) | on(6, cr4::SMEP) | on(7, cr4::SMAP) | on(8, cr4::PSE) | on(9, cr4::PGE),
        efer: on(10, efer::NXE),
        pdptes: [0; 4],
        physical_bits: if choice >> 11 & 1 != 0 { 40 } else { 36 },
        gigabyte_pages: choice >> 12 & 1 != 0,
        direct: false,
    };
    if choice >> 5 & 1 != 0 && choice >> 13 & 1 != 0 {
        paging.efer |= efer::LMA | efer::LME;
    }
    for slot in 0..4 {
        let entry = u64::from(input.u8() & 15) << 12 | u64::from(input.u8() & 0x19);
        if paging.pdpte_ok(entry) {
            paging.pdptes[slot] = entry;
        }
    }
    paging
}

/// Fills the sixteen pages with entries that mostly lead to one another.
fn fill(memory: &GuestMemory, input: &mut Input<'_>) {
    let (count, wide) = (usize::from(input.u8()), input.u8() & 1 == 0);
    // Every slot gets an entry, repeated from a few, so that any address finds its way.
    let entries: Vec<u64> = (0..count.clamp(1, 32))
        .map(|_| {
            let (flags, page, odd) = (u64::from(input.u16()), u64::from(input.u8()), input.u8());
            let entry = flags & 0x1fff & !0x80 | (page & 15) << 12;
            match odd {
                0..=159 => entry | 7,
                160..=191 => entry | 1 << 63 | 1,
                192..=207 => entry | 0x81 | (page & 0xf0) << 17,
                208..=215 => entry | 1 << (32 + (page & 31)) | 1,
                _ => entry,
            }
        })
        .collect();
    let mut bytes = Vec::with_capacity(RAM as usize);
    let mut n = usize::from(input.u8());
    while bytes.len() < RAM as usize {
        let entry = entries[n % entries.len()];
        bytes.extend_from_slice(&entry.to_le_bytes()[..if wide { 8 } else { 4 }]);
        n = n.wrapping_mul(5).wrapping_add(1);
    }
    memory.write(0, &bytes).expect("inside RAM");
}

fn linear(paging: &Paging, input: &mut Input<'_>) -> u64 {
    let linear = input.u64();
    if paging.format() == Format::Level4 { (linear << 16) as i64 as u64 >> 16 } else { linear & 0xffff_ffff }
}

fn access(choice: u8) -> Access {
    let fetch = choice & 2 != 0;
    Access { write: choice & 1 != 0 && !fetch, fetch, user: choice & 4 != 0, smap_off: choice & 8 != 0 }
}

/// Translates, and compares result and memory with the reference.
fn check(memory: &GuestMemory, paging: &Paging, linear: u64, access: Access) {
    let mut before = vec![0; RAM as usize];
    memory.read(0, &mut before).expect("inside RAM");
    let walk = inspect::walk_steps(memory, paging, linear);
    let found = translate(memory, paging, linear, access);
    let wanted = reference(&mut before, paging, linear, access);
    let what = || format!("{linear:#x} {access:?} {paging:x?} {walk:x?}");
    assert_eq!(found.map(|mapping| mapping.gpa).map_err(|fault| fault.error), wanted, "{}", what());
    let mut after = vec![0; RAM as usize];
    memory.read(0, &mut after).expect("inside RAM");
    assert!(before == after, "A and D flags: {}", what());
    if let Ok(mapping) = found {
        assert_eq!(walk.result.map(|seen| seen.gpa), Ok(mapping.gpa));
    }
}

const P: u64 = 1;
const W: u64 = 2;
const U: u64 = 4;
const A: u64 = 0x20;
const D: u64 = 0x40;
const PS: u64 = 0x80;
const XD: u64 = 1 << 63;

/// A walk as SDM vol. 3, 4.3 to 4.8 tells it, on a copy of memory. What is not RAM reads as all ones.
fn reference(memory: &mut [u8], paging: &Paging, linear: u64, access: Access) -> Result<u64, u32> {
    let format = paging.format();
    let (levels, index_bits, entry_size) = match format {
        Format::Off => return Ok(linear & 0xffff_ffff),
        Format::Bits32 => (2, 10, 4),
        Format::Pae => (3, 9, 8),
        Format::Level4 => (4, 9, 8),
    };
    let nxe = paging.efer & efer::NXE != 0 && format != Format::Bits32;
    let fault = |present: bool, reserved: bool| {
        let smep_or_nx = paging.cr4 & cr4::SMEP != 0 || nxe;
        u32::from(present)
            | u32::from(access.write) << 1
            | u32::from(access.user) << 2
            | u32::from(reserved) << 3
            | u32::from(access.fetch && smep_or_nx) << 4
    };
    let highest = u32::from(paging.physical_bits);
    let address_bits = ((1u64 << highest) - 1) & !0xfff;
    let mut table = paging.cr3 & if format == Format::Bits32 { 0xffff_f000 } else { address_bits };
    let (mut user, mut writable, mut executable) = (true, true, true);
    let mut used = Vec::new();
    for level in (1..=levels).rev() {
        let shift = 12 + index_bits * (level - 1);
        let index = linear >> shift & ((1 << index_bits) - 1);
        let register = format == Format::Pae && level == 3;
        let at = table + index * entry_size;
        let entry = if register { paging.pdptes[index as usize & 3] } else { load(memory, at, entry_size) };
        if entry & P == 0 {
            return Err(fault(false, false));
        }
        if register {
            table = entry & address_bits;
            continue;
        }
        let large = entry & PS != 0
            && match (format, level) {
                (Format::Bits32, 2) => paging.cr4 & cr4::PSE != 0,
                (_, 2..) => format != Format::Bits32,
                _ => false,
            };
        if is_reserved(paging, format, level, shift, entry, large) {
            return Err(fault(true, true));
        }
        user &= entry & U != 0;
        writable &= entry & W != 0;
        executable &= !(nxe && entry & XD != 0);
        used.push(at);
        if large || level == 1 {
            if !is_allowed(paging, access, user, writable, executable) {
                return Err(fault(true, false));
            }
            let leaf = used.len() - 1;
            for (n, at) in used.iter().enumerate() {
                mark(memory, *at, A | if n == leaf && access.write { D } else { 0 });
            }
            let offset = (1u64 << shift) - 1;
            let base = match format {
                Format::Bits32 if large => entry & 0xffc0_0000 | (entry >> 13 & 0xff) << 32,
                Format::Bits32 => entry & 0xffff_f000,
                _ => entry & address_bits & !offset,
            };
            return Ok(base | linear & offset);
        }
        table = entry & if format == Format::Bits32 { 0xffff_f000 } else { address_bits };
    }
    unreachable!("the lowest level is a leaf")
}

/// SDM vol. 3, tables 4-4 to 4-20 and 4.4.2, 4.5.4: bits that must be zero.
fn is_reserved(paging: &Paging, format: Format, level: u32, shift: u32, entry: u64, large: bool) -> bool {
    let highest = u32::from(paging.physical_bits);
    if format == Format::Bits32 {
        return large && (entry & 1 << 21 != 0 || (entry >> 13 & 0xff) >> (highest - 32) != 0);
    }
    let mut reserved = ((1u64 << 52) - 1) & !((1 << highest) - 1);
    if paging.efer & efer::NXE == 0 {
        reserved |= XD;
    }
    if format == Format::Pae {
        reserved |= 0x7ff << 52;
    }
    if large {
        // Below the page frame all bits but PAT; and there are no pages of 512 GiB.
        reserved |= ((1 << shift) - 1) & !0x1fff;
        if level == 4 || level == 3 && !paging.gigabyte_pages {
            return true;
        }
    }
    entry & reserved != 0
}

/// SDM vol. 3, 4.6.1.
fn is_allowed(paging: &Paging, access: Access, user: bool, writable: bool, executable: bool) -> bool {
    if access.user {
        return user && (writable || !access.write) && (executable || !access.fetch);
    }
    if access.fetch {
        return executable && !(user && paging.cr4 & cr4::SMEP != 0);
    }
    let smap = user && paging.cr4 & cr4::SMAP != 0 && !access.smap_off;
    !smap && (writable || !access.write || paging.cr0 & cr0::WP == 0)
}

fn load(memory: &[u8], at: u64, size: u64) -> u64 {
    let at = usize::try_from(at).ok();
    let bytes = at.and_then(|at| memory.get(at..at + size as usize));
    bytes.map_or(u64::MAX >> (64 - 8 * size), |bytes| {
        bytes.iter().rev().fold(0, |v, byte| v << 8 | u64::from(*byte))
    })
}

/// Sets flags in the low byte of an entry, if it is in RAM.
fn mark(memory: &mut [u8], at: u64, flags: u64) {
    if let Some(byte) = usize::try_from(at).ok().and_then(|at| memory.get_mut(at)) {
        *byte |= flags as u8;
    }
}
