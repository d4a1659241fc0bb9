//! Decompresses the kernel inside a bzImage, whichever of the kernel's seven compressions it was built with.
//!
//! Every decoder is Rust, so that a build needs no C compiler: flate2 (gzip), bzip2 on libbz2-rs-sys, lzma-rust2 (lzma, and
//! xz with the x86 branch filter that kernels use), ruzstd, lz4_flex for the blocks of lz4's legacy frame; lzop files are
//! read by this module's own code. The output, and with it the time, is bounded by the caller: what guest memory holds.

mod lz4;
mod lzo;

use std::io::{self, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};

use thiserror::Error;

/// Why a compressed kernel could not be read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DecompressError {
    /// No known magic number.
    #[error("its compression is not known (it starts with {start:02x?})")]
    UnknownFormat {
        /// The first bytes.
        start: Vec<u8>,
    },
    /// The stream breaks off or contradicts itself.
    #[error("its {format} stream is damaged: {source}")]
    Damaged {
        /// Name of the compression.
        format: &'static str,
        /// What the decoder said.
        source: io::Error,
    },
    /// Less or more output than the size at its end says.
    #[error(
        "its {format} stream decompresses to {got:#x} bytes, but says at its end that there are {size:#x}"
    )]
    WrongSize {
        /// Name of the compression.
        format: &'static str,
        /// What came out.
        got: u64,
        /// What the file says.
        size: u64,
    },
    /// More output than the limit.
    #[error(
        "its {format} stream decompresses to more than {limit:#x} bytes, which is all that guest memory holds"
    )]
    TooLarge {
        /// Name of the compression.
        format: &'static str,
        /// The limit.
        limit: u64,
    },
}

/// The compressions that Linux can be built with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Not compressed.
    Plain,
    /// CONFIG_KERNEL_GZIP.
    Gzip,
    /// CONFIG_KERNEL_BZIP2.
    Bzip2,
    /// CONFIG_KERNEL_LZMA: the .lzma file format.
    Lzma,
    /// CONFIG_KERNEL_XZ.
    Xz,
    /// CONFIG_KERNEL_LZO: the file format of lzop.
    Lzo,
    /// CONFIG_KERNEL_LZ4: the legacy frame.
    Lz4,
    /// CONFIG_KERNEL_ZSTD.
    Zstd,
}

/// Formats by the bytes that their streams start with.
pub(super) const MAGICS: [(Format, &[u8]); 9] = [
    (Format::Plain, b"\x7fELF"),
    (Format::Gzip, &[0x1F, 0x8B]),
    (Format::Gzip, &[0x1F, 0x9E]),
    (Format::Bzip2, b"BZh"),
    (Format::Lzma, &[0x5D, 0x00, 0x00]),
    (Format::Xz, &[0xFD, b'7', b'z', b'X', b'Z', 0x00]),
    (Format::Lzo, &[0x89, b'L', b'Z', b'O', 0x00, 0x0D, 0x0A, 0x1A, 0x0A]),
    (Format::Lz4, &[0x02, 0x21, 0x4C, 0x18]),
    (Format::Zstd, &[0x28, 0xB5, 0x2F, 0xFD]),
];

impl Format {
    /// Recognises a stream by its first bytes.
    pub fn of(stream: &[u8]) -> Option<Self> {
        MAGICS.iter().find(|(_, magic)| stream.starts_with(magic)).map(|&(format, _)| format)
    }

    /// Its name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Gzip => "gzip",
            Self::Bzip2 => "bzip2",
            Self::Lzma => "lzma",
            Self::Xz => "xz",
            Self::Lzo => "lzo",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }
}

/// The largest history that a stream may ask its decoder to keep: that of `zstd -22 --ultra`, with which kernels are
/// compressed.
const MAX_WINDOW: u64 = 128 << 20;
/// The most memory that is reserved before anything has been read.
const RESERVE_MAX: u64 = 256 << 20;

