//! What facts about the host mean. Pure.

use std::path::Path;

use super::finding::Finding;
use crate::config::PeerHost;
use crate::host::HostState;

/// Peers' clocks may differ by this, milliseconds.
pub const CLOCK_MS: i64 = 2_000;
/// Certificates are told of this long before they expire, seconds.
pub const EXPIRY_S: i64 = 30 * 86_400;
/// Free space below which the history's disk is told of, MiB.
pub const ROOM_MIB: u64 = 1_024;
/// Free space below which the history records nothing, MiB.
const FLOOR_MIB: u64 = 64;
/// Oldest libvirt that Drover works with: 6.5.0 in libvirt's numbers.
const LIBVIRT_MIN: u32 = 6_005_000;

/// What is at the hook's path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HookFacts {
    /// Nothing, or it cannot be looked at, and why.
    Missing(String),
    /// Something that cannot be run.
    NotExecutable,
    /// There.
    Present {
        /// It is a symbolic link.
        link: bool,
        /// When it was put there, seconds since the epoch.
        since_s: i64,
        /// libvirt's daemon, when it runs.
        libvirt: Option<LibvirtDaemon>,
    },
}

/// libvirt's daemon as a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LibvirtDaemon {
    /// Name of the program.
    pub name: String,
    /// When it last read its configuration as far as is known, seconds since the epoch.
    pub since_s: i64,
    /// Whether `since_s` also knows of reloads (systemd tells, a process's age does not).
    pub knows_reloads: bool,
}

/// Mandatory access control of the kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SecurityFacts {
    /// AppArmor is on.
    pub apparmor: bool,
    /// Whether AppArmor confines libvirt's daemon; `None` when that cannot be read.
    pub libvirt_confined: Option<bool>,
    /// SELinux, when it is on: whether it enforces.
    pub selinux_enforcing: Option<bool>,
}

/// What is known of a directory's file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskFacts {
    /// Free space, MiB.
    pub free_mib: u64,
    /// It is in memory and gone after a reboot.
    pub volatile: bool,
}

/// Whether it may look everywhere.
pub fn user(root: bool) -> Finding {
    if root {
        Finding::ok("user", "root")
    } else {
        Finding::warning(
            "user",
            "not root: keys and libvirt may be out of reach",
            "run it as root, for instance with sudo",
        )
    }
}

/// A configuration that was refused.
pub fn configuration(message: &str) -> Finding {
    Finding::error(
        "configuration",
        message,
        "correct the file (drover.toml(5)) and run \"systemctl restart droverd\"",
    )
}

/// droverd: its version, or why it does not answer.
pub fn daemon(version: Result<&str, String>) -> Finding {
    let mine = env!("CARGO_PKG_VERSION");
    match version {
        Ok(v) if v == mine => Finding::ok("droverd", format!("answers, version {v}")),
        Ok(v) => Finding::warning(
            "droverd",
            format!("has version {v}, drover has {mine}"),
            "run \"systemctl restart droverd\", or install both from one package",
        ),
        Err(e) => Finding::told(
            "droverd",
            &e,
            "see \"systemctl status droverd\" and \"journalctl -u droverd\"",
        ),
    }
}

/// libvirt: its version in libvirt's numbers, or why it does not answer.
pub fn libvirt(version: &Result<u32, String>) -> Finding {
    match version {
        Ok(v) => {
            let text = format!("{}.{}.{}", v / 1_000_000, v / 1_000 % 1_000, v % 1_000);
            if *v < LIBVIRT_MIN {
                Finding::error(
                    "libvirt",
                    format!("answers, version {text}"),
                    "upgrade it: Drover needs 6.5 or later",
                )
            } else {
                Finding::ok("libvirt", format!("answers, version {text}"))
            }
        }
        Err(e) => Finding::told(
            "libvirt",
            e,
            "see \"systemctl status libvirtd\" (or virtqemud), and libvirt.uri in drover.toml",
        ),
    }
}

