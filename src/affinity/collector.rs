//! Turns the stream of usage points into rows: inputs now, service quality over the horizon
//! that follows.

use std::collections::BTreeMap;

use crate::feature::FeatureName;
use crate::host::{FeatureStatus, HostState, InstanceState};
use crate::recent::Recent;
use crate::usage::Usage;

use super::input::{ScoreInput, UsageWindow};
use super::quality::quality;
use super::reservoir::Row;
use super::schema::{HostPart, Inputs, row_of};

/// One usage point and where it was measured.
#[derive(Debug, Clone, Copy)]
pub struct Observation<'a> {
    /// The host, as it is now.
    pub host: &'a HostState,
    /// Domain.
    pub domain: &'a str,
    /// Feature.
    pub feature: &'a FeatureName,
    /// Its use.
    pub usage: &'a Usage,
    /// Percent of the interval that the guest's CPUs were stolen, if known.
    pub steal_percent: Option<f64>,
}

/// What came of a point.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Taken {
    /// The row that it completed.
    pub row: Option<Row>,
    /// The next row waits for its inputs ([`Collector::begin`]): a window of the points after this
    /// time, milliseconds since the epoch, up to this one.
    pub wants_after_ms: Option<i64>,
}

#[derive(Debug, Clone)]
struct Pending {
    at_ms: i64,
    host: String,
    group: String,
    x: Inputs,
    /// Quality times seconds.
    sum: f64,
    /// Seconds measured.
    covered_s: f64,
}

#[derive(Debug, Clone)]
struct Track {
    /// First point since it runs here.
    first_ms: i64,
    last_ms: i64,
    pending: Option<Box<Pending>>,
    /// Points, where nobody else keeps them.
    own: Option<Box<Recent>>,
}

/// Where a feature is when the inputs of its next row are taken.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// The host; its instances are not looked at.
    pub host: &'a HostState,
    /// What its rows have in common.
    pub part: &'a HostPart,
    /// The feature's guest.
    pub instance: &'a InstanceState,
}

/// Remembers the inputs whose horizon has not passed yet.
#[derive(Debug, Clone)]
pub struct Collector {
    window_ms: i64,
    horizon_ms: i64,
    tracks: BTreeMap<(String, FeatureName), Track>,
}

impl Collector {
    /// Inputs look back over `window_s`, quality forward over `horizon_s`, in seconds.
    pub fn new(window_s: f64, horizon_s: f64) -> Self {
        Self {
            window_ms: (window_s * 1000.0).max(1.0) as i64,
            horizon_ms: (horizon_s * 1000.0).max(1.0) as i64,
            tracks: BTreeMap::new(),
        }
    }

    /// Takes a point with its host; returns the row that it completed, if any. Its inputs are
    /// those of an earlier point, its quality that of the time since.
    pub fn observe(&mut self, o: &Observation<'_>) -> Option<Row> {
        let running = o
            .host
            .feature(o.domain, o.feature)
            .is_some_and(|f| f.status == FeatureStatus::Running);
        let taken = self.point(o.domain, o.feature, o.usage, o.steal_percent, running);
        let window_ms = self.window_ms;
        let key = (o.domain.to_owned(), o.feature.clone());
        if let Some(track) = self.tracks.get_mut(&key) {
            let own = track.own.get_or_insert_default();
            if own.latest().is_none_or(|u| u.at_ms < o.usage.at_ms) {
                own.push(*o.usage);
                own.forget(o.usage.at_ms.saturating_sub(window_ms));
            }
        }
        let window = taken
            .wants_after_ms
            .and_then(|_| self.window(o.domain, o.feature));
        let instance = o.host.instances.iter().find(|i| i.domain == o.domain);
        if let (Some(window), Some(instance)) = (window, instance) {
            let place = Place {
                host: o.host,
                part: &HostPart::of(o.host),
                instance,
            };
            self.begin(place, o.feature, &window);
        }
        taken.row
    }

    /// Takes a point without looking at the host, which most points do not need. The caller keeps
    /// the points.
    pub fn point(
        &mut self,
        domain: &str,
        feature: &FeatureName,
        usage: &Usage,
        steal_percent: Option<f64>,
        running: bool,
    ) -> Taken {
        let key = (domain.to_owned(), feature.clone());
        if !running {
            // Stopped or on its way: its quality is not the host's.
            self.tracks.remove(&key);
            return Taken::default();
        }
        let now = usage.at_ms;
        let new = Track {
            first_ms: now,
            last_ms: i64::MIN,
            pending: None,
            own: None,
        };
        let track = self.tracks.entry(key).or_insert_with(|| new.clone());
        if now == track.last_ms {
            return Taken::default();
        }
        if now < track.last_ms {
            *track = new;
        }
        track.last_ms = now;
        let mut done = None;
        if let Some(p) = &mut track.pending {
            if let Some(q) = quality(usage, steal_percent) {
                // Of an interval that began before the inputs were taken, the rest counts.
                let s = usage.dt_s.min((now - p.at_ms) as f64 / 1000.0).max(0.0);
                p.sum += q * s;
                p.covered_s += s;
            }
            if now - p.at_ms >= self.horizon_ms {
                done = track.pending.take();
            }
        }
        let horizon_s = self.horizon_ms as f64 / 1000.0;
        let horizon_ms = self.horizon_ms;
        // Not when points were missing for too long, or the quality was not measured for at least
        // half of the horizon.
        let row = done
            .filter(|p| now - p.at_ms <= 2 * horizon_ms && p.covered_s >= horizon_s / 2.0)
            .map(|p| Row {
                at_ms: p.at_ms,
                host: p.host,
                feature: feature.to_string(),
                group: p.group,
                x: p.x,
                y: (p.sum / p.covered_s).clamp(0.0, 1.0) as f32,
            });
        Taken {
            row,
            wants_after_ms: track.pending.is_none().then(|| {
                // What it used before it ran here, or by another clock, is not this host's.
                let first_ms = track.first_ms.saturating_sub(1);
                now.saturating_sub(self.window_ms).max(first_ms)
            }),
        }
    }

