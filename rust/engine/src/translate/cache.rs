//! The code cache, the context block and the way into translated code: the one room of the translator with `unsafe` in it.
//!
//! The cache is one memfd mapped twice, to be written and to be run, so no page is ever both. Only what the emitter made is
//! put there. The context lies behind a stack of its own: while translated code runs RSP points to it, and a signal handler
//! that comes in between finds room below.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::ptr::{self, NonNull};

use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap, mmap_anonymous, mprotect, munmap};

use super::Translator;
use super::context::{BUDGET_BIAS, Context, empty};
use super::thunks::{Helpers, Thunks};
use crate::state::Vcpu;

/// Room for signal handlers below the context.
const STACK: usize = 256 << 10;
const GUARD: usize = 4096;
/// Bytes of new code after which the writable mapping lets go of its pages.
const RELEASE: usize = 1 << 20;

/// Executable memory, written through another mapping.
#[derive(Debug)]
pub struct CodeCache {
    writable: NonNull<u8>,
    runnable: NonNull<u8>,
    size: usize,
    used: usize,
    /// From here on lies what is rarely run, so far up to there.
    aside: usize,
    used_aside: usize,
    /// Bytes added since the writable mapping has let go of its pages.
    added: usize,
}

// SAFETY: the mappings belong to this value alone and move with it.
unsafe impl Send for CodeCache {}
// SAFETY: shared references give no access to the mappings' contents.
unsafe impl Sync for CodeCache {}

impl CodeCache {
    /// Maps `size` bytes; an error where the host allows no executable memory.
    pub fn new(size: usize) -> std::io::Result<CodeCache> {
        let file = rustix::fs::memfd_create("trapgate-code", rustix::fs::MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&file, size as u64)?;
        let map = |protection| {
            // SAFETY: a fresh mapping at an address of the kernel's choice.
            let start = unsafe { mmap(ptr::null_mut(), size, protection, MapFlags::SHARED, &file, 0) };
            start.map(|start| NonNull::new(start.cast::<u8>()).unwrap_or(NonNull::dangling()))
        };
        let writable = map(ProtFlags::READ | ProtFlags::WRITE)?;
        let runnable = match map(ProtFlags::READ | ProtFlags::EXEC) {
            Ok(runnable) => runnable,
            Err(error) => {
                // SAFETY: the mapping just made, which nobody else knows.
                let _ = unsafe { munmap(writable.as_ptr().cast(), size) };
                return Err(error.into());
            }
        };
        // Stubs, which are run once and less, are a third of what is made.
        let aside = (size / 3 * 2) & !4095;
        Ok(CodeCache { writable, runnable, size, used: 0, aside, used_aside: aside, added: 0 })
    }

    /// Address at which the next code will run.
    pub fn next(&self) -> u64 {
        self.runnable.as_ptr() as u64 + self.used as u64
    }

    pub fn room(&self) -> usize {
        self.aside - self.used
    }

    /// Address at which the next code will run that is rarely run.
    pub fn next_aside(&self) -> u64 {
        self.runnable.as_ptr() as u64 + self.used_aside as u64
    }

    pub fn room_aside(&self) -> usize {
        self.size - self.used_aside
    }

    /// Forgets all code from an address on, which must be one that [`Self::next`] gave, and all that is rarely run.
    pub fn truncate(&mut self, to: u64) {
        let offset = to.wrapping_sub(self.runnable.as_ptr() as u64) as usize;
        self.used = offset.min(self.used);
        self.used_aside = self.aside;
    }

    /// Adds code made for [`Self::next`].
    pub fn append(&mut self, code: &[u8]) {
        assert!(code.len() <= self.room(), "the code cache is full");
        let at = self.next();
        self.used += code.len();
        // Entries on 16-byte boundaries are fetched best.
        self.used = ((self.used + 15) & !15).min(self.aside);
        self.put(at, code);
    }

    /// Adds code made for [`Self::next_aside`].
    pub fn append_aside(&mut self, code: &[u8]) {
        assert!(code.len() <= self.room_aside(), "the code cache is full");
        let at = self.next_aside();
        self.used_aside += code.len();
        self.put(at, code);
    }

    fn put(&mut self, at: u64, code: &[u8]) {
        self.write(at, code);
        self.added += code.len();
        if self.added > RELEASE {
            self.release();
        }
    }

    /// Takes the pages out of the writable mapping, so that they count once: the file keeps them, and what is written to
    /// comes back.
    fn release(&mut self) {
        self.added = 0;
        let advice = rustix::mm::Advice::LinuxDontNeed;
        // SAFETY: the whole of our own shared mapping, whose contents are the file's.
        let _ = unsafe { rustix::mm::madvise(self.writable.as_ptr().cast(), self.size, advice) };
    }

    /// Writes bytes at a cache address that holds code already.
    pub fn write(&mut self, at: u64, bytes: &[u8]) {
        let offset = at.wrapping_sub(self.runnable.as_ptr() as u64) as usize;
        let end = if offset < self.aside { self.used } else { self.used_aside };
        assert!(offset <= end && bytes.len() <= end - offset, "a write outside of the code cache");
        // SAFETY: in bounds by the test; the writable mapping is not referenced by anything else.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.writable.as_ptr().add(offset), bytes.len()) }
    }

