//! The block back-end (xen/include/public/io/blkif.h): requests of a ring become reads and writes of a [`Storage`].
//!
//! Requests are served in order and each is finished when its response is written, so what a flush answers for has all
//! been written before it.

use std::io;
use std::sync::Arc;

use super::disk::{SECTOR, Storage};
use super::ring::Ring;
use super::{Backend, Fault, Served};
use crate::domain::Domain;
use crate::grant::{Access, Mapping};

/// Bytes of a request, which is longer than a response.
pub const ENTRY: u64 = 112;
/// Pages of one request (`BLKIF_MAX_SEGMENTS_PER_REQUEST`).
const MOST_SEGMENTS: usize = 11;
/// Sectors of a page.
const SECTORS_PER_PAGE: u8 = 8;

/// `BLKIF_OP_*`.
mod op {
    pub const READ: u8 = 0;
    pub const WRITE: u8 = 1;
    pub const FLUSH_DISKCACHE: u8 = 3;
    pub const DISCARD: u8 = 5;
}

/// `BLKIF_RSP_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i16)]
enum Outcome {
    Okay = 0,
    Error = -1,
    NotSupported = -2,
}

/// A piece of a page: its grant reference, and sectors in it, the last included.
#[derive(Clone, Copy, Debug, Default)]
struct Segment {
    reference: u32,
    first: u8,
    last: u8,
}

impl Segment {
    fn bytes(self) -> usize {
        (usize::from(self.last - self.first) + 1) * SECTOR as usize
    }
    fn offset(self) -> usize {
        usize::from(self.first) * SECTOR as usize
    }
}

/// A request as it was copied from the ring.
#[derive(Debug)]
struct Request([u8; ENTRY as usize]);

impl Request {
    fn number<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.0[at..at + N]);
        bytes
    }
    fn operation(&self) -> u8 {
        self.0[0]
    }
    fn id(&self) -> [u8; 8] {
        self.number(8)
    }
    fn sector(&self) -> u64 {
        u64::from_le_bytes(self.number(16))
    }
    /// Of a discard.
    fn sectors(&self) -> u64 {
        u64::from_le_bytes(self.number(24))
    }

    /// The pieces of a read or write; `None` if one is not inside its page, or there are too many or none.
    fn segments(&self) -> Option<Vec<Segment>> {
        let count = usize::from(self.0[1]);
        if count == 0 || count > MOST_SEGMENTS {
            return None;
        }
        let segment = |index: usize| {
            let at = 24 + index * 8;
            let (first, last) = (self.0[at + 4], self.0[at + 5]);
            let inside = first <= last && last < SECTORS_PER_PAGE;
            inside.then(|| Segment { reference: u32::from_le_bytes(self.number(at)), first, last })
        };
        (0..count).map(segment).collect()
    }
}

/// The back-end of one disk.
#[derive(Debug)]
pub struct Block {
    ring: Ring,
    disk: Arc<dyn Storage>,
    /// What is on its way between the disk and the guest's pages.
    buffer: Vec<u8>,
}

impl Block {
    /// Connects a disk to the ring behind a grant reference.
    ///
    /// # Errors
    /// When the ring cannot be used.
    pub fn connect(domain: &Domain, reference: u32, disk: Arc<dyn Storage>) -> Result<Self, Fault> {
        let ring = Ring::attach(domain, reference, ENTRY)?;
        Ok(Block { ring, disk, buffer: Vec::new() })
    }

    /// Serves one request.
    fn execute(&mut self, domain: &Domain, request: &Request) -> Outcome {
        match request.operation() {
            op::READ => self.transfer(domain, request, Access::Write),
            op::WRITE if !self.disk.read_only() => self.transfer(domain, request, Access::Read),
            op::FLUSH_DISKCACHE => outcome(self.disk.flush()),
            op::DISCARD if !self.disk.read_only() => self.discard(request),
            op::WRITE | op::DISCARD => Outcome::Error,
            _ => Outcome::NotSupported,
        }
    }

