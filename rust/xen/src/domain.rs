//! A domain: what its vCPU, its back-ends and its toolstack share.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use trapgate_engine::memory::MemoryError;
use trapgate_engine::{GuestMemory, Requests};

use crate::event::{Channel, Events};
use crate::grant::Grants;
use crate::hypercall::Table;
use crate::interdomain::Neighbours;
use crate::paging::{DirectPaging, FrameType, LayoutError, Mfn, TlbControl};
use crate::public::{Shutdown, shared};
use crate::time::Timers;

/// Where the monitor's own frames are in the domain's machine address space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// MFNs of all RAM that the domain may ever own.
    pub ram: std::ops::Range<u64>,
    /// MFN of shared_info, the first of the frames that the monitor shares.
    pub shared_info: u64,
    /// MFNs of the grant table.
    pub grants: std::ops::Range<u64>,
    /// Machine address of the M2P entries of `ram`, page-aligned down to the entry of a whole page.
    pub m2p: u64,
    /// First MFN that M2P has an entry for.
    pub m2p_first: u64,
    /// Bytes of M2P.
    pub m2p_bytes: u64,
    /// Machine address of the page with the reserved descriptors.
    pub descriptors: u64,
}

/// The layout of a domain's machine address space.
impl Layout {
    /// A domain with room for `pages` frames; each has an MFN space of its own.
    pub fn new(domid: u16, pages: u64) -> Self {
        const PAGE: u64 = 4096;
        const GRANT_FRAMES: u64 = 32;
        // Never where PFNs are, so that whoever takes one for the other fails at once; odd, so that no alignment helps.
        let start = 0x10_0000 + u64::from(domid % 0x400) * 0x1003 + 0x13;
        let ram = start..start + pages;
        let shared_info = ram.end + 0x100;
        let grants = shared_info + 1..shared_info + 1 + GRANT_FRAMES;
        let entries_in_page = PAGE / 8;
        let m2p_first = ram.start / entries_in_page * entries_in_page;
        let m2p_bytes = (grants.end - m2p_first).div_ceil(entries_in_page) * PAGE;
        let m2p = (grants.end + 0x100) * PAGE;
        let descriptors = m2p + m2p_bytes + 0x10_0000;
        Layout { ram, shared_info, grants, m2p, m2p_first, m2p_bytes, descriptors }
    }

    /// Regions of guest memory that hold all of it.
    pub fn regions(&self) -> Vec<trapgate_engine::memory::Region> {
        let region = |start, len| trapgate_engine::memory::Region { start, len, read_only: false };
        let frames =
            |range: &std::ops::Range<u64>| region(range.start << 12, (range.end - range.start) << 12);
        vec![
            frames(&self.ram),
            frames(&(self.shared_info..self.grants.end)),
            region(self.m2p, self.m2p_bytes),
            region(self.descriptors, 4096),
        ]
    }

    /// Highest MFN that M2P knows.
    pub fn max_mfn(&self) -> u64 {
        self.m2p_first + self.m2p_bytes / 8 - 1
    }
}

/// What a domain needs from the machine that it is.
pub trait Host: Send + Sync + fmt::Debug {
    /// A kernel's emergency output (`console_io`).
    fn emergency_output(&self, bytes: &[u8]);
    /// A vCPU that is blocked has something to look at.
    fn wake(&self);
}

/// What else there is to say about a domain.
#[derive(Clone, Debug)]
pub struct Config {
    pub domid: u16,
    /// `xen_domain_handle_t`.
    pub handle: [u8; 16],
    pub vcpus: u32,
    /// Unix time at system time 0.
    pub wall_seconds: i64,
}

/// Work that waits for somebody outside the vCPU; bits of [`Domain::take_work`].
pub mod work {
    /// A port of a back-end that is served outside was notified.
    pub const DOORBELL: u32 = 1;
    /// A hypercall waits for its handler.
    pub const HYPERCALL: u32 = 2;
    /// The domain has shut itself down.
    pub const SHUTDOWN: u32 = 4;
    /// The guest looks at its rings in a loop (`SCHEDOP_yield`, `SCHEDOP_poll`).
    pub const YIELD: u32 = 8;
    /// A back-end that is served here has got something for the guest.
    pub const BACKEND: u32 = 16;
}

