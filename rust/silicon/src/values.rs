//! Values for registers and memory operands: random, but such that the instruction has something to do.

use iced_x86::{MemorySize, Mnemonic, OpKind};

use crate::case::{FX, RSP, State, fx};
use crate::catalog::Group;
use crate::prepare::Maker;
use crate::random::Random;

/// RFLAGS bits.
pub mod flag {
    pub const CF: u64 = 1 << 0;
    pub const PF: u64 = 1 << 2;
    pub const AF: u64 = 1 << 4;
    pub const ZF: u64 = 1 << 6;
    pub const SF: u64 = 1 << 7;
    pub const IF: u64 = 1 << 9;
    pub const DF: u64 = 1 << 10;
    pub const OF: u64 = 1 << 11;
    pub const NT: u64 = 1 << 14;
    pub const RF: u64 = 1 << 16;
    pub const ID: u64 = 1 << 21;
    pub const STATUS: u64 = CF | PF | AF | ZF | SF | OF;
}

/// Exception flags, as in FSW, and masks, as in FCW.
const EXCEPTIONS: u16 = 0x3f;

/// Random registers. TF and AC stay clear; no x87 exception is pending but in one case of 24.
pub(crate) fn state(state: &mut State, random: &mut Random, group: Group) {
    for value in &mut state.gpr {
        *value = random.integer();
    }
    let kept = if random.one_in(8) { flag::NT | flag::ID } else { 0 };
    state.rflags = random.bits() & (flag::STATUS | flag::DF | kept) | flag::IF | 2;
    for n in 0..16 {
        state.set_xmm(n, random.vector());
        let upper = random.vector();
        state.ymm_high[n] = if crate::has_upper_halves() { upper } else { 0 };
    }
    state.set_mxcsr(mxcsr(random));
    x87(state, random, group);
}

/// Any MXCSR: rounding, DAZ and FTZ at random, in a quarter with unmasked exceptions.
fn mxcsr(random: &mut Random) -> u32 {
    let masks = if random.one_in(4) { random.bits() as u32 & 0x1f80 } else { 0x1f80 };
    let modes = if random.one_in(2) { 0 } else { random.bits() as u32 & 0xe040 };
    masks | modes | random.bits() as u32 & if random.one_in(2) { 0x3f } else { 0 }
}

fn x87(state: &mut State, random: &mut Random, group: Group) {
    let masked = !random.one_in(3);
    let control = random.bits() as u16 & 0x1f00 | 0x40;
    let fcw = control | if masked { EXCEPTIONS } else { random.bits() as u16 & EXCEPTIONS };
    let top = random.below(8) as u16;
    // TOP, the condition codes, SF, and exceptions that are masked.
    let mut fsw = top << 11 | random.bits() as u16 & 0x4740;
    fsw |= random.bits() as u16 & fcw & EXCEPTIONS;
    if group != Group::Integer && random.one_in(24) {
        fsw |= random.bits() as u16 & EXCEPTIONS;
    }
    if fsw & !fcw & EXCEPTIONS != 0 {
        // ES and B.
        fsw |= 0x8080;
    }
    state.set_fx_u16(fx::FCW, fcw);
    state.set_fx_u16(fx::FSW, fsw);
    // Any tags; all empty; all valid; or a stack that is neither full nor empty at its ends.
    state.fx[fx::FTW] = match random.below(6) {
        0 => random.bits() as u8,
        1 => 0,
        2 => 0xff,
        _ => 0x3fu8.rotate_left(u32::from(top)),
    };
    state.set_fx_u16(fx::FOP, random.bits() as u16 & 0x7ff);
    let pointers: [u8; 16] = std::array::from_fn(|i| if i % 8 < 5 { random.bits() as u8 } else { 0 });
    state.fx[fx::FIP..fx::FIP + 16].copy_from_slice(&pointers);
    for i in 0..8 {
        let at = fx::ST + 16 * i;
        state.fx[at..at + 10].copy_from_slice(&random.extended());
    }
}

/// A small x87 argument, for the instructions that are defined or exact only there.
fn small_extended(random: &mut Random) -> [u8; 10] {
    let mut bytes = random.extended();
    let exponent = 0x3fff - random.below(70) as u16;
    bytes[7] |= 0x80;
    bytes[8..].copy_from_slice(&(exponent | (random.below(2) << 15) as u16).to_le_bytes());
    bytes
}

