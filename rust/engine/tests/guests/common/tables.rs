//! The guest's memory as tests set it up: bytes, page tables, gates and descriptors.

use trapgate_engine::memory::Word;

use super::{CODE64, FREE, GDT, Guest, IDT, RAM, SMALL, TABLES, USER};

pub const P: u64 = 1;
pub const W: u64 = 2;
pub const U: u64 = 4;
pub const ACCESSED: u64 = 0x20;
pub const DIRTY: u64 = 0x40;
pub const PS: u64 = 0x80;
pub const G: u64 = 0x100;
pub const NX: u64 = 1 << 63;
/// Address bits of an entry.
pub const FRAME: u64 = 0x000f_ffff_ffff_f000;

/// Page tables by level: the size that an entry covers, as a power of two.
const SHIFTS: [u32; 5] = [0, 12, 21, 30, 39];

/// A gate of the 64-bit IDT.
#[derive(Clone, Copy, Debug)]
pub struct Gate {
    pub selector: u16,
    pub offset: u64,
    pub ist: u8,
    /// P, DPL, type.
    pub access: u8,
}

impl Gate {
    /// An interrupt gate with DPL 0.
    pub fn interrupt(offset: u64) -> Self {
        Gate { selector: CODE64, offset, ist: 0, access: 0x8e }
    }
}

impl Guest {
    // ---- bytes ----

    pub fn poke(&self, gpa: u64, bytes: &[u8]) {
        self.memory.write(gpa, bytes).expect("RAM");
    }
    pub fn peek(&self, gpa: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read(gpa, &mut bytes).expect("RAM");
        bytes
    }
    pub fn put<T: Word>(&self, gpa: u64, value: T) {
        self.poke(gpa, &value.to_u64().to_le_bytes()[..T::SIZE]);
    }
    pub fn get<T: Word>(&self, gpa: u64) -> T {
        let mut bytes = [0; 8];
        self.memory.read(gpa, &mut bytes[..T::SIZE]).expect("RAM");
        T::from_u64(u64::from_le_bytes(bytes))
    }

    // ---- page tables ----

    /// A zeroed page for a table.
    pub fn new_table(&mut self) -> u64 {
        let at = self.next_table;
        self.next_table += 0x1000;
        assert!(at < USER, "no room for tables");
        self.poke(at, &[0; 0x1000]);
        at
    }

    /// All RAM one to one: 4 KiB pages up to [`SMALL`], 2 MiB pages beyond.
    pub(super) fn identity_map(&mut self) {
        assert_eq!(self.new_table(), TABLES);
        for page in (0..SMALL).step_by(0x1000) {
            let user = if page >= USER { U } else { 0 };
            self.map(page, page, P | W | user);
        }
        for page in (SMALL..RAM + 0x20_0000).step_by(0x20_0000) {
            self.map_level(page, page, 2, P | W | U);
        }
    }

    /// Maps a page of 4 KiB.
    pub fn map(&mut self, linear: u64, gpa: u64, flags: u64) {
        self.map_level(linear, gpa, 1, flags);
    }

    /// Maps a page of 4 KiB, 2 MiB or 1 GiB (level 1, 2 or 3) in the tables at [`TABLES`].
    pub fn map_level(&mut self, linear: u64, gpa: u64, level: usize, flags: u64) {
        self.map_in(TABLES, linear, gpa, level, flags);
    }

    /// Maps a page in the tables at `root`; tables on the way allow everything.
    pub fn map_in(&mut self, root: u64, linear: u64, gpa: u64, level: usize, flags: u64) {
        let mut table = root;
        for at in (level + 1..=4).rev() {
            let entry = table + 8 * index(linear, at);
            let mut value: u64 = self.get(entry);
            if value & P == 0 {
                value = self.new_table() | P | W | U;
                self.put(entry, value);
            }
            table = value & FRAME;
        }
        let large = if level > 1 { PS } else { 0 };
        self.put(table + 8 * index(linear, level), gpa | flags | large);
    }

