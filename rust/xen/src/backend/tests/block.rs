//! The block back-end.

use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use proptest::prelude::*;

use super::*;
use crate::backend::block::{Block, ENTRY};
use crate::backend::disk::{FileDisk, Storage};

const RING: u64 = 10;
const DATA: u32 = 20;
const SECTORS: u64 = 64;

/// A disk in memory that counts its flushes, and fails when it is told to.
#[derive(Debug)]
struct Ram {
    bytes: Mutex<Vec<u8>>,
    flushes: AtomicU32,
    read_only: bool,
    broken: bool,
}

impl Ram {
    fn new(read_only: bool, broken: bool) -> Arc<Self> {
        let bytes = (0..SECTORS * 512).map(|i| (i / 512) as u8).collect();
        Arc::new(Ram { bytes: Mutex::new(bytes), flushes: AtomicU32::new(0), read_only, broken })
    }
    fn check(&self) -> io::Result<()> {
        if self.broken { Err(io::Error::other("broken")) } else { Ok(()) }
    }
}

impl Storage for Ram {
    fn size(&self) -> u64 {
        SECTORS * 512
    }
    fn read_only(&self) -> bool {
        self.read_only
    }
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.check()?;
        bytes.copy_from_slice(&self.bytes.lock().unwrap()[offset as usize..][..bytes.len()]);
        Ok(())
    }
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.check()?;
        self.bytes.lock().unwrap()[offset as usize..][..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }
    fn flush(&self) -> io::Result<()> {
        self.flushes.fetch_add(1, Ordering::Relaxed);
        self.check()
    }
    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

fn request(op: u8, count: u8, id: u64, sector: u64, segments: &[(u32, u8, u8)]) -> [u8; 112] {
    let mut bytes = [0; 112];
    (bytes[0], bytes[1]) = (op, count);
    bytes[8..16].copy_from_slice(&id.to_le_bytes());
    bytes[16..24].copy_from_slice(&sector.to_le_bytes());
    for (index, (reference, first, last)) in segments.iter().enumerate() {
        let at = 24 + index * 8;
        bytes[at..at + 4].copy_from_slice(&reference.to_le_bytes());
        (bytes[at + 4], bytes[at + 5]) = (*first, *last);
    }
    bytes
}

struct Guest {
    domain: Arc<Domain>,
    front: Front,
    block: Box<Block>,
}

impl Guest {
    fn new(disk: Arc<dyn Storage>) -> Self {
        let domain = fake::domain();
        let front = Front::new(&domain, RING, ENTRY, 32);
        for n in 0..11 {
            domain.test_grant(DATA + n, u64::from(DATA + n));
        }
        let block = Box::new(Block::connect(&domain, front.reference(), disk).unwrap());
        Guest { domain, front, block }
    }

    /// Makes a request and gives its status.
    fn ask(&mut self, op: u8, count: u8, sector: u64, segments: &[(u32, u8, u8)]) -> i16 {
        let id = 0x1234_5678_9abc_def0 ^ u64::from(op);
        self.front.put(&request(op, count, id, sector, segments));
        let served = self.block.serve(&self.domain).unwrap();
        assert!(!served.more);
        let response: [u8; 16] = self.front.next().unwrap();
        assert_eq!((u64::from_le_bytes(response[..8].try_into().unwrap()), response[8]), (id, op));
        // Nothing of a request is held any more when its response is there: only the ring is.
        assert_eq!(self.domain.grants().in_use(), 1);
        i16::from_le_bytes([response[10], response[11]])
    }
}

#[test]
fn sectors_go_both_ways() {
    let disk = Ram::new(false, false);
    let mut guest = Guest::new(Arc::clone(&disk) as Arc<dyn Storage>);
    let pieces = [(DATA, 6, 7), (DATA + 1, 0, 7), (DATA + 2, 3, 3)];
    assert_eq!(guest.ask(0, 3, 5, &pieces), 0);
    let data = |page: u32, sector: u64| guest.domain.test_read::<1>(u64::from(page), sector * 512)[0];
    assert_eq!((data(DATA, 5), data(DATA, 6), data(DATA, 7)), (0, 5, 6));
    assert_eq!((data(DATA + 1, 0), data(DATA + 1, 7)), (7, 14));
    assert_eq!((data(DATA + 2, 2), data(DATA + 2, 3), data(DATA + 2, 4)), (0, 15, 0));
    assert_eq!(guest.ask(1, 1, SECTORS - 1, &[(DATA + 1, 7, 7)]), 0);
    assert_eq!(disk.bytes.lock().unwrap()[SECTORS as usize * 512 - 1], 14);
    assert_eq!(guest.ask(3, 0, 0, &[]), 0);
    assert_eq!(disk.flushes.load(Ordering::Relaxed), 1);
    guest.block.disconnect(&guest.domain);
    assert_eq!((guest.domain.grants().in_use(), guest.domain.test_flags(RING as u32)), (0, 1));
}

