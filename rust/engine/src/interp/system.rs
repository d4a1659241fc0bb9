//! Control and debug registers, TLB and cache instructions, CPUID, RDTSC, RDRAND, MONITOR and MWAIT.

use trapgate_x86::exception::Vector;
use trapgate_x86::insn::{Bits, Operand};
use trapgate_x86::model::{Cpuid, Dynamic};
use trapgate_x86::regs::{cr0, cr3, cr4, dr6, dr7, efer, rflags, xcr0};

use super::{Uop, by_width};
use crate::exit::Unsupported;
use crate::fault::{Done, Exception};
use crate::hooks::HookKind;
use crate::memory::Word;
use crate::mmu::access::{Intent, canonical};
use crate::mmu::walk::Format;
use crate::state::Vcpu;

impl Vcpu {
    /// MOV to CR0 and LMSW (SDM vol. 3, 2.5, 4.1 and 9.8.5).
    pub(crate) fn write_cr0(&mut self, value: u64) -> Done {
        if value >> 32 != 0 {
            return self.protection();
        }
        let new = value & cr0::ALL | cr0::ET;
        let (pe, pg) = (new & cr0::PE != 0, new & cr0::PG != 0);
        if pg && !pe || new & cr0::NW != 0 && new & cr0::CD == 0 {
            return self.protection();
        }
        if !pe {
            return self.unsupported(Unsupported::RealMode);
        }
        let paging_on = pg && self.cr0 & cr0::PG == 0;
        let paging_off = !pg && self.cr0 & cr0::PG != 0;
        if paging_on && self.efer & efer::LME != 0 {
            // Long mode needs PAE and must not be entered from a 64-bit code segment.
            if self.cr4 & cr4::PAE == 0 || self.segment(trapgate_x86::insn::Seg::Cs).long() {
                return self.protection();
            }
        }
        if paging_off && (self.mode.bits == Bits::B64 || self.cr4 & cr4::PCIDE != 0) {
            return self.protection();
        }
        let pae = new & cr0::PG != 0 && self.cr4 & cr4::PAE != 0 && self.efer & efer::LME == 0;
        let reload = cr0::PG | cr0::CD | cr0::NW;
        if pae && (new ^ self.cr0) & reload != 0 {
            self.load_pdptes(self.cr3)?;
        }
        let changed = new ^ self.cr0;
        self.cr0 = new;
        if paging_on && self.efer & efer::LME != 0 {
            self.efer |= efer::LMA;
        }
        if paging_off {
            self.efer &= !efer::LMA;
        }
        if changed & (cr0::PG | cr0::WP | cr0::PE | cr0::AM) != 0 {
            self.flush_tlb();
        }
        self.update_mode();
        self.attention = true;
        self.end_block();
        Ok(())
    }

    /// PAE's four directory-pointer entries are checked and loaded with CR3 (SDM vol. 3, 4.4.1).
    fn load_pdptes(&mut self, cr3: u64) -> Done {
        let paging = self.paging();
        let mut entries = [0; 4];
        for (i, entry) in entries.iter_mut().enumerate() {
            let gpa = (cr3 & 0xffff_ffe0) + 8 * i as u64;
            *entry = self.memory.page(gpa).map_or(u64::MAX, |p| self.memory.load(p.offset + gpa % 4096));
        }
        if entries.iter().any(|e| !paging.pdpte_ok(*e)) {
            return self.protection();
        }
        self.pdptes = entries;
        Ok(())
    }

