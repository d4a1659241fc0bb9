//! PC16550D universal asynchronous receiver/transmitter with FIFOs (National Semiconductor data sheet, June 1995).
//! Section numbers below are that data sheet's. Characters leave the moment they are written; received ones come from
//! [`Uart::receive`], which takes no more than the receiver has room for.
use std::collections::VecDeque;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::line::Output;
use crate::state::damaged;
use crate::{ByteSink, Device, Line, MIN_TIMER_PERIOD, NANOS_PER_SECOND, Nanos, State, StateError};

const KIND: &str = "uart-16550a";
const FIFO_SIZE: usize = 16;
/// The crystal of the PC's serial ports; the divisor counts sixteenths of it.
const CRYSTAL_HZ: u64 = 1_843_200;

/// Interrupt enable register, 8.7.
const IER_RECEIVE: u8 = 0x01;
const IER_TRANSMIT: u8 = 0x02;
const IER_LINE: u8 = 0x04;
const IER_MODEM: u8 = 0x08;

/// Interrupt identification register, 8.6, table III.
const IIR_NONE: u8 = 0x01;
const IIR_MODEM: u8 = 0x00;
const IIR_TRANSMIT: u8 = 0x02;
const IIR_RECEIVE: u8 = 0x04;
const IIR_LINE: u8 = 0x06;
const IIR_TIMEOUT: u8 = 0x0C;
const IIR_FIFOS: u8 = 0xC0;

/// FIFO control register, 8.5.
const FCR_ENABLE: u8 = 0x01;
const FCR_CLEAR_RECEIVER: u8 = 0x02;
const FCR_TRIGGER: u8 = 0xC0;
/// The bits that are kept: enable, DMA mode, trigger level.
const FCR_KEPT: u8 = 0xC9;

/// Line control register, 8.1.
const LCR_BREAK: u8 = 0x40;
const LCR_DLAB: u8 = 0x80;

/// Modem control register, 8.8.
const MCR_DTR: u8 = 0x01;
const MCR_RTS: u8 = 0x02;
const MCR_OUT1: u8 = 0x04;
const MCR_OUT2: u8 = 0x08;
const MCR_LOOP: u8 = 0x10;

/// Line status register, 8.4.
const LSR_READY: u8 = 0x01;
const LSR_OVERRUN: u8 = 0x02;
const LSR_BREAK: u8 = 0x10;
const LSR_TRANSMIT_EMPTY: u8 = 0x60;
const LSR_FIFO_ERROR: u8 = 0x80;
/// The errors that belong to one character and travel with it through the FIFO: parity, framing, break.
const LSR_CHARACTER: u8 = 0x1C;
const LSR_ERRORS: u8 = 0x1E;

/// Modem status register, 8.9.
const MSR_CTS: u8 = 0x10;
const MSR_DSR: u8 = 0x20;
const MSR_RI: u8 = 0x40;
const MSR_DCD: u8 = 0x80;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Registers {
    ier: u8,
    fcr: u8,
    lcr: u8,
    mcr: u8,
    scratch: u8,
    divisor: u16,
    /// Overrun and the character errors that have reached the top of the FIFO.
    errors: u8,
    /// The low half of the MSR: what has changed since it was read.
    modem_delta: u8,
    /// The high half of the MSR as the pins say, also while loopback hides them.
    modem_pins: u8,
    /// Received characters, each with its error bits. One at most while the FIFOs are off.
    received: VecDeque<(u8, u8)>,
    /// The receiver buffer register reads as this while nothing is received.
    last_received: u8,
    /// The transmitter-empty interrupt is waiting.
    transmit_pending: bool,
    /// When the character timeout strikes, if nothing happens before.
    timeout_at: Option<Nanos>,
    timeout_pending: bool,
}

impl Registers {
    /// Table I: the state after master reset. Pins: a terminal that is there and ready.
    fn new() -> Self {
        Registers {
            ier: 0,
            fcr: 0,
            lcr: 0,
            mcr: 0,
            scratch: 0,
            divisor: 12, // 9600 baud, what firmware leaves.
            errors: 0,
            modem_delta: 0,
            modem_pins: MSR_CTS | MSR_DSR | MSR_DCD,
            received: VecDeque::with_capacity(FIFO_SIZE),
            last_received: 0,
            transmit_pending: false,
            timeout_at: None,
            timeout_pending: false,
        }
    }
}