/// The hook, installed at `path`.
pub fn hook(path: &str, facts: &HookFacts) -> Finding {
    const RELOAD: &str = "run \"systemctl reload libvirtd\" (or virtqemud)";
    match facts {
        HookFacts::Missing(why) => Finding::warning(
            "hook",
            format!("{path}: {why}"),
            format!("install drover's hook there (a copy of drover-hook), then {RELOAD}"),
        ),
        HookFacts::NotExecutable => Finding::error(
            "hook",
            format!("{path} is not an executable file; libvirt may refuse to start guests"),
            format!("run \"chmod 755 {path}\", then {RELOAD}"),
        ),
        HookFacts::Present { libvirt: None, .. } => Finding::ok(
            "hook",
            "installed; libvirt's daemon will find it at its start",
        ),
        HookFacts::Present {
            since_s,
            libvirt: Some(d),
            ..
        } if d.since_s < *since_s => {
            let unless = if d.knows_reloads {
                ""
            } else {
                ", unless it was reloaded since"
            };
            Finding::warning(
                "hook",
                format!(
                    "installed after {} last started: it may not run it{unless}",
                    d.name
                ),
                RELOAD,
            )
        }
        HookFacts::Present {
            libvirt: Some(d), ..
        } => Finding::ok("hook", format!("installed before {} last started", d.name)),
    }
}

/// Mandatory access control, where it matters. Nothing is changed.
pub fn security(facts: &SecurityFacts, hook: &HookFacts) -> Vec<Finding> {
    let mut found = Vec::new();
    let linked = matches!(hook, HookFacts::Present { link: true, .. });
    found.push(match (facts.apparmor, facts.libvirt_confined) {
        (false, _) => Finding::ok("AppArmor", "off"),
        (true, Some(false)) => Finding::ok("AppArmor", "on, libvirt's daemon is not confined"),
        (true, confined) if linked => Finding::error(
            "AppArmor",
            if confined.is_some() {
                "confines libvirt's daemon, and the hook is a symbolic link: its target may not run"
            } else {
                "on, and the hook is a symbolic link: its target may not run"
            },
            "install the hook as a copy, as \"make install\" does",
        ),
        (true, _) => Finding::ok(
            "AppArmor",
            "on; the hook is where libvirt's profile lets it run",
        ),
    });
    found.push(match facts.selinux_enforcing {
        None => Finding::ok("SELinux", "off"),
        Some(false) => Finding::ok("SELinux", "permissive"),
        Some(true) => Finding::warning(
            "SELinux",
            "enforcing: no policy for droverd is shipped",
            "if channels or certificates are refused, look with \"ausearch -m avc -c droverd\" and allow it by a local module",
        ),
    });
    found
}

/// A certificate that expires in `left_s` seconds (negative: it has).
pub fn certificate(what: &str, path: &Path, left_s: i64) -> Finding {
    let about = format!("{what} {}", path.display());
    let days = left_s / 86_400;
    if left_s < 0 {
        Finding::error(
            about,
            format!("has expired {} days ago", -days),
            "issue a new one and restart droverd",
        )
    } else if left_s < EXPIRY_S {
        Finding::warning(
            about,
            format!("expires in {days} days"),
            "issue a new one in time and restart droverd",
        )
    } else {
        Finding::ok(about, format!("expires in {days} days"))
    }
}

/// A private key whose file has these permissions.
pub fn key(what: &str, path: &Path, mode: u32) -> Option<Finding> {
    let about = format!("{what} {}", path.display());
    (mode & 0o007 != 0).then(|| {
        Finding::error(
            about,
            format!("every user may read it (mode {:04o})", mode & 0o7777),
            format!(
                "run \"chmod o= {}\"; issue a new one if others had access",
                path.display()
            ),
        )
    })
}

/// What is known about polkit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PolkitFacts {
    /// It is on the bus, or the bus can start it; `None` when the bus does not answer.
    pub there: Option<bool>,
    /// It knows Drover's actions.
    pub actions: bool,
}

/// Whether users who are not root can be given rights.
pub fn polkit(facts: PolkitFacts) -> Finding {
    match facts {
        PolkitFacts { there: None, .. } => Finding::warning(
            "polkit",
            "the system bus does not answer",
            "see \"systemctl status dbus\"",
        ),
        PolkitFacts {
            there: Some(false), ..
        } => Finding::ok("polkit", "not installed: only root may change something"),
        PolkitFacts { actions: false, .. } => Finding::warning(
            "polkit",
            "it does not know Drover's actions, so only root may change something",
            "install org.drover1.policy into /usr/share/polkit-1/actions",
        ),
        PolkitFacts { .. } => Finding::ok("polkit", "runs, and knows Drover's actions"),
    }
}

/// Feature files: how many are right, and what is wrong with the others.
pub fn feature_files(dir: &Path, right: usize, errors: &[String]) -> Finding {
    let about = format!("feature files in {}", dir.display());
    match errors {
        [] => Finding::ok(about, format!("{right} features")),
        all => Finding::error(
            about,
            all.join("; "),
            "correct them, see \"drover config check\", and run \"drover reload\"",
        ),
    }
}

