//! The 256 bytes of a function's configuration space: which bits can be written, base address registers, capabilities
//! (PCI 3.0, 6.1 to 6.7).
use crate::state::damaged;
use crate::{State, StateError};

const LENGTH: usize = 256;
const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const BARS: usize = 0x10;
const CAPABILITIES: usize = 0x34;

/// Command register: I/O and memory decoding, bus mastering, parity and system errors, interrupt disable.
const COMMAND_WRITABLE: u16 = 0x0547;
const COMMAND_IO: u8 = 1;
const COMMAND_MEMORY: u8 = 2;
const COMMAND_INTX_OFF: u8 = 4;
/// Status: medium DEVSEL timing, fast back-to-back; the error bits are cleared by writing ones.
const STATUS_INITIAL: u16 = 0x0280;
const STATUS_CLEAR: u16 = 0xF900;
const STATUS_CAPABILITIES: u8 = 0x10;

/// Who a function is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Revision ID.
    pub revision: u8,
    /// Base class, sub-class and programming interface, e.g. 060000h for a host bridge.
    pub class: u32,
    /// Subsystem vendor and device ID.
    pub subsystem: (u16, u16),
    /// The device has more than one function (said by function 0).
    pub multifunction: bool,
    /// 0 for none, 1 to 4 for INTA to INTD.
    pub interrupt_pin: u8,
}

/// What a base address register decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarKind {
    /// I/O ports.
    Io,
    /// Memory below 4 GiB.
    Memory,
    /// Memory anywhere; takes two registers.
    Memory64,
    /// As `Memory64`, and reads have no side effects.
    Prefetchable64,
}