/// One serial port: eight byte registers.
#[derive(Debug)]
pub struct Uart {
    registers: Registers,
    irq: Output,
    sink: Box<dyn ByteSink>,
}

impl Uart {
    /// A port that sends to `sink` and interrupts on `irq`.
    pub fn new(sink: Box<dyn ByteSink>, irq: Arc<dyn Line>) -> Uart {
        Uart { registers: Registers::new(), irq: Output::new(irq), sink }
    }

    /// How many characters [`Uart::receive`] would take now.
    pub fn room(&self) -> usize {
        // In loopback the receiver is disconnected from its pin (8.8); callers keep what they have.
        if self.looped() { 0 } else { self.capacity().saturating_sub(self.registers.received.len()) }
    }

    /// Receives as many of `bytes` as there is room for and says how many that were.
    pub fn receive(&mut self, bytes: &[u8], now: Nanos) -> usize {
        self.advance(now);
        let taken = bytes.len().min(self.room());
        for &byte in &bytes[..taken] {
            self.accept(byte, 0, now);
        }
        self.update();
        taken
    }

    /// Receives a break condition: a zero character marked as break and framing error. False if there is no room.
    pub fn receive_break(&mut self, now: Nanos) -> bool {
        self.advance(now);
        let taken = self.room() > 0;
        if taken {
            self.accept(0, LSR_BREAK | 0x08, now);
            self.update();
        }
        taken
    }

    /// Moves the modem status pins: clear to send, data set ready, ring, carrier.
    pub fn set_modem(&mut self, cts: bool, dsr: bool, ri: bool, dcd: bool, now: Nanos) {
        self.advance(now);
        let before = self.modem_levels();
        self.registers.modem_pins = [(cts, MSR_CTS), (dsr, MSR_DSR), (ri, MSR_RI), (dcd, MSR_DCD)]
            .iter()
            .fold(0, |pins, &(level, bit)| if level { pins | bit } else { pins });
        self.note_modem_change(before);
        self.update();
    }

    fn fifos(&self) -> bool {
        self.registers.fcr & FCR_ENABLE != 0
    }

    fn looped(&self) -> bool {
        self.registers.mcr & MCR_LOOP != 0
    }

    fn capacity(&self) -> usize {
        if self.fifos() { FIFO_SIZE } else { 1 }
    }

    /// Receiver FIFO trigger level, 8.5.
    fn trigger(&self) -> usize {
        match (self.fifos(), self.registers.fcr & FCR_TRIGGER) {
            (false, _) | (true, 0x00) => 1,
            (true, 0x40) => 4,
            (true, 0x80) => 8,
            (true, _) => 14,
        }
    }

    /// Four character times at the programmed rate, 8.11: start bit, data, parity, stop bits, sixteen clocks each.
    fn timeout(&self) -> Nanos {
        let r = &self.registers;
        let bits = 1 + 5 + u64::from(r.lcr & 3) + u64::from(r.lcr >> 3 & 1) + 1 + u64::from(r.lcr >> 2 & 1);
        let clocks = 4 * bits * 16 * u64::from(r.divisor.max(1));
        (clocks * NANOS_PER_SECOND / CRYSTAL_HZ).max(MIN_TIMER_PERIOD)
    }

    /// Puts a character at the end of the FIFO, or notes the overrun.
    fn accept(&mut self, byte: u8, errors: u8, now: Nanos) {
        if self.registers.received.len() >= self.capacity() {
            self.registers.errors |= LSR_OVERRUN;
            // Without FIFOs the new character replaces the unread one; with them it is lost (8.4, bit 1).
            if !self.fifos() {
                self.registers.received.clear();
                self.registers.received.push_back((byte, errors));
            }
        } else {
            self.registers.received.push_back((byte, errors));
        }
        if self.registers.received.len() == 1 {
            self.registers.errors |= errors;
        }
        self.restart_timeout(now);
    }

    fn restart_timeout(&mut self, now: Nanos) {
        let waiting = self.fifos() && !self.registers.received.is_empty();
        self.registers.timeout_at = if waiting { Some(now.saturating_add(self.timeout())) } else { None };
    }

