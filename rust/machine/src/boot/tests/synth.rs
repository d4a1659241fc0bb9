//! Small kernels of every format.

use std::io::Write;

/// A segment to be put into an ELF file.
#[derive(Debug, Clone)]
pub(in crate::boot) struct Load {
    pub(in crate::boot) vaddr: u64,
    pub(in crate::boot) paddr: u64,
    pub(in crate::boot) bytes: Vec<u8>,
    pub(in crate::boot) memsz: u64,
}

pub(in crate::boot) fn load(paddr: u64, bytes: &[u8]) -> Load {
    Load { vaddr: paddr, paddr, bytes: bytes.to_vec(), memsz: bytes.len() as u64 }
}

/// One ELF note, padded to words.
pub(in crate::boot) fn note(owner: &str, kind: u32, descriptor: &[u8]) -> Vec<u8> {
    let mut note = Vec::new();
    let name = [owner.as_bytes(), b"\0"].concat();
    for word in [name.len() as u32, descriptor.len() as u32, kind] {
        note.extend(word.to_le_bytes());
    }
    for part in [&name[..], descriptor] {
        note.extend(part);
        note.resize(note.len().next_multiple_of(4), 0);
    }
    note
}

/// An ELF executable; with `notes`, a note segment comes last.
pub(in crate::boot) fn elf(is_64: bool, entry: u64, loads: &[Load], notes: &[u8]) -> Vec<u8> {
    let count = loads.len() + usize::from(!notes.is_empty());
    let (header_size, entry_size) = if is_64 { (64, 56) } else { (52, 32) };
    let mut file = vec![0x7F, b'E', b'L', b'F', 1 + u8::from(is_64), 1, 1];
    file.resize(16, 0);
    let word = |file: &mut Vec<u8>, value: u64| match is_64 {
        true => file.extend(value.to_le_bytes()),
        false => file.extend((value as u32).to_le_bytes()),
    };
    file.extend([2, 0, if is_64 { 62 } else { 3 }, 0, 1, 0, 0, 0]);
    word(&mut file, entry);
    word(&mut file, header_size as u64);
    word(&mut file, 0);
    file.extend([0; 4]);
    for half in [header_size as u16, entry_size as u16, count as u16, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    assert_eq!(file.len(), header_size);
    let mut offset = (header_size + count * entry_size) as u64;
    let notes_load = Load { vaddr: 0, paddr: 0, bytes: notes.to_vec(), memsz: notes.len() as u64 };
    let all = loads.iter().map(|l| (1u32, l)).chain((!notes.is_empty()).then_some((4, &notes_load)));
    let mut contents: Vec<u8> = Vec::new();
    for (kind, load) in all {
        let size = load.bytes.len() as u64;
        file.extend(kind.to_le_bytes());
        if is_64 {
            file.extend([7, 0, 0, 0]);
        }
        for value in [offset, load.vaddr, load.paddr, size, load.memsz] {
            word(&mut file, value);
        }
        if !is_64 {
            file.extend([7, 0, 0, 0]);
        }
        word(&mut file, 4);
        contents.extend(&load.bytes);
        offset += size;
    }
    file.extend(contents);
    file
}

/// A bzImage around a payload.
#[derive(Debug, Clone)]
pub(super) struct Bz {
    pub(super) version: u16,
    pub(super) loadflags: u8,
    pub(super) xloadflags: u16,
    pub(super) payload: Vec<u8>,
    pub(super) pref_address: u64,
    pub(super) init_size: u32,
    pub(super) relocatable: bool,
}

/// Where the payload lies in the protected-mode code.
pub(super) const PAYLOAD_OFFSET: usize = 0x300;

impl Bz {
    pub(super) fn new(payload: Vec<u8>) -> Self {
        Self {
            version: 0x20F,
            loadflags: 1,
            xloadflags: 1,
            payload,
            pref_address: 0x100_0000,
            init_size: 0x20_0000,
            relocatable: true,
        }
    }

    pub(super) fn build(&self) -> Vec<u8> {
        const SECTORS: u8 = 3;
        let mut file = vec![0; (usize::from(SECTORS) + 1) * 512];
        let mut code = vec![0xCC; PAYLOAD_OFFSET];
        code.extend(&self.payload);
        code.resize(code.len().next_multiple_of(16), 0);
        let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x1F1, &[SECTORS]);
        put(0x1F4, &(code.len() as u32 / 16).to_le_bytes());
        put(0x1FE, &[0x55, 0xAA, 0xEB, 0x6A]);
        put(0x202, b"HdrS");
        put(0x206, &self.version.to_le_bytes());
        put(0x211, &[self.loadflags]);
        put(0x214, &0x10_0000u32.to_le_bytes());
        put(0x22C, &0x7FFF_FFFFu32.to_le_bytes());
        put(0x230, &0x20_0000u32.to_le_bytes());
        put(0x234, &[u8::from(self.relocatable)]);
        put(0x236, &self.xloadflags.to_le_bytes());
        put(0x238, &2047u32.to_le_bytes());
        put(0x248, &(PAYLOAD_OFFSET as u32).to_le_bytes());
        put(0x24C, &(self.payload.len() as u32).to_le_bytes());
        put(0x258, &self.pref_address.to_le_bytes());
        put(0x260, &self.init_size.to_le_bytes());
        file.extend(code);
        file
    }
}

pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// The kernel that [`bzimage`] contains: text at 16 MiB, entered at its third byte, and data with a BSS 1 MiB above.
pub(super) fn vmlinux() -> Vec<u8> {
    let text = Load {
        vaddr: 0xFFFF_FFFF_8100_0000,
        paddr: 0x100_0000,
        bytes: b"linux text".to_vec(),
        memsz: 0x1000,
    };
    let per_cpu = Load { vaddr: 0, paddr: 0x110_0000, bytes: b"per-cpu".to_vec(), memsz: 0x1000 };
    let data =
        Load { vaddr: 0xFFFF_FFFF_8110_1000, paddr: 0x110_1000, bytes: b"data".to_vec(), memsz: 0x2000 };
    elf(true, 0x100_0003, &[text, per_cpu, data], &note("Linux", 0x100, b"salt"))
}

pub(super) fn bzimage() -> Vec<u8> {
    Bz::new(gzip(&vmlinux())).build()
}

/// A multiboot header, with load addresses or without.
pub(super) fn multiboot_header(flags: u32, addresses: Option<[u32; 5]>) -> Vec<u8> {
    let checksum = 0u32.wrapping_sub(0x1BAD_B002).wrapping_sub(flags);
    [0x1BAD_B002, flags, checksum]
        .into_iter()
        .chain(addresses.into_iter().flatten())
        .flat_map(u32::to_le_bytes)
        .collect()
}
