use super::*;
use crate::line::Probe;
use proptest::prelude::*;

/// 2024-02-29 23:59:58.
const EPOCH: i64 = 1_709_251_198;

fn rtc_at(epoch_seconds: i64) -> (Rtc, Arc<Probe>, Arc<Probe>) {
    let (irq, nmi) = (Probe::new(), Probe::new());
    let config = RtcConfig { epoch_seconds, low_memory: 512 << 20, high_memory: 1 << 30 };
    (Rtc::new(config, irq.clone(), nmi.clone()), irq, nmi)
}

fn get(rtc: &mut Rtc, index: u8, now: Nanos) -> u8 {
    rtc.write(0, 1, index.into(), now);
    rtc.read(1, 1, now) as u8
}

fn put(rtc: &mut Rtc, index: u8, value: u8, now: Nanos) {
    rtc.write(0, 1, index.into(), now);
    rtc.write(1, 1, value.into(), now);
}

fn shown(rtc: &mut Rtc, now: Nanos) -> [u8; 8] {
    [CENTURY, 9, 8, 7, 6, 4, 2, 0].map(|index| get(rtc, index, now))
}

#[test]
fn time_runs_in_bcd_over_a_leap_day() {
    let (mut rtc, _, _) = rtc_at(EPOCH);
    assert_eq!(shown(&mut rtc, 0), [0x20, 0x24, 0x02, 0x29, 5, 0x23, 0x59, 0x58]);
    assert_eq!(shown(&mut rtc, 2 * NANOS_PER_SECOND), [0x20, 0x24, 0x03, 0x01, 6, 0x00, 0x00, 0x00]);
}

#[test]
fn binary_and_twelve_hours() {
    let (mut rtc, _, _) = rtc_at(EPOCH);
    put(&mut rtc, REG_B, B_BINARY, 0);
    assert_eq!(shown(&mut rtc, 0), [20, 24, 2, 29, 5, 0x8B, 59, 58]);
    put(&mut rtc, REG_B, 0, 0);
    assert_eq!(get(&mut rtc, 4, 0), 0x91);
    assert_eq!(get(&mut rtc, 4, 2 * NANOS_PER_SECOND), 0x12, "midnight is 12 AM");
}

#[test]
fn update_in_progress_precedes_each_second() {
    let (mut rtc, _, _) = rtc_at(EPOCH);
    let quiet = NANOS_PER_SECOND - UPDATE_NANOS as u64;
    for (now, busy) in [
        (0, false),
        (quiet - 1, false),
        (quiet, true),
        (NANOS_PER_SECOND - 1, true),
        (NANOS_PER_SECOND, false),
    ] {
        assert_eq!(get(&mut rtc, REG_A, now) & A_UPDATING != 0, busy, "{now}");
    }
    put(&mut rtc, REG_B, B_SET | B_24_HOURS, NANOS_PER_SECOND);
    assert_eq!(get(&mut rtc, REG_A, 2 * NANOS_PER_SECOND - 1) & A_UPDATING, 0);
}

#[test]
fn the_guest_sets_the_clock_as_linux_does() {
    let (mut rtc, _, _) = rtc_at(EPOCH);
    let now = 300_000_000;
    put(&mut rtc, REG_B, B_SET | B_24_HOURS, now);
    put(&mut rtc, REG_A, 0x76, now);
    for (index, value) in [(9, 0x99), (8, 0x12), (7, 0x31), (4, 0x23), (2, 0x59), (0, 0x59), (CENTURY, 0x19)]
    {
        put(&mut rtc, index, value, now);
    }
    assert_eq!(get(&mut rtc, 0, now + 5 * NANOS_PER_SECOND), 0x59, "the clock stands");
    let now = 6 * NANOS_PER_SECOND;
    put(&mut rtc, REG_B, B_24_HOURS, now);
    put(&mut rtc, REG_A, 0x26, now);
    assert_eq!(shown(&mut rtc, now + 499_999_999), [0x19, 0x99, 0x12, 0x31, 6, 0x23, 0x59, 0x59]);
    assert_eq!(shown(&mut rtc, now + 500_000_000), [0x20, 0x00, 0x01, 0x01, 7, 0x00, 0x00, 0x00]);
}

