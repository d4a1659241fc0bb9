//! Looking at an address space from outside: a walk level by level, and a list of what is mapped. Changes nothing.

use super::walk::{self, Format, Mapping, Missing, Paging, Step};
use crate::memory::{GuestMemory, PAGE};

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
    let (ranges, next) = list(memory, paging, 0, most, MOST_LOOKED);
    (ranges, next.is_some())
}

/// A piece of the list of an address space: from `start` on, at most `max_ranges` ranges, after about `max_steps` looks at
/// an entry of a table, of which each reads up to four. The second result is the address to go on at, `None` at the end;
/// it lies beyond `start` even if both limits are 0, so a caller that goes on gets to the end. A range that goes on where
/// a piece ends is cut there.
pub fn mappings_from(
    memory: &GuestMemory,
    paging: &Paging,
    start: u64,
    max_ranges: usize,
    max_steps: u64,
) -> (Vec<MappedRange>, Option<u64>) {
    list(memory, paging, start, max_ranges.max(1), max_steps)
}

fn list(
    memory: &GuestMemory,
    paging: &Paging,
    start: u64,
    most: usize,
    max_steps: u64,
) -> (Vec<MappedRange>, Option<u64>) {
    let top = match paging.format() {
        Format::Off => {
            let whole = MappedRange {
                linear: start,
                gpa: start,
                len: (1u64 << 32).saturating_sub(start),
                user: true,
                writable: true,
                executable: true,
                global: false,
            };
            return (Vec::from_iter((whole.len > 0).then_some(whole)), None);
        }
        Format::Bits32 => Span { shift: 22, count: 1024 },
        Format::Pae => Span { shift: 30, count: 4 },
        Format::Level4 => Span { shift: 39, count: 512 },
    };
    let Some(start) = position(paging, start & !(PAGE - 1)) else { return (Vec::new(), None) };
    let mut list = List { memory, paging, start, ranges: Vec::new(), most, looked: 0, max_steps, next: None };
    list.scan(0, top);
    (list.ranges, list.next)
}

/// How far from the first address of the address space an address lies, with no hole in the middle; `None` behind the end.
fn position(paging: &Paging, linear: u64) -> Option<u64> {
    const HALF: u64 = 1 << 47;
    match paging.format() {
        Format::Level4 if linear < HALF => Some(linear),
        Format::Level4 => Some(linear.max(HALF.wrapping_neg()) & (2 * HALF - 1)),
        _ => (linear < 1 << 32).then_some(linear),
    }
}

/// The entries of one table: how many, and how far apart in linear addresses.
#[derive(Clone, Copy)]
struct Span {
    shift: u32,
    count: u64,
}

struct List<'a> {
    memory: &'a GuestMemory,
    paging: &'a Paging,
    /// Position of the first page listed.
    start: u64,
    ranges: Vec<MappedRange>,
    most: usize,
    /// Entries looked at: bounds the time that a hostile set of tables can take.
    looked: u64,
    max_steps: u64,
    /// Where the list was cut.
    next: Option<u64>,
}

/// Entries looked at before a list is cut: a full 4-level space of 4 KiB pages over 64 GiB of memory has less.
const MOST_LOOKED: u64 = 1 << 25;

