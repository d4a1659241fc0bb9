//! What the tests share: when they run, and on which guest.

#![allow(dead_code, reason = "each test file uses its part")]

use std::fmt::Display;
use std::io::Write;

use trapgate_lockstep::guest::Guest;

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

/// Whether the long tests are asked for.
pub fn full() -> bool {
    std::env::var_os("TRAPGATE_FULL").is_some_and(|value| value == "1")
}
