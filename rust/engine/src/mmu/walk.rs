//! The guest page-table walker: 32-bit, PAE and 4-level paging (SDM vol. 3, chapter 4).
//!
//! One walk serves the executors (which set A and D) and the inspection from outside (which changes nothing).

use serde::{Deserialize, Serialize};
use trapgate_x86::regs::{cr0, cr4, efer, pf};

use crate::memory::{GuestMemory, PAGE};

/// Bits of an entry (SDM vol. 3, tables 4-4 to 4-20).
pub(super) const P: u64 = 1;
pub(super) const RW: u64 = 1 << 1;
pub(super) const US: u64 = 1 << 2;
pub(super) const A: u64 = 1 << 5;
pub(super) const D: u64 = 1 << 6;
pub(super) const PS: u64 = 1 << 7;
pub(super) const G: u64 = 1 << 8;
pub(super) const NX: u64 = 1 << 63;

/// What translation depends on besides memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Paging {
    pub cr0: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    /// The four page-directory-pointer entries of PAE paging: registers, loaded with CR3.
    pub pdptes: [u64; 4],
    /// Width of physical addresses in bits (MAXPHYADDR).
    pub physical_bits: u8,
    /// Whether 1 GiB pages are offered.
    pub gigabyte_pages: bool,
    /// Tables of a para-virtual guest: they hold machine addresses, and U/S means nothing, as kernel and user mode have a
    /// root each (Xen sets it everywhere).
    pub direct: bool,
}

/// Paging formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Format {
    /// Paging is off: linear addresses are physical.
    Off,
    Bits32,
    Pae,
    Level4,
}

/// One access to be translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    pub write: bool,
    pub fetch: bool,
    /// At user privilege: CPL 3 and not an implicit supervisor access.
    pub user: bool,
    /// Explicit access with EFLAGS.AC set: SMAP does not apply.
    pub smap_off: bool,
}

/// A completed translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Guest-physical address of the byte.
    pub gpa: u64,
    /// Bytes the leaf maps: 4 KiB, 2 MiB, 4 MiB, 1 GiB.
    pub page_size: u64,
    /// All levels allow user mode.
    pub user: bool,
    /// All levels allow writes.
    pub writable: bool,
    /// No level forbids fetches.
    pub executable: bool,
    /// The leaf's D flag (true without paging).
    pub dirty: bool,
    pub global: bool,
}

/// A translation that failed, as #PF reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageFault {
    pub error: u32,
}

/// An entry as a walk met it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// 4 for PML4 down to 1 for a page table.
    pub level: u8,
    /// Guest-physical address of the entry; for the PDPTEs of PAE, their index times 8.
    pub entry_gpa: u64,
    pub entry: u64,
}

impl Paging {
    pub fn format(&self) -> Format {
        if self.cr0 & cr0::PG == 0 {
            Format::Off
        } else if self.cr4 & cr4::PAE == 0 {
            Format::Bits32
        } else if self.efer & efer::LMA == 0 {
            Format::Pae
        } else {
            Format::Level4
        }
    }

    /// Bits of an 8-byte entry that must be zero at any level.
    fn reserved(&self) -> u64 {
        let address = !((1u64 << self.physical_bits) - 1) & ((1 << 52) - 1);
        let nx = if self.efer & efer::NXE == 0 { NX } else { 0 };
        // Bits 52 to 62 are ignored in 4-level paging and reserved in PAE paging (SDM tables 4-9 to 4-11).
        let high = if self.format() == Format::Pae { 0x7ff << 52 } else { 0 };
        address | nx | high
    }

    /// Whether a PAE page-directory-pointer entry may be loaded (SDM vol. 3, 4.4.1).
    pub fn pdpte_ok(&self, entry: u64) -> bool {
        entry & P == 0 || entry & (0b1_1110_0110 | !((1u64 << self.physical_bits) - 1)) == 0
    }

    /// Whether the access is allowed by a translation's permissions (SDM vol. 3, 4.6.1).
    pub fn allows(&self, m: &Mapping, access: Access) -> bool {
        if self.cr0 & cr0::PG == 0 {
            return true;
        }
        let write_protect = self.cr0 & cr0::WP != 0;
        if access.user {
            return m.user && (!access.write || m.writable) && (!access.fetch || m.executable);
        }
        if access.fetch {
            return m.executable && !(m.user && self.cr4 & cr4::SMEP != 0);
        }
        if m.user && self.cr4 & cr4::SMAP != 0 && !access.smap_off {
            return false;
        }
        !access.write || m.writable || !write_protect
    }

