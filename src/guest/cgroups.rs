//! A guest's cgroups through its QEMU guest agent, for guests without the helper.
//!
//! Where the agent runs commands, one script reads everything at once. Where it only reads files,
//! each file is three calls, so fewer are read. Where it allows neither, its own commands tell of
//! the whole guest. What cannot be read is unavailable.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::InstallError;
use super::shell::{Shell, allows};
use crate::counters::{self, CounterFile};
use crate::feature::{FeatureName, FeatureSpec, Workload};
use crate::hypervisor::{Hypervisor, HypervisorError};
use crate::sample::{Counters, GuestTotals, MeterFrame, RawSample};

/// Where cgroups are in a guest.
const ROOT: &str = "/sys/fs/cgroup";
/// Longest time for the script in the guest.
const SCRIPT: Duration = Duration::from_secs(20);
/// Bytes of a file that are read.
const MOST: u32 = 8192;
/// Most features read file by file.
const MOST_BY_FILES: usize = 16;
/// What is read of a cgroup when each file is three calls.
const FEW: [CounterFile; 4] = [
    CounterFile::CpuStat,
    CounterFile::MemoryCurrent,
    CounterFile::IoStat,
    CounterFile::Pids,
];

/// What an agent allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Commands.
    Exec,
    /// Files only.
    Files,
    /// Neither; it tells of the whole guest's CPUs when `true`.
    Guest(bool),
}

/// Asks an agent what it allows.
pub async fn access(hv: &Hypervisor, domain: &str) -> Result<Access, HypervisorError> {
    let info = hv
        .agent(domain, &json!({"execute": "guest-info"}), 0)
        .await?;
    Ok(allowed(&info))
}

pub(super) fn allowed(info: &Value) -> Access {
    let has = |commands: &[&str]| commands.iter().all(|c| allows(info, c));
    if has(&["guest-exec", "guest-exec-status"]) {
        Access::Exec
    } else if has(&["guest-file-open", "guest-file-read", "guest-file-close"]) {
        Access::Files
    } else {
        Access::Guest(has(&["guest-get-cpustats"]))
    }
}

/// One frame for these features, as the helper would send it.
pub async fn frame(
    hv: &Hypervisor,
    domain: &str,
    access: Access,
    specs: &[FeatureSpec],
) -> Result<MeterFrame, InstallError> {
    match access {
        Access::Exec => {
            let shell = Shell::new(hv, domain);
            let text = shell.raw("metering", &script(specs), SCRIPT).await?;
            Ok(parse(&text))
        }
        Access::Files => by_files(hv, domain, specs).await,
        Access::Guest(false) => Ok(MeterFrame::default()),
        Access::Guest(true) => {
            let command = json!({"execute": "guest-get-cpustats"});
            Ok(cpustats(&hv.agent(domain, &command, 0).await?))
        }
    }
}

