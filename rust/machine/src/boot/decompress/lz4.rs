//! The legacy frame of lz4 that the kernel's build uses: a magic number, then blocks of up to 8 MiB, each after its
//! compressed size (lz4_Frame_format.md, "Legacy frame").

use std::io;

const MAGIC_SIZE: usize = 4;
const BLOCK_MAX: usize = 8 << 20;

/// Decodes a whole frame; stops once there is more than `limit`.
pub(super) fn decode(stream: &[u8], limit: u64, output: &mut Vec<u8>) -> io::Result<()> {
    let mut rest = stream.get(MAGIC_SIZE..).unwrap_or(&[]);
    // One for all blocks: a stream of tiny ones must not cost a cleared buffer each.
    let mut contents = vec![0; BLOCK_MAX];
    while !rest.is_empty() && output.len() as u64 <= limit {
        let (size, blocks) = rest.split_first_chunk::<4>().ok_or(io::ErrorKind::UnexpectedEof)?;
        let size = u32::from_le_bytes(*size) as usize;
        let (block, next) = blocks.split_at_checked(size).ok_or(io::ErrorKind::UnexpectedEof)?;
        let written = lz4_flex::block::decompress_into(block, &mut contents).map_err(io::Error::other)?;
        output.extend_from_slice(&contents[..written]);
        rest = next;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A cleared buffer of the largest size for each of these would take minutes.
    #[test]
    fn a_stream_of_tiny_blocks_is_decoded() {
        // One literal.
        let block = [2, 0, 0, 0, 0x10, b'x'];
        let stream = [&[0; MAGIC_SIZE][..], &block.repeat(200_000)].concat();
        let mut output = Vec::new();
        decode(&stream, 1 << 20, &mut output).unwrap();
        assert_eq!(output, [b'x'; 200_000]);
    }
}
