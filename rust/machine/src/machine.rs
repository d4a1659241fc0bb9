//! A machine: a board, a vCPU and the loop that runs them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use trapgate_devices::Nanos;
use trapgate_engine::memory::{MemoryError, Region};
use trapgate_engine::state::Processor;
use trapgate_engine::translate::{TranslateOptions, TranslatorStats};
use trapgate_engine::{Engine, Exit as EngineExit, GuestMemory, Requests, Vcpu};
use trapgate_x86::features::Features;
use trapgate_x86::model::{Dynamic, Model, Topology};

use crate::board::{Board, BoardError, Parts, PcBoard, PcPlatform};
use crate::boot::{self, BootError, BootImage, BootRequest, Decompression, MemoryMap, Protocol};
use crate::clock::{Clock, ClockKind, TSC_HZ};
use crate::console::Console;
use crate::exit::{Exit, Limits};
use crate::firmware::{self, FirmwareConfig, ProcessorIdentity};
use crate::random::Random;
use crate::signal::{Control, Signal};

/// What a machine is made of.
#[derive(Clone, Debug)]
pub struct Config {
    /// Bytes of RAM: whole pages, see [`MemoryMap`].
    pub memory: u64,
    pub model: Model,
    pub clock: ClockKind,
    /// Seed of all randomness that the guest gets.
    pub seed: u64,
    /// A debug console at port E9h.
    pub debug_console: bool,
    /// A debug-exit port at F4h, as QEMU's isa-debug-exit.
    pub debug_exit: bool,
    /// Wall-clock time at power-on, in seconds since 1970-01-01.
    pub epoch_seconds: i64,
}

/// What to start in it.
#[derive(Clone, Debug)]
pub struct Payload<'a> {
    pub kernel: &'a [u8],
    pub initrd: Option<&'a [u8]>,
    pub command_line: &'a str,
    pub protocol: Protocol,
    pub decompression: Decompression,
}

