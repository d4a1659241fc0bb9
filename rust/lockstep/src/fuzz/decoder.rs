//! Any bytes as instructions: the layout scan, the decoder and an independent one agree, and nothing panics.

use trapgate_x86::class::{class, treatment};
use trapgate_x86::columns::decode_columns;
use trapgate_x86::decode::{decode, decode_layout};
use trapgate_x86::facts;
use trapgate_x86::features::Features;
use trapgate_x86::flags::flag_use;
use trapgate_x86::insn::{Bits, DecodeError};
use trapgate_x86::layout::{Layout, MAX_LENGTH};
use trapgate_x86::model::X86_64_V2;

use super::Input;

/// Mode, address and bytes.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let bits = input.pick(&[Bits::B64, Bits::B32, Bits::B16]);
    let ip = input.u64();
    let bytes = input.rest();
    for features in [Features::all(), X86_64_V2.features] {
        one(bytes, bits, &features);
    }
    independent(bytes, bits, ip);
    let covered: u64 =
        decode_columns(bytes, bits, &X86_64_V2.features).iter().map(|row| u64::from(row.length)).sum();
    assert_eq!(covered, bytes.len() as u64, "rows cover the code");
}

/// The instruction at the start.
fn one(bytes: &[u8], bits: Bits, features: &Features) {
    let layout = Layout::scan(bytes, bits);
    match decode(bytes, bits, features) {
        Ok(insn) => {
            let layout = layout.expect("what decodes has a layout");
            assert_eq!(layout.len, insn.len);
            assert_eq!(decode_layout(bytes, &layout, features), Ok(insn));
            let len = usize::from(insn.len);
            assert!((1..=MAX_LENGTH).contains(&len) && len <= bytes.len());
            assert_eq!(decode(&bytes[..len], bits, features), Ok(insn), "what follows does not matter");
            assert_eq!(decode(&bytes[..len - 1], bits, features), Err(DecodeError::Truncated));
            let flags = flag_use(&insn);
            assert_eq!(flags.killed() & !flags.modified(), 0);
            let _ = (class(&insn), treatment(&insn));
        }
        Err(DecodeError::Truncated) => assert!(bytes.len() < MAX_LENGTH),
        Err(DecodeError::TooLong) => assert!(bytes.len() >= MAX_LENGTH),
        Err(DecodeError::Invalid) => {}
    }
}

/// The library behind the facts, which decodes by itself, on the processor that has everything.
fn independent(bytes: &[u8], bits: Bits, ip: u64) {
    let theirs = facts::facts(bytes, bits, ip);
    match decode(bytes, bits, &Features::all()) {
        Ok(insn) => {
            let theirs = theirs.unwrap_or_else(|| panic!("{insn:?} is unknown there"));
            assert_eq!(theirs.len, insn.len, "{}", theirs.text);
        }
        // It knows extensions that no model offers.
        Err(DecodeError::Invalid) => {}
        Err(error) => assert_eq!(theirs.map(|facts| facts.text), None, "{error}"),
    }
}

/// Some instructions of each kind.
pub fn seeds() -> Vec<Vec<u8>> {
    let codes: [&[u8]; 8] = [
        &[0x48, 0x89, 0x84, 0xcb, 0x78, 0x56, 0x34, 0x12],
        &[0xf0, 0x48, 0x0f, 0xb1, 0x0d, 0, 0, 0, 0],
        &[0x66, 0x0f, 0x3a, 0x0f, 0xc1, 0x05],
        &[0xc4, 0xe2, 0x79, 0x00, 0xc1],
        &[0xd9, 0xf6],
        &[0x65, 0x67, 0xf3, 0xa4],
        &[0xea, 0, 0, 0, 0, 0x10, 0],
        &[0x48, 0xb8, 1, 2, 3, 4, 5, 6, 7, 8],
    ];
    codes
        .iter()
        .flat_map(|code| (0..3).map(|mode| [&[mode, 0, 0, 0, 0, 0, 0, 0, 0], *code].concat()))
        .collect()
}
