//! Any bytes, cut anywhere: the decoder never panics, asks for more only while more can help, and looks at 15 bytes at most.

mod support;

use proptest::prelude::*;
use support::checks::{check, check_columns};
use support::{MODES, Noise, opcode_space};
use trapgate_x86::decode::decode;
use trapgate_x86::facts::{facts, text};
use trapgate_x86::features::Features;
use trapgate_x86::insn::{Bits, DecodeError};
use trapgate_x86::layout::MAX_LENGTH;
use trapgate_x86::model::{X86_64_V2, X86_64_V3};

fn bits() -> impl Strategy<Value = Bits> {
    prop::sample::select(MODES.to_vec())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes(bytes in prop::collection::vec(any::<u8>(), 0..24), bits in bits()) {
        check(&bytes, bits, &Features::all());
        check(&bytes, bits, &X86_64_V2.features);
    }

    #[test]
    fn random_bytes_after_prefixes(
        prefixes in prop::collection::vec(
            prop::sample::select(vec![0x66u8, 0x67, 0xf0, 0xf2, 0xf3, 0x2e, 0x64, 0x41, 0x48, 0x4f]), 0..16),
        rest in prop::collection::vec(any::<u8>(), 0..18),
        bits in bits(),
    ) {
        check(&[prefixes, rest].concat(), bits, &Features::all());
    }

    #[test]
    fn text_and_facts_of_anything(bytes in prop::collection::vec(any::<u8>(), 0..18), bits in bits(), ip in any::<u64>()) {
        let facts = facts(&bytes, bits, ip);
        prop_assert_eq!(facts.map(|facts| facts.text), text(&bytes, bits, ip));
    }

    #[test]
    fn random_code(code in prop::collection::vec(any::<u8>(), 0..400), bits in bits()) {
        check_columns(&code, bits);
    }
}

#[test]
fn every_encoding_cut_anywhere() {
    // One in thirty of the space, which one by noise, so that each opcode and prefix is met.
    let mut noise = Noise(1);
    for bits in MODES {
        opcode_space(bits, |bytes| {
            if noise.next() % 30 == 0 {
                check(bytes, bits, &Features::all());
            }
        });
    }
}

#[test]
fn fifteen_bytes_and_no_more() {
    // Prefixes before an instruction that they do not change the validity of.
    let bodies: [&[u8]; 5] =
        [&[0x90], &[0x01, 0xd8], &[0x0f, 0xaf, 0xc3], &[0x81, 0xc0, 1, 2, 3, 4], &[0xc5, 0xf8, 0x28, 0xc1]];
    for body in bodies {
        for bits in [Bits::B32, Bits::B64] {
            let padded = |count: usize| [vec![0x3e; count], body.to_vec()].concat();
            let longest = MAX_LENGTH - body.len();
            assert_eq!(decode(&padded(longest), bits, &Features::all()).map(|insn| insn.len), Ok(15));
            assert_eq!(decode(&padded(longest + 1), bits, &Features::all()), Err(DecodeError::TooLong));
        }
    }
}

#[test]
fn what_the_model_does_not_offer_is_undefined_or_older() {
    let v2 = &X86_64_V2.features;
    let op = |bytes: &[u8]| decode(bytes, Bits::B64, v2).map(|insn| insn.op.name());
    assert_eq!(op(&[0xf3, 0x0f, 0xbc, 0xc0]), Ok("bsf"));
    assert_eq!(op(&[0xf3, 0x0f, 0xbd, 0xc0]), Ok("bsr"));
    assert_eq!(op(&[0xf3, 0x0f, 0xb8, 0xc0]), Ok("popcnt"));
    assert_eq!(op(&[0xf3, 0x0f, 0x1e, 0xfa]), Ok("nop"), "endbr64");
    assert_eq!(op(&[0xf3, 0x48, 0x0f, 0x1e, 0xc8]), Ok("nop"), "rdsspq");
    assert_eq!(op(&[0xf3, 0x90]), Ok("pause"));
    assert_eq!(op(&[0x0f, 0x0d, 0x08]), Ok("prefetch"));
    assert_eq!(op(&[0x0f, 0x38, 0xf0, 0x00]), Err(DecodeError::Invalid), "movbe");
    assert_eq!(op(&[0xc5, 0xf8, 0x28, 0xc0]), Err(DecodeError::Invalid), "vmovaps");
    assert_eq!(op(&[0x0f, 0xc7, 0xf8]), Err(DecodeError::Invalid), "rdseed");
    assert_eq!(op(&[0x0f, 0x01, 0xca]), Err(DecodeError::Invalid), "clac");
    assert_eq!(op(&[0x0f, 0x01, 0xc1]), Err(DecodeError::Invalid), "vmcall");
    assert_eq!(op(&[0x0f, 0x01, 0xc8]), Err(DecodeError::Invalid), "monitor");
    assert_eq!(op(&[0x0f, 0xc7, 0x20]), Err(DecodeError::Invalid), "xsavec");
    assert_eq!(op(&[0x62, 0xf1, 0x7c, 0x48, 0x28, 0xc0]), Err(DecodeError::Invalid), "EVEX");
    let v3 = |bytes: &[u8]| decode(bytes, Bits::B64, &X86_64_V3.features).map(|insn| insn.op.name());
    for (bytes, name) in [
        (&[0xf3, 0x0f, 0xbc, 0xc0][..], "tzcnt"),
        (&[0xf3, 0x0f, 0xbd, 0xc0], "lzcnt"),
        (&[0x0f, 0x38, 0xf0, 0x00], "movbe"),
        (&[0xc5, 0xf8, 0x28, 0xc0], "vmovaps"),
        (&[0xc4, 0xe2, 0x70, 0xf2, 0xc2], "andn"),
        (&[0xc4, 0xe2, 0xf5, 0xb8, 0xc2], "vfmadd231pd"),
        (&[0xc4, 0xe2, 0x7d, 0x13, 0xc1], "vcvtph2ps"),
        (&[0xc4, 0xe2, 0x6d, 0x90, 0x04, 0x08], "vpgatherdd"),
        (&[0x0f, 0xc7, 0x20], "xsavec"),
    ] {
        assert_eq!(v3(bytes), Ok(name));
        assert_ne!(op(bytes), Ok(name), "not of level 2");
    }
    assert_eq!(v3(&[0xc4, 0xe2, 0x75, 0xdc, 0xc2]), Err(DecodeError::Invalid), "vaesenc of 256 bits");
    assert_eq!(v3(&[0x66, 0xc5, 0xf8, 0x28, 0xc0]), Err(DecodeError::Invalid), "VEX after 66");
    assert_eq!(v3(&[0xf0, 0xc5, 0xf8, 0x28, 0x00]), Err(DecodeError::Invalid), "VEX after LOCK");
    assert_eq!(v3(&[0x48, 0xc5, 0xf8, 0x28, 0xc0]), Err(DecodeError::Invalid), "VEX after REX");
    let all = |bytes: &[u8]| decode(bytes, Bits::B64, &Features::all()).map(|insn| insn.op.name());
    assert_eq!(all(&[0xf3, 0x0f, 0xbc, 0xc0]), Ok("tzcnt"));
    assert_eq!(all(&[0xf3, 0x0f, 0x1e, 0xfa]), Ok("endbr64"));
    let none = |bytes: &[u8]| decode(bytes, Bits::B64, &Features::empty()).map(|insn| insn.op.name());
    assert_eq!(none(&[0x0f, 0x05]), Err(DecodeError::Invalid), "syscall");
    assert_eq!(none(&[0x01, 0xc0]), Ok("add"));
}
