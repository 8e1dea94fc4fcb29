//! `history`: table, JSON, CSV, OpenMetrics, plot.

use std::io::{self, Write};

use serde_json::{Map, Value};

use super::super::screen::Screen;
use super::super::table::{Cell, Table};
use super::super::time::{span, utc, utc_short};
use super::plot::{self, Curve, Dot};
use super::{json, percent, value};
use crate::api::{HistoryPage, HistoryPoint};
use crate::columns::{COLUMNS, Column, Unit};
use crate::feature::{FeatureName, Resource};
use crate::usage::Usage;

/// The asked columns in display order: all, or the asked resources.
fn columns(only: &[Resource]) -> Vec<&'static Column> {
    let wanted = |c: &&Column| only.is_empty() || c.resource.is_some_and(|r| only.contains(&r));
    COLUMNS.iter().filter(wanted).collect()
}

/// A column's value for people.
fn shown(c: &Column, v: Option<f64>) -> String {
    match (c.resource, c.unit, v) {
        (Some(r), _, v) => value(r, v),
        (None, Unit::Mib, v) => value(Resource::Memory, v),
        (None, Unit::BytesPerSecond, v) => value(Resource::NetRx, v),
        (None, Unit::Count, Some(n)) => format!("{n:.0}"),
        (None, Unit::PerSecond, Some(n)) => format!("{n:.1}"),
        (None, _, v) => percent(v),
    }
}

