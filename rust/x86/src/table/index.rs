//! Lookup structures over the rows, computed by the compiler: for each opcode what the layout scan must know, and for each
//! opcode (split by ModRM.mod and reg where rows differ there) the short list of rows that may fit, in the order written.

use super::{MAPS, Map, Row, Spec, flag, primary, state, three_byte, two_byte, vex, x87};

/// What follows the opcode, as the layout scan sees it.
pub(crate) mod attribute {
    /// Kind of immediate, see the constants below.
    pub const IMMEDIATE: u16 = 0xf;
    pub const MODRM: u16 = 1 << 4;
    /// ModRM.mod is taken as 11b.
    pub const MODREG: u16 = 1 << 5;
    /// The immediate exists only with ModRM.reg 0 and 1 (group 3).
    pub const GROUP3: u16 = 1 << 6;
    /// Candidates are listed per ModRM.mod and reg.
    pub const SPLIT: u16 = 1 << 7;
    /// Modes in which some row exists: the bits of `state::MODES`, from bit 8.
    pub const MODES_SHIFT: u32 = 8;
    pub const MODES: u16 = 7 << MODES_SHIFT;

    pub const BYTE: u16 = 1;
    pub const WORD: u16 = 2;
    /// 2 or 4 bytes by operand size.
    pub const Z: u16 = 3;
    /// 2, 4 or 8 bytes by operand size.
    pub const V: u16 = 4;
    /// As `Z`, but always 4 in 64-bit mode.
    pub const REL: u16 = 5;
    /// Far pointer: offset by operand size, then 2 bytes.
    pub const FAR: u16 = 6;
    /// Absolute offset by address size.
    pub const OFFSET: u16 = 7;
    /// 2 bytes, then 1.
    pub const WORD_BYTE: u16 = 8;
    /// Two single bytes, with a 66 or F2 prefix (SSE4a).
    pub const BYTES_SSE4A: u16 = 9;
}

const TABLES: [(Map, &[&[Row]]); MAPS + 1] = [
    (Map::Primary, primary::ROWS),
    (Map::Primary, x87::ROWS),
    (Map::M0f, two_byte::ROWS),
    (Map::M0f38, three_byte::ROWS_38),
    (Map::M0f3a, three_byte::ROWS_3A),
    (Map::Vex0f, vex::ROWS_0F),
    (Map::Vex0f38, vex::ROWS_0F38),
    (Map::Vex0f3a, vex::ROWS_0F3A),
];

/// How many rows there are.
const COUNT: usize = {
    let (mut count, mut table) = (0, 0);
    while table < TABLES.len() {
        let mut group = 0;
        while group < TABLES[table].1.len() {
            count += TABLES[table].1[group].len();
            group += 1;
        }
        table += 1;
    }
    count
};

/// All rows in one array, each with its map.
pub(crate) static ROWS: [Row; COUNT] = {
    let mut flat = [TABLES[0].1[0][0]; COUNT];
    let (mut count, mut table) = (0, 0);
    while table < TABLES.len() {
        let (map, groups) = TABLES[table];
        let mut group = 0;
        while group < groups.len() {
            let mut n = 0;
            while n < groups[group].len() {
                flat[count] = groups[group][n];
                flat[count].map = map;
                count += 1;
                n += 1;
            }
            group += 1;
        }
        table += 1;
    }
    flat
};

const fn immediate(row: &Row) -> u16 {
    let (mut kind, mut n) = (0, 0);
    while n < 4 {
        kind = match row.specs[n] {
            Spec::Ib | Spec::Ibs | Spec::Jb | Spec::Lx => attribute::BYTE,
            Spec::Ib2 if row.specs[0] as u8 == Spec::Iw as u8 => attribute::WORD_BYTE,
            Spec::Ib2 => attribute::BYTES_SSE4A,
            Spec::Iw => attribute::WORD,
            Spec::Iz | Spec::Jo => attribute::Z,
            Spec::Iv => attribute::V,
            Spec::Jz => attribute::REL,
            Spec::Ap => attribute::FAR,
            Spec::Ob | Spec::Ov => attribute::OFFSET,
            _ => kind,
        };
        n += 1;
    }
    kind
}

/// Whether an operand is coded in ModRM.
const fn has_modrm(row: &Row) -> bool {
    let mut n = 0;
    while n < 4 {
        use Spec::*;
        match row.specs[n] {
            None | Zb | Zv | Al | Ax | RAx | Cl | Dx | Ob | Ov | One | Ib | Ibs | Iw | Iz | Iv | Ib2 | Jb
            | Jz | Jo | Ap | Es | Cs | Ss | Ds | Fs | Gs => {}
            _ => return true,
        }
        n += 1;
    }
    row.has_flag(flag::MODRM)
}

const fn attributes_of(row: &Row) -> u16 {
    let modes = ((row.accept & state::MODES) >> state::M16.trailing_zeros()) as u16;
    let split =
        row.accept & (state::SLASH | state::MEM | state::REG) != state::SLASH | state::MEM | state::REG;
    immediate(row)
        | modes << attribute::MODES_SHIFT
        | if has_modrm(row) { attribute::MODRM } else { 0 }
        | if row.has_flag(flag::MODREG) { attribute::MODREG } else { 0 }
        | if split && has_modrm(row) { attribute::SPLIT } else { 0 }
}

