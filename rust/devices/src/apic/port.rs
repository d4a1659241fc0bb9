//! The part of a local APIC that the rest of the machine can reach: interrupt requests, pins and the registers that
//! decide whether a message is for it. Lock-free, so that any chip on any thread can deliver.
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::SeqCst};

use serde::{Deserialize, Serialize};

use super::{Delivery, Destination};
use crate::Line;

/// Wakes a vCPU that may be halted or running on another thread.
pub trait Kick: Send + Sync {
    /// Something has arrived for the vCPU. Must not block.
    fn kick(&self);
}

impl fmt::Debug for dyn Kick + '_ {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Kick")
    }
}

/// Bits of [`ApicPort::events`].
const EVENT_NMI: u32 = 0x01;
const EVENT_INIT: u32 = 0x02;
const EVENT_STARTUP: u32 = 0x04;
const EVENT_SMI: u32 = 0x08;
const EVENT_EXTINT: u32 = 0x10;

/// Local vector table entry fields.
pub(super) const LVT_MASKED: u32 = 0x1_0000;
pub(super) const LVT_LEVEL: u32 = 0x8000;
pub(super) const LVT_REMOTE_IRR: u32 = 0x4000;

/// How the APIC takes part, as IA32_APIC_BASE and SVR say.
pub(super) const MODE_HARDWARE: u8 = 1;
pub(super) const MODE_SOFTWARE: u8 = 2;
pub(super) const MODE_X2APIC: u8 = 4;

/// Received errors, as in the error status register.
pub(super) const ERROR_RECEIVED_VECTOR: u32 = 0x40;

/// A 256-bit vector set.
#[derive(Debug, Default)]
pub(super) struct Vectors([AtomicU64; 4]);

impl Vectors {
    pub(super) fn set(&self, vector: u8) {
        self.0[usize::from(vector >> 6)].fetch_or(1 << (vector & 63), SeqCst);
    }

    pub(super) fn clear(&self, vector: u8) {
        self.0[usize::from(vector >> 6)].fetch_and(!(1 << (vector & 63)), SeqCst);
    }

    pub(super) fn load(&self) -> [u64; 4] {
        [0, 1, 2, 3].map(|i| self.0[i].load(SeqCst))
    }

    pub(super) fn store(&self, value: [u64; 4]) {
        for (word, value) in self.0.iter().zip(value) {
            word.store(value, SeqCst);
        }
    }
}

/// The highest vector of a set.
pub(super) fn highest(vectors: [u64; 4]) -> Option<u8> {
    (0..4).rev().find(|&i| vectors[i] != 0).map(|i| (i as u32 * 64 + 63 - vectors[i].leading_zeros()) as u8)
}

/// What of the port belongs into the local APIC's state record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PortState {
    pub(super) irr: [u64; 4],
    pub(super) tmr: [u64; 4],
    pub(super) events: u32,
    pub(super) startup_vector: u8,
    pub(super) pins: [bool; 2],
    pub(super) remote_irr: [bool; 2],
    pub(super) errors: u32,
}

/// A local APIC as the other chips see it.
#[derive(Debug)]
pub struct ApicPort {
    initial_id: u32,
    pub(super) irr: Vectors,
    /// Which of the requests are level-triggered.
    pub(super) tmr: Vectors,
    /// NMI, INIT, start-up, SMI and ExtINT messages not yet taken.
    events: AtomicU32,
    startup_vector: AtomicU8,
    /// Levels at LINT0 and LINT1, and their vector table entries.
    pins: [AtomicBool; 2],
    pub(super) lint: [AtomicU32; 2],
    /// Errors not yet latched into the error status register, and its vector table entry.
    pub(super) errors: AtomicU32,
    pub(super) error_lvt: AtomicU32,
    pub(super) mode: AtomicU8,
    pub(super) id: AtomicU32,
    pub(super) logical: AtomicU32,
    pub(super) format: AtomicU32,
    pub(super) processor_priority: AtomicU8,
    /// Something has changed that may let the vCPU take an interrupt.
    attention: AtomicBool,
    kick: Arc<dyn Kick>,
}

impl ApicPort {
    pub(super) fn new(initial_id: u32, kick: Arc<dyn Kick>) -> Arc<ApicPort> {
        Arc::new(ApicPort {
            initial_id,
            irr: Vectors::default(),
            tmr: Vectors::default(),
            events: AtomicU32::new(0),
            startup_vector: AtomicU8::new(0),
            pins: Default::default(),
            lint: [AtomicU32::new(LVT_MASKED), AtomicU32::new(LVT_MASKED)],
            errors: AtomicU32::new(0),
            error_lvt: AtomicU32::new(LVT_MASKED),
            mode: AtomicU8::new(MODE_HARDWARE),
            id: AtomicU32::new(initial_id),
            logical: AtomicU32::new(0),
            format: AtomicU32::new(u32::MAX),
            processor_priority: AtomicU8::new(0),
            attention: AtomicBool::new(false),
            kick,
        })
    }

