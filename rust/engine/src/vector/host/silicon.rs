//! Test support: runs one instruction on the host's processor with a chosen x87, MMX, SSE and general-register state, and
//! gives back what it left. The instruction stands alone in a page of its own, before a return.

use std::arch::asm;

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// An executable page with room for one instruction.
pub(super) struct Page {
    start: *mut u8,
}

const SIZE: usize = 4096;
/// Where the page says that it is one of these, and that its instruction trapped.
const MAGIC_AT: usize = 48;
const MAGIC: u64 = 0x7261_7067_6174_6521;
const TRAPPED_AT: usize = 56;
/// Where the signal handler resumes: `mov byte ptr [rip - 15], 1; ret` sets the byte at TRAPPED_AT.
const ESCAPE_AT: usize = 64;
const ESCAPE: [u8; 8] = [0xc6, 0x05, 0xf1, 0xff, 0xff, 0xff, 0x01, 0xc3];

/// From now on an instruction in a [`Page`] may raise SIGFPE; it is then abandoned.
pub(super) fn catch_sigfpe() {
    extern "C" fn handler(signal: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
        // SAFETY: the kernel passes a context of this type to handlers with SA_SIGINFO. The page of the faulting
        // instruction is mapped, and a code page can be read.
        unsafe {
            let registers = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
            let rip = &mut registers[libc::REG_RIP as usize];
            let page = *rip as usize & !(SIZE - 1);
            if (page as *const u8).add(MAGIC_AT).cast::<u64>().read_volatile() == MAGIC {
                *rip = (page + ESCAPE_AT) as i64;
            } else {
                libc::signal(signal, libc::SIG_DFL);
            }
        }
    }
    // SAFETY: the handler touches nothing but its own context and the faulting page.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        assert_eq!(libc::sigaction(libc::SIGFPE, &action, std::ptr::null_mut()), 0);
    }
}

impl Page {
    pub(super) fn new() -> Page {
        let protection = ProtFlags::READ | ProtFlags::WRITE | ProtFlags::EXEC;
        // SAFETY: a fresh private mapping at an address of the kernel's choice.
        let start = unsafe { mmap_anonymous(std::ptr::null_mut(), SIZE, protection, MapFlags::PRIVATE) };
        Page { start: start.expect("an executable page").cast() }
    }

    pub(super) fn address(&self) -> u64 {
        self.start as u64
    }

    /// Whether the instruction placed last has raised SIGFPE since.
    pub(super) fn trapped(&self) -> bool {
        // SAFETY: the byte is in the page, and the code that writes it has run on this thread.
        unsafe { self.start.add(TRAPPED_AT).read_volatile() != 0 }
    }

    /// Places an instruction and a return.
    pub(super) fn place(&mut self, instruction: &[u8]) {
        assert!(instruction.len() <= 15);
        // SAFETY: the page is ours, writable and longer than 16 bytes; nobody executes it meanwhile.
        unsafe {
            self.start.copy_from_nonoverlapping(instruction.as_ptr(), instruction.len());
            self.start.add(instruction.len()).write(0xc3);
            self.start.add(MAGIC_AT).cast::<u64>().write(MAGIC);
            self.start.add(TRAPPED_AT).write(0);
            self.start.add(ESCAPE_AT).copy_from_nonoverlapping(ESCAPE.as_ptr(), ESCAPE.len());
        }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`, to which no reference exists.
        unsafe { munmap(self.start.cast(), SIZE) }.expect("the page is mapped");
    }
}

/// Registers before and after. The assembly knows the offsets.
#[repr(C, align(64))]
#[derive(Clone)]
pub(super) struct Context {
    /// 0: the image that FXRSTOR64 takes and FXSAVE64 gives.
    pub(super) fx: [u8; 512],
    /// 512: general registers by number; RSP is not used.
    pub(super) gpr: [u64; 16],
    /// 640: the status flags.
    pub(super) flags: u64,
    /// 648, 656: where the host's MXCSR and the code's address stand meanwhile.
    host_mxcsr: u64,
    code: u64,
}

impl Context {
    pub(super) fn new() -> Context {
        Context { fx: [0; 512], gpr: [0; 16], flags: 0, host_mxcsr: 0, code: 0 }
    }

    /// # Safety
    /// The instruction must access no memory but what the caller owns exclusively, must not transfer control, touch RSP or
    /// raise an exception, except SIGFPE after [`catch_sigfpe`].
    pub(super) unsafe fn run(&mut self, page: &Page) {
        self.code = page.address();
        // SAFETY: the block saves what it changes and the compiler cannot be told of (RBX, RBP), declares the rest, gives
        // the instruction an own call frame and puts MXCSR and the x87 unit back to the state of entry.
        unsafe {
            asm!(
                "push rbx", "push rbp", "stmxcsr [rdi + 648]", "push rdi", "push qword ptr [rdi + 656]",
                "fxrstor64 [rdi]", "push qword ptr [rdi + 640]", "popfq",
                "mov rax, [rdi + 512]", "mov rcx, [rdi + 520]", "mov rdx, [rdi + 528]", "mov rbx, [rdi + 536]",
                "mov rbp, [rdi + 552]", "mov rsi, [rdi + 560]", "mov r8, [rdi + 576]", "mov r9, [rdi + 584]",
                "mov r10, [rdi + 592]", "mov r11, [rdi + 600]", "mov r12, [rdi + 608]", "mov r13, [rdi + 616]",
                "mov r14, [rdi + 624]", "mov r15, [rdi + 632]", "mov rdi, [rdi + 568]",
                "call qword ptr [rsp]",
                "push rdi", "mov rdi, [rsp + 16]",
                "mov [rdi + 512], rax", "mov [rdi + 520], rcx", "mov [rdi + 528], rdx", "mov [rdi + 536], rbx",
                "mov [rdi + 552], rbp", "mov [rdi + 560], rsi", "mov [rdi + 576], r8", "mov [rdi + 584], r9",
                "mov [rdi + 592], r10", "mov [rdi + 600], r11", "mov [rdi + 608], r12", "mov [rdi + 616], r13",
                "mov [rdi + 624], r14", "mov [rdi + 632], r15", "pop qword ptr [rdi + 568]",
                "pushfq", "pop qword ptr [rdi + 640]", "fxsave64 [rdi]", "fninit", "ldmxcsr [rdi + 648]",
                "add rsp, 16", "pop rbp", "pop rbx", "cld",
                inout("rdi") self as *mut Context => _, out("rax") _, out("rcx") _, out("rdx") _, out("rsi") _,
                out("r8") _, out("r9") _, out("r10") _, out("r11") _, out("r12") _, out("r13") _, out("r14") _,
                out("r15") _, out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _,
                out("xmm5") _, out("xmm6") _, out("xmm7") _, out("xmm8") _, out("xmm9") _, out("xmm10") _,
                out("xmm11") _, out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
                out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _, out("st(4)") _, out("st(5)") _,
                out("st(6)") _, out("st(7)") _,
            );
        }
    }
}