/// Why a machine cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    #[error(transparent)]
    Boot(#[from] BootError),
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error("the domain cannot be laid out: {0}")]
    Layout(#[from] trapgate_xen::paging::LayoutError),
    #[error("the board cannot be wired: {0}")]
    Board(#[from] BoardError),
}

/// One machine.
#[derive(Debug)]
pub struct Machine {
    pub(crate) engine: Engine,
    pub(crate) board: Board,
    pub(crate) clock: Arc<Clock>,
    pub(crate) signal: Arc<Signal>,
    pub(crate) console: Arc<Console>,
    pub(crate) debug: Arc<Console>,
    /// When output that is watched, and not yet shown, was first seen in this run.
    pub(crate) output_since: Option<Instant>,
}

impl Machine {
    /// Builds the machine, loads the payload and leaves it before its first instruction.
    pub fn new(config: &Config, payload: &Payload<'_>) -> Result<Self, MachineError> {
        let map = MemoryMap::new(config.memory)?;
        let regions: Vec<Region> = map
            .ram_ranges()
            .map(|r| Region { start: r.start, len: r.end - r.start, read_only: false })
            .collect();
        let memory = Arc::new(GuestMemory::new(&regions)?);
        let model = Arc::new(config.model);
        let tables = firmware::build(&FirmwareConfig {
            memory: &map,
            processors: 1,
            processor: identity(&model),
            uuid: uuid(config.seed),
        });
        let image = boot::load(&BootRequest {
            kernel: payload.kernel,
            initrd: payload.initrd,
            modules: Vec::new(),
            command_line: payload.command_line,
            memory: &map,
            rsdp: tables.rsdp,
            protocol: payload.protocol,
            decompression: payload.decompression,
        })?;
        for segment in tables.segments.iter().chain(&image.segments) {
            memory.write(segment.address, &segment.bytes)?;
        }
        let requests = Arc::new(Requests::default());
        let signal = Signal::new(Arc::clone(&requests));
        let console = Console::new(Arc::clone(&signal));
        let debug = Console::new(Arc::clone(&signal));
        let clock = Arc::new(Clock::new(config.clock));
        let board = Arc::new(PcBoard::new(&Parts {
            requests: &requests,
            signal: &signal,
            console: &console,
            model: &model,
            memory: &map,
            epoch_seconds: config.epoch_seconds,
            debug_console: config.debug_console.then_some(&debug),
            debug_exit: config.debug_exit,
        })?);
        let platform = PcPlatform {
            board: Arc::clone(&board),
            clock: Arc::clone(&clock),
            random: Random::new(config.seed),
            apic_id: 0,
        };
        let mut cpu = Vcpu::new(model, PROCESSOR, memory, Box::new(platform), requests);
        enter(&mut cpu, &image);
        let board = Board::Pc(board);
        Ok(Machine { engine: Engine::new(cpu), board, clock, signal, console, debug, output_since: None })
    }

    /// Runs until a limit or an event.
    pub fn run(&mut self, limits: &Limits) -> Exit {
        // A time beyond what the host can count is no limit.
        let wall = limits.wall.and_then(|time| Instant::now().checked_add(time));
        self.clock.start();
        // In virtual time the moment of each byte counts; the host's clock leaves time to gather some.
        self.console.watch(limits.watch_console && self.clock.kind() == ClockKind::Virtual);
        self.output_since = None;
        let exit = self.run_started(limits, wall);
        self.console.watch(false);
        if !limits.scheduled {
            self.clock.stop();
        }
        exit
    }

    fn run_started(&mut self, limits: &Limits, wall: Option<Instant>) -> Exit {
        loop {
            if let Some(exit) = self.serve(limits, wall) {
                return exit;
            }
            let count = self.engine.cpu.count;
            let until = self.clock.count_at(limits.time, count);
            let until =
                until.min(limits.count.unwrap_or(u64::MAX)).min(count.saturating_add(self.clock.slice()));
            let began = Instant::now();
            let exit = self.engine.run(until);
            self.clock.measured(self.engine.cpu.count.wrapping_sub(count), began.elapsed());
            match exit {
                EngineExit::Budget | EngineExit::Requested => {}
                EngineExit::Halted => {
                    if let Some(exit) = self.halt(limits, wall) {
                        return exit;
                    }
                }
                EngineExit::TripleFault { rip, vector } => return Exit::TripleFault { rip, vector },
                EngineExit::Unsupported { what, rip } => return Exit::Unsupported { what, rip },
                EngineExit::Hook => return Exit::Hook,
                _ => return Exit::Stopped,
            }
        }
    }

    /// Between slices: chips whose time has come, console input, limits and requests.
    fn serve(&mut self, limits: &Limits, wall: Option<Instant>) -> Option<Exit> {
        let count = self.engine.cpu.count;
        let now = self.clock.now(count);
        self.board.advance(now);
        self.board.feed(&self.console, now);
        self.board.served(count);
        if let Some(control) = self.signal.take_control() {
            return Some(match control {
                Control::PowerOff => Exit::PoweredOff,
                Control::Reset => Exit::Reset,
                Control::DebugExit(value) => Exit::DebugExit(value),
            });
        }
        if let Some(exit) = self.board.request() {
            return Some(exit);
        }
        if limits.watch_console && self.output_is_due() {
            return Some(Exit::ConsoleOutput);
        }
        if self.signal.take_stop() {
            return Some(Exit::Stopped);
        }
        if limits.count.is_some_and(|limit| count >= limit) {
            return Some(Exit::CountReached);
        }
        if limits.time.is_some_and(|limit| now >= limit) {
            return Some(Exit::TimeReached);
        }
        wall.is_some_and(|at| Instant::now() >= at).then_some(Exit::WallTimePassed)
    }

    /// Whether output is to be shown to the caller now: at once in virtual time, in real time when some has been gathered.
    fn output_is_due(&mut self) -> bool {
        if self.clock.kind() == ClockKind::Virtual {
            return self.console.take_written();
        }
        if !self.console.has_written() {
            return false;
        }
        let since = *self.output_since.get_or_insert_with(Instant::now);
        since.elapsed() >= GATHER && self.console.take_written()
    }

    /// The vCPU waits: virtual time jumps to the next event, real time is slept through.
    fn halt(&mut self, limits: &Limits, wall: Option<Instant>) -> Option<Exit> {
        let count = self.engine.cpu.count;
        if !self.engine.cpu.interrupts_enabled() {
            return Some(Exit::Halted);
        }
        let next = [self.board.deadline(), limits.time].into_iter().flatten().min();
        if self.clock.kind() == ClockKind::Virtual {
            return match next {
                Some(time) => {
                    self.clock.skip_to(time, count);
                    None
                }
                None if self.board.can_feed(&self.console) => None,
                None if limits.scheduled => self.signal.park().then_some(Exit::Blocked(None)),
                None => Some(Exit::Halted),
            };
        }
        if limits.watch_console && self.console.take_written() {
            return Some(Exit::ConsoleOutput);
        }
        let now = self.clock.now(count);
        if limits.scheduled {
            let after = next.map(|at| at.saturating_sub(now));
            return (after != Some(0) && self.signal.park()).then_some(Exit::Blocked(after));
        }
        let mut sleep = next.map_or(LONGEST_SLEEP, |at| Duration::from_nanos(at.saturating_sub(now)));
        if let Some(at) = wall {
            sleep = sleep.min(at.saturating_duration_since(Instant::now()));
        }
        if !sleep.is_zero() {
            self.signal.sleep(sleep.min(LONGEST_SLEEP));
        }
        None
    }

    /// Paranoid mode of the engine, see [`Engine::set_paranoid`]: slow, and nothing that a guest could notice.
    pub fn set_paranoid(&mut self, on: bool) {
        self.engine.set_paranoid(on);
    }

    /// Lets the binary translator run what it can; see [`Engine::set_translate`].
    pub fn set_translate(&mut self, options: Option<TranslateOptions>) -> bool {
        self.engine.set_translate(options)
    }

    /// Keeps shadow page tables for an unmodified guest; see [`Vcpu::set_shadow_paging`].
    pub fn set_shadow_paging(&mut self, on: bool) {
        self.engine.cpu.set_shadow_paging(on);
    }

    /// What the translator did, if there is one.
    pub fn translator_stats(&self) -> Option<TranslatorStats> {
        self.engine.translator_stats()
    }

    /// Completed instructions since power-on.
    pub fn count(&self) -> u64 {
        self.engine.cpu.count
    }

    /// Machine time in nanoseconds since power-on.
    pub fn now(&self) -> Nanos {
        self.clock.now(self.engine.cpu.count)
    }

    pub fn cpu(&self) -> &Vcpu {
        &self.engine.cpu
    }

    pub fn cpu_mut(&mut self) -> &mut Vcpu {
        &mut self.engine.cpu
    }

    pub fn console(&self) -> &Arc<Console> {
        &self.console
    }

    /// What machine time is read from; of a real clock, from any thread.
    pub fn clock(&self) -> &Arc<Clock> {
        &self.clock
    }

    pub fn signal(&self) -> &Arc<Signal> {
        &self.signal
    }

    /// What the guest writes to its debug console.
    pub fn debug_console(&self) -> &Arc<Console> {
        &self.debug
    }

    /// A hash of everything that the guest can observe: registers, RAM, devices, time. Equal for two runs that went the
    /// same way, whatever host memory or threads did.
    pub fn digest(&self) -> [u8; 32] {
        let mut hash = blake3::Hasher::new();
        hash.update(&record_bytes(&self.engine.cpu.save()));
        if self.clock.kind() == ClockKind::Virtual {
            hash.update(&record_bytes(&self.clock.base()));
        }
        match &self.board {
            Board::Pc(board) => hash.update(&record_bytes(&board.save())),
            Board::XenPv(board) => {
                hash.update(&self.engine.cpu.save_monitor());
                hash.update(&[u8::from(self.engine.cpu.kernel_mode())]);
                hash.update(&record_bytes(&board.domain.save()))
            }
        };
        self.engine.cpu.memory().each_page_in_use(|gpa, page| {
            hash.update(&gpa.to_le_bytes());
            hash.update(page);
        });
        *hash.finalize().as_bytes()
    }

    /// Counters of the run so far.
    pub fn stats(&self) -> Stats {
        let unmapped = self.board.unmapped();
        Stats {
            instructions: self.engine.cpu.count,
            nanoseconds: self.now(),
            blocks_decoded: self.engine.blocks_decoded(),
            accesses: self.board.accesses(),
            unmapped_port_reads: unmapped.port_reads,
            unmapped_port_writes: unmapped.port_writes,
            unmapped_memory_reads: unmapped.memory_reads,
            unmapped_memory_writes: unmapped.memory_writes,
        }
    }

    pub fn board(&self) -> &Board {
        &self.board
    }

    /// The board of `full` mode.
    pub fn pc(&self) -> Option<&Arc<PcBoard>> {
        self.board.pc()
    }
}

/// Counters of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stats {
    pub instructions: u64,
    pub nanoseconds: Nanos,
    pub blocks_decoded: u64,
    /// Times that the processor asked its surroundings for anything.
    pub accesses: u64,
    pub unmapped_port_reads: u64,
    pub unmapped_port_writes: u64,
    pub unmapped_memory_reads: u64,
    pub unmapped_memory_writes: u64,
}

