//! Loops of one unit: instead of checking accesses in every iteration, the pages that they walk through are looked up once,
//! and the loop then runs without checks for as many iterations as stay inside them.
//!
//! A loop qualifies if each address is made of registers that an iteration leaves alone or adds a constant to. It starts in
//! its plain form; when that has come round a few times the head below is tried. Nothing in the fast form can fault or leave
//! but by a branch, and the instructions of all its iterations are charged beforehand; what a branch leaves over is given back.

use trapgate_x86::insn::{Operand, RIP};

use super::access::{Group, Groups};
use super::asm::{Address, Asm, Encoding, Escape, Fixup, R10, R11, RCX, RSP, Rm, at, indexed};
use super::context::{
    BUDGET_BIAS, Context, DELTA, GROUPS, MINUS_READ, MINUS_WRITE, Place, TRIPS, at_offset, field,
    is_resident, place, saved, slot, tlb_offset,
};
use super::emit::{Emitter, Fetched, counts_by_cl};
use super::memory::group_slot;
use super::path::Planned;
use super::plan::Plan;
use super::vectors::gives_index;

/// Iterations below which the head is not worth its while.
const LEAST: i8 = 4;
/// Iterations at most between two looks at the budget.
const MOST: u32 = 1 << 14;
/// Rounds of the plain form before the head is tried at first.
pub const FIRST_TRIP: u32 = 8;
/// The same of a loop that used up what the head allowed when it ran last.
pub const SOONER_TRIP: u32 = 1;
/// The same after the head has failed again and again. At first it is tried as soon as the loop may have come to another page.
const LATER_TRIP: u32 = 64;

/// What the host address of a group is computed from in each iteration, besides a kept part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Varies {
    /// The base register; an index, if there is one, is in the kept part.
    Base,
    /// The index register; the base is in the kept part.
    Index,
    /// Nothing: all of the address is in the kept part.
    Nothing,
}

/// Where a loop counts, by a hash of its address: loops that share a place try their heads at other times, which changes no
/// result.
#[derive(Clone, Copy, Debug)]
pub struct Counters {
    /// Rounds of the plain form until the head is tried.
    pub trip: Address,
    /// What that is when the loop is entered.
    pub first: Address,
    /// Rounds that the next failure of the head costs.
    pub patience: Address,
}

impl Counters {
    pub fn of(rip: u64) -> Counters {
        let n = 8 * ((rip ^ rip >> 7) as usize % TRIPS);
        Counters {
            trip: at_offset(std::mem::offset_of!(Context, trips) + n),
            first: at_offset(std::mem::offset_of!(Context, first_trips) + n),
            patience: at_offset(std::mem::offset_of!(Context, patience) + n),
        }
    }
}

/// One group of accesses in a loop.
#[derive(Clone, Copy, Debug)]
struct Part {
    group: Group,
    varies: Varies,
    /// Bytes that the addresses move on by in an iteration.
    step: i64,
    /// Position of an instruction of the group.
    example: usize,
    /// Offset of an operand that must be aligned, and to how many bytes; none needs more.
    aligned: Option<(i64, i64)>,
}

/// A loop that qualifies.
#[derive(Debug)]
pub struct Loop {
    parts: Vec<Part>,
    groups: Groups,
    pub iteration: Iteration,
    /// Where the kept part of each group stands, if not in the context.
    kept: Vec<Option<u8>>,
}

/// What whoever leaves the fast form must know of an iteration.
#[derive(Clone, Copy, Debug)]
pub struct Iteration {
    /// Instructions.
    pub len: u32,
    /// The count of iterations stands in the context, since instructions need RCX.
    pub counts_in_memory: bool,
    /// Registers of the guest that the loop does not name: their host registers keep parts of addresses meanwhile.
    pub spare: Spare,
}

/// A set of guest registers that are pinned to host registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spare(u16);

impl Spare {
    /// Guest and host registers.
    fn all(self) -> impl Iterator<Item = (u8, u8)> {
        (0..16).filter(move |n| self.0 >> n & 1 != 0).filter_map(|n| match place(n) {
            Place::Host(host) => Some((n, host)),
            Place::Slot(_) => None,
        })
    }