impl List<'_> {
    /// The entries of the table that maps what lies from position `base` on.
    fn scan(&mut self, base: u64, span: Span) {
        let first = self.start.saturating_sub(base) >> span.shift;
        for index in first..span.count {
            let at = base + (index << span.shift);
            let linear = sign_extend_48(at);
            // The entries of the first page are looked at whatever the limit is, so that every piece gets on.
            if self.next.is_none() && at > self.start && self.looked >= self.max_steps {
                self.next = Some(linear);
            }
            if self.next.is_some() {
                return;
            }
            self.looked += 1;
            let mut deepest = None;
            let found = walk::walk(self.memory, self.paging, linear, |step| deepest = Some(step));
            match found {
                Ok(m) if m.page_size.trailing_zeros() >= span.shift => self.push(at, &m),
                // A leaf below, or a hole below: only a table that is present has more inside.
                Ok(_) => self.scan(at, below(self.paging, span)),
                Err(_) => {
                    let level = level_of(self.paging, span);
                    if deepest.is_some_and(|step| step.level < level) {
                        self.scan(at, below(self.paging, span));
                    }
                }
            }
        }
    }

    /// Adds a page at a position, as far as it does not lie before the start.
    fn push(&mut self, at: u64, m: &Mapping) {
        let before = self.start.saturating_sub(at);
        let linear = sign_extend_48(at + before);
        let gpa = (m.gpa & !(m.page_size - 1)) + before;
        let len = m.page_size - before;
        let new = MappedRange {
            linear,
            gpa,
            len,
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
                last.len += len;
                return;
            }
        }
        if self.ranges.len() == self.most {
            self.next = Some(linear);
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

    /// The whole list in pieces, neighbours joined again; and how many pieces there were.
    fn in_pieces(
        memory: &GuestMemory,
        paging: &Paging,
        ranges: usize,
        steps: u64,
    ) -> (Vec<MappedRange>, u64) {
        let (mut all, mut start, mut pieces) = (Vec::<MappedRange>::new(), 0, 0);
        loop {
            let (piece, next) = mappings_from(memory, paging, start, ranges, steps);
            pieces += 1;
            assert!(piece.len() <= ranges.max(1));
            for range in piece {
                let joins = |last: &MappedRange| MappedRange {
                    linear: last.linear.wrapping_add(last.len),
                    gpa: last.gpa + last.len,
                    len: range.len,
                    ..*last
                };
                assert!(range.linear >= start && next.is_none_or(|next| range.linear < next));
                match all.last_mut() {
                    Some(last) if joins(last) == range => last.len += range.len,
                    _ => all.push(range),
                }
            }
            match next {
                Some(next) => assert!(next > start, "{next:#x} after {start:#x}"),
                None => return (all, pieces),
            }
            start = next.unwrap_or(0);
        }
    }

    #[test]
    fn pieces_of_the_list_make_the_list() {
        let (memory, paging) = space();
        let whole = mappings(&memory, &paging, 100).0;
        for (ranges, steps) in [(100, 1 << 20), (1, 1 << 20), (100, 1), (0, 0), (3, 7), (2, 600)] {
            let (all, pieces) = in_pieces(&memory, &paging, ranges, steps);
            assert_eq!(all, whole, "{ranges} ranges, {steps} steps");
            assert_eq!(pieces == 1, ranges == 100 && steps > 1000);
        }
    }

    #[test]
    fn a_list_begins_where_it_is_asked_to() {
        let (memory, paging) = space();
        let first = |start| {
            mappings_from(&memory, &paging, start, 1, 100_000).0.first().map(|r| (r.linear, r.gpa, r.len))
        };
        assert_eq!(first(0x1234), Some((0x1000, 0x6000, 0x1000)));
        assert_eq!(first(0x3000), Some((0x20_0000, 0x20_0000, 0x20_0000)));
        assert_eq!(first(0x4000_3fff), Some((0x4000_3000, 0x4000_3000, 0x3fff_d000)));
        // From within the hole, and behind everything.
        for hole in [1 << 47, 0xffff_7fff_ffff_ffff, 0x1234_5678_9abc_def0] {
            assert_eq!(first(hole).unwrap().0, 0xffff_ff80_0000_0000);
        }
        assert_eq!(mappings_from(&memory, &paging, u64::MAX, 10, 1000), (vec![], None));
        let off = Paging { cr0: cr0::PE, ..paging };
        let range = mappings_from(&memory, &off, 0x5000, 1, 1).0[0];
        assert_eq!((range.linear, range.gpa, range.len), (0x5000, 0x5000, (1 << 32) - 0x5000));
        assert_eq!(mappings_from(&memory, &off, 1 << 32, 1, 1), (vec![], None));
        let narrow = Paging { cr4: 0, efer: 0, ..paging };
        assert_eq!(mappings_from(&memory, &narrow, 1 << 32, 1, 1), (vec![], None));
    }

    #[test]
    fn a_piece_of_tables_that_map_themselves_is_quick() {
        let (memory, paging) = space();
        for i in 0..512u64 {
            // Every other page is absent at each level: nothing joins, and there is much of nothing.
            let entry = if i % 2 == 0 { 0x1007u64 } else { 0 };
            memory.write(0x1000 + 8 * i, &entry.to_le_bytes()).unwrap();
        }
        let mut start = 0;
        for _ in 0..10 {
            let (ranges, next) = mappings_from(&memory, &paging, start, usize::MAX, 1000);
            assert!(ranges.len() <= 1004);
            start = next.unwrap();
        }
        assert!(start > 0);
    }
}