/// A configured peer: what droverd heard of it (`None`: droverd does not answer), and whether
/// its port can be reached from here.
pub fn peer(
    peer: &PeerHost,
    heard: Option<&[HostState]>,
    port: &Result<(), String>,
) -> Vec<Finding> {
    let about = format!("peer {}", peer.name);
    let at = match (&peer.address, &peer.ssh) {
        (Some(address), _) => address.to_string(),
        (None, ssh) => format!("ssh {}", ssh.as_deref().unwrap_or_default()),
    };
    let state = heard.and_then(|all| all.iter().skip(1).find(|h| h.name == peer.name));
    let Some(state) = state else {
        return vec![match (heard, port) {
            (_, Err(e)) => Finding::error(
                about,
                format!("{at} cannot be reached: {e}"),
                "start droverd there, and let this host through its firewall",
            ),
            (None, Ok(())) => Finding::ok(
                about,
                format!("{at} accepts connections; no more is known without droverd here"),
            ),
            (Some(_), Ok(())) => Finding::error(
                about,
                format!("{at} accepts connections, but droverd has none to it"),
                format!(
                    "\"journalctl -u droverd\" here and on '{}' tells why: mostly the certificates, or a name that the other side does not list",
                    peer.name
                ),
            ),
        }];
    };
    let mut found = Vec::new();
    let mine = env!("CARGO_PKG_VERSION");
    if state.version == mine {
        found.push(Finding::ok(
            about.clone(),
            format!("connected, version {}", state.version),
        ));
    } else {
        found.push(Finding::warning(
            about.clone(),
            format!("connected, but has version {}, not {mine}", state.version),
            "install the same version on all hosts",
        ));
    }
    if let Some(ms) = state.clock_ahead_ms {
        let side = if ms < 0 { "behind" } else { "ahead" };
        let seconds = ms.unsigned_abs() as f64 / 1_000.0;
        found.push(if ms.abs() > CLOCK_MS {
            Finding::error(
                about,
                format!("its clock is {seconds:.1} s {side}"),
                "synchronise the clocks of all hosts, for instance with chrony",
            )
        } else {
            Finding::ok(about, format!("its clock differs by {seconds:.1} s"))
        });
    }
    found
}

