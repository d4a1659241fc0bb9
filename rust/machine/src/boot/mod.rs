//! Direct boot: turns a kernel file, its initrd or modules and a command line into pieces of guest memory and the state
//! of the first processor, without firmware and without touching a machine.
//!
//! Which protocol is used when nothing else is asked for, in this order:
//!
//! 1. a Linux bzImage: its kernel is decompressed here and started by the 64-bit (or, for a 32-bit kernel, 32-bit)
//!    protocol; where that could differ from what its own decompressor does, the decompressor runs in the guest;
//! 2. a file with a multiboot header, ELF or not (Linux kernels have none): multiboot;
//! 3. an ELF file with a PVH entry note that is not a Linux kernel: PVH;
//! 4. any other ELF file: the Linux protocol of its word size.
//!
//! Nothing here depends on the host's architecture, and every number of a file is checked before it is used.

mod bzimage;
pub mod decompress;
mod elf;
mod entry;
mod error;
mod image;
mod linux;
mod memory;
mod multiboot;
mod place;
mod pvh;
#[cfg(test)]
mod tests;
pub mod xen;

use std::fmt;
use std::str::FromStr;

pub use error::BootError;
pub use image::{BootImage, Bytes, Entry, Mode, Segment, SegmentRegister, TableRegister};
pub use memory::{MemoryMap, Region, RegionKind};

/// How a kernel expects to be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Protocol {
    /// Whichever fits the file, in the order of the module's documentation.
    #[default]
    Auto,
    /// Linux, 64-bit entry (Documentation/arch/x86/boot.rst, "64-bit boot protocol").
    Linux64,
    /// Linux, 32-bit entry (the same, "32-bit boot protocol").
    Linux32,
    /// The PVH note of an ELF file: 32-bit entry with a start information structure.
    Pvh,
    /// Multiboot 0.6.96, the header with magic 1BADB002h.
    Multiboot,
}

impl Protocol {
    /// The name users write.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Linux64 => "linux64",
            Self::Linux32 => "linux32",
            Self::Pvh => "pvh",
            Self::Multiboot => "multiboot",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A protocol name that does not exist.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown boot protocol {0:?}: choose auto, linux64, linux32, pvh or multiboot")]
pub struct UnknownProtocol(pub String);

impl FromStr for Protocol {
    type Err = UnknownProtocol;

    fn from_str(name: &str) -> Result<Self, UnknownProtocol> {
        [Self::Auto, Self::Linux64, Self::Linux32, Self::Pvh, Self::Multiboot]
            .into_iter()
            .find(|protocol| protocol.name() == name)
            .ok_or_else(|| UnknownProtocol(name.to_owned()))
    }
}

/// Who decompresses the kernel inside a bzImage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Decompression {
    /// This host, where the result is the same; otherwise the guest.
    #[default]
    Host,
    /// The code that the bzImage brings along, run by the guest.
    Guest,
}

/// A file handed to the kernel beside the initrd.
#[derive(Debug, Clone, Copy)]
pub struct Module<'a> {
    /// Its contents.
    pub bytes: &'a [u8],
    /// Its own command line (multiboot: usually its name and arguments).
    pub command_line: &'a str,
}

impl Module<'_> {
    /// Its command line with the terminating NUL.
    fn command_line(&self) -> Result<Vec<u8>, BootError> {
        terminated(self.command_line, MODULE_COMMAND_LINE_LIMIT)
    }
}

/// The longest command line of a module: there is no other bound than the space below 640 KiB.
const MODULE_COMMAND_LINE_LIMIT: u64 = 2047;

/// What to boot, and in which memory.
#[derive(Debug, Clone)]
pub struct BootRequest<'a> {
    /// The kernel file.
    pub kernel: &'a [u8],
    /// The initial RAM disk; for multiboot and PVH it is the first module.
    pub initrd: Option<&'a [u8]>,
    /// Further modules, for multiboot and PVH.
    pub modules: Vec<Module<'a>>,
    /// The kernel's command line.
    pub command_line: &'a str,
    /// The machine's memory.
    pub memory: &'a MemoryMap,
    /// Address of the ACPI root pointer, or zero if there are no tables.
    pub rsdp: u64,
    /// How to start the kernel.
    pub protocol: Protocol,
    /// Who decompresses.
    pub decompression: Decompression,
}

