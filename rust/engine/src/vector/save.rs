//! Saving and restoring: LDMXCSR, STMXCSR, FXSAVE, FXRSTOR, and the XSAVE feature set with x87, SSE and AVX components in
//! standard and compacted format (Intel SDM vol. 1, 10.5 and chapter 13).
//!
//! The init optimisation is exact: a component is in use when it differs from its initial configuration. The modified
//! optimisation is not made: XMODIFIED is always all ones, as 13.6 allows, so nothing is remembered across XRSTOR.

use trapgate_x86::insn::{Bits, Insn, Prefixes};
use trapgate_x86::op::Op;

use super::interface::{Control, Operands, VectorException, XCR0_AVX, XCR0_SSE, XCR0_X87};
use super::operand::unexpected;
use super::state::{F80, MXCSR_MASK, MXCSR_RESET, VectorState, X87State};

/// Legacy region and header. The AVX component follows: the only one beyond them, it has the same place in both formats
/// (SDM vol. 1, 13.4.3).
const AREA: usize = 576;
const UPPER: usize = 256;
const HEADER: usize = 512;
const MXCSR_AT: usize = 24;
const REGS_AT: usize = 32;
const XMM_AT: usize = 160;
/// XCOMP_BV\[63\]: the area has the compacted format.
const COMPACTED: u64 = 1 << 63;
const RAX: u8 = 0;
const RCX: u8 = 1;
const RDX: u8 = 2;

pub(super) fn execute<O: Operands>(
    state: &mut VectorState,
    control: &Control,
    insn: &Insn,
    ops: &mut O,
) -> Result<(), O::Fault> {
    let wide = insn.prefixes.contains(Prefixes::REX_W);
    match insn.op {
        Op::Ldmxcsr => {
            control.check_sse()?;
            load_mxcsr(state, ops)
        }
        Op::Stmxcsr => {
            control.check_sse()?;
            store_mxcsr(state, ops)
        }
        Op::Fxsave => {
            control.check_mmx()?;
            check_alignment(ops, 16)?;
            fxsave(state, control, wide, ops)
        }
        Op::Fxrstor => {
            control.check_mmx()?;
            check_alignment(ops, 16)?;
            fxrstor(state, control, wide, ops)
        }
        Op::Xgetbv => xgetbv(state, control, ops),
        Op::Xsave | Op::Xsaveopt | Op::Xsavec => {
            control.check_xsave(true)?;
            check_alignment(ops, 64)?;
            xsave(state, control, insn.op, wide, ops)
        }
        Op::Xrstor => {
            control.check_xsave(true)?;
            check_alignment(ops, 64)?;
            xrstor(state, control, wide, ops)
        }
        _ => Err(unexpected()),
    }
}

pub(super) fn load_mxcsr<O: Operands>(state: &mut VectorState, ops: &mut O) -> Result<(), O::Fault> {
    let value = ops.load_u32()?;
    state.mxcsr = checked_mxcsr(value)?;
    Ok(())
}

pub(super) fn store_mxcsr<O: Operands>(state: &VectorState, ops: &mut O) -> Result<(), O::Fault> {
    ops.store(0, &state.mxcsr.to_le_bytes())
}

fn check_alignment<O: Operands>(ops: &O, to: u64) -> Result<(), VectorException> {
    if ops.linear_address() & (to - 1) == 0 { Ok(()) } else { Err(VectorException::GeneralProtection) }
}

/// Loading a reserved bit into MXCSR is #GP(0).
fn checked_mxcsr(value: u32) -> Result<u32, VectorException> {
    if value & !MXCSR_MASK == 0 { Ok(value) } else { Err(VectorException::GeneralProtection) }
}

/// Vector registers that the mode can name; the others are neither saved nor restored.
pub(super) fn visible_registers(control: &Control) -> usize {
    if control.bits == Bits::B64 { 16 } else { 8 }
}

/// Bytes 0 to 23 of the area: the x87 registers but the stack (SDM vol. 1, table 10-2 and 13.5.1).
fn control_image(x87: &X87State, wide: bool) -> [u8; MXCSR_AT] {
    let mut image = [0; MXCSR_AT];
    image[0..2].copy_from_slice(&x87.fcw.to_le_bytes());
    image[2..4].copy_from_slice(&x87.fsw.to_le_bytes());
    image[4] = x87.tags;
    image[6..8].copy_from_slice(&x87.fop.to_le_bytes());
    let pointer = |offset: u64, selector: u16| {
        if wide {
            offset.to_le_bytes()
        } else {
            (offset & 0xffff_ffff | u64::from(selector) << 32).to_le_bytes()
        }
    };
    image[8..16].copy_from_slice(&pointer(x87.fip, x87.fcs));
    image[16..24].copy_from_slice(&pointer(x87.fdp, x87.fds));
    image
}

/// Bytes 32 to 159: ST0 to ST7, each in 16 bytes.
fn stack_image(x87: &X87State) -> [u8; XMM_AT - REGS_AT] {
    let mut image = [0; XMM_AT - REGS_AT];
    for i in 0..8 {
        let at = 16 * usize::from(i);
        image[at..at + 10].copy_from_slice(&x87.st(i).to_bytes());
    }
    image
}