    /// Error code of a fault on a page that is present (`true`) or not.
    fn error(&self, access: Access, present: bool, reserved: bool) -> PageFault {
        let mut error = 0;
        if present || reserved {
            error |= pf::P;
        }
        if access.write {
            error |= pf::W;
        }
        if access.user {
            error |= pf::U;
        }
        if reserved {
            error |= pf::RSVD;
        }
        // I/D only where it can differ: with NXE (and PAE) or SMEP (SDM vol. 3, 4.7).
        let nx = self.efer & efer::NXE != 0 && self.cr4 & cr4::PAE != 0;
        if access.fetch && (nx || self.cr4 & cr4::SMEP != 0) {
            error |= pf::I;
        }
        PageFault { error }
    }
}

/// Translates for an access: permission checked, A and D set as the processor does.
pub fn translate(
    memory: &GuestMemory,
    paging: &Paging,
    linear: u64,
    access: Access,
) -> Result<Mapping, PageFault> {
    translate_by(memory, paging, linear, access, |_| {})
}

/// The same; `each` sees the entries that a translation came from.
pub fn translate_by(
    memory: &GuestMemory,
    paging: &Paging,
    linear: u64,
    access: Access,
    each: impl FnMut(Step),
) -> Result<Mapping, PageFault> {
    loop {
        let mut path = Path::default();
        let mapping = walk(memory, paging, linear, |step| path.push(step)).map_err(|fault| match fault {
            Missing::NotPresent => paging.error(access, false, false),
            Missing::Reserved => paging.error(access, true, true),
        })?;
        if !paging.allows(&mapping, access) {
            return Err(paging.error(access, true, false));
        }
        if path.mark(memory, paging, access.write) {
            path.steps.into_iter().flatten().for_each(each);
            let dirty = mapping.dirty || access.write;
            return Ok(Mapping { dirty, ..mapping });
        }
        // Somebody changed an entry between the read and the update: walk again.
    }
}

/// Entries met by a walk, whose A and D flags are to be set.
#[derive(Default)]
struct Path {
    steps: [Option<Step>; 4],
    len: usize,
}

impl Path {
    fn push(&mut self, step: Step) {
        if let Some(slot) = self.steps.get_mut(self.len) {
            *slot = Some(step);
            self.len += 1;
        }
    }

    /// Sets A in every entry and D in the leaf for writes; false if an entry is no longer what was read.
    fn mark(&self, memory: &GuestMemory, paging: &Paging, write: bool) -> bool {
        let format = paging.format();
        for (i, step) in self.steps[..self.len].iter().flatten().enumerate() {
            // The PDPTEs of PAE have no A flag and are registers.
            if format == Format::Pae && step.level == 3 {
                continue;
            }
            let leaf = i + 1 == self.len;
            let want = step.entry | A | if leaf && write { D } else { 0 };
            if want != step.entry && !replace(memory, format, step, want) {
                return false;
            }
        }
        true
    }
}

fn replace(memory: &GuestMemory, format: Format, step: &Step, want: u64) -> bool {
    // Entries outside RAM read as all ones and keep nothing.
    let Some(page) = memory.page(step.entry_gpa) else { return true };
    if page.read_only {
        return true;
    }
    let host = page.offset + step.entry_gpa % PAGE;
    if format == Format::Bits32 {
        memory.mark_entry(host, step.entry as u32, want as u32).is_ok()
    } else {
        memory.mark_entry(host, step.entry, want).is_ok()
    }
}

/// Why a walk ended without a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    NotPresent,
    Reserved,
}

/// Walks without changing anything; `each` sees every entry, the failing one included.
pub fn walk(
    memory: &GuestMemory,
    paging: &Paging,
    linear: u64,
    each: impl FnMut(Step),
) -> Result<Mapping, Missing> {
    match paging.format() {
        Format::Off => Ok(Mapping {
            gpa: linear & u64::from(u32::MAX),
            page_size: PAGE,
            user: true,
            writable: true,
            executable: true,
            dirty: true,
            global: false,
        }),
        Format::Bits32 => walk32(memory, paging, linear, each),
        Format::Pae => walk64(memory, paging, linear, 3, each),
        Format::Level4 => walk64(memory, paging, linear, 4, each),
    }
}

