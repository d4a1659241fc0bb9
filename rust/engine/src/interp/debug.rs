//! Breakpoints: DR0 to DR3 for code, data and ports (SDM vol. 3, 17.2).

use trapgate_x86::insn::Bits;
use trapgate_x86::regs::{cr4, dr7};

use crate::state::Vcpu;

const CODE: u64 = 0;
const WRITE: u64 = 1;
const PORT: u64 = 2;

impl Vcpu {
    /// DR6 bits of the enabled breakpoints whose kind and range match. Ranges go on at 0 behind the last address.
    fn breakpoints(&self, start: u64, size: u64, matches: impl Fn(u64) -> bool) -> u64 {
        let mut hit = 0;
        let addresses = if self.mode.long { u64::MAX } else { u64::from(u32::MAX) };
        for n in 0..4 {
            if self.dr7 & dr7::enables(n) == 0 || !matches(dr7::kind(self.dr7, n)) {
                continue;
            }
            let length = if dr7::kind(self.dr7, n) == CODE { 1 } else { dr7::length(self.dr7, n) };
            let at = self.dr[n as usize] & !(length - 1);
            let (ahead, behind) = (at.wrapping_sub(start) & addresses, start.wrapping_sub(at) & addresses);
            if ahead < size || behind < length {
                hit |= 1 << n;
            }
        }
        hit
    }

    fn any_enabled(&self) -> bool {
        self.dr7 & 0xff != 0
    }

    /// Whether a code breakpoint is armed: then instructions run one at a time.
    pub(crate) fn code_breakpoints_armed(&self) -> bool {
        self.any_enabled()
            && (0..4).any(|n| self.dr7 & dr7::enables(n) != 0 && dr7::kind(self.dr7, n) == CODE)
    }

    /// Code breakpoints at a linear address.
    pub(crate) fn code_breakpoint(&self, linear: u64) -> u64 {
        self.breakpoints(linear, 1, |kind| kind == CODE)
    }

    /// Whether a data breakpoint is armed.
    pub(crate) fn data_breakpoints_armed(&self) -> bool {
        self.any_enabled()
            && (0..4).any(|n| self.dr7 & dr7::enables(n) != 0 && matches!(dr7::kind(self.dr7, n), WRITE | 3))
    }

    /// Whether a page holds a data breakpoint, so that accesses to it must be looked at one by one.
    pub(crate) fn page_has_breakpoint(&self, linear: u64) -> bool {
        self.any_enabled() && self.breakpoints(linear & !0xfff, 0x1000, |kind| matches!(kind, WRITE | 3)) != 0
    }

    /// Notes a data breakpoint: a trap after the instruction.
    pub(crate) fn data_breakpoint(&mut self, linear: u64, size: u64, write: bool) {
        if self.any_enabled() {
            let hit = self.breakpoints(linear, size, |kind| kind == 3 || kind == WRITE && write);
            self.note_breakpoint(hit);
        }
    }

    /// Notes a breakpoint on a port, with CR4.DE.
    pub(crate) fn io_breakpoint(&mut self, port: u16, size: u8) {
        if self.any_enabled() && self.cr4 & cr4::DE != 0 {
            let hit = self.breakpoints(u64::from(port), u64::from(size), |kind| kind == PORT);
            self.note_breakpoint(hit);
        }
    }

    fn note_breakpoint(&mut self, hit: u64) {
        if hit != 0 {
            self.pending_debug |= hit;
            self.attention = true;
            self.end_block();
        }
    }

    /// Linear address of RIP.
    pub fn linear_rip(&self) -> u64 {
        if self.mode.bits == Bits::B64 {
            self.rip
        } else {
            self.segment(trapgate_x86::insn::Seg::Cs).base.wrapping_add(self.rip) & u64::from(u32::MAX)
        }
    }
}
