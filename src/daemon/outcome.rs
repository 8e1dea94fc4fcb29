//! After a move: what it cost, and whether it helped.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::affinity::quality;
use crate::api::{Job, JobResult};
use crate::decision::{DecisionRow, Past, latest};
use crate::feature::FeatureName;
use crate::host::MoveOutcome;
use crate::store::Store;
use crate::usage::Usage;

use super::decisions::mean;
use super::{Daemon, clock, lock};

/// Key of the outcomes in the store.
const KEY: &str = "outcomes";
/// Outcomes that are told to peers; the oldest go.
const MOST: usize = 128;
/// Age at which an outcome is forgotten.
const FORGET_MS: i64 = 86_400_000;
/// What is measured so soon after the move is still of the move.
const SETTLE: Duration = Duration::from_secs(5);

/// What moves from this host showed.
#[derive(Debug, Default)]
pub(super) struct Outcomes {
    /// Whether they helped; newest last, one per feature.
    latest: Vec<MoveOutcome>,
    /// What they cost, per feature.
    costs: BTreeMap<FeatureName, Past>,
    /// And of all.
    cost: Past,
}

impl Outcomes {
    /// What an earlier run learnt.
    pub(super) fn load(store: &Store) -> Self {
        let mut all = Self::default();
        match store.get(KEY) {
            Ok(Some(bytes)) => all.latest = serde_json::from_slice(&bytes).unwrap_or_default(),
            Ok(None) => {}
            Err(e) => tracing::warn!(error = %e, "outcomes of moves not read"),
        }
        match store.jobs(100) {
            Ok(jobs) => jobs.iter().rev().for_each(|j| all.learn(j)),
            Err(e) => tracing::warn!(error = %e, "ended moves not read"),
        }
        all
    }

    fn learn(&mut self, job: &Job) {
        if job.result == Some(JobResult::Done) {
            self.cost.learn(&job.history, job.freeze_ms);
            let own = self.costs.entry(job.feature.clone()).or_insert(self.cost);
            own.learn(&job.history, job.freeze_ms);
        }
    }

    fn add(&mut self, outcome: MoveOutcome) {
        let old = outcome.at_ms - FORGET_MS;
        self.latest
            .retain(|o| o.feature != outcome.feature && o.at_ms > old);
        self.latest.push(outcome);
        let excess = self.latest.len().saturating_sub(MOST);
        self.latest.drain(..excess);
    }
}

impl Daemon {
    /// What moves of a feature cost, or those of all.
    pub(super) fn past_of(&self, feature: &FeatureName) -> Past {
        let outcomes = lock(&self.outcomes);
        *outcomes.costs.get(feature).unwrap_or(&outcomes.cost)
    }

    /// The latest outcomes, for peers.
    pub(super) fn outcomes_now(&self) -> Vec<MoveOutcome> {
        lock(&self.outcomes).latest.clone()
    }

    /// Mean service quality of points of use on this host.
    pub(super) fn mean_quality(&self, points: &[Usage]) -> Option<f64> {
        let steal = Some(lock(&self.host).load().stall_percent).filter(|s| *s > 0.0);
        mean(points.iter().filter_map(|u| quality(u, steal)))
    }

    /// Learns from a move that ended, and finds out whether it helped.
    pub(super) fn after_move(self: &Arc<Self>, job: &Job) {
        lock(&self.outcomes).learn(job);
        if job.result != Some(JobResult::Done) {
            return;
        }
        let row = self
            .audit
            .find(|r| r.move_id.as_deref() == Some(job.id.as_str()));
        if let Some(row) = row {
            tokio::spawn(judge(Arc::clone(self), row, job.clone()));
        }
    }

    async fn save_outcomes(&self) {
        let bytes = serde_json::to_vec(&lock(&self.outcomes).latest).unwrap_or_default();
        if let Err(e) = self.store.run(move |s| s.put(KEY, &bytes)).await {
            tracing::error!(error = %e, "outcomes of moves cannot be written");
        }
    }
}

/// Follows a feature at its new host for a while, by what that host tells of it.
async fn judge(daemon: Arc<Daemon>, row: DecisionRow, job: Job) {
    let until = Instant::now() + SETTLE + Duration::from_secs_f64(daemon.config.decision.judge_s);
    let begin = Instant::now() + SETTLE;
    let mut points: Vec<(Usage, f64)> = Vec::new();
    while Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let states = lock(&daemon.peer_states);
        let Some(host) = states.get(&job.to_host) else {
            continue;
        };
        let usage = host
            .feature(&job.to_domain, &row.feature)
            .and_then(|f| f.usage)
            .filter(|_| Instant::now() >= begin);
        if let Some(u) = usage
            && points.last().is_none_or(|(last, _)| last.at_ms != u.at_ms)
        {
            points.push((u, host.load.stall_percent));
        }
    }
    let resource = row.resource;
    let mut effect = row.effect;
    effect.quality_after = mean(
        points
            .iter()
            .filter_map(|(u, stall)| quality(u, Some(*stall).filter(|s| *s > 0.0))),
    );
    effect.use_after = resource.and_then(|r| mean(points.iter().filter_map(|(u, _)| u.get(r))));
    let judged = DecisionRow {
        effect,
        judged_ms: clock::now_ms(),
        ..row.clone()
    };
    let at = judged.judged_ms;
    daemon
        .change_decision(&row.id, move |r| {
            r.effect = effect;
            r.judged_ms = at;
        })
        .await;
    let Some((gain, helped)) = judged.helped() else {
        tracing::info!(decision = %row.id, feature = %row.feature, "nothing was measured after the move");
        return;
    };
    tracing::info!(decision = %row.id, feature = %row.feature, to = %job.to_host, helped, gain,
        "whether the move helped");
    // What a user or a drain asked for says nothing about Drover's choices.
    if !row.for_breach {
        return;
    }
    let before = {
        let states = lock(&daemon.peer_states);
        let own = daemon.outcomes_now();
        let told = latest(states.values(), &row.feature).cloned();
        let own = own.into_iter().find(|o| o.feature == row.feature);
        let newest = told.into_iter().chain(own).max_by_key(|o| o.at_ms);
        newest.map_or(0, |o| o.fruitless)
    };
    lock(&daemon.outcomes).add(MoveOutcome {
        feature: row.feature.clone(),
        from: job.from_host.clone(),
        to: job.to_host.clone(),
        at_ms: job.ended_ms.unwrap_or(at),
        gain,
        helped,
        fruitless: if helped { 0 } else { before + 1 },
    });
    daemon.save_outcomes().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_outcome_per_feature_bounded() {
        let mut all = Outcomes::default();
        let outcome = |n: usize, at_ms| MoveOutcome {
            feature: FeatureName::new(&format!("f{n}")).unwrap(),
            from: "a".into(),
            to: "b".into(),
            at_ms,
            gain: 0.0,
            helped: false,
            fruitless: 1,
        };
        for n in 0..300 {
            all.add(outcome(n as usize % 150, n));
        }
        assert_eq!(all.latest.len(), MOST);
        assert_eq!(all.latest.last().unwrap().at_ms, 299);
        all.add(outcome(7, FORGET_MS + 1000));
        assert_eq!(all.latest.len(), 1, "all others are a day old");
    }
}
