//! Far transfers: JMP, CALL, RET and IRET that change CS (SDM vol. 3, 5.8, and vol. 2, IRET).

use trapgate_x86::exception::Vector;
use trapgate_x86::insn::{Bits, Operand, Seg};
use trapgate_x86::regs::rflags;

use super::descriptor::selector_error;
use super::{Uop, by_width, mask};
use crate::exit::{Exit, Unsupported};
use crate::fault::{Done, Exception, Stop};
use crate::memory::Word;
use crate::mmu::access::{Intent, canonical};
use crate::state::{Descriptor, Segment, Vcpu};

impl Vcpu {
    /// Ends the run: the guest needs something that the engine does not do.
    #[cold]
    pub(crate) fn unsupported<X>(&mut self, what: Unsupported) -> Done<X> {
        let rip = self.rip;
        self.exit = Some(Exit::Unsupported { what, rip });
        Err(Stop::Exit)
    }

    /// Checks and loads a code descriptor for privilege `cpl`; gives the CS to be set.
    fn code_segment(&mut self, selector: u16, d: Descriptor, cpl: u8) -> Done<Segment> {
        if self.mode.long && d.long() && d.big() {
            return self.raise(Exception::gp(selector_error(selector)));
        }
        if !d.present() {
            return self.raise(Exception::with_error(Vector::Np, selector_error(selector)));
        }
        self.mark_descriptor(selector, d, 1 << 40)?;
        let mut cs = Descriptor(d.0 | 1 << 40).segment(selector & !3 | u16::from(cpl));
        if self.mode.long && cs.long() {
            cs.base = 0;
        }
        Ok(cs)
    }

    /// #GP(0) if the target is outside the new code segment or not canonical.
    fn check_far_target(&mut self, cs: &Segment, target: u64) -> Done {
        let bits64 = self.mode.long && cs.long();
        let good = if bits64 { canonical(target) } else { target <= u64::from(cs.limit) };
        if good { Ok(()) } else { self.protection() }
    }

    /// The checks of the TSS that come before a task switch; a fault of them is the guest's, whoever runs it (SDM vol. 3,
    /// 7.3, and vol. 2, INT n, CALL, JMP, IRET).
    pub(super) fn check_task(&mut self, selector: u16, link: Link, ext: u32) -> Done {
        let named = selector_error(selector) | ext;
        let (vector, kinds) = match link {
            Link::Forward => (Vector::Gp, [1, 9]),
            Link::Back => (Vector::Ts, [3, 11]),
        };
        // A task is in the global table.
        if selector & !3 == 0 || selector & 4 != 0 {
            return self.raise(Exception::with_error(vector, named));
        }
        let d = match self.descriptor(selector, vector) {
            Ok(d) => d,
            Err(stop) => {
                self.name_fault(vector, named);
                return Err(stop);
            }
        };
        if d.is_code_or_data() || !kinds.contains(&d.kind()) {
            return self.raise(Exception::with_error(vector, named));
        }
        if !d.present() {
            return self.raise(Exception::with_error(Vector::Np, named));
        }
        let least = if d.kind() & 8 != 0 { 0x67 } else { 0x2b };
        if d.limit() < least {
            return self.raise(Exception::with_error(Vector::Ts, named));
        }
        Ok(())
    }

    /// CALL or JMP to a task or a task gate: what is to be found wrong before the switch, which is not done.
    fn far_task(&mut self, selector: u16, d: Descriptor) -> Done<Target> {
        let rpl = (selector & 3) as u8;
        if d.dpl() < self.cpl.max(rpl) {
            return self.raise(Exception::gp(selector_error(selector)));
        }
        let mut task = selector;
        if d.kind() == 5 {
            if !d.present() {
                return self.raise(Exception::with_error(Vector::Np, selector_error(selector)));
            }
            task = (d.0 >> 16) as u16;
        }
        self.check_task(task, Link::Forward, 0)?;
        self.unsupported(Unsupported::TaskSwitch)
    }

