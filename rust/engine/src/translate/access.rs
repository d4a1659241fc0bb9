//! Which accesses of a unit one check can stand for: those at constant distances from each other, by the same registers with
//! nothing but constants added in between (architecture, section 4, rule 5). The check covers all that the group touches and
//! fails if that is not on one page with the right that every member needs.

use trapgate_x86::insn::{Insn, Operand, RIP, Seg};
use trapgate_x86::op::Op;

use super::context::GROUPS;
use super::emit::Fetched;
use super::path::Planned;
use super::plan::{self, Plan};
use super::vectors::gives_index;

/// Bytes from the first to the last of a group at most.
const SPAN: i64 = 1024;

/// Several accesses under one check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    /// First byte, and the one behind the last, in the terms of [`Member::offset`].
    pub low: i64,
    pub high: i64,
    pub write: bool,
    /// By RSP alone: the page kept for the stack serves it.
    pub stack: bool,
    pub members: u32,
}

/// An access of one instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    pub group: usize,
    /// Where it is, relative to its registers' values when the unit was entered or they were last set.
    pub offset: i64,
    /// It comes first and makes the check.
    pub first: bool,
}

/// The groups of a unit and the member that each of its instructions is.
#[derive(Debug, Default)]
pub struct Groups {
    pub all: Vec<Group>,
    pub members: Vec<Option<Member>>,
    /// PUSH or CALL of memory writes a slot of the stack that is in no group: with it the page at hand may change.
    pub slot_apart: bool,
}

/// What an address is made of: registers by number and how often each was set.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Key {
    base: Option<(u8, u32)>,
    index: Option<(u8, u32, u8)>,
}

/// Registers as the analysis follows them.
struct Registers {
    version: [u32; 16],
    delta: [i64; 16],
}

