use super::*;
use crate::line::Probe;

const MASTER: u64 = 0;
const SLAVE: u64 = 2;

fn out(pic: &mut PicPair, offset: u64, value: u8) {
    pic.write(offset, 1, value.into(), 0);
}

fn inb(pic: &mut PicPair, offset: u64) -> u8 {
    pic.read(offset, 1, 0) as u8
}

/// Initialised as a PC's firmware does: vectors 08h and 70h, nothing masked.
fn pic(icw4: u8) -> (PicPair, Arc<Probe>) {
    let probe = Probe::new();
    let mut pic = PicPair::new(probe.clone());
    for (base, words) in [(MASTER, [0x08, 0x04, icw4]), (SLAVE, [0x70, 0x02, icw4])] {
        out(&mut pic, base, 0x11);
        for word in words {
            out(&mut pic, base + 1, word);
        }
    }
    (pic, probe)
}

fn pulse(pic: &mut PicPair, irq: u8) {
    pic.set_irq(irq, false);
    pic.set_irq(irq, true);
}

#[test]
fn requests_are_served_by_priority_and_nest() {
    let (mut pic, intr) = pic(1);
    pic.set_irq(4, true);
    pic.set_irq(1, true);
    assert!(intr.level());
    assert_eq!(pic.acknowledge(), 0x09);
    assert!(!intr.level(), "IRQ 4 is held back by IRQ 1");
    pulse(&mut pic, 0);
    assert_eq!(pic.acknowledge(), 0x08);
    out(&mut pic, MASTER, 0x20);
    out(&mut pic, MASTER, 0x20);
    assert_eq!(pic.acknowledge(), 0x0C);
    out(&mut pic, MASTER, 0x64);
    out(&mut pic, MASTER, 0x0B);
    assert_eq!(inb(&mut pic, MASTER), 0);
}

#[test]
fn the_slave_comes_through_the_cascade() {
    let (mut pic, intr) = pic(1);
    pic.set_irq(12, true);
    pic.set_irq(8, true);
    assert_eq!(pic.acknowledge(), 0x70);
    assert!(!intr.level());
    out(&mut pic, MASTER, 0x0B);
    out(&mut pic, SLAVE, 0x0B);
    assert_eq!((inb(&mut pic, MASTER), inb(&mut pic, SLAVE)), (0x04, 0x01));
    out(&mut pic, SLAVE, 0x20);
    assert!(!intr.level(), "the master still serves its input 2");
    out(&mut pic, MASTER, 0x20);
    assert_eq!(pic.acknowledge(), 0x74);
}

#[test]
fn an_edge_counts_once_and_vanishes_with_its_line() {
    let (mut pic, intr) = pic(1);
    pic.set_irq(3, true);
    assert_eq!(pic.acknowledge(), 0x0B);
    out(&mut pic, MASTER, 0x20);
    assert!(!intr.level(), "a high line alone is no second request");
    pulse(&mut pic, 3);
    assert!(intr.level());
    pic.set_irq(3, false);
    assert!(!intr.level());
}

#[test]
fn a_vanished_request_is_spurious_and_not_in_service() {
    let (mut pic, _) = pic(1);
    assert_eq!(pic.acknowledge(), 0x0F);
    out(&mut pic, MASTER, 0x0B);
    assert_eq!(inb(&mut pic, MASTER), 0);
    // On the slave: the cascade is acknowledged, and by then the slave has nothing.
    pic.set_irq(9, true);
    pic.slave.set_line(1, false);
    assert_eq!(pic.acknowledge(), 0x77);
    out(&mut pic, SLAVE, 0x0B);
    assert_eq!((inb(&mut pic, MASTER), inb(&mut pic, SLAVE)), (0x04, 0));
}

#[test]
fn a_level_input_asks_again_after_the_end_of_interrupt() {
    let (mut pic, intr) = pic(1);
    out(&mut pic, 4, 0xFF);
    out(&mut pic, 5, 0xFF);
    assert_eq!((inb(&mut pic, 4), inb(&mut pic, 5)), (0xF8, 0xDE));
    pic.set_irq(9, true);
    assert_eq!(pic.acknowledge(), 0x71);
    assert!(!intr.level());
    out(&mut pic, SLAVE, 0x20);
    out(&mut pic, MASTER, 0x20);
    assert!(intr.level());
    pic.set_irq(9, false);
    assert!(!intr.level());
}

