//! What the silicon oracle cannot show: the order of faults, what stays unchanged under them, and modes other than 64-bit.

use trapgate_x86::decode::decode;
use trapgate_x86::features::Features;
use trapgate_x86::insn::{Bits, Insn};
use trapgate_x86::op::Op;

use super::mock::{Fault, Memory, Mock};
use super::state::fsw;
use super::{
    CLASSES, CR0_EM, CR0_MP, CR0_TS, CR4_OSFXSR, CR4_OSXMMEXCPT, CR4_OSXSAVE, Class, Control, F80, SoftFp,
    VectorException, VectorState, X87State, execute, sse,
};

const MOVAPS_LOAD: &[u8] = &[0x0f, 0x28, 0x06];
const MOVUPS_LOAD: &[u8] = &[0x0f, 0x10, 0x06];
const ADDPS_MEMORY: &[u8] = &[0x0f, 0x58, 0x06];
const PADDB_MMX: &[u8] = &[0x0f, 0xfc, 0x06];
const CVTPS2PI: &[u8] = &[0x0f, 0x2d, 0xc1];
const FADD_MEMORY: &[u8] = &[0xd8, 0x06];
const FSTP_MEMORY: &[u8] = &[0xdd, 0x1e];
const FNSTSW: &[u8] = &[0xdd, 0x3e];
const FNSTENV: &[u8] = &[0xd9, 0x36];
const FLDENV: &[u8] = &[0xd9, 0x26];
const FWAIT: &[u8] = &[0x9b];
const FXSAVE: &[u8] = &[0x0f, 0xae, 0x06];
const CRC32: &[u8] = &[0xf2, 0x0f, 0x38, 0xf1, 0x06];
const MOVNTI: &[u8] = &[0x0f, 0xc3, 0x06];
const XGETBV: &[u8] = &[0x0f, 0x01, 0xd0];
const XSAVE: &[u8] = &[0x0f, 0xae, 0x26];

fn instruction(bytes: &[u8], bits: Bits) -> Insn {
    let mut padded = bytes.to_vec();
    padded.resize(15, 0);
    decode(&padded, bits, &Features::all()).expect("an instruction")
}

/// A state with a value in every place.
fn filled() -> VectorState {
    let mut state = VectorState::reset();
    state.x87.init();
    state.x87.tags = 0xff;
    state.x87.regs = [F80::ONE; 8];
    state.xmm = std::array::from_fn(|i| u128::MAX / (i as u128 + 2));
    state
}

fn run(bytes: &[u8], control: &Control, state: &mut VectorState, mock: &mut Mock) -> Result<(), Fault> {
    execute(state, control, &SoftFp, &instruction(bytes, Bits::B64), mock)
}

/// The fault of an instruction on unmapped, misaligned memory with an x87 exception pending, and that nothing changed.
fn fault(bytes: &[u8], control: &Control) -> Fault {
    let mut mock = Mock { address: 0x1001, unmapped: true, ..Mock::new(Memory([0; 2048])) };
    let mut state = filled();
    (state.x87.fcw, state.x87.fsw) = (0x0340, fsw::IE | fsw::ES | fsw::B);
    let before = state.clone();
    let fault = run(bytes, control, &mut state, &mut mock).expect_err("a fault");
    assert_eq!(state, before, "{bytes:02x?}");
    fault
}

