//! A device written in Python, on the machine's buses. Its methods are called in the middle of an instruction, so an
//! exception in one cannot travel on from there: it is kept, the machine stopped, and raised where the run was called.

use std::fmt;
use std::sync::{Arc, Mutex};

use pyo3::prelude::*;
use trapgate_devices::{Device, Nanos, State, StateError, all_ones, lock};
use trapgate_machine::Signal;

/// The first exception of a device since the run began.
pub type Raised = Arc<Mutex<Option<PyErr>>>;

/// The Python object behind a device: shared with the machine's handle, through which the garbage collector finds it,
/// and taken away when the machine is closed.
pub type Object = Arc<Mutex<Option<Py<PyAny>>>>;

/// Lets go of the object, whose finalizer may run.
pub fn forget(object: &Object) {
    let object = lock(object).take();
    drop(object);
}

/// A Python object with `read` and `write`.
pub struct PyDevice {
    object: Object,
    raised: Raised,
    signal: Arc<Signal>,
}

impl fmt::Debug for PyDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PyDevice")
    }
}

impl PyDevice {
    pub fn new(object: &Object, raised: &Raised, signal: &Arc<Signal>) -> Self {
        PyDevice { object: Arc::clone(object), raised: Arc::clone(raised), signal: Arc::clone(signal) }
    }

    /// Calls a method, unless the object is gone.
    fn call<'py, A>(&self, py: Python<'py>, method: &str, arguments: A) -> PyResult<Option<Bound<'py, PyAny>>>
    where
        A: pyo3::call::PyCallArgs<'py>,
    {
        let object = lock(&self.object).as_ref().map(|object| object.clone_ref(py));
        object.map(|object| object.into_bound(py).call_method1(method, arguments)).transpose()
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
            match self.call(py, "read", (offset, size))? {
                Some(value) => value.bitand(u64::MAX)?.extract::<u64>(),
                None => Ok(u64::MAX),
            }
        });
        value.unwrap_or_else(|error| {
            self.raise(error);
            u64::MAX
        }) & all_ones(size)
    }

    fn write(&mut self, offset: u64, size: u8, value: u64, _now: Nanos) {
        let done = Python::attach(|py| self.call(py, "write", (offset, size, value)).map(drop));
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
