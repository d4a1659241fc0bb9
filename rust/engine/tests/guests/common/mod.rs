//! The harness of the bare-metal guests: a machine with memory, tables and an assembler, and events seen from the host.
//!
//! Every vector's gate leads to a stub of its own that halts and then returns from the event. A halt in a stub ends
//! [`Guest::go`] with an [`Event`] that says what was delivered; the next `go` runs the stub's IRET. So a test reads as
//! the guest's program and then what must have happened to it, in order.

#![allow(dead_code, reason = "each group of tests uses its part")]

pub mod board;
pub mod code;
pub mod engines;
pub mod tables;

use std::sync::Arc;

use iced_x86::IcedError;
use iced_x86::code_asm::CodeAssembler;
use trapgate_engine::memory::Region;
use trapgate_engine::state::{Descriptor, Processor, Segment, Table};
use trapgate_engine::{Engine, Exit, GuestMemory, Requests, Vcpu};
use trapgate_x86::model::{Model, Topology, X86_64_V2};
use trapgate_x86::regs::{cr0, cr4, efer, rflags};

pub use board::{Board, Line, Shared};
pub use code::{Code, Noise, assemble};
pub use tables::*;

pub const RAX: usize = 0;
pub const RCX: usize = 1;
pub const RDX: usize = 2;
pub const RBX: usize = 3;
pub const RSP: usize = 4;
pub const RBP: usize = 5;
pub const RSI: usize = 6;
pub const RDI: usize = 7;

/// Where things lie in guest-physical memory; linear addresses are the same ones until a test maps others.
pub const GDT: u64 = 0x1000;
pub const IDT: u64 = 0x2000;
pub const TSS: u64 = 0x3000;
pub const STUBS: u64 = 0x4000;
pub const LDT: u64 = 0x5000;
/// Stacks, by their tops: of the program in ring 0, of ring 0 when entered from ring 3, of the IST.
pub const STACK: u64 = 0x7000;
pub const STACK0: u64 = 0x8000;
pub const IST1: u64 = 0x9000;
pub const IST2: u64 = 0xa000;
pub const TABLES: u64 = 0x1_0000;
/// From here on pages are open to ring 3.
pub const USER: u64 = 0x8_0000;
pub const USER_STACK: u64 = 0x9_0000;
pub const CODE: u64 = 0x10_0000;
pub const USER_CODE: u64 = 0x11_0000;
pub const DATA: u64 = 0x20_0000;
/// End of the part that is mapped by 4 KiB pages; large pages follow up to [`RAM`].
pub const SMALL: u64 = 0x40_0000;
pub const RAM: u64 = 0x80_0000;
pub const ROM: u64 = 0x80_0000;
/// Neither RAM nor ROM.
pub const DEVICE: u64 = 0xd000_0000;

pub const CODE64: u16 = 0x08;
pub const DATA0: u16 = 0x10;
pub const USER32: u16 = 0x1b;
pub const DATA3: u16 = 0x23;
pub const USER64: u16 = 0x2b;
pub const CODE32: u16 = 0x30;
pub const CODE16: u16 = 0x38;
pub const TASK: u16 = 0x40;
pub const LOCAL: u16 = 0x50;
/// First descriptor that tests may fill.
pub const FREE: u16 = 0x60;
const GDT_LIMIT: u16 = 0xff;

/// Longest run before a guest counts as run away.
const PATIENCE: u64 = 1_000_000;

/// An exception or interrupt as its handler found it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    pub vector: u8,
    pub error: Option<u64>,
    pub rip: u64,
    pub cs: u16,
    pub rflags: u64,
    /// Stack of the interrupted program (0 where the frame has none).
    pub rsp: u64,
    pub ss: u16,
    pub cr2: u64,
    /// Completed instructions when the handler was entered.
    pub count: u64,
    /// Stack pointer at the handler's first instruction: the frame's address.
    pub frame: u64,
    pub cpl: u8,
}

/// An instruction, or a few, as tables of tests list them.
pub type Insn = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// Vector and error code of a fault; none where there must be no fault.
pub type Fault = Option<(u8, u64)>;

/// Why [`Guest::go`] came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    Event(Event),
    /// HLT outside the stubs.
    Halted,
    Exit(Exit),
}

