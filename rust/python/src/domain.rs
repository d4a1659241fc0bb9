//! The para-virtual domain of a machine as Python sees it: doorbells, events, hypercall table, memory. Everything here may be
//! called by any thread.

use std::sync::Arc;

use pyo3::prelude::*;
use trapgate_machine::Signal;
use trapgate_machine::board::XenPvBoard;
use trapgate_xen::backend::block::Block;
use trapgate_xen::backend::net::Net;
use trapgate_xen::hypercall::Disposition;
use trapgate_xen::public::Shutdown;

use crate::backend::{Disk, Plug};
use crate::errors;

/// A domain.
#[pyclass(frozen, module = "trapgate._core")]
#[derive(Debug)]
pub struct Domain {
    board: Arc<XenPvBoard>,
    signal: Arc<Signal>,
}

impl Domain {
    pub(crate) fn new(board: &Arc<XenPvBoard>, signal: &Arc<Signal>) -> Self {
        Domain { board: Arc::clone(board), signal: Arc::clone(signal) }
    }
}

/// The domains that may have event channels to each other.
#[pyclass(frozen, module = "trapgate._core")]
#[derive(Debug, Default)]
pub struct Neighbours {
    neighbours: Arc<trapgate_xen::Neighbours>,
}

#[pymethods]
impl Neighbours {
    #[new]
    fn new() -> Self {
        Neighbours::default()
    }
}

/// A row of the hypercall table: number, name, what becomes of it ("native", "outside", "errno"), error number, calls and
/// nanoseconds in handlers of ours.
type Row = (u32, &'static str, &'static str, u16, u64, u64);

#[pymethods]
impl Domain {
    #[getter]
    fn domid(&self) -> u16 {
        self.board.domain.config.domid
    }

    /// The domain's UUID, 16 bytes.
    #[getter]
    fn handle(&self) -> [u8; 16] {
        self.board.domain.config.handle
    }

    /// Machine address and event channel of XenStore's ring.
    #[getter]
    fn store(&self) -> (u64, u32) {
        (self.board.start.store.0 << 12, self.board.start.ports.store)
    }

    /// Machine address and event channel of the console's ring.
    #[getter]
    fn console(&self) -> (u64, u32) {
        (self.board.start.console.0 << 12, self.board.start.ports.console)
    }

    /// Give the ports that the guest has rung, whose back-ends are served from here.
    fn take_doorbells(&self) -> Vec<u32> {
        self.board.take_doorbells()
    }

    /// Send the guest an event.
    fn notify(&self, port: u32) {
        if self.board.domain.channel(port).is_some() {
            self.board.domain.set_pending(port);
            self.signal.poke();
        }
    }

    /// Bring the vCPU back to where doorbells are served.
    fn poke(&self) {
        self.board.ring_outside();
        self.signal.poke();
    }

    /// Connect a disk to the guest's ring and port, and give the connection's number.
    fn connect_block(&self, py: Python<'_>, port: u32, ring: u32, disk: &Disk) -> PyResult<u32> {
        let storage = disk.storage();
        let board = &self.board;
        let connected = py.detach(|| {
            board
                .backends
                .connect(&board.domain, port, |domain| Ok(Box::new(Block::connect(domain, ring, storage)?)))
        });
        connected.map_err(errors::state)
    }

    /// Connect a plug of a switch to the guest's rings and port, and give the connection's number.
    fn connect_net(
        &self,
        py: Python<'_>,
        port: u32,
        tx: u32,
        rx: u32,
        scatter: bool,
        plug: &Plug,
    ) -> PyResult<u32> {
        let plug = plug.plug();
        let board = &self.board;
        let connected = py.detach(|| {
            board.backends.connect(&board.domain, port, |domain| {
                Ok(Box::new(Net::connect(domain, tx, rx, scatter, plug)?))
            })
        });
        connected.map_err(errors::state)
    }

    /// End a connection: nothing of the guest's is in use by it any more. One that has ended is fine.
    fn disconnect(&self, py: Python<'_>, number: u32) {
        py.detach(|| self.board.backends.disconnect(&self.board.domain, number));
    }

    /// Say why a connection failed, if it has.
    fn fault(&self, number: u32) -> Option<String> {
        self.board.backends.fault(number).map(|fault| fault.to_string())
    }

    /// List the hypercall table.
    fn hypercalls(&self) -> Vec<Row> {
        let rows = self.board.domain.hypercalls.rows();
        rows.map(|row| {
            let (kind, errno) = match row.disposition() {
                Disposition::Native => ("native", 0),
                Disposition::Outside => ("outside", 0),
                Disposition::Errno(code) => ("errno", code),
            };
            let counters = row.counters();
            (row.number, row.name.text(), kind, errno, counters.calls, counters.nanoseconds)
        })
        .collect()
    }

    /// Change what becomes of a hypercall from its next call on.
    fn set_hypercall(&self, number: u32, kind: &str, errno: u16) -> PyResult<()> {
        let row = self.board.domain.hypercalls.rows().find(|row| row.number == number);
        let row = row.ok_or_else(|| errors::config(format!("there is no hypercall {number}")))?;
        row.set_disposition(match kind {
            "native" => Disposition::Native,
            "outside" => Disposition::Outside,
            "errno" => Disposition::Errno(errno),
            other => return Err(errors::config(format!("a hypercall cannot become {other}"))),
        });
        Ok(())
    }

    /// Calls with numbers that nothing has, and stores to live page tables that were carried out.
    fn counters(&self) -> (u64, u64) {
        let table = &self.board.domain.hypercalls;
        (table.unknown(), table.trapped_stores())
    }

    /// Frames that the domain owns, and the most that it may.
    fn frames(&self) -> (u64, u64) {
        let paging = self.board.domain.paging();
        (paging.owned_frames(), paging.maximum())
    }

    /// Change how many frames the domain may own; those that it has it keeps.
    fn set_maximum(&self, frames: u64) {
        self.board.domain.paging().set_maximum(frames);
    }

    /// Let the guest have event channels to the domains that have joined the same; only the first time counts.
    fn join(&self, neighbours: &Neighbours) {
        self.board.domain.join(&neighbours.neighbours);
    }

    /// Set which domains the guest may have event channels to, beside itself and domain 0; None is for all.
    #[pyo3(signature = (domids))]
    fn set_remotes(&self, domids: Option<Vec<u16>>) {
        self.board.domain.set_remotes(domids.map(|domids| domids.into_iter().collect()));
    }

    /// How the domain ended: the reason, and what the monitor has to say of a crash.
    fn ended(&self) -> Option<(&'static str, Option<String>)> {
        let ended = self.board.domain.ended()?;
        let reason = match ended.reason {
            Shutdown::PowerOff => "poweroff",
            Shutdown::Reboot => "reboot",
            Shutdown::Suspend => "suspend",
            Shutdown::Crash => "crash",
            Shutdown::Watchdog => "watchdog",
            Shutdown::SoftReset => "soft_reset",
        };
        Some((reason, ended.message))
    }
}
