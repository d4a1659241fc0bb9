//! Decode for Python: instructions with text and facts one by one, and code in bulk as rows.

use pyo3::prelude::*;
use trapgate_x86::class::{Action, class, treatment};
use trapgate_x86::columns::{Row, decode_rows};
use trapgate_x86::decode::decode as decode_one;
use trapgate_x86::facts::{Access, Register, TextWriter, facts};
use trapgate_x86::features::Features;
use trapgate_x86::flags::flag_use;
use trapgate_x86::insn::{Bits, Insn, Seg};
use trapgate_x86::layout::MAX_LENGTH;
use trapgate_x86::model::Model;
use trapgate_x86::op::Op;

use crate::buffer::{Buffer, Input};
use crate::errors;

/// Rows are made of stretches of this many bytes, each with room for an instruction that begins inside of it.
const WINDOW: usize = 1 << 16;

/// An instruction as `trapgate.instructions` takes it: offset, length, mnemonic, text, class, flags read, written and
/// undefined, registers read and written, and how the three modes treat it.
pub type Decoded = (
    usize,
    u8,
    &'static str,
    String,
    &'static str,
    [u32; 3],
    [Vec<String>; 2],
    [(&'static str, &'static str); 3],
);

fn parse_bits(bits: u32) -> PyResult<Bits> {
    match bits {
        16 => Ok(Bits::B16),
        32 => Ok(Bits::B32),
        64 => Ok(Bits::B64),
        _ => Err(errors::config(format!("code has 16, 32 or 64 bits, not {bits}"))),
    }
}

pub fn parse_features(cpu: &str) -> PyResult<Features> {
    match (cpu, Model::by_name(cpu)) {
        ("any", _) => Ok(Features::all()),
        (_, Some(model)) => Ok(model.features),
        (_, None) => Err(errors::config(format!("there is no CPU model {cpu}"))),
    }
}

/// Memory that must be there before instructions are described: more than [`MOST_AT_ONCE`] of them take, here and as
/// Python objects.
const SPARE: usize = 8 << 20;
/// Instructions that are described before Python is asked again.
const MOST_AT_ONCE: usize = 512;

/// Decode instructions one after the other from an offset on, with what is known about each; some at a time.
#[pyfunction]
pub fn decode(
    py: Python<'_>,
    code: &Bound<'_, PyAny>,
    bits: u32,
    address: u64,
    cpu: &str,
    start: usize,
) -> PyResult<Vec<Decoded>> {
    let (bits, features) = (parse_bits(bits)?, parse_features(cpu)?);
    let code = Input::new(code)?;
    drop(std::hint::black_box(errors::room::<u8>(SPARE)?));
    let mut decoded = errors::room(MOST_AT_ONCE)?;
    Ok(py.detach(|| {
        let mut writer = TextWriter::new();
        let (mut offset, mut bytes) = (start, [0; MAX_LENGTH]);
        while offset < code.len() && decoded.len() < MOST_AT_ONCE {
            let count = code.read(offset, &mut bytes);
            let ip = address.wrapping_add(offset as u64);
            let one = describe(&mut writer, &bytes[..count], offset, bits, ip, &features);
            offset += usize::from(one.1);
            decoded.push(one);
        }
        decoded
    }))
}

pub fn describe(
    writer: &mut TextWriter,
    bytes: &[u8],
    offset: usize,
    bits: Bits,
    ip: u64,
    features: &Features,
) -> Decoded {
    let insn = match decode_one(bytes, bits, features) {
        Ok(insn) => insn,
        Err(error) => {
            let text = format!("({error})");
            return (offset, 1, "(bad)", text, "invalid", [0; 3], Default::default(), [("faults", ""); 3]);
        }
    };
    let bytes = &bytes[..usize::from(insn.len).min(bytes.len())];
    let flags = flag_use(&insn);
    let how = treatment(&insn);
    (
        offset,
        insn.len,
        insn.op.name(),
        text(writer, bytes, bits, ip, &insn),
        class(&insn).name(),
        [flags.read, flags.modified(), flags.undefined],
        registers(bytes, bits, ip),
        [how.full, how.para, how.hardware].map(action),
    )
}

/// The instruction in Intel syntax.
fn text(writer: &mut TextWriter, bytes: &[u8], bits: Bits, ip: u64, insn: &Insn) -> String {
    let mut text = String::new();
    if !writer.write(bytes, bits, ip, &mut text) {
        return insn.op.name().to_owned();
    }
    // The library goes by the newest processor; these are what the same bytes mean without BMI1 and LZCNT.
    match insn.op {
        Op::Bsf => text.replacen("tzcnt", "bsf", 1),
        Op::Bsr => text.replacen("lzcnt", "bsr", 1),
        _ => text,
    }
}

