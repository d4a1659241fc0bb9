//! Data planes of the back-ends: what answers the rings of a guest's block and network devices.
//!
//! The control plane, which agrees with the guest on rings and ports by XenStore, is outside; it makes a [`Backend`] when the
//! guest is connected and takes it away again. In between the domain's run loop serves it whenever the guest has rung.
//! Whatever a guest puts into its rings is copied once and then checked: the worst it can do is to end its own device.

pub mod block;
pub mod disk;
pub mod net;
mod packet;
pub mod ring;
pub mod switch;
#[cfg(test)]
mod tests;

use std::fmt;

use crate::domain::Domain;
use crate::errno::Errno;
use crate::grant::Status;

/// What a round of service leaves to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Served {
    /// The guest is to be sent an event.
    pub notify: bool,
    /// There is more to do than is good at once: serve again, after the guest had its turn.
    pub more: bool,
}

/// The back-end of one device, while the guest is connected.
pub trait Backend: Send + fmt::Debug {
    /// Does what waits, a bounded amount of it.
    ///
    /// # Errors
    /// When the guest has broken the device's rules so that it cannot be served any more.
    fn serve(&mut self, domain: &Domain) -> Result<Served, Fault>;

    /// Whether there is something for the guest that it has not rung for.
    fn waiting(&self) -> bool {
        false
    }

    /// Lets go of all pages of the guest.
    fn disconnect(self: Box<Self>, domain: &Domain);
}

/// Why a device cannot be connected, or is served no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("grant reference {reference} of a ring cannot be used: {status}")]
    Ring { reference: u32, status: Status },
    #[error("the event channel cannot be bound: {0}")]
    Port(Errno),
    #[error("the guest says that it has put {ahead} requests into a ring of {size}")]
    Indices { ahead: u32, size: u32 },
    #[error("a packet ends in the middle: {0} parts are missing")]
    Torn(u32),
}
