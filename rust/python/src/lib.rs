//! The extension module `trapgate._core`: the only crate that knows PyO3. Classes are thin and frozen; what they
//! do is in the machine and x86 crates, what a user sees is in python/trapgate.

mod backend;
mod bell;
mod buffer;
mod core;
mod decode;
mod device;
mod domain;
mod errors;
mod outcome;
mod paging;
mod registers;
mod translation;

use std::collections::BTreeMap;

use pyo3::prelude::*;

/// Give the profile and the host back-ends that this module was built with.
#[pyfunction]
fn build_info() -> BTreeMap<&'static str, &'static str> {
    BTreeMap::from([
        ("version", env!("CARGO_PKG_VERSION")),
        ("profile", if cfg!(debug_assertions) { "debug" } else { "release" }),
        ("host", std::env::consts::ARCH),
        ("os", std::env::consts::OS),
        (
            "engines",
            if cfg!(all(target_arch = "x86_64", target_os = "linux")) {
                "translate interpret"
            } else {
                "interpret"
            },
        ),
    ])
}

/// Give both builds of the guest of our own, `full` and `para`, and why there are none if there are none.
#[pyfunction]
fn own_guests() -> (&'static [u8], &'static [u8], &'static str) {
    (trapgate_guest::FULL, trapgate_guest::PARA, trapgate_guest::PROBLEM)
}

#[pymodule(gil_used = false)]
mod _core {
    use super::*;

    #[pymodule_export]
    use super::build_info;
    #[pymodule_export]
    use super::own_guests;
    #[pymodule_export]
    use crate::backend::{Disk, Plug, Switch};
    #[pymodule_export]
    use crate::bell::Bell;
    #[pymodule_export]
    use crate::buffer::Buffer;
    #[pymodule_export]
    use crate::core::Core;
    #[pymodule_export]
    use crate::decode::{decode, decode_columns, mnemonics};
    #[pymodule_export]
    use crate::domain::{Domain, Neighbours};
    #[pymodule_export]
    use crate::translation::translate_unit;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