#[test]
fn faults_come_in_the_architectures_order() {
    use VectorException::*;
    let (long, own) = (Control::LONG, Fault::Own);
    let emulated = Control { cr0: CR0_EM | CR0_TS | CR0_MP, ..long };
    let switched = Control { cr0: CR0_TS | CR0_MP, ..long };
    let off = Control { cr4: CR4_OSXMMEXCPT, cr0: CR0_TS, ..long };
    for sse in [MOVAPS_LOAD, MOVUPS_LOAD, ADDPS_MEMORY, CVTPS2PI] {
        assert_eq!(fault(sse, &emulated), own(InvalidOpcode));
        assert_eq!(fault(sse, &off), own(InvalidOpcode));
        assert_eq!(fault(sse, &switched), own(DeviceNotAvailable));
    }
    assert_eq!(fault(MOVAPS_LOAD, &long), own(GeneralProtection));
    assert_eq!(fault(ADDPS_MEMORY, &long), own(GeneralProtection));
    assert_eq!(fault(MOVUPS_LOAD, &long), Fault::Memory);
    assert_eq!(fault(CVTPS2PI, &long), own(FpuError));
    for mmx in [PADDB_MMX, FXSAVE] {
        assert_eq!(fault(mmx, &emulated), own(InvalidOpcode));
        assert_eq!(fault(mmx, &off), own(DeviceNotAvailable), "does not depend on OSFXSR");
    }
    assert_eq!(fault(PADDB_MMX, &long), own(FpuError));
    assert_eq!(fault(FXSAVE, &long), own(GeneralProtection));
    for x87 in [FADD_MEMORY, FSTP_MEMORY, FNSTSW, FNSTENV, FLDENV] {
        assert_eq!(fault(x87, &emulated), own(DeviceNotAvailable));
        assert_eq!(fault(x87, &switched), own(DeviceNotAvailable));
    }
    assert_eq!(fault(FADD_MEMORY, &long), own(FpuError));
    assert_eq!(fault(FLDENV, &long), own(FpuError));
    assert_eq!(fault(FNSTSW, &long), Fault::Memory, "does not wait");
    assert_eq!(fault(FNSTENV, &long), Fault::Memory, "does not wait");
    assert_eq!(fault(FWAIT, &long), own(FpuError));
    assert_eq!(fault(FWAIT, &switched), own(DeviceNotAvailable));
    assert_eq!(fault(FWAIT, &Control { cr0: CR0_TS, ..long }), own(FpuError), "TS alone does not count");
    for general in [CRC32, MOVNTI] {
        assert_eq!(fault(general, &emulated), Fault::Memory, "depends on neither CR0 nor CR4");
        assert_eq!(fault(general, &Control { cr4: 0, ..long }), Fault::Memory);
    }
    let no_xsave = Control { cr4: CR4_OSFXSR, cr0: CR0_TS, ..long };
    assert_eq!(fault(XSAVE, &no_xsave), own(InvalidOpcode));
    assert_eq!(fault(XGETBV, &no_xsave), own(InvalidOpcode));
    assert_eq!(fault(XSAVE, &Control { cr4: CR4_OSXSAVE, ..switched }), own(DeviceNotAvailable));
    assert_eq!(fault(XSAVE, &long), own(GeneralProtection));
}

#[test]
fn xgetbv_of_1_gives_what_is_in_use_where_cpuid_offers_it() {
    let mut mock = Mock::new(Memory([0; 2048]));
    mock.gpr[1] = 1;
    let mut state = VectorState::reset();
    assert_eq!(run(XGETBV, &Control::LONG, &mut state, &mut mock), Ok(()));
    let without = Control { xgetbv_1: false, ..Control::LONG };
    let refused = Err(Fault::Own(VectorException::GeneralProtection));
    assert_eq!(run(XGETBV, &without, &mut state, &mut mock), refused);
    mock.gpr[1] = 0;
    assert_eq!(run(XGETBV, &without, &mut state, &mut mock), Ok(()));
}

/// A store that faults leaves status, tags and TOP alone, though the value was converted already.
#[test]
fn memory_faults_undo_everything() {
    for bytes in
        [FSTP_MEMORY, &[0xdf, 0x3e], &[0xdf, 0x36], &[0xd9, 0x06], &[0xdb, 0x06], PADDB_MMX, MOVUPS_LOAD]
    {
        let mut mock = Mock { unmapped: true, ..Mock::new(Memory([0; 2048])) };
        let mut state = filled();
        state.x87.regs[0] = F80::new(0x3ffd, 0xaaaa_aaaa_aaaa_aaaa);
        let before = state.clone();
        assert_eq!(run(bytes, &Control::LONG, &mut state, &mut mock), Err(Fault::Memory));
        assert_eq!(state, before, "{bytes:02x?}");
    }
}

