//! A virtual switch: what is sent into one of its plugs comes out of others.
//!
//! It learns which plug an address is behind from what comes from there, as any switch does, and sends what it does not
//! know the place of everywhere. Plugs belong to guests, which may run on different threads, and to whoever else wants
//! to talk to them; none waits for another: a queue that is full drops what comes.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The longest frame: what the longest packet takes with its header.
pub const LONGEST: usize = 65_535;
/// An Ethernet header; nothing shorter is a frame.
pub const HEADER: usize = 14;

/// What one plug may have waiting.
const MOST_FRAMES: usize = 1024;
const MOST_BYTES: usize = 4 << 20;
/// Addresses that are remembered; a guest that invents more makes the switch forget, not grow.
const MOST_STATIONS: usize = 4096;

type Mac = [u8; 6];
/// A frame, shared by all who get it.
pub type Frame = Arc<[u8]>;
type Waker = Arc<dyn Fn() + Send + Sync>;

/// A lock whose holder panicked guards a consistent value all the same.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A switch. It lives as long as somebody is plugged into it, or holds it.
#[derive(Debug, Default)]
pub struct Switch(Mutex<Wiring>);

#[derive(Debug, Default)]
struct Wiring {
    ports: BTreeMap<u64, Arc<Port>>,
    next: u64,
    stations: HashMap<Mac, u64>,
}

impl Switch {
    /// A new plug, which is closed.
    pub fn plug(self: &Arc<Self>) -> Plug {
        let mut wiring = lock(&self.0);
        let id = wiring.next;
        wiring.next += 1;
        let port = Arc::new(Port::default());
        wiring.ports.insert(id, Arc::clone(&port));
        Plug { switch: Arc::clone(self), id, port }
    }

    /// Where a frame goes that came from a plug.
    fn targets(&self, from: u64, frame: &[u8]) -> Vec<Arc<Port>> {
        let address = |at: usize| {
            let mut mac: Mac = [0; 6];
            mac.copy_from_slice(&frame[at..at + 6]);
            mac
        };
        let (to, source) = (address(0), address(6));
        let is_group = |mac: Mac| mac[0] & 1 != 0;
        let mut wiring = lock(&self.0);
        if !is_group(source) {
            if wiring.stations.len() >= MOST_STATIONS && !wiring.stations.contains_key(&source) {
                wiring.stations.clear();
            }
            wiring.stations.insert(source, from);
        }
        let place = wiring.stations.get(&to).filter(|_| !is_group(to)).copied();
        let goes_to = |id: u64| id != from && place.is_none_or(|place| place == id);
        wiring.ports.iter().filter(|(id, _)| goes_to(**id)).map(|(_, port)| Arc::clone(port)).collect()
    }

    fn unplug(&self, id: u64) {
        let mut wiring = lock(&self.0);
        wiring.ports.remove(&id);
        wiring.stations.retain(|_, at| *at != id);
    }
}

/// What waits for the owner of a plug.
#[derive(Default)]
struct Queue {
    frames: VecDeque<Frame>,
    bytes: usize,
    dropped: u64,
    open: bool,
    waker: Option<Waker>,
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Queue({} frames, open: {})", self.frames.len(), self.open)
    }
}

#[derive(Debug, Default)]
struct Port {
    queue: Mutex<Queue>,
    arrived: Condvar,
}

impl Port {
    fn push(&self, frame: &Frame) {
        let waker = {
            let mut queue = lock(&self.queue);
            if !queue.open {
                return;
            }
            if queue.frames.len() >= MOST_FRAMES || queue.bytes + frame.len() > MOST_BYTES {
                queue.dropped += 1;
                return;
            }
            queue.bytes += frame.len();
            queue.frames.push_back(Arc::clone(frame));
            // Who has been told of one frame takes all there are.
            queue.waker.clone().filter(|_| queue.frames.len() == 1)
        };
        self.arrived.notify_one();
        if let Some(wake) = waker {
            wake();
        }
    }
}

/// A place at a switch, given up when it is dropped.
#[derive(Debug)]
pub struct Plug {
    switch: Arc<Switch>,
    id: u64,
    port: Arc<Port>,
}

impl Plug {
    /// Takes frames from now on; `waker` is called, by any thread, when there is one after there was none.
    pub fn open(&self, waker: Option<Waker>) {
        let mut queue = lock(&self.port.queue);
        (queue.open, queue.waker) = (true, waker);
    }

    /// Drops what waits and what comes.
    pub fn close(&self) {
        let dropped = std::mem::take(&mut *lock(&self.port.queue));
        drop(dropped);
        self.port.arrived.notify_all();
    }

    /// Sends a frame; what is no frame is dropped, and false.
    pub fn send(&self, frame: &[u8]) -> bool {
        if !(HEADER..=LONGEST).contains(&frame.len()) {
            return false;
        }
        let targets = self.switch.targets(self.id, frame);
        if !targets.is_empty() {
            let frame: Frame = frame.into();
            // Without the switch's lock: a waker may do anything.
            targets.iter().for_each(|port| port.push(&frame));
        }
        true
    }

    /// The next frame that has come.
    pub fn take(&self) -> Option<Frame> {
        let mut queue = lock(&self.port.queue);
        let frame = queue.frames.pop_front()?;
        queue.bytes -= frame.len();
        Some(frame)
    }

    /// The next frame, waited for.
    pub fn wait(&self, time: Duration) -> Option<Frame> {
        let queue = lock(&self.port.queue);
        let empty = |queue: &mut Queue| queue.open && queue.frames.is_empty();
        let waited = self.port.arrived.wait_timeout_while(queue, time, empty);
        drop(waited);
        self.take()
    }

    pub fn is_empty(&self) -> bool {
        lock(&self.port.queue).frames.is_empty()
    }

    /// Frames that were lost because too many waited.
    pub fn dropped(&self) -> u64 {
        lock(&self.port.queue).dropped
    }
}

impl Drop for Plug {
    fn drop(&mut self) {
        self.switch.unplug(self.id);
    }
}
