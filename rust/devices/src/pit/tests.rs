use super::*;
use crate::NANOS_PER_SECOND;
use crate::line::Probe;

fn pit() -> (Pit, Arc<Probe>) {
    let probe = Probe::new();
    (Pit::new(probe.clone()), probe)
}

fn out(pit: &mut Pit, offset: u64, value: u8, now: Nanos) {
    pit.write(offset, 1, value.into(), now);
}

fn inb(pit: &mut Pit, offset: u64, now: Nanos) -> u8 {
    pit.read(offset, 1, now) as u8
}

fn set(pit: &mut Pit, channel: u8, mode: u8, count: u16, now: Nanos) {
    out(pit, 3, channel << 6 | 0x30 | mode << 1, now);
    out(pit, channel.into(), count as u8, now);
    out(pit, channel.into(), (count >> 8) as u8, now);
}

fn at(tick: i64) -> Nanos {
    CLOCK.time(tick as u64).unwrap()
}

fn latch(pit: &mut Pit, channel: u8, now: Nanos) -> u16 {
    out(pit, 3, channel << 6, now);
    let low = inb(pit, channel.into(), now);
    u16::from_le_bytes([low, inb(pit, channel.into(), now)])
}

/// The output of channel 2 at each of `ticks`, as a string of the data sheet's waveform.
fn wave(pit: &Pit, ticks: std::ops::Range<i64>) -> String {
    ticks.map(|tick| if pit.output(2, at(tick)) { '-' } else { '_' }).collect()
}

#[test]
fn mode_0_counts_down_once() {
    let (mut pit, _) = pit();
    pit.set_gate(2, true, 0);
    set(&mut pit, 2, 0, 4, at(10));
    // Written in tick 10, loaded in 11, zero in 15.
    assert_eq!(wave(&pit, 10..20), "_____-----");
    assert_eq!(latch(&mut pit, 2, at(12)), 3);
    assert_eq!(latch(&mut pit, 2, at(16)), 0xFFFF, "counting goes on below zero");
}

#[test]
fn mode_0_stops_while_the_gate_is_low() {
    let (mut pit, _) = pit();
    pit.set_gate(2, true, 0);
    set(&mut pit, 2, 0, 10, at(0));
    pit.set_gate(2, false, at(4));
    assert_eq!(latch(&mut pit, 2, at(100)), 7);
    pit.set_gate(2, true, at(100));
    assert_eq!(latch(&mut pit, 2, at(102)), 5);
    assert!(!pit.output(2, at(106)) && pit.output(2, at(107)));
}

#[test]
fn mode_1_is_triggered_by_the_gate_and_retriggers() {
    let (mut pit, _) = pit();
    set(&mut pit, 2, 1, 3, at(0));
    assert_eq!(wave(&pit, 0..5), "-----");
    pit.set_gate(2, true, at(5));
    assert_eq!(wave(&pit, 5..11), "-___--");
    pit.set_gate(2, false, at(7));
    pit.set_gate(2, true, at(7));
    assert_eq!(wave(&pit, 8..13), "___--");
}

#[test]
fn mode_2_is_low_for_one_pulse_of_each_period() {
    let (mut pit, _) = pit();
    pit.set_gate(2, true, 0);
    set(&mut pit, 2, 2, 3, at(0));
    assert_eq!(wave(&pit, 0..10), "---_--_--_");
    // A new count waits for the end of the period.
    out(&mut pit, 2, 5, at(4));
    out(&mut pit, 2, 0, at(4));
    assert_eq!(wave(&pit, 4..17), "--_----_----_");
    pit.set_gate(2, false, at(8));
    assert_eq!(wave(&pit, 8..20), "------------");
    pit.set_gate(2, true, at(20));
    assert_eq!(wave(&pit, 20..32), "-----_----_-");
}

#[test]
fn mode_3_is_a_square_wave_and_longer_high_for_odd_counts() {
    let (mut pit, _) = pit();
    pit.set_gate(2, true, 0);
    set(&mut pit, 2, 3, 4, at(0));
    assert_eq!(wave(&pit, 1..13), "--__--__--__");
    assert_eq!([1, 2, 3, 4, 5].map(|t| latch(&mut pit, 2, at(t))), [4, 2, 4, 2, 4]);
    // Written in a high half, the new count begins with the low half.
    out(&mut pit, 2, 5, at(9));
    out(&mut pit, 2, 0, at(9));
    assert_eq!(wave(&pit, 9..21), "--__---__---");
}

