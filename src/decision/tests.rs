//! Decisions of small clusters, one situation each, and makers of clusters for other tests.

use super::*;
use crate::affinity::{ScoreInput, Settings, UsageWindow};
use crate::api::{Destination, Plan};
use crate::feature::{FeatureSpec, Managed, Workload};
use crate::host::{
    FeatureState, FeatureStatus, GuestCapabilities, HelperState, HostCapabilities, HostLoad,
    InstanceState, StorageKind,
};
use crate::usage::Usage;

pub(super) fn name(n: &str) -> FeatureName {
    FeatureName::new(n).unwrap()
}

pub(super) fn feature(n: &str, address: &str) -> FeatureState {
    FeatureState {
        spec: FeatureSpec::new(
            name(n),
            Workload::Managed(Managed::new(
                vec!["/bin/true".into()],
                address.parse().unwrap(),
            )),
        ),
        status: FeatureStatus::Running,
        usage: None,
    }
}

pub(super) fn guest(domain: &str) -> InstanceState {
    InstanceState {
        vcpus: 1.0,
        memory_mib: 512.0,
        memory_available_mib: Some(400.0),
        cpus_used: 0.05,
        capabilities: Some(GuestCapabilities {
            kernel: "6.12.0".into(),
            criu: "4.0".into(),
            criu_problem: String::new(),
            cpu_flags: "abc".into(),
            systemd: "257".into(),
        }),
        ..InstanceState::new(domain)
    }
}

pub(super) fn host(n: &str, cpus_used: f64) -> HostState {
    HostState {
        at_ms: 1_000_000,
        capabilities: HostCapabilities {
            cpu_model: "Skylake".into(),
            cpus: 4.0,
            memory_mib: 4096.0,
            network_mbps: 1000.0,
            storage: StorageKind::Ssd,
            virt_type: "kvm".into(),
        },
        load: HostLoad {
            cpus_used,
            memory_used_mib: 512.0,
            ..HostLoad::default()
        },
        instances: vec![guest(&format!("{n}-g"))],
        ..HostState::new(n)
    }
}

/// `a` is busy and has the feature, which takes most of its guest; `b` and `c` are not.
pub(super) fn view() -> View {
    let mut hosts = vec![host("a", 3.0), host("b", 0.5), host("c", 1.0)];
    hosts[0].instances[0].cpus_used = 0.95;
    hosts[0].instances[0].features = vec![feature("cache", "192.0.2.10/24")];
    View {
        me: "a".into(),
        now_ms: 1_001_000,
        hosts,
        stale_after_ms: 10_000,
        groups: ["b", "c"]
            .map(|h| (h.to_owned(), vec!["default".to_owned()]))
            .into(),
        model: ModelInfo::default(),
    }
}

pub(super) const DEMAND: Demand = Demand {
    cpus: 0.8,
    memory_mib: 100.0,
    net_bps: 1e6,
    disk_bps: 1e6,
};

pub(super) fn breach(resource: Resource) -> Cause {
    Cause::Breach(BreachCause {
        resource,
        text: format!("{resource} is above its limit"),
    })
}

/// Decides by the real headroom score.
pub(super) fn decide_with(view: &View, policy: &Policy, cause: Cause, demand: Demand) -> Plan {
    let affinity = crate::affinity::Affinity::new(Settings::default());
    let feature = name("cache");
    let host = view.hosts.iter().find(|h| h.name == view.me);
    let domain = host
        .and_then(|h| {
            h.instances.iter().find(|i| {
                i.features
                    .iter()
                    .any(|f| f.spec.name == feature && f.status != FeatureStatus::Disabled)
            })
        })
        .map_or("none", |i| &i.domain);
    let ask = Ask::new(domain, &feature, cause, demand);
    decide(view, policy, &ask, &|host, instance| {
        affinity.score(&ScoreInput {
            host,
            instance,
            feature: &feature,
            window: &UsageWindow::default(),
            demand,
        })
    })
}

