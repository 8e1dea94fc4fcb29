//! Features in a domain's XML, under a namespace of Drover's. Pure.

use roxmltree::Document;

use crate::feature::FeatureSpec;

/// Namespace of the element in `<metadata>`.
pub const URI: &str = "https://drover1.org/xmlns/domain/1";
/// Prefix that libvirt shows it with.
pub const PREFIX: &str = "drover";

/// Features of a domain as its metadata has them.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct DomainFeatures {
    /// Grows with each change, on whatever host.
    pub serial: u64,
    /// The features.
    pub features: Vec<StoredFeature>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredFeature {
    /// Whether it is enabled.
    pub enabled: bool,
    /// Its definition, without arguments and environment.
    pub spec: FeatureSpec,
}

impl DomainFeatures {
    /// The element as libvirt takes it: without namespace, which it adds.
    pub fn to_xml(&self) -> String {
        let mut xml = format!("<features serial='{}'>", self.serial);
        for f in &self.features {
            let spec = serde_json::to_string(&f.spec).unwrap_or_default();
            let enabled = if f.enabled { "yes" } else { "no" };
            // Names are of a narrow alphabet.
            let element = [
                "<feature name='",
                f.spec.name.as_str(),
                "' enabled='",
                enabled,
                "'>",
                &escaped(&spec),
                "</feature>",
            ];
            xml.push_str(&element.concat());
        }
        xml.push_str("</features>");
        xml
    }

    /// From the element as libvirt gives it. Features that cannot be understood are left out with
    /// a warning: an administrator may have written anything.
    pub fn parse(xml: &str) -> Result<Self, String> {
        let doc = Document::parse(xml).map_err(|e| e.to_string())?;
        let root = doc.root_element();
        let serial = root.attribute("serial").and_then(|s| s.parse().ok());
        let mut found = Self {
            serial: serial.ok_or("it has no serial number")?,
            features: Vec::new(),
        };
        let elements = root.children().filter(|n| n.tag_name().name() == "feature");
        for node in elements {
            let text = node.text().unwrap_or_default();
            match serde_json::from_str(text) {
                Ok(spec) => found.features.push(StoredFeature {
                    enabled: node.attribute("enabled") == Some("yes"),
                    spec,
                }),
                Err(e) => {
                    let name = node.attribute("name").unwrap_or_default();
                    tracing::warn!(feature = name, error = %e, "a feature in a domain's XML is not understood");
                }
            }
        }
        Ok(found)
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        let spec = |unit: &str| -> FeatureSpec {
            let text = serde_json::json!({"name": "web", "workload": {"kind": "cgroup", "cgroup": unit},
                "thresholds": [{"resource": "cpu", "limit": 80.0, "for_s": 10.0}]});
            serde_json::from_value(text).unwrap()
        };
        let all = DomainFeatures {
            serial: 7,
            features: vec![
                StoredFeature {
                    enabled: true,
                    spec: spec("/a<b>&'\"c"),
                },
                StoredFeature {
                    enabled: false,
                    spec: spec("/x"),
                },
            ],
        };
        assert_eq!(DomainFeatures::parse(&all.to_xml()), Ok(all.clone()));
        let none = DomainFeatures::default();
        assert_eq!(DomainFeatures::parse(&none.to_xml()), Ok(none));
        // With a namespace, as in the domain's own XML, and with what is not understood.
        let xml =
            "<d:features xmlns:d='u' serial='3'><feature name='x'>{</feature><other/></d:features>";
        assert_eq!(
            DomainFeatures::parse(xml),
            Ok(DomainFeatures {
                serial: 3,
                features: vec![]
            })
        );
        assert!(DomainFeatures::parse("<features/>").is_err());
        assert!(DomainFeatures::parse("<features").is_err());
    }
}
