//! Decisions that are recorded, advice that waits for an answer, scores and the compatibility
//! matrix.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::affinity::{Demand, UsageWindow, host_per_guest_cpu};
use crate::api::{ApiError, Destination, Job, Plan};
use crate::decision::{
    Answer, Ask, Cause, Cell, DecisionRecord, DecisionRow, Effect, HostScore, Inputs, Past, Policy,
    Replay, ScoreReport, View, decide_by, matrix,
};
use crate::feature::{FeatureName, Resource};
use crate::rules::Mode;
use crate::usage::Usage;

use super::audit::AuditError;
use super::{Daemon, clock, forecast, lock};

/// Everything a decision about a feature depends on.
pub(super) struct Question {
    pub view: View,
    pub policy: Policy,
    pub demand: Demand,
    pub window: UsageWindow,
    recent: Vec<Usage>,
    limit: Option<f64>,
    moved_at_ms: i64,
    past: Past,
}

impl Daemon {
    /// Gathers what a decision about a feature depends on.
    pub(super) fn question(
        &self,
        domain: &str,
        feature: &FeatureName,
        cause: &Cause,
    ) -> Result<Question, ApiError> {
        let resource = breached(cause);
        let (recent, moved_at_ms, automatic, limit) = {
            let instances = lock(&self.instances);
            let (_, f) = self.find(&instances, domain, feature)?;
            let recent = f.recent.all();
            let spec = &f.record.spec;
            let limit = spec
                .thresholds
                .iter()
                .find(|t| Some(t.resource) == resource);
            (
                recent,
                f.record.moved_at_ms,
                spec.automatic,
                limit.map(|t| t.limit),
            )
        };
        let mut demand = self.demand(domain, feature);
        let mut view = self.view();
        // Hosts are compared as they will be when the expected breach begins.
        let by_breach = matches!(cause, Cause::Breach(_) | Cause::Preview { .. });
        if by_breach
            && self.measured(domain, feature).is_none()
            && let Some(expected) = self.expected_of(domain, feature)
        {
            let ratio = host_per_guest_cpu(&recent);
            forecast::grow(&mut view, &mut demand, domain, &expected, ratio);
        }
        let mut policy = self.policy();
        policy.automatic &= automatic;
        Ok(Question {
            view,
            policy,
            demand,
            window: UsageWindow::of(&recent),
            recent,
            limit,
            moved_at_ms,
            past: self.past_of(feature),
        })
    }

    /// What would be done with a feature, and why; not recorded.
    pub(super) fn plan_for(
        &self,
        domain: &str,
        feature: &FeatureName,
        cause: Cause,
    ) -> Result<Plan, ApiError> {
        let q = self.question(domain, feature, &cause)?;
        let ask = q.ask(domain, feature, cause);
        let scorer = lock(&self.affinity).for_feature(feature, &q.window, q.demand);
        Ok(decide_by(&q.view, &q.policy, &ask, &scorer))
    }

    /// Decides, and records the decision with its inputs.
    pub(super) async fn decided(
        &self,
        domain: &str,
        feature: &FeatureName,
        cause: Cause,
    ) -> Result<Plan, ApiError> {
        let q = self.question(domain, feature, &cause)?;
        let resource = breached(&cause);
        let before = Effect {
            quality_before: self.mean_quality(&q.recent),
            use_before: resource.and_then(|r| mean(q.recent.iter().filter_map(|u| u.get(r)))),
            limit: q.limit,
            ..Effect::default()
        };
        let for_breach = matches!(cause, Cause::Breach(_) | Cause::Crowded { .. });
        let ask = q.ask(domain, feature, cause);
        let scorer = lock(&self.affinity).for_feature(feature, &q.window, q.demand);
        let (mut plan, inputs) = Inputs::record(q.view, q.policy, &ask, &scorer);
        let id = uuid::Uuid::new_v4().simple().to_string();
        id[..12].clone_into(&mut plan.id);
        // What a user or a drain asked for is done, whatever the mode.
        if !for_breach {
            plan.mode = Mode::Act;
        }
        let to = plan.target().map(|c| (c.host.clone(), c.domain.clone()));
        let proposed = to.is_some() && plan.mode == Mode::Advise;
        let row = DecisionRow {
            id: plan.id.clone(),
            at_ms: clock::now_ms(),
            domain: domain.to_owned(),
            feature: feature.clone(),
            outcome: plan.outcome.clone(),
            reason: plan.reason.clone(),
            mode: plan.mode,
            answer: if proposed {
                Answer::Proposed
            } else {
                Answer::None
            },
            move_id: None,
            for_breach,
            resource,
            effect: before,
            judged_ms: 0,
            to,
        };
        let old = self
            .audit
            .find(|r| r.answer == Answer::Proposed && r.feature == *feature);
        let (audit, recorded) = (Arc::clone(&self.audit), plan.clone());
        let written = tokio::task::spawn_blocking(move || {
            if let Some(old) = old.filter(|_| proposed) {
                audit.change(&old.id, |r| r.answer = Answer::Superseded)?;
            }
            audit.add(row, &recorded, &inputs)
        })
        .await;
        match written {
            Ok(Ok(())) => {}
            Ok(Err(e)) => tracing::error!(%domain, %feature, error = %e, "decision not recorded"),
            Err(e) => tracing::error!(%domain, %feature, error = %e, "decision not recorded"),
        }
        Ok(plan)
    }

