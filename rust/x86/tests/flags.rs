//! The flag table against iced-x86's, over the whole opcode space.

mod support;

use iced_x86::{Decoder, DecoderOptions, Instruction, RflagsBits};
use support::{Disagreements, MODES, Noise, hex, opcode_space, vex_space};
use trapgate_x86::class::class;
use trapgate_x86::columns::{Row, decode_rows};
use trapgate_x86::decode::decode;
use trapgate_x86::features::Features;
use trapgate_x86::flags::{FlagUse, flag_use};
use trapgate_x86::insn::{Bits, DecodeError, Insn, Operand};
use trapgate_x86::model::X86_64_V2;
use trapgate_x86::op::Op;
use trapgate_x86::regs::rflags;

/// The flags that both know: iced leaves TF, NT, IOPL and those above AC out.
const KNOWN: u32 = (rflags::STATUS | rflags::DF | rflags::IF | rflags::AC) as u32;

fn convert(bits: u32) -> u32 {
    [
        (RflagsBits::OF, rflags::OF),
        (RflagsBits::SF, rflags::SF),
        (RflagsBits::ZF, rflags::ZF),
        (RflagsBits::AF, rflags::AF),
        (RflagsBits::CF, rflags::CF),
        (RflagsBits::PF, rflags::PF),
        (RflagsBits::DF, rflags::DF),
        (RflagsBits::IF, rflags::IF),
        (RflagsBits::AC, rflags::AC),
    ]
    .iter()
    .filter(|(theirs, _)| bits & theirs != 0)
    .fold(0, |all, (_, ours)| all | *ours as u32)
}

fn theirs(insn: &Instruction) -> FlagUse {
    FlagUse {
        read: convert(insn.rflags_read()),
        written: convert(insn.rflags_written()),
        cleared: convert(insn.rflags_cleared()),
        set: convert(insn.rflags_set()),
        undefined: convert(insn.rflags_undefined()),
        kept: 0,
    }
}

fn known(mut flags: FlagUse) -> FlagUse {
    for field in
        [&mut flags.read, &mut flags.written, &mut flags.cleared, &mut flags.set, &mut flags.undefined]
    {
        *field &= KNOWN;
    }
    flags.kept = 0;
    flags
}

/// Disagreements that are explained.
fn explained(ours: &Insn) -> bool {
    match ours.op {
        // iced treats an operation of a register with itself as a constant; the data flow says the same with more work.
        Op::Sub | Op::Xor => {
            matches!(ours.operands[0], Operand::Gpr { .. } | Operand::High { .. })
                && ours.operands[0] == ours.operands[1]
        }
        // iced reduces the count modulo 9 or 17; the manual defines OF by the count as masked to five bits.
        Op::Rcl | Op::Rcr => ours.opsize <= 2 && ours.imm & 0x1f > 8 * u64::from(ours.opsize),
        // iced gives the flags of VMX root operation; offered here as a call of the monitor, which keeps them.
        Op::Vmcall => true,
        _ => false,
    }
}

fn compare(bytes: &[u8; 16], bits: Bits, found: &mut Disagreements) {
    let width = match bits {
        Bits::B16 => 16,
        Bits::B32 => 32,
        Bits::B64 => 64,
    };
    let insn = Decoder::with_ip(width, &bytes[..15], 0, DecoderOptions::NONE).decode();
    let Ok(ours) = decode(bytes, bits, &Features::all()) else { return };
    if insn.is_invalid() || explained(&ours) {
        return;
    }
    found.compared += 1;
    let (ours_flags, their_flags) = (known(flag_use(&ours)), theirs(&insn));
    if ours_flags != their_flags {
        let kind = format!("{:?}: {their_flags:?}, here {ours_flags:?}", ours.op);
        found.add(kind, format!("{} in {bits:?} ({insn})", hex(&bytes[..usize::from(ours.len)])));
    }
}

#[test]
fn flags_are_those_of_iced() {
    let mut found = Disagreements::default();
    for bits in MODES {
        opcode_space(bits, |bytes| compare(bytes, bits, &mut found));
        vex_space(bits, |bytes| compare(bytes, bits, &mut found));
    }
    found.assert_none();
}

/// Bulk decode takes a short way to class and flags; it must end where full decode does.
fn compare_columns(bytes: &[u8; 16], bits: Bits, features: &Features, found: &mut Disagreements) {
    found.compared += 1;
    let full = decode(&bytes[..15], bits, features);
    // One instruction where there is one; else its first byte is what counts.
    let end = full.map_or(15, |insn| usize::from(insn.len));
    let mut first = None;
    decode_rows(&bytes[..end], bits, features, |row| {
        first.get_or_insert(row);
    });
    let row = first.expect("one row at least");
    let full = match full {
        Ok(insn) => {
            let flags = flag_use(&insn);
            (insn.op as u16, insn.len, class(&insn) as u8, flags.read, flags.modified())
        }
        Err(DecodeError::Truncated) => (Row::TRUNCATED, 1, Row::NO_CLASS, 0, 0),
        Err(_) => (Row::INVALID, 1, Row::NO_CLASS, 0, 0),
    };
    let short = (row.mnemonic, row.length, row.class, row.flags_read, row.flags_written);
    if short != full {
        found.add(format!("{full:?}, in bulk {short:?}"), format!("{} in {bits:?}", hex(bytes)));
    }
}

#[test]
fn bulk_decode_agrees_with_full_decode() {
    let (mut found, mut noise) = (Disagreements::default(), Noise(1));
    for bits in MODES {
        // A quarter of the space, which by noise.
        opcode_space(bits, |bytes| {
            if noise.next() & 3 == 0 {
                compare_columns(bytes, bits, &X86_64_V2.features, &mut found);
                compare_columns(bytes, bits, &Features::all(), &mut found);
            }
        });
    }
    found.assert_none();
}
