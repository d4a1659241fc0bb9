//! A client of the gdb remote serial protocol (GDB manual, appendix E), as far as QEMU's stub for x86-64 goes.
//!
//! The stub's registers have the numbers of its target description (`i386-64bit.xml`), and the `g` packet holds them in
//! that order: sixteen general registers, RIP, EFLAGS, six selectors, bases, control registers, x87, XMM, MXCSR.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::registers::Registers;

/// What can go wrong between the stub and us.
#[derive(Debug, thiserror::Error)]
pub enum GdbError {
    #[error("the connection to QEMU's gdb stub failed: {0}")]
    Io(#[from] io::Error),
    #[error("QEMU's gdb stub closed the connection")]
    Closed,
    #[error("QEMU's gdb stub answered {answer:?} to {request:?}")]
    Answer { request: String, answer: String },
    #[error("QEMU did not stop within {0:?}")]
    TimedOut(Duration),
}

/// Numbers of registers.
pub mod number {
    pub const RIP: u8 = 16;
    pub const EFLAGS: u8 = 17;
    /// CS, SS, DS, ES, FS, GS follow each other.
    pub const CS: u8 = 18;
    pub const FS_BASE: u8 = 24;
    pub const CR0: u8 = 27;
    pub const CR2: u8 = 28;
    pub const CR3: u8 = 29;
    pub const CR4: u8 = 30;
    pub const EFER: u8 = 32;
    pub const XMM0: u8 = 49;
    pub const MXCSR: u8 = 65;
}

/// The stub's number of each general register, by encoding: RAX, RBX, RCX, RDX, RSI, RDI, RBP, RSP, R8 to R15 there.
pub const GENERAL: [u8; 16] = [0, 2, 3, 1, 7, 6, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15];
/// The stub's number of each segment register, by encoding.
pub const SELECTORS: [u8; 6] = [21, 18, 19, 20, 22, 23];

/// Offsets in the `g` packet.
mod offset {
    pub const RIP: usize = 128;
    pub const EFLAGS: usize = 136;
    pub const CS: usize = 140;
    pub const FS_BASE: usize = 164;
    pub const CR0: usize = 188;
    pub const CR2: usize = 196;
    pub const CR3: usize = 204;
    pub const CR4: usize = 212;
    pub const EFER: usize = 228;
    pub const XMM0: usize = 348;
    pub const MXCSR: usize = 604;
    pub const END: usize = 608;
}

/// A connection.
#[derive(Debug)]
pub struct Gdb {
    stream: UnixStream,
    input: Vec<u8>,
    /// Up to here `input` has been used.
    used: usize,
    output: Vec<u8>,
}

impl Gdb {
    /// Greets the stub; the machine is stopped.
    pub fn new(stream: UnixStream) -> Result<Gdb, GdbError> {
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut gdb = Gdb { stream, input: Vec::new(), used: 0, output: Vec::new() };
        gdb.exchange("qSupported:xmlRegisters=i386")?;
        // Registers get their full description once a client has asked for it.
        gdb.exchange("qXfer:features:read:target.xml:0,ffb")?;
        gdb.expect("Hg0", "OK")?;
        Ok(gdb)
    }

    fn send(&mut self, payload: &str) -> Result<(), GdbError> {
        let sum = payload.bytes().fold(0u8, |sum, byte| sum.wrapping_add(byte));
        self.output.clear();
        write!(self.output, "${payload}#{sum:02x}")?;
        self.stream.write_all(&self.output)?;
        Ok(())
    }

    /// The payload of the next packet, acknowledged.
    fn receive(&mut self) -> Result<String, GdbError> {
        loop {
            let rest = &self.input[self.used..];
            let start = rest.iter().position(|byte| *byte == b'$');
            let end = rest.iter().position(|byte| *byte == b'#');
            if let (Some(start), Some(end)) = (start, end)
                && start < end
                && rest.len() >= end + 3
            {
                let payload = String::from_utf8_lossy(&rest[start + 1..end]).into_owned();
                self.used += end + 3;
                if self.used == self.input.len() {
                    (self.used, self.input) = (0, Vec::new());
                }
                self.stream.write_all(b"+")?;
                return Ok(payload);
            }
            let mut chunk = [0; 4096];
            match self.stream.read(&mut chunk)? {
                0 => return Err(GdbError::Closed),
                n => self.input.extend_from_slice(&chunk[..n]),
            }
        }
    }

    fn exchange(&mut self, request: &str) -> Result<String, GdbError> {
        self.send(request)?;
        self.receive()
    }

    fn expect(&mut self, request: &str, wanted: &str) -> Result<(), GdbError> {
        let answer = self.exchange(request)?;
        if answer == wanted {
            return Ok(());
        }
        Err(GdbError::Answer { request: request.into(), answer })
    }

