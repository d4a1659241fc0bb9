//! Reads the setup header of a Linux bzImage (Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header").

use super::BootError;
use super::elf::{u16_at, u32_at, u64_at};

/// Offsets of the setup header's fields, the same in the file and in the boot parameters.
pub(super) mod field {
    pub(crate) const SETUP_SECTS: usize = 0x1F1;
    pub(crate) const SYSSIZE: usize = 0x1F4;
    pub(crate) const BOOT_FLAG: usize = 0x1FE;
    pub(crate) const JUMP: usize = 0x200;
    pub(crate) const HEADER: usize = 0x202;
    pub(crate) const VERSION: usize = 0x206;
    pub(crate) const TYPE_OF_LOADER: usize = 0x210;
    pub(crate) const LOADFLAGS: usize = 0x211;
    pub(crate) const CODE32_START: usize = 0x214;
    pub(crate) const RAMDISK_IMAGE: usize = 0x218;
    pub(crate) const RAMDISK_SIZE: usize = 0x21C;
    pub(crate) const CMD_LINE_PTR: usize = 0x228;
    pub(crate) const INITRD_ADDR_MAX: usize = 0x22C;
    pub(crate) const KERNEL_ALIGNMENT: usize = 0x230;
    pub(crate) const RELOCATABLE: usize = 0x234;
    pub(crate) const XLOADFLAGS: usize = 0x236;
    pub(crate) const CMDLINE_SIZE: usize = 0x238;
    pub(crate) const PAYLOAD_OFFSET: usize = 0x248;
    pub(crate) const PAYLOAD_LENGTH: usize = 0x24C;
    pub(crate) const PREF_ADDRESS: usize = 0x258;
    pub(crate) const INIT_SIZE: usize = 0x260;
    /// Where the setup header must end in the boot parameters.
    pub(crate) const END: usize = 0x290;
}

pub(super) const BOOT_FLAG: u16 = 0xAA55;
pub(super) const MAGIC: &[u8; 4] = b"HdrS";
/// `loadflags`: the protected-mode code is loaded at 1 MiB (a "big" zImage).
pub(super) const LOADED_HIGH: u8 = 1 << 0;
/// `xloadflags`: a 64-bit entry point lies 200h after the 32-bit one.
const XLF_KERNEL_64: u16 = 1 << 0;

const SECTOR: u64 = 512;
/// An old file with zero in `setup_sects` means this many.
const DEFAULT_SETUP_SECTS: u64 = 4;
/// Where the protected-mode code of a kernel that cannot be moved goes.
pub(super) const DEFAULT_LOAD_ADDRESS: u64 = 0x10_0000;

/// A checked bzImage.
#[derive(Debug, Clone)]
pub(super) struct BzImage<'a> {
    setup: &'a [u8],
    /// The protected-mode code: the decompressor with the compressed kernel inside.
    pub(super) code: &'a [u8],
    /// Version of the boot protocol, major in the high byte.
    pub(super) version: u16,
}

impl<'a> BzImage<'a> {
    /// Reads the setup header; `None` if the file has none.
    ///
    /// # Errors
    /// When the file is cut off, or needs the 16-bit protocol.
    pub(super) fn parse(file: &'a [u8]) -> Result<Option<Self>, BootError> {
        if u16_at(file, field::BOOT_FLAG as u64) != Some(BOOT_FLAG)
            || file.get(field::HEADER..field::HEADER + MAGIC.len()) != Some(MAGIC)
        {
            return Ok(None);
        }
        let size = file.len() as u64;
        let truncated = |what, needed| BootError::Truncated { what, needed, size };
        let version =
            u16_at(file, field::VERSION as u64).ok_or_else(|| truncated("the setup header", 0x208))?;
        let [major, minor] = version.to_be_bytes();
        let loadflags = *file.get(field::LOADFLAGS).ok_or_else(|| truncated("the setup header", 0x212))?;
        if version < 0x0202 || loadflags & LOADED_HIGH == 0 {
            return Err(BootError::RealModeOnly { major, minor });
        }
        let sectors = match file[field::SETUP_SECTS] {
            0 => DEFAULT_SETUP_SECTS,
            sectors => sectors.into(),
        };
        let setup_size = (sectors + 1) * SECTOR;
        if size <= setup_size {
            return Err(truncated("the setup code", setup_size));
        }
        let (setup, code) = file.split_at(setup_size as usize);
        // `syssize` counts paragraphs and is rounded; signatures may follow the code. Its upper half is only defined
        // from 2.04 on.
        let mut paragraphs = u32_at(file, field::SYSSIZE as u64).unwrap_or(0);
        if version < 0x0204 {
            paragraphs &= 0xFFFF;
        }
        let needed = setup_size + u64::from(paragraphs) * 16;
        if size + 15 < needed {
            return Err(truncated("the protected-mode code", needed));
        }
        Ok(Some(Self { setup, code, version }))
    }

