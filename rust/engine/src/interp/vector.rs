//! The bridge to [`crate::vector`]: how vector instructions reach the vCPU's memory, registers and flags.

use trapgate_x86::exception::Vector;
use trapgate_x86::features::Features;
use trapgate_x86::insn::{Bits, Seg};
use trapgate_x86::op::Op;
use trapgate_x86::regs::{cr0, rflags};

use super::Uop;
use crate::fault::{Done, Exception, Stop};
use crate::memory::PAGE;
use crate::mmu::access::{Intent, canonical};
use crate::state::Vcpu;
use crate::vector::{self, Control, NativeFp, Operands, VectorException, VectorState};

/// What an instruction raised: an exception of its own, or a stop that stands in the vCPU already.
enum Raised {
    Own(VectorException),
    Stop(Stop),
}

impl From<VectorException> for Raised {
    fn from(exception: VectorException) -> Self {
        Raised::Own(exception)
    }
}

struct View<'a> {
    cpu: &'a mut Vcpu,
    uop: &'a Uop,
    /// Offset of the memory operand in its segment.
    offset: u64,
}

impl View<'_> {
    fn seg(&self) -> Seg {
        self.uop.insn.mem.seg
    }

    fn address(&mut self, offset: u64, len: usize, write: bool) -> Result<u64, Raised> {
        let at = self.offset.wrapping_add(offset) & self.uop.address_mask;
        let seg = self.seg();
        self.cpu.linear_in(seg, at, len as u32, write).map_err(Raised::Stop)
    }
}

impl Operands for View<'_> {
    type Fault = Raised;

    #[inline(always)]
    fn load(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), Raised> {
        let (len, seg) = (buffer.len(), self.seg());
        let linear = self.address(offset, len, false)?;
        let cpu = &mut *self.cpu;
        let entry = cpu.tlb.entry(linear, cpu.user_view);
        if entry.read == linear & !0xfff && (linear & 0xfff) as usize + len <= 4096 {
            let host = entry.host + (linear & 0xfff);
            match len {
                4 => buffer.copy_from_slice(&cpu.memory.load::<u32>(host).to_le_bytes()),
                8 => buffer.copy_from_slice(&cpu.memory.load::<u64>(host).to_le_bytes()),
                16 => {
                    buffer[..8].copy_from_slice(&cpu.memory.load::<u64>(host).to_le_bytes());
                    buffer[8..].copy_from_slice(&cpu.memory.load::<u64>(host + 8).to_le_bytes());
                }
                _ => cpu.memory.read_host(host, buffer),
            }
            return Ok(());
        }
        cpu.load_bytes(seg, linear, buffer).map_err(Raised::Stop)
    }

    #[inline(always)]
    fn store(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Raised> {
        let (len, seg) = (bytes.len(), self.seg());
        let linear = self.address(offset, len, true)?;
        let cpu = &mut *self.cpu;
        let entry = cpu.tlb.entry(linear, cpu.user_view);
        if entry.write == linear & !0xfff && (linear & 0xfff) as usize + len <= 4096 {
            let host = entry.host + (linear & 0xfff);
            if let Ok(eight) = <[u8; 8]>::try_from(bytes) {
                cpu.memory.store_plain(host, u64::from_le_bytes(eight));
            } else if let Ok(all) = <[u8; 16]>::try_from(bytes) {
                let value = u128::from_le_bytes(all);
                cpu.memory.store_plain(host, value as u64);
                cpu.memory.store_plain(host + 8, (value >> 64) as u64);
            } else {
                cpu.memory.write_host(host, bytes);
            }
            return Ok(());
        }
        cpu.store_bytes(seg, linear, bytes).map_err(Raised::Stop)
    }

    fn check_store(&mut self, offset: u64, len: u64) -> Result<(), Raised> {
        let linear = self.address(offset, len as usize, true)?;
        let seg = self.seg();
        self.cpu.check_range(seg, linear, len, Intent::Write).map_err(Raised::Stop)
    }

    fn linear_address(&self) -> u64 {
        let seg = self.seg();
        let long = self.cpu.mode.bits == Bits::B64;
        let base = if long && !matches!(seg, Seg::Fs | Seg::Gs) { 0 } else { self.cpu.segment(seg).base };
        base.wrapping_add(self.offset)
    }

    fn data_pointer(&self) -> (u16, u64) {
        (self.cpu.segment(self.seg()).selector, self.offset)
    }

    fn instruction_pointer(&self) -> (u16, u64) {
        (self.cpu.segment(Seg::Cs).selector, self.cpu.this_rip(self.uop))
    }

    fn x87_opcode(&self) -> u16 {
        self.cpu.opcode_word(self.uop)
    }

    fn gpr(&self, reg: u8) -> u64 {
        self.cpu.regs[usize::from(reg & 15)]
    }

    fn set_gpr(&mut self, reg: u8, value: u64, size: u8) {
        match size {
            1 => self.cpu.set_reg::<u8>(reg, value),
            2 => self.cpu.set_reg::<u16>(reg, value),
            4 => self.cpu.set_reg::<u32>(reg, value),
            _ => self.cpu.set_reg::<u64>(reg, value),
        }
    }

    fn flags(&self) -> u64 {
        self.cpu.rflags()
    }

    fn set_status_flags(&mut self, value: u64) {
        self.cpu.flags.set_arithmetic(value & rflags::STATUS);
    }
}