    /// Those that none of some instructions has to do with. Registers that instructions may use without naming them are
    /// not among them.
    fn of(list: &[Planned<'_>]) -> Spare {
        const IMPLICIT: u16 = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 3;
        let mut free = !IMPLICIT;
        let mut names = |reg: u8| free &= !(1u32 << reg) as u16;
        for (f, _) in list {
            for operand in &f.insn.operands {
                match *operand {
                    Operand::Gpr { reg, .. } => names(reg),
                    Operand::High { reg } => names(reg & 3),
                    _ => {}
                }
            }
            [f.insn.mem.base, f.insn.mem.index].into_iter().filter(|reg| *reg < 16).for_each(&mut names);
        }
        let pinned = (0..16).filter(|n| matches!(place(*n), Place::Host(_))).fold(0, |all, n| all | 1 << n);
        Spare(free & pinned)
    }

    /// The first of them, as many as are needed.
    fn first(self, count: usize) -> Spare {
        Spare(self.all().take(count).fold(0, |all, (guest, _)| all | 1 << guest))
    }
}

impl Loop {
    /// Finds whether a unit is one: its last instruction branches to its first.
    pub fn of(list: &[Planned<'_>]) -> Option<Loop> {
        let (first, last) = (&list.first()?.0, &list.last()?.0);
        let closes = list.last()?.1;
        let back = last.insn.operands[0] == Operand::Rel
            && matches!(closes, Plan::Branch | Plan::Jump)
            && last.next().wrapping_add(last.insn.imm) == first.rip;
        let plain = |(f, plan): &Planned<'_>| match plan {
            Plan::Copy | Plan::Vector | Plan::Nothing | Plan::Branch | Plan::Follow => true,
            Plan::X87(kind) => kind.fits_loops(),
            Plan::Lea => {
                f.insn.mem.base != RIP && !is_resident(f.insn.mem.base) && !is_resident(f.insn.mem.index)
            }
            _ => false,
        };
        if !back || !list[..list.len() - 1].iter().all(plain) {
            return None;
        }
        let (groups, end) = Groups::in_loop(list);
        let mut parts = Vec::new();
        for (n, group) in groups.all.iter().enumerate().take(GROUPS + 1) {
            parts.push(part(list, &groups, n, group, &end)?);
        }
        // Everything that touches memory must be in a group.
        let touches = |f: &Fetched<'_>, plan: Plan| {
            matches!(plan, Plan::Copy | Plan::Vector | Plan::X87(_))
                && f.insn.operands.iter().any(|operand| matches!(operand, Operand::Mem { .. }))
        };
        let all = list
            .iter()
            .zip(&groups.members)
            .all(|((f, plan), member)| member.is_some() || !touches(f, *plan));
        if !all || parts.is_empty() || parts.len() > GROUPS {
            return None;
        }
        let counts_in_memory = list.iter().any(|(f, _)| needs_scratch(f));
        // R10 keeps the first part and R11 the last, unless it must serve several, or instructions.
        let spare = Spare::of(list).first(parts.len() - 1);
        let mut registers = std::iter::once(R10).chain(spare.all().map(|(_, host)| host));
        let mut kept: Vec<Option<u8>> = parts.iter().map(|_| registers.next()).collect();
        let last = kept.iter().filter(|kept| kept.is_none()).count() == 1;
        if last && !counts_in_memory {
            kept.iter_mut().filter(|kept| kept.is_none()).for_each(|kept| *kept = Some(R11));
        }
        let iteration = Iteration { len: list.len() as u32, counts_in_memory, spare };
        Some(Loop { parts, groups, iteration, kept })
    }

    /// Registers that an instruction of the loop may borrow, one with a memory operand or without.
    pub fn free(&self) -> &'static [u8] {
        match (self.iteration.counts_in_memory, self.kept.contains(&Some(R11))) {
            (true, _) => &[R11, RCX],
            (false, true) => &[],
            (false, false) => &[R11],
        }
    }
}

