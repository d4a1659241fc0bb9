//! The guest's x87 state in the host's unit: lent as the XMM registers are (`passage`), fetched by the first unit of
//! translation that needs it, and put away again before Rust code runs, which finds the unit as the System V ABI says.
//!
//! It is lent only while every exception is masked and none is pending, so that the host never raises one; and it moves as an
//! FXSAVE image, which is several times as fast as FNSAVE and faster than XSAVE of the x87 alone. The pointers of
//! the host's unit are places of the code cache and are not looked at: with all exceptions masked the guest's FOP, FDP and
//! FDS do not change in the models that are lent to, FCS is zero, and translated code notes FIP itself.

use std::mem::offset_of;

use trapgate_x86::features::Features;
use trapgate_x86::regs::cr0;

use super::Translator;
use super::asm::{Asm, Encoding, Escape, RCX, Rm};
use super::context::{Context, at_offset, field};
use super::thunks::{control, jump_r11, offer};
use crate::state::Vcpu;
use crate::vector::{F80, fsw};

/// What of the context the x87 state takes.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct Fpu {
    /// An FXSAVE64 image (SDM vol. 1, table 10-2), of which the x87's part counts, pointers apart.
    pub image: [u64; 64],
    /// Not zero while the guest's state is in the host's unit.
    pub live: u64,
    /// Not zero while `image` or the host's unit holds what the vCPU's x87 state is to become, and instructions may use it.
    pub lent: u64,
    /// FIP, as far as it has been stored.
    pub pointer: u64,
    /// The exception masks of a control word.
    pub masks: u64,
    /// A control word that is about to be loaded.
    pub new_control: u64,
    /// The control word of the code that entered.
    pub host_control: u64,
}

/// The exception masks of the control word.
pub const MASKS: u16 = 0x3f;
const MXCSR_AT: usize = 24;
const XMM_AT: usize = 160;

/// Names for the places of [`Fpu`], for explanations.
pub fn place_name(offset: usize) -> Option<&'static str> {
    let at = offset.checked_sub(offset_of!(Context, fpu))?;
    let places = [
        (offset_of!(Fpu, live), "x87"),
        (offset_of!(Fpu, lent), "x87_lent"),
        (offset_of!(Fpu, pointer), "fip"),
        (offset_of!(Fpu, pointer) + 4, "fip+4"),
        (offset_of!(Fpu, masks), "x87_masks"),
        (offset_of!(Fpu, new_control), "new_fcw"),
        (offset_of!(Fpu, host_control), "host_fcw"),
    ];
    places.into_iter().find(|(place, _)| *place == at).map(|(_, name)| name)
}

/// `opcode /extension` on a word of the context.
fn word(asm: &mut Asm, opcode: u8, extension: u8) {
    asm.emit(&Encoding::new(Escape::None, opcode, false, extension, Rm::Mem(field!(fpu.host_control))));
}

/// `fxsave64` or `fxrstor64`.
fn move_image(asm: &mut Asm, extension: u8) {
    asm.emit(&Encoding::new(Escape::M0f, 0xae, true, extension, Rm::Mem(field!(fpu.image))));
}

/// Puts the state away and gives the host an empty stack and its control word, if the guest's are in the unit. Uses RCX.
pub fn save(asm: &mut Asm) {
    asm.load(RCX, field!(fpu.live));
    let there = asm.jump_if_zero();
    move_image(asm, 0);
    // Flags that the host's control word might not mask; then FNINIT by other means, which takes twice as long.
    asm.bytes(&[0xdb, 0xe2, 0x0f, 0x77]); // fnclex; emms
    word(asm, 0xd9, 5); // fldcw
    asm.bind(there);
}

/// Fetches the state if it was in the unit before. XMM registers must not be the guest's, MXCSR stays. Uses RCX.
pub fn load(asm: &mut Asm) {
    asm.load(RCX, field!(fpu.live));
    let there = asm.jump_if_zero();
    fetch(asm);
    asm.bind(there);
}

/// MXCSR and the image's XMM registers are loaded as well.
fn fetch(asm: &mut Asm) {
    word(asm, 0xd9, 7); // fnstcw
    control(asm, true, at_offset(offset_of!(Context, fpu.image) + MXCSR_AT));
    move_image(asm, 1);
}

/// State that is lent already is fetched without leaving; R11 is where to go on, R10 stays. XMM registers that are in use
/// go by way of the image.
pub fn emit_lend(asm: &mut Asm, exit: u64) {
    offer(asm, field!(fpu.lent), field!(fpu.live), exit);
    asm.load(RCX, field!(vector));
    let free = asm.jump_if_zero();
    for n in 0..16u8 {
        let place = at_offset(offset_of!(Context, fpu.image) + XMM_AT + 16 * usize::from(n));
        asm.emit(&Encoding::new(Escape::M0f, 0x29, false, n, Rm::Mem(place))); // movaps
    }
    asm.bind(free);
    fetch(asm);
    jump_r11(asm);
}

impl Translator {
    /// A unit needs the x87 state: gives it, unless an instruction of its kind would fault or the interpreter must see to
    /// unmasked exceptions.
    pub(super) fn lend_x87(&mut self, cpu: &mut Vcpu) -> bool {
        let pointers = Features::FDP_EXCPTN_ONLY | Features::FCS_FDS_DEPRECATED;
        let usable = cpu.cr0 & (cr0::TS | cr0::EM) == 0 && cpu.features().contains(pointers);
        let x87 = &cpu.vector().x87;
        if !usable || x87.fcw & MASKS != MASKS || x87.fsw & fsw::ES != 0 {
            return false;
        }
        let fpu = &mut self.context.get_mut().fpu;
        let words = [x87.fcw, x87.fsw, x87.tags.into(), 0];
        fpu.image[0] = (0..).zip(words).fold(0, |all, (n, word)| all | u64::from(word) << (16 * n));
        for i in 0..8 {
            let value = x87.st(i);
            let at = 4 + 2 * usize::from(i);
            (fpu.image[at], fpu.image[at + 1]) = (value.significand, value.sign_exponent.into());
        }
        fpu.pointer = x87.fip;
        (fpu.lent, fpu.live) = (1, 1);
        true
    }

    /// Takes lent x87 state back.
    pub(super) fn take_x87(&mut self, cpu: &mut Vcpu) {
        let fpu = &mut self.context.get_mut().fpu;
        fpu.live = 0;
        if std::mem::take(&mut fpu.lent) == 0 {
            return;
        }
        let x87 = &mut cpu.vector().x87;
        let word = |n: u32| (fpu.image[0] >> (16 * n)) as u16;
        (x87.fcw, x87.fsw, x87.tags) = (word(0), word(1), word(2) as u8);
        for i in 0..8 {
            let at = 4 + 2 * usize::from(i);
            let physical = x87.physical(i);
            x87.regs[physical] = F80::new(fpu.image[at + 1] as u16, fpu.image[at]);
        }
        x87.fip = fpu.pointer;
    }

    /// The host has put the state away, since the code left by an exit: notes the last x87 instruction before it.
    pub(super) fn leave_x87(&mut self, exit: u32) {
        self.context.get_mut().fpu.live = 0;
        self.note_pointer(self.exits.pointer_at(exit));
    }

    /// Notes the last x87 instruction, if there was one.
    pub(super) fn note_pointer(&mut self, pointer: Option<u64>) {
        let fpu = &mut self.context.get_mut().fpu;
        if let Some(pointer) = pointer.filter(|_| fpu.lent != 0) {
            fpu.pointer = pointer;
        }
    }
}

const _: () = assert!(offset_of!(Context, fpu).is_multiple_of(64));