/// For those who let go of frames while no vCPU is at hand. A frame that leaves the domain by that goes to its pool, and
/// the vCPU forgets what it knew of it before a frame comes out of the pool again: until then nobody else has it.
pub(crate) struct Later<'a>(pub &'a Domain);

impl TlbControl for Later<'_> {
    fn flush_all(&mut self) {
        self.0.stale_tlb.store(true, Ordering::Release);
    }
    fn flush_page(&mut self, _: u64) {
        self.flush_all();
    }
    fn protect(&mut self, _: u64) {
        self.flush_all();
    }
}

/// A domain that ended, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    pub reason: Shutdown,
    /// What the monitor has to say of a crash.
    pub message: Option<String>,
}

/// One domain.
#[derive(Debug)]
pub struct Domain {
    pub config: Config,
    pub layout: Layout,
    pub hypercalls: Table,
    pub(crate) host: Box<dyn Host>,
    memory: Arc<GuestMemory>,
    requests: Arc<Requests>,
    paging: Mutex<DirectPaging>,
    events: Mutex<Events>,
    timers: Mutex<Timers>,
    grants: Mutex<Grants>,
    /// Host offset of each vCPU's vcpu_info; there is one vCPU.
    vcpu_info: AtomicU64,
    /// A frame that left the domain without its vCPU may still be in the vCPU's TLB; see [`Later`].
    stale_tlb: AtomicBool,
    work: AtomicU32,
    ended: Mutex<Option<Ended>>,
    /// Domains that it may have channels to; see [`Domain::join`].
    pub(crate) neighbours: OnceLock<Arc<Neighbours>>,
}

/// A lock whose holder panicked is a bug of ours that was reported there: what it guards is a consistent value.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Domain {
    /// A domain whose memory has the regions of its layout; `owned` frames of RAM belong to it.
    pub fn new(
        config: Config,
        layout: Layout,
        owned: u64,
        memory: Arc<GuestMemory>,
        requests: Arc<Requests>,
        host: Box<dyn Host>,
    ) -> Result<Arc<Self>, LayoutError> {
        let shared = layout.shared_info..layout.grants.end;
        let m2p = layout.m2p + (layout.ram.start - layout.m2p_first) * 8;
        for entry in 0..layout.m2p_bytes / 4096 {
            let page = memory.page(layout.m2p + entry * 4096);
            page.into_iter().for_each(|page| memory.fill_host(page.offset, 4096, 0xff));
        }
        let paging = DirectPaging::new(Arc::clone(&memory), layout.ram.clone(), owned, shared, m2p)?;
        let page = |mfn: u64| memory.page(mfn << 12).map_or(0, |page| page.offset);
        let shared_info = page(layout.shared_info);
        let grants = Grants::new(layout.grants.clone(), page(layout.grants.start));
        let domain = Domain {
            events: Mutex::new(Events::new(shared_info)),
            timers: Mutex::default(),
            grants: Mutex::new(grants),
            vcpu_info: AtomicU64::new(shared_info),
            hypercalls: Table::default(),
            host,
            stale_tlb: AtomicBool::new(false),
            work: AtomicU32::new(0),
            ended: Mutex::new(None),
            neighbours: OnceLock::new(),
            config,
            layout,
            memory,
            requests,
            paging: Mutex::new(paging),
        };
        domain.reset_shared_info(shared_info);
        domain.write_descriptors();
        Ok(Arc::new(domain))
    }

    fn reset_shared_info(&self, host: u64) {
        for vcpu in 0..shared::LEGACY_VCPUS as u64 {
            self.memory.store::<u8>(host + vcpu * shared::VCPU_INFO_SIZE + shared::UPCALL_MASK, 1);
        }
        self.write_time(host);
        let seconds = self.config.wall_seconds as u64;
        self.memory.store::<u32>(host + shared::WC_SEC, seconds as u32);
        self.memory.store::<u32>(host + shared::WC_SEC_HI, (seconds >> 32) as u32);
        self.memory.store::<u32>(host + shared::WC_NSEC, 0);
        self.memory.store::<u32>(host + shared::WC_VERSION, 2);
    }

    /// The descriptors that Xen keeps in every GDT (FIRST_RESERVED_GDT_PAGE).
    fn write_descriptors(&self) {
        let Some(page) = self.memory.page(self.layout.descriptors) else { return };
        // 32-bit code, data, 64-bit code: flat, ring 3, accessed.
        let entries = [(4, 0x00cf_fb00_0000_ffff), (5, 0x00cf_f300_0000_ffff), (6, 0x00af_fb00_0000_ffff)];
        for (index, descriptor) in entries {
            self.memory.store::<u64>(page.offset + index * 8, descriptor);
        }
    }

    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }
    pub fn paging(&self) -> MutexGuard<'_, DirectPaging> {
        lock(&self.paging)
    }
    pub fn timers(&self) -> MutexGuard<'_, Timers> {
        lock(&self.timers)
    }
    pub fn grants(&self) -> MutexGuard<'_, Grants> {
        lock(&self.grants)
    }
    pub(crate) fn events(&self) -> MutexGuard<'_, Events> {
        lock(&self.events)
    }

    /// Whether frames went to the pool by [`Later`] since the last time; to be asked with the lock of the paging held.
    pub(crate) fn take_stale_tlb(&self) -> bool {
        self.stale_tlb.swap(false, Ordering::AcqRel)
    }

    /// Host offset of the vCPU's vcpu_info.
    pub(crate) fn vcpu_info(&self) -> u64 {
        self.vcpu_info.load(Ordering::Acquire)
    }

    pub(crate) fn move_vcpu_info(&self, host: u64) {
        self.vcpu_info.store(host, Ordering::Release);
    }

    /// Asks for somebody outside the vCPU, which goes no further before that.
    pub fn ask(&self, what: u32) {
        self.work.fetch_or(what, Ordering::AcqRel);
        self.requests.post(Requests::STOP);
    }

    /// Asks for the same from another thread: a vCPU that is blocked is woken for it.
    pub fn summon(&self, what: u32) {
        self.ask(what);
        self.host.wake();
    }

    /// What was asked for since the last time.
    pub fn take_work(&self) -> u32 {
        self.work.swap(0, Ordering::AcqRel)
    }

    /// Tells the vCPU to look for events; from any thread.
    pub(crate) fn kick(&self) {
        self.requests.post(Requests::INTERRUPT);
        self.host.wake();
    }

    /// Ends the domain; the first reason stays.
    pub fn end(&self, reason: Shutdown, message: Option<String>) {
        lock(&self.ended).get_or_insert(Ended { reason, message });
        self.ask(work::SHUTDOWN);
    }

    /// How the domain ended, if it has.
    pub fn ended(&self) -> Option<Ended> {
        lock(&self.ended).clone()
    }
}

