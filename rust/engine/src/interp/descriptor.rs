//! Descriptor tables: reading descriptors, loading segment registers, LGDT and its kin, LAR, LSL, VERR, VERW.

use trapgate_x86::exception::Vector;
use trapgate_x86::insn::{Bits, Operand, Seg};
use trapgate_x86::regs::{cr4, rflags};

use super::Uop;
use crate::fault::{Done, Exception};
use crate::memory::Word;
use crate::mmu::access::{Intent, canonical};
use crate::state::{Descriptor, Segment, Shadow, Table, Vcpu};

/// The error code that names a selector.
pub(super) fn selector_error(selector: u16) -> u32 {
    u32::from(selector & !3)
}

impl Vcpu {
    /// Linear address of a selector's descriptor, or `None` when it is null or beyond its table.
    fn descriptor_address(&self, selector: u16) -> Option<u64> {
        let at = u64::from(selector & !7);
        let (base, limit) = if selector & 4 == 0 {
            (self.gdtr.base, u64::from(self.gdtr.limit))
        } else if self.ldtr.is_null() {
            return None;
        } else {
            (self.ldtr.base, u64::from(self.ldtr.limit))
        };
        (at + 7 <= limit).then(|| base.wrapping_add(at))
    }

    /// Reads the descriptor of a selector; beyond the table is `vector`(selector).
    pub(crate) fn descriptor(&mut self, selector: u16, vector: Vector) -> Done<Descriptor> {
        let Some(at) = self.descriptor_address(selector) else {
            return self.raise(Exception::with_error(vector, selector_error(selector)));
        };
        Ok(Descriptor(self.load_as(Seg::Ds, at, Intent::SystemRead)?))
    }

    /// Bits 63 to 32 of a system descriptor's base or a call gate's offset in long mode: in the eight bytes above it.
    pub(super) fn upper_base(&mut self, selector: u16, vector: Vector) -> Done<u64> {
        let next = selector.wrapping_add(8);
        let Some(at) = self.descriptor_address(next).filter(|_| next > selector) else {
            return self.raise(Exception::with_error(vector, selector_error(selector)));
        };
        let upper: u64 = self.load_as(Seg::Ds, at, Intent::SystemRead)?;
        if upper >> 40 & 0x1f != 0 {
            return self.raise(Exception::with_error(vector, selector_error(selector)));
        }
        Ok(upper << 32)
    }

    /// Sets bits of a descriptor's type in its table (accessed, busy).
    pub(super) fn mark_descriptor(&mut self, selector: u16, old: Descriptor, bits: u64) -> Done {
        if old.0 & bits == bits {
            return Ok(());
        }
        let Some(at) = self.descriptor_address(selector) else { return Ok(()) };
        let byte = (old.0 >> 40 | bits >> 40) as u8;
        self.store_as(Seg::Ds, at.wrapping_add(5), byte, Intent::SystemWrite)
    }

    /// Loads ES, SS, DS, FS or GS in protected mode (SDM vol. 2, MOV and vol. 3, 5.6 and 5.7).
    pub(crate) fn load_segment(&mut self, seg: Seg, selector: u16) -> Done {
        if selector & !3 == 0 {
            return self.load_null(seg, selector);
        }
        let d = self.descriptor(selector, Vector::Gp)?;
        let rpl = (selector & 3) as u8;
        let bad = if seg == Seg::Ss {
            !d.is_code_or_data() || d.is_code() || !d.read_write() || rpl != self.cpl || d.dpl() != self.cpl
        } else {
            let conforming_code = d.is_code() && d.conforming();
            !d.is_code_or_data()
                || d.is_code() && !d.read_write()
                || !conforming_code && (rpl.max(self.cpl) > d.dpl())
        };
        if bad {
            return self.raise(Exception::gp(selector_error(selector)));
        }
        if !d.present() {
            let vector = if seg == Seg::Ss { Vector::Ss } else { Vector::Np };
            return self.raise(Exception::with_error(vector, selector_error(selector)));
        }
        self.mark_descriptor(selector, d, 1 << 40)?;
        self.seg[seg as usize] = Descriptor(d.0 | 1 << 40).segment(selector);
        self.update_mode();
        Ok(())
    }

    fn load_null(&mut self, seg: Seg, selector: u16) -> Done {
        let rpl = (selector & 3) as u8;
        if seg == Seg::Ss && (self.mode.bits != Bits::B64 || self.cpl == 3 || rpl != self.cpl) {
            return self.protection();
        }
        // Intel processors clear the base; the null SS of long mode keeps CPL as its DPL.
        let access = if seg == Seg::Ss { u16::from(self.cpl) << 5 } else { 0 };
        self.seg[seg as usize] = Segment { selector, base: 0, limit: 0, access };
        self.update_mode();
        Ok(())
    }

