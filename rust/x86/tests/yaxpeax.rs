//! Our scan against yaxpeax-x86, a third opinion: validity and length over the whole opcode space.

mod support;

use support::{Disagreements, MODES, hex, opcode_space, vex_space};
use trapgate_x86::decode::decode;
use trapgate_x86::features::Features;
use trapgate_x86::insn::{Bits, DecodeError, Insn};
use trapgate_x86::op::Op;
use yaxpeax_arch::LengthedInstruction;

/// Length, and the text for a message.
type Reading = Result<(u8, String), String>;

fn theirs(bytes: &[u8], bits: Bits) -> Reading {
    match bits {
        Bits::B64 => yaxpeax_x86::long_mode::InstDecoder::default()
            .decode_slice(bytes)
            .map(|insn| (insn.len().to_const() as u8, format!("{:?}", insn.opcode())))
            .map_err(|error| format!("{error:?}")),
        Bits::B32 => yaxpeax_x86::protected_mode::InstDecoder::default()
            .decode_slice(bytes)
            .map(|insn| (insn.len().to_const() as u8, format!("{:?}", insn.opcode())))
            .map_err(|error| format!("{error:?}")),
        Bits::B16 => yaxpeax_x86::real_mode::InstDecoder::default()
            .decode_slice(bytes)
            .map(|insn| (insn.len().to_const() as u8, format!("{:?}", insn.opcode())))
            .map_err(|error| format!("{error:?}")),
    }
}

/// Encodings that the other refuses or measures otherwise, where the manual (and a processor, tried) is with us.
fn explained(bytes: &[u8; 16], bits: Bits) -> bool {
    let is_rex = |byte: u8| bits == Bits::B64 && byte & 0xf0 == 0x40;
    let is_prefix = |byte: u8| {
        matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3) || is_rex(byte)
    };
    let count = bytes.iter().take_while(|&&byte| is_prefix(byte)).count();
    let (prefixes, rest) = bytes.split_at(count);
    // A REX that another prefix follows is ignored (SDM vol. 2, 2.2.1).
    if prefixes.iter().rev().skip(1).any(|&byte| is_rex(byte)) {
        return true;
    }
    match rest {
        // VEX and EVEX after F2, F3.
        [0xc4 | 0xc5 | 0x62, ..]
            if prefixes.iter().any(|&byte| is_rex(byte) || matches!(byte, 0xf2 | 0xf3)) =>
        {
            true
        }
        // Near branches with 66 keep their length there outside 64-bit mode.
        [0xe8 | 0xe9, ..] | [0x0f, 0x80..=0x8f, ..] => bits != Bits::B64 && prefixes.contains(&0x66),
        // An alias of 80; ARPL and far JMP, which it lacks in 16-bit code.
        [0x82, ..] | [0x63, ..] | [0xea, ..] => bits != Bits::B64,
        // REX.R is ignored for segment registers.
        [0x8c | 0x8e, ..] => prefixes.last().is_some_and(|&byte| is_rex(byte)),
        // 0F 0D is a reserved no-operation in the register form.
        [0x0f, 0x0d, modrm, ..] => *modrm >= 0xc0,
        // XABORT and XBEGIN are C6 F8 and C7 F8 only.
        [0xc6 | 0xc7, modrm, ..] => *modrm >= 0xc0 && *modrm != 0xf8,
        // F3 makes it another instruction (the manual's NFx).
        [0x0f, 0xc7, modrm, ..] => *modrm >= 0xf0 && *modrm < 0xf8,
        _ => false,
    }
}

/// What the other accepts: instructions of vendors and extensions that no model offers, EVEX, and a few whose VEX.vvvv,
/// ModRM.reg or registers are #UD (tried on a processor).
fn accepted_only_there(opcode: &str, bytes: &[u8; 16]) -> bool {
    let evex = bytes[..6].contains(&0x62);
    let lax = opcode.contains("GATHER") || ["RORX", "VLDMXCSR", "VSTMXCSR", "VPSLLW"].contains(&opcode);
    evex || lax || !Op::ALL.iter().any(|op| op.name().eq_ignore_ascii_case(opcode))
}

fn compare(bytes: &[u8; 16], bits: Bits, found: &mut Disagreements) {
    if explained(bytes, bits) {
        return;
    }
    found.compared += 1;
    let example = || format!("{} in {bits:?}", hex(&bytes[..15]));
    match (decode(bytes, bits, &Features::all()), theirs(&bytes[..15], bits)) {
        (Ok(ours), Ok((length, text))) if ours.len != length => {
            found.add(format!("{:?} {text}: length {length}, here {}", ours.op, ours.len), example());
        }
        (Ok(ours), Err(error)) if !lacking_there(&ours) => {
            found.add(format!("{:?} is {error} there", ours.op), example());
        }
        (Err(DecodeError::Invalid), Ok((_, text))) if !accepted_only_there(&text, bytes) => {
            found.add(format!("{text} is invalid here"), example());
        }
        _ => {}
    }
}

/// Instructions that the other does not have in every mode or form.
fn lacking_there(ours: &Insn) -> bool {
    use trapgate_x86::op::Op::*;
    matches!(
        ours.op,
        Serialize | Vgf2p8affineinvqb | Vgf2p8affineqb | Vgf2p8mulb | Vpclmulqdq
            // VEX.W is ignored by the processor.
            | Vpextrb | Vpextrw
    )
}

#[test]
fn the_opcode_space_has_the_same_lengths() {
    let mut found = Disagreements::default();
    for bits in MODES {
        opcode_space(bits, |bytes| compare(bytes, bits, &mut found));
        vex_space(bits, |bytes| compare(bytes, bits, &mut found));
    }
    found.assert_none();
}
