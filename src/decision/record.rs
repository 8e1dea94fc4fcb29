//! A decision with everything it depended on, so that it can be made again.

use std::cell::RefCell;

use serde::{Deserialize, Serialize};

use crate::api::Plan;
use crate::feature::{FeatureName, FeatureSpec, Managed, Workload};
use crate::host::{HostState, InstanceState};

use super::{Ask, Cause, Demand, Past, Policy, Score, Scorer, View, decide_by};

/// A score that was given.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Given {
    host: String,
    domain: String,
    value: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    explained: Option<Score>,
}

/// The inputs of a decision: view, policy, question, and the affinity scores that it asked for.
/// What has no influence is left out, features' programs and environment above all.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Inputs {
    view: View,
    policy: Policy,
    domain: String,
    feature: FeatureName,
    cause: Cause,
    expected: Demand,
    last_moved_ms: Option<i64>,
    past: Past,
    scores: Vec<Given>,
}

/// A decision made again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Replay {
    /// Whether the answer is the recorded one.
    pub same: bool,
    /// The answer.
    pub plan: Plan,
}

/// A scorer that notes what it answers.
struct Noting<'a> {
    inner: &'a dyn Scorer,
    given: RefCell<Vec<Given>>,
}

fn given(host: &HostState, instance: &InstanceState, value: f64) -> Given {
    Given {
        host: host.name.clone(),
        domain: instance.domain.clone(),
        value,
        explained: None,
    }
}

impl Scorer for Noting<'_> {
    fn values(&self, targets: &[(&HostState, &InstanceState)]) -> Vec<f64> {
        let values = self.inner.values(targets);
        let pairs = targets.iter().zip(&values);
        let new = pairs.map(|((h, i), v)| given(h, i, *v));
        self.given.borrow_mut().extend(new);
        values
    }
    fn explain(&self, host: &HostState, instance: &InstanceState) -> Score {
        let score = self.inner.explain(host, instance);
        let mut list = self.given.borrow_mut();
        let known = list
            .iter_mut()
            .find(|g| g.host == host.name && g.domain == instance.domain);
        match known {
            Some(g) => g.explained = Some(score.clone()),
            None => list.push(Given {
                explained: Some(score.clone()),
                ..given(host, instance, score.value)
            }),
        }
        score
    }
}

impl Scorer for Vec<Given> {
    fn values(&self, targets: &[(&HostState, &InstanceState)]) -> Vec<f64> {
        let find = |h: &HostState, i: &InstanceState| {
            self.iter()
                .find(|g| g.host == h.name && g.domain == i.domain)
                .map_or(0.0, |g| g.value)
        };
        targets.iter().map(|(h, i)| find(h, i)).collect()
    }
    fn explain(&self, host: &HostState, instance: &InstanceState) -> Score {
        self.iter()
            .find(|g| g.host == host.name && g.domain == instance.domain)
            .and_then(|g| g.explained.clone())
            .unwrap_or_default()
    }
}

/// A definition without what no decision looks at.
fn slim_spec(spec: &FeatureSpec) -> FeatureSpec {
    let workload = match &spec.workload {
        Workload::Managed(m) => Workload::Managed(Managed {
            addresses: m.addresses.clone(),
            ..Managed::new(Vec::new(), m.address)
        }),
        _ => Workload::Unit {
            unit: String::new(),
        },
    };
    FeatureSpec {
        thresholds: Vec::new(),
        workload,
        ..spec.clone()
    }
}

impl Inputs {
    /// Decides as [`super::decide_by`] and keeps what the decision depended on.
    pub fn record(view: View, policy: Policy, ask: &Ask<'_>, scorer: &dyn Scorer) -> (Plan, Self) {
        let noting = Noting {
            inner: scorer,
            given: RefCell::default(),
        };
        let plan = decide_by(&view, &policy, ask, &noting);
        let mut view = view;
        for h in &mut view.hosts {
            for i in &mut h.instances {
                for f in &mut i.features {
                    f.spec = slim_spec(&f.spec);
                    if f.spec.name != *ask.feature {
                        f.usage = None;
                    }
                }
            }
        }
        let inputs = Self {
            view,
            policy,
            domain: ask.domain.to_owned(),
            feature: ask.feature.clone(),
            cause: ask.cause.clone(),
            expected: ask.expected,
            last_moved_ms: ask.last_moved_ms,
            past: ask.past,
            scores: noting.given.into_inner(),
        };
        (plan, inputs)
    }

    /// Why the question was asked.
    pub fn cause(&self) -> &Cause {
        &self.cause
    }

    /// What the feature was expected to use.
    pub fn expected(&self) -> &Demand {
        &self.expected
    }

    /// Decides again and compares.
    pub fn replay(&self, recorded: &Plan) -> Replay {
        let ask = Ask {
            domain: &self.domain,
            feature: &self.feature,
            cause: self.cause.clone(),
            expected: self.expected,
            last_moved_ms: self.last_moved_ms,
            past: self.past,
        };
        let mut plan = decide_by(&self.view, &self.policy, &ask, &self.scores);
        plan.id.clone_from(&recorded.id);
        Replay {
            same: plan == *recorded,
            plan,
        }
    }
}