/// A machine with one vCPU.
#[derive(Debug)]
pub struct Guest {
    pub engine: Engine,
    pub memory: Arc<GuestMemory>,
    board: Shared,
    next_table: u64,
}

impl Guest {
    /// In 64-bit mode at CPL 0, interrupts off, RAM mapped one to one.
    pub fn long() -> Self {
        Guest::with_model(X86_64_V2)
    }

    /// As [`Self::long`], on another processor.
    pub fn with_model(model: Model) -> Self {
        let mut guest = Guest::bare(model);
        guest.write_gdt();
        guest.write_stubs(true);
        guest.put::<u64>(TSS + 4, STACK0);
        guest.put::<u64>(TSS + 0x24, IST1);
        guest.put::<u64>(TSS + 0x2c, IST2);
        guest.put::<u16>(TSS + 0x66, 0x68);
        guest.identity_map();
        let cpu = &mut guest.engine.cpu;
        cpu.cr0 = cr0::PE | cr0::PG | cr0::ET | cr0::NE | cr0::WP;
        cpu.cr3 = TABLES;
        cpu.cr4 = cr4::PAE | cr4::OSFXSR | cr4::OSXMMEXCPT;
        cpu.efer = efer::LME | efer::LMA | efer::NXE | efer::SCE;
        cpu.tr = Segment { selector: TASK, base: TSS, limit: 0x67, access: 0x8b };
        guest.set_ring(CODE64, DATA0, STACK);
        guest
    }

    /// In 32-bit protected mode at CPL 0 without paging.
    pub fn protected() -> Self {
        Guest::protected_with(X86_64_V2)
    }

    /// As [`Self::protected`], on another processor.
    pub fn protected_with(model: Model) -> Self {
        let mut guest = Guest::bare(model);
        guest.write_gdt();
        guest.write_stubs(false);
        guest.put::<u32>(TSS + 4, STACK0 as u32);
        guest.put::<u16>(TSS + 8, DATA0);
        guest.put::<u16>(TSS + 0x66, 0x68);
        let cpu = &mut guest.engine.cpu;
        cpu.cr0 = cr0::PE | cr0::ET | cr0::NE;
        cpu.tr = Segment { selector: TASK, base: TSS, limit: 0x67, access: 0x8b };
        guest.set_ring(CODE32, DATA0, STACK);
        guest
    }

    fn bare(model: Model) -> Self {
        let region = |start, len, read_only| Region { start, len, read_only };
        let memory = GuestMemory::new(&[region(0, RAM, false), region(ROM, 0x1_0000, true)])
            .expect("the host has memory");
        let memory = Arc::new(memory);
        let requests = Arc::new(Requests::default());
        let board = Shared::new(Arc::clone(&requests));
        let processor =
            Processor { topology: Topology { cores: 1, threads_per_core: 1 }, tsc_khz: 1_000_000 };
        let mut cpu = Vcpu::new(
            Arc::new(model),
            processor,
            Arc::clone(&memory),
            Box::new(board.clone()),
            Arc::clone(&requests),
        );
        cpu.gdtr = Table { base: GDT, limit: GDT_LIMIT };
        cpu.idtr = Table { base: IDT, limit: 0xfff };
        cpu.set_rflags(rflags::FIXED);
        cpu.xcr0 = 1;
        let mut engine = Engine::new(cpu);
        engines::choose(&mut engine);
        Guest { engine, memory, board, next_table: TABLES }
    }

    fn write_gdt(&mut self) {
        let flat = [
            0,
            0x00af_9b00_0000_ffff,
            0x00cf_9300_0000_ffff,
            0x00cf_fb00_0000_ffff,
            0x00cf_f300_0000_ffff,
            0x00af_fb00_0000_ffff,
            0x00cf_9b00_0000_ffff,
            0x0000_9b00_0000_ffff,
            // The task, as LTR would find it, and the local table, both with no upper half of the base.
            0x0000_8900_0000_0067 | TSS << 16,
            0,
            0x0000_8200_0000_00ff | LDT << 16,
            0,
        ];
        for (i, entry) in flat.into_iter().enumerate() {
            self.put::<u64>(GDT + 8 * i as u64, entry);
        }
    }