    /// Changes what is recorded of a decision.
    pub(super) async fn change_decision(
        &self,
        id: &str,
        change: impl FnOnce(&mut DecisionRow) + Send + 'static,
    ) {
        let (audit, id) = (Arc::clone(&self.audit), id.to_owned());
        let done = tokio::task::spawn_blocking(move || audit.change(&id, change)).await;
        match done {
            // An old one may be gone.
            Ok(Ok(()) | Err(AuditError::NotFound(_))) => {}
            Ok(Err(e)) => tracing::error!(error = %e, "what became of a decision is not recorded"),
            Err(e) => tracing::error!(error = %e, "what became of a decision is not recorded"),
        }
    }

    /// Whether a decision about the feature that nobody acts on is so fresh that no new one is
    /// needed: it would have moved then, and would stay for the cooldown now.
    pub(super) fn decided_lately(&self, domain: &str, feature: &FeatureName) -> bool {
        let since = clock::now_ms() - self.policy().cooldown_ms;
        self.audit
            .find(|r| r.feature == *feature && r.domain == domain)
            .is_some_and(|r| r.at_ms > since && r.to.is_some() && r.mode != Mode::Act)
    }

    /// A decision in full.
    pub(super) async fn decision(&self, id: &str) -> Result<DecisionRecord, ApiError> {
        let (audit, id) = (Arc::clone(&self.audit), id.to_owned());
        let read = tokio::task::spawn_blocking(move || audit.read(&id)).await;
        let read = read.map_err(|e| ApiError::Failed(e.to_string()))?;
        Ok(read?)
    }

    /// A decision made again from its inputs.
    pub(super) async fn replay(&self, id: &str) -> Result<Replay, ApiError> {
        let record = self.decision(id).await?;
        Ok(record.inputs.replay(&record.plan))
    }

    /// Does what a decision proposed, if it still can be done.
    pub(super) async fn approve(self: &Arc<Self>, id: &str) -> Result<Job, ApiError> {
        let row = self.decision(id).await?.row;
        let id = row.id.clone();
        let (Answer::Proposed, Some((host, domain))) = (row.answer, row.to.clone()) else {
            return Err(ApiError::Refused(format!(
                "decision {id} proposes nothing that waits for an answer; 'drover advice' lists \
                 what does"
            )));
        };
        let to = Destination {
            host: Some(host.clone()),
            domain: Some(domain.clone()),
            method: None,
        };
        let plan = self.plan_for(&row.domain, &row.feature, Cause::Manual { to })?;
        if plan.target().is_none() {
            return Err(ApiError::Refused(format!(
                "the move that decision {id} proposed cannot be done any more: {}",
                plan.reason
            )));
        }
        let cause = format!("approved: {}", row.reason);
        let job = self
            .begin_move(&row.domain, &row.feature, &host, &domain, cause, None)
            .await?;
        let move_id = job.id.clone();
        self.change_decision(&id, |r| {
            r.answer = Answer::Approved;
            r.move_id = Some(move_id);
        })
        .await;
        Ok(job)
    }

    /// Scores of all hosts for a feature of this host.
    pub(super) fn scores(
        &self,
        domain: &str,
        feature: &FeatureName,
    ) -> Result<ScoreReport, ApiError> {
        let q = self.question(domain, feature, &Cause::Preview { breach: None })?;
        let (scorer, mut rows) = {
            let affinity = lock(&self.affinity);
            let mut rows: BTreeMap<String, u64> = BTreeMap::new();
            for r in affinity.reservoir().rows() {
                *rows.entry(r.host.clone()).or_default() += 1;
            }
            (affinity.for_feature(feature, &q.window, q.demand), rows)
        };
        let mut hosts = Vec::new();
        for h in &q.view.hosts {
            rows.entry(h.name.clone()).or_default();
            let mut best: Option<HostScore> = None;
            for i in h.instances.iter().filter(|i| i.running) {
                let here = h.name == q.view.me && i.domain == domain;
                let score = scorer.score(h, i);
                let own = h.name == q.view.me && !here;
                if !own && best.as_ref().is_none_or(|b| score.value > b.score.value) {
                    best = Some(HostScore {
                        host: h.name.clone(),
                        domain: i.domain.clone(),
                        here,
                        score,
                    });
                }
            }
            hosts.extend(best);
        }
        hosts.sort_by(|a, b| {
            b.score
                .value
                .total_cmp(&a.score.value)
                .then_with(|| a.host.cmp(&b.host))
        });
        let model = q.view.model;
        let trained = model.trained_at_ms;
        Ok(ScoreReport {
            domain: domain.to_owned(),
            feature: feature.clone(),
            host: q.view.me,
            demand: q.demand,
            age_s: (trained > 0).then(|| (clock::now_ms() - trained).max(0) as f64 / 1000.0),
            model,
            rows: rows.into_iter().collect(),
            hosts,
        })
    }

    /// Which guests could take which features, this host's or one of any host.
    pub(super) fn compatibility(&self, feature: Option<&FeatureName>) -> Vec<Cell> {
        let view = self.view();
        let mut cells = matrix(&view, feature);
        if feature.is_none() {
            cells.retain(|c| c.from.0 == view.me);
        }
        cells
    }
}

impl Question {
    fn ask<'a>(&self, domain: &'a str, feature: &'a FeatureName, cause: Cause) -> Ask<'a> {
        Ask {
            last_moved_ms: (self.moved_at_ms > 0).then_some(self.moved_at_ms),
            past: self.past,
            ..Ask::new(domain, feature, cause, self.demand)
        }
    }
}

/// The resource in breach.
fn breached(cause: &Cause) -> Option<Resource> {
    match cause {
        Cause::Breach(b) | Cause::Preview { breach: Some(b) } => Some(b.resource),
        _ => None,
    }
}

/// The mean of what there is.
pub(super) fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (n, sum) = values.fold((0.0, 0.0), |(n, sum), v| (n + 1.0, sum + v));
    (n > 0.0).then(|| sum / n)
}
