//! Changes of privilege inside translated code: SYSCALL from programs and SYSRET to 64-bit ones (SDM vol. 2); the bases of FS
//! and GS, and the time-stamp counter.
//!
//! What these instructions change stands in the context: flags, selectors, the view's stack. The vCPU takes it over when the
//! code leaves, or calls a helper. Whatever is unusual is the interpreter's: a processor whose system calls are not its
//! own, an interrupt that waits for IF, TF, AC, an address that is not canonical. Debug registers, hooks and single steps
//! need no look: with them no translated code runs.

use trapgate_x86::insn::{Operand, Seg};
use trapgate_x86::op::Op;
use trapgate_x86::regs::{cr4, rflags};

use super::Translator;
use super::asm::{Address, Encoding, Escape, R8, R10, R11, RAX, RCX, RSP, Rm, at, indexed};
use super::context::{Context, Place, at_offset, field, jumps_offset, place, saved, slot};
use super::emit::{Emitter, Fetched, Untranslatable};
use super::exits::{Cold, Exit};
use super::flow::Flow;
use super::thunks::exchange;
use crate::mmu::access::canonical;
use crate::state::{Vcpu, flags::ARITHMETIC};

/// What [`Context::loaded`] says.
pub(super) const BY_SYSCALL: u32 = 1;
pub(super) const BY_SYSRET: u32 = 2;

/// Opcode extensions of the 81 and C1 groups.
pub(super) const OR: u8 = 1;
pub(super) const AND: u8 = 4;
pub(super) const SHL: u8 = 4;
const SHR: u8 = 5;
pub(super) const SAR: u8 = 7;

/// Bits of RFLAGS that stand in `other_flags`.
const OTHER: u64 = rflags::ALL & !(ARITHMETIC | rflags::IF | rflags::RF | rflags::VM) | rflags::FIXED;

/// The place of a selector.
fn selector(seg: Seg) -> Address {
    at_offset(std::mem::offset_of!(Context, selectors) + 8 * seg as usize)
}

/// The place of one of the selectors that system calls load.
pub(super) fn loaded_selector(n: usize) -> Address {
    at_offset(std::mem::offset_of!(Context, call_selectors) + 8 * n)
}

