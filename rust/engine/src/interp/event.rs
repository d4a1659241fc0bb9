//! Delivery of exceptions and interrupts through the IDT (SDM vol. 3, 6.12 to 6.15).

use trapgate_x86::exception::{Severity, Vector};
use trapgate_x86::insn::{Bits, Seg};
use trapgate_x86::msr::debugctl;
use trapgate_x86::regs::{dr6, dr7, rflags};

use super::descriptor::selector_error;
use super::far::Link;
use crate::exit::{Exit, Unsupported};
use crate::fault::{Done, Exception, Kind, Stop};
use crate::hooks::{HookEvent, HookId, HookKind};
use crate::memory::Word;
use crate::mmu::access::{Intent, canonical};
use crate::monitor::Handled;
use crate::state::{Descriptor, Segment, Vcpu};

/// Exceptions that may follow one another in one delivery.
const MOST_ROUNDS: u32 = 8;

/// A gate of the IDT, unfolded.
struct Gate {
    selector: u16,
    offset: u64,
    /// Interrupt Stack Table slot, 0 for none.
    ist: u8,
    kind: u8,
    dpl: u8,
    present: bool,
}

fn severity(vector: u8) -> Severity {
    Vector::from_number(vector).map_or(Severity::Benign, Vector::severity)
}

impl Vcpu {
    /// Delivers an event that returns to `back`. Faults on the way belong to the instruction at RIP and become a double
    /// fault or a shutdown where the manual says so; the result tells whether it was the event itself in the end.
    pub(crate) fn deliver(&mut self, event: Exception, back: u64) -> Result<bool, Exit> {
        let (mut event, mut back, first, rip) = (event, back, event.vector, self.rip);
        let mut itself = true;
        self.note(&event);
        if self.is_para() {
            return self.deliver_to_monitor(event, back);
        }
        // Benign exceptions in delivery (#AC on #AC) never become a double fault: a few rounds, then it is a shutdown.
        for _ in 0..MOST_ROUNDS {
            match self.through_gate(&event, back) {
                Ok(()) => {
                    self.departures.delivered(&event);
                    self.hook_event(&event, rip);
                    return Ok(itself);
                }
                Err(Stop::Fault) => {}
                Err(_) => {
                    return Err(self.exit.take().unwrap_or(Exit::TripleFault { rip, vector: first }));
                }
            }
            let Some(second) = self.fault.take() else {
                return Err(Exit::TripleFault { rip, vector: first });
            };
            itself = false;
            // CR2 changes with every page fault, even one that becomes a double fault (SDM vol. 3, 6.15, interrupt 14).
            self.note(&second);
            event = match self.combine(&event, second) {
                Some(next) => {
                    back = rip;
                    next
                }
                None => return Err(Exit::TripleFault { rip, vector: first }),
            };
        }
        Err(Exit::TripleFault { rip, vector: first })
    }

    /// Hands an event to the monitor of a para-virtual guest.
    fn deliver_to_monitor(&mut self, event: Exception, back: u64) -> Result<bool, Exit> {
        let (rip, single_step) = (self.rip, self.flags.is_set(rflags::TF));
        match self.with_monitor(|monitor, cpu| monitor.exception(cpu, event, back)) {
            Some(Ok(Handled::Emulated)) => {
                self.departures.privileged += 1;
                self.count = self.count.wrapping_add(1);
                if single_step {
                    self.pending_debug |= dr6::BS;
                }
                Ok(false)
            }
            Some(Ok(Handled::Delivered)) | None => {
                self.departures.delivered(&event);
                self.hook_event(&event, rip);
                Ok(true)
            }
            Some(Err(exit)) => Err(exit),
        }
    }

    fn hook_event(&mut self, event: &Exception, rip: u64) {
        if !self.hooks.is_empty() {
            let (at, value) = (u64::from(event.vector), event.error.map_or(0, u64::from));
            let event = HookEvent { hook: HookId(0), rip: Some(rip), at, size: 0, value };
            self.hooks.hit(HookKind::Interrupt, event);
        }
    }