fn plan(view: &View, cause: Cause) -> Plan {
    decide_with(view, &Policy::default(), cause, DEMAND)
}

fn manual(host: Option<&str>, domain: Option<&str>) -> Cause {
    Cause::Manual {
        to: Destination {
            host: host.map(Into::into),
            domain: domain.map(Into::into),
            method: None,
        },
    }
}

fn chosen(p: &Plan) -> &str {
    p.chosen.map_or("-", |i| &p.candidates[i].host)
}

/// Refusals of a host as one text.
fn why(p: &Plan, host: &str) -> String {
    let c = p.candidates.iter().find(|c| c.host == host).unwrap();
    assert!(c.score.is_none());
    c.refusals.join("; ")
}

#[test]
fn moves_to_the_idle_host_with_reasons() {
    let p = plan(&view(), breach(Resource::Cpu));
    assert_eq!((p.outcome.as_str(), chosen(&p)), ("move", "b"), "{p:#?}");
    assert!(p.reason.contains("cpu is above its limit"), "{}", p.reason);
    assert!(p.reason.contains("guest b-g on host b"), "{}", p.reason);
    assert_eq!(p.candidates.len(), 3);
    assert!(why(&p, "a").contains("on this host"));
    for c in &p.candidates[..2] {
        let names: Vec<_> = c.parts.iter().map(|p| p.0.as_str()).collect();
        assert_eq!(names[..4], ["affinity", "balance", "relief", "headroom"]);
        assert!(c.parts.iter().all(|p| (0.0..=1.0).contains(&p.1)));
    }
}

#[test]
fn preview_follows_the_breach() {
    let p = plan(&view(), Cause::Preview { breach: None });
    assert_eq!((p.outcome.as_str(), chosen(&p)), ("no_breach", "-"));
    assert!(
        p.reason.contains("would best go to guest b-g"),
        "{}",
        p.reason
    );
    let Cause::Breach(b) = breach(Resource::Cpu) else {
        unreachable!()
    };
    let p = plan(&view(), Cause::Preview { breach: Some(b) });
    assert_eq!((p.outcome.as_str(), chosen(&p)), ("move", "b"));
}

/// Changes host b (all others draining) and expects no eligible host and this refusal.
fn refused(change: impl FnOnce(&mut View), expected: &str) {
    let mut v = view();
    v.hosts[2].accepts = false;
    change(&mut v);
    let p = plan(&v, breach(Resource::Cpu));
    assert_eq!(p.outcome, "no_eligible_host", "{expected}: {p:#?}");
    assert!(
        why(&p, "b").contains(expected),
        "{expected}: {}",
        why(&p, "b")
    );
    assert!(p.reason.len() > 30, "{}", p.reason);
}

