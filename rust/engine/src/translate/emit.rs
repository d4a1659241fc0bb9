//! Translates one instruction after the other into host code: registers renamed, memory operands checked against the inline
//! TLB, guest flags left in the host's throughout. Every inserted instruction leaves flags alone.

use trapgate_x86::Map;
use trapgate_x86::insn::{Bits, Insn, Operand, Prefixes, RIP};
use trapgate_x86::layout::Layout;
use trapgate_x86::op::Op;
use trapgate_x86::slots::Slots;

use super::access::{Group, Groups, Member};
use super::asm::{Address, Asm, Encoding, Escape, R10, R11, RAX, RCX, RDX, Rm, Vex, at, indexed};
use super::context::{Place, field, place, saved, slot, tlb_offset};
use super::exits::{Access, Cold, Exit, Exits};
use super::loops::Loop;
use super::plan::{self, Plan};
use crate::interp::{Uop, handler};

/// An instruction as it was fetched and decoded.
#[derive(Clone, Copy, Debug)]
pub struct Fetched<'a> {
    pub bytes: &'a [u8],
    pub layout: Layout,
    pub insn: Insn,
    pub slots: Slots,
    pub rip: u64,
    /// Instructions of the unit that are complete before this one.
    pub done: u32,
}

impl Fetched<'_> {
    pub fn next(&self) -> u64 {
        self.rip.wrapping_add(u64::from(self.insn.len))
    }

    fn operand(&self, n: Option<u8>) -> Option<Operand> {
        n.map(|n| self.insn.operands[usize::from(n)])
    }

    fn immediate(&self) -> &[u8] {
        let at = usize::from(self.layout.imm_at);
        &self.bytes[at..at + usize::from(self.layout.imm_size)]
    }
}

/// The instruction has no translation after all; the interpreter runs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Untranslatable;

/// Emits the code of one unit.
#[derive(Debug)]
pub struct Emitter<'a> {
    pub asm: &'a mut Asm,
    pub exits: &'a mut Exits,
    /// Code that is rarely run, to be put behind the unit.
    pub cold: Vec<Cold>,
    /// CPL 3.
    pub user: bool,
    /// Offset of the page in the host mapping.
    pub page: u64,
    /// Which accesses are checked together.
    pub groups: Groups,
    /// The loop whose fast form is emitted now.
    pub fast: Option<Loop>,
}

/// A register that an instruction uses in place of one that lives in memory.
#[derive(Clone, Copy)]
struct Borrowed {
    host: u8,
    slot: u8,
    written: bool,
}

/// Scratch registers that an instruction may still borrow, and those it has.
struct Scratch {
    free: Vec<u8>,
    used: Vec<Borrowed>,
}