    /// The setup header as it is copied to the boot parameters: from 1F1h to where the jump over it leads.
    pub(super) fn header(&self) -> &'a [u8] {
        let end = field::HEADER + usize::from(self.setup[field::JUMP + 1]);
        &self.setup[field::SETUP_SECTS..end.clamp(field::LOADFLAGS + 1, field::END.min(self.setup.len()))]
    }

    /// A field that exists from protocol `since` on.
    fn since<T>(&self, since: u16, value: Option<T>) -> Option<T> {
        value.filter(|_| self.version >= since)
    }

    fn word(&self, offset: usize) -> Option<u32> {
        u32_at(self.setup, offset as u64)
    }

    /// Whether the kernel has the 64-bit entry point, and so is a 64-bit kernel.
    pub(super) fn is_64(&self) -> bool {
        let flags = self.since(0x020C, u16_at(self.setup, field::XLOADFLAGS as u64));
        flags.is_some_and(|flags| flags & XLF_KERNEL_64 != 0)
    }

    /// The longest command line without its NUL.
    pub(super) fn command_line_limit(&self) -> u64 {
        self.since(0x0206, self.word(field::CMDLINE_SIZE)).unwrap_or(255).into()
    }

    /// The address that the initrd must end below or at.
    pub(super) fn initrd_ceiling(&self) -> u64 {
        u64::from(self.since(0x0203, self.word(field::INITRD_ADDR_MAX)).unwrap_or(0x37FF_FFFF)) + 1
    }

    /// Whether the protected-mode code may be loaded anywhere.
    pub(super) fn is_relocatable(&self) -> bool {
        self.since(0x0205, self.setup.get(field::RELOCATABLE)).is_some_and(|&flag| flag != 0)
    }

    /// The address that the kernel was linked to run at.
    pub(super) fn preferred_address(&self) -> Option<u64> {
        self.since(0x020A, u64_at(self.setup, field::PREF_ADDRESS as u64))
    }

    /// Memory needed from the run address on, before the kernel has looked at the memory map.
    pub(super) fn init_size(&self) -> Option<u64> {
        self.since(0x020A, self.word(field::INIT_SIZE)).map(u64::from)
    }

    /// The compressed kernel.
    ///
    /// # Errors
    /// When the header says that it lies outside the file.
    pub(super) fn payload(&self) -> Result<Option<&'a [u8]>, BootError> {
        let (Some(offset), Some(length)) =
            (self.since(0x0208, self.word(field::PAYLOAD_OFFSET)), self.word(field::PAYLOAD_LENGTH))
        else {
            return Ok(None);
        };
        if offset == 0 || length == 0 {
            return Ok(None);
        }
        let end = u64::from(offset) + u64::from(length);
        let payload = usize::try_from(end).ok().and_then(|end| self.code.get(offset as usize..end));
        payload.map(Some).ok_or(BootError::Truncated {
            what: "the compressed kernel",
            needed: self.setup.len() as u64 + end,
            size: (self.setup.len() + self.code.len()) as u64,
        })
    }
}
