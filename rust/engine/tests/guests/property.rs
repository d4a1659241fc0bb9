//! Random programs must end in the same state however their run is parted: in one go, stopped and resumed after every
//! instruction, with everything cached dropped at every boundary, in slices of any length, in the engine's paranoid mode.
//!
//! A program is arithmetic, memory accesses (some across pages, some into an absent page), branches, calls, repetitions,
//! stores into its own code, system calls, faults of all kinds with handlers that go on behind the instruction, and a timer.
//! Every program ends: branches lead forward, and the one loop around it all has a counter.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use trapgate_engine::Exit;
use trapgate_engine::state::record::VcpuState;
use trapgate_x86::regs::rflags;

use crate::common::*;

const PROGRAMS: u64 = 100;
/// Registers that programs compute with; R13 to R15, RSP, RSI and RDI have uses of their own.
const REGS: [AsmRegister64; 9] = [rax, rbx, rcx, rdx, rbp, r8, r9, r10, r11];
const REGS32: [AsmRegister32; 9] = [eax, ebx, ecx, edx, ebp, r8d, r9d, r10d, r11d];
/// Bytes of data that accesses fall into; the page behind the second is absent.
const ROOM: u64 = 0x3000;
const ABSENT: u64 = DATA + 0x2000;
/// Where ticks and system calls are counted.
const COUNTERS: u64 = DATA + 0x8000;
/// How a program that runs in ring 3 says that it is over.
const OVER: u8 = 0x81;

type Result<T = ()> = std::result::Result<T, IcedError>;

struct Writer<'a> {
    a: &'a mut CodeAssembler,
    noise: Noise,
    function: CodeLabel,
}

