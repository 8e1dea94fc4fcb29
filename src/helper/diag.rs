//! TCP connections of a network namespace that no process holds, as the kernel lists them
//! (`sock_diag`). Its tables under /proc would tell the same, but write a line for each connection
//! that is over and waits for its port, of which a server that hangs up has thousands.

use std::io;
use std::os::fd::AsRawFd;

use nix::libc;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType};
use nix::sys::socket::{recv, send, socket};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const HEADER: usize = 16;
/// Size of `inet_diag_req_v2`.
const REQUEST: usize = 56;
const SYN_RECV: u8 = 3;
const FIN_WAIT1: u8 = 4;
const LAST_ACK: u8 = 9;
const LISTEN: u8 = 10;
const CLOSING: u8 = 11;
/// A half-open connection as the kernel keeps it; it is told as `SYN_RECV`.
const NEW_SYN_RECV: u8 = 12;
/// What a connection's timer is for: to send once more what was not acknowledged.
const RETRANSMIT: u8 = 1;

/// Connections that no process holds, so that criu does not carry them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unheld {
    /// In an accept queue, or half open.
    pub arriving: u64,
    /// Closed by their process, while the peer has not acknowledged all of it yet.
    pub leaving: u64,
}

/// Counts them in the calling thread's network namespace. Those whose peer was sent the same again,
/// as it keeps silent, do not count: waiting for them is of no use.
pub fn unheld() -> io::Result<Unheld> {
    let netlink = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkSockDiag,
    )?;
    let mut found = Unheld::default();
    let mut buffer = vec![0; 1 << 15];
    for family in [libc::AF_INET, libc::AF_INET6] {
        send(
            netlink.as_raw_fd(),
            &request(family as u8),
            MsgFlags::empty(),
        )?;
        loop {
            let n = recv(netlink.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            if take(buffer.get(..n).unwrap_or_default(), &mut found)? {
                break;
            }
        }
    }
    Ok(found)
}

/// Asks for all TCP sockets of a family in the states that count.
fn request(family: u8) -> Vec<u8> {
    let states = [SYN_RECV, FIN_WAIT1, LAST_ACK, LISTEN, CLOSING, NEW_SYN_RECV];
    let states = states.iter().fold(0_u32, |bits, s| bits | 1 << s);
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
    let mut r = Vec::with_capacity(HEADER + REQUEST);
    r.extend_from_slice(&((HEADER + REQUEST) as u32).to_ne_bytes());
    r.extend_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    r.extend_from_slice(&flags.to_ne_bytes());
    r.extend_from_slice(&[0; 8]);
    r.extend_from_slice(&[family, libc::IPPROTO_TCP as u8, 0, 0]);
    r.extend_from_slice(&states.to_ne_bytes());
    r.resize(HEADER + REQUEST, 0);
    r
}

