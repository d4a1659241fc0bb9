//! What the silicon suite cannot show of AVX: the order of faults, modes, and the formats of the XSAVE area.

use trapgate_x86::decode::decode;
use trapgate_x86::features::Features;
use trapgate_x86::insn::{Bits, Insn};

use super::mock::{Fault, Memory, Mock};
use super::state::{MXCSR_RESET, VectorState};
use super::{
    CR0_EM, CR0_TS, CR4_OSFXSR, CR4_OSXSAVE, Control, SoftFp, VectorException, XCR0_AVX, XCR0_SSE, XCR0_X87,
    execute,
};

const VMOVAPS_LOAD: &[u8] = &[0xc5, 0xfc, 0x28, 0x06];
const VMOVUPS_LOAD: &[u8] = &[0xc5, 0xfc, 0x10, 0x06];
const VADDPS_LOAD: &[u8] = &[0xc5, 0xf4, 0x58, 0x06];
const VZEROALL: &[u8] = &[0xc5, 0xfc, 0x77];
const VZEROUPPER: &[u8] = &[0xc5, 0xf8, 0x77];
const XSAVE: &[u8] = &[0x0f, 0xae, 0x26];
const XSAVEOPT: &[u8] = &[0x0f, 0xae, 0x36];
const XSAVEC: &[u8] = &[0x0f, 0xc7, 0x26];
const XRSTOR: &[u8] = &[0x0f, 0xae, 0x2e];
const XGETBV: &[u8] = &[0x0f, 0x01, 0xd0];

const ALL: u64 = XCR0_X87 | XCR0_SSE | XCR0_AVX;
const LONG: Control = Control { xcr0: ALL, ..Control::LONG };
/// Legacy region and header; the AVX component is behind them.
const UPPER: usize = 576;

fn instruction(bytes: &[u8], bits: Bits) -> Insn {
    let mut padded = bytes.to_vec();
    padded.resize(15, 0);
    decode(&padded, bits, &Features::all()).expect("an instruction")
}

fn run(bytes: &[u8], control: &Control, state: &mut VectorState, mock: &mut Mock) -> Result<(), Fault> {
    execute(state, control, &SoftFp, &instruction(bytes, control.bits), mock)
}

/// A state with a value in every vector register.
fn filled() -> VectorState {
    let mut state = VectorState::reset();
    state.xmm = std::array::from_fn(|i| u128::MAX / (i as u128 + 2));
    state.ymm_high = std::array::from_fn(|i| u128::MAX / (i as u128 + 20));
    state
}

fn requesting(components: u64) -> Mock {
    let mut mock = Mock::new(Memory([0; 2048]));
    mock.gpr[0] = components;
    mock
}

fn word(mock: &Mock, at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|i| mock.memory.0[at + i]))
}

#[test]
fn faults_of_vex_instructions_come_in_the_architectures_order() {
    use VectorException::*;
    let fault = |bytes: &[u8], control: &Control, address| {
        let mut mock = Mock { address, unmapped: true, ..Mock::new(Memory([0; 2048])) };
        let (mut state, before) = (filled(), filled());
        let fault = run(bytes, control, &mut state, &mut mock).expect_err("a fault");
        assert_eq!(state, before, "{bytes:02x?}");
        fault
    };
    let switched = Control { cr0: LONG.cr0 | CR0_TS, ..LONG };
    for bytes in [VMOVAPS_LOAD, VMOVUPS_LOAD, VADDPS_LOAD] {
        for without in [
            Control { cr4: CR4_OSFXSR, ..switched },
            Control { xcr0: XCR0_X87 | XCR0_SSE, ..switched },
            Control { xcr0: XCR0_X87, ..switched },
            Control { protected: false, ..switched },
        ] {
            assert_eq!(fault(bytes, &without, 0x1001), Fault::Own(InvalidOpcode));
        }
        assert_eq!(fault(bytes, &switched, 0x1001), Fault::Own(DeviceNotAvailable));
        // Neither CR0.EM nor CR4.OSFXSR is asked.
        let without = Control { cr0: LONG.cr0 | CR0_EM, cr4: CR4_OSXSAVE, ..LONG };
        assert_eq!(fault(bytes, &without, 0x1000), Fault::Memory);
    }
    assert_eq!(
        fault(VMOVAPS_LOAD, &LONG, 0x1010),
        Fault::Own(GeneralProtection),
        "32 bytes for a YMM register"
    );
    assert_eq!(fault(VMOVUPS_LOAD, &LONG, 0x1001), Fault::Memory);
    assert_eq!(fault(VADDPS_LOAD, &LONG, 0x1001), Fault::Memory, "unaligned operands are fine");
}