/// XMM registers, or upper halves of YMM registers, beside each other.
fn register_image(registers: &[u128; 16]) -> [u8; 256] {
    let mut image = [0; 256];
    for (slot, register) in image.chunks_exact_mut(16).zip(registers) {
        slot.copy_from_slice(&register.to_le_bytes());
    }
    image
}

fn load_registers(registers: &mut [u128], image: &[u8]) {
    for (register, slot) in registers.iter_mut().zip(image.chunks_exact(16)) {
        *register = u128::from_le_bytes(std::array::from_fn(|i| slot[i]));
    }
}

fn word(image: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([image[at], image[at + 1]])
}

fn dword(image: &[u8], at: usize) -> u32 {
    u32::from(word(image, at)) | u32::from(word(image, at + 2)) << 16
}

fn qword(image: &[u8], at: usize) -> u64 {
    u64::from(dword(image, at)) | u64::from(dword(image, at + 4)) << 32
}

/// The x87 state of a legacy region.
fn x87_from(image: &[u8], control: &Control, wide: bool) -> X87State {
    let mut x87 =
        X87State { fsw: word(image, 2), tags: image[4], fop: word(image, 6) & 0x7ff, ..X87State::INITIAL };
    if wide {
        (x87.fip, x87.fdp) = (qword(image, 8), qword(image, 16));
    } else {
        (x87.fip, x87.fdp) = (dword(image, 8).into(), dword(image, 16).into());
        if !control.no_fcs_fds {
            (x87.fcs, x87.fds) = (word(image, 12), word(image, 20));
        }
    }
    for i in 0..8 {
        let at = REGS_AT + 16 * usize::from(i);
        let physical = x87.physical(i);
        x87.regs[physical] = F80::from_bytes(std::array::from_fn(|j| image[at + j]));
    }
    x87.set_fcw(word(image, 0));
    x87
}

fn load_xmm(state: &mut VectorState, control: &Control, image: &[u8]) {
    load_registers(&mut state.xmm[..visible_registers(control)], &image[XMM_AT..]);
}

fn mxcsr_image(state: &VectorState) -> [u8; 8] {
    (u64::from(state.mxcsr) | u64::from(MXCSR_MASK) << 32).to_le_bytes()
}

/// Bytes beyond the XMM registers that the mode can name are not written.
fn fxsave<O: Operands>(
    state: &VectorState,
    control: &Control,
    wide: bool,
    ops: &mut O,
) -> Result<(), O::Fault> {
    let mut image = [0; XMM_AT + 256];
    image[..MXCSR_AT].copy_from_slice(&control_image(&state.x87, wide));
    image[MXCSR_AT..REGS_AT].copy_from_slice(&mxcsr_image(state));
    image[REGS_AT..XMM_AT].copy_from_slice(&stack_image(&state.x87));
    image[XMM_AT..].copy_from_slice(&register_image(&state.xmm));
    ops.check_store(0, 512)?;
    ops.store(0, &image[..XMM_AT + 16 * visible_registers(control)])
}

fn fxrstor<O: Operands>(
    state: &mut VectorState,
    control: &Control,
    wide: bool,
    ops: &mut O,
) -> Result<(), O::Fault> {
    let mut image = [0; 512];
    ops.load(0, &mut image)?;
    state.mxcsr = checked_mxcsr(dword(&image, MXCSR_AT))?;
    state.x87 = x87_from(&image, control, wide);
    load_xmm(state, control, &image);
    Ok(())
}

/// XINUSE for the components that exist here.
fn in_use(state: &VectorState) -> u64 {
    let x87 = if state.x87 == X87State::INITIAL { 0 } else { XCR0_X87 };
    let sse = if state.xmm == [0; 16] { 0 } else { XCR0_SSE };
    let avx = if state.ymm_high == [0; 16] { 0 } else { XCR0_AVX };
    x87 | sse | avx
}

/// [`in_use`], with SSE in use as well when MXCSR is not in its initial configuration (SDM vol. 1, 13.6 and 13.10).
fn in_use_with_mxcsr(state: &VectorState) -> u64 {
    in_use(state) | if state.mxcsr == MXCSR_RESET { 0 } else { XCR0_SSE }
}

fn xgetbv<O: Operands>(state: &VectorState, control: &Control, ops: &mut O) -> Result<(), O::Fault> {
    control.check_xsave(false)?;
    let value = match ops.gpr(RCX) as u32 {
        0 => control.xcr0,
        1 if control.xgetbv_1 => control.xcr0 & in_use_with_mxcsr(state),
        _ => return Err(VectorException::GeneralProtection.into()),
    };
    ops.set_gpr(RAX, value & 0xffff_ffff, 4);
    ops.set_gpr(RDX, value >> 32, 4);
    Ok(())
}

