//! Memory that Python and Rust share without copying it, through the buffer protocol: guest RAM and large results on their
//! way out, a user's bytes on their way in.
//!
//! This is one of the places where `unsafe` is allowed: it hands out the guest-memory host mapping.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;
use trapgate_engine::GuestMemory;
use trapgate_x86::columns::Row;

use crate::errors;

#[derive(Debug)]
enum Owner {
    Bytes(Vec<u8>),
    Rows(Vec<Row>),
    Ram { memory: Arc<GuestMemory>, offset: usize, len: usize },
}

/// A range of bytes as a buffer; it keeps what it shows alive.
#[pyclass(frozen, module = "trapgate._core")]
#[derive(Debug)]
pub struct Buffer(Owner);

impl Buffer {
    /// Shows the contents of a vector, read-only.
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        Buffer(Owner::Bytes(bytes))
    }

    /// Shows decoded rows, read-only.
    pub fn from_rows(rows: Vec<Row>) -> Self {
        Buffer(Owner::Rows(rows))
    }

    /// Shows guest-physical memory, read-only, which must lie in one region of RAM.
    pub fn from_ram(memory: &Arc<GuestMemory>, gpa: u64, len: u64) -> PyResult<Self> {
        let end = gpa.checked_add(len);
        let inside = memory.regions().any(|r| {
            gpa >= r.start && gpa - r.start < r.len && end.is_some_and(|end| end - r.start <= r.len)
        });
        let page = memory.page(gpa).filter(|_| inside).ok_or_else(|| {
            errors::memory(format!("no one range of RAM holds {len:#x} bytes from guest-physical {gpa:#x}"))
        })?;
        let (Ok(offset), Ok(len)) = (usize::try_from(page.offset + gpa % 4096), usize::try_from(len)) else {
            return Err(errors::memory(format!("{len:#x} bytes are more than this host can address")));
        };
        Ok(Buffer(Owner::Ram { memory: Arc::clone(memory), offset, len }))
    }
}

#[pymethods]
impl Buffer {
    /// # Safety
    /// Called by CPython alone, with a `view` to be filled in.
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let (start, len) = match &slf.get().0 {
            Owner::Bytes(bytes) => (bytes.as_ptr(), bytes.len()),
            // A row is plain numbers without padding.
            Owner::Rows(rows) => (rows.as_ptr().cast(), std::mem::size_of_val(rows.as_slice())),
            Owner::Ram { memory, offset, len } => {
                // SAFETY: `from_ram` found `offset..offset + len` inside one region, and regions are contiguous
                // inside the mapping, so the result and its `len` bytes are too.
                (unsafe { memory.host_base().add(*offset) }, *len)
            }
        };
        let len = ffi::Py_ssize_t::try_from(len).map_err(|e| PyBufferError::new_err(e.to_string()))?;
        // SAFETY: `view` is CPython's to fill. The bytes stay where they are as long as this object lives, to which
        // the view holds a reference: the class is frozen, a vector in it never changes, and RAM is never remapped.
        // The guest and readers in Python may touch the same bytes at the same time; Rust reaches RAM through
        // atomics only, and never makes a reference to it. Nobody may write through a view.
        let status =
            unsafe { ffi::PyBuffer_FillInfo(view, slf.as_ptr(), start.cast_mut().cast(), len, 1, flags) };
        if status == 0 { Ok(()) } else { Err(PyErr::fetch(slf.py())) }
    }
}

/// Bytes of a Python object, read where they lie, with or without the interpreter lock.
#[derive(Debug)]
pub struct Input(PyBuffer<u8>);

impl Input {
    /// Takes any object that shows contiguous bytes.
    pub fn new(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let buffer = PyBuffer::<u8>::get(object)?;
        if buffer.is_c_contiguous() {
            Ok(Input(buffer))
        } else {
            Err(PyBufferError::new_err("the bytes must lie one after the other"))
        }
    }

    pub fn len(&self) -> usize {
        self.0.len_bytes()
    }

    /// Reads from `offset` on as much as there is, at most all of `out`; gives how much that was. Somebody who changes
    /// the bytes meanwhile gets a mixture of old and new ones.
    pub fn read(&self, offset: usize, out: &mut [u8]) -> usize {
        let count = self.len().saturating_sub(offset).min(out.len());
        let start = self.0.buf_ptr().cast::<u8>();
        for (i, byte) in out[..count].iter_mut().enumerate() {
            // SAFETY: the buffer is contiguous and held, so `len` bytes from its start are mapped as long as `self`
            // lives, and `offset + i` is below that. The load is atomic: a writer beside it is no data race.
            *byte = unsafe { AtomicU8::from_ptr(start.add(offset + i)) }.load(Ordering::Relaxed);
        }
        count
    }
}