    /// Waits for a stop after `request`, at most `patience`; a machine that does not stop is interrupted.
    fn resume(&mut self, request: &str, patience: Duration) -> Result<(), GdbError> {
        self.send(request)?;
        self.stream.set_read_timeout(Some(patience))?;
        let answer = match self.receive() {
            Err(GdbError::Io(error))
                if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) =>
            {
                self.stream.set_read_timeout(Some(PATIENCE))?;
                self.stream.write_all(&[INTERRUPT])?;
                self.receive()?;
                return Err(GdbError::TimedOut(patience));
            }
            other => other?,
        };
        self.stream.set_read_timeout(Some(PATIENCE))?;
        if answer.starts_with("T05") {
            return Ok(());
        }
        Err(GdbError::Answer { request: request.into(), answer })
    }

    /// Runs one instruction, or one iteration of a repeated one, or up to the first instruction of its handler.
    pub fn step(&mut self) -> Result<(), GdbError> {
        self.resume("s", PATIENCE)
    }

    /// Runs until the instruction at a linear address is the next, at most `patience`. The present one runs in any case.
    pub fn run_to(&mut self, linear: u64, patience: Duration) -> Result<(), GdbError> {
        self.expect(&format!("Z1,{linear:x},1"), "OK")?;
        let stopped = self.resume("c", patience);
        self.expect(&format!("z1,{linear:x},1"), "OK")?;
        stopped
    }

    /// Sets a register by its number; `size` is that of the register in bytes.
    pub fn set(&mut self, number: u8, value: u128, size: usize) -> Result<(), GdbError> {
        let digits: String = value.to_le_bytes()[..size].iter().map(|byte| format!("{byte:02x}")).collect();
        self.expect(&format!("P{number:x}={digits}"), "OK")
    }

    /// Writes guest-physical memory; QEMU forgets what it translated there.
    pub fn write_physical(&mut self, gpa: u64, bytes: &[u8]) -> Result<(), GdbError> {
        self.expect("Qqemu.PhyMemMode:1", "OK")?;
        for (n, chunk) in bytes.chunks(1024).enumerate() {
            let digits: String = chunk.iter().map(|byte| format!("{byte:02x}")).collect();
            let at = gpa + 1024 * n as u64;
            self.expect(&format!("M{at:x},{:x}:{digits}", chunk.len()), "OK")?;
        }
        self.expect("Qqemu.PhyMemMode:0", "OK")
    }

    /// Reads all registers.
    pub fn registers(&mut self) -> Result<Registers, GdbError> {
        let answer = self.exchange("g")?;
        let bytes = from_hex(&answer).filter(|bytes| bytes.len() >= offset::END);
        match bytes {
            Some(bytes) => Ok(unpack(&bytes)),
            None => Err(GdbError::Answer { request: "g".into(), answer }),
        }
    }
}

/// How long the stub may take for anything that it does at once.
const PATIENCE: Duration = Duration::from_secs(60);
/// The byte that stops a running target.
const INTERRUPT: u8 = 3;

fn from_hex(digits: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| (byte as char).to_digit(16).map(|digit| digit as u8);
    digits.as_bytes().chunks(2).map(|pair| Some(digit(pair[0])? << 4 | digit(*pair.get(1)?)?)).collect()
}

/// Little-endian value of `size` bytes at an offset.
fn value(bytes: &[u8], at: usize, size: usize) -> u128 {
    bytes[at..at + size].iter().rev().fold(0, |value, byte| value << 8 | u128::from(*byte))
}

fn unpack(bytes: &[u8]) -> Registers {
    let long = |at| value(bytes, at, 8) as u64;
    let selector = |number: u8| value(bytes, offset::CS + 4 * usize::from(number - number::CS), 4) as u16;
    let mut registers = Registers {
        general: GENERAL.map(|number| long(8 * usize::from(number))),
        rip: long(offset::RIP),
        rflags: value(bytes, offset::EFLAGS, 4) as u64,
        selectors: SELECTORS.map(selector),
        fs_base: long(offset::FS_BASE),
        gs_base: long(offset::FS_BASE + 8),
        kernel_gs_base: long(offset::FS_BASE + 16),
        cr0: long(offset::CR0),
        cr2: long(offset::CR2),
        cr3: long(offset::CR3),
        cr4: long(offset::CR4),
        efer: long(offset::EFER),
        mxcsr: value(bytes, offset::MXCSR, 4) as u32,
        xmm: [0; 16],
    };
    for (n, xmm) in registers.xmm.iter_mut().enumerate() {
        *xmm = value(bytes, offset::XMM0 + 16 * n, 16);
    }
    registers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_register_packet_is_unfolded() {
        let mut bytes = vec![0; offset::END];
        bytes[8] = 0xb; // RBX
        bytes[16] = 0xc; // RCX
        bytes[offset::CS + 12] = 0xe5; // ES is the fourth
        bytes[offset::XMM0 + 16] = 1;
        let registers = unpack(&bytes);
        assert_eq!((registers.general[3], registers.general[1]), (0xb, 0xc));
        assert_eq!((registers.selectors[0], registers.xmm[1]), (0xe5, 1));
        assert_eq!(from_hex("0aFf"), Some(vec![10, 255]));
        assert_eq!((from_hex("0"), from_hex("xx")), (None, None));
    }
}
