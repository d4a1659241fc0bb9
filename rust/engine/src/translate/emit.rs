//! Translates one instruction after the other into host code: registers renamed, memory operands checked against the inline
//! TLB, guest flags left in the host's throughout. Every inserted instruction leaves flags alone.

use trapgate_x86::features::Features;
use trapgate_x86::insn::{Insn, Operand, Prefixes, RIP};
use trapgate_x86::layout::Layout;
use trapgate_x86::op::Op;
use trapgate_x86::slots::Slots;
use trapgate_x86::Map;

use super::asm::{Address, Asm, Encoding, Escape, Fixup, R10, R11, RCX, Rm, Vex, at, indexed};
use super::context::{Place, field, place, slot, tlb_offset};
use super::exits::{Access, Cold, Exit, Exits};
use super::plan::{self, Plan};

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
    pub features: Features,
    pub vectors: bool,
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
            Plan::Vector => {
                self.vectors = true;
                self.copy(f)
            }
            Plan::Copy => self.copy(f),
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
        let by_cl = counts_by_cl(insn);
        let mut scratch = Scratch { free: Vec::with_capacity(3), used: Vec::new() };
        scratch.free.extend(if memory.is_some() { &[RCX][..] } else { &[RCX, R11, R10][..] });
        if by_cl {
            scratch.free.retain(|reg| *reg != RCX);
        }
        // A shift of memory by CL with the other operand in memory as well has no register left.
        if by_cl && memory.is_some() && self.lives_in_memory(f, f.slots.reg) {
            return Err(Untranslatable);
        }
        let address = match memory {
            Some(size) => Some(self.operand_address(f, u64::from(size))),
            None => None,
        };
        if by_cl {
            let Place::Host(count) = place(1) else { return Err(Untranslatable) };
            self.asm.mov32(RCX, count);
        }
        let rm = match address {
            Some(address) => Rm::Mem(address),
            None => self.register_or_slot(f, &mut scratch)?,
        };
        let reg = if moffs { 0 } else { self.field(f, f.slots.reg, &mut scratch)?.unwrap_or(f.layout.modrm >> 3 & 7) };
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
        if !insn.operands.iter().all(|operand| low_register(*operand)) || counts_by_cl(insn) || f.slots.low.is_some() {
            return Err(Untranslatable);
        }
        let memory = insn.operands.iter().find_map(|operand| match operand {
            Operand::Mem { size } => Some(*size),
            _ => None,
        });
        let Place::Host(count) = place(1) else { return Err(Untranslatable) };
        let rm = match memory {
            Some(_) if ch => return Err(Untranslatable),
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
    fn borrow(&mut self, home: Place, scratch: u8) -> u8 {
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
    fn field(&mut self, f: &Fetched<'_>, n: Option<u8>, scratch: &mut Scratch) -> Result<Option<u8>, Untranslatable> {
        let Some(operand) = f.operand(n) else { return Ok(None) };
        let Operand::Gpr { reg, size } = operand else { return number(Some(operand)).map(Some).ok_or(Untranslatable) };
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
                let source = |other: &Operand| matches!(other, Operand::Gpr { reg: other, .. } if *other == reg);
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

    /// Puts the effective address of the memory operand, before any segment base, into R10. Uses R11.
    fn effective_address(&mut self, f: &Fetched<'_>) {
        let mem = &f.insn.mem;
        let narrow = f.insn.addrsize == 4;
        if mem.base == RIP || mem.base >= 16 && mem.index >= 16 {
            let base = if mem.base == RIP { f.next() } else { 0 };
            let value = base.wrapping_add(mem.disp as u64);
            return self.asm.constant(R10, if narrow { value & 0xffff_ffff } else { value });
        }
        let address = self.host_address(f);
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

    /// Checks an access to the memory operand and gives the host operand. RCX is free afterwards, R10 and R11 are not.
    fn operand_address(&mut self, f: &Fetched<'_>, size: u64) -> Address {
        let write = plan::writes_memory(&f.insn);
        let aligned = plan::must_align(&f.insn);
        let retry = self.asm.here();
        self.effective_address(f);
        if let Some(seg) = plan::own_base(&f.insn) {
            let base = if seg == trapgate_x86::insn::Seg::Fs { field!(fs_base) } else { field!(gs_base) };
            self.asm.load(RCX, base);
            self.asm.lea(R10, indexed(R10, RCX, 0, 0));
        }
        let view = tlb_offset(self.user);
        let tag = if write { view + 8 } else { view };
        self.asm.pext(R11, R10, field!(index_mask));
        self.asm.rorx(R11, R11, 62);
        self.asm.load(RCX, indexed(super::asm::RSP, R11, 3, tag));
        let last = if aligned { 0 } else { size as i32 - 1 };
        self.asm.lea(RCX, indexed(RCX, R10, 0, last));
        self.asm.pext(RCX, RCX, if aligned { field!(aligned_mask) } else { field!(page_mask) });
        self.asm.jrcxz(5);
        let jump = self.asm.jmp_later();
        let access = Access { size: size as u16, write, aligned, stack: false };
        let exit = self.exits.add(Exit::Miss { rip: f.rip, done: f.done, retry, access });
        self.cold.push(Cold::Miss { jump, exit, stack: None });
        self.asm.load(R11, indexed(super::asm::RSP, R11, 3, view + 16));
        indexed(R10, R11, 0, 0)
    }

    /// Checks `[base + low, base + high)`, eight bytes of the stack, and puts its delta into R11. Uses RCX. They must be
    /// aligned, so that they lie in one page: the one tag there is says nothing of the page before it.
    pub fn stack(&mut self, f: &Fetched<'_>, base: u8, low: i32, high: i32, write: bool) {
        let retry = self.asm.here();
        self.asm.load(RCX, field!(minus_stack));
        self.asm.lea(RCX, indexed(RCX, base, 0, low));
        self.asm.pext(RCX, RCX, field!(stack_mask));
        self.asm.jrcxz(5);
        let jump = self.asm.jmp_later();
        let access = Access { size: (high - low) as u16, write, aligned: false, stack: true };
        let exit = self.exits.add(Exit::Miss { rip: f.rip, done: f.done, retry, access });
        self.cold.push(Cold::Miss { jump, exit, stack: Some((base, low)) });
        self.asm.load(R11, field!(stack_delta));
    }

    fn lea(&mut self, f: &Fetched<'_>) {
        let insn = &f.insn;
        let Operand::Gpr { reg, size } = insn.operands[0] else { return };
        let home = place(reg);
        let to = if let Place::Host(host) = home { host } else { RCX };
        let mem = &insn.mem;
        if mem.base == RIP || mem.base >= 16 && mem.index >= 16 {
            self.effective_address(f);
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
                self.stack(f, sp, -8, 0, true);
                let host = self.borrow(place(reg), RCX);
                self.asm.store(to, host);
            }
            Operand::Imm { .. } => {
                self.stack(f, sp, -8, 0, true);
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
        self.asm.pext(RCX, RCX, field!(stack_mask));
        self.asm.jrcxz(5);
        let jump = self.asm.jmp_later();
        let exit = self.exits.add(Exit::Interpret { rip: f.rip, done: f.done });
        self.cold.push(Cold::Leave { jump, exit });
        self.asm.load(R11, field!(stack_delta));
    }

    fn pop(&mut self, f: &Fetched<'_>) {
        let (Operand::Gpr { reg, .. }, Place::Host(sp)) = (f.insn.operands[0], place(4)) else { return };
        self.stack(f, sp, 0, 8, false);
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
        self.stack(f, bp, 0, 8, false);
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

    pub fn later(&mut self, jump: Fixup, exit: u32) {
        self.cold.push(Cold::Leave { jump, exit });
    }
}

/// Whether the instruction shifts by CL.
fn counts_by_cl(insn: &Insn) -> bool {
    let shift =
        matches!(insn.op, Op::Rol | Op::Ror | Op::Rcl | Op::Rcr | Op::Shl | Op::Shr | Op::Sar | Op::Shld | Op::Shrd);
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
