//! Back-ends against front-ends that are written here, honest and hostile ones.

mod block;
mod net;

use std::sync::Arc;

use super::{Backend, Fault, Served};
use crate::domain::Domain;
use crate::fake;

/// A front-end's end of a ring in a page of its own.
struct Front {
    domain: Arc<Domain>,
    page: u64,
    entry: u64,
    size: u32,
    produced: u32,
    consumed: u32,
}

impl Front {
    /// Grants page `page` by the reference of the same number, with an empty ring in it.
    fn new(domain: &Arc<Domain>, page: u64, entry: u64, size: u32) -> Self {
        domain.test_grant(page as u32, page);
        let front = Front { domain: Arc::clone(domain), page, entry, size, produced: 0, consumed: 0 };
        front.set(4, 1);
        front.set(12, 1);
        front
    }

    fn reference(&self) -> u32 {
        self.page as u32
    }

    fn set(&self, at: u64, value: u32) {
        self.domain.test_write(self.page, at, &value.to_le_bytes());
    }

    fn get(&self, at: u64) -> u32 {
        u32::from_le_bytes(self.domain.test_read(self.page, at))
    }

    fn place(&self, index: u32) -> u64 {
        64 + u64::from(index % self.size) * self.entry
    }

    fn put(&mut self, request: &[u8]) {
        self.domain.test_write(self.page, self.place(self.produced), request);
        self.produced = self.produced.wrapping_add(1);
        self.set(0, self.produced);
    }

    fn next<const N: usize>(&mut self) -> Option<[u8; N]> {
        if self.get(8) == self.consumed {
            return None;
        }
        let response = self.domain.test_read(self.page, self.place(self.consumed));
        self.consumed = self.consumed.wrapping_add(1);
        Some(response)
    }
}
