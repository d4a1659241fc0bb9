//! A device written in Python, on the machine's buses. Its methods are called in the middle of an instruction, so an
//! exception in one cannot travel on from there: it is kept, the machine stopped, and raised where the run was called.

use std::fmt;
use std::sync::{Arc, Mutex};

use pyo3::prelude::*;
use trapgate_devices::{Device, Nanos, State, StateError, all_ones, lock};
use trapgate_machine::Signal;

/// The first exception of a device since the run began.
pub type Raised = Arc<Mutex<Option<PyErr>>>;

/// A Python object with `read` and `write`.
pub struct PyDevice {
    object: Py<PyAny>,
    raised: Raised,
    signal: Arc<Signal>,
}

impl fmt::Debug for PyDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PyDevice")
    }
}

impl PyDevice {
    pub fn new(object: Py<PyAny>, raised: &Raised, signal: &Arc<Signal>) -> Self {
        PyDevice { object, raised: Arc::clone(raised), signal: Arc::clone(signal) }
    }

    fn raise(&self, error: PyErr) {
        lock(&self.raised).get_or_insert(error);
        self.signal.stop();
    }
}

impl Device for PyDevice {
    fn name(&self) -> &'static str {
        "python"
    }

    fn read(&mut self, offset: u64, size: u8, _now: Nanos) -> u64 {
        let value = Python::attach(|py| {
            // Of a number that is too large the low bytes count, as of any wider register.
            let value = self.object.bind(py).call_method1("read", (offset, size))?;
            value.bitand(u64::MAX)?.extract::<u64>()
        });
        value.unwrap_or_else(|error| {
            self.raise(error);
            u64::MAX
        }) & all_ones(size)
    }

    fn write(&mut self, offset: u64, size: u8, value: u64, _now: Nanos) {
        let done =
            Python::attach(|py| self.object.call_method1(py, "write", (offset, size, value)).map(drop));
        if let Err(error) = done {
            self.raise(error);
        }
    }

    fn reset(&mut self, _now: Nanos) {}

    /// What the object holds is Python's; the machine's record does not have it.
    fn save(&self) -> State {
        State::encode(self.name(), 1, &())
    }

    fn restore(&mut self, state: &State) -> Result<(), StateError> {
        state.decode::<()>(self.name(), 1)
    }
}
