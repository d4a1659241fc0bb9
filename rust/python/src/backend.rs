//! What back-ends of para-virtual devices are made of, as Python sees it.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use pyo3::prelude::*;
use trapgate_xen::backend::disk::{FileDisk, Storage};

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
