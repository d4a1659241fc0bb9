//! The bell of a scheduler written in Python: blocked machines ring it, its threads wait for it without the interpreter
//! lock.

use std::sync::Arc;
use std::time::Duration;

use pyo3::prelude::*;
use trapgate_machine::Bell as Shared;

/// A bell.
#[pyclass(frozen, module = "trapgate._core")]
#[derive(Debug, Default)]
pub struct Bell(Arc<Shared>);

impl Bell {
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.0
    }
}

#[pymethods]
impl Bell {
    #[new]
    fn new() -> Self {
        Bell::default()
    }

    /// Call one of the threads that wait.
    fn ring(&self, number: u64) {
        self.0.ring(number);
    }

    /// Wait for a number of microseconds at most until somebody rings, and give who has since the last time.
    #[pyo3(signature = (microseconds, *, watcher=false))]
    fn wait(&self, py: Python<'_>, microseconds: u64, watcher: bool) -> Vec<u64> {
        py.detach(|| self.0.wait(Duration::from_micros(microseconds), watcher))
    }
}
