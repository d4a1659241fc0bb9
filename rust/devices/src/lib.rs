//! Chips, bus and interrupt lines of the emulated PC. Each chip is a pure state machine in a file of its own: it knows
//! neither its address nor the CPU, takes the machine time as an argument, and speaks to the rest of the board only
//! through [`Line`]s and the few traits defined here. The board (crate `trapgate-machine`) does the wiring.
//!
//! Lock order, outermost first. A thread that holds one of these may take only those to its right:
//!
//! ```text
//! local APIC -> device -> device it is built on (port 61h -> PIT) -> junctions of lines -> 8259 pair -> I/O APIC
//! ```
//!
//! A chip may therefore move a line while it is locked: lines lead to interrupt controllers only, and what an interrupt
//! controller does to a local APIC goes through the lock-free [`apic::ApicPort`], never through the local APIC's own
//! lock. A local APIC may call the I/O APIC (end of interrupt) while it is locked. The bus's table is unlocked before a
//! device is called.
pub mod acpi_pm;
pub mod apic;
pub mod bus;
pub mod clock;
pub mod debug;
pub mod dma;
pub mod hpet;
pub mod i8042;
pub mod line;
pub mod pci;
pub mod pic;
pub mod pit;
pub mod port61;
pub mod rtc;
pub mod state;
pub mod system;
pub mod uart;

pub use bus::{Address, Bus, BusError, PhysAddr, Port};
pub use clock::{Frequency, NANOS_PER_SECOND, Nanos};
pub use line::{Line, NoLine};
pub use state::{State, StateError};

/// A chip as the bus sees it.
///
/// `offset` counts from the chip's own first register; the bus guarantees that the whole access lies inside the range
/// the chip was inserted with. `size` is 1, 2, 4 or 8. A width that the chip does not decode is split, or reads as all
/// ones, as the chip's documentation says.
pub trait Device: Send {
    /// Short fixed name, used in errors and as the kind of the state record.
    fn name(&self) -> &'static str;

    /// Reads `size` bytes at `offset`; bits above `size` bytes are zero in the result.
    fn read(&mut self, offset: u64, size: u8, now: Nanos) -> u64;

    /// Writes the low `size` bytes of `value` at `offset`.
    fn write(&mut self, offset: u64, size: u8, value: u64, now: Nanos);

    /// What the chip's reset pin does. Battery-backed contents survive.
    fn reset(&mut self, now: Nanos);

    /// The earliest time at which one of the chip's outputs changes without an access.
    fn deadline(&self) -> Option<Nanos> {
        None
    }

    /// Brings the outputs up to `now`. A periodic timer that has fallen behind delivers one edge and drops the rest.
    fn advance(&mut self, _now: Nanos) {}

    /// The chip's state as a versioned record.
    fn save(&self) -> State;

    /// Takes the state of a record made by [`Device::save`]. Lines are not touched: whatever is at their other end has
    /// the level in its own record. On an error the chip is unchanged.
    fn restore(&mut self, state: &State) -> Result<(), StateError>;
}

impl std::fmt::Debug for dyn Device + '_ {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Device({})", self.name())
    }
}

/// The host's end of a byte stream that a guest writes: a terminal, a log, a test's buffer.
pub trait ByteSink: Send {
    /// Takes one byte; must neither block nor call back into the chip.
    fn put(&mut self, byte: u8);

    /// The guest has taken input: `free` more bytes can be received now. Called with the chip locked.
    fn room(&mut self, _free: usize) {}
}

impl std::fmt::Debug for dyn ByteSink + '_ {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ByteSink")
    }
}

/// What a guest can ask of the machine as a whole. Calls only note the request; the run loop acts on it at the next
/// instruction boundary.
pub trait MachineControl: Send + Sync {
    /// The guest has entered the soft-off state.
    fn power_off(&self);
    /// A reset of the whole machine (keyboard controller, port 92h, CF9h, ACPI reset register).
    fn reset(&self);
    /// The guest wrote `value` to the debug-exit port; the process status is [`exit_status`]`(value)`.
    fn debug_exit(&self, value: u32);
}

impl std::fmt::Debug for dyn MachineControl + '_ {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MachineControl")
    }
}

/// Locks a chip. A thread that panicked while it held the lock cannot have left a chip in a state that the guest could
/// not also have put it into, so poisoning is not an error here.
pub fn lock<T: ?Sized>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// The exit status that a debug-exit value stands for: never zero, so that success is a status of the caller's choice.
pub fn exit_status(value: u32) -> u32 {
    value.wrapping_shl(1) | 1
}

/// The shortest period of any timer whose output can interrupt: shorter ones are stretched to it, so that no guest can
/// make the host do nothing but deliver ticks.
pub const MIN_TIMER_PERIOD: Nanos = 1_000;

/// The value of an access of `size` bytes to which nothing answers.
pub fn all_ones(size: u8) -> u64 {
    match size {
        1 => 0xFF,
        2 => 0xFFFF,
        4 => 0xFFFF_FFFF,
        _ => u64::MAX,
    }
}

/// Splits a read into single bytes, lowest offset first, as the ISA bus does for 8-bit chips.
pub fn read_bytes(offset: u64, size: u8, mut byte: impl FnMut(u64) -> u8) -> u64 {
    (0..u64::from(size.min(8))).fold(0, |value, i| value | u64::from(byte(offset.wrapping_add(i))) << (8 * i))
}

/// Splits a write into single bytes, lowest offset first, as the ISA bus does for 8-bit chips.
pub fn write_bytes(offset: u64, size: u8, value: u64, mut byte: impl FnMut(u64, u8)) {
    for i in 0..u64::from(size.min(8)) {
        byte(offset.wrapping_add(i), (value >> (8 * i)) as u8);
    }
}
