//! The bus: which device answers at which port or physical address. Ranges are sorted and disjoint; what nothing answers
//! reads as all ones, swallows writes, and is counted.
use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use crate::{Device, Nanos, all_ones, lock};

/// An address space that a bus can serve.
pub trait Address: Copy + Ord + fmt::Debug + fmt::LowerHex + Send + Sync + 'static {
    /// What an address is called in messages.
    const WHAT: &'static str;
    /// The highest address.
    const LAST: u64;
    /// The address as a number.
    fn value(self) -> u64;
    /// The address of a number not above [`Address::LAST`].
    fn from_value(value: u64) -> Self;
}

/// An I/O port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port(pub u16);

/// A guest-physical address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PhysAddr(pub u64);

impl Address for Port {
    const WHAT: &'static str = "port";
    const LAST: u64 = 0xFFFF;
    fn value(self) -> u64 {
        self.0.into()
    }
    fn from_value(value: u64) -> Self {
        Port(value as u16)
    }
}

impl Address for PhysAddr {
    const WHAT: &'static str = "physical address";
    const LAST: u64 = u64::MAX;
    fn value(self) -> u64 {
        self.0
    }
    fn from_value(value: u64) -> Self {
        PhysAddr(value)
    }
}

impl fmt::LowerHex for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::LowerHex::fmt(&self.0, f)
    }
}

impl fmt::LowerHex for PhysAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::LowerHex::fmt(&self.0, f)
    }
}

/// Why a range cannot be put on a bus.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// Two devices would answer at one address.
    #[error(
        "{what} range {first:#x}-{last:#x} for {device} overlaps {other_first:#x}-{other_last:#x} of {other}"
    )]
    Overlap {
        what: &'static str,
        device: &'static str,
        first: u64,
        last: u64,
        other: &'static str,
        other_first: u64,
        other_last: u64,
    },
    /// The range is empty or runs over the end of the address space.
    #[error("{what} range at {first:#x} of {length:#x} bytes for {device} is empty or passes {limit:#x}")]
    Range { what: &'static str, device: &'static str, first: u64, length: u64, limit: u64 },
}

struct Entry {
    first: u64,
    last: u64,
    /// The device's register at `first`.
    offset: u64,
    name: &'static str,
    device: Arc<Mutex<dyn Device>>,
}

/// A device's place on a bus, as [`Bus::ranges`] lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BusRange<A> {
    /// The first address.
    pub first: A,
    /// The last address.
    pub last: A,
    /// Who answers.
    pub name: &'static str,
}

/// The devices of one address space.
///
/// Accesses take `&self` and may come from several threads. Ranges may be inserted and removed at any time, also from
/// inside an access (a PCI function whose base address register is written).
pub struct Bus<A: Address> {
    entries: RwLock<Vec<Entry>>,
    /// Index of the entry that was found last; only a hint.
    last_hit: AtomicUsize,
    unmapped_reads: AtomicU64,
    unmapped_writes: AtomicU64,
    address: std::marker::PhantomData<fn(A)>,
}

impl<A: Address> Default for Bus<A> {
    fn default() -> Self {
        Bus {
            entries: RwLock::default(),
            last_hit: AtomicUsize::new(0),
            unmapped_reads: AtomicU64::new(0),
            unmapped_writes: AtomicU64::new(0),
            address: std::marker::PhantomData,
        }
    }
}

impl<A: Address> fmt::Debug for Bus<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.ranges()).finish()
    }
}

/// What answers at an address, as far as one access is concerned.
enum Found {
    /// The whole access lies in one device; this is it and the offset.
    Device(Arc<Mutex<dyn Device>>, u64),
    /// Nothing answers at any byte of it.
    Nothing,
    /// It spans a boundary.
    Split,
}

