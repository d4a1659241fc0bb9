//! The host's end of a serial line: what the guest has written, and what waits to be received.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use trapgate_devices::{ByteSink, lock};

use crate::signal::Signal;

/// Bytes of output kept for a reader that does not come; older ones are dropped and counted.
const MOST_OUTPUT: usize = 16 << 20;
/// Bytes of input that may wait.
const MOST_INPUT: usize = 1 << 20;

/// One serial line, shared between the machine and whoever reads and types.
#[derive(Debug)]
pub struct Console {
    output: Mutex<Output>,
    input: Mutex<VecDeque<u8>>,
    /// The run loop is to stop after each byte of output.
    watched: AtomicBool,
    written: AtomicBool,
    signal: Arc<Signal>,
}

#[derive(Debug, Default)]
struct Output {
    bytes: VecDeque<u8>,
    dropped: u64,
}

impl Console {
    pub(crate) fn new(signal: Arc<Signal>) -> Arc<Self> {
        Arc::new(Console {
            output: Mutex::default(),
            input: Mutex::default(),
            watched: AtomicBool::new(false),
            written: AtomicBool::new(false),
            signal,
        })
    }

    /// What the guest has written since the last call.
    pub fn take(&self) -> Vec<u8> {
        lock(&self.output).bytes.drain(..).collect()
    }

    /// Bytes that were dropped because nobody took them.
    pub fn dropped(&self) -> u64 {
        lock(&self.output).dropped
    }

    /// Queues input; gives how many bytes there was room for.
    pub fn send(&self, bytes: &[u8]) -> usize {
        let mut input = lock(&self.input);
        let taken = bytes.len().min(MOST_INPUT - input.len());
        input.extend(&bytes[..taken]);
        drop(input);
        self.signal.wake();
        taken
    }

    pub(crate) fn has_input(&self) -> bool {
        !lock(&self.input).is_empty()
    }

    /// Takes up to `most` bytes of input.
    pub(crate) fn take_input(&self, most: usize) -> Vec<u8> {
        let mut input = lock(&self.input);
        let n = most.min(input.len());
        input.drain(..n).collect()
    }

    /// Whether the run loop stops after each byte of output.
    pub(crate) fn watch(&self, on: bool) {
        self.watched.store(on, Ordering::Relaxed);
        self.written.store(false, Ordering::Relaxed);
    }

    /// Whether something was written that [`Self::take_written`] has not told.
    pub(crate) fn has_written(&self) -> bool {
        self.written.load(Ordering::Relaxed)
    }

    /// Whether something was written since watching began or this was last asked.
    pub(crate) fn take_written(&self) -> bool {
        self.written.swap(false, Ordering::Relaxed)
    }

    /// Adds what a guest has written.
    pub(crate) fn put(&self, bytes: &[u8]) {
        let mut output = lock(&self.output);
        for byte in bytes {
            if output.bytes.len() == MOST_OUTPUT {
                output.bytes.pop_front();
                output.dropped += 1;
            }
            output.bytes.push_back(*byte);
        }
        drop(output);
        self.written.store(true, Ordering::Relaxed);
        if self.watched.load(Ordering::Relaxed) {
            self.signal.stop_vcpu();
        }
    }

    /// The end that a UART writes to.
    pub(crate) fn sink(self: &Arc<Self>) -> Box<dyn ByteSink> {
        Box::new(Sink(Arc::clone(self)))
    }
}

struct Sink(Arc<Console>);

impl ByteSink for Sink {
    fn put(&mut self, byte: u8) {
        self.0.put(&[byte]);
    }

    /// The guest has read some: what still waits is to be fed at the next boundary, not at the end of the slice.
    fn room(&mut self, _free: usize) {
        if self.0.has_input() {
            self.0.signal.stop_vcpu();
        }
    }
}
