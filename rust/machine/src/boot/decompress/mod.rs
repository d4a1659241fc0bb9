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
const MAGICS: [(Format, &[u8]); 9] = [
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

/// Decompresses the payload of a bzImage to at most `limit` bytes.
///
/// Behind every stream but gzip's, which ends with it anyway, the kernel's build appends the decompressed size as a
/// 32-bit word.
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
    // The word is a hint only: it decides how much is reserved at once, never how much is read.
    let mut output = Vec::new();
    let _ = output.try_reserve_exact(size.min(limit).min(MAX_WINDOW) as usize);
    // Decoders are other people's code on hostile input: a panic in one is a damaged stream, not the end of the process.
    let outcome = catch_unwind(AssertUnwindSafe(|| decode(format, stream, limit, &mut output)))
        .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::InvalidData, "the decoder gave up")));
    let format = format.name();
    outcome.map_err(|source| DecompressError::Damaged { format, source })?;
    if output.len() as u64 > limit {
        return Err(DecompressError::TooLarge { format, limit });
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
