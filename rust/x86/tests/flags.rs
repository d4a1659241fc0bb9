//! The flag table against iced-x86's, over the whole opcode space.

mod support;

use iced_x86::{Decoder, DecoderOptions, Instruction, RflagsBits};
use support::{Disagreements, MODES, hex, opcode_space, vex_space};
use trapgate_x86::decode::decode;
use trapgate_x86::features::Features;
use trapgate_x86::flags::{FlagUse, flag_use};
use trapgate_x86::insn::{Bits, Insn, Operand};
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