    /// Whether something has happened since [`ApicPort::take_attention`] that may let the vCPU take an interrupt. Cheap
    /// enough to be asked at every block boundary.
    pub fn attention(&self) -> bool {
        self.attention.load(SeqCst)
    }

    /// Clears the mark; to be called before the local APIC is asked what is pending.
    pub fn take_attention(&self) -> bool {
        self.attention.swap(false, SeqCst)
    }

    pub(super) fn raise_attention(&self) {
        self.attention.store(true, SeqCst);
    }

    pub(super) fn notify(&self) {
        self.raise_attention();
        self.kick.kick();
    }

    /// Whether an NMI waits.
    pub fn nmi_pending(&self) -> bool {
        self.events.load(SeqCst) & EVENT_NMI != 0
    }

    /// Takes a waiting NMI.
    pub fn take_nmi(&self) -> bool {
        self.take_event(EVENT_NMI)
    }

    /// Takes a waiting INIT. The vCPU then calls [`super::LocalApic::init`] and waits for a start-up message.
    pub fn take_init(&self) -> bool {
        self.take_event(EVENT_INIT)
    }

    /// Takes a waiting start-up message: the page number of the first instruction. The vCPU asks only while it waits for
    /// one; a start-up message at any other time is to be taken and ignored.
    pub fn take_startup(&self) -> Option<u8> {
        self.take_event(EVENT_STARTUP).then(|| self.startup_vector.load(SeqCst))
    }

    /// Takes a waiting system management interrupt.
    pub fn take_smi(&self) -> bool {
        self.take_event(EVENT_SMI)
    }

    /// Delivers an NMI from a source outside the APICs (port 61h).
    pub fn raise_nmi(&self) {
        self.events.fetch_or(EVENT_NMI, SeqCst);
        self.notify();
    }

    fn take_event(&self, event: u32) -> bool {
        self.events.load(SeqCst) & event != 0 && self.events.fetch_and(!event, SeqCst) & event != 0
    }

    pub(super) fn take_extint(&self) -> bool {
        self.take_event(EVENT_EXTINT)
    }

    /// An 8259A's interrupt waits: on LINT0 as INTR or ExtINT, or sent as a message by the I/O APIC.
    pub(super) fn extint_pending(&self) -> bool {
        if self.events.load(SeqCst) & EVENT_EXTINT != 0 {
            return true;
        }
        if !self.pins[0].load(SeqCst) {
            return false;
        }
        let lvt = self.lint[0].load(SeqCst);
        !self.has_mode(MODE_HARDWARE) || lvt & LVT_MASKED == 0 && lvt >> 8 & 7 == 7
    }

    fn has_mode(&self, mode: u8) -> bool {
        self.mode.load(SeqCst) & mode == mode
    }

    /// Whether vectored interrupts are taken: the APIC is enabled by hardware and by software (SDM 3A, 11.4.7.2).
    pub(super) fn accepts_vectors(&self) -> bool {
        self.has_mode(MODE_HARDWARE | MODE_SOFTWARE)
    }

    /// Arbitration priority for lowest-priority delivery.
    pub(super) fn priority(&self) -> u8 {
        self.processor_priority.load(SeqCst)
    }

    /// Whether a message to `destination` is for this APIC (SDM 3A, 11.6.2 and 11.12.10).
    pub(super) fn is_addressed(&self, destination: Destination, sender: Option<u32>) -> bool {
        match destination {
            _ if !self.has_mode(MODE_HARDWARE) => false,
            Destination::All => true,
            Destination::Others => sender != Some(self.initial_id),
            Destination::Physical(id) => id == self.id.load(SeqCst),
            Destination::Logical(set) => self.matches_logical(set),
        }
    }

    fn matches_logical(&self, set: u32) -> bool {
        let own = self.logical.load(SeqCst);
        if self.has_mode(MODE_X2APIC) {
            return set == u32::MAX || set >> 16 == own >> 16 && set & own & 0xFFFF != 0;
        }
        let (set, own) = (set as u8, (own >> 24) as u8);
        if set == 0xFF {
            true
        } else if self.format.load(SeqCst) >> 28 == 0xF {
            set & own != 0
        } else {
            let broadcast = set >> 4 == 0xF;
            (broadcast || set >> 4 == own >> 4) && set & own & 0x0F != 0
        }
    }

    /// Takes a message that is addressed to this APIC.
    pub fn deliver(&self, delivery: Delivery, vector: u8, level: bool) {
        let event = match delivery {
            Delivery::Fixed | Delivery::LowestPriority => return self.request(vector, level),
            Delivery::Smi => EVENT_SMI,
            Delivery::Nmi => EVENT_NMI,
            Delivery::Init => EVENT_INIT,
            Delivery::Startup => {
                self.startup_vector.store(vector, SeqCst);
                EVENT_STARTUP
            }
            Delivery::ExtInt => EVENT_EXTINT,
        };
        self.events.fetch_or(event, SeqCst);
        self.notify();
    }

