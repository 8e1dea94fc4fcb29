//! nftables tables with rules in them, for features that run while their network is closed: what
//! goes over the loopback interface passes always. Made without running a command.

use std::io;

use nix::libc;

use super::Visitors;
use super::packets::{
    NF_ACCEPT, NF_DROP, NF_INET_LOCAL_IN, NF_INET_LOCAL_OUT, attribute, batch, chain, request,
    string, table,
};

const NFT_MSG_NEWRULE: u16 = 6;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CODE: u16 = 1;
const NESTED: u16 = libc::NLA_F_NESTED as u16;
/// Register in which an expression leaves its value for the next.
const REGISTER: u32 = 1;
/// Register of the verdict.
const VERDICT: u32 = 0;
const META_IIF: u32 = 4;
const META_OIF: u32 = 5;
const META_L4PROTO: u32 = 16;
const TRANSPORT_HEADER: u32 = 2;
/// Where a TCP header has its flags.
const TCP_FLAGS: u32 = 13;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
/// The loopback interface is the first of every namespace.
const LOOPBACK: u32 = 1;

fn nested(out: &mut Vec<u8>, kind: u16, inner: &[u8]) {
    attribute(out, kind | NESTED, inner);
}

/// An expression of this name with these numbers and nested values as attributes.
fn expression(name: &str, numbers: &[(u16, u32)], data: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let mut inside = Vec::new();
    for (kind, n) in numbers {
        attribute(&mut inside, *kind, &n.to_be_bytes());
    }
    for (kind, bytes) in data {
        nested(&mut inside, *kind, bytes);
    }
    let mut e = Vec::new();
    string(&mut e, NFTA_EXPR_NAME, name);
    nested(&mut e, NFTA_EXPR_DATA, &inside);
    e
}

fn value(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    attribute(&mut out, NFTA_DATA_VALUE, bytes);
    out
}

fn meta(key: u32) -> Vec<u8> {
    expression("meta", &[(1, REGISTER), (2, key)], &[])
}

fn equals(bytes: &[u8]) -> Vec<u8> {
    expression("cmp", &[(1, REGISTER), (2, 0)], &[(3, value(bytes))])
}

fn verdict(code: u32) -> Vec<u8> {
    let mut inside = Vec::new();
    attribute(&mut inside, NFTA_VERDICT_CODE, &code.to_be_bytes());
    let mut data = Vec::new();
    nested(&mut data, NFTA_DATA_VERDICT, &inside);
    expression("immediate", &[(1, VERDICT)], &[(2, data)])
}

fn rule(table: &str, chain: &str, expressions: &[Vec<u8>]) -> (u16, i32, Vec<u8>) {
    let mut list = Vec::new();
    for e in expressions {
        nested(&mut list, NFTA_LIST_ELEM, e);
    }
    let mut body = Vec::new();
    string(&mut body, NFTA_RULE_TABLE, table);
    string(&mut body, NFTA_RULE_CHAIN, chain);
    nested(&mut body, NFTA_RULE_EXPRESSIONS, &list);
    (
        NFT_MSG_NEWRULE,
        libc::NLM_F_CREATE | libc::NLM_F_APPEND,
        body,
    )
}

/// What goes over the loopback interface, on this side, passes.
fn loopback(key: u32) -> [Vec<u8>; 3] {
    [
        meta(key),
        equals(&LOOPBACK.to_ne_bytes()),
        verdict(NF_ACCEPT),
    ]
}

/// Drops everything but what stays inside the namespace.
pub fn close_outside(name: &str) -> io::Result<()> {
    let mut messages = vec![table(name)];
    for (side, hook, key) in [
        ("in", NF_INET_LOCAL_IN, META_IIF),
        ("out", NF_INET_LOCAL_OUT, META_OIF),
    ] {
        messages.push(chain(name, side, hook, NF_DROP));
        messages.push(rule(name, side, &loopback(key)));
    }
    request(libc::NETLINK_NETFILTER, &batch(&messages))
}

/// Drops the first packet of every new TCP connection; those that are open go on.
pub fn close_door(name: &str, to: Visitors) -> io::Result<()> {
    // What is masked is XORed with nothing.
    let mask = expression(
        "bitwise",
        &[(1, REGISTER), (2, REGISTER), (3, 1)],
        &[(4, value(&[SYN | ACK])), (5, value(&[0]))],
    );
    let flags = expression(
        "payload",
        &[(1, REGISTER), (2, TRANSPORT_HEADER), (3, TCP_FLAGS), (4, 1)],
        &[],
    );
    let new = [
        meta(META_L4PROTO),
        equals(&[libc::IPPROTO_TCP as u8]),
        flags,
        mask,
        equals(&[SYN]),
        verdict(NF_DROP),
    ];
    let mut messages = vec![table(name), chain(name, "in", NF_INET_LOCAL_IN, NF_ACCEPT)];
    if to == Visitors::Outside {
        messages.push(rule(name, "in", &loopback(META_IIF)));
    }
    messages.push(rule(name, "in", &new));
    request(libc::NETLINK_NETFILTER, &batch(&messages))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tables as `nft` shows them, made in a network namespace of the test's own; nothing
    /// where that is not allowed.
    fn shown(make: impl FnOnce() -> io::Result<()> + Send) -> Option<String> {
        std::thread::scope(|s| {
            let thread = s.spawn(|| {
                nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).ok()?;
                make().unwrap();
                let out = std::process::Command::new("nft")
                    .args(["list", "ruleset"])
                    .output()
                    .ok()?;
                Some(String::from_utf8_lossy(&out.stdout).into_owned())
            });
            thread.join().unwrap()
        })
    }

    #[test]
    fn the_kernel_takes_the_rules() {
        if let Some(text) = shown(|| close_outside("drover_gate")) {
            assert_eq!(text.matches("policy drop").count(), 2, "{text}");
            assert!(text.contains("iif \"lo\" accept"), "{text}");
            assert!(text.contains("oif \"lo\" accept"), "{text}");
        }
        for to in [Visitors::Outside, Visitors::All] {
            if let Some(text) = shown(|| close_door("drover_door", to)) {
                assert!(text.contains("policy accept"), "{text}");
                assert!(text.contains("tcp flags"), "{text}");
                assert!(text.contains("drop"), "{text}");
                let spared = text.contains("iif \"lo\" accept");
                assert_eq!(spared, to == Visitors::Outside, "{text}");
            }
        }
    }
}
