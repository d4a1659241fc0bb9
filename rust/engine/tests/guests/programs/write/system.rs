//! Pieces that change what code and pages are: code that is written, pages that are exchanged, rings, page tables.

use super::*;

impl Writer {
    /// Writes a function and calls it.
    pub(super) fn written(&mut self) {
        let slot = self.below(3) * 16;
        let at = WRITTEN + slot + if self.one_in(3) { WRITTEN_ALIAS - WRITTEN } else { 0 };
        let (reg, value) = (self.pick(&[0, 1, 2, 3, 6, 7u32]), self.noise.next() as u32);
        // MOV reg, imm32; RET.
        let low = 0xb8 | reg | value << 8;
        let high = value >> 24 | 0xc3 << 8;
        let dword = |at: u64, value: u32| {
            [&[0xc7, 0x04, 0x25][..], &(at as u32).to_le_bytes(), &value.to_le_bytes()].concat()
        };
        if !self.one_in(4) {
            self.insn(&dword(at + 4, high));
        }
        self.insn(&dword(at, low));
        if self.one_in(4) {
            return;
        }
        self.call_page(WRITTEN + slot);
    }

    /// A direct call of an address outside the program.
    pub(super) fn call_page(&mut self, target: u64) {
        self.insn(&[0xe8, 0, 0, 0, 0]);
        let at = self.text.code.len();
        let relative = target.wrapping_sub(CODE + at as u64) as u32;
        self.text.code[at - 4..].copy_from_slice(&relative.to_le_bytes());
    }

    /// Calls a function from one place while its page is exchanged.
    pub(super) fn exchanged(&mut self) {
        let cell = self.cell() as u32;
        let again = self.label();
        self.bind(again);
        if self.one_in(2) {
            self.call_page(FUNCTION);
        } else {
            self.constant(3, FUNCTION);
            self.insn(&[0xff, 0xd3]);
        }
        if self.one_in(3) {
            self.insn(&[0x0f, 0x20, 0xd8]);
            let pcid = self.pick(&[0, 3]);
            self.insn(&[&[0x48, 0x35][..], &((ROOT_A ^ ROOT_B) as u32 | pcid).to_le_bytes()].concat());
            if self.one_in(2) {
                // BTS rax, 63: nothing is flushed.
                self.insn(&[0x48, 0x0f, 0xba, 0xe8, 63]);
            }
            self.insn(&[0x0f, 0x22, 0xd8]);
        } else {
            let entry = (TABLE_A + 8 * (FUNCTION >> 12 & 511)) as u32;
            self.insn(
                &[&[0x48, 0x81, 0x34, 0x25][..], &entry.to_le_bytes(), &0x3000u32.to_le_bytes()].concat(),
            );
            if !self.one_in(4) {
                self.invalidate(FUNCTION);
            }
        }
        self.insn(&[&[0xff, 0x0c, 0x25][..], &cell.to_le_bytes()].concat());
        self.insn(&[0x0f, 0x89, 0, 0, 0, 0]);
        self.refer(Field::Relative, again, 0);
    }

    /// Stores into code.
    pub(super) fn patch(&mut self) {
        if self.one_in(3) {
            // Data among code.
            let over = self.label();
            self.insn(&[0xe9, 0, 0, 0, 0]);
            self.refer(Field::Relative, over, 0);
            let pool = self.here();
            self.pools.push(pool);
            self.text.code.extend_from_slice(&[0; 64]);
            self.bind(over);
        }
        let reg = self.general();
        let value = self.noise.next() as u32;
        let alias = if self.one_in(3) { ALIAS } else { 0 };
        let here = self.label();
        // The store, to an immediate that comes soon or to one of an earlier piece.
        let earlier = !self.immediates.is_empty() && self.one_in(3);
        if earlier {
            let n = self.immediates.len() as u64;
            let at = self.immediates[self.noise.below(n) as usize] + alias;
            self.insn(&[&[0xc7, 0x04, 0x25][..], &(at as u32).to_le_bytes(), &value.to_le_bytes()].concat());
        } else {
            let byte = self.one_in(2);
            let opcode = if byte { 0xc6 } else { 0xc7 };
            self.insn(
                &[&[opcode, 0x04, 0x25][..], &[0; 4], &value.to_le_bytes()[..if byte { 1 } else { 4 }]]
                    .concat(),
            );
            let back = if byte { 1 } else { 4 };
            let at = self.text.code.len() - back - 4;
            self.fixups.push(Fixup { at, field: Field::Absolute, label: here, plus: alias });
        }
        if self.one_in(3) {
            let next = self.label();
            self.insn(&[0xe9, 0, 0, 0, 0]);
            self.refer(Field::Relative, next, 0);
            self.bind(next);
        }
        for _ in 0..self.below(4) {
            self.insn(&[0x90]);
        }
        // MOV or ADD with the immediate.
        let b = if reg >= 8 { 0x41 } else { 0x40 };
        if self.one_in(2) {
            self.insn(&[&[b, 0xb8 | reg & 7][..], &value.to_le_bytes()].concat());
        } else {
            self.insn(&[&[b, 0x81, modrm(3, 0, reg)][..], &value.to_le_bytes()].concat());
        }
        let at = self.here() - 4;
        self.labels[here] = Some(at);
        self.immediates.push(at);
    }