    pub(crate) fn write_cr3(&mut self, value: u64) -> Done {
        let mut value = value;
        let mut keep = false;
        if self.mode.long {
            keep = value & cr3::NO_FLUSH != 0 && self.cr4 & cr4::PCIDE != 0;
            if keep {
                value &= !cr3::NO_FLUSH;
            }
            if value >> self.model.physical_bits != 0 {
                return self.protection();
            }
        } else {
            value &= u64::from(u32::MAX);
            if self.paging().format() == Format::Pae {
                self.load_pdptes(value)?;
            }
        }
        self.cr3 = value;
        let pcid = self.pcid();
        self.shadow_tables.switch(pcid);
        if !keep {
            self.shadow_tables.flush_pcid(pcid);
        }
        // The inline TLB has no tags: what is of a space comes and goes with it (SDM vol. 3, 4.10.4.1).
        self.change_pcid(pcid, keep);
        Ok(())
    }

    pub(crate) fn write_cr4(&mut self, value: u64) -> Done {
        if value & !self.model.cr4_mask() != 0 {
            return self.protection();
        }
        let changed = value ^ self.cr4;
        if self.mode.long && value & cr4::PAE == 0 {
            return self.protection();
        }
        let pcid_on = changed & value & cr4::PCIDE != 0;
        if pcid_on && (!self.mode.long || self.cr3 & cr3::PCID != 0) {
            return self.protection();
        }
        let paging = self.cr0 & cr0::PG != 0;
        let reload = cr4::PAE | cr4::PGE | cr4::PSE | cr4::SMEP;
        if paging && !self.mode.long && value & cr4::PAE != 0 && changed & reload != 0 {
            self.load_pdptes(self.cr3)?;
        }
        self.cr4 = value;
        self.flush_tlb();
        self.shadow_tables.switch(self.pcid());
        self.update_mode();
        self.end_block();
        Ok(())
    }

    /// #DB before an access to debug registers with DR7.GD (SDM vol. 3, 17.2.4).
    fn check_general_detect(&mut self) -> Done {
        if self.dr7 & dr7::GD != 0 {
            self.dr6 |= dr6::BD;
            // Of the #DB faults only that of a code breakpoint pushes RF clear (SDM vol. 3, 19.3.1.1).
            self.flags.insert(rflags::RF);
            return self.raise(Exception::fault(Vector::Db));
        }
        Ok(())
    }

    /// The debug register that a number names: DR4 and DR5 alias DR6 and DR7 unless CR4.DE is set.
    fn debug_number(&mut self, n: u8) -> Done<u8> {
        match n {
            4 | 5 if self.cr4 & cr4::DE == 0 => Ok(n + 2),
            0..=3 | 6 | 7 => Ok(n),
            _ => self.undefined(),
        }
    }
}

/// MOV to and from control registers.
pub(super) fn mov_cr(cpu: &mut Vcpu, u: &Uop) -> Done {
    if let Operand::Cr(n) = u.insn.operands[0] {
        if !matches!(n, 0 | 2 | 3 | 4 | 8) {
            return cpu.undefined();
        }
        cpu.privileged()?;
        let value = cpu.get_b::<u64>(u);
        let value = if cpu.mode.bits == Bits::B64 { value } else { value & u64::from(u32::MAX) };
        return match n {
            0 => cpu.write_cr0(value),
            2 => {
                cpu.cr2 = value;
                Ok(())
            }
            3 => cpu.write_cr3(value),
            4 => cpu.write_cr4(value),
            _ => write_cr8(cpu, value),
        };
    }
    let Operand::Cr(n) = u.insn.operands[1] else { return cpu.undefined() };
    if !matches!(n, 0 | 2 | 3 | 4 | 8) {
        return cpu.undefined();
    }
    cpu.require_cpl0()?;
    let value = match n {
        0 => cpu.cr0,
        2 => cpu.cr2,
        3 => cpu.cr3,
        4 => cpu.cr4,
        _ => u64::from(cpu.platform.tpr()),
    };
    if cpu.mode.bits == Bits::B64 {
        cpu.set_a::<u64>(u, value)
    } else {
        cpu.set_a::<u32>(u, value)
    }
    Ok(())
}

