//! A private bus and a daemon behind it that exists only as data.
#![allow(clippy::unwrap_used, reason = "a test that cannot set up must fail")]

use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use drover::api::{
    Api, ApiError, ApiEvent, Candidate, Changed, Destination, FeatureForecast, FeatureRow, Job,
    JobResult, ModelInfo, Plan, Reloaded, Result, RoundRow, SeriesForecast,
};
use drover::dbus::{Access, Service, serve_with};
use drover::decision::{
    Answer, Ask, ByFn, Cause, Cell, Check, CheckedTarget, Cost, DecisionRecord, DecisionRow,
    Demand, DrainStatus, Effect, HostScore, Inputs, Left, Policy, Replay, Score, ScoreReport, View,
};
use drover::feature::{FeatureName, FeatureSpec, Threshold};
use drover::host::{
    FeatureState, FeatureStatus, HelperState, HostCapabilities, HostLoad, HostState, InstanceState,
    StorageKind,
};
use drover::reason::{Code, Reason, Rehearsal};
use drover::rules::Mode;
use drover::usage::Usage;
use tokio::sync::broadcast;

/// A bus of one test; ended by its process id.
pub struct Bus {
    child: Child,
    pub address: String,
    _dir: tempfile::TempDir,
}

impl Bus {
    /// Starts a dbus-daemon that lets every user in.
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        // Other users must reach the socket.
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let config = dir.path().join("bus.conf");
        let text = format!(
            r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>session</type>
  <listen>unix:path={}/bus</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_destination="*"/>
    <allow receive_sender="*"/>
  </policy>
</busconfig>
"#,
            dir.path().display()
        );
        std::fs::write(&config, text).unwrap();
        let mut child = Command::new("dbus-daemon")
            .arg(format!("--config-file={}", config.display()))
            .args(["--print-address", "--nofork"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("dbus-daemon is needed: install the package dbus");
        let mut address = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut address)
            .unwrap();
        Self {
            child,
            address: address.trim().to_owned(),
            _dir: dir,
        }
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// What the fake was asked to do, in order.
pub type Calls = Arc<Mutex<Vec<String>>>;

/// The daemon as data.
pub struct Fake {
    pub calls: Calls,
    pub events: broadcast::Sender<ApiEvent>,
    pub features: Mutex<Vec<FeatureRow>>,
    pub jobs: Mutex<VecDeque<Job>>,
    pub draining: Mutex<bool>,
    /// How emptying the host stands, if not as by default.
    pub drain: Mutex<Option<DrainStatus>>,
}

pub fn name(s: &str) -> FeatureName {
    FeatureName::new(s).unwrap()
}

pub fn usage(at_ms: i64) -> Usage {
    Usage {
        at_ms,
        dt_s: 1.0,
        cpu_percent: Some(42.5),
        memory_mib: Some(64.0),
        net_rx_bps: Some(2048.0),
        psi_cpu_percent: Some(1.5),
        ..Usage::default()
    }
}

pub fn unit(feature: &str) -> FeatureSpec {
    serde_json::from_value(serde_json::json!({
        "name": feature, "workload": {"kind": "unit", "unit": "nginx.service"}
    }))
    .unwrap()
}

/// A feature whose arguments and environment hold a secret.
pub fn managed(feature: &str, secret: &str) -> FeatureSpec {
    serde_json::from_value(serde_json::json!({
        "name": feature,
        "workload": {
            "kind": "managed", "address": "192.0.2.1/24",
            "exec": ["/bin/db", format!("--password={secret}")],
            "environment": {"TOKEN": secret},
        }
    }))
    .unwrap()
}

pub fn plan(feature: &str) -> Plan {
    Plan {
        domain: "web".into(),
        feature: name(feature),
        host: "alpha".into(),
        outcome: "move".into(),
        reason: "beta/web2 scores 0.81, staying 0.40".into(),
        chosen: Some(0),
        stay_score: 0.4,
        candidates: vec![
            Candidate {
                host: "beta".into(),
                domain: "web2".into(),
                score: Some(0.81),
                parts: vec![("headroom".into(), 0.9), ("affinity".into(), 0.72)],
                refusals: vec![],
            },
            Candidate {
                host: "gamma".into(),
                domain: String::new(),
                score: None,
                parts: vec![],
                refusals: vec!["no guest with the helper runs there".into()],
            },
        ],
        model: ModelInfo {
            kind: "headroom".into(),
            rows: 12,
            ..ModelInfo::default()
        },
        ..Plan::new("web", name(feature), "alpha")
    }
}

/// A recorded decision that proposes a move.
pub fn decision() -> DecisionRecord {
    let view = View {
        me: "alpha".into(),
        now_ms: 1_760_000_000_000,
        hosts: vec![HostState::new("alpha")],
        stale_after_ms: 1,
        groups: [("beta".to_owned(), vec![])].into(),
        model: ModelInfo::default(),
    };
    let feature = name("cache");
    let ask = Ask::new("web", &feature, Cause::Drain, Demand::default());
    let none = |_: &HostState, _: &InstanceState| Score::default();
    let (mut plan, inputs) = Inputs::record(view, Policy::default(), &ask, &ByFn(&none));
    plan.id = "0a1b2c3d4e5f".into();
    DecisionRecord {
        row: DecisionRow {
            id: plan.id.clone(),
            at_ms: 1_760_000_000_000,
            domain: "web".into(),
            feature: feature.clone(),
            outcome: "move".into(),
            reason: "cpu is 93 %".into(),
            mode: Mode::Advise,
            to: Some(("beta".into(), "web2".into())),
            answer: Answer::Proposed,
            move_id: None,
            for_breach: true,
            resource: None,
            effect: Effect::default(),
            judged_ms: 0,
        },
        plan,
        inputs,
    }
}

pub fn forecast(feature: &str) -> FeatureForecast {
    let now = 1_760_000_000_000;
    let steps = (1..=120).map(|i| drover::forecast::Step {
        at_ms: now + i * 10_000,
        p10: 60.0,
        p50: 70.0 + i as f64 * 0.25,
        p90: 80.0 + i as f64 * 0.25,
    });
    FeatureForecast {
        host: "alpha".into(),
        domain: "web".into(),
        feature: name(feature),
        at_ms: now,
        confidence: 0.8,
        lead_s: 300.0,
        breach: None,
        series: vec![
            SeriesForecast {
                threshold: Some(drover::threshold::parse("cpu > 90 % for 10 s").unwrap()),
                method: Some("damped smoothing".into()),
                mae: Some(3.25),
                mase: Some(0.8125),
                step_s: 10.0,
                points: 240,
                expected: Some("forecast: cpu is expected above 90.0 % in 4 min".into()),
                steps: steps.collect(),
                ..SeriesForecast::default()
            },
            SeriesForecast {
                resource: drover::feature::Resource::Memory,
                problem: Some("too little history".into()),
                ..SeriesForecast::default()
            },
        ],
    }
}

pub fn job(id: &str, feature: &str) -> Job {
    Job {
        id: id.into(),
        feature: name(feature),
        from_host: "alpha".into(),
        from_domain: "web".into(),
        to_host: "beta".into(),
        to_domain: "web2".into(),
        cause: "manual".into(),
        state: "preparing".into(),
        result: None,
        reason: None,
        rounds: 0,
        bytes_sent: 0,
        freeze_ms: None,
        started_ms: 1_760_000_000_000,
        ended_ms: None,
        history: vec![],
        detail: drover::api::MoveDetail::default(),
    }
}

/// The ends that `migrate` of the fake can have, chosen by the feature's name.
fn end_of(feature: &str) -> Option<(JobResult, Option<&'static str>)> {
    Some(match feature {
        "cache" => (JobResult::Done, None),
        "broken" => (JobResult::Failed, Some("criu: cannot dump an io_uring")),
        "slow" => (JobResult::Timeout, Some("restore took longer than 60 s")),
        "same" => (JobResult::Skipped, Some("it is there already")),
        _ => return None,
    })
}

impl Fake {
    pub fn new() -> Arc<Self> {
        let row = |feature: &str| FeatureRow {
            host: "alpha".into(),
            domain: "web".into(),
            spec: unit(feature),
            status: FeatureStatus::Running,
            usage: Some(usage(1)),
            breach: None,
            metered: drover::host::Metering {
                level: drover::host::MeterLevel::Helper,
                reason: String::new(),
            },
        };
        Arc::new(Self {
            calls: Calls::default(),
            events: broadcast::channel(64).0,
            features: Mutex::new(
                ["cache", "broken", "slow", "same", "stuck"]
                    .map(row)
                    .to_vec(),
            ),
            jobs: Mutex::default(),
            draining: Mutex::default(),
            drain: Mutex::default(),
        })
    }

    fn log(&self, what: String) {
        self.calls.lock().unwrap().push(what);
    }

    fn find(&self, domain: &str, feature: &FeatureName) -> Result<FeatureRow> {
        self.features
            .lock()
            .unwrap()
            .iter()
            .find(|r| r.domain == domain && r.spec.name == *feature)
            .cloned()
            .ok_or_else(|| ApiError::NotFound(format!("no feature '{feature}' in '{domain}'")))
    }

    /// Records a job's state and tells it.
    pub fn tell(&self, job: &Job) {
        let mut jobs = self.jobs.lock().unwrap();
        if let Some(old) = jobs.iter_mut().find(|j| j.id == job.id) {
            *old = job.clone();
        } else {
            jobs.push_front(job.clone());
        }
        drop(jobs);
        let _ = self.events.send(ApiEvent::Move { job: job.clone() });
    }
}

#[async_trait::async_trait]
impl Api for Fake {
    async fn hosts(&self) -> Vec<HostState> {
        let features = self.features.lock().unwrap();
        vec![HostState {
            at_ms: 1_760_000_000_000,
            capabilities: HostCapabilities {
                cpu_model: "EPYC".into(),
                cpus: 8.0,
                memory_mib: 16384.0,
                network_mbps: 1000.0,
                storage: StorageKind::Nvme,
                virt_type: "kvm".into(),
            },
            load: HostLoad {
                cpus_used: 2.25,
                memory_used_mib: 4096.0,
                ..HostLoad::default()
            },
            instances: vec![InstanceState {
                vcpus: 2.0,
                memory_mib: 1024.0,
                cpus_used: 0.5,
                helper: HelperState::Connected {
                    version: "0.1.0".into(),
                },
                features: features
                    .iter()
                    .map(|r| FeatureState {
                        spec: r.spec.for_peers(),
                        status: r.status,
                        usage: r.usage,
                    })
                    .collect(),
                ..InstanceState::new("web")
            }],
            ..HostState::new("alpha")
        }]
    }

    async fn features(&self) -> Vec<FeatureRow> {
        self.features.lock().unwrap().clone()
    }

    async fn register(&self, domain: &str, spec: FeatureSpec) -> Result<Changed> {
        if domain == "gone" {
            return Err(ApiError::NotFound("no domain 'gone' on this host".into()));
        }
        self.log(format!("register {domain} {}", spec.name));
        let mut rows = self.features.lock().unwrap();
        if let Some(old) = rows.iter().find(|r| r.spec.name == spec.name) {
            if old.spec == spec {
                return Ok(Changed::Already);
            }
            return Err(ApiError::Refused(format!(
                "'{domain}/{}' is enabled: disable it first",
                spec.name
            )));
        }
        rows.push(FeatureRow {
            host: "alpha".into(),
            domain: domain.into(),
            spec,
            status: FeatureStatus::Disabled,
            usage: None,
            breach: None,
            metered: drover::host::Metering {
                level: drover::host::MeterLevel::Helper,
                reason: String::new(),
            },
        });
        Ok(Changed::Done)
    }

    async fn deregister(&self, domain: &str, feature: &FeatureName) -> Result<Changed> {
        self.find(domain, feature)?;
        if feature.as_str() == "stuck" {
            return Err(ApiError::Busy("'web/stuck' is being moved".into()));
        }
        self.log(format!("deregister {domain} {feature}"));
        let mut rows = self.features.lock().unwrap();
        rows.retain(|r| r.spec.name != *feature);
        Ok(Changed::Done)
    }

    async fn set_enabled(&self, domain: &str, feature: &FeatureName, on: bool) -> Result<Changed> {
        self.find(domain, feature)?;
        self.log(format!("set_enabled {domain} {feature} {on}"));
        Ok(if on { Changed::Already } else { Changed::Done })
    }

    async fn set_thresholds(
        &self,
        domain: &str,
        feature: &FeatureName,
        thresholds: Vec<Threshold>,
    ) -> Result<Changed> {
        self.find(domain, feature)?;
        self.log(format!(
            "set_thresholds {domain} {feature} {}",
            thresholds.len()
        ));
        let mut rows = self.features.lock().unwrap();
        for r in rows.iter_mut().filter(|r| r.spec.name == *feature) {
            r.spec.thresholds.clone_from(&thresholds);
        }
        Ok(Changed::Done)
    }

    async fn history(
        &self,
        domain: &str,
        feature: &FeatureName,
        since_ms: i64,
        until_ms: i64,
        limit: usize,
    ) -> Result<Vec<Usage>> {
        self.find(domain, feature)?;
        if feature.as_str() == "slow" {
            tokio::time::sleep(std::time::Duration::from_secs(30)).await;
        }
        Ok([since_ms, i64::midpoint(since_ms, until_ms), until_ms]
            .into_iter()
            .map(usage)
            .take(limit)
            .collect())
    }

    async fn forecast(&self, domain: &str, feature: &FeatureName) -> Result<FeatureForecast> {
        self.find(domain, feature)?;
        Ok(forecast(feature.as_str()))
    }

    async fn plan(&self, domain: &str, feature: &FeatureName) -> Result<Plan> {
        self.find(domain, feature)?;
        Ok(plan(feature.as_str()))
    }

    async fn score(&self, domain: &str, feature: &FeatureName) -> Result<ScoreReport> {
        self.find(domain, feature)?;
        Ok(ScoreReport {
            domain: domain.into(),
            feature: feature.clone(),
            host: "alpha".into(),
            demand: Demand::default(),
            model: plan("cache").model,
            age_s: None,
            rows: vec![("alpha".into(), 12)],
            hosts: vec![HostScore {
                host: "beta".into(),
                domain: "web2".into(),
                here: false,
                score: Score {
                    value: 0.81,
                    parts: vec![("headroom".into(), 0.81)],
                    explain: vec![],
                },
            }],
        })
    }

    async fn matrix(&self, feature: Option<&FeatureName>) -> Result<Vec<Cell>> {
        let all = ["cache", "broken"].map(|f| Cell {
            feature: name(f),
            from: ("alpha".into(), "web".into()),
            host: "beta".into(),
            domain: "web2".into(),
            refusals: match f {
                "broken" => vec!["guest web2 has no criu; install it there".into()],
                _ => vec![],
            },
        });
        let mut all = all.to_vec();
        all.retain(|c| feature.is_none_or(|f| *f == c.feature));
        Ok(all)
    }

    async fn decisions(&self) -> Vec<DecisionRow> {
        vec![decision().row]
    }

    async fn decision(&self, id: &str) -> Result<DecisionRecord> {
        let d = decision();
        if d.row.id.starts_with(id) {
            Ok(d)
        } else {
            Err(ApiError::NotFound(format!("no decision '{id}'")))
        }
    }

    async fn replay(&self, id: &str) -> Result<Replay> {
        let d = self.decision(id).await?;
        Ok(d.inputs.replay(&d.plan))
    }

    async fn approve(&self, id: &str) -> Result<Job> {
        let d = self.decision(id).await?;
        self.log(format!("approve {}", d.row.id));
        let (host, domain) = d.row.to.unwrap();
        let to = Destination {
            host: Some(host),
            domain: Some(domain),
            method: None,
        };
        self.migrate(&d.row.domain, &d.row.feature, to).await
    }

    async fn set_drain(&self, on: bool) -> Result<DrainStatus> {
        self.log(format!("drain {on}"));
        *self.draining.lock().unwrap() = on;
        Ok(self.drain_status().await)
    }

    async fn drain_status(&self) -> DrainStatus {
        if let Some(status) = self.drain.lock().unwrap().clone() {
            return status;
        }
        let draining = *self.draining.lock().unwrap();
        let left = Left {
            domain: "web".into(),
            feature: name("same"),
            reason: "the feature is pinned to alpha (placement.pin)".into(),
            tried: true,
        };
        DrainStatus {
            host: "alpha".into(),
            draining,
            since_ms: 1_760_000_000_000,
            left: if draining { vec![left] } else { vec![] },
            ..DrainStatus::default()
        }
    }

    async fn check(&self, domain: &str, feature: &FeatureName, to: Destination) -> Result<Check> {
        self.find(domain, feature)?;
        let beta = CheckedTarget {
            host: "beta".into(),
            domain: "web2".into(),
            reasons: vec![],
        };
        let gamma = CheckedTarget {
            host: "gamma".into(),
            domain: "web3".into(),
            reasons: vec![Reason::new(Code::Kernel, "guest web3 has another kernel")],
        };
        let mut targets = vec![beta, gamma];
        targets.retain(|t| to.host.as_ref().is_none_or(|h| *h == t.host));
        Ok(Check {
            host: "alpha".into(),
            domain: domain.to_owned(),
            feature: feature.clone(),
            reasons: vec![],
            targets,
            cost: Some(Cost {
                bytes: 4e6,
                seconds: 0.5,
                freeze_ms: 200.0,
            }),
            memory_bytes: 4_000_000,
            state_bytes: 0,
            took_ms: 12,
        })
    }

    async fn rehearse(&self, domain: &str, feature: &FeatureName) -> Result<Rehearsal> {
        self.find(domain, feature)?;
        self.log(format!("rehearse {domain} {feature}"));
        Ok(Rehearsal {
            problem: None,
            bytes: 4_100_000,
            frozen_ms: 30,
            dump_ms: 40,
        })
    }

    async fn migrate(&self, domain: &str, feature: &FeatureName, to: Destination) -> Result<Job> {
        self.find(domain, feature)?;
        self.log(format!(
            "migrate {domain} {feature} {:?} {:?}",
            to.host, to.domain
        ));
        if to.host.as_deref() == Some("gamma") {
            return Err(ApiError::Refused(
                "gamma does not take 'web/cache': no guest with the helper runs there".into(),
            ));
        }
        let n = self.jobs.lock().unwrap().len();
        let mut job = job(&format!("0000000{n}-aaaa"), feature.as_str());
        self.jobs.lock().unwrap().push_front(job.clone());
        let accepted = job.clone();
        if let Some((result, reason)) = end_of(feature.as_str()) {
            let events = self.events.clone();
            tokio::spawn(async move {
                for round in 1..=2 {
                    tokio::time::sleep(std::time::Duration::from_millis(30)).await;
                    job.state = "pre-copy".into();
                    job.rounds = u32::from(round);
                    job.bytes_sent += 1_048_576;
                    job.history.push(RoundRow {
                        round,
                        bytes: 1_048_576,
                        pages_written: 256,
                        pages_skipped: 10,
                        total_ms: 30,
                    });
                    let _ = events.send(ApiEvent::Move { job: job.clone() });
                }
                tokio::time::sleep(std::time::Duration::from_millis(30)).await;
                job.state = "ended".into();
                job.result = Some(result);
                job.reason = reason.map(str::to_owned);
                job.freeze_ms = (result == JobResult::Done).then_some(37);
                job.ended_ms = Some(job.started_ms + 1500);
                let _ = events.send(ApiEvent::Move { job });
            });
        }
        Ok(accepted)
    }

    async fn job(&self, id: &str) -> Result<Job> {
        let jobs = self.jobs.lock().unwrap();
        let found = jobs.iter().find(|j| j.id == id).cloned();
        found.ok_or_else(|| ApiError::NotFound(format!("no move '{id}'")))
    }

    async fn jobs(&self) -> Vec<Job> {
        self.jobs.lock().unwrap().iter().cloned().collect()
    }

    async fn give_up(&self, id: &str) -> Result<()> {
        self.log(format!("give up {id}"));
        Ok(())
    }

    async fn abort(&self, id: &str) -> Result<()> {
        let mut job = self.job(id).await?;
        self.log(format!("abort {id}"));
        if job.state == "committed" {
            return Err(ApiError::Refused(format!(
                "move '{id}' is committed: it can only go forward"
            )));
        }
        job.state = "ended".into();
        job.result = Some(JobResult::Canceled);
        job.reason = Some("canceled by a user".into());
        job.ended_ms = Some(job.started_ms + 900);
        self.tell(&job);
        Ok(())
    }

    async fn guest_install(&self, domain: &str) -> Result<String> {
        self.log(format!("guest_install {domain}"));
        match domain {
            "web" => Ok("helper 0.1.0 runs in 'web'".into()),
            "new" => {
                for what in ["asking the guest agent", "copied 3 of 5.1 MiB"] {
                    let _ = self.events.send(ApiEvent::Instance {
                        domain: "new".into(),
                        what: format!("installing: {what}"),
                    });
                    tokio::time::sleep(std::time::Duration::from_millis(400)).await;
                }
                Ok("helper 0.1.0 runs in 'new'".into())
            }
            "hung" => Err(ApiError::Timeout(
                "the guest agent of 'hung' did not answer within 5 s".into(),
            )),
            _ => Err(ApiError::NotFound(format!(
                "no domain '{domain}' on this host"
            ))),
        }
    }

    async fn guest_remove(&self, domain: &str) -> Result<String> {
        self.log(format!("guest_remove {domain}"));
        Ok(format!("helper removed from '{domain}'"))
    }

    async fn reload(&self) -> Result<Reloaded> {
        self.log("reload".to_owned());
        if self.calls.lock().unwrap().len() > 1 {
            return Err(ApiError::Invalid(
                "nothing was changed: drover.toml: line 3: unknown field `x`".into(),
            ));
        }
        Ok(Reloaded {
            keys: vec!["decision.reserve".into()],
            features: vec!["web/cache enabled".into()],
            problems: vec!["mail.toml: no domain 'mail'".into()],
        })
    }

    fn events(&self) -> broadcast::Receiver<ApiEvent> {
        self.events.subscribe()
    }
}

/// The user that runs the tests.
pub fn me() -> u32 {
    std::fs::metadata("/proc/self").unwrap().uid()
}

/// A fake served on a bus of its own; changes are for the user that runs the tests.
pub async fn served() -> (Bus, Arc<Fake>, Service) {
    let bus = Bus::start();
    let fake = Fake::new();
    let service = serve_with(
        fake.clone(),
        "alpha",
        Some(&bus.address),
        Access::users(&[me()]),
    )
    .await
    .unwrap();
    (bus, fake, service)
}
