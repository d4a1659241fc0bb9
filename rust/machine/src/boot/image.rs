//! The result of loading: pieces of guest memory and the state the first processor starts in.
//!
//! Plain data, so that the board decides how it reaches guest memory and registers.

use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;

use super::Protocol;

/// Bytes of a segment: borrowed from the caller's file, or a part of a buffer made on the way.
#[derive(Clone)]
pub enum Bytes<'a> {
    /// Part of a file the caller holds.
    Borrowed(&'a [u8]),
    /// Part of a buffer that several segments share, such as a decompressed kernel.
    Shared(Arc<Vec<u8>>, Range<usize>),
}

impl Deref for Bytes<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Borrowed(bytes) => bytes,
            Self::Shared(buffer, range) => buffer.get(range.clone()).unwrap_or(&[]),
        }
    }
}

impl From<Vec<u8>> for Bytes<'_> {
    fn from(bytes: Vec<u8>) -> Self {
        let range = 0..bytes.len();
        Self::Shared(Arc::new(bytes), range)
    }
}

impl fmt::Debug for Bytes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x} bytes", self.len())
    }
}

/// A piece of guest-physical memory to be written before the machine starts.
#[derive(Debug, Clone)]
pub struct Segment<'a> {
    /// What it is, for messages.
    pub what: &'static str,
    /// Guest-physical address of the first byte.
    pub address: u64,
    /// What to write there.
    pub bytes: Bytes<'a>,
    /// Size in memory; what `bytes` does not cover is to be zero. Never less than `bytes.len()`.
    pub size: u64,
}

impl<'a> Segment<'a> {
    /// A segment that is exactly `bytes`.
    pub fn new(what: &'static str, address: u64, bytes: impl Into<Bytes<'a>>) -> Self {
        let bytes = bytes.into();
        let size = bytes.len() as u64;
        Self { what, address, bytes, size }
    }

    /// The address after the last one.
    pub fn end(&self) -> u64 {
        self.address.saturating_add(self.size)
    }
}

impl<'a> From<&'a [u8]> for Bytes<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self::Borrowed(bytes)
    }
}

/// The mode the first processor starts in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// 32-bit protected mode, flat segments, paging off.
    Protected32,
    /// 64-bit mode with the first 4 GiB mapped to themselves.
    Long64,
}

/// A segment register with its hidden part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentRegister {
    /// The visible selector.
    pub selector: u16,
    /// Base address.
    pub base: u64,
    /// Limit in bytes, the granularity already applied.
    pub limit: u32,
    /// Access byte in bits 0 to 7 and the flags AVL, L, D/B, G in bits 12 to 15, as in the descriptor (SDM vol. 3, 3.4.5).
    pub attributes: u16,
}

/// GDTR or IDTR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableRegister {
    /// Linear address of the table.
    pub base: u64,
    /// Its size in bytes minus one.
    pub limit: u16,
}

/// The architectural state the first processor starts with; what is not named here has its value after INIT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Operating mode, which the control registers below agree with.
    pub mode: Mode,
    /// First instruction.
    pub rip: u64,
    /// General registers by their encoding: RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub regs: [u64; 16],
    /// RFLAGS; interrupts are off.
    pub rflags: u64,
    /// CR0.
    pub cr0: u64,
    /// CR3: the page map when paging is on.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// IA32_EFER.
    pub efer: u64,
    /// CS.
    pub code: SegmentRegister,
    /// DS, ES, FS, GS and SS.
    pub data: SegmentRegister,
    /// GDTR; the table is one of the segments.
    pub gdt: TableRegister,
    /// IDTR: empty, since every protocol leaves interrupts off.
    pub idt: TableRegister,
}

/// Everything that must be written for a guest to start.
#[derive(Debug, Clone)]
pub struct BootImage<'a> {
    /// Disjoint pieces of guest memory, all of it RAM.
    pub segments: Vec<Segment<'a>>,
    /// Where and how the first processor starts.
    pub entry: Entry,
    /// The protocol that was chosen (never `Auto`).
    pub protocol: Protocol,
    /// Whether the kernel was decompressed here, so that the guest does not have to.
    pub decompressed: bool,
}