/// A word for the shell that means itself.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// A script that prints the counters of all features. Sections begin with `@`, which is in none of
/// the files.
fn script(specs: &[FeatureSpec]) -> String {
    let mut text = format!(
        r#"r={ROOT}
echo "@boot"; cat /proc/sys/kernel/random/boot_id
echo "@ticks"; getconf CLK_TCK 2>/dev/null || echo 100
echo "@stat"; grep ^cpu /proc/stat
echo "@meminfo"; grep -E '^Mem(Total|Available):' /proc/meminfo
m() {{ # name, cgroup
  [ -n "$2" ] && [ "$2" != / ] || return
  if [ -e $r/cgroup.controllers ]; then
    [ -d "$r$2" ] || return
    echo "@feature $1 $(stat -c %i "$r$2")"; echo "@uptime"; cat /proc/uptime
    for f in {v2}; do echo "@$f"; cat "$r$2/$f" 2>/dev/null || echo "@none $f"; done
  else
    i=; for c in cpuacct cpu memory blkio pids; do
      [ -d "$r/$c$2" ] && i="$i $(stat -c %i "$r/$c$2")"; done
    [ -n "$i" ] || return
    echo "@feature $1$i"; echo "@uptime"; cat /proc/uptime
    for f in {v1}; do
      echo "@v1 ${{f#*/}}"; cat "$r/${{f%%/*}}$2/${{f#*/}}" 2>/dev/null || echo "@none"; done
  fi
}}
u() {{ # name, usual cgroup, unit
  p=$2; [ -d "$r$p" ] || [ -d "$r/systemd$p" ] ||
    p=$(systemctl show -p ControlGroup --value -- "$3" 2>/dev/null)
  m "$1" "$p"
}}
c() {{ # name, container
  i=$(podman container inspect --format '{{{{.Id}}}}' -- "$2" 2>/dev/null ||
    docker container inspect --format '{{{{.Id}}}}' -- "$2" 2>/dev/null)
  [ -n "$i" ] || return
  p=$(find $r -maxdepth 9 -type d \( -name "libpod-$i.scope" -o -name "docker-$i.scope" \
    -o -name "libpod-payload-$i" -o -name "libpod-$i" -o -name "$i" \) 2>/dev/null | head -n 1)
  [ -e $r/cgroup.controllers ] && p=${{p#$r}} || p=/${{p#$r/*/}}
  m "$1" "$p"
}}
"#,
        v2 = CounterFile::V2.map(CounterFile::name).join(" "),
        v1 = CounterFile::V1
            .map(|(controller, file)| format!("{controller}/{}", file.name()))
            .join(" "),
    );
    for spec in specs {
        let name = spec.name.as_str();
        let line = match &spec.workload {
            Workload::Managed(_) => format!("m {name} /drover.slice/drover-{name}.service"),
            Workload::Cgroup { cgroup } => format!("m {name} {}", quoted(cgroup)),
            Workload::Unit { unit } => {
                let usual = quoted(&format!("/system.slice/{unit}"));
                format!("u {name} {usual} {}", quoted(unit))
            }
            Workload::Container { container } => format!("c {name} {}", quoted(container)),
        };
        text.push_str(&line);
        text.push('\n');
    }
    text.push_str("true\n");
    text
}

/// What the script printed. A guest may print anything: what does not fit is left out.
pub(super) fn parse(text: &str) -> MeterFrame {
    let mut frame = MeterFrame::default();
    let (mut boot_id, mut ticks) = ("", 100_u64);
    let (mut stat, mut meminfo) = ("", "");
    for section in text.split('@').skip(1) {
        let (title, body) = section.split_once('\n').unwrap_or((section, ""));
        let mut words = title.split(' ');
        match (words.next().unwrap_or_default(), frame.features.last_mut()) {
            ("boot", _) => boot_id = body.trim(),
            ("ticks", _) => ticks = body.trim().parse().unwrap_or(100),
            ("stat", _) => stat = body,
            ("meminfo", _) => meminfo = body,
            ("feature", _) => {
                let name = words.next().and_then(|n| FeatureName::new(n).ok());
                let inodes: Vec<u64> = words.filter_map(|w| w.parse().ok()).collect();
                let Some(name) = name.filter(|_| !inodes.is_empty()) else {
                    break;
                };
                frame.features.push(RawSample {
                    feature: name,
                    identity: counters::identity(&inodes, boot_id),
                    at_ns: 0,
                    counters: Counters::default(),
                });
            }
            ("uptime", Some(f)) => f.at_ns = uptime(body),
            ("none", Some(f)) if words.next() == Some(CounterFile::IoStat.name()) => {
                let c = &mut f.counters;
                (c.disk_read_bytes, c.disk_write_bytes) = (None, None);
                (c.disk_reads, c.disk_writes) = (None, None);
            }
            ("v1", Some(f)) => {
                let name = words.next().unwrap_or_default();
                let files = CounterFile::V1.iter().map(|(_, file)| *file);
                take(files, name, body, ticks, &mut f.counters);
            }
            (name, Some(f)) => take(CounterFile::V2, name, body, ticks, &mut f.counters),
            _ => {}
        }
    }
    frame.features.retain(|f| f.at_ns > 0);
    frame.at_ns = frame.features.last().map_or(0, |f| f.at_ns);
    frame.guest = counters::totals(stat.as_bytes(), meminfo.as_bytes(), ticks);
    frame
}

/// A file that is absent prints `@none` next, so that its body is empty.
fn take(
    files: impl IntoIterator<Item = CounterFile>,
    name: &str,
    body: &str,
    ticks: u64,
    c: &mut Counters,
) {
    if body.is_empty() && name != CounterFile::IoStat.name() {
        return;
    }
    if let Some(file) = files.into_iter().find(|f| f.name() == name) {
        file.take(body.as_bytes(), ticks, c);
    }
}

/// Nanoseconds since boot from `/proc/uptime`.
fn uptime(text: &str) -> u64 {
    let seconds = text.split_whitespace().next().and_then(|w| w.parse().ok());
    seconds.map_or(0, |s: f64| (s.max(0.0) * 1e9) as u64)
}

/// The whole guest's CPU time from `guest-get-cpustats`, milliseconds per CPU.
pub(super) fn cpustats(answer: &Value) -> MeterFrame {
    let cpus = answer.as_array().map(Vec::as_slice).unwrap_or_default();
    let sum = |keys: &[&str]| -> u64 {
        cpus.iter()
            .flat_map(|c| keys.iter().filter_map(|k| c.get(*k)?.as_u64()))
            .fold(0, u64::saturating_add)
    };
    let busy = ["user", "nice", "system", "irq", "softirq"];
    let all = [&busy[..], &["idle", "iowait", "steal"]].concat();
    let n = cpus.len() as u64;
    MeterFrame {
        // All of a CPU's time is the time since boot.
        at_ns: sum(&all)
            .checked_div(n)
            .unwrap_or(0)
            .saturating_mul(1_000_000),
        guest: GuestTotals {
            cpus: n as u32,
            cpu_busy_usec: sum(&busy).saturating_mul(1000),
            cpu_steal_usec: sum(&["steal"]).saturating_mul(1000),
            ..GuestTotals::default()
        },
        features: Vec::new(),
    }
}

async fn read(hv: &Hypervisor, domain: &str, path: &str) -> Result<String, HypervisorError> {
    let odd = || HypervisorError::Answer {
        what: format!("{path} in {domain}"),
        message: "the guest agent's answer cannot be understood".into(),
    };
    let open = json!({"execute": "guest-file-open", "arguments": {"path": path, "mode": "r"}});
    let handle = hv.agent(domain, &open, 0).await?;
    let handle = handle.as_i64().ok_or_else(odd)?;
    let ask = json!({"execute": "guest-file-read", "arguments": {"handle": handle, "count": MOST}});
    let answer = hv.agent(domain, &ask, 0).await;
    let close = json!({"execute": "guest-file-close", "arguments": {"handle": handle}});
    hv.agent(domain, &close, 0).await?;
    let answer = answer?;
    let data = answer.get("buf-b64").and_then(Value::as_str);
    let bytes = data.and_then(|d| STANDARD.decode(d).ok()).ok_or_else(odd)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

async fn by_files(
    hv: &Hypervisor,
    domain: &str,
    specs: &[FeatureSpec],
) -> Result<MeterFrame, InstallError> {
    let boot_id = read(hv, domain, "/proc/sys/kernel/random/boot_id").await?;
    let stat = read(hv, domain, "/proc/stat").await?;
    let meminfo = read(hv, domain, "/proc/meminfo").await?;
    let mut frame = MeterFrame {
        guest: counters::totals(stat.as_bytes(), meminfo.as_bytes(), 100),
        ..MeterFrame::default()
    };
    for spec in specs.iter().take(MOST_BY_FILES) {
        let name = spec.name.as_str();
        let cgroup = match &spec.workload {
            Workload::Managed(_) => format!("/drover.slice/drover-{name}.service"),
            Workload::Cgroup { cgroup } => cgroup.clone(),
            Workload::Unit { unit } => format!("/system.slice/{unit}"),
            // Its identifier cannot be asked for.
            Workload::Container { .. } => continue,
        };
        // No inode without a command: the first process and its start tell a cgroup made anew.
        let Ok(procs) = read(hv, domain, &format!("{ROOT}{cgroup}/cgroup.procs")).await else {
            continue;
        };
        let Some(pid) = procs.lines().next().and_then(|l| l.parse::<u64>().ok()) else {
            continue;
        };
        let Ok(process) = read(hv, domain, &format!("/proc/{pid}/stat")).await else {
            continue;
        };
        let start = process
            .rsplit_once(')')
            .and_then(|(_, rest)| rest.split_whitespace().nth(19)?.parse::<u64>().ok());
        let Some(start) = start else { continue };
        let mut sample = RawSample {
            feature: spec.name.clone(),
            identity: counters::identity(&[pid, start], boot_id.trim()),
            at_ns: uptime(&read(hv, domain, "/proc/uptime").await?),
            counters: Counters::default(),
        };
        for file in FEW {
            if let Ok(text) = read(hv, domain, &format!("{ROOT}{cgroup}/{}", file.name())).await {
                file.take(text.as_bytes(), 100, &mut sample.counters);
            }
        }
        frame.at_ns = sample.at_ns;
        frame.features.push(sample);
    }
    Ok(frame)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, workload: &str) -> FeatureSpec {
        serde_json::from_str(&format!(r#"{{"name":"{name}","workload":{workload}}}"#)).unwrap()
    }

    #[test]
    fn what_an_agent_allows() {
        let info = |names: &[(&str, bool)]| {
            let all: Vec<Value> = names
                .iter()
                .map(|(n, e)| json!({"name": n, "enabled": e}))
                .collect();
            json!({"supported_commands": all})
        };
        let exec = [("guest-exec", true), ("guest-exec-status", true)];
        assert_eq!(allowed(&info(&exec)), Access::Exec);
        let files = [
            ("guest-exec", false),
            ("guest-file-open", true),
            ("guest-file-read", true),
            ("guest-file-close", true),
        ];
        assert_eq!(allowed(&info(&files)), Access::Files);
        assert_eq!(
            allowed(&info(&[("guest-get-cpustats", true)])),
            Access::Guest(true)
        );
        assert_eq!(allowed(&json!({})), Access::Guest(false));
    }

    #[test]
    fn the_script_reads_this_machine() {
        // Runs it here, whatever the version of this machine's cgroups: it is sound shell, and what
        // it prints is understood. There is no such unit, so there is nothing of it.
        let specs = [
            spec("none", r#"{"kind":"unit","unit":"no-such-it's.service"}"#),
            spec("c", r#"{"kind":"container","container":"no-such"}"#),
            spec("g", r#"{"kind":"cgroup","cgroup":"/no/such; touch '"}"#),
        ];
        let out = std::process::Command::new("/bin/sh")
            .args(["-c", &script(&specs)])
            .output()
            .unwrap();
        assert!(out.status.success(), "{out:?}");
        let frame = parse(&String::from_utf8(out.stdout).unwrap());
        assert!(frame.guest.cpus > 0 && frame.guest.memory_total_bytes > 0);
        assert_eq!(frame.features, []);
    }

    #[test]
    fn counters_of_both_versions() {
        let text = "@boot\nabc\n@ticks\n100\n@stat\ncpu  1 0 1 5 0 0 0 0 0 0\ncpu0 1 0 1 5\n\
            @meminfo\nMemTotal: 10 kB\nMemAvailable: 5 kB\n\
            @feature web 77\n@uptime\n12.50 3.0\n@cpu.stat\nusage_usec 5\nuser_usec 2\n\
            @memory.current\n4096\n@io.stat\n@cpu.pressure\n@none\n@pids.current\n3\n\
            @feature few 78\n@uptime\n12.50 3.0\n@io.stat\n@none io.stat\n\
            @feature old 5 6\n@uptime\n12.51 3.0\n@v1 cpuacct.usage\n7000\n@v1 cpu.stat\n@none\n\
            @feature Bad 1\n@uptime\n1.0 1.0\n";
        let frame = parse(text);
        assert_eq!(frame.guest.cpus, 1);
        let [web, few, old] = &frame.features[..] else {
            panic!("{frame:?}")
        };
        assert_eq!(
            (web.at_ns, web.identity),
            (12_500_000_000, counters::identity(&[77], "abc"))
        );
        let c = &web.counters;
        assert_eq!(
            (c.cpu_usec, c.memory_bytes, c.processes),
            (Some(5), Some(4096), Some(3))
        );
        assert_eq!((c.disk_read_bytes, c.psi_cpu_usec), (Some(0), None));
        assert_eq!(few.counters, Counters::default(), "absent is not zero");
        assert_eq!(
            (old.counters.cpu_usec, old.counters.cpu_throttled_usec),
            (Some(7), None)
        );
        assert_eq!(parse("nothing of use"), MeterFrame::default());
    }

    #[test]
    fn the_whole_guest_only() {
        let f = cpustats(&json!([
            {"type": "linux", "cpu": 0, "user": 100, "system": 50, "idle": 850, "steal": 0},
            {"type": "linux", "cpu": 1, "user": 0, "system": 0, "idle": 990, "steal": 10},
        ]));
        assert_eq!((f.guest.cpus, f.guest.cpu_busy_usec), (2, 150_000));
        assert_eq!((f.at_ns, f.guest.cpu_steal_usec), (1_000_000_000, 10_000));
        assert_eq!(cpustats(&json!({})).at_ns, 0);
    }
}