/// Whether an instruction may need a register besides those that hold parts of addresses.
fn needs_scratch(f: &Fetched<'_>) -> bool {
    let mem = &f.insn.mem;
    let operand = |operand: &Operand| match operand {
        Operand::Gpr { reg, .. } => is_resident(*reg),
        Operand::High { .. } => true,
        _ => false,
    };
    f.insn.operands.iter().any(operand)
        || is_resident(mem.base)
        || is_resident(mem.index)
        || counts_by_cl(&f.insn)
        || gives_index(f.insn.op)
        || matches!(f.insn.op, trapgate_x86::op::Op::Cmpxchg8b | trapgate_x86::op::Op::Cmpxchg16b)
}

/// What a group is in the loop, if its addresses move regularly. `end` gives for each register how much an iteration adds
/// to it, `None` where it does more than add.
fn part(
    list: &[Planned<'_>],
    groups: &Groups,
    n: usize,
    group: &Group,
    end: &[Option<i64>; 16],
) -> Option<Part> {
    let of = |i: &usize| groups.members[*i].is_some_and(|member| member.group == n);
    let example = (0..list.len()).find(of)?;
    let mem = &list[example].0.insn.mem;
    let step = |reg: u8| if reg < 16 { end[usize::from(reg)] } else { Some(0) };
    let (base, index) = (step(mem.base)?, step(mem.index)? << mem.scale);
    let varies = match (base, index) {
        (0, 0) => Varies::Nothing,
        (_, 0) => Varies::Base,
        (0, _) => Varies::Index,
        _ => return None,
    };
    let step = base + index;
    let aligned = aligned(
        (0..list.len()).filter(of).filter_map(|i| Some((&list[i].0, groups.members[i]?.offset))),
        step,
    )?;
    (step.abs() <= 1024 && group.high - group.low <= 1024).then_some(Part {
        group: *group,
        varies,
        step,
        example,
        aligned,
    })
}

/// Of a group's operands, which an iteration moves on by `step`, the offset of one that must be aligned as well as any, and to
/// how many bytes; `None` if they are not all aligned together.
fn aligned<'a>(
    members: impl Iterator<Item = (&'a Fetched<'a>, i64)>,
    step: i64,
) -> Option<Option<(i64, i64)>> {
    let mut most: Option<(i64, i64)> = None;
    for (f, offset) in members {
        let size = f.insn.operands.iter().find_map(|operand| match operand {
            Operand::Mem { size } => Some(i64::from(*size)),
            _ => None,
        });
        let Some(size) = size.filter(|_| super::plan::must_align(&f.insn)) else { continue };
        let (other, before) = most.unwrap_or((offset, size));
        if (offset - other) % size.min(before) != 0 || step % size != 0 {
            return None;
        }
        most = Some(if size >= before { (offset, size) } else { (other, before) });
    }
    Some(most)
}

/// `opcode reg, rm`, 64 bits.
fn op(asm: &mut Asm, opcode: u8, reg: u8, rm: Rm) {
    asm.emit(&Encoding::new(Escape::None, opcode, true, reg, rm));
}

/// `opcode /extension rm, imm`, 64 bits.
fn op_imm(asm: &mut Asm, opcode: u8, extension: u8, rm: Rm, imm: &[u8]) {
    let plain = Encoding::new(Escape::None, opcode, true, extension, rm);
    asm.emit(&Encoding { imm, ..plain });
}

const ADD: u8 = 0x03;
const SUB: u8 = 0x2b;
const CMP: u8 = 0x3b;
const ABOVE: u8 = 7;
const ABOVE_OR_EQUAL: u8 = 3;
const BELOW: u8 = 2;
const NOT_ZERO: u8 = 5;

fn shift_right(asm: &mut Asm, reg: u8, count: u32) {
    if count > 0 {
        op_imm(asm, 0xc1, 5, Rm::Reg(reg), &[count as u8]);
    }
}

/// The power of two, as its exponent, that a number does not exceed.
fn log2_up(value: u64) -> u32 {
    value.next_power_of_two().trailing_zeros()
}

