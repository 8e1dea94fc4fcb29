//! TCP sockets of a held workload: what criu leaves behind when it dies by force, and how to make
//! peers notice that the feature is back.

use std::io;
use std::mem::size_of;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::libc;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6,
    SockaddrLike, SockaddrStorage, getpeername, getsockname, sendto, socket,
};

use super::netns;
use crate::feature::FeatureName;

/// Connections that are nudged at most; more of them retransmit by their own timers.
const MOST: usize = 4096;
/// Messages per connection: each takes back one doubling of the peer's timer.
const NUDGES: usize = 6;

/// A connection's peer that may be waiting for its retransmission timer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    local: SocketAddr,
    remote: SocketAddr,
    // What it sends next, as far as the feature knows.
    seq: u32,
}

/// The tables of TCP sockets in the network namespace of `pid`; empty where they cannot be read.
pub fn tables(pid: i32) -> [String; 2] {
    ["tcp", "tcp6"]
        .map(|t| std::fs::read_to_string(format!("/proc/{pid}/net/{t}")).unwrap_or_default())
}

/// Connections from outside to the listening sockets of a network namespace that are not over
/// yet, told by its tables in the form of `/proc/net/tcp`.
pub fn accepted(tables: &[String]) -> usize {
    /// Established, half open, and closing with something unacknowledged.
    const OPEN: [&str; 6] = ["01", "03", "04", "08", "09", "0B"];
    let rows = || {
        tables
            .iter()
            .flat_map(|t| t.lines().skip(1))
            .filter_map(|line| {
                let mut words = line.split_ascii_whitespace().skip(1);
                let (local, port) = words.next()?.split_once(':')?;
                let (remote, _) = words.next()?.split_once(':')?;
                Some((local, port, remote, words.next()?))
            })
    };
    let listening: std::collections::HashSet<&str> = rows()
        .filter(|(.., state)| *state == "0A")
        .map(|(_, port, ..)| port)
        .collect();
    // 127.0.0.0/8, also as mapped into IPv6, and ::1; the first byte of an address is its last here.
    let inside = |a: &str| a.ends_with("7F") || a == "00000000000000000000000001000000";
    rows()
        .filter(|(local, port, remote, state)| {
            OPEN.contains(state) && listening.contains(port) && !inside(remote) && local != remote
        })
        .count()
}

/// Calls `f` with a duplicate of every socket of these processes.
fn each(pids: &[i32], mut f: impl FnMut(BorrowedFd<'_>)) {
    each_of(pids, |_, s| f(s));
}

/// The same, with the process whose it is.
fn each_of(pids: &[i32], mut f: impl FnMut(i32, BorrowedFd<'_>)) {
    for pid in pids {
        let Ok(fds) = std::fs::read_dir(format!("/proc/{pid}/fd")) else {
            continue;
        };
        // SAFETY: pidfd_open takes a number and flags.
        let process = owned(unsafe { libc::syscall(libc::SYS_pidfd_open, *pid, 0) });
        let Some(process) = process else { continue };
        for fd in fds.flatten() {
            let is_socket = std::fs::read_link(fd.path())
                .is_ok_and(|l| l.to_string_lossy().starts_with("socket:"));
            let number = fd.file_name().to_str().and_then(|n| n.parse::<i32>().ok());
            let Some(number) = number.filter(|_| is_socket) else {
                continue;
            };
            let process = process.as_raw_fd();
            // SAFETY: pidfd_getfd takes numbers and flags, and duplicates a descriptor.
            let copy = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process, number, 0) };
            if let Some(copy) = owned(copy) {
                f(*pid, copy.as_fd());
            }
        }
    }
}

/// The descriptor that a system call returned, if it returned one.
fn owned(result: libc::c_long) -> Option<OwnedFd> {
    let fd = i32::try_from(result).ok().filter(|fd| *fd >= 0)?;
    // SAFETY: the kernel just made the descriptor for this caller; nobody else owns it.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn tcp(socket: BorrowedFd<'_>, option: libc::c_int) -> Option<u32> {
    get(socket, libc::IPPROTO_TCP, option)
}

fn get(socket: BorrowedFd<'_>, level: libc::c_int, option: libc::c_int) -> Option<u32> {
    let mut value = 0_u32;
    let mut len = size_of::<u32>() as libc::socklen_t;
    // SAFETY: value and length point to locals of the sizes that they tell.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw mut value).cast(),
            &raw mut len,
        )
    };
    (done == 0).then_some(value)
}

