//! The network back-end (xen/include/public/io/netif.h): frames between a guest's rings and a plug of a [`Switch`].
//!
//! Everything is copied; no page of the guest's is kept but those of its rings. A guest that posts no buffers loses what
//! its plug cannot keep.
//!
//! [`Switch`]: super::switch::Switch

use std::sync::Arc;

use super::packet::finish_checksum;
use super::ring::Ring;
use super::switch::{Frame, HEADER, LONGEST, Plug};
use super::{Backend, Fault, Served};
use crate::domain::{Domain, work};

/// Bytes of the rings' entries.
pub const TX_ENTRY: u64 = 12;
pub const RX_ENTRY: u64 = 8;
/// Parts of a packet (`XEN_NETIF_NR_SLOTS_MIN`).
const MOST_PARTS: usize = 18;
const PAGE: usize = 4096;

/// `XEN_NETTXF_*`, `XEN_NETRXF_*`.
mod flag {
    pub const CSUM_BLANK: u16 = 1;
    pub const TX_MORE_DATA: u16 = 4;
    pub const TX_EXTRA_INFO: u16 = 8;
    pub const RX_MORE_DATA: u16 = 4;
    /// Of a slot with extra information: another one follows.
    pub const EXTRA_MORE: u8 = 1;
}

/// `XEN_NETIF_RSP_*`.
mod status {
    pub const OKAY: i16 = 0;
    pub const ERROR: i16 = -1;
    /// Answers a slot that was no request.
    pub const NULL: i16 = 1;
}

/// A part of a packet that the guest sends.
#[derive(Clone, Copy, Debug)]
struct Part {
    reference: u32,
    offset: u16,
    flags: u16,
    id: u16,
    /// Of the first part: that of the whole packet.
    size: u16,
}

impl Part {
    fn new(bytes: [u8; TX_ENTRY as usize]) -> Self {
        let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let reference = u32::from(half(0)) | u32::from(half(2)) << 16;
        Part { reference, offset: half(4), flags: half(6), id: half(8), size: half(10) }
    }
}

/// The slots of one packet.
#[derive(Debug)]
struct Packet {
    parts: Vec<Part>,
    extras: usize,
}

/// The back-end of one network interface.
#[derive(Debug)]
pub struct Net {
    tx: Ring,
    rx: Ring,
    plug: Arc<Plug>,
    /// The guest takes frames in several pages.
    scatter: bool,
    /// A frame that waits for the guest's buffers.
    held: Option<Frame>,
}

impl Net {
    /// Connects a plug to the rings behind grant references; the domain is called when frames come.
    ///
    /// # Errors
    /// When a ring cannot be used.
    pub fn connect(
        domain: &Arc<Domain>,
        tx: u32,
        rx: u32,
        scatter: bool,
        plug: Arc<Plug>,
    ) -> Result<Self, Fault> {
        let tx = Ring::attach(domain, tx, TX_ENTRY)?;
        let rx = match Ring::attach(domain, rx, RX_ENTRY) {
            Ok(rx) => rx,
            Err(fault) => {
                tx.detach(domain);
                return Err(fault);
            }
        };
        let weak = Arc::downgrade(domain);
        plug.open(Some(Arc::new(move || {
            if let Some(domain) = weak.upgrade() {
                domain.summon(work::BACKEND);
            }
        })));
        Ok(Net { tx, rx, plug, scatter, held: None })
    }

    /// Sends what the guest has put into its ring; true if there is more.
    fn transmit(&mut self, domain: &Domain) -> Result<bool, Fault> {
        let memory = domain.memory();
        let mut left = self.tx.size();
        loop {
            let waiting = self.tx.waiting(memory)?;
            if waiting == 0 && !self.tx.expect(memory, 1)? {
                return Ok(false);
            }
            if left == 0 {
                return Ok(true);
            }
            let waiting = self.tx.waiting(memory)?;
            let packet = self.take_packet(domain, waiting)?;
            left = left.saturating_sub((packet.parts.len() + packet.extras) as u32);
            let sent = match self.gather(domain, &packet) {
                Some(frame) => self.plug.send(&frame),
                None => false,
            };
            self.answer(domain, &packet, if sent { status::OKAY } else { status::ERROR });
        }
    }