/// Values of operands whose places are settled.
pub(crate) fn operands(maker: &mut Maker, group: Group) {
    memory_operand(maker);
    match group {
        Group::Integer => integer(maker),
        Group::X87 => x87_operands(maker),
        Group::Vector | Group::Avx => vector(maker),
    }
}

/// The ModRM operand, by its type.
fn memory_operand(maker: &mut Maker) {
    if maker.form.is_none() {
        return;
    }
    let (target, size) = (maker.target, maker.size());
    let random = &mut *maker.random;
    match maker.insn.memory_size() {
        MemorySize::Float32 => {
            let value = random.single();
            maker.poke(target, &value.to_le_bytes());
        }
        MemorySize::Float64 => {
            let value = random.double();
            maker.poke(target, &value.to_le_bytes());
        }
        MemorySize::Float80 => {
            let value = random.extended();
            maker.poke(target, &value);
        }
        MemorySize::Bcd => {
            let mut digits: [u8; 10] =
                std::array::from_fn(|_| (random.below(10) << 4 | random.below(10)) as u8);
            digits[9] = random.pick(&[0, 0x80]);
            if random.one_in(6) {
                digits[random.below(10) as usize] = random.bits() as u8;
            }
            maker.poke(target, &digits);
        }
        _ => match size {
            1..=8 => {
                let value = random.integer().to_le_bytes();
                maker.poke(target, &value[..size as usize]);
            }
            16 | 32 => {
                for half in 0..size / 16 {
                    let value = maker.random.vector().to_le_bytes();
                    maker.poke(target.wrapping_add(16 * half), &value);
                }
            }
            _ => {}
        },
    }
}

fn integer(maker: &mut Maker) {
    use Mnemonic::*;
    match maker.insn.mnemonic() {
        Div | Idiv => divide(maker),
        Cmpxchg if maker.random.one_in(2) => {
            // The accumulator equals the destination.
            let value = maker.operand(0);
            if !maker.is_address(0) {
                let size = maker.insn.op1_register().size();
                let mask = u64::MAX >> (64 - 8 * size);
                let accumulator = &mut maker.case.state.gpr[0];
                *accumulator = *accumulator & !mask | value & mask;
            }
        }
        Cmpxchg8b | Cmpxchg16b if maker.random.one_in(2) => {
            let gpr = maker.case.state.gpr;
            let (at, half) = (maker.target, maker.size() / 2);
            maker.poke(at, &gpr[0].to_le_bytes()[..half as usize]);
            maker.poke(at.wrapping_add(half), &gpr[2].to_le_bytes()[..half as usize]);
        }
        Popf | Popfd | Popfq => {
            // TF and AC stay clear.
            let value = maker.random.bits() & !(1 << 8 | 1 << 18);
            let at = maker.case.state.gpr[RSP];
            maker.poke(at, &value.to_le_bytes());
        }
        Enter if maker.random.one_in(2) => {
            let (size, level) = (maker.random.below(256), maker.random.below(8));
            maker.insn.set_immediate_u64(0, size);
            maker.insn.set_immediate_u64(1, level);
        }
        Bound if maker.random.one_in(2) => {
            // Bounds that most indices are within.
            let half = maker.size() / 2;
            let (low, high) = (1u64 << (8 * half - 1), (1u64 << (8 * half - 1)) - 1);
            let at = maker.target;
            maker.poke(at, &low.to_le_bytes()[..half as usize]);
            maker.poke(at.wrapping_add(half), &high.to_le_bytes()[..half as usize]);
        }
        Bextr | Bzhi if maker.random.one_in(2) => {
            // A start and a length, or an index, near the operand's ends.
            let (start, length) = (maker.random.below(70), maker.random.below(70));
            let control = start | length << 8 | maker.random.bits() << 16;
            maker.set_operand(2, control);
        }
        Bsf | Bsr | Popcnt | Lzcnt | Tzcnt | Blsr | Blsi | Blsmsk if maker.random.one_in(6) => {
            maker.set_operand(1, 0)
        }
        _ => {}
    }
    if maker.insn.is_string_instruction() {
        strings(maker);
    }
}

