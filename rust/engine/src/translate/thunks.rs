//! The code between Rust and translated code: into it, out of it, and to the helper that looks for a page and goes on.

use std::mem::offset_of;

use super::asm::{
    Address, Asm, Encoding, Escape, R8, R9, R10, R11, RAX, RBP, RCX, RDI, RDX, RSI, RSP, Rm, at, indexed,
};
use super::context::{
    BELOW, Context, DELTA, MINUS_WRITE, Place, at_offset, field, place, saved, slot, tlb_offset,
};
use super::fpu;
use super::upper;

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
    /// The same for the stack of the supervisor and of the user, with the place where the access starts again in R11.
    pub stack: u64,
    pub user_stack: u64,
    /// Jumped to by units that need the vector registers, with the place to go on at in R11.
    pub lend: u64,
    /// The same by units that need their upper halves as well.
    pub lend_upper: u64,
    /// Jumped to by RDTSC, with the instructions of the unit that are complete in R10 and the place to go on at in R11. The
    /// vector registers are lent no more to the host's.
    pub clock: u64,
    /// As `lend`, by units that need the x87 state.
    pub lend_x87: u64,
}

/// Functions that thunks call.
#[derive(Clone, Copy, Debug)]
pub struct Helpers {
    /// `extern "C" fn(*mut Context, linear: u64) -> u64` that gives where to go on.
    pub refill: u64,
    /// `extern "C" fn(*mut Context, done: u64) -> u64` that gives the time-stamp counter.
    pub clock: u64,
}