#[test]
fn every_refusal_names_its_reason() {
    let b = |v: &mut View, f: fn(&mut InstanceState)| f(&mut v.hosts[1].instances[0]);
    let own = |v: &mut View, f: fn(&mut FeatureState)| f(&mut v.hosts[0].instances[0].features[0]);
    let caps = |v: &mut View, f: fn(&mut GuestCapabilities)| {
        f(v.hosts[1].instances[0].capabilities.as_mut().unwrap());
    };
    refused(|v| v.hosts[1].accepts = false, "draining");
    refused(|v| v.hosts[1].at_ms = 900_000, "last heard 101 s ago");
    refused(
        |v| drop(v.groups.remove("b")),
        "group 'default' is not allowed",
    );
    refused(
        |v| {
            v.hosts.remove(1);
        },
        "not been heard",
    );
    refused(|v| v.hosts[1].instances.clear(), "has no guest");
    refused(|v| b(v, |i| i.running = false), "guest b-g is not running");
    refused(
        |v| {
            b(v, |i| {
                i.helper = HelperState::Absent {
                    reason: "run drover guest install".into(),
                }
            });
        },
        "no helper: run drover guest install",
    );
    refused(
        |v| b(v, |i| i.capabilities = None),
        "not told its capabilities",
    );
    refused(|v| caps(v, |c| c.criu.clear()), "has no criu");
    refused(
        |v| caps(v, |c| c.criu_problem = "no TCP repair".into()),
        "no TCP repair",
    );
    refused(|v| caps(v, |c| c.kernel = "6.1".into()), "has kernel 6.1");
    refused(|v| caps(v, |c| c.cpu_flags = "x".into()), "other CPU flags");
    refused(|v| v.hosts[1].load.cpus_used = 3.0, "0.60 CPUs free beside");
    refused(|v| v.hosts[1].reserved_cpus = 2.5, "0.60 CPUs free beside");
    refused(
        |v| v.hosts[1].load.memory_used_mib = 3600.0,
        "86 MiB free beside its reserve, 100 MiB are needed",
    );
    refused(
        |v| b(v, |i| i.cpus_used = 0.6),
        "guest b-g has 0.50 CPUs free",
    );
    refused(
        |v| b(v, |i| i.memory_available_mib = Some(100.0)),
        "guest b-g has 90 MiB free",
    );
    refused(|v| b(v, |i| i.memory_available_mib = None), "does not tell");
    refused(
        |v| {
            let mut f = feature("cache", "192.0.2.99/24");
            f.status = FeatureStatus::Disabled;
            v.hosts[1].instances[0].features.push(f);
        },
        "feature of this name",
    );
    refused(
        |v| {
            let f = feature("other", "192.0.2.10/16");
            v.hosts[2].instances[0].features.push(f);
        },
        "192.0.2.10/24 is in use by feature 'other' in guest c-g on host c",
    );
    refused(
        |v| own(v, |f| f.status = FeatureStatus::Moving),
        "under way already",
    );
    refused(
        |v| own(v, |f| f.status = FeatureStatus::Stopped),
        "not running",
    );
    refused(
        |v| own(v, |f| f.spec.workload = Workload::Unit { unit: "x".into() }),
        "cannot be moved",
    );
    refused(
        |v| {
            v.hosts[0].instances[0].helper = HelperState::Absent {
                reason: "gone".into(),
            };
        },
        "own guest does not answer: gone",
    );
}

#[test]
fn nothing_to_go_to() {
    let mut v = view();
    v.hosts.truncate(1);
    v.groups.clear();
    let p = plan(&v, breach(Resource::Cpu));
    assert_eq!(p.outcome, "no_eligible_host");
    assert!(p.reason.contains("no other host is known"), "{}", p.reason);
    v.hosts[0].instances.clear();
    let p = plan(&v, breach(Resource::Cpu));
    assert!(p.reason.contains("there is no feature 'cache'"));
}

#[test]
fn no_beneficial_move() {
    // Everywhere as busy as here.
    let mut v = view();
    for h in &mut v.hosts[1..] {
        h.load.cpus_used = 2.2;
        h.instances[0].cpus_used = 0.15;
    }
    let p = plan(&v, breach(Resource::Cpu));
    assert_eq!(
        (p.outcome.as_str(), chosen(&p)),
        ("no_beneficial_move", "-")
    );
    assert!(p.reason.contains("less pressed for cpu"), "{}", p.reason);
    assert!(p.candidates[0].score.is_some(), "candidates are shown");
    // Idle CPU elsewhere does not help a breach of memory that is as scarce there.
    let mut v = view();
    for h in &mut v.hosts[1..] {
        h.load.memory_used_mib = 3000.0;
        h.instances[0].memory_available_mib = Some(200.0);
    }
    let p = plan(&v, breach(Resource::Memory));
    assert_eq!(p.outcome, "no_beneficial_move");
    assert!(p.reason.contains("less pressed for memory"), "{}", p.reason);
    // A gain that is too small.
    let policy = Policy {
        min_gain: 0.9,
        ..Policy::default()
    };
    let p = decide_with(&view(), &policy, breach(Resource::Cpu), DEMAND);
    assert_eq!(p.outcome, "no_beneficial_move");
    assert!(p.reason.contains("does not gain 0.90"), "{}", p.reason);
}

