//! Fuzz targets: what a peer sends, behind its certificate.

use std::collections::{BTreeMap, HashMap};
use std::str::from_utf8;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::{AsyncWriteExt, duplex};
use tokio::sync::watch;

use super::bulk::{BulkReceiver, MAX_LENGTH, PACKED, check_hello};
use super::server::{Accepting, check_offer};
use super::slot::state_of;
use super::{INTERFACE, PATH, PeerRefusal, PeerService, RefusalKind};
use crate::affinity::{Batch, Demand, Reservoir, Row, SCHEMA_HASH, Score, WIDTH};
use crate::api::ModelInfo;
use crate::decision::{
    Ask, BreachCause, ByFn, Cause, Policy, View, Want, admit, decide, matrix, plan_many,
};
use crate::feature::{FeatureName, FeatureSpec, Managed, Resource, Workload};
use crate::fuzz::{Target, json, same_as_json, wait, wire};
use crate::host::{
    FeatureState, FeatureStatus, GuestCapabilities, HostState, InstanceState, MoveOutcome,
};
use crate::method::Method;
use crate::transport::stream::read_answer;
use crate::transport::{Cut, Incoming, Link, Protocol};
use crate::usage::Usage;
use crate::wire::guest::Preflight;
use crate::wire::packed;
use crate::wire::peer::{BulkHello, Offer, PROTOCOL, TargetStatus, Verdict};

/// Longest time of one input in zbus: what takes longer waits for something for ever.
const LONGEST: Duration = Duration::from_secs(20);

/// An offer, and whether there is room for it.
pub(crate) const OFFER: Target = Target {
    name: "peer_offer",
    run: |input| {
        let Ok(text) = from_utf8(input) else { return };
        let groups = ["default".to_owned(), "a".to_owned()];
        let Ok(offer) = check_offer(text, "h2", &groups) else {
            return;
        };
        same_as_json(&offer);
        assert!(groups.contains(&offer.spec.group) && offer.spec.validate().is_ok());
        let need = Demand {
            cpus: offer.cpus,
            memory_mib: offer.memory_mib,
            ..Demand::default()
        };
        let h = host("h1", true);
        let room = admit(
            &h,
            &offer.to_domain,
            &need,
            &Policy::default(),
            offer.by_hand,
        );
        assert!(room.is_err() || offer.memory_mib <= h.capabilities.memory_mib);
    },
    seeds: || {
        json(&[Offer {
            protocol: PROTOCOL,
            id: "0000-1111".into(),
            spec: spec("cache"),
            from_domain: "g2".into(),
            to_domain: "g1".into(),
            stream: 5,
            cpus: 0.5,
            memory_mib: 64.0,
            by_hand: false,
            method: Method::Live,
            preflight: Preflight::default(),
            files: Vec::new(),
        }])
    },
};

/// States of peers, one a line, and decisions over them.
pub(crate) const HOSTS: Target = Target {
    name: "peer_hosts",
    run: hosts,
    seeds: || {
        let all = json(&[host("h2", false), host("h3", false), host("h1", true)]);
        let mut seeds = all.clone();
        seeds.push(all.join(&b'\n'));
        seeds
    },
};

fn hosts(input: &[u8]) {
    let Ok(text) = from_utf8(input) else { return };
    let mut hosts = vec![host("h1", true)];
    for line in text.lines() {
        if let Ok(mut state) = state_of(line) {
            same_as_json(&state);
            // A peer's own time is replaced by when it was heard.
            state.at_ms = 1_000_000;
            hosts.push(state);
        }
    }
    let named = |h: &HostState| (h.name.clone(), vec!["default".to_owned()]);
    let view = View {
        me: "h1".into(),
        now_ms: 1_001_000,
        groups: hosts.iter().map(named).collect::<BTreeMap<_, _>>(),
        hosts,
        stale_after_ms: 10_000,
        model: ModelInfo::default(),
    };
    let policy = Policy::default();
    let cache: FeatureName = "cache".parse().expect("a name");
    let expected = Demand {
        cpus: 0.5,
        memory_mib: 64.0,
        ..Demand::default()
    };
    let cause = Cause::Breach(BreachCause {
        resource: Resource::Cpu,
        text: "cpu".into(),
    });
    let ask = Ask::new("g1", &cache, cause, expected);
    let score = |_: &HostState, _: &InstanceState| Score::default();
    let plan = decide(&view, &policy, &ask, &score);
    assert!(serde_json::to_string(&plan).is_ok());
    let score = |_: &HostState, _: &InstanceState| Score::default();
    let _ = matrix(&view, Some(&cache));
    let want = Want {
        host: "h1",
        ask: Ask::new("g1", &cache, Cause::Drain, expected),
        scorer: &ByFn(&score),
    };
    let _ = plan_many(&view, &policy, &[want]);
}