fn set(socket: BorrowedFd<'_>, option: libc::c_int, value: libc::c_int) -> bool {
    // SAFETY: the value is a local of the size that is told.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            option,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    done == 0
}

/// A socket that criu cannot carry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Odd {
    /// Multipath TCP.
    Multipath,
    /// Of another family, protocol or with kernel TLS, in words.
    Kind(String),
}

/// Sockets of these processes that criu cannot carry, one of a kind per process.
pub fn odd(pids: &[i32]) -> Vec<(i32, Odd)> {
    let mut found: Vec<(i32, Odd)> = Vec::new();
    each_of(pids, |pid, s| {
        let option = |o| get(s, libc::SOL_SOCKET, o).map(u32::cast_signed);
        let (Some(family), Some(kind), Some(protocol)) = (
            option(libc::SO_DOMAIN),
            option(libc::SO_TYPE),
            option(libc::SO_PROTOCOL),
        ) else {
            return;
        };
        if let Some(what) = classify(family, kind, protocol, upper(s).as_deref())
            && !found.iter().any(|(p, w)| *p == pid && *w == what)
        {
            found.push((pid, what));
        }
    });
    found
}

/// What is odd about a socket of this family, type and protocol; `upper` is the protocol on top of
/// TCP, if there is one.
fn classify(family: i32, kind: i32, protocol: i32, upper: Option<&str>) -> Option<Odd> {
    const LITE: i32 = libc::IPPROTO_UDPLITE;
    match (family, kind, protocol) {
        (libc::AF_INET | libc::AF_INET6, libc::SOCK_STREAM, libc::IPPROTO_MPTCP) => {
            Some(Odd::Multipath)
        }
        (libc::AF_INET | libc::AF_INET6, libc::SOCK_STREAM, libc::IPPROTO_TCP) => {
            upper.map(|u| Odd::Kind(format!("a TCP socket with '{u}' in the kernel")))
        }
        (libc::AF_UNIX | libc::AF_NETLINK | libc::AF_PACKET, _, _)
        | (libc::AF_INET | libc::AF_INET6, libc::SOCK_DGRAM, libc::IPPROTO_UDP | LITE)
        | (libc::AF_INET | libc::AF_INET6, libc::SOCK_RAW, _) => None,
        (family, kind, protocol) => Some(Odd::Kind(format!(
            "a socket of family {family}, type {kind} and protocol {protocol}"
        ))),
    }
}

/// The protocol on top of a TCP socket, for instance `tls`.
fn upper(socket: BorrowedFd<'_>) -> Option<String> {
    let mut name = [0_u8; 16];
    let mut len = name.len() as libc::socklen_t;
    // SAFETY: the buffer is a local and its length is told; the kernel writes no more than that.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_ULP,
            name.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    let name = name.get(..len as usize).filter(|_| done == 0)?;
    let name = name.split(|b| *b == 0).next().unwrap_or_default();
    let name = String::from_utf8_lossy(name);
    (!name.is_empty() && name != "mptcp").then(|| name.into_owned())
}

/// Takes TCP sockets of these processes out of repair mode; how many were in it.
pub fn end_repair(pids: &[i32]) -> usize {
    let mut woken = 0;
    each(pids, |s| {
        if tcp(s, libc::TCP_REPAIR) == Some(1) && set(s, libc::TCP_REPAIR, 0) {
            woken += 1;
        }
    });
    woken
}

/// Peers of the connections of processes that are held. The kernel tells sequence numbers in
/// repair mode only: a socket that is not in it is put there for a moment.
pub fn peers(pids: &[i32]) -> Vec<Peer> {
    const NO_QUEUE: libc::c_int = 0;
    const RECV_QUEUE: libc::c_int = 1;
    const OFF_WITHOUT_PROBE: libc::c_int = -1;
    let mut peers = Vec::new();
    each(pids, |s| {
        let repair = tcp(s, libc::TCP_REPAIR);
        let Some(repair) = repair.filter(|_| peers.len() < MOST) else {
            return; // not a TCP socket
        };
        let fd = s.as_raw_fd();
        let (Ok(local), Ok(remote)) = (
            getsockname::<SockaddrStorage>(fd),
            getpeername::<SockaddrStorage>(fd),
        ) else {
            return; // it listens
        };
        let (Some(local), Some(remote)) = (plain(&local), plain(&remote)) else {
            return;
        };
        if repair == 0 && !set(s, libc::TCP_REPAIR, 1) {
            return;
        }
        if set(s, libc::TCP_REPAIR_QUEUE, RECV_QUEUE) {
            let seq = tcp(s, libc::TCP_QUEUE_SEQ);
            set(s, libc::TCP_REPAIR_QUEUE, NO_QUEUE);
            peers.extend(seq.map(|seq| Peer { local, remote, seq }));
        }
        if repair == 0 {
            set(s, libc::TCP_REPAIR, OFF_WITHOUT_PROBE);
        }
    });
    peers
}