    // ---- the system ----

    pub(super) fn ring(&mut self) {
        match self.below(7) {
            6 => {
                // The same stack in both rings, wherever it is.
                let page = self.below(DATA_PAGES);
                self.constant(4, DATA + page * 0x1000 + 0x800);
                for _ in 0..2 {
                    self.insn(&[0x50]);
                    self.insn(&[0x50]);
                    self.insn(&[0xcd, SWITCH]);
                }
                self.insn(&[0x58]);
            }
            0 | 1 => self.insn(&[0xcd, SWITCH]),
            2 => self.insn(&[0x0f, 0x05]),
            3 => self.insn(&[0xcd, COUNT]),
            4 => self.insn(&[0xcc]),
            _ => {
                let bytes = self.pick(&[&[0x0f, 0x0b][..], &[0x06], &[0xf0, 0x90]]);
                self.insn(bytes);
            }
        }
    }

    pub(super) fn invalidate(&mut self, page: u64) {
        self.insn(&[&[0x0f, 0x01, 0x3c, 0x25][..], &(page as u32).to_le_bytes()].concat());
    }

    /// Changes page tables.
    pub(super) fn pages(&mut self) {
        let (a, b) = (self.below(DATA_PAGES), self.below(DATA_PAGES));
        let (x, y) = (self.pick(&[0, 1, 2, 8]), self.pick(&[3, 6, 9, 11]));
        let invalidate = !self.one_in(3);
        match self.below(8) {
            6 | 7 => self.exchanged(),
            0 | 1 => {
                let table = self.pick(&[TABLE_A, TABLE_A, TABLE_B]);
                let entry = |page: u64| table + 8 * ((DATA >> 12 & 511) + page);
                self.absolute(false, x, entry(a));
                self.absolute(false, y, entry(b));
                self.absolute(true, x, entry(b));
                self.absolute(true, y, entry(a));
                if invalidate {
                    self.invalidate(DATA + a * 0x1000);
                    self.invalidate(DATA + b * 0x1000);
                }
            }
            2 => {
                // Rights or accessed and dirty flags of a page.
                let entry = (TABLE_A + 8 * ((DATA >> 12 & 511) + a)) as u32;
                let bits = self.pick(&[1, 1, 2, 2, 4, 0x20, 0x40]);
                if self.one_in(2) {
                    self.store_word(FIXES + 8 * a, 3);
                }
                self.insn(&[&[0x80, 0x34, 0x25][..], &entry.to_le_bytes(), &[bits]].concat());
                if invalidate {
                    self.invalidate(DATA + a * 0x1000);
                }
            }
            3 => {
                // The function's page is another one.
                let entry = TABLE_A + 8 * (FUNCTION >> 12 & 511);
                let other = self.pick(&[FUNCTION + 0x1000, FUNCTION + 0x2000]);
                self.store_word(entry, other as u32 | 7);
                if invalidate {
                    self.invalidate(FUNCTION);
                }
            }
            4 | 5 if self.one_in(3) => {
                // All global pages go as well: CR4.PGE off and on.
                self.insn(&[0x0f, 0x20, 0xe0]);
                self.insn(&[0x24, 0x7f]);
                self.insn(&[0x0f, 0x22, 0xe0]);
                self.insn(&[0x0c, 0x80]);
                self.insn(&[0x0f, 0x22, 0xe0]);
            }
            _ => {
                let (root, pcid) = self.pick(&[(ROOT_A, 0), (ROOT_A, 1), (ROOT_B, 2), (ROOT_B, 1)]);
                let keep = if self.one_in(2) { 1 << 63 } else { 0 };
                self.constant(x, root | pcid | keep);
                let b = if x >= 8 { 0x41 } else { 0x40 };
                self.insn(&[b, 0x0f, 0x22, modrm(3, 3, x)]);
            }
        }
    }
}
