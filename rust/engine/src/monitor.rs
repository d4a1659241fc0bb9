//! What stands in for the privileged half of a processor under a para-virtual guest.
//!
//! Kernel and user code of such a guest both run at CPL 3. System calls, exceptions and pending events go to a
//! [`Monitor`] instead of through descriptor tables, and the page tables are the guest's own, validated by the
//! monitor (direct paging): no shadow is kept of them, and whether kernel or user code runs is a bit of the monitor's,
//! not a privilege level.

use std::fmt;
use std::ops::Range;
use std::sync::atomic::AtomicU64;

use trapgate_x86::exception::Vector;
use trapgate_x86::model::{Cpuid, Model};
use trapgate_x86::regs::{cr0, rflags};

use crate::exit::Exit;
use crate::fault::Exception;
use crate::memory::PAGE;
use crate::mmu::access::{Intent, Place};
use crate::state::{Descriptor, Segment, Vcpu};
use trapgate_x86::insn::Seg;

/// The part of linear memory that is the monitor's, and what it shows there.
#[derive(Clone, Debug, Default)]
pub struct Windows {
    /// Addresses that the guest's tables do not decide about.
    pub range: Range<u64>,
    pub shown: Vec<Window>,
}

/// Something that a monitor shows, for reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// First linear address, page-aligned.
    pub linear: u64,
    pub bytes: u64,
    pub to: WindowTo,
    /// Only the processor sees it, for its own access to descriptors; else the guest's kernel does.
    pub system: bool,
}

/// Where a window leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WindowTo {
    /// A guest-physical address.
    Physical(u64),
    /// An address in the address space of a root.
    Linear { root: u64, linear: u64 },
}

/// What a monitor has made of an exception.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handled {
    /// The guest goes on in its handler.
    Delivered,
    /// The instruction that caused it was carried out: it counts as completed.
    Emulated,
}

/// A store to a page table that the guest may not write to directly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableStore {
    /// Guest-physical address.
    pub gpa: u64,
    /// 1, 2, 4 or 8 bytes, inside one aligned entry of 8 bytes.
    pub size: u8,
    /// What must still be there, for a read-modify-write.
    pub old: Option<u64>,
    pub new: u64,
}

/// How such a store ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    Done,
    /// The old value has changed meanwhile: read it again.
    Changed,
    /// The entry is not allowed: #PF.
    Refused,
}

/// The monitor of one vCPU.
pub trait Monitor: Send + fmt::Debug {
    /// SYSCALL in 64-bit code was executed; RIP is behind it and RCX and R11 are as they were.
    fn system_call(&mut self, cpu: &mut Vcpu) -> Result<(), Exit>;

    /// SYSENTER was executed; RIP is behind it. False if the guest has no entry for it: #GP(0).
    fn system_enter(&mut self, cpu: &mut Vcpu) -> Result<bool, Exit>;

    /// An exception or software interrupt; `back` is where it returns to and RIP is at its instruction.
    fn exception(&mut self, cpu: &mut Vcpu, event: Exception, back: u64) -> Result<Handled, Exit>;

    /// Somebody has posted [`crate::Requests::INTERRUPT`]: delivers what may be delivered now and wakes the vCPU for it.
    fn interrupt(&mut self, cpu: &mut Vcpu) -> Result<(), Exit>;

    /// Whether a store of the kernel's that met a read-only page at this guest-physical address is to go to
    /// [`Monitor::store`].
    fn traps(&self, gpa: u64) -> bool;

    /// Makes such a store.
    fn store(&mut self, cpu: &mut Vcpu, store: TableStore) -> Stored;

    /// Makes a hypercall by the monitor's own handler, whatever the guest's table says; `None`: it has set the registers.
    fn hypercall(&mut self, cpu: &mut Vcpu, number: u32, args: [u64; 5]) -> Result<Option<u64>, Exit>;

    /// What the guest may notice of the monitor's state for this vCPU, as bytes that begin with the number of their format.
    fn save(&self) -> Vec<u8>;

