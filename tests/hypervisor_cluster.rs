//! The libvirt edge and the helper's ports with a real libvirtd, QEMU and guest. Needs a host of
//! the test cluster and runs inside of it:
//!
//! ```text
//! cargo test --test hypervisor_cluster --no-run
//! vagrant/cluster up --hosts 1 --no-drover
//! vagrant/cluster exec h1 env DROVER_TEST_DOMAIN=g1 target/debug/deps/hypervisor_cluster-...
//! ```
//!
//! `DROVER_TEST_DOMAIN` names the running guest; without it nothing is tested, and it says so.
//! `DROVER_TEST_HELPER` is a drover-guest to install (a stand-in otherwise);
//! `DROVER_TEST_HOOK` is a drover-hook to install for libvirt (not tested otherwise);
//! `DROVER_TEST_RESTART` is a shell command that restarts libvirtd (not tested otherwise).
#![cfg(feature = "daemon")]
#![allow(clippy::unwrap_used)]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use drover::guest::{self, Guest, GuestError, GuestEvent};
use drover::hypervisor::load::{self, MachineSample};
use drover::hypervisor::{
    self, AgentProblem, Change, Hypervisor, HypervisorError, HypervisorEvent,
};
use drover::wire::bulk::{self, Body};
use drover::wire::guest::{Call, Reply};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

const LONG: Duration = Duration::from_secs(60);

/// Speaks just enough of the helper's protocol: greets, answers `Status`, sends bulk data back.
const STAND_IN: &str = r#"#!/usr/bin/python3
import json, os, struct, sys, threading, zlib
VERSION = "VERSION-HERE"
def port(name):
    return os.open("/dev/virtio-ports/org.drover.%s.0" % name, os.O_RDWR)
def frame(kind, session, payload):
    head = struct.pack("<4sBBBBII", b"DRV1", kind, 0, 0, 0, session, len(payload))
    return head + struct.pack("<I", zlib.crc32(payload, zlib.crc32(head))) + payload
def write(fd, data):
    while data:
        data = data[os.write(fd, data):]
def frames(fd):
    buf = b""
    while True:
        piece = os.read(fd, 1 << 18)
        if not piece:
            import time; time.sleep(0.1); buf = b""; continue
        buf += piece
        while len(buf) >= 20:
            if buf[:4] != b"DRV1":
                buf = buf[1:]; continue
            session, size = struct.unpack("<II", buf[8:16])
            if len(buf) < 20 + size:
                break
            yield session, buf[20:20 + size], buf[:20 + size]
            buf = buf[20 + size:]
def echo():
    fd = port("bulk")
    for _, _, whole in frames(fd):
        write(fd, whole)
threading.Thread(target=echo, daemon=True).start()
fd, current = port("control"), None
for session, payload, _ in frames(fd):
    request = json.loads(payload)
    call = request["call"]["call"]
    if call == "hello":
        current = session
        boot = open("/proc/sys/kernel/random/boot_id").read().strip()
        reply = {"reply": "hello", "protocol": 2, "version": VERSION, "boot_id": boot}
    elif session != current:
        continue
    elif call == "status":
        reply = {"reply": "status", "features": [], "moves": []}
    else:
        reply = {"reply": "error", "kind": "invalid", "message": "a stand-in cannot " + call}
    message = {"type": "response", "id": request["id"], "reply": reply}
    write(fd, frame(1, session, json.dumps(message).encode()))
"#;

fn domain() -> Option<String> {
    let domain = std::env::var("DROVER_TEST_DOMAIN").ok();
    if domain.is_none() {
        eprintln!("skipped: DROVER_TEST_DOMAIN names no guest");
    }
    domain
}

async fn connect() -> (Hypervisor, mpsc::Receiver<HypervisorEvent>) {
    let (tx, events) = mpsc::channel(256);
    let hv = Hypervisor::connect("qemu:///system", 10, tx, None)
        .await
        .unwrap();
    (hv, events)
}

async fn change(events: &mut mpsc::Receiver<HypervisorEvent>) -> (String, Change) {
    loop {
        let event = timeout(LONG, events.recv()).await.unwrap().unwrap();
        if let HypervisorEvent::Lifecycle { domain, change, .. } = event {
            return (domain, change);
        }
    }
}

