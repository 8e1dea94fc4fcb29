//! Hosts, instances and features as objects.

use std::collections::HashMap;

use drover::api::{ApiEvent, FeatureRow};
use drover::dbus::objects::{FEATURE, HOST, INSTANCE};
use drover::dbus::{NAME, PATH};
use drover::feature::HIDDEN;
use drover::host::FeatureStatus;
use futures_util::StreamExt;
use zbus::OwnedVariant;
use zbus::fdo::{ManagedObjects, ObjectManagerProxy, PropertiesProxy};

use crate::dbus_support::{Fake, managed, name, served};
use crate::support::{client, soon};

fn properties(
    objects: &ManagedObjects,
    path: &str,
    interface: &str,
) -> HashMap<String, OwnedVariant> {
    let (_, all) = objects.iter().find(|(p, _)| p.as_str() == path).unwrap();
    let (_, own) = all.iter().find(|(i, _)| i.as_str() == interface).unwrap();
    own.iter().map(|(k, v)| (k.clone(), v.clone())).collect()
}

fn changed(fake: &Fake, what: &str) {
    let event = ApiEvent::Feature {
        domain: "web".into(),
        feature: name("cache"),
        what: what.into(),
    };
    fake.events.send(event).unwrap();
}

#[tokio::test]
async fn everything_has_an_object() {
    let (bus, fake, _service) = served().await;
    fake.features.lock().unwrap()[0].spec = managed("cache", "geheim");
    let (c, m) = client(&bus).await;
    let mut told = m.receive_feature_changed().await.unwrap();
    changed(&fake, "registered");
    soon(told.next()).await.unwrap();
    let om = ObjectManagerProxy::new(&c, NAME, PATH).await.unwrap();
    let objects = om.get_managed_objects().await.unwrap();
    let text = |v: &OwnedVariant| String::try_from(v.clone()).unwrap();
    let number = |v: &OwnedVariant| f64::try_from(v.clone()).unwrap();

    let host = properties(&objects, "/org/drover1/host/alpha", HOST);
    assert_eq!(text(&host["Name"]), "alpha");
    assert_eq!(
        (number(&host["Cpus"]), number(&host["CpusUsed"])),
        (8.0, 2.25)
    );
    assert_eq!(text(&host["Storage"]), "nvme");

    let guest = properties(&objects, "/org/drover1/instance/web", INSTANCE);
    assert_eq!(text(&guest["HelperVersion"]), "0.1.0");
    assert_eq!(number(&guest["MemoryAvailableMib"]), -1.0);

    let feature = properties(&objects, "/org/drover1/feature/web/cache", FEATURE);
    assert_eq!(text(&feature["Status"]), "running");
    assert_eq!(text(&feature["Kind"]), "managed");
    assert_eq!(text(&feature["Address"]), "192.0.2.1/24");
    assert_eq!(number(&feature["CpuPercent"]), 42.5);
    assert_eq!(number(&feature["NetTxBps"]), -1.0, "unavailable, not 0");
    let row: FeatureRow = serde_json::from_str(&text(&feature["Json"])).unwrap();
    assert_eq!(row.spec.managed().unwrap().environment["TOKEN"], HIDDEN);
}

#[tokio::test]
async fn changes_are_told() {
    let (bus, fake, _service) = served().await;
    let (c, m) = client(&bus).await;
    let path = "/org/drover1/feature/web/cache";
    let om = ObjectManagerProxy::new(&c, NAME, PATH).await.unwrap();
    let mut removed = om.receive_interfaces_removed().await.unwrap();
    let mut added = om.receive_interfaces_added().await.unwrap();
    let mut told = m.receive_feature_changed().await.unwrap();
    let props = PropertiesProxy::new(&c, NAME, path).await.unwrap();
    let mut changes = props.receive_properties_changed().await.unwrap();

    // What is measured does not announce itself; what was told before is there.
    {
        let mut rows = fake.features.lock().unwrap();
        rows[0].usage = Some(crate::dbus_support::usage(7));
        rows[0].status = FeatureStatus::Stopped;
    }
    changed(&fake, "exited");
    let s = soon(changes.next()).await.unwrap();
    let s = s.args().unwrap();
    assert_eq!(s.interface_name.as_str(), FEATURE);
    assert_eq!(s.changed_properties.len(), 1);
    let status = &s.changed_properties["Status"];
    assert_eq!(String::try_from(status.clone()).unwrap(), "stopped");
    soon(told.next()).await.unwrap();

    let row = fake.features.lock().unwrap().remove(0);
    changed(&fake, "deregistered");
    let s = soon(removed.next()).await.unwrap();
    assert_eq!(s.args().unwrap().object_path.as_str(), path);
    soon(told.next()).await.unwrap();
    assert!(
        props
            .get(FEATURE.try_into().unwrap(), "Status")
            .await
            .is_err()
    );

    // Seen without an event too.
    fake.features.lock().unwrap().push(row);
    let s = soon(added.next()).await.unwrap();
    let s = s.args().unwrap();
    assert_eq!(s.object_path.as_str(), path);
    assert!(
        s.interfaces_and_properties
            .keys()
            .any(|i| i.as_str() == FEATURE)
    );
}