/// A state record as the bytes that are hashed.
fn record_bytes<T: serde::Serialize>(record: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    // Writing to a Vec cannot fail, and no record has a key or value that CBOR cannot express.
    let written = ciborium::into_writer(record, &mut bytes);
    debug_assert!(written.is_ok());
    bytes
}

/// Real clock: output that is watched is shown after this long, or when the guest halts.
const GATHER: Duration = Duration::from_micros(300);
/// How long a halted machine sleeps at most before it looks around.
const LONGEST_SLEEP: Duration = Duration::from_millis(50);

pub(crate) const PROCESSOR: Processor =
    Processor { topology: Topology::SINGLE, tsc_khz: (TSC_HZ / 1000) as u32 };

/// The processor as SMBIOS is to describe it: what CPUID says.
fn identity(model: &Model) -> ProcessorIdentity<'_> {
    let dynamic = Dynamic::reset(PROCESSOR.tsc_khz);
    ProcessorIdentity {
        vendor: std::str::from_utf8(&model.vendor).unwrap_or(""),
        brand: model.brand,
        signature: model.signature,
        features: model.cpuid(1, 0, &dynamic).edx,
        megahertz: (PROCESSOR.tsc_khz / 1000) as u16,
        is_64: model.features.contains(Features::LM),
    }
}

