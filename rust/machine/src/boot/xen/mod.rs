//! Starts a para-virtual kernel the way Xen's domain builder does: its notes say where it wants to be and how it is
//! entered, and it finds itself on page tables of its own, with a start_info page that tells it the rest.
//!
//! The order of things in memory is that of Xen's own builder (tools/libs/guest/xg_dom_x86.c), which kernels rely on.

mod build;
mod notes;
#[cfg(test)]
mod tests;

use std::borrow::Cow;

pub use build::{Start, build};
pub use notes::Kernel;
pub(super) use notes::is_only_paravirtual;

use super::bzimage::BzImage;
use super::decompress;
use super::elf::is_elf;
use super::{BootError, terminated};

/// What to start.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The kernel file: an ELF file or a bzImage around one.
    pub kernel: &'a [u8],
    pub initrd: Option<&'a [u8]>,
    pub command_line: &'a str,
}

/// The longest command line: what start_info holds, its NUL included.
const COMMAND_LINE: u64 = 1023;

impl Request<'_> {
    fn command_line(&self) -> Result<Vec<u8>, BootError> {
        terminated(self.command_line, COMMAND_LINE)
    }
}

/// The ELF file in a kernel file, decompressed if it must be, to at most `limit` bytes.
///
/// # Errors
/// When the file is neither, or its payload is damaged.
pub fn unpack(file: &[u8], limit: u64) -> Result<Cow<'_, [u8]>, BootError> {
    if is_elf(file) {
        return Ok(Cow::Borrowed(file));
    }
    let Some(image) = BzImage::parse(file)? else {
        return Err(BootError::NotAKernel { size: file.len() as u64 });
    };
    let payload = image
        .payload()?
        .ok_or(BootError::NotParavirtual { why: "its bzImage is older than protocol 2.08" })?;
    Ok(Cow::Owned(decompress::kernel(payload, limit)?))
}