    /// Registers that report an exception are set before delivery.
    fn note(&mut self, event: &Exception) {
        if event.vector == Vector::Pf as u8 && matches!(event.kind, Kind::Fault) {
            self.cr2 = event.address;
        }
        if event.vector == Vector::Db as u8 && !matches!(event.kind, Kind::Software | Kind::External) {
            self.dr7 &= !dr7::GD;
            self.debugctl &= !(debugctl::LBR | debugctl::BTF);
        }
    }

    /// SDM vol. 3, table 6-5: what a fault during delivery becomes; `None` is a shutdown.
    fn combine(&self, first: &Exception, second: Exception) -> Option<Exception> {
        if first.vector == Vector::Df as u8 && !matches!(first.kind, Kind::External | Kind::Software) {
            return None;
        }
        let exceptional = matches!(first.kind, Kind::Fault | Kind::Trap);
        let double = exceptional
            && matches!(
                (severity(first.vector), severity(second.vector)),
                (Severity::Contributory, Severity::Contributory)
                    | (Severity::PageFault, Severity::Contributory | Severity::PageFault)
            );
        Some(if double { Exception::with_error(Vector::Df, 0) } else { second })
    }

    fn through_gate(&mut self, event: &Exception, rip: u64) -> Done {
        let ext = u32::from(!matches!(event.kind, Kind::Software));
        let index = u32::from(event.vector);
        let error = index << 3 | 2 | ext;
        let size: u64 = if self.mode.long { 16 } else { 8 };
        let at = u64::from(event.vector) * size;
        if at + size - 1 > u64::from(self.idtr.limit) {
            return self.raise(Exception::gp(error));
        }
        let gate = self.read_gate(self.idtr.base.wrapping_add(at))?;
        let known = if self.mode.long {
            matches!(gate.kind, 14 | 15)
        } else {
            matches!(gate.kind, 5 | 6 | 7 | 14 | 15)
        };
        if !known || matches!(event.kind, Kind::Software) && gate.dpl < self.cpl {
            return self.raise(Exception::gp(error));
        }
        if !gate.present {
            return self.raise(Exception::with_error(Vector::Np, error));
        }
        if gate.kind == 5 {
            self.check_task(gate.selector, Link::Forward, ext)?;
            return self.unsupported(Unsupported::TaskSwitch);
        }
        let (d, cpl) = self.handler_segment(&gate, ext)?;
        if self.mode.long {
            self.enter_long(event, &gate, d, cpl, rip)
        } else {
            self.enter_32(event, &gate, d, cpl, rip)
        }
    }

    fn read_gate(&mut self, at: u64) -> Done<Gate> {
        let low: u64 = self.load_as(Seg::Ds, at, Intent::SystemRead)?;
        let high: u64 =
            if self.mode.long { self.load_as(Seg::Ds, at.wrapping_add(8), Intent::SystemRead)? } else { 0 };
        let offset = low & 0xffff | low >> 32 & 0xffff_0000 | high << 32;
        let short = low >> 43 & 1 == 0;
        Ok(Gate {
            selector: (low >> 16) as u16,
            // The upper half is reserved in a gate of 16-bit code.
            offset: if short { offset & 0xffff } else { offset },
            ist: (low >> 32 & 7) as u8,
            kind: (low >> 40 & 15) as u8 | (low >> 40 & 16) as u8,
            dpl: (low >> 45 & 3) as u8,
            present: low >> 47 & 1 != 0,
        })
    }

    /// The handler's code segment and the privilege it runs at.
    fn handler_segment(&mut self, gate: &Gate, ext: u32) -> Done<(Descriptor, u8)> {
        if gate.selector & !3 == 0 {
            return self.raise(Exception::gp(ext));
        }
        let bad = selector_error(gate.selector) | ext;
        let Ok(d) = self.descriptor(gate.selector, Vector::Gp) else {
            self.name_fault(Vector::Gp, bad);
            return Err(Stop::Fault);
        };
        let wrong_width = self.mode.long && (!d.long() || d.big());
        if !d.is_code() || d.dpl() > self.cpl || wrong_width {
            return self.raise(Exception::gp(bad));
        }
        if !d.present() {
            return self.raise(Exception::with_error(Vector::Np, bad));
        }
        Ok((d, if d.conforming() { self.cpl } else { d.dpl() }))
    }

