//! The host's processor as executor: a forked child runs the cases, one signal each.
//!
//! Every case ends in an exception, which the kernel turns into a signal whose frame holds the complete state: general
//! registers, RFLAGS, the XSAVE image, vector, error code and CR2. The child's handler takes the outcome from that
//! frame, writes the next case's state into it and returns: the kernel's return from the signal is what loads all
//! registers at once and jumps to the instruction. So no register is reserved, RSP included, and no stub can be wrong.
//!
//! The scratch mappings exist in the child only. A case that kills or hangs the child costs that case, not the run.
#![allow(unsafe_code)]

use std::arch::asm;
use std::mem::{MaybeUninit, size_of};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};

use crate::case::{Case, FX, Mode, Outcome, end, selector};
use crate::space::{self, CODE, FILL, HIGH, LOW, PAGE, REGION, WINDOW};

/// Cases of one fork.
pub const BATCH: usize = 2048;
/// After this many seconds a batch counts as hung.
const TIMEOUT: u32 = 20;
/// The handler's stack: room for the largest signal frame (AMX state is 8 KiB) many times over.
const STACK: usize = 256 << 10;

/// What parent and child share.
#[repr(C)]
struct Shared {
    /// Cases in the batch.
    count: AtomicU64,
    /// The running case, plus one; 0 before the first.
    at: AtomicU64,
    cases: [Case; BATCH],
    outcomes: [Outcome; BATCH],
}

/// Runs cases on the host's processor.
#[derive(Debug)]
pub struct Host {
    shared: *mut Shared,
}

/// The shared block of this process, for the handler. Only ever set in a child.
static CHILD: AtomicPtr<Shared> = AtomicPtr::new(ptr::null_mut());
/// Whether a case is running in this child; not so at the signal that starts the first one.
static RUNNING: AtomicBool = AtomicBool::new(false);

fn map(address: u64, length: u64, protection: i32, flags: i32) -> *mut libc::c_void {
    // SAFETY: an anonymous mapping that replaces no other: the flags are MAP_FIXED_NOREPLACE or the address is null.
    unsafe { libc::mmap(address as *mut _, length as usize, protection, flags | libc::MAP_ANONYMOUS, -1, 0) }
}

impl Default for Host {
    fn default() -> Host {
        Host::new()
    }
}

impl Host {
    pub fn new() -> Host {
        let length = size_of::<Shared>() as u64;
        let shared = map(0, length, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        assert_ne!(shared, libc::MAP_FAILED, "memory for the cases");
        Host { shared: shared.cast() }
    }

    /// Runs the cases and gives their outcomes, in order.
    pub fn run(&mut self, cases: &[Case]) -> Vec<Outcome> {
        assert!(cases.len() <= BATCH);
        // SAFETY: the mapping is as large as `Shared`, zeroed (a valid value), and no child exists now.
        let shared = unsafe { &mut *self.shared };
        shared.cases[..cases.len()].copy_from_slice(cases);
        shared.count.store(cases.len() as u64, Ordering::SeqCst);
        shared.at.store(0, Ordering::SeqCst);
        let mut died: Vec<(usize, u64, i32)> = Vec::new();
        loop {
            let status = self.fork();
            // SAFETY: as above; the child has ended.
            let at = unsafe { &(*self.shared).at }.load(Ordering::SeqCst) as usize;
            if at > cases.len() {
                break;
            }
            let before = died.last().map_or(0, |(at, ..)| at + 1);
            assert!(at > before, "the child died before it ran a case: status {status:#x}");
            let hung = libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGALRM;
            died.push((at - 1, if hung { end::HUNG } else { end::DIED }, status));
        }
        // SAFETY: as above.
        let outcomes = unsafe { &(*self.shared).outcomes };
        let mut outcomes = outcomes[..cases.len()].to_vec();
        for (at, vector, status) in died {
            outcomes[at] = Outcome::ZERO;
            outcomes[at].trap.vector = vector;
            outcomes[at].trap.error = status as u64;
        }
        outcomes
    }

    /// One child, to its end; gives its wait status.
    fn fork(&mut self) -> i32 {
        // SAFETY: the child calls only what is allowed after a fork of a process with threads, and never returns.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0, "fork: {}", std::io::Error::last_os_error());
        if pid == 0 {
            // SAFETY: this is the child.
            unsafe { child(self.shared) };
        }
        let mut status = 0;
        // SAFETY: waits for our own child.
        while unsafe { libc::waitpid(pid, &mut status, 0) } < 0 {}
        status
    }
}

/// The FS base of this thread, which a forked child keeps (arch_prctl, ARCH_GET_FS).
pub fn fs_base() -> u64 {
    const ARCH_GET_FS: i32 = 0x1003;
    let mut base = 0u64;
    // SAFETY: the call writes one word.
    let done = unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_GET_FS, &mut base) };
    assert_eq!(done, 0, "arch_prctl: {}", std::io::Error::last_os_error());
    base
}

