//! Options and counters of the translator, which exist on hosts that it has no code for as well.

/// Instructions of a unit at most.
pub(crate) const LONGEST: u32 = 48;

/// How translation is done. Results never depend on it: tests take the short cuts away one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TranslateOptions {
    /// Bytes of the code cache; at least 64 KiB.
    pub cache: usize,
    /// Instructions of a unit at most.
    pub longest: u32,
    /// Let jumps lead straight from unit to unit.
    pub link: bool,
    /// Let one check stand for several accesses, and for the iterations of a loop.
    pub elide: bool,
    /// Keep pages that were found and what leads to code. If not, each look for a page and each way into translated code
    /// begins with nothing.
    pub keep: bool,
}

impl TranslateOptions {
    /// Without any short cut: what differs from the default is a bug in one of them.
    pub const PARANOID: TranslateOptions =
        TranslateOptions { cache: 0, longest: 1, link: false, elide: false, keep: false };
}

impl Default for TranslateOptions {
    fn default() -> Self {
        TranslateOptions { cache: 32 << 20, longest: LONGEST, link: true, elide: true, keep: true }
    }
}

/// What the translator did so far. The counters only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TranslatorStats {
    /// Units made.
    pub units: u64,
    /// Bytes of guest code in them.
    pub code_bytes: u64,
    /// Times that translated code was entered.
    pub entries: u64,
    /// Times that it left for the interpreter to run one instruction.
    pub interpreted: u64,
    /// Accesses that had to look for their page.
    pub misses: u64,
    /// Times that the whole cache was emptied.
    pub flushes: u64,
    /// System calls and returns from them that translated code did without being left.
    pub in_place: u64,
}
