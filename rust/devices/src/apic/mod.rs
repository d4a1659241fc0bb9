//! The interrupt messages between local and I/O APICs, and who receives them (Intel SDM volume 3A, chapter 11).
//!
//! What others may do to a local APIC goes through its [`ApicPort`], a set of atomics without a lock, so that a chip can
//! raise an interrupt on any thread and whatever it holds locked. The [`LocalApic`] itself belongs to its vCPU.
mod io;
mod local;
mod port;
mod registers;
mod timer;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

pub use io::{IoApic, IoApicConfig, IoApicInput};
pub use local::{Gp, LocalApic, LocalApicConfig, Pending};
pub use port::{ApicPort, Kick, LocalPin};
pub use timer::TscClock;

/// How a message wants to be taken (SDM 3A, 11.5.1, table 11-1 of the local vector table and of the ICR).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// The vector, at every destination.
    Fixed,
    /// The vector, at the destination with the lowest processor priority.
    LowestPriority,
    /// System management interrupt.
    Smi,
    /// Non-maskable interrupt.
    Nmi,
    /// Reset to the wait-for-SIPI state.
    Init,
    /// Start-up: the vector is the page of the first instruction.
    Startup,
    /// As from an 8259A: the processor fetches the vector from the interrupt controllers.
    ExtInt,
}

impl Delivery {
    /// The delivery mode field of the ICR, a vector table entry, a redirection entry or an MSI.
    pub fn from_bits(bits: u8) -> Option<Delivery> {
        Some(match bits & 7 {
            0 => Delivery::Fixed,
            1 => Delivery::LowestPriority,
            2 => Delivery::Smi,
            4 => Delivery::Nmi,
            5 => Delivery::Init,
            6 => Delivery::Startup,
            7 => Delivery::ExtInt,
            _ => return None,
        })
    }
}

/// Who a message is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// The APIC with this ID.
    Physical(u32),
    /// Every APIC whose logical destination register matches.
    Logical(u32),
    /// Everyone.
    All,
    /// Everyone but the sender.
    Others,
}

/// One interrupt message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who it is for.
    pub destination: Destination,
    /// How it is delivered.
    pub delivery: Delivery,
    /// The interrupt vector, or the start-up page.
    pub vector: u8,
    /// Level-triggered: the end of interrupt is broadcast to the I/O APICs.
    pub level: bool,
}

/// The path between APICs. Called by chips while they are locked; an implementation takes no lock of a device above the
/// I/O APIC in the lock order.
pub trait ApicBus: Send + Sync {
    /// Delivers `message`; `sender` is the initial ID of the local APIC it comes from, if it comes from one.
    fn send(&self, message: Message, sender: Option<u32>);
    /// A local APIC has ended a level-triggered interrupt.
    fn end_of_interrupt(&self, vector: u8);
    /// A new local APIC joins.
    fn attach(&self, port: Arc<ApicPort>);
}

impl fmt::Debug for dyn ApicBus + '_ {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApicBus")
    }
}

/// The [`ApicBus`] of a machine.
#[derive(Debug, Default)]
pub struct ApicFabric {
    ports: RwLock<Vec<Arc<ApicPort>>>,
    io: RwLock<Vec<Weak<Mutex<IoApic>>>>,
}

impl ApicFabric {
    /// A bus without members. Local APICs attach themselves when they are made.
    pub fn new() -> Arc<ApicFabric> {
        Arc::default()
    }

    /// Lets `io` hear ends of interrupts.
    pub fn attach_io(&self, io: &Arc<Mutex<IoApic>>) {
        self.io.write().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(io));
    }

    /// A message-signalled interrupt: a write of `data` to `address` in FEE00000h-FEEFFFFFh (SDM 3A, 11.11).
    pub fn write_msi(&self, address: u64, data: u32) {
        let destination = byte_destination((address >> 12) as u8, address & 4 != 0);
        if let Some(delivery) = Delivery::from_bits((data >> 8) as u8) {
            let level = data & 0x8000 != 0;
            // A level-triggered MSI that is a de-assert does nothing on its own.
            if !level || data & 0x4000 != 0 {
                self.send(Message { destination, delivery, vector: data as u8, level }, None);
            }
        }
    }
}

/// The destination of a source with eight bits for it: I/O APIC, MSI, xAPIC command register.
fn byte_destination(id: u8, logical: bool) -> Destination {
    match (logical, id) {
        (true, id) => Destination::Logical(id.into()),
        (false, 0xFF) => Destination::All,
        (false, id) => Destination::Physical(id.into()),
    }
}

impl ApicBus for ApicFabric {
    fn send(&self, message: Message, sender: Option<u32>) {
        let ports = self.ports.read().unwrap_or_else(PoisonError::into_inner);
        let receivers = ports.iter().filter(|port| port.is_addressed(message.destination, sender));
        if message.delivery == Delivery::LowestPriority {
            // Ties go to the first, so that a run in virtual time repeats.
            let lowest = receivers.filter(|port| port.accepts_vectors()).min_by_key(|port| port.priority());
            if let Some(port) = lowest {
                port.deliver(Delivery::Fixed, message.vector, message.level);
            }
        } else {
            receivers.for_each(|port| port.deliver(message.delivery, message.vector, message.level));
        }
    }

    fn end_of_interrupt(&self, vector: u8) {
        let chips: Vec<_> = self.io.read().unwrap_or_else(PoisonError::into_inner).clone();
        for chip in chips.iter().filter_map(Weak::upgrade) {
            crate::lock(&chip).end_of_interrupt(vector);
        }
    }

    fn attach(&self, port: Arc<ApicPort>) {
        self.ports.write().unwrap_or_else(PoisonError::into_inner).push(port);
    }
}

#[cfg(test)]
mod tests;