#[test]
fn vex_clears_what_legacy_instructions_keep() {
    let mut mock = Mock::new(Memory([0; 2048]));
    let mut state = filled();
    // PXOR XMM1, XMM1, and the same with VEX.
    assert_eq!(run(&[0x66, 0x0f, 0xef, 0xc9], &LONG, &mut state, &mut mock), Ok(()));
    assert_eq!((state.xmm[1], state.ymm_high[1]), (0, filled().ymm_high[1]));
    assert_eq!(run(&[0xc5, 0xf1, 0xef, 0xc9], &LONG, &mut state, &mut mock), Ok(()));
    assert_eq!((state.xmm[1], state.ymm_high[1]), (0, 0));
}

#[test]
fn zeroing_knows_the_registers_of_the_mode() {
    for (bits, count) in [(Bits::B64, 16), (Bits::B32, 8)] {
        let control = Control { bits, ..LONG };
        let mut mock = Mock::new(Memory([0; 2048]));
        let (mut all, mut upper) = (filled(), filled());
        assert_eq!(run(VZEROALL, &control, &mut all, &mut mock), Ok(()));
        assert_eq!(run(VZEROUPPER, &control, &mut upper, &mut mock), Ok(()));
        assert_eq!(upper.xmm, filled().xmm);
        for n in 0..16 {
            let kept = n >= count;
            assert_eq!(all.xmm[n] != 0, kept);
            assert_eq!(all.ymm_high[n] != 0, kept);
            assert_eq!(upper.ymm_high[n] != 0, kept);
        }
    }
}

#[test]
fn areas_have_the_avx_component_behind_the_header() {
    for (save, format) in [(XSAVE, 0), (XSAVEOPT, 0), (XSAVEC, 1 << 63 | ALL)] {
        let mut mock = requesting(u64::MAX);
        let mut state = filled();
        assert_eq!(run(save, &LONG, &mut state, &mut mock), Ok(()));
        assert_eq!((word(&mock, 512), word(&mock, 520)), (ALL, format));
        for (n, high) in filled().ymm_high.iter().enumerate() {
            assert_eq!(mock.memory.0[UPPER + 16 * n..][..16], high.to_le_bytes());
        }
        let mut back = VectorState::reset();
        assert_eq!(run(XRSTOR, &LONG, &mut back, &mut mock), Ok(()));
        assert_eq!(back, filled());
    }
}

#[test]
fn components_that_are_not_in_use_are_left_out_by_some_forms() {
    let noise = Memory([0x55; 2048]);
    for (save, written) in [(XSAVE, true), (XSAVEOPT, false), (XSAVEC, false)] {
        let mut mock = Mock { memory: noise.clone(), ..requesting(ALL) };
        mock.memory.0[512..576].fill(0);
        let mut state = VectorState { ymm_high: [0; 16], ..filled() };
        assert_eq!(run(save, &LONG, &mut state, &mut mock), Ok(()));
        assert_eq!(word(&mock, 512), XCR0_X87 | XCR0_SSE);
        let area = &mock.memory.0[UPPER..UPPER + 256];
        assert!(area.iter().all(|&byte| byte == if written { 0 } else { 0x55 }), "{save:02x?}");
        // What is not in the area becomes what it was initially.
        let mut back = filled();
        assert_eq!(run(XRSTOR, &LONG, &mut back, &mut mock), Ok(()));
        assert_eq!(back.ymm_high, [0; 16]);
    }
}