/// The file system of a directory of droverd's, or why it cannot be looked at.
pub fn disk(dir: &Path, facts: &Result<DiskFacts, String>) -> Finding {
    let about = format!("directory {}", dir.display());
    match facts {
        Err(e) => Finding::error(
            about,
            e,
            "start droverd once, which makes it, or correct [history] in drover.toml",
        ),
        Ok(d) if d.free_mib < FLOOR_MIB => Finding::error(
            about,
            format!("{} MiB free: nothing is recorded", d.free_mib),
            "free space, or set [history] to a larger disk",
        ),
        Ok(d) if d.volatile => Finding::warning(
            about,
            "on a file system in memory: lost at the next reboot, and with it the journal of moves",
            "set [history] dir and state_dir to a disk",
        ),
        Ok(d) if d.free_mib < ROOM_MIB => Finding::warning(
            about,
            format!("{} MiB free", d.free_mib),
            format!("free space: below {FLOOR_MIB} MiB nothing is recorded"),
        ),
        Ok(d) => Finding::ok(about, format!("{} GiB free", d.free_mib / 1_024)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Severity;
    use super::super::finding::Severity::{Error, Ok as Fine, Warning};
    use super::*;
    use crate::host::{HostCapabilities, StorageKind};

    fn present(since_s: i64, libvirt: Option<(i64, bool)>) -> HookFacts {
        HookFacts::Present {
            link: false,
            since_s,
            libvirt: libvirt.map(|(since_s, knows_reloads)| LibvirtDaemon {
                name: "libvirtd".into(),
                since_s,
                knows_reloads,
            }),
        }
    }

    #[test]
    fn hooks() {
        let judge = |f: &HookFacts| hook("/h", f);
        assert_eq!(judge(&HookFacts::Missing("x".into())).severity, Warning);
        assert_eq!(judge(&HookFacts::NotExecutable).severity, Error);
        assert_eq!(judge(&present(5, None)).severity, Fine);
        assert_eq!(judge(&present(5, Some((6, true)))).severity, Fine);
        let late = judge(&present(5, Some((4, false))));
        assert_eq!(late.severity, Warning);
        assert!(late.found.contains("unless it was reloaded"), "{late:?}");
        let late = judge(&present(5, Some((4, true))));
        assert!(!late.found.contains("unless"), "{late:?}");
    }

    #[test]
    fn access_control() {
        let mut f = SecurityFacts {
            apparmor: true,
            libvirt_confined: Some(true),
            selinux_enforcing: None,
        };
        let copy = present(0, None);
        let link = HookFacts::Present {
            link: true,
            since_s: 0,
            libvirt: None,
        };
        let worst = |f: &SecurityFacts, h: &HookFacts| {
            let all = security(f, h).into_iter();
            all.map(|f| f.severity).max().unwrap()
        };
        assert_eq!(worst(&f, &copy), Fine);
        assert_eq!(worst(&f, &link), Error);
        f.libvirt_confined = Some(false);
        assert_eq!(worst(&f, &link), Fine);
        f.selinux_enforcing = Some(true);
        assert_eq!(worst(&f, &copy), Warning);
    }

    #[test]
    fn versions() {
        assert_eq!(libvirt(&Ok(6_004_009)).severity, Error);
        let f = libvirt(&Ok(9_000_012));
        assert_eq!(
            (f.severity, f.found.as_str()),
            (Fine, "answers, version 9.0.12")
        );
        assert_eq!(daemon(Ok("0.0.0")).severity, Warning);
        assert_eq!(daemon(Ok(env!("CARGO_PKG_VERSION"))).severity, Fine);
        assert_eq!(daemon(Err("gone; start it".into())).severity, Error);
    }

    #[test]
    fn rights() {
        let path = Path::new("/k.pem");
        assert!(key("server key", path, 0o100_640).is_none());
        let e = key("server key", path, 0o100_644).unwrap();
        assert_eq!(e.severity, Severity::Error);
        let of = |there, actions| polkit(PolkitFacts { there, actions }).severity;
        assert_eq!(of(Some(true), true), Severity::Ok);
        assert_eq!(of(Some(true), false), Severity::Warning);
        assert_eq!(of(Some(false), false), Severity::Ok);
        assert_eq!(of(None, true), Severity::Warning);
        assert_eq!(feature_files(path, 2, &[]).severity, Severity::Ok);
        let e = feature_files(path, 2, &["x.toml: line 1".to_owned()]);
        assert_eq!(e.severity, Severity::Error);
    }

    #[test]
    fn expiry() {
        let judge = |s| certificate("CA certificate", Path::new("/ca"), s).severity;
        assert_eq!(judge(-1), Error);
        assert_eq!(judge(EXPIRY_S - 1), Warning);
        assert_eq!(judge(EXPIRY_S), Fine);
    }

    fn state(name: &str, clock_ahead_ms: Option<i64>) -> HostState {
        HostState {
            clock_ahead_ms,
            capabilities: HostCapabilities {
                cpu_model: String::new(),
                cpus: 1.0,
                memory_mib: 1.0,
                network_mbps: 0.0,
                storage: StorageKind::Unknown,
                virt_type: "kvm".into(),
            },
            ..HostState::new(name)
        }
    }

    #[test]
    fn peers_and_clocks() {
        let h2 = PeerHost {
            name: "h2".into(),
            address: "192.0.2.1:1".parse().ok(),
            ssh: None,
            groups: vec![],
        };
        let judge = |heard: Option<&[HostState]>, port: Result<(), String>| {
            let all = peer(&h2, heard, &port).into_iter();
            all.map(|f| f.severity).collect::<Vec<_>>()
        };
        let me = || state("h1", None);
        assert_eq!(judge(None, Ok(())), [Fine]);
        assert_eq!(judge(None, Err("refused".into())), [Error]);
        assert_eq!(judge(Some(&[me()]), Ok(())), [Error]);
        for (ms, clock) in [
            (2_000, Fine),
            (-2_000, Fine),
            (2_001, Error),
            (-2_001, Error),
        ] {
            let heard = [me(), state("h2", Some(ms))];
            assert_eq!(judge(Some(&heard), Ok(())), [Fine, clock], "{ms}");
        }
        let mut old = state("h2", None);
        old.version = "0.0.0".into();
        assert_eq!(judge(Some(&[me(), old]), Ok(())), [Warning]);
    }

    #[test]
    fn room() {
        let judge = |free_mib, volatile| {
            disk(Path::new("/d"), &Ok(DiskFacts { free_mib, volatile })).severity
        };
        assert_eq!(judge(ROOM_MIB, false), Fine);
        assert_eq!(judge(ROOM_MIB - 1, false), Warning);
        assert_eq!(judge(FLOOR_MIB - 1, false), Error);
        assert_eq!(judge(ROOM_MIB, true), Warning);
        assert_eq!(disk(Path::new("/d"), &Err("gone".into())).severity, Error);
    }
}