    /// What an engine needs to make system calls of user code and returns to it by itself; `None` if it may not.
    fn gates(&self) -> Option<Gates<'_>>;

    /// The engine has made so many calls by which the kernel returns.
    fn note_returns(&mut self, calls: u64);

    /// CPUID as this guest sees it.
    fn cpuid(&self, cpu: &Vcpu, leaf: u32, subleaf: u32) -> Cpuid;
}

/// How user code of a para-virtual guest enters its kernel and is returned to, for an engine that does both by itself while
/// nothing is unusual about them. Entries mask events.
#[derive(Clone, Copy, Debug)]
pub struct Gates<'a> {
    /// Host offset of the byte that is not zero while an event is pending; behind it is the one that masks events.
    pub events: u64,
    /// Where system calls go, and the top of the kernel's stack.
    pub entry: u64,
    pub stack: u64,
    /// Zero while the call by which the kernel returns is the monitor's own.
    pub returns: &'a AtomicU64,
    pub kernel: Mode,
    pub user: Mode,
}

/// What belongs to kernel or user mode of a para-virtual guest: the root of the page tables, the segments of 64-bit code.
#[derive(Clone, Copy, Debug)]
pub struct Mode {
    pub root: u64,
    pub cs: Segment,
    pub ss: Segment,
}

/// Part of a guest's linear memory that cannot be accessed; nothing has been raised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no access to guest memory at linear {linear:#x}")]
pub struct NoAccess {
    pub linear: u64,
}

/// Flat 64-bit code and stack segments of ring 3 with the given selectors.
pub fn flat_segments(cs: u16, ss: u16) -> (Segment, Segment) {
    const CODE: u16 = 0xa0fb;
    const DATA: u16 = 0xc0f3;
    (Segment::flat(cs, CODE), Segment::flat(ss, DATA))
}

/// Bytes of the frame by which a system call enters the kernel.
const CALL_FRAME: u64 = 7 * 8;

impl Gates<'_> {
    /// Where the frame of a system call is put.
    pub(crate) fn frame(&self) -> u64 {
        (self.stack & !15).wrapping_sub(CALL_FRAME)
    }

    /// Whether it lies in one page.
    pub(crate) fn frame_is_usual(&self) -> bool {
        self.frame() % PAGE + CALL_FRAME <= PAGE
    }
}

impl Vcpu {
    /// Makes this the vCPU of a para-virtual guest, in kernel mode.
    pub fn set_monitor(&mut self, monitor: Box<dyn Monitor>) {
        self.monitor = Some(monitor);
        self.para = true;
        self.kernel_mode = true;
        self.cpl = 3;
        self.update_mode();
        self.flush_tlb();
    }

    /// Whether the guest is para-virtual.
    #[inline(always)]
    pub fn is_para(&self) -> bool {
        self.para
    }

    /// Makes a hypercall of a para-virtual guest by its monitor's own handler; see [`Monitor::hypercall`].
    pub fn hypercall(&mut self, number: u32, args: [u64; 5]) -> Result<Option<u64>, Exit> {
        self.with_monitor(|monitor, cpu| monitor.hypercall(cpu, number, args)).unwrap_or(Ok(None))
    }

    /// Whether a para-virtual guest runs its kernel: then the first view of the TLB is used.
    #[inline(always)]
    pub fn kernel_mode(&self) -> bool {
        self.kernel_mode
    }

    /// What the monitor shows; whoever changes it flushes what it has changed.
    pub fn windows_mut(&mut self) -> &mut Windows {
        &mut self.windows
    }

    /// The monitor's state for this vCPU; nothing without a monitor.
    pub fn save_monitor(&self) -> Vec<u8> {
        self.monitor.as_ref().map(|monitor| monitor.save()).unwrap_or_default()
    }

