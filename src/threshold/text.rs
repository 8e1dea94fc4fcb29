//! Text form of thresholds.

use crate::feature::{FeatureError, Resource, Threshold};
use crate::usage::MIB;

const EXAMPLES: &str = "write it like 'cpu > 80 % for 10 s', 'memory > 512 MiB for 1 min' or \
                        'net_tx > 10 MiB/s for 30 s'";

/// Sizes in bytes; the binary ones first, which win in [`format()`] among equally short texts.
const SIZES: [(&str, f64); 7] = [
    ("GiB", 1_073_741_824.0),
    ("MiB", 1_048_576.0),
    ("KiB", 1024.0),
    ("B", 1.0),
    ("GB", 1e9),
    ("MB", 1e6),
    ("kB", 1e3),
];

/// Durations in seconds, the longer ones first.
const DURATIONS: [(&str, f64); 4] = [("h", 3600.0), ("min", 60.0), ("s", 1.0), ("ms", 0.001)];

/// Parses `RESOURCE > LIMIT UNIT [for DURATION UNIT]`; without `for` the duration is 0 s.
///
/// Errors name the part that is wrong and give an example.
pub fn parse(text: &str) -> Result<Threshold, FeatureError> {
    parse_inner(text.trim()).map_err(|why| {
        FeatureError::Threshold(text.trim().to_owned(), format!("{why}; {EXAMPLES}"))
    })
}

fn parse_inner(text: &str) -> Result<Threshold, String> {
    if text.is_empty() {
        return Err("it is empty".into());
    }
    let (name, rest) = text
        .split_once('>')
        .ok_or("there is no '>' between resource and limit")?;
    let name = name.trim();
    let resource = Resource::ALL
        .into_iter()
        .find(|r| r.as_str() == name)
        .ok_or_else(|| {
            let known: Vec<_> = Resource::ALL.iter().map(|r| r.as_str()).collect();
            format!("'{name}' is no resource, they are {}", known.join(", "))
        })?;
    let rest = rest.trim();
    if rest.starts_with('=') {
        return Err("'>=' is not supported, use '>'".into());
    }
    // `for` cannot be part of a number or unit, so its first occurrence separates.
    let (limit, duration) = match rest.split_once("for") {
        Some((l, d)) => (l.trim(), Some(d.trim())),
        None => (rest, None),
    };
    let (number, unit) = quantity(limit, "limit")?;
    let limit = number * limit_unit(resource, unit)?;
    let for_s = match duration {
        None => 0.0,
        Some(d) => {
            let (number, unit) = quantity(d, "duration")?;
            let scale = DURATIONS.iter().find(|(n, _)| *n == unit).ok_or_else(|| {
                format!("'{unit}' is no unit of a duration, they are ms, s, min and h")
            })?;
            number * scale.1
        }
    };
    if !limit.is_finite() || !for_s.is_finite() {
        return Err("a number is too large".into());
    }
    Ok(Threshold {
        resource,
        limit,
        for_s,
    })
}

/// Splits `80%` into 80 and `%`. `what` names the part in errors.
fn quantity<'a>(text: &'a str, what: &str) -> Result<(f64, &'a str), String> {
    if text.is_empty() {
        return Err(format!("the {what} is missing"));
    }
    if text.starts_with('-') {
        return Err(format!("the {what} '{text}' must not be negative"));
    }
    let end = text
        .find(|c: char| !(c.is_ascii_digit() || c == '.'))
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let number: f64 = number
        .parse()
        .map_err(|_| format!("the {what} '{text}' does not start with a number"))?;
    let unit = unit.trim();
    if unit.is_empty() {
        return Err(format!("the {what} '{text}' has no unit"));
    }
    Ok((number, unit))
}

/// What one of `unit` is in the resource's own unit.
fn limit_unit(resource: Resource, unit: &str) -> Result<f64, String> {
    let size = |name: &str| SIZES.iter().find(|(n, _)| *n == name).map(|(_, s)| *s);
    match resource {
        Resource::Cpu if unit == "%" => Ok(1.0),
        Resource::Cpu => Err(format!("'{unit}' is no unit of cpu, use %")),
        Resource::Memory => size(unit).map(|s| s / MIB).ok_or_else(|| {
            format!("'{unit}' is no unit of memory, they are B, KiB, MiB, GiB, kB, MB and GB")
        }),
        _ => unit
            .strip_suffix("/s")
            .and_then(|u| size(u.trim_end()))
            .ok_or_else(|| {
                format!(
                    "'{unit}' is no unit of {resource}, they are B/s, KiB/s, MiB/s, GiB/s, kB/s, \
                     MB/s and GB/s"
                )
            }),
    }
}

/// Writes a threshold so that [`parse`] gives the same one again, in the unit in which it is
/// shortest.
pub fn format(t: &Threshold) -> String {
    let limit = match t.resource {
        Resource::Cpu => format!("{} %", t.limit),
        Resource::Memory => exact(t.limit, "", MIB, "MiB"),
        _ => exact(t.limit, "/s", 1.0, "B"),
    };
    if t.for_s == 0.0 {
        format!("{} > {limit}", t.resource)
    } else {
        format!("{} > {limit} for {}", t.resource, duration(t.for_s))
    }
}

