//! A certificate authority, a service and a pair of hosts.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use drover::config::{PeerHost, PeerSection};
use drover::feature::{FeatureName, FeatureSpec, Workload};
use drover::host::{HostCapabilities, HostState, StorageKind};
use drover::peer::{BulkReceiver, PeerEvent, PeerRefusal, PeerService, Peers, RefusalKind};
use drover::usage::Usage;
use drover::wire::bulk::{Body, Message};
use drover::wire::guest::Preflight;
use drover::wire::peer::{Offer, PROTOCOL, TargetStatus, Verdict};
use tokio::sync::mpsc;

pub const MOVE: &str = "00000000-0001";
/// A move for which the service refuses.
pub const BUSY: &str = "00000000-000b";
/// A move for which the service takes a minute, or 4 s until it reads bulk data.
pub const SLOW: &str = "00000000-0005";

pub fn openssl(dir: &Path, args: &[&str]) {
    let out = Command::new("openssl")
        .args(args)
        .current_dir(dir)
        .output()
        .expect("the tests need the openssl command");
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "openssl {args:?}: {said}");
}

/// A CA in a directory of its own.
pub struct Ca(tempfile::TempDir);

const EC: [&str; 5] = [
    "-newkey",
    "ec",
    "-pkeyopt",
    "ec_paramgen_curve:P-256",
    "-nodes",
];

impl Ca {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut args = vec!["req", "-x509"];
        args.extend(EC);
        args.extend([
            "-keyout",
            "ca.key",
            "-out",
            "ca.pem",
            "-subj",
            "/CN=Test CA",
        ]);
        args.extend(["-days", "2", "-addext", "basicConstraints=critical,CA:TRUE"]);
        openssl(dir.path(), &args);
        std::fs::write(
            dir.path().join("ca.cnf"),
            "[ca]\ndefault_ca=d\n[d]\nnew_certs_dir=.\ndatabase=index\nserial=serial\npolicy=p\n\
             default_md=sha256\nunique_subject=no\n[p]\ncommonName=supplied\n",
        )
        .unwrap();
        std::fs::write(dir.path().join("index"), "").unwrap();
        std::fs::write(dir.path().join("serial"), "1000\n").unwrap();
        Self(dir)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Certificate `FILE.pem` with key `FILE.key`, common name `FILE`, and these extensions.
    pub fn issue(&self, file: &str, extensions: &str, dates: [&str; 2]) {
        let (key, csr, pem) = (
            format!("{file}.key"),
            format!("{file}.csr"),
            format!("{file}.pem"),
        );
        let subject = format!("/CN={file}");
        let mut args = vec!["req", "-new"];
        args.extend(EC);
        args.extend(["-keyout", &key, "-out", &csr, "-subj", &subject]);
        openssl(self.0.path(), &args);
        std::fs::write(self.path("ext"), extensions).unwrap();
        openssl(
            self.0.path(),
            &[
                "ca",
                "-batch",
                "-notext",
                "-config",
                "ca.cnf",
                "-cert",
                "ca.pem",
                "-keyfile",
                "ca.key",
                "-extfile",
                "ext",
                "-in",
                &csr,
                "-out",
                &pem,
                "-startdate",
                dates[0],
                "-enddate",
                dates[1],
            ],
        );
    }

    /// A good certificate for a host.
    pub fn host(&self, name: &str) {
        self.issue(name, &extensions(&format!("DNS:{name}")), VALID);
    }

    pub fn section(&self, me: &str, listen: SocketAddr, hosts: Vec<PeerHost>) -> PeerSection {
        PeerSection {
            listen: Some(listen),
            ca: self.path("ca.pem"),
            server_cert: self.path(&format!("{me}.pem")),
            server_key: self.path(&format!("{me}.key")),
            client_cert: self.path(&format!("{me}.pem")),
            client_key: self.path(&format!("{me}.key")),
            refresh_s: 0.2,
            timeout_s: 2.0,
            ssh_key: self.path("ssh.key"),
            ssh_known_hosts: self.path("known_hosts"),
            ssh_socket: self.path(&format!("{me}.sock")),
            hosts,
        }
    }
}

