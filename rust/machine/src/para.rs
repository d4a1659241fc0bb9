//! Machines of `para` mode: a Xen PV domain with one vCPU.

use std::sync::Arc;

use trapgate_engine::state::Vcpu;
use trapgate_engine::{Engine, Exit as EngineExit, GuestMemory, Requests};
use trapgate_xen::cpu::{self, PvCpu};
use trapgate_xen::hypercall::{self, Waiting};
use trapgate_xen::{Domain, Layout};

use crate::board::Board;
use crate::board::xen_pv::{XenPvBoard, XenPvPlatform};
use crate::boot::xen;
use crate::clock::Clock;
use crate::console::Console;
use crate::machine::{Config, Machine, MachineError, PROCESSOR, uuid};
use crate::random::Random;
use crate::signal::Signal;

/// What to start in a domain.
#[derive(Clone, Copy, Debug)]
pub struct ParaPayload<'a> {
    pub kernel: &'a [u8],
    pub initrd: Option<&'a [u8]>,
    pub command_line: &'a str,
    /// Number of the domain, 1 and up; its back-ends are in domain 0.
    pub domid: u16,
    /// Bytes of memory that the domain may ever have; at least [`Config::memory`], which it starts with.
    pub maximum_memory: u64,
}

/// What the domain needs from its machine.
#[derive(Debug)]
struct Host {
    console: Arc<Console>,
    signal: Arc<Signal>,
}

impl trapgate_xen::domain::Host for Host {
    fn emergency_output(&self, bytes: &[u8]) {
        self.console.put(bytes);
    }

    fn wake(&self) {
        self.signal.wake();
    }
}

impl Machine {
    /// Builds a domain, loads the kernel and leaves it before its first instruction.
    ///
    /// # Errors
    /// When the kernel is not para-virtual, does not fit, or the host has no memory.
    pub fn new_para(config: &Config, payload: &ParaPayload<'_>) -> Result<Self, MachineError> {
        let pages = config.memory / 4096;
        let layout = Layout::new(payload.domid, pages.max(payload.maximum_memory / 4096));
        let memory = Arc::new(GuestMemory::new(&layout.regions())?);
        let requests = Arc::new(Requests::default());
        let signal = Signal::new(Arc::clone(&requests));
        let console = Console::new(Arc::clone(&signal));
        let debug = Console::new(Arc::clone(&signal));
        let clock = Arc::new(Clock::new(config.clock));
        let domain_config = trapgate_xen::domain::Config {
            domid: payload.domid,
            handle: uuid(config.seed ^ u64::from(payload.domid)),
            vcpus: 1,
            wall_seconds: config.epoch_seconds,
        };
        let domain = Domain::new(
            domain_config,
            layout,
            pages,
            Arc::clone(&memory),
            Arc::clone(&requests),
            Box::new(Host { console: Arc::clone(&console), signal: Arc::clone(&signal) }),
        )?;
        let request = xen::Request {
            kernel: payload.kernel,
            initrd: payload.initrd,
            command_line: payload.command_line,
        };
        let start = xen::build(&request, &domain, pages)?;
        let board = Arc::new(XenPvBoard::new(Arc::clone(&domain), start, Arc::clone(&console)));
        let platform = XenPvPlatform {
            board: Arc::clone(&board),
            clock: Arc::clone(&clock),
            random: Random::new(config.seed),
        };
        let model = Arc::new(PvCpu::model(&config.model));
        let mut vcpu = Vcpu::new(model, PROCESSOR, memory, Box::new(platform), Arc::clone(&requests));
        let monitor = PvCpu::new(domain, start.root, start.rsp);
        monitor.show_windows(&mut vcpu);
        vcpu.set_monitor(Box::new(monitor));
        cpu::reset(&mut vcpu);
        vcpu.cr3 = start.root.0 << 12;
        (vcpu.rip, vcpu.regs[4], vcpu.regs[6]) = (start.rip, start.rsp, start.start_info);
        vcpu.flush_tlb();
        Ok(Machine {
            engine: Engine::new(vcpu),
            board: Board::XenPv(board),
            clock,
            signal,
            console,
            debug,
            output_since: None,
        })
    }

    /// The domain, in `para` mode.
    pub fn domain(&self) -> Option<&Arc<Domain>> {
        self.board.xen_pv().map(|board| &board.domain)
    }

    /// Makes a hypercall for the guest as its native handler does; `None` if the call is none that returns (iret), which is
    /// then done.
    ///
    /// # Errors
    /// The exit, when the call ends the domain.
    pub fn native_hypercall(&mut self, number: u32, args: [u64; 5]) -> Result<Option<u64>, EngineExit> {
        self.engine.cpu.hypercall(number, args)
    }

    /// Gives a hypercall the result of its handler, after [`crate::Exit::Hypercall`].
    ///
    /// # Errors
    /// When the guest has taken away the memory that the result was to go to.
    pub fn finish_hypercall(&mut self, waiting: &Waiting, value: u64) -> Result<(), trapgate_xen::Errno> {
        hypercall::finish(&mut self.engine.cpu, waiting, value)
    }
}
