//! The daemon (wiring): owns what the edges and the pure core share, and ties them together.
//!
//! - [`instance`]: instances and features at run time
//! - [`lifecycle`]: libvirt's events, helpers coming and going, recovery
//! - [`metering`]: meter frames to usage, history and breaches
//! - [`agent_meter`]: guests without the helper
//! - [`qemu_meter`]: QEMU's monitors, where the administrator wants it
//! - [`metadata`]: features in the domains' XML
//! - [`arrivals`]: domains that libvirt migrates as a whole
//! - [`forecast`]: what is expected to be breached
//! - [`placement`]: host state, automatic moves
//! - [`decisions`], [`audit`]: plans, recorded decisions, advice, scores
//! - [`affinity`]: training the model, rows of peers
//! - [`outcome`]: what moves cost, and whether they helped
//! - [`relief`]: hosts that will be short of CPU
//! - [`check`]: whether a feature could move, without moving it
//! - [`drain`]: emptying this host
//! - [`moves`], [`skipped`]: beginning, committing and ending moves, or none; the journal
//! - [`live`], [`files`]: the configuration in force, features from files, reloads
//! - [`serve_api`], [`serve_peer`]: what users and peers may ask

pub mod affinity;
mod agent_meter;
mod arrivals;
pub mod audit;
mod certificates;
mod check;
pub mod clock;
mod decisions;
mod drain;
mod fates;
mod files;
mod forecast;
pub mod instance;
mod lifecycle;
pub mod live;
mod locks;
mod metadata;
mod metering;
mod moves;
mod outcome;
mod placement;
mod qemu_meter;
mod relief;
mod serve_api;
mod serve_peer;
mod skipped;

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{broadcast, mpsc};

use crate::affinity::Affinity;
use crate::api::{ApiError, ApiEvent};
use crate::config::Loaded;
use crate::dbus::DbusError;
use crate::driver::queue::Queue;
use crate::driver::source::Handle;
use crate::driver::target;
use crate::feature::FeatureName;
use crate::guest::{Guest, GuestEvent};
use crate::history::{History, HistoryError};
use crate::host::HostState;
use crate::hypervisor::{Hypervisor, HypervisorError, HypervisorEvent};
use crate::metrics::{Counters, Endpoint, MetricsError};
use crate::moving::record::TargetRecord;
use crate::peer::{PeerError, PeerEvent, Peers};
use crate::store::{Store, StoreError};
use crate::wire::guest::MoveId;

use instance::{Feature, Instance};
use locks::Locks;
use placement::HostRuntime;

