//! The accepting half: `org.drover1.Peer` for every peer that connects, and its bulk streams.

use std::collections::HashMap;
use std::future::Future;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use tokio::sync::{Semaphore, watch};
use tracing::{debug, warn};
use zbus::object_server::SignalEmitter;

use super::bulk::BulkReceiver;
use super::socket::{MAX_TEXT, StreamSocket};
use super::{MAX_POINTS, PATH, PeerRefusal, PeerService, RefusalKind};
use crate::feature::FeatureSpec;
use crate::transport::{Incoming, Link, Protocol};
use crate::wire::guest::valid_move_id;
use crate::wire::peer::{CheckAsk, DomainAsk, MAX_DOMAINS, Offer, PROTOCOL};

/// Most calls of one peer that are answered at once; more are refused as busy.
pub const CALLS_PER_PEER: usize = 32;
/// Longest time of one call on this side. Steps have shorter limits of their own.
pub const CALL_LIMIT: Duration = Duration::from_secs(600);
/// Longest text of an error, bytes.
const MAX_ERROR: usize = 4 << 10;
/// Identifies a D-Bus server among those of one address list; here a connection is what it is.
pub(super) const GUID: &str = "d20e7ed20e7ed20e7ed20e7ed20e7ed2";

/// What a refusal is on D-Bus.
#[derive(Debug, zbus::DBusError)]
#[zbus(prefix = "org.drover1.Error")]
pub(super) enum WireError {
    /// D-Bus itself.
    #[zbus(error)]
    ZBus(zbus::Error),
    Refused(String),
    Busy(String),
    NotFound(String),
    Invalid(String),
    Timeout(String),
    Failed(String),
}

impl From<PeerRefusal> for WireError {
    fn from(r: PeerRefusal) -> Self {
        let mut message = r.message;
        let mut end = message.len().min(MAX_ERROR);
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        message.truncate(end);
        match r.kind {
            RefusalKind::Refused => Self::Refused(message),
            RefusalKind::Busy => Self::Busy(message),
            RefusalKind::NotFound => Self::NotFound(message),
            RefusalKind::Invalid => Self::Invalid(message),
            RefusalKind::Timeout => Self::Timeout(message),
            RefusalKind::Failed => Self::Failed(message),
        }
    }
}

/// Everything that the connections of all peers share.
pub(super) struct Accepting {
    pub service: Arc<dyn PeerService>,
    /// Configured peers and their groups.
    pub groups: HashMap<String, Vec<String>>,
    /// Latest announced state as JSON; empty when none was announced.
    pub announced: watch::Receiver<Arc<str>>,
    /// True once this side stops.
    pub stop: watch::Receiver<bool>,
    /// Per peer, what ends its present control connection when a newer one comes.
    replaced: Mutex<HashMap<String, watch::Sender<()>>>,
}

impl Accepting {
    pub fn new(
        service: Arc<dyn PeerService>,
        groups: HashMap<String, Vec<String>>,
        announced: watch::Receiver<Arc<str>>,
        stop: watch::Receiver<bool>,
    ) -> Self {
        Self {
            service,
            groups,
            announced,
            stop,
            replaced: Mutex::default(),
        }
    }

    /// Serves one authenticated connection until it ends.
    pub async fn serve(self: Arc<Self>, incoming: Incoming) {
        let Incoming {
            peer,
            protocol,
            link,
        } = incoming;
        let mut stop = self.stop.clone();
        let work = async {
            match protocol {
                Protocol::Control => self.control(&peer, link).await,
                Protocol::Bulk => self.bulk(&peer, link).await,
            }
        };
        tokio::select! {
            () = work => debug!(peer, ?protocol, "connection ended"),
            _ = stop.wait_for(|stop| *stop) => {}
        }
    }

    async fn bulk(&self, peer: &str, link: Link) {
        match BulkReceiver::accept(peer, link).await {
            Ok((id, receiver)) => self.service.bulk(peer, &id, receiver).await,
            Err(reason) => warn!(peer, "refused a bulk connection: {reason}"),
        }
    }

