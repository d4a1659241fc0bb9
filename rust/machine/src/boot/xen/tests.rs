//! Tests of the domain builder: what a kernel finds at its first instruction, by the letter of Xen's interface.

use std::sync::Arc;

use trapgate_engine::{GuestMemory, Requests};
use trapgate_xen::paging::{FrameType, Mfn};
use trapgate_xen::{Domain, Layout};

use super::build::{Start, build};
use super::{Kernel, Request};
use crate::boot::BootError;
use crate::boot::tests::synth::{Load, elf, load, note};

const BASE: u64 = 0xffff_ffff_8000_0000;
const PAGE: u64 = 4096;
const PAGES: u64 = 4096;

#[derive(Debug)]
struct Nothing;

impl trapgate_xen::domain::Host for Nothing {
    fn emergency_output(&self, _: &[u8]) {}
    fn wake(&self) {}
}

fn domain() -> Arc<Domain> {
    let layout = Layout::new(7, PAGES);
    let memory = Arc::new(GuestMemory::new(&layout.regions()).unwrap());
    let config =
        trapgate_xen::domain::Config { domid: 7, handle: [1; 16], vcpus: 1, wall_seconds: 1_700_000_000 };
    Domain::new(config, layout, PAGES, memory, Arc::new(Requests::default()), Box::new(Nothing)).unwrap()
}

/// Notes that every kernel has, and more.
fn notes(more: &[(u32, u64)]) -> Vec<u8> {
    let mut notes = [note("Xen", 5, b"xen-3.0\0"), note("Xen", 8, b"generic\0")].concat();
    for (kind, value) in more {
        notes.extend(note("Xen", *kind, &value.to_le_bytes()));
    }
    notes
}

/// Two segments at a megabyte, the second of which is mostly zeros and says nothing true of its virtual address.
fn loads() -> Vec<Load> {
    let second = Load { vaddr: 0, paddr: 0x10_2008, bytes: vec![0x55; 16], memsz: 0x3000 };
    vec![load(0x10_0000, &[0xaa; 32]), second]
}

fn linux_like() -> Vec<u8> {
    elf(true, 0x10_0000, &loads(), &notes(&[(1, BASE + 0x10_0010), (3, BASE), (15, 0x80_0000_0000), (16, 1)]))
}

fn word(domain: &Domain, maddr: u64) -> u64 {
    let mut bytes = [0; 8];
    domain.memory().read(maddr, &mut bytes).unwrap();
    u64::from_le_bytes(bytes)
}

/// The page-table entry for an address, by the tables themselves.
fn entry(domain: &Domain, root: Mfn, va: u64) -> u64 {
    let mut table = root.maddr();
    for shift in [39, 30, 21] {
        let above = word(domain, table + (va >> shift & 511) * 8);
        assert_eq!(above & 0xfff, 0x067, "{va:#x} at {shift}");
        table = above & 0x000f_ffff_ffff_f000;
    }
    word(domain, table + (va >> 12 & 511) * 8)
}

fn built(kernel: &[u8], initrd: Option<&[u8]>) -> (Arc<Domain>, Start) {
    let domain = domain();
    let start = build(&Request { kernel, initrd, command_line: "console=hvc0" }, &domain, PAGES).unwrap();
    (domain, start)
}

#[test]
fn a_kernel_like_linux_finds_everything_in_its_place() {
    let (domain, start) = built(&linux_like(), Some(&[7; 5000]));
    let first = domain.layout.ram.start;
    let info = start.start_info;
    assert_eq!((start.rip, info), (BASE + 0x10_0010, BASE + 0x10_6000));
    let field = |offset: u64| {
        let page = entry(&domain, start.root, info) & 0x000f_ffff_ffff_f000;
        word(&domain, page + offset)
    };
    assert_eq!(field(0x20), PAGES);
    assert_eq!(field(0x28), domain.layout.shared_info * PAGE);
    // SIF_MOD_START_PFN and SIF_VIRT_P2M_4TOOLS; never privileged.
    assert_eq!(field(0x30) as u32, 24);
    assert_eq!((field(0x38), field(0x48)), (start.store.0, start.console.0));
    assert_eq!((field(0x40) as u32, field(0x50) as u32), (start.ports.store, start.ports.console));
    assert_eq!(field(0x58), BASE + 0x10_9000);
    assert_eq!(field(0x68), 0x80_0000_0000);
    assert_eq!((field(0x70), field(0x78)), (0x400, 5000));
    // The ramdisk is at its PFN and is not mapped.
    assert_eq!(word(&domain, (first + 0x400) * PAGE), 0x0707_0707_0707_0707);
    // Stack behind the tables.
    let tables = field(0x60);
    assert_eq!(start.rsp, BASE + 0x10_9000 + (tables + 1) * PAGE);
}

#[test]
fn segments_go_by_physical_address_and_end_in_zeros() {
    let (domain, _) = built(&linux_like(), None);
    let at = |paddr: u64| word(&domain, domain.layout.ram.start * PAGE + paddr);
    assert_eq!(at(0x10_0000), 0xaaaa_aaaa_aaaa_aaaa);
    assert_eq!(at(0x10_2008), 0x5555_5555_5555_5555);
    assert_eq!((at(0), at(0x10_2018)), (0, 0));
}

