//! The network back-end.

use proptest::prelude::*;

use super::*;
use crate::backend::net::{Net, RX_ENTRY, TX_ENTRY};
use crate::backend::switch::{Plug, Switch};

const TX: u64 = 10;
const RX: u64 = 11;
/// Pages that the guest sends from, and pages that it receives into.
const OUT: u64 = 20;
const IN: u64 = 40;

const MORE: u16 = 4;
const EXTRA: u16 = 8;

struct Guest {
    domain: Arc<Domain>,
    tx: Front,
    rx: Front,
    net: Box<Net>,
    /// The other end of the cable.
    peer: Plug,
}

impl Guest {
    fn new(scatter: bool) -> Self {
        let domain = fake::domain();
        let (tx, rx) = (Front::new(&domain, TX, TX_ENTRY, 256), Front::new(&domain, RX, RX_ENTRY, 256));
        for page in (OUT..OUT + 20).chain(IN..IN + 20) {
            domain.test_grant(page as u32, page);
        }
        let switch = Arc::new(Switch::default());
        let (plug, peer) = (Arc::new(switch.plug()), switch.plug());
        peer.open(None);
        let net = Net::connect(&domain, TX as u32, RX as u32, scatter, plug).unwrap();
        Guest { domain, tx, rx, net: Box::new(net), peer }
    }