    /// What a load of a segment register by MOV or POP means for the instructions after it.
    pub(crate) fn after_segment_load(&mut self, seg: Seg) {
        if seg == Seg::Ss {
            // A second one in a row gives no second shadow (SDM vol. 3, 6.8.3).
            if self.shadow != Shadow::MovSs {
                self.shadow = Shadow::MovSs;
            }
            self.attention = true;
        }
        self.end_block();
    }

    /// #GP(0) for instructions that UMIP keeps from user mode.
    fn require_umip(&mut self) -> Done {
        if self.cpl > 0 && self.cr4 & cr4::UMIP != 0 { self.protection() } else { Ok(()) }
    }
}

/// LGDT and LIDT.
pub(super) fn load_table<const INTERRUPT: bool>(cpu: &mut Vcpu, u: &Uop) -> Done {
    cpu.privileged()?;
    let seg = u.insn.mem.seg;
    let wide = cpu.mode.bits == Bits::B64;
    let linear = cpu.linear(u, if wide { 10 } else { 6 }, false)?;
    let limit: u16 = cpu.load(seg, linear)?;
    let at = linear.wrapping_add(2);
    let base = if wide {
        cpu.load::<u64>(seg, at)?
    } else {
        let base = u64::from(cpu.load::<u32>(seg, at)?);
        if u.insn.opsize == 2 { base & 0xff_ffff } else { base }
    };
    if wide && !canonical(base) {
        return cpu.protection();
    }
    let table = Table { base, limit };
    if INTERRUPT {
        cpu.idtr = table;
    } else {
        cpu.gdtr = table;
    }
    Ok(())
}

/// SGDT and SIDT.
pub(super) fn store_table<const INTERRUPT: bool>(cpu: &mut Vcpu, u: &Uop) -> Done {
    cpu.require_umip()?;
    let seg = u.insn.mem.seg;
    let wide = cpu.mode.bits == Bits::B64;
    let size = if wide { 10 } else { 6 };
    let linear = cpu.linear(u, size, true)?;
    let table = if INTERRUPT { cpu.idtr } else { cpu.gdtr };
    let mut image = [0; 10];
    image[..2].copy_from_slice(&table.limit.to_le_bytes());
    image[2..].copy_from_slice(&table.base.to_le_bytes());
    cpu.store_bytes(seg, linear, &image[..size as usize])
}

/// LLDT.
pub(super) fn lldt(cpu: &mut Vcpu, u: &Uop) -> Done {
    cpu.privileged()?;
    let selector = cpu.read_first::<u16>(u)? as u16;
    if selector & !3 == 0 {
        cpu.ldtr = Segment { selector, ..Segment::default() };
        return Ok(());
    }
    let d = cpu.descriptor(selector, Vector::Gp)?;
    if selector & 4 != 0 || d.is_code_or_data() || d.kind() != 2 {
        return cpu.raise(Exception::gp(selector_error(selector)));
    }
    if !d.present() {
        return cpu.raise(Exception::with_error(Vector::Np, selector_error(selector)));
    }
    let upper = if cpu.mode.long { cpu.upper_base(selector, Vector::Gp)? } else { 0 };
    cpu.ldtr = Segment { base: upper | d.base(), ..d.segment(selector) };
    Ok(())
}

/// LTR.
pub(super) fn ltr(cpu: &mut Vcpu, u: &Uop) -> Done {
    cpu.privileged()?;
    let selector = cpu.read_first::<u16>(u)? as u16;
    if selector & !3 == 0 {
        return cpu.protection();
    }
    let d = cpu.descriptor(selector, Vector::Gp)?;
    // An available TSS; the 16-bit one is not a task of long mode.
    let available = d.kind() == 9 || d.kind() == 1 && !cpu.mode.long;
    if selector & 4 != 0 || d.is_code_or_data() || !available {
        return cpu.raise(Exception::gp(selector_error(selector)));
    }
    if !d.present() {
        return cpu.raise(Exception::with_error(Vector::Np, selector_error(selector)));
    }
    let upper = if cpu.mode.long { cpu.upper_base(selector, Vector::Gp)? } else { 0 };
    cpu.mark_descriptor(selector, d, 1 << 41)?;
    let segment = Descriptor(d.0 | 1 << 41).segment(selector);
    cpu.tr = Segment { base: upper | segment.base, ..segment };
    Ok(())
}

/// SLDT and STR: a register takes the operand size, memory 16 bits.
pub(super) fn store_selector<const TASK: bool>(cpu: &mut Vcpu, u: &Uop) -> Done {
    cpu.require_umip()?;
    let selector = u64::from(if TASK { cpu.tr.selector } else { cpu.ldtr.selector });
    match u.insn.operands[0] {
        Operand::Mem { .. } => cpu.store_operand::<u16>(u, selector)?,
        Operand::Gpr { size: 2, .. } => cpu.set_a::<u16>(u, selector),
        _ => cpu.set_a::<u64>(u, selector),
    }
    Ok(())
}

