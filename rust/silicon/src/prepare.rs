//! From an instance to a case: registers and memory such that the instruction finds its operands where they are wanted,
//! and values that make it do something.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use crate::assemble::assemble;
use crate::case::{Case, Mode, RSP, fx};
use crate::catalog::Entry;
use crate::encode::{Form, Instance, instance, is_vsib32, is_vsib64};
use crate::random::Random;
use crate::space::{CODE, HIGH, LOW, PAGE, WINDOW, WRITABLE};
use crate::values;

/// What is to happen at one of the instruction's memory operands, or at its own bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Normal,
    /// An operand on a page that is not there.
    Hole,
    /// An operand that begins on a writable page and ends on one that is not there.
    Cross,
    ReadOnly,
    /// An operand that begins on a read-only page and ends on a writable one.
    CrossReadOnly,
    NonCanonical,
    /// The instruction ends with its page; the next page is not there.
    CodeEnd,
    /// The instruction goes on in a page that is not there.
    CodeCross,
}

impl Kind {
    pub const FAULTS: [Kind; 7] = [
        Kind::Hole,
        Kind::Cross,
        Kind::ReadOnly,
        Kind::CrossReadOnly,
        Kind::NonCanonical,
        Kind::CodeEnd,
        Kind::CodeCross,
    ];
}

/// A case of one instruction.
#[derive(Clone, Debug)]
pub struct Prepared {
    pub case: Case,
    pub kind: Kind,
    pub insn: Instruction,
}

/// Ways to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Operand,
    Stack,
    /// rSI.
    Source,
    /// rDI, of strings and of masked moves.
    Destination,
    /// rBX + AL.
    Table,
}

const RAX: usize = 0;
pub(crate) const RCX: usize = 1;
const RDX: usize = 2;
pub(crate) const RBX: usize = 3;
const RBP: usize = 5;
pub(crate) const RSI: usize = 6;
pub(crate) const RDI: usize = 7;

/// A case in the making.
pub(crate) struct Maker<'a> {
    pub random: &'a mut Random,
    pub case: Case,
    pub insn: Instruction,
    pub form: Option<Form>,
    /// Bytes of an address.
    pub width: u32,
    /// Base of the data region.
    region: u64,
    kind: Kind,
    /// The access that `kind` is about.
    victim: Option<Access>,
    /// Registers whose values are settled.
    pub pinned: u16,
    /// Where the ModRM operand is.
    pub target: u64,
}

/// Makes a case of an encoding; `None` when the random choices do not fit together.
pub fn prepare(entry: &Entry, mode: Mode, kind: Kind, random: &mut Random) -> Option<Prepared> {
    let Instance { insn, form, width, prefix } = instance(entry.code, mode, random);
    let reaches_high = width == 8 && form.is_none_or(|form| form.base.is_some() || form.displacement == 8);
    let region = if reaches_high && random.one_in(2) { HIGH } else { LOW };
    let accesses = accesses(&insn, form.is_some());
    let kind = match kind {
        Kind::CodeEnd | Kind::CodeCross => kind,
        _ if accesses.is_empty() => Kind::Normal,
        Kind::NonCanonical if !reaches_high => Kind::Hole,
        _ => kind,
    };
    let about_code = matches!(kind, Kind::Normal | Kind::CodeEnd | Kind::CodeCross);
    let victim = (!about_code).then(|| random.pick(&accesses));
    let mut case = Case { mode, ..Case::ZERO };
    let span = WRITABLE - WINDOW as u64;
    let anywhere = 8 * random.below(span / 8);
    case.window_at = region
        + match kind {
            // The window is where the pages meet.
            Kind::Hole | Kind::Cross => span,
            Kind::ReadOnly | Kind::CrossReadOnly => 0,
            _ => random.pick(&[0, span / 2, span, anywhere]),
        };
    random.fill(&mut case.window);
    values::state(&mut case.state, random, entry.group);
    case.state.rip = CODE + 0x800 + random.below(64);
    let mut maker = Maker { random, case, insn, form, width, region, kind, victim, pinned: 0, target: 0 };
    maker.cut_registers();
    for &access in &accesses {
        maker.place(access);
    }
    maker.before();
    maker.solve()?;
    values::operands(&mut maker, entry.group);
    maker.cut_registers();
    // An undocumented form of FSTP, which copies empty registers with their tags: only what it shares is compared.
    let top = maker.case.state.fsw() >> 11 & 7;
    if maker.insn.mnemonic() == Mnemonic::Fstpnce && maker.case.state.fx[fx::FTW] >> top & 1 == 0 {
        return None;
    }
    maker.branch();
    maker.encode(prefix)
}