/// Decompresses the payload of a bzImage to at most `limit` bytes.
///
/// Every one ends with the decompressed size as a 32-bit word: gzip's streams do anyway, and behind the others the
/// kernel's build appends it.
///
/// # Errors
/// When the format is not known, the stream is damaged, or its output larger than `limit`.
pub fn kernel(payload: &[u8], limit: u64) -> Result<Vec<u8>, DecompressError> {
    let Some(format) = Format::of(payload) else {
        return Err(DecompressError::UnknownFormat { start: payload.iter().take(8).copied().collect() });
    };
    let (stream, size) = match payload.split_last_chunk::<4>() {
        Some((stream, size)) if format != Format::Plain => (stream, u64::from(u32::from_le_bytes(*size))),
        _ => (payload, payload.len() as u64),
    };
    let stream = if format == Format::Gzip { payload } else { stream };
    let mut output = Vec::new();
    // The size says how much is reserved, within reason, and is compared at the end; it never says how much is read.
    let _ = output.try_reserve_exact(size.min(limit).min(RESERVE_MAX) as usize);
    // Decoders are other people's code on hostile input: a panic in one is a damaged stream, not the end of the process.
    let outcome = catch_unwind(AssertUnwindSafe(|| decode(format, stream, limit, &mut output)))
        .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::InvalidData, "the decoder gave up")));
    let format = format.name();
    outcome.map_err(|source| DecompressError::Damaged { format, source })?;
    let got = output.len() as u64;
    if got > limit {
        return Err(DecompressError::TooLarge { format, limit });
    }
    if got != size {
        return Err(DecompressError::WrongSize { format, got, size });
    }
    Ok(output)
}

/// Decodes until the stream's end or until one byte more than `limit` is there.
fn decode(format: Format, stream: &[u8], limit: u64, output: &mut Vec<u8>) -> io::Result<()> {
    let window_kib = (MAX_WINDOW >> 10) as u32 + 1024;
    match format {
        Format::Plain => read_all(stream, limit, output),
        Format::Gzip => read_all(flate2::read::GzDecoder::new(stream), limit, output),
        Format::Bzip2 => read_all(bzip2::read::BzDecoder::new(stream), limit, output),
        Format::Lzma => {
            read_all(lzma_rust2::LzmaReader::new_mem_limit(stream, window_kib, None)?, limit, output)
        }
        Format::Xz => read_all(lzma_rust2::XzReader::new_mem_limit(stream, false, window_kib), limit, output),
        Format::Lzo => lzo::decode(stream, limit, output),
        Format::Lz4 => lz4::decode(stream, limit, output),
        Format::Zstd => {
            check_zstd_window(stream)?;
            let decoder = ruzstd::decoding::StreamingDecoder::new(stream).map_err(io::Error::other)?;
            read_all(decoder, limit, output)
        }
    }
}

fn read_all(reader: impl Read, limit: u64, output: &mut Vec<u8>) -> io::Result<()> {
    reader.take(limit.saturating_add(1)).read_to_end(output).map(drop)
}

