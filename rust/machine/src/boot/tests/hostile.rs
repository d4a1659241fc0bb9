//! Random and mutated files: every one ends in an image that is within its memory, or in an error.

use proptest::prelude::*;

use super::synth::{self, elf, load, multiboot_header, note};
use super::{check, map};
use crate::boot::decompress::{self, Format};
use crate::boot::{BootRequest, Decompression, MemoryMap, Protocol, load as boot};

/// Boots `file` in every way; what comes out must be sound.
fn survive(file: &[u8], memory: &MemoryMap) {
    for protocol in [Protocol::Auto, Protocol::Linux64, Protocol::Linux32, Protocol::Pvh, Protocol::Multiboot]
    {
        for decompression in [Decompression::Host, Decompression::Guest] {
            let request = BootRequest {
                initrd: Some(&[0x42; 100]),
                command_line: "quiet",
                protocol,
                decompression,
                ..BootRequest::new(file, memory)
            };
            if let Ok(image) = boot(&request) {
                check(&image, memory);
            }
        }
    }
}

/// One file of each kind.
fn kernels() -> Vec<Vec<u8>> {
    let notes = note("Xen", 18, &0x10_0000u64.to_le_bytes());
    let multiboot = [&multiboot_header(3, None)[..], b"kernel"].concat();
    let flat = multiboot_header(1 << 16, Some([0x20_0000, 0x20_0000, 0, 0x20_2000, 0x20_0020]));
    vec![
        synth::bzimage(),
        synth::vmlinux(),
        elf(true, 0x10_0000, &[load(0x10_0000, b"kernel")], &notes),
        elf(false, 0x10_000C, &[load(0x10_0000, &multiboot)], &[]),
        [&flat[..], b"flat kernel"].concat(),
    ]
}

/// Boots a file in every way and says how long that took.
fn time_to_survive(file: &[u8], mib: u64) -> std::time::Duration {
    let start = std::time::Instant::now();
    survive(file, &map(mib));
    start.elapsed()
}

/// What a test may take that is over at once if nothing is looked at for each pair: a debug build on a busy host included.
const AT_ONCE: std::time::Duration = std::time::Duration::from_secs(20);

#[test]
fn as_many_segments_as_a_file_may_have_are_placed_quickly() {
    // Next to one another; each in a page of its own, which leaves no page for the other pieces; scattered over low
    // memory, with too little room between two; and all at the same place.
    let strides: [(u64, u64); 4] = [(0x10_0000, 1), (0x10_0000, 0x1000), (0x1000, 8), (0x10_0000, 0)];
    for is_64 in [false, true] {
        for (start, stride) in strides {
            let loads: Vec<_> = (0..65_000).map(|n| load(start + n * stride, b"x")).collect();
            let file = elf(is_64, start, &loads, &note("Xen", 18, &start.to_le_bytes()));
            let took = time_to_survive(&file, 300);
            assert!(took < AT_ONCE, "{stride:#x}: {took:?}");
        }
    }
}

#[test]
fn note_segments_that_all_name_the_whole_file_are_read_once() {
    // The file is an empty note after the other; headers that are not there yet are made to name all of it.
    let notes = note("", 0, b"").repeat(200_000);
    let empty: Vec<_> = (0..60_000).map(|_| load(0, b"")).collect();
    let mut file = elf(true, 0x10_0000, &empty, &notes);
    let (table, size) = (64 + 60_000 * 56, notes.len() as u64);
    for header in (64..table).step_by(56) {
        file[header..header + 4].copy_from_slice(&4u32.to_le_bytes());
        file[header + 8..header + 16].copy_from_slice(&(table as u64 + 56).to_le_bytes());
        file[header + 32..header + 40].copy_from_slice(&size.to_le_bytes());
    }
    let took = time_to_survive(&file, 32);
    assert!(took < AT_ONCE, "{took:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_files_are_refused_or_sound(file in prop::collection::vec(any::<u8>(), 0..2048)) {
        survive(&file, &map(4));
    }

    #[test]
    fn mutated_kernels_are_refused_or_sound(
        kind in 0..5usize,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut file = kernels().swap_remove(kind);
        // Headers are where mutations matter: half of them go there.
        for (number, (index, value)) in changes.into_iter().enumerate() {
            let range = if number % 2 == 0 { file.len() } else { file.len().min(0x270) };
            file[index.index(range)] = value;
        }
        if let Some(cut) = cut {
            file.truncate(cut.index(file.len()));
        }
        survive(&file, &map(32));
    }

    #[test]
    fn mutated_header_words_are_refused_or_sound(kind in 0..5usize, at in any::<prop::sample::Index>(), value: u32) {
        let mut file = kernels().swap_remove(kind);
        let at = at.index(file.len().min(0x270) - 4);
        for value in [value, 0, 1, u32::MAX, u32::MAX - 1, 0x7FFF_FFFF, 0x8000_0000] {
            file[at..at + 4].copy_from_slice(&value.to_le_bytes());
            survive(&file, &map(32));
        }
    }

    #[test]
    fn damaged_streams_stay_within_the_limit(
        format in 0..7usize,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let (format, bytes) = decompress::tests::SAMPLES[format];
        let mut stream = bytes.to_vec();
        for (index, value) in changes {
            let at = index.index(stream.len());
            stream[at] = value;
        }
        if let Ok(output) = decompress::kernel(&stream, 1 << 16) {
            prop_assert!(output.len() <= 1 << 16, "{format:?}");
        }
    }

    #[test]
    fn random_streams_stay_within_the_limit(format in 0..9usize, tail in prop::collection::vec(any::<u8>(), 0..1024)) {
        let stream = [decompress::MAGICS[format].1, &tail].concat();
        prop_assert!(Format::of(&stream).is_some());
        if let Ok(output) = decompress::kernel(&stream, 1 << 16) {
            prop_assert!(output.len() <= 1 << 16);
        }
    }
}
