//! The page walk against a second description of it, over all permission bits at every level, all control bits that
//! permissions depend on, all kinds of access, and the reserved bits.
//!
//! The model says what SDM vol. 3, 4.3 to 4.8 say in another order than the walker: it first lists the entries that a
//! translation would use, then asks of the whole list whether all are present, none has a reserved bit, and what rights it
//! gives.

use trapgate_engine::GuestMemory;
use trapgate_engine::memory::Region;
use trapgate_engine::mmu::walk::{Access, Paging, translate};
use trapgate_x86::regs::{cr0, cr4, efer, pf};

use crate::common::{ACCESSED, DIRTY, G, NX, Noise, P, PS, U, W};

/// Width of physical addresses of the processor that is modelled.
const MAXPHYADDR: u32 = 40;
const LINEAR: u64 = 0x1234_5678;
const TABLE: [u64; 4] = [0x1000, 0x2000, 0x3000, 0x4000];
const PAGE_FRAME: u64 = 0x12_3456_7000;

/// A paging format: for each level, root first, the lowest linear bit that its index takes.
struct Shape {
    shifts: &'static [u32],
    index_bits: u32,
    entry_bytes: u64,
    paging: Paging,
}

fn base(cr4: u64, efer: u64) -> Paging {
    Paging {
        cr0: cr0::PE | cr0::PG,
        cr3: TABLE[0],
        cr4,
        efer,
        pdptes: [0; 4],
        physical_bits: MAXPHYADDR as u8,
        gigabyte_pages: true,
        direct: false,
    }
}

fn level4() -> Shape {
    let paging = base(cr4::PAE, efer::LME | efer::LMA);
    Shape { shifts: &[39, 30, 21, 12], index_bits: 9, entry_bytes: 8, paging }
}

/// Below the four registers.
fn pae() -> Shape {
    Shape { shifts: &[21, 12], index_bits: 9, entry_bytes: 8, paging: base(cr4::PAE, 0) }
}

fn bits32() -> Shape {
    Shape { shifts: &[22, 12], index_bits: 10, entry_bytes: 4, paging: base(cr4::PSE, 0) }
}

/// What the model expects: the physical address and the page's size, or the error code of #PF.
type Outcome = Result<(u64, u64), u32>;

impl Shape {
    fn is_32bit(&self) -> bool {
        self.entry_bytes == 4
    }
    fn is_pae(&self) -> bool {
        self.paging.cr4 & cr4::PAE != 0 && self.paging.efer & efer::LMA == 0
    }

    fn address_of(&self, level: usize) -> u64 {
        let index = LINEAR >> self.shifts[level] & ((1 << self.index_bits) - 1);
        // PAE's directory is where its register points.
        TABLE[level] + index * self.entry_bytes
    }

    /// Whether the entry of a level maps a page.
    fn is_leaf(&self, level: usize, entry: u64) -> bool {
        if level + 1 == self.shifts.len() {
            return true;
        }
        let may = match self.shifts[level] {
            39 => false,
            30 => true,
            21 => true,
            _ => self.paging.cr4 & cr4::PSE != 0,
        };
        may && entry & PS != 0
    }

    /// Bits of an entry that must be zero (SDM vol. 3, tables 4-4 to 4-6, 4-9 to 4-11 and 4-14 to 4-19).
    fn must_be_zero(&self, level: usize, entry: u64) -> u64 {
        let span = |high: u32, low: u32| (u64::MAX >> (63 - high)) & (u64::MAX << low);
        let leaf = self.is_leaf(level, entry);
        let shift = self.shifts[level];
        if self.is_32bit() {
            return if leaf && shift == 22 { 1 << 21 } else { 0 };
        }
        let mut bits = span(51, MAXPHYADDR);
        if self.paging.efer & efer::NXE == 0 {
            bits |= NX;
        }
        if self.is_pae() {
            bits |= span(62, 52);
        }
        if shift == 39 {
            bits |= PS;
        }
        if leaf && shift > 12 {
            bits |= span(shift - 1, 13);
        }
        bits
    }

