//! Lays a para-virtual kernel out in the memory of its domain.

use trapgate_xen::domain::{Domain, Layout};
use trapgate_xen::hypercall;
use trapgate_xen::paging::Mfn;

use super::notes::Kernel;
use super::{Request, unpack};
use crate::boot::BootError;
use trapgate_engine::GuestMemory;

const PAGE: u64 = 4096;
/// Entries of a page table.
const ENTRIES: u64 = 512;

/// Page-table entries: present, writable, user, accessed, dirty.
const TABLE: u64 = 0x067;
const LEAF: u64 = 0x023;
/// A page table is never mapped writable.
const LEAF_READ_ONLY: u64 = 0x021;

/// Room that a kernel may count on behind its boot stack, in pages, and what the mapping's end is rounded to.
const SLACK_PAGES: u64 = 128;
const MAPPING_ALIGN: u64 = 4 << 20;

/// `start_info` flags.
const SIF_MOD_START_PFN: u32 = 8;
const SIF_VIRT_P2M_4TOOLS: u32 = 16;

/// Ports that the builder leaves for the guest, as start_info names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    pub store: u32,
    pub console: u32,
}

/// Where the first instruction finds itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    pub rip: u64,
    pub rsp: u64,
    /// Linear address of start_info, which RSI holds.
    pub start_info: u64,
    pub root: Mfn,
    pub store: Mfn,
    pub console: Mfn,
    pub ports: Ports,
}

/// A run of frames, by PFN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    pfn: u64,
    count: u64,
}

/// Where everything is, by PFN.
#[derive(Debug)]
struct Plan {
    virt_base: u64,
    ramdisk: Option<Run>,
    p2m: Run,
    /// Tables of a mapping of P2M that is apart from the kernel's.
    p2m_tables: Option<Run>,
    start_info: u64,
    store: u64,
    console: u64,
    tables: Run,
    stack: u64,
    /// First address behind the first mapping.
    mapping_end: u64,
    /// First frame that is free.
    free: u64,
}

/// Page tables that map a range: of the levels 4 to 1.
fn tables_for(start: u64, end: u64) -> [u64; 4] {
    [48, 39, 30, 21].map(|shift| if shift == 48 { 1 } else { ((end - 1) >> shift) - (start >> shift) + 1 })
}

impl Plan {
    fn new(kernel: &Kernel<'_>, ramdisk: u64, pages: u64) -> Result<Plan, BootError> {
        let mut next = kernel.frames()?.end;
        let mut take = |count: u64| {
            let run = Run { pfn: next, count };
            next += count;
            run
        };
        let list_pages = (pages * 8).div_ceil(PAGE);
        let ramdisk_pages = ramdisk.div_ceil(PAGE);
        let early = (ramdisk > 0 && !kernel.mod_start_pfn).then(|| take(ramdisk_pages));
        let early_p2m = kernel.init_p2m.is_none().then(|| take(list_pages));
        let [start_info, store, console] = std::array::from_fn(|_| take(1).pfn);
        let address = |pfn: u64| kernel.virt_base.checked_add(pfn * PAGE).ok_or(too_large(kernel, pages));
        let behind = address(console + 1)?;
        // The tables lie in what they map: as many as map themselves, the stack and the slack.
        let mut count = 1 + SLACK_PAGES;
        let (tables, mapping_end) = loop {
            let end = behind.checked_add(count * PAGE).ok_or(too_large(kernel, pages))?;
            let end = end.checked_next_multiple_of(MAPPING_ALIGN).ok_or(too_large(kernel, pages))?;
            let tables = tables_for(kernel.virt_base, end).iter().sum::<u64>();
            if behind + (tables + 1 + SLACK_PAGES) * PAGE <= end {
                break (tables, end);
            }
            count = tables + 1 + SLACK_PAGES;
        };
        let tables = take(tables);
        let stack = take(1).pfn;
        next = (mapping_end - kernel.virt_base) / PAGE;
        let mut take = |count: u64| {
            let run = Run { pfn: next, count };
            next += count;
            run
        };
        let late = (ramdisk > 0 && kernel.mod_start_pfn).then(|| take(ramdisk_pages));
        let (p2m, p2m_tables) = match (early_p2m, kernel.init_p2m) {
            (Some(run), _) => (run, None),
            (None, at) => {
                let start = at.unwrap_or(0);
                let run = take(list_pages);
                let tables = tables_for(start, start + list_pages * PAGE)[1..].iter().sum();
                (run, Some(take(tables)))
            }
        };
        let plan = Plan {
            virt_base: kernel.virt_base,
            ramdisk: early.or(late),
            p2m,
            p2m_tables,
            start_info,
            store,
            console,
            tables,
            stack,
            mapping_end,
            free: next,
        };
        if plan.free > pages { Err(too_large(kernel, pages)) } else { Ok(plan) }
    }

    fn address(&self, pfn: u64) -> u64 {
        self.virt_base + pfn * PAGE
    }
}

