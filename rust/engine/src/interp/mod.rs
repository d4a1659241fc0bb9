//! The interpreter: decoded blocks of micro-operations, one handler function each.
//!
//! A handler does one instruction on the vCPU; `select` chooses it once, when the block is made, by operation, width and
//! operand form, so that nothing is decided again while the block runs.

mod alu;
mod bits;
pub mod block;
mod control;
mod data;
mod debug;
mod descriptor;
mod event;
mod far;
mod io;
pub(crate) mod msr;
mod muldiv;
mod run;
mod select;
mod shift;
mod stack;
mod string;
mod syscall;
mod system;
mod undefined;
mod vector;

pub use run::Engine;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(crate) use run::{Step, is_calm, may_translate, run_one};
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(crate) use select::handler;

use trapgate_x86::exception::Vector;
use trapgate_x86::insn::{Bits, Insn, NO_REG, Operand, RIP, Seg};

use crate::fault::{Done, Exception};
use crate::memory::Word;
use crate::state::{BLOCK_RIP, Vcpu, ZERO};

/// Does one instruction. The RIP of the vCPU is that of the block's end meanwhile; a branch sets it.
pub(crate) type Handler = fn(&mut Vcpu, &Uop) -> Done;

/// One instruction of a decoded block.
#[derive(Clone, Copy)]
pub(crate) struct Uop {
    pub run: Handler,
    pub insn: Insn,
    /// Mask of effective addresses: the address size.
    pub address_mask: u64,
    /// Offset of the instruction in its block.
    pub offset: u16,
    /// Offset of the next one.
    pub next: u16,
    /// Register numbers of the first two operands (0 where they are none), and how far a byte lies up (AH: 8).
    pub a: u8,
    pub a_shift: u8,
    pub b: u8,
    pub b_shift: u8,
    /// The memory operand needs its segment: FS, GS, outside 64-bit mode CS, which cannot be written, and all but in
    /// flat mode.
    pub segmented: bool,
}

impl std::fmt::Debug for Uop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uop").field("insn", &self.insn).field("offset", &self.offset).finish_non_exhaustive()
    }
}

impl Uop {
    /// Prepares an instruction that lies `offset` bytes into its block.
    pub fn new(mut insn: Insn, run: Handler, offset: u16, bits: Bits, flat: bool) -> Self {
        let next = offset + u16::from(insn.len);
        let register = |operand: Operand| match operand {
            Operand::Gpr { reg, .. } => (reg, 0),
            Operand::High { reg } => (reg, 8),
            Operand::Cr(n) | Operand::Dr(n) | Operand::St(n) | Operand::Mmx(n) | Operand::Xmm(n) => (n, 0),
            Operand::Seg(s) => (s as u8, 0),
            _ => (0, 0),
        };
        let (a, a_shift) = register(insn.operands[0]);
        let (b, b_shift) = register(insn.operands[1]);
        match insn.mem.base {
            RIP => {
                insn.mem.base = BLOCK_RIP;
                insn.mem.disp = insn.mem.disp.wrapping_add(i64::from(next));
            }
            NO_REG => insn.mem.base = ZERO,
            _ => {}
        }
        if insn.mem.index == NO_REG {
            insn.mem.index = ZERO;
        }
        let address_mask = match insn.addrsize {
            2 => 0xffff,
            4 => u64::from(u32::MAX),
            _ => u64::MAX,
        };
        let own_base = matches!(insn.mem.seg, Seg::Fs | Seg::Gs);
        let segmented = own_base || bits != Bits::B64 && (!flat || insn.mem.seg == Seg::Cs);
        Uop { run, insn, address_mask, offset, next, a, a_shift, b, b_shift, segmented }
    }
}

/// Sign-extends the low bits of a value.
#[inline(always)]
pub(crate) fn sign_extend<T: Word>(value: u64) -> u64 {
    let up = 64 - 8 * T::SIZE as u32;
    ((value << up) as i64 >> up) as u64
}