impl Writer<'_> {
    fn reg(&mut self) -> AsmRegister64 {
        REGS[self.noise.below(9) as usize]
    }

    fn reg32(&mut self) -> AsmRegister32 {
        REGS32[self.noise.below(9) as usize]
    }

    /// A place in the data, whose base is R14; near the page boundaries as often as elsewhere.
    fn place(&mut self) -> AsmMemoryOperand {
        let at = match self.noise.below(3) {
            0 => (self.noise.below(3) + 1) * 0x1000 - 1 - self.noise.below(8),
            _ => self.noise.below(ROOM - 16),
        };
        r14 + at as i32
    }

    /// Tells the handlers where to go on if one of the next instructions faults; the label is to be set there.
    fn recover(&mut self) -> Result<CodeLabel> {
        let behind = self.a.create_label();
        self.a.lea(r15, ptr(behind))?;
        Ok(behind)
    }

    fn arithmetic(&mut self) -> Result {
        let (x, y, n) = (self.reg(), self.reg(), self.noise.next() as i32);
        let (x32, y32) = (self.reg32(), self.reg32());
        let count = self.noise.below(70) as u32;
        let wide = self.noise.next();
        match self.noise.below(22) {
            0 => self.a.add(x, y),
            1 => self.a.adc(x32, y32),
            2 => self.a.sub(x, n),
            3 => self.a.sbb(x, y),
            4 => self.a.xor(x32, n),
            5 => self.a.and(x, y),
            6 => self.a.or(x, n),
            7 => self.a.cmp(x, y),
            8 => self.a.shl(x, count),
            9 => self.a.sar(x32, count),
            10 => self.a.rcr(x, 1),
            11 => self.a.ror(x32, count),
            12 => self.a.imul_2(x, y),
            13 => self.a.mul(y32),
            14 => self.a.lea(x, y + n),
            15 => self.a.cmovb(x, y),
            16 => self.a.bswap(x),
            17 => self.a.neg(x),
            18 => self.a.xadd(x, y),
            19 => self.a.inc(x32),
            20 => self.a.bt(x, y),
            _ => self.a.mov(x, wide),
        }
    }

    fn memory(&mut self) -> Result {
        let (place, x, x32) = (self.place(), self.reg(), self.reg32());
        let mut behind = self.recover()?;
        match self.noise.below(14) {
            0 => self.a.mov(x, qword_ptr(place)),
            1 => self.a.mov(qword_ptr(place), x),
            2 => self.a.mov(dword_ptr(place), x32),
            3 => self.a.add(x, qword_ptr(place)),
            4 => self.a.add(qword_ptr(place), x),
            5 => self.a.lock().xadd(qword_ptr(place), x),
            6 => self.a.xchg(dword_ptr(place), x32),
            7 => self.a.cmp(word_ptr(place), 0x1234),
            8 => self.a.inc(byte_ptr(place)),
            9 => self.a.lock().cmpxchg(qword_ptr(place), x),
            10 => self.a.setg(byte_ptr(place)),
            11 => {
                self.a.push(qword_ptr(place))?;
                self.a.pop(x)
            }
            12 => self.a.movups(xmm0, xmmword_ptr(place)),
            _ => self.a.movups(xmmword_ptr(place), xmm0),
        }?;
        self.a.set_label(&mut behind)?;
        self.a.nop()
    }

    fn repetition(&mut self) -> Result {
        let (from, to) = (self.noise.below(ROOM), self.noise.below(ROOM));
        self.a.lea(rsi, r14 + from as i32)?;
        self.a.lea(rdi, r14 + to as i32)?;
        self.a.mov(ecx, self.noise.below(60) as u32)?;
        if self.noise.below(3) == 0 {
            self.a.std()?;
        }
        let mut behind = self.recover()?;
        match self.noise.below(7) {
            0 => self.a.rep().movsb(),
            1 => self.a.rep().movsd(),
            2 => self.a.rep().movsq(),
            3 => self.a.rep().stosw(),
            4 => self.a.repe().cmpsb(),
            5 => self.a.repne().scasb(),
            _ => self.a.rep().lodsq(),
        }?;
        self.a.set_label(&mut behind)?;
        self.a.cld()
    }

    fn fault(&mut self) -> Result {
        let (x, x32) = (self.reg(), self.reg32());
        let mut behind = self.recover()?;
        match self.noise.below(6) {
            0 => self.a.ud2(),
            1 => self.a.div(x32),
            2 => self.a.idiv(x),
            3 => {
                self.a.mov(x, 0x8000_0000_0000_0000u64)?;
                self.a.mov(x32, dword_ptr(x))
            }
            4 => self.a.mov(dword_ptr(ABSENT), x32),
            _ => self.a.int(0x80),
        }?;
        self.a.set_label(&mut behind)?;
        self.a.nop()
    }

    fn control(&mut self) -> Result {
        let x = self.reg();
        match self.noise.below(6) {
            0 => self.a.call(self.function),
            1 => {
                // A store into the immediate of a MOV that comes right after it, or a little later.
                let mut immediate = self.a.create_label();
                let value = self.noise.below(256) as u32;
                self.a.mov(byte_ptr(immediate), value)?;
                for _ in 0..self.noise.below(3) {
                    self.a.nop()?;
                }
                // MOV EBX, imm32.
                self.a.db(&[0xbb])?;
                self.a.set_label(&mut immediate)?;
                self.a.db(&self.noise.next().to_le_bytes()[..4])
            }
            2 => {
                self.a.pushfq()?;
                self.a.pop(x)
            }
            3 => {
                let flip = self.noise.next() & rflags::STATUS;
                self.a.pushfq()?;
                self.a.xor(dword_ptr(rsp), flip as i32)?;
                self.a.popfq()
            }
            4 => self.a.rdtsc(),
            _ => self.a.cpuid(),
        }
    }

    /// One piece of program.
    fn piece(&mut self) -> Result {
        match self.noise.below(12) {
            0..=4 => self.arithmetic(),
            5..=7 => self.memory(),
            8 => self.repetition(),
            9 => self.fault(),
            _ => self.control(),
        }
    }

    fn branch_over(&mut self) -> Result {
        let mut over = self.a.create_label();
        match self.noise.below(4) {
            0 => self.a.jb(over),
            1 => self.a.jnz(over),
            2 => self.a.jg(over),
            _ => self.a.jmp(over),
        }?;
        for _ in 0..self.noise.below(4) {
            self.piece()?;
        }
        self.a.set_label(&mut over)?;
        self.a.nop()
    }

    fn program(&mut self, user: bool) -> Result {
        let mut again = self.a.create_label();
        self.a.set_label(&mut again)?;
        for _ in 0..30 + self.noise.below(20) {
            if self.noise.below(5) == 0 { self.branch_over()? } else { self.piece()? }
        }
        self.a.dec(r13)?;
        self.a.jnz(again)?;
        if user {
            self.a.int(u32::from(OVER))?;
        } else {
            self.a.cli()?;
            self.a.hlt()?;
        }
        let mut function = self.function;
        self.a.set_label(&mut function)?;
        self.a.add(rbx, rcx)?;
        self.a.mov(qword_ptr(r14 + 0x10), rbx)?;
        self.a.ret()
    }
}

