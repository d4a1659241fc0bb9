//! Entries into the guest's kernel: the frame that stands in for what the processor would push (Xen calls it a bounce frame),
//! for exceptions, software interrupts, system calls of user mode and event upcalls.

use trapgate_engine::exit::Exit;
use trapgate_engine::fault::{Exception, Kind};
use trapgate_engine::state::Vcpu;
use trapgate_x86::exception::Vector;
use trapgate_x86::insn::Seg;
use trapgate_x86::regs::{cr0, pf, rflags};

use super::{Callback, PvCpu};
use crate::public::{FLAT_CS32, FLAT_CS64, FLAT_SS, HYPERVISOR_END, HYPERVISOR_START, shared};

/// What is interrupted, as its frame tells it.
struct Interrupted {
    rip: u64,
    cs: u16,
    rflags: u64,
    rsp: u64,
    ss: u16,
}

impl Interrupted {
    fn at(cpu: &Vcpu, rip: u64) -> Self {
        Interrupted {
            rip,
            cs: cpu.segment(Seg::Cs).selector,
            rflags: cpu.rflags(),
            rsp: cpu.regs[4],
            ss: cpu.segment(Seg::Ss).selector,
        }
    }
}

/// Where the kernel goes on.
struct Entry {
    address: u64,
    masks_events: bool,
    /// SYSCALL clears DF, which exceptions leave alone.
    clears_df: bool,
}

impl Entry {
    fn of(callback: Callback, clears_df: bool) -> Self {
        Entry { address: callback.address, masks_events: callback.masks_events, clears_df }
    }
}

impl PvCpu {
    /// An exception that the guest's kernel is to handle.
    pub(super) fn bounce_exception(
        &mut self,
        cpu: &mut Vcpu,
        event: &Exception,
        back: u64,
    ) -> Result<(), Exit> {
        let mut error = event.error;
        if event.vector == Vector::Pf as u8 {
            // Linux looks for the address only in vcpu_info. U says which mode faulted, and was set by it.
            let at = self.domain.vcpu_info() + shared::CR2;
            self.domain.memory().store::<u64>(at, event.address);
            error = error.map(|bits| bits & !(pf::RSVD));
        }
        if event.vector == Vector::Nm as u8 {
            // Part of the interface: TS is clear when the handler runs.
            cpu.cr0 &= !cr0::TS;
        }
        let trap = self.traps[usize::from(event.vector)];
        if trap.address == 0 {
            let (vector, address) = (event.vector, event.address);
            let error = error.unwrap_or(0);
            return Err(self.crash(
                cpu,
                format_args!(
                    "exception {vector} (error code {error:#x}, address {address:#x}) has no handler in the trap table"
                ),
            ));
        }
        let entry = Entry { address: trap.address, masks_events: trap.masks_events, clears_df: false };
        let interrupted = Interrupted::at(cpu, back);
        self.bounce(cpu, &interrupted, error, &entry)
    }

    /// INT n, INT3, INTO and INT1. From kernel mode a gate of DPL 1 will do, from user mode it must be 3.
    pub(super) fn software_interrupt(
        &mut self,
        cpu: &mut Vcpu,
        event: Exception,
        back: u64,
    ) -> Result<(), Exit> {
        let trap = self.traps[usize::from(event.vector)];
        let least = if cpu.kernel_mode() { 1 } else { 3 };
        let checked = event.kind == Kind::Software && !matches!(event.vector, 3 | 4);
        if checked && trap.dpl < least {
            let error = u32::from(event.vector) * 8 + 2;
            let refused = Exception::gp(error);
            let at = cpu.rip;
            return self.bounce_exception(cpu, &refused, at);
        }
        self.bounce_exception(cpu, &event, back)?;
        self.deliver_pending(cpu)
    }

    /// SYSCALL in user mode: the processor has put RIP and RFLAGS into RCX and R11, and so the frame has them twice.
    pub(super) fn bounce_syscall(&mut self, cpu: &mut Vcpu) -> Result<(), Exit> {
        let callback = self.callbacks.syscall;
        let rip = cpu.rip;
        if callback.address == 0 {
            let at = rip.wrapping_sub(2);
            return self.bounce_exception(cpu, &Exception::ud(), at);
        }
        (cpu.regs[1], cpu.regs[11]) = (rip, cpu.rflags() & !rflags::RF);
        let interrupted =
            Interrupted { cs: FLAT_CS64, ss: FLAT_SS, rflags: cpu.regs[11], ..Interrupted::at(cpu, rip) };
        self.bounce(cpu, &interrupted, None, &Entry::of(callback, true))?;
        self.deliver_pending(cpu)
    }

