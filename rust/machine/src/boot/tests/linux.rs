//! bzImage and vmlinux.

use super::synth::{self, Bz, Load, elf, gzip, load};
use super::{MIB, Memory, check, map};
use crate::boot::{BootError, BootRequest, Decompression, Mode, Protocol, load as boot};

const RSI: usize = 6;

#[test]
fn a_bzimage_starts_as_its_decompressor_would_leave_it() {
    let (file, memory) = (synth::bzimage(), map(64));
    let initrd = vec![0x5A; 5000];
    let mut request = BootRequest::new(&file, &memory);
    request.command_line = "console=ttyS0 quiet";
    request.initrd = Some(&initrd);
    request.rsdp = 0xF_0000;
    let image = boot(&request).unwrap();
    check(&image, &memory);
    assert_eq!((image.protocol, image.decompressed), (Protocol::Linux64, true));
    assert_eq!((image.entry.mode, image.entry.rip), (Mode::Long64, 0x100_0003));
    let guest = Memory(&image);
    assert_eq!(guest.bytes(0x100_0000, 12), b"linux text\0\0");
    assert_eq!(guest.bytes(0x110_0000, 8), b"per-cpu\0");
    assert_eq!(guest.bytes(0x110_1000, 4), b"data");
    assert!(
        image.segments.iter().any(|s| (s.address, s.size) == (0x110_1000, 0x2000)),
        "the BSS belongs to it"
    );

    let params = image.entry.regs[RSI];
    assert_eq!(guest.bytes(params + 0x202, 4), b"HdrS");
    assert_eq!(guest.bytes(params + 0x210, 2), [0xFF, 1], "loader without a number, loaded high, no KASLR");
    assert_eq!(guest.string(guest.u32(params + 0x228).into()), "console=ttyS0 quiet");
    let (start, size) = (guest.u32(params + 0x218), guest.u32(params + 0x21C));
    assert_eq!((guest.bytes(start.into(), 5000), size), (initrd.clone(), 5000));
    assert_eq!(start % 4096, 0);
    assert_eq!(guest.u64(params + 0x70), 0xF_0000);
    let zero: Vec<u8> = vec![0; 0x3E];
    assert_eq!(guest.bytes(params + 4, 0x3C), zero[..0x3C], "no screen");
    assert_eq!(guest.bytes(params + 0x1EF, 1), [0], "the sentinel");
}

#[test]
fn the_boot_parameters_carry_the_whole_memory_map() {
    let (file, memory) = (synth::bzimage(), map(5 * 1024));
    let request = BootRequest::new(&file, &memory);
    let image = boot(&request).unwrap();
    let guest = Memory(&image);
    let params = image.entry.regs[RSI];
    let count = guest.bytes(params + 0x1E8, 1)[0];
    assert_eq!(usize::from(count), memory.regions().len());
    for (index, region) in memory.regions().iter().enumerate() {
        let at = params + 0x2D0 + index as u64 * 20;
        let found = (guest.u64(at), guest.u64(at + 8), guest.u32(at + 16));
        assert_eq!(found, (region.start, region.size, region.kind as u32));
    }
    let total: u64 = memory.regions().iter().filter(|r| r.kind as u32 == 1).map(|r| r.size).sum();
    assert!(total > 5 * 1024 * MIB - MIB);
}

#[test]
fn the_guest_decompresses_when_asked_to() {
    let (file, memory) = (synth::bzimage(), map(64));
    let mut request = BootRequest::new(&file, &memory);
    request.decompression = Decompression::Guest;
    let image = boot(&request).unwrap();
    check(&image, &memory);
    assert_eq!((image.protocol, image.decompressed), (Protocol::Linux64, false));
    assert_eq!(image.entry.rip, 0x100_0200);
    let guest = Memory(&image);
    assert_eq!(guest.u32(image.entry.regs[RSI] + 0x214), 0x100_0000, "code32_start");
    assert_eq!(guest.bytes(0x100_0000, 4), [0xCC; 4]);

    request.protocol = Protocol::Linux32;
    let image = boot(&request).unwrap();
    check(&image, &memory);
    assert_eq!((image.entry.mode, image.entry.rip), (Mode::Protected32, 0x100_0000));
}

