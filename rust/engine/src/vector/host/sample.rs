//! Test support: reproducible random values that favour what arithmetic gets wrong: zeros, denormals, infinities, NaNs,
//! neighbours of powers of two and boundaries of formats.

use super::super::F80;

/// SplitMix64.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub(super) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.bits() % n
    }

    /// A fraction of `width` bits: few or many ones, or near its ends.
    fn fraction(&mut self, width: u32) -> u64 {
        let all = (1u64 << (width - 1) << 1).wrapping_sub(1);
        let value = match self.below(6) {
            0 => 0,
            1 => 1 << self.below(width.into()),
            2 => self.below(4),
            3 => !self.below(4),
            4 => u64::MAX << self.below(width.into()),
            _ => self.bits(),
        };
        value & all
    }

    /// A biased exponent: the ends, the middle, anything.
    fn exponent(&mut self, width: u32) -> u64 {
        let max = (1 << width) - 1;
        let bias = max / 2;
        match self.below(8) {
            0 => 0,
            1 => max,
            2 => 1 + self.below(3),
            3 => max - 1 - self.below(3),
            4 | 5 => bias - 4 + self.below(72).min(max - bias),
            6 => bias.saturating_sub(self.below(70)),
            _ => self.below(max + 1),
        }
    }

    pub(super) fn f32(&mut self) -> u32 {
        (self.below(2) << 31 | self.exponent(8) << 23 | self.fraction(23)) as u32
    }

    pub(super) fn f64(&mut self) -> u64 {
        self.below(2) << 63 | self.exponent(11) << 52 | self.fraction(52)
    }

    /// Mostly proper numbers, some of the encodings that are not.
    pub(super) fn f80(&mut self) -> F80 {
        let exponent = self.exponent(15);
        let integer = if self.below(12) == 0 { self.below(2) } else { u64::from(exponent != 0) };
        // A third has significands that the shorter formats can hold.
        let fraction = self.fraction(63) & if self.below(3) == 0 { u64::MAX << 39 } else { u64::MAX };
        F80::new((self.below(2) << 15 | exponent) as u16, integer << 63 | fraction)
    }

    pub(super) fn integer(&mut self) -> u64 {
        let value = self.bits();
        match self.below(6) {
            0 => value >> self.below(64),
            1 => !(value >> self.below(64)),
            2 => value as i32 as u64,
            3 => 1 << self.below(64),
            4 => self.below(40),
            _ => value,
        }
    }

    /// Sixteen bytes as single or double values, integers or noise.
    pub(super) fn vector(&mut self) -> u128 {
        match self.below(5) {
            0 => u128::from(self.bits()) << 64 | u128::from(self.bits()),
            1 => u128::from(self.integer()) << 64 | u128::from(self.integer()),
            2 => u128::from(self.f64()) << 64 | u128::from(self.f64()),
            _ => (0..4).fold(0, |value, _| value << 32 | u128::from(self.f32())),
        }
    }
}