/// Refuses a zstd frame with a larger history than [`MAX_WINDOW`] (RFC 8878, 3.1.1.1), since its decoder does not.
fn check_zstd_window(stream: &[u8]) -> io::Result<()> {
    let truncated = || io::Error::from(io::ErrorKind::UnexpectedEof);
    let descriptor = *stream.get(4).ok_or_else(truncated)?;
    let single_segment = descriptor & 0x20 != 0;
    let window = if single_segment {
        let dictionary = [0, 1, 2, 4][usize::from(descriptor & 3)];
        let size = [1, 2, 4, 8][usize::from(descriptor >> 6)];
        let field = stream.get(5 + dictionary..5 + dictionary + size).ok_or_else(truncated)?;
        let value = field.iter().rev().fold(0, |value: u64, &byte| (value << 8) | u64::from(byte));
        if size == 2 { value + 256 } else { value }
    } else {
        let byte = *stream.get(5).ok_or_else(truncated)?;
        let base = 1u64 << (10 + (byte >> 3));
        base + base / 8 * u64::from(byte & 7)
    };
    if window > MAX_WINDOW {
        let message = format!("it asks for a history of {window:#x} bytes, and {MAX_WINDOW:#x} are allowed");
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const SIZE: usize = 0x4000;

    /// What the files in `samples` contain: text, runs, and calls whose target is one address, which only the x86 branch
    /// filter turns into repetitions. They were made with the commands of the kernel's build (scripts/Makefile.lib):
    /// `gzip -n -9`, `bzip2 -9`, `xz --format=lzma -9`, `xz --check=crc32 --x86 --lzma2=dict=32MiB`, `lzop -9`,
    /// `lz4 -l -9`, `zstd -22 --ultra`; all but gzip's with the size appended.
    fn sample() -> Vec<u8> {
        let text = b"the quick brown fox jumps over the lazy dog ";
        let mut bytes = b"\x7fELF".to_vec();
        let mut seed = 1u32;
        while bytes.len() < SIZE {
            let next = bytes.len() as u32 + 5;
            bytes.push(0xE8);
            bytes.extend_from_slice(&0x12_3456u32.wrapping_sub(next).to_le_bytes());
            seed = seed.wrapping_mul(1_103_515_245).wrapping_add(12345) & 0x7FFF_FFFF;
            if seed & 0x70000 == 0 {
                bytes.extend([(seed >> 8) as u8; 300]);
            }
            bytes.extend_from_slice(&text[..(seed >> 20) as usize % 45]);
        }
        bytes.truncate(SIZE);
        bytes
    }

    pub(crate) const SAMPLES: [(Format, &[u8]); 7] = [
        (Format::Gzip, include_bytes!("samples/gzip")),
        (Format::Bzip2, include_bytes!("samples/bzip2")),
        (Format::Lzma, include_bytes!("samples/lzma")),
        (Format::Xz, include_bytes!("samples/xz")),
        (Format::Lzo, include_bytes!("samples/lzo")),
        (Format::Lz4, include_bytes!("samples/lz4")),
        (Format::Zstd, include_bytes!("samples/zstd")),
    ];

    #[test]
    fn every_format_gives_back_what_went_in() {
        for (format, bytes) in SAMPLES {
            assert_eq!(Format::of(bytes), Some(format));
            assert!(kernel(bytes, 1 << 20).unwrap() == sample(), "{format:?}");
            assert!(kernel(bytes, SIZE as u64).is_ok(), "{format:?} at exactly the limit");
        }
    }

    #[test]
    fn more_than_the_limit_is_an_error() {
        for (format, bytes) in SAMPLES {
            let error = kernel(bytes, SIZE as u64 - 1).unwrap_err();
            assert!(matches!(error, DecompressError::TooLarge { .. }), "{format:?}: {error}");
        }
    }

    #[test]
    fn a_truncated_stream_is_an_error() {
        for (format, bytes) in SAMPLES {
            for length in 0..bytes.len() {
                assert!(kernel(&bytes[..length], 1 << 20).is_err(), "{format:?} at {length}");
            }
        }
    }

    #[test]
    fn an_unknown_format_is_named_by_its_first_bytes() {
        let error = kernel(b"\x12\x34 is no magic number", 1 << 20).unwrap_err();
        assert!(error.to_string().contains("[12, 34, "), "{error}");
    }

    #[test]
    fn a_zstd_frame_cannot_ask_for_more_history_than_kernels_do() {
        let frame = |window| [0x28, 0xB5, 0x2F, 0xFD, 0x00, window, 1, 0, 0, 0, 0, 0, 0];
        // 128 MiB, then the next larger.
        assert!(check_zstd_window(&frame(17 << 3)).is_ok());
        assert!(check_zstd_window(&frame(17 << 3 | 1)).is_err());
        let error = kernel(&frame(0xFF), 1 << 20).unwrap_err();
        assert!(error.to_string().contains("history"), "{error}");
    }

    #[test]
    fn an_empty_stream_of_each_format_is_an_error() {
        for (format, magic) in MAGICS.into_iter().filter(|&(format, _)| format != Format::Plain) {
            let mut stream = magic.to_vec();
            stream.extend([0; 4]);
            assert!(kernel(&stream, 1 << 20).map_or(true, |output| output.is_empty()), "{format:?}");
        }
    }
}
