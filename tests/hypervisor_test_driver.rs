//! The libvirt edge against libvirt's own test driver, which needs no daemon and no privileges.
#![cfg(feature = "daemon")]
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use drover::hypervisor::{Change, Hypervisor, HypervisorError, HypervisorEvent};
use tokio::sync::mpsc;

const URI: &str = "test:///default";

async fn next(events: &mut mpsc::Receiver<HypervisorEvent>) -> HypervisorEvent {
    tokio::time::timeout(Duration::from_secs(20), events.recv())
        .await
        .expect("no event")
        .expect("channel closed")
}

async fn change(events: &mut mpsc::Receiver<HypervisorEvent>) -> (String, Change) {
    loop {
        if let HypervisorEvent::Lifecycle { domain, change, .. } = next(events).await {
            return (domain, change);
        }
    }
}

/// All in one test: the driver's default host is shared by the whole process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn domains_events_stats_and_errors() {
    let (tx, mut events) = mpsc::channel(64);
    let hv = Hypervisor::connect(URI, 2, tx, None).await.unwrap();

    let caps = hv.capabilities().await.unwrap();
    assert!(caps.cpus >= 1.0 && caps.memory_mib > 0.0, "{caps:?}");

    let domains = hv.domains().await.unwrap();
    let test = domains.iter().find(|d| d.name == "test").unwrap();
    assert!(test.running, "{test:?}");
    assert_eq!(test.uuid.len(), 36);

    // A second connection plays the administrator.
    let admin = virt::connect::Connect::open(Some(URI)).unwrap();
    let domain = admin.lookup_domain_by_name("test").unwrap();
    domain.suspend().unwrap();
    assert_eq!(
        change(&mut events).await,
        ("test".into(), Change::Suspended)
    );
    assert!(!hv.domains().await.unwrap()[0].running);
    domain.resume().unwrap();
    assert_eq!(change(&mut events).await, ("test".into(), Change::Resumed));
    domain.destroy().unwrap();
    assert_eq!(change(&mut events).await, ("test".into(), Change::Stopped));
    let stats = hv.stats().await.unwrap();
    assert!(!stats[0].running && stats[0].id.is_none(), "{stats:?}");
    assert_eq!(hv.channels("test").await.unwrap(), None);
    let e = hv.ensure_channels("test").await.unwrap_err();
    assert!(matches!(e, HypervisorError::NotRunning(_)), "{e}");
    domain.create().unwrap();
    assert_eq!(change(&mut events).await, ("test".into(), Change::Started));
    let stats = hv.stats().await.unwrap();
    assert!(stats[0].running && stats[0].id.is_some(), "{stats:?}");
    assert_eq!(stats[0].net_rx_bytes, None, "unavailable must not be zero");

    assert_eq!(hv.channels("test").await.unwrap(), None);
    let e = hv.channels("nobody").await.unwrap_err();
    assert!(matches!(e, HypervisorError::NoDomain(_)), "{e}");
    let command = serde_json::json!({"execute": "guest-ping"});
    let e = hv.agent("test", &command, 1).await.unwrap_err();
    assert!(matches!(e, HypervisorError::Agent { .. }), "{e}");
    let e = hv.agent("nobody", &command, 1).await.unwrap_err();
    assert!(matches!(e, HypervisorError::NoDomain(_)), "{e}");

    // The last handle ends the events.
    let clone = hv.clone();
    drop(hv);
    assert!(clone.capabilities().await.is_ok());
    drop(clone);
    let end = tokio::time::timeout(Duration::from_secs(20), async {
        while events.recv().await.is_some() {}
    });
    assert!(end.await.is_ok(), "the keeper did not end");
}

#[tokio::test]
async fn no_libvirt_is_told_so() {
    let (tx, _events) = mpsc::channel(1);
    let uri = "qemu+unix:///system?socket=/nonexistent/drover-test.sock";
    let e = Hypervisor::connect(uri, 2, tx, None).await.err().unwrap();
    assert!(matches!(e, HypervisorError::NotConnected { .. }), "{e}");
    assert!(e.to_string().contains("libvirtd"), "{e}");
}
