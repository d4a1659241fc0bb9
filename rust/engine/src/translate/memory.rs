//! How translated code reaches memory: effective addresses, and the checks against the inline TLB and the page kept for the
//! stack, alone or for a group of accesses.

use trapgate_x86::insn::{RIP, Seg};

use super::access::{Group, Member};
use super::asm::{Address, Encoding, Escape, R10, R11, RCX, RSP, Rm, at, indexed};
use super::context::{Context, DELTA, MINUS_READ, MINUS_WRITE, Place, at_offset, field, place, tlb_offset};
use super::emit::{Emitter, Fetched};
use super::exits::{Access, Cold, Exit};
use super::plan;
use super::vex;

impl Emitter<'_> {
    /// Puts the effective address of the memory operand plus `add`, before any segment base, into R10. Uses R11.
    pub(super) fn effective_address(&mut self, f: &Fetched<'_>, add: i32) {
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
    pub(super) fn host_address(&mut self, f: &Fetched<'_>) -> Address {
        let mem = &f.insn.mem;
        let base = (mem.base < 16).then(|| self.borrow(place(mem.base), R10));
        let index = (mem.index < 16).then(|| (self.borrow(place(mem.index), R11), mem.scale));
        Address { base, index, disp: mem.disp as i32 }
    }

    /// Gives the host operand for the memory operand, checked now or with others of its group. R10 and R11 may be in it; RCX
    /// is free afterwards.
    pub(super) fn operand_address(&mut self, f: &Fetched<'_>, size: u64) -> Address {
        let Some((member, group)) = self.member(f) else {
            let access = Access {
                size: size as u16,
                write: plan::writes_memory(&f.insn),
                aligned: plan::must_align(&f.insn),
                stack: false,
                group: false,
            };
            self.delta_is(None);
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
            let behind = if group.stack { self.put_off.moved } else { 0 };
            return indexed(base, R11, 0, mem.disp as i32 + behind);
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
    pub(super) fn member(&self, f: &Fetched<'_>) -> Option<(Member, Group)> {
        let member = (*self.groups.members.get(f.done as usize)?)?;
        Some((member, self.groups.all[member.group]))
    }

    /// Keeps the delta in R11 for the members that follow, unless it is at hand anyway.
    pub(super) fn keep_delta(&mut self, n: usize, group: &Group) {
        self.delta_is(Some(n));
        if group.members > 1 && !self.has_one_stack(group) {
            self.asm.store(group_slot(n), R11);
        }
    }

    pub(super) fn group_delta(&mut self, n: usize, group: &Group) {
        if self.has_delta(n) {
            return;
        }
        let from = if self.has_one_stack(group) { field!(stack_delta) } else { group_slot(n) };
        self.asm.load(R11, from);
        self.delta_is(Some(n));
    }

    /// Whether the page kept for the stack cannot have changed since a stack group was checked.
    pub(super) fn has_one_stack(&self, group: &Group) -> bool {
        group.stack
            && !self.groups.slot_apart
            && self.groups.all.iter().filter(|other| other.stack).count() == 1
    }

    /// Looks for the page of the memory operand's address plus `below` in the TLB, and leaves its delta in R11. The address
    /// is in R10, or in the one register that it is made of. Uses RCX.
    pub(super) fn probe(&mut self, f: &Fetched<'_>, access: Access, below: i32) -> Address {
        let retry = self.asm.here();
        let mem = &f.insn.mem;
        let alone = f.insn.addrsize == 8 && mem.index >= 16 && mem.disp == i64::from(below).wrapping_neg();
        if alone
            && mem.base < 16
            && plan::own_base(&f.insn).is_none()
            && let Place::Host(base) = place(mem.base)
        {
            return self.check_at(f, base, retry, access);
        }
        self.effective_address(f, below);
        self.segment_base(f);
        self.check(f, retry, access)
    }

    /// Adds the base of FS or GS to R10, if the operand has it. Uses RCX.
    pub(super) fn segment_base(&mut self, f: &Fetched<'_>) {
        if let Some(seg) = plan::own_base(&f.insn) {
            let base = if seg == Seg::Fs { field!(fs_base) } else { field!(gs_base) };
            self.asm.load(RCX, base);
            self.asm.lea(R10, indexed(R10, RCX, 0, 0));
        }
    }

    /// Looks for the page of the linear address in R10 and leaves its delta in R11. Uses RCX.
    pub(super) fn check(&mut self, f: &Fetched<'_>, retry: u64, access: Access) -> Address {
        self.check_at(f, R10, retry, access)
    }

    /// The same for an address in any register.
    fn check_at(&mut self, f: &Fetched<'_>, linear: u8, retry: u64, access: Access) -> Address {
        let view = tlb_offset(self.user);
        let tag = if access.write { MINUS_WRITE } else { MINUS_READ };
        self.asm.shrx(R11, linear, RSP);
        self.asm.low_word(R11, R11);
        self.asm.load(RCX, indexed(RSP, R11, 3, view + tag));
        let last = if access.aligned { 0 } else { i32::from(access.size) - 1 };
        self.asm.lea(RCX, indexed(RCX, linear, 0, last));
        if access.aligned {
            self.asm.pext(RCX, RCX, if access.size == 32 { field!(wide_mask) } else { field!(aligned_mask) });
        } else {
            self.asm.shrx(RCX, RCX, RSP);
        }
        let elsewhere = (linear != R10).then_some((linear, 0));
        self.missing(f, retry, access, elsewhere);
        self.asm.load(R11, indexed(RSP, R11, 3, view + DELTA));
        indexed(linear, R11, 0, 0)
    }

    /// Leaves for the page of an access unless RCX is zero. The address is in R10 unless it is a register plus a constant.
    pub(super) fn missing(
        &mut self,
        f: &Fetched<'_>,
        retry: u64,
        access: Access,
        address: Option<(u8, i32)>,
    ) {
        if vex::is_masked(f.insn.op) {
            // To look the page up would set its accessed flag, though no element that is wanted may lie in it.
            return self.leave_unless_zero(f);
        }
        let jump = self.asm.jump_unless_zero();
        let exit = self.exits.add(Exit::Miss { rip: f.rip, done: f.done, retry, access, step: self.step });
        self.cold.push(Cold::Miss { jump, exit, address, stack: access.stack, retry });
    }
}

/// The operand of a group's delta.
pub fn group_slot(n: usize) -> Address {
    at_offset(std::mem::offset_of!(Context, groups) + 8 * n)
}