    /// How the guest's kernel is entered and left; see [`Monitor::gates`].
    pub(crate) fn gates(&self) -> Option<Gates<'_>> {
        self.monitor.as_ref()?.gates()
    }

    /// Counts calls by which the kernel has returned, and which the monitor was not asked for.
    pub(crate) fn note_returns(&mut self, calls: u64) {
        self.departures.hypercalls += calls;
        self.monitor.iter_mut().for_each(|monitor| monitor.note_returns(calls));
    }

    /// Loads the mode that translated code has changed to, in which nothing asks for attention. It has exchanged the GS bases.
    pub(crate) fn load_mode(&mut self, mode: &Mode, user: bool) {
        (self.kernel_mode, self.user_view, self.cr3) = (!user, user, mode.root);
        if self.seg[Seg::Cs as usize] != mode.cs || self.seg[Seg::Ss as usize] != mode.ss {
            self.seg[Seg::Ss as usize] = mode.ss;
            self.seg[Seg::Cs as usize] = mode.cs;
            self.update_mode();
        }
    }

    /// Lends the monitor the vCPU that it belongs to.
    pub(crate) fn with_monitor<T>(
        &mut self,
        work: impl FnOnce(&mut dyn Monitor, &mut Vcpu) -> T,
    ) -> Option<T> {
        let mut monitor = self.monitor.take()?;
        let result = work(&mut *monitor, self);
        self.monitor = Some(monitor);
        Some(result)
    }

    /// Changes between kernel and user mode of a para-virtual guest: the root of the page tables and the two GS bases
    /// change with it. What the TLB holds of each view stays.
    pub fn toggle_kernel_mode(&mut self, root: u64) {
        self.kernel_mode = !self.kernel_mode;
        self.user_view = !self.kernel_mode;
        self.cr3 = root;
        std::mem::swap(&mut self.seg[Seg::Gs as usize].base, &mut self.kernel_gs_base);
        self.end_block();
    }

    /// Continues at `rip`, in flat 64-bit code and stack segments of ring 3 with the given selectors.
    pub fn enter_flat(&mut self, cs: u16, ss: u16, rip: u64) {
        let (cs, ss) = flat_segments(cs, ss);
        self.enter_segments(cs, ss, rip);
    }

    /// Continues at `rip` in code and stack segments that were checked.
    pub fn enter_segments(&mut self, cs: Segment, ss: Segment, rip: u64) {
        if self.seg[Seg::Cs as usize] != cs || self.seg[Seg::Ss as usize] != ss {
            let was_64 = self.is_64bit();
            self.seg[Seg::Ss as usize] = ss;
            self.seg[Seg::Cs as usize] = cs;
            self.update_mode();
            // From one 64-bit segment to another nothing changes that anybody has to look at.
            self.attention |= !(was_64 && self.is_64bit());
        }
        self.rip = rip & self.mode().rip_mask;
        self.end_block();
    }

    /// RFLAGS as after an event or a return: unlike [`Vcpu::set_rflags`] it asks for attention only where a bit wants it.
    pub fn return_rflags(&mut self, value: u64) {
        let old = self.rflags();
        if (old | value) & (rflags::TF | rflags::RF | rflags::AC) != 0 {
            self.set_rflags(value);
        } else {
            self.flags.set_bits(value);
        }
    }

    /// Loads a segment register as MOV does; false if that faults, which is not raised.
    pub fn try_load_segment(&mut self, seg: Seg, selector: u16) -> bool {
        let done = self.load_segment(seg, selector).is_ok();
        self.fault = None;
        done
    }

    /// The descriptor of a selector, as the processor reads it; what goes wrong is not raised.
    pub fn read_descriptor(&mut self, selector: u16) -> Option<Descriptor> {
        let read = if selector & !3 == 0 { None } else { self.descriptor(selector, Vector::Gp).ok() };
        self.fault = None;
        read
    }

    /// Waits for an event, as HLT does.
    pub fn halt(&mut self) {
        self.halted = true;
        self.attention = true;
        self.end_block();
    }

    /// Sets or clears CR0.TS. While it is set nobody may use vector and x87 registers, so translated code gives back those
    /// that are lent to it.
    pub fn set_task_switched(&mut self, set: bool) {
        let before = self.cr0;
        self.cr0 = before & !cr0::TS | if set { cr0::TS } else { 0 };
        if self.cr0 & !before != 0 {
            self.recheck();
        }
    }

    /// DR0 to DR7 were changed by the monitor.
    pub fn debug_registers_changed(&mut self) {
        self.flush_tlb();
        self.attention = true;
        self.end_block();
    }

    /// The model of this vCPU.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Rate of the time-stamp counter.
    pub fn tsc_khz(&self) -> u32 {
        self.processor.tsc_khz
    }

    /// An event is to be looked for at the next boundary.
    pub fn expect_interrupt(&mut self) {
        self.interrupt_waiting = true;
        self.attention = true;
        self.end_block();
    }

    /// The platform's next event may have moved.
    pub fn expect_timer(&mut self) {
        self.recheck();
    }

    /// The next boundary takes a trap with these bits of DR6.
    pub fn pend_debug(&mut self, bits: u64) {
        self.pending_debug |= bits;
        self.attention = true;
        self.end_block();
    }

    /// Reads guest memory in the current mode and view.
    pub fn copy_in(&mut self, linear: u64, buf: &mut [u8]) -> Result<(), NoAccess> {
        let entry = self.tlb.entry(linear, self.user_view);
        if entry.read == linear & !0xfff && (linear & 0xfff) as usize + buf.len() <= 4096 {
            self.memory.read_host(entry.host + (linear & 0xfff), buf);
            return Ok(());
        }
        let done = self.load_bytes(Seg::Ds, linear, buf);
        self.quietly(done, linear)
    }

    /// Reads eight bytes of guest memory in the current mode and view.
    #[inline]
    pub fn load_u64(&mut self, linear: u64) -> Result<u64, NoAccess> {
        match self.load::<u64>(Seg::Ds, linear) {
            Ok(value) => Ok(value),
            Err(_) => {
                self.fault = None;
                Err(NoAccess { linear })
            }
        }
    }

    /// Writes guest memory in the current mode and view. A page that the guest may only read is no place to write to,
    /// a page table included.
    pub fn copy_out(&mut self, linear: u64, bytes: &[u8]) -> Result<(), NoAccess> {
        let done = self.store_bytes(Seg::Ds, linear, bytes);
        self.quietly(done, linear)
    }

    /// Writes eight bytes of guest memory in the current mode and view; see [`Vcpu::copy_out`].
    #[inline]
    pub fn store_u64(&mut self, linear: u64, value: u64) -> Result<(), NoAccess> {
        let entry = self.tlb.entry(linear, self.user_view);
        if entry.write == linear & !0xfff && linear & 0xfff <= 0xff8 {
            let host = entry.host + (linear & 0xfff);
            self.memory.store_plain(host, value);
            return Ok(());
        }
        self.copy_out(linear, &value.to_le_bytes())
    }

    /// The guest-physical address of linear memory that may be read in the current mode and view.
    pub fn physical(&mut self, linear: u64, write: bool) -> Result<u64, NoAccess> {
        let intent = if write { Intent::Write } else { Intent::Read };
        let done = self.place(Seg::Ds, linear, intent, 1);
        let place = self.quietly(done, linear)?;
        match place {
            Place::Ram(host) | Place::Rom(host) => self.memory.address_of(host).ok_or(NoAccess { linear }),
            _ => Err(NoAccess { linear }),
        }
    }

    fn quietly<T>(&mut self, done: crate::fault::Done<T>, linear: u64) -> Result<T, NoAccess> {
        done.map_err(|_| {
            let at = self.fault.take().map_or(linear, |fault| fault.address);
            NoAccess { linear: at }
        })
    }

    /// Drops every cached translation of one linear page.
    pub fn drop_page(&mut self, linear: u64) {
        self.tlb.flush_page(linear);
        self.end_block();
    }

    /// The machine's time-stamp counter at the running instruction.
    pub fn machine_tsc(&mut self) -> u64 {
        let count = self.count_now();
        self.platform.tsc(count)
    }
}
