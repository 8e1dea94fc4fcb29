//! The network namespace of a feature: a macvlan or ipvlan named eth0 with the feature's own
//! addresses, a macvlan with its own MAC address too. A namespace of a feature that is on its way
//! here is *gated*: no ARP, and an nftables table that drops everything, neighbour discovery
//! included, so that two guests never answer for one address.
//! Nothing here emits a packet unasked: IPv6 is off unless the feature has an address of it, and then
//! without router solicitations, addresses of the kernel's own making and duplicate address
//! detection, so that no address is ever tentative. Everything is idempotent.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};

use crate::feature::{Cidr, FeatureName, Managed, Network};
use crate::helper::command::{self, CommandError};
use crate::helper::paths;

pub(super) mod packets;
mod rules;

/// The feature's interface inside its namespace.
pub const INTERFACE: &str = "eth0";
/// nftables table (family inet) that closes a namespace.
pub const GATE: &str = "drover_gate";
/// nftables table (family inet) that keeps new connections out.
pub const DOOR: &str = "drover_door";
const LIMIT: Duration = Duration::from_secs(30);

/// Why a namespace could not be made, opened or removed.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// A command failed.
    #[error("network namespace of '{0}': {1}")]
    Command(FeatureName, CommandError),
    /// A system call failed.
    #[error("network namespace of '{0}': cannot {1}: {2}")]
    System(FeatureName, &'static str, io::Error),
    /// The uplink does not exist.
    #[error("the guest has no interface '{1}' for feature '{0}'; name an existing one as 'uplink'")]
    Uplink(FeatureName, String),
}

/// Name of the feature's namespace under /run/netns.
pub fn namespace(name: &FeatureName) -> String {
    format!("drover-{name}")
}

/// Makes the namespace with its interface and address. `announced`: neighbours are told and
/// traffic flows; otherwise the namespace is gated until [`announce`].
pub fn create(name: &FeatureName, spec: &Managed, announced: bool) -> Result<(), NetError> {
    if !Path::new("/sys/class/net").join(&spec.uplink).exists() {
        return Err(NetError::Uplink(name.clone(), spec.uplink.clone()));
    }
    let namespace = namespace(name);
    if !exists(name) {
        add(name).map_err(|e| NetError::System(name.clone(), "make it", e))?;
    }
    let ipv6 = spec.has_ipv6();
    within(name, || prepare_ipv6(ipv6))?
        .map_err(|e| NetError::System(name.clone(), "set IPv6 up", e))?;
    if !announced {
        gate(name)?;
    }
    let mut batch = String::new();
    if !has(name, INTERFACE)? {
        // Not made under its final name, as the guest's uplink may have the same.
        let temporary = format!("dv{:08x}", crc32fast::hash(name.as_str().as_bytes()));
        if !has(name, &temporary)? {
            let kind = match spec.network {
                Network::Macvlan => {
                    format!("address {} type macvlan mode bridge", spec.mac(name))
                }
                Network::Ipvlan => "type ipvlan mode l2".to_owned(),
            };
            let link = format!(
                "link add link {} name {temporary} netns {namespace} {kind}",
                spec.uplink
            );
            ip(name, &link.split(' ').collect::<Vec<_>>(), "")?;
        }
        let _ = writeln!(batch, "link set {temporary} name {INTERFACE}");
    }
    let arp = if announced { "on" } else { "off" };
    let _ = write!(
        batch,
        "link set {INTERFACE} addrgenmode none\nlink set {INTERFACE} arp {arp}\n"
    );
    for a in spec.all_addresses() {
        let nodad = if a.address.is_ipv6() { " nodad" } else { "" };
        let _ = writeln!(batch, "addr replace {a} dev {INTERFACE}{nodad}");
    }
    let _ = write!(batch, "link set lo up\nlink set {INTERFACE} up\n");
    let gateways = spec.gateway.into_iter();
    for gateway in gateways.chain(spec.gateway6.map(IpAddr::V6)) {
        let all = if gateway.is_ipv6() { "::/0" } else { "default" };
        let _ = writeln!(
            batch,
            "route replace {all} via {gateway} dev {INTERFACE} onlink"
        );
    }
    ip(name, &["-n", &namespace, "-batch", "-"], &batch)?;
    if announced {
        announce(name, spec)?;
    }
    Ok(())
}