#[test]
fn modes_4_and_5_strobe_once() {
    let (mut pit, _) = pit();
    pit.set_gate(2, true, 0);
    set(&mut pit, 2, 4, 3, at(0));
    assert_eq!(wave(&pit, 0..8), "----_---");
    pit.set_gate(2, false, at(10));
    set(&mut pit, 2, 5, 2, at(20));
    assert_eq!(wave(&pit, 20..30), "----------");
    pit.set_gate(2, true, at(30));
    assert_eq!(wave(&pit, 30..36), "---_--");
}

#[test]
fn read_back_latches_status_before_count() {
    let (mut pit, _) = pit();
    out(&mut pit, 3, 0x34, 0);
    out(&mut pit, 3, 0xC2, 0);
    assert_eq!(inb(&mut pit, 0, 0), 0x80 | 0x40 | 0x34, "null until a count is written");
    inb(&mut pit, 0, 0);
    inb(&mut pit, 0, 0);
    set(&mut pit, 0, 2, 0x1234, at(0));
    out(&mut pit, 3, 0xC2, at(0x11));
    assert_eq!(inb(&mut pit, 0, at(0x50)), 0xB4);
    assert_eq!(inb(&mut pit, 0, at(0x51)), 0x24);
    assert_eq!(inb(&mut pit, 0, at(0x52)), 0x12);
}

#[test]
fn bcd_counts_in_decimal() {
    let (mut pit, _) = pit();
    pit.set_gate(2, true, 0);
    out(&mut pit, 3, 0xB1, 0);
    out(&mut pit, 2, 0x00, 0);
    out(&mut pit, 2, 0x10, 0);
    assert_eq!(latch(&mut pit, 2, at(2)), 0x0999);
    assert!(!pit.output(2, at(1000)) && pit.output(2, at(1001)));
    assert_eq!(latch(&mut pit, 2, at(1002)), 0x9999);
}

#[test]
fn single_byte_access_leaves_the_other_half_zero() {
    let (mut pit, _) = pit();
    out(&mut pit, 3, 0x14, 0);
    out(&mut pit, 0, 0x80, 0);
    assert_eq!(inb(&mut pit, 0, at(1)), 0x80);
    assert_eq!(inb(&mut pit, 0, at(2)), 0x7F);
    out(&mut pit, 3, 0x24, at(3));
    out(&mut pit, 0, 0x02, at(3));
    assert_eq!(inb(&mut pit, 0, at(5)), 0x01);
}

#[test]
fn the_interrupt_ticks_a_hundred_times_a_second() {
    let (mut pit, irq) = pit();
    set(&mut pit, 0, 2, 11_932, 0);
    irq.take_rises();
    let mut ticks = 0;
    while let Some(due) = pit.deadline().filter(|&due| due <= NANOS_PER_SECOND) {
        pit.advance(due - 1);
        assert_eq!(irq.take_rises(), 0);
        pit.advance(due);
        ticks += irq.take_rises();
    }
    assert_eq!(ticks, 99); // 1193182 / 11932 = 99.998, and the first load costs a tick.
}

#[test]
fn a_late_host_delivers_one_tick_and_drops_the_rest() {
    let (mut pit, irq) = pit();
    set(&mut pit, 0, 2, 1193, 0);
    irq.take_rises();
    pit.advance(NANOS_PER_SECOND);
    assert_eq!(irq.take_rises(), 1);
    assert!(pit.deadline().unwrap() > NANOS_PER_SECOND);
}

#[test]
fn one_shot_modes_interrupt_once() {
    for (mode, extra) in [(0, 0), (4, 1)] {
        let (mut pit, irq) = pit();
        set(&mut pit, 0, mode, 100, 0);
        irq.take_rises();
        assert_eq!(pit.deadline(), Some(at(101 + extra)));
        pit.advance(at(101 + extra));
        assert_eq!(irq.take_rises(), 1);
        assert_eq!(pit.deadline(), None);
    }
}

#[test]
fn setting_a_mode_with_a_high_output_gives_an_edge_from_a_low_one() {
    let (mut pit, irq) = pit();
    set(&mut pit, 0, 0, 1000, 0);
    assert!(!irq.level());
    irq.take_rises();
    out(&mut pit, 3, 0x34, at(5));
    assert_eq!(irq.take_rises(), 1);
}

#[test]
fn linux_pit_calibration_sees_the_msb_fall() {
    let (mut pit, _) = pit();
    pit.set_gate(2, true, 0);
    out(&mut pit, 3, 0xB0, 0);
    out(&mut pit, 2, 0xFF, 0);
    out(&mut pit, 2, 0xFF, 0);
    for high in (0xF0..=0xFF).rev() {
        let now = at(1 + (0xFF - i64::from(high)) * 256 + 10);
        inb(&mut pit, 2, now);
        assert_eq!(inb(&mut pit, 2, now), high);
    }
}
