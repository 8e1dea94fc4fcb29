//! Thresholds as text: `cpu > 80 % for 10 s`.

use crate::feature::{FeatureError, Resource, Threshold};

/// Parses `RESOURCE > LIMIT UNIT for DURATION`; an error names the text and what is wrong.
pub fn parse(text: &str) -> Result<Threshold, FeatureError> {
    let bad = |why: &str| FeatureError::Threshold(text.to_owned(), why.to_owned());
    let words: Vec<&str> = text.split_whitespace().collect();
    let [resource, ">", limit, unit, "for", time, time_unit] = words[..] else {
        return Err(bad("write it as RESOURCE > LIMIT UNIT for DURATION"));
    };
    let resource = Resource::ALL
        .into_iter()
        .find(|r| r.as_str() == resource)
        .ok_or_else(|| bad("the resource is not known"))?;
    let number = |s: &str| s.parse::<f64>().ok().filter(|n| n.is_finite() && *n >= 0.0);
    let factor = match (resource, unit) {
        (Resource::Cpu, "%") | (Resource::Memory, "MiB") => 1.0,
        (Resource::Memory, "GiB") => 1024.0,
        (Resource::Cpu | Resource::Memory, _) => return Err(bad("the unit does not fit")),
        (_, "B/s") => 1.0,
        (_, "KiB/s") => 1024.0,
        (_, "MiB/s") => 1_048_576.0,
        (_, "GiB/s") => 1_073_741_824.0,
        _ => return Err(bad("the unit does not fit")),
    };
    let seconds = match time_unit {
        "s" => 1.0,
        "min" => 60.0,
        "h" => 3600.0,
        _ => return Err(bad("the duration's unit is s, min or h")),
    };
    Ok(Threshold {
        resource,
        limit: number(limit).ok_or_else(|| bad("the limit is not a number"))? * factor,
        for_s: number(time).ok_or_else(|| bad("the duration is not a number"))? * seconds,
    })
}

/// Writes a threshold so that [`parse`] reads the same one.
pub fn text(t: &Threshold) -> String {
    let (limit, unit) = match t.resource {
        Resource::Cpu => (t.limit, "%"),
        Resource::Memory => (t.limit, "MiB"),
        _ => scaled(
            t.limit,
            &[
                (1_073_741_824.0, "GiB/s"),
                (1_048_576.0, "MiB/s"),
                (1024.0, "KiB/s"),
            ],
            "B/s",
        ),
    };
    let (time, time_unit) = scaled(t.for_s, &[(3600.0, "h"), (60.0, "min")], "s");
    format!(
        "{} > {limit} {unit} for {time} {time_unit}",
        t.resource.as_str()
    )
}

/// The largest unit that gives a whole number.
fn scaled<'a>(value: f64, units: &[(f64, &'a str)], base: &'a str) -> (f64, &'a str) {
    units
        .iter()
        .find(|(f, _)| value >= *f && value % f == 0.0)
        .map_or((value, base), |(f, u)| (value / f, u))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        for s in [
            "cpu > 80 % for 10 s",
            "memory > 512 MiB for 1 min",
            "net_tx > 10 MiB/s for 30 s",
            "net_rx > 1 GiB/s for 2 h",
            "disk_read > 1500 B/s for 0.5 s",
            "disk_write > 3 KiB/s for 90 s",
        ] {
            assert_eq!(text(&parse(s).unwrap()), s);
        }
    }

    #[test]
    fn refusals_name_the_text() {
        for s in [
            "",
            "cpu > x % for 10 s",
            "gpu > 1 % for 1 s",
            "cpu > 1 MiB for 1 s",
        ] {
            let e = parse(s).unwrap_err().to_string();
            assert!(e.contains(&format!("'{s}'")), "{e}");
        }
    }
}