impl Vcpu {
    fn vector_control(&self) -> Control {
        Control {
            cr0: self.cr0,
            cr4: self.cr4,
            xcr0: self.xcr0,
            bits: self.mode.bits,
            protected: self.cr0 & cr0::PE != 0 && !self.flags.is_set(rflags::VM),
            fdp_exception_only: self.features().contains(Features::FDP_EXCPTN_ONLY),
            no_fcs_fds: self.features().contains(Features::FCS_FDS_DEPRECATED),
            // CPUID shows it together with these.
            xgetbv_1: self.features().intersects(Features::XSAVEC | Features::XSAVES),
        }
    }

    /// Opcode bits of an x87 instruction, read back from memory: asked for only when an exception records them.
    fn opcode_word(&self, u: &Uop) -> u16 {
        let base = if self.mode.bits == Bits::B64 { 0 } else { self.segment(Seg::Cs).base };
        let at = base.wrapping_add(self.this_rip(u)) % PAGE;
        let mut code = [0; 15];
        let code = &mut code[..usize::from(u.insn.len)];
        let first = code.len().min((PAGE - at) as usize);
        let [page, next] = self.running_pages;
        self.memory.read_host(page + at, &mut code[..first]);
        if first < code.len() {
            self.memory.read_host(next, &mut code[first..]);
        }
        // No prefix looks like an x87 opcode.
        let opcode = code.iter().position(|byte| matches!(byte, 0xd8..=0xdf));
        opcode.map_or(0, |i| u16::from(code[i] & 7) << 8 | code.get(i + 1).copied().map_or(0, u16::from))
    }
}

/// Any instruction of [`crate::vector`] but gathers.
pub(super) fn execute(cpu: &mut Vcpu, u: &Uop) -> Done {
    let masked = matches!(u.insn.op, Op::Maskmovq | Op::Maskmovdqu | Op::Vmaskmovdqu);
    let offset = if masked { cpu.regs[7] & u.address_mask } else { cpu.ea(u) };
    execute_at(cpu, u, offset)
}

/// Gathers: the memory operand is the element with index zero, since the indexes are in a vector register.
pub(super) fn gather(cpu: &mut Vcpu, u: &Uop) -> Done {
    let base = cpu.regs[usize::from(u.insn.mem.base & 31)];
    execute_at(cpu, u, base.wrapping_add(u.insn.mem.disp as u64) & u.address_mask)
}

#[inline(always)]
fn execute_at(cpu: &mut Vcpu, u: &Uop, offset: u64) -> Done {
    let control = cpu.vector_control();
    // The registers are lent out for the instruction, so that memory can be reached meanwhile.
    let mut state = cpu.vector.take().unwrap_or_else(|| Box::new(VectorState::reset()));
    let mut view = View { cpu, uop: u, offset };
    let done = vector::execute(&mut state, &control, &NativeFp, &u.insn, &mut view);
    cpu.vector = Some(state);
    match done {
        Ok(()) => Ok(()),
        Err(Raised::Stop(stop)) => Err(stop),
        // Of an operand that is neither aligned nor canonical, these report the latter (seen on processors; others do not).
        Err(Raised::Own(VectorException::GeneralProtection))
            if matches!(
                u.insn.op,
                Op::Fxsave | Op::Fxrstor | Op::Xsave | Op::Xsaveopt | Op::Xsavec | Op::Xrstor
            ) && cpu.mode.bits == Bits::B64
                && u.insn.mem.seg == Seg::Ss
                && !canonical(offset) =>
        {
            cpu.raise(Exception::with_error(Vector::Ss, 0))
        }
        Err(Raised::Own(exception)) => raise(cpu, exception),
    }
}

#[cold]
fn raise(cpu: &mut Vcpu, exception: VectorException) -> Done {
    cpu.raise(match exception {
        VectorException::InvalidOpcode => Exception::ud(),
        VectorException::DeviceNotAvailable => Exception::fault(Vector::Nm),
        VectorException::FpuError => Exception::fault(Vector::Mf),
        VectorException::SimdError => Exception::fault(Vector::Xm),
        VectorException::GeneralProtection => Exception::gp(0),
    })
}
