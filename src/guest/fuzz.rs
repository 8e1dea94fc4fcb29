//! Fuzz targets: what a guest sends on its ports, and what its agent answers.

use std::collections::HashMap;
use std::str::from_utf8;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::session::Session;
use super::{GuestEvent, cgroups, ports};
use crate::attribution::{DomainCost, FeatureUse, attribute};
use crate::feature::{FeatureName, Resource, Threshold};
use crate::fuzz::{Target, joined, json, pieces, same_as_json, wait, wire};
use crate::sample::{Counters, GuestTotals, MeterFrame, RawSample};
use crate::threshold::Watch;
use crate::usage::usage;
use crate::wire::bulk;
use crate::wire::frame::Kind;
use crate::wire::guest::{
    Call, ErrorKind, Event, GuestFeature, GuestMove, GuestMoveState, GuestStatus, Message,
    Preflight, Reply, RoundStats,
};

/// Messages on the control port, one a line; a line that begins with `!` is no frame.
pub(crate) const CONTROL: Target = Target {
    name: "guest_control",
    run: control,
    seeds: || {
        let all = json(&messages());
        let mut seeds = vec![all.join(&b'\n')];
        seeds.extend(all);
        seeds.push(b"!DRV1\x01\0\0\0 garbage".to_vec());
        seeds
    },
};

fn control(input: &[u8]) {
    let (session, _queues) = Session::new();
    let mut port = Vec::new();
    for line in input.split(|b| *b == b'\n') {
        match line.strip_prefix(b"!") {
            Some(raw) => port.extend_from_slice(raw),
            None => {
                if let Ok(frame) = session.frame(Kind::Control, line, "g") {
                    port.extend_from_slice(&frame);
                }
            }
        }
    }
    let (tx, mut rx) = mpsc::channel(input.len() + 1);
    let reply = wait(async {
        let ask = session.ask("g", Call::Status, Duration::from_secs(60));
        let read = async {
            let heard = Arc::new(Mutex::new(Instant::now()));
            let end = ports::read_control(&port[..], session.clone(), "g".into(), tx, heard);
            let end = end.await;
            session.end();
            end
        };
        tokio::join!(ask, read).0
    });
    if let Ok(reply) = reply {
        same_as_json(&reply);
    }
    let mut meters = Vec::new();
    while let Ok((_, event)) = rx.try_recv() {
        match event {
            GuestEvent::Meter(frame) => meters.push(frame),
            GuestEvent::Progress { id, .. } => {
                assert!(!id.contains(['/', '\n']) && !id.is_empty());
            }
            GuestEvent::Exited { status, .. } => assert!(!status.contains(char::is_control)),
            _ => {}
        }
    }
    metered(&meters);
}

/// Whatever counters a guest sends, what is made of them are finite numbers that are not negative.
fn metered(frames: &[MeterFrame]) {
    let mut last: HashMap<FeatureName, RawSample> = HashMap::new();
    let thresholds = Resource::ALL.map(|resource| Threshold {
        resource,
        limit: 1.0,
        for_s: 1.0,
    });
    let mut watch = Watch::new(&thresholds);
    for frame in frames {
        same_as_json(frame);
        for sample in &frame.features {
            let before = last.insert(sample.feature.clone(), sample.clone());
            let point = before.and_then(|b| usage(&b, sample, 5, frame.guest.cpus));
            let Some(point) = point else { continue };
            same_as_json(&point);
            let rates = Resource::ALL.map(|r| point.get(r));
            assert!(rates.iter().flatten().all(|v| v.is_finite() && *v >= 0.0));
            watch.observe(&point);
            let cost = DomainCost {
                cpus: Some(2.0),
                memory_mib: Some(100.0),
                net_bps: Some(10.0),
                disk_bps: Some(10.0),
                ..DomainCost::default()
            };
            let used = FeatureUse {
                cpus: point.cpu_percent,
                memory_mib: point.memory_mib,
                net_bps: point.net_rx_bps,
                disk_bps: point.disk_read_bps,
            };
            let busy = Some(frame.guest.cpu_busy_usec as f64);
            let (shares, rest) = attribute(&cost, busy, &[used]);
            let cpus = [shares[0].cpus, rest.cpus];
            assert!(cpus.iter().flatten().all(|c| (0.0..=2.001).contains(c)));
        }
    }
}

/// Frames on the bulk port, as pieces; the first is no frame.
pub(crate) const BULK_PORT: Target = Target {
    name: "guest_bulk",
    run: bulk_port,
    seeds: || {
        let mut all = vec![Vec::new()];
        all.extend(wire::bodies().into_iter().map(wire::message));
        vec![joined(&all)]
    },
};