/// Answers of a peer to calls, history and rows.
pub(crate) const ANSWERS: Target = Target {
    name: "peer_answers",
    run: answers,
    seeds: || {
        let mut seeds = json(&[
            TargetStatus::Ready { restore_ms: 5 },
            TargetStatus::Lost {
                reason: "gone".into(),
            },
        ]);
        seeds.extend(json(&[Verdict::Committed]));
        seeds.extend(json(&[vec![Usage::default(); 2]]));
        seeds.extend(json(&[Batch {
            schema: SCHEMA_HASH,
            rows: vec![Row {
                at_ms: 5,
                host: "h2".into(),
                feature: "web".into(),
                group: "default".into(),
                x: [0.5; WIDTH],
                y: 0.5,
            }],
        }]));
        seeds.extend(json(&[BulkHello {
            protocol: PROTOCOL,
            id: "0000-1111".into(),
            pack: vec![packed::LZ4.into()],
        }]));
        seeds.push(b"refused because\n".to_vec());
        seeds.push(b"ok\n".to_vec());
        seeds
    },
};

fn answers(input: &[u8]) {
    if let Err(reason) = wait(read_answer(&mut &input[..])) {
        assert!(!reason.contains(char::is_control));
    }
    let Ok(text) = from_utf8(input) else { return };
    if let Ok((id, _)) = check_hello(text) {
        assert!(!id.contains('/'));
    }
    let _ = serde_json::from_str::<TargetStatus>(text).map(|s| same_as_json(&s));
    let _ = serde_json::from_str::<Verdict>(text).map(|v| same_as_json(&v));
    let _ = serde_json::from_str::<Vec<Usage>>(text).map(|v| same_as_json(&v));
    if let Ok(batch) = serde_json::from_str::<Batch>(text) {
        let mut rows = Reservoir::new(100, 3600.0);
        let new = rows.merge(batch, 1_000_000).unwrap_or(0);
        assert!(rows.len() <= new.min(100));
    }
}

/// A bulk connection after the greeting.
pub(crate) const BULK_STREAM: Target = Target {
    name: "peer_bulk",
    run: |input| {
        wait(async {
            let (mut there, link) = link();
            let _ = there.write_all(input).await;
            let _ = there.shutdown().await;
            if let Ok((id, mut receiver)) = BulkReceiver::accept("h2", link).await {
                assert!(!id.contains('/'));
                while let Ok(Some(message)) = receiver.next().await {
                    assert!(message.body.content() <= MAX_LENGTH);
                }
            }
        });
    },
    seeds: || {
        let stream = |pack: bool| {
            let hello = BulkHello {
                protocol: PROTOCOL,
                id: "0000-1111".into(),
                pack: pack.then(|| packed::LZ4.into()).into_iter().collect(),
            };
            let mut stream = json(&[hello]).concat();
            stream.push(b'\n');
            for body in wire::bodies() {
                let mut message = wire::message(body);
                let mut mark = 0;
                if pack {
                    let mut room = vec![0; packed::room(message.len())];
                    let n = packed::pack(&message, &mut room).expect("room");
                    (message, mark) = (room[..n].to_vec(), PACKED);
                }
                stream.extend_from_slice(&(message.len() as u32 | mark).to_le_bytes());
                stream.extend_from_slice(&message);
            }
            stream
        };
        vec![stream(false), stream(true)]
    },
};

/// D-Bus messages at the peer interface.
pub(crate) const DBUS: Target = Target {
    name: "peer_dbus",
    run: |input| wait(dbus(input)),
    seeds: || {
        use zbus::message::Message;
        let call = |method: &'static str| Message::method_call(PATH, method).interface(INTERFACE);
        let built = |m: zbus::Result<Message>| m.expect("a message").data().to_vec();
        let calls = vec![
            built(call("HostState").build(&())),
            built(call("Offer").build(&("{}",))),
            built(call("AwaitRound").build(&("0000-1111", 3u16))),
            built(call("Resume").build(&("0000-1111",))),
            built(call("Discard").build(&("0000-1111", "no"))),
            built(call("GiveUp").build(&"0000-1111")),
            built(call("ImportHistory").build(&("0000-1111", "[]"))),
            built(call("ImportRollups").build(&("0000-1111", "minute", "AAAA"))),
            built(call("Rows").build(&(5u64, 10u32))),
        ];
        let mut seeds = vec![calls.concat()];
        seeds.extend(calls);
        seeds
    },
};

