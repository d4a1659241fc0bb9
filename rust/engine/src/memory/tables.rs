//! Which pages hold page tables that a vCPU keeps shadows of, and how often those were written: the trace that shadow paging
//! needs, whoever writes.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use super::PAGE;

/// The page holds a table with a shadow.
const TRACED: u32 = 1;
/// Above that bit writes are counted, and come around: a shadow compares the count at every walk.
const WRITE: u32 = 2;

/// One counter a host page; none are made before the first is wanted.
#[derive(Debug, Default)]
pub(super) struct TracedTables(OnceLock<Box<[AtomicU32]>>);

impl TracedTables {
    fn cell(&self, host: u64) -> Option<&AtomicU32> {
        self.0.get()?.get((host / PAGE) as usize)
    }

    /// Begins to trace the page at a host offset, in memory of so many pages, and gives its state.
    pub fn trace(&self, host: u64, pages: u64) -> u32 {
        let cells = self.0.get_or_init(|| (0..pages).map(|_| AtomicU32::new(0)).collect());
        let cell = &cells[(host / PAGE) as usize];
        cell.fetch_or(TRACED, Ordering::AcqRel) | TRACED
    }

    pub fn release(&self, host: u64) {
        if let Some(cell) = self.cell(host) {
            cell.fetch_and(!TRACED, Ordering::AcqRel);
        }
    }

    /// Odd while the page is traced; a write changes it.
    #[inline]
    pub fn state(&self, host: u64) -> u32 {
        self.cell(host).map_or(0, |cell| cell.load(Ordering::Acquire))
    }

    /// The page was written.
    #[inline]
    pub fn written(&self, host: u64) {
        if let Some(cell) = self.cell(host)
            && cell.load(Ordering::Acquire) & TRACED != 0
        {
            cell.fetch_add(WRITE, Ordering::AcqRel);
        }
    }
}

/// The state after one more write.
pub fn after_a_write(state: u32) -> u32 {
    state.wrapping_add(WRITE)
}