fn bulk_port(input: &[u8]) {
    let (session, _queues) = Session::new();
    let mut port = Vec::new();
    for (n, piece) in pieces(input).into_iter().enumerate() {
        match session.frame(Kind::Bulk, piece, "g") {
            Ok(frame) if n > 0 => port.extend_from_slice(&frame),
            _ => port.extend_from_slice(piece),
        }
    }
    let (tx, mut rx) = mpsc::channel::<bulk::Message>(input.len() + 1);
    session.subscribe(7, tx);
    wait(ports::read_bulk(&port[..], session, "g".into()));
    while let Ok(message) = rx.try_recv() {
        assert_eq!(message.stream, 7);
    }
}

/// What the guest agent's commands print or answer.
pub(crate) const AGENT: Target = Target {
    name: "agent",
    run: |input| {
        let Ok(text) = from_utf8(input) else { return };
        let mut frames = vec![cgroups::parse(text)];
        if let Ok(value) = serde_json::from_str(text) {
            let _ = cgroups::allowed(&value);
            frames.push(cgroups::cpustats(&value));
        }
        frames.extend(frames.clone());
        metered(&frames);
    },
    seeds: || {
        [
            "@boot\n7d2c\n@ticks\n100\n@stat\ncpu  10 20 30 40 50 60 70 80 0 0\ncpu0 1 2 3 4 5 6 7 8\n@meminfo\nMemTotal: 10 kB\nMemAvailable: 5 kB\n@feature web 77\n@uptime\n12.5 3.1\n@cpu.stat\nusage_usec 5\nuser_usec 3\nsystem_usec 2\n@memory.current\n4096\n@io.stat\n8:0 rbytes=1 wbytes=2 rios=3 wios=4\n@pids.current\n3\n@cpu.pressure\nsome avg10=0.00 avg60=0.00 avg300=0.00 total=9\n@none memory.stat\n",
            "@boot\nb\n@feature old 5 6\n@uptime\n9\n@v1 cpuacct.usage\n12000\n@v1 cpuacct.stat\nuser 5\nsystem 6\n@v1 blkio.throttle.io_service_bytes_recursive\n8:0 Read 5\n8:0 Write 6\nTotal 11\n",
            r#"[{"type":"linux","cpu":0,"user":5,"nice":1,"system":2,"idle":99,"iowait":1,"irq":0,"softirq":1,"steal":3}]"#,
            r#"{"version":"7","supported_commands":[{"name":"guest-exec","enabled":true},{"name":"guest-file-open","enabled":false}]}"#,
        ]
        .map(|t| t.as_bytes().to_vec())
        .to_vec()
    },
};

fn messages() -> Vec<Message> {
    let name = |n: &str| n.parse::<FeatureName>().expect("a name");
    let sample = |at_ns: u64| RawSample {
        feature: name("web"),
        identity: 9,
        at_ns,
        counters: Counters {
            cpu_usec: Some(at_ns / 2000),
            memory_bytes: Some(1 << 20),
            net_rx_bytes: Some(at_ns),
            disk_read_bytes: Some(at_ns),
            ..Counters::default()
        },
    };
    let meter = |at_ns: u64| Message::Event {
        event: Event::Meter(MeterFrame {
            at_ns,
            guest: GuestTotals {
                cpus: 1,
                cpu_busy_usec: 5,
                ..GuestTotals::default()
            },
            features: vec![sample(at_ns)],
        }),
    };
    let reply = |reply| Message::Response { id: 1, reply };
    vec![
        meter(1_000_000_000),
        meter(3_000_000_000),
        Message::Event {
            event: Event::Exited {
                feature: name("web"),
                status: "exit code 1".into(),
            },
        },
        Message::Event {
            event: Event::Progress {
                id: "0000-1111".into(),
                round: 2,
                sent: 5,
                total: 9,
            },
        },
        reply(Reply::Done),
        reply(Reply::Hello {
            protocol: 1,
            version: "0.1.0".into(),
            boot_id: "b".into(),
        }),
        reply(Reply::Status(GuestStatus {
            features: vec![GuestFeature {
                feature: name("web"),
                running: true,
                frozen: false,
            }],
            moves: vec![GuestMove {
                id: "0000-1111".into(),
                feature: name("web"),
                state: GuestMoveState::Receiving,
            }],
        })),
        reply(Reply::Preflight(Preflight::default())),
        reply(Reply::Round(RoundStats::default())),
        reply(Reply::Ready { restore_ms: 5 }),
        reply(Reply::Error {
            kind: ErrorKind::Criu,
            message: "it failed".into(),
        }),
    ]
}
