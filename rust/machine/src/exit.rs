//! How far a machine is to run, and why it stopped.

use std::time::Duration;

use trapgate_devices::Nanos;
use trapgate_engine::Unsupported;

/// How far to run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// Completed instructions since power-on.
    pub count: Option<u64>,
    /// Machine time in nanoseconds since power-on.
    pub time: Option<Nanos>,
    /// Host time from now on.
    pub wall: Option<Duration>,
    /// Return when the guest has written to its console: after each byte in virtual time, soon after it in real time.
    pub watch_console: bool,
    /// A scheduler runs the machine among others: a halt ends the run with [`Exit::Blocked`], and real time goes on between
    /// runs, until [`Clock::stop`] or a run without this.
    pub scheduled: bool,
}

/// Why [`Machine::run`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Exit {
    /// [`Limits::count`] has been reached, exactly.
    CountReached,
    /// [`Limits::time`] has been reached.
    TimeReached,
    /// [`Limits::wall`] has passed.
    WallTimePassed,
    /// [`Signal::stop`] was called.
    Stopped,
    /// The guest wrote to its console, and that was watched.
    ConsoleOutput,
    /// The guest powered itself off.
    PoweredOff,
    /// The guest reset the machine.
    Reset,
    /// The guest wrote this value to the debug-exit port.
    DebugExit(u32),
    /// The processor halted and nothing can wake it: interrupts are off, or virtual time has no later event.
    Halted,
    /// The processor waits for an interrupt, which comes after this many nanoseconds if not before; [`Signal::set_bell`]
    /// tells of what comes before. Only with [`Limits::scheduled`].
    Blocked(Option<Nanos>),
    /// Hooks were hit: [`Vcpu::take_hook_events`] tells which; to be taken before the machine runs on.
    Hook,
    /// A para-virtual guest has rung for a back-end that is served outside: [`crate::board::XenPvBoard::take_doorbells`].
    Doorbell,
    /// A hypercall of a para-virtual guest waits for its handler; see [`Machine::finish_hypercall`].
    Hypercall,
    /// A para-virtual guest wants to be saved (SHUTDOWN_suspend).
    Suspended,
    /// A para-virtual guest crashed, or did what its monitor cannot carry on; its domain says which.
    Crashed,
    /// The processor shut down.
    TripleFault { rip: u64, vector: u8 },
    /// The guest entered a state that the engine does not run.
    Unsupported { what: Unsupported, rip: u64 },
}