fn write_cr8(cpu: &mut Vcpu, value: u64) -> Done {
    if value > 15 {
        return cpu.protection();
    }
    cpu.recheck();
    let count = cpu.count_now();
    cpu.platform.set_tpr(count, value as u8);
    Ok(())
}

/// MOV to and from debug registers.
pub(super) fn mov_dr(cpu: &mut Vcpu, u: &Uop) -> Done {
    let (to, n) = match (u.insn.operands[0], u.insn.operands[1]) {
        (Operand::Dr(n), _) => (true, n),
        (_, Operand::Dr(n)) => (false, n),
        _ => return cpu.undefined(),
    };
    let n = cpu.debug_number(n)?;
    cpu.privileged()?;
    cpu.check_general_detect()?;
    let long = cpu.mode.bits == Bits::B64;
    if !to {
        let value = match n {
            0..=3 => cpu.dr[usize::from(n)],
            6 => cpu.dr6,
            _ => cpu.dr7,
        };
        if long {
            cpu.set_a::<u64>(u, value)
        } else {
            cpu.set_a::<u32>(u, value)
        }
        return Ok(());
    }
    let value = if long { cpu.get_b::<u64>(u) } else { cpu.get_b::<u32>(u) };
    match n {
        0..=3 => {
            cpu.dr[usize::from(n)] = value;
        }
        _ if value >> 32 != 0 => return cpu.protection(),
        6 => cpu.dr6 = dr6::RESET | value & dr6::WRITABLE,
        _ => cpu.dr7 = dr7::RESET | value & dr7::WRITABLE,
    }
    // Pages with a data breakpoint are not cached.
    cpu.tlb.flush();
    cpu.attention = true;
    cpu.end_block();
    Ok(())
}

/// CLTS.
pub(super) fn clts(cpu: &mut Vcpu, _: &Uop) -> Done {
    cpu.privileged()?;
    cpu.cr0 &= !cr0::TS;
    Ok(())
}

/// LMSW: PE can be set but not cleared.
pub(super) fn lmsw(cpu: &mut Vcpu, u: &Uop) -> Done {
    cpu.privileged()?;
    let value = cpu.read_first::<u16>(u)? & 0xf;
    let new = cpu.cr0 & !(0xf & !cr0::PE) | value;
    cpu.write_cr0(new)
}

/// SMSW.
pub(super) fn smsw(cpu: &mut Vcpu, u: &Uop) -> Done {
    if cpu.cpl > 0 && cpu.cr4 & cr4::UMIP != 0 {
        return cpu.protection();
    }
    let value = cpu.cr0;
    match u.insn.operands[0] {
        Operand::Mem { .. } => cpu.store_operand::<u16>(u, value),
        _ => {
            by_width!(u.insn.opsize.max(2), T => cpu.set_a::<T>(u, value));
            Ok(())
        }
    }
}

/// INVLPG: the address is not checked but for its segment's sake.
pub(super) fn invlpg(cpu: &mut Vcpu, u: &Uop) -> Done {
    cpu.privileged()?;
    let ea = cpu.ea(u);
    let segment = if u.segmented { cpu.segment(u.insn.mem.seg).base } else { 0 };
    let linear = ea.wrapping_add(segment);
    cpu.flush_page(if cpu.mode.long { linear } else { linear & u64::from(u32::MAX) });
    cpu.end_block();
    Ok(())
}