    async fn control(&self, peer: &str, link: Link) {
        // A peer that dials anew has given its old connection up, even when that looks alive.
        let (newest, mut newer) = watch::channel(());
        self.replaced
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(peer.to_owned(), newest);
        let object = PeerObject {
            peer: peer.to_owned(),
            service: self.service.clone(),
            groups: self.groups.get(peer).cloned().unwrap_or_default(),
            calls: Semaphore::new(CALLS_PER_PEER),
        };
        let Link { stream, cut } = link;
        let built = zbus::connection::Builder::authenticated_socket(StreamSocket(stream), GUID)
            .p2p()
            .max_queued(NonZeroUsize::MIN)
            .serve_at(PATH, object)
            .build()
            .await;
        let connection = match built {
            Ok(connection) => connection,
            Err(e) => {
                warn!(peer, "cannot serve D-Bus to the peer: {e}");
                return;
            }
        };
        let mut announced = self.announced.clone();
        announced.mark_changed();
        let announce = async {
            while announced.changed().await.is_ok() {
                let state = announced.borrow_and_update().clone();
                if state.is_empty() {
                    continue;
                }
                let Ok(emitter) = SignalEmitter::new(&connection, PATH) else {
                    break;
                };
                if PeerObject::host_state_changed(&emitter, &state)
                    .await
                    .is_err()
                {
                    break;
                }
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = announce => {}
            () = connection.closed() => {}
            _ = newer.changed() => debug!(peer, "replaced by a newer connection"),
        }
        // Calls under way hold clones of the connection; the cut ends it for all of them.
        drop(cut);
    }
}

/// The object of one peer's connection.
struct PeerObject {
    peer: String,
    service: Arc<dyn PeerService>,
    groups: Vec<String>,
    calls: Semaphore,
}

impl PeerObject {
    /// Runs a call within the limits on number and time.
    async fn limited<T>(
        &self,
        call: impl Future<Output = Result<T, PeerRefusal>>,
    ) -> Result<T, WireError> {
        let Ok(_permit) = self.calls.try_acquire() else {
            return Err(WireError::Busy(format!(
                "{CALLS_PER_PEER} calls of '{}' are under way",
                self.peer
            )));
        };
        match tokio::time::timeout(CALL_LIMIT, call).await {
            Ok(done) => Ok(done?),
            Err(_) => Err(WireError::Timeout(format!(
                "not done within {} s",
                CALL_LIMIT.as_secs()
            ))),
        }
    }
}

/// Parses a question about a feature, of this protocol.
fn parsed<T: serde::de::DeserializeOwned>(text: &str, what: &str) -> Result<T, PeerRefusal> {
    let invalid = |m: String| PeerRefusal::new(RefusalKind::Invalid, m);
    // The protocol first: another version's need not parse here.
    let value: serde_json::Value =
        serde_json::from_str(text).map_err(|e| invalid(format!("{what}: {e}")))?;
    let protocol = value.get("protocol").and_then(serde_json::Value::as_u64);
    if protocol != Some(u64::from(PROTOCOL)) {
        let theirs = protocol.map_or_else(|| "missing".to_owned(), |p| p.to_string());
        return Err(PeerRefusal::new(
            RefusalKind::Refused,
            format!(
                "the {what}'s protocol is {theirs}, here it is {PROTOCOL}; both hosts need the \
                 same version of droverd"
            ),
        ));
    }
    serde_json::from_value(value).map_err(|e| invalid(format!("{what}: {e}")))
}

/// Checks a feature of `peer`, of whom those of `groups` are taken, and what it is expected to use.
fn check_spec(
    spec: &FeatureSpec,
    (cpus, memory_mib): (f64, f64),
    what: &str,
    (peer, groups): (&str, &[String]),
) -> Result<(), PeerRefusal> {
    let invalid = |m: String| PeerRefusal::new(RefusalKind::Invalid, m);
    spec.validate().map_err(|e| invalid(e.to_string()))?;
    let amount = |x: f64| x.is_finite() && x >= 0.0;
    if !(amount(cpus) && amount(memory_mib)) {
        return Err(invalid(format!(
            "{what}: cpus and memory_mib must not be negative"
        )));
    }
    if !groups.contains(&spec.group) {
        return Err(PeerRefusal::new(
            RefusalKind::Refused,
            format!(
                "features of group '{}' are not accepted from '{peer}' here; allow the group in \
                 [[peer.hosts]] groups",
                spec.group
            ),
        ));
    }
    Ok(())
}

/// Checks an offer of `peer`, of whom features of `groups` are taken.
pub(super) fn check_offer(text: &str, peer: &str, groups: &[String]) -> Result<Offer, PeerRefusal> {
    let offer: Offer = parsed(text, "offer")?;
    check_id(&offer.id)?;
    check_spec(
        &offer.spec,
        (offer.cpus, offer.memory_mib),
        "offer",
        (peer, groups),
    )?;
    Ok(offer)
}

fn check_id(id: &str) -> Result<(), PeerRefusal> {
    if valid_move_id(id) {
        Ok(())
    } else {
        Err(PeerRefusal::new(
            RefusalKind::Invalid,
            "not a move's identifier",
        ))
    }
}

fn json<T: serde::Serialize>(value: &T) -> Result<String, PeerRefusal> {
    let text = serde_json::to_string(value)
        .map_err(|e| PeerRefusal::new(RefusalKind::Failed, e.to_string()))?;
    sized(text)
}

fn sized(text: String) -> Result<String, PeerRefusal> {
    if text.len() > MAX_TEXT {
        return Err(PeerRefusal::new(
            RefusalKind::Failed,
            format!(
                "the answer has {} bytes; at most {MAX_TEXT} can be sent",
                text.len()
            ),
        ));
    }
    Ok(text)
}

#[zbus::interface(name = "org.drover1.Peer")]
impl PeerObject {
    async fn host_state(&self) -> Result<String, WireError> {
        self.limited(async { json(&self.service.host_state(&self.peer).await) })
            .await
    }