    fn expect(&self, entries: &[u64], access: Access) -> Outcome {
        let used = (0..entries.len()).find(|&n| self.is_leaf(n, entries[n])).map_or(entries.len(), |n| n + 1);
        let path = &entries[..used];
        let fetch_reported = self.paging.cr4 & cr4::SMEP != 0
            || self.paging.cr4 & cr4::PAE != 0 && self.paging.efer & efer::NXE != 0;
        let code = |p: bool, rsvd: bool| {
            let bit = |set: bool, bit: u32| if set { bit } else { 0 };
            bit(p, pf::P)
                | bit(access.write, pf::W)
                | bit(access.user, pf::U)
                | bit(rsvd, pf::RSVD)
                | bit(access.fetch && fetch_reported, pf::I)
        };
        // The first entry that is absent or malformed decides.
        for (level, entry) in path.iter().enumerate() {
            if entry & P == 0 {
                return Err(code(false, false));
            }
            if entry & self.must_be_zero(level, *entry) != 0 {
                return Err(code(true, true));
            }
        }
        if !self.permitted(path, access) {
            return Err(code(true, false));
        }
        let shift = self.shifts[used - 1];
        let leaf = path[used - 1];
        let inside = LINEAR & ((1 << shift) - 1);
        let frame = if self.is_32bit() && shift == 22 {
            (leaf & 0xffc0_0000) | (leaf >> 13 & 0xff) << 32
        } else {
            leaf & (u64::MAX >> (64 - MAXPHYADDR)) & (u64::MAX << shift)
        };
        Ok((frame | inside, 1 << shift))
    }

    /// SDM vol. 3, 4.6.1, in its own order of cases.
    fn permitted(&self, path: &[u64], access: Access) -> bool {
        let user_page = path.iter().all(|entry| entry & U != 0);
        let writable = path.iter().all(|entry| entry & W != 0);
        let nxe = !self.is_32bit() && self.paging.efer & efer::NXE != 0;
        let disabled = nxe && path.iter().any(|entry| entry & NX != 0);
        let (wp, smep, smap) = (
            self.paging.cr0 & cr0::WP != 0,
            self.paging.cr4 & cr4::SMEP != 0,
            self.paging.cr4 & cr4::SMAP != 0,
        );
        let kind = match access {
            Access { fetch: true, .. } => 'x',
            Access { write: true, .. } => 'w',
            _ => 'r',
        };
        match (access.user, user_page, kind) {
            // User-mode accesses.
            (true, false, _) => false,
            (true, true, 'r') => true,
            (true, true, 'w') => writable,
            (true, true, _) => !disabled,
            // Supervisor-mode accesses to supervisor-mode addresses.
            (false, false, 'r') => true,
            (false, false, 'w') => !wp || writable,
            (false, false, _) => !disabled,
            // Supervisor-mode accesses to user-mode addresses.
            (false, true, 'r') => !smap || access.smap_off,
            (false, true, 'w') => (!smap || access.smap_off) && (!wp || writable),
            (false, true, _) => !smep && !disabled,
        }
    }
}

/// Memory with the tables, and the comparison.
struct Bench {
    memory: GuestMemory,
    compared: u64,
    /// How many ended in a translation, a fault of permission, an absent entry, a reserved bit.
    outcomes: [u64; 4],
}

impl Bench {
    fn new() -> Self {
        let region = Region { start: 0, len: 0x1_0000, read_only: false };
        Bench { memory: GuestMemory::new(&[region]).unwrap(), compared: 0, outcomes: [0; 4] }
    }

    fn read(&self, shape: &Shape, level: usize) -> u64 {
        let mut bytes = [0; 8];
        let len = shape.entry_bytes as usize;
        self.memory.read(shape.address_of(level), &mut bytes[..len]).unwrap();
        u64::from_le_bytes(bytes)
    }

    /// Every kind of access through one set of entries.
    fn compare(&mut self, shape: &Shape, entries: &[u64]) {
        let mut paging = shape.paging;
        if shape.is_pae() {
            paging.pdptes[(LINEAR >> 30) as usize] = TABLE[0] | P;
        }
        for kind in 0..6u32 {
            for smap_off in [false, true] {
                let access = Access { write: kind % 3 == 1, fetch: kind % 3 == 2, user: kind >= 3, smap_off };
                self.compare_one(shape, &paging, entries, access);
            }
        }
    }

    fn compare_one(&mut self, shape: &Shape, paging: &Paging, entries: &[u64], access: Access) {
        for (level, entry) in entries.iter().enumerate() {
            let bytes = entry.to_le_bytes();
            self.memory.write(shape.address_of(level), &bytes[..shape.entry_bytes as usize]).unwrap();
        }
        let want = shape.expect(entries, access);
        let got = translate(&self.memory, paging, LINEAR, access);
        let told = got.map(|m| (m.gpa, m.page_size)).map_err(|fault| fault.error);
        assert_eq!(told, want, "entries {entries:x?}, {access:?}, {paging:x?}");
        self.check_flags(shape, entries, access, want);
        self.compared += 1;
        let class = match want {
            Ok(_) => 0,
            Err(error) if error & pf::RSVD != 0 => 3,
            Err(error) if error & pf::P != 0 => 1,
            Err(_) => 2,
        };
        self.outcomes[class] += 1;
    }