/// INVPCID (SDM vol. 2): one address, one PCID, everything, everything but global pages.
pub(super) fn invpcid(cpu: &mut Vcpu, u: &Uop) -> Done {
    cpu.privileged()?;
    let kind = if cpu.mode.bits == Bits::B64 { cpu.get_a::<u64>(u) } else { cpu.get_a::<u32>(u) };
    let linear = cpu.linear(u, 16, false)?;
    let mut bytes = [0; 16];
    cpu.load_bytes(u.insn.mem.seg, linear, &mut bytes)?;
    let descriptor = u128::from_le_bytes(bytes);
    let (pcid, rest, address) =
        (descriptor as u64 & 0xfff, (descriptor as u64) >> 12, (descriptor >> 64) as u64);
    let pcid_off = cpu.cr4 & cr4::PCIDE == 0;
    let bad = kind > 3 || rest != 0 || kind < 2 && pcid_off && pcid != 0 || kind == 0 && !canonical(address);
    if bad {
        return cpu.protection();
    }
    match kind {
        0 => cpu.shadow_tables.flush_page_of(pcid as u16, address),
        1 => cpu.shadow_tables.flush_pcid(pcid as u16),
        2 => cpu.shadow_tables.flush_all(),
        _ => cpu.shadow_tables.flush_local(),
    }
    // The inline TLB has no tags: it is filled again from what stays.
    if kind == 2 {
        cpu.tlb.flush()
    } else {
        cpu.tlb.flush_local()
    }
    cpu.end_block();
    Ok(())
}

/// INVD, WBINVD: memory is always coherent here.
pub(super) fn cache_control(cpu: &mut Vcpu, _: &Uop) -> Done {
    cpu.privileged()
}

/// CLFLUSH, CLFLUSHOPT, CLWB: only the address is checked, as a load.
pub(super) fn cache_line(cpu: &mut Vcpu, u: &Uop) -> Done {
    let linear = cpu.linear(u, 1, false)?;
    cpu.check_range(u.insn.mem.seg, linear, 1, Intent::Read)
}

/// CPUID.
pub(super) fn cpuid(cpu: &mut Vcpu, _: &Uop) -> Done {
    let (leaf, subleaf) = (cpu.regs[0] & 0xffff_ffff, cpu.regs[1] & 0xffff_ffff);
    let Cpuid { eax, ebx, ecx, edx } = cpu.cpuid_values(leaf as u32, subleaf as u32);
    cpu.regs[0] = u64::from(eax);
    cpu.regs[3] = u64::from(ebx);
    cpu.regs[1] = u64::from(ecx);
    cpu.regs[2] = u64::from(edx);
    if !cpu.hooks.is_empty() {
        cpu.hook_hit(HookKind::Cpuid, leaf, 0, subleaf);
    }
    Ok(())
}

impl Vcpu {
    /// CPUID of a leaf as the guest sees it now.
    pub fn cpuid_values(&self, leaf: u32, subleaf: u32) -> Cpuid {
        match &self.monitor {
            Some(monitor) => monitor.cpuid(self, leaf, subleaf),
            None => self.model_cpuid(leaf, subleaf),
        }
    }

    /// CPUID of a leaf as the model has it.
    pub fn model_cpuid(&self, leaf: u32, subleaf: u32) -> Cpuid {
        let dynamic = Dynamic {
            apic_id: self.platform.apic_id(),
            topology: self.processor.topology,
            apic_enabled: self.platform.apic_enabled(),
            osxsave: self.cr4 & cr4::OSXSAVE != 0,
            xcr0: self.xcr0,
            in_64bit_mode: self.mode.bits == Bits::B64,
            tsc_khz: self.processor.tsc_khz,
        };
        self.model.cpuid(leaf, subleaf, &dynamic)
    }

    /// Writes an extended control register as XSETBV does; false is #GP(0): there is only XCR0, and not every value is for it.
    pub fn set_xcr(&mut self, number: u32, value: u64) -> bool {
        // AVX state is the upper half of registers whose lower half is SSE state (SDM vol. 1, 13.3).
        let halved = value & xcr0::AVX != 0 && value & xcr0::SSE == 0;
        if number != 0 || value & xcr0::X87 == 0 || value & !self.model.xcr0_mask() != 0 || halved {
            return false;
        }
        self.xcr0 = value;
        self.end_block();
        true
    }

    fn tsc_allowed(&mut self) -> Done {
        if self.cr4 & cr4::TSD != 0 && self.cpl != 0 { self.protection() } else { Ok(()) }
    }

