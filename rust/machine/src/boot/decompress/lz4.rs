//! The legacy frame of lz4 that the kernel's build uses: a magic number, then blocks of up to 8 MiB, each after its
//! compressed size (lz4_Frame_format.md, "Legacy frame").

use std::io;

const MAGIC_SIZE: usize = 4;
const BLOCK_MAX: usize = 8 << 20;

/// Decodes a whole frame; stops once there is more than `limit`.
pub(super) fn decode(stream: &[u8], limit: u64, output: &mut Vec<u8>) -> io::Result<()> {
    let mut rest = stream.get(MAGIC_SIZE..).unwrap_or(&[]);
    while !rest.is_empty() && output.len() as u64 <= limit {
        let (size, blocks) = rest.split_first_chunk::<4>().ok_or(io::ErrorKind::UnexpectedEof)?;
        let size = u32::from_le_bytes(*size) as usize;
        let (block, next) = blocks.split_at_checked(size).ok_or(io::ErrorKind::UnexpectedEof)?;
        let start = output.len();
        output.resize(start + BLOCK_MAX, 0);
        let written =
            lz4_flex::block::decompress_into(block, &mut output[start..]).map_err(io::Error::other)?;
        output.truncate(start + written);
        rest = next;
    }
    Ok(())
}