/// A UUID (RFC 4122, version 4) that follows from the seed.
pub(crate) fn uuid(seed: u64) -> [u8; 16] {
    let mut random = Random::new(seed ^ 0x5eed);
    let mut bytes = (u128::from(random.next()) << 64 | u128::from(random.next())).to_le_bytes();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    bytes
}

/// Puts the vCPU into the state that the boot protocol asks for.
fn enter(cpu: &mut Vcpu, image: &BootImage<'_>) {
    use trapgate_engine::state::{Segment, Table};
    let e = &image.entry;
    cpu.regs[..16].copy_from_slice(&e.regs);
    cpu.rip = e.rip;
    cpu.set_rflags(e.rflags);
    (cpu.cr0, cpu.cr3, cpu.cr4, cpu.efer) = (e.cr0, e.cr3, e.cr4, e.efer);
    let segment = |s: &boot::SegmentRegister| Segment {
        selector: s.selector,
        base: s.base,
        limit: s.limit,
        access: s.attributes,
    };
    cpu.seg = [segment(&e.data); 6];
    cpu.seg[1] = segment(&e.code);
    cpu.gdtr = Table { base: e.gdt.base, limit: e.gdt.limit };
    cpu.idtr = Table { base: e.idt.base, limit: e.idt.limit };
    cpu.update_mode();
    cpu.flush_tlb();
}

