//! `drover check`: the preflight of both sides and everything that rules targets out, without
//! changing anything; and the rehearsal of a dump.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::affinity::Demand;
use crate::api::{ApiError, Destination};
use crate::decision::{self, Cause, Check, CheckedTarget, admit};
use crate::driver::steps::too_old;
use crate::feature::FeatureName;
use crate::guest::GuestError;
use crate::method::Method;
use crate::peer::{PeerError, Peers, RefusalKind};
use crate::reason::{Code, Reason, Rehearsal};
use crate::usage::MIB;
use crate::wire::guest::{Call, Preflight, Reply};
use crate::wire::peer::{CheckAsk, PROTOCOL};

use super::{Daemon, SHORT, lock};

/// Longest time of a check, once the feature's own guest has answered.
const WHOLE: Duration = Duration::from_secs(40);
/// Longest wait for one host and guest.
const ONE: Duration = Duration::from_secs(30);
/// Guests that are asked at the same time.
const AT_ONCE: usize = 16;
/// Longest time of a rehearsal.
const REHEARSAL: Duration = Duration::from_secs(280);
/// Checks and rehearsals of this host at the same time: each reads programs in guests.
static TURNS: Semaphore = Semaphore::const_new(4);

impl Daemon {
    /// Whether a feature could move to the guests of a host, or of all hosts, and why not.
    pub async fn check(
        self: &Arc<Self>,
        domain: &str,
        feature: &FeatureName,
        to: &Destination,
    ) -> Result<Check, ApiError> {
        let begun = Instant::now();
        let _turn = turn()?;
        self.check_destination(to)?;
        let q = self.question(domain, feature, &Cause::Manual { to: to.clone() })?;
        let spec = {
            let instances = lock(&self.instances);
            let (_, f) = self.find(&instances, domain, feature)?;
            f.record.spec.clone()
        };
        let about = (domain, feature);
        let Some((mut reasons, mut targets)) =
            decision::check(&q.view, &q.policy, about, &q.demand, to)
        else {
            return Err(ApiError::NotFound(format!(
                "no feature '{feature}' in domain '{domain}' on this host; 'drover list' shows \
                 what is there"
            )));
        };
        let mut preflight = Preflight::default();
        if spec.managed().is_some() {
            match self.preflight(domain, feature, spec.method).await {
                Ok(found) => preflight = found,
                Err(why) => reasons.push(Reason::new(Code::SourceHelper, why)),
            }
        }
        // The states tell some of it too, in other words.
        for p in &preflight.problems {
            reasons.retain(|r| r.code != p.code);
        }
        reasons.extend(preflight.problems.iter().cloned());
        let known = preflight.resident_bytes > 0;
        let bytes = preflight.resident_bytes + preflight.state_bytes;
        let cost = known.then(|| {
            let past = self.past_of(feature);
            decision::predict(bytes as f64 / MIB, spec.downtime_ms, &past)
        });
        let (memory_bytes, state_bytes) = (preflight.resident_bytes, preflight.state_bytes);
        if let Some(peers) = self.peers().filter(|_| known) {
            let ask = CheckAsk {
                protocol: PROTOCOL,
                spec: spec.for_check(),
                to_domain: String::new(),
                cpus: q.demand.cpus.max(0.0),
                memory_mib: q.demand.memory_mib.max(0.0),
                by_hand: to.host.is_some(),
                preflight,
            };
            ask_all(peers, &ask, &mut targets).await;
        }
        reasons.sort();
        reasons.dedup();
        Ok(Check {
            host: self.name().to_owned(),
            domain: domain.to_owned(),
            feature: feature.clone(),
            reasons,
            targets,
            cost,
            memory_bytes,
            state_bytes,
            took_ms: begun.elapsed().as_millis() as u64,
        })
    }

    async fn preflight(
        &self,
        domain: &str,
        feature: &FeatureName,
        method: Method,
    ) -> Result<Preflight, String> {
        let Some(guest) = self.guest(domain) else {
            return Err(format!(
                "the helper in domain '{domain}' is not connected; install it with 'drover guest \
                 install {domain}'"
            ));
        };
        let call = Call::Preflight {
            feature: feature.clone(),
            method,
        };
        match guest.call(call, SHORT).await {
            Ok(Reply::Preflight(found)) if found.method != method => Err(too_old(domain, method)),
            Ok(Reply::Preflight(found)) => Ok(found),
            Ok(_) => Err("the helper gave an answer that does not fit".into()),
            Err(e) => Err(e.to_string()),
        }
    }

    /// Dumps a feature into its guest's memory while it goes on, and throws the dump away.
    pub async fn rehearse(
        self: &Arc<Self>,
        domain: &str,
        feature: &FeatureName,
    ) -> Result<Rehearsal, ApiError> {
        let _turn = turn()?;
        {
            let instances = lock(&self.instances);
            let (_, f) = self.find(&instances, domain, feature)?;
            if let Some(id) = &f.moving {
                return Err(ApiError::Busy(format!(
                    "feature '{feature}' is being moved (move {id}); wait for its end"
                )));
            }
        }
        let guest = self.guest(domain).ok_or_else(|| {
            ApiError::Refused(format!(
                "the helper in domain '{domain}' is not connected; install it with 'drover guest \
                 install {domain}'"
            ))
        })?;
        let call = Call::Rehearse {
            feature: feature.clone(),
        };
        match guest.call(call, REHEARSAL).await {
            Ok(Reply::Rehearsed(r)) => Ok(r),
            Ok(_) => Err(ApiError::Failed(
                "the helper gave an answer that does not fit".into(),
            )),
            Err(e @ GuestError::Timeout { .. }) => Err(ApiError::Timeout(e.to_string())),
            Err(e @ GuestError::Helper { .. }) => Err(ApiError::Refused(e.to_string())),
            Err(e) => Err(ApiError::Failed(e.to_string())),
        }
    }
}

