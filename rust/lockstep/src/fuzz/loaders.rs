//! Any bytes as a kernel: the loaders refuse it, or place it soundly in RAM that the machine has.

use trapgate_machine::boot::{self, BootImage, BootRequest, Decompression, MemoryMap, Protocol};
use trapgate_x86::insn::Bits;

use super::Input;
use crate::guest::Guest;

macro_rules! sample {
    ($name:literal) => {
        include_bytes!(concat!("../../../machine/src/boot/decompress/samples/", $name))
    };
}

const GZIP: &[u8] = sample!("gzip");
const BZIP2: &[u8] = sample!("bzip2");
const LZMA: &[u8] = sample!("lzma");
const XZ: &[u8] = sample!("xz");
const LZO: &[u8] = sample!("lzo");
const LZ4: &[u8] = sample!("lz4");
const ZSTD: &[u8] = sample!("zstd");

/// Memory size, protocol, options; the rest is the file.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let memory = input.pick(&[MemoryMap::MIN, 4 << 20, 32 << 20, 3 << 30, 5 << 30]);
    let protocol = input.pick(&[
        Protocol::Auto,
        Protocol::Linux64,
        Protocol::Linux32,
        Protocol::Pvh,
        Protocol::Multiboot,
    ]);
    let options = input.u8();
    let memory = MemoryMap::new(memory).expect("sizes that a machine can have");
    let request = BootRequest {
        initrd: (options & 1 != 0).then_some(&[0x5a; 5000]),
        command_line: if options & 2 != 0 { "quiet" } else { "" },
        rsdp: 0xf_0000,
        protocol,
        decompression: if options & 4 != 0 { Decompression::Guest } else { Decompression::Host },
        ..BootRequest::new(input.rest(), &memory)
    };
    match boot::load(&request) {
        Ok(image) => check(&image, &memory),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// What must hold for every image.
fn check(image: &BootImage<'_>, memory: &MemoryMap) {
    let mut segments: Vec<_> = image.segments.iter().filter(|segment| segment.size > 0).collect();
    segments.sort_by_key(|segment| segment.address);
    for segment in &segments {
        assert!(segment.bytes.len() as u64 <= segment.size, "{segment:x?}");
        assert!(memory.is_usable(segment.address, segment.end()), "{segment:x?}");
    }
    for pair in segments.windows(2) {
        assert!(pair[0].end() <= pair[1].address, "{pair:x?}");
    }
    assert_ne!(image.protocol, Protocol::Auto);
    assert!(image.entry.rip < 1 << 32);
}

/// Small kernels, for each memory size, started by whatever protocol fits.
pub fn seeds() -> Vec<Vec<u8>> {
    let multiboot = {
        // Header with load addresses (Multiboot 3.1.3): header, load, load end, BSS end, entry.
        let flags = 1u32 << 16;
        let words = [
            0x1bad_b002,
            flags,
            0u32.wrapping_sub(0x1bad_b002 + flags),
            0x10_0000,
            0x10_0000,
            0,
            0x10_2000,
            0x10_0020,
        ];
        words.iter().flat_map(|word| word.to_le_bytes()).chain([0xf4; 16]).collect::<Vec<u8>>()
    };
    let files =
        [Guest::code(Bits::B64, &[0xf4; 64]).kernel, Guest::code(Bits::B32, &[0xf4; 64]).kernel, multiboot];
    let compressed = [&[0; 16], GZIP, BZIP2, LZMA, XZ, LZO, LZ4, ZSTD].map(bzimage);
    files
        .iter()
        .chain(&compressed)
        .flat_map(|file| (0..5u8).map(|size| [&[size, 0, 3], &file[..]].concat()))
        .collect()
}

/// The setup header of a bzImage (Documentation/arch/x86/boot.rst) with nothing but a payload behind it.
fn bzimage(payload: &[u8]) -> Vec<u8> {
    let mut file = vec![0; 4 * 512];
    // An offset of 0 would say that there is none.
    let (offset, length) = (16, payload.len() as u32);
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[3]);
    put(0x1f4, &(offset + length).div_ceil(16).to_le_bytes());
    put(0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
    put(0x202, b"HdrS\x0f\x02");
    put(0x211, &[1]);
    put(0x214, &0x10_0000u32.to_le_bytes());
    put(0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(0x230, &0x20_0000u32.to_le_bytes());
    put(0x234, &[1, 21, 3, 0]);
    put(0x238, &2047u32.to_le_bytes());
    put(0x248, &offset.to_le_bytes());
    put(0x24c, &length.to_le_bytes());
    put(0x258, &0x10_0000u64.to_le_bytes());
    put(0x260, &0x20_0000u32.to_le_bytes());
    file.extend([0; 16]);
    file.extend(payload);
    file.resize(file.len().next_multiple_of(16), 0);
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(file: &[u8]) -> Result<(), boot::BootError> {
        let memory = MemoryMap::new(32 << 20).expect("a size that a machine can have");
        boot::load(&BootRequest::new(file, &memory)).map(drop)
    }

    #[test]
    fn seeds_are_kernels() {
        for seed in seeds() {
            // Some hold no more than the magic number of one, compressed: that it is missed shows that it was looked at.
            let found = load(&seed[3..]);
            assert!(matches!(found, Ok(()) | Err(boot::BootError::WrongElf { .. })), "{found:?}");
        }
    }

    #[test]
    fn compressed_seeds_are_decompressed() {
        for payload in [GZIP, BZIP2, LZMA, XZ, LZO, LZ4, ZSTD] {
            assert!(matches!(load(&bzimage(payload)), Err(boot::BootError::WrongElf { .. })));
            let broken = load(&bzimage(&payload[..payload.len() - 5]));
            assert!(matches!(broken, Err(boot::BootError::Payload(_))), "{broken:?}");
        }
    }
}