#[test]
fn masked_edges_wait() {
    let (mut pic, intr) = pic(1);
    out(&mut pic, MASTER + 1, 0xFF);
    pic.set_irq(5, true);
    assert!(!intr.level());
    out(&mut pic, MASTER, 0x0A);
    assert_eq!(inb(&mut pic, MASTER), 0x20);
    out(&mut pic, MASTER + 1, 0xDF);
    assert_eq!(pic.acknowledge(), 0x0D);
}

#[test]
fn initialisation_clears_mask_service_and_edges() {
    let (mut pic, intr) = pic(1);
    out(&mut pic, MASTER + 1, 0x55);
    pic.set_irq(1, true);
    out(&mut pic, MASTER, 0x11);
    assert!(!intr.level(), "the edge must come again");
    out(&mut pic, MASTER + 1, 0x20);
    out(&mut pic, MASTER + 1, 0x04);
    out(&mut pic, MASTER + 1, 0x01);
    assert_eq!(inb(&mut pic, MASTER + 1), 0);
    pulse(&mut pic, 1);
    assert_eq!(pic.acknowledge(), 0x21);
}

#[test]
fn automatic_end_of_interrupt_leaves_nothing_in_service() {
    let (mut pic, intr) = pic(3);
    pic.set_irq(8, true);
    pic.set_irq(9, true);
    assert_eq!(pic.acknowledge(), 0x70);
    assert!(intr.level());
    assert_eq!(pic.acknowledge(), 0x71);
    assert!(!intr.level());
}

#[test]
fn rotation_gives_the_served_input_the_lowest_priority() {
    let (mut pic, _) = pic(1);
    pic.set_irq(3, true);
    pic.set_irq(4, true);
    assert_eq!(pic.acknowledge(), 0x0B);
    out(&mut pic, MASTER, 0xA0); // Rotate on non-specific end of interrupt.
    pulse(&mut pic, 3);
    assert_eq!(pic.acknowledge(), 0x0C);
    out(&mut pic, MASTER, 0x20);
    out(&mut pic, MASTER, 0xC7); // Set priority: input 7 lowest again.
    pulse(&mut pic, 4);
    assert_eq!(pic.acknowledge(), 0x0B);
}

#[test]
fn rotation_in_automatic_mode_follows_its_switch() {
    let (mut pic, _) = pic(3);
    out(&mut pic, MASTER, 0x80);
    pic.set_irq(0, true);
    pic.acknowledge();
    pulse(&mut pic, 0);
    pic.set_irq(1, true);
    assert_eq!(pic.acknowledge(), 0x09);
    out(&mut pic, MASTER, 0x00);
}

#[test]
fn special_mask_mode_lets_lower_levels_in() {
    let (mut pic, intr) = pic(1);
    pic.set_irq(1, true);
    pic.acknowledge();
    pic.set_irq(6, true);
    assert!(!intr.level());
    out(&mut pic, MASTER + 1, 0x02);
    out(&mut pic, MASTER, 0x68);
    assert_eq!(pic.acknowledge(), 0x0E);
    out(&mut pic, MASTER, 0x20);
    out(&mut pic, MASTER, 0x0B);
    assert_eq!(inb(&mut pic, MASTER), 0x02, "the masked level stays in service");
}

#[test]
fn special_fully_nested_mode_lets_the_slave_interrupt_itself() {
    let (mut pic, _) = pic(0x11);
    pic.set_irq(12, true);
    assert_eq!(pic.acknowledge(), 0x74);
    pic.set_irq(8, true);
    assert_eq!(pic.acknowledge(), 0x70);
}

#[test]
fn polling_acknowledges() {
    let (mut pic, intr) = pic(1);
    pic.set_irq(10, true);
    out(&mut pic, MASTER, 0x0C);
    assert_eq!(inb(&mut pic, MASTER), 0x82);
    out(&mut pic, SLAVE, 0x0C);
    assert_eq!(inb(&mut pic, SLAVE), 0x82);
    assert!(!intr.level());
    out(&mut pic, SLAVE, 0x0C);
    assert_eq!(inb(&mut pic, SLAVE), 0x00);
    out(&mut pic, SLAVE, 0x0B);
    assert_eq!(inb(&mut pic, SLAVE), 0x04);
}