    /// The guest's time-stamp counter at the running instruction.
    pub(crate) fn tsc_now(&mut self) -> u64 {
        let count = self.count_now();
        self.platform.tsc(count).wrapping_add(self.tsc_adjust)
    }

    fn set_pair(&mut self, value: u64) {
        self.regs[0] = value & 0xffff_ffff;
        self.regs[2] = value >> 32;
    }
}

/// RDTSC.
pub(super) fn rdtsc(cpu: &mut Vcpu, _: &Uop) -> Done {
    cpu.tsc_allowed()?;
    let value = cpu.tsc_now();
    cpu.set_pair(value);
    Ok(())
}

/// RDTSCP.
pub(super) fn rdtscp(cpu: &mut Vcpu, u: &Uop) -> Done {
    rdtsc(cpu, u)?;
    cpu.regs[1] = cpu.tsc_aux & 0xffff_ffff;
    Ok(())
}

/// RDPID.
pub(super) fn rdpid(cpu: &mut Vcpu, u: &Uop) -> Done {
    let value = cpu.tsc_aux;
    cpu.set_a::<u64>(u, value & 0xffff_ffff);
    Ok(())
}

/// RDPMC: the model has no counters.
pub(super) fn rdpmc(cpu: &mut Vcpu, _: &Uop) -> Done {
    cpu.protection()
}

/// RDRAND and RDSEED.
pub(super) fn random<T: Word>(cpu: &mut Vcpu, u: &Uop) -> Done {
    let value = cpu.platform.random();
    cpu.set_a::<T>(u, value & super::mask::<T>());
    cpu.flags.set_arithmetic(rflags::CF);
    Ok(())
}

/// RDMSR.
pub(super) fn rdmsr(cpu: &mut Vcpu, _: &Uop) -> Done {
    cpu.privileged()?;
    let msr = cpu.regs[1] as u32;
    let value = cpu.read_msr(msr)?;
    cpu.set_pair(value);
    Ok(())
}

/// WRMSR.
pub(super) fn wrmsr(cpu: &mut Vcpu, _: &Uop) -> Done {
    cpu.privileged()?;
    let msr = cpu.regs[1] as u32;
    let value = cpu.regs[2] << 32 | cpu.regs[0] & 0xffff_ffff;
    cpu.recheck();
    cpu.write_msr(msr, value)
}

/// MONITOR: the address is checked as a load; every MWAIT then returns at once.
pub(super) fn monitor(cpu: &mut Vcpu, u: &Uop) -> Done {
    if cpu.cpl != 0 {
        return cpu.undefined();
    }
    let offset = cpu.regs[0] & u.address_mask;
    let seg = u.insn.mem.seg;
    let linear = cpu.linear_in(seg, offset, 1, false)?;
    cpu.check_range(seg, linear, 1, Intent::Read)
}

/// MWAIT.
pub(super) fn mwait(cpu: &mut Vcpu, _: &Uop) -> Done {
    if cpu.cpl != 0 { cpu.undefined() } else { Ok(()) }
}

/// RSM outside SMM.
pub(super) fn undefined(cpu: &mut Vcpu, _: &Uop) -> Done {
    cpu.undefined()
}

/// XSETBV.
pub(super) fn xsetbv(cpu: &mut Vcpu, _: &Uop) -> Done {
    if cpu.cr4 & cr4::OSXSAVE == 0 {
        return cpu.undefined();
    }
    cpu.privileged()?;
    let value = cpu.regs[2] << 32 | cpu.regs[0] & 0xffff_ffff;
    if cpu.set_xcr(cpu.regs[1] as u32, value) { Ok(()) } else { cpu.protection() }
}

/// An instruction of more than 15 bytes.
pub(super) fn too_long(cpu: &mut Vcpu, _: &Uop) -> Done {
    cpu.protection()
}
