//! Why a slice ended, as Python takes it.

use trapgate_machine::Exit;

/// Stands for "no limit" in the numbers of [`crate::core::Core::run`] and of outcomes.
pub const UNLIMITED: u64 = u64::MAX;

/// Whether the machine cannot run on after an exit.
pub fn last(exit: Exit) -> bool {
    !matches!(
        exit,
        Exit::CountReached
            | Exit::TimeReached
            | Exit::WallTimePassed
            | Exit::Stopped
            | Exit::ConsoleOutput
            | Exit::Halted
            | Exit::Blocked(_)
            | Exit::Hook
            | Exit::Doorbell
            | Exit::Hypercall
    )
}

/// An exit as `trapgate.vm` takes it: its kind and up to two numbers that say more.
pub fn outcome(exit: Exit) -> (String, u64, u64) {
    let (kind, first, second) = match exit {
        Exit::CountReached => ("budget", 0, 0),
        Exit::TimeReached => ("deadline", 0, 0),
        Exit::WallTimePassed => ("slice", 0, 0),
        Exit::Stopped => ("stopped", 0, 0),
        Exit::ConsoleOutput => ("console", 0, 0),
        Exit::PoweredOff => ("shutdown", 0, 0),
        Exit::Reset => ("reset", 0, 0),
        Exit::DebugExit(value) => ("debug_exit", u64::from(value), 0),
        Exit::Halted => ("halted", 0, 0),
        Exit::Blocked(after) => ("blocked", after.unwrap_or(UNLIMITED), 0),
        Exit::Hook => ("hook", 0, 0),
        Exit::Doorbell => ("doorbell", 0, 0),
        Exit::Hypercall => ("hypercall", 0, 0),
        Exit::Suspended => ("suspended", 0, 0),
        Exit::Crashed => ("crashed", 0, 0),
        Exit::TripleFault { rip, vector } => ("triple_fault", rip, u64::from(vector)),
        Exit::Unsupported { what, rip } => return (format!("unsupported: {what}"), rip, 0),
        other => return (format!("unsupported: {other:?}"), 0, 0),
    };
    (kind.to_owned(), first, second)
}