/// All ones of a width.
#[inline(always)]
pub(crate) fn mask<T: Word>() -> u64 {
    u64::MAX >> (64 - 8 * T::SIZE as u32)
}

impl Vcpu {
    /// Effective address of the memory operand, wrapped at the address size.
    #[inline(always)]
    pub(crate) fn ea(&self, u: &Uop) -> u64 {
        let m = &u.insn.mem;
        let base = self.regs[usize::from(m.base & 31)];
        let index = self.regs[usize::from(m.index & 31)] << (m.scale & 3);
        base.wrapping_add(index).wrapping_add(m.disp as u64) & u.address_mask
    }

    /// Linear address of the memory operand for an access of `size` bytes.
    #[inline(always)]
    pub(crate) fn linear(&mut self, u: &Uop, size: u32, write: bool) -> Done<u64> {
        let ea = self.ea(u);
        if u.segmented { self.segmented(u.insn.mem.seg, ea, size, write) } else { Ok(ea) }
    }

    /// Adds a segment's base, after the checks of type and limit outside 64-bit mode (SDM vol. 3, 5.3 to 5.5).
    #[inline(never)]
    pub(crate) fn segmented(&mut self, seg: Seg, offset: u64, size: u32, write: bool) -> Done<u64> {
        let segment = self.segment(seg);
        if self.mode.bits == Bits::B64 {
            let base = if matches!(seg, Seg::Fs | Seg::Gs) { segment.base } else { 0 };
            return Ok(base.wrapping_add(offset));
        }
        let allowed = if write { segment.writable() } else { segment.readable() };
        if segment.is_null() || !allowed || !segment.contains(offset as u32, size) {
            let vector = if seg == Seg::Ss { Vector::Ss } else { Vector::Gp };
            return self.raise(Exception::with_error(vector, 0));
        }
        Ok(segment.base.wrapping_add(offset) & u64::from(u32::MAX))
    }

    /// Linear address of the first of `size` bytes at an offset of a segment that no ModRM names (stack, strings).
    #[inline(always)]
    pub(crate) fn linear_in(&mut self, seg: Seg, offset: u64, size: u32, write: bool) -> Done<u64> {
        let plain = if self.mode.bits == Bits::B64 {
            !matches!(seg, Seg::Fs | Seg::Gs)
        } else {
            self.mode.flat && !matches!(seg, Seg::Fs | Seg::Gs | Seg::Cs)
        };
        if plain { Ok(offset) } else { self.segmented(seg, offset, size, write) }
    }

    /// Loads the memory operand.
    #[inline(always)]
    pub(crate) fn load_operand<T: Word>(&mut self, u: &Uop) -> Done<u64> {
        let linear = self.linear(u, T::SIZE as u32, false)?;
        Ok(self.load::<T>(u.insn.mem.seg, linear)?.to_u64())
    }

    /// Stores the memory operand.
    #[inline(always)]
    pub(crate) fn store_operand<T: Word>(&mut self, u: &Uop, value: u64) -> Done {
        let linear = self.linear(u, T::SIZE as u32, true)?;
        self.store::<T>(u.insn.mem.seg, linear, T::from_u64(value))
    }

    /// The first operand, a register, zero-extended.
    #[inline(always)]
    pub(crate) fn get_a<T: Word>(&self, u: &Uop) -> u64 {
        let value = self.regs[usize::from(u.a & 31)];
        if T::SIZE == 1 { value >> (u.a_shift & 8) & 0xff } else { value & mask::<T>() }
    }

    /// The second operand, a register, zero-extended.
    #[inline(always)]
    pub(crate) fn get_b<T: Word>(&self, u: &Uop) -> u64 {
        let value = self.regs[usize::from(u.b & 31)];
        if T::SIZE == 1 { value >> (u.b_shift & 8) & 0xff } else { value & mask::<T>() }
    }

    /// Sets the first operand, a register: 32-bit results clear the upper half, smaller ones keep the rest.
    #[inline(always)]
    pub(crate) fn set_a<T: Word>(&mut self, u: &Uop, value: u64) {
        self.set_shifted::<T>(u.a, u.a_shift, value);
    }