    async fn offer(&self, offer: &str) -> Result<(), WireError> {
        self.limited(async {
            let offer = check_offer(offer, &self.peer, &self.groups)?;
            self.service.offer(&self.peer, offer).await
        })
        .await
    }

    async fn check(&self, ask: &str) -> Result<String, WireError> {
        self.limited(async {
            let ask: CheckAsk = parsed(ask, "question")?;
            let peer = (self.peer.as_str(), self.groups.as_slice());
            check_spec(&ask.spec, (ask.cpus, ask.memory_mib), "question", peer)?;
            json(&self.service.check(&self.peer, ask).await?)
        })
        .await
    }

    async fn await_round(&self, id: &str, round: u16) -> Result<(), WireError> {
        self.limited(async {
            check_id(id)?;
            self.service.await_round(&self.peer, id, round).await
        })
        .await
    }

    async fn grant_freeze(&self, id: &str) -> Result<(), WireError> {
        self.limited(async {
            check_id(id)?;
            self.service.grant_freeze(&self.peer, id).await
        })
        .await
    }

    async fn restore(&self, id: &str, round: u16) -> Result<String, WireError> {
        self.limited(async {
            check_id(id)?;
            json(&self.service.restore(&self.peer, id, round).await?)
        })
        .await
    }

    async fn resume(&self, id: &str) -> Result<String, WireError> {
        self.limited(async {
            check_id(id)?;
            json(&self.service.resume(&self.peer, id).await?)
        })
        .await
    }

    async fn give_up(&self, id: &str) -> Result<String, WireError> {
        self.limited(async {
            check_id(id)?;
            json(&self.service.give_up(&self.peer, id).await?)
        })
        .await
    }

    async fn discard(&self, id: &str, reason: &str) -> Result<(), WireError> {
        self.limited(async {
            check_id(id)?;
            self.service.discard(&self.peer, id, reason).await
        })
        .await
    }

    async fn status(&self, id: &str) -> Result<String, WireError> {
        self.limited(async {
            check_id(id)?;
            json(&self.service.status(&self.peer, id).await)
        })
        .await
    }

    async fn verdict(&self, id: &str) -> Result<String, WireError> {
        self.limited(async {
            check_id(id)?;
            json(&self.service.verdict(&self.peer, id).await)
        })
        .await
    }

