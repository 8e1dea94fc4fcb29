//! `top`: the busiest features, with their last minutes as sparklines.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::io::{self, Write};

use super::super::screen::{Screen, Style};
use super::super::table::{Cell, Table};
use super::plot::sparkline;
use super::value;
use crate::api::FeatureRow;
use crate::feature::{FeatureName, Resource};
use crate::host::FeatureStatus;

/// Width of a sparkline.
pub const SPARK: usize = 24;

/// What rows are sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sort {
    /// A resource's use.
    By(Resource),
    /// Domain and name.
    Name,
}

impl Sort {
    /// The key that chooses it, and the letter's meaning.
    pub const KEYS: [(char, Self); 5] = [
        ('c', Self::By(Resource::Cpu)),
        ('m', Self::By(Resource::Memory)),
        ('n', Self::By(Resource::NetTx)),
        ('d', Self::By(Resource::DiskWrite)),
        ('f', Self::Name),
    ];

    /// Of a key or a word of the command line.
    pub fn parse(text: &str) -> Option<Self> {
        if text == "name" {
            return Some(Self::Name);
        }
        let by = Resource::ALL.into_iter().find(|r| r.as_str() == text);
        by.map(Self::By)
    }
}

/// Names a feature on this host.
pub type Key = (String, FeatureName);

/// Recent values of a resource, oldest first, by feature; what is missing is NaN.
#[derive(Debug, Clone, Default)]
pub struct Recent(HashMap<Key, Vec<(i64, f64)>>);

impl Recent {
    /// Adds a value, unless that time is known already.
    pub fn push(&mut self, key: &Key, at_ms: i64, value: Option<f64>) {
        let values = match self.0.get_mut(key) {
            Some(v) => v,
            None => self.0.entry(key.clone()).or_default(),
        };
        if values.last().is_none_or(|(at, _)| *at < at_ms) {
            values.push((at_ms, value.unwrap_or(f64::NAN)));
            let extra = values.len().saturating_sub(SPARK);
            values.drain(..extra);
        }
    }

    /// Is anything known of it?
    pub fn knows(&self, key: &Key) -> bool {
        self.0.contains_key(key)
    }

    fn values(&self, key: &Key) -> Vec<f64> {
        let of = self.0.get(key).map_or(&[][..], Vec::as_slice);
        of.iter().map(|(_, v)| *v).collect()
    }
}

/// What a feature uses now; nothing when it does not run.
fn now(row: &FeatureRow, r: Resource) -> Option<f64> {
    let runs = matches!(row.status, FeatureStatus::Running | FeatureStatus::Moving);
    row.usage.as_ref().filter(|_| runs).and_then(|u| u.get(r))
}

/// Sorts rows: the greatest first, what is unavailable last; names upwards.
pub fn sort(rows: &mut [FeatureRow], by: Sort, reverse: bool) {
    let name = |r: &FeatureRow| (r.domain.clone(), r.spec.name.clone());
    rows.sort_by(|a, b| {
        let order = match by {
            Sort::Name => Ordering::Equal,
            Sort::By(r) => match (now(a, r), now(b, r)) {
                (Some(x), Some(y)) => y.total_cmp(&x),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (None, None) => Ordering::Equal,
            },
        };
        order.then_with(|| name(a).cmp(&name(b)))
    });
    if reverse {
        rows.reverse();
    }
}

/// The features from number `from` on, at most `most` of them.
pub fn top(
    out: &mut dyn Write,
    rows: &[FeatureRow],
    (from, most): (usize, usize),
    (recent, spark): (&Recent, Resource),
    screen: &Screen,
) -> io::Result<()> {
    let mut head = vec!["Domain".to_owned(), "Feature".into(), "Status".into()];
    head.extend([">CPU", ">Memory", ">Net in", ">Net out", ">Read", ">Write"].map(String::from));
    head.push(format!("{spark} lately"));
    let mut t = Table::owned(head);
    for row in rows.iter().skip(from).take(most) {
        let key = (row.domain.clone(), row.spec.name.clone());
        let style = match (&row.breach, row.status) {
            (Some(_), _) => Style::Bad,
            (None, FeatureStatus::Running | FeatureStatus::Moving) => Style::Plain,
            _ => Style::Dim,
        };
        let status = serde_json::to_value(row.status).ok();
        let status = status.as_ref().and_then(|s| s.as_str()).unwrap_or("-");
        let mut cells: Vec<Cell> = vec![
            Cell::styled(&row.domain, style),
            Cell::styled(row.spec.name.as_str(), style),
            status.into(),
        ];
        cells.extend(Resource::ALL.map(|r| Cell::from(value(r, now(row, r)))));
        cells.push(sparkline(&recent.values(&key), SPARK).into());
        t.row(cells);
    }
    t.write(out, screen)
}

#[cfg(test)]
mod tests {
    use super::super::testing::text;
    use super::*;
    use crate::feature::{FeatureSpec, Workload};
    use crate::usage::Usage;

    fn row(name: &str, cpu: Option<f64>, status: FeatureStatus) -> FeatureRow {
        let unit = format!("{name}.service");
        FeatureRow {
            host: "h1".into(),
            domain: "g1".into(),
            spec: FeatureSpec::new(FeatureName::new(name).unwrap(), Workload::Unit { unit }),
            status,
            usage: Some(Usage {
                cpu_percent: cpu,
                ..Usage::default()
            }),
            breach: None,
            metered: crate::host::Metering::default(),
        }
    }

    #[test]
    fn the_greatest_first_and_the_unavailable_last() {
        use FeatureStatus::{Running, Stopped};
        let mut rows = vec![
            row("a", Some(1.0), Running),
            row("b", None, Running),
            row("c", Some(50.0), Running),
            row("d", Some(99.0), Stopped),
        ];
        let names =
            |rows: &[FeatureRow]| -> String { rows.iter().map(|r| r.spec.name.as_str()).collect() };
        sort(&mut rows, Sort::By(Resource::Cpu), false);
        assert_eq!(names(&rows), "cabd");
        sort(&mut rows, Sort::Name, true);
        assert_eq!(names(&rows), "dcba");
        assert_eq!(Sort::parse("net_rx"), Some(Sort::By(Resource::NetRx)));
        assert_eq!(Sort::parse("name"), Some(Sort::Name));
        assert_eq!(Sort::parse("x"), None);
    }

    #[test]
    fn a_page_with_sparklines() {
        let rows = vec![
            row("a", Some(1.0), FeatureStatus::Running),
            row("b", Some(2.0), FeatureStatus::Running),
        ];
        let mut recent = Recent::default();
        let key = ("g1".to_owned(), FeatureName::new("b").unwrap());
        for n in 0..100 {
            recent.push(&key, n, Some(n as f64));
            recent.push(&key, n, Some(7.0));
        }
        assert_eq!(recent.values(&key).len(), SPARK);
        assert!(recent.knows(&key));
        let out = text(|o, s| top(o, &rows, (1, 5), (&recent, Resource::Cpu), s));
        let lines: Vec<&str> = out.lines().collect();
        assert_eq!(lines.len(), 2, "{out}");
        assert!(lines[0].ends_with("cpu lately"), "{out}");
        assert!(
            lines[1].contains("2.0 %") && lines[1].ends_with('█'),
            "{out}"
        );
    }
}
