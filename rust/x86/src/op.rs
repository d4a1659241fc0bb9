//! The names of operations: one per mnemonic of the manuals.

/// An operation. String forms that share a mnemonic with SSE keep the short name; the SSE form ends in `Xmm`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Op {
    Nop,
}