#[test]
fn unmasked_simd_exceptions_leave_only_their_flags() {
    for (cr4, expected) in [
        (CR4_OSFXSR | CR4_OSXMMEXCPT, VectorException::SimdError),
        (CR4_OSFXSR, VectorException::InvalidOpcode),
    ] {
        let mut state = filled();
        // 1.0 / 0.0 in all lanes, with zero-divide unmasked.
        state.xmm[0] = 0x3f80_0000_3f80_0000_3f80_0000_3f80_0000;
        state.xmm[1] = 0;
        state.mxcsr = 0x1d80;
        let mut expected_state = state.clone();
        expected_state.mxcsr |= 4;
        let control = Control { cr4, ..Control::LONG };
        let mut mock = Mock::new(Memory([0; 2048]));
        assert_eq!(run(&[0x0f, 0x5e, 0xc1], &control, &mut state, &mut mock), Err(expected.into()));
        assert_eq!(state, expected_state);
    }
}

/// An unmasked x87 exception waits for the next waiting instruction, and records where it happened.
#[test]
fn unmasked_x87_exceptions_are_deferred() {
    let mut state = filled();
    state.x87.set_fcw(0x0340);
    state.x87.tags = 0;
    let mut mock = Mock { rip: 0x1234, opcode: 0x5c1, ..Mock::new(Memory([0; 2048])) };
    // FADD ST, ST(1) of empty registers.
    assert_eq!(run(&[0xd8, 0xc1], &Control::LONG, &mut state, &mut mock), Ok(()));
    assert_eq!(state.x87.fsw, fsw::IE | fsw::SF | fsw::ES | fsw::B);
    assert_eq!((state.x87.fip, state.x87.fop), (0x1234, 0x5c1));
    let before = state.clone();
    assert_eq!(run(FWAIT, &Control::LONG, &mut state, &mut mock), Err(VectorException::FpuError.into()));
    assert_eq!(state, before);
    // FNCLEX does not wait and ends it.
    assert_eq!(run(&[0xdb, 0xe2], &Control::LONG, &mut state, &mut mock), Ok(()));
    assert_eq!(run(FWAIT, &Control::LONG, &mut state, &mut mock), Ok(()));
}

fn environment_state() -> X87State {
    let mut x87 = X87State { fip: 0x1234_5678, fdp: 0x9abc_def0, fop: 0x5a5, ..X87State::INITIAL };
    (x87.fcs, x87.fds) = (0x1111, 0x2222);
    x87.set_top(3);
    x87
}

