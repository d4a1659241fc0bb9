//! The architectural state of one virtual processor, and what it holds on to: memory, TLB and platform.

pub mod flags;
pub mod record;
pub mod segment;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

pub use flags::Flags;
pub use segment::{Descriptor, Segment, Table};
use trapgate_x86::features::Features;
use trapgate_x86::insn::{Bits, Seg};
use trapgate_x86::model::{Model, Topology};
use trapgate_x86::regs::{cr0, dr6, dr7, efer, rflags};

use crate::departures::Departures;
use crate::exit::Exit;
use crate::fault::Exception;
use crate::hooks::{HookEvent, HookId, HookKind, Hooks};
use crate::memory::GuestMemory;
use crate::mmu::kept::Kept;
use crate::mmu::shadow::Shadow as ShadowTables;
use crate::mmu::shadow_pages::ShadowPages;
use crate::mmu::tlb::Tlb;
use crate::monitor::{Monitor, Windows};
use crate::platform::Platform;
use crate::vector::VectorState;

/// Index in [`Vcpu::regs`] of a register that is always zero.
pub(crate) const ZERO: u8 = 16;
/// Index in [`Vcpu::regs`] of the RIP at which the running block starts.
pub(crate) const BLOCK_RIP: u8 = 17;

/// Requests to a vCPU from other threads and from the chips; polled between blocks.
#[derive(Debug, Default)]
pub struct Requests(AtomicU32);

impl Requests {
    /// An interrupt may be pending: ask the platform.
    pub const INTERRUPT: u32 = 1;
    /// Return to the caller with [`Exit::Requested`].
    pub const STOP: u32 = 2;

    pub fn post(&self, what: u32) {
        self.0.fetch_or(what, Ordering::Release);
    }
    #[inline(always)]
    pub fn any(&self) -> bool {
        self.0.load(Ordering::Relaxed) != 0
    }
    pub fn take(&self) -> u32 {
        self.0.swap(0, Ordering::AcqRel)
    }
    pub fn clear(&self, what: u32) {
        self.0.fetch_and(!what, Ordering::AcqRel);
    }
}

/// What the mode registers say together; derived, never saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode {
    /// Width of the code segment.
    pub bits: Bits,
    /// EFER.LMA: long mode, compatibility mode included.
    pub long: bool,
    /// CS, SS, DS and ES have base 0 and limit 4 GiB, and the last three are writable: outside 64-bit mode accesses by
    /// them need no segment check.
    pub flat: bool,
    /// Outside 64-bit mode: CS ends below 4 GiB, so that fetches need a check.
    pub short_code: bool,
    /// What RIP wraps at: all ones of the code segment's width.
    pub rip_mask: u64,
}

/// What one processor of a machine is besides its model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Processor {
    pub topology: Topology,
    /// Frequency of the time-stamp counter.
    pub tsc_khz: u32,
}

/// One virtual processor.
#[derive(Debug)]
pub struct Vcpu {
    /// General registers by encoding; beyond them the constant zero and the running block's start, for addresses.
    pub regs: [u64; 32],
    pub rip: u64,
    pub flags: Flags,
    /// ES, CS, SS, DS, FS, GS by encoding.
    pub seg: [Segment; 6],
    pub ldtr: Segment,
    pub tr: Segment,
    pub gdtr: Table,
    pub idtr: Table,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    pub xcr0: u64,
    pub pdptes: [u64; 4],
    /// Breakpoint addresses DR0 to DR3.
    pub dr: [u64; 4],
    pub dr6: u64,
    pub dr7: u64,
    pub cpl: u8,
    /// Vector registers; lent out (`None`) only while a vector instruction runs.
    pub(crate) vector: Option<Box<VectorState>>,
    /// IA32_STAR, LSTAR, FMASK.
    pub star: u64,
    pub lstar: u64,
    pub fmask: u64,
    pub kernel_gs_base: u64,
    pub tsc_aux: u64,
    pub debugctl: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    /// IA32_TSC_ADJUST: what the guest has added to the machine's TSC.
    pub tsc_adjust: u64,
    /// All other MSRs of the model that are plain storage.
    pub msrs: BTreeMap<u32, u64>,
    /// HLT or MWAIT: no instructions until an interrupt.
    pub halted: bool,
    /// The next instruction is in the shadow of STI or MOV SS.
    pub shadow: Shadow,
    /// NMIs are held back until IRET.
    pub nmi_blocked: bool,
    /// Completed instructions, up to the start of the running block.
    pub count: u64,

    /// Why guest code was left, and how often.
    pub departures: Departures,

