//! Segments of a para-virtual guest: its GDT with the hypervisor's part, its LDT, and the bases that it may set.

use trapgate_engine::mmu::walk;
use trapgate_engine::state::Vcpu;
use trapgate_x86::insn::Seg;

use super::{CpuTlb, PvCpu};
use crate::errno::Errno;
use crate::paging::{Mfn, sanitise_descriptor};
use crate::public::{FIRST_RESERVED_GDT_ENTRY, GDT_WINDOW, HYPERVISOR_END, HYPERVISOR_START, LDT_WINDOW};

/// Entries in a page of descriptors.
const ENTRIES_IN_PAGE: usize = 512;

/// Whether bits 63 to 47 are all equal.
pub(crate) fn canonical(address: u64) -> bool {
    (address as i64) << 16 >> 16 == address as i64
}

impl PvCpu {
    /// Where the processor finds a descriptor.
    pub(super) fn descriptor_window(&mut self, cpu: &mut Vcpu, linear: u64) -> Option<u64> {
        if let Some(offset) = linear.checked_sub(LDT_WINDOW) {
            return self.ldt_entry(cpu, offset);
        }
        let offset = linear.checked_sub(GDT_WINDOW)?;
        let page = (offset / 4096) as usize;
        let reserved = FIRST_RESERVED_GDT_ENTRY / ENTRIES_IN_PAGE;
        let frame = if page >= reserved {
            (page == reserved).then_some(self.domain.layout.descriptors)
        } else {
            self.domain.paging().gdt(0).get(page).map(|mfn| mfn.0 << 12)
        };
        frame.map(|start| start + offset % 4096)
    }

    /// An entry of the LDT lies in the kernel's memory; only what a GDT might hold is shown.
    fn ldt_entry(&mut self, cpu: &mut Vcpu, offset: u64) -> Option<u64> {
        if offset / 8 >= u64::from(self.ldt.1) {
            return None;
        }
        let paging = walk::Paging { cr3: self.kernel_root, ..cpu.paging() };
        let memory = self.domain.memory();
        let mapping = walk::walk(memory, &paging, self.ldt.0.wrapping_add(offset), |_| {}).ok()?;
        let page = memory.page(mapping.gpa)?;
        let entry = memory.load::<u64>(page.offset + mapping.gpa % 4096 / 8 * 8);
        sanitise_descriptor(entry).map(|_| mapping.gpa)
    }

    /// HYPERVISOR_set_gdt.
    pub(crate) fn set_gdt(&mut self, cpu: &mut Vcpu, frames: &[Mfn]) -> Result<(), Errno> {
        let domain = std::sync::Arc::clone(&self.domain);
        domain.paging().set_gdt(&mut CpuTlb(cpu), 0, frames)
    }

    /// MMUEXT_SET_LDT.
    pub(crate) fn set_ldt(&mut self, cpu: &mut Vcpu, base: u64, entries: u64) -> Result<(), Errno> {
        if entries > 8192 || base % 4096 != 0 && entries != 0 {
            return Err(Errno::Inval);
        }
        let inside = (HYPERVISOR_START..HYPERVISOR_END).contains(&base);
        if entries != 0 && (!canonical(base) || inside) {
            return Err(Errno::Inval);
        }
        self.ldt = (base, entries as u32);
        self.load_ldtr(cpu);
        Ok(())
    }

    fn load_ldtr(&self, cpu: &mut Vcpu) {
        let entries = self.ldt.1;
        cpu.ldtr = Default::default();
        if entries > 0 {
            // A present LDT: type 2.
            cpu.ldtr.access = 0x82;
            cpu.ldtr.base = LDT_WINDOW;
            cpu.ldtr.limit = entries * 8 - 1;
        }
    }

    /// HYPERVISOR_set_segment_base (`SEGBASE_*`).
    pub(crate) fn set_segment_base(&mut self, cpu: &mut Vcpu, which: u64, base: u64) -> Result<(), Errno> {
        match which {
            0..=2 if !canonical(base) => return Err(Errno::Inval),
            0 => cpu.seg[Seg::Fs as usize].base = base,
            1 => cpu.kernel_gs_base = base,
            2 => cpu.seg[Seg::Gs as usize].base = base,
            3 => self.load_user_gs(cpu, base as u16),
            _ => return Err(Errno::Inval),
        }
        Ok(())
    }

    /// SEGBASE_GS_USER_SEL: loads GS as if user mode ran, so the active base stays and the inactive one changes.
    fn load_user_gs(&mut self, cpu: &mut Vcpu, selector: u16) {
        let active = cpu.segment(Seg::Gs).base;
        let selector = if selector > 3 { selector | 3 } else { selector };
        let loaded = selector > 3 && cpu.try_load_segment(Seg::Gs, selector);
        if !loaded {
            cpu.try_load_segment(Seg::Gs, 0);
        }
        let gs = &mut cpu.seg[Seg::Gs as usize];
        cpu.kernel_gs_base = if loaded { gs.base } else { 0 };
        gs.base = active;
    }
}
