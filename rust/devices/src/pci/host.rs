//! The configuration ports CF8h to CFFh (PCI 3.0, 3.2.2.3.2), the functions of bus 0 behind them, and the mapping of base
//! address registers onto the buses. Port CF9h, which lies among them, is the reset control register.
use std::sync::{Arc, Mutex, Weak};

use serde::{Deserialize, Serialize};

use super::{Decoded, PciAddress, PciFunction};
use crate::state::damaged;
use crate::system::ResetControl;
use crate::{Bus, Device, MachineControl, Nanos, PhysAddr, Port, State, StateError, all_ones, lock};

const KIND: &str = "pci-host";
const ENABLE: u32 = 1 << 31;
/// Reserved bits of the address register read as zero.
const ADDRESS: u32 = ENABLE | 0x00FF_FFFC;
const RESET_CONTROL: u64 = 1;
const DATA: u64 = 4;

/// What answers behind each base address register.
pub type Regions = [Option<Arc<Mutex<dyn Device>>>; 6];

/// Why a function cannot be inserted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PciError {
    /// Two functions at one address.
    #[error("PCI address {address} for {function} already has {other}")]
    Occupied { address: PciAddress, function: &'static str, other: &'static str },
}

struct Slot {
    address: PciAddress,
    name: &'static str,
    function: Arc<Mutex<dyn PciFunction>>,
    regions: Regions,
    /// Where each region is on a bus now.
    mapped: [Option<Decoded>; 6],
}

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.address, self.name)
    }
}

#[derive(Serialize, Deserialize)]
struct Record {
    address: u32,
    reset: State,
    functions: Vec<(u8, u8, State)>,
}

/// The host bridge's side towards the processor. Offset 0 is port CF8h.
#[derive(Debug)]
pub struct PciHost {
    address: u32,
    reset: ResetControl,
    slots: Vec<Slot>,
    /// Weak, because the buses own this device.
    ports: Weak<Bus<Port>>,
    memory: Weak<Bus<PhysAddr>>,
}

impl PciHost {
    /// An empty bus 0 whose functions' regions are put on `ports` and `memory`.
    pub fn new(
        ports: &Arc<Bus<Port>>,
        memory: &Arc<Bus<PhysAddr>>,
        control: Arc<dyn MachineControl>,
    ) -> PciHost {
        PciHost {
            address: 0,
            reset: ResetControl::new(control),
            slots: Vec::new(),
            ports: Arc::downgrade(ports),
            memory: Arc::downgrade(memory),
        }
    }

    /// Puts a function at `address`; `regions` answer behind its base address registers.
    pub fn insert<F: PciFunction + 'static>(
        &mut self,
        address: PciAddress,
        function: Arc<Mutex<F>>,
        regions: Regions,
    ) -> Result<(), PciError> {
        let name = lock(&function).name();
        if let Some(slot) = self.slots.iter().find(|slot| slot.address == address) {
            return Err(PciError::Occupied { address, function: name, other: slot.name });
        }
        self.slots.push(Slot { address, name, function, regions, mapped: [None; 6] });
        let last = self.slots.len() - 1;
        self.map(last);
        Ok(())
    }

    /// The functions and their names, in the order of insertion.
    pub fn functions(&self) -> impl Iterator<Item = (PciAddress, &'static str)> {
        self.slots.iter().map(|slot| (slot.address, slot.name))
    }

    /// The function that the address register selects, and the register.
    fn selected(&self) -> Option<(usize, u8)> {
        let bus = self.address >> 16 & 0xFF;
        if self.address & ENABLE == 0 || bus != 0 {
            return None;
        }
        let address = PciAddress::new((self.address >> 11) as u8, (self.address >> 8) as u8);
        let index = self.slots.iter().position(|slot| slot.address == address)?;
        Some((index, self.address as u8 & 0xFC))
    }

    fn read_data(&mut self, offset: u64, size: u8, now: Nanos) -> u64 {
        match self.selected() {
            Some((index, register)) => {
                let register = register | offset as u8 & 3;
                lock(&self.slots[index].function).read_config(register, size, now).into()
            }
            None => all_ones(size),
        }
    }

    fn write_data(&mut self, offset: u64, size: u8, value: u64, now: Nanos) {
        if let Some((index, register)) = self.selected() {
            let register = register | offset as u8 & 3;
            lock(&self.slots[index].function).write_config(register, size, value as u32, now);
            self.map(index);
        }
    }

    /// Moves the regions of a function to where its base address registers say. A place that is taken by another device
    /// leaves the region unreachable, as two cards at one address would be of no use either.
    fn map(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        let decoded = lock(&slot.function).config().decoded();
        for (bar, now) in decoded.into_iter().enumerate() {
            let Some(region) = &slot.regions[bar] else { continue };
            if slot.mapped[bar] == now {
                continue;
            }
            match slot.mapped[bar].take() {
                Some(Decoded::Io { base, .. }) => {
                    self.ports.upgrade().map(|ports| ports.remove(Port(base)));
                }
                Some(Decoded::Memory { base, .. }) => {
                    self.memory.upgrade().map(|memory| memory.remove(PhysAddr(base)));
                }
                None => {}
            }
            let device = Arc::clone(region);
            let done = match now {
                Some(Decoded::Io { base, length }) => {
                    let ports = self.ports.upgrade();
                    ports.is_some_and(|bus| bus.insert_dyn(Port(base), length, device, 0, slot.name).is_ok())
                }
                Some(Decoded::Memory { base, length }) => {
                    let memory = self.memory.upgrade();
                    memory.is_some_and(|bus| {
                        bus.insert_dyn(PhysAddr(base), length, device, 0, slot.name).is_ok()
                    })
                }
                None => false,
            };
            slot.mapped[bar] = now.filter(|_| done);
        }
    }
}