impl Flow<'_> {
    /// SYSCALL at CPL 3.
    pub fn syscall(&mut self, f: &Fetched<'_>) {
        let Place::Slot(r11) = place(11) else { return };
        self.emitter.asm.load(RCX, field!(system_calls));
        self.emitter.leave_if_zero(f);
        self.emitter.whole_flags();
        let asm = &mut *self.emitter.asm;
        asm.store(slot(r11), RCX);
        // FMASK takes bits away; what was clear stays clear, so no interrupt can have waited for IF.
        asm.emit(&Encoding::new(Escape::None, 0x23, true, RCX, Rm::Mem(field!(call_mask))));
        self.emitter.immediate(0x81, OR, false, RCX, rflags::FIXED as i32);
        self.emitter.set_flags();
        self.emitter.asm.constant(R8, f.next());
        self.change_view(f, BY_SYSCALL, field!(call_target));
    }

    /// SYSRET with REX.W at CPL 0.
    pub fn sysret(&mut self, f: &Fetched<'_>) {
        let Place::Slot(r11) = place(11) else { return };
        self.emitter.asm.load(RCX, field!(system_calls));
        self.emitter.leave_if_zero(f);
        self.emitter.keep_flags();
        let exit = self.emitter.interpret(f);
        self.restore_unless_canonical(R8, exit);
        self.emitter.asm.load(RCX, slot(r11));
        let unusual = ((rflags::TF | rflags::AC) as u32).to_le_bytes();
        let test = Encoding::new(Escape::None, 0xf7, false, 0, Rm::Reg(RCX));
        self.emitter.asm.emit(&Encoding { imm: &unusual, ..test });
        self.restore_unless(4, exit);
        // IF may become one only while no interrupt waits for it.
        self.emitter.bit(R10, 9);
        let compare = Encoding::new(Escape::None, 0x3b, true, R10, Rm::Mem(field!(quiet)));
        self.emitter.asm.emit(&compare);
        self.restore_unless(6, exit);
        let kept = (rflags::ALL & !(rflags::RF | rflags::VM)) as i32;
        self.emitter.immediate(0x81, AND, false, RCX, kept);
        self.emitter.immediate(0x81, OR, false, RCX, rflags::FIXED as i32);
        self.emitter.set_flags();
        // The guest's RCX is the target.
        self.emitter.asm.store(field!(target), R8);
        self.change_view(f, BY_SYSRET, field!(target));
    }

    /// RDTSC and RDTSCP: a helper knows the time. It ends the unit, since the vector registers do not outlast it.
    pub fn read_clock(&mut self, f: &Fetched<'_>) {
        if self.emitter.user || self.emitter.para {
            self.emitter.asm.load(RCX, field!(open_clock));
            self.emitter.leave_if_zero(f);
        }
        let asm = &mut *self.emitter.asm;
        asm.constant(R10, u64::from(f.done));
        // Five bytes follow this one.
        let back = asm.here() + 7 + 5;
        asm.place_of(R11, back);
        asm.jmp(self.thunks.clock);
        debug_assert_eq!(back, asm.here());
        if f.insn.op == Op::Rdtscp {
            // The guest's RCX.
            asm.load(R8, field!(tsc_aux));
        }
        self.leave_to(f.next(), f.done + 1);
    }

    /// Leaves the instruction to the interpreter, with the flags put back, unless a condition holds.
    pub(super) fn restore_unless(&mut self, condition: u8, exit: u32) {
        let jump = self.emitter.asm.jcc_later(condition ^ 1);
        self.emitter.cold.push(Cold::Restore { jump, exit });
    }

    /// The same unless an address is canonical: bit 47 extends to those. Uses RCX.
    pub(super) fn restore_unless_canonical(&mut self, address: u8, exit: u32) {
        self.emitter.asm.mov(RCX, address);
        self.emitter.immediate(0xc1, SHL, true, RCX, 16);
        self.emitter.immediate(0xc1, SAR, true, RCX, 16);
        self.emitter.asm.emit(&Encoding::new(Escape::None, 0x3b, true, RCX, Rm::Reg(address)));
        self.restore_unless(4, exit);
    }

    /// Goes on in the other privilege view, at the address in a place.
    pub(super) fn change_view(&mut self, f: &Fetched<'_>, how: u32, target: Address) {
        let user = how == BY_SYSRET;
        let asm = &mut *self.emitter.asm;
        asm.store_constant32(field!(loaded), how);
        let counter = if user { field!(returned) } else { field!(called) };
        asm.load(RCX, counter);
        asm.lea(RCX, at(RCX, 1));
        asm.store(counter, RCX);
        for (n, seg) in [Seg::Cs, Seg::Ss].into_iter().enumerate() {
            asm.load(RCX, loaded_selector(n + if user { 2 } else { 0 }));
            asm.store(selector(seg), RCX);
        }
        exchange(asm, field!(minus_stack), field!(other_minus));
        exchange(asm, field!(stack_delta), field!(other_delta));
        asm.load(R10, target);
        let exit = self.emitter.exits.add(Exit::Indirect { rip: f.rip, undo: 0 });
        self.emitter.asm.store_constant32(field!(exit), exit);
        let used_up = self.charge(f.done + 1);
        let asm = &mut *self.emitter.asm;
        asm.low_word(R11, R10);
        asm.jmp_mem(indexed(RSP, R11, 3, jumps_offset(user)));
        asm.bind(used_up);
        asm.jmp(self.thunks.exit);
    }
}