impl Groups {
    /// Finds the groups of a unit; `alone` makes every access one of its own.
    pub fn of(list: &[Planned<'_>], alone: bool) -> Groups {
        Groups::find(list, alone, false).0
    }

    /// The groups of a loop, those that must be aligned included, and what an iteration adds to each register; `None` where
    /// it does more than add.
    pub fn in_loop(list: &[Planned<'_>]) -> (Groups, [Option<i64>; 16]) {
        let (groups, registers) = Groups::find(list, false, true);
        let mut added = [None; 16];
        for (n, added) in added.iter_mut().enumerate() {
            *added = (registers.version[n] == 0).then_some(registers.delta[n]);
        }
        (groups, added)
    }

    fn find(list: &[Planned<'_>], alone: bool, aligned: bool) -> (Groups, Registers) {
        let mut registers = Registers { version: [0; 16], delta: [0; 16] };
        let mut groups = Groups::default();
        let mut keys = Vec::new();
        for (f, plan) in list {
            let found = access(f, *plan, &registers, aligned);
            let member = found
                .map(|(key, offset, size, write)| groups.join(&mut keys, alone, key, offset, size, write));
            groups.members.push(member);
            groups.slot_apart |= matches!(plan, Plan::Push | Plan::Call)
                && f.insn.operands.iter().any(|operand| matches!(operand, Operand::Mem { .. }));
            registers.follow(&f.insn, *plan);
        }
        (groups, registers)
    }

    fn join(
        &mut self,
        keys: &mut Vec<Key>,
        alone: bool,
        key: Key,
        offset: i64,
        size: i64,
        write: bool,
    ) -> Member {
        let (low, high) = (offset, offset.saturating_add(size));
        for (n, group) in self.all.iter_mut().enumerate() {
            let (from, to) = (group.low.min(low), group.high.max(high));
            if keys[n] == key && !alone && n < GROUPS && to.checked_sub(from).is_some_and(|span| span <= SPAN)
            {
                (group.low, group.high) = (from, to);
                group.write |= write;
                group.members += 1;
                return Member { group: n, offset, first: false };
            }
        }
        let stack = matches!(key, Key { base: Some((4, _)), index: None });
        self.all.push(Group { low, high, write, stack, members: 1 });
        keys.push(key);
        Member { group: self.all.len() - 1, offset, first: true }
    }
}

/// The access that an instruction makes to memory, if a group may have it: address, offset, size and whether it writes.
fn access(
    f: &Fetched<'_>,
    plan: Plan,
    registers: &Registers,
    aligned: bool,
) -> Option<(Key, i64, i64, bool)> {
    let insn = &f.insn;
    let stack = |offset: i64, write| {
        let key = Key { base: Some((4, registers.version[4])), index: None };
        Some((key, registers.delta[4] + offset, 8, write))
    };
    let memory = insn.operands.iter().find_map(|operand| match operand {
        Operand::Mem { size } => Some(i64::from(*size)),
        _ => None,
    });
    match plan {
        Plan::Push | Plan::Call | Plan::CallInside if memory.is_none() => return stack(-8, true),
        Plan::Pop | Plan::Return | Plan::ReturnInside(_) => return stack(0, false),
        Plan::Pushf => return stack(-8, true),
        Plan::Copy | Plan::Vector | Plan::X87(_) | Plan::Divide | Plan::Push | Plan::Call | Plan::Jump => {}
        _ => return None,
    }
    let (size, mem) = (memory?, &insn.mem);
    let plain = insn.addrsize == 8 && !matches!(mem.seg, Seg::Fs | Seg::Gs);
    if !plain || size == 0 || size > 64 || !aligned && plan::must_align(insn) {
        return None;
    }
    if mem.base >= 16 && mem.index >= 16 {
        // The address is a constant, whole.
        let base = if mem.base == RIP { f.next() } else { 0 };
        let offset = base.wrapping_add(mem.disp as u64) as i64;
        return Some((Key { base: None, index: None }, offset, size, plan::writes_memory(insn)));
    }
    let mut offset = mem.disp;
    let base = (mem.base < 16).then(|| {
        let n = usize::from(mem.base);
        offset += registers.delta[n];
        (mem.base, registers.version[n])
    });
    let index = (mem.index < 16).then(|| {
        let n = usize::from(mem.index);
        offset += registers.delta[n] << mem.scale;
        (mem.index, registers.version[n], mem.scale)
    });
    // Far from anything that could be grouped, and from the limits of a displacement.
    (offset.abs() < 1 << 30).then_some((Key { base, index }, offset, size, plan::writes_memory(insn)))
}

impl Registers {
    fn set(&mut self, reg: u8) {
        let n = usize::from(reg & 15);
        self.version[n] += 1;
        self.delta[n] = 0;
    }

    fn add(&mut self, reg: u8, value: i64) {
        let n = usize::from(reg & 15);
        self.delta[n] = self.delta[n].saturating_add(value);
        if self.delta[n].abs() > 1 << 28 {
            self.set(reg);
        }
    }

    /// What an instruction does to the registers.
    fn follow(&mut self, insn: &Insn, plan: Plan) {
        match plan {
            Plan::Push | Plan::Call | Plan::CallInside | Plan::Pushf => return self.add(4, -8),
            Plan::ReturnInside(_) => return self.add(4, 8),
            Plan::Pop => {
                self.add(4, 8);
                if let Operand::Gpr { reg, .. } = insn.operands[0] {
                    self.set(reg);
                }
                return;
            }
            Plan::Leave => {
                self.set(4);
                return self.set(5);
            }
            Plan::Nothing | Plan::Branch | Plan::Jump | Plan::Follow | Plan::Return | Plan::Interpret => {
                return;
            }
            _ => {}
        }
        if let Some((reg, value)) = constant_added(insn) {
            return self.add(reg, value);
        }
        for (n, operand) in (0..).zip(insn.operands) {
            if let Operand::Gpr { reg, .. } = operand
                && plan::writes_register(insn, n)
            {
                self.set(reg);
            } else if let Operand::High { reg } = operand {
                self.set(reg);
            }
        }
        for reg in implicit(insn) {
            self.set(*reg);
        }
    }
}

/// A 64-bit register and the constant that an instruction adds to it.
fn constant_added(insn: &Insn) -> Option<(u8, i64)> {
    let Operand::Gpr { reg, size: 8 } = insn.operands[0] else { return None };
    match insn.op {
        Op::Add if matches!(insn.operands[1], Operand::Imm { .. }) => Some((reg, insn.imm as i64)),
        Op::Sub if matches!(insn.operands[1], Operand::Imm { .. }) => {
            Some((reg, (insn.imm as i64).wrapping_neg()))
        }
        Op::Inc => Some((reg, 1)),
        Op::Dec => Some((reg, -1)),
        Op::Lea if insn.mem.base == reg && insn.mem.index >= 16 && insn.addrsize == 8 => {
            Some((reg, insn.mem.disp))
        }
        _ => None,
    }
}

/// Registers that are written though no operand names them.
fn implicit(insn: &Insn) -> &'static [u8] {
    match insn.op {
        Op::Mul | Op::Div | Op::Idiv | Op::Cmpxchg8b | Op::Cmpxchg16b => &[0, 2],
        Op::Imul if insn.operands[1] == Operand::None => &[0, 2],
        Op::Movs => &[1, 6, 7],
        Op::Stos => &[1, 7],
        op if gives_index(op) => &[1],
        Op::Cwd => &[2],
        Op::Cbw | Op::Cmpxchg | Op::Lahf => &[0],
        _ => &[],
    }
}
