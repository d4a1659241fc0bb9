//! The RTC's calendar: seconds since 1970 to and from the time registers, in binary or BCD, 12 or 24 hours, and the alarm.
use super::CENTURY;

const DAY: i64 = 86_400;
/// Alarm bytes from C0h on match any value (data sheet, "Time, Calendar and Alarm Locations").
const DONT_CARE: u8 = 0xC0;

/// How register B says that the time registers are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Format {
    pub(super) binary: bool,
    pub(super) hours_24: bool,
}

impl Format {
    fn encode(self, value: i64) -> u8 {
        let value = value.rem_euclid(100) as u8;
        if self.binary { value } else { ((value / 10) << 4) | (value % 10) }
    }

    fn decode(self, value: u8) -> i64 {
        if self.binary { value.into() } else { i64::from(value >> 4) * 10 + i64::from(value & 0x0F) }
    }

    fn encode_hour(self, hour: i64) -> u8 {
        match (self.hours_24, hour) {
            (true, _) => self.encode(hour),
            (false, 0) => self.encode(12),
            (false, 1..=12) => self.encode(hour) | if hour == 12 { 0x80 } else { 0 },
            (false, _) => self.encode(hour - 12) | 0x80,
        }
    }

    fn decode_hour(self, value: u8) -> i64 {
        if self.hours_24 {
            return self.decode(value);
        }
        self.decode(value & 0x7F) % 12 + if value & 0x80 != 0 { 12 } else { 0 }
    }
}

/// A moment of the Gregorian calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DateTime {
    pub(super) year: i64,
    pub(super) month: i64,
    pub(super) day: i64,
    pub(super) hour: i64,
    pub(super) minute: i64,
    pub(super) second: i64,
}

/// Days from 1970-01-01 to the first of March of `year`. Years that begin in March end with the leap day.
fn days_to_march(year: i64) -> i64 {
    365 * year + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) - 719_468
}

/// Days from the first of March to the first of a month, months counted from March.
fn days_of_months(months: i64) -> i64 {
    (153 * months + 2) / 5
}

impl DateTime {
    pub(super) fn from_seconds(seconds: i64) -> DateTime {
        let (days, time) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
        // A year has 365.2425 days; the estimate is at most one year off.
        let mut year =
            (days + 719_468).div_euclid(146_097) * 400 + (days + 719_468).rem_euclid(146_097) * 400 / 146_097;
        while days_to_march(year) > days {
            year -= 1;
        }
        while days_to_march(year + 1) <= days {
            year += 1;
        }
        let day_of_year = days - days_to_march(year);
        let months = (5 * day_of_year + 2) / 153;
        let month = if months < 10 { months + 3 } else { months - 9 };
        DateTime {
            year: year + i64::from(month <= 2),
            month,
            day: day_of_year - days_of_months(months) + 1,
            hour: time / 3600,
            minute: time / 60 % 60,
            second: time % 60,
        }
    }

    /// Out-of-range days, hours, minutes and seconds carry over, as they come from the guest.
    pub(super) fn seconds(self) -> i64 {
        let month = self.month.clamp(1, 12);
        let (year, months) = if month > 2 { (self.year, month - 3) } else { (self.year - 1, month + 9) };
        let days = days_to_march(year) + days_of_months(months) + self.day - 1;
        days * DAY + self.hour * 3600 + self.minute * 60 + self.second
    }

    pub(super) fn from_registers(memory: &[u8], format: Format) -> DateTime {
        let field = |index: usize| format.decode(memory[index]);
        DateTime {
            year: field(CENTURY.into()) * 100 + field(9),
            month: field(8),
            day: field(7),
            hour: format.decode_hour(memory[4]),
            minute: field(2),
            second: field(0),
        }
    }

    pub(super) fn store(self, memory: &mut [u8], format: Format) {
        // 1970-01-01 was a Thursday; the register counts from Sunday, which is 1.
        let weekday = (self.seconds().div_euclid(DAY) + 4).rem_euclid(7) + 1;
        memory[0] = format.encode(self.second);
        memory[2] = format.encode(self.minute);
        memory[4] = format.encode_hour(self.hour);
        memory[6] = format.encode(weekday);
        memory[7] = format.encode(self.day);
        memory[8] = format.encode(self.month);
        memory[9] = format.encode(self.year);
        memory[usize::from(CENTURY)] = format.encode(self.year.div_euclid(100));
    }
}

pub(super) fn is_time_register(index: u8) -> bool {
    matches!(index, 0 | 2 | 4 | 6..=9 | CENTURY)
}

/// How many seconds (1 to 86400) after `second` the alarm bytes for hour, minute and second next match; `None` if no time
/// of day matches them.
pub(super) fn seconds_to_alarm(alarm: [u8; 3], format: Format, second: i64) -> Option<i64> {
    let matches = |alarm: u8, shown: u8| alarm >= DONT_CARE || alarm == shown;
    let of_day = second.rem_euclid(DAY);
    for hour in of_day / 3600..of_day / 3600 + 25 {
        if !matches(alarm[0], format.encode_hour(hour % 24)) {
            continue;
        }
        for minute in (0..60).filter(|&minute| matches(alarm[1], format.encode(minute))) {
            let start = hour * 3600 + minute * 60;
            if start + 59 <= of_day {
                continue;
            }
            let hit = (0..60).find(|&s| start + s > of_day && matches(alarm[2], format.encode(s)));
            if let Some(s) = hit {
                return Some(start + s - of_day);
            }
        }
    }
    None
}
