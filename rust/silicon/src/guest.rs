//! Our engine as executor: a 64-bit guest whose user half is laid out as the host's child is, and whose exception
//! handlers are one HLT each, so that a case ends with the frame that the delivery pushed.

use std::sync::Arc;

use trapgate_engine::memory::Region;
use trapgate_engine::state::{Processor, Segment, Shadow};
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use trapgate_engine::translate::TranslateOptions;
use trapgate_engine::vector::{F80, VectorState};
use trapgate_engine::{Engine, Exit, GuestMemory, Platform, Requests, Vcpu};
use trapgate_x86::exception::Vector;
use trapgate_x86::insn::Seg;
use trapgate_x86::model::Topology;
use trapgate_x86::regs::{cr0, cr4, efer, xcr0};

use crate::MODEL;
use crate::case::{Case, FX, Mode, Outcome, RSP, State, end, fx, selector};
use crate::space::{self, BACKGROUND, CODE, FILL, HIGH, LOW, PAGE, WINDOW};

/// Where the guest's own tables are mapped: the first pages of memory, for the supervisor.
const KERNEL: u64 = 0xffff_8000_0000_0000;
const KERNEL_PAGES: u64 = 16;
const IDT: u64 = 0x1000;
const GDT: u64 = 0x2000;
const TSS: u64 = 0x3000;
/// Handlers of 16 bytes each.
const HANDLERS: u64 = 0x4000;
/// Top of the stack that handlers run on.
const STACK: u64 = 0x7000;
/// Physical pages of the user half: code, then the regions with their read-only page first.
const CODE_PAGE: u64 = 0x1_0000;
const LOW_PAGES: u64 = 0x1_1000;
const HIGH_PAGES: u64 = 0x1_4000;
/// Page tables, allocated upwards from the PML4.
const TABLES: u64 = 0x2_0000;
const MEMORY: u64 = 0x4_0000;

/// Selectors of the supervisor, as Linux has them as well.
const KERNEL_CS: u16 = 0x10;
const TSS_SELECTOR: u16 = 0x40;

/// Instructions, REP iterations included, after which a case counts as hung.
const PATIENCE: u64 = 1 << 20;

/// A machine without devices, interrupts or events.
#[derive(Debug)]
struct Nothing;

impl Platform for Nothing {
    fn tsc(&mut self, count: u64) -> u64 {
        count
    }
    fn random(&mut self) -> u64 {
        0
    }
    fn apic_enabled(&self) -> bool {
        true
    }
}

/// Runs cases on the engine.
#[derive(Debug)]
pub struct Guest {
    engine: Engine,
    memory: Arc<GuestMemory>,
    /// That of the host's child, which it has from this thread.
    fs_base: u64,
}

impl Default for Guest {
    fn default() -> Guest {
        Guest::new()
    }
}

