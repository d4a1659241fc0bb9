//! Transfers of control of one unit: jumps, calls and returns, exits to the interpreter, the charge for completed instructions
//! where the unit is left, and what is rarely run behind it.

use std::num::NonZeroU32;

use trapgate_x86::insn::Operand;
use trapgate_x86::op::Op;

use super::asm::{Fixup, R10, R11, RCX, RSP, at, indexed};
use super::context::{Place, field, jumps_offset, place};
use super::emit::{Emitter, Fetched};
use super::exits::{Cold, Exit};
use super::explain::Note;
use super::loops::{Counters, FIRST_TRIP, Iteration, Loop, SOONER_TRIP};
use super::path::Planned;
use super::plan::Plan;
use super::thunks::Thunks;
use super::unit::compare;

/// Whether a unit need not go on behind an instruction that completes: it has gone somewhere else, or the run is over.
fn goes_elsewhere(op: Op) -> bool {
    use Op::*;
    matches!(
        op,
        Hlt | Syscall
            | Sysret
            | Sysenter
            | Sysexit
            | Iret
            | Int3
            | Into
            | Ud0
            | Ud1
            | Ud2
            | JmpFar
            | CallFar
            | RetFar
    )
}

/// Transfers of control of one unit.
#[derive(Debug)]
pub struct Flow<'a> {
    pub emitter: Emitter<'a>,
    pub thunks: &'a Thunks,
    /// Linear address of the unit's page.
    page: u64,
    /// Where a round begins.
    top: u64,
    /// The unit's own address, if it is a loop that may have a fast form.
    pub loops: Option<u64>,
    /// Where the head of the fast form is.
    head: Option<u64>,
}

impl<'a> Flow<'a> {
    /// For the unit at an address, whose rounds begin at `top`.
    pub fn new(emitter: Emitter<'a>, thunks: &'a Thunks, start: u64, top: u64) -> Flow<'a> {
        Flow { emitter, thunks, page: start & !0xfff, top, loops: None, head: None }
    }
}

