//! The guest's stack: accesses by the page that is at hand for it, and what is put off between them. A row of pushes or pops
//! moves RSP once, and the delta of a group of accesses stays in R11 while nothing else needs that register.

use trapgate_x86::insn::{Insn, Operand};

use super::access::Group;
use super::asm::{R10, R11, RCX, RSP, at, indexed};
use super::context::{Place, field, is_resident, place, slot};
use super::emit::{Emitter, Fetched, Untranslatable};
use super::exits::Access;
use super::plan::Plan;

/// The guest's RSP by number.
const SP: u8 = 4;

/// What holds between two instructions of a unit.
#[derive(Debug, Default)]
pub struct PutOff {
    /// The group whose delta stands in R11.
    delta: Option<usize>,
    /// Whether the instruction leaves R11 to that purpose.
    keeps_delta: bool,
    /// What RSP is to grow by.
    pub moved: i32,
}

/// Whether an instruction uses R11 for nothing but the delta of its access, and its miss, if it has one, starts again where
/// that is looked up: every register that it names is one of the host's.
fn keeps_delta(f: &Fetched<'_>, plan: Plan) -> bool {
    let insn = &f.insn;
    let named = |operand: &Operand| matches!(operand, Operand::Gpr { reg, .. } if is_resident(*reg));
    match plan {
        Plan::Copy | Plan::Vector | Plan::Nothing | Plan::Lea | Plan::Pop | Plan::Branch | Plan::Follow => {}
        Plan::Push | Plan::Call if !has_memory(insn) => {}
        Plan::CallInside | Plan::Return | Plan::ReturnInside(_) => {}
        _ => return false,
    }
    !insn.operands.iter().any(named) && !is_resident(insn.mem.base) && !is_resident(insn.mem.index)
}

fn has_memory(insn: &Insn) -> bool {
    insn.operands.iter().any(|operand| matches!(operand, Operand::Mem { .. }))
}