impl Guest {
    /// On the translator; `None` where the host does not allow it.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    pub fn translated() -> Option<Guest> {
        let mut guest = Guest::new();
        guest
            .engine
            .set_translate(Some(TranslateOptions { cache: 1 << 20, ..TranslateOptions::default() }))
            .then_some(guest)
    }

    /// Units that were translated, and times that the interpreter was asked to run an instruction.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    pub fn translations(&self) -> (u64, u64) {
        self.engine.translator_stats().map_or((0, 0), |stats| (stats.units, stats.interpreted))
    }

    pub fn new() -> Guest {
        let region = Region { start: 0, len: MEMORY, read_only: false };
        let memory = Arc::new(GuestMemory::new(&[region]).expect("guest memory"));
        let processor = Processor { topology: Topology::SINGLE, tsc_khz: 1_000_000 };
        let requests = Arc::new(Requests::default());
        let model = Arc::new(MODEL);
        let cpu = Vcpu::new(model, processor, memory.clone(), Box::new(Nothing), requests);
        let mut guest = Guest { engine: Engine::new(cpu), memory, fs_base: crate::host::fs_base() };
        guest.write_tables();
        guest.enter_long_mode();
        guest
    }

    fn write(&self, address: u64, bytes: &[u8]) {
        self.memory.write(address, bytes).expect("inside the guest's memory");
    }

    fn write_u64(&self, address: u64, value: u64) {
        self.write(address, &value.to_le_bytes());
    }

    fn read_u64(&self, address: u64) -> u64 {
        let mut bytes = [0; 8];
        self.memory.read(address, &mut bytes).expect("inside the guest's memory");
        u64::from_le_bytes(bytes)
    }

    /// Page tables, descriptor tables and the pages' content.
    fn write_tables(&mut self) {
        let mut free = TABLES + PAGE;
        let user =
            |write: bool, execute: bool| 5 | if write { 2 } else { 0 } | if execute { 0 } else { 1 << 63 };
        for page in 0..KERNEL_PAGES {
            self.map(&mut free, KERNEL + page * PAGE, page * PAGE, 3);
        }
        self.map(&mut free, CODE, CODE_PAGE, user(true, true));
        self.write(CODE_PAGE, &[FILL; PAGE as usize]);
        for (base, at) in [(LOW, LOW_PAGES), (HIGH, HIGH_PAGES)] {
            for page in 0..3 {
                self.map(&mut free, base - PAGE + page * PAGE, at + page * PAGE, user(page != 0, false));
                self.write(at + page * PAGE, &BACKGROUND[..PAGE as usize]);
            }
        }
        for (selector, descriptor) in [
            (KERNEL_CS, 0x00af_9b00_0000_ffff),
            (selector::DATA, 0x00cf_f300_0000_ffff),
            (selector::CODE64, 0x00af_fb00_0000_ffff),
            (selector::CODE32, 0x00cf_fb00_0000_ffff),
        ] {
            self.write_u64(GDT + u64::from(selector & !7), descriptor);
        }
        for vector in 0..32 {
            let handler = KERNEL + HANDLERS + 16 * vector;
            self.write(HANDLERS + 16 * vector, &[0xf4]);
            // Interrupt gates; those of INT3 and INTO may be called from user mode.
            let dpl = if matches!(vector, 3 | 4) { 3 } else { 0 };
            let low = handler & 0xffff | u64::from(KERNEL_CS) << 16 | (0x8e00 | dpl << 13) << 32;
            self.write_u64(IDT + 16 * vector, low | (handler >> 16 & 0xffff) << 48);
            self.write_u64(IDT + 16 * vector + 8, handler >> 32);
        }
        self.write_u64(TSS + 4, KERNEL + STACK);
    }

    /// Maps one page; `free` is where the next table goes.
    fn map(&mut self, free: &mut u64, linear: u64, physical: u64, bits: u64) {
        let mut table = TABLES;
        for shift in [39, 30, 21] {
            let at = table + 8 * (linear >> shift & 511);
            if self.read_u64(at) == 0 {
                self.write_u64(at, *free | 7);
                *free += PAGE;
            }
            table = self.read_u64(at) & !0xfff;
        }
        self.write_u64(table + 8 * (linear >> 12 & 511), physical | bits);
    }

    fn enter_long_mode(&mut self) {
        let cpu = &mut self.engine.cpu;
        cpu.cr0 = cr0::PE | cr0::MP | cr0::ET | cr0::NE | cr0::WP | cr0::AM | cr0::PG;
        cpu.cr3 = TABLES;
        cpu.cr4 = cr4::PAE | cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::OSXSAVE | cr4::FSGSBASE;
        cpu.efer = efer::SCE | efer::LME | efer::LMA | efer::NXE;
        cpu.xcr0 = xcr0::X87 | xcr0::SSE | if crate::has_upper_halves() { xcr0::AVX } else { 0 };
        cpu.gdtr.base = KERNEL + GDT;
        cpu.gdtr.limit = 0x7f;
        cpu.idtr.base = KERNEL + IDT;
        cpu.idtr.limit = 32 * 16 - 1;
        cpu.tr = Segment { selector: TSS_SELECTOR, base: KERNEL + TSS, limit: 103, access: 0x8b };
    }

    /// Runs one case.
    pub fn run(&mut self, case: &Case) -> Outcome {
        self.enter(case);
        let exit = self.engine.run(self.engine.cpu.count + PATIENCE);
        let outcome = self.leave(case, exit);
        self.clean(case);
        outcome
    }

    /// Runs one case and looks whether it has left anything outside its window.
    pub fn checked(&mut self, case: &Case) -> Outcome {
        let mut outcome = self.run(case);
        if self.stray().is_some() {
            outcome.trap.vector = end::STRAY;
        }
        outcome
    }

    /// Runs one case in steps of one instruction: every boundary is then also one of a run.
    pub fn run_stepwise(&mut self, case: &Case) -> Outcome {
        self.enter(case);
        let last = self.engine.cpu.count + PATIENCE;
        let mut exit = Exit::Budget;
        while exit == Exit::Budget && self.engine.cpu.count < last {
            exit = self.engine.run(self.engine.cpu.count + 1);
        }
        let outcome = self.leave(case, exit);
        self.clean(case);
        outcome
    }

    fn enter(&mut self, case: &Case) {
        self.write(physical(case.window_at), &case.window);
        let in_page = case.code_len.min(CODE + PAGE - case.state.rip) as usize;
        self.write(physical(case.state.rip), &case.code[..in_page]);
        let cpu = &mut self.engine.cpu;
        cpu.regs[..16].copy_from_slice(&case.state.gpr);
        cpu.rip = case.state.rip;
        let null = Segment { selector: 0, base: 0, limit: 0, access: 0 };
        let flat = |selector, access| Segment { selector, base: 0, limit: u32::MAX, access };
        let data = flat(selector::DATA, 0xc0f3);
        let code = match case.mode {
            Mode::Long => flat(selector::CODE64, 0xa0fb),
            Mode::Compatibility => flat(selector::CODE32, 0xc0fb),
        };
        // ES, CS, SS, DS, FS, GS.
        cpu.seg = [data, code, data, data, null, null];
        cpu.seg[Seg::Fs as usize].base = self.fs_base;
        cpu.cpl = 3;
        cpu.cr2 = 0;
        cpu.halted = false;
        cpu.shadow = Shadow::None;
        cpu.update_mode();
        cpu.set_rflags(case.state.rflags);
        *cpu.vector() = VectorState { ymm_high: case.state.ymm_high, ..from_image(&case.state.fx) };
    }

    /// Reads the outcome from the exception frame.
    fn leave(&mut self, case: &Case, exit: Exit) -> Outcome {
        let mut outcome = Outcome::ZERO;
        let cpu = &mut self.engine.cpu;
        outcome.state.gpr.copy_from_slice(&cpu.regs[..16]);
        outcome.state.rip = cpu.rip;
        outcome.state.rflags = cpu.rflags();
        outcome.state.fx = to_image(cpu.vector());
        outcome.state.ymm_high = cpu.vector().ymm_high;
        let handler = cpu.rip.wrapping_sub(KERNEL + HANDLERS + 1);
        let (cr2, stack) = (cpu.cr2, cpu.regs[RSP].wrapping_sub(KERNEL));
        if exit == Exit::Halted && handler.is_multiple_of(16) && handler / 16 < 32 {
            let vector = handler / 16;
            outcome.trap.vector = vector;
            let has_error = Vector::from_number(vector as u8).is_some_and(Vector::has_error_code);
            let frame = stack + if has_error { 8 } else { 0 };
            if has_error {
                outcome.trap.error = self.read_u64(stack);
            }
            if vector == Vector::Pf as u64 {
                outcome.trap.address = cr2;
            }
            outcome.state.rip = self.read_u64(frame);
            outcome.state.rflags = self.read_u64(frame + 16);
            outcome.state.gpr[RSP] = self.read_u64(frame + 24);
        } else {
            outcome.trap.vector = if exit == Exit::Budget { end::HUNG } else { end::LOST };
        }
        self.memory.read(physical(case.window_at), &mut outcome.window).expect("a data page");
        outcome
    }

    /// Puts memory back to its background; whatever else was changed shows in the outcome of [`Guest::stray`].
    fn clean(&mut self, case: &Case) {
        self.write(physical(case.window_at), space::background(case.window_at, WINDOW));
        let in_page = case.code_len.min(CODE + PAGE - case.state.rip) as usize;
        self.write(physical(case.state.rip), &[FILL; space::CODE_MAX][..in_page]);
    }

    /// The first linear address outside the windows of finished cases whose content has changed, put back.
    pub fn stray(&mut self) -> Option<u64> {
        for (base, at) in [(LOW, LOW_PAGES), (HIGH, HIGH_PAGES)] {
            for page in 0..3 {
                let mut bytes = [0; PAGE as usize];
                self.memory.read(at + page * PAGE, &mut bytes).expect("a data page");
                if let Some(i) = (0..bytes.len()).find(|&i| bytes[i] != BACKGROUND[i]) {
                    self.write(at + page * PAGE, &BACKGROUND[..PAGE as usize]);
                    return Some(base - PAGE + page * PAGE + i as u64);
                }
            }
        }
        None
    }
}

