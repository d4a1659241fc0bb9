//! Changes between user and kernel mode of a para-virtual guest inside translated code: SYSCALL from programs, which enters the
//! kernel by a frame on its stack, and the iret hypercall, which takes such a frame apart (xen/include/public/arch-x86/xen-x86_64.h).
//!
//! What they change stands in the context until the code leaves or calls a helper, as for SYSCALL and SYSRET of a processor
//! (`modes`). The monitor does whatever is unusual: an event that waits, a frame that is not in the page at hand, a return to
//! the kernel or to other segments than last time, TF, RF or AC, an address that is not canonical, a call whose handler is
//! somebody else's by now.

use trapgate_x86::regs::rflags;

use super::Translator;
use super::asm::{Address, Encoding, Escape, R8, R9, R10, R11, RAX, RCX, Rm, at, indexed};
use super::context::{Place, field, place, slot};
use super::emit::{Emitter, Fetched};
use super::flow::Flow;
use super::modes::{AND, BY_SYSCALL, BY_SYSRET, OR, loaded_selector};
use crate::memory::PAGE;
use crate::mmu::access::canonical;
use crate::monitor::{Gates, Mode};
use crate::state::{Vcpu, flags::ARITHMETIC};

/// Number of the iret hypercall.
const IRET: i32 = 23;
/// Bytes of an iret's: RAX, R11, RCX, what kind of return it is, RIP, CS, RFLAGS, RSP, SS.
const IRET_FRAME: i32 = 9 * 8;
/// Flags that a system call clears, and those that the frame of an iret decides about.
const CLEARED: u64 = rflags::TF | rflags::RF | rflags::NT | rflags::AC | rflags::VM | rflags::DF;
const FROM_FRAME: u64 = ARITHMETIC | rflags::DF | rflags::NT | rflags::ID;
/// Flags of an iret's frame that the monitor sees to.
const UNUSUAL: u64 = rflags::TF | rflags::RF | rflags::AC;

/// A word of the frame that R11 points to.
fn word(n: i32) -> Address {
    at(R11, 8 * n)
}

impl Flow<'_> {
    /// SYSCALL in user mode.
    pub fn enter_kernel(&mut self, f: &Fetched<'_>) {
        let Place::Slot(r11) = place(11) else { return };
        let e = &mut self.emitter;
        e.asm.load(RCX, field!(system_calls));
        e.leave_if_zero(f);
        // No event is pending, and none is masked: both are one byte each.
        e.asm.load(RCX, field!(events));
        e.asm.emit(&Encoding::new(Escape::M0f, 0xb7, false, RCX, Rm::Mem(at(RCX, 0)))); // movzx ecx, word [rcx]
        e.leave_unless_zero(f);
        e.asm.load(R10, field!(call_frame));
        e.asm.off_page(field!(other_minus), R10, 0);
        e.leave_unless_zero(f);
        e.asm.load(R11, field!(other_delta));
        e.asm.lea(R11, indexed(R11, R10, 0, 0));
        // Host R9 is the guest's RSP, R8 its RCX.
        e.asm.store(word(5), R9);
        e.asm.mov(R9, R10);
        e.asm.constant(R8, f.next());
        e.asm.store(word(0), R8);
        e.asm.store(word(2), R8);
        for (n, seg) in [(3, 0), (6, 1)] {
            e.asm.load(RCX, loaded_selector(seg));
            e.asm.store(word(n), RCX);
        }
        e.whole_flags();
        e.asm.store(slot(r11), RCX);
        e.asm.store(word(1), RCX);
        e.asm.store(word(4), RCX);
        e.immediate(0x81, AND, false, RCX, !CLEARED as i32);
        e.set_flags();
        e.mask_events(true);
        e.swapgs();
        self.change_view(f, BY_SYSCALL, field!(call_target));
    }

    /// SYSCALL in kernel mode: a hypercall. All but iret are the monitor's.
    pub fn hypercall(&mut self, f: &Fetched<'_>) {
        let Place::Slot(r11) = place(11) else { return };
        let e = &mut self.emitter;
        e.asm.lea(RCX, at(RAX, -IRET));
        e.leave_unless_zero(f);
        e.asm.load(RCX, field!(iret_row));
        e.leave_if_zero(f);
        e.asm.load(RCX, at(RCX, 0));
        e.leave_unless_zero(f);
        e.asm.load(RCX, field!(events));
        e.asm.load_byte(RCX, at(RCX, 0));
        e.leave_unless_zero(f);
        for byte in [0, IRET_FRAME - 1] {
            e.asm.off_page(field!(minus_stack), R9, byte);
            e.leave_unless_zero(f);
        }
        e.asm.load(R11, field!(stack_delta));
        e.asm.lea(R11, indexed(R11, R9, 0, 0));
        e.asm.load(RCX, word(3));
        e.leave_unless_zero(f);
        self.check_frame(f);
        let e = &mut self.emitter;
        // The frame's flags are in RCX.
        e.immediate(0x81, AND, false, RCX, FROM_FRAME as i32);
        e.immediate(0x81, OR, false, RCX, (rflags::IF | rflags::FIXED) as i32);
        e.set_flags();
        e.asm.load(RAX, word(0));
        e.asm.load(RCX, word(1));
        e.asm.store(slot(r11), RCX);
        e.asm.load(R8, word(2));
        e.asm.load(R9, word(7));
        e.mask_events(false);
        e.swapgs();
        self.change_view(f, BY_SYSRET, field!(target));
    }

    /// Leaves an iret to the monitor unless its frame leads to 64-bit user code as the last one did, with events unmasked. Puts
    /// the target into the context and the flags into RCX.
    fn check_frame(&mut self, f: &Fetched<'_>) {
        self.emitter.keep_flags();
        let exit = self.emitter.interpret(f);
        for (n, selector) in [(5, 2), (8, 3)] {
            let asm = &mut *self.emitter.asm;
            asm.emit(&Encoding::new(Escape::M0f, 0xb7, false, RCX, Rm::Mem(word(n)))); // movzx ecx, word
            asm.emit(&Encoding::new(Escape::None, 0x3b, true, RCX, Rm::Mem(loaded_selector(selector))));
            self.restore_unless(4, exit);
        }
        self.emitter.asm.load(R10, word(4));
        self.restore_unless_canonical(R10, exit);
        self.emitter.asm.store(field!(target), R10);
        self.emitter.asm.load(RCX, word(6));
        for (bits, condition) in [(UNUSUAL, 4), (rflags::IF, 5)] {
            let bits = (bits as u32).to_le_bytes();
            let test = Encoding::new(Escape::None, 0xf7, false, 0, Rm::Reg(RCX));
            self.emitter.asm.emit(&Encoding { imm: &bits, ..test });
            self.restore_unless(condition, exit);
        }
    }
}