async fn next(events: &mut mpsc::Receiver<(String, GuestEvent)>) -> GuestEvent {
    timeout(LONG, events.recv()).await.unwrap().unwrap().1
}

async fn connected(events: &mut mpsc::Receiver<(String, GuestEvent)>) -> String {
    loop {
        if let GuestEvent::Connected { version, .. } = next(events).await {
            return version;
        }
    }
}

/// One after the other: all of it is about one guest.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_guest() {
    let Some(domain) = domain() else { return };
    let (hv, mut events) = connect().await;
    host_and_statistics(&hv, &domain).await;
    suspend_and_resume(&hv, &mut events, &domain).await;
    agent(&hv, &domain).await;
    hung_agent(&hv, &domain).await;
    if let Some(binary) = std::env::var_os("DROVER_TEST_HOOK") {
        hook(&mut events, Path::new(&binary)).await;
    }
    persistent_ports(&hv).await;
    install_and_talk(&hv, &domain).await;
    if let Ok(command) = std::env::var("DROVER_TEST_RESTART") {
        restart(&hv, &mut events, &domain, &command).await;
    }
}

async fn host_and_statistics(hv: &Hypervisor, domain: &str) {
    let caps = hv.capabilities().await.unwrap();
    eprintln!("{caps:?}");
    assert!(["kvm", "qemu"].contains(&caps.virt_type.as_str()));
    assert!(!caps.cpu_model.is_empty());
    let domains = hv.domains().await.unwrap();
    let info = domains.iter().find(|d| d.name == domain).unwrap();
    assert!(
        info.running && info.vcpus >= 1 && info.memory_mib > 100.0,
        "{info:?}"
    );

    let machine = MachineSample::read().unwrap();
    let find = |all: Vec<_>| {
        all.into_iter()
            .find(|s: &drover::hypervisor::DomainStats| s.name == domain)
            .unwrap()
    };
    let (at, before) = (Instant::now(), find(hv.stats().await.unwrap()));
    eprintln!("{before:?} in {:?}", at.elapsed());
    // Something for the guest to do.
    let work = json!({"execute": "guest-info"});
    for _ in 0..5 {
        hv.agent(domain, &work, 10).await.unwrap();
    }
    sleep(Duration::from_secs(1)).await;
    let elapsed = at.elapsed().as_secs_f64();
    let after = find(hv.stats().await.unwrap());
    let stats = load::Pair {
        before: Some((&before, elapsed)),
        after: Some(&after),
    };
    let rates = load::domain_rates(&stats, &load::Pair::default());
    eprintln!("{rates:?}");
    assert!(rates.cost.cpus.is_some_and(|c| c > 0.0 && c < 8.0));
    assert!(rates.memory_used_mib.unwrap() > 10.0);
    assert!(rates.cost.net_bps.is_some() && rates.cost.disk_bps.is_some());
    let source = drover::config::LoadSource::Machine;
    let now = MachineSample::read().unwrap();
    let host = load::host_load(source, Some((&machine, &now)), &[(rates, 1)], elapsed);
    eprintln!("{host:?}");
    assert!(host.cpus_used > 0.0);
}

async fn suspend_and_resume(
    hv: &Hypervisor,
    events: &mut mpsc::Receiver<HypervisorEvent>,
    domain: &str,
) {
    let virsh = |verb: &'static str| {
        let domain = domain.to_owned();
        tokio::task::spawn_blocking(move || {
            let done = std::process::Command::new("virsh")
                .args([verb, &domain])
                .output();
            assert!(done.unwrap().status.success());
        })
    };
    virsh("suspend").await.unwrap();
    assert_eq!(change(events).await, (domain.to_owned(), Change::Suspended));
    let running = |all: Vec<drover::hypervisor::DomainInfo>| {
        all.iter().find(|d| d.name == domain).unwrap().running
    };
    assert!(!running(hv.domains().await.unwrap()));
    // A guest that does not run hangs its agent: that costs the caller the timeout, and others
    // nothing.
    let ping = json!({"execute": "guest-ping"});
    let start = Instant::now();
    let hung = hv.agent(domain, &ping, 2);
    let others = async {
        sleep(Duration::from_millis(200)).await;
        hv.stats().await.unwrap();
        hv.channels(domain).await.unwrap();
        start.elapsed()
    };
    let (hung, others) = tokio::join!(hung, others);
    let e = hung.unwrap_err();
    eprintln!("agent of a paused guest after {:?}: {e}", start.elapsed());
    assert!(others < start.elapsed());
    assert!(
        matches!(
            e,
            HypervisorError::Agent {
                problem: AgentProblem::NotAnswering,
                ..
            } | HypervisorError::NotRunning(_)
        ),
        "{e:?}"
    );
    virsh("resume").await.unwrap();
    assert_eq!(change(events).await, (domain.to_owned(), Change::Resumed));
    assert!(running(hv.domains().await.unwrap()));
}

