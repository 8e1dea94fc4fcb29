//! What Drover reads from and writes to libvirt's XML. Pure.

use std::path::PathBuf;

use roxmltree::{Document, Node};

/// A channel of a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Channel {
    /// Name of the port in the guest.
    pub name: String,
    /// Socket on the host; only in the XML of a running domain.
    pub path: Option<PathBuf>,
    /// The element's text, as libvirt wants it back to remove the channel.
    pub xml: String,
}

/// The virtio channels on unix sockets in a domain's XML.
pub(super) fn channels(xml: &str) -> Result<Vec<Channel>, String> {
    let doc = Document::parse(xml).map_err(|e| e.to_string())?;
    let Some(devices) = child(doc.root_element(), "devices") else {
        return Ok(Vec::new());
    };
    Ok(devices
        .children()
        .filter(|n| n.has_tag_name("channel") && n.attribute("type") == Some("unix"))
        .filter_map(|n| {
            let target = child(n, "target")?;
            if target.attribute("type") != Some("virtio") {
                return None;
            }
            Some(Channel {
                name: target.attribute("name")?.to_owned(),
                path: child(n, "source")
                    .and_then(|s| s.attribute("path"))
                    .map(PathBuf::from),
                xml: xml[n.range()].to_owned(),
            })
        })
        .collect())
}

/// Whether a domain has a controller that channels can be plugged into.
pub(super) fn has_controller(xml: &str) -> Result<bool, String> {
    let doc = Document::parse(xml).map_err(|e| e.to_string())?;
    Ok(child(doc.root_element(), "devices").is_some_and(|d| {
        d.children()
            .any(|n| n.has_tag_name("controller") && n.attribute("type") == Some("virtio-serial"))
    }))
}

/// The element for a new channel; libvirt chooses the socket.
pub(super) fn channel_xml(name: &str) -> String {
    format!(
        "<channel type='unix'><source mode='bind'/><target type='virtio' name='{name}'/></channel>"
    )
}

/// What the host's capabilities tell; empty when not told.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct HostXml {
    /// CPU model.
    pub model: String,
    /// Features beyond the model, sorted.
    pub features: Vec<String>,
    /// NUMA nodes.
    pub numa_nodes: u32,
    /// Best virtualisation type.
    pub virt_type: String,
}

/// Takes what is of interest out of the host's capabilities.
pub(super) fn capabilities(xml: &str) -> Result<HostXml, String> {
    let doc = Document::parse(xml).map_err(|e| e.to_string())?;
    let root = doc.root_element();
    let host_cpu = child(root, "host").and_then(|h| child(h, "cpu"));
    let arch = host_cpu
        .and_then(|c| child(c, "arch"))
        .and_then(|a| a.text())
        .unwrap_or_default();
    let model = host_cpu
        .and_then(|c| child(c, "model"))
        .and_then(|m| m.text())
        .unwrap_or_default();
    let types: Vec<&str> = root
        .children()
        .filter(|n| n.has_tag_name("guest"))
        .filter_map(|g| child(g, "arch"))
        .filter(|a| arch.is_empty() || a.attribute("name") == Some(arch))
        .flat_map(|a| a.children().filter(|n| n.has_tag_name("domain")))
        .filter_map(|d| d.attribute("type"))
        .collect();
    let best = ["kvm", "qemu"]
        .into_iter()
        .find(|t| types.contains(t))
        .or(types.first().copied())
        .unwrap_or_default();
    let mut features: Vec<String> = host_cpu
        .into_iter()
        .flat_map(|c| c.children().filter(|n| n.has_tag_name("feature")))
        .filter_map(|f| f.attribute("name").map(str::to_owned))
        .collect();
    features.sort_unstable();
    let cells = child(root, "host")
        .and_then(|h| child(h, "topology"))
        .and_then(|t| child(t, "cells"));
    let numa_nodes = cells.map_or(0, |c| {
        c.children().filter(|n| n.has_tag_name("cell")).count() as u32
    });
    Ok(HostXml {
        model: model.trim().to_owned(),
        features,
        numa_nodes,
        virt_type: best.to_owned(),
    })
}

fn child<'a, 'b>(node: Node<'a, 'b>, name: &str) -> Option<Node<'a, 'b>> {
    node.children().find(|n| n.has_tag_name(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_of_a_live_domain() {
        let xml = "<domain type='kvm'><description>&lt;channel type='unix'></description>\
            <devices><channel type='unix'><source mode='bind' path='/x/a'/>\
            <target type='virtio' name='org.drover.control.0' state='connected'/>\
            <alias name='channel1'/></channel>\
            <channel type='spicevmc'><target type='virtio' name='com.redhat.spice.0'/></channel>\
            <channel type='unix'><target type='virtio' name='b'/></channel></devices></domain>";
        let found = channels(xml).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].name, "org.drover.control.0");
        assert_eq!(found[0].path.as_deref(), Some("/x/a".as_ref()));
        assert!(found[0].xml.starts_with("<channel type='unix'><source"));
        assert!(found[0].xml.ends_with("</channel>"));
        assert_eq!(found[1].path, None);
        assert!(channels("<domain").is_err());
    }

    #[test]
    fn a_new_channel_is_read_back() {
        let xml = format!("<domain><devices>{}</devices></domain>", channel_xml("n"));
        assert_eq!(channels(&xml).unwrap()[0].name, "n");
    }

    #[test]
    fn a_controller_for_channels() {
        let with =
            |kind| format!("<domain><devices><controller type='{kind}'/></devices></domain>");
        assert_eq!(has_controller(&with("virtio-serial")), Ok(true));
        assert_eq!(has_controller(&with("usb")), Ok(false));
        assert_eq!(has_controller("<domain/>"), Ok(false));
    }

    #[test]
    fn best_type_of_the_hosts_architecture() {
        let xml = "<capabilities><host><cpu><arch>x86_64</arch><model>EPYC</model><feature name='vmx'/>\
            <feature name='ibrs'/></cpu><topology><cells num='2'><cell id='0'/><cell id='1'/></cells>\
            </topology></host>\
            <guest><arch name='aarch64'><domain type='kvm'/></arch></guest>\
            <guest><arch name='x86_64'><domain type='qemu'/></arch></guest></capabilities>";
        let found = capabilities(xml).unwrap();
        assert_eq!(
            (found.model.as_str(), found.virt_type.as_str()),
            ("EPYC", "qemu")
        );
        assert_eq!(
            (found.features, found.numa_nodes),
            (vec!["ibrs".into(), "vmx".into()], 2)
        );
        let xml = xml.replace(
            "<domain type='qemu'/>",
            "<domain type='qemu'/><domain type='kvm'/>",
        );
        assert_eq!(capabilities(&xml).unwrap().virt_type, "kvm");
        assert_eq!(capabilities("<capabilities/>").unwrap(), HostXml::default());
    }
}