fn too_large(kernel: &Kernel<'_>, pages: u64) -> BootError {
    let end = kernel.frames().map_or(0, |frames| frames.end);
    BootError::DomainTooSmall { pages, kernel: end }
}

/// Writes to the frames of a domain by PFN, before its first instruction: PFN and MFN still run side by side.
struct Frames<'a> {
    memory: &'a GuestMemory,
    layout: &'a Layout,
}

impl Frames<'_> {
    fn mfn(&self, pfn: u64) -> u64 {
        self.layout.ram.start + pfn
    }

    fn write(&self, pfn: u64, offset: u64, bytes: &[u8]) -> Result<(), BootError> {
        self.memory.write(self.mfn(pfn) * PAGE + offset, bytes).map_err(|_| BootError::DomainTooSmall {
            pages: self.layout.ram.end - self.layout.ram.start,
            kernel: pfn,
        })
    }

    fn word(&self, pfn: u64, offset: u64, value: u64) -> Result<(), BootError> {
        self.write(pfn, offset, &value.to_le_bytes())
    }

    /// Maps `count` frames at `address` in tables that lie in `tables` in the order of their levels, those of one level in the
    /// order of addresses; `root` is the L4 and `entry` gives the leaf for a PFN.
    fn map(
        &self,
        root: u64,
        tables: Run,
        address: u64,
        first: u64,
        count: u64,
        entry: impl Fn(u64) -> u64,
    ) -> Result<(), BootError> {
        let end = address + count * PAGE;
        let [_, level3, level2, _] = tables_for(address, end);
        let starts = [tables.pfn, tables.pfn + level3, tables.pfn + level3 + level2];
        // Of each table below the root, the entry above it.
        for (shift, above, below) in [
            (39, None, starts[0]),
            (30, Some((39, starts[0])), starts[1]),
            (21, Some((30, starts[1])), starts[2]),
        ] {
            for n in 0..=((end - 1) >> shift) - (address >> shift) {
                let table_address = ((address >> shift) + n) << shift;
                let index = table_address >> shift & (ENTRIES - 1);
                let parent = match above {
                    None => root,
                    Some((up, start)) => start + (table_address >> up) - (address >> up),
                };
                self.word(parent, index * 8, (self.mfn(below + n) * PAGE) | TABLE)?;
            }
        }
        for n in 0..count {
            let at = address + n * PAGE;
            let table = starts[2] + (at >> 21) - (address >> 21);
            let pfn = first + n;
            self.word(table, (at >> 12 & (ENTRIES - 1)) * 8, (self.mfn(pfn) * PAGE) | entry(pfn))?;
        }
        Ok(())
    }
}

/// Loads a kernel into a new domain of `pages` frames, and says how its vCPU begins. The domain's page tables are pinned and
/// installed.
///
/// # Errors
/// When the file is no para-virtual kernel, is damaged, or does not fit.
pub fn build(request: &Request<'_>, domain: &Domain, pages: u64) -> Result<Start, BootError> {
    let file = unpack(request.kernel, pages * PAGE)?;
    let kernel = Kernel::parse(&file)?;
    let ramdisk = request.initrd.unwrap_or(&[]);
    let plan = Plan::new(&kernel, ramdisk.len() as u64, pages)?;
    let frames = Frames { memory: domain.memory(), layout: &domain.layout };
    load_segments(&kernel, &frames)?;
    if let Some(run) = plan.ramdisk {
        frames.write(run.pfn, 0, ramdisk)?;
    }
    let list: Vec<u8> = (0..pages).flat_map(|pfn| frames.mfn(pfn).to_le_bytes()).collect();
    frames.write(plan.p2m.pfn, 0, &list)?;
    // "Disconnected", until a console driver says otherwise (xen/include/public/io/console.h).
    frames.write(plan.console, 0xc10, &[1])?;
    let is_table = |pfn: u64| (plan.tables.pfn..plan.tables.pfn + plan.tables.count).contains(&pfn);
    let root = plan.tables.pfn;
    let tables = Run { pfn: root + 1, count: plan.tables.count - 1 };
    let mapped = (plan.mapping_end - plan.virt_base) / PAGE;
    let leaf = |pfn: u64| if is_table(pfn) { LEAF_READ_ONLY } else { LEAF };
    frames.map(root, tables, plan.virt_base, 0, mapped, leaf)?;
    if let (Some(tables), Some(address)) = (plan.p2m_tables, kernel.init_p2m) {
        frames.map(root, tables, address, plan.p2m.pfn, plan.p2m.count, |_| LEAF)?;
    }
    let ports = open_ports(domain, &plan, &frames)?;
    let info = start_info(request, &kernel, &plan, &frames, ports, pages)?;
    frames.write(plan.start_info, 0, &info)?;
    let root = Mfn(frames.mfn(root));
    install(domain, root)?;
    hold_rings(domain, [Mfn(frames.mfn(plan.store)), Mfn(frames.mfn(plan.console))])?;
    Ok(Start {
        rip: kernel.entry,
        rsp: plan.address(plan.stack + 1),
        start_info: plan.address(plan.start_info),
        root,
        store: Mfn(frames.mfn(plan.store)),
        console: Mfn(frames.mfn(plan.console)),
        ports,
    })
}