    pub(crate) mode: Mode,
    /// The second view of the TLB is used: CPL 3, or user mode of a para-virtual guest.
    pub(crate) user_view: bool,
    /// The guest is para-virtual.
    pub(crate) para: bool,
    /// What the monitor of a para-virtual guest shows of itself.
    pub(crate) windows: Windows,
    /// Translations of a para-virtual guest that outlive a change of roots.
    pub(crate) kept: Kept,
    /// The guest is para-virtual and runs its kernel.
    pub(crate) kernel_mode: bool,
    /// The other half of a para-virtual guest's processor; lent out (`None`) only while it works.
    pub(crate) monitor: Option<Box<dyn Monitor>>,
    pub(crate) tlb: Tlb,
    pub(crate) shadow_tables: ShadowTables,
    /// Shadow page tables that see the guest's stores to its own, in place of the second level above.
    pub(crate) shadow_pages: Option<Box<ShadowPages>>,
    pub(crate) memory: Arc<GuestMemory>,
    pub(crate) platform: Box<dyn Platform>,
    pub(crate) requests: Arc<Requests>,
    pub(crate) model: Arc<Model>,
    pub(crate) processor: Processor,
    /// Index of the running instruction in its block.
    pub(crate) at: u32,
    /// The block runs up to here; zero makes it end after the running instruction.
    pub(crate) end: u32,
    /// Iterations of repeated instructions in this block beyond one.
    pub(crate) extra: u64,
    /// The count at which [`crate::Engine::run`] must stop or serve an event.
    pub(crate) limit: u64,
    /// Something may have changed that the loop between blocks must look at.
    pub(crate) attention: bool,
    /// Ask the platform for its next event before going on.
    pub(crate) recheck: bool,
    /// An interrupt waits, as far as is known.
    pub(crate) interrupt_waiting: bool,
    /// DR6 bits of a #DB that is to be delivered at the next boundary.
    pub(crate) pending_debug: u64,
    pub(crate) fault: Option<Exception>,
    pub(crate) exit: Option<Exit>,
    pub(crate) hooks: Hooks,
    /// Host pages of the running block.
    pub(crate) running_pages: [u64; 2],
}

/// Interrupts held back for one instruction (SDM vol. 3, 6.8.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub enum Shadow {
    #[default]
    None,
    /// After STI: maskable interrupts wait.
    Sti,
    /// After MOV SS or POP SS: interrupts, NMI and debug traps wait.
    MovSs,
}

/// Marks an empty slot of `running_pages`.
pub(crate) const NO_PAGE: u64 = u64::MAX;

impl Vcpu {
    /// A processor in the state that the manual gives for INIT and power-up (SDM vol. 3, table 9-1).
    pub fn new(
        model: Arc<Model>,
        processor: Processor,
        memory: Arc<GuestMemory>,
        platform: Box<dyn Platform>,
        requests: Arc<Requests>,
    ) -> Self {
        let data = |access| Segment { selector: 0, base: 0, limit: 0xffff, access };
        let mut vcpu = Vcpu {
            regs: [0; 32],
            rip: 0xfff0,
            flags: Flags::new(rflags::FIXED),
            seg: [data(0x93); 6],
            ldtr: data(0x82),
            tr: data(0x8b),
            gdtr: Table { base: 0, limit: 0xffff },
            idtr: Table { base: 0, limit: 0xffff },
            cr0: cr0::ET | cr0::NW | cr0::CD,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            efer: 0,
            xcr0: 1,
            pdptes: [0; 4],
            dr: [0; 4],
            dr6: dr6::RESET,
            dr7: dr7::RESET,
            cpl: 0,
            vector: None,
            star: 0,
            lstar: 0,
            fmask: 0,
            kernel_gs_base: 0,
            tsc_aux: 0,
            debugctl: 0,
            sysenter_cs: 0,
            sysenter_esp: 0,
            sysenter_eip: 0,
            tsc_adjust: 0,
            msrs: crate::interp::msr::reset_values(&model),
            halted: false,
            shadow: Shadow::None,
            nmi_blocked: false,
            count: 0,
            departures: Departures::default(),
            mode: Mode { bits: Bits::B16, long: false, flat: false, short_code: true, rip_mask: 0xffff },
            user_view: false,
            para: false,
            windows: Windows::default(),
            kept: Kept::default(),
            kernel_mode: false,
            monitor: None,
            tlb: Tlb::default(),
            shadow_tables: ShadowTables::default(),
            shadow_pages: None,
            memory,
            platform,
            requests,
            model,
            processor,
            at: 0,
            end: 0,
            extra: 0,
            limit: 0,
            attention: true,
            recheck: true,
            interrupt_waiting: false,
            pending_debug: 0,
            fault: None,
            exit: None,
            hooks: Hooks::default(),
            running_pages: [NO_PAGE; 2],
        };
        vcpu.seg[Seg::Cs as usize] =
            Segment { selector: 0xf000, base: 0xffff_0000, limit: 0xffff, access: 0x9b };
        vcpu.regs[2] = u64::from(vcpu.model.signature);
        vcpu.update_mode();
        vcpu
    }

