//! The rules of direct paging, one test each. They use the public calls only; tables are written as a guest writes them.

use super::*;

/// Notes what the TLBs are told.
#[derive(Default, Debug)]
struct Told {
    all: u32,
    protected: Vec<u64>,
}

impl TlbControl for Told {
    fn flush_all(&mut self) {
        self.all += 1;
    }
    fn flush_page(&mut self, _va: u64) {}
    fn protect(&mut self, host: u64) {
        self.protected.push(host);
    }
}

mod entries;
