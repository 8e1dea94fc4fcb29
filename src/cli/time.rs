//! Durations and UTC times as text; no clock but in [`now_ms`].

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Wall clock, milliseconds since the epoch.
pub fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
}

/// `90`, `90s`, `1.5 min`, `2h`, `7d`; `None` when it is none of these.
pub fn duration(text: &str) -> Option<Duration> {
    let text = text.trim();
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let factor = match unit.trim() {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        "d" => 86400.0,
        _ => return None,
    };
    let seconds: f64 = number.parse().ok()?;
    // A hundred years are enough, and far from any overflow.
    let seconds = seconds * factor;
    (seconds <= 3.2e9).then(|| Duration::from_secs_f64(seconds))
}

/// A point in time as given on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// This long ago.
    Ago(Duration),
    /// Milliseconds since the epoch.
    At(i64),
}

impl Moment {
    /// `now`, a duration ago, `2026-01-31`, `2026-01-31T12:00` or `2026-01-31T12:00:00`, the
    /// latter two with a blank for the T and with or without a Z, always UTC.
    pub fn parse(text: &str) -> Option<Self> {
        if text == "now" {
            return Some(Self::Ago(Duration::ZERO));
        }
        if let Some(d) = duration(text) {
            return Some(Self::Ago(d));
        }
        let text = text.strip_suffix('Z').unwrap_or(text);
        let (day, clock) = match text.split_once(['T', ' ']) {
            Some((d, c)) => (d, c),
            None => (text, "00:00:00"),
        };
        let mut date = day.splitn(3, '-');
        let days = days_from_civil(
            number(date.next()?, 4)?,
            number(date.next()?, 2)?,
            number(date.next()?, 2)?,
        )?;
        let mut parts = clock.splitn(3, ':');
        let (hours, minutes) = (number(parts.next()?, 2)?, number(parts.next()?, 2)?);
        let seconds = parts.next().map_or(Some(0), |s| number(s, 2))?;
        if hours > 23 || minutes > 59 || seconds > 59 {
            return None;
        }
        Some(Self::At(
            (days * 86400 + hours * 3600 + minutes * 60 + seconds) * 1000,
        ))
    }

    /// In milliseconds since the epoch.
    pub fn ms(self, now_ms: i64) -> i64 {
        match self {
            Self::Ago(d) => now_ms.saturating_sub(i64::try_from(d.as_millis()).unwrap_or(i64::MAX)),
            Self::At(ms) => ms,
        }
    }
}

fn number(text: &str, digits: usize) -> Option<i64> {
    let ok = text.len() == digits && text.bytes().all(|b| b.is_ascii_digit());
    ok.then(|| text.parse().ok()).flatten()
}

/// Days since 1970-01-01 of a date in the Gregorian calendar; `None` when there is no such day.
fn days_from_civil(y: i64, m: i64, d: i64) -> Option<i64> {
    if !(1..=12).contains(&m) || d < 1 {
        return None;
    }
    // Years begin in March, so that the leap day is the last one.
    let (y2, m2) = if m > 2 { (y, m - 3) } else { (y - 1, m + 9) };
    let era = y2.div_euclid(400);
    let year = y2.rem_euclid(400);
    let day = (153 * m2 + 2) / 5 + d - 1;
    let days = era * 146_097 + year * 365 + year / 4 - year / 100 + day - 719_468;
    (civil_from_days(days) == (y, m, d)).then_some(days)
}

fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let m = if mp < 10 { mp + 3 } else { mp - 9 };
    let y = yoe + era * 400 + i64::from(m <= 2);
    (y, m, doy - (153 * mp + 2) / 5 + 1)
}

/// `2026-01-31T12:00:00Z` of milliseconds since the epoch; with `.123` when `millis`.
pub fn utc(ms: i64, millis: bool) -> String {
    let seconds = ms.div_euclid(1000);
    let (y, m, d) = civil_from_days(seconds.div_euclid(86400));
    let t = seconds.rem_euclid(86400);
    let fraction = if millis {
        format!(".{:03}", ms.rem_euclid(1000))
    } else {
        String::new()
    };
    format!(
        "{y:04}-{m:02}-{d:02}T{:02}:{:02}:{:02}{fraction}Z",
        t / 3600,
        t / 60 % 60,
        t % 60
    )
}

/// `2026-01-31 12:00:00` of milliseconds since the epoch, for tables whose heading says UTC.
pub fn utc_short(ms: i64) -> String {
    utc(ms, false).replace('T', " ").replace('Z', "")
}

/// A length of time for people: `37 ms`, `1.5 s`, `2 min 5 s`, `3 h 20 min`, `2 d 4 h`.
pub fn span(ms: i64) -> String {
    let s = ms / 1000;
    match ms {
        ..1000 => format!("{ms} ms"),
        1000..60_000 => format!("{:.1} s", ms as f64 / 1000.0),
        60_000..3_600_000 => format!("{} min {} s", s / 60, s % 60),
        3_600_000..86_400_000 => format!("{} h {} min", s / 3600, s / 60 % 60),
        _ => format!("{} d {} h", s / 86400, s / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(duration("90"), Some(Duration::from_secs(90)));
        assert_eq!(duration("1.5 min"), Some(Duration::from_secs(90)));
        assert_eq!(duration("250ms"), Some(Duration::from_millis(250)));
        for bad in ["", "x", "1x", "-1", "1e99", "1.2.3", "99999999999999d"] {
            assert_eq!(duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn times() {
        let at = |s| Moment::parse(s).unwrap().ms(10_000);
        assert_eq!(at("now"), 10_000);
        assert_eq!(at("4s"), 6_000);
        assert_eq!(at("1970-01-02"), 86_400_000);
        assert_eq!(at("2000-02-29T12:30:05Z"), 951_827_405_000);
        assert_eq!(at("2000-02-29 12:30"), 951_827_400_000);
        assert_eq!(utc(951_827_405_007, true), "2000-02-29T12:30:05.007Z");
        assert_eq!(utc_short(951_827_405_007), "2000-02-29 12:30:05");
        assert_eq!(utc(-1, false), "1969-12-31T23:59:59Z");
        for bad in [
            "2001-02-29",
            "2000-13-01",
            "2000-01-01T24:00",
            "2000-1-1",
            "tomorrow",
        ] {
            assert_eq!(Moment::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn every_day_round_trips() {
        for day in (-200_000..200_000).step_by(17) {
            let (y, m, d) = civil_from_days(day);
            assert_eq!(days_from_civil(y, m, d), Some(day));
        }
    }

    #[test]
    fn spans() {
        for (ms, text) in [
            (37, "37 ms"),
            (1500, "1.5 s"),
            (125_000, "2 min 5 s"),
            (12_000_000, "3 h 20 min"),
            (187_200_000, "2 d 4 h"),
        ] {
            assert_eq!(span(ms), text);
        }
    }
}
