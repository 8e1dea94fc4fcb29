//! The analytic score: capacity left once the feature is there. It counts until a model has
//! learnt enough, and then as its counterweight.

use super::input::After;

/// Fraction of a capacity in use at which a resource's part is one half.
const HALF_AT: f64 = 0.9;

/// The score and its parts.
#[derive(Debug, Clone, PartialEq)]
pub struct Headroom {
    /// 0 to 1; the scarcest resource counts most.
    pub value: f64,
    /// Per resource, 0 to 1.
    pub parts: Vec<(&'static str, f64)>,
}

/// One resource: near 1 while it is mostly free, one half at 90 % use, never quite 0, so that
/// even among overcommitted hosts the less crowded one wins.
fn part(used: f64) -> f64 {
    1.0 / (1.0 + (used / HALF_AT).powi(4))
}

fn used(after: &After) -> [(&'static str, Option<f64>); 6] {
    [
        ("host_cpu", Some(after.host_cpu)),
        ("host_memory", Some(after.host_memory)),
        ("guest_cpu", Some(after.guest_cpu)),
        ("guest_memory", after.guest_memory),
        ("host_net", Some(after.host_net)),
        ("host_disk", Some(after.host_disk)),
    ]
}

/// The score alone. Unknown resources do not count.
pub fn value(after: &After) -> f64 {
    // Power mean with a large negative exponent: a smooth minimum.
    let (mut n, mut sum): (f64, f64) = (0.0, 0.0);
    for (_, u) in used(after) {
        if let Some(u) = u {
            n += 1.0;
            sum += part(u).powi(-8);
        }
    }
    (sum / n).powf(-0.125).clamp(0.0, 1.0)
}

/// The score and its parts.
pub fn score(after: &After) -> Headroom {
    let parts = used(after).into_iter();
    Headroom {
        value: value(after),
        parts: parts
            .filter_map(|(name, used)| used.map(|u| (name, part(u))))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn after(host_cpu: f64, guest_cpu: f64, memory: f64) -> After {
        After {
            host_cpu,
            host_memory: memory,
            guest_cpu,
            guest_memory: None,
            host_net: 0.0,
            host_disk: 0.0,
            host_disk_bps: 0.0,
        }
    }

    #[test]
    fn scarcest_counts() {
        let free = score(&after(0.1, 0.1, 0.1)).value;
        let full = score(&after(0.1, 0.1, 1.0)).value;
        assert!(free > 0.99, "{free}");
        assert!(full < 0.5, "{full}");
        let part = score(&after(0.1, 0.1, 1.0)).parts[1];
        assert_eq!(part.0, "host_memory");
        assert!((part.1 - 0.396).abs() < 0.001);
    }

    proptest! {
        #[test]
        fn bounded_and_decreasing(a in 0.0f64..100.0, b in 0.0f64..3.0, c in 0.0f64..3.0) {
            let s = score(&after(a, b, c)).value;
            prop_assert!((0.0..=1.0).contains(&s));
            let more = score(&after(a + 0.1, b, c)).value;
            prop_assert!(more <= s + 1e-12);
        }
    }
}
