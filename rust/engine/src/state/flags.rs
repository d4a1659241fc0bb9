//! The guest's RFLAGS, kept as the values that the arithmetic flags follow from rather than as bits.
//!
//! An arithmetic instruction then stores a few words and nothing is computed for flags that nobody reads.

use trapgate_x86::regs::rflags;

/// RFLAGS of a vCPU.
#[derive(Clone, Copy, Debug)]
pub struct Flags {
    /// ZF is set when this is zero.
    zero: u64,
    /// SF is bit 63.
    sign: u64,
    /// Carries out of every bit of the last addition (borrows of a subtraction), the top one at bit 63: CF is bit 63,
    /// OF is bit 63 xor bit 62.
    carries: u64,
    /// PF is the even parity of this byte.
    parity: u8,
    /// AF is bit 3.
    aux: u8,
    /// All bits other than CF, PF, AF, ZF, SF, OF.
    other: u64,
}

/// The six arithmetic flags.
pub const ARITHMETIC: u64 = rflags::CF | rflags::PF | rflags::AF | rflags::ZF | rflags::SF | rflags::OF;

impl Flags {
    /// Flags from a whole RFLAGS value.
    pub fn new(value: u64) -> Self {
        let mut flags = Flags { zero: 1, sign: 0, carries: 0, parity: 1, aux: 0, other: 0 };
        flags.set_bits(value);
        flags
    }

    /// RFLAGS as PUSHF shows it (bit 1 set).
    pub fn bits(&self) -> u64 {
        let mut value = self.other | 2;
        value |= u64::from(self.cf()) * rflags::CF;
        value |= u64::from(self.pf()) * rflags::PF;
        value |= u64::from(self.af()) * rflags::AF;
        value |= u64::from(self.zf()) * rflags::ZF;
        value |= u64::from(self.sf()) * rflags::SF;
        value |= u64::from(self.of()) * rflags::OF;
        value
    }

    /// Sets all of RFLAGS.
    pub fn set_bits(&mut self, value: u64) {
        self.other = value & rflags::ALL & !ARITHMETIC & !2;
        self.set_arithmetic(value);
    }

    /// Sets the six arithmetic flags from bits of `value`.
    pub fn set_arithmetic(&mut self, value: u64) {
        self.zero = u64::from(value & rflags::ZF == 0);
        self.sign = (value & rflags::SF) << (63 - 7);
        self.parity = u8::from(value & rflags::PF == 0);
        self.aux = ((value & rflags::AF) >> 1) as u8;
        self.set_cf_of(value & rflags::CF != 0, value & rflags::OF != 0);
    }

    #[inline(always)]
    pub fn cf(&self) -> bool {
        self.carries >> 63 != 0
    }
    #[inline(always)]
    pub fn pf(&self) -> bool {
        self.parity.count_ones() & 1 == 0
    }
    #[inline(always)]
    pub fn af(&self) -> bool {
        self.aux & 8 != 0
    }
    #[inline(always)]
    pub fn zf(&self) -> bool {
        self.zero == 0
    }
    #[inline(always)]
    pub fn sf(&self) -> bool {
        self.sign >> 63 != 0
    }
    #[inline(always)]
    pub fn of(&self) -> bool {
        (self.carries ^ (self.carries << 1)) >> 63 != 0
    }

    /// Bits that are not arithmetic flags (IF, DF, TF, IOPL...).
    #[inline(always)]
    pub fn other(&self) -> u64 {
        self.other
    }
    #[inline(always)]
    pub fn is_set(&self, bit: u64) -> bool {
        self.other & bit != 0
    }
    pub fn insert(&mut self, bits: u64) {
        self.other |= bits & !ARITHMETIC;
    }
    pub fn remove(&mut self, bits: u64) {
        self.other &= !bits;
    }
    /// Privilege needed for I/O instructions, 0 to 3.
    pub fn iopl(&self) -> u8 {
        (self.other >> 12 & 3) as u8
    }

    /// Result of an addition or subtraction: `result` sign-extended to 64 bits, `carries` in place (not shifted).
    #[inline(always)]
    pub fn set_sum(&mut self, result: u64, carries: u64, bits: u32) {
        self.zero = result;
        self.sign = result;
        self.parity = result as u8;
        self.aux = carries as u8;
        self.carries = carries << (64 - bits);
    }

    /// As [`Self::set_sum`], CF kept (INC and DEC).
    #[inline(always)]
    pub fn set_sum_keep_cf(&mut self, result: u64, carries: u64, bits: u32) {
        let cf = self.cf();
        self.set_sum(result, carries, bits);
        let of = self.of();
        self.set_cf_of(cf, of);
    }

    /// Result of a logic operation, sign-extended: CF and OF clear; AF, which the manual leaves undefined, clear.
    #[inline(always)]
    pub fn set_logic(&mut self, result: u64) {
        self.zero = result;
        self.sign = result;
        self.parity = result as u8;
        self.aux = 0;
        self.carries = 0;
    }

    /// ZF, SF and PF of a sign-extended result, the others kept.
    #[inline(always)]
    pub fn set_result(&mut self, result: u64) {
        self.zero = result;
        self.sign = result;
        self.parity = result as u8;
    }

    #[inline(always)]
    pub fn set_cf_of(&mut self, cf: bool, of: bool) {
        self.carries = u64::from(cf) << 63 | u64::from(cf ^ of) << 62;
    }
    #[inline(always)]
    pub fn set_cf(&mut self, cf: bool) {
        let of = self.of();
        self.set_cf_of(cf, of);
    }
    /// ZF alone; the others kept.
    #[inline(always)]
    pub fn set_zf_only(&mut self, zf: bool) {
        self.zero = u64::from(!zf);
    }
    #[inline(always)]
    pub fn set_af(&mut self, af: bool) {
        self.aux = u8::from(af) << 3;
    }

    /// Whether a condition code holds (SDM vol. 1, appendix B).
    #[inline(always)]
    pub fn condition(&self, cond: u8) -> bool {
        let holds = match cond >> 1 & 7 {
            0 => self.of(),
            1 => self.cf(),
            2 => self.zf(),
            3 => self.cf() || self.zf(),
            4 => self.sf(),
            5 => self.pf(),
            6 => self.sf() != self.of(),
            _ => self.zf() || self.sf() != self.of(),
        };
        holds != (cond & 1 != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_of_arithmetic_flags_survives() {
        let bits = [rflags::CF, rflags::PF, rflags::AF, rflags::ZF, rflags::SF, rflags::OF];
        for n in 0..64u64 {
            let value =
                bits.iter().enumerate().map(|(i, b)| if n >> i & 1 == 1 { *b } else { 0 }).sum::<u64>();
            assert_eq!(Flags::new(value | rflags::IF).bits(), value | rflags::IF | 2);
        }
    }

    #[test]
    fn conditions_follow_the_flags() {
        for n in 0..64u64 {
            let (cf, zf, sf, of, pf) = (n & 1 > 0, n & 2 > 0, n & 4 > 0, n & 8 > 0, n & 16 > 0);
            let f = Flags::new(
                u64::from(cf)
                    | u64::from(pf) << 2
                    | u64::from(zf) << 6
                    | u64::from(sf) << 7
                    | u64::from(of) << 11,
            );
            let want = [of, cf, zf, cf | zf, sf, pf, sf != of, zf | (sf != of)];
            for (i, w) in want.into_iter().enumerate() {
                assert_eq!(f.condition(2 * i as u8), w);
                assert_eq!(f.condition(2 * i as u8 + 1), !w);
            }
        }
    }
}