impl Emitter<'_> {
    /// Emits the head of a loop. Falls through into its fast form, or goes to `plain`.
    pub fn loop_head(&mut self, list: &[Planned<'_>], l: &Loop, counters: Counters, plain: u64) {
        self.keep_flags();
        // As many iterations as the budget allows.
        self.asm.load(RCX, field!(budget));
        op_imm(self.asm, 0x81, 5, Rm::Reg(RCX), &(BUDGET_BIAS as u32).to_le_bytes());
        shift_right(self.asm, RCX, log2_up(u64::from(l.iteration.len)));
        self.asm.constant(R10, u64::from(MOST));
        op(self.asm, CMP, RCX, Rm::Reg(R10));
        self.asm.emit(&Encoding::new(Escape::M0f, 0x47, true, RCX, Rm::Reg(R10))); // cmova
        self.asm.store(field!(iterations), RCX);
        let mut failures = Vec::new();
        for (n, part) in l.parts.iter().enumerate() {
            let f = &list[part.example].0;
            self.loop_part(f, n, part, &mut failures);
        }
        self.asm.load(RCX, field!(iterations));
        op_imm(self.asm, 0x83, 7, Rm::Reg(RCX), &[LEAST as u8]);
        let few = self.asm.jcc_later(BELOW);
        self.asm.store_constant32(counters.patience, 1);
        op_imm(self.asm, 0x69, R10, Rm::Reg(RCX), &l.iteration.len.to_le_bytes()); // imul r10, rcx, len
        op(self.asm, 0x29, R10, Rm::Mem(field!(budget)));
        for (guest, host) in l.iteration.spare.all() {
            self.asm.store(saved(guest), host);
        }
        for (n, kept) in l.kept.iter().enumerate() {
            if let Some(kept) = *kept {
                self.asm.load(kept, group_slot(n));
            }
        }
        self.restore_flags();
        let fast = self.asm.jmp_later();
        for failure in failures {
            self.asm.bind(failure);
        }
        self.asm.constant(RCX, 1);
        self.asm.bind(few);
        self.try_later(counters);
        self.restore_flags();
        self.asm.jmp(plain);
        self.asm.bind(fast);
    }

    /// Gives the registers back that kept parts of addresses.
    pub fn return_spare(&mut self, spare: Spare) {
        for (guest, host) in spare.all() {
            self.asm.load(host, saved(guest));
        }
    }

    /// Has the head tried again after RCX rounds, which are left in the page, and more from failure to failure.
    fn try_later(&mut self, counters: Counters) {
        // The budget may have allowed none.
        op_imm(self.asm, 0x83, 7, Rm::Reg(RCX), &[1]);
        op_imm(self.asm, 0x83, 2, Rm::Reg(RCX), &[0]); // adc rcx, 0
        self.asm.load(R11, counters.patience);
        self.asm.lea(RCX, indexed(RCX, R11, 0, -1));
        self.asm.store(counters.trip, RCX);
        self.asm.lea(R11, indexed(R11, R11, 0, 0));
        self.asm.constant(R10, u64::from(LATER_TRIP));
        op(self.asm, CMP, R11, Rm::Reg(R10));
        self.asm.emit(&Encoding::new(Escape::M0f, 0x47, true, R11, Rm::Reg(R10))); // cmova
        self.asm.store(counters.patience, R11);
    }

    /// Looks one group's page up, keeps its part of the address and lowers the number of iterations to what stays inside.
    fn loop_part(&mut self, f: &Fetched<'_>, n: usize, part: &Part, failures: &mut Vec<Fixup>) {
        let mem = &f.insn.mem;
        let Group { low, high, write, .. } = part.group;
        let span = high - low;
        self.loop_address(f, low);
        let view = tlb_offset(self.user);
        self.asm.shrx(R11, R10, RSP);
        self.asm.low_word(R11, R11);
        self.asm.load(RCX, indexed(RSP, R11, 3, view + if write { MINUS_WRITE } else { MINUS_READ }));
        op(self.asm, ADD, RCX, Rm::Reg(R10));
        // RCX is the offset in the page, or out of reach.
        op_imm(self.asm, 0x81, 7, Rm::Reg(RCX), &((4096 - span) as u32).to_le_bytes());
        failures.push(self.asm.jcc_later(ABOVE));
        self.asm.load(R11, indexed(RSP, R11, 3, view + DELTA));
        match part.varies {
            Varies::Base => self.add_scaled(mem.index, mem.scale),
            Varies::Index => self.add_scaled(mem.base, 0),
            // All of the address of the lowest byte.
            Varies::Nothing => self.asm.lea(R11, indexed(R11, R10, 0, 0)),
        }
        self.asm.store(group_slot(n), R11);
        if let Some((offset, size)) = part.aligned {
            self.asm.lea(R11, at(RCX, (offset - low) as i32));
            op_imm(self.asm, 0xf7, 0, Rm::Reg(R11), &(size as u32 - 1).to_le_bytes());
            failures.push(self.asm.jcc_later(NOT_ZERO));
        }
        match part.step {
            0 => return,
            1.. => {
                self.asm.constant(R10, (4096 - span) as u64);
                op(self.asm, SUB, R10, Rm::Reg(RCX));
            }
            _ => self.asm.mov(R10, RCX),
        }
        shift_right(self.asm, R10, log2_up(part.step.unsigned_abs()));
        self.asm.lea(R10, at(R10, 1));
        op(self.asm, CMP, R10, Rm::Mem(field!(iterations)));
        let enough = self.asm.jcc_later(ABOVE_OR_EQUAL);
        self.asm.store(field!(iterations), R10);
        self.asm.bind(enough);
    }

    /// The address of a group's lowest byte when an iteration begins, in R10.
    fn loop_address(&mut self, f: &Fetched<'_>, low: i64) {
        let mem = &f.insn.mem;
        if mem.base >= 16 && mem.index >= 16 {
            return self.asm.constant(R10, low as u64);
        }
        let base = (mem.base < 16).then(|| self.borrow(place(mem.base), R10));
        let index = (mem.index < 16).then(|| (self.borrow(place(mem.index), R11), mem.scale));
        self.asm.lea(R10, Address { base, index, disp: low as i32 });
    }

    /// Adds a register, scaled, to R11. Keeps RCX.
    fn add_scaled(&mut self, reg: u8, scale: u8) {
        if reg >= 16 {
            return;
        }
        let host = self.borrow(place(reg), R10);
        self.asm.lea(R11, indexed(R11, host, scale, 0));
    }

    /// The host operand of an access in the fast form. May use RCX where counts stand in memory; whether it did.
    pub fn loop_operand(&mut self, f: &Fetched<'_>, l: &Loop) -> (Address, bool) {
        let mem = &f.insn.mem;
        let Some(member) = l.groups.members.get(f.done as usize).copied().flatten() else {
            return (at(R10, 0), false);
        };
        let part = &l.parts[member.group];
        let kept = l.kept[member.group].unwrap_or(R11);
        if l.kept[member.group].is_none() {
            self.asm.load(R11, group_slot(member.group));
        }
        let mut used = false;
        let mut register = |emitter: &mut Emitter<'_>, reg: u8| match place(reg) {
            Place::Host(host) => host,
            Place::Slot(n) => {
                used = true;
                emitter.asm.load(RCX, slot(n));
                RCX
            }
        };
        let address = match part.varies {
            Varies::Base => indexed(register(self, mem.base), kept, 0, mem.disp as i32),
            Varies::Index => indexed(kept, register(self, mem.index), mem.scale, mem.disp as i32),
            Varies::Nothing => at(kept, (member.offset - part.group.low) as i32),
        };
        (address, used)
    }

    /// `R10 = RCX * factor` by instructions that leave flags alone.
    pub fn multiply(&mut self, factor: u32) {
        self.asm.mov(R10, RCX);
        for bit in (0..factor.ilog2()).rev() {
            if factor >> bit & 1 != 0 {
                self.asm.lea(R10, indexed(RCX, R10, 1, 0));
            } else {
                self.asm.lea(R10, indexed(R10, R10, 0, 0));
            }
        }
    }
}
