//! Pieces that transfer control: branches, loops, functions, calls and jumps through registers and memory.

use super::*;

impl Writer {
    pub(super) fn forward(&mut self) -> usize {
        (self.piece + 1 + self.noise.below(6) as usize).min(self.pieces)
    }
    pub(super) fn backward(&mut self) -> usize {
        self.piece - self.noise.below(9).min(self.piece as u64) as usize
    }

    /// A counter in memory with a first value.
    pub(super) fn cell(&mut self) -> u64 {
        let at = CELLS + 8 * (1 + self.text.cells.len() as u64 % 400);
        let value = match self.below(3) {
            0 => self.below(3),
            1 => self.below(8),
            _ => self.below(40),
        };
        self.text.cells.push((at, value as u32));
        at
    }

    /// Memory that holds the address of a label.
    pub(super) fn word(&mut self, label: usize) -> u64 {
        let at = WORDS + 8 * self.words.len() as u64;
        self.words.push((at, label));
        at
    }

    pub(super) fn branch(&mut self) {
        if self.one_in(2) {
            self.random(false, false);
            if self.undefined != 0 {
                self.define();
            }
        }
        let target = self.forward();
        let cond = self.register();
        match self.below(6) {
            0 => self.insn(&[0xe9, 0, 0, 0, 0]),
            _ => self.insn(&[0x0f, 0x80 | cond, 0, 0, 0, 0]),
        }
        self.refer(Field::Relative, target, 0);
    }

    /// Back while a counter lasts.
    pub(super) fn again(&mut self) {
        let (cell, target) = (self.cell() as u32, self.backward());
        if self.one_in(2) {
            // DEC [cell]; JNS.
            self.insn(&[&[0xff, 0x0c, 0x25][..], &cell.to_le_bytes()].concat());
            self.insn(&[0x0f, 0x89, 0, 0, 0, 0]);
            self.refer(Field::Relative, target, 0);
        } else {
            self.guard(cell);
            self.insn(&[0xe9, 0, 0, 0, 0]);
            self.refer(Field::Relative, target, 0);
        }
    }

    /// Ends the piece when the counter is used up: CMP [cell], 0; JLE; DEC [cell].
    pub(super) fn guard(&mut self, cell: u32) {
        let end = self.piece + 1;
        self.insn(&[&[0x83, 0x3c, 0x25][..], &cell.to_le_bytes(), &[0]].concat());
        self.insn(&[0x0f, 0x8e, 0, 0, 0, 0]);
        self.refer(Field::Relative, end, 0);
        self.insn(&[&[0xff, 0x0c, 0x25][..], &cell.to_le_bytes()].concat());
    }

    pub(super) fn function(&mut self) {
        let over = self.label();
        self.insn(&[0xe9, 0, 0, 0, 0]);
        self.refer(Field::Relative, over, 0);
        let function = self.label();
        self.bind(function);
        for _ in 0..self.below(4) {
            self.random(false, false);
        }
        if self.one_in(3) {
            let reg = self.general();
            self.push_pop(reg, reg);
        }
        self.define();
        match self.below(6) {
            0 => {
                let release = self.pick(&[0, 8, 8, 16, 3]);
                self.insn(&[0xc2, release, 0]);
            }
            1 => self.insn(&[0xf3, 0xc3]),
            _ => self.insn(&[0xc3]),
        }
        self.functions.push(function);
        self.undefined = 0;
        self.bind(over);
    }

    pub(super) fn push_pop(&mut self, from: u8, to: u8) {
        let push: &[u8] = if from >= 8 { &[0x41, 0x50 | from & 7] } else { &[0x50 | from] };
        self.insn(push);
        let pop: &[u8] = if to >= 8 { &[0x41, 0x58 | to & 7] } else { &[0x58 | to] };
        self.insn(pop);
    }

    pub(super) fn some_function(&mut self) -> Option<usize> {
        let n = self.functions.len() as u64;
        (n > 0).then(|| self.functions[self.noise.below(n) as usize])
    }

    pub(super) fn indirect(&mut self, call: bool, label: usize) {
        let ext = if call { 2 } else { 4 };
        let reg = self.general();
        let b = if reg >= 8 { 0x41 } else { 0x40 };
        match self.below(5) {
            0 | 1 => {
                let alias = if self.one_in(4) { ALIAS } else { 0 };
                self.address(reg, label, alias);
                self.insn(&[b, 0xff, modrm(3, ext, reg)]);
            }
            2 => {
                let at = self.word(label) as u32;
                self.insn(&[&[0xff, modrm(0, ext, 4), 0x25][..], &at.to_le_bytes()].concat());
            }
            3 => {
                // [reg * 8 + table]
                let at = self.word(label);
                let n = self.below(50);
                self.constant(reg, n);
                let x = if reg >= 8 { 0x42 } else { 0x40 };
                let disp = (at - 8 * n) as u32;
                let bytes = [x, 0xff, modrm(0, ext, 4), 3 << 6 | (reg & 7) << 3 | 5];
                self.insn(&[&bytes[..], &disp.to_le_bytes()].concat());
            }
            _ => {
                let at = self.word(label);
                self.constant(reg, at.wrapping_sub(0x40));
                if reg & 7 == 4 {
                    self.insn(&[b, 0xff, modrm(1, ext, 4), 0x24, 0x40]);
                } else {
                    self.insn(&[b, 0xff, modrm(1, ext, reg), 0x40]);
                }
            }
        }
    }

    pub(super) fn call(&mut self) {
        let to_piece = self.forward();
        let function = self.some_function();
        match (self.below(10), function) {
            (0, _) => {
                // A call that is never returned from, or by a return that is not its own.
                self.insn(&[0xe8, 0, 0, 0, 0]);
                self.refer(Field::Relative, to_piece, 0);
            }
            (1, _) => {
                let reg = self.general();
                self.constant(reg, FUNCTION);
                let b = if reg >= 8 { 0x41 } else { 0x40 };
                self.insn(&[b, 0xff, modrm(3, 2, reg)]);
            }
            (2, _) => {
                self.call_page(FUNCTION);
            }
            (3, _) => {
                // Not canonical, or nothing there.
                let reg = self.general();
                let target =
                    self.pick(&[0x8000_0000_0000, 0x7fff_ffff_ffff, 0x5000_0000, 0xffff_7fff_ffff_f000]);
                self.constant(reg, target);
                let b = if reg >= 8 { 0x41 } else { 0x40 };
                let ext = self.pick(&[2, 4]);
                self.insn(&[b, 0xff, modrm(3, ext, reg)]);
            }
            (4..=6, Some(function)) => {
                self.insn(&[0xe8, 0, 0, 0, 0]);
                self.refer(Field::Relative, function, 0);
            }
            (_, Some(function)) => self.indirect(true, function),
            _ => self.indirect(false, to_piece),
        }
    }

    pub(super) fn jump(&mut self) {
        let forward = self.one_in(2);
        let target = if forward {
            self.forward()
        } else {
            let cell = self.cell() as u32;
            self.guard(cell);
            self.backward()
        };
        match self.below(4) {
            0 => {
                // A return without a call.
                let reg = self.general();
                let alias = if self.one_in(4) { ALIAS } else { 0 };
                self.address(reg, target, alias);
                let push: &[u8] = if reg >= 8 { &[0x41, 0x50 | reg & 7] } else { &[0x50 | reg] };
                self.insn(push);
                self.insn(&[0xc3]);
            }
            1 if self.one_in(4) => self.insn(&[0xc3]),
            _ => self.indirect(false, target),
        }
    }
}