    /// Derives the mode from CR0, EFER and the segment registers; to be called after any of them changed.
    pub fn update_mode(&mut self) {
        let cs = &self.seg[Seg::Cs as usize];
        let long = self.efer & efer::LMA != 0;
        let bits = match (long && cs.long(), cs.big()) {
            (true, _) => Bits::B64,
            (false, true) => Bits::B32,
            (false, false) => Bits::B16,
        };
        let rip_mask = match bits {
            Bits::B64 => u64::MAX,
            Bits::B32 => u64::from(u32::MAX),
            Bits::B16 => 0xffff,
        };
        let data = [Seg::Es, Seg::Ss, Seg::Ds].map(|seg| &self.seg[seg as usize]);
        let flat = cs.is_flat() && data.iter().all(|segment| segment.is_flat() && segment.writable());
        let short_code = bits != Bits::B64 && cs.limit != u32::MAX;
        self.mode = Mode { bits, long, flat, short_code, rip_mask };
        self.user_view = self.cpl == 3 && !self.kernel_mode;
    }

    /// A segment register.
    #[inline(always)]
    pub fn segment(&self, seg: Seg) -> &Segment {
        &self.seg[seg as usize]
    }

    /// Completed instructions before the running one.
    #[inline(always)]
    pub fn count_now(&self) -> u64 {
        self.count.wrapping_add(u64::from(self.at)).wrapping_add(self.extra)
    }

    /// Ends the block after the running instruction.
    #[inline(always)]
    pub(crate) fn end_block(&mut self) {
        self.end = 0;
    }

    /// The instruction may have moved a deadline, IF or a line: look again before the next one.
    #[inline(always)]
    pub(crate) fn recheck(&mut self) {
        self.end = 0;
        self.attention = true;
        self.recheck = true;
    }

    /// RFLAGS with every bit in place.
    pub fn rflags(&self) -> u64 {
        self.flags.bits()
    }

    /// Sets all of RFLAGS, from outside or on event return.
    pub fn set_rflags(&mut self, value: u64) {
        if (value ^ self.flags.other()) & rflags::AC != 0 && self.ac_matters() {
            self.tlb.flush();
        }
        self.flags.set_bits(value);
        self.attention = true;
    }

    /// Installs a hook on `first` to `last`, both included; code that ran before is seen as well.
    pub fn add_hook(&mut self, kind: HookKind, first: u64, last: u64) -> HookId {
        self.tlb.flush();
        self.hooks.add(kind, first, last)
    }

    /// Takes a hook away; false if there is none of that name.
    pub fn remove_hook(&mut self, id: HookId) -> bool {
        self.tlb.flush();
        self.hooks.remove(id)
    }

    /// The events behind [`Exit::Hook`], in order. Until they are taken, no instruction runs.
    pub fn take_hook_events(&mut self) -> Vec<HookEvent> {
        self.hooks.take()
    }

    /// Notes an access for the hooks on it.
    #[cold]
    #[inline(never)]
    pub(crate) fn hook_hit(&mut self, kind: HookKind, at: u64, size: u64, value: u64) {
        // Which instruction it was is filled in when the block has stopped behind it.
        if self.hooks.hit(kind, HookEvent { hook: HookId(0), rip: None, at, size, value }) {
            self.attention = true;
            self.end_block();
        }
    }

    /// IF: whether maskable interrupts can wake or interrupt this vCPU.
    pub fn interrupts_enabled(&self) -> bool {
        self.flags.is_set(rflags::IF)
    }

    /// Memory of the machine that this vCPU belongs to.
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    pub fn platform_mut(&mut self) -> &mut dyn Platform {
        &mut *self.platform
    }

    /// What the model offers.
    #[inline(always)]
    pub fn features(&self) -> Features {
        self.model.features
    }

    /// x87, MMX and SSE registers.
    pub fn vector(&mut self) -> &mut VectorState {
        self.vector.get_or_insert_with(|| Box::new(VectorState::reset()))
    }

    /// Current mode.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Forgets every cached translation (after a change from outside).
    pub fn flush_tlb(&mut self) {
        self.kept.clear();
        self.shadow_tables.flush_all();
        self.tlb.flush();
    }
}
