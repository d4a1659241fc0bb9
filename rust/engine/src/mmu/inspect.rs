//! Looking at an address space from outside: a walk level by level, and a list of what is mapped. Changes nothing.

use super::walk::{self, Format, Mapping, Missing, Paging, Step};
use crate::memory::GuestMemory;

/// A walk with every entry that it met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walk {
    pub linear: u64,
    pub format: Format,
    /// From the highest level down; the last one is the leaf or the entry at which the walk failed.
    pub steps: Vec<Step>,
    pub result: Result<Mapping, Missing>,
}

/// A range that is mapped with the same rights to consecutive physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappedRange {
    pub linear: u64,
    pub gpa: u64,
    pub len: u64,
    pub user: bool,
    pub writable: bool,
    pub executable: bool,
    pub global: bool,
}

/// Walks one address.
pub fn walk_steps(memory: &GuestMemory, paging: &Paging, linear: u64) -> Walk {
    let mut steps = Vec::with_capacity(4);
    let result = walk::walk(memory, paging, linear, |step| steps.push(step));
    Walk { linear, format: paging.format(), steps, result }
}

/// Lists an address space in ascending order, at most `most` ranges; the flag tells whether there are more. Every entry
/// of every table is looked at, but a table that maps itself cannot make the list longer than `most`.
pub fn mappings(memory: &GuestMemory, paging: &Paging, most: usize) -> (Vec<MappedRange>, bool) {
    let mut list = List { ranges: Vec::new(), most, looked: 0, full: false };
    let top = match paging.format() {
        Format::Off => {
            return (
                vec![MappedRange {
                    linear: 0,
                    gpa: 0,
                    len: 1 << 32,
                    user: true,
                    writable: true,
                    executable: true,
                    global: false,
                }],
                false,
            );
        }
        Format::Bits32 => Span { shift: 22, count: 1024 },
        Format::Pae => Span { shift: 30, count: 4 },
        Format::Level4 => Span { shift: 39, count: 512 },
    };
    list.scan(memory, paging, 0, top);
    (list.ranges, list.full)
}

/// The entries of one table: how many, and how far apart in linear addresses.
#[derive(Clone, Copy)]
struct Span {
    shift: u32,
    count: u64,
}

struct List {
    ranges: Vec<MappedRange>,
    most: usize,
    /// Entries looked at: bounds the time that a hostile set of tables can take.
    looked: u64,
    full: bool,
}

/// Entries looked at before a list is cut: a full 4-level space of 4 KiB pages over 64 GiB of memory has less.
const MOST_LOOKED: u64 = 1 << 25;

impl List {
    fn scan(&mut self, memory: &GuestMemory, paging: &Paging, base: u64, span: Span) {
        for index in 0..span.count {
            if self.full {
                return;
            }
            self.looked += 1;
            self.full |= self.looked > MOST_LOOKED;
            let linear = sign_extend_48(base.wrapping_add(index << span.shift));
            let mut deepest = None;
            let found = walk::walk(memory, paging, linear, |step| deepest = Some(step));
            match found {
                Ok(m) if m.page_size.trailing_zeros() >= span.shift => self.push(linear, &m),
                // A leaf below, or a hole below: only a table that is present has more inside.
                Ok(_) => self.scan(memory, paging, linear, below(paging, span)),
                Err(_) => {
                    let level = level_of(paging, span);
                    if deepest.is_some_and(|step| step.level < level) {
                        self.scan(memory, paging, linear, below(paging, span));
                    }
                }
            }
        }
    }

    fn push(&mut self, linear: u64, m: &Mapping) {
        let gpa = m.gpa & !(m.page_size - 1);
        let new = MappedRange {
            linear,
            gpa,
            len: m.page_size,
            user: m.user,
            writable: m.writable,
            executable: m.executable,
            global: m.global,
        };
        if let Some(last) = self.ranges.last_mut() {
            let joins = last.linear.wrapping_add(last.len) == linear
                && last.gpa.wrapping_add(last.len) == gpa
                && (last.user, last.writable, last.executable, last.global)
                    == (m.user, m.writable, m.executable, m.global);
            if joins {
                last.len += m.page_size;
                return;
            }
        }
        if self.ranges.len() == self.most {
            self.full = true;
            return;
        }
        self.ranges.push(new);
    }
}