/// SDM vol. 1, figures 8-9 to 8-12.
#[test]
fn environments_have_four_formats() {
    let words = |bytes: &[u8]| -> Vec<u16> {
        bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect()
    };
    // Pointers of real mode are linear: FIP + FCS * 16.
    let cases: [(Bits, bool, &[u16]); 4] = [
        (Bits::B16, true, &[0x037f, 0x1800, 0xffff, 0x5678, 0x1111, 0xdef0, 0x2222]),
        (Bits::B16, false, &[0x037f, 0x1800, 0xffff, 0x6788, 0x55a5, 0x0110, 0xf000]),
        (
            Bits::B32,
            true,
            &[
                0x037f, 0xffff, 0x1800, 0xffff, 0xffff, 0xffff, 0x5678, 0x1234, 0x1111, 0x05a5, 0xdef0,
                0x9abc, 0x2222, 0xffff,
            ],
        ),
        (
            Bits::B32,
            false,
            &[
                0x037f, 0xffff, 0x1800, 0xffff, 0xffff, 0xffff, 0x6788, 0xffff, 0x55a5, 0x0123, 0x0110,
                0xffff, 0xf000, 0x09ab,
            ],
        ),
    ];
    for (bits, protected, expected) in cases {
        let control = Control { bits, protected, no_fcs_fds: false, ..Control::LONG };
        let mut state = VectorState { x87: environment_state(), ..filled() };
        let mut mock = Mock::new(Memory([0; 2048]));
        let store = instruction(if bits == Bits::B16 { &[0xd9, 0x34] } else { FNSTENV }, bits);
        assert_eq!(execute(&mut state, &control, &SoftFp, &store, &mut mock), Ok(()));
        let len = 2 * expected.len();
        assert_eq!(words(&mock.memory.0[..len]), expected, "{bits:?} protected {protected}");
        assert_eq!(mock.memory.0[len], 0);
        // And back: linear pointers stay linear.
        let load = instruction(if bits == Bits::B16 { &[0xd9, 0x24] } else { FLDENV }, bits);
        let mut loaded = VectorState::reset();
        assert_eq!(execute(&mut loaded, &control, &SoftFp, &load, &mut mock), Ok(()));
        assert_eq!((loaded.x87.fcw, loaded.x87.fsw, loaded.x87.tags), (0x037f, 0x1800, 0));
        let offset = |value: u64| if bits == Bits::B16 && protected { value & 0xffff } else { value };
        let (fip, fdp) = if protected { (0x1234_5678, 0x9abc_def0) } else { (0x1235_6788, 0x9abf_0110) };
        let mask = if bits == Bits::B16 && !protected { 0xf_ffff } else { u64::MAX };
        assert_eq!((loaded.x87.fip, loaded.x87.fdp), (offset(fip) & mask, offset(fdp) & mask));
    }
}

#[test]
fn modes_without_rex_see_eight_xmm_registers() {
    let control = Control { bits: Bits::B32, ..Control::LONG };
    let mut state = filled();
    let mut mock = Mock::new(Memory([0x55; 2048]));
    let insn = instruction(FXSAVE, Bits::B32);
    assert_eq!(execute(&mut state, &control, &SoftFp, &insn, &mut mock), Ok(()));
    assert_eq!(mock.memory.0[272..288], state.xmm[7].to_le_bytes());
    assert!(mock.memory.0[288..512].iter().all(|&byte| byte == 0x55));
    let restore = instruction(&[0x0f, 0xae, 0x0e], Bits::B32);
    state.xmm = [1; 16];
    assert_eq!(execute(&mut state, &control, &SoftFp, &restore, &mut mock), Ok(()));
    assert_eq!((state.xmm[7], state.xmm[8]), (filled().xmm[7], 1));
}

/// Bytes whose mask bit is clear are neither written nor looked at.
#[test]
fn masked_stores_touch_what_they_select() {
    let mut state = filled();
    state.xmm[0] = 0x0f0e_0d0c_0b0a_0908_0706_0504_0302_0100;
    state.xmm[1] = 0x80_00_80_80 << 64 | 0x80 << 8;
    let mut mock = Mock::new(Memory([0xee; 2048]));
    assert_eq!(run(&[0x66, 0x0f, 0xf7, 0xc1], &Control::LONG, &mut state, &mut mock), Ok(()));
    let mut expected = [0xee; 16];
    (expected[1], expected[8], expected[9], expected[11]) = (1, 8, 9, 11);
    assert_eq!(mock.memory.0[..16], expected);
    state.xmm[1] = 0;
    mock.unmapped = true;
    assert_eq!(run(&[0x66, 0x0f, 0xf7, 0xc1], &Control::LONG, &mut state, &mut mock), Ok(()));
}

#[test]
fn every_class_has_its_functions() {
    for &op in Op::ALL {
        let expected = matches!(CLASSES[op as usize], Class::Binary | Class::Immediate);
        assert_eq!(sse::integer::handles(op), expected, "{op:?}");
        assert_eq!(sse::float::handles(op), CLASSES[op as usize] == Class::Float, "{op:?}");
    }
}
