//! The virtual processor of a para-virtual guest: what is the guest's own of it, and the monitor that the engine calls.
//!
//! Kernel and user mode are a bit here (`TF_kernel_mode` in Xen), each with its own root of page tables and its own GS base;
//! everything else of the processor stands in the engine's vCPU.

mod bounce;
mod cpuid;
mod emulate;
mod iret;
mod msr;
mod record;
mod segments;

use std::sync::Arc;

use trapgate_engine::exit::Exit;
use trapgate_engine::fault::{Exception, Kind};
use trapgate_engine::monitor::{Gates, Handled, Mode, Monitor, Stored, TableStore, flat_segments};
use trapgate_engine::state::{Segment, Vcpu};
use trapgate_x86::exception::Vector;
use trapgate_x86::model::{Cpuid, Model};
use trapgate_x86::regs::{cr0, cr4, dr6, dr7, efer, rflags, xcr0};

use crate::domain::Domain;
use crate::hypercall;
use crate::paging::{Mfn, TlbControl};
use crate::public::{FLAT_CS64, FLAT_SS, GDT_WINDOW, HYPERVISOR_END, HYPERVISOR_START, Shutdown, shared};

pub use cpuid::model;

/// An entry of the trap table (`trap_info`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Trap {
    pub dpl: u8,
    pub masks_events: bool,
    pub address: u64,
}

/// A registered entry point (`callback_register`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Callback {
    pub masks_events: bool,
    pub address: u64,
}

/// The entry points of a guest's kernel besides its trap table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Callbacks {
    pub event: Callback,
    pub failsafe: Callback,
    pub syscall: Callback,
    pub syscall32: Callback,
    pub sysenter: Callback,
}

/// What `HYPERVISOR_vm_assist` has switched on, by its numbers.
pub mod assist {
    pub const WRITABLE_PAGETABLES: u32 = 1 << 2;
    /// What there is besides: the first two and the fourth mean nothing to a 64-bit guest.
    pub const KNOWN: u32 = WRITABLE_PAGETABLES;
}

/// One vCPU.
#[derive(Debug)]
pub struct PvCpu {
    pub domain: Arc<Domain>,
    pub traps: Box<[Trap; 256]>,
    pub callbacks: Callbacks,
    /// Stack of the kernel when it is entered from user mode (`stack_switch`).
    pub kernel_sp: u64,
    pub iopl: u8,
    pub assist: u32,
    /// Root of the kernel's page tables and of the user's, as machine addresses; no user root is 0.
    pub kernel_root: u64,
    pub user_root: u64,
    /// Linear address and number of entries of the LDT.
    pub ldt: (u64, u32),
    /// Linear address of the runstate area, of the time area; 0: none.
    pub runstate_area: u64,
    pub time_area: u64,
    /// System time at which the vCPU last changed between running and blocked, and the time spent in each state.
    pub runstate: hypercall::vcpu::Runstate,
    pub has_own_vcpu_info: bool,
    /// CR4 as the guest has set it: the bits that it controls.
    pub cr4: u64,
    /// Code and stack segments that the last iret to others than the flat ones has loaded, as long as the GDT has them.
    pub known_return: Option<(Segment, Segment)>,
    /// VCPUOP_send_nmi has been called, and the NMI has not been delivered.
    pub nmi_pending: bool,
    /// An NMI is being handled: the next one waits for an iret hypercall.
    pub nmi_blocked: bool,
    /// In SCHEDOP_poll, until this system time; 0: without end.
    pub polling: Option<u64>,
    /// I/O permission bitmap: linear address and number of ports.
    pub io_bitmap: (u64, u32),
}

/// Drops translations of the vCPU that a call came from.
pub(crate) struct CpuTlb<'a>(pub &'a mut Vcpu);

impl TlbControl for CpuTlb<'_> {
    fn flush_all(&mut self) {
        self.0.flush_guest();
    }
    fn root_changed(&mut self, root: Mfn, same_upper_half: bool) {
        self.0.root_changed(root.maddr(), same_upper_half);
    }
    fn user_root_changed(&mut self, root: Option<Mfn>) {
        self.0.user_root_changed(root.map_or(0, Mfn::maddr));
    }
    fn upper_half_changed(&mut self) {
        self.0.upper_half_changed();
    }
    fn root_gone(&mut self, root: Mfn) {
        self.0.root_gone(root.maddr());
    }
    fn table_changed(&mut self, maddr: u64) {
        self.0.table_changed(maddr);
    }
    fn table_protected(&mut self, maddr: u64, host: u64) {
        self.0.table_protected(maddr, host);
    }
    fn flush_page(&mut self, va: u64) {
        self.0.drop_page(va);
    }
    fn protect(&mut self, host: u64) {
        self.0.protect_host(host);
    }
}

