//! The bodies of the fuzz targets: each takes any bytes, does something with them, and panics if what must always hold does
//! not. `fuzz/` hands them to libFuzzer; a test runs each on repeatable noise, so that they are checked without it.

pub mod decoder;
pub mod devices;
pub mod guest;
pub mod hypercalls;
pub mod loaders;
pub mod walker;

/// A fuzz target.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]),
    /// Inputs worth starting from.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// Every target, by the name of its file in `fuzz/fuzz_targets`.
pub const TARGETS: [Target; 6] = [
    Target { name: "decoder", run: decoder::run, seeds: decoder::seeds },
    Target { name: "devices", run: devices::run, seeds: Vec::new },
    Target { name: "guest", run: guest::run, seeds: guest::seeds },
    Target { name: "hypercalls", run: hypercalls::run, seeds: hypercalls::seeds },
    Target { name: "loaders", run: loaders::run, seeds: loaders::seeds },
    Target { name: "walker", run: walker::run, seeds: Vec::new },
];

/// Reads numbers off the front of the input; zeros when there is none left.
#[derive(Clone, Debug)]
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub fn new(bytes: &'a [u8]) -> Input<'a> {
        Input(bytes)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What is left.
    pub fn rest(&self) -> &'a [u8] {
        self.0
    }

    pub fn u8(&mut self) -> u8 {
        self.number(1) as u8
    }

    pub fn u16(&mut self) -> u16 {
        self.number(2) as u16
    }

    pub fn u32(&mut self) -> u32 {
        self.number(4) as u32
    }

    pub fn u64(&mut self) -> u64 {
        self.number(8)
    }

    fn number(&mut self, size: usize) -> u64 {
        let (bytes, rest) = self.0.split_at(size.min(self.0.len()));
        self.0 = rest;
        bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
    }

    /// One of some values.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[usize::from(self.u8()) % from.len()]
    }
}

/// Repeatable noise (SplitMix64).
#[derive(Clone, Debug)]
pub struct Noise(pub u64);

impl Noise {
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n.max(1) as u64) as usize
    }

    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.bits() as u8).collect()
    }

    /// An input: noise, or a seed with some of its bytes changed, and sometimes cut.
    pub fn input(&mut self, seeds: &[Vec<u8>], longest: usize) -> Vec<u8> {
        if seeds.is_empty() || self.below(4) == 0 {
            let length = self.below(longest);
            return self.bytes(length);
        }
        let mut input = seeds[self.below(seeds.len())].clone();
        for _ in 0..self.below(8) {
            // Headers are where changes matter: half of them go there.
            let range = if self.below(2) == 0 { input.len() } else { input.len().min(128) };
            if range > 0 {
                let at = self.below(range);
                input[at] = if self.below(2) == 0 {
                    self.bits() as u8
                } else {
                    [0, 1, 0x7f, 0x80, 0xff][self.below(5)]
                };
            }
        }
        if self.below(8) == 0 {
            input.truncate(self.below(input.len()));
        }
        input
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_end_in_zeros() {
        let mut input = Input::new(&[1, 2, 3]);
        assert_eq!((input.u16(), input.u16(), input.u64(), input.is_empty()), (0x201, 3, 0, true));
    }

    #[test]
    fn noise_repeats_itself() {
        let seeds = [vec![7; 100]];
        let run = |seed| (0..50).map(|_| Noise(seed).input(&seeds, 64)).collect::<Vec<_>>();
        assert_eq!(run(3), run(3));
        assert_ne!(run(3), run(4));
    }
}
