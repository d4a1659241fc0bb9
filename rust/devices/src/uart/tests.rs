use super::*;
use crate::line::Probe;
use std::sync::Mutex;

#[derive(Clone, Default)]
struct Sent(Arc<Mutex<(Vec<u8>, Vec<usize>)>>);

impl ByteSink for Sent {
    fn put(&mut self, byte: u8) {
        self.0.lock().unwrap().0.push(byte);
    }
    fn room(&mut self, free: usize) {
        self.0.lock().unwrap().1.push(free);
    }
}

fn uart() -> (Uart, Arc<Probe>, Sent) {
    let (probe, sent) = (Probe::new(), Sent::default());
    (Uart::new(Box::new(sent.clone()), probe.clone()), probe, sent)
}

fn out(uart: &mut Uart, offset: u64, value: u8) {
    uart.write(offset, 1, value.into(), 0);
}

fn inb(uart: &mut Uart, offset: u64) -> u8 {
    uart.read(offset, 1, 0) as u8
}

#[test]
fn linux_recognises_a_16550a() {
    let (mut u, _, _) = uart();
    for value in [0x00, 0x0F] {
        out(&mut u, 1, value);
        assert_eq!(inb(&mut u, 1), value);
    }
    out(&mut u, 4, MCR_LOOP | 0x0A);
    assert_eq!(inb(&mut u, 6) & 0xF0, 0x90);
    out(&mut u, 4, 0);
    out(&mut u, 7, 0xA5);
    assert_eq!(inb(&mut u, 7), 0xA5);
    out(&mut u, 2, FCR_ENABLE);
    assert_eq!(inb(&mut u, 2) >> 6, 3);
    out(&mut u, 3, 0xBF);
    out(&mut u, 2, FCR_ENABLE | 0x20); // The 64-byte FIFO bit of a 16750 must not stick.
    assert_eq!(inb(&mut u, 2) >> 5, 6);
    out(&mut u, 2, 0);
    assert_eq!(inb(&mut u, 2) >> 6, 0);
}

#[test]
fn transmitter_empty_interrupts_again_after_each_write_and_each_enabling() {
    let (mut u, irq, sent) = uart();
    out(&mut u, 4, MCR_OUT2);
    out(&mut u, 1, IER_TRANSMIT);
    assert!(irq.level());
    assert_eq!(inb(&mut u, 2), IIR_TRANSMIT);
    assert!(!irq.level(), "reading the IIR takes the request back");
    assert_eq!(inb(&mut u, 2), IIR_NONE);
    out(&mut u, 0, b'x');
    out(&mut u, 0, b'y');
    assert_eq!(irq.take_rises(), 3);
    assert_eq!(inb(&mut u, 5), LSR_TRANSMIT_EMPTY);
    assert_eq!(inb(&mut u, 2), IIR_TRANSMIT);
    out(&mut u, 1, 0);
    out(&mut u, 1, IER_TRANSMIT);
    assert_eq!(inb(&mut u, 2), IIR_TRANSMIT);
    assert_eq!(sent.0.lock().unwrap().0, b"xy");
}

#[test]
fn out2_gates_the_interrupt() {
    let (mut u, irq, _) = uart();
    out(&mut u, 1, IER_TRANSMIT);
    assert!(!irq.level());
    out(&mut u, 4, MCR_OUT2);
    assert!(irq.level());
    out(&mut u, 4, MCR_OUT2 | MCR_LOOP);
    assert!(!irq.level());
}

#[test]
fn receive_takes_what_fits_and_tells_when_there_is_room() {
    let (mut u, _, sent) = uart();
    assert_eq!(u.receive(b"ab", 0), 1);
    assert_eq!(inb(&mut u, 5) & LSR_READY, LSR_READY);
    assert_eq!(inb(&mut u, 0), b'a');
    out(&mut u, 2, FCR_ENABLE);
    sent.0.lock().unwrap().1.clear();
    assert_eq!(u.receive(&[b'z'; 20], 0), 16);
    assert_eq!(u.room(), 0);
    inb(&mut u, 0);
    assert_eq!(sent.0.lock().unwrap().1, [1]);
    assert_eq!(inb(&mut u, 5) & LSR_OVERRUN, 0);
}