/// Half of the divisions fit; the others mostly raise #DE.
fn divide(maker: &mut Maker) {
    let size = maker.insn.memory_size().size();
    let size =
        if maker.insn.op0_kind() == OpKind::Register { maker.insn.op0_register().size() } else { size };
    let mask = u64::MAX >> (64 - 8 * size);
    let sign = |value: u64| (value << (64 - 8 * size)) as i64 >> 63;
    let signed = maker.insn.mnemonic() == Mnemonic::Idiv;
    let low = maker.case.state.gpr[0] & mask;
    let high = match maker.random.below(4) {
        0 => return,
        1 if signed => sign(low) as u64,
        1 => 0,
        _ => {
            let divisor = maker.operand(0);
            let bound = if signed { divisor.min(divisor.wrapping_neg() & mask) / 2 } else { divisor };
            let value = if bound == 0 { 0 } else { maker.random.below(bound) };
            if signed && maker.random.one_in(2) { value.wrapping_neg() } else { value }
        }
    };
    let gpr = &mut maker.case.state.gpr;
    let (register, shift) = if size == 1 { (0, 8) } else { (2, 0) };
    let mask = mask << shift;
    let value = gpr[register] & !mask | high << shift & mask;
    if !maker.is_address(register) {
        maker.case.state.gpr[register] = value;
    }
}

/// Comparisons see equal data for a while.
fn strings(maker: &mut Maker) {
    if !matches!(
        maker.insn.mnemonic(),
        Mnemonic::Cmpsb
            | Mnemonic::Cmpsw
            | Mnemonic::Cmpsd
            | Mnemonic::Cmpsq
            | Mnemonic::Scasb
            | Mnemonic::Scasw
            | Mnemonic::Scasd
            | Mnemonic::Scasq
    ) || maker.random.one_in(4)
    {
        return;
    }
    let byte = maker.random.bits() as u8;
    maker.case.window.fill(byte);
    maker.case.state.gpr[0] = u64::from_le_bytes([byte; 8]);
    for _ in 0..8 {
        let at = maker.random.below(crate::space::WINDOW as u64) as usize;
        maker.case.window[at] ^= 1 << maker.random.below(8);
    }
    // One close to where the comparison begins.
    let gpr = &maker.case.state.gpr;
    let near = gpr[7].wrapping_sub(maker.case.window_at) & 0xffff_ffff;
    let near = near.wrapping_add(maker.random.below(64)).wrapping_sub(32) as usize;
    if let Some(byte) = maker.case.window.get_mut(near) {
        *byte ^= 1;
    }
}

fn x87_operands(maker: &mut Maker) {
    use Mnemonic::*;
    let small =
        matches!(maker.insn.mnemonic(), F2xm1 | Fyl2xp1 | Fsin | Fcos | Fptan | Fsincos | Fyl2x | Fpatan);
    if small && maker.random.one_in(2) {
        let value = small_extended(maker.random);
        maker.case.state.fx[fx::ST..fx::ST + 10].copy_from_slice(&value);
    }
}

fn vector(maker: &mut Maker) {
    use Mnemonic::*;
    match maker.insn.mnemonic() {
        Ldmxcsr | Vldmxcsr => {
            let reserved = if maker.random.one_in(6) { u32::MAX } else { 0xffff };
            let value = maker.random.bits() as u32 & reserved;
            let at = maker.target;
            maker.poke(at, &value.to_le_bytes());
        }
        Fxrstor | Fxrstor64 | Xrstor | Xrstor64 => image(maker),
        _ => {}
    }
}

/// Components that XSAVE and XRSTOR are asked for: of x87, SSE and AVX only, since the host has more.
pub(crate) const COMPONENTS: [u8; 12] = [0, 1, 2, 3, 4, 5, 6, 7, 3, 7, 7, 7];

/// A plausible image for FXRSTOR and XRSTOR.
fn image(maker: &mut Maker) {
    let mut image = State::ZERO;
    state(&mut image, maker.random, Group::Vector);
    if maker.random.one_in(8) {
        image.set_mxcsr(maker.random.bits() as u32);
    }
    let at = maker.target;
    maker.poke(at, &image.fx[..FX]);
    // The header: XSTATE_BV, XCOMP_BV and reserved bytes (SDM vol. 1, 13.4.2).
    let mut header = [0; 64];
    // Whether the place of a component that the area has not got is looked at is left to implementations.
    header[0] = if maker.aims_at_fault() { 7 } else { maker.random.pick(&COMPONENTS) };
    if maker.random.one_in(8) {
        // Never a component that the host might have, nor the bit that says that the image is compacted.
        let n = 4 + maker.random.below(60) as usize;
        header[n] |= 1 << maker.random.below(7);
    }
    maker.poke(at.wrapping_add(512), &header);
    for (n, value) in image.ymm_high.iter().enumerate() {
        maker.poke(at.wrapping_add(576 + 16 * n as u64), &value.to_le_bytes());
    }
}
