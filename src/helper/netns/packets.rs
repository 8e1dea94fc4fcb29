//! What `netns` does without running a command: interface flags, gratuitous ARP, removal of
//! interfaces and nftables tables. All of it works on the calling thread's network namespace.

use std::io::{self, Read};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::libc;

use crate::helper::sockets::checksum;

const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
const NFT_MSG_NEWTABLE: u16 = 0;
const NFT_MSG_DELTABLE: u16 = 2;
const NFT_MSG_NEWCHAIN: u16 = 3;
const NFTA_TABLE_NAME: u16 = 1;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFTA_HOOK_PRIORITY: u16 = 2;
pub(super) const NF_INET_LOCAL_IN: u32 = 1;
pub(super) const NF_INET_LOCAL_OUT: u32 = 3;
pub(super) const NF_DROP: u32 = 0;
pub(super) const NF_ACCEPT: u32 = 1;
/// Before connection tracking and before everything that criu adds.
const PRIORITY: i32 = -400;
const NFPROTO_INET: u8 = 1;
const ICMPV6: u8 = 58;

fn socket(domain: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: socket() takes no pointers; its result is checked before it becomes an OwnedFd,
    // and nobody else owns it.
    unsafe {
        let fd = libc::socket(domain, kind | libc::SOCK_CLOEXEC, protocol);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Switches ARP of an interface on or off (IFF_NOARP). ENODEV when there is no such interface.
pub fn set_arp(interface: &str, on: bool) -> io::Result<()> {
    flags(interface, Some(on)).map(|_| ())
}

/// Whether an interface does ARP.
pub fn arp(interface: &str) -> io::Result<bool> {
    flags(interface, None)
}

/// A request about an interface.
fn about(interface: &str) -> libc::ifreq {
    // SAFETY: ifreq is plain data for which zeroes are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The final zero stays.
    let room = request.ifr_name[..libc::IFNAMSIZ - 1].iter_mut();
    for (to, from) in room.zip(interface.bytes()) {
        *to = from.cast_signed();
    }
    request
}

/// Reads, and with `set` changes, whether an interface does ARP; how it was before.
fn flags(interface: &str, set: Option<bool>) -> io::Result<bool> {
    let fd = socket(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
    let mut request = about(interface);
    // SAFETY: both ioctls read and write this one struct, which outlives them.
    unsafe {
        if libc::ioctl(fd.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request) < 0 {
            return Err(io::Error::last_os_error());
        }
        let old = request.ifr_ifru.ifru_flags;
        let noarp = libc::IFF_NOARP as libc::c_short;
        let was = old & noarp == 0;
        let new = match set {
            Some(true) => old & !noarp,
            Some(false) => old | noarp,
            None => old,
        };
        request.ifr_ifru.ifru_flags = new;
        if new != old && libc::ioctl(fd.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request) < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(was)
    }
}

/// The MAC address of an interface.
pub fn mac(interface: &str) -> io::Result<[u8; 6]> {
    let fd = socket(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
    let mut request = about(interface);
    // SAFETY: the ioctl writes this one struct, and what is read of it then is an address.
    unsafe {
        if libc::ioctl(fd.as_raw_fd(), libc::SIOCGIFHWADDR, &raw mut request) < 0 {
            return Err(io::Error::last_os_error());
        }
        let address = request.ifr_ifru.ifru_hwaddr.sa_data;
        let mut mac = [0; 6];
        for (to, from) in mac.iter_mut().zip(address) {
            *to = from.cast_unsigned();
        }
        Ok(mac)
    }
}

/// Tells every neighbour, as ARP request and as reply, that `address` is at `mac`.
pub fn gratuitous_arp(interface: &str, mac: [u8; 6], address: Ipv4Addr) -> io::Result<()> {
    let frames = [1, 2].map(|operation| arp_frame(operation, mac, address));
    send(interface, &frames)
}

/// Tells every neighbour that `address` is at `mac`, whatever they believed (an unsolicited
/// neighbour advertisement, RFC 4861), and switches that they shall bring its multicast there (a
/// report of its solicited-node group, RFC 2710): the kernel's own was dropped at the gate.
pub fn advertise(interface: &str, mac: [u8; 6], address: Ipv6Addr) -> io::Result<()> {
    send(
        interface,
        &[listener_frame(mac, address), neighbour_frame(mac, address)],
    )
}

/// Sends whole Ethernet frames.
fn send(interface: &str, frames: &[Vec<u8>]) -> io::Result<()> {
    let index = nix::net::if_::if_nametoindex(interface)?;
    // Protocol 0: this socket only sends.
    let fd = socket(libc::AF_PACKET, libc::SOCK_RAW, 0)?;
    for frame in frames {
        // SAFETY: sockaddr_ll is plain data for which zeroes are valid; frame and address
        // outlive the call, and their true sizes are given.
        let sent = unsafe {
            let mut to: libc::sockaddr_ll = std::mem::zeroed();
            to.sll_family = libc::AF_PACKET as u16;
            to.sll_protocol = u16::from_be_bytes([frame[12], frame[13]]).to_be();
            to.sll_ifindex = index.cast_signed();
            to.sll_halen = 6;
            to.sll_addr[..6].copy_from_slice(&frame[..6]);
            libc::sendto(
                fd.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const to).cast(),
                size_of::<libc::sockaddr_ll>() as u32,
            )
        };
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// An Ethernet frame to a multicast group of IPv6, up to the ICMPv6 message whose checksum (bytes 2
/// and 3) is filled in. `before` are extension headers, of which the first has number `next`.
fn ipv6_frame(
    mac: [u8; 6],
    (from, to): (Ipv6Addr, Ipv6Addr),
    hops: u8,
    (next, before): (u8, &[u8]),
    mut message: Vec<u8>,
) -> Vec<u8> {
    let mut pseudo = [from.octets(), to.octets()].concat();
    pseudo.extend_from_slice(&(message.len() as u32).to_be_bytes());
    pseudo.extend_from_slice(&[0, 0, 0, ICMPV6]);
    pseudo.extend_from_slice(&message);
    let sum = checksum(&pseudo);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut f = vec![0x33, 0x33];
    f.extend_from_slice(&to.octets()[12..]);
    f.extend_from_slice(&mac);
    f.extend_from_slice(&[0x86, 0xdd, 0x60, 0, 0, 0]);
    f.extend_from_slice(&((before.len() + message.len()) as u16).to_be_bytes());
    f.extend_from_slice(&[next, hops]);
    f.extend_from_slice(&from.octets());
    f.extend_from_slice(&to.octets());
    f.extend_from_slice(before);
    f.extend_from_slice(&message);
    f
}

fn neighbour_frame(mac: [u8; 6], address: Ipv6Addr) -> Vec<u8> {
    const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    // Type, code, checksum, the flag "override", target, option "target's address" of 8 bytes.
    let mut message = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
    message.extend_from_slice(&address.octets());
    message.extend_from_slice(&[2, 1]);
    message.extend_from_slice(&mac);
    ipv6_frame(mac, (address, ALL_NODES), 255, (ICMPV6, &[]), message)
}

fn listener_frame(mac: [u8; 6], address: Ipv6Addr) -> Vec<u8> {
    let low = address.octets();
    let [a, b, c] = [low[13], low[14], low[15]].map(u16::from);
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | a, (b << 8) | c);
    // Hop-by-hop: next header, length, "router alert", padding.
    let options = [ICMPV6, 0, 5, 2, 0, 0, 1, 0];
    let mut message = vec![131, 0, 0, 0, 0, 0, 0, 0];
    message.extend_from_slice(&group.octets());
    ipv6_frame(
        mac,
        (Ipv6Addr::UNSPECIFIED, group),
        1,
        (0, &options),
        message,
    )
}

fn arp_frame(operation: u8, mac: [u8; 6], address: Ipv4Addr) -> Vec<u8> {
    let mut f = Vec::with_capacity(60);
    f.extend_from_slice(&[0xff; 6]);
    f.extend_from_slice(&mac);
    f.extend_from_slice(&[0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, operation]);
    f.extend_from_slice(&mac);
    f.extend_from_slice(&address.octets());
    f.extend_from_slice(&if operation == 1 { [0; 6] } else { [0xff; 6] });
    f.extend_from_slice(&address.octets());
    f.resize(60, 0); // shortest Ethernet frame
    f
}

/// Removes an nftables table of family inet with all that is in it; its absence is fine.
pub fn delete_table(table: &str) -> io::Result<()> {
    let mut body = Vec::new();
    string(&mut body, NFTA_TABLE_NAME, table);
    match request(
        libc::NETLINK_NETFILTER,
        &batch(&[(NFT_MSG_DELTABLE, 0, body)]),
    ) {
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

/// Makes an nftables table of family inet that drops everything that comes in or goes out. One
/// that is there already stays.
pub fn add_dropping_table(table: &str) -> io::Result<()> {
    request(libc::NETLINK_NETFILTER, &batch(&dropping_table(table)))
}

fn dropping_table(name: &str) -> Vec<(u16, i32, Vec<u8>)> {
    vec![
        table(name),
        chain(name, "in", NF_INET_LOCAL_IN, NF_DROP),
        chain(name, "out", NF_INET_LOCAL_OUT, NF_DROP),
    ]
}

/// The message that makes a table.
pub(super) fn table(name: &str) -> (u16, i32, Vec<u8>) {
    let mut body = Vec::new();
    string(&mut body, NFTA_TABLE_NAME, name);
    (NFT_MSG_NEWTABLE, libc::NLM_F_CREATE, body)
}

/// The message that makes a chain of a table, with what becomes of what no rule decides.
pub(super) fn chain(table: &str, name: &str, hook: u32, policy: u32) -> (u16, i32, Vec<u8>) {
    let mut hooked = Vec::new();
    attribute(&mut hooked, NFTA_HOOK_HOOKNUM, &hook.to_be_bytes());
    attribute(&mut hooked, NFTA_HOOK_PRIORITY, &PRIORITY.to_be_bytes());
    let mut body = Vec::new();
    string(&mut body, NFTA_CHAIN_TABLE, table);
    string(&mut body, NFTA_CHAIN_NAME, name);
    let nested = NFTA_CHAIN_HOOK | libc::NLA_F_NESTED as u16;
    attribute(&mut body, nested, &hooked);
    attribute(&mut body, NFTA_CHAIN_POLICY, &policy.to_be_bytes());
    string(&mut body, NFTA_CHAIN_TYPE, "filter");
    (NFT_MSG_NEWCHAIN, libc::NLM_F_CREATE, body)
}

/// Removes an interface; its absence is fine.
pub fn delete_link(interface: &str) -> io::Result<()> {
    let Ok(index) = nix::net::if_::if_nametoindex(interface) else {
        return Ok(());
    };
    // struct ifinfomsg: family, padding, type, index, flags, change.
    let mut body = vec![0_u8; 16];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    let mut out = Vec::new();
    let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK;
    message(&mut out, libc::RTM_DELLINK, flags, 1, &body);
    match request(libc::NETLINK_ROUTE, &out) {
        Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Ok(()),
        other => other,
    }
}

/// Sends messages to the kernel and waits for the one acknowledgement they ask for.
pub(super) fn request(protocol: i32, messages: &[u8]) -> io::Result<()> {
    let fd = socket(libc::AF_NETLINK, libc::SOCK_RAW, protocol)?;
    let limit = libc::timeval {
        tv_sec: 5,
        tv_usec: 0,
    };
    // SAFETY: the pointers are to locals that outlive the calls, with their true sizes.
    // A netlink socket without a destination address talks to the kernel.
    unsafe {
        let size = size_of::<libc::timeval>() as u32;
        let at = (&raw const limit).cast();
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVTIMEO,
            at,
            size,
        );
        if libc::send(fd.as_raw_fd(), messages.as_ptr().cast(), messages.len(), 0) < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    let mut file = std::fs::File::from(fd);
    let mut reply = [0_u8; 4096];
    let n = file.read(&mut reply)?;
    match netlink_error(&reply[..n]) {
        Some(0) => Ok(()),
        Some(e) => Err(io::Error::from_raw_os_error(-e)),
        None => Err(io::Error::other("unexpected answer from the kernel")),
    }
}

fn message(out: &mut Vec<u8>, kind: u16, flags: i32, seq: u32, body: &[u8]) {
    out.extend_from_slice(&(16 + body.len() as u32).to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(&(flags as u16).to_ne_bytes());
    out.extend_from_slice(&seq.to_ne_bytes());
    out.extend_from_slice(&0_u32.to_ne_bytes());
    out.extend_from_slice(body);
}

pub(super) fn attribute(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    out.extend_from_slice(&(4 + value.len() as u16).to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

pub(super) fn string(out: &mut Vec<u8>, kind: u16, value: &str) {
    attribute(out, kind, &[value.as_bytes(), &[0]].concat());
}

/// A batch of nftables messages (type, flags, attributes) for family inet. The kernel does all of
/// it or nothing; the last message asks for the acknowledgement.
pub(super) fn batch(messages: &[(u16, i32, Vec<u8>)]) -> Vec<u8> {
    let [hi, lo] = NFNL_SUBSYS_NFTABLES.to_be_bytes();
    let flags = libc::NLM_F_REQUEST;
    let mut out = Vec::new();
    message(&mut out, NFNL_MSG_BATCH_BEGIN, flags, 1, &[0, 0, hi, lo]);
    for (n, (kind, more, attributes)) in messages.iter().enumerate() {
        let last = n + 1 == messages.len();
        let flags = flags | more | if last { libc::NLM_F_ACK } else { 0 };
        let body = [&[NFPROTO_INET, 0, 0, 0], attributes.as_slice()].concat();
        let kind = (NFNL_SUBSYS_NFTABLES << 8) | kind;
        message(&mut out, kind, flags, n as u32 + 2, &body);
    }
    message(&mut out, NFNL_MSG_BATCH_END, flags, 0, &[0, 0, hi, lo]);
    out
}

/// The error number (0 or negative) of the first message, when it is an NLMSG_ERROR.
pub(crate) fn netlink_error(reply: &[u8]) -> Option<i32> {
    let kind = u16::from_ne_bytes(reply.get(4..6)?.try_into().ok()?);
    let error = i32::from_ne_bytes(reply.get(16..20)?.try_into().ok()?);
    (i32::from(kind) == libc::NLMSG_ERROR).then_some(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arp_frames_are_those_of_rfc_826() {
        let mac = [0x02, 0x11, 0x22, 0x33, 0x44, 0xc9];
        let request = arp_frame(1, mac, Ipv4Addr::new(10, 88, 0, 201));
        assert_eq!(request.len(), 60);
        assert_eq!(request[6..12], [0x02, 0x11, 0x22, 0x33, 0x44, 0xc9]);
        assert_eq!(request[12..22], [8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        assert_eq!(request[28..32], request[38..42]);
        assert_eq!(request[38..42], [10, 88, 0, 201]);
    }

    #[test]
    fn advertisements_are_those_of_rfc_4861() {
        let mac = [0x02, 0x11, 0x22, 0x33, 0x44, 0xc9];
        let address: Ipv6Addr = "fd88::12:3456".parse().unwrap();
        let sum = |frame: &[u8], from: usize| {
            let length = (frame.len() - from) as u32;
            let mut all = frame[22..54].to_vec();
            all.extend_from_slice(&length.to_be_bytes());
            all.extend_from_slice(&[0, 0, 0, ICMPV6]);
            all.extend_from_slice(&frame[from..]);
            checksum(&all)
        };
        let f = neighbour_frame(mac, address);
        assert_eq!(f.len(), 14 + 40 + 32);
        assert_eq!(f[..6], [0x33, 0x33, 0, 0, 0, 1]);
        assert_eq!(
            (f[18..20].to_vec(), f[20], f[21]),
            (vec![0, 32], ICMPV6, 255)
        );
        assert_eq!((f[54], f[58]), (136, 0x20));
        assert_eq!(f[62..78], address.octets());
        assert_eq!(f[80..86], mac);
        assert_eq!(sum(&f, 54), 0);
        let f = listener_frame(mac, address);
        assert_eq!(f[..6], [0x33, 0x33, 0xff, 0x12, 0x34, 0x56]);
        assert_eq!((f[20], f[21]), (0, 1));
        assert_eq!(f[54..62], [ICMPV6, 0, 5, 2, 0, 0, 1, 0]);
        assert_eq!(f[62], 131);
        assert_eq!(
            f[70..86],
            "ff02::1:ff12:3456".parse::<Ipv6Addr>().unwrap().octets()
        );
        assert_eq!(sum(&f, 62), 0);
    }

    #[test]
    fn an_interface_has_a_mac_address() {
        assert_eq!(mac("lo").unwrap(), [0; 6]);
        assert!(mac("nosuch0").is_err());
    }

    #[test]
    fn batch_lengths_add_up() {
        let batch = batch(&dropping_table("drover_gate"));
        let mut at = 0;
        let mut kinds = Vec::new();
        while at < batch.len() {
            let len = u32::from_ne_bytes(batch[at..at + 4].try_into().unwrap()) as usize;
            kinds.push(u16::from_ne_bytes(
                batch[at + 4..at + 6].try_into().unwrap(),
            ));
            at += len;
        }
        assert_eq!(at, batch.len());
        assert_eq!(kinds, [0x10, 0x0a00, 0x0a03, 0x0a03, 0x11]);
        assert_eq!(at % 4, 0);
    }

    #[test]
    fn reads_the_kernel_s_answer() {
        let mut reply = vec![0; 36];
        reply[4..6].copy_from_slice(&2_u16.to_ne_bytes());
        reply[16..20].copy_from_slice(&(-2_i32).to_ne_bytes());
        assert_eq!(netlink_error(&reply), Some(-2));
        assert_eq!(netlink_error(&reply[..10]), None);
    }
}
