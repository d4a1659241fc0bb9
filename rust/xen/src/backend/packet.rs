//! Checksums of packets that a guest has left to its network card.

const VLAN_TAGS: [u16; 2] = [0x8100, 0x88a8];
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const TCP: u8 = 6;
const UDP: u8 = 17;
/// IPv6 headers that may stand between: hop-by-hop, routing, destination.
const EXTENSIONS: [u8; 3] = [0, 43, 60];
const MOST_HEADERS: usize = 8;

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

/// The sum of the 16-bit words, the last one filled up with zeros.
fn sum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<2>();
    let last = rest.first().map_or(0, |byte| u64::from(*byte) << 8);
    words.iter().map(|word| u64::from(u16::from_be_bytes(*word))).sum::<u64>() + last
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Where a packet's transport header is, where the packet ends, its protocol, and the sum of its addresses.
struct Transport {
    start: usize,
    end: usize,
    protocol: u8,
    addresses: u64,
}

fn ipv4(frame: &[u8], at: usize) -> Option<Transport> {
    let header = usize::from(frame.get(at)? & 15) * 4;
    let end = at + usize::from(half(frame, at + 2)?);
    // The checksum of a fragment is somewhere else, if it is a part of it at all.
    let whole = half(frame, at + 6)? & 0x3fff == 0;
    let addresses = sum(frame.get(at + 12..at + 20)?);
    let transport = Transport { start: at + header, end, protocol: *frame.get(at + 9)?, addresses };
    (whole && header >= 20).then_some(transport)
}

fn ipv6(frame: &[u8], at: usize) -> Option<Transport> {
    let end = at + 40 + usize::from(half(frame, at + 4)?);
    let addresses = sum(frame.get(at + 8..at + 40)?);
    let (mut protocol, mut start) = (*frame.get(at + 6)?, at + 40);
    for _ in 0..MOST_HEADERS {
        if !EXTENSIONS.contains(&protocol) {
            return Some(Transport { start, end, protocol, addresses });
        }
        protocol = *frame.get(start)?;
        start += (usize::from(*frame.get(start + 1)?) + 1) * 8;
    }
    None
}

fn transport(frame: &[u8]) -> Option<Transport> {
    let mut at = 12;
    while VLAN_TAGS.contains(&half(frame, at)?) && at < 20 {
        at += 4;
    }
    match half(frame, at)? {
        IPV4 => ipv4(frame, at + 2),
        IPV6 => ipv6(frame, at + 2),
        _ => None,
    }
}

/// Writes the TCP or UDP checksum of a frame; false if it has none that could be written.
pub fn finish_checksum(frame: &mut [u8]) -> bool {
    let Some(Transport { start, end, protocol, addresses }) = transport(frame) else { return false };
    let field = match protocol {
        TCP => 16,
        UDP => 6,
        _ => return false,
    };
    let Some(segment) = frame.get_mut(start..end).filter(|segment| segment.len() > field + 1) else {
        return false;
    };
    segment[field..field + 2].fill(0);
    let pseudo = addresses + u64::from(protocol) + segment.len() as u64;
    let check = match !fold(pseudo + sum(segment)) {
        0 if protocol == UDP => 0xffff,
        check => check,
    };
    segment[field..field + 2].copy_from_slice(&check.to_be_bytes());
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    /// UDP from 10.0.0.1:5 to 10.0.0.2:6 with these bytes, behind this much of a header; the checksum is missing.
    fn udp(link: &[u8], data: &[u8]) -> Vec<u8> {
        let length = (8 + data.len()) as u16;
        let mut ip = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, UDP, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        ip[2..4].copy_from_slice(&(20 + length).to_be_bytes());
        let mut transport = vec![0, 5, 0, 6];
        transport.extend(length.to_be_bytes());
        transport.extend([0xde, 0xad]);
        [link, &ip, &transport, data].concat()
    }

    fn link(kind: &[u8]) -> Vec<u8> {
        [&[2; 12], kind].concat()
    }

    #[test]
    fn checksums_are_those_of_the_standard() {
        let plain = link(&[8, 0]);
        let mut frame = udp(&plain, b"hello");
        // By hand: 0a00+0001+0a00+0002 + 0011+000d + 0005+0006+000d + 6865+6c6c+6f00, folded and complemented.
        assert!(finish_checksum(&mut frame));
        assert_eq!(frame[40..42], (!fold(0x1403 + 0x1e + 0x18 + 0x6865 + 0x6c6c + 0x6f00)).to_be_bytes());
        let mut tagged = udp(&link(&[0x81, 0, 0, 5, 8, 0]), b"hello");
        assert!(finish_checksum(&mut tagged));
        assert_eq!(tagged[44..46], frame[40..42]);
        // What comes behind the packet to fill the frame up does not count.
        let mut padded = udp(&plain, b"hello");
        padded.extend([9; 20]);
        assert!(finish_checksum(&mut padded));
        assert_eq!(padded[40..42], frame[40..42]);
    }

    #[test]
    fn what_has_no_checksum_is_left_alone() {
        let plain = link(&[8, 0]);
        let good = udp(&plain, b"hello");
        let change = |at: usize, byte: u8| {
            let mut frame = good.clone();
            frame[at] = byte;
            frame
        };
        // Another protocol, a fragment, headers that reach beyond the frame or are too short, another packet.
        for frame in
            [change(23, 1), change(20, 0x20), change(21, 1), change(17, 200), change(14, 0x44), change(13, 6)]
        {
            let mut after = frame.clone();
            assert!(!finish_checksum(&mut after));
            assert_eq!(after, frame);
        }
        for length in 0..good.len() {
            assert!(!finish_checksum(&mut good[..length].to_vec()));
        }
    }

    #[test]
    fn extension_headers_are_passed_over() {
        let mut packet = vec![0x60, 0, 0, 0, 0, 20, 0, 64];
        packet.extend([1; 32]);
        packet.extend([UDP, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 6, 0, 12, 0, 0, b'd', b'a', b't', b'a']);
        let mut frame = [link(&[0x86, 0xdd]), packet].concat();
        assert!(finish_checksum(&mut frame));
        // The sum over everything, the checksum included, is all ones.
        let segment = &frame[62..];
        assert_eq!(fold(sum(&[1; 32]) + 17 + 12 + sum(segment)), 0xffff);
        frame[54] = 0;
        frame[55] = 255;
        assert!(!finish_checksum(&mut frame));
    }
}