#[test]
fn a_time_register_can_be_written_while_the_clock_runs() {
    let (mut rtc, _, _) = rtc_at(EPOCH);
    put(&mut rtc, 2, 0x30, 700_000_000);
    assert_eq!(get(&mut rtc, 0, NANOS_PER_SECOND), 0x59, "the second's phase is kept");
    assert_eq!(shown(&mut rtc, 2 * NANOS_PER_SECOND)[5..], [0x23, 0x31, 0x00]);
}

#[test]
fn the_periodic_interrupt_has_its_rate_and_waits_for_register_c() {
    let (mut rtc, irq, _) = rtc_at(EPOCH);
    put(&mut rtc, REG_B, PERIODIC | B_24_HOURS, 0);
    let mut ticks = 0;
    while let Some(due) = rtc.deadline().filter(|&due| due <= NANOS_PER_SECOND) {
        rtc.advance(due);
        assert!(irq.level());
        assert_eq!(rtc.deadline(), None, "nothing more until register C is read");
        assert_eq!(get(&mut rtc, REG_C, due) & (C_REQUEST | PERIODIC), C_REQUEST | PERIODIC);
        assert!(!irq.level());
        ticks += 1;
    }
    assert_eq!(ticks, 1024);
    rtc.advance(10 * NANOS_PER_SECOND);
    assert_eq!(irq.take_rises(), 1025, "a late host gives one interrupt");
}

#[test]
fn flags_are_set_even_when_not_enabled() {
    let (mut rtc, irq, _) = rtc_at(EPOCH);
    assert_eq!(get(&mut rtc, REG_C, NANOS_PER_SECOND), PERIODIC | UPDATED);
    assert_eq!(get(&mut rtc, REG_C, NANOS_PER_SECOND), 0);
    assert_eq!(irq.take_rises(), 0);
}

#[test]
fn update_ended_interrupts_each_second() {
    let (mut rtc, irq, _) = rtc_at(EPOCH);
    put(&mut rtc, REG_B, UPDATED | B_24_HOURS, 100);
    assert_eq!(rtc.deadline(), Some(NANOS_PER_SECOND));
    rtc.advance(NANOS_PER_SECOND);
    assert!(irq.level());
}

#[test]
fn the_alarm_matches_with_and_without_wildcards() {
    let (mut rtc, irq, _) = rtc_at(EPOCH);
    for (index, value) in [(SECONDS_ALARM, 0x10), (MINUTES_ALARM, 0x00), (HOURS_ALARM, 0x07)] {
        put(&mut rtc, index as u8, value, 0);
    }
    put(&mut rtc, REG_B, ALARM | B_24_HOURS, 0);
    assert_eq!(rtc.deadline(), Some((2 + 7 * 3600 + 10) * NANOS_PER_SECOND));
    put(&mut rtc, HOURS_ALARM as u8, 0xFF, 0);
    assert_eq!(rtc.deadline(), Some(12 * NANOS_PER_SECOND));
    put(&mut rtc, MINUTES_ALARM as u8, 0xC0, 0);
    put(&mut rtc, SECONDS_ALARM as u8, 0x58, 0);
    assert_eq!(rtc.deadline(), Some(60 * NANOS_PER_SECOND));
    put(&mut rtc, SECONDS_ALARM as u8, 0x61, 0);
    assert_eq!(rtc.deadline(), None);
    put(&mut rtc, SECONDS_ALARM as u8, 0xFF, 0);
    rtc.advance(NANOS_PER_SECOND);
    assert!(irq.level());
    assert_eq!(get(&mut rtc, REG_C, NANOS_PER_SECOND) & ALARM, ALARM);
}

