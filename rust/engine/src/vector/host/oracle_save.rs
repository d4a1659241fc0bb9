//! The silicon oracle for the instructions that save and restore state, whose memory operands must be well formed:
//! short sequences of them run on the host's processor and here.

use trapgate_x86::decode::decode;
use trapgate_x86::features::Features;
use trapgate_x86::insn::Bits;

use super::super::mock::{Memory, Mock};
use super::super::state::fsw;
use super::super::{Control, VectorException, VectorState, execute};
use super::HostFp;
use super::image::{hex, image_differences, random_state, to_image};
use super::sample::Random;
use super::silicon::{Context, Page};
use super::vendor::{Counts, MASK};

const XSAVE: &[u8] = &[0x0f, 0xae, 0x26];
const XSAVE64: &[u8] = &[0x48, 0x0f, 0xae, 0x26];
const XSAVEOPT: &[u8] = &[0x0f, 0xae, 0x36];
const XSAVEOPT64: &[u8] = &[0x48, 0x0f, 0xae, 0x36];
const XSAVEC: &[u8] = &[0x0f, 0xc7, 0x26];
const XSAVEC64: &[u8] = &[0x48, 0x0f, 0xc7, 0x26];
/// From `[rdi]`, where the saving ones use `[rsi]`.
const XRSTOR: &[u8] = &[0x0f, 0xae, 0x2f];
const XRSTOR64: &[u8] = &[0x48, 0x0f, 0xae, 0x2f];
const FXSAVE: &[u8] = &[0x0f, 0xae, 0x06];
const FXSAVE64: &[u8] = &[0x48, 0x0f, 0xae, 0x06];
const FXRSTOR: &[u8] = &[0x0f, 0xae, 0x0f];
const FXRSTOR64: &[u8] = &[0x48, 0x0f, 0xae, 0x0f];

/// Where the area that is restored from stands in memory; the other is at 0.
const IMAGE_AT: usize = 1024;

/// An image of a random state with a valid header. Reserved parts hold noise.
fn random_memory(random: &mut Random) -> Memory {
    let mut memory = Memory([0; 2048]);
    memory.0.chunks_exact_mut(16).for_each(|slot| slot.copy_from_slice(&random.vector().to_le_bytes()));
    let area = &mut memory.0[IMAGE_AT..];
    let state = random_state(random);
    area[..416].copy_from_slice(&to_image(&state)[..416]);
    if random.below(4) == 0 {
        // Pending exceptions, inconsistent summary bits, reserved control bits.
        area[..4].copy_from_slice(&(random.bits() as u32).to_le_bytes());
    }
    area[512..576].fill(0);
    let (components, format) = (random.below(4), random.below(4));
    if random.bits() & 1 == 0 {
        area[512] = components as u8;
    } else {
        area[512] = (components & format) as u8;
        area[520..528].copy_from_slice(&(1 << 63 | format).to_le_bytes());
    }
    // The header of the area that is saved to.
    memory.0[512..576].fill(0);
    memory.0[512] = random.below(4) as u8;
    memory
}