async fn dbus(input: &[u8]) {
    let (mut there, link) = link();
    let (_announce, announced) = watch::channel(Arc::from(""));
    let (_stop, stop) = watch::channel(false);
    let accepting = Accepting::new(Arc::new(Nobody), HashMap::new(), announced, stop);
    let incoming = Incoming {
        peer: "h2".into(),
        protocol: Protocol::Control,
        link,
    };
    let talk = async {
        let _ = there.write_all(input).await;
        // Answers are read, whatever they are, until the other side has enough.
        let _ = there.shutdown().await;
        tokio::io::copy(&mut there, &mut tokio::io::sink()).await
    };
    let served = async { tokio::join!(Arc::new(accepting).serve(incoming), talk) };
    let ended = tokio::time::timeout(LONGEST, served).await;
    assert!(ended.is_ok(), "the connection does not end");
}

/// A connection, and what writes to it.
fn link() -> (tokio::io::DuplexStream, Link) {
    let (there, here) = duplex(1 << 20);
    let (cut, _) = std::os::unix::net::UnixStream::pair().expect("a pair of sockets");
    let link = Link {
        stream: Box::new(here),
        cut: Cut::Unix(cut),
    };
    (there, link)
}

/// Refuses everything.
struct Nobody;

fn no<T>() -> Result<T, PeerRefusal> {
    Err(PeerRefusal::new(RefusalKind::NotFound, "nobody"))
}

#[async_trait]
impl PeerService for Nobody {
    async fn host_state(&self, _: &str) -> HostState {
        host("h1", true)
    }
    async fn offer(&self, _: &str, _: Offer) -> Result<(), PeerRefusal> {
        no()
    }
    async fn await_round(&self, _: &str, _: &str, _: u16) -> Result<(), PeerRefusal> {
        no()
    }
    async fn grant_freeze(&self, _: &str, _: &str) -> Result<(), PeerRefusal> {
        no()
    }
    async fn restore(&self, _: &str, _: &str, _: u16) -> Result<TargetStatus, PeerRefusal> {
        no()
    }
    async fn resume(&self, _: &str, _: &str) -> Result<TargetStatus, PeerRefusal> {
        no()
    }
    async fn give_up(&self, _: &str, _: &str) -> Result<TargetStatus, PeerRefusal> {
        no()
    }
    async fn discard(&self, _: &str, _: &str, _: &str) -> Result<(), PeerRefusal> {
        no()
    }
    async fn status(&self, _: &str, _: &str) -> TargetStatus {
        TargetStatus::Unknown
    }
    async fn verdict(&self, _: &str, _: &str) -> Verdict {
        Verdict::Aborted
    }
    async fn import_history(&self, _: &str, _: &str, _: Vec<Usage>) -> Result<(), PeerRefusal> {
        no()
    }
    async fn rows(&self, _: &str, _: u64, _: u32) -> String {
        String::new()
    }
    async fn bulk(&self, _: &str, _: &str, _: BulkReceiver) {}
}

fn spec(name: &str) -> FeatureSpec {
    let managed = Managed::new(
        vec!["/usr/bin/redis-server".into()],
        "10.0.0.5/24".parse().expect("an address"),
    );
    let name = name.parse().expect("a name");
    FeatureSpec::new(name, Workload::Managed(managed))
}

/// A host of two guests; the first holds the feature.
fn host(name: &str, with_feature: bool) -> HostState {
    let mut h = HostState::new(name);
    h.at_ms = 1_000_000;
    h.capabilities.cpus = 4.0;
    h.capabilities.memory_mib = 8192.0;
    h.load.cpus_used = 1.5;
    h.load.memory_used_mib = 2048.0;
    for n in 0..2 {
        let mut i = InstanceState::new(format!("g{}{}", &name[1..], ["", "b"][n]));
        i.memory_mib = 1024.0;
        i.memory_available_mib = Some(600.0);
        i.vcpus = 2.0;
        i.cpus_used = 0.7;
        i.capabilities = Some(GuestCapabilities {
            criu: "4.1".into(),
            kernel: "6.12".into(),
            ..GuestCapabilities::default()
        });
        let held = if with_feature { "cache" } else { "other" };
        if n == 0 {
            i.features.push(FeatureState {
                spec: spec(held),
                status: FeatureStatus::Running,
                usage: Some(Usage::default()),
            });
        }
        h.instances.push(i);
    }
    h.outcomes.push(MoveOutcome {
        feature: "cache".parse().expect("a name"),
        from: "h3".into(),
        to: "h1".into(),
        at_ms: 500_000,
        gain: 0.1,
        helped: true,
        fruitless: 0,
    });
    h
}
