//! What users write: definitions, thresholds, configuration.

use std::str::from_utf8;

use super::{Target, same_as_json};
use crate::{config, feature_file, threshold};

/// A feature's definition, as JSON (D-Bus, peers) or as TOML (files).
pub(super) const DEFINITION: Target = Target {
    name: "definition",
    run: definition,
    seeds: || {
        [
            r#"{"name":"cache","workload":{"kind":"managed","exec":["/usr/bin/redis-server","--port","6379"],"address":"10.0.0.5/24","state":["/var/lib/redis"],"environment":{"A":"b"},"cpu_quota_percent":50,"memory_max_mib":64},"thresholds":[{"resource":"cpu","limit":80.0,"for_s":10.0}],"automatic":true,"downtime_ms":300,"placement":{"pin":["h1"],"priority":3}}"#,
            r#"{"name":"web","group":"a","workload":{"kind":"unit","unit":"nginx.service"}}"#,
            "name = \"web\"\nautomatic = false\nthresholds = [\"cpu > 80 % for 10 s\"]\n[workload]\nkind = \"container\"\ncontainer = \"x\"\n",
        ]
        .map(|t| t.as_bytes().to_vec())
        .to_vec()
    },
};

fn definition(input: &[u8]) {
    let Ok(text) = from_utf8(input) else { return };
    if let Ok(spec) = feature_file::parse(text, "fuzz")
        && spec.validate().is_ok()
    {
        same_as_json(&spec);
        let _ = spec.rules().problem(&spec.name);
        if let Some(m) = spec.managed() {
            assert_eq!(m.mac(&spec.name).len(), 17);
        }
    }
}

/// The grammar of thresholds.
pub(super) const THRESHOLD: Target = Target {
    name: "threshold",
    run: |input| {
        let Ok(text) = from_utf8(input) else { return };
        if let Ok(t) = threshold::parse(text) {
            let shown = threshold::format(&t);
            let again = threshold::parse(&shown).expect("what is shown is understood");
            assert_eq!(threshold::format(&again), shown, "from {text:?}");
        }
    },
    seeds: || {
        [
            "cpu > 80 % for 10 s",
            "memory > 1.5 GiB for 2 min",
            "net_rx > 10 MB/s",
            "disk_write > 3 MiB/s for 500 ms",
        ]
        .map(|t| t.as_bytes().to_vec())
        .to_vec()
    },
};

/// drover.toml.
pub(super) const CONFIG: Target = Target {
    name: "config",
    run: |input| {
        if let Ok(text) = from_utf8(input) {
            let _ = config::Config::parse(text, "drover.toml".as_ref());
        }
    },
    seeds: || {
        vec![b"[host]\nname = \"h1\"\n[meter]\ninterval_s = 2.0\n[moves]\nstep_timeout_s = 30\n[[peer.hosts]]\nname = \"h2\"\naddress = \"10.0.0.2\"\ngroups = [\"default\"]\n".to_vec()]
    },
};