/// By physical address, never by virtual: Linux's per-CPU segment has the virtual address 0.
fn load_segments(kernel: &Kernel<'_>, frames: &Frames<'_>) -> Result<(), BootError> {
    for header in kernel.elf.loads() {
        let offset = kernel.offset(header.paddr)?;
        let bytes = &kernel.file[super::super::elf::Elf::file_range(header)];
        frames.write(offset / PAGE, offset % PAGE, bytes)?;
    }
    if let Some(address) = kernel.hypercall_page {
        let offset = address - kernel.virt_base;
        frames.write(offset / PAGE, 0, &hypercall::page::stubs())?;
    }
    Ok(())
}

/// The ports of XenStore and console, and the grants by which real back-ends would reach their pages.
fn open_ports(domain: &Domain, plan: &Plan, frames: &Frames<'_>) -> Result<Ports, BootError> {
    let open = |name| {
        let port = domain.allocate_unbound(0)?;
        domain.bind_backend(port, 0, name)?;
        domain.keep_port(port);
        Ok::<u32, trapgate_xen::Errno>(port)
    };
    let ports = open(1).and_then(|store| Ok(Ports { store, console: open(2)? }));
    let ports = ports.map_err(|error| BootError::Domain { what: "the first event channels", error })?;
    let grant = |pfn: u64| 1 | frames.mfn(pfn) << 32;
    for (reference, pfn) in [(0u64, plan.console), (1, plan.store)] {
        let at = domain.layout.grants.start * PAGE + reference * 8;
        let written = domain.memory().write(at, &grant(pfn).to_le_bytes());
        debug_assert!(written.is_ok());
    }
    Ok(ports)
}

fn install(domain: &Domain, root: Mfn) -> Result<(), BootError> {
    let mut paging = domain.paging();
    let done = paging.pin(&mut Nobody, 4, root).and_then(|()| paging.set_kernel_root(&mut Nobody, 0, root));
    done.map_err(|error| BootError::Domain { what: "the kernel's first page tables", error })
}

/// The pages that back-ends write to must never become page tables.
fn hold_rings(domain: &Domain, pages: [Mfn; 2]) -> Result<(), BootError> {
    let mut paging = domain.paging();
    let held = pages.into_iter().try_for_each(|page| paging.hold_writable(&mut Nobody, page));
    held.map_err(|error| BootError::Domain { what: "the pages of XenStore and console", error })
}

/// No vCPU has run yet.
struct Nobody;

impl trapgate_xen::paging::TlbControl for Nobody {
    fn flush_all(&mut self) {}
    fn flush_page(&mut self, _: u64) {}
    fn protect(&mut self, _: u64) {}
}

/// The start_info page (xen/include/public/xen.h).
fn start_info(
    request: &Request<'_>,
    kernel: &Kernel<'_>,
    plan: &Plan,
    frames: &Frames<'_>,
    ports: Ports,
    pages: u64,
) -> Result<Vec<u8>, BootError> {
    let mut page = vec![0u8; 1168];
    let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"xen-3.0-x86_64");
    let mut flags = SIF_VIRT_P2M_4TOOLS;
    let mut module = 0;
    if let Some(run) = plan.ramdisk {
        module = if kernel.mod_start_pfn { run.pfn } else { plan.address(run.pfn) };
        flags |= if kernel.mod_start_pfn { SIF_MOD_START_PFN } else { 0 };
    }
    let p2m = kernel.init_p2m.unwrap_or_else(|| plan.address(plan.p2m.pfn));
    put(0x020, &pages.to_le_bytes());
    put(0x028, &(frames.layout.shared_info * PAGE).to_le_bytes());
    put(0x030, &flags.to_le_bytes());
    put(0x038, &frames.mfn(plan.store).to_le_bytes());
    put(0x040, &ports.store.to_le_bytes());
    put(0x048, &frames.mfn(plan.console).to_le_bytes());
    put(0x050, &ports.console.to_le_bytes());
    put(0x058, &plan.address(plan.tables.pfn).to_le_bytes());
    put(0x060, &plan.tables.count.to_le_bytes());
    put(0x068, &p2m.to_le_bytes());
    put(0x070, &module.to_le_bytes());
    put(0x078, &request.initrd.map_or(0, |bytes| bytes.len() as u64).to_le_bytes());
    put(0x080, &request.command_line()?);
    if let Some(tables) = plan.p2m_tables {
        put(0x480, &plan.p2m.pfn.to_le_bytes());
        put(0x488, &(plan.p2m.count + tables.count).to_le_bytes());
    }
    Ok(page)
}
