//! The registers of the x87 FPU, of SSE and of AVX as one value. MMX registers are the significands of the x87's (Intel SDM
//! vol. 1, 9.2); the upper halves of YMM stand beside `xmm`, so that XMM code never touches them.

use serde::{Deserialize, Serialize};

/// MXCSR after reset and in its initial configuration (SDM vol. 1, 10.2.3).
pub const MXCSR_RESET: u32 = 0x1f80;
/// The MXCSR bits that may be set: the value FXSAVE reports as MXCSR_MASK.
pub const MXCSR_MASK: u32 = 0xffff;
/// The control word after FNINIT and in its initial configuration (SDM vol. 1, 8.1.5).
pub const FCW_INIT: u16 = 0x037f;
/// FCW bits 7, 13, 14 and 15 read as zero, bit 6 as one.
pub const FCW_WRITABLE: u16 = 0x1f3f;
pub const FCW_FIXED: u16 = 0x0040;

/// Status word bits (SDM vol. 1, 8.1.3).
pub mod fsw {
    /// Invalid operation, denormal, divide by zero, overflow, underflow, precision.
    pub const IE: u16 = 0x01;
    pub const DE: u16 = 0x02;
    pub const ZE: u16 = 0x04;
    pub const OE: u16 = 0x08;
    pub const UE: u16 = 0x10;
    pub const PE: u16 = 0x20;
    pub const EXCEPTIONS: u16 = 0x3f;
    /// Stack fault, beside IE.
    pub const SF: u16 = 0x40;
    /// Exception summary: an unmasked exception is pending.
    pub const ES: u16 = 0x80;
    pub const C0: u16 = 0x100;
    pub const C1: u16 = 0x200;
    pub const C2: u16 = 0x400;
    pub const C3: u16 = 0x4000;
    pub const CONDITIONS: u16 = C0 | C1 | C2 | C3;
    pub const TOP_SHIFT: u32 = 11;
    pub const TOP: u16 = 7 << TOP_SHIFT;
    pub const B: u16 = 0x8000;
}

/// A double extended-precision value as its register holds it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct F80 {
    /// The integer bit (63) and the fraction.
    pub significand: u64,
    /// The sign (bit 15) and the biased exponent.
    pub sign_exponent: u16,
}

impl F80 {
    pub const ZERO: F80 = F80::new(0, 0);
    pub const ONE: F80 = F80::new(0x3fff, 1 << 63);
    /// The QNaN floating-point indefinite: the masked response to an invalid operation (SDM vol. 1, table 4-3).
    pub const INDEFINITE: F80 = F80::new(0xffff, 3 << 62);

    pub const fn new(sign_exponent: u16, significand: u64) -> F80 {
        F80 { significand, sign_exponent }
    }

    /// The ten bytes of the format in memory.
    pub fn to_bytes(self) -> [u8; 10] {
        let mut bytes = [0; 10];
        bytes[..8].copy_from_slice(&self.significand.to_le_bytes());
        bytes[8..].copy_from_slice(&self.sign_exponent.to_le_bytes());
        bytes
    }

    pub fn from_bytes(bytes: [u8; 10]) -> F80 {
        let (low, high) =
            (u64::from_le_bytes([0, 1, 2, 3, 4, 5, 6, 7].map(|i: usize| bytes[i])), [bytes[8], bytes[9]]);
        F80 { significand: low, sign_exponent: u16::from_le_bytes(high) }
    }

    pub const fn sign(self) -> bool {
        self.sign_exponent & 0x8000 != 0
    }

    /// The biased exponent.
    pub const fn exponent(self) -> u16 {
        self.sign_exponent & 0x7fff
    }

    pub const fn negate(self) -> F80 {
        F80 { significand: self.significand, sign_exponent: self.sign_exponent ^ 0x8000 }
    }

    pub const fn abs(self) -> F80 {
        F80 { significand: self.significand, sign_exponent: self.sign_exponent & 0x7fff }
    }
}

/// What the x87 FPU holds (SDM vol. 1, 8.1).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct X87State {
    /// The physical registers R0 to R7; ST(i) is number (TOP + i) mod 8.
    pub regs: [F80; 8],
    pub fcw: u16,
    /// The status word with TOP in it.
    pub fsw: u16,
    /// The abridged tag word: bit i is set when Ri is not empty. The two-bit tags follow from the contents.
    pub tags: u8,
    /// Eleven bits of the last instruction's opcode.
    pub fop: u16,
    pub fcs: u16,
    pub fds: u16,
    pub fip: u64,
    pub fdp: u64,
}

impl X87State {
    /// What FNINIT leaves in control, status, tag and pointer registers; the data registers stay.
    pub fn init(&mut self) {
        *self = X87State { regs: self.regs, ..X87State::INITIAL };
    }

    /// The initial configuration that the XSAVE feature set knows (SDM vol. 1, 13.6).
    pub const INITIAL: X87State = X87State {
        regs: [F80::ZERO; 8],
        fcw: FCW_INIT,
        fsw: 0,
        tags: 0,
        fop: 0,
        fcs: 0,
        fds: 0,
        fip: 0,
        fdp: 0,
    };

    #[inline(always)]
    pub fn top(&self) -> u8 {
        ((self.fsw & fsw::TOP) >> fsw::TOP_SHIFT) as u8
    }