impl Emitter<'_> {
    /// An instruction of the groups 81 and C1 with an immediate. Changes flags.
    pub(super) fn immediate(&mut self, opcode: u8, extension: u8, wide: bool, reg: u8, value: i32) {
        let plain = Encoding::new(Escape::None, opcode, wide, extension, Rm::Reg(reg));
        let (long, short) = (value.to_le_bytes(), [value as u8]);
        let imm: &[u8] = if opcode == 0xc1 { &short } else { &long };
        self.asm.emit(&Encoding { imm, ..plain });
    }

    /// Bit `n` of RCX alone in a register. Changes flags.
    fn bit(&mut self, to: u8, n: i32) {
        self.asm.mov32(to, RCX);
        self.immediate(0xc1, SHR, false, to, n);
        self.immediate(0x81, AND, false, to, 1);
    }

    /// RFLAGS as the guest's SYSCALL sees it, in RCX. Uses R10, changes flags.
    pub(super) fn whole_flags(&mut self) {
        self.asm.bytes(&[0x9c, 0x59]); // pushfq; pop rcx
        self.immediate(0x81, AND, false, RCX, ARITHMETIC as i32);
        self.asm.emit(&Encoding::new(Escape::None, 0x0b, true, RCX, Rm::Mem(field!(other_flags))));
        self.asm.load(R10, field!(interrupts));
        self.immediate(0xc1, SHL, false, R10, 9);
        self.asm.emit(&Encoding::new(Escape::None, 0x0b, true, RCX, Rm::Reg(R10)));
    }

    /// Makes RCX the guest's RFLAGS: those in the context, and the arithmetic ones. Uses R10.
    pub(super) fn set_flags(&mut self) {
        self.asm.mov32(R10, RCX);
        self.immediate(0x81, AND, false, R10, OTHER as i32);
        self.asm.store(field!(other_flags), R10);
        self.bit(R10, 9);
        self.asm.store(field!(interrupts), R10);
        self.bit(R10, 10);
        self.asm.store(field!(direction), R10);
        self.asm.store(saved(RAX), RAX);
        self.asm.bytes(&[0x88, 0xcc]); // mov ah, cl
        self.bit(RCX, 11);
        self.asm.bytes(&[0x88, 0xc8, 0x04, 0x7f, 0x9e]); // mov al, cl; add al, 7Fh; sahf
        self.asm.load(RAX, saved(RAX));
    }

    /// RDFSBASE and RDGSBASE.
    pub(super) fn read_base(&mut self, f: &Fetched<'_>, seg: Seg) -> Result<(), Untranslatable> {
        let Operand::Gpr { reg, size } = f.insn.operands[0] else { return Err(Untranslatable) };
        self.asm.load(RCX, field!(base_access));
        self.leave_if_zero(f);
        self.asm.load(RCX, base_of(seg));
        if size == 4 {
            self.asm.mov32(RCX, RCX);
        }
        match place(reg) {
            Place::Host(host) => self.asm.mov(host, RCX),
            Place::Slot(n) => self.asm.store(slot(n), RCX),
        }
        Ok(())
    }

    /// WRFSBASE and WRGSBASE.
    pub(super) fn write_base(&mut self, f: &Fetched<'_>, seg: Seg) -> Result<(), Untranslatable> {
        let Operand::Gpr { reg, size } = f.insn.operands[0] else { return Err(Untranslatable) };
        self.asm.load(RCX, field!(base_access));
        self.leave_if_zero(f);
        let value = self.borrow(place(reg), R10);
        if size == 4 {
            self.asm.mov32(R10, value);
        } else {
            self.asm.mov(R10, value);
            // Bits 63 to 47 are all alike: shifted up and back it is the same, and value + !value + 1 is zero.
            self.asm.constant(RCX, 16);
            self.asm.shlx(R11, R10, RCX);
            self.asm.sarx(R11, R11, RCX);
            self.asm.mov(RCX, R10);
            self.complement(RCX);
            self.asm.lea(RCX, indexed(RCX, R11, 0, 1));
            self.leave_unless_zero(f);
        }
        self.asm.store(base_of(seg), R10);
        Ok(())
    }
}

fn base_of(seg: Seg) -> Address {
    if seg == Seg::Fs { field!(fs_base) } else { field!(gs_base) }
}

impl Translator {
    /// Tells the context what changes of privilege need.
    pub(super) fn prepare_calls(&mut self, cpu: &Vcpu) {
        let context = self.context.get_mut();
        context.open_clock = u64::from(cpu.cr4 & cr4::TSD == 0);
        context.tsc_aux = cpu.tsc_aux & 0xffff_ffff;
        context.base_access = u64::from(cpu.cr4 & cr4::FSGSBASE != 0);
        if cpu.is_para() {
            return self.prepare_gates(cpu);
        }
        // A change of AC may be one of what may be read: the interpreter sees to it.
        let usual = cpu.native_system_calls() && canonical(cpu.lstar) && !cpu.flags.is_set(rflags::AC);
        context.system_calls = u64::from(usual);
        (context.call_target, context.call_mask) = (cpu.lstar, !cpu.fmask);
        context.call_selectors = cpu.call_selectors().map(u64::from);
    }

    /// Lets the vCPU take over the privilege that translated code has changed to.
    pub(super) fn take_mode(&mut self, cpu: &mut Vcpu) {
        let context = self.context.get_mut();
        let how = std::mem::take(&mut context.loaded) as u32;
        if how == 0 {
            return;
        }
        let (called, returned) = (std::mem::take(&mut context.called), std::mem::take(&mut context.returned));
        let user = how == BY_SYSRET;
        cpu.departures.system_calls += called;
        if !cpu.is_para() {
            cpu.departures.returns += returned;
        }
        self.stats.in_place += called + returned;
        cpu.flags.remove(!0);
        cpu.flags.insert(context.other_flags & !rflags::FIXED);
        cpu.flags.insert(if context.interrupts != 0 { rflags::IF } else { 0 });
        if cpu.is_para() {
            self.take_gate(cpu, user, returned);
        } else {
            cpu.load_call_segments(user);
        }
        self.user = cpu.user_view;
    }
}