/// Compares `times` runs. The processor may report a component as in use that is in its initial configuration (a context
/// switch can do that; SDM vol. 1, 13.6); such runs are left out, and their number is the result.
fn compare_sequence(sequence: &[&[u8]], seed: u64, times: u32) -> u32 {
    let (mut left_out, mut vendor) = (0, Counts::default());
    let (mut page, mut random) = (Page::new(), Random::new(seed));
    let bytes = sequence.concat();
    page.place(&bytes);
    for _ in 0..times {
        let mut state = random_state(&mut random);
        state.x87.fsw &= !fsw::EXCEPTIONS | state.x87.fcw;
        let before = to_image(&state);
        let mut memory = random_memory(&mut random);
        let address = &raw const memory as u64;
        let mut gpr = [0; 16];
        (gpr[0], gpr[1], gpr[6], gpr[7]) = (random.below(4), 1, address, address + IMAGE_AT as u64);
        let mut context = Context::new();
        (context.fx, context.gpr, context.flags) = (before, gpr, 2);
        let start = memory.clone();
        let rip = page.address();
        let mut mock = Mock { gpr, address, rip, ..Mock::new(memory.clone()) };
        // SAFETY: both areas lie in `memory` and are long and aligned enough; the images are valid.
        unsafe { context.run(&page) };
        let mut silicon_memory = std::hint::black_box(&mut memory).clone();
        for code in sequence {
            let insn = decode(code, Bits::B64, &Features::all()).expect("an instruction");
            mock.base = if insn.mem.base == 7 { IMAGE_AT } else { 0 };
            execute(&mut state, &Control::LONG, &HostFp, &insn, &mut mock).expect("no fault");
        }
        let (theirs, ours) = (silicon_memory.0[512], mock.memory.0[512]);
        if theirs != ours && theirs & ours == ours {
            left_out += 1;
            continue;
        }
        let mut silicon = context.fx;
        vendor.mask(&mut silicon);
        vendor.pointers(&mut silicon, &to_image(&state));
        if silicon_memory.0[MASK] != start.0[MASK] {
            vendor.mask(&mut silicon_memory.0);
        }
        let mut differences = image_differences(&before, &silicon, &to_image(&state));
        // XGETBV on the host tells of components that are not offered here.
        if mock.gpr[0] != context.gpr[0] & 3 {
            differences.push(format!("rax {:#x} ours {:#x}", context.gpr[0], mock.gpr[0]));
        }
        for (at, (theirs, ours)) in silicon_memory.0.iter().zip(&mock.memory.0).enumerate() {
            if theirs != ours {
                let old = start.0[at];
                differences.push(format!("byte {at}: {old:02x} -> silicon {theirs:02x}, ours {ours:02x}"));
            }
        }
        assert!(
            differences.is_empty(),
            "{} rfbm {} header {} of {}\n    {}",
            hex(&bytes),
            gpr[0],
            hex(&start.0[512..528]),
            hex(&start.0[IMAGE_AT + 512..IMAGE_AT + 528]),
            differences.join("\n    ")
        );
    }
    left_out
}

#[test]
fn fxsave_and_fxrstor_agree_with_the_processor() {
    for sequence in
        [&[FXSAVE][..], &[FXSAVE64], &[FXRSTOR], &[FXRSTOR64], &[FXRSTOR64, FXSAVE], &[FXRSTOR, FXSAVE64]]
    {
        assert_eq!(compare_sequence(sequence, 1, 2000), 0);
    }
}

#[test]
fn xsave_agrees_with_the_processor() {
    for save in [XSAVE, XSAVE64, XSAVEOPT, XSAVEOPT64, XSAVEC, XSAVEC64] {
        assert_eq!(compare_sequence(&[save], 2, 2000), 0);
    }
}

#[test]
fn xrstor_agrees_with_the_processor() {
    for restore in [XRSTOR, XRSTOR64] {
        assert_eq!(compare_sequence(&[restore], 3, 4000), 0);
    }
}

/// Components that XRSTOR initialised are not in use afterwards. XSAVEOPT is left out: after XRSTOR the processor also
/// makes the modified optimisation.
#[test]
fn the_init_optimisation_agrees_with_the_processor() {
    for save in [XSAVE64, XSAVEC64, XSAVEC, XSAVE] {
        let left_out = compare_sequence(&[XRSTOR64, save], 4, 4000);
        println!("{left_out} runs left out");
        assert!(left_out < 2000, "the processor hardly tracks what is in use");
    }
}

#[test]
fn bad_headers_and_reserved_bits_fault() {
    let cases: &[(usize, u8)] = &[(512, 4), (519, 0x80), (520, 1), (535, 1), (27, 1)];
    for &(at, value) in cases {
        let mut random = Random::new(5);
        let mut memory = Memory([0; 2048]);
        memory.0[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
        memory.0[at] = value;
        let mut state = random_state(&mut random);
        let before: VectorState = state.clone();
        let mut gpr = [0; 16];
        gpr[0] = 3;
        let mut mock = Mock { gpr, ..Mock::new(memory) };
        let insn = decode(XRSTOR, Bits::B64, &Features::all()).expect("an instruction");
        let outcome = execute(&mut state, &Control::LONG, &HostFp, &insn, &mut mock);
        assert_eq!(outcome, Err(VectorException::GeneralProtection.into()), "byte {at}");
        assert_eq!(state, before);
        mock.memory.0[at] = 0;
        mock.memory.0[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
        assert_eq!(execute(&mut state, &Control::LONG, &HostFp, &insn, &mut mock), Ok(()));
        mock.address += 16;
        let outcome = execute(&mut state, &Control::LONG, &HostFp, &insn, &mut mock);
        assert_eq!(outcome, Err(VectorException::GeneralProtection.into()), "misaligned");
    }
}
