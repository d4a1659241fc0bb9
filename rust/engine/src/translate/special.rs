//! Instructions that have a form of their own: LEA, the stack, targets of indirect branches, division, bit strings, and what of
//! the system can be done in place.

use trapgate_x86::insn::{Operand, Prefixes, RIP};
use trapgate_x86::op::Op;

use super::asm::{Address, Encoding, Escape, R10, R11, RAX, RCX, RDX, Rm, at, indexed};
use super::context::{Context, Place, at_offset, field, place, saved, slot};
use super::emit::{Emitter, Fetched, Untranslatable};
use super::exits::{Access, Cold, Exit, Step};
use super::plan;
use super::thunks::{load_flags, save_flags};

impl Emitter<'_> {
    pub(super) fn lea(&mut self, f: &Fetched<'_>) {
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

    /// The value of the memory operand of a push or an indirect branch, in R10; gives where its code begins.
    pub(super) fn load_target(&mut self, f: &Fetched<'_>) -> u64 {
        let start = self.asm.here();
        let from = self.operand_address(f, 8);
        self.asm.load(R10, from);
        start
    }

    /// A guest register's value in R10.
    pub(super) fn read_target(&mut self, reg: u8) {
        match place(reg) {
            Place::Host(host) => self.asm.mov(R10, host),
            Place::Slot(n) => self.asm.load(R10, slot(n)),
        }
    }

    /// The exit by which the interpreter runs an instruction.
    pub(super) fn interpret(&mut self, f: &Fetched<'_>) -> u32 {
        let step = self.exits.add_step(Step::new(f.insn, self.page, self.second));
        self.exits.add(Exit::Interpret { rip: f.rip, done: f.done, step, resume: 0 })
    }

    /// Lets the interpreter run the instruction if RCX is zero.
    pub(super) fn leave_if_zero(&mut self, f: &Fetched<'_>) {
        let jump = self.asm.jump_if_zero();
        let exit = self.interpret(f);
        self.cold.push(Cold::Leave { jump, exit });
    }

    /// Lets the interpreter run the instruction unless a field is zero.
    pub(super) fn leave_if_set(&mut self, f: &Fetched<'_>, value: Address) {
        self.asm.load(RCX, value);
        self.leave_unless_zero(f);
    }

    /// Lets the interpreter run the instruction unless RCX is zero.
    pub(super) fn leave_unless_zero(&mut self, f: &Fetched<'_>) {
        let jump = self.asm.jump_unless_zero();
        let exit = self.interpret(f);
        self.cold.push(Cold::Leave { jump, exit });
    }

    /// MOV from a control or segment register.
    pub(super) fn read_system(&mut self, f: &Fetched<'_>) {
        let Operand::Gpr { reg, size } = f.insn.operands[0] else { return };
        let from = match f.insn.operands[1] {
            Operand::Cr(n) => (std::mem::offset_of!(Context, control), usize::from(n)),
            Operand::Seg(seg) => (std::mem::offset_of!(Context, selectors), seg as usize),
            _ => return,
        };
        self.asm.load(RCX, at_offset(from.0 + 8 * from.1));
        match (place(reg), size) {
            (Place::Host(host), 2) => {
                let plain = Encoding::new(Escape::None, 0x89, false, RCX, Rm::Reg(host));
                self.asm.emit(&Encoding { opsize: true, ..plain });
            }
            (Place::Slot(n), 2) => {
                let plain = Encoding::new(Escape::None, 0x89, false, RCX, Rm::Mem(slot(n)));
                self.asm.emit(&Encoding { opsize: true, ..plain });
            }
            (Place::Host(host), _) => self.asm.mov(host, RCX),
            (Place::Slot(n), _) => self.asm.store(slot(n), RCX),
        }
    }

    /// BT and its kin on a bit of memory that a register counts from the operand's address on.
    pub(super) fn bit_string(&mut self, f: &Fetched<'_>) -> Result<(), Untranslatable> {
        let insn = &f.insn;
        let (Operand::Gpr { reg, .. }, true) = (insn.operands[1], insn.opsize >= 4) else {
            return Err(Untranslatable);
        };
        let wide = insn.opsize == 8;
        let access = Access {
            size: u16::from(insn.opsize),
            write: plan::writes_memory(insn),
            aligned: false,
            stack: false,
            group: false,
        };
        let retry = self.asm.here();
        self.effective_address(f, 0);
        // The bit's word: a signed number of whole words from the address.
        let bit = self.borrow(place(reg), R11);
        if wide {
            self.asm.constant(RCX, 6);
            self.asm.sarx(RCX, bit, RCX);
            self.asm.lea(R10, indexed(R10, RCX, 3, 0));
        } else {
            self.asm.emit(&Encoding::new(Escape::None, 0x63, true, RCX, Rm::Reg(bit))); // movsxd
            self.asm.constant(R11, 5);
            self.asm.sarx(RCX, RCX, R11);
            self.asm.lea(R10, indexed(R10, RCX, 2, 0));
        }
        self.segment_base(f);
        self.check(f, retry, access);
        // The bit in its word.
        let bit = self.borrow(place(reg), RCX);
        self.asm.lea(R10, indexed(R10, R11, 0, 0));
        self.asm.constant(R11, if wide { 58 } else { 59 });
        self.asm.shlx(RCX, bit, R11);
        self.asm.shrx(RCX, RCX, R11);
        let plain = Encoding::new(Escape::M0f, f.layout.opcode, wide, RCX, Rm::Mem(at(R10, 0)));
        self.asm.emit(&Encoding { lock: f.layout.prefixes.contains(Prefixes::LOCK), ..plain });
        Ok(())
    }

    pub(super) fn set_interrupts(&mut self, on: bool) {
        self.asm.store_constant32(field!(interrupts), u32::from(on));
    }

    pub(super) fn swapgs(&mut self) {
        self.asm.load(R10, field!(gs_base));
        self.asm.load(R11, field!(kernel_gs_base));
        self.asm.store(field!(gs_base), R11);
        self.asm.store(field!(kernel_gs_base), R10);
    }

    /// PUSHF: the arithmetic flags are in the host's RFLAGS, the others in the context.
    pub(super) fn pushf(&mut self, f: &Fetched<'_>) -> Result<(), Untranslatable> {
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
    pub(super) fn keep_flags(&mut self) {
        self.asm.store(saved(0), RAX);
        save_flags(self.asm);
        self.asm.load(RAX, saved(0));
    }

    /// The reverse of [`Self::keep_flags`].
    pub(super) fn restore_flags(&mut self) {
        load_flags(self.asm);
        self.asm.load(RAX, saved(0));
    }

    /// DIV and IDIV of 32 and 64 bits. What can make the quotient too large leaves to the interpreter: for DIV a high half
    /// that is not below the divisor, for IDIV a dividend of more than one register, or a divisor of 0 or -1.
    pub(super) fn divide(&mut self, f: &Fetched<'_>) {
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
