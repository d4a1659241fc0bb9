//! What the guest's page tables say: one address with each step of its walk, many addresses, a whole address space.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use trapgate_engine::GuestMemory;
use trapgate_engine::mmu::access::canonical;
use trapgate_engine::mmu::walk::{Mapping, Missing, walk};
use trapgate_engine::mmu::{Format, Paging, Step};

use crate::buffer::Input;
use crate::errors;

/// What a translation of many addresses gives for those that are not mapped.
const UNMAPPED: u64 = u64::MAX;

/// A walk of one address: `None` where nothing is mapped.
fn translate(
    memory: &GuestMemory,
    paging: &Paging,
    linear: u64,
    each: impl FnMut(Step),
) -> Result<Mapping, Missing> {
    let exists = match paging.format() {
        Format::Level4 => canonical(linear),
        _ => linear <= u64::from(u32::MAX),
    };
    if exists { walk(memory, paging, linear, each) } else { Err(Missing::NotPresent) }
}

/// The name of the table that a step of a walk reads.
fn table_name(format: Format, level: u8) -> &'static str {
    match (format, level) {
        (_, 4) => "PML4",
        (_, 3) => "PDPT",
        (_, 2) => "PD",
        _ => "PT",
    }
}

/// One address as a dictionary that Python makes a `Translation` of.
pub fn explain<'py>(
    py: Python<'py>,
    memory: &GuestMemory,
    paging: &Paging,
    linear: u64,
) -> PyResult<Bound<'py, PyDict>> {
    let mut steps = Vec::with_capacity(4);
    let found = translate(memory, paging, linear, |step| steps.push(step));
    let levels = PyList::empty(py);
    for (i, step) in steps.iter().enumerate() {
        let level = PyDict::new(py);
        level.set_item("name", table_name(paging.format(), step.level))?;
        level.set_item("address", step.entry_gpa)?;
        level.set_item("entry", step.entry)?;
        level.set_item("present", step.entry & 1 != 0)?;
        level.set_item("reserved", found == Err(Missing::Reserved) && i + 1 == steps.len())?;
        levels.append(level)?;
    }
    let mapping = found.ok();
    let result = PyDict::new(py);
    result.set_item("linear", linear)?;
    result.set_item("physical", mapping.map(|m| m.gpa))?;
    result.set_item("page_size", mapping.map_or(0, |m| m.page_size))?;
    result.set_item("writable", mapping.is_some_and(|m| m.writable))?;
    result.set_item("user", mapping.is_some_and(|m| m.user))?;
    result.set_item("executable", mapping.is_some_and(|m| m.executable))?;
    result.set_item("levels", levels)?;
    Ok(result)
}

/// Addresses that are translated before signals are served.
const STRETCH: usize = 1 << 14;

/// Physical addresses, as native-endian bytes, of linear ones.
pub fn translate_many(
    py: Python<'_>,
    memory: &GuestMemory,
    paging: &Paging,
    linear: &Input,
) -> PyResult<Vec<u8>> {
    let mut found: Vec<u8> = errors::room(linear.len())?;
    let mut addresses = vec![0; STRETCH * 8];
    while found.len() < linear.len() {
        py.detach(|| {
            let count = linear.read(found.len(), &mut addresses);
            let (words, rest) = addresses[..count].as_chunks::<8>();
            for &word in words {
                let address = u64::from_ne_bytes(word);
                let physical = translate(memory, paging, address, |_| ()).map_or(UNMAPPED, |m| m.gpa);
                found.extend_from_slice(&physical.to_ne_bytes());
            }
            // No address has fewer bytes: what is left over is nothing that is mapped.
            found.extend(rest.iter().map(|_| u8::MAX));
        });
        py.check_signals()?;
    }
    Ok(found)
}

/// A range of an address space: linear, physical, size, and rights (1 writable, 2 user, 4 executable, 8 global).
type Range = (u64, u64, u64, u32);

/// Ranges, and entries of tables looked at, after which an address space is called endless: a guest can map its
/// tables into themselves.
const MOST_RANGES: usize = 1 << 20;
const MOST_LOOKED: usize = 1 << 25;

/// Every range that is mapped, in ascending order of linear addresses, as a list of tuples.
pub fn mappings<'py>(py: Python<'py>, memory: &GuestMemory, paging: &Paging) -> PyResult<Bound<'py, PyList>> {
    let mut listing = Listing { at: 0, ranges: Vec::new() };
    let mut looked = 0;
    while py.detach(|| listing.go_on(memory, paging, STRETCH)) {
        py.check_signals()?;
        looked += STRETCH;
        if listing.ranges.len() > MOST_RANGES || looked > MOST_LOOKED {
            return Err(errors::memory(
                "the address space has no end: its tables map themselves over and over",
            ));
        }
    }
    let list = PyList::empty(py);
    for ranges in listing.ranges.chunks(STRETCH) {
        ranges.iter().try_for_each(|range| list.append(range))?;
        py.check_signals()?;
    }
    Ok(list)
}

/// A walk over all entries of all tables, which can be left and gone on with.
struct Listing {
    /// The linear address that is next, without its sign.
    at: u64,
    ranges: Vec<Range>,
}

impl Listing {
    /// Looks at up to `count` entries; false when there are no more.
    fn go_on(&mut self, memory: &GuestMemory, paging: &Paging, count: usize) -> bool {
        let format = paging.format();
        if format == Format::Off {
            self.ranges.push((0, 0, 1 << 32, 7));
            return false;
        }
        let end = if format == Format::Level4 { 1 << 48 } else { 1 << 32 };
        for _ in 0..count {
            if self.at >= end {
                return false;
            }
            let linear = if format == Format::Level4 { sign_extended(self.at) } else { self.at };
            let mut level = 1;
            let found = walk(memory, paging, linear, |step| level = step.level);
            // The page, or all that the entry would have led to at which the walk ended.
            let size = found.map_or_else(|_| entry_size(format, level), |mapping| mapping.page_size);
            if let Ok(mapping) = found {
                self.push(linear & !(size - 1), &mapping);
            }
            self.at = (self.at & !(size - 1)) + size;
        }
        true
    }

    fn push(&mut self, linear: u64, mapping: &Mapping) {
        let (physical, size) = (mapping.gpa & !(mapping.page_size - 1), mapping.page_size);
        let rights = [mapping.writable, mapping.user, mapping.executable, mapping.global];
        let rights = rights.iter().rev().fold(0, |bits, &bit| bits << 1 | u32::from(bit));
        if let Some(last) = self.ranges.last_mut()
            && last.0.wrapping_add(last.2) == linear
            && last.1.wrapping_add(last.2) == physical
            && last.3 == rights
        {
            last.2 += size;
        } else {
            self.ranges.push((linear, physical, size, rights));
        }
    }
}

/// How far an entry of a level reaches.
fn entry_size(format: Format, level: u8) -> u64 {
    let bits = if format == Format::Bits32 { 10 } else { 9 };
    1 << (12 + bits * u32::from(level.saturating_sub(1)))
}

fn sign_extended(linear: u64) -> u64 {
    ((linear << 16) as i64 >> 16) as u64
}