    fn send(&mut self, page: u64, offset: u16, flags: u16, id: u16, size: u16) {
        let mut request = [0; 12];
        request[..4].copy_from_slice(&(page as u32).to_le_bytes());
        for (at, value) in [(4, offset), (6, flags), (8, id), (10, size)] {
            request[at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
        self.tx.put(&request);
    }

    fn post(&mut self, page: u64, id: u16) {
        let mut request = [0; 8];
        request[..2].copy_from_slice(&id.to_le_bytes());
        request[4..].copy_from_slice(&(page as u32).to_le_bytes());
        self.rx.put(&request);
    }

    fn serve(&mut self) -> Served {
        let served = self.net.serve(&self.domain).unwrap();
        // Only the rings stay mapped.
        assert_eq!(self.domain.grants().in_use(), 2);
        served
    }

    /// Identifier and status of the next answer to what was sent.
    fn sent(&mut self) -> Option<(u16, i16)> {
        let bytes: [u8; 4] = self.tx.next()?;
        Some((u16::from_le_bytes([bytes[0], bytes[1]]), i16::from_le_bytes([bytes[2], bytes[3]])))
    }

    /// Identifier, flags and status of the next buffer that was filled.
    fn filled(&mut self) -> Option<(u16, u16, i16)> {
        let b: [u8; 8] = self.rx.next()?;
        let half = |at: usize| u16::from_le_bytes([b[at], b[at + 1]]);
        assert_eq!(half(2), 0);
        Some((half(0), half(4), half(6) as i16))
    }
}

fn frame(length: usize) -> Vec<u8> {
    let mut frame: Vec<u8> = (0..length).map(|i| (i * 7 % 251) as u8).collect();
    (frame[0], frame[6]) = (2, 2);
    frame
}

#[test]
fn a_packet_in_parts_is_one_frame() {
    let mut guest = Guest::new(true);
    let whole = frame(3000);
    guest.domain.test_write(OUT, 96, &whole[..1000]);
    guest.domain.test_write(OUT + 1, 0, &whole[1000..1900]);
    guest.domain.test_write(OUT + 2, 2996, &whole[1900..]);
    guest.send(OUT, 96, MORE, 7, 3000);
    guest.send(OUT + 1, 0, MORE, 8, 900);
    guest.send(OUT + 2, 2996, 0, 9, 1100);
    assert_eq!(guest.serve(), Served { notify: true, more: false });
    assert_eq!(guest.peer.take().unwrap()[..], whole[..]);
    for id in 7..10 {
        assert_eq!(guest.sent(), Some((id, 0)));
    }
    assert_eq!(guest.sent(), None);
}

#[test]
fn wild_packets_are_refused_whole() {
    let mut guest = Guest::new(true);
    // Too short; outside of the page; no grant; parts as long as the whole, or longer; extra information.
    guest.send(OUT, 0, 0, 1, 13);
    guest.send(OUT, 4090, 0, 2, 60);
    guest.send(OUT, u16::MAX, 0, 3, u16::MAX);
    guest.send(600, 0, 0, 4, 60);
    guest.send(OUT, 0, MORE, 5, 60);
    guest.send(OUT, 0, 0, 5, 60);
    guest.send(OUT, 0, MORE, 6, 60);
    guest.send(OUT, 0, 0, 6, u16::MAX);
    guest.serve();
    for id in [1, 2, 3, 4, 5, 5, 6, 6] {
        assert_eq!(guest.sent(), Some((id, -1)));
    }
    guest.send(OUT, 0, EXTRA, 7, 60);
    // Two slots of extra information: the second byte says that there is another.
    guest.send(0x0100, 0, 0, 0, 0);
    guest.send(0, 0, 0, 0, 0);
    guest.serve();
    assert_eq!([guest.sent(), guest.sent(), guest.sent()], [Some((7, -1)), Some((0, 1)), Some((0, 1))]);
    // More parts than any packet has.
    for n in 0..19 {
        guest.send(OUT, 0, if n < 18 { MORE } else { 0 }, n, if n == 0 { 1000 } else { 20 });
    }
    guest.serve();
    assert!((0..19).all(|n| guest.sent() == Some((n, -1))));
    assert!(guest.peer.take().is_none());
    // A checksum that is not there to be finished.
    guest.send(OUT, 0, 1, 8, 60);
    guest.serve();
    assert_eq!(guest.sent(), Some((8, -1)));
}

#[test]
fn torn_packets_and_wild_indices_end_the_interface() {
    for flags in [MORE, EXTRA] {
        let mut guest = Guest::new(true);
        guest.send(OUT, 0, flags, 1, 60);
        assert_eq!(guest.net.serve(&guest.domain), Err(Fault::Torn(1)));
        guest.net.disconnect(&guest.domain);
        assert_eq!(guest.domain.grants().in_use(), 0);
    }
    let mut guest = Guest::new(true);
    guest.tx.set(0, 257);
    assert!(guest.net.serve(&guest.domain).is_err());
    let mut guest = Guest::new(true);
    guest.rx.set(0, 257);
    guest.peer.send(&frame(60));
    assert!(guest.net.serve(&guest.domain).is_err());
}

#[test]
fn frames_go_into_the_buffers_in_order() {
    let mut guest = Guest::new(true);
    for n in 0..6 {
        guest.post(IN + n, 100 + n as u16);
    }
    let (short, long) = (frame(60), frame(9000));
    guest.peer.send(&short);
    guest.peer.send(&long);
    assert!(guest.net.waiting());
    assert_eq!(guest.serve(), Served { notify: true, more: false });
    assert_eq!(guest.filled(), Some((100, 0, 60)));
    assert_eq!(guest.domain.test_read::<60>(IN, 0)[..], short[..]);
    let flags = [MORE, MORE, 0].into_iter().zip([4096, 4096, 808]);
    for (n, (flags, length)) in (1..).zip(flags) {
        assert_eq!(guest.filled(), Some((100 + n, flags, length)));
    }
    assert_eq!(guest.domain.test_read::<808>(IN + 3, 0)[..], long[8192..]);
    assert_eq!(guest.filled(), None);
    // Two buffers are left: the next long one waits for a third, and what came after it for its turn.
    guest.peer.send(&long);
    guest.peer.send(&short);
    guest.serve();
    assert_eq!((guest.filled(), guest.net.waiting()), (None, false));
    assert_eq!(guest.rx.get(4), 7);
    guest.post(IN + 6, 106);
    guest.post(IN + 7, 107);
    guest.serve();
    let ids: Vec<u16> = std::iter::from_fn(|| guest.filled()).map(|(id, _, _)| id).collect();
    assert_eq!(ids, [104, 105, 106, 107]);
}

#[test]
fn a_buffer_that_cannot_be_written_is_answered_so() {
    let mut guest = Guest::new(true);
    guest.post(600, 1);
    guest.post(IN, 2);
    guest.peer.send(&frame(60));
    guest.peer.send(&frame(60));
    guest.serve();
    assert_eq!((guest.filled(), guest.filled()), (Some((1, 0, -1)), Some((2, 0, 60))));
}

#[test]
fn a_guest_that_takes_single_pages_gets_no_more() {
    let mut guest = Guest::new(false);
    guest.post(IN, 1);
    guest.peer.send(&frame(4097));
    guest.peer.send(&frame(4096));
    guest.serve();
    assert_eq!((guest.filled(), guest.filled()), (Some((1, 0, 4096)), None));
}

#[test]
fn what_no_guest_takes_is_dropped() {
    let mut guest = Guest::new(true);
    for _ in 0..3000 {
        guest.peer.send(&frame(9000));
    }
    guest.serve();
    assert!(!guest.net.waiting());
    guest.net.disconnect(&guest.domain);
    assert!(guest.peer.send(&frame(60)));
}

#[test]
fn a_switch_learns() {
    let switch = Arc::new(Switch::default());
    let plugs: Vec<Plug> = (0..3).map(|_| switch.plug()).collect();
    plugs.iter().for_each(|plug| plug.open(None));
    let frame = |to: u8, from: u8| {
        let mut frame = [0; 60];
        (frame[0], frame[5], frame[6], frame[11]) = (if to == 255 { 1 } else { 2 }, to, 2, from);
        frame
    };
    let got = || plugs.iter().map(|plug| plug.take().is_some()).collect::<Vec<_>>();
    plugs[0].send(&frame(1, 0));
    assert_eq!(got(), [false, true, true]);
    plugs[1].send(&frame(0, 1));
    assert_eq!(got(), [true, false, false]);
    plugs[0].send(&frame(1, 0));
    assert_eq!(got(), [false, true, false]);
    plugs[2].send(&frame(255, 2));
    assert_eq!(got(), [true, true, false]);
    // A station moves; to oneself nothing is sent.
    plugs[2].send(&frame(1, 0));
    assert_eq!(got(), [false, true, false]);
    plugs[1].send(&frame(0, 1));
    assert_eq!(got(), [false, false, true]);
    plugs[1].send(&frame(1, 1));
    assert_eq!(got(), [false, false, false]);
    assert!(!plugs[0].send(&[0; 13]) && !plugs[0].send(&[0; 65_536]));
    // No number of addresses makes it grow without bound, and it works on.
    for n in 0..20_000u32 {
        let mut frame = frame(255, 0);
        frame[7..11].copy_from_slice(&n.to_le_bytes());
        plugs[0].send(&frame);
    }
    assert!(plugs[1].dropped() > 18_000);
}

proptest! {
    /// Whatever the rings hold, they are answered or given up, and nothing of the guest's stays in use.
    #[test]
    fn any_rings_are_served(
        out in proptest::collection::vec(any::<[u8; 12]>(), 1..80),
        into in proptest::collection::vec(any::<[u8; 8]>(), 1..80),
        produced in prop_oneof![0u32..80, any::<u32>()],
    ) {
        let mut guest = Guest::new(true);
        for entry in &out {
            let mut entry = *entry;
            entry[1..4].fill(0);
            (entry[5], entry[7]) = (entry[5] % 17, 0);
            guest.tx.put(&entry);
        }
        for entry in &into {
            let mut entry = *entry;
            entry[5..].fill(0);
            guest.rx.put(&entry);
        }
        guest.tx.set(0, produced);
        guest.peer.send(&frame(9000));
        let _ = guest.net.serve(&guest.domain);
        guest.net.disconnect(&guest.domain);
        prop_assert_eq!(guest.domain.grants().in_use(), 0);
        for page in OUT..OUT + 20 {
            prop_assert_eq!(guest.domain.test_flags(page as u32), 1);
        }
    }
}