    /// Takes the slots of the next packet, of those that wait.
    fn take_packet(&mut self, domain: &Domain, waiting: u32) -> Result<Packet, Fault> {
        let mut left = waiting;
        let mut take = |ring: &mut Ring| {
            left = left.checked_sub(1).ok_or(Fault::Torn(1))?;
            let mut slot = [0; TX_ENTRY as usize];
            ring.take(domain.memory(), &mut slot);
            Ok(slot)
        };
        let mut part = Part::new(take(&mut self.tx)?);
        let mut packet = Packet { parts: vec![part], extras: 0 };
        let mut extra = part.flags & flag::TX_EXTRA_INFO != 0;
        while extra {
            extra = take(&mut self.tx)?[1] & flag::EXTRA_MORE != 0;
            packet.extras += 1;
        }
        while part.flags & flag::TX_MORE_DATA != 0 {
            part = Part::new(take(&mut self.tx)?);
            packet.parts.push(part);
        }
        Ok(packet)
    }

    /// The frame of a packet; `None` if it cannot be one.
    fn gather(&self, domain: &Domain, packet: &Packet) -> Option<Vec<u8>> {
        let (first, others) = packet.parts.split_first()?;
        // What extra information is for has not been offered.
        if packet.extras > 0 || packet.parts.len() > MOST_PARTS {
            return None;
        }
        let total = usize::from(first.size);
        let behind: usize = others.iter().map(|part| usize::from(part.size)).sum();
        if !(HEADER..=LONGEST).contains(&total) || behind >= total {
            return None;
        }
        let mut frame = vec![0; total];
        let mut rest = frame.as_mut_slice();
        for (index, part) in packet.parts.iter().enumerate() {
            let length = if index == 0 { total - behind } else { usize::from(part.size) };
            let (now, later) = rest.split_at_mut(length);
            domain.copy_from_grant(part.reference, usize::from(part.offset), now).ok()?;
            rest = later;
        }
        let blank = first.flags & flag::CSUM_BLANK != 0;
        (!blank || finish_checksum(&mut frame)).then_some(frame)
    }

    /// Answers each slot of a packet.
    fn answer(&mut self, domain: &Domain, packet: &Packet, status: i16) {
        let mut give = |id: u16, status: i16| {
            let mut response = [0; 4];
            response[..2].copy_from_slice(&id.to_le_bytes());
            response[2..].copy_from_slice(&status.to_le_bytes());
            self.tx.respond(domain.memory(), &response);
        };
        for (index, part) in packet.parts.iter().enumerate() {
            give(part.id, status);
            if index == 0 {
                (0..packet.extras).for_each(|_| give(0, status::NULL));
            }
        }
    }

    /// Gives the guest what has come for it, as far as it has posted buffers; true if there is more.
    fn receive(&mut self, domain: &Domain) -> Result<bool, Fault> {
        let memory = domain.memory();
        for _ in 0..self.rx.size() {
            let Some(frame) = self.held.take().or_else(|| self.plug.take()) else { return Ok(false) };
            let pages = frame.len().div_ceil(PAGE) as u32;
            if pages > 1 && !self.scatter {
                continue;
            }
            if self.rx.waiting(memory)? < pages && !self.rx.expect(memory, pages)? {
                self.held = Some(frame);
                return Ok(false);
            }
            self.scatter_frame(domain, &frame);
        }
        Ok(true)
    }

    /// Copies a frame into the guest's next buffers. Each response goes to the place of its request.
    fn scatter_frame(&mut self, domain: &Domain, frame: &[u8]) {
        let mut pieces = frame.chunks(PAGE).peekable();
        while let Some(piece) = pieces.next() {
            let mut request = [0; RX_ENTRY as usize];
            self.rx.take(domain.memory(), &mut request);
            let reference = u32::from_le_bytes([request[4], request[5], request[6], request[7]]);
            let copied = domain.copy_to_grant(reference, 0, piece);
            let length = piece.len() as i16;
            let flags = if pieces.peek().is_some() { flag::RX_MORE_DATA } else { 0 };
            let mut response = [0; RX_ENTRY as usize];
            response[..2].copy_from_slice(&request[..2]);
            response[4..6].copy_from_slice(&flags.to_le_bytes());
            response[6..].copy_from_slice(&copied.map_or(status::ERROR, |()| length).to_le_bytes());
            self.rx.respond(domain.memory(), &response);
        }
    }
}

impl Backend for Net {
    fn serve(&mut self, domain: &Domain) -> Result<Served, Fault> {
        let sending = self.transmit(domain)?;
        let receiving = self.receive(domain)?;
        let memory = domain.memory();
        let notify = [&mut self.tx, &mut self.rx].map(|ring| ring.publish(memory));
        Ok(Served { notify: notify.contains(&true), more: sending || receiving })
    }

    fn waiting(&self) -> bool {
        // A frame that is held waits for the guest, which rings when it has posted buffers.
        self.held.is_none() && !self.plug.is_empty()
    }

    fn disconnect(self: Box<Self>, domain: &Domain) {
        self.plug.close();
        self.tx.detach(domain);
        self.rx.detach(domain);
    }
}