    /// Takes the inputs of the next row, as of the latest point; `window` is the use that
    /// [`Taken::wants_after_ms`] asks for.
    pub fn begin(&mut self, place: Place<'_>, feature: &FeatureName, window: &UsageWindow) {
        let Place {
            host,
            part,
            instance,
        } = place;
        let key = (instance.domain.clone(), feature.clone());
        let state = instance.features.iter().find(|f| f.spec.name == *feature);
        let (Some(track), Some(state)) = (self.tracks.get_mut(&key), state) else {
            return;
        };
        let input = ScoreInput {
            host,
            instance,
            feature,
            window,
            demand: window.demand(),
        };
        track.pending = Some(Box::new(Pending {
            at_ms: track.last_ms,
            host: host.name.clone(),
            group: state.spec.group.clone(),
            x: row_of(&input, part),
            sum: 0.0,
            covered_s: 0.0,
        }));
    }

    /// Use over the last window of a feature that is observed with its host; `None` when nothing
    /// was observed.
    pub fn window(&self, domain: &str, feature: &FeatureName) -> Option<UsageWindow> {
        let t = self.tracks.get(&(domain.to_owned(), feature.clone()))?;
        let own = t.own.as_ref()?;
        Some(UsageWindow::of(&own.after(t.last_ms - self.window_ms)))
    }

    /// Forgets features for which `keep(domain, feature)` is false.
    pub fn retain(&mut self, mut keep: impl FnMut(&str, &FeatureName) -> bool) {
        self.tracks.retain(|(d, f), _| keep(d, f));
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{feature, host_with_feature};
    use super::*;

    fn point(at_s: i64, stall: Option<f64>) -> Usage {
        Usage {
            at_ms: at_s * 1000,
            dt_s: 5.0,
            cpu_percent: Some(50.0),
            psi_cpu_percent: stall,
            ..Usage::default()
        }
    }

    fn run(stalls: &[(i64, Option<f64>)]) -> Vec<Row> {
        let (h, f) = (host_with_feature("a", 4.0), feature());
        let mut c = Collector::new(60.0, 30.0);
        stalls
            .iter()
            .filter_map(|(at, s)| {
                c.observe(&Observation {
                    host: &h,
                    domain: "g",
                    feature: &f,
                    usage: &point(*at, *s),
                    steal_percent: None,
                })
            })
            .collect()
    }

    #[test]
    fn quality_of_what_follows() {
        // Stall at the time of the inputs does not count, what follows does.
        let mut points = vec![(0, Some(100.0))];
        points.extend((1..=12).map(|i| (i * 5, Some(if i <= 6 { 20.0 } else { 60.0 }))));
        let rows = run(&points);
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[0].at_ms, 0);
        assert!((rows[0].y - 0.8).abs() < 1e-6, "{}", rows[0].y);
        assert_eq!(rows[1].at_ms, 30_000);
        assert!((rows[1].y - 0.4).abs() < 1e-6);
    }

    #[test]
    fn gaps_give_no_row() {
        assert!(run(&[(0, Some(1.0)), (30, Some(1.0)), (35, Some(1.0))]).is_empty());
        let unmeasured: Vec<_> = (0..10).map(|i| (i * 5, None)).collect();
        assert!(run(&unmeasured).is_empty());
        assert!(run(&[(50, Some(1.0)), (0, Some(1.0)), (30, Some(1.0))]).is_empty());
    }

    #[test]
    fn not_while_moving() {
        let (mut host, name) = (host_with_feature("a", 4.0), feature());
        let mut c = Collector::new(60.0, 10.0);
        for (at_s, status) in (0i64..).step_by(5).zip([
            FeatureStatus::Running,
            FeatureStatus::Moving,
            FeatureStatus::Running,
            FeatureStatus::Running,
        ]) {
            host.instances[0].features[0].status = status;
            let u = point(at_s, Some(0.0));
            let o = Observation {
                host: &host,
                domain: "g",
                feature: &name,
                usage: &u,
                steal_percent: None,
            };
            assert_eq!(c.observe(&o), None);
            assert_eq!(
                c.window("g", &name).is_some(),
                status == FeatureStatus::Running
            );
        }
        c.retain(|_, _| false);
        assert_eq!(c.window("g", &name), None);
    }
}
