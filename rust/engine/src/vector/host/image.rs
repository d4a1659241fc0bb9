//! Test support: random states, and the comparison of FXSAVE images.

use super::super::VectorState;
use super::super::state::{MXCSR_MASK, fsw};
use super::sample::Random;

/// The state as an FXSAVE64 image.
pub(super) fn to_image(state: &VectorState) -> [u8; 512] {
    let mut image = [0; 512];
    let x87 = &state.x87;
    image[0..2].copy_from_slice(&x87.fcw.to_le_bytes());
    image[2..4].copy_from_slice(&x87.fsw.to_le_bytes());
    image[4] = x87.tags;
    image[6..8].copy_from_slice(&x87.fop.to_le_bytes());
    image[8..16].copy_from_slice(&x87.fip.to_le_bytes());
    image[16..24].copy_from_slice(&x87.fdp.to_le_bytes());
    image[24..28].copy_from_slice(&state.mxcsr.to_le_bytes());
    image[28..32].copy_from_slice(&MXCSR_MASK.to_le_bytes());
    for i in 0..8 {
        let at = 32 + 16 * usize::from(i);
        image[at..at + 10].copy_from_slice(&x87.st(i).to_bytes());
    }
    for (i, xmm) in state.xmm.iter().enumerate() {
        image[160 + 16 * i..176 + 16 * i].copy_from_slice(&xmm.to_le_bytes());
    }
    image
}

/// A state with plausible values; no x87 exception is pending.
pub(super) fn random_state(random: &mut Random) -> VectorState {
    let mut state = VectorState::reset();
    state.xmm = std::array::from_fn(|_| random.vector());
    state.mxcsr = 0x1f80 | random.bits() as u32 & 0xe07f;
    state.x87.regs = std::array::from_fn(|_| random.f80());
    state.x87.tags = match random.bits() & 3 {
        0 => random.bits() as u8,
        1 => 0,
        _ => 0xff >> (random.bits() & 3) as u8,
    };
    state.x87.fsw = random.bits() as u16 & (fsw::TOP | fsw::CONDITIONS | fsw::SF);
    if random.bits() & 1 != 0 {
        // A stack that is not full, where pushes succeed.
        let top = state.x87.top();
        state.x87.tags = 0x1fu8.rotate_left(u32::from(top));
    }
    state.x87.set_fcw(match random.bits() & 3 {
        0 => random.bits() as u16,
        _ => random.bits() as u16 & 0x0f00 | 0x3f,
    });
    state.x87.fsw |= random.bits() as u16 & state.x87.fcw & fsw::EXCEPTIONS;
    state
}

/// Parts of the image with names for messages; bytes 28 to 31 are constant.
const FIELDS: [(&str, std::ops::Range<usize>); 33] = [
    ("fcw", 0..2),
    ("fsw", 2..4),
    ("tags", 4..5),
    ("fop", 6..8),
    ("fip", 8..16),
    ("fdp", 16..24),
    ("mxcsr", 24..28),
    ("st0", 32..42),
    ("st1", 48..58),
    ("st2", 64..74),
    ("st3", 80..90),
    ("st4", 96..106),
    ("st5", 112..122),
    ("st6", 128..138),
    ("st7", 144..154),
    ("xmm0", 160..176),
    ("xmm1", 176..192),
    ("xmm2", 192..208),
    ("xmm3", 208..224),
    ("xmm4", 224..240),
    ("xmm5", 240..256),
    ("xmm6", 256..272),
    ("xmm7", 272..288),
    ("xmm8", 288..304),
    ("xmm9", 304..320),
    ("xmm10", 320..336),
    ("xmm11", 336..352),
    ("xmm12", 352..368),
    ("xmm13", 368..384),
    ("xmm14", 384..400),
    ("xmm15", 400..416),
    ("mask", 28..32),
    ("tag pad", 5..6),
];

/// What differs between the images that the processor and the interpreter left.
pub(super) fn image_differences(before: &[u8], silicon: &[u8], ours: &[u8]) -> Vec<String> {
    let differing = FIELDS.iter().filter(|(_, range)| silicon[range.clone()] != ours[range.clone()]);
    let line = |(name, range): &(&str, std::ops::Range<usize>)| {
        let [old, silicon, ours] = [before, silicon, ours].map(|image| hex(&image[range.clone()]));
        format!("{name}: {old} -> silicon {silicon}, ours {ours}")
    };
    differing.map(line).collect()
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().rev().map(|byte| format!("{byte:02x}")).collect()
}