/// Names of the registers that are read, and of those that are written.
fn registers(bytes: &[u8], bits: Bits, ip: u64) -> [Vec<String>; 2] {
    let mut used: [Vec<String>; 2] = Default::default();
    for register in facts(bytes, bits, ip).iter().flat_map(|facts| &facts.registers) {
        let (read, written) = match register.access {
            Access::None => (false, false),
            Access::Read | Access::MayRead => (true, false),
            Access::Write | Access::MayWrite => (false, true),
            Access::ReadWrite | Access::ReadMayWrite => (true, true),
        };
        let name = register_name(register.register);
        for (names, wanted) in used.iter_mut().zip([read, written]) {
            if wanted && !names.contains(&name) {
                names.push(name.clone());
            }
        }
    }
    used
}

fn register_name(register: Register) -> String {
    const LEGACY: [&str; 8] = ["ax", "cx", "dx", "bx", "sp", "bp", "si", "di"];
    match register {
        Register::Gpr { reg, size } if reg < 8 => {
            let name = LEGACY[usize::from(reg)];
            match size {
                8 => format!("r{name}"),
                4 => format!("e{name}"),
                2 => name.to_owned(),
                _ if reg < 4 => format!("{}l", &name[..1]),
                _ => format!("{name}l"),
            }
        }
        Register::Gpr { reg, size } => {
            format!(
                "r{reg}{}",
                match size {
                    8 => "",
                    4 => "d",
                    2 => "w",
                    _ => "b",
                }
            )
        }
        Register::High { reg } => ["ah", "ch", "dh", "bh"][usize::from(reg & 3)].to_owned(),
        Register::Seg(seg) => match seg {
            Seg::Es => "es",
            Seg::Cs => "cs",
            Seg::Ss => "ss",
            Seg::Ds => "ds",
            Seg::Fs => "fs",
            Seg::Gs => "gs",
        }
        .to_owned(),
        Register::Cr(n) => format!("cr{n}"),
        Register::Dr(n) => format!("dr{n}"),
        Register::St(n) => format!("st{n}"),
        Register::Mmx(n) => format!("mm{n}"),
        Register::Xmm(n) => format!("xmm{n}"),
        Register::Ymm(n) => format!("ymm{n}"),
        Register::Other(name) => name.to_lowercase(),
    }
}

/// What becomes of the instruction, and why.
fn action(action: Action) -> (&'static str, &'static str) {
    match action {
        Action::Copied => ("copied", "it runs on the host as it is"),
        Action::Rewritten(reason) => ("rewritten", reason.text()),
        Action::Faults => ("faults", "the monitor carries it out, or hands the fault to the guest"),
        Action::Native => ("native", "the host's virtualisation hardware runs it"),
        Action::Exits => ("exits", "it leaves the guest to the monitor"),
    }
}

/// Decode code in bulk, without the interpreter lock, into rows of 24 bytes.
#[pyfunction]
pub fn decode_columns(py: Python<'_>, code: &Bound<'_, PyAny>, bits: u32, cpu: &str) -> PyResult<Buffer> {
    let (bits, features) = (parse_bits(bits)?, parse_features(cpu)?);
    let code = Input::new(code)?;
    let mut rows = Vec::new();
    let mut window = vec![0; WINDOW + MAX_LENGTH];
    let mut start = 0;
    while start < code.len() {
        start = py.detach(|| {
            // Every byte may be a row of its own.
            errors::more_room(&mut rows, WINDOW)?;
            Ok::<_, PyErr>(window_rows(&code, start, bits, &features, &mut window, &mut rows))
        })?;
        py.check_signals()?;
    }
    Ok(Buffer::from_rows(rows))
}

/// Adds the rows of the instructions that begin in the window from `start` on; gives where the next one begins.
fn window_rows(
    code: &Input,
    start: usize,
    bits: Bits,
    features: &Features,
    window: &mut [u8],
    rows: &mut Vec<Row>,
) -> usize {
    let count = code.read(start, window);
    // What begins behind the window may be cut off by its end, and is left to the next.
    let mut end = 0;
    decode_rows(&window[..count], bits, features, |row| {
        let offset = row.offset as usize;
        if offset < WINDOW {
            end = offset + usize::from(row.length);
            rows.push(Row { offset: (start + offset) as u64, ..row });
        }
    });
    start + end
}

/// The mnemonics that rows number.
#[pyfunction]
pub fn mnemonics() -> Vec<&'static str> {
    Op::ALL.iter().map(|op| op.name()).collect()
}
