//! Assembling, and noise to make programs of.

use iced_x86::code_asm::CodeAssembler;
use iced_x86::{BlockEncoderOptions, IcedError};

/// Code as it was loaded.
#[derive(Clone, Debug)]
pub struct Code {
    pub start: u64,
    pub end: u64,
    starts: Vec<u64>,
}

impl Code {
    /// Address of instruction `n`, the first being 0; that behind the last is the end.
    pub fn at(&self, n: usize) -> u64 {
        self.starts.get(n).copied().unwrap_or(self.end)
    }
}

/// Assembles code for an address.
pub fn assemble(
    bits: u32,
    linear: u64,
    f: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> (Vec<u8>, Code) {
    let mut assembler = CodeAssembler::new(bits).expect("a width that exists");
    f(&mut assembler).expect("an encodable program");
    let options = BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS;
    let result = assembler.assemble_options(linear, options).expect("an encodable program");
    let bytes = result.inner.code_buffer;
    let starts = result.inner.new_instruction_offsets.iter().map(|at| linear + u64::from(*at)).collect();
    let code = Code { start: linear, end: linear + bytes.len() as u64, starts };
    (bytes, code)
}

/// A small generator of repeatable noise (xorshift).
#[derive(Clone, Debug)]
pub struct Noise(pub u64);

impl Noise {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    pub fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 11) % n
    }
}
