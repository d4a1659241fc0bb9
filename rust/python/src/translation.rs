//! Translation to be looked at, for Python.

use pyo3::prelude::*;

use crate::buffer::Input;
use crate::decode::{Decoded, describe, parse_features};
use crate::errors;

/// An instruction, what became of it, why, and the first and the last but one of its parts.
type Explained = (Decoded, &'static str, String, (usize, usize));
/// Name, instruction that it belongs to, and host code by address, bytes and text.
type Part = (&'static str, Option<usize>, Vec<(u64, Vec<u8>, String)>);

/// Translate the unit of 64-bit code at an offset, to be looked at.
#[pyfunction]
pub fn translate_unit(
    py: Python<'_>,
    code: &Bound<'_, PyAny>,
    address: u64,
    cpl: u8,
    cpu: &str,
    start: usize,
) -> PyResult<(Vec<Explained>, Vec<Part>)> {
    let features = parse_features(cpu)?;
    let user = match cpl {
        0 => false,
        3 => true,
        _ => return Err(errors::config(format!("code is translated for CPL 0 or 3, not {cpl}"))),
    };
    let code = Input::new(code)?;
    py.detach(|| made::unit(&code, address, user, &features, start))
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod made {
    use trapgate_engine::translate::explain::explain;
    use trapgate_x86::facts::TextWriter;
    use trapgate_x86::features::Features;
    use trapgate_x86::insn::Bits;

    use super::*;

    /// As much as any unit is made of.
    const MOST: usize = 4096;

    pub fn unit(
        code: &Input,
        address: u64,
        user: bool,
        features: &Features,
        start: usize,
    ) -> PyResult<(Vec<Explained>, Vec<Part>)> {
        let mut bytes = [0; MOST];
        let count = code.read(start, &mut bytes);
        if count == 0 {
            return Ok(Default::default());
        }
        let address = address.wrapping_add(start as u64);
        let made = explain(&bytes[..count], address, user, features);
        let mut writer = TextWriter::new();
        let mut offset = 0;
        let guest = made.guest.iter().map(|one| {
            let rest = &bytes[offset..count];
            let decoded = describe(&mut writer, rest, start + offset, Bits::B64, one.address, features);
            offset += one.bytes.len();
            (decoded, one.done.name(), one.reason.clone(), (one.parts.start, one.parts.end))
        });
        let guest = guest.collect();
        let parts = made.parts.iter().map(|part| {
            let lines = part.lines().into_iter().map(|line| {
                let at = (line.address - part.address) as usize;
                (line.address, part.code[at..at + line.len].to_vec(), line.text)
            });
            (part.name, part.guest, lines.collect())
        });
        Ok((guest, parts.collect()))
    }
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
mod made {
    use trapgate_x86::features::Features;

    use super::*;

    pub fn unit(_: &Input, _: u64, _: bool, _: &Features, _: usize) -> PyResult<(Vec<Explained>, Vec<Part>)> {
        Err(errors::host("the translator is for Linux on x86-64"))
    }
}