async fn agent(hv: &Hypervisor, domain: &str) {
    let info = hv
        .agent(domain, &json!({"execute": "guest-info"}), 20)
        .await;
    assert!(info.unwrap()["version"].is_string());
    let e = hv
        .agent(domain, &json!({"execute": "no-such-command"}), 20)
        .await
        .unwrap_err();
    assert!(
        matches!(
            e,
            HypervisorError::Agent {
                problem: AgentProblem::Disabled,
                ..
            }
        ),
        "{e:?}"
    );
    let open = json!({"execute": "guest-file-open", "arguments": {"path": "/nonexistent/x"}});
    let e = hv.agent(domain, &open, 20).await.unwrap_err();
    assert!(
        matches!(
            e,
            HypervisorError::Agent {
                problem: AgentProblem::Failed,
                ..
            }
        ),
        "{e:?}"
    );
}

/// An agent that is stopped in the middle of things costs its caller the timeout, and nobody else
/// anything; a second command for it waits its turn outside of libvirt.
async fn hung_agent(hv: &Hypervisor, domain: &str) {
    let script = "(sleep 1; kill -STOP $(pidof qemu-ga); sleep 12; kill -CONT $(pidof qemu-ga)) \
        >/dev/null 2>&1 &";
    let arguments = json!({"path": "/bin/sh", "arg": ["-c", script]});
    let run = json!({"execute": "guest-exec", "arguments": arguments});
    hv.agent(domain, &run, 20).await.unwrap();
    sleep(Duration::from_secs(4)).await;
    let ping = json!({"execute": "guest-ping"});
    let start = Instant::now();
    let others = async {
        let mut longest = Duration::ZERO;
        for _ in 0..10 {
            sleep(Duration::from_millis(100)).await;
            let at = Instant::now();
            hv.stats().await.unwrap();
            hv.channels(domain).await.unwrap();
            longest = longest.max(at.elapsed());
        }
        longest
    };
    let (one, two, longest) = tokio::join!(
        hv.agent(domain, &ping, 2),
        hv.agent(domain, &ping, 2),
        others
    );
    eprintln!(
        "hung agent: {:?} after {:?}",
        one.as_ref().err(),
        start.elapsed()
    );
    eprintln!("longest statistics meanwhile: {longest:?}");
    for e in [one, two] {
        let e = e.unwrap_err();
        assert!(
            matches!(
                e,
                HypervisorError::Agent {
                    problem: AgentProblem::NotAnswering,
                    ..
                } | HypervisorError::Timeout { .. }
            ),
            "{e:?}"
        );
    }
    assert!(longest < Duration::from_secs(5));
    // It comes back.
    for _ in 0..20 {
        if hv.agent(domain, &ping, 5).await.is_ok() {
            return;
        }
        sleep(Duration::from_secs(1)).await;
    }
    panic!("the agent did not come back");
}

/// libvirt runs the hook, and a domain's whole life is told by it and by events alike.
async fn hook(events: &mut mpsc::Receiver<HypervisorEvent>, binary: &Path) {
    const XML: &str = "<domain type='qemu'><name>hooked</name><memory unit='MiB'>32</memory>\
        <os><type arch='x86_64'>hvm</type></os></domain>";
    let dir = Path::new("/etc/libvirt/hooks/qemu.d");
    std::fs::create_dir_all(dir).unwrap();
    std::fs::copy(binary, dir.join("50-drover")).unwrap();
    let mode = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(dir.join("50-drover"), mode).unwrap();
    let mut notices = hypervisor::hook::listen(Path::new("/run/drover/hook.sock")).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), XML).unwrap();
    let script = format!(
        "kill -HUP $(pidof libvirtd); sleep 2; virsh create {} && virsh destroy hooked",
        file.path().display()
    );
    let status = tokio::process::Command::new("sh")
        .args(["-c", &script])
        .status();
    assert!(status.await.unwrap().success());
    let mut told = Vec::new();
    while told.last().is_none_or(|last| last != "release") {
        let notice = timeout(LONG, notices.recv()).await.unwrap().unwrap();
        if notice.domain == "hooked" {
            told.push(notice.operation);
        }
    }
    assert_eq!(told, ["prepare", "start", "started", "stopped", "release"]);
    let mut changes = Vec::new();
    while changes.last() != Some(&Change::Stopped) {
        let (domain, change) = change(events).await;
        if domain == "hooked" {
            changes.push(change);
        }
    }
    assert!(changes.contains(&Change::Started), "{changes:?}");
    std::fs::remove_file(dir.join("50-drover")).unwrap();
}

