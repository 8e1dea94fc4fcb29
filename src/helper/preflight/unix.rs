//! Unix sockets that are connected, as the kernel lists them (`sock_diag(7)`), and those of them
//! whose other end is not the feature's.

use std::collections::{BTreeSet, HashMap};
use std::io;

use crate::reason::{Code, Reason};

/// The other end of a connected unix socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Its inode.
    pub inode: u64,
    /// Whether it is of the datagram kind.
    pub datagram: bool,
}

/// Connected unix sockets, by inode, and their other ends.
pub type Peers = HashMap<u64, Peer>;

const NLMSG_HEADER: usize = 16;
const DIAG_MESSAGE: usize = 16;

/// Sockets of the feature (inode and owner) that are connected to somebody else's.
pub fn external(owned: &HashMap<u64, String>, peers: &Peers, problems: &mut BTreeSet<Reason>) {
    for (inode, owner) in owned {
        let Some(peer) = peers.get(inode).filter(|p| !owned.contains_key(&p.inode)) else {
            continue;
        };
        problems.insert(if peer.datagram {
            Reason::new(
                Code::UnixDatagram,
                format!(
                    "{owner} is a unix datagram socket connected to a process outside of the \
                     feature, as syslog is; log to standard output instead"
                ),
            )
        } else {
            Reason::new(
                Code::UnixStream,
                format!(
                    "{owner} is a unix stream connection to a process outside of the feature; \
                     close it before the move"
                ),
            )
        });
    }
}

/// Asks the kernel for the connected unix sockets of the calling thread's network namespace.
pub fn peers() -> io::Result<Peers> {
    use nix::sys::socket as s;
    use std::os::fd::AsRawFd;
    const SOCK_DIAG_BY_FAMILY: u16 = 20;
    const REQUEST_DUMP: u16 = 0x301;
    const SHOW_PEER: u32 = 4;
    const ANY_STATE: u32 = u32::MAX;
    let socket = s::socket(
        s::AddressFamily::Netlink,
        s::SockType::Raw,
        s::SockFlag::SOCK_CLOEXEC,
        s::SockProtocol::NetlinkSockDiag,
    )?;
    let patience = nix::sys::time::TimeVal::new(5, 0);
    s::setsockopt(&socket, s::sockopt::ReceiveTimeout, &patience)?;
    let mut ask = Vec::new();
    // nlmsghdr: length, type, flags, sequence, port; then unix_diag_req.
    ask.extend_from_slice(&40_u32.to_ne_bytes());
    ask.extend_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    ask.extend_from_slice(&REQUEST_DUMP.to_ne_bytes());
    ask.extend_from_slice(&[0; 8]);
    ask.extend_from_slice(&[nix::libc::AF_UNIX as u8, 0, 0, 0]);
    for word in [ANY_STATE, 0, SHOW_PEER, 0, 0] {
        ask.extend_from_slice(&word.to_ne_bytes());
    }
    s::send(socket.as_raw_fd(), &ask, s::MsgFlags::empty())?;
    let mut peers = Peers::new();
    let mut buf = vec![0; 64 << 10];
    loop {
        let n = s::recv(socket.as_raw_fd(), &mut buf, s::MsgFlags::empty())?;
        if read(&buf[..n], &mut peers)? {
            return Ok(peers);
        }
    }
}

/// Takes the sockets out of a datagram of netlink messages; whether the last one was there.
fn read(mut bytes: &[u8], peers: &mut Peers) -> io::Result<bool> {
    const NLMSG_ERROR: u16 = 2;
    const NLMSG_DONE: u16 = 3;
    const DATAGRAM: u8 = 2;
    const ATTRIBUTE_PEER: u16 = 2;
    let half = |b: &[u8], at: usize| b.get(at..at + 2).map(|w| u16::from_ne_bytes([w[0], w[1]]));
    let word = |b: &[u8], at: usize| {
        let w = b.get(at..at + 4)?;
        Some(u32::from_ne_bytes([w[0], w[1], w[2], w[3]]))
    };
    while let (Some(len), Some(kind)) = (word(bytes, 0), half(bytes, 4)) {
        let len = len as usize;
        if kind == NLMSG_DONE {
            return Ok(true);
        }
        if kind == NLMSG_ERROR || len < NLMSG_HEADER || len > bytes.len() {
            return Err(io::Error::other(
                "the kernel does not list unix sockets (unix_diag)",
            ));
        }
        let message = &bytes[NLMSG_HEADER..len];
        if let (Some(kind), Some(inode)) = (message.get(1), word(message, 4)) {
            let datagram = *kind == DATAGRAM;
            let mut at = DIAG_MESSAGE;
            while let (Some(size), Some(attribute)) = (half(message, at), half(message, at + 2)) {
                if attribute == ATTRIBUTE_PEER
                    && let Some(peer) = word(message, at + 4).filter(|p| *p != 0)
                {
                    let inode_of_peer = u64::from(peer);
                    peers.insert(
                        u64::from(inode),
                        Peer {
                            inode: inode_of_peer,
                            datagram,
                        },
                    );
                }
                at += usize::from(size).max(4).next_multiple_of(4);
            }
        }
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{AsRawFd, RawFd};
    use std::os::unix::net::{UnixDatagram, UnixStream};

    fn inode(fd: RawFd) -> u64 {
        let l = std::fs::read_link(format!("/proc/self/fd/{fd}")).unwrap();
        let l = l.to_string_lossy().into_owned();
        l["socket:[".len()..l.len() - 1].parse().unwrap()
    }

    #[test]
    fn the_kernel_lists_pairs() {
        let (a, b) = UnixStream::pair().unwrap();
        let (c, d) = UnixDatagram::pair().unwrap();
        let peers = peers().unwrap();
        for (one, other, datagram) in [
            (a.as_raw_fd(), b.as_raw_fd(), false),
            (c.as_raw_fd(), d.as_raw_fd(), true),
        ] {
            let want = Peer {
                inode: inode(other),
                datagram,
            };
            assert_eq!(peers.get(&inode(one)), Some(&want));
        }
    }

    #[test]
    fn only_what_leads_outside_is_named() {
        let owned = HashMap::from([(5, "five".to_owned()), (6, "six".to_owned())]);
        let to = |inode, datagram| Peer { inode, datagram };
        let mut found = BTreeSet::new();
        external(
            &owned,
            &Peers::from([(5, to(6, false)), (6, to(5, false))]),
            &mut found,
        );
        assert!(found.is_empty());
        external(
            &owned,
            &Peers::from([(5, to(9, false)), (6, to(8, true))]),
            &mut found,
        );
        let codes: Vec<Code> = found.iter().map(|r| r.code).collect();
        assert_eq!(codes, [Code::UnixStream, Code::UnixDatagram]);
    }

    proptest::proptest! {
        #[test]
        fn answers_never_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            let _ = read(&bytes, &mut Peers::new());
            let mut framed = ((bytes.len() + 16) as u32).to_ne_bytes().to_vec();
            framed.extend_from_slice(&[20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            framed.extend_from_slice(&bytes);
            let _ = read(&framed, &mut Peers::new());
        }
    }
}