/// Counts the sockets in an answer; whether it was the last one.
fn take(mut answer: &[u8], found: &mut Unheld) -> io::Result<bool> {
    while let Some((head, _)) = answer.split_at_checked(HEADER) {
        let len = word(head, 0) as usize;
        let kind = (word(head, 4) & 0xffff).cast_signed();
        let Some(body) = answer.get(HEADER..len) else {
            break;
        };
        match kind {
            libc::NLMSG_DONE => return Ok(true),
            libc::NLMSG_ERROR => {
                let code = word(body, 0).cast_signed();
                return Err(io::Error::from_raw_os_error(code.saturating_neg()));
            }
            _ => count(body, found),
        }
        answer = answer.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// Counts one `inet_diag_msg`.
fn count(message: &[u8], found: &mut Unheld) {
    const QUEUE: usize = 56;
    const INODE: usize = 68;
    let [_, state, timer, sent_again, ..] = *message else {
        return;
    };
    if message.len() < INODE + 4 {
        return;
    }
    let silent = timer == RETRANSMIT && sent_again > 0;
    match state {
        LISTEN => found.arriving += u64::from(word(message, QUEUE)),
        _ if silent || word(message, INODE) != 0 => {}
        SYN_RECV => found.arriving += 1,
        FIN_WAIT1 | LAST_ACK | CLOSING => found.leaving += 1,
        _ => {}
    }
}

/// The 32 bits at an offset, in this machine's order; 0 beyond the end.
fn word(bytes: &[u8], at: usize) -> u32 {
    let word = bytes.get(at..).and_then(|b| b.first_chunk());
    word.map_or(0, |b| u32::from_ne_bytes(*b))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    /// An answer of one socket.
    fn answer(state: u8, timer: u8, sent_again: u8, queue: u32, inode: u32) -> Vec<u8> {
        let mut m = vec![2, state, timer, sent_again];
        m.resize(56, 0);
        for n in [queue, 0, 0, inode] {
            m.extend_from_slice(&n.to_ne_bytes());
        }
        let mut a = ((HEADER + m.len()) as u32).to_ne_bytes().to_vec();
        a.extend_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        a.resize(HEADER, 0);
        a.extend_from_slice(&m);
        a
    }

    #[test]
    fn connections_without_a_process_count() {
        let mut found = Unheld::default();
        let held = [
            answer(1, 0, 0, 9, 71),
            answer(FIN_WAIT1, RETRANSMIT, 0, 0, 72),
            answer(LAST_ACK, RETRANSMIT, 1, 0, 0),
            answer(SYN_RECV, RETRANSMIT, 2, 0, 0),
        ];
        assert!(!take(&held.concat(), &mut found).unwrap());
        assert_eq!(found, Unheld::default());
        let more = [
            answer(LISTEN, 0, 0, 3, 70),
            answer(SYN_RECV, RETRANSMIT, 0, 0, 0),
            answer(FIN_WAIT1, RETRANSMIT, 0, 0, 0),
            // A reader who takes its time is asked again and again, and answers.
            answer(LAST_ACK, 4, 3, 0, 0),
            answer(CLOSING, RETRANSMIT, 0, 0, 0),
        ];
        take(&more.concat(), &mut found).unwrap();
        let wanted = Unheld {
            arriving: 4,
            leaving: 3,
        };
        assert_eq!(found, wanted);
    }

    #[test]
    fn the_last_answer_and_errors_are_told_and_nothing_else_is_trusted() {
        let mut found = Unheld::default();
        let told = |kind: i32, word: i32| {
            let mut a = 20_u32.to_ne_bytes().to_vec();
            a.extend_from_slice(&(kind as u16).to_ne_bytes());
            a.resize(HEADER, 0);
            a.extend_from_slice(&word.to_ne_bytes());
            a
        };
        assert!(take(&told(libc::NLMSG_DONE, 0), &mut found).unwrap());
        let e = take(&told(libc::NLMSG_ERROR, -libc::ENOENT), &mut found).unwrap_err();
        assert_eq!(e.raw_os_error(), Some(libc::ENOENT));
        let whole = answer(LISTEN, 0, 0, 3, 70);
        for n in 0..whole.len() {
            assert!(!take(&whole[..n], &mut found).unwrap());
        }
        // A length that leads nowhere.
        assert!(!take(&[0; 40], &mut found).unwrap());
        assert_eq!(found, Unheld::default());
    }

    /// In a network namespace of the test's own; nothing where that is not allowed.
    #[test]
    fn the_kernel_tells_of_them() {
        let thread = std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).ok()?;
            let up = ["link", "set", "lo", "up"];
            let ip = std::process::Command::new("ip").args(up).status().ok()?;
            assert!(ip.success());
            let server = TcpListener::bind("127.0.0.1:0").unwrap();
            assert_eq!(unheld().unwrap(), Unheld::default());
            let mut client = TcpStream::connect(server.local_addr().unwrap()).unwrap();
            assert_eq!(
                (unheld().unwrap().arriving, unheld().unwrap().leaving),
                (1, 0)
            );
            let (mut accepted, _) = server.accept().unwrap();
            // More than the client's buffers take, as it does not read.
            accepted.set_nonblocking(true).unwrap();
            let mut sent = 0;
            while let Ok(n) = accepted.write(&[7; 1 << 13]) {
                sent += n;
            }
            assert_eq!(unheld().unwrap(), Unheld::default());
            drop(accepted);
            assert_eq!(
                (unheld().unwrap().arriving, unheld().unwrap().leaving),
                (0, 1)
            );
            let mut read = Vec::new();
            client.read_to_end(&mut read).unwrap();
            assert_eq!(read.len(), sent);
            // The reader may be awake before its kernel has sent the last acknowledgement.
            let over = (0..2000).any(|_| {
                std::thread::sleep(std::time::Duration::from_millis(5));
                unheld().unwrap() == Unheld::default()
            });
            assert!(over);
            Some(())
        });
        thread.join().unwrap();
    }
}
