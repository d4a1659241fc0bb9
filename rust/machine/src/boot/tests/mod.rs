//! The loaders on kernels made up here: what each protocol must find in memory and registers, what is refused and how,
//! and that no file whatever makes them panic or ask for more memory than the machine has.

mod hostile;
mod linux;
mod others;
pub(super) mod synth;

use super::{BootImage, MemoryMap, Mode};

const MIB: u64 = 1 << 20;

fn map(mib: u64) -> MemoryMap {
    MemoryMap::new(mib * MIB).unwrap()
}

/// Reads guest memory as the boot image leaves it; what no segment covers is zero.
struct Memory<'i, 'a>(&'i BootImage<'a>);

impl Memory<'_, '_> {
    fn bytes(&self, address: u64, size: usize) -> Vec<u8> {
        let byte = |address: u64| {
            let segment = self.0.segments.iter().find(|s| s.address <= address && address < s.end());
            segment.and_then(|s| s.bytes.get((address - s.address) as usize)).copied().unwrap_or(0)
        };
        (address..address + size as u64).map(byte).collect()
    }

    fn u32(&self, address: u64) -> u32 {
        u32::from_le_bytes(self.bytes(address, 4).try_into().unwrap())
    }

    fn u64(&self, address: u64) -> u64 {
        u64::from_le_bytes(self.bytes(address, 8).try_into().unwrap())
    }

    fn string(&self, address: u64) -> String {
        let bytes = self.bytes(address, 256);
        let end = bytes.iter().position(|&byte| byte == 0).unwrap();
        String::from_utf8(bytes[..end].to_vec()).unwrap()
    }
}

/// What must hold for every image: pieces in usable RAM, apart from one another, and a state that agrees with itself.
fn check(image: &BootImage<'_>, memory: &MemoryMap) {
    let mut segments: Vec<_> = image.segments.iter().filter(|segment| segment.size > 0).collect();
    segments.sort_by_key(|segment| segment.address);
    for segment in &segments {
        assert!(segment.bytes.len() as u64 <= segment.size, "{segment:x?}");
        assert!(memory.is_usable(segment.address, segment.end()), "{segment:x?}");
        assert!(segment.address >= 0x1000, "{segment:x?}");
    }
    for pair in segments.windows(2) {
        assert!(pair[0].end() <= pair[1].address, "{pair:x?}");
    }
    let entry = &image.entry;
    assert_eq!(entry.rflags, 2);
    assert_eq!((entry.code.selector, entry.data.selector), (0x10, 0x18));
    let guest = Memory(image);
    let descriptor = |selector: u16| guest.u64(entry.gdt.base + u64::from(selector));
    for register in [entry.code, entry.data] {
        let expected = 0x000F_0000_0000_FFFF | (u64::from(register.attributes) << 40);
        assert_eq!(descriptor(register.selector), expected);
        assert!(register.selector + 7 <= entry.gdt.limit);
    }
    match entry.mode {
        Mode::Protected32 => assert_eq!((entry.cr0, entry.cr3, entry.cr4, entry.efer), (0x11, 0, 0, 0)),
        Mode::Long64 => {
            assert_eq!((entry.cr0, entry.cr4, entry.efer), (0x8000_0011, 0x20, 0x500));
            for linear in [0, 0x1000, 0x12_3456, 0x3FFF_FFFF, 0x4000_0000, 0xC012_3456, 0xFFFF_FFFF] {
                assert_eq!(walk(&guest, entry.cr3, linear), linear);
            }
        }
    }
}

/// Translates by the page tables in memory, 2 MiB pages only (SDM vol. 3, 4.5).
fn walk(guest: &Memory<'_, '_>, cr3: u64, linear: u64) -> u64 {
    let mut table = cr3;
    for shift in [39, 30] {
        let entry = guest.u64(table + (linear >> shift & 0x1FF) * 8);
        assert_eq!(entry & 0xFFF, 3, "present and writable, nothing else");
        table = entry & !0xFFF;
    }
    let entry = guest.u64(table + (linear >> 21 & 0x1FF) * 8);
    assert_eq!(entry & 0xFFF, 0x83);
    (entry & !0xFFF) | (linear & 0x1F_FFFF)
}