    /// What the upper half of the MSR shows: the pins, or in loopback the modem control outputs (8.8).
    fn modem_levels(&self) -> u8 {
        if !self.looped() {
            return self.registers.modem_pins;
        }
        let wires = [(MCR_RTS, MSR_CTS), (MCR_DTR, MSR_DSR), (MCR_OUT1, MSR_RI), (MCR_OUT2, MSR_DCD)];
        wires.iter().fold(
            0,
            |levels, &(from, to)| {
                if self.registers.mcr & from != 0 { levels | to } else { levels }
            },
        )
    }

    /// Sets the delta bits for what is not as it was `before`. Ring counts only when it ends (8.9, bit 2).
    fn note_modem_change(&mut self, before: u8) {
        let after = self.modem_levels();
        let changed = (before ^ after) & !MSR_RI | before & !after & MSR_RI;
        self.registers.modem_delta |= changed >> 4;
    }

    /// The most urgent enabled cause, table III.
    fn cause(&self) -> u8 {
        let r = &self.registers;
        if r.ier & IER_LINE != 0 && r.errors & LSR_ERRORS != 0 {
            IIR_LINE
        } else if r.ier & IER_RECEIVE != 0 && r.received.len() >= self.trigger() {
            IIR_RECEIVE
        } else if r.ier & IER_RECEIVE != 0 && r.timeout_pending {
            IIR_TIMEOUT
        } else if r.ier & IER_TRANSMIT != 0 && r.transmit_pending {
            IIR_TRANSMIT
        } else if r.ier & IER_MODEM != 0 && r.modem_delta != 0 {
            IIR_MODEM
        } else {
            IIR_NONE
        }
    }

    /// On the PC the interrupt passes a buffer that OUT2 opens; loopback forces OUT2 inactive.
    fn interrupting(&self) -> bool {
        self.cause() != IIR_NONE && self.registers.mcr & (MCR_OUT2 | MCR_LOOP) == MCR_OUT2
    }

    fn update(&mut self) {
        let level = self.interrupting();
        self.irq.set(level);
    }

    fn line_status(&self) -> u8 {
        let r = &self.registers;
        let ready = if r.received.is_empty() { 0 } else { LSR_READY };
        let in_fifo = self.fifos() && r.received.iter().any(|&(_, errors)| errors & LSR_CHARACTER != 0);
        ready | r.errors | LSR_TRANSMIT_EMPTY | if in_fifo { LSR_FIFO_ERROR } else { 0 }
    }

    fn read_received(&mut self, now: Nanos) -> u8 {
        let r = &mut self.registers;
        if let Some((byte, _)) = r.received.pop_front() {
            r.last_received = byte;
            // The next character's errors are revealed as it comes to the top (8.4).
            if let Some(&(_, errors)) = r.received.front() {
                r.errors |= errors;
            }
            r.timeout_pending = false;
            self.restart_timeout(now);
            let room = self.room();
            if room > 0 {
                self.sink.room(room);
            }
        }
        self.registers.last_received
    }

    fn transmit(&mut self, byte: u8, now: Nanos) {
        // Writing clears the cause and the transmitter is empty again at once: a fresh request, and a fresh edge for an
        // edge-triggered controller.
        self.registers.transmit_pending = false;
        self.update();
        if self.looped() {
            self.accept(byte, 0, now);
        } else {
            self.sink.put(byte);
        }
        self.registers.transmit_pending = true;
    }

    fn write_fifo_control(&mut self, value: u8) {
        let switched = (value ^ self.registers.fcr) & FCR_ENABLE != 0;
        // Only the enable bit can be written while it is, and stays, zero; changing it clears the FIFOs (8.5).
        self.registers.fcr = if value & FCR_ENABLE != 0 { value & FCR_KEPT } else { 0 };
        if switched || value & (FCR_ENABLE | FCR_CLEAR_RECEIVER) == FCR_ENABLE | FCR_CLEAR_RECEIVER {
            self.registers.received.clear();
            self.registers.timeout_at = None;
            self.registers.timeout_pending = false;
            let room = self.room();
            if room > 0 {
                self.sink.room(room);
            }
        }
    }