    /// The range of the disk in bytes, if it lies inside.
    fn range(&self, sector: u64, bytes: u64) -> Option<u64> {
        let offset = sector.checked_mul(SECTOR)?;
        (offset.checked_add(bytes)? <= self.disk.size()).then_some(offset)
    }

    /// A read (which writes to the guest's pages) or a write.
    fn transfer(&mut self, domain: &Domain, request: &Request, access: Access) -> Outcome {
        let Some(segments) = request.segments() else { return Outcome::Error };
        let total: usize = segments.iter().map(|segment| segment.bytes()).sum();
        let Some(offset) = self.range(request.sector(), total as u64) else { return Outcome::Error };
        let mut pages = Vec::with_capacity(segments.len());
        for segment in &segments {
            match domain.map_grant(segment.reference, access) {
                Ok(page) => pages.push(page),
                Err(_) => break,
            }
        }
        let done = if pages.len() == segments.len() {
            self.buffer.resize(total, 0);
            self.copy(domain, &segments, &pages, offset, access)
        } else {
            Outcome::Error
        };
        pages.into_iter().for_each(|page| domain.unmap_grant(page));
        done
    }

    fn copy(
        &mut self,
        domain: &Domain,
        segments: &[Segment],
        pages: &[Mapping],
        offset: u64,
        access: Access,
    ) -> Outcome {
        if access == Access::Write && self.disk.read_at(offset, &mut self.buffer).is_err() {
            return Outcome::Error;
        }
        let mut rest = self.buffer.as_mut_slice();
        for (segment, page) in segments.iter().zip(pages) {
            let (now, later) = rest.split_at_mut(segment.bytes());
            let copied = match access {
                Access::Write => page.write(domain.memory(), segment.offset(), now),
                Access::Read => page.read(domain.memory(), segment.offset(), now),
            };
            if copied.is_err() {
                return Outcome::Error;
            }
            rest = later;
        }
        match access {
            Access::Write => Outcome::Okay,
            Access::Read => outcome(self.disk.write_at(offset, &self.buffer)),
        }
    }

    fn discard(&mut self, request: &Request) -> Outcome {
        let bytes = request.sectors().checked_mul(SECTOR);
        let range = bytes.and_then(|bytes| Some((self.range(request.sector(), bytes)?, bytes)));
        match range {
            Some((_, 0)) => Outcome::Okay,
            Some((offset, bytes)) => outcome(self.disk.discard(offset, bytes)),
            None => Outcome::Error,
        }
    }
}

fn outcome(done: io::Result<()>) -> Outcome {
    match done {
        Ok(()) => Outcome::Okay,
        Err(error) if error.kind() == io::ErrorKind::Unsupported => Outcome::NotSupported,
        Err(_) => Outcome::Error,
    }
}

impl Backend for Block {
    fn serve(&mut self, domain: &Domain) -> Result<Served, Fault> {
        let memory = domain.memory();
        let mut served = Served::default();
        // A guest with several vCPUs may add requests as fast as they are served.
        for _ in 0..self.ring.size() {
            if self.ring.waiting(memory)? == 0 {
                served.notify |= self.ring.publish(memory);
                if !self.ring.expect(memory, 1)? {
                    return Ok(served);
                }
            }
            let mut request = Request([0; ENTRY as usize]);
            self.ring.take(memory, &mut request.0);
            let status = self.execute(domain, &request) as i16;
            let mut response = [0; 16];
            response[..8].copy_from_slice(&request.id());
            response[8] = request.operation();
            response[10..12].copy_from_slice(&status.to_le_bytes());
            self.ring.respond(memory, &response);
        }
        served.notify |= self.ring.publish(memory);
        served.more = self.ring.expect(memory, 1)?;
        Ok(served)
    }

    fn disconnect(self: Box<Self>, domain: &Domain) {
        self.ring.detach(domain);
    }
}