/// Bytes of an XSAVE area with AVX state.
const AREA: u64 = 832;

fn is_xsave(insn: &Instruction) -> bool {
    use Mnemonic::*;
    matches!(insn.mnemonic(), Xsave | Xsave64 | Xsaveopt | Xsaveopt64 | Xsavec | Xsavec64 | Xrstor | Xrstor64)
}

/// Whether the index of the memory operand is a vector register.
pub fn is_gather(insn: &Instruction) -> bool {
    insn.op_code().op_kinds().iter().any(|&kind| is_vsib32(kind) || is_vsib64(kind))
}

/// How an instruction reaches memory.
pub(crate) fn accesses(insn: &Instruction, operand: bool) -> Vec<Access> {
    use Mnemonic::*;
    let mut list = Vec::new();
    let silent = |m: Mnemonic| {
        insn.op_code().is_nop() || insn.op_code().is_reserved_nop() || matches!(m, Lea | Ud0 | Ud1)
    };
    if operand && !silent(insn.mnemonic()) {
        list.push(Access::Operand);
    }
    let kinds = (0..insn.op_count()).map(|n| insn.op_kind(n));
    for kind in kinds {
        match kind {
            OpKind::MemorySegRSI | OpKind::MemorySegESI | OpKind::MemorySegSI => list.push(Access::Source),
            OpKind::MemoryESRDI | OpKind::MemoryESEDI | OpKind::MemoryESDI => list.push(Access::Destination),
            OpKind::MemorySegRDI | OpKind::MemorySegEDI | OpKind::MemorySegDI => {
                list.push(Access::Destination)
            }
            _ => {}
        }
    }
    if insn.mnemonic() == Xlatb {
        list.push(Access::Table);
    }
    if insn.is_stack_instruction() {
        list.push(Access::Stack);
    }
    list
}