impl<'a> BootRequest<'a> {
    /// A request for a kernel alone, everything else at its default.
    pub fn new(kernel: &'a [u8], memory: &'a MemoryMap) -> Self {
        Self {
            kernel,
            initrd: None,
            modules: Vec::new(),
            command_line: "",
            memory,
            rsdp: 0,
            protocol: Protocol::Auto,
            decompression: Decompression::Host,
        }
    }

    /// The command line with its terminating NUL.
    ///
    /// # Errors
    /// When it is longer than `limit` bytes without the NUL, or contains one.
    fn command_line(&self, limit: u64) -> Result<Vec<u8>, BootError> {
        terminated(self.command_line, limit)
    }

    /// The initrd, if there is one, and the other modules.
    fn all_modules(&self) -> impl Iterator<Item = Module<'a>> {
        let initrd = self.initrd.map(|bytes| Module { bytes, command_line: "" });
        initrd.into_iter().chain(self.modules.iter().copied())
    }
}

fn terminated(line: &str, limit: u64) -> Result<Vec<u8>, BootError> {
    let line = line.as_bytes();
    if let Some(offset) = line.iter().position(|&byte| byte == 0) {
        return Err(BootError::CommandLineNul { offset: offset as u64 });
    }
    if line.len() as u64 > limit {
        return Err(BootError::CommandLineTooLong { length: line.len() as u64, limit });
    }
    let mut bytes = line.to_vec();
    bytes.push(0);
    Ok(bytes)
}

/// Makes the boot image for a request.
///
/// # Errors
/// When the file is not a kernel, is damaged, or does not fit the machine; see [`BootError`].
pub fn load<'a>(request: &BootRequest<'a>) -> Result<BootImage<'a>, BootError> {
    if let Some(kernel) = bzimage::BzImage::parse(request.kernel)? {
        return match request.protocol {
            Protocol::Auto | Protocol::Linux64 | Protocol::Linux32 => linux::load_bzimage(request, &kernel),
            protocol @ (Protocol::Pvh | Protocol::Multiboot) => {
                Err(BootError::Unsuitable { protocol, reason: "the file is a Linux bzImage; use auto" })
            }
        };
    }
    let multiboot = multiboot::find(request.kernel);
    if let (Protocol::Auto | Protocol::Multiboot, Some(header)) = (request.protocol, multiboot) {
        return multiboot::load(request, header);
    }
    let Some(elf) = elf::Elf::parse(request.kernel)? else {
        if multiboot.is_some() {
            let reason = "the file is a flat multiboot image";
            return Err(BootError::Unsuitable { protocol: request.protocol, reason });
        }
        return Err(BootError::NotAKernel { size: request.kernel.len() as u64 });
    };
    let pvh = pvh::entry_point(&elf);
    if pvh.is_none() && xen::is_only_paravirtual(&elf) {
        return Err(BootError::OnlyParavirtual);
    }
    match (request.protocol, pvh) {
        (Protocol::Auto, Some(entry)) if !elf.is_linux() => pvh::load(request, &elf, entry),
        (Protocol::Pvh, Some(entry)) => pvh::load(request, &elf, entry),
        (Protocol::Auto | Protocol::Linux64 | Protocol::Linux32, _) => linux::load_elf(request, &elf),
        (protocol @ Protocol::Pvh, None) => {
            Err(BootError::Unsuitable { protocol, reason: "the ELF file has no PVH entry note" })
        }
        (protocol @ Protocol::Multiboot, _) => {
            Err(BootError::Unsuitable { protocol, reason: "the file has no multiboot header" })
        }
    }
}