/// Closes the gate: all IP traffic is dropped in both directions and ARP is off. The source
/// closes it before it kills its copy, so that no FIN or RST leaves. Runs no command, as it is part
/// of a move's downtime.
pub fn gate(name: &FeatureName) -> Result<(), NetError> {
    close(name, packets::add_dropping_table)
}

/// As [`gate`], but what stays inside the namespace passes: for a feature that runs behind it.
pub fn gate_outside(name: &FeatureName) -> Result<(), NetError> {
    close(name, rules::close_outside)
}

fn close(name: &FeatureName, add_table: fn(&str) -> io::Result<()>) -> Result<(), NetError> {
    within(name, || {
        add_table(GATE).map_err(|e| NetError::System(name.clone(), "close the gate", e))?;
        match packets::set_arp(INTERFACE, false) {
            // Not there yet: `create` makes it without ARP.
            Err(e) if e.raw_os_error() == Some(nix::libc::ENODEV) => Ok(()),
            other => other.map_err(|e| NetError::System(name.clone(), "switch ARP off", e)),
        }
    })?
}

/// Lets new TCP connections in again.
pub fn open_door(name: &FeatureName) -> Result<(), NetError> {
    within(name, || packets::delete_table(DOOR))?
        .map_err(|e| NetError::System(name.clone(), "let new connections in", e))
}

/// Whose new connections a closed door keeps out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Visitors {
    /// Those from outside.
    Outside,
    /// Those of the feature with itself, too.
    All,
}

/// Keeps new TCP connections out; those that are open go on. Runs no command, as it is part of a
/// move's downtime.
pub fn close_door(name: &FeatureName, to: Visitors) -> Result<(), NetError> {
    within(name, || rules::close_door(DOOR, to))?
        .map_err(|e| NetError::System(name.clone(), "keep new connections out", e))
}

/// Whether the interface is still without ARP, as [`gate`] leaves it.
pub fn gated(name: &FeatureName) -> bool {
    within(name, || packets::arp(INTERFACE)).is_ok_and(|arp| arp.is_ok_and(|on| !on))
}

/// Opens the gate and tells the neighbours where the addresses are now: three gratuitous ARP
/// messages, each as request and as reply, or unsolicited neighbour advertisements, the first at once
/// and the others within 0.4 s from a thread of their own. Runs no command, as it is part of a move's
/// downtime.
pub fn announce(name: &FeatureName, spec: &Managed) -> Result<(), NetError> {
    let addresses: Vec<Cidr> = spec.all_addresses().copied().collect();
    within(name, || {
        let failed = |what| move |e| NetError::System(name.clone(), what, e);
        packets::set_arp(INTERFACE, true).map_err(failed("switch ARP on"))?;
        packets::delete_table(GATE).map_err(failed("open the gate"))?;
        tell(&addresses).map_err(failed("announce the addresses"))
    })??;
    let again = name.clone();
    std::thread::spawn(move || {
        for pause in [100, 300] {
            std::thread::sleep(Duration::from_millis(pause));
            let sent = within(&again, || tell(&addresses));
            if let Ok(Err(e)) = sent {
                tracing::warn!("cannot announce the address of '{again}' again: {e}");
            }
        }
    });
    Ok(())
}

/// Called inside the namespace: tells the neighbours once.
fn tell(addresses: &[Cidr]) -> io::Result<()> {
    // An ipvlan has the uplink's.
    let mac = packets::mac(INTERFACE)?;
    for a in addresses {
        match a.address {
            IpAddr::V4(a) => packets::gratuitous_arp(INTERFACE, mac, a)?,
            IpAddr::V6(a) => packets::advertise(INTERFACE, mac, a)?,
        }
    }
    Ok(())
}

