//! PVH and multiboot.

use super::synth::{Load, elf, load, multiboot_header, note};
use super::{Memory, check, map};
use crate::boot::{BootError, BootRequest, Mode, Module, Protocol, load as boot};

const RAX: usize = 0;
const RBX: usize = 3;

fn pvh_note(entry: u32) -> Vec<u8> {
    [note("Xen", 6, b"other"), note("Xen", 18, &u64::from(entry).to_le_bytes())].concat()
}

#[test]
fn a_pvh_kernel_finds_its_start_information() {
    let file = elf(true, 0x10_0000, &[load(0x10_0000, b"kernel")], &pvh_note(0x10_0004));
    let memory = map(64);
    let mut request = BootRequest::new(&file, &memory);
    request.command_line = "a b c";
    request.initrd = Some(b"first");
    request.modules = vec![Module { bytes: b"second one", command_line: "two" }];
    request.rsdp = 0xF_0000;
    let image = boot(&request).unwrap();
    check(&image, &memory);
    assert_eq!(image.protocol, Protocol::Pvh);
    assert_eq!((image.entry.mode, image.entry.rip), (Mode::Protected32, 0x10_0004));
    let guest = Memory(&image);
    let start = image.entry.regs[RBX];
    let words: Vec<u32> = (0..4).map(|index| guest.u32(start + 4 * index)).collect();
    assert_eq!(words, [0x336E_C578, 1, 0, 2]);
    assert_eq!(guest.string(guest.u64(start + 24)), "a b c");
    assert_eq!(guest.u64(start + 32), 0xF_0000);
    let modules = guest.u64(start + 16);
    for (index, (bytes, line)) in [(&b"first"[..], ""), (b"second one", "two")].into_iter().enumerate() {
        let at = modules + 32 * index as u64;
        assert_eq!(guest.bytes(guest.u64(at), bytes.len()), bytes);
        assert_eq!(guest.u64(at + 8), bytes.len() as u64);
        assert_eq!(guest.string(guest.u64(at + 16)), line);
    }
    let map = guest.u64(start + 40);
    assert_eq!(guest.u32(start + 48) as usize, memory.regions().len());
    for (index, region) in memory.regions().iter().enumerate() {
        let at = map + 24 * index as u64;
        let found = (guest.u64(at), guest.u64(at + 8), guest.u64(at + 16));
        assert_eq!(found, (region.start, region.size, u64::from(region.kind as u32)));
    }
}

#[test]
fn a_linux_kernel_prefers_its_own_protocol_and_pvh_can_be_asked_for() {
    let notes = [pvh_note(0x10_0004), note("Linux", 0x100, b"")].concat();
    let file = elf(true, 0x10_0000, &[load(0x10_0000, b"kernel")], &notes);
    let memory = map(64);
    let mut request = BootRequest::new(&file, &memory);
    assert_eq!(boot(&request).unwrap().protocol, Protocol::Linux64);
    request.protocol = Protocol::Pvh;
    assert_eq!(boot(&request).unwrap().protocol, Protocol::Pvh);
    request.protocol = Protocol::Linux32;
    assert!(matches!(boot(&request), Err(BootError::Unsuitable { .. })));
}

#[test]
fn a_kernel_that_only_a_hypervisor_can_start_is_refused() {
    let notes = [note("Xen", 1, &0x10_0000u64.to_le_bytes()), note("Xen", 5, b"xen-3.0\0")].concat();
    let loads = [load(0x10_0000, b"kernel")];
    let memory = map(64);
    let file = elf(true, 0x10_0000, &loads, &notes);
    let error = boot(&BootRequest::new(&file, &memory)).unwrap_err();
    assert!(matches!(error, BootError::OnlyParavirtual));
    assert!(error.to_string().contains("`para` mode"));
    // With an entry of its own for hardware it is as good as any other.
    for more in [note("Linux", 0x100, b""), note("Xen", 18, &0x10_0004u64.to_le_bytes())] {
        let file = elf(true, 0x10_0000, &loads, &[notes.clone(), more].concat());
        assert!(boot(&BootRequest::new(&file, &memory)).is_ok());
    }
}

#[test]
fn a_pvh_entry_outside_the_kernel_is_refused() {
    let file = elf(false, 0x10_0000, &[load(0x10_0000, b"kernel")], &pvh_note(0x10_0006));
    let error = boot(&BootRequest::new(&file, &map(64))).unwrap_err().to_string();
    assert!(error.contains("PVH entry point"), "{error}");
}

