//! One machine as Python sees it. Guest code runs without the interpreter lock, in slices, by the thread that has claimed
//! the machine; whoever else comes meanwhile is told that it is running, but for the calls that are made from
//! other threads on purpose. Closing takes everything out of it: what Python keeps afterwards is an empty shell.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, TryLockError};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyAttributeError, PyOverflowError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyTuple};
use pyo3::{PyTraverseError, PyVisit};
use trapgate_devices::{PhysAddr, Port, lock};
use trapgate_engine::mmu::Paging;
use trapgate_engine::translate::{TranslateOptions, TranslatorStats};
use trapgate_engine::{Departures, GuestMemory, HookId, HookKind, Vcpu};
use trapgate_machine::board::{Board, PcBoard};
use trapgate_machine::boot::{Decompression, Protocol};
use trapgate_machine::{
    Clock, ClockKind, Config, Console, Exit, Limits, Machine, MachineError, ParaPayload, Payload, Signal,
    Stats,
};
use trapgate_x86::model::Model;
use trapgate_xen::hypercall::Waiting;

use crate::bell::Bell;
use crate::buffer::{Buffer, Input};
use crate::device::{self, Object, PyDevice, Raised};
use crate::domain::Domain;
use crate::outcome::{UNLIMITED, last, outcome};
use crate::registers::{self, Register};
use crate::{errors, paging};

/// A machine and the ends of it that other threads may touch.
#[pyclass(frozen, module = "trapgate._core")]
#[derive(Debug)]
pub struct Core {
    /// None once it is closed. Held for the length of a slice, and for moments otherwise.
    machine: Mutex<Option<Machine>>,
    /// What of it is reached while it runs; None once it is closed.
    open: Mutex<Option<Open>>,
    console: Arc<Console>,
    /// Output that was given away, and perhaps did not arrive.
    unread: Mutex<Unread>,
    debug: Arc<Console>,
    clock: Arc<Clock>,
    signal: Arc<Signal>,
    /// The objects behind the devices written in Python, for the garbage collector to find.
    objects: Mutex<Vec<Object>>,
    raised: Raised,
    /// The process that made the machine: its RAM is not there in a forked child.
    process: u32,
    claim: Mutex<Claim>,
    released: Condvar,
    /// Somebody asked for a stop, as opposed to a device that raised.
    stop_asked: AtomicBool,
    /// Guest code is running: not even the thread that has claimed the machine may look at it.
    in_slice: AtomicBool,
    /// Counts as of the last slice. Nothing but a slice changes them.
    stats: Mutex<Counts>,
    /// The exit after which the machine cannot run on.
    ended: Mutex<Option<Exit>>,
}

#[derive(Clone, Debug)]
struct Open {
    memory: Arc<GuestMemory>,
    board: Board,
}

impl Open {
    fn pc(self) -> PyResult<Arc<PcBoard>> {
        match self.board {
            Board::Pc(board) => Ok(board),
            Board::XenPv(_) => Err(errors::state("a para-virtual domain has no such hardware")),
        }
    }
}

/// What the machine has done, and its translator, if that is what runs guest code.
#[derive(Clone, Copy, Debug)]
struct Counts {
    machine: Stats,
    departures: Departures,
    translator: Option<TranslatorStats>,
}

impl Counts {
    fn of(machine: &Machine) -> Self {
        Counts {
            machine: machine.stats(),
            departures: machine.cpu().departures,
            translator: machine.translator_stats(),
        }
    }
}

/// Bytes of the console, and the number of the first one.
#[derive(Debug, Default)]
struct Unread {
    first: u64,
    bytes: Vec<u8>,
}

/// Which thread runs the machine, and whether it is still to be had.
#[derive(Debug, Default)]
struct Claim {
    runner: Option<ThreadId>,
    closing: bool,
}

/// A hook that was hit: the hook, address, size, value and the instruction that did it.
type Event = (u32, u64, u64, u64, u64);

/// A hypercall that waits: number, arguments, and where the result goes.
type Pending = (u32, [u64; 5], Option<u64>);

/// How long to wait before trying again for what another thread holds for a moment.
const MOMENT: Duration = Duration::from_micros(50);

