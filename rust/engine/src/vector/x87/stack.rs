//! The register stack and the bookkeeping of exceptions (Intel SDM vol. 1, 8.5).

use super::super::state::{F80, X87State, fsw};

/// Exceptions found before a result is computed: with one of them unmasked the operands stay (SDM vol. 1, 8.6).
const EARLY: u16 = fsw::IE | fsw::DE | fsw::ZE;

impl X87State {
    pub(super) fn free(&mut self, i: u8) {
        self.tags &= !(1 << self.physical(i));
    }

    pub(super) fn pop(&mut self) {
        self.free(0);
        self.set_top(self.top().wrapping_add(1));
    }

    /// Pushes without looking whether the place is free.
    pub(super) fn push(&mut self, value: F80) {
        self.set_top(self.top().wrapping_sub(1));
        self.set_st(0, value);
    }

    /// Whether a push would overflow.
    pub(super) fn is_full(&self) -> bool {
        !self.is_empty(7)
    }

    /// Merges exception flags and C1 from an operation's status; tells whether its result is to be written.
    pub(super) fn merge(&mut self, status: u16) -> bool {
        self.fsw = self.fsw & !fsw::C1 | status & (fsw::EXCEPTIONS | fsw::SF | fsw::C1);
        self.summarise();
        self.writes(status)
    }

    /// Whether a register result with this status is written.
    pub(super) fn writes(&self, status: u16) -> bool {
        status & !self.fcw & EARLY == 0
    }

    /// Whether a result for memory with this status is written: not if an exception other than precision is unmasked.
    pub(super) fn stores(&self, status: u16) -> bool {
        status & !self.fcw & fsw::EXCEPTIONS & !fsw::PE == 0
    }

    /// Reads from an empty register: tells whether the masked response is to be given.
    pub(super) fn underflow(&mut self) -> bool {
        self.merge(fsw::IE | fsw::SF)
    }

    /// A push onto a register in use: tells whether the masked response is to be given.
    pub(super) fn overflow(&mut self) -> bool {
        self.merge(fsw::IE | fsw::SF | fsw::C1)
    }

    /// Replaces the condition codes C0, C2 and C3.
    pub(super) fn set_codes(&mut self, codes: u16) {
        let all = fsw::C0 | fsw::C2 | fsw::C3;
        self.fsw = self.fsw & !all | codes & all;
    }
}
