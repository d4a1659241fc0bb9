//! What can be wrong with a kernel, its companions or the memory they should go to.
//!
//! Every message is one sentence that says what was wrong, where, and what would help.

use thiserror::Error;

use super::Protocol;
use super::decompress::DecompressError;

/// Why a boot image could not be made.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BootError {
    /// None of the known formats.
    #[error(
        "not a kernel: the file ({size:#x} bytes) is neither a Linux bzImage, nor an ELF executable, nor does it \
         carry a multiboot header in its first 8 KiB"
    )]
    NotAKernel {
        /// Size of the file.
        size: u64,
    },

    /// A kernel without the para-virtual interface.
    #[error("this guest is not modified for para-virtualization ({why}); `full` mode runs it")]
    NotParavirtual {
        /// What is missing.
        why: &'static str,
    },

    /// A kernel that knows no other machine than a hypervisor's.
    #[error(
        "this guest is modified for para-virtualization and has no entry for hardware; `para` mode runs it"
    )]
    OnlyParavirtual,

    /// The domain's memory does not hold what has to be in it.
    #[error(
        "{pages} pages of memory are too few for this kernel, whose image alone ends at page {kernel}: give it more"
    )]
    DomainTooSmall { pages: u64, kernel: u64 },

    /// A new domain refused what its builder made.
    #[error("{what} cannot be made: {error}")]
    Domain { what: &'static str, error: trapgate_xen::Errno },

    /// The file ends before something that its headers promise.
    #[error(
        "the kernel is truncated: {what} ends at {needed:#x}, but the file has {size:#x} bytes; get it again"
    )]
    Truncated {
        /// What was being read.
        what: &'static str,
        /// Offset of its end.
        needed: u64,
        /// Size of the file.
        size: u64,
    },

    /// The headers contradict themselves or the format.
    #[error("the kernel file is damaged: {what} is {value:#x}")]
    Malformed {
        /// The field.
        what: &'static str,
        /// Its value.
        value: u64,
    },

    /// A kernel that only the 16-bit protocol can start.
    #[error(
        "this kernel (Linux boot protocol {major}.{minor:02}) can only be started in real mode, by firmware and a boot \
         loader; direct boot needs a bzImage of protocol 2.02 or later"
    )]
    RealModeOnly {
        /// Major number of the boot protocol.
        major: u8,
        /// Minor number of the boot protocol.
        minor: u8,
    },

    /// An ELF file for another processor or of a kind that does not run by itself.
    #[error("the ELF file cannot run here: its {what} is {value:#x}, and {wanted} is needed")]
    WrongElf {
        /// The field.
        what: &'static str,
        /// Its value.
        value: u64,
        /// What is accepted.
        wanted: &'static str,
    },

    /// The protocol that was asked for does not fit the file.
    #[error("the kernel cannot be started by the {protocol} protocol: {reason}")]
    Unsuitable {
        /// The protocol that was asked for.
        protocol: Protocol,
        /// What is missing.
        reason: &'static str,
    },

    /// The compressed kernel inside a bzImage does not decompress.
    #[error("the compressed kernel inside the bzImage cannot be read: {0}")]
    Payload(#[from] DecompressError),

    /// A multiboot kernel asks for something that this machine does not give.
    #[error(
        "the multiboot header asks for features {flags:#x}, which are not offered (bits 0 to 15 are mandatory)"
    )]
    MultibootFeatures {
        /// The mandatory bits that are not known.
        flags: u32,
    },

    /// Longer than the kernel (or the space for it) takes.
    #[error("the command line has {length} bytes, but this kernel takes at most {limit}; shorten it")]
    CommandLineTooLong {
        /// Its length in bytes.
        length: u64,
        /// What the kernel takes.
        limit: u64,
    },

    /// A NUL would end the command line early.
    #[error("the command line contains a NUL byte at offset {offset}")]
    CommandLineNul {
        /// Where.
        offset: u64,
    },

    /// Guest memory ends too early, or the piece wants to be where there is none.
    #[error(
        "{what} needs guest memory from {start:#x} to {end:#x}, which is not all RAM: low memory ends at {low_end:#x}; \
         give the machine more memory"
    )]
    OutsideMemory {
        /// The piece.
        what: &'static str,
        /// First address it needs.
        start: u64,
        /// The address after its last.
        end: u64,
        /// End of the RAM below 4 GiB.
        low_end: u64,
    },

    /// Something wants to be where the interrupt vectors are.
    #[error(
        "{what} cannot be loaded at {start:#x}: the first page holds the interrupt vectors and the data of the BIOS"
    )]
    BiosData {
        /// The piece.
        what: &'static str,
        /// Where it wants to be.
        start: u64,
    },

    /// No room is left below the limit that the kernel sets.
    #[error(
        "{what} ({size:#x} bytes) does not fit between the kernel's end at {floor:#x} and {ceiling:#x}; give the \
         machine more memory or use a smaller one"
    )]
    NoRoom {
        /// The piece.
        what: &'static str,
        /// Its size.
        size: u64,
        /// Lowest address it may have.
        floor: u64,
        /// Where it must end.
        ceiling: u64,
    },

    /// Two pieces want the same memory.
    #[error("{first} and {second} overlap at {address:#x}: the kernel file's load addresses cannot be used")]
    Overlap {
        /// The piece placed first.
        first: &'static str,
        /// The piece that met it.
        second: &'static str,
        /// First common address.
        address: u64,
    },

    /// Linux takes one initrd and no other modules.
    #[error("the {protocol} protocol has no modules: give an initrd, or concatenate the archives into one")]
    NoModules {
        /// The protocol in use.
        protocol: Protocol,
    },

    /// A size of RAM that no machine can be made of.
    #[error(
        "guest memory of {size:#x} bytes is not possible: it must be a multiple of 4 KiB between {min:#x} and {max:#x}"
    )]
    MemorySize {
        /// What was asked for.
        size: u64,
        /// The least.
        min: u64,
        /// The most.
        max: u64,
    },
}