/// The handlers: those of faults go on at R15, the others count.
fn install_handlers(g: &mut Guest) {
    let at = 0xb000;
    let plain = g.load(at, |a| {
        a.mov(qword_ptr(rsp), r15)?;
        a.iretq()
    });
    let coded = g.load(at + 0x40, |a| {
        a.mov(qword_ptr(rsp + 8), r15)?;
        a.add(rsp, 8)?;
        a.iretq()
    });
    for vector in [0, 6, 12, 13, 14] {
        let handler = if pushes_error(vector) { &coded } else { &plain };
        g.set_gate(vector, Gate::interrupt(handler.start));
    }
    for (vector, offset) in [(0x80u8, 0x80), (0x41, 0xc0)] {
        let handler = g.load(at + offset, |a| {
            a.inc(qword_ptr(COUNTERS + offset))?;
            a.iretq()
        });
        g.set_gate(vector, Gate { access: 0xee, ..Gate::interrupt(handler.start) });
    }
    g.change_gate(OVER, |gate| gate.access = 0xee);
}

/// Program number `seed`, ready to run; every second one is in ring 3.
fn guest(seed: u64) -> Guest {
    let mut noise = Noise(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    for _ in 0..4 {
        noise.next();
    }
    let user = seed % 2 == 1;
    let mut g = Guest::long();
    install_handlers(&mut g);
    g.map(ABSENT, 0, 0);
    let bytes: Vec<u8> = (0..0x2000).map(|_| noise.next() as u8).collect();
    g.poke(DATA, &bytes);
    for n in [0, 1, 2, 3, 5, 8, 9, 10, 11] {
        g.set_reg(n, noise.next() >> noise.below(64));
    }
    let write = |a: &mut CodeAssembler| {
        let function = a.create_label();
        Writer { a, noise: noise.clone(), function }.program(user)
    };
    if user {
        g.user_program(write);
    } else {
        g.program(write);
    }
    g.set_reg(13, 2 + seed % 2);
    g.set_reg(14, DATA);
    g.flag(rflags::IF);
    let mut due = noise.below(40);
    while due < 20_000 {
        g.at_count(due, Line::Vector(0x41));
        due += 1 + noise.below(300);
    }
    g
}

/// Everything that a program could have changed.
#[derive(PartialEq, Eq)]
struct Outcome {
    cpu: VcpuState,
    memory: Vec<u8>,
}

fn outcome(g: &mut Guest) -> Outcome {
    let at = |start, len| g.peek(start, len);
    let parts = [
        at(DATA, 0x2000),
        at(COUNTERS, 0x100),
        at(STACK0 - 0x2000, 0x2000),
        at(USER_STACK - 0x1000, 0x1000),
        at(CODE, 0x2000),
        at(USER_CODE, 0x2000),
    ];
    Outcome { memory: parts.concat(), cpu: g.cpu().save() }
}

/// Runs to the end by `step`, which does some of it.
fn finish(g: &mut Guest, mut step: impl FnMut(&mut Guest) -> Exit) -> Outcome {
    for _ in 0..200_000 {
        match step(g) {
            Exit::Budget => {}
            Exit::Halted => return outcome(g),
            other => panic!("{other:?} at {:#x}", g.rip()),
        }
    }
    panic!("no end at {:#x}", g.rip());
}

fn assert_same(seed: u64, how: &str, want: &Outcome, got: &Outcome) {
    assert_eq!(got.cpu, want.cpu, "program {seed}, {how}");
    let differs = got.memory.iter().zip(&want.memory).position(|(a, b)| a != b);
    assert_eq!(differs, None, "program {seed}, {how}: memory differs");
}

#[test]
fn random_programs_end_alike_however_they_are_run() {
    let (mut instructions, mut ticks) = (0, 0);
    for seed in 1..=PROGRAMS {
        let mut g = guest(seed);
        let want = finish(&mut g, |g| g.run_until(100_000));
        instructions += g.count();
        ticks += g.get::<u64>(COUNTERS + 0xc0);

        let got = finish(&mut guest(seed), Guest::step);
        assert_same(seed, "by single steps", &want, &got);

        let mut noise = Noise(seed);
        let got = finish(&mut guest(seed), |g| {
            let until = g.count() + 1 + noise.below(40);
            g.run_until(until)
        });
        assert_same(seed, "in slices", &want, &got);

        let got = finish(&mut guest(seed), |g| {
            g.cpu().flush_tlb();
            for page in [CODE, USER_CODE, 0xb000] {
                // The same bytes once more: what is decoded must be looked at again.
                let bytes = g.peek(page, 0x1000);
                g.poke(page, &bytes);
            }
            g.step()
        });
        assert_same(seed, "with nothing kept", &want, &got);

        let mut paranoid = guest(seed);
        paranoid.engine.set_paranoid(true);
        let got = finish(&mut paranoid, |g| g.run_until(100_000));
        assert_same(seed, "in paranoid mode", &want, &got);
    }
    assert!(instructions > 100 * 150, "{instructions} instructions in all");
    assert!(ticks > 100, "{ticks} ticks in all");
}