/// A domain's state beside its memory and vCPU.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Record {
    pub timers: [Option<u64>; 3],
    pub period: [u64; 2],
    pub vcpu_info: u64,
    /// Open ports and what they are bound to.
    pub ports: Vec<(u32, Channel)>,
    /// Frames that the domain owns, and the most that it may.
    pub frames: [u64; 2],
    pub grant_frames: u64,
}

impl Domain {
    /// Writes the domain's memory from outside; false, and nothing is written, if that touches a page that must not be
    /// written around its checks: a live page table or descriptors in use.
    ///
    /// # Errors
    /// When part of the range is not memory.
    pub fn write_memory(&self, start: u64, bytes: &[u8]) -> Result<bool, MemoryError> {
        // No page becomes a table meanwhile.
        let paging = self.paging();
        let last = start.saturating_add((bytes.len() as u64).saturating_sub(1));
        let checked = (start >> 12..=last >> 12).any(|mfn| {
            paging.frame(Mfn(mfn)).is_some_and(|frame| {
                frame.type_count > 0 && !matches!(frame.kind, FrameType::None | FrameType::Writable)
            })
        });
        if checked {
            return Ok(false);
        }
        self.memory.write(start, bytes).map(|()| true)
    }

    /// What the guest may notice of the domain and is not in its memory.
    pub fn save(&self) -> Record {
        // One lock after the other, none inside another.
        let ports = self.events().open_ports();
        let grant_frames = self.grants().size().0;
        let frames = {
            let paging = self.paging();
            [paging.owned_frames(), paging.maximum()]
        };
        let timers = self.timers();
        Record {
            timers: [timers.single_shot, timers.legacy, timers.poll],
            period: [timers.period, timers.next_period],
            vcpu_info: self.vcpu_info(),
            ports,
            frames,
            grant_frames,
        }
    }
}
