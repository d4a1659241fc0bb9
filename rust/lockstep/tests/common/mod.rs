//! What the tests share: when they run, and on which guest.

#![allow(dead_code, reason = "each test file uses its part")]

use std::fmt::Display;
use std::io::Write;

use trapgate_lockstep::guest::{Guest, para_kernel};
use trapgate_machine::{ClockKind, Config, Machine, ParaPayload};
use trapgate_x86::model::X86_64_V2;

/// Says on the terminal why a test has nothing to do; output that cargo does not capture.
pub fn skip(reason: &impl Display) {
    let name = std::thread::current().name().unwrap_or("test").to_owned();
    // Without a terminal there is nobody to tell.
    let _ = writeln!(std::io::stderr(), "{name} skipped: {reason}");
}

/// Debian, if its image has been pulled.
pub fn debian() -> Option<Guest> {
    Guest::debian().map_err(|error| skip(&error)).ok()
}

/// A para-virtual machine with some code for a kernel, in virtual time.
pub fn para_machine(code: &[u8]) -> Machine {
    let config = Config {
        memory: 8 << 20,
        model: X86_64_V2,
        clock: ClockKind::Virtual,
        seed: 1,
        debug_console: false,
        debug_exit: false,
        epoch_seconds: 0,
    };
    let kernel = para_kernel(code);
    let payload =
        ParaPayload { kernel: &kernel, initrd: None, command_line: "", domid: 1, maximum_memory: 0 };
    Machine::new_para(&config, &payload).expect("a kernel that is accepted")
}

/// Whether the long tests are asked for.
pub fn full() -> bool {
    std::env::var_os("TRAPGATE_FULL").is_some_and(|value| value == "1")
}
