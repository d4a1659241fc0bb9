//! What back-ends of para-virtual devices are made of, as Python sees it.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::PyBytes;
use trapgate_xen::backend::disk::{FileDisk, Storage};
use trapgate_xen::backend::switch;

use crate::errors;

/// A disk image that is open, by one guest alone if it is written to.
#[pyclass(frozen, module = "trapgate._core")]
#[derive(Debug)]
pub struct Disk {
    storage: Arc<FileDisk>,
}

impl Disk {
    pub(crate) fn storage(&self) -> Arc<dyn Storage> {
        Arc::clone(&self.storage) as Arc<dyn Storage>
    }
}

#[pymethods]
impl Disk {
    #[new]
    fn new(py: Python<'_>, path: PathBuf, read_only: bool) -> PyResult<Self> {
        let opened = py.detach(|| FileDisk::open(&path, read_only));
        let storage = opened.map_err(|error| {
            let path = path.display();
            errors::config(match error.kind() {
                io::ErrorKind::WouldBlock => {
                    format!("the disk {path} is in use by another machine; a disk that is written to has one")
                }
                _ => format!("cannot use the disk {path}: {error}"),
            })
        })?;
        Ok(Disk { storage: Arc::new(storage) })
    }

    /// Bytes that the disk holds.
    #[getter]
    fn size(&self) -> u64 {
        self.storage.size()
    }
}

/// A virtual switch.
#[pyclass(frozen, module = "trapgate._core")]
#[derive(Debug, Default)]
pub struct Switch {
    switch: Arc<switch::Switch>,
}

#[pymethods]
impl Switch {
    #[new]
    fn new() -> Self {
        Switch::default()
    }

    /// Give a new plug, which takes frames once it is opened or connected to a guest.
    fn plug(&self) -> Plug {
        Plug { plug: Arc::new(self.switch.plug()) }
    }
}

/// A place at a switch.
#[pyclass(frozen, module = "trapgate._core")]
#[derive(Debug)]
pub struct Plug {
    plug: Arc<switch::Plug>,
}

impl Plug {
    pub(crate) fn plug(&self) -> Arc<switch::Plug> {
        Arc::clone(&self.plug)
    }
}

#[pymethods]
impl Plug {
    /// Queue what comes, for `receive`.
    fn open(&self, py: Python<'_>) {
        py.detach(|| self.plug.open(None));
    }

    /// Drop what waits and what comes.
    fn close(&self, py: Python<'_>) {
        py.detach(|| self.plug.close());
    }

    /// Send a frame; false if it is too short or too long for one.
    fn send(&self, py: Python<'_>, frame: &[u8]) -> bool {
        py.detach(|| self.plug.send(frame))
    }

    /// Give the next frame, waited for at most for a number of milliseconds.
    fn receive<'py>(&self, py: Python<'py>, milliseconds: u64) -> Option<Bound<'py, PyBytes>> {
        let frame = py.detach(|| self.plug.wait(Duration::from_millis(milliseconds)));
        frame.map(|frame| PyBytes::new(py, &frame))
    }

    /// Frames that were lost because too many waited.
    #[getter]
    fn dropped(&self) -> u64 {
        self.plug.dropped()
    }
}