impl Maker<'_> {
    /// Whether an access is to fault.
    pub fn aims_at_fault(&self) -> bool {
        self.victim.is_some()
    }

    /// Bytes of the ModRM operand.
    pub fn size(&self) -> u64 {
        match self.insn.mnemonic() {
            _ if is_xsave(&self.insn) => AREA,
            Mnemonic::Clflush | Mnemonic::Clflushopt | Mnemonic::Clwb => 1,
            _ => (self.insn.memory_size().size() as u64).max(1),
        }
    }

    /// An address for an operand of `size` bytes that leaves `margin` bytes of the window on both sides.
    fn address(&mut self, access: Access, size: u64, margin: u64) -> u64 {
        let kind = if self.victim == Some(access) { self.kind } else { Kind::Normal };
        let random = &mut *self.random;
        if self.width == 2 && access != Access::Stack {
            // No memory can be had there; the fault tells the address.
            return random.below(0x1_0000 - size);
        }
        match kind {
            Kind::Hole => {
                self.region.wrapping_add(random.pick(&[WRITABLE, (2 * PAGE).wrapping_neg()]))
                    + random.below(PAGE - 1024)
            }
            Kind::Cross => self.region + WRITABLE - 1 - random.below((size - 1).max(1)),
            Kind::ReadOnly => self.region - PAGE + random.below(PAGE - size),
            Kind::CrossReadOnly => self.region - 1 - random.below((size - 1).max(1)),
            Kind::NonCanonical if is_gather(&self.insn) => {
                // Far from both canonical halves, wherever the indexes lead.
                (1 << 63) + random.below(PAGE)
            }
            Kind::NonCanonical => {
                random.pick(&[0x8000_0000_0000, 0x7fff_ffff_ffff_f000, 1 << 63]) + random.below(PAGE)
            }
            _ => {
                let room = WINDOW as u64 - size - 2 * margin;
                let at = self.case.window_at + margin + random.below(room + 1);
                let align =
                    if size.is_power_of_two() { size.min(64) } else { if size > 512 { 64 } else { 16 } };
                if random.one_in(5) { at } else { (at & !(align - 1)).max(self.case.window_at) }
            }
        }
    }

    /// Gives an access its address, and the registers that say so their values.
    fn place(&mut self, access: Access) {
        match access {
            Access::Operand => {
                let far = matches!(
                    self.insn.mnemonic(),
                    Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc
                ) || is_gather(&self.insn);
                self.target = self.address(access, self.size(), if far { 640 } else { 0 });
                if self.is_locked() {
                    // Locked accesses across lines are slow on the host, or faults if it watches for them.
                    self.target &= !(self.size() - 1);
                }
            }
            Access::Stack => {
                let at = self.address(access, 8, 640);
                // A push goes below.
                let above = if self.kind != Kind::Normal && self.random.one_in(2) { 8 } else { 0 };
                self.pin(RSP, at.wrapping_add(above));
                if matches!(self.insn.mnemonic(), Mnemonic::Leave | Mnemonic::Enter) {
                    let frame = self.address(access, 8, 640);
                    self.pin(RBP, frame);
                }
            }
            Access::Source => {
                let at = self.address(access, self.size(), 384);
                self.pin(RSI, at);
            }
            Access::Destination => {
                let at = self.address(access, self.size(), 384);
                self.pin(RDI, at);
            }
            Access::Table => {
                let at = self.address(access, 1, 0);
                let base = at.wrapping_sub(self.case.state.gpr[RAX] & 0xff);
                self.pin(RBX, base);
            }
        }
    }

    fn is_locked(&self) -> bool {
        self.insn.has_lock_prefix() || self.insn.mnemonic() == Mnemonic::Xchg
    }

    /// Settles a register; with 32-bit addresses the upper half stays noise.
    fn pin(&mut self, n: usize, value: u64) {
        self.case.state.gpr[n] = value;
        self.pinned |= 1 << n;
    }

    /// Outside 64-bit mode registers have 32 bits.
    fn cut_registers(&mut self) {
        if self.case.mode == Mode::Compatibility {
            for value in &mut self.case.state.gpr {
                *value &= u64::from(u32::MAX);
            }
        }
    }

    /// Values that addresses depend on or that the address must not spoil.
    fn before(&mut self) {
        use Mnemonic::*;
        let gpr = &mut self.case.state.gpr;
        match self.insn.mnemonic() {
            Rol | Ror | Rcl | Rcr | Shl | Shr | Sal | Sar | Shld | Shrd => {
                let count = self.random.pick(&[0, 1, 2, 7, 8, 9, 15, 16, 17, 18, 31, 32, 33, 63, 64, 255]);
                gpr[RCX] =
                    gpr[RCX] & !0xff | if self.random.one_in(2) { count } else { self.random.below(256) };
            }
            Loop | Loope | Loopne | Jcxz | Jecxz | Jrcxz => {
                gpr[RCX] = self.random.pick(&[0, 1, 2, 1 << 32, 1 << 32 | 1, u64::MAX, gpr[RCX]]);
            }
            Bt | Bts | Btr | Btc if self.insn.op1_kind() == OpKind::Register && self.form.is_some() => {
                // The bit offset reaches beyond the operand: keep it near.
                let n = self.insn.op1_register().number();
                let reach = if self.kind == Kind::Normal { 0x1000 } else { 64 };
                let offset = self.random.below(2 * reach).wrapping_sub(reach);
                self.pin(n, offset);
            }
            Pcmpestri | Pcmpestrm | Pcmpestri64 | Pcmpestrm64 | Vpcmpestri | Vpcmpestrm | Vpcmpestri64
            | Vpcmpestrm64 => {
                for n in [RAX, RDX] {
                    if !self.random.one_in(4) {
                        self.case.state.gpr[n] = self.random.below(41).wrapping_sub(20);
                    }
                }
            }
            _ if is_xsave(&self.insn) => {
                // What is not requested need not be accessed.
                let components = self.random.pick(&values::COMPONENTS);
                gpr[RAX] = if self.victim.is_some() { 7 } else { components.into() };
                gpr[RDX] = 0;
                self.pinned |= 1 << RAX | 1 << RDX;
            }
            _ if is_gather(&self.insn) => self.indexes(),
            Maskmovq | Maskmovdqu | Vmaskmovdqu if self.victim.is_some() || self.width == 2 => {
                // Whether bytes that are masked out can fault is left to implementations: none is.
                let mask = self.insn.op2_register().number();
                let xmm = self.insn.op2_register().is_xmm();
                let at = if xmm { fx::XMM + 16 * mask } else { fx::ST + 16 * self.st_of_mmx(mask) };
                self.case.state.fx[at..at + if xmm { 16 } else { 8 }].fill(0xff);
            }
            _ => {}
        }
        if self.insn.is_string_instruction() {
            let gpr = &mut self.case.state.gpr;
            if self.insn.has_rep_prefix() || self.insn.has_repne_prefix() {
                gpr[RCX] = if self.random.one_in(3) { self.random.below(40) } else { self.random.below(9) };
            }
            if self.pinned & (1 << RSI | 1 << RDI) == (1 << RSI | 1 << RDI)
                && self.victim.is_none()
                && self.random.one_in(4)
            {
                gpr[RDI] = gpr[RSI].wrapping_add(self.random.below(33)).wrapping_sub(16);
            }
        }
    }

    /// Indexes of a gather: elements that coincide and elements nearby, within the margin of the operand.
    fn indexes(&mut self) {
        let n = self.insn.memory_index().number();
        let wide = self.insn.op_code().op_kinds().iter().any(|&kind| is_vsib64(kind));
        let reach = 512 / u64::from(self.insn.memory_index_scale());
        for half in 0..2 {
            let mut value = 0u128;
            for _ in 0..if wide { 2 } else { 4 } {
                let near = self.random.below(2 * reach).wrapping_sub(reach);
                let index = if self.random.one_in(3) { 0 } else { near };
                value = if wide {
                    value << 64 | u128::from(index)
                } else {
                    value << 32 | u128::from(index as u32)
                };
            }
            if half == 0 { self.case.state.set_xmm(n, value) } else { self.case.state.ymm_high[n] = value }
        }
    }

    /// The place in the stack, and so in the image, of a physical register.
    fn st_of_mmx(&self, n: usize) -> usize {
        n.wrapping_sub(usize::from(self.case.state.fsw() >> 11)) & 7
    }

    /// Writes to the window what lies inside it.
    pub fn poke(&mut self, address: u64, bytes: &[u8]) {
        for (i, byte) in bytes.iter().enumerate() {
            let at = address.wrapping_add(i as u64).wrapping_sub(self.case.window_at);
            if let Some(slot) = self.case.window.get_mut(at as usize) {
                *slot = *byte;
            }
        }
    }

    /// Reads from the window, zeros elsewhere.
    pub fn peek(&self, address: u64) -> u64 {
        (0..8).rev().fold(0, |value, i| {
            let at = address.wrapping_add(i).wrapping_sub(self.case.window_at);
            value << 8 | u64::from(self.case.window.get(at as usize).copied().unwrap_or(0))
        })
    }

    /// Sets a general register or memory operand, unless an address depends on the register.
    pub fn set_operand(&mut self, n: u32, value: u64) {
        if self.insn.op_kind(n) == OpKind::Memory {
            let size = self.size().min(8) as usize;
            let target = self.target;
            self.poke(target, &value.to_le_bytes()[..size]);
            return;
        }
        let register = self.insn.op_register(n);
        let full = register.full_register().number();
        if self.is_address(full) {
            return;
        }
        let slot = &mut self.case.state.gpr[full];
        let (shift, size) = match register {
            Register::AH | Register::CH | Register::DH | Register::BH => (8, 1),
            _ => (0, register.size()),
        };
        let mask = u64::MAX >> (64 - 8 * size) << shift;
        *slot = *slot & !mask | value << shift & mask;
    }

    /// The value of a general register or memory operand.
    pub fn operand(&self, n: u32) -> u64 {
        if self.insn.op_kind(n) == OpKind::Memory {
            return self.peek(self.target) & u64::MAX >> (64 - 8 * self.size().min(8));
        }
        let register = self.insn.op_register(n);
        let value = self.case.state.gpr[register.full_register().number()];
        match register {
            Register::AH | Register::CH | Register::DH | Register::BH => value >> 8 & 0xff,
            _ => value & u64::MAX >> (64 - 8 * register.size()),
        }
    }

    /// Whether an address is made from this register.
    pub fn is_address(&self, n: usize) -> bool {
        self.pinned >> n & 1 != 0
            || self.form.is_some_and(|form| form.base == Some(n) || form.index == Some(n))
    }

    fn encode(mut self, prefix: Option<u8>) -> Option<Prepared> {
        let bits = self.case.mode.bits();
        let mut bytes = assemble(&self.insn, self.case.state.rip, prefix, bits)?;
        let len = bytes.len() as u64;
        let rip = match self.kind {
            Kind::CodeEnd => CODE + PAGE - len,
            Kind::CodeCross if len > 1 => CODE + PAGE - 1 - self.random.below(len - 1),
            _ => self.case.state.rip,
        };
        if rip != self.case.state.rip {
            self.case.state.rip = rip;
            self.branch();
            bytes = assemble(&self.insn, rip, prefix, bits)?;
        }
        if bytes.len() > 15 {
            return None;
        }
        self.case.code[..bytes.len()].copy_from_slice(&bytes);
        self.case.code_len = bytes.len() as u64;
        Some(Prepared { case: self.case, kind: self.kind, insn: self.insn })
    }
}
