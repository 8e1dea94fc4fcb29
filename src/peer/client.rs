//! The dialling half: one control connection per configured peer, kept up, and the calls on it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use tokio::sync::{Semaphore, mpsc, watch};
use tracing::warn;

use super::bulk::BulkSender;
use super::keep;
use super::server::Accepting;
use super::slot::{Shared, Slot};
use super::socket::MAX_TEXT;
use super::{MAX_POINTS, PeerError, PeerEvent, PeerService, QUERY_TIMEOUT};
use crate::config::PeerSection;
use crate::host::HostState;
use crate::reason::Reason;
use crate::transport::pki::server_name;
use crate::transport::{Listener, Pki, Protocol, Route, Ssh, SshListener, TransportError, dial};
use crate::usage::Usage;
use crate::wire::guest::MoveId;
use crate::wire::peer::{CheckAsk, DomainAnswer, DomainAsk, Offer, TargetStatus, Verdict};

/// Most calls to one peer under way at once; more wait for their turn within their timeout.
const CALLS: usize = 24;
/// The configuration refuses it before.
const NO_LISTEN: &str = "peer.listen is needed, as a peer has an address";
const _: () = assert!(CALLS < super::server::CALLS_PER_PEER);

/// The peers of this host. Cheap to clone; when the last clone is dropped, or after
/// [`Peers::stop`], all connections end.
#[derive(Clone)]
pub struct Peers(Arc<Inner>);

struct Inner {
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    announced: watch::Sender<Arc<str>>,
    local_addr: Option<SocketAddr>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}

impl std::fmt::Debug for Peers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Peers").field(&self.names()).finish()
    }
}

impl Peers {
    /// Checks the certificates, binds `section.listen`, and keeps a connection to every peer: its
    /// state is asked for every `refresh_s`, and after `timeout_s` without an answer it is down.
    /// `me` is this host's name. Returns before the first peer is up; needs a tokio runtime.
    pub async fn start(
        section: &PeerSection,
        me: &str,
        service: Arc<dyn PeerService>,
        events: mpsc::Sender<PeerEvent>,
    ) -> Result<Self, PeerError> {
        let by_tls = section.hosts.iter().any(|h| h.address.is_some());
        let pki = match section.listen {
            Some(_) => Some(Pki::load(section, me)?),
            None if by_tls => return Err(TransportError::Connect(NO_LISTEN.into()).into()),
            None => None,
        };
        let timeout = Duration::try_from_secs_f64(section.timeout_s).unwrap_or(Duration::MAX);
        let refresh = Duration::try_from_secs_f64(section.refresh_s).unwrap_or(Duration::MAX);
        let (timeout, refresh) = (
            timeout.clamp(Duration::from_millis(100), Duration::from_secs(3600)),
            refresh.clamp(Duration::from_millis(20), Duration::from_secs(3600)),
        );
        let mut certified = Vec::new();
        let mut slots = HashMap::new();
        let mut groups = HashMap::new();
        let mut names = Vec::new();
        let mut by_ssh = Vec::new();
        for host in &section.hosts {
            let route = match (host.address, &host.ssh) {
                (_, Some(destination)) => {
                    by_ssh.push(host.name.clone());
                    Route::Ssh(Ssh {
                        destination: destination.clone(),
                        me: me.to_owned(),
                        key: section.ssh_key.clone(),
                        known_hosts: section.ssh_known_hosts.clone(),
                    })
                }
                (Some(address), None) => {
                    let name = server_name(&host.name)?;
                    certified.push((host.name.clone(), name.clone()));
                    Route::Tls(address, name)
                }
                (None, None) => {
                    return Err(TransportError::Connect(format!(
                        "peer '{}' has neither an address nor ssh",
                        host.name
                    ))
                    .into());
                }
            };
            groups.insert(host.name.clone(), host.groups.clone());
            let slot = Slot {
                name: host.name.clone(),
                route,
                groups: host.groups.clone(),
                calls: Arc::new(Semaphore::new(CALLS)),
                bulks: Mutex::default(),
                state: Mutex::new(Err("not connected yet".into())),
            };
            if slots.insert(host.name.clone(), Arc::new(slot)).is_some() {
                return Err(TransportError::Name(format!(
                    "{} (twice in [[peer.hosts]])",
                    host.name
                ))
                .into());
            }
            names.push(host.name.clone());
        }
        let listener = match (section.listen, &pki) {
            (Some(address), Some(pki)) => {
                let listener = Listener::bind(address, pki.clone(), certified, timeout).await?;
                let local = listener
                    .local_addr()
                    .map_err(|source| TransportError::Listen { address, source })?;
                Some((listener, local))
            }
            _ => None,
        };
        let local_addr = listener.as_ref().map(|(_, local)| *local);
        let ssh_listener = if by_ssh.is_empty() {
            None
        } else {
            Some(SshListener::bind(&section.ssh_socket, by_ssh)?)
        };
        let (stop, stopped) = watch::channel(false);
        let (announced, announcements) = watch::channel(Arc::from(""));
        let accepting = Arc::new(Accepting::new(
            service,
            groups,
            announcements,
            stopped.clone(),
        ));
        if let Some((listener, _)) = listener {
            let accepting = accepting.clone();
            let accept = listener.run(move |incoming| accepting.clone().serve(incoming));
            tokio::spawn(until_stopped(accept, stopped.clone()));
        }
        if let Some(listener) = ssh_listener {
            let accept = listener.run(move |incoming| accepting.clone().serve(incoming));
            tokio::spawn(until_stopped(accept, stopped.clone()));
        }
        let shared = Arc::new(Shared {
            pki,
            refresh,
            timeout,
            slots,
            names,
        });
        for slot in shared.slots.values() {
            let (work, slot) = (
                keep::keep(shared.clone(), slot.clone(), events.clone()),
                slot.clone(),
            );
            let work = until_stopped(work, stopped.clone());
            tokio::spawn(async move {
                work.await;
                slot.set(Err("droverd is stopping".into()));
                slot.cut_bulks();
            });
        }
        Ok(Self(Arc::new(Inner {
            shared,
            stop,
            announced,
            local_addr,
        })))
    }

