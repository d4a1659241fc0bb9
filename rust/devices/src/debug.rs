//! Ports for people who debug guests: a console (port E9h, as Bochs has it) and an exit (port F4h, QEMU's
//! isa-debug-exit). Real PCs have neither; the board has them only when asked.
use std::sync::{Arc, Mutex};

use crate::{ByteSink, Device, MachineControl, Nanos, State, StateError, lock};

const CONSOLE: &str = "debug-console";
const EXIT: &str = "debug-exit";
/// The console reads as its own port number, which is how guests find it.
const PRESENT: u8 = 0xE9;

/// One write-only byte port.
#[derive(Debug)]
pub struct DebugConsole {
    sink: Box<dyn ByteSink>,
}

impl DebugConsole {
    /// A console that writes to `sink`.
    pub fn new(sink: Box<dyn ByteSink>) -> DebugConsole {
        DebugConsole { sink }
    }
}

impl Device for DebugConsole {
    fn name(&self) -> &'static str {
        CONSOLE
    }

    fn read(&mut self, offset: u64, size: u8, _now: Nanos) -> u64 {
        crate::read_bytes(offset, size, |_| PRESENT)
    }

    fn write(&mut self, offset: u64, size: u8, value: u64, _now: Nanos) {
        crate::write_bytes(offset, size, value, |_, byte| self.sink.put(byte));
    }

    fn reset(&mut self, _now: Nanos) {}

    fn save(&self) -> State {
        State::encode(CONSOLE, 1, &())
    }

    fn restore(&mut self, state: &State) -> Result<(), StateError> {
        state.decode(CONSOLE, 1)
    }
}

/// Four ports; a write of any width ends the machine with the value written.
#[derive(Debug)]
pub struct DebugExit {
    control: Arc<dyn MachineControl>,
}

impl DebugExit {
    /// An exit that tells `control`.
    pub fn new(control: Arc<dyn MachineControl>) -> DebugExit {
        DebugExit { control }
    }
}

impl Device for DebugExit {
    fn name(&self) -> &'static str {
        EXIT
    }

    fn read(&mut self, _offset: u64, _size: u8, _now: Nanos) -> u64 {
        0
    }

    fn write(&mut self, _offset: u64, _size: u8, value: u64, _now: Nanos) {
        self.control.debug_exit(value as u32);
    }

    fn reset(&mut self, _now: Nanos) {}

    fn save(&self) -> State {
        State::encode(EXIT, 1, &())
    }

    fn restore(&mut self, state: &State) -> Result<(), StateError> {
        state.decode(EXIT, 1)
    }
}

/// A [`MachineControl`] that writes down what it was asked: for tests, and for boards that act later.
#[derive(Debug, Default)]
pub struct RecordedControl(Mutex<Vec<String>>);

impl RecordedControl {
    /// The requests since the last call.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.0))
    }
}

impl MachineControl for RecordedControl {
    fn power_off(&self) {
        lock(&self.0).push("power off".to_owned());
    }
    fn reset(&self) {
        lock(&self.0).push("reset".to_owned());
    }
    fn debug_exit(&self, value: u32) {
        lock(&self.0).push(format!("exit {value:#x}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_passes_its_value() {
        let control = Arc::new(RecordedControl::default());
        let mut exit = DebugExit::new(control.clone());
        exit.write(0, 4, 0x10, 0);
        assert_eq!(control.take(), ["exit 0x10"]);
        assert_eq!(crate::exit_status(0x10), 0x21);
        assert_eq!(crate::exit_status(0), 1);
    }

    #[test]
    fn the_console_says_that_it_is_there() {
        struct Sink(Arc<Mutex<Vec<u8>>>);
        impl ByteSink for Sink {
            fn put(&mut self, byte: u8) {
                self.0.lock().unwrap().push(byte);
            }
        }
        let seen = Arc::new(Mutex::new(Vec::new()));
        let mut console = DebugConsole::new(Box::new(Sink(seen.clone())));
        assert_eq!(console.read(0, 1, 0), 0xE9);
        console.write(0, 1, b'!'.into(), 0);
        assert_eq!(*seen.lock().unwrap(), b"!");
    }
}
