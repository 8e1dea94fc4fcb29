//! The compatibility matrix: which guest of which host could take which feature, and why not.
//! What is free at the moment does not count here.

use serde::{Deserialize, Serialize};

use crate::feature::FeatureName;

use super::eligible::{self, Source};
use super::plan::sorted;
use super::refusal::Refusal;
use super::{Policy, View};

/// One feature and one guest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// Feature.
    pub feature: FeatureName,
    /// Host and guest that it is in.
    pub from: (String, String),
    /// Host that could take it.
    pub host: String,
    /// Guest there; empty when the host has none.
    pub domain: String,
    /// Why it cannot, one sentence per reason; empty when it can.
    pub refusals: Vec<String>,
}

/// All features of the view, or one, against all guests of the other hosts; by feature, host and
/// guest.
pub fn matrix(view: &View, feature: Option<&FeatureName>) -> Vec<Cell> {
    // Compatibility does not depend on how many moves are under way.
    let policy = Policy {
        max_moves_in: u32::MAX,
        ..Policy::default()
    };
    let hosts = sorted(view);
    let mut cells = Vec::new();
    for host in &hosts {
        for instance in &host.instances {
            for f in &instance.features {
                if feature.is_some_and(|n| *n != f.spec.name) {
                    continue;
                }
                let source = Source {
                    host,
                    instance,
                    feature: f,
                };
                let own = eligible::of_feature(&source, |m| eligible::address(&source, m, &hosts));
                let cell = |h: &str, domain: &str, why: &[Refusal]| Cell {
                    feature: f.spec.name.clone(),
                    from: (host.name.clone(), instance.domain.clone()),
                    host: h.to_owned(),
                    domain: domain.to_owned(),
                    refusals: why.iter().map(ToString::to_string).collect(),
                };
                for h in hosts.iter().filter(|h| h.name != host.name) {
                    let mut common = own.clone();
                    common.extend(eligible::of_host(view, &source, h, None, &policy));
                    for i in &h.instances {
                        let mut why = common.clone();
                        why.extend(eligible::of_guest(&source, i, None));
                        cells.push(cell(&h.name, &i.domain, &why));
                    }
                    if h.instances.is_empty() {
                        cells.push(cell(&h.name, "", &common));
                    }
                }
            }
        }
    }
    cells.sort_by(|a, b| {
        (&a.feature, &a.from, &a.host, &a.domain).cmp(&(&b.feature, &b.from, &b.host, &b.domain))
    });
    cells
}