#[test]
fn memory_sizes_and_checksum_are_stored() {
    let (mut rtc, _, _) = rtc_at(EPOCH);
    let word = |rtc: &mut Rtc, low| u16::from_le_bytes([get(rtc, low, 0), get(rtc, low + 1, 0)]);
    assert_eq!(word(&mut rtc, 0x15), 640);
    assert_eq!(word(&mut rtc, 0x17), 0xFFFF);
    assert_eq!(word(&mut rtc, 0x34), ((512 - 16) * 16) as u16);
    assert_eq!(word(&mut rtc, 0x5B), 0x4000);
    let sum = (0x10..0x2E).fold(0u16, |sum, index| sum + u16::from(get(&mut rtc, index, 0)));
    assert_eq!([get(&mut rtc, 0x2E, 0), get(&mut rtc, 0x2F, 0)], sum.to_be_bytes());
}

#[test]
fn the_second_bank_and_the_nmi_bit() {
    let (mut rtc, _, nmi) = rtc_at(EPOCH);
    rtc.write(2, 1, 0x15, 0);
    rtc.write(3, 1, 0x99, 0);
    assert_eq!((rtc.read(3, 1, 0), rtc.memory(0x95)), (0x99, 0x99));
    assert_eq!(get(&mut rtc, 0x15, 0), 0x80);
    rtc.write(0, 1, 0x8F, 0);
    assert!(nmi.level());
    rtc.write(0, 1, 0x0F, 0);
    assert!(!nmi.level());
}

#[test]
fn reset_keeps_time_and_memory() {
    let (mut rtc, irq, _) = rtc_at(EPOCH);
    put(&mut rtc, 0x40, 0x5A, 0);
    put(&mut rtc, REG_B, PERIODIC | B_24_HOURS, 0);
    rtc.advance(NANOS_PER_SECOND);
    assert!(irq.level());
    rtc.reset(NANOS_PER_SECOND);
    assert!(!irq.level());
    assert_eq!((rtc.memory(0x40), rtc.seconds(NANOS_PER_SECOND)), (0x5A, EPOCH + 1));
    assert_eq!(get(&mut rtc, REG_B, NANOS_PER_SECOND), B_24_HOURS);
}

proptest! {
    #[test]
    fn dates_round_trip(seconds in -60_000_000_000i64..250_000_000_000, binary: bool, hours_24: bool) {
        let date = DateTime::from_seconds(seconds);
        prop_assert_eq!(date.seconds(), seconds);
        prop_assert!((1..=12).contains(&date.month) && (1..=31).contains(&date.day));
        if (0..10_000).contains(&date.year) {
            let (mut memory, format) = ([0; BANK], Format { binary, hours_24 });
            date.store(&mut memory, format);
            prop_assert_eq!(DateTime::from_registers(&memory, format), date);
        }
    }

    #[test]
    fn an_alarm_is_found_where_a_search_second_by_second_finds_it(
        alarm in prop::array::uniform3(prop_oneof![0u8..0x24, 0u8..=255]), now in 0i64..DAY_SECONDS, hours_24: bool,
    ) {
        let format = Format { binary: false, hours_24 };
        let hit = |second: i64| {
            let mut memory = [0; BANK];
            DateTime::from_seconds(second).store(&mut memory, format);
            let same = |alarm: u8, shown: u8| alarm >= 0xC0 || alarm == shown;
            same(alarm[0], memory[4]) && same(alarm[1], memory[2]) && same(alarm[2], memory[0])
        };
        let found = calendar::seconds_to_alarm(alarm, format, now);
        match found {
            Some(ahead) => {
                prop_assert!(hit(now + ahead));
                prop_assert!((1..ahead.min(4000)).all(|sooner| !hit(now + sooner)));
            }
            None => prop_assert!((1..4000).all(|sooner| !hit(now + sooner))),
        }
    }
}

const DAY_SECONDS: i64 = 86_400;