#[test]
fn fifo_interrupts_at_its_trigger_level_or_after_four_character_times() {
    let (mut u, irq, _) = uart();
    out(&mut u, 3, LCR_DLAB | 3);
    out(&mut u, 0, 1); // 115200 baud
    out(&mut u, 3, 3);
    out(&mut u, 2, FCR_ENABLE | 0x80);
    out(&mut u, 4, MCR_OUT2);
    out(&mut u, 1, IER_RECEIVE);
    assert_eq!(u.receive(b"1234567", 1_000), 7);
    assert!(!irq.level());
    let at = u.deadline().expect("a character timeout");
    assert_eq!(at, 1_000 + 4 * 10 * 16 * NANOS_PER_SECOND / CRYSTAL_HZ);
    u.advance(at - 1);
    assert!(!irq.level());
    u.advance(at);
    assert!(irq.level());
    assert_eq!(u.read(2, 1, at) as u8, IIR_FIFOS | IIR_TIMEOUT);
    assert_eq!(u.read(0, 1, at) as u8, b'1');
    assert!(!irq.level());
    assert!(u.deadline().is_some(), "the rest times out again");
    u.receive(b"89", at);
    assert_eq!(u.read(2, 1, at) as u8, IIR_FIFOS | IIR_RECEIVE);
}

#[test]
fn causes_come_in_the_order_of_table_three() {
    let (mut u, _, _) = uart();
    out(&mut u, 2, FCR_ENABLE);
    out(&mut u, 1, 0x0F);
    u.receive_break(0);
    u.set_modem(false, true, false, true, 0);
    assert_eq!(inb(&mut u, 2) & 0x0F, IIR_LINE);
    assert_eq!(inb(&mut u, 5), LSR_TRANSMIT_EMPTY | LSR_READY | LSR_BREAK | 0x08 | LSR_FIFO_ERROR);
    assert_eq!(inb(&mut u, 5), LSR_TRANSMIT_EMPTY | LSR_READY);
    assert_eq!(inb(&mut u, 2) & 0x0F, IIR_RECEIVE);
    inb(&mut u, 0);
    assert_eq!(inb(&mut u, 2) & 0x0F, IIR_TRANSMIT);
    assert_eq!(inb(&mut u, 2) & 0x0F, IIR_MODEM);
    assert_eq!(inb(&mut u, 6), MSR_DSR | MSR_DCD | 0x01);
    assert_eq!(inb(&mut u, 2) & 0x0F, IIR_NONE);
}

#[test]
fn loopback_feeds_the_receiver_and_overruns() {
    let (mut u, _, sent) = uart();
    out(&mut u, 2, FCR_ENABLE);
    out(&mut u, 4, MCR_LOOP);
    assert_eq!(u.receive(b"x", 0), 0);
    for byte in 0..17 {
        out(&mut u, 0, byte);
    }
    assert_eq!(inb(&mut u, 5) & LSR_OVERRUN, LSR_OVERRUN);
    for byte in 0..16 {
        assert_eq!(inb(&mut u, 0), byte);
    }
    assert_eq!(inb(&mut u, 5), LSR_TRANSMIT_EMPTY);
    assert!(sent.0.lock().unwrap().0.is_empty());
}

#[test]
fn without_fifos_an_overrun_replaces_the_character() {
    let (mut u, _, _) = uart();
    out(&mut u, 4, MCR_LOOP);
    out(&mut u, 0, 1);
    out(&mut u, 0, 2);
    assert_eq!(inb(&mut u, 5) & (LSR_OVERRUN | LSR_READY), LSR_OVERRUN | LSR_READY);
    assert_eq!(inb(&mut u, 0), 2);
}

#[test]
fn ring_counts_when_it_ends() {
    let (mut u, _, _) = uart();
    u.set_modem(true, true, true, true, 0);
    assert_eq!(inb(&mut u, 6) & 0x0F, 0);
    u.set_modem(true, true, false, true, 0);
    assert_eq!(inb(&mut u, 6) & 0x0F, 0x04);
}

#[test]
fn a_record_with_too_long_a_fifo_is_refused() {
    let (mut u, _, _) = uart();
    let mut registers = u.registers.clone();
    registers.received = (0..17).map(|byte| (byte, 0)).collect();
    assert!(u.restore(&State::encode(KIND, 1, &registers)).is_err());
}