#[test]
fn a_multiboot_elf_finds_its_information() {
    // Linked high and loaded low, as such kernels often are: the entry point is virtual.
    let bytes = [&multiboot_header(3, None)[..], b"kernel"].concat();
    let text = Load { vaddr: 0xC010_0000, paddr: 0x10_0000, bytes, memsz: 0x3000 };
    let file = elf(false, 0xC010_000C, &[text], &[]);
    let memory = map(64);
    let mut request = BootRequest::new(&file, &memory);
    request.command_line = "go";
    request.modules = vec![
        Module { bytes: b"first", command_line: "one" },
        Module { bytes: b"second", command_line: "two" },
    ];
    let image = boot(&request).unwrap();
    check(&image, &memory);
    assert_eq!(image.protocol, Protocol::Multiboot);
    assert_eq!((image.entry.mode, image.entry.rip), (Mode::Protected32, 0x10_000C));
    assert_eq!(image.entry.regs[RAX], 0x2BAD_B002);
    let guest = Memory(&image);
    let info = image.entry.regs[RBX];
    assert_eq!(guest.u32(info), 1 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9);
    assert_eq!(guest.u32(info + 4), 639);
    assert_eq!(u64::from(guest.u32(info + 8)), (memory.low_usable_end() >> 10) - 1024);
    assert_eq!(guest.string(guest.u32(info + 16).into()), "kernel go");
    assert_eq!(guest.u32(info + 20), 2);
    let modules = u64::from(guest.u32(info + 24));
    assert_eq!(guest.u32(modules), 0x10_3000, "the first page after the kernel");
    assert_eq!(guest.u32(modules + 4), 0x10_3005);
    assert_eq!(guest.string(guest.u32(modules + 8).into()), "one");
    assert_eq!(guest.bytes(guest.u32(modules + 16).into(), 6), b"second");
    let (size, map) = (guest.u32(info + 44), u64::from(guest.u32(info + 48)));
    assert_eq!(size as usize, 24 * memory.regions().len());
    assert_eq!((guest.u32(map), guest.u64(map + 4), guest.u64(map + 12)), (20, 0, 0x9_FC00));
}

/// A flat image: eight bytes before the header, which says to load from there to `load_end`, with a BSS to `bss_end`.
fn flat(load_end: u32, bss_end: u32, entry: u32) -> Vec<u8> {
    let header = multiboot_header(1 << 16, Some([0x20_0008, 0x20_0000, load_end, bss_end, entry]));
    [b"prologue", &header[..], b"flat kernel and its tail"].concat()
}

#[test]
fn a_flat_multiboot_image_goes_where_its_header_says() {
    let file = flat(0x20_0034, 0x20_8000, 0x20_0028);
    let memory = map(64);
    let image = boot(&BootRequest::new(&file, &memory)).unwrap();
    check(&image, &memory);
    assert_eq!(image.entry.rip, 0x20_0028);
    let guest = Memory(&image);
    assert_eq!(guest.bytes(0x20_0000, 8), b"prologue");
    assert_eq!(guest.bytes(0x20_0028, 14), b"flat kernel \0\0");
    assert!(image.segments.iter().any(|s| (s.address, s.size) == (0x20_0000, 0x8000)));
    // Zero means to the file's end, and no BSS.
    let file = flat(0, 0, 0x20_0028);
    let image = boot(&BootRequest::new(&file, &memory)).unwrap();
    assert_eq!(Memory(&image).bytes(0x20_0028, 24), b"flat kernel and its tail");
}

#[test]
fn bad_multiboot_kernels_are_refused() {
    let memory = map(64);
    let fails = |file: &[u8]| boot(&BootRequest::new(file, &memory)).unwrap_err().to_string();
    assert!(fails(&flat(0x30_0000, 0, 0x20_0028)).contains("truncated"));
    assert!(fails(&flat(0x1F_0000, 0, 0x20_0028)).contains("load end"));
    assert!(fails(&flat(0, 0, 0x30_0000)).contains("entry point"));
    assert!(fails(&flat(0, 0xFFFF_F000, 0x20_0028)).contains("not all RAM"));
    assert!(fails(&multiboot_header(1 << 2, None)).contains("features 0x4"));
    assert!(fails(&multiboot_header(1 << 16, None)).contains("multiboot header ends at"));
    assert!(fails(&multiboot_header(0, None)).contains("not ELF"));
    let beside = multiboot_header(1 << 16, Some([0x10_0000, 0x20_0000, 0, 0, 0x20_0000]));
    assert!(fails(&beside).contains("load address"));
    let mut bad_sum = multiboot_header(1 << 16, Some([0x20_0000, 0x20_0000, 0, 0, 0x20_0000]));
    bad_sum[8] ^= 1;
    assert!(fails(&bad_sum).contains("not a kernel"));
}

#[test]
fn protocols_that_the_file_does_not_have_are_refused() {
    let memory = map(64);
    let plain = elf(true, 0x10_0000, &[load(0x10_0000, b"kernel")], &[]);
    let image = flat(0, 0, 0x20_0028);
    let bz = super::synth::bzimage();
    for (file, protocol) in [
        (&plain, Protocol::Pvh),
        (&plain, Protocol::Multiboot),
        (&image, Protocol::Linux64),
        (&image, Protocol::Pvh),
        (&bz, Protocol::Pvh),
        (&bz, Protocol::Multiboot),
    ] {
        let error = boot(&BootRequest { protocol, ..BootRequest::new(file, &memory) }).unwrap_err();
        assert!(matches!(error, BootError::Unsuitable { .. }), "{protocol}: {error}");
    }
}

#[test]
fn protocols_have_names() {
    for name in ["auto", "linux64", "linux32", "pvh", "multiboot"] {
        assert_eq!(name.parse::<Protocol>().unwrap().to_string(), name);
    }
    assert!("grub".parse::<Protocol>().unwrap_err().to_string().contains("choose"));
}
