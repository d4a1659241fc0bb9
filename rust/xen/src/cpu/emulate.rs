//! Instructions that a para-virtual kernel still executes though they are privileged: they fault, and are carried out here
//! (Xen: arch/x86/pv/emul-priv-op.c has the same list).

use trapgate_engine::exit::Exit;
use trapgate_engine::state::Vcpu;
use trapgate_x86::decode::decode;
use trapgate_x86::exception::Vector;
use trapgate_x86::insn::{Bits, Insn, Operand};
use trapgate_x86::op::Op;
use trapgate_x86::regs::{cr0, cr4};

use super::{CpuTlb, PvCpu};
use crate::paging::Mfn;

/// UD2 and "xen", then CPUID: a CPUID that cannot escape the hypervisor (`XEN_EMULATE_PREFIX`).
const FORCED_CPUID: [u8; 7] = [0x0f, 0x0b, b'x', b'e', b'n', 0x0f, 0xa2];
/// CR0 as every guest sees it, TS left out.
const CR0_VIEW: u64 = 0x8005_0033 & !cr0::TS;
/// Bits of CR4 that a guest may choose.
const CR4_CHOICE: u64 = cr4::TSD | cr4::DE | cr4::FSGSBASE | cr4::OSXSAVE;
/// Bits of CR4 that read as set.
const CR4_FIXED: u64 = cr4::PAE | cr4::MCE | cr4::OSFXSR | cr4::OSXMMEXCPT;

impl PvCpu {
    /// Carries out the instruction at RIP if it is one of these; false if its fault is the guest's.
    pub(super) fn emulate(&mut self, cpu: &mut Vcpu, vector: u8) -> Result<bool, Exit> {
        let (bytes, length) = fetch(cpu);
        let code = &bytes[..length];
        if vector == Vector::Ud as u8 {
            let forced = code.starts_with(&FORCED_CPUID);
            if forced {
                self.forced_cpuid(cpu);
                advance(cpu, FORCED_CPUID.len());
            }
            return Ok(forced);
        }
        let bits = cpu.mode().bits;
        let Ok(insn) = decode(code, bits, &cpu.features()) else { return Ok(false) };
        let done = match insn.op {
            Op::In | Op::Out => self.port(cpu, &insn),
            _ if cpu.kernel_mode() && bits == Bits::B64 => self.privileged(cpu, &insn)?,
            _ => false,
        };
        if done {
            advance(cpu, usize::from(insn.len));
        }
        Ok(done)
    }

    fn forced_cpuid(&self, cpu: &mut Vcpu) {
        let answer = self.forced_cpuid_view(cpu, cpu.regs[0] as u32, cpu.regs[1] as u32);
        cpu.regs[0] = u64::from(answer.eax);
        cpu.regs[3] = u64::from(answer.ebx);
        cpu.regs[1] = u64::from(answer.ecx);
        cpu.regs[2] = u64::from(answer.edx);
    }

    fn privileged(&mut self, cpu: &mut Vcpu, insn: &Insn) -> Result<bool, Exit> {
        Ok(match insn.op {
            Op::Rdmsr => self.rdmsr(cpu),
            Op::Wrmsr => {
                let value = cpu.regs[2] << 32 | cpu.regs[0] & 0xffff_ffff;
                self.write_msr(cpu, cpu.regs[1] as u32, value)
            }
            // Without CR4.OSXSAVE it is #UD, and never gets here.
            Op::Xsetbv => {
                let value = cpu.regs[2] << 32 | cpu.regs[0] & 0xffff_ffff;
                cpu.set_xcr(cpu.regs[1] as u32, value)
            }
            Op::MovCr => self.mov_cr(cpu, insn),
            Op::MovDr => self.mov_dr(cpu, insn),
            Op::Clts => {
                cpu.cr0 &= !cr0::TS;
                true
            }
            Op::Wbinvd | Op::Wbnoinvd => true,
            // Virtual IOPL lets the kernel say them; the flag that counts is in vcpu_info.
            Op::Cli | Op::Sti => self.iopl > 0,
            _ => false,
        })
    }

    fn rdmsr(&mut self, cpu: &mut Vcpu) -> bool {
        let number = cpu.regs[1] as u32;
        let model = *cpu.model();
        let value = match self.read_msr(cpu, number, &model) {
            Some(value) => value,
            // Before the kernel can handle a fault, a register that real processors have reads as 0.
            None if self.traps[Vector::Gp as usize].address == 0 && number >> 16 != 0x4000 => 0,
            None => return false,
        };
        cpu.regs[0] = value & 0xffff_ffff;
        cpu.regs[2] = value >> 32;
        true
    }

