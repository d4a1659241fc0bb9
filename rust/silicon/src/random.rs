//! Reproducible random values that favour what arithmetic gets wrong: zeros, extremes, neighbours of powers of two,
//! denormals, infinities, NaNs and encodings that are no numbers.

/// SplitMix64.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// A generator for one part of a run, whatever the other parts take from theirs.
    pub fn fork(seed: u64, parts: &[u64]) -> Random {
        parts.iter().fold(Random(seed), |mut random, part| {
            let next = random.bits() ^ part.wrapping_mul(0xd6e8_feb8_6659_fd93);
            Random(next)
        })
    }

    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// A number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.bits() % n
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// An integer of up to 64 bits.
    pub fn integer(&mut self) -> u64 {
        let value = self.bits();
        match self.below(8) {
            0 => value >> self.below(64),
            1 => !(value >> self.below(64)),
            2 => value as i32 as u64,
            3 => (1u64 << self.below(64)).wrapping_add(self.below(3)).wrapping_sub(1),
            4 => self.below(40),
            5 => self.below(40).wrapping_neg(),
            // The ends of each width, in the low part of the register, under noise.
            6 => {
                let width = self.pick(&[8, 16, 32, 64]);
                let edge = self.pick(&[0, 1, u64::MAX, 1 << (width - 1), (1 << (width - 1)) - 1]);
                let mask = u64::MAX >> (64 - width);
                value & !mask | edge & mask
            }
            _ => value,
        }
    }

    fn fraction(&mut self, width: u64) -> u64 {
        let value = match self.below(6) {
            0 => 0,
            1 => 1 << self.below(width),
            2 => self.below(4),
            3 => !self.below(4),
            4 => u64::MAX << self.below(width),
            _ => self.bits(),
        };
        value & u64::MAX >> (64 - width)
    }

    /// A biased exponent: the ends, the middle (where integers are), anything.
    fn exponent(&mut self, width: u64) -> u64 {
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

    /// The encoding of a single-precision value.
    pub fn single(&mut self) -> u32 {
        (self.below(2) << 31 | self.exponent(8) << 23 | self.fraction(23)) as u32
    }

    /// The encoding of a double-precision value.
    pub fn double(&mut self) -> u64 {
        self.below(2) << 63 | self.exponent(11) << 52 | self.fraction(52)
    }

    /// The encoding of an x87 register: mostly numbers, some of the unsupported encodings.
    pub fn extended(&mut self) -> [u8; 10] {
        let exponent = self.exponent(15);
        let integer = if self.one_in(12) { self.below(2) } else { u64::from(exponent != 0) };
        // A third has significands that the shorter formats can hold.
        let keep = if self.one_in(3) { u64::MAX << 39 } else { u64::MAX };
        let significand = integer << 63 | self.fraction(63) & keep;
        let mut bytes = [0; 10];
        bytes[..8].copy_from_slice(&significand.to_le_bytes());
        bytes[8..].copy_from_slice(&((self.below(2) << 15 | exponent) as u16).to_le_bytes());
        bytes
    }

    /// Sixteen bytes as integers, single or double values, or noise.
    pub fn vector(&mut self) -> u128 {
        let two = |random: &mut Random, value: fn(&mut Random) -> u64| {
            u128::from(value(random)) << 64 | u128::from(value(random))
        };
        match self.below(8) {
            0 => two(self, Random::bits),
            1 => two(self, Random::integer),
            2..=4 => two(self, Random::double),
            _ => (0..4).fold(0, |value, _| value << 32 | u128::from(self.single())),
        }
    }

    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let value = self.bits().to_le_bytes();
            chunk.copy_from_slice(&value[..chunk.len()]);
        }
    }
}
