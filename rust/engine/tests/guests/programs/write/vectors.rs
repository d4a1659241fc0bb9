//! Pieces of programs that have AVX: vector state that is saved and comes back, and XCR0.

use super::*;

impl Writer {
    pub(super) fn has_avx(&self) -> bool {
        self.features.contains(Features::AVX)
    }

    /// The vector state goes to memory and comes back, all of it or some, with other work between.
    pub(super) fn saved(&mut self) {
        let page = DATA + 0x1000 * self.below(DATA_PAGES);
        let place = ((page + 64 * self.below(50)) as u32).to_le_bytes();
        let parts = self.pick(&[7, 7, 4, 6, 2, 3]);
        self.constant(0, parts);
        self.constant(2, 0);
        // XSAVE64, XSAVEC64 or XSAVEOPT64.
        let save = self.pick(&[[0xae, 4], [0xc7, 4], [0xae, 6]]);
        self.insn(&[&[0x48, 0x0f, save[0], modrm(0, save[1], 4), 0x25][..], &place].concat());
        for _ in 0..self.below(4) {
            self.random(false, true);
        }
        let parts = self.pick(&[7, 7, 4, 6, 2, 3]);
        self.constant(0, parts);
        self.constant(2, 0);
        self.insn(&[&[0x48, 0x0f, 0xae, modrm(0, 5, 4), 0x25][..], &place].concat());
        if self.one_in(4) {
            // XCR0 with AVX or without.
            let state = self.pick(&[7, 7, 3]);
            self.constant(0, state);
            self.constant(1, 0);
            self.insn(&[0x0f, 0x01, 0xd1]);
        }
        self.random(false, true);
    }
}