    /// RFLAGS as it is pushed: RF is set for faults, so that a code breakpoint at the return does not fire again.
    fn pushed_flags(&self, event: &Exception) -> u64 {
        let breakpoint = event.vector == Vector::Db as u8;
        let set = matches!(event.kind, Kind::Fault) && !breakpoint;
        self.rflags() | if set { rflags::RF } else { 0 }
    }

    fn enter_long(&mut self, event: &Exception, gate: &Gate, d: Descriptor, cpl: u8, rip: u64) -> Done {
        let ext = u32::from(!matches!(event.kind, Kind::Software));
        let (old_cpl, old_ss) = (self.cpl, self.segment(Seg::Ss).selector);
        let inner = cpl != old_cpl;
        let rsp = if gate.ist != 0 {
            self.tss_u64(0x24 + 8 * (u64::from(gate.ist) - 1), ext)?
        } else if inner {
            self.tss_u64(4 + 8 * u64::from(cpl), ext)?
        } else {
            self.regs[4]
        };
        if !canonical(gate.offset) {
            return self.raise(Exception::gp(ext));
        }
        if !canonical(rsp) {
            return self.raise(Exception::with_error(Vector::Ss, ext));
        }
        let cs = self.segment(Seg::Cs).selector;
        let mut frame = [u64::from(old_ss), self.regs[4], self.pushed_flags(event), u64::from(cs), rip, 0];
        let mut words = 5;
        if let Some(error) = event.error {
            frame[5] = u64::from(error);
            words = 6;
        }
        self.mark_descriptor(gate.selector, d, 1 << 40)?;
        let mut sp = rsp & !15;
        // The frame is written with the handler's privilege; nothing else of the processor has changed if it faults, and
        // nothing can fault once it is written.
        self.cpl = cpl;
        self.user_view = cpl == 3;
        let done = frame[..words].iter().try_for_each(|word| {
            sp = sp.wrapping_sub(8);
            self.store_as::<u64>(Seg::Ss, sp, *word, Intent::Write)
        });
        if let Err(stop) = done {
            self.cpl = old_cpl;
            self.user_view = old_cpl == 3;
            self.name_fault(Vector::Ss, ext);
            return Err(stop);
        }
        self.regs[4] = sp;
        if inner {
            let access = u16::from(cpl) << 5;
            self.seg[Seg::Ss as usize] = Segment { selector: u16::from(cpl), base: 0, limit: 0, access };
        }
        let code = Descriptor(d.0 | 1 << 40).segment(gate.selector & !3 | u16::from(cpl));
        self.enter_handler(gate, Segment { base: 0, ..code });
        Ok(())
    }

    /// Flags and CS of a handler (SDM vol. 3, 6.12.1.3).
    fn enter_handler(&mut self, gate: &Gate, cs: Segment) {
        let mut clear = rflags::TF | rflags::NT | rflags::RF | rflags::VM;
        if gate.kind & 1 == 0 {
            clear |= rflags::IF;
        }
        self.flags.remove(clear);
        self.enter_code(cs, gate.offset);
    }

    /// Gives a fault of this vector that was met on the way the error code that it has in a delivery: EXT, and the
    /// selector of a new stack.
    pub(super) fn name_fault(&mut self, vector: Vector, error: u32) {
        if let Some(fault) = self.fault.as_mut().filter(|fault| fault.vector == vector as u8) {
            fault.error = Some(error);
        }
    }

    pub(super) fn tss_u64(&mut self, at: u64, ext: u32) -> Done<u64> {
        if at + 7 > u64::from(self.tr.limit) {
            let error = selector_error(self.tr.selector) | ext;
            return self.raise(Exception::with_error(Vector::Ts, error));
        }
        let base = self.tr.base;
        self.load_as(Seg::Ds, base.wrapping_add(at), Intent::SystemRead)
    }

    /// Protected mode: 16- and 32-bit gates, inner stacks from a 32-bit or 16-bit TSS.
    fn enter_32(&mut self, event: &Exception, gate: &Gate, d: Descriptor, cpl: u8, rip: u64) -> Done {
        if gate.kind & 8 != 0 {
            self.enter_protected::<u32>(event, gate, d, cpl, rip)
        } else {
            self.enter_protected::<u16>(event, gate, d, cpl, rip)
        }
    }