/// The host is busy with others: the guest counts a whole CPU, of which it gets 0.3.
#[test]
fn stolen_time_does_not_keep_a_feature_where_it_is() {
    let point = |host_cpu_percent| Usage {
        dt_s: 1.0,
        cpu_percent: Some(95.0),
        host_cpu_percent,
        memory_mib: Some(100.0),
        ..Usage::default()
    };
    let mut v = view();
    v.hosts.truncate(2);
    (v.hosts[0].load.cpus_used, v.hosts[0].instances[0].cpus_used) = (1.6, 0.6);
    v.hosts[1].load.cpus_used = 0.1;
    let decide = |share| {
        let demand = UsageWindow::of(&[point(share)]).demand();
        decide_with(&v, &Policy::default(), breach(Resource::Cpu), demand)
    };
    assert_eq!(decide(Some(30.0)).target().map(|c| &*c.host), Some("b"));
    // By the guest's count it would ask for more than the busy host has measured of all.
    let p = decide(None);
    assert!(p.reason.contains("no host is less pressed"), "{}", p.reason);
}

#[test]
fn automatic_off_still_shows_where() {
    let off = Policy {
        automatic: false,
        ..Policy::default()
    };
    let p = decide_with(&view(), &off, breach(Resource::Cpu), DEMAND);
    assert_eq!(
        (p.outcome.as_str(), chosen(&p)),
        ("no_beneficial_move", "-")
    );
    assert!(
        p.reason.contains("it would go to guest b-g"),
        "{}",
        p.reason
    );
    let mut v = view();
    v.hosts[0].instances[0].features[0].spec.automatic = false;
    let p = plan(&v, breach(Resource::Cpu));
    assert!(
        p.reason.contains("definition does not allow"),
        "{}",
        p.reason
    );
    let p = decide_with(&v, &off, manual(Some("c"), None), DEMAND);
    assert_eq!((p.outcome.as_str(), chosen(&p)), ("move", "c"), "by hand");
}

#[test]
fn cooldown_holds_breaches_only() {
    let v = view();
    let feature = name("cache");
    let ask = |cause, last| Ask {
        last_moved_ms: Some(last),
        ..Ask::new("a-g", &feature, cause, DEMAND)
    };
    let run = |ask: &Ask<'_>| {
        decide(&v, &Policy::default(), ask, &|h, _| Score {
            value: if h.name == "a" { 0.1 } else { 0.9 },
            ..Score::default()
        })
    };
    let p = run(&ask(breach(Resource::Cpu), v.now_ms - 20_000));
    assert_eq!(p.outcome, "no_beneficial_move");
    assert!(p.reason.contains("another 40 s"), "{}", p.reason);
    let p = run(&ask(breach(Resource::Cpu), v.now_ms - 60_000));
    assert_eq!(p.outcome, "move");
    let p = run(&ask(manual(None, None), v.now_ms - 1));
    assert_eq!(p.outcome, "move");
}

#[test]
fn by_hand() {
    // To the worse host: no gain needed.
    let p = plan(&view(), manual(Some("c"), Some("c-g")));
    assert_eq!((p.outcome.as_str(), chosen(&p)), ("move", "c"));
    assert!(why(&p, "b").contains("another host or guest was asked for"));
    let p = plan(&view(), manual(Some("c"), Some("nope")));
    assert_eq!(p.outcome, "no_eligible_host");
    let p = plan(&view(), manual(Some("x"), None));
    assert!(why(&p, "x").contains("not known"));
    assert!(
        p.reason.contains("x: the host is not known"),
        "{}",
        p.reason
    );
    let p = plan(&view(), manual(Some("a"), None));
    assert!(p.reason.contains("on that host already"), "{}", p.reason);
    let p = plan(&view(), manual(None, None));
    assert_eq!((p.outcome.as_str(), chosen(&p)), ("move", "b"));

    // CPU is a warning, memory is not.
    let mut v = view();
    v.hosts[1].load.cpus_used = 3.2;
    let p = plan(&v, manual(Some("b"), None));
    assert_eq!((p.outcome.as_str(), chosen(&p)), ("move", "b"));
    assert!(p.reason.contains("CPU is short there"), "{}", p.reason);
    let part = p.candidates[0].parts.iter().find(|p| p.0 == "cpu_capacity");
    assert!((part.unwrap().1 - 0.5).abs() < 1e-9, "{part:?}");
    v.hosts[1].instances[0].memory_available_mib = Some(50.0);
    let p = plan(&v, manual(Some("b"), None));
    assert_eq!(p.outcome, "no_eligible_host");
}