pub const VALID: [&str; 2] = ["20200101000000Z", "20691231000000Z"];
pub const EXPIRED: [&str; 2] = ["20200101000000Z", "20210101000000Z"];

pub fn extensions(san: &str) -> String {
    format!(
        "basicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth,clientAuth\nsubjectAltName={san}\n"
    )
}

pub fn free_address() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
}

pub fn host(name: &str, address: SocketAddr) -> PeerHost {
    PeerHost {
        name: name.into(),
        address: Some(address),
        ssh: None,
        groups: vec!["default".into()],
    }
}

pub fn state(name: &str) -> HostState {
    HostState {
        version: "0.1.0-test".into(),
        at_ms: 5,
        capabilities: HostCapabilities {
            cpu_model: "Test".into(),
            cpus: 4.0,
            memory_mib: 8192.0,
            network_mbps: 1000.0,
            storage: StorageKind::Ssd,
            virt_type: "kvm".into(),
        },
        ..HostState::new(name)
    }
}

pub fn offer(id: &str, group: &str) -> Offer {
    Offer {
        protocol: PROTOCOL,
        id: id.into(),
        spec: FeatureSpec {
            group: group.into(),
            ..FeatureSpec::new(
                FeatureName::new("cache").unwrap(),
                Workload::Unit {
                    unit: "cache.service".into(),
                },
            )
        },
        from_domain: "vm-a".into(),
        to_domain: "vm-b".into(),
        stream: 7,
        cpus: 1.5,
        memory_mib: 256.0,
        method: drover::method::Method::Live,
        by_hand: false,
        preflight: Preflight::default(),
        files: vec![],
    }
}

/// What a bulk connection brought.
#[derive(Debug, Default)]
pub struct Received {
    pub from: String,
    pub id: String,
    pub bytes: u64,
    pub sum: u64,
    pub rounds: u16,
    pub end: Option<Result<(), String>>,
}

/// Stands in for the daemon and remembers what it was asked.
#[derive(Default)]
pub struct Fake {
    pub name: String,
    pub seen: Mutex<Vec<String>>,
    pub points: AtomicUsize,
    pub bulk: Mutex<Received>,
}

impl Fake {
    fn saw(&self, what: String) {
        self.seen.lock().unwrap().push(what);
    }
}