/// Registers of a new vCPU besides those that the builder sets.
pub fn reset(cpu: &mut Vcpu) {
    cpu.cr0 = cr0::PE | cr0::MP | cr0::ET | cr0::NE | cr0::WP | cr0::AM | cr0::PG;
    cpu.cr4 = cr4::PAE | cr4::OSFXSR | cr4::OSXMMEXCPT;
    // What Xen gives a vCPU that has not chosen yet; of use once the guest sets CR4.OSXSAVE.
    cpu.xcr0 = xcr0::X87 | xcr0::SSE & cpu.model().xcr0_mask();
    cpu.efer = efer::SCE | efer::LME | efer::LMA | efer::NXE;
    (cpu.dr6, cpu.dr7) = (dr6::RESET, dr7::RESET);
    cpu.gdtr.base = GDT_WINDOW;
    cpu.gdtr.limit = u16::MAX;
    cpu.idtr.limit = 0;
    for segment in &mut cpu.seg {
        *segment = Segment::default();
    }
    for segment in [&mut cpu.ldtr, &mut cpu.tr] {
        *segment = Segment::default();
    }
    cpu.regs[..16].fill(0);
    cpu.enter_flat(FLAT_CS64, FLAT_SS, 0);
    cpu.set_rflags(rflags::FIXED | rflags::IF);
}

impl PvCpu {
    pub fn new(domain: Arc<Domain>, kernel_root: Mfn, kernel_sp: u64) -> Self {
        PvCpu {
            domain,
            traps: Box::new([Trap::default(); 256]),
            callbacks: Callbacks::default(),
            kernel_sp,
            iopl: 0,
            assist: 0,
            kernel_root: kernel_root.0 << 12,
            user_root: 0,
            ldt: (0, 0),
            runstate_area: 0,
            time_area: 0,
            runstate: hypercall::vcpu::Runstate::default(),
            has_own_vcpu_info: false,
            cr4: 0,
            nmi_pending: false,
            nmi_blocked: false,
            polling: None,
            known_return: None,
            io_bitmap: (0, 0),
        }
    }

    /// The processor that a domain sees, made of a model for `full` mode.
    pub fn model(of: &Model) -> Model {
        cpuid::model(of)
    }

    /// Host offset of a byte of vcpu_info.
    fn info(&self, field: u64) -> u64 {
        self.domain.vcpu_info() + field
    }

    pub(crate) fn upcall_mask(&self) -> bool {
        self.domain.memory().load::<u8>(self.info(shared::UPCALL_MASK)) & 1 != 0
    }

    pub(crate) fn set_upcall_mask(&self, masked: bool) {
        self.domain.memory().store::<u8>(self.info(shared::UPCALL_MASK), u8::from(masked));
    }

    /// Changes to the other mode.
    fn toggle(&self, cpu: &mut Vcpu) {
        let root = if cpu.kernel_mode() { self.user_root } else { self.kernel_root };
        cpu.toggle_kernel_mode(root);
    }

    /// Delivers what waits, in Xen's order: an NMI comes first, then the event callback.
    pub(crate) fn deliver_pending(&mut self, cpu: &mut Vcpu) -> Result<(), Exit> {
        if self.nmi_pending && !self.nmi_blocked {
            self.go_on(cpu);
            self.bounce_nmi(cpu)?;
        }
        if !self.domain.upcall_due() {
            return Ok(());
        }
        self.go_on(cpu);
        self.bounce_event(cpu)
    }

    /// The vCPU waits no longer.
    fn go_on(&mut self, cpu: &mut Vcpu) {
        if cpu.halted {
            self.change_runstate(cpu, hypercall::vcpu::RUNNING);
        }
        cpu.halted = false;
    }

    /// The domain ends here: what the guest did cannot be carried on.
    pub(crate) fn crash(&mut self, cpu: &mut Vcpu, why: std::fmt::Arguments<'_>) -> Exit {
        let mode = if cpu.kernel_mode() { "kernel" } else { "user" };
        let message = format!("{why}, in {mode} mode at {:#x}", cpu.rip);
        self.domain.end(Shutdown::Crash, Some(message));
        Exit::Requested
    }
}