    /// A is set in every entry used, D in the leaf of a write; a fault may set A on the way, never D (SDM vol. 3, 4.8).
    fn check_flags(&self, shape: &Shape, entries: &[u64], access: Access, want: Outcome) {
        let leaf = (0..entries.len()).find(|&n| shape.is_leaf(n, entries[n])).unwrap_or(entries.len() - 1);
        for (level, before) in entries.iter().enumerate() {
            let after = self.read(shape, level);
            if want.is_ok() && level <= leaf {
                let dirty = if level == leaf && access.write { DIRTY } else { 0 };
                assert_eq!(after, before | ACCESSED | dirty, "level {level} of {entries:x?}, {access:?}");
            } else {
                let below = level > leaf;
                let may = if below { 0 } else { ACCESSED };
                assert_eq!(after & !may, before & !may, "level {level} of {entries:x?}, {access:?}");
            }
        }
    }

    fn assert_thorough(&self, least: u64) {
        assert!(self.compared >= least, "only {} cases", self.compared);
        assert!(self.outcomes.iter().all(|n| *n > 100), "lopsided: {:?}", self.outcomes);
    }
}

/// The control bits that decide about permissions, all 16 combinations.
fn controls(shape: &mut Shape, n: u64) {
    let pick = |bit: u32, value: u64| if n >> bit & 1 != 0 { value } else { 0 };
    let keep = shape.paging.cr4 & (cr4::PAE | cr4::PSE);
    shape.paging.cr0 = cr0::PE | cr0::PG | pick(0, cr0::WP);
    shape.paging.cr4 = keep | pick(1, cr4::SMEP) | pick(2, cr4::SMAP);
    shape.paging.efer = shape.paging.efer & efer::LMA | pick(3, efer::NXE);
}

fn permissions(n: u64) -> u64 {
    let pick = |bit: u32, value: u64| if n >> bit & 1 != 0 { value } else { 0 };
    pick(0, P) | pick(1, W) | pick(2, U) | pick(3, NX)
}

/// All combinations of P, R/W, U/S and NX on every level, each under one set of control bits or all of them.
fn all_permissions(shape: &mut Shape, bits: u32, every_control: bool) -> Bench {
    let mut bench = Bench::new();
    let levels = shape.shifts.len();
    let mut noise = Noise(0x5eed);
    for n in 0..1u64 << (bits as usize * levels) {
        let entries: Vec<u64> = (0..levels)
            .map(|level| {
                let next = TABLE.get(level + 1).copied().unwrap_or(0);
                let frame = if level + 1 == levels { PAGE_FRAME } else { next };
                let frame = if bits == 3 { frame & 0xffff_f000 } else { frame };
                frame | permissions(n >> (bits as usize * level) & ((1 << bits) - 1))
            })
            .collect();
        let one = noise.below(16);
        for control in if every_control { 0..16 } else { one..one + 1 } {
            controls(shape, control);
            bench.compare(shape, &entries);
        }
    }
    bench
}

#[test]
fn four_level_permissions_agree_on_every_level_and_access() {
    let bench = all_permissions(&mut level4(), 4, false);
    assert_eq!(bench.compared, 65536 * 12);
    bench.assert_thorough(0);
}

#[test]
fn pae_permissions_agree_on_every_level_and_access() {
    let bench = all_permissions(&mut pae(), 4, true);
    assert_eq!(bench.compared, 256 * 16 * 12);
    bench.assert_thorough(0);
}

#[test]
fn permissions_of_32_bit_paging_agree_on_every_level_and_access() {
    let bench = all_permissions(&mut bits32(), 3, true);
    assert_eq!(bench.compared, 64 * 16 * 12);
    assert_eq!(bench.outcomes[3], 0, "nothing is reserved in small pages");
}

/// Every single bit of an entry of every level, set on top of an entry that would work, leaf or table.
fn every_bit(shape: &mut Shape) -> Bench {
    let mut bench = Bench::new();
    let levels = shape.shifts.len();
    for leaf in 0..levels {
        for changed in 0..=leaf {
            for bit in 0..shape.entry_bytes as u32 * 8 {
                for permission in [P | W | U, P | W, P | U, P] {
                    let mut entries: Vec<u64> =
                        (0..levels).map(|n| TABLE.get(n + 1).copied().unwrap_or(0) | permission).collect();
                    if leaf + 1 < levels {
                        entries[leaf] = permission | PS;
                    } else {
                        entries[leaf] = (PAGE_FRAME & 0x7fff_f000) | permission;
                    }
                    entries[changed] ^= 1 << bit;
                    // A changed frame of a table, or a page made a table, would lead elsewhere; reserved bits lead nowhere.
                    let frame = 1u64 << bit & 0xff_ffff_f000 != 0;
                    let unmade = changed == leaf && leaf + 1 < levels && 1u64 << bit == PS;
                    if unmade || frame && !shape.is_leaf(changed, entries[changed]) {
                        continue;
                    }
                    for control in 0..16 {
                        controls(shape, control);
                        bench.compare(shape, &entries);
                    }
                }
            }
        }
    }
    bench
}

