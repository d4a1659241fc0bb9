//! The code between Rust and translated code: into it, out of it, and to the helper that looks for a page and goes on.

use std::mem::offset_of;

use super::asm::{Asm, Encoding, Escape, R8, R9, R10, R11, RAX, RBP, RCX, RDI, RDX, RSI, RSP, Rm, at};
use super::context::{BELOW, Context, Place, at_offset, field, place, saved};

const RBX: u8 = 3;
const R12: u8 = 12;
const R15: u8 = 15;
/// What a Rust function must find unchanged in its caller's registers, and so must we (System V ABI, 3.2.1).
const CALLEE_SAVED: [u8; 6] = [RBX, RBP, R12, 13, 14, R15];

/// Addresses of the thunks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Thunks {
    /// `extern "C" fn(*mut Context, target)`.
    pub enter: u64,
    /// Jumped to by exits that have stored their number.
    pub exit: u64,
    /// Jumped to by accesses that did not find their page, with the address in R10.
    pub miss: u64,
}

/// `refill` is an `extern "C" fn(*mut Context, linear: u64) -> u64` that gives where to go on.
pub fn emit(asm: &mut Asm, refill: u64) -> Thunks {
    let enter = asm.here();
    emit_enter(asm);
    let exit = asm.here();
    emit_exit(asm);
    let miss = asm.here();
    emit_miss(asm, refill);
    Thunks { enter, exit, miss }
}

fn push(asm: &mut Asm, reg: u8) {
    if reg >= 8 {
        asm.bytes(&[0x41]);
    }
    asm.bytes(&[0x50 | reg & 7]);
}

fn pop(asm: &mut Asm, reg: u8) {
    if reg >= 8 {
        asm.bytes(&[0x41]);
    }
    asm.bytes(&[0x58 | reg & 7]);
}

/// Guest registers that a host register holds, RAX last.
fn pinned() -> impl Iterator<Item = (u8, u8)> {
    (0..16).rev().filter_map(|guest| match place(guest) {
        Place::Host(host) => Some((guest, host)),
        Place::Slot(_) => None,
    })
}

/// `movups` between an XMM register and its place.
fn vector(asm: &mut Asm, store: bool, n: u8) {
    let address = at_offset(offset_of!(Context, xmm) + 16 * usize::from(n));
    asm.emit(&Encoding::new(Escape::M0f, 0x10 | u8::from(store), false, n, Rm::Mem(address)));
}

/// `ldmxcsr` or `stmxcsr`.
fn control(asm: &mut Asm, store: bool, address: super::asm::Address) {
    asm.emit(&Encoding::new(Escape::M0f, 0xae, false, 2 | u8::from(store), Rm::Mem(address)));
}

/// Saves the vector registers and gives the host its control word, if the guest's are in them.
fn save_vectors(asm: &mut Asm) {
    asm.load(RCX, field!(vector));
    asm.jrcxz(5);
    let there = jump_short_over(asm);
    for n in 0..16 {
        vector(asm, true, n);
    }
    control(asm, true, field!(mxcsr));
    control(asm, false, field!(host_mxcsr));
    asm.bind(there);
}

fn load_vectors(asm: &mut Asm) {
    asm.load(RCX, field!(vector));
    asm.jrcxz(5);
    let there = jump_short_over(asm);
    control(asm, true, field!(host_mxcsr));
    control(asm, false, field!(mxcsr));
    for n in 0..16 {
        vector(asm, false, n);
    }
    asm.bind(there);
}

/// `jmp +5; jmp end`: JRCXZ skips the first to reach the second, which leads over the block.
fn jump_short_over(asm: &mut Asm) -> super::asm::Fixup {
    // jrcxz has jumped over these five bytes.
    asm.bytes(&[0xe9, 5, 0, 0, 0]);
    asm.jmp_later()
}

/// Puts OF and what LAHF gives into the context. Ends RAX.
pub(super) fn save_flags(asm: &mut Asm) {
    asm.bytes(&[0x9f, 0x0f, 0x90, 0xc0]); // lahf; seto al
    let plain = Encoding::new(Escape::None, 0x89, false, RAX, Rm::Mem(field!(flags)));
    asm.emit(&Encoding { opsize: true, ..plain });
}

/// The reverse. Ends RAX.
pub(super) fn load_flags(asm: &mut Asm) {
    asm.emit(&Encoding::new(Escape::M0f, 0xb7, false, RAX, Rm::Mem(field!(flags))));
    asm.bytes(&[0x04, 0x7f, 0x9e]); // add al, 7Fh; sahf
}

fn emit_enter(asm: &mut Asm) {
    for reg in CALLEE_SAVED {
        push(asm, reg);
    }
    asm.bytes(&[0x48, 0x83, 0xec, 8]); // sub rsp, 8
    asm.store(at(RDI, offset_of!(Context, host_rsp) as i32), RSP);
    asm.lea(RSP, at(RDI, -BELOW));
    asm.mov(R11, RSI);
    load_vectors(asm);
    load_flags(asm);
    for (guest, host) in pinned() {
        asm.load(host, saved(guest));
    }
    asm.load(R10, field!(target));
    asm.bytes(&[0x41, 0xff, 0xe3]); // jmp r11
}

fn emit_exit(asm: &mut Asm) {
    for (guest, host) in pinned() {
        asm.store(saved(guest), host);
    }
    save_flags(asm);
    asm.store(field!(target), R10);
    save_vectors(asm);
    asm.load(RSP, field!(host_rsp));
    asm.bytes(&[0x48, 0x83, 0xc4, 8]); // add rsp, 8
    for reg in CALLEE_SAVED.into_iter().rev() {
        pop(asm, reg);
    }
    asm.bytes(&[0xc3]);
}

/// Registers of the guest that a Rust function may change.
const CALLER_SAVED: [u8; 6] = [RAX, RDX, RSI, RDI, R8, R9];

fn emit_miss(asm: &mut Asm, refill: u64) {
    for (guest, host) in pinned().filter(|(_, host)| CALLER_SAVED.contains(host)) {
        asm.store(saved(guest), host);
    }
    save_flags(asm);
    save_vectors(asm);
    asm.lea(RDI, at(RSP, BELOW));
    asm.mov(RSI, R10);
    asm.load(RSP, field!(host_rsp));
    push(asm, RDI);
    push(asm, RDI);
    asm.constant(RAX, refill);
    asm.bytes(&[0xff, 0xd0]); // call rax
    pop(asm, RCX);
    asm.lea(RSP, at(RCX, -BELOW));
    asm.mov(R11, RAX);
    load_vectors(asm);
    load_flags(asm);
    for (guest, host) in pinned().filter(|(_, host)| CALLER_SAVED.contains(host)) {
        asm.load(host, saved(guest));
    }
    asm.bytes(&[0x41, 0xff, 0xe3]); // jmp r11
}

const _: () = assert!(RDX == 2);
