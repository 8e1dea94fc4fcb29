//! Gathers facts about this host. Reads only; every answer has a limit.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::future::join_all;
use nix::sys::statfs;
use nix::sys::statvfs::statvfs;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::super::time::now_ms;
use super::finding::Finding;
use super::guests::DomainFacts;
use super::host::{self, DiskFacts, HookFacts, LibvirtDaemon, PolkitFacts, SecurityFacts};
use crate::config::{HistorySection, LibvirtSection, PeerHost, PeerSection};
use crate::hypervisor::Hypervisor;
use crate::transport::{Pki, pki};

/// Longest wait for a guest agent, seconds.
const AGENT_S: u32 = 5;
/// Longest wait for a peer's port.
const PORT: Duration = Duration::from_secs(2);
/// Longest wait for a command of the host.
const COMMAND: Duration = Duration::from_secs(5);
/// Unit of process start times: fixed for programs, whatever the kernel counts in.
const TICKS_PER_S: i64 = 100;
/// libvirt's daemons that run the hook: whole, and one per driver.
const DAEMONS: [&str; 2] = ["virtqemud", "libvirtd"];

/// Whether this is root.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// An error with what caused it, in one text.
pub fn with_causes(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut next = e.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

/// What libvirt says.
pub struct LibvirtFacts {
    /// Version in libvirt's numbers, or why there is none.
    pub version: Result<u32, String>,
    /// Running domains.
    pub domains: Vec<DomainFacts>,
}

/// Asks libvirt for its version and looks into each running domain.
pub async fn libvirt(section: &LibvirtSection) -> LibvirtFacts {
    let (events, _inbox) = mpsc::channel(16);
    let hv = match Hypervisor::connect(&section.uri, AGENT_S, events, None).await {
        Ok(hv) => hv,
        Err(e) => {
            return LibvirtFacts {
                version: Err(with_causes(&e)),
                domains: Vec::new(),
            };
        }
    };
    let version = hv.version().await.map_err(|e| with_causes(&e));
    let running = hv.domains().await.unwrap_or_default().into_iter();
    let names = running.filter(|d| d.running).map(|d| d.name);
    let domains = join_all(names.map(|name| inspect(hv.clone(), name))).await;
    LibvirtFacts { version, domains }
}

async fn inspect(hv: Hypervisor, name: String) -> DomainFacts {
    let channels = hv.channels(&name).await;
    let ping = serde_json::json!({"execute": "guest-ping"});
    let agent = hv.agent(&name, &ping, AGENT_S).await;
    DomainFacts {
        name,
        agent: Some(agent.map(drop).map_err(|e| with_causes(&e))),
        channels: Some(channels.map(|c| c.is_some()).map_err(|e| with_causes(&e))),
        instance: None,
    }
}

/// What is at the hook's path, and libvirt's daemon beside it.
pub async fn hook(path: &Path) -> HookFacts {
    let meta = match fs::symlink_metadata(path) {
        Ok(m) => m,
        Err(e) => return HookFacts::Missing(e.to_string()),
    };
    let runs = fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
    if !runs {
        return HookFacts::NotExecutable;
    }
    HookFacts::Present {
        link: meta.is_symlink(),
        since_s: meta.ctime(),
        libvirt: libvirt_daemon().await,
    }
}

async fn libvirt_daemon() -> Option<LibvirtDaemon> {
    let (name, pid) = libvirt_process()?;
    let told = unit_changed(name).await;
    Some(LibvirtDaemon {
        name: name.to_owned(),
        since_s: told.or_else(|| started(pid))?,
        knows_reloads: told.is_some(),
    })
}

/// libvirt's daemon among the processes of this host.
fn libvirt_process() -> Option<(&'static str, u32)> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else {
            continue;
        };
        let comm = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if let Some(rank) = DAEMONS.iter().position(|d| *d == comm.trim()) {
            found.push((rank, pid));
        }
    }
    found.sort_unstable();
    found.first().map(|(rank, pid)| (DAEMONS[*rank], *pid))
}

/// When a process started, seconds since the epoch.
fn started(pid: u32) -> Option<i64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let boot = fs::read_to_string("/proc/stat").ok()?;
    let boot: i64 = boot
        .lines()
        .find_map(|l| l.strip_prefix("btime "))?
        .trim()
        .parse()
        .ok()?;
    Some(boot + start_ticks(&stat)? / TICKS_PER_S)
}

/// Field 22 of `/proc/PID/stat`; the program's name before it may hold anything.
fn start_ticks(stat: &str) -> Option<i64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// When systemd last saw the unit start or end a reload, seconds since the epoch; `None`
/// without systemd.
async fn unit_changed(name: &str) -> Option<i64> {
    if !Path::new("/run/systemd/system").is_dir() {
        return None;
    }
    let asked = tokio::process::Command::new("systemctl")
        .args(["show", "--value", "--timestamp=unix"])
        .arg("--property=StateChangeTimestamp")
        .arg(format!("{name}.service"))
        .kill_on_drop(true)
        .output();
    let answer = timeout(COMMAND, asked).await.ok()?.ok()?;
    let text = String::from_utf8(answer.stdout).ok()?;
    text.trim().strip_prefix('@')?.parse().ok()
}