    /// Stubs and the gates to them: HLT, drop the error code, IRET.
    fn write_stubs(&mut self, long: bool) {
        for vector in 0..=255u8 {
            let at = STUBS + 16 * u64::from(vector);
            let mut stub = vec![0xf4];
            if pushes_error(vector) {
                stub.extend_from_slice(if long { &[0x48, 0x83, 0xc4, 8] } else { &[0x83, 0xc4, 4] });
            }
            stub.extend_from_slice(if long { &[0x48, 0xcf] } else { &[0xcf] });
            self.poke(at, &stub);
            if long {
                self.set_gate(vector, Gate::interrupt(at));
            } else {
                self.set_gate_32(vector, CODE32, at as u32, 0x8e);
            }
        }
    }

    // ---- the processor ----

    pub fn cpu(&mut self) -> &mut Vcpu {
        &mut self.engine.cpu
    }
    pub fn reg(&self, n: usize) -> u64 {
        self.engine.cpu.regs[n]
    }
    pub fn set_reg(&mut self, n: usize, value: u64) {
        self.engine.cpu.regs[n] = value;
    }
    pub fn rip(&self) -> u64 {
        self.engine.cpu.rip
    }
    pub fn count(&self) -> u64 {
        self.engine.cpu.count
    }
    pub fn rflags(&self) -> u64 {
        self.engine.cpu.rflags()
    }

    /// Sets bits of RFLAGS.
    pub fn flag(&mut self, bits: u64) {
        let value = self.rflags() | bits;
        self.cpu().set_rflags(value);
    }

    /// Loads CS, SS and CPL from the GDT, and all data segments with SS's selector.
    pub fn set_ring(&mut self, cs: u16, ss: u16, rsp: u64) {
        let segment =
            |selector: u16| Descriptor(self.get::<u64>(GDT + u64::from(selector & !7))).segment(selector);
        let (code, data) = (segment(cs), segment(ss));
        let cpu = &mut self.engine.cpu;
        cpu.seg = [data; 6];
        cpu.seg[1] = code;
        cpu.cpl = (cs & 3) as u8;
        cpu.regs[RSP] = rsp;
        cpu.update_mode();
    }

    /// Goes to 64-bit code in ring 3.
    pub fn enter_user(&mut self, rip: u64) {
        self.set_ring(USER64, DATA3, USER_STACK);
        self.cpu().rip = rip;
    }

    // ---- programs ----

