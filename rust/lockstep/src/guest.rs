//! What is run: a kernel with its initrd and command line, or a few assembled instructions.

use std::path::{Path, PathBuf};

use iced_x86::IcedError;
use iced_x86::code_asm::CodeAssembler;
use trapgate_machine::boot::{Decompression, Protocol};
use trapgate_machine::{ClockKind, Config, Machine, MachineError, Payload};
use trapgate_x86::insn::Bits;
use trapgate_x86::model::{Model, X86_64_V2};

/// Where the code of a [`Guest::program`] lies.
pub const PROGRAM: u64 = 0x10_0000;

/// A guest from which any number of equal machines can be made.
#[derive(Clone, Debug)]
pub struct Guest {
    pub kernel: Vec<u8>,
    pub initrd: Option<Vec<u8>>,
    pub command_line: String,
    /// Bytes of RAM.
    pub memory: u64,
    pub model: Model,
}

/// Why there is no guest.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    #[error("{path} cannot be read: {error}")]
    File { path: PathBuf, error: std::io::Error },
    #[error("the program cannot be assembled: {0}")]
    Assembler(#[from] IcedError),
}

/// Reads a whole file.
pub fn read(path: &Path) -> Result<Vec<u8>, GuestError> {
    std::fs::read(path).map_err(|error| GuestError::File { path: path.into(), error })
}

impl Guest {
    /// The kernel and initrd that `trapgate images pull debian-12` has put into the user's cache.
    pub fn debian() -> Result<Guest, GuestError> {
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache");
        let image = cache.unwrap_or_else(home).join("trapgate/images/debian-12");
        Ok(Guest {
            kernel: read(&image.join("vmlinuz"))?,
            initrd: Some(read(&image.join("initrd"))?),
            command_line: "console=ttyS0".into(),
            memory: 256 << 20,
            model: X86_64_V2,
        })
    }

    /// A bare-metal program at [`PROGRAM`]: 64-bit code with the first 4 GiB mapped to themselves, or 32-bit code without
    /// paging; flat segments, no IDT, no stack, interrupts off.
    pub fn program(
        bits: Bits,
        assemble: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ) -> Result<Guest, GuestError> {
        let width = if bits == Bits::B64 { 64 } else { 32 };
        let mut assembler = CodeAssembler::new(width)?;
        assemble(&mut assembler)?;
        Ok(Guest::code(bits, &assembler.assemble(PROGRAM)?))
    }

    /// The same for code that is there as bytes.
    pub fn code(bits: Bits, code: &[u8]) -> Guest {
        Guest {
            kernel: elf(bits == Bits::B64, code),
            initrd: None,
            command_line: String::new(),
            memory: 4 << 20,
            model: X86_64_V2,
        }
    }

    /// A machine before its first instruction. It runs in virtual time, so that equal ones stay equal.
    pub fn machine(&self) -> Result<Machine, MachineError> {
        let config = Config {
            memory: self.memory,
            model: self.model,
            clock: ClockKind::Virtual,
            seed: 1,
            debug_console: false,
            debug_exit: true,
            epoch_seconds: 1_700_000_000,
        };
        let payload = Payload {
            kernel: &self.kernel,
            initrd: self.initrd.as_deref(),
            command_line: &self.command_line,
            protocol: Protocol::Auto,
            decompression: Decompression::Host,
        };
        Machine::new(&config, &payload)
    }
}

/// An ELF executable of one segment at [`PROGRAM`], entered at its start (System V gABI, chapters 4 and 5).
fn elf(is_64: bool, code: &[u8]) -> Vec<u8> {
    let (header, entry, machine) = if is_64 { (64u16, 56u16, 62u8) } else { (52, 32, 3) };
    let start = u64::from(header + entry);
    let size = code.len() as u64;
    let mut file = vec![0x7f, b'E', b'L', b'F', 1 + u8::from(is_64), 1, 1];
    file.resize(16, 0);
    let word = |file: &mut Vec<u8>, value: u64| {
        file.extend(&value.to_le_bytes()[..if is_64 { 8 } else { 4 }]);
    };
    file.extend([2, 0, machine, 0, 1, 0, 0, 0]);
    for value in [PROGRAM, header.into(), 0] {
        word(&mut file, value);
    }
    file.extend([0; 4]);
    for half in [header, entry, 1, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    file.extend([1, 0, 0, 0]);
    if is_64 {
        file.extend([7, 0, 0, 0]);
    }
    for value in [start, PROGRAM, PROGRAM, size, size] {
        word(&mut file, value);
    }
    if !is_64 {
        file.extend([7, 0, 0, 0]);
    }
    word(&mut file, 4);
    file.extend(code);
    file
}

/// An ELF file of a para-virtual kernel: `code` at 0x10000 above where PFN 0 is mapped, entered at its first byte.
pub fn para_kernel(code: &[u8]) -> Vec<u8> {
    const BASE: u64 = 0xffff_ffff_8000_0000;
    const LOAD: u64 = 0x1_0000;
    let note = |kind: u32, value: &[u8]| {
        let sizes = [4, value.len() as u32, kind].map(u32::to_le_bytes).concat();
        let mut note = [&sizes[..], b"Xen\0", value].concat();
        note.resize(note.len().next_multiple_of(4), 0);
        note
    };
    let notes = [
        note(1, &(BASE + LOAD).to_le_bytes()),
        note(3, &BASE.to_le_bytes()),
        note(4, &0u64.to_le_bytes()),
        note(5, b"xen-3.0\0"),
        note(8, b"generic\0"),
    ]
    .concat();
    const HEADERS: u64 = 64 + 2 * 56;
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    // Entry (which the note overrides), program headers, no section headers, flags; sizes and counts.
    for word in [LOAD, 64, 0] {
        file.extend(u64::to_le_bytes(word));
    }
    file.extend([0; 4]);
    for half in [64u16, 56, 2, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    let notes_at = HEADERS + code.len() as u64;
    for (kind, offset, address, size) in
        [(1u32, HEADERS, LOAD, code.len() as u64), (4, notes_at, 0, notes.len() as u64)]
    {
        file.extend(kind.to_le_bytes());
        file.extend(7u32.to_le_bytes());
        for word in [offset, BASE + address, address, size, size, 4] {
            file.extend(word.to_le_bytes());
        }
    }
    file.extend(code);
    file.extend(notes);
    file
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::code_asm::*;
    use trapgate_machine::{Exit, Limits};

    #[test]
    fn programs_of_both_widths_run() {
        for bits in [Bits::B32, Bits::B64] {
            let guest = Guest::program(bits, |a| {
                a.mov(eax, 7)?;
                a.mov(dx, 0xf4)?;
                a.out(dx, al)
            });
            let mut machine = guest.unwrap().machine().unwrap();
            assert_eq!(machine.cpu().rip, PROGRAM);
            assert_eq!(machine.run(&Limits { count: Some(10), ..Limits::default() }), Exit::DebugExit(7));
            assert_eq!(machine.count(), 3);
        }
    }
}