#[test]
fn wild_requests_get_errors() {
    let mut guest = Guest::new(Ram::new(false, false));
    let one = [(DATA, 0, 0)];
    for op in [0, 1] {
        // Segment counts; sectors outside of the page, backwards; behind the end of the disk; no such grant.
        assert_eq!(guest.ask(op, 0, 0, &[]), -1);
        assert_eq!(guest.ask(op, 12, 0, &one), -1);
        assert_eq!(guest.ask(op, 255, 0, &one), -1);
        assert_eq!(guest.ask(op, 1, 0, &[(DATA, 0, 8)]), -1);
        assert_eq!(guest.ask(op, 1, 0, &[(DATA, 0, 255)]), -1);
        assert_eq!(guest.ask(op, 1, 0, &[(DATA, 5, 4)]), -1);
        for sector in [SECTORS, SECTORS + 1, u64::MAX, u64::MAX / 512, 1 << 55] {
            assert_eq!(guest.ask(op, 1, sector, &one), -1);
        }
        assert_eq!(guest.ask(op, 1, SECTORS - 1, &[(DATA, 0, 1)]), -1);
        assert_eq!(guest.ask(op, 2, 0, &[(DATA, 0, 0), (99, 0, 0)]), -1);
    }
    // What is not offered: barrier, indirect and what there never was; discard of a disk that cannot.
    for op in [2, 4, 6, 7, 255] {
        assert_eq!(guest.ask(op, 1, 0, &one), -2);
    }
    assert_eq!(guest.ask(5, 0, SECTORS, &[(1, 0, 0)]), -1);
    assert_eq!(guest.ask(5, 0, 0, &[(1, 0, 0)]), -2);
    assert_eq!(guest.ask(0, 1, 0, &one), 0);
}

#[test]
fn a_page_that_may_only_be_read_is_not_written() {
    let mut guest = Guest::new(Ram::new(false, false));
    let mfn = guest.domain.test_mfn(u64::from(DATA)).0 as u32;
    guest.domain.test_entry(DATA, 1 | 4, 0, mfn);
    assert_eq!(guest.ask(0, 1, 0, &[(DATA, 0, 0)]), -1);
    assert_eq!(guest.ask(1, 1, 0, &[(DATA, 0, 0)]), 0);
}

#[test]
fn a_read_only_disk_refuses_writes() {
    let disk = Ram::new(true, false);
    let mut guest = Guest::new(Arc::clone(&disk) as Arc<dyn Storage>);
    assert_eq!(guest.ask(1, 1, 1, &[(DATA, 0, 0)]), -1);
    assert_eq!(guest.ask(5, 0, 1, &[(1, 0, 0)]), -1);
    assert_eq!(guest.ask(0, 1, 1, &[(DATA, 0, 0)]), 0);
    assert_eq!(disk.bytes.lock().unwrap()[512], 1);
}

#[test]
fn an_error_of_the_host_is_an_answer() {
    let mut guest = Guest::new(Ram::new(false, true));
    assert_eq!(guest.ask(0, 1, 0, &[(DATA, 0, 0)]), -1);
    assert_eq!(guest.ask(1, 1, 0, &[(DATA, 0, 0)]), -1);
    assert_eq!(guest.ask(3, 0, 0, &[]), -1);
}

#[test]
fn a_full_ring_is_served_and_wraps() {
    let mut guest = Guest::new(Ram::new(false, false));
    for round in 0..5u64 {
        for n in 0..32 {
            guest.front.put(&request(0, 1, round * 32 + n, n, &[(DATA, 0, 0)]));
        }
        let Served { notify, more } = guest.block.serve(&guest.domain).unwrap();
        assert_eq!((notify, more), (round == 0, false));
        for n in 0..32 {
            let response: [u8; 16] = guest.front.next().unwrap();
            assert_eq!(u64::from_le_bytes(response[..8].try_into().unwrap()), round * 32 + n);
        }
        assert!(guest.front.next::<16>().is_none());
        assert_eq!(guest.front.get(4), guest.front.produced + 1);
    }
}

