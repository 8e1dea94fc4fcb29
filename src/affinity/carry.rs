//! Rows as a decision sees them: the use measured at one host, the quality at another.
//!
//! A feature's rows are made where it runs, so its use in them is what that host let it use: on a
//! slow disk it writes little *because* the disk is slow. A model trained on that takes the effect
//! for the cause ("who writes little is served badly") and never learns which host is slow. When
//! a target is scored, the use comes from elsewhere. So it does here: where a feature ran on
//! several hosts, its use in a row is replaced by what it used at one of them, quantile by
//! quantile (a busy time stays a busy time), and the load of the row's host is corrected by the
//! difference.

use std::collections::BTreeMap;
use std::ops::Range;

use super::boost::scattered;
use super::reservoir::Row;
use super::schema::{Inputs, MISSING, column, log_rate, part};

/// The columns of the feature's own use.
const OWN: Range<usize> = 1..13;
const CPU: usize = column("own_cpu_mean");
const NET: usize = column("own_net_mean");
const DISK: usize = column("own_disk_mean");
const HOST_CPUS: usize = column("host_cpus");
const GUEST_VCPUS: usize = column("guest_vcpus");
const HOST_NETWORK: usize = column("host_network");
const HOST_CPU_AFTER: usize = column("host_cpu_after");
const GUEST_CPU_AFTER: usize = column("guest_cpu_after");
const HOST_NET_AFTER: usize = column("host_net_after");
const HOST_DISK_AFTER: usize = column("host_disk_after");

/// Fewest rows that a host must have of a feature to count.
const MIN_ROWS: usize = 5;

/// What a feature used at one host: each own column's known values, ascending.
struct Used(Vec<Vec<f32>>);

impl Used {
    fn of(rows: &[&Row]) -> Self {
        let sorted = |c: usize| {
            let mut values: Vec<f32> = rows
                .iter()
                .map(|r| r.x[c])
                .filter(|v| *v != MISSING)
                .collect();
            values.sort_by(f32::total_cmp);
            values
        };
        Self(OWN.map(sorted).collect())
    }

    /// The value at `to` that is as large among its own as `v` is here.
    fn carried(&self, to: &Self, column: usize, v: f32) -> f32 {
        let i = column - OWN.start;
        let (Some(from), Some(to)) = (self.0.get(i), to.0.get(i)) else {
            return v;
        };
        if v == MISSING || from.is_empty() || to.is_empty() {
            return v;
        }
        // Equal values share the middle of their ranks.
        let below = from.partition_point(|f| *f < v);
        let up_to = from.partition_point(|f| *f <= v);
        let at = (below + up_to) * to.len() / (2 * from.len());
        to[at.min(to.len() - 1)]
    }
}

/// Bytes per second of a logarithmic column.
fn bps(log: f32) -> f64 {
    (f64::from(log).exp2() - 1.0) * 1024.0
}

/// `x` with the own columns of `own`, and the load of the row's host and guest corrected by what
/// the feature uses more or less there.
fn with_use(mut x: Inputs, own: &Inputs) -> Inputs {
    let more = |c: usize, amount: fn(f32) -> f64| {
        let known = x[c] != MISSING && own[c] != MISSING;
        if known {
            amount(own[c]) - amount(x[c])
        } else {
            0.0
        }
    };
    let (cpus, net, disk) = (more(CPU, f64::from), more(NET, bps), more(DISK, bps));
    let capacity = |c: usize| Some(f64::from(x[c])).filter(|v| *v > 0.0);
    let mbps = capacity(HOST_NETWORK).map(|log| log.exp2() - 1.0);
    let fractions = [
        (HOST_CPU_AFTER, capacity(HOST_CPUS).map(|v| cpus / v)),
        (GUEST_CPU_AFTER, capacity(GUEST_VCPUS).map(|v| cpus / v)),
        (HOST_NET_AFTER, mbps.map(|m| net / (m * 125_000.0))),
    ];
    for (c, more) in fractions {
        if let Some(more) = more.filter(|m| m.is_finite() && x[c] != MISSING) {
            x[c] = part((f64::from(x[c]) + more).clamp(0.0, 100.0)) as f32;
        }
    }
    if x[HOST_DISK_AFTER] != MISSING {
        x[HOST_DISK_AFTER] = log_rate(bps(x[HOST_DISK_AFTER]) + disk) as f32;
    }
    x[OWN].copy_from_slice(&own[OWN]);
    x
}