    fn mov_cr(&mut self, cpu: &mut Vcpu, insn: &Insn) -> bool {
        match (insn.operands[0], insn.operands[1]) {
            (Operand::Gpr { reg, .. }, Operand::Cr(number)) => {
                let value = match number {
                    0 => CR0_VIEW | cpu.cr0 & cr0::TS,
                    2 => cpu.cr2,
                    3 => self.kernel_root,
                    4 => CR4_FIXED | self.cr4,
                    _ => return false,
                };
                cpu.regs[usize::from(reg)] = value;
                true
            }
            (Operand::Cr(number), Operand::Gpr { reg, .. }) => {
                let value = cpu.regs[usize::from(reg)];
                self.write_cr(cpu, number, value)
            }
            _ => false,
        }
    }

    fn write_cr(&mut self, cpu: &mut Vcpu, number: u8, value: u64) -> bool {
        match number {
            0 if (value ^ CR0_VIEW) & !cr0::TS != 0 => return false,
            0 => cpu.set_task_switched(value & cr0::TS != 0),
            2 => cpu.cr2 = value,
            3 => return self.new_kernel_root(cpu, Mfn(value >> 12)).is_ok(),
            4 => {
                self.cr4 = value & CR4_CHOICE & cpu.model().cr4_mask();
                cpu.cr4 = CR4_FIXED & !cr4::MCE | self.cr4;
            }
            _ => return false,
        }
        true
    }

    fn mov_dr(&mut self, cpu: &mut Vcpu, insn: &Insn) -> bool {
        match (insn.operands[0], insn.operands[1]) {
            (Operand::Gpr { reg, .. }, Operand::Dr(number)) => {
                match self.get_debugreg(cpu, u64::from(number)) {
                    Ok(value) => {
                        cpu.regs[usize::from(reg)] = value;
                        true
                    }
                    Err(_) => false,
                }
            }
            (Operand::Dr(number), Operand::Gpr { reg, .. }) => {
                let value = cpu.regs[usize::from(reg)];
                self.set_debugreg(cpu, u64::from(number), value).is_ok()
            }
            _ => false,
        }
    }

    /// IN and OUT: there are no devices behind any port, but who may ask is decided by virtual IOPL and the bitmap.
    fn port(&mut self, cpu: &mut Vcpu, insn: &Insn) -> bool {
        let input = insn.op == Op::In;
        let operand = insn.operands[usize::from(input)];
        let port =
            if let Operand::Imm { .. } = operand { insn.imm as u16 & 0xff } else { cpu.regs[2] as u16 };
        let size = insn.opsize.min(4);
        let least = if cpu.kernel_mode() { 1 } else { 3 };
        if self.iopl < least && !self.bitmap_allows(cpu, port, size) {
            return false;
        }
        if input {
            cpu.regs[0] = match size {
                1 => cpu.regs[0] | 0xff,
                2 => cpu.regs[0] | 0xffff,
                _ => 0xffff_ffff,
            };
        }
        true
    }

    /// The bitmap is read through the kernel's page tables at each access; what cannot be read forbids.
    fn bitmap_allows(&mut self, cpu: &mut Vcpu, port: u16, size: u8) -> bool {
        let (bitmap, ports) = self.io_bitmap;
        if bitmap == 0 || u32::from(port) + u32::from(size) > ports {
            return false;
        }
        (0..u16::from(size)).all(|i| {
            let n = port + i;
            self.read_kernel_byte(cpu, bitmap + u64::from(n / 8)).is_some_and(|byte| byte >> (n % 8) & 1 == 0)
        })
    }

    fn read_kernel_byte(&mut self, cpu: &mut Vcpu, linear: u64) -> Option<u8> {
        let paging = trapgate_engine::mmu::Paging { cr3: self.kernel_root, ..cpu.paging() };
        let memory = self.domain.memory();
        let mapping = trapgate_engine::mmu::walk::walk(memory, &paging, linear, |_| {}).ok()?;
        let page = memory.page(mapping.gpa)?;
        Some(memory.load(page.offset + mapping.gpa % 4096))
    }

    /// Installs the kernel's root of page tables.
    pub(crate) fn new_kernel_root(&mut self, cpu: &mut Vcpu, mfn: Mfn) -> Result<(), crate::Errno> {
        self.domain.paging().set_kernel_root(&mut CpuTlb(cpu), 0, mfn)?;
        self.kernel_root = mfn.0 << 12;
        cpu.cr3 = self.kernel_root;
        if self.ldt.1 > 0 {
            self.show_windows(cpu);
        }
        Ok(())
    }
}

/// The bytes at RIP that can be read.
fn fetch(cpu: &mut Vcpu) -> ([u8; 15], usize) {
    let mut bytes = [0; 15];
    let rip = cpu.linear_rip();
    let first = (4096 - (rip % 4096) as usize).min(15);
    if cpu.copy_in(rip, &mut bytes[..first]).is_err() {
        return (bytes, 0);
    }
    let rest = first < 15 && cpu.copy_in(rip.wrapping_add(first as u64), &mut bytes[first..]).is_ok();
    (bytes, if rest || first == 15 { 15 } else { first })
}

fn advance(cpu: &mut Vcpu, length: usize) {
    cpu.rip = cpu.rip.wrapping_add(length as u64) & cpu.mode().rip_mask;
}
