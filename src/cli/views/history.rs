//! `history`: table, JSON, CSV.

use std::io::{self, Write};

use serde_json::{Map, Value};

use super::super::screen::Screen;
use super::super::table::{Cell, Table};
use super::super::time::{utc, utc_short};
use super::{json, percent, value};
use crate::feature::Resource;
use crate::usage::Usage;

/// Columns that are not resources: name in CSV and JSON, heading, value.
type Extra = (&'static str, &'static str, fn(&Usage) -> Option<f64>);
const EXTRA: [Extra; 5] = [
    ("throttled", ">Throttled %", |u| u.throttled_percent),
    ("psi_cpu", ">Stall cpu %", |u| u.psi_cpu_percent),
    ("psi_memory", ">Stall mem %", |u| u.psi_memory_percent),
    ("psi_io", ">Stall io %", |u| u.psi_io_percent),
    ("processes", ">Processes", |u| u.processes),
];

fn heading(r: Resource) -> &'static str {
    match r {
        Resource::Cpu => ">CPU",
        Resource::Memory => ">Memory",
        Resource::NetRx => ">Net in",
        Resource::NetTx => ">Net out",
        Resource::DiskRead => ">Read",
        Resource::DiskWrite => ">Write",
    }
}

/// The asked resources in display order, and whether the other columns are shown too.
fn columns(only: &[Resource]) -> (Vec<Resource>, &'static [Extra]) {
    if only.is_empty() {
        (Resource::ALL.to_vec(), &EXTRA)
    } else {
        let all = Resource::ALL.into_iter();
        (all.filter(|r| only.contains(r)).collect(), &[])
    }
}

/// For people. `only` empty shows all resources.
pub fn table(
    out: &mut dyn Write,
    points: &[Usage],
    only: &[Resource],
    screen: &Screen,
) -> io::Result<()> {
    let (resources, extra) = columns(only);
    let mut head = vec!["Time (UTC)"];
    head.extend(resources.iter().map(|r| heading(*r)));
    head.extend(extra.iter().map(|e| e.1));
    let mut t = Table::new(&head);
    for u in points {
        let mut cells: Vec<Cell> = vec![utc_short(u.at_ms).into()];
        cells.extend(resources.iter().map(|r| value(*r, u.get(*r)).into()));
        for (name, _, get) in extra {
            cells.push(match (*name, get(u)) {
                ("processes", Some(n)) => format!("{n:.0}").into(),
                (_, v) => percent(v).into(),
            });
        }
        t.row(cells);
    }
    t.write(out, screen)
}

/// For spreadsheets: numbers in the resources' units (percent of one CPU, MiB, bytes per
/// second), empty when unavailable.
pub fn csv(out: &mut dyn Write, points: &[Usage], only: &[Resource]) -> io::Result<()> {
    let (resources, extra) = columns(only);
    let mut head = vec!["time", "at_ms", "interval_s"];
    head.extend(resources.iter().map(|r| r.as_str()));
    head.extend(extra.iter().map(|e| e.0));
    writeln!(out, "{}", head.join(","))?;
    for u in points {
        write!(out, "{},{},{}", utc(u.at_ms, true), u.at_ms, u.dt_s)?;
        let values = resources.iter().map(|r| u.get(*r));
        for v in values.chain(extra.iter().map(|e| (e.2)(u))) {
            match v {
                Some(v) => write!(out, ",{v}")?,
                None => write!(out, ",")?,
            }
        }
        writeln!(out)?;
    }
    Ok(())
}

/// For programs: a list of objects with the names of the CSV; `null` when unavailable.
pub fn as_json(out: &mut dyn Write, points: &[Usage], only: &[Resource]) -> io::Result<()> {
    let (resources, extra) = columns(only);
    let list: Vec<Value> = points
        .iter()
        .map(|u| {
            let mut m = Map::new();
            m.insert("time".into(), utc(u.at_ms, true).into());
            m.insert("at_ms".into(), u.at_ms.into());
            m.insert("interval_s".into(), u.dt_s.into());
            for r in &resources {
                m.insert(r.as_str().into(), u.get(*r).into());
            }
            for (name, _, get) in extra {
                m.insert((*name).into(), get(u).into());
            }
            Value::Object(m)
        })
        .collect();
    json(out, &list)
}

#[cfg(test)]
mod tests {
    use super::super::testing::text;
    use super::*;

    fn points() -> [Usage; 1] {
        [Usage {
            at_ms: 951_827_405_007,
            dt_s: 1.0,
            cpu_percent: Some(42.5),
            processes: Some(3.0),
            ..Usage::default()
        }]
    }

    #[test]
    fn formats() {
        let only = [Resource::Memory, Resource::Cpu];
        assert_eq!(
            text(|o, s| table(o, &points(), &only, s)),
            "Time (UTC)              CPU  Memory\n\
             2000-02-29 12:30:05  42.5 %       -\n"
        );
        assert_eq!(
            text(|o, _| csv(o, &points(), &only)),
            "time,at_ms,interval_s,cpu,memory\n\
             2000-02-29T12:30:05.007Z,951827405007,1,42.5,\n"
        );
        let j = text(|o, _| as_json(o, &points(), &[]));
        let j: Value = serde_json::from_str(&j).unwrap();
        assert_eq!(j[0]["cpu"], 42.5);
        assert_eq!(j[0]["memory"], Value::Null);
        assert_eq!(j[0]["processes"], 3.0);
    }

    #[test]
    fn csv_lines_have_the_columns_of_the_heading() {
        let out = text(|o, _| csv(o, &points(), &[]));
        let counts: Vec<usize> = out.lines().map(|l| l.split(',').count()).collect();
        assert_eq!(counts, [14, 14]);
    }
}