impl Device for PciHost {
    fn name(&self) -> &'static str {
        KIND
    }

    fn read(&mut self, offset: u64, size: u8, now: Nanos) -> u64 {
        match (offset, size) {
            (0, 4) => self.address.into(),
            (DATA.., 1 | 2 | 4) if (offset & 3) + u64::from(size) <= 4 => self.read_data(offset, size, now),
            _ => crate::read_bytes(offset, size, |offset| match offset {
                RESET_CONTROL => self.reset.read(0, 1, now) as u8,
                DATA.. => self.read_data(offset, 1, now) as u8,
                // Only doublewords reach the address register.
                _ => all_ones(1) as u8,
            }),
        }
    }

    fn write(&mut self, offset: u64, size: u8, value: u64, now: Nanos) {
        match (offset, size) {
            (0, 4) => self.address = value as u32 & ADDRESS,
            (DATA.., 1 | 2 | 4) if (offset & 3) + u64::from(size) <= 4 => {
                self.write_data(offset, size, value, now)
            }
            _ => crate::write_bytes(offset, size, value, |offset, byte| match offset {
                RESET_CONTROL => self.reset.write(0, 1, byte.into(), now),
                DATA.. => self.write_data(offset, 1, byte.into(), now),
                _ => {}
            }),
        }
    }

    fn reset(&mut self, now: Nanos) {
        self.address = 0;
        self.reset.reset(now);
        for index in 0..self.slots.len() {
            lock(&self.slots[index].function).reset(now);
            self.map(index);
        }
    }

    /// The record holds those of all functions.
    fn save(&self) -> State {
        let function = |slot: &Slot| (slot.address.slot, slot.address.function, lock(&slot.function).save());
        let functions = self.slots.iter().map(function).collect();
        State::encode(KIND, 1, &Record { address: self.address, reset: self.reset.save(), functions })
    }

    fn restore(&mut self, state: &State) -> Result<(), StateError> {
        let record: Record = state.decode(KIND, 1)?;
        let addresses = record.functions.iter().map(|&(slot, function, _)| PciAddress::new(slot, function));
        if !addresses.eq(self.slots.iter().map(|slot| slot.address)) {
            return Err(damaged(KIND, "its functions are not this board's"));
        }
        let before: Vec<State> = self.slots.iter().map(|slot| lock(&slot.function).save()).collect();
        let states = record.functions.iter().map(|(_, _, state)| state);
        let restored =
            self.slots.iter().zip(states).try_for_each(|(slot, state)| lock(&slot.function).restore(state));
        if let Err(error) = restored.and_then(|()| self.reset.restore(&record.reset)) {
            for (slot, state) in self.slots.iter().zip(&before) {
                lock(&slot.function).restore(state)?;
            }
            return Err(error);
        }
        self.address = record.address & ADDRESS;
        (0..self.slots.len()).for_each(|index| self.map(index));
        Ok(())
    }
}