fn entry64(memory: &GuestMemory, gpa: u64) -> u64 {
    memory.page(gpa).map_or(u64::MAX, |page| memory.load(page.offset + gpa % PAGE))
}

fn entry32(memory: &GuestMemory, gpa: u64) -> u32 {
    memory.page(gpa).map_or(u32::MAX, |page| memory.load(page.offset + gpa % PAGE))
}

fn walk64(
    memory: &GuestMemory,
    paging: &Paging,
    linear: u64,
    levels: u8,
    mut each: impl FnMut(Step),
) -> Result<Mapping, Missing> {
    let address = ((1u64 << paging.physical_bits) - 1) & !0xfff;
    let reserved = paging.reserved();
    let (mut user, mut writable, mut executable) = (true, true, true);
    let mut table = paging.cr3 & address;
    let mut level = levels;
    loop {
        let shift = 12 + 9 * (u32::from(level) - 1);
        let index = linear >> shift & 0x1ff;
        let register = levels == 3 && level == 3;
        let (entry_gpa, entry) = if register {
            let i = (linear >> 30 & 3) as usize;
            (i as u64 * 8, paging.pdptes[i])
        } else {
            let gpa = table + index * 8;
            (gpa, entry64(memory, gpa))
        };
        each(Step { level, entry_gpa, entry });
        if entry & P == 0 {
            return Err(Missing::NotPresent);
        }
        if register {
            table = entry & address;
            level = 2;
            continue;
        }
        if entry & reserved != 0 {
            return Err(Missing::Reserved);
        }
        user &= entry & US != 0 || paging.direct;
        writable &= entry & RW != 0;
        executable &= entry & NX == 0 || paging.efer & efer::NXE == 0;
        let large = entry & PS != 0 && level > 1;
        if large && (level == 4 || level == 3 && !paging.gigabyte_pages) {
            return Err(Missing::Reserved);
        }
        if level == 1 || large {
            let size = 1u64 << shift;
            // Address bits below the page's size are reserved, but for PAT (bit 12) in a large page.
            if large && entry & (size - 1) & address & !0x1000 != 0 {
                return Err(Missing::Reserved);
            }
            let gpa = entry & address & !(size - 1) | linear & (size - 1);
            return Ok(Mapping {
                gpa,
                page_size: size,
                user,
                writable,
                executable,
                dirty: entry & D != 0,
                global: entry & G != 0 && paging.cr4 & cr4::PGE != 0,
            });
        }
        table = entry & address;
        level -= 1;
    }
}

fn walk32(
    memory: &GuestMemory,
    paging: &Paging,
    linear: u64,
    mut each: impl FnMut(Step),
) -> Result<Mapping, Missing> {
    let directory_gpa = (paging.cr3 & 0xffff_f000) + (linear >> 22 & 0x3ff) * 4;
    let directory = u64::from(entry32(memory, directory_gpa));
    each(Step { level: 2, entry_gpa: directory_gpa, entry: directory });
    if directory & P == 0 {
        return Err(Missing::NotPresent);
    }
    let global = |entry: u64| entry & G != 0 && paging.cr4 & cr4::PGE != 0;
    if directory & PS != 0 && paging.cr4 & cr4::PSE != 0 {
        // PSE-36: bits 13 to 20 give physical bits 32 to 39, those above MAXPHYADDR and bit 21 are reserved.
        let high = directory >> 13 & 0xff;
        let bits = u32::from(paging.physical_bits.clamp(32, 40)) - 32;
        if directory & 1 << 21 != 0 || high >> bits != 0 {
            return Err(Missing::Reserved);
        }
        return Ok(Mapping {
            gpa: high << 32 | directory & 0xffc0_0000 | linear & 0x3f_ffff,
            page_size: 4 << 20,
            user: directory & US != 0,
            writable: directory & RW != 0,
            executable: true,
            dirty: directory & D != 0,
            global: global(directory),
        });
    }
    let table_gpa = (directory & 0xffff_f000) + (linear >> 12 & 0x3ff) * 4;
    let entry = u64::from(entry32(memory, table_gpa));
    each(Step { level: 1, entry_gpa: table_gpa, entry });
    if entry & P == 0 {
        return Err(Missing::NotPresent);
    }
    Ok(Mapping {
        gpa: entry & 0xffff_f000 | linear & 0xfff,
        page_size: PAGE,
        user: entry & directory & US != 0,
        writable: entry & directory & RW != 0,
        executable: true,
        dirty: entry & D != 0,
        global: global(entry),
    })
}