impl Emitter<'_> {
    /// Stores the byte that masks events. Uses RCX.
    fn mask_events(&mut self, masked: bool) {
        self.asm.load(RCX, field!(events));
        let store = Encoding::new(Escape::None, 0xc6, false, 0, Rm::Mem(at(RCX, 1)));
        self.asm.emit(&Encoding { imm: &[u8::from(masked)], ..store });
    }
}

/// What the vCPU takes over of a mode that translated code has changed to.
#[derive(Clone, Copy, Debug)]
pub struct Modes {
    kernel: Mode,
    user: Mode,
}

impl Translator {
    /// Tells the context what changes between user and kernel mode need.
    pub(super) fn prepare_gates(&mut self, cpu: &Vcpu) {
        let gates = cpu.gates().filter(|gates| gates.frame_is_usual() && is_plain(cpu, gates));
        let context = self.context.get_mut();
        let Some(gates) = gates else {
            (context.system_calls, context.iret_row) = (0, 0);
            return;
        };
        context.events = cpu.memory.host_base() as u64 + gates.events;
        (context.call_target, context.call_frame) = (gates.entry, gates.frame());
        context.system_calls = u64::from(canonical(gates.entry) && gates.entry != 0);
        context.iret_row = gates.returns as *const _ as u64;
        let [kernel, user] = [gates.kernel, gates.user];
        context.call_selectors =
            [kernel.cs, kernel.ss, user.cs, user.ss].map(|segment| segment.selector.into());
        self.modes = Some(Modes { kernel, user });
    }

    /// A page may no longer be written to as it was: it may be the one with the events.
    pub(super) fn close_gates_on(&mut self, host: u64) {
        let context = self.context.get_mut();
        if context.events & !(PAGE - 1) == host {
            (context.system_calls, context.iret_row) = (0, 0);
        }
    }

    /// Lets the vCPU take over the mode that translated code has changed to.
    pub(super) fn take_gate(&mut self, cpu: &mut Vcpu, user: bool, returned: u64) {
        cpu.note_returns(returned);
        if let Some(modes) = self.modes {
            cpu.load_mode(if user { &modes.user } else { &modes.kernel }, user);
        }
    }
}

/// Whether nothing about the vCPU wants the monitor's eye: its flags are those that frames decide about, and the page with the
/// events holds no code.
fn is_plain(cpu: &Vcpu, gates: &Gates<'_>) -> bool {
    let (flags, known) = (cpu.rflags(), FROM_FRAME | rflags::IF | rflags::FIXED);
    flags & !known == 0
        && flags & rflags::IF != 0
        && cpu.memory.code_state(gates.events & !(PAGE - 1)) & 1 == 0
}