/// Layout of each opcode; zero in the mode bits where no row exists.
pub(crate) static ATTRIBUTES: [[u16; 256]; MAPS] = OPCODES;

const OPCODES: [[u16; 256]; MAPS] = {
    let mut all = [[0u16; 256]; MAPS];
    let mut n = 0;
    while n < COUNT {
        let (row, new) = (&ROWS[n], attributes_of(&ROWS[n]));
        let mut offset = 0;
        while offset < row.span {
            let slot = &mut all[row.map as usize][(row.opcode + offset) as usize];
            if *slot != 0 {
                let (old_kind, new_kind) = (*slot & attribute::IMMEDIATE, new & attribute::IMMEDIATE);
                if old_kind != new_kind {
                    // Only group 3 has rows with and without an immediate; SSE4a has one by its prefix.
                    assert!(old_kind != 0 || new_kind != 0);
                    assert!(row.opcode & 0xfe == 0xf6 && row.accept & state::SLASH > 3 << state::SLASH_SHIFT);
                    *slot |= attribute::GROUP3;
                }
                assert!((*slot ^ new) & (attribute::MODRM | attribute::MODREG) == 0);
            }
            *slot |= new;
            offset += 1;
        }
        n += 1;
    }
    all
};

/// First slot of each opcode: one slot, or sixteen (ModRM.mod = 11b, then reg) where split.
const BASES: ([[u16; 256]; MAPS], usize) = {
    let mut bases = [[0u16; 256]; MAPS];
    let (mut next, mut map) = (0usize, 0);
    while map < MAPS {
        let mut opcode = 0;
        while opcode < 256 {
            bases[map][opcode] = next as u16;
            next += if OPCODES[map][opcode] & attribute::SPLIT != 0 { 16 } else { 1 };
            opcode += 1;
        }
        map += 1;
    }
    (bases, next)
};

const SLOTS: usize = BASES.1;

/// Whether a row can fit in slot `n` of an opcode.
const fn in_slot(row: &Row, attributes: u16, n: usize) -> bool {
    if attributes & attribute::SPLIT == 0 {
        return n == 0;
    }
    let form = if n & 8 != 0 { state::REG } else { state::MEM };
    row.accept & form != 0 && row.accept & 1 << (state::SLASH_SHIFT as usize + (n & 7)) != 0
}

/// Where each slot's list of rows starts; one more entry ends the last.
const STARTS: [u16; SLOTS + 1] = {
    let mut starts = [0u16; SLOTS + 1];
    let mut n = 0;
    while n < COUNT {
        let row = &ROWS[n];
        let mut offset = 0;
        while offset < row.span {
            let opcode = (row.opcode + offset) as usize;
            let mut slot = 0;
            while slot < 16 {
                if in_slot(row, OPCODES[row.map as usize][opcode], slot) {
                    starts[BASES.0[row.map as usize][opcode] as usize + slot + 1] += 1;
                }
                slot += 1;
            }
            offset += 1;
        }
        n += 1;
    }
    let mut slot = 0;
    while slot < SLOTS {
        starts[slot + 1] += starts[slot];
        slot += 1;
    }
    starts
};

const ENTRIES: usize = STARTS[SLOTS] as usize;

const LISTS: [u16; ENTRIES] = {
    let mut lists = [0u16; ENTRIES];
    let mut cursors = STARTS;
    let mut n = 0;
    while n < COUNT {
        let row = &ROWS[n];
        let mut offset = 0;
        while offset < row.span {
            let opcode = (row.opcode + offset) as usize;
            let mut slot = 0;
            while slot < 16 {
                if in_slot(row, OPCODES[row.map as usize][opcode], slot) {
                    let cursor = &mut cursors[BASES.0[row.map as usize][opcode] as usize + slot];
                    lists[*cursor as usize] = n as u16;
                    *cursor += 1;
                }
                slot += 1;
            }
            offset += 1;
        }
        n += 1;
    }
    lists
};

static SLOT_BASES: [[u16; 256]; MAPS] = BASES.0;
static SLOT_STARTS: [u16; SLOTS + 1] = STARTS;
static SLOT_LISTS: [u16; ENTRIES] = LISTS;

/// Numbers of the rows that may fit this opcode, first match first.
#[inline]
pub(crate) fn candidates(map: Map, opcode: u8, modrm: u8) -> &'static [u16] {
    let (map, opcode) = (map as usize, usize::from(opcode));
    let mut slot = usize::from(SLOT_BASES[map][opcode]);
    if ATTRIBUTES[map][opcode] & attribute::SPLIT != 0 {
        slot += usize::from(modrm >> 3 & 7 | if modrm >= 0xc0 { 8 } else { 0 });
    }
    &SLOT_LISTS[usize::from(SLOT_STARTS[slot])..usize::from(SLOT_STARTS[slot + 1])]
}