#[test]
fn best_guest_of_a_host() {
    let mut v = view();
    let mut better = guest("b-h");
    better.vcpus = 4.0;
    v.hosts[1].instances.push(better);
    let mut broken = guest("b-a");
    broken.running = false;
    v.hosts[1].instances.push(broken);
    let p = plan(&v, breach(Resource::Cpu));
    assert_eq!(p.candidates[0].domain, "b-h");
}

#[test]
fn pressed_use_is_noted() {
    let mut v = view();
    v.hosts[0].instances[0].cpus_used = 1.0;
    let demand = Demand {
        cpus: 0.98,
        ..DEMAND
    };
    let p = decide_with(&v, &Policy::default(), breach(Resource::Cpu), demand);
    assert_eq!(p.outcome, "move", "an idle guest of the same size takes it");
    assert!(
        p.reason.contains("all of its guest's 1 vCPU"),
        "{}",
        p.reason
    );
}

#[test]
fn rules_of_the_definition() {
    use crate::rules::Rules;
    let with = |change: &dyn Fn(&mut Rules, &mut View)| {
        let mut v = view();
        let mut rules = Rules::default();
        change(&mut rules, &mut v);
        v.hosts[0].instances[0].features[0].spec.placement = Some(Box::new(rules));
        plan(&v, breach(Resource::Cpu))
    };
    let p = with(&|r, _| r.pin = vec!["c".into()]);
    assert_eq!(chosen(&p), "c");
    assert!(why(&p, "b").contains("pinned to c"), "{}", why(&p, "b"));
    let p = with(&|r, _| r.exclude = vec!["b".into()]);
    assert_eq!(chosen(&p), "c");
    assert!(why(&p, "b").contains("excludes"), "{}", why(&p, "b"));
    let p = with(&|r, v| {
        r.labels = [("disk".to_owned(), "fast".to_owned())].into();
        v.hosts[2].labels = [("disk".to_owned(), "fast".to_owned())].into();
    });
    assert_eq!(chosen(&p), "c");
    let b = why(&p, "b");
    assert!(b.contains("disk = fast") && b.contains("has none"), "{b}");
    let put = |v: &mut View, n: usize, f: &str| {
        let address = format!("192.0.2.{}/24", 50 + n);
        v.hosts[n].instances[0].features.push(feature(f, &address));
    };
    let p = with(&|r, v| {
        r.apart = vec![name("db")];
        put(v, 1, "db");
    });
    assert_eq!(chosen(&p), "c");
    assert!(why(&p, "b").contains("'db' is there"), "{}", why(&p, "b"));
    // It holds for both, whoever says so.
    let p = with(&|_, v| {
        put(v, 1, "db");
        v.hosts[1].instances[0].features[0].spec.placement = Some(Box::new(Rules {
            apart: vec![name("cache")],
            ..Rules::default()
        }));
    });
    assert_eq!(chosen(&p), "c");
    // Nearness is a wish: it tips the scales towards the busier host.
    let p = with(&|r, v| {
        r.near = vec![name("db")];
        put(v, 2, "db");
    });
    assert_eq!(chosen(&p), "c");
    assert!(
        p.candidates
            .iter()
            .any(|c| c.parts.contains(&("near".into(), 1.0)))
    );
    let p = with(&|_, v| v.hosts[1].moves_in = 4);
    assert_eq!(chosen(&p), "c");
    assert!(
        why(&p, "b").contains("4 moves to the host"),
        "{}",
        why(&p, "b")
    );
}