/// Says for its lifetime that guest code runs.
struct InSlice<'a>(&'a AtomicBool);

impl<'a> InSlice<'a> {
    fn begin(flag: &'a AtomicBool) -> Self {
        flag.store(true, Ordering::Relaxed);
        InSlice(flag)
    }
}

impl Drop for InSlice<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

fn closed() -> PyErr {
    errors::state("the machine is closed")
}

fn checked(address: u64, size: usize) -> PyErr {
    errors::memory(format!(
        "{size:#x} bytes at {address:#x} touch a page table or descriptors that the guest has in use, which only its \
         hypercalls may change"
    ))
}

fn broken() -> PyErr {
    errors::internal("the machine stopped in the middle of an instruction; it cannot be used on")
}

impl Core {
    /// Fails in a forked child, in which RAM is not mapped and other threads are not there.
    fn at_home(&self) -> PyResult<()> {
        if self.process == std::process::id() {
            Ok(())
        } else {
            Err(errors::state("the machine stayed behind in the process that made it"))
        }
    }

    fn open(&self) -> PyResult<Open> {
        self.at_home()?;
        lock(&self.open).clone().ok_or_else(closed)
    }

    fn memory(&self) -> PyResult<Arc<GuestMemory>> {
        Ok(self.open()?.memory)
    }

    /// Fails while the machine runs: of the thread that runs it, between a slice's begin and end.
    fn idle(&self) -> PyResult<()> {
        self.at_home()?;
        let here = match lock(&self.claim).runner {
            None => true,
            Some(runner) => runner == thread::current().id() && !self.in_slice.load(Ordering::Relaxed),
        };
        if here { Ok(()) } else { Err(errors::state("the machine is running")) }
    }

    /// Does something with the machine, unless it runs; `None` if another thread holds it for the moment.
    fn attempt<R>(&self, act: &mut impl FnMut(&mut Machine) -> R) -> PyResult<Option<R>> {
        self.idle()?;
        match self.machine.try_lock() {
            Ok(mut machine) => machine.as_mut().map(act).map(Some).ok_or_else(closed),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Poisoned(_)) => Err(broken()),
        }
    }

    /// Does something short with the machine, unless it runs.
    fn with<R>(&self, py: Python<'_>, mut act: impl FnMut(&mut Machine) -> R) -> PyResult<R> {
        loop {
            if let Some(result) = self.attempt(&mut act)? {
                return Ok(result);
            }
            pause(py)?;
        }
    }

    fn with_cpu<R>(&self, py: Python<'_>, mut act: impl FnMut(&mut Vcpu) -> R) -> PyResult<R> {
        self.with(py, |machine| act(machine.cpu_mut()))
    }

    /// What translations depend on, as of now.
    fn paging(&self, py: Python<'_>) -> PyResult<(Arc<GuestMemory>, Paging)> {
        Ok((self.memory()?, self.with(py, |machine| machine.cpu().paging())?))
    }

    /// Runs until a limit or an event.
    fn slice(&self, limits: &Limits) -> PyResult<Exit> {
        self.idle()?;
        if lock(&self.claim).runner.is_none() {
            return Err(errors::internal("a machine runs that nobody has claimed"));
        }
        let end = limits.wall.and_then(|time| Instant::now().checked_add(time));
        let mut machine = loop {
            match self.machine.try_lock() {
                Ok(machine) => break machine,
                Err(TryLockError::Poisoned(_)) => return Err(broken()),
                // Somebody looks at it. Should that take long, signals are to be served meanwhile.
                Err(TryLockError::WouldBlock) if end.is_some_and(|end| Instant::now() >= end) => {
                    return Ok(Exit::WallTimePassed);
                }
                Err(TryLockError::WouldBlock) => thread::sleep(MOMENT),
            }
        };
        let machine = machine.as_mut().ok_or_else(closed)?;
        // Whoever lost the machine's end to an exception is told again.
        let mut ended = lock(&self.ended);
        if let Some(exit) = *ended {
            return Ok(exit);
        }
        let exit = {
            let _in_slice = InSlice::begin(&self.in_slice);
            machine.run(limits)
        };
        *lock(&self.stats) = Counts::of(machine);
        if last(exit) {
            *ended = Some(exit);
        }
        Ok(exit)
    }

    /// Runs a slice without the interpreter lock, and gives its outcome to Python.
    fn run_slice(&self, py: Python<'_>, limits: &Limits) -> PyResult<(String, u64, u64)> {
        // A panic is a bug of ours, which must not reach Python as anything but an exception. It poisons the lock.
        let exit = py.detach(|| catch_unwind(AssertUnwindSafe(|| self.slice(limits))));
        let exit =
            exit.map_err(|_| errors::internal("the monitor panicked; the machine cannot be used on"))??;
        let asked = exit == Exit::Stopped && self.stop_asked.swap(false, Ordering::AcqRel);
        match lock(&self.raised).take() {
            Some(error) => Err(error),
            // The stop of a device that raised before: its run ended otherwise meanwhile.
            None if exit == Exit::Stopped && !asked => Ok(outcome(Exit::WallTimePassed)),
            None => Ok(outcome(exit)),
        }
    }

    /// Forgets the objects of all devices: what they are bound to may hold this machine.
    fn release_objects(&self) {
        // Finalizers may run here, so no lock is held.
        let objects = std::mem::take(&mut *lock(&self.objects));
        objects.iter().for_each(device::forget);
    }

    fn register_named(name: &str) -> PyResult<Register> {
        Register::by_name(name)
            .ok_or_else(|| PyAttributeError::new_err(format!("there is no register {name}")))
    }
}