/// Parts of a rollup that are shown of each column, by name.
type Part = (&'static str, fn(&HistoryPoint) -> &Usage);
const MEAN: Part = ("", |p| &p.mean);
const PARTS: [Part; 3] = [
    ("min", |p| p.min.as_ref().unwrap_or(&p.mean)),
    ("max", |p| p.max.as_ref().unwrap_or(&p.mean)),
    ("last", |p| p.last.as_ref().unwrap_or(&p.mean)),
];

/// Are there points of more than one sample?
fn rolled(page: &HistoryPage) -> bool {
    page.step_ms > 0 || page.points.iter().any(|p| p.max.is_some())
}

/// For people. `only` empty shows the means of all columns, otherwise least and most of the asked
/// resources too.
pub fn table(
    out: &mut dyn Write,
    page: &HistoryPage,
    only: &[Resource],
    screen: &Screen,
) -> io::Result<()> {
    let columns = columns(only);
    let detailed = rolled(page) && !only.is_empty();
    if page.step_ms > 0 {
        let what = if detailed {
            "mean, least, most, last"
        } else {
            "means"
        };
        writeln!(out, "Steps of {}: {what}", span(page.step_ms))?;
    }
    let mut head: Vec<String> = vec!["Time (UTC)".to_owned()];
    for c in &columns {
        head.push(format!(">{}", c.heading));
        if detailed {
            head.extend(PARTS.iter().map(|(name, _)| format!(">{name}")));
        }
    }
    let mut t = Table::owned(head);
    for p in &page.points {
        let mut cells: Vec<Cell> = vec![utc_short(p.mean.at_ms).into()];
        for c in &columns {
            cells.push(shown(c, (c.get)(&p.mean)).into());
            if detailed {
                cells.extend(
                    PARTS
                        .iter()
                        .map(|(_, of)| Cell::from(shown(c, (c.get)(of(p))))),
                );
            }
        }
        t.row(cells);
    }
    t.write(out, screen)
}

/// Names and values of a point's columns, in the units of CSV and JSON.
fn fields(page: &HistoryPage, only: &[Resource]) -> Vec<(String, &'static Column, Part)> {
    let mut all = Vec::new();
    for c in columns(only) {
        all.push((c.name.to_owned(), c, MEAN));
        if rolled(page) {
            all.extend(PARTS.iter().map(|p| (format!("{}_{}", c.name, p.0), c, *p)));
        }
    }
    all
}

/// For spreadsheets: numbers in the columns' units (percent of one CPU or of the time, MiB, bytes
/// per second), empty when unavailable.
pub fn csv(out: &mut dyn Write, page: &HistoryPage, only: &[Resource]) -> io::Result<()> {
    let fields = fields(page, only);
    let names: Vec<&str> = fields.iter().map(|f| f.0.as_str()).collect();
    writeln!(out, "time,at_ms,interval_s,{}", names.join(","))?;
    for p in &page.points {
        let u = &p.mean;
        write!(out, "{},{},{}", utc(u.at_ms, true), u.at_ms, u.dt_s)?;
        for (_, c, (_, of)) in &fields {
            match (c.get)(of(p)) {
                Some(v) => write!(out, ",{v}")?,
                None => write!(out, ",")?,
            }
        }
        writeln!(out)?;
    }
    Ok(())
}

/// For programs: a list of objects with the names of the CSV; `null` when unavailable.
pub fn as_json(out: &mut dyn Write, page: &HistoryPage, only: &[Resource]) -> io::Result<()> {
    let fields = fields(page, only);
    let list: Vec<Value> = page
        .points
        .iter()
        .map(|p| {
            let mut m = Map::new();
            m.insert("time".into(), utc(p.mean.at_ms, true).into());
            m.insert("at_ms".into(), p.mean.at_ms.into());
            m.insert("interval_s".into(), p.mean.dt_s.into());
            for (name, c, (_, of)) in &fields {
                m.insert(name.clone(), (c.get)(of(p)).into());
            }
            Value::Object(m)
        })
        .collect();
    json(out, &list)
}

/// For Prometheus (`promtool tsdb create-blocks-from openmetrics`) and other readers of
/// OpenMetrics: one gauge per column, each point with its time. Means, where points are steps.
pub fn openmetrics(
    out: &mut dyn Write,
    page: &HistoryPage,
    only: &[Resource],
    (domain, feature): (&str, &FeatureName),
) -> io::Result<()> {
    let label = |text: &str| {
        text.replace('\\', "\\\\")
            .replace('"', "\\\"")
            .replace('\n', "\\n")
    };
    let domain = label(domain);
    for c in columns(only) {
        if page.points.iter().all(|p| (c.get)(&p.mean).is_none()) {
            continue;
        }
        let (name, factor) = (c.metric.0, c.unit.factor());
        writeln!(out, "# TYPE drover_feature_{name} gauge")?;
        for p in &page.points {
            if let Some(v) = (c.get)(&p.mean) {
                let ms = p.mean.at_ms;
                writeln!(
                    out,
                    "drover_feature_{name}{{domain=\"{domain}\",feature=\"{feature}\"}} {} {}.{:03}",
                    v * factor,
                    ms.div_euclid(1000),
                    ms.rem_euclid(1000)
                )?;
            }
        }
    }
    writeln!(out, "# EOF")
}

/// Curves of the asked resources, or of CPU and memory, over a range of time.
pub fn plot(
    out: &mut dyn Write,
    page: &HistoryPage,
    only: &[Resource],
    range_ms: (i64, i64),
    screen: &Screen,
) -> io::Result<()> {
    let only = if only.is_empty() {
        &[Resource::Cpu, Resource::Memory]
    } else {
        only
    };
    let first = page.points.first().map_or(range_ms.0, |p| p.mean.at_ms);
    let last = page.points.last().map_or(range_ms.1, |p| p.mean.at_ms);
    let range = (range_ms.0.max(first), range_ms.1.min(last));
    for (n, c) in columns(only).into_iter().enumerate() {
        let dots: Vec<Dot> = page
            .points
            .iter()
            .filter_map(|p| {
                let mean = (c.get)(&p.mean)?;
                Some(Dot {
                    at_ms: p.mean.at_ms,
                    min: (c.get)(PARTS[0].1(p)).unwrap_or(mean),
                    mean,
                    max: (c.get)(PARTS[1].1(p)).unwrap_or(mean),
                })
            })
            .collect();
        if n > 0 {
            writeln!(out)?;
        }
        let curve = Curve {
            name: c.heading,
            dots: &dots,
            show: &|v| shown(c, Some(v)),
        };
        plot::plot(out, &curve, range, screen)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::text;
    use super::*;
    use crate::rollup::Rollup;

    fn point() -> Usage {
        Usage {
            at_ms: 951_827_405_007,
            dt_s: 1.0,
            cpu_percent: Some(42.5),
            processes: Some(3.0),
            ..Usage::default()
        }
    }

    fn page() -> HistoryPage {
        HistoryPage {
            step_ms: 0,
            points: vec![point().into()],
        }
    }

    fn steps() -> HistoryPage {
        let max = Usage {
            cpu_percent: Some(90.0),
            ..point()
        };
        HistoryPage {
            step_ms: 60_000,
            points: vec![
                Rollup {
                    max,
                    last: max,
                    ..Rollup::from(point())
                }
                .into(),
            ],
        }
    }

    #[test]
    fn formats() {
        let only = [Resource::Memory, Resource::Cpu];
        assert_eq!(
            text(|o, s| table(o, &page(), &only, s)),
            "Time (UTC)              CPU  Memory\n\
             2000-02-29 12:30:05  42.5 %       -\n"
        );
        assert_eq!(
            text(|o, _| csv(o, &page(), &only)),
            "time,at_ms,interval_s,cpu,memory\n\
             2000-02-29T12:30:05.007Z,951827405007,1,42.5,\n"
        );
        let j = text(|o, _| as_json(o, &page(), &[]));
        let j: Value = serde_json::from_str(&j).unwrap();
        assert_eq!(j[0]["cpu"], 42.5);
        assert_eq!(j[0]["memory"], Value::Null);
        assert_eq!(j[0]["processes"], 3.0);
    }

    #[test]
    fn steps_have_least_most_and_last() {
        let only = [Resource::Cpu];
        assert_eq!(
            text(|o, s| table(o, &steps(), &only, s)),
            "Steps of 1 min 0 s: mean, least, most, last\n\
             Time (UTC)              CPU     min     max    last\n\
             2000-02-29 12:30:05  42.5 %  42.5 %  90.0 %  90.0 %\n"
        );
        let j = text(|o, _| as_json(o, &steps(), &only));
        let j: Value = serde_json::from_str(&j).unwrap();
        assert_eq!(
            (&j[0]["cpu"], &j[0]["cpu_max"]),
            (&42.5.into(), &90.0.into())
        );
        assert!(text(|o, s| plot(o, &steps(), &only, (0, i64::MAX), s)).starts_with("CPU\n"));
    }

    #[test]
    fn openmetrics_in_base_units_with_times() {
        let name = FeatureName::new("cache").unwrap();
        let out = text(|o, _| openmetrics(o, &page(), &[], ("a\"b", &name)));
        assert_eq!(
            out,
            "# TYPE drover_feature_used_cpus gauge\n\
             drover_feature_used_cpus{domain=\"a\\\"b\",feature=\"cache\"} 0.425 951827405.007\n\
             # TYPE drover_feature_processes gauge\n\
             drover_feature_processes{domain=\"a\\\"b\",feature=\"cache\"} 3 951827405.007\n\
             # EOF\n"
        );
    }

    #[test]
    fn csv_lines_have_the_columns_of_the_heading() {
        for page in [page(), steps()] {
            let out = text(|o, _| csv(o, &page, &[]));
            let counts: Vec<usize> = out.lines().map(|l| l.split(',').count()).collect();
            assert!(counts[0] >= 3 + COLUMNS.len());
            assert_eq!(counts, [counts[0]; 2]);
        }
    }
}
