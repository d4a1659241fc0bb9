//! One machine as Python sees it. Guest code runs without the interpreter lock; whoever comes meanwhile is told that the
//! machine is running, but for the few calls that are made from other threads on purpose.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyAttributeError, PyOverflowError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use trapgate_devices::{PhysAddr, Port, lock};
use trapgate_engine::{GuestMemory, HookId, HookKind};
use trapgate_machine::board::PcBoard;
use trapgate_machine::boot::{Decompression, Protocol};
use trapgate_machine::{ClockKind, Config, Console, Exit, Limits, Machine, MachineError, Payload, Signal};
use trapgate_x86::model::Model;

use crate::buffer::Buffer;
use crate::device::{PyDevice, Raised};
use crate::registers::{self, Register};
use crate::{errors, paging};

/// A machine and the ends of it that other threads may touch.
#[pyclass(frozen, module = "trapgate._core")]
#[derive(Debug)]
pub struct Core {
    machine: Mutex<Machine>,
    memory: Arc<GuestMemory>,
    console: Arc<Console>,
    debug: Arc<Console>,
    signal: Arc<Signal>,
    board: Arc<PcBoard>,
    raised: Raised,
    /// The process that made the machine: its RAM is not there in a forked child.
    process: u32,
    /// Instructions and nanoseconds as of the last slice, for readers while the machine runs.
    icount: AtomicU64,
    now: AtomicU64,
}

/// A hook that was hit: the hook, address, size, value and the instruction that did it.
type Event = (u32, u64, u64, u64, u64);

/// Stands for "no limit" in the numbers of [`Core::run`].
const UNLIMITED: u64 = u64::MAX;

impl Core {
    /// The machine, unless it is running on another thread.
    fn idle(&self) -> PyResult<MutexGuard<'_, Machine>> {
        self.ram()?;
        match self.machine.try_lock() {
            Ok(machine) => Ok(machine),
            Err(TryLockError::WouldBlock) => Err(errors::state("the machine is running")),
            Err(TryLockError::Poisoned(_)) => Err(errors::internal(
                "the machine stopped in the middle of an instruction; it cannot be used on",
            )),
        }
    }

    /// The guest's memory, unless this is a forked child, in which it is not mapped.
    fn ram(&self) -> PyResult<&Arc<GuestMemory>> {
        if self.process == std::process::id() {
            Ok(&self.memory)
        } else {
            Err(errors::state("the machine stayed behind in the process that made it"))
        }
    }

    /// Runs until a limit or an event.
    fn slice(&self, limits: &Limits) -> PyResult<Exit> {
        let mut machine = self.idle()?;
        let exit = machine.run(limits);
        self.icount.store(machine.count(), Ordering::Relaxed);
        self.now.store(machine.now(), Ordering::Relaxed);
        Ok(exit)
    }

    fn register_named(name: &str) -> PyResult<Register> {
        Register::by_name(name)
            .ok_or_else(|| PyAttributeError::new_err(format!("there is no register {name}")))
    }
}