async fn install_and_talk(hv: &Hypervisor, domain: &str) {
    let dir = tempfile::tempdir().unwrap();
    let real = std::env::var_os("DROVER_TEST_HELPER").map(PathBuf::from);
    let stand_in = |version: &str| {
        let path = dir.path().join(version);
        // Padded, so that it needs several chunks.
        let text = STAND_IN.replace("VERSION-HERE", version) + &"#".repeat(300_000);
        std::fs::write(&path, text).unwrap();
        path
    };
    let first = real.clone().unwrap_or_else(|| stand_in("one"));
    let second = real.clone().unwrap_or_else(|| stand_in("two"));
    let progress = |line: &str| eprintln!("  {line}");

    let start = Instant::now();
    guest::install(hv, domain, &first, &progress).await.unwrap();
    eprintln!("installed in {:?}", start.elapsed());
    let channels = hv.channels(domain).await.unwrap().unwrap();
    assert!(
        channels.control.exists() && channels.bulk.exists(),
        "{channels:?}"
    );
    assert_eq!(hv.ensure_channels(domain).await.unwrap(), channels);
    let (tx, mut events) = mpsc::channel(256);
    let helper = Guest::spawn(domain, channels, tx);
    let version = connected(&mut events).await;
    assert!(real.is_some() || version == "one", "{version}");
    let status = helper.call(Call::Status, LONG).await.unwrap();
    assert!(matches!(status, Reply::Status(_)));

    if real.is_none() {
        let e = helper.call(Call::Capabilities, LONG).await.unwrap_err();
        assert!(matches!(e, GuestError::Helper { .. }), "{e}");
        bulk_echo(&helper).await;
    }

    if real.is_some() {
        let meter = Call::Meter { interval_ms: 500 };
        assert_eq!(helper.call(meter, LONG).await.unwrap(), Reply::Done);
        let mut frames = Vec::new();
        while frames.len() < 2 {
            if let GuestEvent::Meter(frame) = next(&mut events).await {
                frames.push(frame);
            }
        }
        eprintln!("{:?}", frames[1].guest);
        assert!(frames[1].at_ns > frames[0].at_ns && frames[1].guest.cpus >= 1);
    }
    // A new daemon takes over from one that died.
    drop(helper);
    let channels = hv.channels(domain).await.unwrap().unwrap();
    let (tx, mut events) = mpsc::channel(256);
    let helper = Guest::spawn(domain, channels, tx);
    connected(&mut events).await;

    // An upgrade: the file of a running program is replaced, the unit restarted. The session of
    // the old helper ends by its silence.
    guest::install(hv, domain, &second, &progress)
        .await
        .unwrap();
    assert!(matches!(next(&mut events).await, GuestEvent::Lost { .. }));
    let version = connected(&mut events).await;
    assert!(real.is_some() || version == "two", "{version}");
    helper.reconnect();
    connected(&mut events).await;
    helper.call(Call::Status, LONG).await.unwrap();

    guest::remove(hv, domain, &progress).await.unwrap();
    assert_eq!(hv.channels(domain).await.unwrap(), None);
    assert!(matches!(next(&mut events).await, GuestEvent::Lost { .. }));
    let e = helper.call(Call::Status, LONG).await.unwrap_err();
    assert!(matches!(e, GuestError::NotConnected { .. }), "{e}");
    let check = "ls /usr/lib/drover /etc/systemd/system/drover-guest.service \
        /etc/udev/rules.d/90-drover-guest.rules /dev/virtio-ports/org.drover.control.0";
    let arguments = json!({"path": "/bin/sh", "arg": ["-c", check], "capture-output": true});
    let run = json!({"execute": "guest-exec", "arguments": arguments});
    let pid = hv.agent(domain, &run, 20).await.unwrap()["pid"].clone();
    sleep(Duration::from_secs(2)).await;
    let look = json!({"execute": "guest-exec-status", "arguments": {"pid": pid}});
    let status = hv.agent(domain, &look, 20).await.unwrap();
    assert!(
        status.get("out-data").is_none(),
        "something is left: {status}"
    );
    // Removing twice is fine.
    guest::remove(hv, domain, &progress).await.unwrap();
}

