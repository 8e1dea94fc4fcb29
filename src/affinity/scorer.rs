//! Scores of many hosts for one feature.

use std::sync::Arc;

use crate::decision::Scorer;
use crate::feature::FeatureName;
use crate::host::{HostState, InstanceState};

use super::input::{After, Demand, ScoreInput, UsageWindow};
use super::model::Model;
use super::schema::{HostPart, Inputs, row_of};
use super::{Score, blend, headroom};

/// Scores hosts for a feature, by the model that was in use when it was made.
#[derive(Debug, Clone)]
pub struct ForFeature<'a> {
    model: Option<Arc<Model>>,
    weight: f64,
    feature: &'a FeatureName,
    window: &'a UsageWindow,
    demand: Demand,
}

impl<'a> ForFeature<'a> {
    pub(super) fn new(
        model: Option<Arc<Model>>,
        weight: f64,
        feature: &'a FeatureName,
        window: &'a UsageWindow,
        demand: Demand,
    ) -> Self {
        Self {
            model,
            weight,
            feature,
            window,
            demand,
        }
    }

    fn inputs(&self, host: &HostState, instance: &InstanceState, part: &HostPart) -> Inputs {
        let input = ScoreInput {
            host,
            instance,
            feature: self.feature,
            window: self.window,
            demand: self.demand,
        };
        row_of(&input, part)
    }

    fn room(&self, host: &HostState, instance: &InstanceState) -> After {
        After::of(host, instance, self.feature, &self.demand)
    }

    /// The score of a host and guest, with parts and the model's sum.
    pub fn score(&self, host: &HostState, instance: &InstanceState) -> Score {
        let room = headroom::score(&self.room(host, instance));
        let mut score = Score {
            value: room.value,
            parts: vec![("headroom".to_owned(), room.value)],
            explain: Vec::new(),
        };
        if let Some(model) = &self.model {
            let x = self.inputs(host, instance, &HostPart::of(host));
            // A model that fails leaves the headroom score, which is always there.
            if let Ok(p) = model.predict(&x) {
                score.value = blend::blend(room.value, p, self.weight);
                score.parts.push(("model".to_owned(), p));
                score.parts.push(("model_weight".to_owned(), self.weight));
                let e = model.explain(&x);
                score.explain.push(("base".to_owned(), e.base));
                let parts = e.contributions.into_iter();
                score.explain.extend(parts.map(|(n, v)| (n.to_owned(), v)));
            }
        }
        score
            .parts
            .extend(room.parts.into_iter().map(|(n, v)| (n.to_owned(), v)));
        score
    }
}

impl Scorer for ForFeature<'_> {
    fn values(&self, targets: &[(&HostState, &InstanceState)]) -> Vec<f64> {
        let room = |(h, i): &(&HostState, &InstanceState)| headroom::value(&self.room(h, i));
        let mut values: Vec<f64> = targets.iter().map(room).collect();
        if let Some(model) = &self.model {
            // Guests of one host come in a row.
            let mut last: Option<(&HostState, HostPart)> = None;
            let mut rows: Vec<Inputs> = Vec::with_capacity(targets.len());
            for (h, i) in targets {
                let part = match last {
                    Some((l, part)) if std::ptr::eq(l, *h) => part,
                    _ => HostPart::of(h),
                };
                last = Some((h, part));
                rows.push(self.inputs(h, i, &part));
            }
            for (v, p) in values.iter_mut().zip(model.predict_all(&rows)) {
                if p.is_finite() {
                    *v = blend::blend(*v, p, self.weight);
                }
            }
        }
        values
    }

    fn explain(&self, host: &HostState, instance: &InstanceState) -> Score {
        self.score(host, instance)
    }
}