    /// Assembles 64-bit code to an address.
    pub fn load(&mut self, at: u64, f: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Code {
        self.load_bits(64, at, at, f)
    }

    /// Assembles code for `linear` to guest-physical `at`.
    pub fn load_bits(
        &mut self,
        bits: u32,
        at: u64,
        linear: u64,
        f: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ) -> Code {
        let (bytes, code) = assemble(bits, linear, f);
        self.poke(at, &bytes);
        code
    }

    /// Assembles the program and sets RIP to it.
    pub fn program(&mut self, f: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Code {
        let bits = match self.engine.cpu.mode().rip_mask {
            0xffff => 16,
            0xffff_ffff => 32,
            _ => 64,
        };
        let at = if self.engine.cpu.cpl == 3 { USER_CODE } else { CODE };
        let code = self.load_bits(bits, at, at, f);
        self.cpu().rip = at;
        code
    }

    /// Assembles a 64-bit program for ring 3 and goes there.
    pub fn user_program(&mut self, f: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Code {
        let code = self.load(USER_CODE, f);
        self.enter_user(USER_CODE);
        code
    }

    // ---- running ----

    /// Runs until a count, with what the board has scheduled.
    pub fn run_until(&mut self, until: u64) -> Exit {
        loop {
            let count = self.count();
            self.board().serve(count);
            let exit = self.engine.run(until);
            if exit != Exit::Budget || self.count() >= until {
                return exit;
            }
        }
    }

    /// Runs one instruction.
    pub fn step(&mut self) -> Exit {
        let until = self.count() + 1;
        self.run_until(until)
    }

    /// Lets the guest run until it halts or leaves.
    pub fn go(&mut self) -> Stop {
        self.engine.cpu.halted = false;
        let until = self.count() + PATIENCE;
        match self.run_until(until) {
            Exit::Halted => self.halted(),
            Exit::Budget => panic!("the guest runs away at {:#x}", self.rip()),
            other => Stop::Exit(other),
        }
    }

    /// What a halt stands for.
    pub fn halted(&mut self) -> Stop {
        let at = self.rip().wrapping_sub(1);
        if (STUBS..STUBS + 0x1000).contains(&at) && at % 16 == 0 {
            Stop::Event(self.event(((at - STUBS) / 16) as u8))
        } else {
            Stop::Halted
        }
    }

    fn event(&mut self, vector: u8) -> Event {
        let long = self.engine.cpu.mode().long;
        let size = if long { 8 } else { 4 };
        let frame = self.reg(RSP);
        let mut at = frame;
        let mut next = || {
            let value =
                if long { self.get::<u64>(self.gpa(at)) } else { u64::from(self.get::<u32>(self.gpa(at))) };
            at += size;
            value
        };
        let error = pushes_error(vector).then(&mut next);
        let (rip, cs, rflags) = (next(), next() as u16, next());
        let outer = long || (cs & 3) as u8 != self.engine.cpu.cpl;
        let (rsp, ss) = if outer { (next(), next() as u16) } else { (0, 0) };
        let cpu = &self.engine.cpu;
        Event {
            vector,
            error,
            rip,
            cs,
            rflags,
            rsp,
            ss,
            cr2: cpu.cr2,
            count: cpu.count - 1,
            frame,
            cpl: cpu.cpl,
        }
    }

    /// The next thing that happens must be the delivery of this vector.
    #[track_caller]
    pub fn expect(&mut self, vector: u8) -> Event {
        match self.go() {
            Stop::Event(event) if event.vector == vector => event,
            other => panic!("expected vector {vector}, got {other:x?}"),
        }
    }

    /// The program must reach its end.
    #[track_caller]
    pub fn expect_halt(&mut self) {
        let stop = self.go();
        assert_eq!(stop, Stop::Halted, "expected the end of the program, got {stop:x?}");
    }

    /// The next thing must be #PF at an address with an error code.
    #[track_caller]
    pub fn expect_page_fault(&mut self, address: u64, error: u32) -> Event {
        let event = self.expect(14);
        let got = (event.cr2, event.error);
        assert_eq!(got, (address, Some(u64::from(error))), "#PF at {:#x} with {:x?}", got.0, got.1);
        event
    }

    /// The handler goes on behind what faulted: changes RIP in the frame of the event.
    pub fn return_to(&mut self, event: &Event, rip: u64) {
        let long = self.engine.cpu.mode().long;
        let size = if long { 8 } else { 4 };
        let at = self.gpa(event.frame + if event.error.is_some() { size } else { 0 });
        if long { self.put::<u64>(at, rip) } else { self.put::<u32>(at, rip as u32) }
    }

    /// Changes the flags in the frame of the event.
    pub fn return_flags(&mut self, event: &Event, flags: u64) {
        let size = if self.engine.cpu.mode().long { 8 } else { 4 };
        let at = self.gpa(event.frame + size * (2 + u64::from(event.error.is_some())));
        if size == 8 { self.put::<u64>(at, flags) } else { self.put::<u32>(at, flags as u32) }
    }

    pub fn board(&self) -> std::sync::MutexGuard<'_, Board> {
        self.board.lock()
    }

    /// Raises an interrupt now.
    pub fn raise(&self, line: Line) {
        self.board().raise(line);
    }

    /// Asks the vCPU to return.
    pub fn stop(&self) {
        self.board().stop();
    }

    /// Raises an interrupt at a count.
    pub fn at_count(&self, count: u64, line: Line) {
        self.board().schedule.push((count, line));
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        engines::tell(&self.engine);
    }
}

/// Runs an instruction as a program; whether it is refused with #GP(0).
pub fn refused(g: &mut Guest, insn: Insn) -> bool {
    let code = g.program(|a| {
        insn(a)?;
        a.hlt()
    });
    match g.go() {
        Stop::Halted => false,
        Stop::Event(e) => {
            assert_eq!((e.vector, e.error, e.rip), (13, Some(0), code.start));
            true
        }
        other => panic!("{other:x?}"),
    }
}

/// Whether the processor pushes an error code for this exception (SDM vol. 3, table 6-1).
pub fn pushes_error(vector: u8) -> bool {
    matches!(vector, 8 | 10..=14 | 17 | 21)
}