    /// What a far call or jump leads to.
    fn far_target(&mut self, selector: u16, jump: bool) -> Done<Target> {
        if selector & !3 == 0 {
            return self.protection();
        }
        let d = self.descriptor(selector, Vector::Gp)?;
        if !d.is_code_or_data() {
            // The privilege of a para-virtual guest is not the processor's: no gate leads anywhere (Xen gives them DPL 0).
            if self.is_para() {
                return self.raise(Exception::gp(selector_error(selector)));
            }
            return match (d.kind(), self.mode.long) {
                (12, true) | (4 | 12, false) => {
                    let gate = self.call_gate(selector, d)?;
                    if jump && !gate.code.conforming() && gate.code.dpl() != self.cpl {
                        return self.raise(Exception::gp(selector_error(gate.selector)));
                    }
                    if self.mode.long {
                        Ok(Target::Gate(gate))
                    } else {
                        self.unsupported(Unsupported::CallGate)
                    }
                }
                (1 | 5 | 9, false) => self.far_task(selector, d),
                _ => self.raise(Exception::gp(selector_error(selector))),
            };
        }
        let rpl = (selector & 3) as u8;
        let allowed = d.is_code()
            && if d.conforming() { d.dpl() <= self.cpl } else { rpl <= self.cpl && d.dpl() == self.cpl };
        if !allowed {
            return self.raise(Exception::gp(selector_error(selector)));
        }
        Ok(Target::Code(self.code_segment(selector, d, self.cpl)?))
    }

    /// Checks a call gate and the code it leads to (SDM vol. 3, 5.8.3.1 and 5.8.4).
    fn call_gate(&mut self, selector: u16, gate: Descriptor) -> Done<Gate> {
        let rpl = (selector & 3) as u8;
        if gate.dpl() < self.cpl.max(rpl) {
            return self.raise(Exception::gp(selector_error(selector)));
        }
        let upper = if self.mode.long { self.upper_base(selector, Vector::Gp)? } else { 0 };
        if !gate.present() {
            return self.raise(Exception::with_error(Vector::Np, selector_error(selector)));
        }
        let target = (gate.0 >> 16) as u16;
        if target & !3 == 0 {
            return self.protection();
        }
        let code = self.descriptor(target, Vector::Gp)?;
        let wrong_width = self.mode.long && (!code.long() || code.big());
        if !code.is_code() || code.dpl() > self.cpl || wrong_width {
            return self.raise(Exception::gp(selector_error(target)));
        }
        if !code.present() {
            return self.raise(Exception::with_error(Vector::Np, selector_error(target)));
        }
        let offset = gate.0 & 0xffff | gate.0 >> 32 & 0xffff_0000 | upper;
        Ok(Gate { selector: target, code, offset })
    }

    /// Enters a code segment.
    pub(super) fn enter_code(&mut self, cs: Segment, rip: u64) {
        self.seg[Seg::Cs as usize] = cs;
        self.update_mode();
        self.rip = rip & self.mode.rip_mask;
        self.attention = true;
        self.end_block();
    }

    /// The far pointer of the operand: in the code or in memory.
    fn far_pointer<T: Word>(&mut self, u: &Uop) -> Done<(u16, u64)> {
        if let Operand::Mem { .. } = u.insn.operands[0] {
            let linear = self.linear(u, T::SIZE as u32 + 2, false)?;
            let seg = u.insn.mem.seg;
            let offset = self.load::<T>(seg, linear)?.to_u64();
            let selector: u16 = self.load(seg, linear.wrapping_add(T::SIZE as u64))?;
            return Ok((selector, offset));
        }
        Ok((u.insn.imm2, u.insn.imm & mask::<T>()))
    }
}

/// Which way a task is entered: forward to an available one, or back to the busy one that it came from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Link {
    Forward,
    Back,
}

/// Where a far jump or call goes.
enum Target {
    /// A code segment at the same privilege; the offset is the instruction's.
    Code(Segment),
    Gate(Gate),
}

/// A call gate of long mode, unfolded.
struct Gate {
    selector: u16,
    code: Descriptor,
    offset: u64,
}

/// JMP far. Through a call gate the privilege stays as it is.
pub(super) fn jmp_far<T: Word>(cpu: &mut Vcpu, u: &Uop) -> Done {
    let (selector, offset) = cpu.far_pointer::<T>(u)?;
    let (cs, target) = match cpu.far_target(selector, true)? {
        Target::Code(cs) => (cs, offset),
        Target::Gate(Gate { selector, code, offset }) => (cpu.code_segment(selector, code, cpu.cpl)?, offset),
    };
    cpu.check_far_target(&cs, target)?;
    cpu.enter_code(cs, target);
    Ok(())
}