/// SDM vol. 1, 13.7, 13.8.1 and 13.8.2: in the standard format MXCSR goes with AVX as well.
#[test]
fn mxcsr_belongs_to_two_components_in_one_format() {
    let mut mock = requesting(XCR0_AVX);
    let mut state = VectorState { mxcsr: 0x3f80, ..filled() };
    assert_eq!(run(XSAVE, &LONG, &mut state, &mut mock), Ok(()));
    assert_eq!(word(&mock, 24) as u32, 0x3f80);
    let mut back = VectorState::reset();
    assert_eq!(run(XRSTOR, &LONG, &mut back, &mut mock), Ok(()));
    assert_eq!((back.mxcsr, back.ymm_high, back.xmm), (0x3f80, filled().ymm_high, [0; 16]));
    let mut mock = requesting(XCR0_AVX);
    assert_eq!(run(XSAVEC, &LONG, &mut state, &mut mock), Ok(()));
    assert_eq!(word(&mock, 24), 0, "not asked for");
    let mut back = VectorState::reset();
    assert_eq!(run(XRSTOR, &LONG, &mut back, &mut mock), Ok(()));
    assert_eq!((back.mxcsr, back.ymm_high), (MXCSR_RESET, filled().ymm_high));
}

#[test]
fn headers_are_checked() {
    let refused = Err(Fault::Own(VectorException::GeneralProtection));
    let restore = |control: &Control, present: u64, format: u64| {
        let mut mock = requesting(ALL);
        mock.memory.0[24..28].copy_from_slice(&MXCSR_RESET.to_le_bytes());
        mock.memory.0[512..520].copy_from_slice(&present.to_le_bytes());
        mock.memory.0[520..528].copy_from_slice(&format.to_le_bytes());
        let mut state = filled();
        let done = run(XRSTOR, control, &mut state, &mut mock);
        assert!(done.is_ok() || state == filled());
        done
    };
    let sse = Control { xcr0: XCR0_X87 | XCR0_SSE, ..LONG };
    assert_eq!(restore(&LONG, XCR0_AVX, 0), Ok(()));
    assert_eq!(restore(&sse, XCR0_AVX, 0), refused, "a component that XCR0 has not");
    assert_eq!(restore(&LONG, XCR0_AVX, 1 << 63 | XCR0_AVX), Ok(()));
    assert_eq!(restore(&LONG, XCR0_AVX, 1 << 63 | XCR0_SSE), refused, "not in the format");
    assert_eq!(restore(&sse, 0, 1 << 63 | XCR0_AVX), refused);
    let standard_only = Control { xgetbv_1: false, ..LONG };
    assert_eq!(restore(&standard_only, XCR0_SSE, 1 << 63 | XCR0_SSE), refused, "no compacted format");
}

#[test]
fn areas_of_32_bit_modes_have_eight_registers() {
    let control = Control { bits: Bits::B32, ..LONG };
    let mut mock = Mock { memory: Memory([0x55; 2048]), ..requesting(ALL) };
    mock.memory.0[512..576].fill(0);
    let mut state = filled();
    assert_eq!(run(XSAVE, &control, &mut state, &mut mock), Ok(()));
    assert_eq!(mock.memory.0[UPPER + 112..UPPER + 128], filled().ymm_high[7].to_le_bytes());
    assert!(mock.memory.0[UPPER + 128..].iter().all(|&byte| byte == 0x55));
    state.ymm_high = [1; 16];
    assert_eq!(run(XRSTOR, &control, &mut state, &mut mock), Ok(()));
    assert_eq!((state.ymm_high[7], state.ymm_high[8]), (filled().ymm_high[7], 1));
}

#[test]
fn xgetbv_of_1_tells_upper_halves_in_use() {
    let mut mock = requesting(0);
    mock.gpr[1] = 1;
    let mut state = filled();
    assert_eq!(run(XGETBV, &LONG, &mut state, &mut mock), Ok(()));
    assert_eq!(mock.gpr[0], ALL);
    assert_eq!(run(VZEROUPPER, &LONG, &mut state, &mut mock), Ok(()));
    assert_eq!(run(XGETBV, &LONG, &mut state, &mut mock), Ok(()));
    assert_eq!(mock.gpr[0], XCR0_X87 | XCR0_SSE);
}