#[test]
fn the_more_careful_mode_holds() {
    use crate::rules::Mode;
    let mut v = view();
    let p = plan(&v, breach(Resource::Cpu));
    assert_eq!(p.mode, Mode::Act);
    v.hosts[0].instances[0].features[0].spec.placement = Some(Box::new(crate::rules::Rules {
        mode: Some(Mode::Advise),
        ..crate::rules::Rules::default()
    }));
    assert_eq!(plan(&v, breach(Resource::Cpu)).mode, Mode::Advise);
    let policy = Policy {
        mode: Mode::Shadow,
        ..Policy::default()
    };
    let p = decide_with(&v, &policy, breach(Resource::Cpu), DEMAND);
    assert_eq!((p.mode, chosen(&p)), (Mode::Shadow, "b"));
}

#[test]
fn drained_without_gain() {
    let mut v = view();
    for h in &mut v.hosts[1..] {
        h.load.cpus_used = 2.7;
    }
    assert_eq!(
        plan(&v, breach(Resource::Cpu)).outcome,
        "no_beneficial_move"
    );
    let off = Policy {
        automatic: false,
        ..Policy::default()
    };
    let p = decide_with(&v, &off, Cause::Drain, DEMAND);
    assert_eq!(p.outcome, "move");
    assert!(p.reason.contains("host a is drained"), "{}", p.reason);
    v.hosts[1].load.cpus_used = 3.0;
    v.hosts[2].load.cpus_used = 3.0;
    let p = decide_with(&v, &off, Cause::Drain, DEMAND);
    assert_eq!(p.outcome, "no_eligible_host", "capacity counts");
}

#[test]
fn moves_that_did_not_help_make_it_patient() {
    let v = {
        let mut v = view();
        v.hosts[2].outcomes = vec![crate::host::MoveOutcome {
            feature: name("cache"),
            from: "b".into(),
            to: "a".into(),
            at_ms: 900_000,
            gain: -0.1,
            helped: false,
            fruitless: 2,
        }];
        v
    };
    let feature = name("cache");
    let run = |ago: i64, there: f64| {
        let ask = Ask {
            last_moved_ms: Some(v.now_ms - ago),
            ..Ask::new("a-g", &feature, breach(Resource::Cpu), DEMAND)
        };
        decide(&v, &Policy::default(), &ask, &|h, _| Score {
            value: match h.name.as_str() {
                "a" => 0.5,
                "b" => there,
                _ => 0.0,
            },
            ..Score::default()
        })
    };
    let p = run(100_000, 0.9);
    assert_eq!(p.outcome, "no_beneficial_move");
    assert!(
        p.reason.contains("last 2 moves did not help"),
        "{}",
        p.reason
    );
    assert!(p.reason.contains("another 140 s"), "{}", p.reason);
    assert_eq!(chosen(&run(240_000, 0.9)), "b");
    // Back to where it came from only for twice the gain, until long after.
    let gain = |p: &Plan| p.candidates[0].score.unwrap() - p.stay_score;
    let (soon, late) = (run(300_000, 0.48), run(700_000, 0.48));
    let g = gain(&soon);
    assert!(g > 0.06 && g < 0.09, "{g}");
    assert_eq!(soon.outcome, "no_beneficial_move");
    assert_eq!(late.outcome, "move");
}