    /// Makes the relative field of a jump at a cache address lead to another one.
    pub fn aim(&mut self, field: u64, target: u64) {
        let relative = target.wrapping_sub(field + 4) as i32;
        self.write(field, &relative.to_le_bytes());
    }
}

impl Drop for CodeCache {
    fn drop(&mut self) {
        for start in [self.writable, self.runnable] {
            // SAFETY: our own mapping, which no code runs in: running it borrows the cache.
            let _ = unsafe { munmap(start.as_ptr().cast(), self.size) };
        }
    }
}

/// The context with its stack.
#[derive(Debug)]
pub struct ContextBox {
    start: NonNull<c_void>,
}

// SAFETY: the mapping belongs to this value alone and moves with it.
unsafe impl Send for ContextBox {}
// SAFETY: access goes through `get` and `get_mut`, which follow the borrow rules.
unsafe impl Sync for ContextBox {}

const BLOCK: usize = GUARD + STACK + size_of::<Context>();

impl ContextBox {
    pub fn new() -> std::io::Result<ContextBox> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh private mapping at an address of the kernel's choice.
        let start = unsafe { mmap_anonymous(ptr::null_mut(), BLOCK, protection, MapFlags::PRIVATE) }?;
        let mut block = ContextBox { start: NonNull::new(start).unwrap_or(NonNull::dangling()) };
        // SAFETY: the first page of the mapping just made.
        unsafe { mprotect(start, GUARD, MprotectFlags::empty()) }?;
        block.get_mut().prepare();
        Ok(block)
    }

    fn pointer(&self) -> *mut Context {
        // SAFETY: the block is long enough for guard, stack and context.
        unsafe { self.start.as_ptr().add(GUARD + STACK).cast() }
    }

    pub fn get(&self) -> &Context {
        // SAFETY: mapped, aligned to pages, and all its fields are numbers, for which any bytes are valid.
        unsafe { &*self.pointer() }
    }

    pub fn get_mut(&mut self) -> &mut Context {
        // SAFETY: as in `get`; the borrow is exclusive.
        unsafe { &mut *self.pointer() }
    }
}

impl Drop for ContextBox {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`, to which no reference is left.
        let _ = unsafe { munmap(self.start.as_ptr(), BLOCK) };
    }
}

impl Context {
    /// First contents; the mapping is zero.
    fn prepare(&mut self) {
        self.aligned_mask = !0xff0;
        self.wide_mask = !0xfe0;
        self.slot_mask = !0xff8;
        self.fpu.masks = super::fpu::MASKS.into();
        self.first_trips.fill(u64::from(super::loops::FIRST_TRIP));
        self.patience.fill(1);
        self.budget = BUDGET_BIAS;
        self.arithmetic_mask = crate::state::flags::ARITHMETIC;
        for view in &mut self.tlb {
            for index in [0, super::context::TLB_SIZE - 1] {
                (view.minus_read[index], view.minus_write[index]) = (empty(index), empty(index));
            }
        }
    }
}

/// What the helper gets at through the context.
struct Session {
    cpu: *mut Vcpu,
    translator: *mut Translator,
}

/// Runs translated code from `target` until it leaves.
pub fn enter(translator: &mut Translator, cpu: &mut Vcpu, thunks: &Thunks, target: u64) {
    let context = translator.context.pointer();
    let registers = &raw mut cpu.regs as u64;
    let mut session = Session { cpu, translator };
    // SAFETY: `context` is the block that the code addresses off RSP, and the thunk is code for exactly this call. Everything
    // the code reaches it reaches through the context: its own block, and guest RAM by entries of the TLB, which hold only
    // pages of this machine's memory with the right to the access; of a para-virtual guest also two bytes of guest RAM and
    // an atomic word, which the monitor has given an address of, and which live as long as it does, inside the vCPU.
    // `session` and the vCPU outlive the call, and between here and its return its pointers are the only way to the two
    // values; the helper uses them one call at a time, and the thunks read and write the vCPU's first sixteen registers before and after all else.
    unsafe {
        (*context).session = &raw mut session as u64;
        (*context).registers = registers;
        let enter: extern "C" fn(*mut Context, u64) =
            std::mem::transmute(thunks.enter as usize as *const c_void);
        enter(context, target);
        (*context).session = 0;
    }
}

/// Addresses of the functions below, for the thunks.
pub fn helpers() -> Helpers {
    Helpers { refill: refill as *const () as u64, clock: clock as *const () as u64 }
}

/// Called by translated code for an access whose page it did not find; gives the cache address to go on at.
extern "C" fn refill(context: *mut Context, linear: u64) -> u64 {
    // SAFETY: only the thunk calls this, inside [`enter`], which has set the session and uses nothing of it meanwhile.
    let (cpu, translator) = unsafe {
        let session = (*context).session as *mut Session;
        (&mut *(*session).cpu, &mut *(*session).translator)
    };
    translator.refill(cpu, linear)
}

/// Called by translated code for the time-stamp counter, behind so many instructions of a unit.
extern "C" fn clock(context: *mut Context, done: u64) -> u64 {
    // SAFETY: as in [`refill`].
    let (cpu, translator) = unsafe {
        let session = (*context).session as *mut Session;
        (&mut *(*session).cpu, &mut *(*session).translator)
    };
    translator.clock(cpu, done)
}