#[test]
fn page_tables_are_mapped_read_only_and_the_root_is_pinned() {
    let (domain, start) = built(&linux_like(), None);
    let first = domain.layout.ram.start;
    let tables = 0x109..0x109 + (start.rsp - BASE) / PAGE - 1 - 0x109;
    for pfn in 0..(start.rsp - BASE) / PAGE {
        let flags = if tables.contains(&pfn) { 0x021 } else { 0x023 };
        assert_eq!(
            entry(&domain, start.root, BASE + pfn * PAGE),
            (first + pfn) << 12 | flags,
            "PFN {pfn:#x}"
        );
    }
    let root = domain.paging().frame(start.root).unwrap();
    assert_eq!((root.kind, root.pinned, root.type_count), (FrameType::L4, true, 2));
    // The builder's root is unpinned once by the kernel.
    assert!(domain.paging().unpin(&mut Forgetful, start.root).is_ok());
    assert!(domain.paging().unpin(&mut Forgetful, start.root).is_err());
}

struct Forgetful;

impl trapgate_xen::paging::TlbControl for Forgetful {
    fn flush_all(&mut self) {}
    fn flush_page(&mut self, _: u64) {}
    fn protect(&mut self, _: u64) {}
}

#[test]
fn p2m_is_where_the_note_asks_for_it() {
    let (domain, start) = built(&linux_like(), None);
    let first = domain.layout.ram.start;
    for page in 0..PAGES * 8 / PAGE {
        let mapped = entry(&domain, start.root, 0x80_0000_0000 + page * PAGE);
        assert_eq!(mapped & 0xfff, 0x023);
        assert_eq!(word(&domain, mapped & 0x000f_ffff_ffff_f000), first + page * 512);
    }
}

#[test]
fn a_kernel_at_zero_has_its_p2m_inside_the_mapping() {
    let kernel = elf(true, 0, &[load(0, &[0x90; 64])], &notes(&[(1, 0), (3, 0)]));
    let (domain, start) = built(&kernel, Some(&[9; 100]));
    // Image, ramdisk, P2M of eight pages, start_info.
    assert_eq!((start.rip, start.start_info), (0, 10 * PAGE));
    let info = entry(&domain, start.root, start.start_info) & 0x000f_ffff_ffff_f000;
    assert_eq!((word(&domain, info + 0x68), word(&domain, info + 0x70)), (2 * PAGE, PAGE));
    assert_eq!(word(&domain, info + 0x30) as u32, 16);
    assert_eq!(word(&domain, info + 0x480), 0);
}

#[test]
fn a_hypercall_page_is_filled_where_the_note_asks_for_it() {
    let notes = notes(&[(1, BASE + 0x10_0000), (3, BASE), (2, BASE + 0x10_1000)]);
    let kernel = elf(true, 0, &[load(0x10_0000, &[0; 0x2000])], &notes);
    let (domain, _) = built(&kernel, None);
    let page = (domain.layout.ram.start + 0x101) * PAGE;
    // push rcx; push r11; mov eax, 17; syscall
    assert_eq!(word(&domain, page + 17 * 32), u64::from_le_bytes([0x51, 0x41, 0x53, 0xb8, 17, 0, 0, 0]));
}

#[test]
fn what_is_no_paravirtual_kernel_is_refused_with_its_reason() {
    let refused = |file: &[u8]| match Kernel::parse(file) {
        Err(BootError::NotParavirtual { why }) => why,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(&elf(true, 0x10_0000, &loads(), &[])), "it has no Xen notes");
    assert_eq!(refused(&elf(false, 0x10_0000, &loads(), &notes(&[]))), "it is a 32-bit kernel");
    let pvh = note("Xen", 18, &0x10_0000u32.to_le_bytes());
    assert_eq!(refused(&elf(true, 0x10_0000, &loads(), &pvh)), "its only entry is that of PVH");
    let other =
        [note("Xen", 5, b"xen-4.0\0"), note("Xen", 8, b"generic\0"), note("Xen", 1, &BASE.to_le_bytes())];
    assert_eq!(
        refused(&elf(true, 0, &loads(), &other.concat())),
        "its notes ask for another interface than xen-3.0"
    );
}

#[test]
fn wild_notes_are_errors() {
    for more in [
        // The entry outside of the image, HYPERCALL_PAGE and INIT_P2M in wrong places.
        vec![(1, BASE), (3, BASE)],
        vec![(1, u64::MAX), (3, BASE)],
        vec![(1, BASE + 0x10_0000), (3, BASE), (2, BASE + 0x10_0010)],
        vec![(1, BASE + 0x10_0000), (3, BASE), (15, 0x123)],
        vec![(1, BASE + 0x10_0000), (3, BASE), (15, u64::MAX - 0xfff)],
        vec![(1, BASE + 0x10_0000), (3, BASE), (4, 0x20_0000)],
        vec![(1, BASE + 0x10_0000), (3, u64::MAX - 0xfff)],
    ] {
        let kernel = elf(true, 0x10_0000, &loads(), &notes(&more));
        assert!(Kernel::parse(&kernel).is_err(), "{more:x?}");
    }
}

#[test]
fn a_domain_that_is_too_small_is_told_so() {
    let domain = domain();
    let request = Request { kernel: &linux_like(), initrd: Some(&[1; 16 << 20]), command_line: "" };
    let error = build(&request, &domain, PAGES).unwrap_err();
    assert!(error.to_string().contains("give it more"), "{error}");
}
