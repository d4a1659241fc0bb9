//! The console ring (xen/include/public/io/console.h): a page of the guest's with a buffer for each direction.

use trapgate_engine::GuestMemory;
use trapgate_xen::paging::Mfn;

use crate::console::Console;

const IN: u64 = 0;
const IN_SIZE: u32 = 1024;
const OUT: u64 = 0x400;
const OUT_SIZE: u32 = 2048;
const IN_CONS: u64 = 0xc00;
const IN_PROD: u64 = 0xc04;
const OUT_CONS: u64 = 0xc08;
const OUT_PROD: u64 = 0xc0c;
const CONNECTION: u64 = 0xc10;

/// Our end of the ring. The page is the guest's to write to: each index is read once and bounded.
#[derive(Debug)]
pub(super) struct Ring {
    page: u64,
}

impl Ring {
    pub fn new(page: Mfn) -> Self {
        Ring { page: page.0 << 12 }
    }

    fn host(&self, memory: &GuestMemory) -> Option<u64> {
        memory.page(self.page).map(|page| page.offset)
    }

    /// Takes what the guest has written; true if there was something, which the guest is to be told.
    pub fn drain(&mut self, memory: &GuestMemory, console: &Console) -> bool {
        let Some(host) = self.host(memory) else { return false };
        let (cons, prod) = (memory.load::<u32>(host + OUT_CONS), memory.load::<u32>(host + OUT_PROD));
        let ready = prod.wrapping_sub(cons);
        if ready == 0 || ready > OUT_SIZE {
            return false;
        }
        let bytes: Vec<u8> = (0..ready)
            .map(|i| memory.load::<u8>(host + OUT + u64::from(cons.wrapping_add(i) & (OUT_SIZE - 1))))
            .collect();
        memory.store::<u8>(host + CONNECTION, 0);
        memory.store::<u32>(host + OUT_CONS, prod);
        console.put(&bytes);
        true
    }

    fn room(&self, memory: &GuestMemory, host: u64) -> u32 {
        let (cons, prod) = (memory.load::<u32>(host + IN_CONS), memory.load::<u32>(host + IN_PROD));
        IN_SIZE.saturating_sub(prod.wrapping_sub(cons))
    }

    pub fn has_room(&self, memory: &GuestMemory) -> bool {
        self.host(memory).is_some_and(|host| self.room(memory, host) > 0)
    }

    /// Passes input on; true if there was some, which the guest is to be told.
    pub fn feed(&mut self, memory: &GuestMemory, console: &Console) -> bool {
        let Some(host) = self.host(memory) else { return false };
        let bytes = console.take_input(self.room(memory, host) as usize);
        let prod = memory.load::<u32>(host + IN_PROD);
        for (byte, i) in bytes.iter().zip(0u32..) {
            let at = u64::from(prod.wrapping_add(i) & (IN_SIZE - 1));
            memory.store::<u8>(host + IN + at, *byte);
        }
        memory.store::<u32>(host + IN_PROD, prod.wrapping_add(bytes.len() as u32));
        !bytes.is_empty()
    }
}