    /// Ends all connections and stops accepting, in a moment. Calls under way fail.
    pub fn stop(&self) {
        self.0.stop.send_replace(true);
    }

    /// Where this host listens for TLS.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.0.local_addr
    }

    /// The configured peers, in the order of the configuration.
    pub fn names(&self) -> Vec<String> {
        self.0.shared.names.clone()
    }

    /// Groups whose features may go to `host` and come from it; none for an unknown host.
    pub fn groups(&self, host: &str) -> Vec<String> {
        let slot = self.0.shared.slots.get(host);
        slot.map(|s| s.groups.clone()).unwrap_or_default()
    }

    /// Tells all connected peers this host's state at once, besides their regular questions.
    /// Only the latest state counts; a peer that connects later gets it too.
    pub fn announce(&self, state: &HostState) {
        match serde_json::to_string(state) {
            Ok(text) if text.len() <= MAX_TEXT => {
                self.0.announced.send_replace(text.into());
            }
            Ok(text) => warn!(
                "this host's state has {} bytes; at most {MAX_TEXT} can be announced",
                text.len()
            ),
            Err(e) => warn!("cannot announce this host's state: {e}"),
        }
    }

    fn slot(&self, host: &str) -> Result<&Arc<Slot>, PeerError> {
        let slot = self.0.shared.slots.get(host);
        slot.ok_or_else(|| PeerError::UnknownPeer(host.to_owned()))
    }

    async fn call<B, T>(
        &self,
        host: &str,
        method: &'static str,
        body: B,
        timeout: Duration,
    ) -> Result<T, PeerError>
    where
        B: serde::Serialize + zbus::zvariant::DynamicType + Send + Sync + 'static,
        T: for<'de> zbus::zvariant::DynamicDeserialize<'de>,
    {
        let slot = self.slot(host)?;
        let control = slot.state().clone().map_err(|why| slot.unreachable(why))?;
        let begun = tokio::time::Instant::now();
        let turn = tokio::time::timeout(timeout, slot.calls.clone().acquire_owned()).await;
        let Ok(Ok(permit)) = turn else {
            return Err(PeerError::Timeout {
                host: host.to_owned(),
                what: method.to_owned(),
                after: timeout,
            });
        };
        let rest = timeout.saturating_sub(begun.elapsed());
        slot.call(control, method, body, rest, Some(permit)).await
    }

    fn text<T: serde::Serialize>(&self, host: &str, value: &T) -> Result<String, PeerError> {
        let slot = self.slot(host)?;
        let text = serde_json::to_string(value).map_err(|e| slot.protocol(e.to_string()))?;
        if text.len() > MAX_TEXT {
            return Err(slot.protocol(format!(
                "a message of {} bytes; at most {MAX_TEXT} can be sent",
                text.len()
            )));
        }
        Ok(text)
    }

    /// Asks for the host's state; waits [`QUERY_TIMEOUT`].
    pub async fn host_state(&self, host: &str) -> Result<HostState, PeerError> {
        let text: String = self.call(host, "HostState", (), QUERY_TIMEOUT).await?;
        self.slot(host)?.parse_state(&text)
    }

    /// Offers a feature: the host prepares to receive it.
    pub async fn offer(
        &self,
        host: &str,
        offer: &Offer,
        timeout: Duration,
    ) -> Result<(), PeerError> {
        let text = self.text(host, offer)?;
        self.call(host, "Offer", (text,), timeout).await
    }

    /// What would keep the host from taking a feature; nothing changes there.
    pub async fn check(
        &self,
        host: &str,
        ask: &CheckAsk,
        timeout: Duration,
    ) -> Result<Vec<Reason>, PeerError> {
        let text = self.text(host, ask)?;
        let answer: String = self.call(host, "Check", (text,), timeout).await?;
        self.slot(host)?.parse("Check", &answer)
    }

    /// Waits until the host has received round `round` of move `id` completely.
    pub async fn await_round(
        &self,
        host: &str,
        id: &str,
        round: u16,
        timeout: Duration,
    ) -> Result<(), PeerError> {
        self.call(host, "AwaitRound", (id.to_owned(), round), timeout)
            .await
    }

    /// Waits until move `id` may freeze: no other move to the host is in its freeze.
    pub async fn grant_freeze(
        &self,
        host: &str,
        id: &str,
        timeout: Duration,
    ) -> Result<(), PeerError> {
        self.call(host, "GrantFreeze", (id.to_owned(),), timeout)
            .await
    }

    /// Lets the host restore up to the gate.
    pub async fn restore(
        &self,
        host: &str,
        id: &str,
        round: u16,
        timeout: Duration,
    ) -> Result<TargetStatus, PeerError> {
        let text: String = self
            .call(host, "Restore", (id.to_owned(), round), timeout)
            .await?;
        self.slot(host)?.parse("Restore", &text)
    }

    /// Lets the restored feature run there. Only after the commit.
    pub async fn resume(
        &self,
        host: &str,
        id: &str,
        timeout: Duration,
    ) -> Result<TargetStatus, PeerError> {
        let text: String = self.call(host, "Resume", (id.to_owned(),), timeout).await?;
        self.slot(host)?.parse("Resume", &text)
    }

    /// Has the host destroy the copy of a committed move that does not resume there, unless it
    /// runs. [`TargetStatus::Lost`]: done, durably.
    pub async fn give_up(
        &self,
        host: &str,
        id: &str,
        timeout: Duration,
    ) -> Result<TargetStatus, PeerError> {
        let text: String = self.call(host, "GiveUp", (id.to_owned(),), timeout).await?;
        self.slot(host)?.parse("GiveUp", &text)
    }

    /// Tells the host to give a move up and clean up.
    pub async fn discard(
        &self,
        host: &str,
        id: &str,
        reason: &str,
        timeout: Duration,
    ) -> Result<(), PeerError> {
        let body = (id.to_owned(), reason.to_owned());
        self.call(host, "Discard", body, timeout).await
    }

    /// Where a move stands on its target; waits [`QUERY_TIMEOUT`].
    pub async fn status(&self, host: &str, id: &str) -> Result<TargetStatus, PeerError> {
        let text: String = self
            .call(host, "Status", (id.to_owned(),), QUERY_TIMEOUT)
            .await?;
        self.slot(host)?.parse("Status", &text)
    }

    /// How a move ended on its source; waits [`QUERY_TIMEOUT`].
    pub async fn verdict(&self, host: &str, id: &str) -> Result<Verdict, PeerError> {
        let text: String = self
            .call(host, "Verdict", (id.to_owned(),), QUERY_TIMEOUT)
            .await?;
        self.slot(host)?.parse("Verdict", &text)
    }

    /// Hands the moved feature's history over, in chunks of [`MAX_POINTS`]; `timeout` is for
    /// each chunk.
    pub async fn import_history(
        &self,
        host: &str,
        id: &str,
        points: &[Usage],
        timeout: Duration,
    ) -> Result<(), PeerError> {
        for chunk in points.chunks(MAX_POINTS) {
            let body = (id.to_owned(), self.text(host, &chunk)?);
            self.call::<_, ()>(host, "ImportHistory", body, timeout)
                .await?;
        }
        Ok(())
    }

    /// Hands rolled up history of the moved feature over, `tier` as in
    /// [`super::PeerService::import_rollups`]; `timeout` is for each parcel.
    pub async fn import_rollups(
        &self,
        host: &str,
        id: &str,
        tier: &str,
        parcels: &[Vec<u8>],
        timeout: Duration,
    ) -> Result<(), PeerError> {
        for parcel in parcels {
            let text = base64::engine::general_purpose::STANDARD.encode(parcel);
            let body = (id.to_owned(), tier.to_owned(), text);
            self.call::<_, ()>(host, "ImportRollups", body, timeout)
                .await?;
        }
        Ok(())
    }

    /// Affinity rows after number `after`, at most `limit`, as opaque JSON; waits
    /// [`QUERY_TIMEOUT`].
    pub async fn rows(&self, host: &str, after: u64, limit: u32) -> Result<String, PeerError> {
        self.call(host, "Rows", (after, limit), QUERY_TIMEOUT).await
    }

    /// Asks about a domain that libvirt migrated as a whole; waits [`QUERY_TIMEOUT`].
    pub async fn about_domain(
        &self,
        host: &str,
        ask: &DomainAsk,
    ) -> Result<DomainAnswer, PeerError> {
        let body = (self.text(host, ask)?,);
        let text: String = self.call(host, "AboutDomain", body, QUERY_TIMEOUT).await?;
        self.slot(host)?.parse("AboutDomain", &text)
    }

    /// Opens a bulk connection for a move that `host` accepted. Waits `timeout_s` for the
    /// connection and [`super::bulk::HELLO_TIMEOUT`] for the answer.
    pub async fn open_bulk(&self, host: &str, id: &MoveId) -> Result<BulkSender, PeerError> {
        let (shared, slot) = (&self.0.shared, self.slot(host)?);
        let link = dial(
            shared.pki.as_ref(),
            &slot.route,
            Protocol::Bulk,
            shared.timeout,
        )
        .await
        .map_err(|e| slot.unreachable(e.to_string()))?;
        let sender = BulkSender::open(host, id, link).await?;
        let mut bulks = slot.bulks();
        bulks.retain(|b| b.strong_count() > 0);
        bulks.push(Arc::downgrade(sender.cut()));
        Ok(sender)
    }
}

/// Runs `work` until it ends or this side stops.
async fn until_stopped(work: impl Future<Output = ()>, mut stopped: watch::Receiver<bool>) {
    tokio::select! {
        () = work => {}
        _ = stopped.wait_for(|stopped| *stopped) => {}
    }
}