impl<A: Address> Bus<A> {
    /// An empty bus.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets `device` answer at `length` addresses from `first`; its register `offset` is at `first`.
    pub fn insert<D: Device + 'static>(
        &self,
        first: A,
        length: u64,
        device: &Arc<Mutex<D>>,
        offset: u64,
    ) -> Result<(), BusError> {
        let name = lock(device).name();
        self.insert_dyn(first, length, Arc::clone(device) as Arc<Mutex<dyn Device>>, offset, name)
    }

    /// As [`Bus::insert`], for a device whose type is not known and which may be locked by the caller.
    pub fn insert_dyn(
        &self,
        first: A,
        length: u64,
        device: Arc<Mutex<dyn Device>>,
        offset: u64,
        name: &'static str,
    ) -> Result<(), BusError> {
        let what = A::WHAT;
        let first = first.value();
        let last =
            length.checked_sub(1).and_then(|more| first.checked_add(more)).filter(|&last| last <= A::LAST);
        let Some(last) = last else {
            return Err(BusError::Range { what, device: name, first, length, limit: A::LAST });
        };
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        let place = entries.partition_point(|entry| entry.last < first);
        if let Some(other) = entries.get(place).filter(|other| other.first <= last) {
            return Err(BusError::Overlap {
                what,
                device: name,
                first,
                last,
                other: other.name,
                other_first: other.first,
                other_last: other.last,
            });
        }
        entries.insert(place, Entry { first, last, offset, name, device });
        Ok(())
    }

    /// Removes the range that begins at `first`; false if there is none.
    pub fn remove(&self, first: A) -> bool {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        match entries.binary_search_by_key(&first.value(), |entry| entry.first) {
            Ok(place) => {
                entries.remove(place);
                true
            }
            Err(_) => false,
        }
    }

    /// All ranges in ascending order.
    pub fn ranges(&self) -> Vec<BusRange<A>> {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        let range = |entry: &Entry| BusRange {
            first: A::from_value(entry.first),
            last: A::from_value(entry.last),
            name: entry.name,
        };
        entries.iter().map(range).collect()
    }

    /// Whether any device answers at `address`.
    pub fn is_mapped(&self, address: A) -> bool {
        !matches!(self.find(address.value(), 1), Found::Nothing)
    }

    /// Reads `size` (1, 2, 4 or 8) bytes.
    pub fn read(&self, address: A, size: u8, now: Nanos) -> u64 {
        let address = address.value();
        match self.find(address, size) {
            Found::Device(device, offset) => lock(&device).read(offset, size, now) & all_ones(size),
            Found::Nothing => {
                self.unmapped_reads.fetch_add(1, Ordering::Relaxed);
                all_ones(size)
            }
            Found::Split => crate::read_bytes(0, size, |i| match self.byte(address, i) {
                Some(at) => self.read(at, 1, now) as u8,
                None => 0xFF,
            }),
        }
    }

    /// Writes the low `size` (1, 2, 4 or 8) bytes of `value`.
    pub fn write(&self, address: A, size: u8, value: u64, now: Nanos) {
        let address = address.value();
        match self.find(address, size) {
            Found::Device(device, offset) => lock(&device).write(offset, size, value & all_ones(size), now),
            Found::Nothing => {
                self.unmapped_writes.fetch_add(1, Ordering::Relaxed);
            }
            Found::Split => crate::write_bytes(0, size, value, |i, byte| {
                if let Some(at) = self.byte(address, i) {
                    self.write(at, 1, byte.into(), now);
                }
            }),
        }
    }

    /// Reads to which nothing answered.
    pub fn unmapped_reads(&self) -> u64 {
        self.unmapped_reads.load(Ordering::Relaxed)
    }

    /// Writes to which nothing answered.
    pub fn unmapped_writes(&self) -> u64 {
        self.unmapped_writes.load(Ordering::Relaxed)
    }

    fn byte(&self, address: u64, i: u64) -> Option<A> {
        address.checked_add(i).filter(|&at| at <= A::LAST).map(A::from_value)
    }

    fn find(&self, address: u64, size: u8) -> Found {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        // An access over the end of the address space is cut into bytes, of which those beyond the end are unmapped.
        let end = address.checked_add(u64::from(size.saturating_sub(1)));
        let Some(end) = end.filter(|&end| end <= A::LAST) else {
            return Found::Split;
        };
        let inside = |entry: &&Entry| entry.first <= address && end <= entry.last;
        let hint = self.last_hit.load(Ordering::Relaxed);
        if let Some(entry) = entries.get(hint).filter(inside) {
            return Found::Device(
                Arc::clone(&entry.device),
                entry.offset.wrapping_add(address - entry.first),
            );
        }
        let place = entries.partition_point(|entry| entry.last < address);
        match entries.get(place) {
            Some(entry) if inside(&entry) => {
                self.last_hit.store(place, Ordering::Relaxed);
                Found::Device(Arc::clone(&entry.device), entry.offset.wrapping_add(address - entry.first))
            }
            Some(entry) if entry.first <= end => Found::Split,
            _ => Found::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{State, StateError};

    /// Memory that answers byte by byte and notes the widths it was asked for.
    #[derive(Default)]
    struct Ram {
        bytes: [u8; 16],
        widths: Vec<u8>,
    }

    impl Device for Ram {
        fn name(&self) -> &'static str {
            "ram"
        }
        fn read(&mut self, offset: u64, size: u8, _now: Nanos) -> u64 {
            self.widths.push(size);
            crate::read_bytes(offset, size, |o| self.bytes[o as usize])
        }
        fn write(&mut self, offset: u64, size: u8, value: u64, _now: Nanos) {
            self.widths.push(size);
            crate::write_bytes(offset, size, value, |o, byte| self.bytes[o as usize] = byte);
        }
        fn reset(&mut self, _now: Nanos) {}
        fn save(&self) -> State {
            State::encode("ram", 1, &self.bytes)
        }
        fn restore(&mut self, state: &State) -> Result<(), StateError> {
            self.bytes = state.decode("ram", 1)?;
            Ok(())
        }
    }

    fn ram() -> Arc<Mutex<Ram>> {
        Arc::default()
    }

    #[test]
    fn an_overlap_names_both_ranges() {
        let bus = Bus::<Port>::new();
        bus.insert(Port(0x20), 4, &ram(), 0).unwrap();
        for (first, length) in [(0x1E, 3), (0x23, 1), (0x20, 4), (0x1F, 9)] {
            let error = bus.insert(Port(first), length, &ram(), 0).unwrap_err();
            let text = error.to_string();
            assert!(text.contains("0x20-0x23") && text.contains(&format!("{first:#x}-")), "{text}");
        }
        bus.insert(Port(0x1E), 2, &ram(), 0).unwrap();
        bus.insert(Port(0x24), 1, &ram(), 0).unwrap();
        assert!(matches!(bus.insert(Port(0xFFFF), 2, &ram(), 0), Err(BusError::Range { .. })));
        assert!(matches!(bus.insert(Port(0x40), 0, &ram(), 0), Err(BusError::Range { .. })));
    }

    #[test]
    fn unmapped_reads_give_ones_and_are_counted() {
        let bus = Bus::<PhysAddr>::new();
        assert_eq!(bus.read(PhysAddr(0xE000_0000), 4, 0), 0xFFFF_FFFF);
        assert_eq!(bus.read(PhysAddr(u64::MAX), 8, 0), u64::MAX);
        bus.write(PhysAddr(0x1000), 2, 5, 0);
        assert_eq!((bus.unmapped_reads(), bus.unmapped_writes()), (2, 1));
    }

    #[test]
    fn offsets_count_from_the_chip_and_wide_accesses_stay_whole_inside_it() {
        let bus = Bus::<Port>::new();
        let chip = ram();
        bus.insert(Port(0x60), 1, &chip, 0).unwrap();
        bus.insert(Port(0x64), 4, &chip, 4).unwrap();
        bus.write(Port(0x64), 4, 0x4433_2211, 0);
        assert_eq!(chip.lock().unwrap().bytes[4..8], [0x11, 0x22, 0x33, 0x44]);
        assert_eq!(bus.read(Port(0x66), 2, 0), 0x4433);
        assert_eq!(chip.lock().unwrap().widths, [4, 2]);
    }

    #[test]
    fn an_access_over_a_boundary_is_split_into_bytes() {
        let bus = Bus::<Port>::new();
        let (a, b) = (ram(), ram());
        bus.insert(Port(0x10), 2, &a, 0).unwrap();
        bus.insert(Port(0x12), 1, &b, 8).unwrap();
        bus.write(Port(0x11), 4, 0xDDCC_BBAA, 0);
        assert_eq!(a.lock().unwrap().bytes[1], 0xAA);
        assert_eq!(b.lock().unwrap().bytes[8], 0xBB);
        assert_eq!(bus.read(Port(0x11), 4, 0), 0xFFFF_BBAA);
        assert_eq!(bus.read(Port(0x0F), 2, 0), 0x00FF);
        bus.insert(Port(0xFFFF), 1, &a, 1).unwrap();
        assert_eq!(bus.read(Port(0xFFFF), 4, 0), 0xFFFF_FFAA);
    }

    #[test]
    fn removed_ranges_are_gone_and_the_hint_does_not_lie() {
        let bus = Bus::<Port>::new();
        let (a, b) = (ram(), ram());
        a.lock().unwrap().bytes[0] = 1;
        b.lock().unwrap().bytes[0] = 2;
        bus.insert(Port(1), 1, &a, 0).unwrap();
        bus.insert(Port(2), 1, &b, 0).unwrap();
        assert_eq!(bus.read(Port(2), 1, 0), 2);
        assert!(bus.remove(Port(1)) && !bus.remove(Port(1)));
        assert_eq!(bus.read(Port(1), 1, 0), 0xFF);
        assert_eq!(bus.read(Port(2), 1, 0), 2);
    }
}