impl Emitter<'_> {
    /// Emits an instruction of one of the plans that do not transfer control.
    pub fn instruction(&mut self, f: &Fetched<'_>, plan: Plan) -> Result<(), Untranslatable> {
        match plan {
            Plan::Nothing => Ok(()),
            Plan::Lea => {
                self.lea(f);
                Ok(())
            }
            Plan::Push => self.push(f),
            Plan::Pop => {
                self.pop(f);
                Ok(())
            }
            Plan::Leave => {
                self.leave(f);
                Ok(())
            }
            Plan::Copy | Plan::Vector => self.copy(f),
            Plan::Divide => {
                self.divide(f);
                Ok(())
            }
            Plan::Cli => {
                self.set_interrupts(false);
                Ok(())
            }
            Plan::Sti => {
                self.asm.load(RCX, field!(quiet));
                self.leave_if_zero(f);
                self.set_interrupts(true);
                Ok(())
            }
            Plan::Swapgs => {
                self.swapgs();
                Ok(())
            }
            Plan::Pushf => self.pushf(f),
            _ => Err(Untranslatable),
        }
    }

    /// The same instruction with other registers and a translated address.
    fn copy(&mut self, f: &Fetched<'_>) -> Result<(), Untranslatable> {
        let insn = &f.insn;
        let moffs = insn.op == Op::Mov && f.layout.modrm_at == 0 && f.layout.disp_size != 0;
        if f.slots == Slots::default() && !moffs {
            self.unchanged(f);
            return Ok(());
        }
        let high = insn.operands.iter().any(|operand| matches!(operand, Operand::High { .. }));
        if high {
            return self.copy_high(f);
        }
        if f.slots.low.is_some() {
            return self.copy_short(f);
        }
        let memory = insn.operands.iter().find_map(|operand| match operand {
            Operand::Mem { size } => Some(*size),
            _ => None,
        });
        // CMPXCHG8B and 16B take half of the new value from RCX.
        let pair = matches!(insn.op, Op::Cmpxchg8b | Op::Cmpxchg16b);
        let by_cl = counts_by_cl(insn) || pair;
        let mut scratch = Scratch { free: Vec::with_capacity(3), used: Vec::new() };
        scratch.free.extend(match &self.fast {
            Some(fast) => fast.free(),
            None if memory.is_some() => &[RCX],
            None => &[RCX, R11, R10],
        });
        if by_cl {
            scratch.free.retain(|reg| *reg != RCX);
        }
        // A shift of memory by CL with the other operand in memory as well has no register left.
        if by_cl && memory.is_some() && self.lives_in_memory(f, f.slots.reg) {
            return Err(Untranslatable);
        }
        let address = match (memory, self.fast.take()) {
            (Some(_), Some(fast)) => {
                let (address, used) = self.loop_operand(f, &fast);
                let taken = |reg: u8| used && reg == RCX || address_names(&address, reg);
                scratch.free.retain(|reg| !taken(*reg));
                self.fast = Some(fast);
                if by_cl && used {
                    return Err(Untranslatable);
                }
                Some(address)
            }
            (Some(size), None) => Some(self.operand_address(f, u64::from(size))),
            (None, fast) => {
                self.fast = fast;
                None
            }
        };
        if by_cl {
            let Place::Host(count) = place(1) else { return Err(Untranslatable) };
            if pair { self.asm.mov(RCX, count) } else { self.asm.mov32(RCX, count) }
        }
        let rm = match address {
            Some(address) => Rm::Mem(address),
            None => self.register_or_slot(f, &mut scratch)?,
        };
        let reg = if moffs {
            0
        } else {
            self.field(f, f.slots.reg, &mut scratch)?.unwrap_or(f.layout.modrm >> 3 & 7)
        };
        let vvvv = self.field(f, f.slots.vvvv, &mut scratch)?.unwrap_or(f.layout.vvvv);
        let mut encoding = encoding(f, reg, rm, vvvv);
        if moffs {
            // A0 to A3 have no ModRM; 8A, 8B, 88 and 89 are the same with one.
            encoding.opcode = [0x8a, 0x8b, 0x88, 0x89][usize::from(f.layout.opcode & 3)];
        }
        self.asm.emit(&encoding);
        self.give_back(&scratch);
        Ok(())
    }

    /// Registers that are implicit or fixed are the host's own: prefixes, opcode and immediate as they are.
    fn unchanged(&mut self, f: &Fetched<'_>) {
        let l = &f.layout;
        if l.prefixes.contains(Prefixes::OPSIZE) {
            self.asm.bytes(&[0x66]);
        }
        if l.rex & 8 != 0 {
            self.asm.bytes(&[0x48]);
        }
        let end = usize::from(l.opcode_at) + 1 + usize::from(l.imm_size) + usize::from(l.modrm_at != 0);
        let start = if l.map == Map::Primary { l.opcode_at } else { l.opcode_at - 1 };
        self.asm.bytes(&f.bytes[usize::from(start)..end]);
    }

    /// AH, CH, DH and BH exist only without REX.
    fn copy_high(&mut self, f: &Fetched<'_>) -> Result<(), Untranslatable> {
        let insn = &f.insn;
        let low_register = |operand: Operand| match operand {
            // RCX stands elsewhere, and R8 up need REX, as SPL to DIL do.
            Operand::Gpr { reg, size } => reg < 4 && reg != 1 || size > 1 && reg < 8 && reg != 4 && reg != 1,
            Operand::High { .. } | Operand::Imm { .. } | Operand::None | Operand::Mem { .. } => true,
            _ => false,
        };
        let ch = insn.operands.contains(&Operand::High { reg: 1 });
        if !insn.operands.iter().all(|operand| low_register(*operand))
            || counts_by_cl(insn)
            || f.slots.low.is_some()
        {
            return Err(Untranslatable);
        }
        let memory = insn.operands.iter().find_map(|operand| match operand {
            Operand::Mem { size } => Some(*size),
            _ => None,
        });
        let Place::Host(count) = place(1) else { return Err(Untranslatable) };
        let rm = match memory {
            Some(_) if ch => return Err(Untranslatable),
            Some(_) if self.fast.is_some() => return Err(Untranslatable),
            Some(size) => {
                let address = self.operand_address(f, u64::from(size));
                self.asm.lea(RCX, address);
                Rm::Mem(at(RCX, 0))
            }
            None => Rm::Reg(number(f.operand(f.slots.rm)).unwrap_or(0)),
        };
        if ch {
            self.asm.mov(RCX, count);
        }
        let reg = number(f.operand(f.slots.reg)).unwrap_or(f.layout.modrm >> 3 & 7);
        self.asm.emit(&encoding(f, reg, rm, 0));
        if ch {
            self.asm.mov(count, RCX);
        }
        Ok(())
    }

    /// Encodings with the register in the opcode: MOV of a constant, BSWAP and XCHG with RAX.
    fn copy_short(&mut self, f: &Fetched<'_>) -> Result<(), Untranslatable> {
        let insn = &f.insn;
        let Some(Operand::Gpr { reg, size }) = f.operand(f.slots.low) else { return Err(Untranslatable) };
        let home = place(reg);
        match insn.op {
            Op::Mov if size >= 4 => {
                let host = if let Place::Host(host) = home { host } else { RCX };
                self.asm.constant(host, insn.imm);
                if let Place::Slot(n) = home {
                    self.asm.store(slot(n), RCX);
                }
            }
            Op::Mov => {
                let rm = match home {
                    Place::Host(host) => Rm::Reg(host),
                    Place::Slot(n) => Rm::Mem(slot(n)),
                };
                let opcode = if size == 1 { 0xc6 } else { 0xc7 };
                let plain = Encoding::new(Escape::None, opcode, false, 0, rm);
                self.asm.emit(&Encoding { opsize: size == 2, rex: true, imm: f.immediate(), ..plain });
            }
            Op::Bswap if size >= 4 => {
                let host = self.borrow(home, RCX);
                self.asm.bytes(&[0x40 | u8::from(size == 8) << 3 | host >> 3, 0x0f, 0xc8 | host & 7]);
                self.put_back(home, RCX);
            }
            Op::Xchg => {
                let host = self.borrow(home, RCX);
                let plain = Encoding::new(Escape::None, 0x87, size == 8, host, Rm::Reg(0));
                self.asm.emit(&Encoding { opsize: size == 2, ..plain });
                self.put_back(home, RCX);
            }
            _ => return Err(Untranslatable),
        }
        Ok(())
    }

    /// The host register that holds a guest register now: its own, or `scratch` after a load.
    pub fn borrow(&mut self, home: Place, scratch: u8) -> u8 {
        match home {
            Place::Host(host) => host,
            Place::Slot(n) => {
                self.asm.load(scratch, slot(n));
                scratch
            }
        }
    }

    fn put_back(&mut self, home: Place, scratch: u8) {
        if let Place::Slot(n) = home {
            self.asm.store(slot(n), scratch);
        }
    }

    fn lives_in_memory(&self, f: &Fetched<'_>, n: Option<u8>) -> bool {
        matches!(f.operand(n), Some(Operand::Gpr { reg, .. }) if matches!(place(reg), Place::Slot(_)))
    }

    /// ModRM.rm of an instruction without a memory operand.
    fn register_or_slot(&mut self, f: &Fetched<'_>, scratch: &mut Scratch) -> Result<Rm, Untranslatable> {
        if let (Some(n), Some(Operand::Gpr { reg, size })) = (f.slots.rm, f.operand(f.slots.rm))
            && let Place::Slot(s) = place(reg)
        {
            let whole = size != 4 || !plan::writes_register(&f.insn, n);
            if whole && plan::takes_slot(&f.insn) {
                return Ok(Rm::Mem(slot(s)));
            }
        }
        Ok(Rm::Reg(self.field(f, f.slots.rm, scratch)?.unwrap_or(f.layout.modrm & 7)))
    }

    /// The number that a field gets; `None` if it names no operand.
    fn field(
        &mut self,
        f: &Fetched<'_>,
        n: Option<u8>,
        scratch: &mut Scratch,
    ) -> Result<Option<u8>, Untranslatable> {
        let Some(operand) = f.operand(n) else { return Ok(None) };
        let Operand::Gpr { reg, size } = operand else {
            return number(Some(operand)).map(Some).ok_or(Untranslatable);
        };
        let n = n.unwrap_or(0);
        match place(reg) {
            Place::Host(host) => Ok(Some(host)),
            Place::Slot(s) => {
                let written = plan::writes_register(&f.insn, n);
                if let Some(known) = scratch.used.iter_mut().find(|known| known.slot == s) {
                    known.written |= written;
                    return Ok(Some(known.host));
                }
                let host = scratch.free.pop().ok_or(Untranslatable)?;
                let source =
                    |other: &Operand| matches!(other, Operand::Gpr { reg: other, .. } if *other == reg);
                let read = f.insn.operands[1..].iter().any(source);
                if read || !(written && n == 0 && size >= 4 && plan::overwrites(&f.insn)) {
                    self.asm.load(host, slot(s));
                }
                scratch.used.push(Borrowed { host, slot: s, written });
                Ok(Some(host))
            }
        }
    }

    fn give_back(&mut self, scratch: &Scratch) {
        for borrowed in scratch.used.iter().filter(|borrowed| borrowed.written) {
            self.asm.store(slot(borrowed.slot), borrowed.host);
        }
    }

    /// Puts the effective address of the memory operand plus `add`, before any segment base, into R10. Uses R11.
    fn effective_address(&mut self, f: &Fetched<'_>, add: i32) {
        let mem = &f.insn.mem;
        let narrow = f.insn.addrsize == 4;
        if mem.base == RIP || mem.base >= 16 && mem.index >= 16 {
            let base = if mem.base == RIP { f.next() } else { 0 };
            let value = base.wrapping_add(mem.disp as u64).wrapping_add(i64::from(add) as u64);
            return self.asm.constant(R10, if narrow { value & 0xffff_ffff } else { value });
        }
        let mut address = self.host_address(f);
        address.disp = address.disp.wrapping_add(add);
        let plain = Encoding::new(Escape::None, 0x8d, !narrow, R10, Rm::Mem(address));
        self.asm.emit(&plain);
    }

    /// The memory operand's address with registers renamed. Uses R10 and R11 for those that live in memory.
    fn host_address(&mut self, f: &Fetched<'_>) -> Address {
        let mem = &f.insn.mem;
        let base = (mem.base < 16).then(|| self.borrow(place(mem.base), R10));
        let index = (mem.index < 16).then(|| (self.borrow(place(mem.index), R11), mem.scale));
        Address { base, index, disp: mem.disp as i32 }
    }

    /// Gives the host operand for the memory operand, checked now or with others of its group. R10 and R11 may be in it; RCX
    /// is free afterwards.
    fn operand_address(&mut self, f: &Fetched<'_>, size: u64) -> Address {
        let Some((member, group)) = self.member(f) else {
            let access = Access {
                size: size as u16,
                write: plan::writes_memory(&f.insn),
                aligned: plan::must_align(&f.insn),
                stack: false,
                group: false,
            };
            return self.probe(f, access, 0);
        };
        let mem = &f.insn.mem;
        if !member.first {
            self.group_delta(member.group, &group);
            if mem.index < 16 {
                // R11 is taken: an index that lives in memory needs another.
                let base = (mem.base < 16).then(|| self.borrow(place(mem.base), R10));
                let index = self.borrow(place(mem.index), RCX);
                let address = Address { base, index: Some((index, mem.scale)), disp: mem.disp as i32 };
                self.asm.lea(R10, address);
                return indexed(R10, R11, 0, 0);
            }
            if mem.base >= 16 {
                self.effective_address(f, 0);
                return indexed(R10, R11, 0, 0);
            }
            let base = self.borrow(place(mem.base), R10);
            return indexed(base, R11, 0, mem.disp as i32);
        }
        let below = (group.low - member.offset) as i32;
        if group.stack {
            let Place::Host(sp) = place(4) else { return at(R10, 0) };
            self.check_stack(f, &group, sp, mem.disp as i32 + below);
            self.keep_delta(member.group, &group);
            return indexed(sp, R11, 0, mem.disp as i32);
        }
        let access = Access {
            size: (group.high - group.low) as u16,
            write: group.write,
            aligned: false,
            stack: false,
            group: group.members > 1,
        };
        let address = self.probe(f, access, below);
        self.keep_delta(member.group, &group);
        Address { disp: -below, ..address }
    }

    /// The group that an instruction's access belongs to.
    fn member(&self, f: &Fetched<'_>) -> Option<(Member, Group)> {
        let member = (*self.groups.members.get(f.done as usize)?)?;
        Some((member, self.groups.all[member.group]))
    }

    /// Keeps the delta in R11 for the members that follow, unless it is at hand anyway.
    fn keep_delta(&mut self, n: usize, group: &Group) {
        if group.members > 1 && !self.has_one_stack(group) {
            self.asm.store(group_slot(n), R11);
        }
    }

    fn group_delta(&mut self, n: usize, group: &Group) {
        let from = if self.has_one_stack(group) { field!(stack_delta) } else { group_slot(n) };
        self.asm.load(R11, from);
    }

    /// Whether the page kept for the stack cannot have changed since a stack group was checked.
    fn has_one_stack(&self, group: &Group) -> bool {
        group.stack && self.groups.all.iter().filter(|other| other.stack).count() == 1
    }

    /// Looks for the page of the memory operand's address plus `below` in the TLB, and leaves the address in R10 and its
    /// delta in R11. Uses RCX.
    fn probe(&mut self, f: &Fetched<'_>, access: Access, below: i32) -> Address {
        let retry = self.asm.here();
        self.effective_address(f, below);
        if let Some(seg) = plan::own_base(&f.insn) {
            let base = if seg == trapgate_x86::insn::Seg::Fs { field!(fs_base) } else { field!(gs_base) };
            self.asm.load(RCX, base);
            self.asm.lea(R10, indexed(R10, RCX, 0, 0));
        }
        let view = tlb_offset(self.user);
        let tag = if access.write { view + 8 } else { view };
        self.asm.pext(R11, R10, field!(index_mask));
        self.asm.rorx(R11, R11, 62);
        self.asm.load(RCX, indexed(super::asm::RSP, R11, 3, tag));
        let last = if access.aligned { 0 } else { i32::from(access.size) - 1 };
        self.asm.lea(RCX, indexed(RCX, R10, 0, last));
        if access.aligned {
            self.asm.pext(RCX, RCX, field!(aligned_mask));
        } else {
            self.asm.shrx(RCX, RCX, super::asm::RSP);
        }
        self.missing(f, retry, access, None);
        self.asm.load(R11, indexed(super::asm::RSP, R11, 3, view + 16));
        indexed(R10, R11, 0, 0)
    }

    /// Leaves for the page of an access unless RCX is zero.
    fn missing(&mut self, f: &Fetched<'_>, retry: u64, access: Access, stack: Option<(u8, i32)>) {
        self.asm.jrcxz(5);
        let jump = self.asm.jmp_later();
        let exit = self.exits.add(Exit::Miss { rip: f.rip, done: f.done, retry, access });
        self.cold.push(Cold::Miss { jump, exit, stack });
    }

    /// Checks a group on the stack whose first byte is `[base + low]`, and leaves the delta in R11. Uses RCX and R10.
    fn check_stack(&mut self, f: &Fetched<'_>, group: &Group, base: u8, low: i32) {
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
            self.asm.shrx(R10, R10, super::asm::RSP);
            self.asm.shrx(RCX, RCX, super::asm::RSP);
            self.asm.lea(RCX, indexed(RCX, R10, 0, 0));
        }
        self.missing(f, retry, access, Some((base, low)));
        self.asm.load(R11, field!(stack_delta));
    }

    /// Makes the delta of the stack slot at `[RSP + at]` stand in R11: checked now or with its group. Uses RCX and R10.
    pub fn stack(&mut self, f: &Fetched<'_>, sp: u8, slot: i32, write: bool) {
        let alone = Group { low: 0, high: 8, write, stack: true, members: 1 };
        match self.member(f) {
            Some((member, group)) if !member.first => self.group_delta(member.group, &group),
            Some((member, group)) => {
                self.check_stack(f, &group, sp, slot + (group.low - member.offset) as i32);
                self.keep_delta(member.group, &group);
            }
            None => self.check_stack(f, &alone, sp, slot),
        }
    }

    fn lea(&mut self, f: &Fetched<'_>) {
        let insn = &f.insn;
        let Operand::Gpr { reg, size } = insn.operands[0] else { return };
        let home = place(reg);
        let to = if let Place::Host(host) = home { host } else { RCX };
        let mem = &insn.mem;
        if mem.base == RIP || mem.base >= 16 && mem.index >= 16 {
            self.effective_address(f, 0);
            if size == 4 { self.asm.mov32(to, R10) } else { self.asm.mov(to, R10) }
        } else {
            let address = self.host_address(f);
            let plain = Encoding::new(Escape::None, 0x8d, size == 8, to, Rm::Mem(address));
            self.asm.emit(&Encoding { addrsize: insn.addrsize == 4, ..plain });
        }
        self.put_back(home, RCX);
    }

    fn push(&mut self, f: &Fetched<'_>) -> Result<(), Untranslatable> {
        let Place::Host(sp) = place(4) else { return Err(Untranslatable) };
        let to = indexed(sp, R11, 0, -8);
        match f.insn.operands[0] {
            Operand::Gpr { reg, .. } => {
                self.stack(f, sp, -8, true);
                let host = self.borrow(place(reg), RCX);
                self.asm.store(to, host);
            }
            Operand::Imm { .. } => {
                self.stack(f, sp, -8, true);
                let plain = Encoding::new(Escape::None, 0xc7, true, 0, Rm::Mem(to));
                // All immediates of PUSH are sign-extended 32 bits or less.
                let imm = (f.insn.imm as i32).to_le_bytes();
                self.asm.emit(&Encoding { imm: &imm, ..plain });
            }
            Operand::Mem { .. } => {
                let from = self.operand_address(f, 8);
                self.asm.load(R10, from);
                // A miss here starts the whole instruction again.
                self.stack_after_load(f, sp);
                self.asm.store(to, R10);
            }
            _ => return Err(Untranslatable),
        }
        self.asm.lea(sp, at(sp, -8));
        Ok(())
    }

    /// As [`Self::stack`] for the slot below the stack pointer, where R10 holds a value: if the page is not at hand the
    /// interpreter runs the instruction.
    pub fn stack_after_load(&mut self, f: &Fetched<'_>, sp: u8) {
        self.asm.load(RCX, field!(minus_stack));
        self.asm.lea(RCX, indexed(RCX, sp, 0, -8));
        self.asm.pext(RCX, RCX, field!(slot_mask));
        self.asm.jrcxz(5);
        let jump = self.asm.jmp_later();
        let exit = self.interpret(f);
        self.cold.push(Cold::Leave { jump, exit });
        self.asm.load(R11, field!(stack_delta));
    }

    fn pop(&mut self, f: &Fetched<'_>) {
        let (Operand::Gpr { reg, .. }, Place::Host(sp)) = (f.insn.operands[0], place(4)) else { return };
        self.stack(f, sp, 0, false);
        let from = indexed(sp, R11, 0, 0);
        match place(reg) {
            Place::Host(host) if host == sp => return self.asm.load(sp, from),
            Place::Host(host) => self.asm.load(host, from),
            Place::Slot(n) => {
                self.asm.load(RCX, from);
                self.asm.store(slot(n), RCX);
            }
        }
        self.asm.lea(sp, at(sp, 8));
    }

    fn leave(&mut self, f: &Fetched<'_>) {
        let (Place::Host(sp), Place::Host(bp)) = (place(4), place(5)) else { return };
        self.stack(f, bp, 0, false);
        self.asm.lea(sp, at(bp, 8));
        self.asm.load(bp, indexed(bp, R11, 0, 0));
    }

    /// The value of the memory operand of an indirect branch, in R10.
    pub fn load_target(&mut self, f: &Fetched<'_>) {
        let from = self.operand_address(f, 8);
        self.asm.load(R10, from);
    }

    /// A guest register's value in R10.
    pub fn read_target(&mut self, reg: u8) {
        match place(reg) {
            Place::Host(host) => self.asm.mov(R10, host),
            Place::Slot(n) => self.asm.load(R10, slot(n)),
        }
    }

    /// The exit by which the interpreter runs an instruction.
    pub fn interpret(&mut self, f: &Fetched<'_>) -> u32 {
        let uop = Uop::new(f.insn, handler(&f.insn), 0, Bits::B64, true);
        let step = self.exits.add_step(uop, self.page);
        self.exits.add(Exit::Interpret { rip: f.rip, done: f.done, step })
    }

    /// Lets the interpreter run the instruction if RCX is zero.
    fn leave_if_zero(&mut self, f: &Fetched<'_>) {
        self.asm.jrcxz(2);
        // jmp over the next five bytes
        self.asm.bytes(&[0xeb, 5]);
        let jump = self.asm.jmp_later();
        let exit = self.interpret(f);
        self.cold.push(Cold::Leave { jump, exit });
    }

    fn set_interrupts(&mut self, on: bool) {
        self.asm.store_constant32(field!(interrupts), u32::from(on));
    }

    fn swapgs(&mut self) {
        self.asm.load(R10, field!(gs_base));
        self.asm.load(R11, field!(kernel_gs_base));
        self.asm.store(field!(gs_base), R11);
        self.asm.store(field!(kernel_gs_base), R10);
    }

    /// PUSHF: the arithmetic flags are in the host's RFLAGS, the others in the context.
    fn pushf(&mut self, f: &Fetched<'_>) -> Result<(), Untranslatable> {
        let Place::Host(sp) = place(4) else { return Err(Untranslatable) };
        self.stack(f, sp, -8, true);
        self.asm.bytes(&[0x9c, 0x59]); // pushfq; pop rcx
        // PEXT and PDEP by one mask are an AND that leaves flags alone.
        self.asm.pext(RCX, RCX, field!(arithmetic_mask));
        self.asm.pdep(RCX, RCX, field!(arithmetic_mask));
        self.asm.load(R10, field!(other_flags));
        self.asm.lea(RCX, indexed(RCX, R10, 0, 0));
        self.asm.load(R10, field!(interrupts));
        // IF is bit 9.
        self.asm.rorx(R10, R10, 64 - 9);
        self.asm.lea(RCX, indexed(RCX, R10, 0, 0));
        self.asm.store(indexed(sp, R11, 0, -8), RCX);
        self.asm.lea(sp, at(sp, -8));
        Ok(())
    }

    /// Puts OF and what LAHF gives, and RAX, into the context.
    pub fn keep_flags(&mut self) {
        self.asm.store(saved(0), RAX);
        self.asm.bytes(&[0x9f, 0x0f, 0x90, 0xc0]); // lahf; seto al
        let plain = Encoding::new(Escape::None, 0x89, false, RAX, Rm::Mem(field!(flags)));
        self.asm.emit(&Encoding { opsize: true, ..plain });
        self.asm.load(RAX, saved(0));
    }

    /// The reverse of [`Self::keep_flags`].
    pub fn restore_flags(&mut self) {
        self.asm.emit(&Encoding::new(Escape::M0f, 0xb7, false, RAX, Rm::Mem(field!(flags))));
        self.asm.bytes(&[0x04, 0x7f, 0x9e]); // add al, 7Fh; sahf
        self.asm.load(RAX, saved(0));
    }

    /// DIV and IDIV of 32 and 64 bits. What can make the quotient too large leaves to the interpreter: for DIV a high half
    /// that is not below the divisor, for IDIV a dividend of more than one register, or a divisor of 0 or -1.
    fn divide(&mut self, f: &Fetched<'_>) {
        let insn = &f.insn;
        let wide = insn.opsize == 8;
        match insn.operands[0] {
            Operand::Gpr { reg, .. } => {
                let from = self.borrow(place(reg), RCX);
                self.asm.mov(RCX, from);
            }
            _ => {
                let from = self.operand_address(f, u64::from(insn.opsize));
                self.asm.emit(&Encoding::new(Escape::None, 0x8b, wide, RCX, Rm::Mem(from)));
            }
        }
        self.keep_flags();
        let exit = self.interpret(f);
        if insn.op == Op::Div {
            self.asm.emit(&Encoding::new(Escape::None, 0x39, wide, RCX, Rm::Reg(RDX))); // cmp rdx, rcx
            let jump = self.asm.jcc_later(3);
            self.cold.push(Cold::Restore { jump, exit });
        } else {
            self.asm.emit(&Encoding::new(Escape::None, 0x8b, wide, R10, Rm::Reg(RAX)));
            let sign = Encoding::new(Escape::None, 0xc1, wide, 7, Rm::Reg(R10)); // sar r10, 63 or 31
            self.asm.emit(&Encoding { imm: &[if wide { 63 } else { 31 }], ..sign });
            self.asm.emit(&Encoding::new(Escape::None, 0x39, wide, RDX, Rm::Reg(R10)));
            let jump = self.asm.jcc_later(5);
            self.cold.push(Cold::Restore { jump, exit });
            self.asm.emit(&Encoding::new(Escape::None, 0x8d, wide, R10, Rm::Mem(at(RCX, 1))));
            let one = Encoding::new(Escape::None, 0x83, wide, 7, Rm::Reg(R10)); // cmp r10, 1
            self.asm.emit(&Encoding { imm: &[1], ..one });
            let jump = self.asm.jcc_later(6);
            self.cold.push(Cold::Restore { jump, exit });
        }
        self.restore_flags();
        let extension = if insn.op == Op::Div { 6 } else { 7 };
        self.asm.emit(&Encoding::new(Escape::None, 0xf7, wide, extension, Rm::Reg(RCX)));
    }
}