/// A defined domain gets the ports in its definition too, and loses them again. One without a
/// virtio-serial controller gets them with its next start.
async fn persistent_ports(hv: &Hypervisor) {
    const XML: &str = "<domain type='qemu'><name>plain</name><memory unit='MiB'>32</memory>\
        <os><type arch='x86_64'>hvm</type></os></domain>";
    let conn = virt::connect::Connect::open(Some("qemu:///system")).unwrap();
    let d = conn.define_domain_xml(XML).unwrap();
    let defined = || {
        let xml = d.xml_desc(virt_sys::VIR_DOMAIN_XML_INACTIVE).unwrap();
        xml.matches("name='org.drover.").count()
    };
    let mut seen = Vec::new();
    d.create().unwrap();
    seen.push((hv.ensure_channels("plain").await, defined()));
    d.destroy().unwrap();
    d.create().unwrap();
    seen.push((hv.ensure_channels("plain").await, defined()));
    let removed = hv.remove_channels("plain").await;
    let left = (hv.channels("plain").await, defined());
    // Now it has a controller.
    seen.push((hv.ensure_channels("plain").await, defined()));
    d.destroy().unwrap();
    let when_off = (hv.remove_channels("plain").await, defined());
    d.undefine().unwrap();
    eprintln!("{seen:?}");
    assert!(matches!(
        seen[0],
        (Err(HypervisorError::NoController(_)), 2)
    ));
    for again in &seen[1..] {
        assert!(matches!(again, (Ok(c), 2) if c.control.is_absolute()));
    }
    removed.unwrap();
    assert_eq!((left.0.unwrap(), left.1), (None, 0));
    when_off.0.unwrap();
    assert_eq!(when_off.1, 0);
}

/// 32 MiB to the guest and back.
async fn bulk_echo(helper: &Guest) {
    const PIECES: u64 = 64;
    let mut stream = helper.bulk_subscribe(3).await;
    let start = Instant::now();
    let send = async {
        for n in 0..PIECES {
            let body = Body::Data {
                file: 1,
                offset: n,
                bytes: vec![n as u8; bulk::MAX_DATA],
            };
            let message = bulk::Message { stream: 3, body };
            helper.bulk_send(&message, LONG).await.unwrap();
        }
    };
    let receive = async {
        for n in 0..PIECES {
            let message = timeout(LONG, stream.recv()).await.unwrap().unwrap();
            let Body::Data { offset, bytes, .. } = message.body else {
                panic!("not what was sent");
            };
            assert_eq!(offset, n);
            assert!(bytes.len() == bulk::MAX_DATA && bytes.iter().all(|b| *b == n as u8));
        }
    };
    tokio::join!(send, receive);
    let mib = PIECES as f64 / 2.0;
    eprintln!(
        "{:.1} MiB/s there and back",
        mib / start.elapsed().as_secs_f64()
    );
}

async fn restart(
    hv: &Hypervisor,
    events: &mut mpsc::Receiver<HypervisorEvent>,
    domain: &str,
    command: &str,
) {
    while events.try_recv().is_ok() {}
    let status = tokio::process::Command::new("sh")
        .args(["-c", command])
        .status()
        .await
        .unwrap();
    assert!(status.success());
    let mut seen = Vec::new();
    while !seen.contains(&HypervisorEvent::Reconnected) {
        seen.push(timeout(LONG, events.recv()).await.unwrap().unwrap());
    }
    assert!(seen.contains(&HypervisorEvent::Lost), "{seen:?}");
    hv.stats().await.unwrap();
    let ping = json!({"execute": "guest-ping"});
    hv.agent(domain, &ping, 20).await.unwrap();
    // Events are registered anew.
    suspend_and_resume(hv, events, domain).await;
}