#[test]
fn what_cannot_be_started_directly_is_decompressed_by_the_guest() {
    let memory = map(64);
    let guest_rip = |bz: &Bz| {
        let file = bz.build();
        let image = boot(&BootRequest::new(&file, &memory)).unwrap();
        check(&image, &memory);
        assert!(!image.decompressed);
        image.entry.rip
    };
    let unknown = Bz::new(b"a compression of tomorrow".to_vec());
    assert_eq!(guest_rip(&unknown), 0x100_0200);
    let other_address = Bz { pref_address: 0x20_0000, ..Bz::new(gzip(&synth::vmlinux())) };
    assert_eq!(guest_rip(&other_address), 0x20_0200);
    let not_relocatable = Bz { relocatable: false, ..unknown.clone() };
    assert_eq!(guest_rip(&not_relocatable), 0x10_0200);
    let old = Bz { version: 0x20B, ..Bz::new(gzip(&synth::vmlinux())) };
    assert_eq!(guest_rip(&old), 0x100_0000, "the 32-bit entry");
    let older = Bz { version: 0x204, ..unknown };
    assert_eq!(guest_rip(&older), 0x10_0000);
}

#[test]
fn a_32_bit_bzimage_starts_by_the_32_bit_protocol() {
    let kernel = elf(false, 0x100_0001, &[load(0x100_0000, b"text32")], &[]);
    let file = Bz { xloadflags: 0, ..Bz::new(gzip(&kernel)) }.build();
    let memory = map(2048);
    let initrd = vec![1; 100];
    let mut request = BootRequest::new(&file, &memory);
    request.initrd = Some(&initrd);
    let image = boot(&request).unwrap();
    check(&image, &memory);
    assert_eq!((image.protocol, image.decompressed), (Protocol::Linux32, true));
    assert_eq!((image.entry.mode, image.entry.rip), (Mode::Protected32, 0x100_0001));
    let initrd = Memory(&image).u32(image.entry.regs[RSI] + 0x218);
    assert!(initrd < 0x3800_0000, "{initrd:#x} is within what a 32-bit kernel maps");
    request.protocol = Protocol::Linux64;
    assert!(matches!(boot(&request), Err(BootError::Unsuitable { .. })));
}

#[test]
fn a_vmlinux_starts_with_a_setup_header_made_for_it() {
    let (file, memory) = (synth::vmlinux(), map(64));
    let image = boot(&BootRequest::new(&file, &memory)).unwrap();
    check(&image, &memory);
    assert_eq!((image.protocol, image.decompressed), (Protocol::Linux64, false));
    assert_eq!(image.entry.rip, 0x100_0003);
    let guest = Memory(&image);
    let params = image.entry.regs[RSI];
    assert_eq!(guest.bytes(params + 0x1FE, 2), [0x55, 0xAA]);
    assert_eq!(guest.bytes(params + 0x202, 6), *b"HdrS\x0F\x02");
    assert_eq!(guest.bytes(0x100_0000, 10), b"linux text");
}

#[test]
fn a_virtual_entry_point_is_translated() {
    let text = Load { vaddr: 0xFFFF_FFFF_8020_0000, paddr: 0x20_0000, bytes: b"text".to_vec(), memsz: 0x100 };
    let file = elf(true, 0xFFFF_FFFF_8020_0002, &[text], &[]);
    let memory = map(16);
    let image = boot(&BootRequest::new(&file, &memory)).unwrap();
    assert_eq!(image.entry.rip, 0x20_0002);
}

fn failure(request: &BootRequest<'_>) -> String {
    let error = boot(request).unwrap_err().to_string();
    assert!(!error.contains('\n') && error.len() > 30, "one clear sentence: {error}");
    error
}

#[test]
fn bad_companions_are_refused() {
    let (file, memory) = (synth::bzimage(), map(64));
    let request = BootRequest::new(&file, &memory);
    let long = "x".repeat(2048);
    let error = failure(&BootRequest { command_line: &long, ..request.clone() });
    assert!(error.contains("2048") && error.contains("2047"), "{error}");
    assert!(boot(&BootRequest { command_line: &long[1..], ..request.clone() }).is_ok());
    assert!(failure(&BootRequest { command_line: "a\0b", ..request.clone() }).contains("offset 1"));
    let huge = vec![0; 64 << 20];
    let error = failure(&BootRequest { initrd: Some(&huge), ..request.clone() });
    assert!(error.contains("the initrd (0x4000000 bytes) does not fit"), "{error}");
    let module = crate::boot::Module { bytes: b"x", command_line: "" };
    assert!(failure(&BootRequest { modules: vec![module], ..request }).contains("no modules"));
}