/// Control word, exception flags and tag word of this thread's x87 unit.
pub fn x87_environment() -> [u16; 3] {
    let mut image = [0u16; 14];
    // SAFETY: FNSTENV writes 28 bytes; it masks all exceptions, which FLDENV takes back.
    unsafe { asm!("fnstenv [{0}]", "fldenv [{0}]", in(reg) &mut image, options(nostack)) };
    [image[0], image[2] & 0x3f, image[4]]
}

impl Drop for Host {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`, to which no reference is left.
        unsafe { libc::munmap(self.shared.cast(), size_of::<Shared>()) };
    }
}

/// Ends the child with a status that says where; nothing else can be told from here.
fn require(good: bool, step: i32) {
    if !good {
        // SAFETY: ends the process at once.
        unsafe { libc::_exit(step) };
    }
}

/// Sets the scratch pages and the handlers up and lets the first signal start the cases.
///
/// # Safety
/// To be called in a fresh child process, with the block that it shares with its parent.
unsafe fn child(shared: *mut Shared) -> ! {
    CHILD.store(shared, Ordering::SeqCst);
    let fixed = libc::MAP_PRIVATE | libc::MAP_FIXED_NOREPLACE;
    let read_write = libc::PROT_READ | libc::PROT_WRITE;
    let code = map(CODE, PAGE, read_write | libc::PROT_EXEC, fixed);
    require(code as u64 == CODE, 2);
    // SAFETY: the page just mapped.
    unsafe { ptr::write_bytes(code.cast::<u8>(), FILL, PAGE as usize) };
    for base in [LOW, HIGH] {
        require(map(base - PAGE, REGION, read_write, fixed) as u64 == base - PAGE, 3);
        for page in [base - PAGE, base, base + PAGE] {
            // SAFETY: a page of the region just mapped.
            unsafe { fill(page, PAGE as usize) };
        }
        // SAFETY: the region's first page.
        let done = unsafe { libc::mprotect((base - PAGE) as *mut _, PAGE as usize, libc::PROT_READ) };
        require(done == 0, 4);
    }
    let stack = map(0, STACK as u64, read_write, libc::MAP_PRIVATE);
    require(stack != libc::MAP_FAILED, 5);
    // 64-bit code does not use DS and ES, and finds them null; 32-bit code needs them.
    // SAFETY: the kernel has a flat data segment there, and 64-bit code does not look at its base.
    unsafe { asm!("mov ds, {data:x}", "mov es, {data:x}", data = in(reg) selector::DATA) };
    // SAFETY: plain calls on local structures; the handler has the signature that SA_SIGINFO asks for.
    unsafe {
        let alternate = libc::stack_t { ss_sp: stack, ss_flags: 0, ss_size: STACK };
        require(libc::sigaltstack(&alternate, ptr::null_mut()) == 0, 6);
        let mut action: libc::sigaction = MaybeUninit::zeroed().assume_init();
        action.sa_sigaction = on_trap as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigfillset(&mut action.sa_mask);
        libc::sigdelset(&mut action.sa_mask, libc::SIGALRM);
        for signal in [libc::SIGSEGV, libc::SIGFPE, libc::SIGILL, libc::SIGBUS, libc::SIGTRAP] {
            require(libc::sigaction(signal, &action, ptr::null_mut()) == 0, 7);
        }
        let none: libc::sigset_t = MaybeUninit::zeroed().assume_init();
        libc::sigprocmask(libc::SIG_SETMASK, &none, ptr::null_mut());
        libc::signal(libc::SIGALRM, libc::SIG_DFL);
        libc::alarm(TIMEOUT);
        libc::raise(libc::SIGTRAP);
        libc::_exit(8)
    }
}

/// Takes what the last case left and starts the next one.
extern "C" fn on_trap(_signal: i32, _info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the block outlives the child, which is the only one to touch it while it runs; the kernel hands over a
    // valid context.
    let (shared, context) =
        unsafe { (&mut *CHILD.load(Ordering::Relaxed), &mut *context.cast::<libc::ucontext_t>()) };
    let at = shared.at.load(Ordering::Relaxed) as usize;
    if RUNNING.swap(true, Ordering::Relaxed) {
        let (case, outcome) = (&shared.cases[at - 1], &mut shared.outcomes[at - 1]);
        // SAFETY: the context is that of the case, and the scratch pages are mapped.
        unsafe { record(case, outcome, context) };
    }
    shared.at.store(at as u64 + 1, Ordering::SeqCst);
    if at as u64 >= shared.count.load(Ordering::Relaxed) {
        // SAFETY: ends the child; nothing of the parent's is to be run.
        unsafe { libc::_exit(0) };
    }
    // SAFETY: as above.
    unsafe { start(&shared.cases[at], context) };
}

/// Writes background.
///
/// # Safety
/// The bytes must lie in a writable data region of a child.
unsafe fn fill(address: u64, length: usize) {
    let bytes = space::background(address, length);
    // SAFETY: the caller's promise.
    unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), address as *mut u8, length) };
}

/// Where the kernel keeps each general register, by encoding.
const GREGS: [i32; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

/// # Safety
/// The context must be that of the case's end, in a child with its scratch pages.
unsafe fn record(case: &Case, outcome: &mut Outcome, context: &libc::ucontext_t) {
    let gregs = &context.uc_mcontext.gregs;
    for (value, at) in outcome.state.gpr.iter_mut().zip(GREGS) {
        *value = gregs[at as usize] as u64;
    }
    outcome.state.rip = gregs[libc::REG_RIP as usize] as u64;
    outcome.state.rflags = gregs[libc::REG_EFL as usize] as u64;
    outcome.trap.vector = gregs[libc::REG_TRAPNO as usize] as u64;
    outcome.trap.error = gregs[libc::REG_ERR as usize] as u64;
    outcome.trap.address = gregs[libc::REG_CR2 as usize] as u64;
    // SAFETY: the frame holds an FXSAVE image; the window lies in a writable region.
    unsafe {
        let image = context.uc_mcontext.fpregs.cast::<u8>();
        ptr::copy_nonoverlapping(image, outcome.state.fx.as_mut_ptr(), FX);
        if let Some(upper) = upper_halves(image) {
            outcome.state.ymm_high = upper.read_unaligned();
        }
        ptr::copy_nonoverlapping(case.window_at as *const u8, outcome.window.as_mut_ptr(), WINDOW);
        fill(case.window_at, WINDOW);
        ptr::write_bytes(case.state.rip as *mut u8, FILL, in_page(case));
    }
}

/// Bytes of the code that lie in the code page: the rest of an instruction across its end is not there.
fn in_page(case: &Case) -> usize {
    (case.code_len).min(CODE + PAGE - case.state.rip) as usize
}

/// Offsets in a signal frame's XSAVE image (Linux, asm/sigcontext.h): a word that says that there is one, and XSTATE_BV.
const MAGIC_AT: usize = 464;
const MAGIC: u32 = 0x4650_5853;
const XSTATE_BV_AT: usize = 512;

/// Upper halves of the YMM registers, in the standard format of the image.
const AVX: u64 = 4;
const UPPER_AT: usize = 576;
/// The components that the kernel puts into frames, by the words that say that there are any.
const COMPONENTS_AT: usize = 472;

/// Where a frame has the upper halves of the YMM registers.
///
/// # Safety
/// The image must be that of a signal frame.
unsafe fn upper_halves(image: *mut u8) -> Option<*mut [u128; 16]> {
    // SAFETY: the words are in the 512 bytes that every frame has; what they say is there.
    unsafe {
        let extended = image.add(MAGIC_AT).cast::<u32>().read_unaligned() == MAGIC;
        let components = image.add(COMPONENTS_AT).cast::<u64>().read_unaligned();
        (extended && components & AVX != 0).then(|| image.add(UPPER_AT).cast())
    }
}

/// Puts the case's state into the frame.
///
/// # Safety
/// As [`record`].
unsafe fn start(case: &Case, context: &mut libc::ucontext_t) {
    let gregs = &mut context.uc_mcontext.gregs;
    for (value, at) in case.state.gpr.iter().zip(GREGS) {
        gregs[at as usize] = *value as i64;
    }
    gregs[libc::REG_RIP as usize] = case.state.rip as i64;
    gregs[libc::REG_EFL as usize] = case.state.rflags as i64;
    let code = if case.mode == Mode::Long { selector::CODE64 } else { selector::CODE32 };
    // CS is the low word; GS, FS and SS beside it stay.
    gregs[libc::REG_CSGSFS as usize] = gregs[libc::REG_CSGSFS as usize] & !0xffff | i64::from(code);
    let image = context.uc_mcontext.fpregs.cast::<u8>();
    // SAFETY: the image is 512 bytes, and where the magic says so an XSAVE header follows; code and window lie in
    // writable scratch pages. The bits of NT and ID are the only ones that the kernel does not take from the frame.
    unsafe {
        ptr::copy_nonoverlapping(case.state.fx.as_ptr(), image, FX);
        if image.add(MAGIC_AT).cast::<u32>().read_unaligned() == MAGIC {
            let present = image.add(XSTATE_BV_AT).cast::<u64>();
            present.write_unaligned(present.read_unaligned() | 3);
            if let Some(upper) = upper_halves(image) {
                present.write_unaligned(present.read_unaligned() | AVX);
                upper.write_unaligned(case.state.ymm_high);
            }
        }
        ptr::copy_nonoverlapping(case.code.as_ptr(), case.state.rip as *mut u8, in_page(case));
        ptr::copy_nonoverlapping(case.window.as_ptr(), case.window_at as *mut u8, WINDOW);
        asm!(
            "pushfq", "and qword ptr [rsp], {keep}", "or qword ptr [rsp], {set}", "popfq",
            keep = in(reg) !KEPT, set = in(reg) case.state.rflags & KEPT,
        );
    }
}

/// NT and ID: returning from a signal leaves them as they stand.
const KEPT: u64 = 1 << 14 | 1 << 21;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::RSP;
    use crate::space::CODE_MAX;

    fn case(code: &[u8]) -> Case {
        let mut case = Case::ZERO;
        case.state.rip = CODE + 0x100;
        case.state.rflags = 0x202;
        case.state.set_mxcsr(0x1f80);
        case.state.gpr[RSP] = LOW + 0x800;
        case.window_at = LOW;
        assert!(code.len() <= CODE_MAX);
        case.code[..code.len()].copy_from_slice(code);
        case.code_len = code.len() as u64;
        case
    }

    #[test]
    fn every_register_comes_back() {
        let mut nothing = case(&[]);
        for (n, value) in nothing.state.gpr.iter_mut().enumerate() {
            *value = 0x0101_0101_0101_0101 * n as u64;
        }
        for n in 0..16 {
            nothing.state.set_xmm(n, n as u128 + 1);
            nothing.state.ymm_high[n] = if crate::has_upper_halves() { n as u128 + 101 } else { 0 };
        }
        nothing.state.rflags |= 1 << 21 | 1 << 14 | 1 << 10;
        nothing.state.set_fx_u16(crate::case::fx::FCW, 0x0b41);
        let outcome = &Host::new().run(&[nothing])[0];
        assert_eq!((outcome.trap.vector, outcome.state.rip), (3, CODE + 0x101));
        assert_eq!(outcome.state.gpr, nothing.state.gpr);
        assert_eq!(outcome.state.rflags, nothing.state.rflags);
        // MXCSR_MASK is the processor's own.
        let state = |fx: &[u8; FX]| [&fx[..28], &fx[32..]].concat();
        assert_eq!(state(&outcome.state.fx), state(&nothing.state.fx));
        assert_eq!(outcome.state.ymm_high, nothing.state.ymm_high);
    }

    #[test]
    fn a_case_that_kills_the_child_costs_only_itself() {
        // getpid; kill(pid, SIGKILL)
        let kill =
            [0xb8, 39, 0, 0, 0, 0x0f, 0x05, 0x89, 0xc7, 0xbe, 9, 0, 0, 0, 0xb8, 62, 0, 0, 0, 0x0f, 0x05];
        // exit_group(0)
        let leave = [0xb8, 231, 0, 0, 0, 0x31, 0xff, 0x0f, 0x05];
        let good = case(&[0x48, 0xff, 0xc0]);
        let outcomes = Host::new().run(&[good, case(&kill), good, case(&leave), good]);
        let vectors: Vec<_> = outcomes.iter().map(|outcome| outcome.trap.vector).collect();
        assert_eq!(vectors, [3, end::DIED, 3, end::DIED, 3]);
        assert_eq!(outcomes[4].state.gpr[0], 1);
    }

    #[test]
    fn a_fault_says_where_and_why() {
        // mov [rsp+0x1800], eax
        let outcome = &Host::new().run(&[case(&[0x89, 0x84, 0x24, 0, 0x18, 0, 0])])[0];
        assert_eq!((outcome.trap.vector, outcome.trap.error, outcome.trap.address), (14, 6, LOW + 0x2000));
        assert_eq!(outcome.state.rip, CODE + 0x100);
    }
}