    async fn import_history(&self, id: &str, points: &str) -> Result<(), WireError> {
        self.limited(async {
            check_id(id)?;
            let points: Vec<crate::usage::Usage> = serde_json::from_str(points)
                .map_err(|e| PeerRefusal::new(RefusalKind::Invalid, format!("points: {e}")))?;
            if points.len() > MAX_POINTS {
                return Err(PeerRefusal::new(
                    RefusalKind::Invalid,
                    format!("{} points; at most {MAX_POINTS} at once", points.len()),
                ));
            }
            self.service.import_history(&self.peer, id, points).await
        })
        .await
    }

    async fn import_rollups(&self, id: &str, tier: &str, parcel: &str) -> Result<(), WireError> {
        self.limited(async {
            check_id(id)?;
            let parcel = base64::engine::general_purpose::STANDARD
                .decode(parcel)
                .map_err(|e| PeerRefusal::new(RefusalKind::Invalid, format!("parcel: {e}")))?;
            self.service
                .import_rollups(&self.peer, id, tier, parcel)
                .await
        })
        .await
    }

    async fn about_domain(&self, ask: &str) -> Result<String, WireError> {
        self.limited(async {
            let invalid = |m: String| PeerRefusal::new(RefusalKind::Invalid, m);
            let ask: DomainAsk =
                serde_json::from_str(ask).map_err(|e| invalid(format!("question: {e}")))?;
            match &ask {
                DomainAsk::HandOver { uuids } if uuids.len() > MAX_DOMAINS => {
                    return Err(invalid(format!(
                        "{} domains; at most {MAX_DOMAINS} at once",
                        uuids.len()
                    )));
                }
                DomainAsk::HandedOver { features, .. } => {
                    features.iter().try_for_each(|(_, id)| check_id(id))?;
                }
                DomainAsk::Fate { id } | DomainAsk::Copy { id, .. } => check_id(id)?,
                DomainAsk::HandOver { .. } => {}
            }
            json(&self.service.about_domain(&self.peer, ask).await?)
        })
        .await
    }

    async fn rows(&self, after: u64, limit: u32) -> Result<String, WireError> {
        self.limited(async { sized(self.service.rows(&self.peer, after, limit).await) })
            .await
    }

    /// This host's state changed noticeably; the body is what `HostState` returns.
    #[zbus(signal)]
    async fn host_state_changed(emitter: &SignalEmitter<'_>, state: &str) -> zbus::Result<()>;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As droverd of protocol 1 made it; its digests have other fields.
    const OLD_OFFER: &str = r#"{"protocol":1,"id":"00000000-0001","spec":{"name":"cache","group":"default","workload":{"kind":"managed","exec":["/usr/bin/redis-server"],"address":"10.0.0.5/24"},"thresholds":[],"automatic":true,"downtime_ms":300},"from_domain":"g1","to_domain":"g2","stream":7,"cpus":0.5,"memory_mib":64.0,"preflight":{"problems":[],"resident_bytes":1,"room_bytes":2,"files":[]},"files":[{"path":"/usr/bin/redis-server","size":5,"crc":6}]}"#;

    #[test]
    fn offers_of_another_version_are_refused_with_the_reason() {
        let groups = ["default".to_owned()];
        let refused = |text: &str| check_offer(text, "h1", &groups).unwrap_err();
        let newer = OLD_OFFER.replace("\"protocol\":1", "\"protocol\":4000000000000");
        for (text, theirs) in [(OLD_OFFER, "is 1,"), (newer.as_str(), "is 4000000000000,")] {
            let r = refused(text);
            assert_eq!(r.kind, RefusalKind::Refused);
            assert!(r.message.contains(theirs), "{}", r.message);
            assert!(
                r.message.contains("same version of droverd"),
                "{}",
                r.message
            );
        }
        assert!(refused("{}").message.contains("is missing,"));
        // Of this version it would be another error: the version is looked at first.
        let this = OLD_OFFER.replace("\"protocol\":1", &format!("\"protocol\":{PROTOCOL}"));
        assert_eq!(refused(&this).kind, RefusalKind::Invalid);
    }
}