/// AppArmor and SELinux.
pub fn security() -> SecurityFacts {
    let read = |path: &str| fs::read_to_string(path).ok();
    let apparmor = read("/sys/module/apparmor/parameters/enabled");
    let profile = libvirt_process().and_then(|(_, pid)| read(&format!("/proc/{pid}/attr/current")));
    SecurityFacts {
        apparmor: apparmor.is_some_and(|t| t.trim() == "Y"),
        libvirt_confined: profile
            .map(|p| p.trim_end_matches(['\0', '\n']).to_owned())
            .filter(|p| !p.is_empty())
            .map(|p| p.ends_with("(enforce)")),
        selinux_enforcing: read("/sys/fs/selinux/enforce").map(|t| t.trim() == "1"),
    }
}

/// Whether something accepts connections there.
async fn port(address: SocketAddr) -> Result<(), String> {
    match timeout(PORT, TcpStream::connect(address)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(e)) => Err(e.to_string()),
        Err(_) => Err(format!("no answer within {} s", PORT.as_secs())),
    }
}

/// Whether a peer can be reached: its port answers, or there is what ssh needs.
pub async fn reach(section: &PeerSection, peer: &PeerHost) -> Result<(), String> {
    match peer.address {
        Some(address) => port(address).await,
        None => [&section.ssh_key, &section.ssh_known_hosts]
            .into_iter()
            .try_for_each(|file| match fs::File::open(file) {
                Ok(_) => Ok(()),
                Err(e) => Err(format!("{}: {e}", file.display())),
            }),
    }
}

/// The certificates: whether droverd can use them, and until when.
pub fn certificates(section: &PeerSection, me: &str) -> Vec<Finding> {
    let mut found = vec![match Pki::load(section, me) {
        Ok(_) => Finding::ok(
            "certificates",
            format!("issued by the configured CA, for '{me}' as subjectAltName, with their keys"),
        ),
        Err(e) => Finding::told(
            "certificates",
            &with_causes(&e),
            "issue them anew for this host, and restart droverd",
        ),
    }];
    let now_s = now_ms() / 1_000;
    for (what, path) in [
        ("CA certificate", &section.ca),
        ("server certificate", &section.server_cert),
        ("client certificate", &section.client_cert),
    ] {
        // A file that cannot be read was told of above.
        if let Some(end) = pki::expires(path) {
            let left = i64::try_from(end).unwrap_or(i64::MAX) - now_s;
            found.push(host::certificate(what, path, left));
        }
    }
    found
}

/// Permissions of the private keys.
pub fn keys(section: &PeerSection) -> Vec<Finding> {
    let of = |what: &str, path: &Path| host::key(what, path, fs::metadata(path).ok()?.mode());
    let server = of("server key", &section.server_key);
    let client = of("client key", &section.client_key);
    server.into_iter().chain(client).collect()
}

/// Whether polkit is on the bus and knows the actions.
pub async fn polkit() -> PolkitFacts {
    let name = "org.freedesktop.PolicyKit1";
    let asked = async {
        let bus = crate::dbus::connect(None, Some(COMMAND)).await.ok()?;
        let dbus = zbus::fdo::DBusProxy::new(&bus).await.ok()?;
        if dbus.name_has_owner(name.try_into().ok()?).await.ok()? {
            return Some(true);
        }
        let startable = dbus.list_activatable_names().await.ok()?;
        Some(startable.iter().any(|n| n.as_str() == name))
    };
    PolkitFacts {
        there: timeout(COMMAND, asked).await.ok().flatten(),
        actions: Path::new("/usr/share/polkit-1/actions/org.drover1.policy").exists(),
    }
}

/// droverd's directories and the file systems below them.
pub fn directories(section: &HistorySection) -> Vec<(PathBuf, Result<DiskFacts, String>)> {
    let mut dirs = vec![section.dir.clone()];
    if !section.dir.starts_with(&section.state_dir) {
        dirs.push(section.state_dir.clone());
    }
    dirs.into_iter()
        .map(|d| {
            let facts = disk(&d);
            (d, facts)
        })
        .collect()
}

fn disk(dir: &Path) -> Result<DiskFacts, String> {
    let failed = |e: nix::Error| e.desc().to_owned();
    let space = statvfs(dir).map_err(failed)?;
    let kind = statfs::statfs(dir).map_err(failed)?.filesystem_type();
    Ok(DiskFacts {
        free_mib: space.blocks_available() as u64 * space.fragment_size() as u64 / (1 << 20),
        volatile: kind == statfs::TMPFS_MAGIC,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_processes_may_hold_anything() {
        let tail = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        assert_eq!(start_ticks(&format!("7 (a) b (c) {tail}")), Some(4711));
        assert_eq!(start_ticks("7 (a) S 1"), None);
        let me = started(std::process::id()).unwrap();
        let now = now_ms() / 1_000;
        assert!((now - 86_400..=now + 2).contains(&me), "{me} {now}");
    }

    #[tokio::test]
    async fn hooks() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hook");
        assert!(matches!(hook(&path).await, HookFacts::Missing(_)));
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
        assert_eq!(hook(&path).await, HookFacts::NotExecutable);
        fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        for (p, is_link) in [(&path, false), (&link, true)] {
            let HookFacts::Present { link, .. } = hook(p).await else {
                panic!()
            };
            assert_eq!(link, is_link);
        }
    }

    #[tokio::test]
    async fn ports_and_disks() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        assert!(port(at).await.is_ok());
        drop(listener);
        assert!(port(at).await.is_err());
        let dir = tempfile::tempdir().unwrap();
        assert!(disk(dir.path()).is_ok());
        assert!(disk(&dir.path().join("nothing")).is_err());
    }
}