fn level_of(paging: &Paging, span: Span) -> u8 {
    if paging.format() == Format::Bits32 {
        ((span.shift - 12) / 10 + 1) as u8
    } else {
        ((span.shift - 12) / 9 + 1) as u8
    }
}

fn below(paging: &Paging, span: Span) -> Span {
    if paging.format() == Format::Bits32 {
        Span { shift: span.shift - 10, count: 1024 }
    } else {
        Span { shift: span.shift - 9, count: 512 }
    }
}

fn sign_extend_48(linear: u64) -> u64 {
    ((linear << 16) as i64 >> 16) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Region;
    use trapgate_x86::regs::{cr0, cr4, efer};

    fn space() -> (GuestMemory, Paging) {
        let memory = GuestMemory::new(&[Region { start: 0, len: 1 << 20, read_only: false }]).unwrap();
        let paging = Paging {
            cr0: cr0::PG | cr0::PE,
            cr3: 0x1000,
            cr4: cr4::PAE,
            efer: efer::LMA | efer::NXE,
            physical_bits: 40,
            gigabyte_pages: true,
            ..Paging::default()
        };
        let put = |at: u64, value: u64| memory.write(at, &value.to_le_bytes()).unwrap();
        put(0x1000, 0x2007);
        put(0x1ff8, 0x2003);
        put(0x2000, 0x3007);
        put(0x2008, 0x4000_0083);
        put(0x3000, 0x4007);
        put(0x3008, 0x20_0087);
        put(0x4000, 0x5007);
        put(0x4008, 0x6007);
        put(0x4010, 0x8000_0000_0000_9007);
        (memory, paging)
    }

    #[test]
    fn a_walk_shows_each_level() {
        let (memory, paging) = space();
        let walk = walk_steps(&memory, &paging, 0x1234);
        assert_eq!(
            walk.steps.iter().map(|s| (s.level, s.entry)).collect::<Vec<_>>(),
            [(4, 0x2007), (3, 0x3007), (2, 0x4007), (1, 0x6007)]
        );
        assert_eq!(walk.result.unwrap().gpa, 0x6234);
        let missing = walk_steps(&memory, &paging, 0x3000);
        assert_eq!((missing.steps.len(), missing.result), (4, Err(Missing::NotPresent)));
    }

    #[test]
    fn the_list_joins_neighbours() {
        let (memory, paging) = space();
        let (ranges, more) = mappings(&memory, &paging, 100);
        let short: Vec<_> = ranges.iter().map(|r| (r.linear, r.gpa, r.len, r.executable, r.user)).collect();
        assert_eq!(
            short,
            [
                (0, 0x5000, 0x2000, true, true),
                (0x2000, 0x9000, 0x1000, false, true),
                (0x20_0000, 0x20_0000, 0x20_0000, true, true),
                (0x4000_0000, 0x4000_0000, 0x4000_0000, true, false),
                (0xffff_ff80_0000_0000, 0x5000, 0x2000, true, false),
                (0xffff_ff80_0000_2000, 0x9000, 0x1000, false, false),
                (0xffff_ff80_0020_0000, 0x20_0000, 0x20_0000, true, false),
                (0xffff_ff80_4000_0000, 0x4000_0000, 0x4000_0000, true, false),
            ]
        );
        assert!(!more);
        assert_eq!(mappings(&memory, &paging, 2), (ranges[..2].to_vec(), true));
    }

    #[test]
    fn tables_that_map_themselves_end() {
        let (memory, paging) = space();
        for i in 0..512u64 {
            memory.write(0x1000 + 8 * i, &0x1007u64.to_le_bytes()).unwrap();
        }
        let (ranges, more) = mappings(&memory, &paging, 1000);
        assert_eq!((ranges.len(), more), (1000, true));
    }
}