    #[inline(always)]
    pub fn set_top(&mut self, top: u8) {
        self.fsw = self.fsw & !fsw::TOP | u16::from(top & 7) << fsw::TOP_SHIFT;
    }

    /// The physical number of ST(i).
    #[inline(always)]
    pub fn physical(&self, i: u8) -> usize {
        usize::from(self.top().wrapping_add(i) & 7)
    }

    #[inline(always)]
    pub fn is_empty(&self, i: u8) -> bool {
        self.tags >> self.physical(i) & 1 == 0
    }

    #[inline(always)]
    pub fn st(&self, i: u8) -> F80 {
        self.regs[self.physical(i)]
    }

    /// Writes ST(i) and marks it as not empty.
    #[inline(always)]
    pub fn set_st(&mut self, i: u8, value: F80) {
        let physical = self.physical(i);
        self.regs[physical] = value;
        self.tags |= 1 << physical;
    }

    /// The full tag word: 0 valid, 1 zero, 2 special, 3 empty (SDM vol. 1, 8.1.7).
    pub fn full_tags(&self) -> u16 {
        (0..8).fold(0, |word, i| {
            let reg = self.regs[i];
            let tag = match (self.tags >> i & 1, reg.exponent(), reg.significand) {
                (0, ..) => 3,
                (_, 0, 0) => 1,
                (_, 0 | 0x7fff, _) => 2,
                (_, _, significand) => u16::from(significand >> 63 == 0) << 1,
            };
            word | tag << (2 * i)
        })
    }

    /// Takes a full tag word; only empty and not empty are kept.
    pub fn set_full_tags(&mut self, word: u16) {
        self.tags = (0..8).fold(0, |tags, i| tags | u8::from(word >> (2 * i) & 3 != 3) << i);
    }

    /// Sets FCW; the bits that are not implemented keep their fixed values.
    pub fn set_fcw(&mut self, value: u16) {
        self.fcw = value & FCW_WRITABLE | FCW_FIXED;
        self.summarise();
    }

    /// Sets ES and B by whether an unmasked exception is flagged.
    pub fn summarise(&mut self) {
        let pending = self.fsw & !self.fcw & fsw::EXCEPTIONS != 0;
        self.fsw = self.fsw & !(fsw::ES | fsw::B) | if pending { fsw::ES | fsw::B } else { 0 };
    }

    #[inline(always)]
    pub fn mmx(&self, i: u8) -> u64 {
        self.regs[usize::from(i & 7)].significand
    }

    /// Writes an MMX register; the exponent above it becomes all ones (SDM vol. 1, 9.5.1).
    #[inline(always)]
    pub fn set_mmx(&mut self, i: u8, value: u64) {
        self.regs[usize::from(i & 7)] = F80::new(0xffff, value);
    }

    /// What every MMX instruction but EMMS does: TOP to 0, all tags valid.
    #[inline(always)]
    pub fn enter_mmx(&mut self) {
        self.fsw &= !fsw::TOP;
        self.tags = 0xff;
    }
}

/// The x87, MMX, SSE and AVX registers of one virtual processor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VectorState {
    pub xmm: [u128; 16],
    /// Bits 255 to 128 of the YMM registers: state component 2 (SDM vol. 1, 13.5.3).
    pub ymm_high: [u128; 16],
    pub mxcsr: u32,
    pub x87: X87State,
}

impl VectorState {
    /// The state after power-up or reset (SDM vol. 3, table 10-1).
    pub fn reset() -> VectorState {
        let x87 = X87State { fcw: FCW_FIXED, tags: 0xff, ..X87State::INITIAL };
        VectorState { xmm: [0; 16], ymm_high: [0; 16], mxcsr: MXCSR_RESET, x87 }
    }

    #[inline(always)]
    pub(super) fn set_low32(&mut self, reg: u8, value: u32) {
        let slot = &mut self.xmm[usize::from(reg & 15)];
        *slot = *slot & !0xffff_ffff | u128::from(value);
    }

    #[inline(always)]
    pub(super) fn set_low64(&mut self, reg: u8, value: u64) {
        let slot = &mut self.xmm[usize::from(reg & 15)];
        *slot = *slot & !u128::from(u64::MAX) | u128::from(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_follow_from_contents() {
        let mut x87 = X87State::INITIAL;
        assert_eq!(x87.full_tags(), 0xffff);
        x87.tags = 0b1_1111;
        x87.regs[0] = F80::ONE;
        x87.regs[2] = F80::INDEFINITE;
        x87.regs[3] = F80::new(0, 1);
        x87.regs[4] = F80::new(0x3fff, 1);
        assert_eq!(x87.full_tags(), 0b11_11_11_10_10_10_01_00);
        x87.set_full_tags(0b11_00_11_00_11_01_11_10);
        assert_eq!(x87.tags, 0b0101_0101);
    }

    #[test]
    fn reset_is_the_manuals_table() {
        let state = VectorState::reset();
        assert_eq!((state.x87.fcw, state.x87.fsw, state.x87.full_tags()), (0x40, 0, 0x5555));
        assert_eq!(state.mxcsr, 0x1f80);
    }

    #[test]
    fn mmx_writes_alias_the_significand() {
        let mut x87 = X87State::INITIAL;
        x87.set_top(5);
        x87.enter_mmx();
        x87.set_mmx(3, 0x1234);
        assert_eq!(x87.st(3), F80::new(0xffff, 0x1234));
        assert_eq!((x87.top(), x87.tags), (0, 0xff));
    }
}