    /// Sets the second operand, a register.
    #[inline(always)]
    pub(crate) fn set_b<T: Word>(&mut self, u: &Uop, value: u64) {
        self.set_shifted::<T>(u.b, u.b_shift, value);
    }

    #[inline(always)]
    fn set_shifted<T: Word>(&mut self, reg: u8, shift: u8, value: u64) {
        let slot = &mut self.regs[usize::from(reg & 15)];
        match T::SIZE {
            1 => {
                let mask = 0xffu64 << (shift & 8);
                *slot = *slot & !mask | value << (shift & 8) & mask;
            }
            2 => *slot = *slot & !0xffff | value & 0xffff,
            4 => *slot = value & 0xffff_ffff,
            _ => *slot = value,
        }
    }

    /// Sets the low part of a register by the same rules.
    #[inline(always)]
    pub(crate) fn set_reg<T: Word>(&mut self, reg: u8, value: u64) {
        self.set_shifted::<T>(reg, 0, value);
    }

    /// RIP of the next instruction, wrapped at the code segment's width.
    #[inline(always)]
    pub(crate) fn next_rip(&self, u: &Uop) -> u64 {
        self.regs[usize::from(BLOCK_RIP)].wrapping_add(u64::from(u.next)) & self.mode.rip_mask
    }

    /// RIP of the running instruction.
    #[inline(always)]
    pub(crate) fn this_rip(&self, u: &Uop) -> u64 {
        self.regs[usize::from(BLOCK_RIP)].wrapping_add(u64::from(u.offset)) & self.mode.rip_mask
    }

    /// First operand, register or memory, of a given width.
    #[inline(always)]
    pub(crate) fn read_first<T: Word>(&mut self, u: &Uop) -> Done<u64> {
        match u.insn.operands[0] {
            Operand::Mem { .. } => self.load_operand::<T>(u),
            _ => Ok(self.get_a::<T>(u)),
        }
    }

    /// Second operand, register, memory or immediate, of a given width.
    #[inline(always)]
    pub(crate) fn read_second<T: Word>(&mut self, u: &Uop) -> Done<u64> {
        match u.insn.operands[1] {
            Operand::Mem { .. } => self.load_operand::<T>(u),
            Operand::Imm { .. } => Ok(u.insn.imm & mask::<T>()),
            _ => Ok(self.get_b::<T>(u)),
        }
    }

    /// Writes the first operand, register or memory.
    #[inline(always)]
    pub(crate) fn write_first<T: Word>(&mut self, u: &Uop, value: u64) -> Done {
        match u.insn.operands[0] {
            Operand::Mem { .. } => self.store_operand::<T>(u, value),
            _ => {
                self.set_a::<T>(u, value);
                Ok(())
            }
        }
    }

    /// #UD.
    #[cold]
    pub(crate) fn undefined<X>(&mut self) -> Done<X> {
        self.raise(Exception::ud())
    }

    /// #GP(0).
    #[cold]
    pub(crate) fn protection<X>(&mut self) -> Done<X> {
        self.raise(Exception::gp(0))
    }

    /// #GP(0) unless at CPL 0.
    #[inline(always)]
    pub(crate) fn require_cpl0(&mut self) -> Done {
        if self.cpl != 0 { self.protection() } else { Ok(()) }
    }

    /// The same for an instruction that the monitor carries out, which is counted.
    #[inline(always)]
    pub(crate) fn privileged(&mut self) -> Done {
        self.require_cpl0()?;
        self.departures.privileged += 1;
        Ok(())
    }
}

/// Chooses an instance by operand size: `by_width!(size, T => expression)`.
macro_rules! by_width {
    ($size:expr, $t:ident => $e:expr) => {
        match $size {
            1 => {
                type $t = u8;
                $e
            }
            2 => {
                type $t = u16;
                $e
            }
            4 => {
                type $t = u32;
                $e
            }
            _ => {
                type $t = u64;
                $e
            }
        }
    };
}
pub(crate) use by_width;