/// Why the daemon cannot start.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// libvirt.
    #[error("libvirt")]
    Hypervisor(#[from] HypervisorError),
    /// History.
    #[error("history")]
    History(#[from] HistoryError),
    /// Registry and journal.
    #[error("registry and journal")]
    Store(#[from] StoreError),
    /// Recorded decisions.
    #[error("recorded decisions")]
    Audit(#[from] audit::AuditError),
    /// Peers.
    #[error("peers")]
    Peer(#[from] PeerError),
    /// D-Bus.
    #[error("D-Bus")]
    Dbus(#[from] DbusError),
    /// The system bus closed the connection; a new start connects anew.
    #[error("the system bus closed the connection")]
    BusLost,
    /// Metrics.
    #[error("metrics")]
    Metrics(#[from] MetricsError),
    /// The hook's socket.
    #[error("hook socket")]
    Hook(#[from] crate::hypervisor::hook::HookError),
}

/// The daemon's shared state. Locks are held for a few instructions only, never across an await.
pub struct Daemon {
    /// Configuration in force.
    pub config: live::Live,
    hypervisor: Hypervisor,
    store: Store,
    history: History,
    peers: OnceLock<Peers>,
    events: broadcast::Sender<ApiEvent>,
    counters: Arc<Counters>,
    guest_events: mpsc::Sender<(String, GuestEvent)>,
    instances: Mutex<BTreeMap<String, Instance>>,
    peer_states: Mutex<BTreeMap<String, HostState>>,
    host: Mutex<HostRuntime>,
    /// This host as it was a moment ago, and when; see `host_lately`.
    lately: Mutex<Option<(Instant, Arc<placement::Lately>)>>,
    affinity: Mutex<Affinity>,
    audit: Arc<audit::Audit>,
    outcomes: Mutex<outcome::Outcomes>,
    drain: Mutex<drain::Drain>,
    forecasts: Mutex<forecast::Forecasts>,
    /// Forecasts that users ask for are made one at a time.
    forecast_turn: tokio::sync::Mutex<()>,
    outgoing: Mutex<BTreeMap<MoveId, Handle>>,
    arrivals: Mutex<arrivals::Arrivals>,
    /// Incoming moves.
    pub incoming: target::Moves,
    /// Per domain: serialises what changes its features, begins a move or takes an offer. Taken
    /// before the lock of a name.
    changes: Locks,
    /// Per feature's name: serialises what makes a name known here.
    names: Locks,
    /// Per domain: one `define` at a time, so that the last one tells the latest.
    defines: Locks,
    /// Held while an offer's room is judged and reserved; never across an await.
    offers: Mutex<()>,
    /// Held for writing until the journal is taken up.
    starting: tokio::sync::RwLock<()>,
    /// No move begins any more.
    stopping: AtomicBool,
    /// What moves from here have sent lately.
    pub sending: Arc<crate::driver::relay::Sending>,
    /// Turns of moves from here.
    pub departures: Queue,
    /// The turn to freeze of moves to here.
    pub freezes: Queue,
    files: Mutex<files::Files>,
    /// One reload at a time.
    reloading: tokio::sync::Mutex<()>,
}

impl std::fmt::Debug for Daemon {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Daemon")
            .field("host", &self.config.host.name)
            .finish_non_exhaustive()
    }
}

/// Longest wait for a guest's small steps.
pub(crate) const SHORT: Duration = Duration::from_secs(30);

/// A lock whose holder panicked still guards plain data: go on with it.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Daemon {
    fn no_domain(&self, domain: &str) -> ApiError {
        ApiError::NotFound(format!(
            "no domain '{domain}' on host '{}'; 'virsh list --all' shows them",
            self.name()
        ))
    }

    /// A feature and its instance among the locked ones, or who is missing.
    fn find<'a>(
        &self,
        instances: &'a BTreeMap<String, Instance>,
        domain: &str,
        feature: &FeatureName,
    ) -> Result<(&'a Instance, &'a Feature), ApiError> {
        let instance = instances
            .get(domain)
            .ok_or_else(|| self.no_domain(domain))?;
        let found = instance.features.get(feature).ok_or_else(|| {
            ApiError::NotFound(format!(
                "no feature '{feature}' in domain '{domain}'; 'drover list' shows them"
            ))
        })?;
        Ok((instance, found))
    }

    /// Changes a feature at run time, if it is (still) there.
    fn with_feature(&self, domain: &str, feature: &FeatureName, change: impl FnOnce(&mut Feature)) {
        let mut instances = lock(&self.instances);
        if let Some(f) = instances
            .get_mut(domain)
            .and_then(|i| i.features.get_mut(feature))
        {
            change(f);
        }
    }

    /// Publishes an event to `org.drover1` and whoever listens.
    pub fn emit(&self, event: ApiEvent) {
        self.counters.observe(&event);
        // No listener is fine.
        let _ = self.events.send(event);
    }

    /// The connection to a domain's helper, when it is up.
    pub fn guest(&self, domain: &str) -> Option<Guest> {
        let instances = lock(&self.instances);
        instances
            .get(domain)?
            .guest
            .clone()
            .filter(Guest::connected)
    }

    fn guest_handle(&self, domain: &str) -> Option<Guest> {
        lock(&self.instances).get(domain)?.guest.clone()
    }

    /// Peers, once they are started and if any are configured.
    pub fn peers(&self) -> Option<&Peers> {
        self.peers.get()
    }

    /// Whether libvirt knows for sure that the domain has no QEMU: a paused one has, and keeps
    /// what is in its memory. Domains were listed before this is asked the first time.
    pub fn domain_is_gone(&self, domain: &str) -> bool {
        lock(&self.instances)
            .get(domain)
            .is_none_or(|i| !i.info.active)
    }

    /// How it is known that what a READY move's guest held is gone for good: the domain was shut
    /// off without its memory being kept, or the guest was booted anew since. `None`: it is not
    /// known. A silent helper proves nothing.
    pub fn copy_is_gone(&self, record: &TargetRecord) -> Option<String> {
        let domain = &record.domain;
        let instances = lock(&self.instances);
        let i = instances
            .get(domain)
            .filter(|i| i.info.uuid == record.domain_uuid)?;
        if i.info.ended {
            return Some(format!("domain '{domain}' was shut off"));
        }
        let now = i.guest.as_ref()?.boot_id()?;
        let then = record.boot_id.as_ref()?;
        (now != *then).then(|| format!("the guest of domain '{domain}' was booted anew"))
    }

    /// This host's name.
    pub fn name(&self) -> &str {
        &self.config.host.name
    }
}

/// Runs the daemon until `stop` resolves. A message in `reload` reads the configuration anew.
pub async fn run(
    loaded: Loaded,
    reload: mpsc::Receiver<()>,
    stop: impl Future<Output = ()>,
) -> Result<(), DaemonError> {
    let config = live::Live::new(loaded);
    let options = config.history.options(config.meter.interval_s);
    let history = History::open(&config.history.dir, options)?;
    let store = Store::open(&config.history.state_dir)?;
    let (hv_events, hv_inbox) = mpsc::channel::<HypervisorEvent>(1024);
    let (told, told_inbox) = mpsc::channel(256);
    let hypervisor = Hypervisor::connect(
        &config.libvirt.uri,
        config.libvirt.agent_timeout_s,
        hv_events,
        (!config.qmp.domains.is_empty()).then_some(told),
    )
    .await?;
    let hook = crate::hypervisor::hook::listen(&config.libvirt.hook_socket)?;
    let (guest_events, guest_inbox) = mpsc::channel(1024);
    let host = HostRuntime::new(&config, &hypervisor).await;
    let affinity = affinity::load(&config);
    let audit = audit::Audit::open(&config.history.state_dir, config.decision.keep)?;
    let outcomes = outcome::Outcomes::load(&store);
    let drain = drain::Drain::load(&store);
    let daemon = Arc::new(Daemon {
        hypervisor,
        store,
        history,
        peers: OnceLock::new(),
        events: broadcast::channel(1024).0,
        counters: Arc::default(),
        guest_events,
        instances: Mutex::default(),
        peer_states: Mutex::default(),
        host: Mutex::new(host),
        lately: Mutex::default(),
        affinity: Mutex::new(affinity),
        audit: Arc::new(audit),
        outcomes: Mutex::new(outcomes),
        drain: Mutex::new(drain),
        forecasts: Mutex::default(),
        forecast_turn: tokio::sync::Mutex::new(()),
        outgoing: Mutex::default(),
        arrivals: Mutex::default(),
        incoming: target::Moves::default(),
        changes: Locks::default(),
        names: Locks::default(),
        defines: Locks::default(),
        offers: Mutex::default(),
        starting: tokio::sync::RwLock::new(()),
        stopping: AtomicBool::new(false),
        sending: Arc::default(),
        departures: Queue::new(config.moves.max_concurrent),
        freezes: Queue::new(1),
        files: Mutex::default(),
        reloading: tokio::sync::Mutex::new(()),
        config,
    });
    daemon.load_registry()?;
    // Moves in the journal are not judged before it is known which domains there are.
    while !daemon.refresh_domains().await {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }

    let mut tasks = tokio::task::JoinSet::new();
    // Offers wait until the journal is taken up: their records are not of an earlier life.
    let starting = daemon.starting.write().await;
    if let Some(section) = daemon.config.peer.clone() {
        let (peer_events, peer_inbox) = mpsc::channel::<PeerEvent>(256);
        let service = Arc::new(serve_peer::Service(Arc::clone(&daemon)));
        let peers = Peers::start(&section, daemon.name(), service, peer_events).await?;
        let _ = daemon.peers.set(peers);
        tasks.spawn(placement::follow_peers(Arc::clone(&daemon), peer_inbox));
    }
    // Before any guest is greeted, so that nothing of a move in the journal is mistaken for a
    // leftover, and no feature that left is started anew.
    daemon.recover_moves().await?;
    drop(starting);
    tasks.spawn(lifecycle::follow_guests(Arc::clone(&daemon), guest_inbox));
    tasks.spawn(lifecycle::follow_hypervisor(
        Arc::clone(&daemon),
        hv_inbox,
        hook,
    ));
    tasks.spawn(metering::host_meter(Arc::clone(&daemon)));
    tasks.spawn(metering::expire(Arc::clone(&daemon)));
    tasks.spawn(agent_meter::run(Arc::clone(&daemon)));
    tasks.spawn(qemu_meter::run(Arc::clone(&daemon)));
    tasks.spawn(qemu_meter::listen(Arc::clone(&daemon), told_inbox));
    tasks.spawn(metadata::follow(Arc::clone(&daemon)));
    tasks.spawn(arrivals::follow(Arc::clone(&daemon)));
    tasks.spawn(placement::breaches(Arc::clone(&daemon)));
    tasks.spawn(relief::relieving(Arc::clone(&daemon)));
    tasks.spawn(affinity::training(Arc::clone(&daemon)));
    tasks.spawn(drain::draining(Arc::clone(&daemon)));
    tasks.spawn(forecast::forecasting(Arc::clone(&daemon)));
    tasks.spawn(certificates::watch(Arc::clone(&daemon)));
    tasks.spawn(files::follow(Arc::clone(&daemon)));
    tasks.spawn(files::signalled(Arc::clone(&daemon), reload));
    let api: Arc<dyn crate::api::Api> = Arc::new(serve_api::Service(Arc::clone(&daemon)));
    if let Some(section) = &daemon.config.metrics {
        let peers = daemon.peers().map(Peers::names).unwrap_or_default();
        let endpoint = Endpoint::bind(section).await?;
        tasks.spawn(endpoint.serve(Arc::clone(&api), Arc::clone(&daemon.counters), peers));
    }
    let service = crate::dbus::serve(api, daemon.name(), None).await?;
    tracing::info!(host = daemon.name(), "droverd is ready");
    let lost = tokio::select! {
        () = stop => false,
        () = service.closed() => true,
    };
    tracing::info!("stopping");
    if !lost {
        daemon.end_moves().await;
    }
    drop(service);
    tasks.shutdown().await;
    affinity::save(&daemon);
    // What was metered is durable already; this only ends the writer.
    let _ = tokio::time::timeout(Duration::from_secs(5), daemon.history.clone().close()).await;
    if lost {
        Err(DaemonError::BusLost)
    } else {
        Ok(())
    }
}