    fn write_modem_control(&mut self, value: u8) {
        let before = self.modem_levels();
        let was_looped = self.looped();
        self.registers.mcr = value & 0x1F;
        self.note_modem_change(before);
        if was_looped && self.room() > 0 {
            let room = self.room();
            self.sink.room(room);
        }
    }

    fn read_byte(&mut self, offset: u64, now: Nanos) -> u8 {
        let latch = self.registers.lcr & LCR_DLAB != 0;
        match offset {
            0 if latch => self.registers.divisor as u8,
            1 if latch => (self.registers.divisor >> 8) as u8,
            0 => self.read_received(now),
            1 => self.registers.ier,
            2 => {
                let cause = self.cause();
                if cause == IIR_TRANSMIT {
                    self.registers.transmit_pending = false;
                }
                cause | if self.fifos() { IIR_FIFOS } else { 0 }
            }
            3 => self.registers.lcr,
            4 => self.registers.mcr,
            5 => {
                let status = self.line_status();
                self.registers.errors = 0;
                // The top character's errors have now been seen; those further down still count for bit 7.
                if let Some(top) = self.registers.received.front_mut() {
                    top.1 = 0;
                }
                status
            }
            6 => {
                let status = self.modem_levels() | self.registers.modem_delta;
                self.registers.modem_delta = 0;
                status
            }
            _ => self.registers.scratch,
        }
    }

    fn write_byte(&mut self, offset: u64, value: u8, now: Nanos) {
        let latch = self.registers.lcr & LCR_DLAB != 0;
        match offset {
            0 if latch => self.registers.divisor = self.registers.divisor & 0xFF00 | u16::from(value),
            1 if latch => self.registers.divisor = self.registers.divisor & 0x00FF | u16::from(value) << 8,
            0 => self.transmit(value, now),
            1 => {
                // Enabling the cause while the transmitter is empty raises it again (8.7; Linux's probe relies on it).
                if value & !self.registers.ier & IER_TRANSMIT != 0 {
                    self.registers.transmit_pending = true;
                }
                self.registers.ier = value & 0x0F;
            }
            2 => self.write_fifo_control(value),
            3 => {
                let breaking = value & !self.registers.lcr & LCR_BREAK != 0;
                self.registers.lcr = value;
                if breaking && self.looped() {
                    self.accept(0, LSR_BREAK | 0x08, now);
                }
            }
            4 => self.write_modem_control(value),
            5 | 6 => {} // Status registers: factory test only.
            _ => self.registers.scratch = value,
        }
    }
}

impl Device for Uart {
    fn name(&self) -> &'static str {
        KIND
    }

    fn read(&mut self, offset: u64, size: u8, now: Nanos) -> u64 {
        self.advance(now);
        let value = crate::read_bytes(offset, size, |offset| self.read_byte(offset & 7, now));
        self.update();
        value
    }

    fn write(&mut self, offset: u64, size: u8, value: u64, now: Nanos) {
        self.advance(now);
        crate::write_bytes(offset, size, value, |offset, byte| self.write_byte(offset & 7, byte, now));
        self.update();
    }

    fn reset(&mut self, _now: Nanos) {
        // The pins are the other side's, and a received character cannot survive the FIFOs.
        self.registers = Registers { modem_pins: self.registers.modem_pins, ..Registers::new() };
        self.update();
    }

    fn deadline(&self) -> Option<Nanos> {
        let r = &self.registers;
        let matters = !r.timeout_pending && r.ier & IER_RECEIVE != 0 && r.received.len() < self.trigger();
        r.timeout_at.filter(|_| matters)
    }

    fn advance(&mut self, now: Nanos) {
        if self.registers.timeout_at.is_some_and(|at| at <= now) {
            self.registers.timeout_at = None;
            self.registers.timeout_pending = true;
            self.update();
        }
    }

    fn save(&self) -> State {
        State::encode(KIND, 1, &self.registers)
    }

    fn restore(&mut self, state: &State) -> Result<(), StateError> {
        let registers: Registers = state.decode(KIND, 1)?;
        if registers.received.len() > FIFO_SIZE {
            return Err(damaged(KIND, format!("{:#x} characters in the FIFO", registers.received.len())));
        }
        self.registers = registers;
        let level = self.interrupting();
        self.irq.assume(level);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