    /// SYSENTER: the processor keeps neither RIP nor RSP, and the frame says so. False: no entry for it.
    pub(super) fn bounce_sysenter(&mut self, cpu: &mut Vcpu) -> Result<bool, Exit> {
        let callback = self.callbacks.sysenter;
        if callback.address == 0 || cpu.kernel_mode() {
            return Ok(false);
        }
        let interrupted = Interrupted { rip: 0, cs: 3, rsp: 0, ss: FLAT_SS, rflags: cpu.rflags() };
        self.bounce(cpu, &interrupted, None, &Entry::of(callback, true))?;
        self.deliver_pending(cpu)?;
        Ok(true)
    }

    /// The event callback; it always masks events.
    pub(super) fn bounce_event(&mut self, cpu: &mut Vcpu) -> Result<(), Exit> {
        let callback = self.callbacks.event;
        if callback.address == 0 {
            return Err(
                self.crash(cpu, format_args!("an event is unmasked, but no event callback is registered"))
            );
        }
        cpu.departures.interrupts += 1;
        let interrupted = Interrupted::at(cpu, cpu.rip);
        let entry = Entry { address: callback.address, masks_events: true, clears_df: false };
        self.bounce(cpu, &interrupted, None, &entry)
    }

    /// An NMI. Without an entry in the trap table it is lost, as it is in Xen.
    pub(super) fn bounce_nmi(&mut self, cpu: &mut Vcpu) -> Result<(), Exit> {
        self.nmi_pending = false;
        let trap = self.traps[Vector::Nmi as usize];
        if trap.address == 0 {
            return Ok(());
        }
        self.nmi_blocked = true;
        cpu.departures.interrupts += 1;
        let interrupted = Interrupted::at(cpu, cpu.rip);
        let entry = Entry { address: trap.address, masks_events: trap.masks_events, clears_df: false };
        self.bounce(cpu, &interrupted, None, &entry)
    }

    /// Builds the frame and enters the kernel.
    fn bounce(
        &mut self,
        cpu: &mut Vcpu,
        interrupted: &Interrupted,
        error: Option<u32>,
        entry: &Entry,
    ) -> Result<(), Exit> {
        let masked = self.upcall_mask();
        let from_kernel = cpu.kernel_mode();
        // A kernel that runs at CPL 3 must not take itself for its user: its frames show RPL 0.
        let cs = if from_kernel { interrupted.cs & !3 } else { interrupted.cs };
        let base = if from_kernel { cpu.regs[4] } else { self.kernel_sp };
        if !from_kernel {
            self.toggle(cpu);
        }
        let flags = interrupted.rflags & !(rflags::IF | rflags::IOPL) | if masked { 0 } else { rflags::IF };
        let mut frame = [0u64; 8];
        frame[0] = cpu.regs[1];
        frame[1] = cpu.regs[11];
        let mut words = 2;
        if let Some(error) = error {
            frame[2] = u64::from(error);
            words = 3;
        }
        let tail = [
            interrupted.rip,
            u64::from(cs) | u64::from(masked) << 32,
            flags,
            interrupted.rsp,
            u64::from(interrupted.ss),
        ];
        frame[words..words + 5].copy_from_slice(&tail);
        words += 5;
        let sp = (base & !15).wrapping_sub(words as u64 * 8);
        if (HYPERVISOR_START..=HYPERVISOR_END).contains(&base)
            || self.push_frame(cpu, sp, &frame[..words]).is_err()
        {
            return Err(self
                .crash(cpu, format_args!("no frame can be written at {sp:#x} for an entry to the kernel")));
        }
        if entry.masks_events {
            self.set_upcall_mask(true);
        }
        cpu.regs[4] = sp;
        let mut clear = rflags::TF | rflags::RF | rflags::NT | rflags::AC | rflags::VM;
        if entry.clears_df {
            clear |= rflags::DF;
        }
        let flags = cpu.rflags() & !clear | rflags::IF;
        cpu.return_rflags(flags);
        cpu.enter_flat(FLAT_CS64, FLAT_SS, entry.address);
        Ok(())
    }

    /// Writes a frame: word by word where it lies in one page that is cached, which is nearly always.
    fn push_frame(
        &self,
        cpu: &mut Vcpu,
        sp: u64,
        frame: &[u64],
    ) -> Result<(), trapgate_engine::monitor::NoAccess> {
        if sp % 4096 + frame.len() as u64 * 8 > 4096 {
            let bytes: Vec<u8> = frame.iter().flat_map(|word| word.to_le_bytes()).collect();
            return cpu.copy_out(sp, &bytes);
        }
        frame.iter().zip(0u64..).try_for_each(|(word, i)| cpu.store_u64(sp + i * 8, *word))
    }
}

/// Whether a code selector is the 32-bit one of user mode.
pub(super) fn is_compat(selector: u16) -> bool {
    selector == FLAT_CS32
}