/// CALL far.
pub(super) fn call_far<T: Word>(cpu: &mut Vcpu, u: &Uop) -> Done {
    let (selector, target) = cpu.far_pointer::<T>(u)?;
    let cs = match cpu.far_target(selector, false)? {
        Target::Code(cs) => cs,
        Target::Gate(gate) => return call_through(cpu, u, &gate),
    };
    cpu.check_far_target(&cs, target)?;
    let (old, next, sp) = (cpu.segment(Seg::Cs).selector, cpu.next_rip(u), cpu.regs[4]);
    cpu.push::<T>(u64::from(old))?;
    if let Err(stop) = cpu.push::<T>(next) {
        cpu.regs[4] = sp;
        return Err(stop);
    }
    cpu.enter_code(cs, target);
    Ok(())
}

/// CALL through a gate of long mode: 64-bit pushes, and for an inner ring its stack from the TSS and a null SS.
fn call_through(cpu: &mut Vcpu, u: &Uop, gate: &Gate) -> Done {
    let outer = cpu.cpl;
    let cpl = if gate.code.conforming() { outer } else { gate.code.dpl() };
    let old_sp = cpu.regs[4];
    let top = if cpl < outer { cpu.tss_u64(4 + 8 * u64::from(cpl), 0)? } else { old_sp & cpu.stack_mask() };
    let cs = cpu.code_segment(gate.selector, gate.code, cpl)?;
    cpu.check_far_target(&cs, gate.offset)?;
    if !canonical(top) {
        return cpu.raise(Exception::with_error(Vector::Ss, 0));
    }
    let selector = |cpu: &Vcpu, seg| u64::from(cpu.segment(seg).selector);
    let frame = [selector(cpu, Seg::Ss), old_sp, selector(cpu, Seg::Cs), cpu.next_rip(u)];
    let words = if cpl < outer { &frame[..] } else { &frame[2..] };
    // The frame is written with the inner privilege; nothing else has changed if that faults.
    cpu.cpl = cpl;
    cpu.user_view = cpl == 3;
    let mut sp = top;
    let done = words.iter().try_for_each(|word| {
        sp = sp.wrapping_sub(8);
        cpu.store_as::<u64>(Seg::Ss, sp, *word, Intent::Write)
    });
    if let Err(stop) = done {
        cpu.cpl = outer;
        cpu.user_view = outer == 3;
        return Err(stop);
    }
    cpu.regs[4] = sp;
    if cpl < outer {
        let access = u16::from(cpl) << 5;
        cpu.seg[Seg::Ss as usize] = Segment { selector: u16::from(cpl), base: 0, limit: 0, access };
    }
    cpu.enter_code(cs, gate.offset);
    Ok(())
}

/// RET far.
pub(super) fn ret_far<T: Word>(cpu: &mut Vcpu, u: &Uop) -> Done {
    let release = if let Operand::Imm { .. } = u.insn.operands[0] { u.insn.imm } else { 0 };
    let target = cpu.peek::<T>(0)?;
    let selector = cpu.peek::<T>(T::SIZE as u64)? as u16;
    let frame = Frame { target, selector, next: 2 * T::SIZE as u64 + release, release };
    far_return::<T>(cpu, frame, false)
}

/// What a far return has popped.
struct Frame {
    target: u64,
    selector: u16,
    /// Offset from the stack pointer of what follows: the outer stack pointer.
    next: u64,
    /// Bytes to release on the outer stack as well.
    release: u64,
}

/// The part that RET far and IRET share: CS, and on a change of privilege the stack and the data segments.
fn far_return<T: Word>(cpu: &mut Vcpu, frame: Frame, always_stack: bool) -> Done {
    let rpl = (frame.selector & 3) as u8;
    if frame.selector & !3 == 0 {
        return cpu.protection();
    }
    let d = cpu.descriptor(frame.selector, Vector::Gp)?;
    let privilege = if d.conforming() { d.dpl() <= rpl } else { d.dpl() == rpl };
    if !d.is_code() || rpl < cpu.cpl || !privilege {
        return cpu.raise(Exception::gp(selector_error(frame.selector)));
    }
    let cs = cpu.code_segment(frame.selector, d, rpl)?;
    cpu.check_far_target(&cs, frame.target)?;
    let outer = rpl > cpu.cpl;
    if !outer && !always_stack {
        cpu.drop_stack(frame.next);
        cpu.enter_code(cs, frame.target);
        return Ok(());
    }
    let sp = cpu.peek::<T>(frame.next)?;
    let selector = cpu.peek::<T>(frame.next + T::SIZE as u64)? as u16;
    let ss = outer_stack(cpu, selector, rpl, cpu.mode.long && cs.long())?;
    cpu.seg[Seg::Ss as usize] = ss;
    cpu.cpl = rpl;
    cpu.enter_code(cs, frame.target);
    cpu.set_sp(sp.wrapping_add(frame.release));
    if outer {
        drop_inner_segments(cpu);
    }
    Ok(())
}