impl Monitor for PvCpu {
    fn system_call(&mut self, cpu: &mut Vcpu) -> Result<(), Exit> {
        if cpu.kernel_mode() { hypercall::enter(self, cpu) } else { self.bounce_syscall(cpu) }
    }

    fn system_enter(&mut self, cpu: &mut Vcpu) -> Result<bool, Exit> {
        self.bounce_sysenter(cpu)
    }

    fn exception(&mut self, cpu: &mut Vcpu, event: Exception, back: u64) -> Result<Handled, Exit> {
        if matches!(event.kind, Kind::Software | Kind::Trap) {
            return self.software_interrupt(cpu, event, back).map(|()| Handled::Delivered);
        }
        if event.kind == Kind::Fault
            && (event.vector == Vector::Gp as u8 && event.error == Some(0)
                || event.vector == Vector::Ud as u8)
            && self.emulate(cpu, event.vector)?
        {
            return Ok(Handled::Emulated);
        }
        self.bounce_exception(cpu, &event, back)?;
        self.deliver_pending(cpu)?;
        Ok(Handled::Delivered)
    }

    fn interrupt(&mut self, cpu: &mut Vcpu) -> Result<(), Exit> {
        if cpu.halted {
            self.end_poll(cpu);
        }
        self.deliver_pending(cpu)
    }

    fn traps(&self, gpa: u64) -> bool {
        self.assist & assist::WRITABLE_PAGETABLES != 0 && self.domain.paging().is_live_l1(Mfn(gpa >> 12))
    }

    fn store(&mut self, cpu: &mut Vcpu, store: TableStore) -> Stored {
        let TableStore { gpa, size, old, new } = store;
        self.domain.hypercalls.note_trapped_store();
        let done = self.domain.paging().trapped_store(&mut CpuTlb(cpu), gpa, size, old, new);
        match done {
            Ok(true) => Stored::Done,
            Ok(false) => Stored::Changed,
            Err(_) => Stored::Refused,
        }
    }

    fn save(&self) -> Vec<u8> {
        self.record()
    }

    fn hypercall(&mut self, cpu: &mut Vcpu, number: u32, args: [u64; 5]) -> Result<Option<u64>, Exit> {
        hypercall::make(self, cpu, number, args)
    }

    fn gates(&self) -> Option<Gates<'_>> {
        let (entry, stack) = (self.callbacks.syscall, self.kernel_sp);
        let inside = (HYPERVISOR_START..=HYPERVISOR_END).contains(&stack);
        // A return that ends an NMI is the monitor's to make.
        if !entry.masks_events || inside || self.user_root == 0 || self.nmi_blocked {
            return None;
        }
        let flat = flat_segments(FLAT_CS64, FLAT_SS);
        let (cs, ss) = self.known_return.filter(|(code, _)| code.long()).unwrap_or(flat);
        Some(Gates {
            events: self.domain.vcpu_info(),
            entry: entry.address,
            stack,
            returns: self.domain.hypercalls.disposition_of_iret()?,
            kernel: Mode { root: self.kernel_root, cs: flat.0, ss: flat.1 },
            user: Mode { root: self.user_root, cs, ss },
        })
    }

    fn note_returns(&mut self, calls: u64) {
        self.domain.hypercalls.note_returns(calls);
    }

    fn cpuid(&self, cpu: &Vcpu, leaf: u32, subleaf: u32) -> Cpuid {
        self.cpuid_view(cpu, leaf, subleaf)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::domain;

    #[test]
    fn returns_are_the_monitors_while_an_nmi_is_handled() {
        let mut pv = PvCpu::new(domain(), Mfn(1), 0x1000);
        pv.callbacks.syscall = Callback { masks_events: true, address: 0x1000 };
        pv.user_root = 0x2000;
        assert!(pv.gates().is_some());
        pv.nmi_blocked = true;
        assert!(pv.gates().is_none());
    }

    #[test]
    fn the_record_has_what_a_guest_may_notice() {
        let mut pv = PvCpu::new(domain(), Mfn(1), 0x1000);
        let mut seen = vec![pv.save()];
        let changes: [fn(&mut PvCpu); 4] = [
            |pv| pv.nmi_pending = true,
            |pv| pv.nmi_blocked = true,
            |pv| pv.cr4 = cr4::OSXSAVE,
            |pv| pv.traps[Vector::Nmi as usize].address = 1,
        ];
        for change in changes {
            change(&mut pv);
            let now = pv.save();
            assert!(!seen.contains(&now), "{seen:?}");
            seen.push(now);
        }
    }
}