#[test]
fn wild_indices_end_the_device() {
    for ahead in [33, 1 << 31, u32::MAX] {
        let mut guest = Guest::new(Ram::new(false, false));
        guest.front.set(0, ahead);
        assert_eq!(guest.block.serve(&guest.domain), Err(Fault::Indices { ahead, size: 32 }));
        guest.block.disconnect(&guest.domain);
        assert_eq!(guest.domain.grants().in_use(), 0);
    }
    // Back to before what has been taken.
    let mut guest = Guest::new(Ram::new(false, false));
    assert_eq!(guest.ask(0, 1, 0, &[(DATA, 0, 0)]), 0);
    guest.front.set(0, 0);
    assert!(guest.block.serve(&guest.domain).is_err());
}

#[test]
fn a_ring_must_be_a_page_that_can_be_written() {
    let domain = fake::domain();
    for reference in [0, 8, 600, u32::MAX] {
        assert!(Block::connect(&domain, reference, Ram::new(false, false)).is_err());
    }
    let front = Front::new(&domain, RING, ENTRY, 32);
    front.set(0, 33);
    assert!(Block::connect(&domain, RING as u32, Ram::new(false, false)).is_err());
    assert_eq!((domain.grants().in_use(), domain.test_flags(RING as u32)), (0, 1));
}

#[test]
fn a_ring_goes_on_where_it_stands() {
    let domain = fake::domain();
    let mut front = Front::new(&domain, RING, ENTRY, 32);
    (front.produced, front.consumed) = (u32::MAX, u32::MAX);
    front.set(0, u32::MAX);
    front.set(8, u32::MAX);
    let mut block = Block::connect(&domain, RING as u32, Ram::new(false, false)).unwrap();
    front.put(&request(3, 0, 77, 0, &[]));
    block.serve(&domain).unwrap();
    assert_eq!(front.next::<16>().unwrap()[0], 77);
}

#[test]
fn a_file_is_a_disk_for_one_writer() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    std::fs::write(&path, vec![7; 1024]).unwrap();
    let disk = FileDisk::open(&path, false).unwrap();
    let busy = FileDisk::open(&path, true).unwrap_err();
    assert_eq!(busy.kind(), io::ErrorKind::WouldBlock);
    disk.write_at(512, &[9; 512]).unwrap();
    disk.flush().unwrap();
    drop(disk);
    let (one, other) = (FileDisk::open(&path, true).unwrap(), FileDisk::open(&path, true).unwrap());
    let mut bytes = [0; 1024];
    one.read_at(0, &mut bytes).unwrap();
    assert_eq!((bytes[511], bytes[512]), (7, 9));
    assert!(other.write_at(0, &[1]).is_err());
    assert!(one.read_at(1024, &mut bytes[..1]).is_err());
    for size in [0, 511, 513] {
        let path = folder.path().join("odd");
        std::fs::write(&path, vec![0; size]).unwrap();
        assert_eq!(FileDisk::open(&path, false).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
    assert!(FileDisk::open(folder.path(), true).is_err());
}

proptest! {
    /// Whatever bytes a ring holds, it is answered or given up, and nothing of the guest's stays in use.
    #[test]
    fn any_ring_is_served(
        entries in proptest::collection::vec(any::<[u8; 48]>(), 1..40),
        produced in prop_oneof![0u32..40, any::<u32>()],
    ) {
        let mut guest = Guest::new(Ram::new(false, false));
        for (index, entry) in entries.iter().enumerate() {
            let mut bytes = *entry;
            // Not all of them wild in the same way.
            bytes[0] %= 8;
            bytes[1] %= 14;
            bytes[17..24].fill(0);
            let reference = DATA + u32::from(bytes[24] % 13);
            bytes[24..28].copy_from_slice(&reference.to_le_bytes());
            guest.domain.test_write(RING, 64 + (index as u64 % 32) * ENTRY, &bytes);
        }
        guest.front.set(0, produced);
        let served = guest.block.serve(&guest.domain);
        prop_assert_eq!(served.is_err(), produced > 32);
        guest.block.disconnect(&guest.domain);
        prop_assert_eq!(guest.domain.grants().in_use(), 0);
        for n in 0..11 {
            prop_assert_eq!(guest.domain.test_flags(DATA + n), 1);
        }
    }
}