/// `value` (in units of `base` bytes) in the unit in which it is shortest without a loss.
fn exact(value: f64, suffix: &str, base: f64, base_name: &str) -> String {
    let own = format!("{value} {base_name}{suffix}");
    SIZES
        .iter()
        .map(|(name, size)| (value * base / size, name, size))
        .filter(|(n, _, size)| *n >= 1.0 && n * (*size / base) == value)
        .map(|(n, name, _)| format!("{n} {name}{suffix}"))
        .chain([own])
        .min_by_key(String::len)
        .unwrap_or_default()
}

fn duration(seconds: f64) -> String {
    for (name, scale) in DURATIONS {
        let n = seconds / scale;
        if n >= 1.0 && n.fract() == 0.0 && n * scale == seconds {
            return format!("{n} {name}");
        }
    }
    format!("{seconds} s")
}

/// A measured value or limit in the resource's unit, rounded for people: `93.4 %`, `12.0 MiB/s`.
pub fn format_value(resource: Resource, value: f64) -> String {
    let size = |bytes: f64| {
        let (name, scale) = SIZES[..3]
            .iter()
            .find(|(_, s)| bytes.abs() >= *s)
            .copied()
            .unwrap_or(("B", 1.0));
        if scale == 1.0 {
            format!("{bytes:.0} {name}")
        } else {
            format!("{:.1} {name}", bytes / scale)
        }
    };
    match resource {
        Resource::Cpu => format!("{value:.1} %"),
        Resource::Memory => size(value * MIB),
        _ => format!("{}/s", size(value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ok(text: &str) -> (Resource, f64, f64) {
        let t = parse(text).unwrap();
        (t.resource, t.limit, t.for_s)
    }

    #[test]
    fn grammar() {
        assert_eq!(ok("cpu > 80 % for 10 s"), (Resource::Cpu, 80.0, 10.0));
        assert_eq!(ok("cpu>80%for10s"), (Resource::Cpu, 80.0, 10.0));
        assert_eq!(ok("  cpu > 0.5 % "), (Resource::Cpu, 0.5, 0.0));
        assert_eq!(
            ok("memory > 512 MiB for 1 min"),
            (Resource::Memory, 512.0, 60.0)
        );
        assert_eq!(ok("memory > 2GiB"), (Resource::Memory, 2048.0, 0.0));
        assert_eq!(
            ok("net_tx > 10 MiB/s for 30 s"),
            (Resource::NetTx, 10_485_760.0, 30.0)
        );
        assert_eq!(
            ok("disk_write > 5 MB/s for 1.5h"),
            (Resource::DiskWrite, 5e6, 5400.0)
        );
        assert_eq!(ok("net_rx > 1 kB/s for 250 ms").2, 0.25);
    }

    #[test]
    fn errors_name_the_part() {
        for (text, part) in [
            ("", "empty"),
            ("cpu 80 %", "no '>'"),
            ("gpu > 80 %", "'gpu' is no resource"),
            ("cpu >= 80 %", "'>='"),
            ("cpu > % for 10 s", "does not start with a number"),
            ("cpu > 80", "has no unit"),
            ("cpu > 80 MiB", "'MiB' is no unit of cpu"),
            ("memory > 5 MiB/s", "'MiB/s' is no unit of memory"),
            ("net_tx > 5 MiB", "'MiB' is no unit of net_tx"),
            ("cpu > 80 % for", "the duration is missing"),
            ("cpu > 80 % for 10", "has no unit"),
            ("cpu > 80 % for 10 days", "'days' is no unit of a duration"),
            ("cpu > -1 %", "must not be negative"),
            ("cpu > 1.2.3 %", "does not start with a number"),
        ] {
            let e = parse(text).unwrap_err().to_string();
            assert!(e.contains(part), "{text}: {e}");
            assert!(e.contains("cpu > 80 % for 10 s"), "no example: {e}");
        }
    }

    #[test]
    fn short_forms() {
        for text in [
            "cpu > 80 % for 10 s",
            "memory > 512 MiB for 1 min",
            "memory > 1.5 GiB for 2 h",
            "net_tx > 10 MiB/s for 30 s",
            "net_rx > 900 B/s",
            "disk_read > 5 MB/s for 250 ms",
        ] {
            assert_eq!(format(&parse(text).unwrap()), text);
        }
        assert_eq!(format_value(Resource::NetTx, 12_582_912.0), "12.0 MiB/s");
    }

    proptest! {
        #[test]
        fn parses_back(r in 0usize..6, limit in 0.0f64..1e13, for_s in 0.0f64..1e6) {
            let t = Threshold { resource: Resource::ALL[r], limit, for_s };
            prop_assert_eq!(parse(&format(&t)).unwrap(), t);
        }
        #[test]
        fn parses_back_round(r in 0usize..6, limit in 0u32..100_000, for_ms in 0u32..10_000_000) {
            let t = Threshold {
                resource: Resource::ALL[r],
                limit: f64::from(limit),
                for_s: f64::from(for_ms) / 1000.0,
            };
            prop_assert_eq!(parse(&format(&t)).unwrap(), t);
        }
        #[test]
        fn never_panics(text in ".{0,60}") {
            let _ = parse(&text);
        }
    }
}
