//! `hosts`, `guest status`.

use std::io::{self, Write};

use super::super::screen::{Screen, Style, plain};
use super::super::table::{Cell, Table};
use super::super::time::{span, utc_short};
use super::NONE;
use crate::feature::Resource;
use crate::host::{HelperState, HostState, InstanceState};
use crate::qemu::{Operations, QemuState};
use crate::threshold::format_value;

/// A host that was not heard for this long is shown as such, milliseconds.
const STALE_MS: i64 = 60_000;

/// `drover hosts`; ages are relative to `now_ms`.
pub fn hosts(
    out: &mut dyn Write,
    hosts: &[HostState],
    now_ms: i64,
    screen: &Screen,
) -> io::Result<()> {
    let mut t = Table::new(&[
        "Host",
        ">CPUs used",
        ">Memory used",
        ">Net",
        ">Disk",
        ">Stall %",
        ">Guests",
        ">Features",
        "Moves in",
        ">Heard",
        "Version",
    ]);
    for h in hosts {
        let age = (now_ms - h.at_ms).max(0);
        let heard = if age < 1000 {
            "now".into()
        } else {
            let style = if age > STALE_MS {
                Style::Bad
            } else {
                Style::Plain
            };
            Cell::styled(format!("{} ago", span(age)), style)
        };
        let running = h.instances.iter().filter(|i| i.running).count();
        let features: usize = h.instances.iter().map(|i| i.features.len()).sum();
        t.row(vec![
            Cell::new(&h.name),
            format!("{:.1} of {}", h.load.cpus_used, h.capabilities.cpus).into(),
            format!(
                "{} of {}",
                format_value(Resource::Memory, h.load.memory_used_mib),
                format_value(Resource::Memory, h.capabilities.memory_mib)
            )
            .into(),
            format_value(Resource::NetRx, h.load.net_bps).into(),
            format_value(Resource::DiskRead, h.load.disk_bps).into(),
            format!("{:.1}", h.load.stall_percent).into(),
            running.to_string().into(),
            features.to_string().into(),
            if h.accepts {
                Cell::styled("yes", Style::Good)
            } else {
                Cell::styled("no", Style::Bad)
            },
            heard,
            Cell::new(&h.version),
        ]);
    }
    t.write(out, screen)
}

fn pair(out: &mut dyn Write, name: &str, value: &str) -> io::Result<()> {
    let value = if value.is_empty() { NONE } else { value };
    writeln!(out, "{:<18}{}", format!("{name}:"), plain(value))
}

/// What QEMU's monitor told.
fn qemu(out: &mut dyn Write, q: &QemuState) -> io::Result<()> {
    let told = match q.problem.as_str() {
        "" if q.status.is_empty() => "not asked yet".to_owned(),
        "" => q.status.clone(),
        problem => format!("not asked: {problem}"),
    };
    pair(out, "QEMU", &told)?;
    for (name, disk) in &q.disks {
        let part = |what: &str, o: &Operations| {
            let latency = match o.latency_ms {
                Some(ms) => format!(", {ms:.2} ms each lately"),
                None => String::new(),
            };
            format!("{} {what}{latency}, {} failed", o.count, o.failed)
        };
        let text = format!(
            "{}; {}",
            part("reads", &disk.read),
            part("writes", &disk.write)
        );
        pair(out, "Disk", &format!("{name}: {text}"))?;
    }
    for e in &q.events.latest {
        let times = q.events.counts.get(&e.name).copied().unwrap_or_default();
        let text = format!(
            "{} UTC {}: {} ({times} in all)",
            utc_short(e.at_ms),
            e.name,
            e.text
        );
        pair(out, "Event", &text)?;
    }
    Ok(())
}

/// `drover guest status DOMAIN`.
pub fn guest(out: &mut dyn Write, i: &InstanceState) -> io::Result<()> {
    pair(out, "Domain", &i.domain)?;
    pair(out, "Running", if i.running { "yes" } else { "no" })?;
    match &i.helper {
        HelperState::Connected { version } => {
            pair(out, "Helper", &format!("connected, version {version}"))?;
        }
        HelperState::Absent { reason } => pair(out, "Helper", &format!("absent: {reason}"))?,
    }
    let metered = i.metering.level.as_str();
    let metered = match i.metering.reason.as_str() {
        "" => metered.to_owned(),
        reason => format!("{metered}: {reason}"),
    };
    pair(out, "Metered by", &metered)?;
    if let Some(c) = &i.capabilities {
        pair(out, "Kernel", &c.kernel)?;
        pair(out, "systemd", &c.systemd)?;
        let criu = match (c.criu.as_str(), c.criu_problem.as_str()) {
            ("", _) => "absent".to_owned(),
            (v, "") => v.to_owned(),
            (v, problem) => format!("{v}, {problem}"),
        };
        pair(out, "criu", &criu)?;
    }
    pair(out, "vCPUs", &format!("{}", i.vcpus))?;
    pair(out, "Memory", &format_value(Resource::Memory, i.memory_mib))?;
    let free = i.memory_available_mib;
    let free = free.map(|m| format_value(Resource::Memory, m));
    pair(out, "Memory available", free.as_deref().unwrap_or(NONE))?;
    if let Some(q) = &i.qemu {
        qemu(out, q)?;
    }
    let names: Vec<String> = i
        .features
        .iter()
        .map(|f| format!("{} ({})", f.spec.name, f.status.word()))
        .collect();
    pair(out, "Features", &names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::super::testing::text;
    use super::*;
    use crate::host::{GuestCapabilities, HostCapabilities, HostLoad, StorageKind};

    fn instance() -> InstanceState {
        InstanceState {
            vcpus: 2.0,
            memory_mib: 1024.0,
            cpus_used: 0.1,
            helper: HelperState::Connected {
                version: "0.1.0".into(),
            },
            capabilities: Some(GuestCapabilities {
                kernel: "6.1.0".into(),
                criu: "4.1".into(),
                ..GuestCapabilities::default()
            }),
            ..InstanceState::new("web")
        }
    }

    #[test]
    fn host_rows() {
        let h = HostState {
            at_ms: 1000,
            capabilities: HostCapabilities {
                cpu_model: "x".into(),
                cpus: 8.0,
                memory_mib: 16384.0,
                network_mbps: 0.0,
                storage: StorageKind::Unknown,
                virt_type: "kvm".into(),
            },
            load: HostLoad {
                cpus_used: 2.25,
                memory_used_mib: 4096.0,
                ..HostLoad::default()
            },
            instances: vec![instance()],
            ..HostState::new("alpha")
        };
        let out = text(|o, s| hosts(o, &[h], 126_000, s));
        let row = out.lines().nth(1).unwrap();
        for part in [
            "alpha",
            "2.2 of 8",
            "4.0 GiB of 16.0 GiB",
            "2 min 5 s ago",
            "yes",
        ] {
            assert!(row.contains(part), "{part}: {out}");
        }
    }

    #[test]
    fn guest_states() {
        let out = text(|o, _| guest(o, &instance()));
        assert!(
            out.contains("Helper:           connected, version 0.1.0\n"),
            "{out}"
        );
        assert!(out.contains("criu:             4.1\n"), "{out}");
        assert!(out.contains("Memory available: -\n"), "{out}");
        let mut i = instance();
        i.helper = HelperState::Absent {
            reason: "no port; run \"drover guest install web\"".into(),
        };
        let out = text(|o, _| guest(o, &i));
        assert!(
            out.contains("absent: no port; run \"drover guest install web\""),
            "{out}"
        );
    }
}
