//! Fuzz targets: libvirt's XML, the hook's datagrams, the guest agent's answers.

use std::str::from_utf8;

use super::metadata::DomainFeatures;
use super::{agent, hook, xml};
use crate::fuzz::{Target, same_as_json};

/// XML of domains and hosts, an administrator's changes to it included.
pub(crate) const XML: Target = Target {
    name: "xml",
    run: |input| {
        let Ok(text) = from_utf8(input) else { return };
        let _ = xml::channels(text).map(|all| all.iter().all(|c| text.contains(&c.xml)));
        let _ = (xml::has_controller(text), xml::capabilities(text));
        if let Ok(found) = DomainFeatures::parse(text) {
            for f in &found.features {
                same_as_json(&f.spec);
            }
        }
    },
    seeds: || {
        [
            "<domain type='kvm'><name>g</name><devices><controller type='virtio-serial'/><channel type='unix'><source mode='bind' path='/run/x'/><target type='virtio' name='org.drover.control.0'/></channel></devices></domain>",
            "<capabilities><host><cpu><arch>x86_64</arch><model>Nehalem</model><feature name='vmx'/></cpu><topology><cells num='1'><cell id='0'/></cells></topology></host><guest><arch name='x86_64'><domain type='qemu'/><domain type='kvm'/></arch></guest></capabilities>",
            "<features serial='3'><feature name='web' enabled='yes'>{\"name\":\"web\",\"workload\":{\"kind\":\"unit\",\"unit\":\"a&amp;b.service\"}}</feature></features>",
        ]
        .map(|t| t.as_bytes().to_vec())
        .to_vec()
    },
};

/// A datagram at the hook's socket.
pub(crate) const HOOK: Target = Target {
    name: "hook",
    run: |input| {
        if let Some(n) = hook::parse(input) {
            let fields = [&n.domain, &n.operation, &n.sub, &n.extra];
            assert!(fields.iter().all(|f| !f.contains(char::is_control)));
        }
    },
    seeds: || vec![br#"{"domain":"g1","operation":"started","sub":"begin","extra":"-"}"#.to_vec()],
};

/// What libvirt hands on of the guest agent.
pub(crate) const ANSWER: Target = Target {
    name: "agent_answer",
    run: |input| {
        if let Ok(text) = from_utf8(input) {
            let _ = agent::returned("guest-info in g", text);
        }
    },
    seeds: || {
        [
            r#"{"return":{"pid":5}}"#,
            r#"{"return":7}"#,
            r#"{"error":{"class":"x"}}"#,
        ]
        .map(|t| t.as_bytes().to_vec())
        .to_vec()
    },
};
