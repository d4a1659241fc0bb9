//! Bytes of an instruction for where it lies, at times behind a prefix that has no effect on it.

use iced_x86::{Decoder, DecoderOptions, Encoder, Instruction, Mnemonic, OpKind};

use crate::random::Random;

/// Prefixes that may be without effect: segments, operand and address size, REPNE, REP, REX.
const PREFIXES: [u8; 12] = [0x26, 0x2e, 0x36, 0x3e, 0x66, 0x66, 0x67, 0xf2, 0xf3, 0x40, 0x48, 0x4f];

/// A prefix to try, for one instruction in eight.
pub fn prefix(random: &mut Random) -> Option<u8> {
    random.one_in(8).then(|| random.pick(&PREFIXES))
}

/// Encodes an instruction at `rip`. The prefix is left out if it would make another instruction of it.
pub fn assemble(insn: &Instruction, rip: u64, prefix: Option<u8>, bits: u32) -> Option<Vec<u8>> {
    if let Some(prefix) = prefix {
        let mut bytes = vec![prefix];
        bytes.extend(encode(insn, rip.wrapping_add(1), bits)?);
        if is_without_effect(&bytes, rip, bits) {
            return Some(bytes);
        }
    }
    encode(insn, rip, bits)
}

fn encode(insn: &Instruction, rip: u64, bits: u32) -> Option<Vec<u8>> {
    let mut encoder = Encoder::new(bits);
    encoder.encode(insn, rip).ok()?;
    Some(encoder.take_buffer())
}

/// Whether the first byte can be left out.
fn is_without_effect(bytes: &[u8], rip: u64, bits: u32) -> bool {
    let decode = |bytes: &[u8], rip| Decoder::with_ip(bits, bytes, rip, DecoderOptions::NONE).decode();
    let (with, without) = (decode(bytes, rip), decode(&bytes[1..], rip.wrapping_add(1)));
    // REPNE and REP select instructions of the other maps, some of them later than any list, and are hints of
    // transactional memory before stores.
    let repeats = matches!(bytes[0], 0xf2 | 0xf3);
    // CS is not writable outside 64-bit mode, which masked moves find out or not if they write nothing.
    let masked = bytes[0] == 0x2e && is_masked_store(&with);
    let memory = (0..with.op_count()).any(|n| with.op_kind(n) == OpKind::Memory);
    let hint = repeats && (with.is_string_instruction() || memory || bytes.contains(&0x0f));
    !hint && !masked && bytes.len() <= 15 && with.len() == without.len() + 1 && same(&with, &without)
}

fn is_masked_store(insn: &Instruction) -> bool {
    use Mnemonic::*;
    matches!(
        insn.mnemonic(),
        Maskmovq | Maskmovdqu | Vmaskmovdqu | Vmaskmovps | Vmaskmovpd | Vpmaskmovd | Vpmaskmovq
    )
}

/// Whether two instructions do the same: everything but the prefixes that were there.
fn same(a: &Instruction, b: &Instruction) -> bool {
    let memory = |insn: &Instruction| {
        let base = (insn.memory_base(), insn.memory_index(), insn.memory_index_scale());
        (base, insn.memory_displacement64(), segment(insn))
    };
    // All but FS and GS are the same: ignored or flat.
    fn segment(insn: &Instruction) -> bool {
        insn.memory_segment().number() >= 4
    }
    let operand = |n: u32| {
        a.op_kind(n) == b.op_kind(n)
            && match a.op_kind(n) {
                OpKind::Register => a.op_register(n) == b.op_register(n),
                OpKind::Memory => memory(a) == memory(b),
                OpKind::NearBranch64 | OpKind::NearBranch32 | OpKind::NearBranch16 => {
                    a.near_branch_target() == b.near_branch_target()
                }
                _ => a.try_immediate(n).ok() == b.try_immediate(n).ok(),
            }
    };
    a.code() == b.code() && (0..a.op_count()).all(operand)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_prefixes_without_effect_are_kept() {
        for (bytes, expected) in [
            (&[0x26, 0x48, 0x01, 0xd8][..], true),
            (&[0x66, 0x48, 0x01, 0xd8], true),
            (&[0x66, 0x01, 0xd8], false),
            (&[0x66, 0x00, 0xd8], true),
            // A REX that is not the last is ignored; one that is makes SPL of AH.
            (&[0x4f, 0x66, 0x01, 0xd8], true),
            (&[0x40, 0x00, 0xe0], false),
            (&[0x67, 0x01, 0xd8], true),
            (&[0x67, 0x01, 0x18], false),
            (&[0xf3, 0x01, 0xd8], true),
            (&[0xf3, 0x0f, 0xbc, 0xc3], false),
            (&[0xf3, 0x01, 0x18], false),
            (&[0xf3, 0xa4], false),
        ] {
            assert_eq!(is_without_effect(bytes, 0x1000, 64), expected, "{bytes:x?}");
        }
    }
}