/// An internet address; an IPv4 address as such, also when an IPv6 socket holds it in mapped form.
fn plain(address: &SockaddrStorage) -> Option<SocketAddr> {
    if let Some(a) = address.as_sockaddr_in() {
        return Some(SocketAddrV4::new(a.ip(), a.port()).into());
    }
    let a = address.as_sockaddr_in6()?;
    Some(SocketAddr::new(a.ip().to_canonical(), a.port()))
}

/// Makes peers retransmit now. A peer that sent into the freeze has doubled its timer several
/// times and would keep silent for about as long as the freeze was. RFC 6069 has TCP take a
/// doubling back for every ICMP "host unreachable" that quotes its oldest unacknowledged segment,
/// and retransmit when the shortened timer is over. A connection that waits for nothing ignores
/// them, and the error is a soft one for the application.
pub fn nudge(feature: &FeatureName, peers: &[Peer]) {
    if peers.is_empty() {
        return;
    }
    let sent = netns::within(feature, || -> io::Result<()> {
        let (mut v4, mut v6) = (None, None);
        for peer in peers.iter().filter(|p| !p.remote.ip().is_loopback()) {
            match (peer.local.ip(), peer.remote.ip()) {
                (IpAddr::V4(local), IpAddr::V4(remote)) => {
                    let to = SockaddrIn::from(SocketAddrV4::new(remote, 0));
                    let message = unreachable(peer, local, remote);
                    let raw = opened(&mut v4, AddressFamily::Inet, SockProtocol::Icmp)?;
                    repeat(raw, &message, &to)?;
                }
                (IpAddr::V6(local), IpAddr::V6(remote)) => {
                    let to = SockaddrIn6::from(SocketAddrV6::new(remote, 0, 0, 0));
                    let message = unreachable6(peer, local, remote);
                    let raw = opened(&mut v6, AddressFamily::Inet6, SockProtocol::IcmpV6)?;
                    repeat(raw, &message, &to)?;
                }
                _ => {}
            }
        }
        Ok(())
    });
    match sent {
        Ok(Ok(())) => tracing::debug!("feature {feature}: nudged {} peers", peers.len()),
        Ok(Err(e)) => tracing::debug!("feature {feature}: peers are not nudged: {e}"),
        Err(e) => tracing::debug!("peers are not nudged: {e}"),
    }
}

/// The raw socket of a family, opened when it is needed.
fn opened(
    raw: &mut Option<OwnedFd>,
    family: AddressFamily,
    protocol: SockProtocol,
) -> io::Result<&OwnedFd> {
    let fd = match raw.take() {
        Some(fd) => fd,
        None => socket(
            family,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            protocol,
        )?,
    };
    Ok(raw.insert(fd))
}

fn repeat(raw: &OwnedFd, message: &[u8], to: &impl SockaddrLike) -> io::Result<()> {
    for _ in 0..NUDGES {
        sendto(raw.as_raw_fd(), message, to, MsgFlags::empty())?;
    }
    Ok(())
}

/// The beginning of the segment that the peer waits for.
fn segment(peer: &Peer, out: &mut Vec<u8>) {
    out.extend_from_slice(&peer.remote.port().to_be_bytes());
    out.extend_from_slice(&peer.local.port().to_be_bytes());
    out.extend_from_slice(&peer.seq.to_be_bytes());
}

const TCP: u8 = 6;