/// SS for the privilege returned to; null is allowed for 64-bit code below ring 3.
fn outer_stack(cpu: &mut Vcpu, selector: u16, rpl: u8, to_64: bool) -> Done<Segment> {
    if selector & !3 == 0 {
        if to_64 && rpl != 3 && (selector & 3) as u8 == rpl {
            return Ok(Segment { selector, base: 0, limit: 0, access: u16::from(rpl) << 5 });
        }
        return cpu.protection();
    }
    let d = cpu.descriptor(selector, Vector::Gp)?;
    let good = (selector & 3) as u8 == rpl
        && d.is_code_or_data()
        && !d.is_code()
        && d.read_write()
        && d.dpl() == rpl;
    if !good {
        return cpu.raise(Exception::gp(selector_error(selector)));
    }
    if !d.present() {
        return cpu.raise(Exception::with_error(Vector::Ss, selector_error(selector)));
    }
    cpu.mark_descriptor(selector, d, 1 << 40)?;
    Ok(Descriptor(d.0 | 1 << 40).segment(selector))
}

/// On return to an outer ring, data segments that it may not use become null (SDM vol. 2, RET).
fn drop_inner_segments(cpu: &mut Vcpu) {
    for seg in [Seg::Es, Seg::Ds, Seg::Fs, Seg::Gs] {
        let s = &mut cpu.seg[seg as usize];
        let conforming = s.access & 0x1c == 0x1c;
        if !s.is_null() && !conforming && s.dpl() < cpu.cpl {
            *s = Segment { selector: 0, limit: 0, access: 0, base: s.base };
        }
    }
    cpu.update_mode();
}

/// IRET.
pub(super) fn iret(cpu: &mut Vcpu, u: &Uop) -> Done {
    // NMIs are unblocked even if the instruction faults (SDM vol. 3, 6.7.1).
    cpu.nmi_blocked = false;
    cpu.departures.returns += 1;
    let flags = cpu.flags.other();
    if flags & rflags::NT != 0 {
        return if cpu.mode.long { cpu.protection() } else { task_return(cpu) };
    }
    by_width!(u.insn.opsize.max(2), T => iret_sized::<T>(cpu))
}

/// IRET with NT: back to the task that the current TSS links to, if there is one.
fn task_return(cpu: &mut Vcpu) -> Done {
    if cpu.tr.limit < 1 {
        return cpu.raise(Exception::with_error(Vector::Ts, selector_error(cpu.tr.selector)));
    }
    let link: u16 = cpu.load_as(Seg::Ds, cpu.tr.base, Intent::SystemRead)?;
    cpu.check_task(link, Link::Back, 0)?;
    cpu.unsupported(Unsupported::TaskSwitch)
}

fn iret_sized<T: Word>(cpu: &mut Vcpu) -> Done {
    let size = T::SIZE as u64;
    let target = cpu.peek::<T>(0)?;
    let selector = cpu.peek::<T>(size)? as u16;
    let image = cpu.peek::<T>(2 * size)?;
    if !cpu.mode.long && image & rflags::VM != 0 && T::SIZE == 4 && cpu.cpl == 0 {
        return cpu.unsupported(Unsupported::Virtual8086);
    }
    let (from, iopl) = (cpu.cpl, cpu.flags.iopl());
    let always_stack = cpu.mode.bits == Bits::B64;
    far_return::<T>(cpu, Frame { target, selector, next: 3 * size, release: 0 }, always_stack)?;
    // Which flags change is decided by the privilege that was left (SDM vol. 2, IRET).
    let mut change = rflags::STATUS | rflags::TF | rflags::DF | rflags::NT;
    if T::SIZE > 2 {
        change |= rflags::RF | rflags::AC | rflags::ID;
    }
    if from <= iopl {
        change |= rflags::IF;
    }
    if from == 0 {
        change |= rflags::IOPL;
        if T::SIZE > 2 {
            change |= rflags::VIF | rflags::VIP;
        }
    }
    let next = cpu.rflags() & !change | image & change;
    cpu.set_rflags(next);
    Ok(())
}