    fn request(&self, vector: u8, level: bool) {
        if !self.accepts_vectors() {
            return;
        }
        if vector < 16 {
            // Vectors 0 to 15 are reserved (SDM 3A, 11.5.2).
            self.note_error(ERROR_RECEIVED_VECTOR);
        } else {
            if level {
                self.tmr.set(vector);
            } else {
                self.tmr.clear(vector);
            }
            self.irr.set(vector);
        }
        self.notify();
    }

    /// Notes an error for the error status register and raises its interrupt if it is new (SDM 3A, 11.5.3).
    pub(super) fn note_error(&self, error: u32) {
        let lvt = self.error_lvt.load(SeqCst);
        let is_new = self.errors.fetch_or(error, SeqCst) & error != error;
        if is_new && lvt & LVT_MASKED == 0 && lvt as u8 >= 16 {
            self.request(lvt as u8, false);
        }
    }

    /// Drives LINT0 or LINT1 (SDM 3A, 11.5.1).
    pub fn set_pin(&self, pin: usize, level: bool) {
        let pin = pin & 1;
        if self.pins[pin].swap(level, SeqCst) == level {
            return;
        }
        if !self.has_mode(MODE_HARDWARE) {
            // The pins are then INTR, which is level-sensitive, and NMI.
            if pin == 1 && level {
                self.raise_nmi();
            } else {
                self.notify();
            }
        } else if level {
            self.trigger_pin(pin);
        } else {
            self.raise_attention();
        }
    }

    /// Acts on a pin that is high, as its vector table entry says.
    pub(super) fn trigger_pin(&self, pin: usize) {
        let lvt = self.lint[pin].load(SeqCst);
        if lvt & LVT_MASKED != 0 || !self.pins[pin].load(SeqCst) {
            return;
        }
        match Delivery::from_bits((lvt >> 8) as u8) {
            Some(Delivery::ExtInt) => self.notify(), // Stays pending for as long as the pin is high.
            Some(Delivery::Fixed) if pin == 0 && lvt & LVT_LEVEL != 0 => {
                if self.lint[pin].fetch_or(LVT_REMOTE_IRR, SeqCst) & LVT_REMOTE_IRR == 0 {
                    self.request(lvt as u8, true);
                }
            }
            Some(Delivery::Startup | Delivery::LowestPriority) | None => {}
            Some(delivery) => self.deliver(delivery, lvt as u8, false),
        }
    }

    /// LINT0's level-triggered interrupt has ended; it comes again if the pin is still high.
    pub(super) fn end_pin_interrupt(&self, vector: u8) {
        let lvt = self.lint[0].load(SeqCst);
        if lvt & LVT_REMOTE_IRR != 0 && lvt as u8 == vector {
            self.lint[0].fetch_and(!LVT_REMOTE_IRR, SeqCst);
            self.trigger_pin(0);
        }
    }

    pub(super) fn clear_requests(&self) {
        self.irr.store([0; 4]);
        self.tmr.store([0; 4]);
        self.events.store(0, SeqCst);
        self.errors.store(0, SeqCst);
    }

    pub(super) fn save(&self) -> PortState {
        PortState {
            irr: self.irr.load(),
            tmr: self.tmr.load(),
            events: self.events.load(SeqCst),
            startup_vector: self.startup_vector.load(SeqCst),
            pins: [0, 1].map(|pin| self.pins[pin].load(SeqCst)),
            remote_irr: [0, 1].map(|pin| self.lint[pin].load(SeqCst) & LVT_REMOTE_IRR != 0),
            errors: self.errors.load(SeqCst),
        }
    }

    pub(super) fn restore(&self, state: &PortState) {
        self.irr.store(state.irr);
        self.tmr.store(state.tmr);
        self.events.store(state.events, SeqCst);
        self.startup_vector.store(state.startup_vector, SeqCst);
        self.errors.store(state.errors, SeqCst);
        for pin in 0..2 {
            self.pins[pin].store(state.pins[pin], SeqCst);
        }
        self.raise_attention();
    }
}

/// LINT0 or LINT1 of a local APIC as a line.
#[derive(Debug)]
pub struct LocalPin {
    port: Arc<ApicPort>,
    pin: usize,
}

impl LocalPin {
    /// LINT0 (the 8259A's INTR on a PC) for `pin` 0, LINT1 (NMI) for 1.
    #[expect(clippy::new_ret_no_self, reason = "a line is only ever held as one")]
    pub fn new(port: &Arc<ApicPort>, pin: usize) -> Arc<dyn Line> {
        Arc::new(LocalPin { port: Arc::clone(port), pin })
    }
}

impl Line for LocalPin {
    fn set(&self, level: bool) {
        self.port.set_pin(self.pin, level);
    }
}
