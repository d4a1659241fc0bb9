//! The extension module `trapgate._core`: the only crate that knows PyO3. Classes are thin and frozen; what they
//! do is in the machine and x86 crates, what a user sees is in python/trapgate.

use pyo3::prelude::*;

#[pymodule(gil_used = false)]
mod _core {
    use super::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