/// ICMP destination unreachable (host), quoting the segment that the peer waits for.
fn unreachable(peer: &Peer, local: Ipv4Addr, remote: Ipv4Addr) -> Vec<u8> {
    let mut quoted = vec![0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, TCP, 0, 0];
    quoted.extend_from_slice(&remote.octets());
    quoted.extend_from_slice(&local.octets());
    let sum = checksum(&quoted);
    quoted[10..12].copy_from_slice(&sum.to_be_bytes());
    segment(peer, &mut quoted);
    let mut message = vec![3, 1, 0, 0, 0, 0, 0, 0];
    message.extend_from_slice(&quoted);
    let sum = checksum(&message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

/// ICMPv6 destination unreachable (no route), which alone Linux takes for the same; the kernel fills
/// its checksum in.
fn unreachable6(peer: &Peer, local: Ipv6Addr, remote: Ipv6Addr) -> Vec<u8> {
    let mut message = vec![1, 0, 0, 0, 0, 0, 0, 0];
    message.extend_from_slice(&[0x60, 0, 0, 0, 0, 20, TCP, 64]);
    message.extend_from_slice(&remote.octets());
    message.extend_from_slice(&local.octets());
    segment(peer, &mut message);
    message
}

/// The Internet checksum (RFC 1071) of an even number of bytes.
pub fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|c| u32::from(u16::from_be_bytes([c[0], c.get(1).copied().unwrap_or(0)])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepted_connections_count() {
        let head = "  sl  local_address rem_address   st tx_queue rx_queue\n";
        let v4 = format!(
            "{head}0: 00000000:18EB 00000000:0000 0A 0:0 0\n\
             1: E600580A:18EB 0100580A:9000 01 0:0 0\n\
             2: 0100007F:18EB 0100007F:9001 01 0:0 0\n\
             3: E600580A:9002 0100580A:0050 01 0:0 0\n\
             4: E600580A:18EB 0100580A:9003 06 0:0 0\n"
        );
        let v6 = format!(
            "{head}0: 0000000000000000FFFF0000E600580A:18EB \
             0000000000000000FFFF00000100580A:9004 08 0:0 0\nshort\n"
        );
        assert_eq!(accepted(&[v4.clone(), String::new()]), 1);
        assert_eq!(accepted(&[v4, v6]), 2);
    }

    #[test]
    fn sockets_not_in_repair_mode_are_left_alone() {
        let l = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let c = std::net::TcpStream::connect(l.local_addr().unwrap()).unwrap();
        let me = [i32::try_from(std::process::id()).unwrap()];
        assert_eq!(end_repair(&me), 0);
        drop(c);
    }

    #[test]
    fn the_quoted_segment_is_the_peer_s() {
        let peer = Peer {
            local: "10.0.0.1:80".parse().unwrap(),
            remote: "10.0.0.9:4000".parse().unwrap(),
            seq: 0x0102_0304,
        };
        let m = unreachable(
            &peer,
            Ipv4Addr::new(10, 0, 0, 1),
            Ipv4Addr::new(10, 0, 0, 9),
        );
        assert_eq!(m.len(), 8 + 20 + 8);
        assert_eq!((m[0], m[1]), (3, 1));
        assert_eq!(checksum(&m), 0);
        assert_eq!(checksum(&m[8..28]), 0);
        assert_eq!(m[20..28], [10, 0, 0, 9, 10, 0, 0, 1]);
        assert_eq!(m[28..36], [0x0f, 0xa0, 0, 80, 1, 2, 3, 4]);
        let (local, remote) = ("fd88::1".parse().unwrap(), "fd88::9".parse().unwrap());
        let m = unreachable6(&peer, local, remote);
        assert_eq!((m[0], m[1], m.len()), (1, 0, 8 + 40 + 8));
        assert_eq!(m[16..32], remote.octets());
        assert_eq!(m[48..56], [0x0f, 0xa0, 0, 80, 1, 2, 3, 4]);
    }

    #[test]
    fn mptcp_is_seen_where_the_kernel_has_it() {
        // SAFETY: socket() takes no pointers.
        let raw = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP) };
        if let Some(socket) = owned(raw.into()) {
            let me = [i32::try_from(std::process::id()).unwrap()];
            assert!(odd(&me).iter().any(|(_, o)| *o == Odd::Multipath));
            drop(socket);
        }
    }

    #[test]
    fn what_criu_cannot_carry_is_told_apart() {
        let tcp = |upper| classify(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_TCP, upper);
        assert_eq!(tcp(None), None);
        assert!(matches!(tcp(Some("tls")), Some(Odd::Kind(w)) if w.contains("tls")));
        for (family, kind, protocol) in [
            (libc::AF_INET6, libc::SOCK_DGRAM, libc::IPPROTO_UDP),
            (libc::AF_UNIX, libc::SOCK_SEQPACKET, 0),
            (libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP),
            (libc::AF_NETLINK, libc::SOCK_RAW, 0),
        ] {
            assert_eq!(classify(family, kind, protocol, None), None);
        }
        for (family, kind, protocol) in [
            (libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_SCTP),
            (libc::AF_VSOCK, libc::SOCK_STREAM, 0),
            (libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_ICMP),
        ] {
            assert!(classify(family, kind, protocol, None).is_some());
        }
    }
}