    fn enter_protected<T: Word>(
        &mut self,
        event: &Exception,
        gate: &Gate,
        d: Descriptor,
        cpl: u8,
        rip: u64,
    ) -> Done {
        let ext = u32::from(!matches!(event.kind, Kind::Software));
        let saved = (self.cpl, self.seg[Seg::Ss as usize], self.regs[4]);
        let flags = self.pushed_flags(event);
        let cs = self.segment(Seg::Cs).selector;
        let inner = cpl != self.cpl;
        let new_stack = if inner { Some(self.inner_stack(cpl, ext)?) } else { None };
        if gate.offset > u64::from(d.limit()) {
            return self.raise(Exception::gp(ext));
        }
        // Everything but the frame that can fault comes before any change.
        self.mark_descriptor(gate.selector, d, 1 << 40)?;
        if let Some((ss, sp)) = new_stack {
            self.cpl = cpl;
            self.seg[Seg::Ss as usize] = ss;
            self.update_mode();
            self.set_sp(sp);
        }
        let push_all = |cpu: &mut Vcpu| -> Done {
            if inner {
                cpu.push::<T>(u64::from(saved.1.selector))?;
                cpu.push::<T>(saved.2)?;
            }
            cpu.push::<T>(flags)?;
            cpu.push::<T>(u64::from(cs))?;
            cpu.push::<T>(rip)?;
            event.error.map_or(Ok(()), |error| cpu.push::<T>(u64::from(error)))
        };
        if let Err(stop) = push_all(self) {
            (self.cpl, self.seg[Seg::Ss as usize], self.regs[4]) = saved;
            self.update_mode();
            let stack = new_stack.map_or(0, |(ss, _)| selector_error(ss.selector));
            self.name_fault(Vector::Ss, stack | ext);
            return Err(stop);
        }
        let code = Descriptor(d.0 | 1 << 40).segment(gate.selector & !3 | u16::from(cpl));
        self.enter_handler(gate, code);
        Ok(())
    }

    /// SS and ESP of an inner ring, from the TSS (SDM vol. 3, 7.2.1).
    fn inner_stack(&mut self, cpl: u8, ext: u32) -> Done<(Segment, u64)> {
        let base = self.tr.base;
        let wide = self.tr.kind() & 8 != 0;
        let at = if wide { 4 + 8 * u64::from(cpl) } else { 2 + 4 * u64::from(cpl) };
        let size = if wide { 4 } else { 2 };
        if at + size + 1 > u64::from(self.tr.limit) {
            let error = selector_error(self.tr.selector) | ext;
            return self.raise(Exception::with_error(Vector::Ts, error));
        }
        let from = base.wrapping_add(at);
        let sp = if wide {
            u64::from(self.load_as::<u32>(Seg::Ds, from, Intent::SystemRead)?)
        } else {
            u64::from(self.load_as::<u16>(Seg::Ds, from, Intent::SystemRead)?)
        };
        let selector: u16 = self.load_as(Seg::Ds, from.wrapping_add(size), Intent::SystemRead)?;
        let named = selector_error(selector) | ext;
        let bad = Exception::with_error(Vector::Ts, named);
        if selector & !3 == 0 {
            return self.raise(bad);
        }
        let Ok(d) = self.descriptor(selector, Vector::Ts) else {
            self.name_fault(Vector::Ts, named);
            return Err(Stop::Fault);
        };
        let good = (selector & 3) as u8 == cpl
            && d.dpl() == cpl
            && d.is_code_or_data()
            && !d.is_code()
            && d.read_write();
        if !good {
            return self.raise(bad);
        }
        if !d.present() {
            return self.raise(Exception::with_error(Vector::Ss, named));
        }
        self.mark_descriptor(selector, d, 1 << 40)?;
        Ok((Descriptor(d.0 | 1 << 40).segment(selector), sp))
    }

    /// A #DB with its reason in DR6.
    pub(crate) fn debug_exception(&mut self, bits: u64, kind: Kind) -> Exception {
        self.dr6 = self.dr6 & !dr6::B | bits;
        Exception { kind, ..Exception::fault(Vector::Db) }
    }

    /// Whether the code segment is 64-bit; for callers that format addresses.
    pub fn is_64bit(&self) -> bool {
        self.mode.bits == Bits::B64
    }
}