#[test]
fn a_move_that_costs_much_must_gain_much() {
    let v = view();
    let feature = name("cache");
    let run = |dirty_bps| {
        let ask = Ask {
            past: Past {
                bandwidth_bps: 2e5,
                dirty_bps,
                ..Past::default()
            },
            ..Ask::new("a-g", &feature, breach(Resource::Cpu), DEMAND)
        };
        let policy = Policy {
            cost_weight: 0.9,
            ..Policy::default()
        };
        decide(&v, &policy, &ask, &|h, _| Score {
            value: if h.name == "a" { 0.5 } else { 0.9 },
            ..Score::default()
        })
    };
    let p = run(1e5);
    assert_eq!(p.outcome, "no_beneficial_move", "{}", p.reason);
    assert!(p.reason.contains("the move's cost"), "{}", p.reason);
    assert!(p.cost.unwrap().seconds > 300.0);
}

#[test]
fn the_target_looks_again() {
    let policy = Policy::default();
    let mut h = host("b", 0.5);
    let admit = |h: &HostState, by_hand| {
        super::admit(h, "b-g", &DEMAND, &policy, by_hand)
            .err()
            .map(|r| r[0].to_string())
            .unwrap_or_default()
    };
    assert_eq!(admit(&h, false), "");
    // What was promised to another counts, in the guest and on the host.
    h.instances[0].reserved_cpus = 0.8;
    assert!(admit(&h, false).contains("guest b-g has"));
    assert_eq!(admit(&h, true), "");
    h.instances[0].reserved_memory_mib = 300.0;
    assert!(admit(&h, true).contains("MiB free"));
    h.accepts = false;
    assert!(admit(&h, true).contains("draining"));
    assert!(super::admit(&host("b", 0.0), "no", &DEMAND, &policy, true).is_err());
}

#[test]
fn matrix_of_all_guests() {
    let mut v = view();
    v.hosts[2].instances[0]
        .capabilities
        .as_mut()
        .unwrap()
        .kernel = "6.1".into();
    v.hosts[1].instances.push(guest("b-h"));
    v.hosts[1].instances[0].memory_available_mib = Some(0.0);
    let cells = matrix(&v, None);
    let ok: Vec<_> = cells
        .iter()
        .map(|c| (c.domain.as_str(), c.refusals.is_empty()))
        .collect();
    assert_eq!(ok, [("b-g", true), ("b-h", true), ("c-g", false)]);
    assert!(cells[2].refusals[0].contains("kernel 6.1"));
    assert!(matrix(&v, Some(&name("other"))).is_empty());
    // A feature elsewhere, against this host.
    v.hosts[1].instances[1].features = vec![feature("db", "192.0.2.44/24")];
    let cells = matrix(&v, Some(&name("db")));
    assert_eq!(cells.len(), 2);
    assert!(
        cells[0].host == "a" && cells[0].refusals.is_empty(),
        "{cells:?}"
    );
}

#[test]
fn a_recorded_decision_is_made_again() {
    let affinity = crate::affinity::Affinity::new(Settings::default());
    let feature = name("cache");
    let window = UsageWindow::default();
    let score = |host: &HostState, instance: &InstanceState| {
        affinity.score(&ScoreInput {
            host,
            instance,
            feature: &feature,
            window: &window,
            demand: DEMAND,
        })
    };
    let mut v = view();
    if let Workload::Managed(m) = &mut v.hosts[0].instances[0].features[0].spec.workload {
        m.environment.insert("PASSWORD".into(), "secret".into());
    }
    let ask = Ask::new("a-g", &feature, breach(Resource::Cpu), DEMAND);
    let (mut plan, inputs) = Inputs::record(v, Policy::default(), &ask, &ByFn(&score));
    plan.id = "1".into();
    let text = serde_json::to_string(&inputs).unwrap();
    assert!(
        !text.contains("secret") && !text.contains("/bin/true"),
        "{text}"
    );
    let back: Inputs = serde_json::from_str(&text).unwrap();
    let replay = back.replay(&plan);
    assert_eq!(replay.plan, plan);
    assert!(replay.same);
    plan.chosen = None;
    assert!(!back.replay(&plan).same, "another answer is noticed");
}