/// Whether an address is made with a register.
fn address_names(address: &Address, reg: u8) -> bool {
    address.base == Some(reg) || address.index.is_some_and(|(index, _)| index == reg)
}

/// The operand of a group's delta.
pub fn group_slot(n: usize) -> Address {
    super::context::at_offset(std::mem::offset_of!(super::context::Context, groups) + 8 * n)
}

/// Whether the instruction shifts by CL.
pub fn counts_by_cl(insn: &Insn) -> bool {
    let shift = matches!(
        insn.op,
        Op::Rol | Op::Ror | Op::Rcl | Op::Rcr | Op::Shl | Op::Shr | Op::Sar | Op::Shld | Op::Shrd
    );
    let cl = Operand::Gpr { reg: 1, size: 1 };
    shift && (insn.operands[1] == cl || insn.operands[2] == cl)
}

/// The number of a register that is not renamed.
fn number(operand: Option<Operand>) -> Option<u8> {
    match operand? {
        Operand::Xmm(n) | Operand::Ymm(n) => Some(n),
        Operand::High { reg } => Some(reg | 4),
        Operand::Gpr { reg, .. } => Some(reg),
        _ => None,
    }
}

/// The instruction's own encoding with other registers.
fn encoding<'a>(f: &'a Fetched<'_>, reg: u8, rm: Rm, vvvv: u8) -> Encoding<'a> {
    let l = &f.layout;
    // F2 and F3 count where they are part of the opcode; elsewhere they may mean something else on this host.
    let mandatory = l.prefixes - f.insn.prefixes;
    let rep = if mandatory.contains(Prefixes::REP) {
        0xf3
    } else if mandatory.contains(Prefixes::REPNE) {
        0xf2
    } else {
        0
    };
    let byte = |operand: &Operand| matches!(operand, Operand::Gpr { size: 1, .. });
    let high = |operand: &Operand| matches!(operand, Operand::High { .. });
    let vex = l.prefixes.contains(Prefixes::VEX);
    Encoding {
        lock: l.prefixes.contains(Prefixes::LOCK),
        opsize: l.prefixes.contains(Prefixes::OPSIZE),
        addrsize: false,
        rep,
        w: l.rex & 8 != 0,
        rex: f.insn.operands.iter().any(byte) && !f.insn.operands.iter().any(high),
        escape: match l.map {
            Map::Primary => Escape::None,
            Map::M0f | Map::Vex0f | Map::Evex => Escape::M0f,
            Map::M0f38 | Map::Vex0f38 => Escape::M0f38,
            Map::M0f3a | Map::Vex0f3a => Escape::M0f3a,
        },
        opcode: l.opcode,
        reg,
        rm,
        imm: f.immediate(),
        vex: vex.then_some(Vex { vvvv, l: l.vector_length != 0, pp: l.pp }),
    }
}
