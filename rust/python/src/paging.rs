//! What the guest's page tables say: one address with each step of its walk, many addresses, a whole address space.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use trapgate_engine::GuestMemory;
use trapgate_engine::mmu::access::canonical;
use trapgate_engine::mmu::inspect::{self, MappedRange};
use trapgate_engine::mmu::walk::{Mapping, Missing, walk};
use trapgate_engine::mmu::{Format, Paging, Step};

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

/// Physical addresses, as native-endian bytes, of linear ones.
pub fn translate_many(memory: &GuestMemory, paging: &Paging, linear: &[u64]) -> Vec<u8> {
    let physical = |&address: &u64| translate(memory, paging, address, |_| ()).map_or(UNMAPPED, |m| m.gpa);
    linear.iter().flat_map(|address| physical(address).to_ne_bytes()).collect()
}

/// A range of an address space: linear, physical, size, and rights (1 writable, 2 user, 4 executable, 8 global).
pub type Range = (u64, u64, u64, u32);

/// Ranges after which an address space is called endless: a guest can map its tables into themselves.
const MOST_RANGES: usize = 1 << 20;

/// Every range that is mapped, in ascending order of linear addresses.
pub fn mappings(memory: &GuestMemory, paging: &Paging) -> PyResult<Vec<Range>> {
    let (ranges, more) = inspect::mappings(memory, paging, MOST_RANGES);
    if more {
        return Err(errors::memory("the address space has no end: its tables map themselves over and over"));
    }
    let rights = |r: &MappedRange| {
        [r.writable, r.user, r.executable, r.global]
            .iter()
            .rev()
            .fold(0, |bits, &bit| bits << 1 | u32::from(bit))
    };
    Ok(ranges.iter().map(|r| (r.linear, r.gpa, r.len, rights(r))).collect())
}
