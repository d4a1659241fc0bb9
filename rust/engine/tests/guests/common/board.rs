//! The platform that the guests run on: ports and device memory that record, interrupts that tests inject.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use trapgate_engine::Requests;
use trapgate_engine::platform::{Interrupt, NoMsr, Platform};

/// What the time-stamp counter shows at count 0.
pub const TSC_START: u64 = 0x1_0000_0000;

/// One access to a port or to device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    pub count: u64,
    pub at: u64,
    pub size: u8,
    /// The value of a write; `None` for a read.
    pub written: Option<u64>,
}

/// What a scheduled event does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    Vector(u8),
    Nmi,
}

/// State of the surroundings, shared by the vCPU's platform and the test.
#[derive(Debug)]
pub struct Board {
    pub ports: Vec<Access>,
    pub mmio: Vec<Access>,
    /// Values that reads of ports give, in order; all ones when there are none left.
    pub inputs: VecDeque<u64>,
    /// Values of device memory by address; all ones elsewhere.
    pub registers: BTreeMap<u64, u64>,
    /// Interrupts that wait for the vCPU, the most urgent first.
    pub waiting: VecDeque<u8>,
    pub nmi: bool,
    /// What is due when, in counts of completed instructions.
    pub schedule: Vec<(u64, Line)>,
    /// Acknowledged vectors with their counts; 2 stands for NMI.
    pub taken: Vec<(u64, u8)>,
    /// Scheduled events enter when the vCPU asks for the next one, as well as between its runs.
    pub eager: bool,
    /// Acknowledging gives no vector: the line has gone.
    pub withdrawn: bool,
    pub tpr: u8,
    requests: Arc<Requests>,
}

impl Board {
    fn new(requests: Arc<Requests>) -> Self {
        Board {
            ports: Vec::new(),
            mmio: Vec::new(),
            inputs: VecDeque::new(),
            registers: BTreeMap::new(),
            waiting: VecDeque::new(),
            nmi: false,
            schedule: Vec::new(),
            taken: Vec::new(),
            eager: false,
            withdrawn: false,
            tpr: 0,
            requests,
        }
    }

    /// Raises a line now.
    pub fn raise(&mut self, line: Line) {
        match line {
            Line::Vector(vector) => self.waiting.push_back(vector),
            Line::Nmi => self.nmi = true,
        }
        self.requests.post(Requests::INTERRUPT);
    }

    /// Asks the vCPU to return.
    pub fn stop(&self) {
        self.requests.post(Requests::STOP);
    }

    /// Raises what is due.
    pub fn serve(&mut self, count: u64) {
        let due: Vec<_> = self.schedule.iter().filter(|(at, _)| *at <= count).copied().collect();
        self.schedule.retain(|(at, _)| *at > count);
        for (_, line) in due {
            self.raise(line);
        }
    }

    fn next(&self) -> u64 {
        self.schedule.iter().map(|(at, _)| *at).min().unwrap_or(u64::MAX)
    }
}

/// A handle to the board.
#[derive(Clone, Debug)]
pub struct Shared(Arc<Mutex<Board>>);

impl Shared {
    pub fn new(requests: Arc<Requests>) -> Self {
        Shared(Arc::new(Mutex::new(Board::new(requests))))
    }
    pub fn lock(&self) -> MutexGuard<'_, Board> {
        self.0.lock().expect("no test panics with the board locked")
    }
}

impl Platform for Shared {
    fn port_read(&mut self, count: u64, port: u16, size: u8) -> u32 {
        let mut board = self.lock();
        board.ports.push(Access { count, at: u64::from(port), size, written: None });
        board.inputs.pop_front().unwrap_or(u64::MAX) as u32
    }

    fn port_write(&mut self, count: u64, port: u16, size: u8, value: u32) {
        let written = Some(u64::from(value));
        self.lock().ports.push(Access { count, at: u64::from(port), size, written });
    }

    fn mmio_read(&mut self, count: u64, gpa: u64, size: u8) -> u64 {
        let mut board = self.lock();
        board.mmio.push(Access { count, at: gpa, size, written: None });
        board.registers.get(&gpa).copied().unwrap_or(u64::MAX)
    }

    fn mmio_write(&mut self, count: u64, gpa: u64, size: u8, value: u64) {
        self.lock().mmio.push(Access { count, at: gpa, size, written: Some(value) });
    }

    fn pending(&mut self, _: u64, nmi: bool, maskable: bool) -> Option<Interrupt> {
        let board = self.lock();
        if nmi && board.nmi {
            return Some(Interrupt::Nmi);
        }
        (maskable && !board.waiting.is_empty()).then_some(Interrupt::Maskable)
    }

    fn acknowledge(&mut self, count: u64, interrupt: Interrupt) -> Option<u8> {
        let mut board = self.lock();
        match interrupt {
            Interrupt::Nmi => {
                board.nmi = false;
                board.taken.push((count, 2));
                None
            }
            Interrupt::Maskable => {
                let vector = board.waiting.pop_front().filter(|_| !board.withdrawn)?;
                board.taken.push((count, vector));
                Some(vector)
            }
        }
    }

    fn tsc(&mut self, count: u64) -> u64 {
        TSC_START + count
    }

    fn msr_read(&mut self, _: u64, _: u32) -> Option<Result<u64, NoMsr>> {
        None
    }

    fn msr_write(&mut self, _: u64, _: u32, _: u64) -> Option<Result<(), NoMsr>> {
        None
    }

    fn tpr(&mut self) -> u8 {
        self.lock().tpr
    }

    fn set_tpr(&mut self, _: u64, priority: u8) {
        self.lock().tpr = priority;
    }

    fn set_tsc_offset(&mut self, _: u64, _: u64) {}

    fn next_event(&mut self, count: u64) -> u64 {
        let mut board = self.lock();
        if board.eager {
            board.serve(count);
        }
        board.next()
    }

    fn random(&mut self) -> u64 {
        0x0123_4567_89ab_cdef
    }

    fn apic_enabled(&self) -> bool {
        true
    }

    fn apic_id(&self) -> u32 {
        0
    }
}