/// The requested-feature bitmap: EDX:EAX as far as XCR0 allows.
fn requested<O: Operands>(control: &Control, ops: &O) -> u64 {
    (ops.gpr(RAX) & 0xffff_ffff | ops.gpr(RDX) << 32) & control.xcr0
}

/// XSAVE writes all requested components, XSAVEOPT and XSAVEC those in use; XSAVEC uses the compacted format, which here
/// differs in the header alone. MXCSR is a part of the SSE component, which the forms of the standard format write with AVX
/// state too (SDM vol. 1, 13.7 to 13.10).
fn xsave<O: Operands>(
    state: &VectorState,
    control: &Control,
    op: Op,
    wide: bool,
    ops: &mut O,
) -> Result<(), O::Fault> {
    let rfbm = requested(control, ops);
    let used = if op == Op::Xsavec { in_use_with_mxcsr(state) } else { in_use(state) };
    let written = if op == Op::Xsave { rfbm } else { rfbm & used };
    // All of a component is checked, whatever the mode can name of it.
    let upper = if written & XCR0_AVX != 0 { 16 * visible_registers(control) } else { 0 };
    ops.check_store(0, if upper != 0 { AREA + UPPER } else { AREA } as u64)?;
    let header = if op == Op::Xsavec {
        [rfbm & used, COMPACTED | rfbm]
    } else {
        let mut old = [0; 16];
        ops.load(HEADER as u64, &mut old)?;
        [qword(&old, 0) & !rfbm | rfbm & used, qword(&old, 8)]
    };
    if written & XCR0_X87 != 0 {
        ops.store(0, &control_image(&state.x87, wide))?;
        ops.store(REGS_AT as u64, &stack_image(&state.x87))?;
    }
    let mxcsr = if op == Op::Xsavec { written & XCR0_SSE } else { rfbm & (XCR0_SSE | XCR0_AVX) };
    if mxcsr != 0 {
        ops.store(MXCSR_AT as u64, &mxcsr_image(state))?;
    }
    if written & XCR0_SSE != 0 {
        ops.store(XMM_AT as u64, &register_image(&state.xmm)[..16 * visible_registers(control)])?;
    }
    if upper != 0 {
        ops.store(AREA as u64, &register_image(&state.ymm_high)[..upper])?;
    }
    ops.store(HEADER as u64, &header[0].to_le_bytes())?;
    if op == Op::Xsavec {
        ops.store(HEADER as u64 + 8, &header[1].to_le_bytes())?;
    }
    Ok(())
}

/// Checks the header; everything wrong with it is #GP(0) (SDM vol. 1, 13.8 and 13.8.2).
fn checked_header(image: &[u8], control: &Control) -> Result<(u64, bool), VectorException> {
    let (in_area, format) = (qword(image, HEADER), qword(image, HEADER + 8));
    // Without the compacted format the bit is one of the reserved ones.
    let compacted = control.xgetbv_1 && format & COMPACTED != 0;
    let valid = if compacted {
        format & !COMPACTED & !control.xcr0 == 0
            && in_area & !format == 0
            && in_area & COMPACTED == 0
            && image[HEADER + 16..AREA].iter().all(|&byte| byte == 0)
    } else {
        in_area & !control.xcr0 == 0 && image[HEADER + 8..HEADER + 24].iter().all(|&byte| byte == 0)
    };
    if valid { Ok((in_area, compacted)) } else { Err(VectorException::GeneralProtection) }
}

fn xrstor<O: Operands>(
    state: &mut VectorState,
    control: &Control,
    wide: bool,
    ops: &mut O,
) -> Result<(), O::Fault> {
    let mut image = [0; AREA];
    ops.load(0, &mut image)?;
    let (in_area, compacted) = checked_header(&image, control)?;
    let rfbm = requested(control, ops);
    let visible = visible_registers(control);
    let mut upper = [0; UPPER];
    if rfbm & in_area & XCR0_AVX != 0 {
        ops.load(AREA as u64, &mut upper)?;
    }
    // The standard form loads MXCSR with either of its components, whether the area has them or not; in the compacted
    // form it belongs to SSE (SDM vol. 1, 13.8.1 and 13.8.2).
    let mxcsr_with = if compacted { XCR0_SSE } else { XCR0_SSE | XCR0_AVX };
    if rfbm & mxcsr_with != 0 {
        state.mxcsr = if compacted && in_area & XCR0_SSE == 0 {
            MXCSR_RESET
        } else {
            checked_mxcsr(dword(&image, MXCSR_AT))?
        };
    }
    if rfbm & XCR0_SSE != 0 {
        if in_area & XCR0_SSE != 0 {
            load_xmm(state, control, &image);
        } else {
            state.xmm[..visible].fill(0);
        }
    }
    if rfbm & XCR0_AVX != 0 {
        // Zeros where the area has none: the initial configuration.
        load_registers(&mut state.ymm_high[..visible], &upper);
    }
    if rfbm & XCR0_X87 != 0 {
        state.x87 = if in_area & XCR0_X87 != 0 { x87_from(&image, control, wide) } else { X87State::INITIAL };
    }
    Ok(())
}
