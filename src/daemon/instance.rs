//! What the daemon knows of an instance and its features while it runs. Pure state; the registry
//! in the store is the durable part.

use std::collections::BTreeMap;

use crate::attribution::{DomainCost, Share};
use crate::decision::BreachCause;
use crate::feature::FeatureName;
use crate::guest::Guest;
use crate::host::{
    FeatureState, FeatureStatus, GuestCapabilities, HelperState, InstanceState, MeterLevel,
    Metering,
};
use crate::hypervisor::DomainInfo;
use crate::qemu::QemuState;
use crate::recent::Recent;
use crate::sample::{GuestTotals, RawSample};
use crate::store::FeatureRecord;
use crate::threshold::Watch;
use crate::usage::Usage;
use crate::wire::guest::MoveId;

const NO_HELPER: &str = "no helper; install it with 'drover guest install'";

/// A registered feature at run time.
#[derive(Debug)]
pub struct Feature {
    /// Registry record.
    pub record: FeatureRecord,
    /// Whether its guest says that it runs; `None` when it does not tell.
    pub running: Option<bool>,
    /// Last raw sample.
    pub last: Option<RawSample>,
    /// Latest use.
    pub recent: Recent,
    /// Thresholds under watch.
    pub watch: Watch,
    /// Move under way from here.
    pub moving: Option<MoveId>,
    /// When a decision was last made for a breach, milliseconds since the epoch.
    pub decided_ms: i64,
}

impl Feature {
    /// A feature as the registry has it.
    pub fn new(record: FeatureRecord) -> Self {
        Self {
            watch: Watch::new(&record.spec.thresholds),
            record,
            running: None,
            last: None,
            recent: Recent::default(),
            moving: None,
            decided_ms: 0,
        }
    }

    /// Adds a point of use.
    pub fn push(&mut self, usage: Usage) {
        self.recent.push(usage);
    }

    /// The breach under way that began first.
    pub fn breach(&self) -> Option<BreachCause> {
        let first = self.watch.active().min_by_key(|b| b.since_ms)?;
        Some(BreachCause {
            resource: first.threshold.resource,
            text: first.text.clone(),
        })
    }

    /// Life-cycle as users see it.
    pub fn status(&self) -> FeatureStatus {
        match (self.record.enabled, &self.moving, self.running) {
            (_, Some(_), _) => FeatureStatus::Moving,
            (false, _, _) => FeatureStatus::Disabled,
            (true, _, Some(true)) => FeatureStatus::Running,
            (true, _, Some(false)) => FeatureStatus::Stopped,
            (true, _, None) => FeatureStatus::Unknown,
        }
    }

    /// As deciding needs it, here and on other hosts: without what the workload runs.
    fn state(&self) -> FeatureState {
        FeatureState {
            spec: self.record.spec.for_peers(),
            status: self.status(),
            usage: self.recent.latest().copied(),
        }
    }
}

/// An instance at run time.
#[derive(Debug)]
pub struct Instance {
    /// What libvirt says.
    pub info: DomainInfo,
    /// Connection to its helper, once the channels exist.
    pub guest: Option<Guest>,
    /// Helper.
    pub helper: HelperState,
    /// What it can take.
    pub capabilities: Option<GuestCapabilities>,
    /// Whole guest, from the last meter frame, and the guest's clock then.
    pub totals: Option<GuestTotals>,
    /// Boot-time clock of the guest at the last meter frame, nanoseconds.
    pub totals_at_ns: u64,
    /// How it is metered without a helper, and why.
    pub fallback: Metering,
    /// What it costs the host, from the last interval.
    pub cost: DomainCost,
    /// The part of that which no feature causes.
    pub rest: Share,
    /// What QEMU's monitor tells, where it is asked.
    pub qemu: Option<Box<QemuState>>,
    /// CPUs that the guest saw busy between its last two frames.
    pub busy: Option<f64>,
    /// Features by name.
    pub features: BTreeMap<FeatureName, Feature>,
}

impl Instance {
    /// An instance as libvirt lists it, with its features among the registry's records (domain
    /// UUID and record).
    pub fn registered(info: DomainInfo, records: &[(String, FeatureRecord)]) -> Self {
        let own = records.iter().filter(|(uuid, _)| *uuid == info.uuid);
        let features = own
            .map(|(_, r)| (r.spec.name.clone(), Feature::new(r.clone())))
            .collect();
        let reason = NO_HELPER.to_owned();
        Self {
            info,
            guest: None,
            helper: HelperState::Absent { reason },
            capabilities: None,
            totals: None,
            totals_at_ns: 0,
            fallback: Metering {
                level: MeterLevel::None,
                reason: NO_HELPER.to_owned(),
            },
            cost: DomainCost::default(),
            rest: Share::default(),
            qemu: None,
            busy: None,
            features,
        }
    }

    /// The instance as peers see it.
    pub fn state(&self) -> InstanceState {
        InstanceState {
            features: self.features.values().map(Feature::state).collect(),
            ..self.outline()
        }
    }

    /// The same without its features.
    pub fn outline(&self) -> InstanceState {
        InstanceState {
            domain: self.info.name.clone(),
            uuid: self.info.uuid.clone(),
            running: self.info.running,
            vcpus: f64::from(self.info.vcpus),
            memory_mib: self.info.memory_mib,
            memory_available_mib: self
                .totals
                .filter(|t| t.memory_total_bytes > 0)
                .map(|t| t.memory_available_bytes as f64 / crate::usage::MIB),
            cpus_used: self.cost.cpus.unwrap_or(0.0),
            reserved_cpus: 0.0,
            reserved_memory_mib: 0.0,
            helper: self.helper.clone(),
            metering: self.metering(),
            cost: self.cost,
            rest: self.rest,
            qemu: self.qemu.clone(),
            capabilities: self.capabilities.clone(),
            features: Vec::new(),
        }
    }

    /// Takes the whole guest's part of a meter frame.
    pub fn take_totals(&mut self, at_ns: u64, now: GuestTotals) {
        self.busy = self.totals.and_then(|before| {
            let elapsed = at_ns.checked_sub(self.totals_at_ns).filter(|d| *d > 0)?;
            let busy = now.cpu_busy_usec.checked_sub(before.cpu_busy_usec)?;
            Some(busy as f64 * 1e3 / elapsed as f64)
        });
        self.totals = Some(now);
        self.totals_at_ns = at_ns;
    }

    /// How its features are metered now.
    pub fn metering(&self) -> Metering {
        if matches!(self.helper, HelperState::Connected { .. }) {
            return Metering {
                level: MeterLevel::Helper,
                reason: String::new(),
            };
        }
        if !self.info.running {
            return Metering {
                level: MeterLevel::None,
                reason: "the domain does not run".to_owned(),
            };
        }
        self.fallback.clone()
    }

    /// Specs of all features, for the helper's `Define`.
    pub fn specs(&self) -> Vec<crate::feature::FeatureSpec> {
        self.features
            .values()
            .map(|f| f.record.spec.clone())
            .collect()
    }
}
