//! `list`, `threshold`, `stats`.

use std::io::{self, Write};

use super::super::screen::{Screen, Style, plain};
use super::super::table::{Cell, Table};
use super::{NONE, percent, value};
use crate::api::FeatureRow;
use crate::feature::{Resource, Workload};
use crate::host::{FeatureStatus, InstanceState, MeterLevel, Metering};
use crate::threshold;

fn status_cell(s: FeatureStatus) -> Cell {
    let style = match s {
        FeatureStatus::Running => Style::Good,
        FeatureStatus::Stopped | FeatureStatus::Unknown => Style::Bad,
        FeatureStatus::Disabled => Style::Dim,
        FeatureStatus::Moving | FeatureStatus::Arriving => Style::Plain,
    };
    Cell::styled(s.word(), style)
}

fn metered_cell(m: &Metering) -> Cell {
    let style = match m.level {
        MeterLevel::Helper => Style::Plain,
        MeterLevel::Agent => Style::Dim,
        MeterLevel::Guest | MeterLevel::None => Style::Bad,
    };
    Cell::styled(m.level.as_str(), style)
}

fn breach_cell(row: &FeatureRow) -> Cell {
    match &row.breach {
        Some(b) => Cell::styled(b, Style::Bad),
        None => NONE.into(),
    }
}

/// `drover list`.
pub fn list(out: &mut dyn Write, rows: &[FeatureRow], screen: &Screen) -> io::Result<()> {
    let mut t = Table::new(&[
        "Domain", "Feature", "State", "Metered", "Workload", "Address", "Breach",
    ]);
    for r in rows {
        let (workload, address) = match &r.spec.workload {
            Workload::Managed(m) => (r.spec.workload.label(), m.addresses_text()),
            other => (other.label(), NONE.to_owned()),
        };
        t.row(vec![
            Cell::new(&r.domain),
            Cell::new(r.spec.name.as_str()),
            status_cell(r.status),
            metered_cell(&r.metered),
            workload.into(),
            address.into(),
            breach_cell(r),
        ]);
    }
    t.write(out, screen)?;
    // Why not better, once per domain.
    let mut told: Vec<&str> = Vec::new();
    for r in rows {
        if !r.metered.reason.is_empty() && !told.contains(&r.domain.as_str()) {
            told.push(&r.domain);
            let line = format!("{}: {}", r.domain, r.metered.reason);
            writeln!(out, "{}", plain(&line))?;
        }
    }
    Ok(())
}

/// `drover threshold DOMAIN FEATURE`: one line each, as they are given.
pub fn thresholds(out: &mut dyn Write, row: &FeatureRow) -> io::Result<()> {
    if row.spec.thresholds.is_empty() {
        let name = format!("{}/{}", row.domain, row.spec.name);
        return writeln!(out, "No thresholds for '{}'", plain(&name));
    }
    for t in &row.spec.thresholds {
        writeln!(out, "{}", threshold::format(t))?;
    }
    Ok(())
}

/// `drover stats`.
pub fn stats(out: &mut dyn Write, rows: &[FeatureRow], screen: &Screen) -> io::Result<()> {
    let mut t = Table::new(&[
        "Domain",
        "Feature",
        "State",
        ">CPU %",
        ">Host CPU %",
        ">Memory",
        ">Net in",
        ">Net out",
        ">Read",
        ">Write",
        ">Stall cpu/mem/io %",
    ]);
    for r in rows {
        let mut cells = vec![
            Cell::new(&r.domain),
            Cell::new(r.spec.name.as_str()),
            status_cell(r.status),
        ];
        let u = r.usage.unwrap_or_default();
        cells.push(percent(u.cpu_percent).into());
        cells.push(percent(u.host_cpu_percent).into());
        let rest = Resource::ALL.into_iter().filter(|x| *x != Resource::Cpu);
        cells.extend(rest.map(|x| value(x, u.get(x)).into()));
        let stalls = [u.psi_cpu_percent, u.psi_memory_percent, u.psi_io_percent];
        cells.push(stalls.map(percent).join("/").into());
        t.row(cells);
    }
    t.write(out, screen)
}