/// Removes the interface and the namespace.
pub fn delete(name: &FeatureName) -> Result<(), NetError> {
    let system = |what| move |e: io::Error| NetError::System(name.clone(), what, e);
    if exists(name) {
        // The interface first: the kernel takes namespaces down later, in its own time, and the
        // MAC address shall be gone now.
        within(name, || packets::delete_link(INTERFACE))?
            .map_err(system("remove its interface"))?;
    }
    // More than once mounted after two helpers made it at the same time.
    while exists(name) {
        nix::mount::umount2(&paths::netns(name), nix::mount::MntFlags::MNT_DETACH)
            .map_err(|e| system("unmount it")(e.into()))?;
    }
    match fs::remove_file(paths::netns(name)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(NetError::System(name.clone(), "remove its file", e))
        }
        _ => Ok(()),
    }
}

/// Makes an empty namespace and mounts it where `ip netns` finds it.
fn add(name: &FeatureName) -> io::Result<()> {
    let path = paths::netns(name);
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    // A plain file of that name may have been left by an unclean end.
    fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| -> io::Result<()> {
            nix::sched::unshare(CloneFlags::CLONE_NEWNET)?;
            let own = Path::new("/proc/thread-self/ns/net");
            let bind = nix::mount::MsFlags::MS_BIND;
            nix::mount::mount(Some(own), &path, None::<&str>, bind, None::<&str>)?;
            Ok(())
        });
        thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("its thread died")))
    })
}

/// Whether the namespace is there and has its interface.
pub fn ready(name: &FeatureName) -> bool {
    exists(name) && has(name, INTERFACE).unwrap_or(false)
}

/// Whether the namespace is there: a namespace mounted on its file, not a plain file.
pub fn exists(name: &FeatureName) -> bool {
    nix::sys::statfs::statfs(&paths::netns(name))
        .is_ok_and(|s| s.filesystem_type() == nix::sys::statfs::NSFS_MAGIC)
}

fn has(name: &FeatureName, interface: &str) -> Result<bool, NetError> {
    within(name, || nix::net::if_::if_nametoindex(interface).is_ok())
}

/// Moves the calling thread into the namespace.
pub fn enter(name: &FeatureName) -> Result<(), NetError> {
    let system = |e: io::Error| NetError::System(name.clone(), "enter it", e);
    let file = File::open(paths::netns(name)).map_err(system)?;
    setns(&file, CloneFlags::CLONE_NEWNET).map_err(|e| system(e.into()))
}

/// Runs `f` in a thread inside the namespace; commands that `f` runs are inside too.
pub fn within<T: Send>(name: &FeatureName, f: impl FnOnce() -> T + Send) -> Result<T, NetError> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            enter(name)?;
            Ok(f())
        });
        thread.join().unwrap_or_else(|_| {
            let died = io::Error::other("the thread inside it died");
            Err(NetError::System(name.clone(), "work in it", died))
        })
    })
}

fn ip(name: &FeatureName, args: &[&str], stdin: &str) -> Result<String, NetError> {
    command::run("ip", args, stdin, LIMIT).map_err(|e| NetError::Command(name.clone(), e))
}

/// Called inside the namespace, before there is an interface. Without an address of IPv6 it is off:
/// no router solicitation, no multicast report. With one, nothing but that address is there.
fn prepare_ipv6(on: bool) -> io::Result<()> {
    let mut set = vec![("disable_ipv6", if on { "0" } else { "1" })];
    if on {
        set.extend([
            ("accept_ra", "0"),
            ("autoconf", "0"),
            ("accept_dad", "0"),
            ("dad_transmits", "0"),
            ("router_solicitations", "0"),
        ]);
    }
    for scope in ["all", "default", "lo"] {
        for (key, value) in &set {
            let file = format!("/proc/sys/net/ipv6/conf/{scope}/{key}");
            match fs::write(file, value) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                // A guest without IPv6 cannot have such an address.
                Err(e) if on && scope == "all" => return Err(e),
                _ => {}
            }
        }
    }
    Ok(())
}
