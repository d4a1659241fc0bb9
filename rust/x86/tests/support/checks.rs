//! What must hold of the decoder for any bytes, as functions of the bytes, so that a fuzzer can drive them as well.

use super::hex;
use trapgate_x86::columns::{Row, decode_columns};
use trapgate_x86::decode::{decode, decode_layout};
use trapgate_x86::features::Features;
use trapgate_x86::insn::{Bits, DecodeError};
use trapgate_x86::layout::{Layout, MAX_LENGTH};
use trapgate_x86::model::X86_64_V2;

/// What must hold for every byte string.
pub fn check(bytes: &[u8], bits: Bits, features: &Features) {
    let whole = decode(bytes, bits, features);
    match whole {
        Ok(insn) => {
            assert!((1..=bytes.len().min(MAX_LENGTH)).contains(&usize::from(insn.len)));
            let exact = &bytes[..usize::from(insn.len)];
            assert_eq!(decode(exact, bits, features), whole, "what follows matters: {}", hex(bytes));
            for end in 0..exact.len() {
                let cut = decode(&exact[..end], bits, features);
                assert_eq!(cut, Err(DecodeError::Truncated), "{} cut at {end}", hex(exact));
            }
            check_layout(exact, bits, features);
        }
        Err(DecodeError::Truncated) => assert!(bytes.len() < MAX_LENGTH, "{}", hex(bytes)),
        Err(DecodeError::TooLong) => assert!(bytes.len() >= MAX_LENGTH, "{}", hex(bytes)),
        Err(DecodeError::Invalid) => {
            let mut longer = bytes.to_vec();
            longer.extend([0x90; 4]);
            assert_eq!(decode(&longer, bits, features), Err(DecodeError::Invalid), "{}", hex(bytes));
        }
    }
}

/// The parts that the layout names follow each other and fill the instruction.
fn check_layout(bytes: &[u8], bits: Bits, features: &Features) {
    let layout = Layout::scan(bytes, bits).expect("decoded above");
    assert_eq!(decode_layout(bytes, &layout, features), decode(bytes, bits, features));
    assert!(layout.head <= layout.opcode_at);
    assert_eq!(bytes[usize::from(layout.opcode_at)], layout.opcode);
    let mut end = layout.opcode_at + 1;
    let parts = [
        (layout.modrm_at, u8::from(layout.modrm_at != 0)),
        (layout.sib_at, u8::from(layout.sib_at != 0)),
        (layout.disp_at, layout.disp_size),
        (layout.imm_at, layout.imm_size),
        (layout.imm2_at, layout.imm2_size),
    ];
    for (at, size) in parts {
        if size != 0 {
            assert_eq!(at, end, "{layout:?}");
            end += size;
        }
    }
    assert_eq!(end, layout.len, "{layout:?}");
}

/// Bulk rows cover the code.
pub fn check_columns(code: &[u8], bits: Bits) {
    let mut next = 0;
    for row in decode_columns(code, bits, &X86_64_V2.features) {
        assert_eq!(row.offset, next);
        assert!(row.length >= 1);
        assert!(row.mnemonic < Row::TRUNCATED || row.length == 1);
        next += u64::from(row.length);
    }
    assert_eq!(next, code.len() as u64);
}