#[cfg(test)]
mod tests {
    use super::*;
    use trapgate_x86::model::X86_64_V2;

    /// A machine in virtual time that runs `code` in 32-bit protected mode, interrupts off.
    fn machine(code: &[u8]) -> Machine {
        const LOAD: u32 = 0x10_0000;
        const MAGIC: u32 = 0x1BAD_B002;
        const ADDRESSES: u32 = 1 << 16;
        let sum = 0u32.wrapping_sub(MAGIC).wrapping_sub(ADDRESSES);
        let header = [MAGIC, ADDRESSES, sum, LOAD, LOAD, 0, 0, LOAD + 32];
        let mut kernel: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
        kernel.extend_from_slice(code);
        let config = Config {
            memory: MemoryMap::MIN,
            model: X86_64_V2,
            clock: ClockKind::Virtual,
            seed: 0,
            debug_console: false,
            debug_exit: false,
            epoch_seconds: 0,
        };
        let payload = Payload {
            kernel: &kernel,
            initrd: None,
            command_line: "",
            protocol: Protocol::Multiboot,
            decompression: Decompression::Host,
        };
        Machine::new(&config, &payload).unwrap()
    }

    /// STI; HLT; JMP to the HLT.
    const IDLE: [u8; 4] = [0xFB, 0xF4, 0xEB, 0xFD];

    #[test]
    fn any_length_of_host_time_can_be_asked_for() {
        let mut machine = machine(&IDLE);
        let limits = Limits { wall: Some(Duration::MAX), ..Limits::default() };
        assert_eq!(machine.run(&limits), Exit::Halted);
    }

    #[test]
    fn input_that_the_guest_does_not_read_keeps_no_machine_alive() {
        let mut machine = machine(&IDLE);
        machine.console().send(b"more than the receiver holds");
        let limits = Limits { wall: Some(Duration::from_secs(1)), ..Limits::default() };
        assert_eq!(machine.run(&limits), Exit::Halted);
    }

    #[test]
    fn a_scheduled_machine_gives_its_thread_back_in_a_halt_and_calls_when_it_is_woken() {
        let mut machine = machine(&IDLE);
        let bell = Arc::new(crate::Bell::default());
        machine.signal().set_bell(Some((Arc::clone(&bell), 7)));
        let limits = Limits { scheduled: true, ..Limits::default() };
        assert_eq!(machine.run(&limits), Exit::Blocked(None));
        assert!(bell.wait(Duration::ZERO, false).is_empty());
        machine.signal().poke();
        machine.signal().poke();
        assert_eq!(bell.wait(Duration::ZERO, false), [7]);
        // What came before the halt is looked at before the thread goes.
        assert_eq!(machine.run(&limits), Exit::Blocked(None));
        assert!(bell.wait(Duration::ZERO, false).is_empty());
    }

    /// Each instruction of a slice may take the host microseconds (a flush of the TLB does), and a slice is what Ctrl-C
    /// waits for.
    #[test]
    fn the_wall_clock_is_looked_at_often_in_virtual_time_too() {
        // JMP to itself.
        let mut machine = machine(&[0xEB, 0xFE]);
        let limits = Limits { wall: Some(Duration::from_micros(50)), ..Limits::default() };
        assert_eq!(machine.run(&limits), Exit::WallTimePassed);
        assert!(machine.count() <= 400_000, "{}", machine.count());
    }
}