fn turn() -> Result<tokio::sync::SemaphorePermit<'static>, ApiError> {
    TURNS.try_acquire().map_err(|_| {
        ApiError::Busy("four checks are under way on this host already; try again later".into())
    })
}

/// Asks the guests that are open so far, as many at a time as is good for them.
async fn ask_all(peers: &Peers, ask: &CheckAsk, targets: &mut [CheckedTarget]) {
    let until = tokio::time::Instant::now() + WHOLE;
    let open = |t: &CheckedTarget| t.reasons.is_empty() && !t.domain.is_empty();
    let mut waiting: Vec<usize> = (0..targets.len()).filter(|i| open(&targets[*i])).collect();
    waiting.reverse();
    for i in &waiting {
        // Unless its answer comes.
        targets[*i].reasons.push(Reason::new(
            Code::NotChecked,
            "it was not asked within the time of a check; name it to check it alone",
        ));
    }
    let mut asked = JoinSet::new();
    loop {
        while asked.len() < AT_ONCE
            && let Some(i) = waiting.pop()
        {
            let (peers, host) = (peers.clone(), targets[i].host.clone());
            let ask = CheckAsk {
                to_domain: targets[i].domain.clone(),
                ..ask.clone()
            };
            asked.spawn(async move { (i, peers.check(&host, &ask, ONE).await) });
        }
        let answer = tokio::time::timeout_at(until, asked.join_next()).await;
        let Ok(Some(Ok((i, answer)))) = answer else {
            return;
        };
        targets[i].reasons = match answer {
            Ok(reasons) => reasons,
            Err(e) => vec![unanswered(&e)],
        };
    }
}

/// Why a host did not say whether it could take the feature.
fn unanswered(e: &PeerError) -> Reason {
    let code = match e {
        PeerError::Protocol { .. } => Code::Version,
        PeerError::Refused {
            kind: RefusalKind::Refused,
            message,
            ..
        } if message.contains("group") => Code::Group,
        PeerError::Refused { message, .. } if message.contains("protocol") => Code::Version,
        PeerError::UnknownPeer(_) => Code::UnknownHost,
        _ => Code::Unreachable,
    };
    Reason::new(code, e.to_string())
}

/// What keeps this host from taking a peer's feature.
pub(super) async fn as_target(daemon: &Arc<Daemon>, from: &str, ask: CheckAsk) -> Vec<Reason> {
    let state = daemon.host_state_now();
    let mut out = Vec::new();
    let name = &ask.spec.name;
    let holder = state
        .instances
        .iter()
        .find(|i| i.features.iter().any(|f| f.spec.name == *name));
    if let Some(i) = holder {
        let taken = decision::Refusal::NameTaken(i.domain.clone());
        out.push(taken.reason());
    }
    let need = Demand {
        cpus: ask.cpus,
        memory_mib: ask.memory_mib,
        ..Demand::default()
    };
    if let Err(why) = admit(&state, &ask.to_domain, &need, &daemon.policy(), ask.by_hand) {
        out.extend(why.iter().map(decision::Refusal::reason));
    }
    let Some(guest) = daemon.guest(&ask.to_domain) else {
        out.push(Reason::new(
            Code::Helper,
            format!(
                "the helper in domain '{}' is not connected; install it there with 'drover guest \
                 install {0}'",
                ask.to_domain
            ),
        ));
        return out;
    };
    tracing::debug!(%from, feature = %name, domain = %ask.to_domain, "asked whether it could come");
    let call = Call::Check {
        spec: Box::new(ask.spec),
        preflight: Box::new(ask.preflight),
    };
    match guest.call(call, SHORT).await {
        Ok(Reply::Reasons { reasons }) => out.extend(reasons),
        Ok(_) => out.push(Reason::new(
            Code::Helper,
            "the helper gave an answer that does not fit",
        )),
        Err(e) => out.push(Reason::new(Code::Helper, e.to_string())),
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_does_not_answer_has_a_name_too() {
        let refused = |message: &str| PeerError::Refused {
            host: "h2".into(),
            kind: RefusalKind::Refused,
            message: message.into(),
        };
        for (e, code) in [
            (
                refused("features of group 'a' are not accepted"),
                Code::Group,
            ),
            (refused("the question's protocol is not 3"), Code::Version),
            (PeerError::UnknownPeer("h2".into()), Code::UnknownHost),
            (
                PeerError::Timeout {
                    host: "h2".into(),
                    what: "Check".into(),
                    after: ONE,
                },
                Code::Unreachable,
            ),
            (
                PeerError::Protocol {
                    host: "h2".into(),
                    message: "unknown method".into(),
                },
                Code::Version,
            ),
        ] {
            assert_eq!(unanswered(&e).code, code, "{e}");
        }
    }
}