#[pymethods]
impl Core {
    #[new]
    #[pyo3(signature = (*, mode, domid, maximum_memory, memory, cpu, engine, shadow_paging, kernel, initrd, append, protocol, virtual_clock, seed, debug_console, debug_exit))]
    #[expect(
        clippy::too_many_arguments,
        reason = "keyword-only, and checked by the config that they come from"
    )]
    fn new(
        py: Python<'_>,
        mode: &str,
        domid: u16,
        maximum_memory: u64,
        memory: u64,
        cpu: &str,
        engine: &str,
        shadow_paging: bool,
        kernel: &[u8],
        initrd: Option<&[u8]>,
        append: &str,
        protocol: &str,
        virtual_clock: bool,
        seed: u64,
        debug_console: bool,
        debug_exit: bool,
    ) -> PyResult<Self> {
        let protocol: Protocol = protocol.parse().map_err(errors::config)?;
        let host_time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        let model =
            Model::by_name(cpu).ok_or_else(|| errors::config(format!("there is no CPU model {cpu}")))?;
        let config = Config {
            memory,
            model: *model,
            clock: if virtual_clock { ClockKind::Virtual } else { ClockKind::Real },
            seed,
            // A virtual clock owes nothing to the host: it starts at the same moment every time.
            epoch_seconds: if virtual_clock { VIRTUAL_EPOCH } else { host_time as i64 },
            debug_console,
            debug_exit,
        };
        let make = || match mode {
            "para" => {
                let payload = ParaPayload { kernel, initrd, command_line: append, domid, maximum_memory };
                Machine::new_para(&config, &payload)
            }
            _ => {
                let payload = Payload {
                    kernel,
                    initrd,
                    command_line: append,
                    protocol,
                    decompression: Decompression::Host,
                };
                Machine::new(&config, &payload)
            }
        };
        let mut machine = py.detach(make).map_err(|error| match error {
            MachineError::Boot(error) => errors::config(error),
            MachineError::Memory(error) => errors::host(error),
            other => errors::internal(other),
        })?;
        choose_engine(&mut machine, engine)?;
        machine.set_shadow_paging(shadow_paging);
        Ok(Core {
            open: Mutex::new(Some(Open {
                memory: Arc::clone(machine.cpu().memory()),
                board: machine.board().clone(),
            })),
            console: Arc::clone(machine.console()),
            unread: Mutex::default(),
            debug: Arc::clone(machine.debug_console()),
            clock: Arc::clone(machine.clock()),
            signal: Arc::clone(machine.signal()),
            raised: Raised::default(),
            objects: Mutex::default(),
            process: std::process::id(),
            claim: Mutex::default(),
            released: Condvar::new(),
            stop_asked: AtomicBool::new(false),
            in_slice: AtomicBool::new(false),
            stats: Mutex::new(Counts::of(&machine)),
            ended: Mutex::new(None),
            machine: Mutex::new(Some(machine)),
        })
    }

    /// Claim the machine for this thread, to run it.
    fn __enter__(&self) -> PyResult<()> {
        self.at_home()?;
        let mut claim = lock(&self.claim);
        if claim.closing {
            return Err(closed());
        }
        if claim.runner.is_some() {
            return Err(errors::state("the machine is running already"));
        }
        claim.runner = Some(thread::current().id());
        Ok(())
    }

    /// Give up the claim.
    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, _exception: &Bound<'_, PyTuple>) {
        let mut claim = lock(&self.claim);
        if claim.runner == Some(thread::current().id()) {
            claim.runner = None;
            self.released.notify_all();
        }
    }

    /// Whether a thread has claimed the machine.
    #[getter]
    fn running(&self) -> bool {
        self.at_home().is_ok() && lock(&self.claim).runner.is_some()
    }

    /// Stop the machine, wait until whoever has claimed it is done, and give up all that it holds.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        if self.at_home().is_err() {
            return Ok(());
        }
        loop {
            {
                let mut claim = lock(&self.claim);
                if claim.runner == Some(thread::current().id()) {
                    return Err(errors::state(
                        "a machine cannot be closed from within its own run; stop() it, and close it when it \
                         has returned",
                    ));
                }
                claim.closing = true;
                if claim.runner.is_none() {
                    break;
                }
            }
            self.stop();
            py.detach(|| {
                let claim = lock(&self.claim);
                let waiting = |claim: &mut Claim| claim.runner.is_some();
                drop(self.released.wait_timeout_while(claim, Duration::from_millis(20), waiting));
            });
            py.check_signals()?;
        }
        lock(&self.open).take();
        self.release_objects();
        loop {
            let taken = py.detach(|| {
                let machine = match self.machine.try_lock() {
                    Ok(mut machine) => machine.take(),
                    Err(TryLockError::Poisoned(machine)) => machine.into_inner().take(),
                    Err(TryLockError::WouldBlock) => return false,
                };
                drop(machine);
                true
            });
            if taken {
                return Ok(());
            }
            pause(py)?;
        }
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        // Must not wait. What is in use right now is reachable anyway.
        let Ok(objects) = self.objects.try_lock() else { return Ok(()) };
        objects.iter().try_for_each(|object| match object.try_lock() {
            Ok(object) => visit.call(&*object),
            Err(_) => Ok(()),
        })
    }

    fn __clear__(&self) {
        self.release_objects();
    }

    /// Run without the interpreter lock until something happens, at most for a number of milliseconds.
    fn run(
        &self,
        py: Python<'_>,
        max_icount: u64,
        deadline: u64,
        milliseconds: u64,
        watch_console: bool,
    ) -> PyResult<(String, u64, u64)> {
        self.run_slice(
            py,
            &Limits {
                count: (max_icount != UNLIMITED).then_some(max_icount),
                time: (deadline != UNLIMITED).then_some(deadline),
                wall: Some(Duration::from_millis(milliseconds)),
                watch_console,
                scheduled: false,
            },
        )
    }

    /// Run as `run` does, but give the thread back when the guest waits, and let its clock go on afterwards.
    fn slice_run(
        &self,
        py: Python<'_>,
        microseconds: u64,
        watch_console: bool,
    ) -> PyResult<(String, u64, u64)> {
        let wall = Some(Duration::from_micros(microseconds));
        self.run_slice(py, &Limits { wall, watch_console, scheduled: true, ..Limits::default() })
    }

    /// Let real time stand still for the guest, until it runs again.
    fn stop_clock(&self) {
        self.clock.stop();
    }

    /// Have a bell rung by a number when the guest has something to do after it gave its thread back.
    #[pyo3(signature = (bell, number=0))]
    fn set_bell(&self, bell: Option<&Bell>, number: u64) {
        self.signal.set_bell(bell.map(|bell| (Arc::clone(bell.shared()), number)));
    }
    /// End the running slice, or the next one; from any thread.
    fn stop(&self) {
        self.stop_asked.store(true, Ordering::Release);
        self.signal.stop();
    }

    /// Instructions completed; while the machine runs, as of a moment ago.
    #[getter]
    fn icount(&self) -> u64 {
        lock(&self.stats).machine.instructions
    }

    /// Machine time in nanoseconds; of a virtual clock while the machine runs, as of a moment ago.
    #[getter]
    fn now(&self) -> u64 {
        match self.clock.kind() {
            ClockKind::Real => self.clock.now(0),
            ClockKind::Virtual => lock(&self.stats).machine.nanoseconds,
        }
    }

    /// Counts of what the machine has done so far; while it runs, as of a moment ago.
    fn stats(&self) -> BTreeMap<&'static str, u64> {
        let stats = lock(&self.stats).machine;
        BTreeMap::from([
            ("instructions", stats.instructions),
            ("nanoseconds", stats.nanoseconds),
            ("blocks_decoded", stats.blocks_decoded),
            ("accesses", stats.accesses),
            ("unmapped_port_reads", stats.unmapped_port_reads),
            ("unmapped_port_writes", stats.unmapped_port_writes),
            ("unmapped_memory_reads", stats.unmapped_memory_reads),
            ("unmapped_memory_writes", stats.unmapped_memory_writes),
        ])
    }

    /// How often guest code was left, by reason; while it runs, as of a moment ago.
    fn departures(&self) -> BTreeMap<&'static str, u64> {
        let left = lock(&self.stats).departures;
        BTreeMap::from([
            ("system_calls", left.system_calls),
            ("returns", left.returns),
            ("hypercalls", left.hypercalls),
            ("privileged", left.privileged),
            ("ports", left.ports),
            ("device_memory", left.device_memory),
            ("page_faults", left.page_faults),
            ("exceptions", left.exceptions),
            ("interrupts", left.interrupts),
            ("trapped_stores", left.table_stores),
            ("hidden_faults", left.hidden_faults),
        ])
    }

    /// Counts of what the translator has done so far, if it is what runs guest code.
    fn translator_stats(&self) -> Option<BTreeMap<&'static str, u64>> {
        let stats = lock(&self.stats).translator?;
        Some(BTreeMap::from([
            ("units", stats.units),
            ("code_bytes", stats.code_bytes),
            ("entries", stats.entries),
            ("interpreted", stats.interpreted),
            ("misses", stats.misses),
            ("flushes", stats.flushes),
            ("in_place", stats.in_place),
        ]))
    }

    /// Hash registers, RAM and devices.
    fn digest<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        loop {
            if let Some(digest) = py.detach(|| self.attempt(&mut |machine| machine.digest()))? {
                return Ok(PyBytes::new(py, &digest));
            }
            pause(py)?;
        }
    }

    fn register(&self, py: Python<'_>, name: &str) -> PyResult<u128> {
        let register = Core::register_named(name)?;
        self.with_cpu(py, |cpu| register.read(cpu))
    }

    fn set_register(&self, py: Python<'_>, name: &str, value: &Bound<'_, PyAny>) -> PyResult<()> {
        let register = Core::register_named(name)?;
        let bits = register.bits();
        let number = value.extract::<u128>().ok().filter(|number| bits == 128 || number >> bits == 0);
        let number = number.ok_or_else(|| {
            PyOverflowError::new_err(format!(
                "{name} holds {bits} bits, counted from 0: the value does not fit"
            ))
        })?;
        self.with_cpu(py, |cpu| register.write(cpu, number))
    }

    #[staticmethod]
    fn register_names() -> Vec<String> {
        registers::names()
    }

    /// Give start and length of each range of RAM.
    fn regions(&self) -> PyResult<Vec<(u64, u64)>> {
        Ok(self.memory()?.regions().map(|region| (region.start, region.len)).collect())
    }

    fn read<'py>(&self, py: Python<'py>, address: u64, size: usize) -> PyResult<Bound<'py, PyBytes>> {
        let memory = self.memory()?;
        if size as u64 > memory.len() {
            return Err(errors::memory(format!("{size:#x} bytes are more than the machine's RAM")));
        }
        PyBytes::new_with(py, size, |bytes| memory.read(address, bytes).map_err(errors::memory))
    }

    /// Write all of `data` or nothing, which may be a view of this very memory.
    fn write(&self, py: Python<'_>, address: u64, data: &Bound<'_, PyAny>) -> PyResult<()> {
        let (memory, data) = (self.memory()?, PyBuffer::<u8>::get(data)?);
        let size = data.len_bytes();
        if size as u64 > memory.len() {
            return Err(errors::memory(format!("{size:#x} bytes are more than the machine's RAM")));
        }
        let mut bytes = errors::room(size)?;
        bytes.resize(size, 0);
        data.copy_to_slice(py, &mut bytes)?;
        if let Some(board) = self.open()?.board.xen_pv() {
            let written = py.detach(|| board.domain.write_memory(address, &bytes)).map_err(errors::memory)?;
            return if written { Ok(()) } else { Err(checked(address, size)) };
        }
        py.detach(|| memory.write(address, &bytes)).map_err(errors::memory)
    }

    fn view(&self, address: u64, size: u64) -> PyResult<Buffer> {
        Buffer::from_ram(&self.memory()?, address, size)
    }

    /// Fail while the machine runs.
    fn check_idle(&self) -> PyResult<()> {
        self.idle()
    }

    fn translate<'py>(&self, py: Python<'py>, linear: u64) -> PyResult<Bound<'py, PyDict>> {
        let (memory, paging) = self.paging(py)?;
        paging::explain(py, &memory, &paging, linear)
    }

    /// Translate the bytes of 64-bit addresses into those of physical addresses, all ones where unmapped.
    fn translate_many(&self, py: Python<'_>, linear: &Bound<'_, PyAny>) -> PyResult<Buffer> {
        let (memory, paging) = self.paging(py)?;
        Ok(Buffer::from_bytes(paging::translate_many(py, &memory, &paging, &Input::new(linear)?)?))
    }

    /// Give linear address, physical address, size and rights of each range that is mapped.
    fn mappings<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let (memory, paging) = self.paging(py)?;
        paging::mappings(py, &memory, &paging)
    }

    fn add_hook(&self, py: Python<'_>, kind: &str, first: u64, last: u64) -> PyResult<u32> {
        let kind = match kind {
            "exec" => HookKind::Exec,
            "mem_read" => HookKind::MemRead,
            "mem_write" => HookKind::MemWrite,
            "port_read" => HookKind::PortRead,
            "port_write" => HookKind::PortWrite,
            "interrupt" => HookKind::Interrupt,
            "cpuid" => HookKind::Cpuid,
            other => return Err(errors::config(format!("there is no hook on {other}"))),
        };
        self.with_cpu(py, |cpu| cpu.add_hook(kind, first, last).0)
    }

    /// Remove a hook; of a machine that is closed, none is left.
    fn remove_hook(&self, py: Python<'_>, hook: u32) -> PyResult<()> {
        if lock(&self.claim).closing && lock(&self.open).is_none() {
            return Ok(());
        }
        self.with_cpu(py, |cpu| cpu.remove_hook(HookId(hook)))?;
        Ok(())
    }

    /// Give the hooks that were hit, in order: the hook, address, size, value and the instruction that did it.
    fn take_events(&self, py: Python<'_>) -> PyResult<Vec<Event>> {
        let events = self.with_cpu(py, Vcpu::take_hook_events)?;
        Ok(events.iter().map(|e| (e.hook.0, e.at, e.size, e.value, e.rip.unwrap_or_default())).collect())
    }

    /// Give what the guest has written to its console from the byte of that number on; what was before it is forgotten.
    /// Should the caller not get so far as to note what it was given, it asks for the same again.
    #[pyo3(signature = (from, /))]
    fn console_take<'py>(&self, py: Python<'py>, from: u64) -> Bound<'py, PyBytes> {
        let mut unread = lock(&self.unread);
        let known = usize::try_from(from.saturating_sub(unread.first)).unwrap_or(usize::MAX);
        let known = known.min(unread.bytes.len());
        unread.bytes.drain(..known);
        unread.first += known as u64;
        unread.bytes.extend(self.console.take());
        PyBytes::new(py, &unread.bytes)
    }

    /// Give what the guest has written to the debug console since the last call.
    fn debug_take<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.debug.take())
    }

    /// Put a device written in Python on ports or into the address space.
    fn attach(&self, space: &str, base: u64, size: u64, device: Py<PyAny>) -> PyResult<()> {
        self.idle()?;
        let board = self.open()?.pc()?;
        let object = Object::new(Mutex::new(Some(device)));
        let device = Arc::new(Mutex::new(PyDevice::new(&object, &self.raised, &self.signal)));
        let attached = match (space, u16::try_from(base)) {
            ("ports", Ok(port)) => board.ports.insert(Port(port), size, &device, 0),
            ("mmio", _) => board.memory.insert(PhysAddr(base), size, &device, 0),
            _ => return Err(errors::config(format!("{base:#x} is no place for a device on {space}"))),
        };
        attached.map_err(errors::config)?;
        lock(&self.objects).push(object);
        Ok(())
    }

    /// Give the domain, if the guest is para-virtual.
    fn domain(&self) -> PyResult<Option<Domain>> {
        Ok(self.open()?.board.xen_pv().map(|board| Domain::new(board, &self.signal)))
    }

    /// Give the hypercall that waits for a handler outside: number, arguments, and where the result goes.
    fn take_hypercall(&self) -> PyResult<Option<Pending>> {
        let open = self.open()?;
        let waiting = open.board.xen_pv().and_then(|board| board.domain.hypercalls.take_waiting());
        Ok(waiting.map(|waiting| (waiting.number, waiting.args, waiting.result_at)))
    }

    /// Give a hypercall its result.
    fn finish_hypercall(&self, py: Python<'_>, result_at: Option<u64>, value: u64) -> PyResult<()> {
        let waiting = Waiting { number: 0, args: [0; 5], result_at };
        let done = self.with(py, |machine| machine.finish_hypercall(&waiting, value))?;
        done.map_err(|_| errors::memory("the guest has taken the place of a hypercall's result away"))
    }

    /// Do a hypercall as the handler of ours does it, with other arguments if need be; None: it takes the result's place
    /// itself.
    fn native_hypercall(&self, py: Python<'_>, number: u32, args: [u64; 5]) -> PyResult<Option<u64>> {
        self.with(py, |machine| machine.native_hypercall(number, args))?
            .map_err(|exit| errors::state(format!("the hypercall ended the domain: {exit:?}")))
    }

    /// Press the power button; from any thread.
    fn press_power_button(&self, py: Python<'_>) -> PyResult<()> {
        let board = self.open()?.pc()?;
        py.detach(|| board.press_power_button());
        Ok(())
    }

    /// Raise or lower an interrupt line of the ISA bus; from any thread.
    fn set_irq(&self, py: Python<'_>, line: u8, level: bool) -> PyResult<()> {
        let board = self.open()?.pc()?;
        // Another thread may hold the interrupt controllers while it waits for the interpreter in a device.
        py.detach(|| board.irq_line(line).set(level));
        Ok(())
    }

    /// Queue input for the guest's console, as much as there is room for; from any thread.
    fn console_send(&self, data: &[u8]) -> usize {
        self.console.send(data)
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        // In a forked child the place of RAM is free, and may hold something else by now: it must not be unmapped.
        if self.at_home().is_err()
            && let Ok(open) = self.open.get_mut()
            && let Some(open) = open.take()
        {
            std::mem::forget(open);
        }
    }
}

/// Lets the translator run guest code if it is asked for, or if nothing is said and this host can.
fn choose_engine(machine: &mut Machine, engine: &str) -> PyResult<()> {
    match engine {
        "interpret" => Ok(()),
        "auto" | "translate" => {
            let possible = machine.set_translate(Some(TranslateOptions::default()));
            if possible || engine == "auto" {
                return Ok(());
            }
            Err(errors::host(
                "this host cannot run translated code: its processor lacks instructions for it, or executable \
                 memory is forbidden; use engine 'interpret'",
            ))
        }
        other => Err(errors::config(format!("there is no engine {other}"))),
    }
}

/// Waits a moment for another thread, and serves signals.
fn pause(py: Python<'_>) -> PyResult<()> {
    py.detach(|| thread::sleep(MOMENT));
    py.check_signals()
}

/// Where the virtual clock's real-time clock starts: 2000-01-01.
const VIRTUAL_EPOCH: i64 = 946_684_800;
