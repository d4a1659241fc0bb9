//! What a kernel's ELF notes say of how it wants to be started (xen/include/public/elfnote.h).

use super::super::BootError;
use super::super::elf::{Elf, MACHINE_X86_64};

const OWNER: &[u8] = b"Xen";
const ENTRY: u32 = 1;
const HYPERCALL_PAGE: u32 = 2;
const VIRT_BASE: u32 = 3;
const PADDR_OFFSET: u32 = 4;
const XEN_VERSION: u32 = 5;
const GUEST_OS: u32 = 6;
const LOADER: u32 = 8;
const INIT_P2M: u32 = 15;
const MOD_START_PFN: u32 = 16;
const PHYS32_ENTRY: u32 = 18;

const PAGE: u64 = 4096;

/// A 64-bit para-virtual kernel.
#[derive(Clone, Debug)]
pub struct Kernel<'a> {
    pub(super) elf: Elf<'a>,
    pub(super) file: &'a [u8],
    /// RIP at the start.
    pub entry: u64,
    /// Address at which PFN 0 is mapped at first.
    pub virt_base: u64,
    pub(super) paddr_offset: u64,
    /// Where the stubs go, for a kernel that wants them.
    pub hypercall_page: Option<u64>,
    /// Where the P2M list is to be mapped, if not behind the kernel.
    pub init_p2m: Option<u64>,
    /// The ramdisk may be left out of the first mapping.
    pub mod_start_pfn: bool,
}

/// Whether hardware cannot start a kernel that has no PVH entry either: its notes are a domain builder's, and it is no
/// Linux, which has an entry for everybody.
pub(crate) fn is_only_paravirtual(elf: &Elf<'_>) -> bool {
    elf.note(OWNER, Some(XEN_VERSION)).is_some() && !elf.is_linux()
}

fn text(note: &[u8]) -> &[u8] {
    note.split(|byte| *byte == 0).next().unwrap_or(note)
}

impl<'a> Kernel<'a> {
    /// Reads the notes of an ELF file.
    ///
    /// # Errors
    /// [`BootError::NotParavirtual`] when the kernel lacks the interface, by Xen's own rules
    /// (xen/common/libelf/libelf-dominfo.c).
    pub fn parse(file: &'a [u8]) -> Result<Self, BootError> {
        let refuse = |why| BootError::NotParavirtual { why };
        let Some(elf) = Elf::parse(file)? else {
            return Err(BootError::NotAKernel { size: file.len() as u64 });
        };
        if !elf.is_64 || elf.machine != MACHINE_X86_64 {
            return Err(refuse("it is a 32-bit kernel"));
        }
        let note = |kind| elf.note(OWNER, Some(kind));
        if elf.note(OWNER, None).is_none() {
            return Err(refuse("it has no Xen notes"));
        }
        let number = |kind| note(kind).map(|bytes| word(bytes).ok_or(malformed(kind))).transpose();
        let generic = note(LOADER).is_some_and(|loader| text(loader).starts_with(b"generic"));
        let linux = note(GUEST_OS).is_some_and(|name| text(name).starts_with(b"linux"));
        let entry_note = number(ENTRY)?;
        if entry_note.is_none() && note(PHYS32_ENTRY).is_some() {
            return Err(refuse("its only entry is that of PVH"));
        }
        if !generic && !linux {
            return Err(refuse("its notes name no loader that a domain builder could be"));
        }
        if !note(XEN_VERSION).is_some_and(|version| text(version).starts_with(b"xen-3.0")) {
            return Err(refuse("its notes ask for another interface than xen-3.0"));
        }
        let kernel = Kernel {
            entry: entry_note.unwrap_or(elf.entry),
            virt_base: number(VIRT_BASE)?.unwrap_or(0),
            paddr_offset: number(PADDR_OFFSET)?.unwrap_or(0),
            hypercall_page: number(HYPERCALL_PAGE)?,
            init_p2m: number(INIT_P2M)?,
            mod_start_pfn: number(MOD_START_PFN)?.is_some_and(|value| value != 0),
            elf,
            file,
        };
        kernel.check()?;
        Ok(kernel)
    }

    /// The first and the last frame of the image, the last excluded.
    pub(super) fn frames(&self) -> Result<std::ops::Range<u64>, BootError> {
        let mut range: Option<(u64, u64)> = None;
        for header in self.elf.loads() {
            let start = self.offset(header.paddr)?;
            let end = start.checked_add(header.memsz).ok_or(outside(header.paddr))?;
            range = Some(range.map_or((start, end), |(low, high)| (low.min(start), high.max(end))));
        }
        let (start, end) = range.ok_or(BootError::NotParavirtual { why: "it has no segment to load" })?;
        Ok(start / PAGE..end.div_ceil(PAGE))
    }

    /// Bytes between the first mapped address and a physical address of the file.
    pub(super) fn offset(&self, paddr: u64) -> Result<u64, BootError> {
        paddr.checked_sub(self.paddr_offset).ok_or(outside(paddr))
    }

    fn check(&self) -> Result<(), BootError> {
        let frames = self.frames()?;
        let image = |frame: u64| self.virt_base.checked_add(frame * PAGE).ok_or(outside(self.virt_base));
        let (start, end) = (image(frames.start)?, image(frames.end)?);
        if self.virt_base % PAGE != 0 || !(start..end).contains(&self.entry) {
            return Err(BootError::Malformed {
                what: "the kernel's entry, which lies outside of it,",
                value: self.entry,
            });
        }
        if let Some(page) = self.hypercall_page
            && (page % PAGE != 0 || !(start..end).contains(&page))
        {
            return Err(BootError::Malformed { what: "the note HYPERCALL_PAGE", value: page });
        }
        if let Some(p2m) = self.init_p2m
            && (p2m % PAGE != 0 || (start..end).contains(&p2m) || p2m >= self.virt_base)
        {
            return Err(BootError::Malformed { what: "the note INIT_P2M", value: p2m });
        }
        Ok(())
    }
}

/// A note's number: 4 or 8 bytes.
fn word(bytes: &[u8]) -> Option<u64> {
    match bytes.len() {
        4 => Some(u32::from_le_bytes(bytes.try_into().ok()?).into()),
        8 => Some(u64::from_le_bytes(bytes.try_into().ok()?)),
        _ => None,
    }
}

fn malformed(kind: u32) -> BootError {
    BootError::Malformed { what: "the size of a Xen note, whose type", value: kind.into() }
}

fn outside(address: u64) -> BootError {
    BootError::Malformed { what: "the physical address of a segment", value: address }
}