/// What a base address register decodes at present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// I/O ports from `base`.
    Io { base: u16, length: u64 },
    /// Physical addresses from `base`.
    Memory { base: u64, length: u64 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bar {
    kind: BarKind,
    length: u64,
}

/// A function's configuration registers.
#[derive(Clone, Debug)]
pub struct ConfigSpace {
    bytes: [u8; LENGTH],
    initial: [u8; LENGTH],
    writable: [u8; LENGTH],
    cleared_by_ones: [u8; LENGTH],
    bars: [Option<Bar>; 6],
    next_capability: usize,
    last_link: usize,
}

impl ConfigSpace {
    /// A type 0 header. Command, status, cache line size, latency timer and interrupt line behave as the specification
    /// says; everything else is read-only until [`ConfigSpace::allow`] or [`ConfigSpace::add_bar`].
    pub fn new(identity: Identity) -> ConfigSpace {
        let zero = [0; LENGTH];
        let mut space = ConfigSpace {
            bytes: zero,
            initial: zero,
            writable: zero,
            cleared_by_ones: zero,
            bars: [None; 6],
            next_capability: 0x40,
            last_link: CAPABILITIES,
        };
        space.set(0x00, &identity.vendor.to_le_bytes());
        space.set(0x02, &identity.device.to_le_bytes());
        space.set(STATUS, &STATUS_INITIAL.to_le_bytes());
        space.set(0x08, &[identity.revision]);
        space.set(0x09, &identity.class.to_le_bytes()[..3]);
        space.set(0x0E, &[if identity.multifunction { 0x80 } else { 0 }]);
        space.set(0x2C, &identity.subsystem.0.to_le_bytes());
        space.set(0x2E, &identity.subsystem.1.to_le_bytes());
        space.set(0x3D, &[identity.interrupt_pin]);
        space.allow(COMMAND, &COMMAND_WRITABLE.to_le_bytes());
        space.allow(0x0C, &[0xFF, 0xFF]);
        space.allow(0x3C, &[0xFF]);
        space.cleared_by_ones[STATUS..STATUS + 2].copy_from_slice(&STATUS_CLEAR.to_le_bytes());
        space
    }

    /// Sets bytes to what they are after reset. Bytes past the end are dropped.
    pub fn set(&mut self, offset: usize, bytes: &[u8]) {
        for (i, &byte) in bytes.iter().enumerate() {
            if let Some(place) = self.initial.get_mut(offset + i) {
                *place = byte;
                self.bytes[offset + i] = byte;
            }
        }
    }

    /// Makes the bits of `mask` writable, and no others of these bytes.
    pub fn allow(&mut self, offset: usize, mask: &[u8]) {
        for (i, &mask) in mask.iter().enumerate() {
            if let Some(place) = self.writable.get_mut(offset + i) {
                *place = mask;
            }
        }
    }

    /// Gives base address register `index` (0 to 5) a region of `length` bytes, a power of two (rounded up otherwise).
    pub fn add_bar(&mut self, index: usize, kind: BarKind, length: u64) {
        let wide = matches!(kind, BarKind::Memory64 | BarKind::Prefetchable64);
        if index + usize::from(wide) >= 6 {
            return;
        }
        let smallest = if kind == BarKind::Io { 4 } else { 16 };
        let length = length.clamp(smallest, 1 << 40).next_power_of_two();
        let flags: u8 = match kind {
            BarKind::Io => 0x1,
            BarKind::Memory => 0x0,
            BarKind::Memory64 => 0x4,
            BarKind::Prefetchable64 => 0xC,
        };
        let mask = (!(length - 1)).to_le_bytes();
        let width = if wide { 8 } else { 4 };
        self.set(BARS + 4 * index, &[flags]);
        self.allow(BARS + 4 * index, &mask[..width]);
        self.bars[index] = Some(Bar { kind, length });
    }

    /// Appends a capability with the given body (without its two header bytes) and says where it lies.
    pub fn add_capability(&mut self, id: u8, body: &[u8]) -> Option<u8> {
        let offset = self.next_capability;
        let end = offset + 2 + body.len();
        if end > LENGTH {
            return None;
        }
        let place = offset as u8;
        self.set(offset, &[id, 0]);
        self.set(offset + 2, body);
        self.set(self.last_link, &[place]);
        self.set(STATUS, &[STATUS_INITIAL as u8 | STATUS_CAPABILITIES]);
        self.last_link = offset + 1;
        self.next_capability = end.next_multiple_of(4);
        Some(place)
    }

    /// Reads up to four bytes.
    pub fn read(&self, offset: u8, size: u8) -> u32 {
        let byte = |i: u8| self.bytes.get(usize::from(offset) + usize::from(i)).copied().unwrap_or(0xFF);
        (0..size.min(4)).fold(0, |value, i| value | u32::from(byte(i)) << (8 * i))
    }

    /// Writes up to four bytes, as far as they can be written.
    pub fn write(&mut self, offset: u8, size: u8, value: u32) {
        for i in 0..size.min(4) {
            let at = usize::from(offset) + usize::from(i);
            if at < LENGTH {
                let (byte, writable) = ((value >> (8 * i)) as u8, self.writable[at]);
                let kept = self.bytes[at] & !(byte & self.cleared_by_ones[at]);
                self.bytes[at] = kept & !writable | byte & writable;
            }
        }
    }

    /// Changes bytes that the guest cannot: status bits, device registers.
    pub fn poke(&mut self, offset: usize, byte: u8) {
        if let Some(place) = self.bytes.get_mut(offset) {
            *place = byte;
        }
    }

    /// Back to the state after reset.
    pub fn reset(&mut self) {
        self.bytes = self.initial;
    }

    /// Whether the function may drive its interrupt pin.
    pub fn intx_enabled(&self) -> bool {
        self.bytes[COMMAND + 1] & COMMAND_INTX_OFF == 0
    }

    /// What each base address register decodes now. A register that the guest has not set decodes nothing.
    pub fn decoded(&self) -> [Option<Decoded>; 6] {
        std::array::from_fn(|index| {
            let bar = self.bars[index]?;
            let low = u64::from(self.read((BARS + 4 * index) as u8, 4)) & !0xF;
            let length = bar.length;
            match bar.kind {
                BarKind::Io => {
                    let base = self.read((BARS + 4 * index) as u8, 4) & !3;
                    let on = self.bytes[COMMAND] & COMMAND_IO != 0 && base != 0;
                    // Ports have sixteen bits; a base beyond them is what sizing leaves for a moment.
                    let base = u16::try_from(base).ok().filter(|_| on)?;
                    Some(Decoded::Io { base, length })
                }
                BarKind::Memory | BarKind::Memory64 | BarKind::Prefetchable64 => {
                    let high = if bar.kind == BarKind::Memory {
                        0
                    } else {
                        self.read((BARS + 4 * index + 4) as u8, 4)
                    };
                    let base = u64::from(high) << 32 | low;
                    let on = self.bytes[COMMAND] & COMMAND_MEMORY != 0 && base != 0;
                    // All ones is the answer to sizing, not an address.
                    let sizing = base.checked_add(length).is_none() || base == !(length - 1) & 0xFFFF_FFFF;
                    (on && !sizing).then_some(Decoded::Memory { base, length })
                }
            }
        })
    }

    /// The registers as a state record of `kind`.
    pub fn save(&self, kind: &'static str) -> State {
        State::encode(kind, 1, &self.bytes.to_vec())
    }

    /// Takes the registers from a record.
    pub fn restore(&mut self, kind: &'static str, state: &State) -> Result<(), StateError> {
        let bytes: Vec<u8> = state.decode(kind, 1)?;
        self.bytes = bytes.try_into().map_err(|bytes: Vec<u8>| {
            damaged(kind, format!("{:#x} bytes of configuration space", bytes.len()))
        })?;
        Ok(())
    }
}