/// What domains cost this host, and what of it no feature causes; below the features.
pub fn costs(out: &mut dyn Write, domains: &[&InstanceState], screen: &Screen) -> io::Result<()> {
    let mut t = Table::new(&[
        "Domain",
        ">Host CPU %",
        ">vCPUs",
        ">Emulator",
        ">I/O threads",
        ">Rest",
        ">Steal %",
        ">Memory",
        ">Net",
        ">Disk",
    ]);
    let cpus = |v: Option<f64>| percent(v.map(|c| c * 100.0));
    for i in domains {
        t.row(vec![
            Cell::new(&i.domain),
            cpus(i.cost.cpus).into(),
            cpus(i.cost.vcpus).into(),
            cpus(i.cost.emulator).into(),
            cpus(i.cost.iothreads).into(),
            cpus(i.rest.cpus).into(),
            percent(i.cost.steal_percent).into(),
            value(Resource::Memory, i.cost.memory_mib).into(),
            value(Resource::NetRx, i.cost.net_bps).into(),
            value(Resource::DiskRead, i.cost.disk_bps).into(),
        ]);
    }
    t.write(out, screen)
}

#[cfg(test)]
mod tests {
    use super::super::testing::text;
    use super::*;
    use crate::usage::Usage;

    fn row() -> FeatureRow {
        FeatureRow {
            host: "alpha".into(),
            domain: "web".into(),
            spec: serde_json::from_value(serde_json::json!({
                "name": "cache",
                "workload": {"kind": "managed", "exec": ["/bin/c"], "address": "192.0.2.1/24"},
                "thresholds": [{"resource": "cpu", "limit": 80.0, "for_s": 10.0}]
            }))
            .unwrap(),
            status: FeatureStatus::Running,
            usage: Some(Usage {
                cpu_percent: Some(42.54),
                memory_mib: Some(64.0),
                net_rx_bps: Some(2048.0),
                psi_cpu_percent: Some(0.0),
                ..Usage::default()
            }),
            breach: Some("cpu 93.0 % > 80 % for 10 s".into()),
            metered: Metering {
                level: MeterLevel::Helper,
                reason: String::new(),
            },
        }
    }

    #[test]
    fn list_names_everything() {
        assert_eq!(
            text(|o, s| list(o, &[row()], s)),
            "Domain  Feature  State    Metered  Workload  Address       Breach\n\
             web     cache    running  helper   /bin/c    192.0.2.1/24  cpu 93.0 % > 80 % for 10 s\n"
        );
    }

    #[test]
    fn stats_tells_zero_from_unavailable() {
        let out = text(|o, s| stats(o, &[row()], s));
        let words: Vec<&str> = out.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(
            words,
            [
                "web", "cache", "running", "42.5", "-", "64.0", "MiB", "2.0", "KiB/s", "-", "-",
                "-", "0.0/-/-"
            ]
        );
        let mut never = row();
        never.usage = None;
        let out = text(|o, s| stats(o, &[never], s));
        assert!(out.lines().nth(1).unwrap().ends_with("-/-/-"), "{out}");
    }

    #[test]
    fn costs_and_what_no_feature_causes() {
        let mut i = InstanceState::new("web");
        i.cost.cpus = Some(0.5);
        i.cost.vcpus = Some(0.4);
        i.rest.cpus = Some(0.125);
        let out = text(|o, s| costs(o, &[&i], s));
        let words: Vec<&str> = out.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(
            words,
            ["web", "50.0", "40.0", "-", "-", "12.5", "-", "-", "-", "-"]
        );
    }

    #[test]
    fn why_it_is_not_metered_better() {
        let mut r = row();
        r.metered = Metering {
            level: MeterLevel::Guest,
            reason: "the guest agent forbids it".into(),
        };
        let out = text(|o, s| list(o, &[r.clone(), r], s));
        assert!(out.contains("guest only"), "{out}");
        assert_eq!(out.matches("web: the guest agent forbids it").count(), 1);
    }

    #[test]
    fn thresholds_as_they_are_given() {
        assert_eq!(text(|o, _| thresholds(o, &row())), "cpu > 80 % for 10 s\n");
        let mut none = row();
        none.spec.thresholds.clear();
        assert_eq!(
            text(|o, _| thresholds(o, &none)),
            "No thresholds for 'web/cache'\n"
        );
    }
}