/// Emits all of them.
pub fn emit(asm: &mut Asm, helpers: Helpers) -> Thunks {
    let enter = asm.here();
    emit_enter(asm);
    let exit = asm.here();
    emit_exit(asm);
    let miss = asm.here();
    emit_miss(asm, helpers.refill);
    let stack = asm.here();
    emit_stack(asm, miss, false);
    let user_stack = asm.here();
    emit_stack(asm, miss, true);
    let lend = asm.here();
    emit_lend(asm, exit);
    let lend_upper = asm.here();
    emit_lend_upper(asm, exit);
    let clock = asm.here();
    emit_clock(asm, helpers.clock);
    let lend_x87 = asm.here();
    fpu::emit_lend(asm, exit);
    Thunks { enter, exit, miss, stack, user_stack, lend, lend_upper, clock, lend_x87 }
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

/// Guest registers that live in the context, with their slots.
fn resident() -> impl Iterator<Item = (u8, u8)> {
    (0..16).filter_map(|guest| match place(guest) {
        Place::Slot(n) => Some((guest, n)),
        Place::Host(_) => None,
    })
}

/// The place where the vCPU keeps a register; RCX points to the first. Registers go there one by one and not by way of the
/// context: a copy of several at a time would have to wait until each store has reached the cache.
fn kept(guest: u8) -> Address {
    at(RCX, 8 * i32::from(guest))
}

pub(super) fn jump_r11(asm: &mut Asm) {
    asm.bytes(&[0x41, 0xff, 0xe3]); // jmp r11
}

/// `movups` between an XMM register and its place.
fn vector(asm: &mut Asm, store: bool, n: u8) {
    let address = at_offset(offset_of!(Context, xmm) + 16 * usize::from(n));
    asm.emit(&Encoding::new(Escape::M0f, 0x10 | u8::from(store), false, n, Rm::Mem(address)));
}

/// `ldmxcsr` or `stmxcsr`.
pub(super) fn control(asm: &mut Asm, store: bool, address: Address) {
    asm.emit(&Encoding::new(Escape::M0f, 0xae, false, 2 | u8::from(store), Rm::Mem(address)));
}

/// Saves the vector registers and gives the host its control word, if the guest's are in them.
fn save_vectors(asm: &mut Asm) {
    asm.load(RCX, field!(vector));
    let there = asm.jump_if_zero();
    upper::save(asm);
    for n in 0..16 {
        vector(asm, true, n);
    }
    control(asm, true, field!(mxcsr));
    control(asm, false, field!(host_mxcsr));
    asm.bind(there);
}

fn load_vectors(asm: &mut Asm) {
    asm.load(RCX, field!(vector));
    let there = asm.jump_if_zero();
    fetch_vectors(asm);
    upper::load(asm);
    asm.bind(there);
}

fn fetch_vectors(asm: &mut Asm) {
    control(asm, true, field!(host_mxcsr));
    control(asm, false, field!(mxcsr));
    for n in 0..16 {
        vector(asm, false, n);
    }
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
    fpu::load(asm);
    load_vectors(asm);
    load_flags(asm);
    asm.load(RCX, field!(registers));
    for (guest, n) in resident() {
        asm.load(R10, kept(guest));
        asm.store(slot(n), R10);
    }
    for (guest, host) in pinned() {
        asm.load(host, kept(guest));
    }
    asm.load(R10, field!(target));
    jump_r11(asm);
}

fn emit_exit(asm: &mut Asm) {
    asm.store(field!(target), R10);
    asm.load(RCX, field!(registers));
    for (guest, host) in pinned() {
        asm.store(kept(guest), host);
    }
    for (guest, n) in resident() {
        asm.load(R10, slot(n));
        asm.store(kept(guest), R10);
    }
    save_flags(asm);
    fpu::save(asm);
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

/// Calls a Rust function with the context and R10; its result is in RAX. Registers that it may change and flags are put away
/// before, and vector registers.
fn call(asm: &mut Asm, function: u64) {
    for (guest, host) in changed_by_calls() {
        asm.store(saved(guest), host);
    }
    save_flags(asm);
    fpu::save(asm);
    save_vectors(asm);
    asm.lea(RDI, at(RSP, BELOW));
    asm.mov(RSI, R10);
    asm.load(RSP, field!(host_rsp));
    push(asm, RDI);
    push(asm, RDI);
    asm.constant(RAX, function);
    asm.bytes(&[0xff, 0xd0]); // call rax
    pop(asm, RCX);
    asm.lea(RSP, at(RCX, -BELOW));
}

fn changed_by_calls() -> impl Iterator<Item = (u8, u8)> {
    pinned().filter(|(_, host)| CALLER_SAVED.contains(host))
}

/// Brings back what [`call`] has put away, vector registers apart.
fn after_call(asm: &mut Asm) {
    load_flags(asm);
    for (guest, host) in changed_by_calls() {
        asm.load(host, saved(guest));
    }
    jump_r11(asm);
}

fn emit_miss(asm: &mut Asm, refill: u64) {
    call(asm, refill);
    asm.mov(R11, RAX);
    fpu::load(asm);
    load_vectors(asm);
    after_call(asm);
}

fn emit_clock(asm: &mut Asm, clock: u64) {
    asm.store(field!(target), R11);
    call(asm, clock);
    asm.store_constant32(field!(vector), 0);
    asm.store_constant32(field!(upper), 0);
    asm.store_constant32(field!(fpu.live), 0);
    // RAX and RDX are the guest's own.
    asm.mov32(RCX, RAX);
    asm.store(saved(RAX), RCX);
    asm.bytes(&[0x48, 0xc1, 0xe8, 32]); // shr rax, 32
    asm.store(saved(RDX), RAX);
    asm.load(R11, field!(target));
    after_call(asm);
}

/// A page for the stack of a view: the one before it, which changes places with the one at hand, or one that the TLB has with
/// the right to write. If the page is at hand already the access is not all on it, and no page will do.
fn emit_stack(asm: &mut Asm, miss: u64, user: bool) {
    if !user {
        asm.off_page(field!(former_minus), R10, 0);
        let not = asm.jump_unless_zero();
        exchange(asm, field!(minus_stack), field!(former_minus));
        exchange(asm, field!(stack_delta), field!(former_delta));
        jump_r11(asm);
        asm.bind(not);
    }
    asm.off_page(field!(minus_stack), R10, 0);
    let at_hand = asm.jrcxz_later();
    asm.store(field!(target), R11);
    let (tag, delta) = (tlb_offset(user) + MINUS_WRITE, tlb_offset(user) + DELTA);
    asm.shrx(R11, R10, RSP);
    asm.low_word(R11, R11);
    asm.off_page(indexed(RSP, R11, 3, tag), R10, 0);
    let found = asm.jrcxz_later();
    asm.bind(at_hand);
    asm.jmp(miss);
    asm.bind(found);
    if !user {
        copy(asm, field!(former_minus), field!(minus_stack));
        copy(asm, field!(former_delta), field!(stack_delta));
    }
    copy(asm, field!(minus_stack), indexed(RSP, R11, 3, tag));
    copy(asm, field!(stack_delta), indexed(RSP, R11, 3, delta));
    asm.load(R11, field!(target));
    jump_r11(asm);
}

/// Copies a place. Uses RCX.
fn copy(asm: &mut Asm, to: Address, from: Address) {
    asm.load(RCX, from);
    asm.store(to, RCX);
}

/// Exchanges two places. Uses RCX and R10.
pub(super) fn exchange(asm: &mut Asm, one: Address, other: Address) {
    asm.load(RCX, one);
    asm.load(R10, other);
    asm.store(one, R10);
    asm.store(other, RCX);
}

/// Leaves unless something is lent, and notes that it is in the host's registers from here on. RCX is not zero then.
pub(super) fn offer(asm: &mut Asm, lent: Address, live: Address, exit: u64) {
    asm.load(RCX, lent);
    let there = asm.jump_unless_zero();
    asm.jmp(exit);
    asm.bind(there);
    asm.store(live, RCX);
}

/// Vector registers that are lent already are fetched without leaving. R10 stays.
fn emit_lend(asm: &mut Asm, exit: u64) {
    offer(asm, field!(lent), field!(vector), exit);
    fetch_vectors(asm);
    jump_r11(asm);
}

/// The same for units that need the upper halves as well; the lower ones may be there.
fn emit_lend_upper(asm: &mut Asm, exit: u64) {
    offer(asm, field!(lent_upper), field!(upper), exit);
    asm.load(RCX, field!(vector));
    let missing = asm.jrcxz_later();
    let there = asm.jmp_later();
    asm.bind(missing);
    asm.load(RCX, field!(upper));
    asm.store(field!(vector), RCX);
    fetch_vectors(asm);
    asm.bind(there);
    upper::fetch(asm);
    jump_r11(asm);
}

const _: () = assert!(RDX == 2);