impl Emitter<'_> {
    /// To be called before an instruction is emitted.
    pub(super) fn begin(&mut self, f: &Fetched<'_>, plan: Plan) {
        self.put_off.keeps_delta = keeps_delta(f, plan);
        if !self.put_off.keeps_delta {
            self.put_off.delta = None;
        }
        if !self.may_wait(f, plan) {
            self.settle();
        }
    }

    /// Brings RSP up to date.
    pub(super) fn settle(&mut self) {
        let moved = std::mem::take(&mut self.put_off.moved);
        if let (Place::Host(sp), true) = (place(SP), moved != 0) {
            self.asm.lea(sp, at(sp, moved));
        }
    }

    /// Whether RSP may be behind while the instruction runs: it cannot leave the unit, and names RSP only where that is known.
    fn may_wait(&self, f: &Fetched<'_>, plan: Plan) -> bool {
        let insn = &f.insn;
        let names = insn.operands.iter().any(|operand| matches!(operand, Operand::Gpr { reg: SP, .. }));
        let checked = self.member(f).filter(|(member, _)| !member.first);
        match plan {
            _ if names => false,
            Plan::Nothing | Plan::Follow => true,
            Plan::Push | Plan::Call if has_memory(insn) => false,
            // The target of an indirect call is read behind the push.
            Plan::Call => checked.is_some() && insn.operands[0] == Operand::Rel,
            Plan::Push | Plan::Pop | Plan::CallInside | Plan::Return | Plan::ReturnInside(_) => {
                checked.is_some()
            }
            Plan::Copy | Plan::Vector if has_memory(insn) => {
                let by_sp = insn.mem.base == SP || insn.mem.index == SP;
                checked.is_some_and(|(_, group)| group.stack || !by_sp)
            }
            Plan::Copy | Plan::Vector => true,
            Plan::Lea => insn.mem.base != SP && insn.mem.index != SP,
            _ => false,
        }
    }

    /// The delta of a group that was checked stands in R11 from here on.
    pub(super) fn delta_is(&mut self, n: Option<usize>) {
        self.put_off.delta = n.filter(|_| self.put_off.keeps_delta);
    }

    pub(super) fn has_delta(&self, n: usize) -> bool {
        self.put_off.delta == Some(n)
    }

    pub(super) fn push(&mut self, f: &Fetched<'_>) -> Result<(), Untranslatable> {
        let Place::Host(sp) = place(SP) else { return Err(Untranslatable) };
        let to = indexed(sp, R11, 0, self.put_off.moved - 8);
        match f.insn.operands[0] {
            Operand::Gpr { reg, .. } => {
                self.stack(f, sp, -8, true);
                let host = self.borrow(place(reg), RCX);
                self.asm.store(to, host);
            }
            Operand::Imm { .. } => {
                self.stack(f, sp, -8, true);
                // All immediates of PUSH are sign-extended 32 bits or less.
                self.asm.store_short(to, f.insn.imm as i32);
            }
            Operand::Mem { .. } => {
                let retry = self.load_target(f);
                self.stack_after_load(f, sp, retry);
                self.asm.store(to, R10);
            }
            _ => return Err(Untranslatable),
        }
        self.put_off.moved -= 8;
        Ok(())
    }

    /// As [`Self::stack`] for the slot below the stack pointer, where R10 holds what was loaded by code from `retry` on: if
    /// the page is not at hand all of it starts again.
    pub(super) fn stack_after_load(&mut self, f: &Fetched<'_>, sp: u8, retry: u64) {
        self.asm.load(RCX, field!(minus_stack));
        self.asm.lea(RCX, indexed(RCX, sp, 0, -8));
        self.asm.pext(RCX, RCX, field!(slot_mask));
        if self.member(f).is_some_and(|(_, group)| group.stack) {
            // The operand is on the stack as well, perhaps on another page: only one of them can be at hand.
            self.leave_unless_zero(f);
        } else {
            let access = Access { size: 8, write: true, aligned: false, stack: true, group: false };
            self.missing(f, retry, access, Some((sp, -8)));
        }
        self.asm.load(R11, field!(stack_delta));
    }

    /// Pushes the address behind a call, with the stack's delta in R11. Uses RCX.
    pub(super) fn store_return(&mut self, f: &Fetched<'_>, sp: u8) {
        self.put_off.moved -= 8;
        let to = indexed(sp, R11, 0, self.put_off.moved);
        if let Ok(short) = i32::try_from(f.next() as i64) {
            self.asm.store_short(to, short);
        } else {
            self.asm.constant(RCX, f.next());
            self.asm.store(to, RCX);
        }
    }

    pub(super) fn pop(&mut self, f: &Fetched<'_>) {
        let (Operand::Gpr { reg, .. }, Place::Host(sp)) = (f.insn.operands[0], place(SP)) else { return };
        self.stack(f, sp, 0, false);
        let from = indexed(sp, R11, 0, self.put_off.moved);
        match place(reg) {
            Place::Host(host) if host == sp => return self.asm.load(sp, from),
            Place::Host(host) => self.asm.load(host, from),
            Place::Slot(n) => {
                self.asm.load(RCX, from);
                self.asm.store(slot(n), RCX);
            }
        }
        self.put_off.moved += 8;
    }

    pub(super) fn leave(&mut self, f: &Fetched<'_>) {
        let (Place::Host(sp), Place::Host(bp)) = (place(SP), place(5)) else { return };
        self.stack(f, bp, 0, false);
        self.asm.lea(sp, at(bp, 8));
        self.asm.load(bp, indexed(bp, R11, 0, 0));
    }

    /// Checks a group on the stack whose first byte is `[base + low]`, and leaves the delta in R11. Uses RCX and R10.
    pub(super) fn check_stack(&mut self, f: &Fetched<'_>, group: &Group, base: u8, low: i32) {
        let size = (group.high - group.low) as i32;
        let access = Access {
            size: size as u16,
            write: group.write,
            aligned: false,
            stack: true,
            group: group.members > 1,
        };
        let retry = self.asm.here();
        self.asm.load(RCX, field!(minus_stack));
        if size == 8 {
            // A slot that is aligned cannot cross.
            self.asm.lea(RCX, indexed(RCX, base, 0, low));
            self.asm.pext(RCX, RCX, field!(slot_mask));
        } else {
            // First and last byte must both be on the page: neither page number may be anything but zero.
            self.asm.lea(R10, indexed(RCX, base, 0, low));
            self.asm.lea(RCX, indexed(RCX, base, 0, low + size - 1));
            self.asm.shrx(R10, R10, RSP);
            self.asm.shrx(RCX, RCX, RSP);
            self.asm.lea(RCX, indexed(RCX, R10, 0, 0));
        }
        self.missing(f, retry, access, Some((base, low)));
        self.asm.load(R11, field!(stack_delta));
    }

    /// Makes the delta of the stack slot at `[RSP + at]` stand in R11: checked now or with its group. Uses RCX and R10.
    pub(super) fn stack(&mut self, f: &Fetched<'_>, sp: u8, slot: i32, write: bool) {
        let alone = Group { low: 0, high: 8, write, stack: true, members: 1 };
        match self.member(f) {
            Some((member, group)) if !member.first => self.group_delta(member.group, &group),
            Some((member, group)) => {
                self.check_stack(f, &group, sp, slot + (group.low - member.offset) as i32);
                self.keep_delta(member.group, &group);
            }
            None => {
                self.check_stack(f, &alone, sp, slot);
                self.delta_is(None);
            }
        }
    }
}