/// The rows as if the use of features that ran on several hosts had been measured at one of
/// these, its own included. Which one is as good as drawn by lot, and always the same.
pub(super) fn carried(rows: &[&Row]) -> Vec<Row> {
    let mut places: BTreeMap<&str, BTreeMap<&str, Vec<&Row>>> = BTreeMap::new();
    for r in rows {
        let hosts = places.entry(&r.feature).or_default();
        hosts.entry(&r.host).or_default().push(r);
    }
    let used: BTreeMap<&str, Vec<(&str, Used)>> = places
        .into_iter()
        .map(|(feature, hosts)| {
            let enough = hosts.into_iter().filter(|(_, rows)| rows.len() >= MIN_ROWS);
            (
                feature,
                enough.map(|(h, rows)| (h, Used::of(&rows))).collect(),
            )
        })
        .collect();
    let carry = |(i, row): (usize, &&Row)| {
        let mut carried = (*row).clone();
        let hosts = used
            .get(row.feature.as_str())
            .map_or(&[][..], Vec::as_slice);
        let here = hosts.iter().find(|(h, _)| *h == row.host);
        let there = hosts.get(scattered(i as u64) as usize % hosts.len().max(1));
        if let (Some((from, here)), Some((to, there))) = (here, there)
            && from != to
        {
            let mut own = row.x;
            for c in OWN {
                own[c] = here.carried(there, c, row.x[c]);
            }
            carried.x = with_use(row.x, &own);
        }
        carried
    };
    rows.iter().enumerate().map(carry).collect()
}

#[cfg(test)]
mod tests {
    use super::super::schema::{COLUMNS, N, valid};
    use super::*;

    fn row(host: &str, i: i16, disk: f32, cpu: f32, y: f32) -> Row {
        let mut x = [0.0; N];
        x[column("own_disk_mean")] = disk;
        x[column("own_cpu_mean")] = cpu;
        x[column("own_net_mean")] = MISSING;
        x[column("host_cpus")] = 4.0;
        x[column("guest_vcpus")] = 2.0;
        x[column("host_cpu_after")] = 0.5;
        x[column("guest_cpu_after")] = cpu / 2.0;
        x[column("host_net_after")] = MISSING;
        x[column("host_disk_after")] = disk;
        Row {
            at_ms: 1000 * i64::from(i),
            host: host.into(),
            feature: "f".into(),
            group: "default".into(),
            x,
            y,
        }
    }

    #[test]
    fn own_columns_are_where_they_are_said_to_be() {
        for (i, name) in COLUMNS.iter().enumerate() {
            assert_eq!(OWN.contains(&i), name.starts_with("own_"), "{name}");
        }
        for name in [
            "own_cpu_mean",
            "own_net_mean",
            "own_disk_mean",
            "host_network",
            "host_cpus",
            "guest_vcpus",
            "host_cpu_after",
            "guest_cpu_after",
            "host_net_after",
            "host_disk_after",
        ] {
            assert!(COLUMNS.contains(&name), "{name}");
        }
    }

    #[test]
    fn a_feature_of_one_host_stays_as_it_is() {
        let rows: Vec<Row> = (0..9)
            .map(|i| row("a", i, f32::from(i), 0.5, 0.9))
            .collect();
        assert_eq!(carried(&rows.iter().collect::<Vec<_>>()), rows);
    }

    #[test]
    fn use_is_that_of_another_host_and_load_goes_along() {
        // On b the feature gets a quarter of the CPU and hardly any disk.
        let mut rows: Vec<Row> = (0..10)
            .map(|i| row("a", i, 12.0 + f32::from(i), 0.8, 0.9))
            .collect();
        rows.extend((0..10).map(|i| row("b", i, 0.25 * f32::from(i), 0.2, 0.2)));
        let out = carried(&rows.iter().collect::<Vec<_>>());
        let (disk, cpu) = (column("own_disk_mean"), column("own_cpu_mean"));
        let mut exchanged = 0;
        for (before, after) in rows.iter().zip(&out) {
            assert!(valid(&after.x));
            assert_eq!((before.y, &before.host), (after.y, &after.host));
            if before.x == after.x {
                continue;
            }
            exchanged += 1;
            // As large among its own as it was: the order is kept.
            let i = before.at_ms as f32 / 1000.0;
            let (d, c) = if before.host == "a" {
                (0.25 * i, 0.2)
            } else {
                (12.0 + i, 0.8)
            };
            assert!(
                (after.x[disk] - d).abs() < 1e-6 && after.x[cpu] == c,
                "{:?}",
                after.x
            );
            let more = c - before.x[cpu];
            assert!((after.x[column("host_cpu_after")] - (0.5 + more / 4.0)).abs() < 1e-6);
            assert!((after.x[column("guest_cpu_after")] - c / 2.0).abs() < 1e-6);
            assert!((after.x[column("host_disk_after")] - d).abs() < 0.01);
        }
        assert!(
            (5..=15).contains(&exchanged),
            "half of them, by lot: {exchanged}"
        );
    }
}