/// Physical address of a byte of the user half.
fn physical(linear: u64) -> u64 {
    match linear {
        CODE..0x2000_1000 => CODE_PAGE + (linear - CODE),
        0x2fff_f000..0x3000_2000 => LOW_PAGES + (linear - (LOW - PAGE)),
        _ => HIGH_PAGES + (linear - (HIGH - PAGE)),
    }
}

fn from_image(image: &[u8; FX]) -> VectorState {
    let u16_at = |at: usize| u16::from_le_bytes([image[at], image[at + 1]]);
    let u64_at = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| image[at + i]));
    let mut state = VectorState::reset();
    let x87 = &mut state.x87;
    x87.fcw = u16_at(fx::FCW);
    x87.fsw = u16_at(fx::FSW);
    x87.tags = image[fx::FTW];
    x87.fop = u16_at(fx::FOP);
    x87.fip = u64_at(fx::FIP);
    x87.fdp = u64_at(fx::FDP);
    for i in 0..8u8 {
        let at = fx::ST + 16 * usize::from(i);
        let physical = x87.physical(i);
        x87.regs[physical] = F80::from_bytes(std::array::from_fn(|i| image[at + i]));
    }
    state.mxcsr = u64_at(fx::MXCSR) as u32;
    for (i, xmm) in state.xmm.iter_mut().enumerate() {
        let at = fx::XMM + 16 * i;
        *xmm = u128::from(u64_at(at + 8)) << 64 | u128::from(u64_at(at));
    }
    state
}

fn to_image(state: &VectorState) -> [u8; FX] {
    let mut image = State::ZERO;
    let x87 = &state.x87;
    image.set_fx_u16(fx::FCW, x87.fcw);
    image.set_fx_u16(fx::FSW, x87.fsw);
    image.fx[fx::FTW] = x87.tags;
    image.set_fx_u16(fx::FOP, x87.fop);
    image.fx[fx::FIP..fx::FIP + 8].copy_from_slice(&x87.fip.to_le_bytes());
    image.fx[fx::FDP..fx::FDP + 8].copy_from_slice(&x87.fdp.to_le_bytes());
    image.set_mxcsr(state.mxcsr);
    for i in 0..8u8 {
        let at = fx::ST + 16 * usize::from(i);
        image.fx[at..at + 10].copy_from_slice(&x87.st(i).to_bytes());
    }
    for (i, xmm) in state.xmm.iter().enumerate() {
        image.set_xmm(i, *xmm);
    }
    image.fx
}