/// A descriptor that LAR, LSL, VERR or VERW may look at; `None` clears ZF instead of faulting.
fn visible(cpu: &mut Vcpu, selector: u16) -> Done<Option<Descriptor>> {
    if selector & !3 == 0 {
        return Ok(None);
    }
    let Some(at) = cpu.descriptor_address(selector) else { return Ok(None) };
    let d = Descriptor(cpu.load_as(Seg::Ds, at, Intent::SystemRead)?);
    let rpl = (selector & 3) as u8;
    let free = d.is_code() && d.conforming();
    Ok((free || rpl.max(cpu.cpl) <= d.dpl()).then_some(d))
}

/// LAR: access rights of a descriptor whose type the manual lists as valid.
pub(super) fn lar<T: Word>(cpu: &mut Vcpu, u: &Uop) -> Done {
    let selector = cpu.read_second::<u16>(u)? as u16;
    let valid = |d: &Descriptor, long: bool| {
        d.is_code_or_data() || matches!((d.kind(), long), (2 | 9 | 11 | 12, _) | (1 | 3 | 4 | 5, false))
    };
    let long = cpu.mode.long;
    let found = visible(cpu, selector)?.filter(|d| valid(d, long));
    if let Some(d) = found {
        cpu.set_a::<T>(u, d.0 >> 32 & 0xff_ff00);
    }
    cpu.flags.set_zf_only(found.is_some());
    Ok(())
}

/// LSL: the limit in bytes.
pub(super) fn lsl<T: Word>(cpu: &mut Vcpu, u: &Uop) -> Done {
    let selector = cpu.read_second::<u16>(u)? as u16;
    let long = cpu.mode.long;
    let valid =
        |d: &Descriptor| d.is_code_or_data() || matches!((d.kind(), long), (2 | 9 | 11, _) | (1 | 3, false));
    let found = visible(cpu, selector)?.filter(valid);
    if let Some(d) = found {
        cpu.set_a::<T>(u, u64::from(d.limit()));
    }
    cpu.flags.set_zf_only(found.is_some());
    Ok(())
}

/// VERR and VERW.
pub(super) fn verify<const WRITE: bool>(cpu: &mut Vcpu, u: &Uop) -> Done {
    let selector = cpu.read_first::<u16>(u)? as u16;
    let good = visible(cpu, selector)?.is_some_and(|d| {
        d.is_code_or_data()
            && if WRITE { !d.is_code() && d.read_write() } else { !d.is_code() || d.read_write() }
    });
    cpu.flags.set_zf_only(good);
    Ok(())
}

/// ARPL (16- and 32-bit code).
pub(super) fn arpl(cpu: &mut Vcpu, u: &Uop) -> Done {
    let want = cpu.get_b::<u16>(u) & 3;
    let value = cpu.read_first::<u16>(u)?;
    let lower = value & 3 < want;
    if lower {
        cpu.write_first::<u16>(u, value & !3 | want)?;
    }
    cpu.flags.set_zf_only(lower);
    Ok(())
}

/// LDS, LES, LFS, LGS, LSS.
pub(super) fn load_far<T: Word, const SEG: u8>(cpu: &mut Vcpu, u: &Uop) -> Done {
    let seg = [Seg::Es, Seg::Cs, Seg::Ss, Seg::Ds, Seg::Fs, Seg::Gs][usize::from(SEG)];
    let linear = cpu.linear(u, T::SIZE as u32 + 2, false)?;
    let from = u.insn.mem.seg;
    let offset = cpu.load::<T>(from, linear)?.to_u64();
    let selector: u16 = cpu.load(from, linear.wrapping_add(T::SIZE as u64))?;
    cpu.load_segment(seg, selector)?;
    cpu.set_a::<T>(u, offset);
    cpu.end_block();
    Ok(())
}

/// RDFSBASE, RDGSBASE, WRFSBASE, WRGSBASE.
pub(super) fn segment_base<T: Word, const GS: bool, const WRITE: bool>(cpu: &mut Vcpu, u: &Uop) -> Done {
    if cpu.mode.bits != Bits::B64 || cpu.cr4 & cr4::FSGSBASE == 0 {
        return cpu.undefined();
    }
    let seg = if GS { Seg::Gs } else { Seg::Fs } as usize;
    if WRITE {
        let base = cpu.get_a::<T>(u);
        if !canonical(base) {
            return cpu.protection();
        }
        cpu.seg[seg].base = base;
    } else {
        let base = cpu.seg[seg].base;
        cpu.set_a::<T>(u, base);
    }
    Ok(())
}

/// CLAC and STAC.
pub(super) fn set_ac<const ON: bool>(cpu: &mut Vcpu, _: &Uop) -> Done {
    if cpu.cpl != 0 {
        return cpu.undefined();
    }
    let flags = cpu.rflags();
    cpu.set_rflags(if ON { flags | rflags::AC } else { flags & !rflags::AC });
    Ok(())
}