#[test]
fn bad_bzimages_are_refused() {
    let memory = map(64);
    let fails = |file: &[u8]| failure(&BootRequest::new(file, &memory));
    let good = Bz::new(gzip(&synth::vmlinux()));
    let real_mode = Bz { version: 0x0201, ..good.clone() };
    assert!(fails(&real_mode.build()).contains("2.01"));
    let low = Bz { loadflags: 0, ..good.clone() };
    assert!(fails(&low.build()).contains("real mode"));
    let too_big = Bz { init_size: 64 << 20, ..good.clone() };
    assert!(fails(&too_big.build()).contains("0x1000000 to 0x5000000"));
    let mut damaged = good.clone();
    let middle = damaged.payload.len() / 2;
    damaged.payload[middle] ^= 0xFF;
    assert!(fails(&damaged.build()).contains("gzip stream is damaged"));
    let bomb = Bz::new(gzip(&vec![0; 80 << 20]));
    assert!(fails(&bomb.build()).contains("more than"));
    let mut outside = good.build();
    outside[0x24C..0x250].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(fails(&outside).contains("the compressed kernel ends at"));
}

#[test]
fn a_bzimage_cut_off_anywhere_is_refused() {
    let (file, memory) = (synth::bzimage(), map(64));
    for length in 0..file.len() - 16 {
        let error = boot(&BootRequest::new(&file[..length], &memory));
        assert!(error.is_err(), "at {length:#x} of {:#x}", file.len());
    }
}

#[test]
fn bad_elf_files_are_refused() {
    let memory = map(64);
    let fails = |file: &[u8]| failure(&BootRequest::new(file, &memory));
    let text = load(0x100_0000, b"text");
    let at = |paddr| elf(true, paddr, &[load(paddr, b"text")], &[]);
    assert!(fails(&at(0x9_FFFE)).contains("not all RAM"), "into the EBDA");
    assert!(fails(&at(64 * MIB)).contains("not all RAM"), "beyond memory");
    assert!(fails(&at(u64::MAX - 1)).contains("not all RAM"), "wrapping");
    assert!(fails(&at(0)).contains("interrupt vectors"));
    let twice = [text.clone(), load(0x100_0002, b"text")];
    assert!(fails(&elf(true, 0x100_0000, &twice, &[])).contains("overlap at 0x1000002"));
    assert!(fails(&elf(true, 0x200_0000, std::slice::from_ref(&text), &[])).contains("entry point"));
    assert!(fails(&elf(true, 0, &[], &[])).contains("entry point"));
    let shrunk = Load { memsz: 1, ..text.clone() };
    assert!(fails(&elf(true, 0x100_0000, &[shrunk], &[])).contains("damaged"));
    let vast = Load { memsz: u64::MAX, ..text.clone() };
    assert!(fails(&elf(true, 0x100_0000, &[vast], &[])).contains("not all RAM"));
    let good = elf(true, 0x100_0000, &[text], &[]);
    let with = |at: usize, value: u8| {
        let mut file = good.clone();
        file[at] = value;
        fails(&file)
    };
    assert!(with(4, 3).contains("class is 0x3"));
    assert!(with(5, 2).contains("byte order"));
    assert!(with(16, 1).contains("type is 0x1"));
    assert!(with(18, 183).contains("machine is 0xb7"));
    assert!(with(54, 8).contains("program header is 0x8"));
    assert!(with(38, 0xFF).contains("truncated"));
    for length in 4..good.len() {
        assert!(fails(&good[..length]).contains("truncated"), "at {length}");
    }
}

#[test]
fn an_entry_beyond_four_gib_is_refused() {
    let memory = map(8 * 1024);
    let file = elf(true, 0x1_4000_0000, &[load(0x1_4000_0000, b"text")], &[]);
    let error = failure(&BootRequest::new(&file, &memory));
    assert!(error.contains("entry point"), "{error}");
}
