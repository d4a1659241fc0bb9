//! Segments of a para-virtual guest: its GDT with the hypervisor's part, its LDT, and the bases that it may set.

use trapgate_engine::mmu::access::canonical;
use trapgate_engine::monitor::{Window, WindowTo, Windows};
use trapgate_engine::state::Vcpu;
use trapgate_x86::insn::Seg;

use super::{CpuTlb, PvCpu};
use crate::errno::Errno;
use crate::paging::Mfn;
use crate::public::{FIRST_RESERVED_GDT_ENTRY, GDT_WINDOW, HYPERVISOR_END, HYPERVISOR_START, LDT_WINDOW};

/// Entries in a page of descriptors.
const ENTRIES_IN_PAGE: usize = 512;
const PAGE: u64 = 4096;

impl PvCpu {
    /// Shows the guest's kernel M2P, and the processor the descriptor tables: the frames of the GDT with the page of
    /// reserved descriptors behind them, and the LDT, which lies in the kernel's memory.
    pub fn show_windows(&self, cpu: &mut Vcpu) {
        let layout = &self.domain.layout;
        let mut shown = vec![Window {
            linear: HYPERVISOR_START + layout.m2p_first * 8,
            bytes: layout.m2p_bytes,
            to: WindowTo::Physical(layout.m2p),
            system: false,
        }];
        let mut page = |index: usize, gpa: u64| {
            let linear = GDT_WINDOW + index as u64 * PAGE;
            shown.push(Window { linear, bytes: PAGE, to: WindowTo::Physical(gpa), system: true });
        };
        self.domain.paging().gdt(0).iter().enumerate().for_each(|(index, mfn)| page(index, mfn.maddr()));
        page(FIRST_RESERVED_GDT_ENTRY / ENTRIES_IN_PAGE, layout.descriptors);
        if self.ldt.1 > 0 {
            let to = WindowTo::Linear { root: self.kernel_root, linear: self.ldt.0 };
            let bytes = u64::from(self.ldt.1) * 8;
            shown.push(Window { linear: LDT_WINDOW, bytes, to, system: true });
        }
        *cpu.windows_mut() = Windows { range: HYPERVISOR_START..HYPERVISOR_END, shown };
    }

    /// HYPERVISOR_set_gdt.
    pub(crate) fn set_gdt(&mut self, cpu: &mut Vcpu, frames: &[Mfn]) -> Result<(), Errno> {
        self.known_return = None;
        self.domain.paging().set_gdt(&mut CpuTlb(cpu), 0, frames)?;
        self.show_windows(cpu);
        Ok(())
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
        self.show_windows(cpu);
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