#[test]
fn four_level_reserved_and_ignored_bits_agree_on_every_level() {
    every_bit(&mut level4()).assert_thorough(200_000);
}

#[test]
fn pae_reserved_and_ignored_bits_agree_on_every_level() {
    every_bit(&mut pae()).assert_thorough(80_000);
}

#[test]
fn reserved_and_ignored_bits_of_32_bit_paging_agree_on_every_level() {
    every_bit(&mut bits32()).assert_thorough(20_000);
}

#[test]
fn without_pse_bit_7_of_a_32_bit_directory_entry_is_ignored() {
    let mut shape = bits32();
    shape.paging.cr4 = 0;
    let mut bench = Bench::new();
    bench.compare(&shape, &[TABLE[1] | P | W | U | PS, 0x5000 | P | W | U]);
    assert_eq!(bench.outcomes[0], bench.compared);
}

#[test]
fn a_processor_without_1_gib_pages_has_the_bit_reserved() {
    let shape = level4();
    let memory = Bench::new().memory;
    for (level, entry) in [TABLE[1] | P | W, P | W | PS].into_iter().enumerate() {
        memory.write(shape.address_of(level), &entry.to_le_bytes()).unwrap();
    }
    let access = Access { write: false, fetch: false, user: false, smap_off: false };
    let paging = Paging { gigabyte_pages: false, ..shape.paging };
    assert_eq!(translate(&memory, &shape.paging, LINEAR, access).unwrap().gpa, LINEAR);
    assert_eq!(translate(&memory, &paging, LINEAR, access).unwrap_err().error, pf::P | pf::RSVD);
}

#[test]
fn narrower_physical_addresses_reserve_more() {
    let memory = Bench::new().memory;
    let access = Access { write: false, fetch: false, user: false, smap_off: false };
    for bits in [32, 36, 40, 46, 52] {
        let shape = level4();
        let paging = Paging { physical_bits: bits, ..shape.paging };
        for bit in 13..52u64 {
            let mut entries = [TABLE[1] | P, TABLE[2] | P, TABLE[3] | P, 0x5000 | P];
            entries[3] |= 1 << bit;
            for (level, entry) in entries.into_iter().enumerate() {
                memory.write(shape.address_of(level), &entry.to_le_bytes()).unwrap();
            }
            let reserved = bit >= u64::from(bits);
            let got = translate(&memory, &paging, LINEAR, access);
            assert_eq!(got.is_err_and(|f| f.error == pf::P | pf::RSVD), reserved, "{bits} {bit}");
        }
    }
}

#[test]
fn paes_four_registers_choose_by_bits_31_and_30_and_ignore_the_access() {
    let memory = Bench::new().memory;
    let mut shape = pae();
    let pde = 0x83 | U;
    memory.write(0x6000, &(pde | 0x60_0000u64).to_le_bytes()).unwrap();
    shape.paging.pdptes = [0, 0x5000 | P, 0x6000 | P, 0x7000 | P];
    let read = Access { write: false, fetch: false, user: true, smap_off: false };
    let got = |linear| translate(&memory, &shape.paging, linear, read);
    assert_eq!(got(0x8000_1234).unwrap().gpa, 0x60_1234);
    assert_eq!(got(0x1234).unwrap_err().error, pf::U, "register 0 is not present");
    assert_eq!(got(0xc000_0000).unwrap_err().error, pf::U, "an empty directory");
}

#[test]
fn global_needs_the_flag_in_the_leaf_and_pge() {
    let mut shape = level4();
    let memory = Bench::new().memory;
    let read = Access { write: false, fetch: false, user: false, smap_off: false };
    for (leaf, pge, want) in [(G, true, true), (G, false, false), (0, true, false)] {
        // G means nothing in the tables above.
        let entries = [TABLE[1] | P | G, TABLE[2] | P | G, TABLE[3] | P | G, 0x5000 | P | leaf];
        for (level, entry) in entries.into_iter().enumerate() {
            memory.write(shape.address_of(level), &entry.to_le_bytes()).unwrap();
        }
        shape.paging.cr4 = cr4::PAE | if pge { cr4::PGE } else { 0 };
        assert_eq!(translate(&memory, &shape.paging, LINEAR, read).unwrap().global, want);
    }
}
