//! Translates one instruction after the other into host code. Here are those that are copied, with their registers renamed and
//! their memory operand replaced; guest flags stay in the host's throughout, and what is inserted leaves flags alone.

use std::num::NonZeroU32;

use trapgate_x86::Map;
use trapgate_x86::insn::{Insn, Operand, Prefixes};
use trapgate_x86::layout::Layout;
use trapgate_x86::op::Op;
use trapgate_x86::slots::Slots;

use super::access::Groups;
use super::asm::{Address, Asm, Encoding, Escape, R10, R11, RCX, Rm, Vex, at};
use super::context::{Place, field, place, slot};
use super::exits::{Cold, Exits, Second};
use super::loops::Loop;
use super::plan::{self, Plan};
use super::stack::PutOff;
use super::vectors::gives_index;

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
    /// The second view of the TLB: CPL 3, or user mode of a para-virtual guest.
    pub user: bool,
    /// The guest is para-virtual.
    pub para: bool,
    /// Offset of the page in the host mapping.
    pub page: u64,
    /// The next page, if the unit is one instruction that goes on there.
    pub second: Option<Second>,
    /// The step by which the interpreter runs that instruction.
    pub step: Option<NonZeroU32>,
    /// Which accesses are checked together.
    pub groups: Groups,
    /// The loop whose fast form is emitted now.
    pub fast: Option<Loop>,
    pub put_off: PutOff,
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
            Plan::Nothing | Plan::Follow => Ok(()),
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
            Plan::X87(kind) => self.x87(f, kind),
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
            Plan::ReadBase(seg) => self.read_base(f, seg),
            Plan::WriteBase(seg) => self.write_base(f, seg),
            Plan::Cld => {
                self.leave_if_set(f, field!(direction));
                Ok(())
            }
            Plan::ReadControl | Plan::ReadSelector => {
                self.read_system(f);
                Ok(())
            }
            Plan::Repeat => {
                self.repeat(f);
                Ok(())
            }
            Plan::BitString => self.bit_string(f),
            Plan::Pushf => self.pushf(f),
            _ => Err(Untranslatable),
        }
    }

    /// The same instruction with other registers and a translated address.
    pub(super) fn copy(&mut self, f: &Fetched<'_>) -> Result<(), Untranslatable> {
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
        if let (true, Place::Host(index)) = (gives_index(insn.op), place(1)) {
            self.asm.mov32(index, RCX);
        }
        self.give_back(&scratch);
        Ok(())
    }

    /// Registers that are implicit or fixed are the host's own: prefixes, opcode and immediate as they are.
    fn unchanged(&mut self, f: &Fetched<'_>) {
        let l = &f.layout;
        if l.prefixes.contains(Prefixes::VEX) {
            // VZEROUPPER and VZEROALL.
            return self.asm.bytes(&f.bytes[usize::from(l.head)..usize::from(l.len)]);
        }
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
    pub(super) fn copy_short(&mut self, f: &Fetched<'_>) -> Result<(), Untranslatable> {
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

    pub(super) fn put_back(&mut self, home: Place, scratch: u8) {
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
}

/// Whether an address is made with a register.
fn address_names(address: &Address, reg: u8) -> bool {
    address.base == Some(reg) || address.index.is_some_and(|(index, _)| index == reg)
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
        Operand::Xmm(n) | Operand::Ymm(n) | Operand::Mmx(n) => Some(n),
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