impl Flow<'_> {
    /// Emits an instruction; whether the unit goes on behind it.
    pub fn instruction(&mut self, f: &Fetched<'_>, plan: Plan) -> bool {
        let target = f.next().wrapping_add(f.insn.imm);
        let relative = f.insn.operands[0] == Operand::Rel;
        self.emitter.begin(f, plan);
        if plan.ends_unit() || matches!(plan, Plan::Branch | Plan::ReturnInside(_)) {
            self.emitter.flush_pointer();
        }
        match plan {
            Plan::Interpret => {
                self.interpret(f);
                false
            }
            Plan::Branch => {
                let jump = self.emitter.asm.jcc_later(f.insn.cond);
                let count = f.done + 1;
                let back = self.loops == Some(target);
                self.emitter.cold.push(match &self.emitter.fast {
                    Some(fast) => Cold::Broken { jump, target, count, iteration: fast.iteration },
                    None if back => Cold::Back { jump, count },
                    None => Cold::Taken { jump, target, count },
                });
                true
            }
            Plan::Jump if relative && self.loops == Some(target) => {
                let jump = self.emitter.asm.jmp_later();
                self.emitter.cold.push(Cold::Back { jump, count: f.done + 1 });
                false
            }
            Plan::Jump if relative => {
                self.leave_to(target, f.done + 1);
                false
            }
            Plan::Jump => {
                self.indirect_target(f);
                self.leave_indirect(f.rip, f.done + 1, 0);
                false
            }
            Plan::Call => {
                self.call(f, relative, target);
                false
            }
            Plan::Return => {
                self.return_(f);
                false
            }
            Plan::CallInside => {
                let Place::Host(sp) = place(4) else { return false };
                self.emitter.stack(f, sp, -8, true);
                self.emitter.store_return(f, sp);
                true
            }
            Plan::ReturnInside(back) => {
                self.return_to(f, back);
                true
            }
            Plan::Syscall => {
                match (self.emitter.para, self.emitter.user) {
                    (false, _) => self.syscall(f),
                    (true, true) => self.enter_kernel(f),
                    (true, false) => self.hypercall(f),
                }
                false
            }
            Plan::Sysret => {
                self.sysret(f);
                false
            }
            Plan::ReadClock => {
                self.read_clock(f);
                false
            }
            _ => {
                let done = self.emitter.instruction(f, plan).is_ok();
                if !done {
                    self.interpret(f);
                }
                done
            }
        }
    }

    /// The interpreter runs the instruction, by the exit whose number is returned.
    pub fn interpret(&mut self, f: &Fetched<'_>) -> u32 {
        self.emitter.settle();
        self.emitter.flush_pointer();
        let exit = self.emitter.interpret(f);
        self.emitter.asm.note(Note::Interpret(f.done));
        self.emitter.asm.store_constant32(field!(exit), exit);
        self.emitter.asm.jmp(self.thunks.exit);
        if !goes_elsewhere(f.insn.op) {
            let resume = self.emitter.asm.here();
            self.leave_linked(f.next(), None);
            if let Some(Exit::Interpret { rip, done, step, .. }) = self.emitter.exits.get(exit) {
                self.emitter.exits.set(exit, Exit::Interpret { rip, done, step, resume });
            }
        }
        exit
    }

    /// The head of an instruction across pages: the interpreter runs it unless the next page is known to be where it is
    /// expected, and finds out.
    pub fn goes_on_at(&mut self, f: &Fetched<'_>, pair: u16) {
        let pairs = std::mem::offset_of!(super::context::Context, pairs);
        let asm = &mut *self.emitter.asm;
        asm.load_byte(RCX, super::context::at_offset(pairs + usize::from(pair)));
        let missing = asm.jrcxz_later();
        let good = asm.jmp_later();
        asm.bind(missing);
        let exit = self.interpret(f);
        if let Some(Exit::Interpret { step, .. }) = self.emitter.exits.get(exit) {
            // Decoding it again would need both pages.
            self.emitter.step = NonZeroU32::new(step);
        }
        self.emitter.asm.bind(good);
    }

    /// Puts the target of an indirect jump into R10.
    fn indirect_target(&mut self, f: &Fetched<'_>) {
        match f.insn.operands[0] {
            Operand::Gpr { reg, .. } => self.emitter.read_target(reg),
            _ => {
                self.emitter.load_target(f);
            }
        }
    }

    fn call(&mut self, f: &Fetched<'_>, relative: bool, target: u64) {
        let Place::Host(sp) = place(4) else { return };
        match f.insn.operands[0] {
            Operand::Mem { .. } => {
                let retry = self.emitter.load_target(f);
                self.emitter.stack_after_load(f, sp, retry);
            }
            Operand::Gpr { reg, .. } => {
                self.emitter.stack(f, sp, -8, true);
                self.emitter.read_target(reg);
            }
            _ => self.emitter.stack(f, sp, -8, true),
        }
        self.emitter.store_return(f, sp);
        self.emitter.settle();
        if relative {
            self.leave_to(target, f.done + 1);
        } else {
            self.leave_indirect(f.rip, f.done + 1, -8);
        }
    }

    fn return_(&mut self, f: &Fetched<'_>) {
        let Place::Host(sp) = place(4) else { return };
        let release = if let Operand::Imm { .. } = f.insn.operands[0] { f.insn.imm as i32 } else { 0 };
        self.emitter.stack(f, sp, 0, false);
        self.emitter.asm.load(R10, indexed(sp, R11, 0, self.emitter.put_off.moved));
        self.emitter.put_off.moved += 8 + release;
        self.emitter.settle();
        self.leave_indirect(f.rip, f.done + 1, 8 + release);
    }

    /// A return that is expected to lead to `back`, where the unit goes on.
    fn return_to(&mut self, f: &Fetched<'_>, back: u64) {
        let Place::Host(sp) = place(4) else { return };
        self.emitter.stack(f, sp, 0, false);
        self.emitter.asm.load(R10, indexed(sp, R11, 0, self.emitter.put_off.moved));
        self.emitter.put_off.moved += 8;
        compare(self.emitter.asm, back);
        let jump = self.emitter.asm.jump_unless_zero();
        let (rip, count, moved) = (f.rip, f.done + 1, self.emitter.put_off.moved);
        self.emitter.cold.push(Cold::Elsewhere { jump, rip, count, moved });
    }

    /// Takes completed instructions off the budget; the jump is taken when it is used up.
    pub fn charge(&mut self, count: u32) -> Fixup {
        let asm = &mut *self.emitter.asm;
        asm.note(Note::Charge);
        asm.load(RCX, field!(budget));
        asm.lea(RCX, at(RCX, -(count as i32)));
        asm.store(field!(budget), RCX);
        asm.shrx(RCX, RCX, RSP);
        let used_up = asm.jrcxz_later();
        asm.note(Note::Charged);
        used_up
    }

    /// Gives back what a loop was charged for iterations that it did not run: RCX of them, of which `count` instructions
    /// are complete. The jump is taken when the budget is used up.
    fn give_back(&mut self, len: u32, count: u32) -> Fixup {
        self.emitter.asm.note(Note::Charge);
        self.emitter.multiply(len);
        let asm = &mut *self.emitter.asm;
        asm.load(RCX, field!(budget));
        asm.lea(RCX, indexed(RCX, R10, 0, -(count as i32)));
        asm.store(field!(budget), RCX);
        asm.shrx(RCX, RCX, RSP);
        let used_up = asm.jrcxz_later();
        asm.note(Note::Charged);
        used_up
    }

    /// Emits head and fast form of a loop, unless one of its instructions turns out to have none.
    pub fn fast_form(&mut self, list: &[Planned<'_>], back: Loop) {
        let (code, cold) = (self.emitter.asm.code.len(), self.emitter.cold.len());
        let counters = Counters::of(self.loops.unwrap_or(0));
        self.emitter.asm.note(Note::Head);
        // A loop that comes here from its fast form is long, and next time gets there sooner.
        let again = self.emitter.asm.here();
        self.emitter.asm.store_constant32(counters.first, SOONER_TRIP);
        let over = self.emitter.asm.jmp_later();
        let head = self.emitter.asm.here();
        self.emitter.asm.store_constant32(counters.first, FIRST_TRIP);
        self.emitter.asm.bind(over);
        self.emitter.loop_head(list, &back, counters, self.top);
        let iteration = back.iteration;
        if iteration.counts_in_memory {
            self.emitter.asm.store(field!(iterations), RCX);
        }
        let start = self.emitter.asm.here();
        self.emitter.fast = Some(back);
        let (last, body) = match list.split_last() {
            Some(((last, _), body)) => (last, body),
            None => return,
        };
        let good = body.iter().all(|(f, plan)| {
            self.emitter.asm.note(Note::Fast(f.done));
            match plan {
                Plan::Branch => self.instruction(f, *plan),
                _ => self.emitter.instruction(f, *plan).is_ok(),
            }
        });
        self.emitter.fast = None;
        // A round of the plain form has stored the pointer that a round of this one ends with; a branch out of the middle may
        // have stored another.
        if good && body.iter().any(|(_, plan)| *plan == Plan::Branch) {
            self.emitter.flush_pointer();
        }
        self.emitter.exits.pointer = None;
        if !good {
            self.emitter.asm.code.truncate(code);
            self.emitter.cold.truncate(cold);
            return;
        }
        self.head = Some(head);
        self.fast_end(last, iteration, start, again);
    }

    /// The end of an iteration of the fast form: round again, back to the head when all that were allowed are done, or out.
    fn fast_end(&mut self, last: &Fetched<'_>, iteration: Iteration, start: u64, head: u64) {
        let Iteration { len, counts_in_memory: in_memory, spare } = iteration;
        let asm = &mut *self.emitter.asm;
        asm.note(Note::Fast(last.done));
        if in_memory {
            asm.load(RCX, field!(iterations));
        }
        asm.lea(RCX, at(RCX, -1));
        if in_memory {
            asm.store(field!(iterations), RCX);
        }
        if last.insn.op == Op::Jmp {
            asm.jrcxz(5);
            asm.jmp(start);
            self.emitter.return_spare(spare);
            return self.emitter.asm.jmp(head);
        }
        asm.jrcxz(11);
        asm.jcc(last.insn.cond, start);
        let out = asm.jmp_later();
        self.emitter.return_spare(spare);
        self.emitter.asm.jcc(last.insn.cond, head);
        self.emitter.asm.bind(out);
        self.emitter.return_spare(spare);
        let used_up = self.give_back(len, 0);
        self.leave_charged(last.next(), used_up);
    }

    /// Leaves to a known address after `count` instructions.
    pub fn leave_to(&mut self, target: u64, count: u32) {
        self.emitter.settle();
        self.emitter.flush_pointer();
        let used_up = self.charge(count);
        self.leave_charged(target, used_up);
    }

    /// Leaves to a known address; the budget has been seen to.
    fn leave_charged(&mut self, target: u64, used_up: Fixup) {
        self.leave_linked(target, Some(used_up));
    }

    /// Leaves to a known address by a jump that can lead straight there.
    fn leave_linked(&mut self, target: u64, used_up: Option<Fixup>) {
        let asm = &mut *self.emitter.asm;
        let same_page = target & !0xfff == self.page;
        let (mut guard, mut missing) = (None, None);
        if !same_page {
            // Links into another page hold while that page is where they expect it.
            asm.load_byte(
                RCX,
                super::context::at_offset(std::mem::offset_of!(super::context::Context, pairs)),
            );
            guard = Some(asm.here() - 4);
            missing = Some(asm.jrcxz_later());
        }
        let link = asm.jmp_later();
        let field_at = asm.here() - 4;
        let out = (used_up.is_some() || missing.is_some()).then(|| {
            for jump in [used_up, missing].into_iter().flatten() {
                asm.bind(jump);
            }
            asm.jmp_later()
        });
        let exit = self.emitter.exits.add(Exit::Link { rip: target, field: field_at, guard });
        for jump in [Some(link), out].into_iter().flatten() {
            self.emitter.cold.push(Cold::Leave { jump, exit });
        }
    }

    /// Leaves to the address in R10, by the table of targets.
    fn leave_indirect(&mut self, rip: u64, count: u32, undo: i32) {
        let exit = self.emitter.exits.add(Exit::Indirect { rip, undo });
        self.emitter.asm.store_constant32(field!(exit), exit);
        let used_up = self.charge(count);
        let asm = &mut *self.emitter.asm;
        asm.low_word(R11, R10);
        asm.jmp_mem(indexed(RSP, R11, 3, jumps_offset(self.emitter.user)));
        asm.bind(used_up);
        asm.jmp(self.thunks.exit);
    }

    /// Emits what is not run in a row with the rest, and then what is rarely run: stubs that leave.
    pub fn finish(&mut self) {
        let mut stubs = Vec::new();
        while let Some(cold) = self.emitter.cold.pop() {
            if cold.is_stub() {
                stubs.push(cold);
            } else {
                self.emit_cold(cold);
            }
        }
        self.emitter.asm.go_aside();
        for cold in stubs {
            self.emit_cold(cold);
        }
    }

    fn emit_cold(&mut self, cold: Cold) {
        self.emitter.asm.note(Note::Cold(cold));
        match cold {
            Cold::Leave { jump, exit } => {
                self.emitter.asm.bind(jump);
                self.stub(exit, self.thunks.exit);
            }
            Cold::Restore { jump, exit } => {
                self.emitter.asm.bind(jump);
                self.emitter.restore_flags();
                self.stub(exit, self.thunks.exit);
            }
            Cold::Miss { jump, exit, address, stack, retry } => {
                self.emitter.asm.bind(jump);
                let mut thunk = self.thunks.miss;
                if let Some((base, low)) = address {
                    self.emitter.asm.lea(R10, at(base, low));
                }
                if stack {
                    self.emitter.asm.place_of(R11, retry);
                    thunk = if self.emitter.user { self.thunks.user_stack } else { self.thunks.stack };
                }
                self.stub(exit, thunk);
            }
            Cold::Broken { jump, target, count, iteration } => {
                let Iteration { len, counts_in_memory: in_memory, spare } = iteration;
                self.emitter.asm.bind(jump);
                self.emitter.return_spare(spare);
                if in_memory {
                    self.emitter.asm.load(RCX, field!(iterations));
                }
                let used_up = self.give_back(len, count);
                self.leave_charged(target, used_up);
            }
            Cold::Elsewhere { jump, rip, count, moved } => {
                self.emitter.asm.bind(jump);
                self.emitter.put_off.moved = moved;
                self.emitter.settle();
                self.leave_indirect(rip, count, 8);
            }
            Cold::Back { jump, count } => {
                self.emitter.asm.bind(jump);
                self.round(count);
            }
            Cold::Taken { jump, target, count } => {
                self.emitter.asm.bind(jump);
                self.leave_to(target, count);
            }
        }
    }

    /// Round a loop in its plain form, and now and then to the head of the fast one.
    fn round(&mut self, count: u32) {
        let rip = self.loops.unwrap_or(self.page);
        let Some(head) = self.head else { return self.leave_to(rip, count) };
        let used_up = self.charge(count);
        let Counters { trip, .. } = Counters::of(rip);
        let asm = &mut *self.emitter.asm;
        asm.load(RCX, trip);
        asm.lea(RCX, at(RCX, -1));
        asm.store(trip, RCX);
        asm.jrcxz(5);
        asm.jmp(self.top);
        asm.jmp(head);
        asm.bind(used_up);
        let exit = self.emitter.exits.add(Exit::Gone { rip });
        self.stub(exit, self.thunks.exit);
    }

    fn stub(&mut self, exit: u32, thunk: u64) {
        self.emitter.asm.store_constant32(field!(exit), exit);
        self.emitter.asm.jmp(thunk);
    }
}
