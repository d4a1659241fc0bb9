//! Byte strings over the whole opcode space, shared by the tests that compare decoders.

#![allow(dead_code, reason = "each test file uses its part")]

pub mod checks;

use trapgate_x86::insn::Bits;

pub const MODES: [Bits; 3] = [Bits::B16, Bits::B32, Bits::B64];

/// Prefix sets worth combining with every opcode in every mode.
const PREFIXES: [&[u8]; 14] = [
    &[],
    &[0x66],
    &[0xf3],
    &[0xf2],
    &[0x67],
    &[0xf0],
    &[0x66, 0xf3],
    &[0x66, 0xf2],
    &[0xf2, 0xf3],
    &[0xf3, 0xf2],
    &[0x64],
    &[0x2e, 0x66, 0x67],
    &[0x65, 0x36],
    &[0xf0, 0x66],
];

const REX: [&[u8]; 8] = [&[], &[0x40], &[0x41], &[0x42], &[0x44], &[0x48], &[0x4f], &[0x48, 0x66]];

/// A small generator of repeatable noise (xorshift).
#[derive(Clone, Debug)]
pub struct Noise(pub u64);

impl Noise {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// ModRM bytes: every register form, and the memory forms that differ in layout for each reg.
fn modrms() -> Vec<u8> {
    let memory = (0..3u8).flat_map(|mode| {
        (0..8u8).flat_map(move |reg| [0, 4, 5, 6].into_iter().map(move |rm| mode << 6 | reg << 3 | rm))
    });
    memory.chain(0xc0..=0xff).collect()
}

/// Calls `visit` with 16 bytes that start with each combination of prefixes, opcode and ModRM; the rest is noise.
pub fn opcode_space(bits: Bits, mut visit: impl FnMut(&[u8; 16])) {
    let rexes: &[&[u8]] = if bits == Bits::B64 { &REX } else { &REX[..1] };
    let modrms = modrms();
    let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
    for escape in [&[][..], &[0x0f], &[0x0f, 0x38], &[0x0f, 0x3a]] {
        for opcode in 0..=255u8 {
            for prefixes in PREFIXES {
                for rex in rexes {
                    for &modrm in &modrms {
                        let head: [&[u8]; 5] = [prefixes, rex, escape, &[opcode], &[modrm]];
                        visit(&fill(&head, &mut noise));
                    }
                }
            }
        }
    }
}

/// As [`opcode_space`] for VEX: both forms, maps 1 to 3, pp, L, W, vvvv.
pub fn vex_space(bits: Bits, mut visit: impl FnMut(&[u8; 16])) {
    let modrms = modrms();
    let mut noise = Noise(0x2545_f491_4f6c_dd1d);
    for map in 0..=4u8 {
        for opcode in 0..=255u8 {
            for second in 0..32u8 {
                // W, one bit that chooses vvvv = 1111b or noise, L, pp.
                let (w, none, l_pp) = (second >> 4, second >> 3 & 1, second & 7);
                for &modrm in &modrms {
                    let vvvv = if none != 0 { 0x78 } else { (noise.next() as u8 & 0xf) << 3 };
                    let rxb = if bits == Bits::B64 {
                        noise.next() as u8 & 0xe0
                    } else {
                        0xc0 | noise.next() as u8 & 0x20
                    };
                    let prefix: &[u8] = if noise.next() & 15 == 0 { &[0x67] } else { &[] };
                    let three = [0xc4, rxb | map, w << 7 | vvvv | l_pp];
                    visit(&fill(&[prefix, &three, &[opcode], &[modrm]], &mut noise));
                    if map == 1 && w == 0 {
                        let last = if bits == Bits::B64 { rxb & 0x80 } else { 0xc0 } | vvvv | l_pp;
                        visit(&fill(&[prefix, &[0xc5, last], &[opcode], &[modrm]], &mut noise));
                    }
                }
            }
        }
    }
}

fn fill(parts: &[&[u8]], noise: &mut Noise) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&noise.next().to_le_bytes());
    bytes[8..].copy_from_slice(&noise.next().to_le_bytes());
    let mut at = 0;
    for part in parts {
        bytes[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
    bytes
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
}

/// Gathers disagreements by kind, so that a broken table reads as a list of kinds and not as a million lines.
#[derive(Debug, Default)]
pub struct Disagreements {
    pub compared: u64,
    kinds: std::collections::BTreeMap<String, (u64, String)>,
}

impl Disagreements {
    pub fn add(&mut self, kind: String, example: String) {
        self.kinds.entry(kind).or_insert((0, example)).0 += 1;
    }

    pub fn assert_none(&self) {
        let lines: Vec<_> = self
            .kinds
            .iter()
            .map(|(kind, (count, example))| format!("{kind}: {count}, as {example}"))
            .collect();
        assert!(
            lines.is_empty(),
            "{} kinds of disagreement in {}:\n{}",
            lines.len(),
            self.compared,
            lines.join("\n")
        );
    }
}