    /// Guest-physical address of the entry for a linear address at a level.
    pub fn entry_at(&self, linear: u64, level: usize) -> u64 {
        let mut table = self.engine.cpu.cr3 & FRAME;
        for at in (level + 1..=4).rev() {
            table = self.get::<u64>(table + 8 * index(linear, at)) & FRAME;
        }
        table + 8 * index(linear, level)
    }

    /// Guest-physical address of the entry that maps a 4 KiB page.
    pub fn pte(&self, linear: u64) -> u64 {
        self.entry_at(linear, 1)
    }

    /// Where a linear address lies now by the tables in memory, whatever is cached; without paging the same address.
    pub fn gpa(&self, linear: u64) -> u64 {
        if !self.engine.cpu.mode().long {
            return linear;
        }
        let mut table = self.engine.cpu.cr3 & FRAME;
        for level in (1..=4).rev() {
            let entry: u64 = self.get(table + 8 * index(linear, level));
            assert!(entry & P != 0, "{linear:#x} is not mapped");
            if level == 1 || entry & PS != 0 && level < 4 {
                let inside = (1u64 << SHIFTS[level]) - 1;
                return entry & FRAME & !inside | linear & inside;
            }
            table = entry & FRAME;
        }
        unreachable!("level 1 ends the walk")
    }

    // ---- gates and descriptors ----

    pub fn set_gate(&self, vector: u8, gate: Gate) {
        let low = u64::from(gate.selector) << 16
            | gate.offset & 0xffff
            | (gate.offset & 0xffff_0000) << 32
            | u64::from(gate.ist) << 32
            | u64::from(gate.access) << 40;
        self.put(IDT + 16 * u64::from(vector), low);
        self.put(IDT + 16 * u64::from(vector) + 8, gate.offset >> 32);
    }

    /// Reads a gate back.
    pub fn gate(&self, vector: u8) -> Gate {
        let low: u64 = self.get(IDT + 16 * u64::from(vector));
        let high: u64 = self.get(IDT + 16 * u64::from(vector) + 8);
        Gate {
            selector: (low >> 16) as u16,
            offset: low & 0xffff | low >> 32 & 0xffff_0000 | high << 32,
            ist: (low >> 32) as u8,
            access: (low >> 40) as u8,
        }
    }

    /// Changes a gate of the 64-bit IDT.
    pub fn change_gate(&self, vector: u8, f: impl FnOnce(&mut Gate)) {
        let mut gate = self.gate(vector);
        f(&mut gate);
        self.set_gate(vector, gate);
    }

    /// A gate of the 32-bit IDT.
    pub fn set_gate_32(&self, vector: u8, selector: u16, offset: u32, access: u8) {
        let offset = u64::from(offset);
        let value = u64::from(selector) << 16
            | offset & 0xffff
            | (offset & 0xffff_0000) << 32
            | u64::from(access) << 40;
        self.put(IDT + 8 * u64::from(vector), value);
    }

    /// Writes the descriptor of a selector.
    pub fn set_descriptor(&self, selector: u16, value: u64) {
        self.put(GDT + u64::from(selector & !7), value);
    }

    /// Writes the free descriptor `n` and gives its selector with RPL 0.
    pub fn free_descriptor(&self, n: u16, value: u64) -> u16 {
        let selector = FREE + 8 * n;
        self.set_descriptor(selector, value);
        selector
    }
}

/// Index of a linear address in the table of a level.
pub fn index(linear: u64, level: usize) -> u64 {
    linear >> SHIFTS[level] & 0x1ff
}

/// A segment descriptor from its parts: the limit is as it stands in the descriptor, `flags` are G, D/B, L, AVL.
pub fn descriptor(base: u32, limit: u32, access: u8, flags: u8) -> u64 {
    let (base, limit) = (u64::from(base), u64::from(limit));
    limit & 0xffff
        | (base & 0xff_ffff) << 16
        | u64::from(access) << 40
        | (limit >> 16 & 0xf) << 48
        | u64::from(flags & 0xf) << 52
        | (base >> 24) << 56
}