#[async_trait]
impl PeerService for Fake {
    async fn host_state(&self, _from: &str) -> HostState {
        state(&self.name)
    }
    async fn offer(&self, from: &str, offer: Offer) -> Result<(), PeerRefusal> {
        self.saw(format!("offer {from} {} {}", offer.id, offer.spec.name));
        if offer.id == BUSY {
            return Err(PeerRefusal::new(RefusalKind::Busy, "guest vm-b is taken"));
        }
        Ok(())
    }
    async fn await_round(&self, from: &str, id: &str, round: u16) -> Result<(), PeerRefusal> {
        self.saw(format!("await_round {from} {id} {round}"));
        if id == SLOW {
            tokio::time::sleep(Duration::from_secs(60)).await;
        }
        Ok(())
    }
    async fn grant_freeze(&self, from: &str, id: &str) -> Result<(), PeerRefusal> {
        self.saw(format!("grant_freeze {from} {id}"));
        Ok(())
    }
    async fn restore(&self, from: &str, id: &str, round: u16) -> Result<TargetStatus, PeerRefusal> {
        self.saw(format!("restore {from} {id} {round}"));
        Ok(TargetStatus::Ready { restore_ms: 12 })
    }
    async fn resume(&self, from: &str, id: &str) -> Result<TargetStatus, PeerRefusal> {
        self.saw(format!("resume {from} {id}"));
        Ok(TargetStatus::Running {
            resume_ms: 3,
            settling: false,
            warning: None,
        })
    }
    async fn give_up(&self, from: &str, id: &str) -> Result<TargetStatus, PeerRefusal> {
        self.saw(format!("give up {from} {id}"));
        Ok(TargetStatus::Lost {
            reason: "destroyed".into(),
        })
    }
    async fn discard(&self, from: &str, id: &str, reason: &str) -> Result<(), PeerRefusal> {
        self.saw(format!("discard {from} {id} {reason}"));
        Ok(())
    }
    async fn status(&self, _from: &str, id: &str) -> TargetStatus {
        if id == MOVE {
            TargetStatus::Receiving
        } else {
            TargetStatus::Unknown
        }
    }
    async fn verdict(&self, _from: &str, _id: &str) -> Verdict {
        Verdict::Pending
    }
    async fn import_history(
        &self,
        _from: &str,
        id: &str,
        points: Vec<Usage>,
    ) -> Result<(), PeerRefusal> {
        self.saw(format!("import_history {id} {}", points.len()));
        self.points.fetch_add(points.len(), Ordering::SeqCst);
        Ok(())
    }
    async fn rows(&self, from: &str, after: u64, limit: u32) -> String {
        if limit == u32::MAX {
            return "x".repeat(5 << 20);
        }
        format!("[\"{from}\",{after},{limit}]")
    }
    async fn bulk(&self, from: &str, id: &str, mut incoming: BulkReceiver) {
        *self.bulk.lock().unwrap() = Received {
            from: from.into(),
            id: id.into(),
            ..Received::default()
        };
        if id == SLOW {
            tokio::time::sleep(Duration::from_secs(4)).await;
        }
        let mut hash = drover::wire::sum::Sum::new();
        let end = loop {
            match incoming.next().await {
                Ok(Some(Message { body, .. })) => {
                    let mut r = self.bulk.lock().unwrap();
                    match body {
                        Body::Data { bytes, .. } => {
                            r.bytes += bytes.len() as u64;
                            hash.update(&bytes);
                            r.sum = hash.finish();
                        }
                        Body::RoundEnd { .. } => r.rounds += 1,
                        Body::Open { .. } | Body::Close { .. } | Body::State(_) => {}
                    }
                }
                Ok(None) => break Ok(()),
                Err(e) => break Err(e.to_string()),
            }
        };
        self.bulk.lock().unwrap().end = Some(end);
    }
}

/// A running host.
pub struct Host {
    pub peers: Peers,
    pub fake: Arc<Fake>,
    pub events: mpsc::Receiver<PeerEvent>,
}

pub async fn start(name: &str, section: &PeerSection) -> Host {
    // RUST_LOG=drover=debug shows what happens.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_test_writer()
        .try_init();
    let fake = Arc::new(Fake {
        name: name.into(),
        ..Fake::default()
    });
    let (tell, events) = mpsc::channel(64);
    let peers = Peers::start(section, name, fake.clone(), tell)
        .await
        .unwrap();
    Host {
        peers,
        fake,
        events,
    }
}

impl Host {
    /// Waits for an event that `wanted` accepts; others are dropped.
    pub async fn event(&mut self, wanted: impl Fn(&PeerEvent) -> bool) -> PeerEvent {
        let wait = async {
            loop {
                let event = self.events.recv().await.expect("events go on");
                if wanted(&event) {
                    return event;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(15), wait)
            .await
            .expect("the event comes")
    }
    pub async fn up(&mut self) -> PeerEvent {
        self.event(|e| matches!(e, PeerEvent::Up { .. })).await
    }
    pub async fn down(&mut self) -> PeerEvent {
        self.event(|e| matches!(e, PeerEvent::Down { .. })).await
    }
}

/// Hosts `host-a` and `host-b`, each the other's peer; not started.
pub struct Pair {
    pub ca: Ca,
    pub a: PeerSection,
    pub b: PeerSection,
}

impl Pair {
    pub fn new() -> Self {
        let ca = Ca::new();
        ca.host("host-a");
        ca.host("host-b");
        let (at_a, at_b) = (free_address(), free_address());
        let a = ca.section("host-a", at_a, vec![host("host-b", at_b)]);
        let b = ca.section("host-b", at_b, vec![host("host-a", at_a)]);
        Self { ca, a, b }
    }

    /// Starts both and waits until both see each other.
    pub async fn both(&self) -> (Host, Host) {
        let (mut a, mut b) = (
            start("host-a", &self.a).await,
            start("host-b", &self.b).await,
        );
        a.up().await;
        b.up().await;
        (a, b)
    }
}