#[pymethods]
impl Core {
    #[new]
    #[pyo3(signature = (*, memory, cpu, kernel, initrd, append, protocol, virtual_clock, seed, debug_console, debug_exit))]
    #[expect(
        clippy::too_many_arguments,
        reason = "keyword-only, and checked by the config that they come from"
    )]
    fn new(
        py: Python<'_>,
        memory: u64,
        cpu: &str,
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
        let payload =
            Payload { kernel, initrd, command_line: append, protocol, decompression: Decompression::Host };
        let machine = py.detach(|| Machine::new(&config, &payload)).map_err(|error| match error {
            MachineError::Boot(error) => errors::config(error),
            MachineError::Memory(error) => errors::host(error),
            other => errors::internal(other),
        })?;
        Ok(Core {
            memory: Arc::clone(machine.cpu().memory()),
            console: Arc::clone(machine.console()),
            debug: Arc::clone(machine.debug_console()),
            signal: Arc::clone(machine.signal()),
            board: Arc::clone(machine.board()),
            raised: Raised::default(),
            process: std::process::id(),
            icount: AtomicU64::new(0),
            now: AtomicU64::new(0),
            machine: Mutex::new(machine),
        })
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
        let limits = Limits {
            count: (max_icount != UNLIMITED).then_some(max_icount),
            time: (deadline != UNLIMITED).then_some(deadline),
            wall: Some(Duration::from_millis(milliseconds)),
            watch_console,
        };
        // A panic is a bug of ours, which must not reach Python as anything but an exception. It poisons the lock.
        let exit = py.detach(|| catch_unwind(AssertUnwindSafe(|| self.slice(&limits))));
        let exit =
            exit.map_err(|_| errors::internal("the monitor panicked; the machine cannot be used on"))??;
        match lock(&self.raised).take() {
            Some(error) => Err(error),
            None => Ok(outcome(exit)),
        }
    }

    /// End the running slice, or the next one; from any thread.
    fn stop(&self) {
        self.signal.stop();
    }

    /// Instructions completed; while the machine runs, as of a moment ago.
    #[getter]
    fn icount(&self) -> u64 {
        self.idle().map_or_else(|_| self.icount.load(Ordering::Relaxed), |machine| machine.count())
    }

    /// Machine time in nanoseconds; while the machine runs, as of a moment ago.
    #[getter]
    fn now(&self) -> u64 {
        self.idle().map_or_else(|_| self.now.load(Ordering::Relaxed), |machine| machine.now())
    }

    /// Counts of what the machine has done so far.
    fn stats(&self) -> PyResult<BTreeMap<&'static str, u64>> {
        let stats = self.idle()?.stats();
        Ok(BTreeMap::from([
            ("instructions", stats.instructions),
            ("nanoseconds", stats.nanoseconds),
            ("blocks_decoded", stats.blocks_decoded),
            ("unmapped_port_reads", stats.unmapped_port_reads),
            ("unmapped_port_writes", stats.unmapped_port_writes),
            ("unmapped_memory_reads", stats.unmapped_memory_reads),
            ("unmapped_memory_writes", stats.unmapped_memory_writes),
        ]))
    }

    /// Hash registers, RAM and devices.
    fn digest<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let digest = py.detach(|| Ok::<_, PyErr>(self.idle()?.digest()))?;
        Ok(PyBytes::new(py, &digest))
    }

    fn register(&self, name: &str) -> PyResult<u128> {
        Ok(Core::register_named(name)?.read(self.idle()?.cpu_mut()))
    }

    fn set_register(&self, name: &str, value: &Bound<'_, PyAny>) -> PyResult<()> {
        let register = Core::register_named(name)?;
        let bits = register.bits();
        let value = value.extract::<u128>().ok().filter(|value| bits == 128 || value >> bits == 0);
        let value = value.ok_or_else(|| {
            PyOverflowError::new_err(format!(
                "{name} holds {bits} bits, counted from 0: the value does not fit"
            ))
        })?;
        register.write(self.idle()?.cpu_mut(), value);
        Ok(())
    }

    #[staticmethod]
    fn register_names() -> Vec<String> {
        registers::names()
    }

    /// Give start and length of each range of RAM.
    fn regions(&self) -> Vec<(u64, u64)> {
        self.memory.regions().map(|region| (region.start, region.len)).collect()
    }

    fn read<'py>(&self, py: Python<'py>, address: u64, size: usize) -> PyResult<Bound<'py, PyBytes>> {
        let memory = self.ram()?;
        if size as u64 > memory.len() {
            return Err(errors::memory(format!("{size:#x} bytes are more than the machine's RAM")));
        }
        PyBytes::new_with(py, size, |bytes| memory.read(address, bytes).map_err(errors::memory))
    }

    fn write(&self, py: Python<'_>, address: u64, data: &Bound<'_, PyAny>) -> PyResult<()> {
        let bytes = PyBuffer::<u8>::get(data)?.to_vec(py)?;
        self.ram()?.write(address, &bytes).map_err(errors::memory)
    }

    fn view(&self, address: u64, size: u64, writable: bool) -> PyResult<Buffer> {
        if writable {
            drop(self.idle()?);
        }
        Buffer::from_ram(self.ram()?, address, size, writable)
    }

    /// Forget decoded code and cached translations of a range that was written through a view.
    fn written(&self, address: u64, size: u64) {
        let mut page = address & !0xfff;
        while page < address.saturating_add(size) {
            if let Some(host) = self.memory.page(page) {
                self.memory.page_written(host.offset);
            }
            page = page.saturating_add(4096);
        }
    }

    fn translate<'py>(&self, py: Python<'py>, linear: u64) -> PyResult<Bound<'py, PyDict>> {
        let paging = self.idle()?.cpu().paging();
        paging::explain(py, &self.memory, &paging, linear)
    }

    /// Translate an array of 64-bit addresses into one of physical addresses, all ones where unmapped.
    fn translate_many(&self, py: Python<'_>, linear: &Bound<'_, PyAny>) -> PyResult<Buffer> {
        let addresses = PyBuffer::<u64>::get(linear)?.to_vec(py)?;
        let paging = self.idle()?.cpu().paging();
        Ok(Buffer::from_bytes(py.detach(|| paging::translate_many(&self.memory, &paging, &addresses))))
    }

    /// Give linear address, physical address, size and rights of each range that is mapped.
    fn mappings(&self, py: Python<'_>) -> PyResult<Vec<paging::Range>> {
        let paging = self.idle()?.cpu().paging();
        py.detach(|| paging::mappings(&self.memory, &paging))
    }

    fn add_hook(&self, kind: &str, first: u64, last: u64) -> PyResult<u32> {
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
        Ok(self.idle()?.cpu_mut().add_hook(kind, first, last).0)
    }

    fn remove_hook(&self, hook: u32) -> PyResult<()> {
        self.idle()?.cpu_mut().remove_hook(HookId(hook));
        Ok(())
    }

    /// Give the hooks that were hit, in order: the hook, address, size, value and the instruction that did it.
    fn take_events(&self) -> PyResult<Vec<Event>> {
        let events = self.idle()?.cpu_mut().take_hook_events();
        Ok(events.iter().map(|e| (e.hook.0, e.at, e.size, e.value, e.rip.unwrap_or_default())).collect())
    }

    /// Give what the guest has written to its console since the last call.
    fn console_take<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.console.take())
    }

    /// Give what the guest has written to the debug console since the last call.
    fn debug_take<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.debug.take())
    }

    /// Put a device written in Python on ports or into the address space.
    fn attach(&self, space: &str, base: u64, size: u64, device: Py<PyAny>) -> PyResult<()> {
        drop(self.idle()?);
        let device = Arc::new(Mutex::new(PyDevice::new(device, &self.raised, &self.signal)));
        let attached = match (space, u16::try_from(base)) {
            ("ports", Ok(port)) => self.board.ports.insert(Port(port), size, &device, 0),
            ("mmio", _) => self.board.memory.insert(PhysAddr(base), size, &device, 0),
            _ => return Err(errors::config(format!("{base:#x} is no place for a device on {space}"))),
        };
        attached.map_err(errors::config)
    }

    /// Press the power button; from any thread.
    fn press_power_button(&self, py: Python<'_>) {
        py.detach(|| self.board.press_power_button());
    }

    /// Raise or lower an interrupt line of the ISA bus; from any thread.
    fn set_irq(&self, py: Python<'_>, line: u8, level: bool) {
        // Another thread may hold the interrupt controllers while it waits for the interpreter in a device.
        py.detach(|| self.board.irq_line(line).set(level));
    }

    /// Queue input for the guest's console, as much as there is room for; from any thread.
    fn console_send(&self, data: &[u8]) -> usize {
        self.console.send(data)
    }
}

/// Where the virtual clock's real-time clock starts: 2000-01-01.
const VIRTUAL_EPOCH: i64 = 946_684_800;

/// An exit as `trapgate.vm` takes it: its kind and up to two numbers that say more.
fn outcome(exit: Exit) -> (String, u64, u64) {
    let (kind, first, second) = match exit {
        Exit::CountReached => ("budget", 0, 0),
        Exit::TimeReached => ("deadline", 0, 0),
        Exit::WallTimePassed => ("slice", 0, 0),
        Exit::Stopped => ("stopped", 0, 0),
        Exit::ConsoleOutput => ("console", 0, 0),
        Exit::PoweredOff => ("shutdown", 0, 0),
        Exit::Reset => ("reset", 0, 0),
        Exit::DebugExit(value) => ("debug_exit", u64::from(value), 0),
        Exit::Halted => ("halted", 0, 0),
        Exit::Hook => ("hook", 0, 0),
        Exit::TripleFault { rip, vector } => ("triple_fault", rip, u64::from(vector)),
        Exit::Unsupported { what, rip } => return (format!("unsupported: {what}"), rip, 0),
        other => return (format!("unsupported: {other:?}"), 0, 0),
    };
    (kind.to_owned(), first, second)
}
