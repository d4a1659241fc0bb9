//! The upper halves of the guest's YMM registers. They are lent to the host's registers apart from the lower ones, when a unit
//! with a VEX prefix needs them: legacy SSE leaves them alone, so units of that kind need not know where they are.
//!
//! While [`Context::upper`] is set they are in the host's registers, together with the lower halves. Rust code runs with the
//! host's upper halves clear, since legacy SSE in it would otherwise wait for them (Intel's optimization manual, mixing AVX
//! code with SSE code).

use trapgate_x86::regs::{cr4, xcr0};

use super::Translator;
use super::asm::{Asm, Encoding, Escape, RCX, Rm, Vex};
use super::context::{Context, at_offset, field};
use crate::state::Vcpu;

/// The register that collects whether any upper half has a bit set.
const LAST: u8 = 15;
const ZERO: u8 = 4;

/// A VEX instruction: opcode map, VEX.pp, opcode, VEX.L.
type Form = (Escape, u8, u8, bool);
const LOAD: Form = (Escape::M0f, 0, 0x10, false); // vmovups
const STORE: Form = (Escape::M0f, 0, 0x11, false);
const OR: Form = (Escape::M0f, 0, 0x56, true); // vorps
const TEST: Form = (Escape::M0f38, 1, 0x17, false); // vptest
const INSERT: Form = (Escape::M0f3a, 1, 0x18, true); // vinsertf128
const EXTRACT: Form = (Escape::M0f3a, 1, 0x19, true); // vextractf128

fn emit(asm: &mut Asm, (escape, pp, opcode, l): Form, [reg, vvvv]: [u8; 2], rm: Rm, imm: &[u8]) {
    let plain = Encoding::new(escape, opcode, false, reg, rm);
    asm.emit(&Encoding { imm, vex: Some(Vex { vvvv, l, pp }), ..plain });
}

/// The place of an upper half.
fn upper(n: u8) -> Rm {
    Rm::Mem(at_offset(std::mem::offset_of!(Context, upper_halves) + 16 * usize::from(n)))
}

/// The place of a lower half.
fn lower(n: u8) -> Rm {
    Rm::Mem(at_offset(std::mem::offset_of!(Context, xmm) + 16 * usize::from(n)))
}

fn vzeroupper(asm: &mut Asm) {
    asm.bytes(&[0xc5, 0xf8, 0x77]);
}

/// Puts upper halves that are in the host's registers into the context, and clears the host's. Most often all of them are
/// zero, which is all that is noted then. Ends RCX and flags.
pub(super) fn save(asm: &mut Asm) {
    asm.load(RCX, field!(upper));
    let none = asm.jump_if_zero();
    emit(asm, STORE, [LAST, 0], lower(LAST), &[]);
    emit(asm, EXTRACT, [LAST, 0], upper(LAST), &[1]);
    for n in 0..LAST {
        emit(asm, OR, [LAST, LAST], Rm::Reg(n), &[]);
    }
    emit(asm, EXTRACT, [LAST, 0], Rm::Reg(LAST), &[1]);
    emit(asm, TEST, [LAST, 0], Rm::Reg(LAST), &[]);
    emit(asm, LOAD, [LAST, 0], lower(LAST), &[]);
    asm.store_constant32(field!(zero_upper), 1);
    let zero = asm.jcc_later(ZERO);
    asm.store_constant32(field!(zero_upper), 0);
    for n in 0..LAST {
        emit(asm, EXTRACT, [n, 0], upper(n), &[1]);
    }
    asm.bind(zero);
    vzeroupper(asm);
    asm.bind(none);
}

/// The reverse of [`save`], if upper halves are to be in the host's registers; the lower ones are. Ends RCX, keeps flags.
pub(super) fn load(asm: &mut Asm) {
    asm.load(RCX, field!(upper));
    let none = asm.jump_if_zero();
    fetch(asm);
    asm.bind(none);
}

/// Puts upper halves into the host's registers. Ends RCX, keeps flags.
pub(super) fn fetch(asm: &mut Asm) {
    asm.load(RCX, field!(zero_upper));
    let other = asm.jrcxz_later();
    vzeroupper(asm);
    let done = asm.jmp_later();
    asm.bind(other);
    for n in 0..=LAST {
        emit(asm, INSERT, [n, n], upper(n), &[1]);
    }
    asm.bind(done);
}

/// Whether VEX instructions on vector registers run (SDM vol. 1, 14.3): CR0.TS is looked at with the lower halves.
fn is_usable(cpu: &Vcpu) -> bool {
    let state = xcr0::SSE | xcr0::AVX;
    cpu.cr4 & cr4::OSXSAVE != 0 && cpu.xcr0 & state == state
}

impl Translator {
    /// A unit needs the upper halves, besides the lower ones that are lent: gives them to it, unless its instructions would
    /// fault.
    pub(super) fn lend_upper(&mut self, cpu: &mut Vcpu) -> bool {
        if !is_usable(cpu) {
            return false;
        }
        self.upper_wanted = true;
        self.offer_upper(cpu);
        self.context.get_mut().upper = 1;
        true
    }

    /// Has the upper halves at hand for units that will need them, if there have been such.
    pub(super) fn offer_upper(&mut self, cpu: &mut Vcpu) {
        let context = self.context.get_mut();
        if !self.upper_wanted || context.lent_upper != 0 || !is_usable(cpu) {
            return;
        }
        let halves = &cpu.vector().ymm_high;
        let zero = halves.iter().all(|half| *half == 0);
        if !zero {
            for (place, value) in context.upper_halves.iter_mut().zip(halves) {
                *place = [*value as u64, (value >> 64) as u64];
            }
        }
        (context.lent_upper, context.zero_upper) = (1, u64::from(zero));
    }

    /// Takes lent upper halves back.
    pub(super) fn take_upper(&mut self, cpu: &mut Vcpu) {
        let context = self.context.get_mut();
        context.upper = 0;
        if std::mem::take(&mut context.lent_upper) == 0 {
            return;
        }
        let halves = &mut cpu.vector().ymm_high;
        if context.zero_upper != 0 {
            return halves.fill(0);
        }
        for (half, value) in halves.iter_mut().zip(context.upper_halves) {
            *half = u128::from(value[1]) << 64 | u128::from(value[0]);
        }
    }
}
