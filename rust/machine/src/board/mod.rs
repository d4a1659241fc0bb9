//! Boards: what a vCPU is surrounded by. Each only wires; the run loop sees them all by [`Board`].

pub mod pc;
pub mod xen_pv;

use std::sync::Arc;

use trapgate_devices::Nanos;

pub use pc::{BoardError, PcBoard};
pub(crate) use pc::{Parts, PcPlatform};
pub use xen_pv::XenPvBoard;

use crate::console::Console;
use crate::exit::Exit;

/// The board of a machine.
#[derive(Clone, Debug)]
pub enum Board {
    /// The emulated PC of `full` mode.
    Pc(Arc<PcBoard>),
    /// The Xen PV domain of `para` mode.
    XenPv(Arc<XenPvBoard>),
}

/// Accesses to addresses that nothing answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unmapped {
    pub port_reads: u64,
    pub port_writes: u64,
    pub memory_reads: u64,
    pub memory_writes: u64,
}

impl Board {
    /// The PC, if it is one.
    pub fn pc(&self) -> Option<&Arc<PcBoard>> {
        match self {
            Board::Pc(board) => Some(board),
            Board::XenPv(_) => None,
        }
    }

    /// The domain's board, if it is one.
    pub fn xen_pv(&self) -> Option<&Arc<XenPvBoard>> {
        match self {
            Board::Pc(_) => None,
            Board::XenPv(board) => Some(board),
        }
    }

    /// When something happens by itself that a vCPU may wait for.
    pub fn deadline(&self) -> Option<Nanos> {
        match self {
            Board::Pc(board) => board.deadline(),
            Board::XenPv(board) => board.domain.next_wake(),
        }
    }

    /// Brings everything whose time has come up to `now`.
    pub fn advance(&self, now: Nanos) {
        match self {
            Board::Pc(board) => board.advance(now),
            Board::XenPv(board) => board.domain.advance(now),
        }
    }

    /// Gives the guest what was typed, as far as there is room.
    pub(crate) fn feed(&self, console: &Console, now: Nanos) {
        match self {
            Board::Pc(board) => board.feed(console, now),
            Board::XenPv(board) => board.feed(console),
        }
    }

    pub(crate) fn can_feed(&self, console: &Console) -> bool {
        match self {
            Board::Pc(board) => board.can_feed(console),
            Board::XenPv(board) => board.can_feed(console),
        }
    }

    /// The run loop has looked at the board at this count.
    pub(crate) fn served(&self, count: u64) {
        match self {
            Board::Pc(board) => board.served(count),
            Board::XenPv(board) => board.served(count),
        }
    }

    /// What the guest has asked for since the last time, where the run must end for it.
    pub(crate) fn request(&self) -> Option<Exit> {
        match self {
            Board::Pc(_) => None,
            Board::XenPv(board) => board.request(),
        }
    }

    /// How often the vCPU asked its surroundings for anything.
    pub fn accesses(&self) -> u64 {
        match self {
            Board::Pc(board) => board.accesses(),
            Board::XenPv(board) => board.accesses(),
        }
    }

    pub(crate) fn unmapped(&self) -> Unmapped {
        match self {
            Board::Pc(board) => Unmapped {
                port_reads: board.ports.unmapped_reads(),
                port_writes: board.ports.unmapped_writes(),
                memory_reads: board.memory.unmapped_reads(),
                memory_writes: board.memory.unmapped_writes(),
            },
            Board::XenPv(_) => Unmapped::default(),
        }
    }
}
