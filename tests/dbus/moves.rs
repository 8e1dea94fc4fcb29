//! Moves as objects.

use drover::api::{ApiEvent, Job, JobResult};
use drover::dbus::client::MoveProxy;
use drover::dbus::{MOVE, NAME, PATH, serve};
use futures_util::StreamExt;
use zbus::fdo::{ObjectManagerProxy, PropertiesProxy};

use crate::dbus_support::{Bus, Fake, job, served};
use crate::support::{client, error_of, soon};

#[tokio::test]
async fn move_from_start_to_end() {
    let (bus, fake, _service) = served().await;
    let (c, m) = client(&bus).await;
    let om = ObjectManagerProxy::new(&c, NAME, PATH).await.unwrap();
    let mut added = om.receive_interfaces_added().await.unwrap();
    let mut progress = m.receive_move_progress().await.unwrap();
    let mut ended = m.receive_move_ended().await.unwrap();

    let expected = "/org/drover1/move/00000000_aaaa";
    let props = PropertiesProxy::new(&c, NAME, expected).await.unwrap();
    let mut changed = props.receive_properties_changed().await.unwrap();
    let own = MoveProxy::new(&c, expected).await.unwrap();
    let mut own_end = own.receive_ended().await.unwrap();

    let path = m.migrate("web", "cache", "beta", "web2").await.unwrap();
    assert_eq!(path.as_str(), expected);
    let a = soon(added.next()).await.unwrap();
    assert_eq!(a.args().unwrap().object_path.as_str(), path.as_str());

    let p = soon(progress.next()).await.unwrap();
    let now: Job = serde_json::from_str(p.args().unwrap().json).unwrap();
    assert_eq!((now.rounds, now.state.as_str()), (1, "pre-copy"));
    let e = soon(ended.next()).await.unwrap();
    let e = e.args().unwrap();
    assert_eq!(
        (e.job.as_str(), e.result, e.reason),
        (path.as_str(), "done", "")
    );

    let end = soon(own_end.next()).await.unwrap();
    let end = end.args().unwrap();
    assert_eq!((end.result, end.reason), ("done", ""));

    let change = soon(changed.next()).await.unwrap();
    let change = change.args().unwrap();
    assert_eq!(change.interface_name.as_str(), MOVE);
    assert!(change.changed_properties.contains_key("State"));
    assert!(change.changed_properties.contains_key("BytesSent"));
    assert!(
        !change.changed_properties.contains_key("ToHost"),
        "it did not change"
    );

    // The object stays, also in the object manager.
    let one = MoveProxy::new(&c, path.clone()).await.unwrap();
    let last: Job = serde_json::from_str(&one.json().await.unwrap()).unwrap();
    assert_eq!(last.result, Some(JobResult::Done));
    assert_eq!(one.result().await.unwrap(), "done");
    let objects = om.get_managed_objects().await.unwrap();
    let mine = &objects[&path];
    let mine = mine.iter().find(|(i, _)| i.as_str() == MOVE).unwrap().1;
    assert_eq!(i64::try_from(mine["FreezeMs"].clone()).unwrap(), 37);
    assert_eq!(u32::try_from(mine["Rounds"].clone()).unwrap(), 2);
    assert_eq!(u64::try_from(mine["BytesSent"].clone()).unwrap(), 2_097_152);
    for (p, v) in [
        ("Feature", "cache"),
        ("FromHost", "alpha"),
        ("FromDomain", "web"),
        ("ToHost", "beta"),
        ("ToDomain", "web2"),
    ] {
        assert_eq!(String::try_from(mine[p].clone()).unwrap(), v);
    }
    assert_eq!(
        fake.calls.lock().unwrap()[0],
        "migrate web cache Some(\"beta\") Some(\"web2\")"
    );
}

#[tokio::test]
async fn abort() {
    let (bus, fake, _service) = served().await;
    let (c, m) = client(&bus).await;
    let mut ended = m.receive_move_ended().await.unwrap();
    let path = m.migrate("web", "stuck", "", "").await.unwrap();
    assert_eq!(fake.calls.lock().unwrap()[0], "migrate web stuck None None");
    MoveProxy::new(&c, path.clone())
        .await
        .unwrap()
        .abort()
        .await
        .unwrap();
    let e = soon(ended.next()).await.unwrap();
    let e = e.args().unwrap();
    assert_eq!((e.job.as_str(), e.result), (path.as_str(), "canceled"));
    assert_eq!(e.reason, "canceled by a user");

    let mut late = job("bbbbbbbb-1", "stuck");
    late.state = "committed".into();
    let mut progress = m.receive_move_progress().await.unwrap();
    fake.tell(&late);
    let p = soon(progress.next()).await.unwrap();
    let path = p.args().unwrap().job.to_owned();
    let (n, text) = error_of(MoveProxy::new(&c, path).await.unwrap().abort().await);
    assert_eq!(n, "Refused");
    assert!(text.contains("bbbbbbbb-1"), "{text}");
}

#[tokio::test]
async fn ended_moves_are_bounded() {
    let (bus, fake, _service) = served().await;
    let (c, m) = client(&bus).await;
    let mut ended = m.receive_move_ended().await.unwrap();
    for n in 0..103 {
        let mut j = job(&format!("{n:08}"), "cache");
        j.result = Some(JobResult::Done);
        fake.tell(&j);
        soon(ended.next()).await.unwrap();
    }
    let om = ObjectManagerProxy::new(&c, NAME, PATH).await.unwrap();
    let objects = om.get_managed_objects().await.unwrap();
    let paths: Vec<&str> = objects
        .keys()
        .map(|p| p.as_str())
        .filter(|p| p.contains("/move/"))
        .collect();
    assert_eq!(paths.len(), 100);
    assert!(!paths.contains(&"/org/drover1/move/00000002"));
    assert!(paths.contains(&"/org/drover1/move/00000003"));
}

#[tokio::test]
async fn moves_under_way_have_objects_from_the_start() {
    let bus = Bus::start();
    let fake = Fake::new();
    let mut old = job("aaaaaaaa-1", "cache");
    old.result = Some(JobResult::Failed);
    fake.jobs
        .lock()
        .unwrap()
        .extend([job("aaaaaaaa-2", "slow"), old]);
    let _service = serve(fake, "alpha", Some(&bus.address)).await.unwrap();
    let (c, _m) = client(&bus).await;
    let om = ObjectManagerProxy::new(&c, NAME, PATH).await.unwrap();
    let objects = om.get_managed_objects().await.unwrap();
    let moves = objects.keys().filter(|p| p.as_str().contains("/move/"));
    let moves: Vec<&str> = moves.map(|p| p.as_str()).collect();
    assert_eq!(moves, ["/org/drover1/move/aaaaaaaa_2"]);
}

#[tokio::test]
async fn the_end_of_a_move_survives_lost_events() {
    let (bus, fake, _service) = served().await;
    let (_c, m) = client(&bus).await;
    let mut progress = m.receive_move_progress().await.unwrap();
    let mut ended = m.receive_move_ended().await.unwrap();
    let mut j = job("dddddddd-1", "cache");
    fake.tell(&j);
    soon(progress.next()).await.unwrap();
    // The end comes first in a burst that is longer than the daemon keeps, so it is lost.
    j.result = Some(JobResult::Failed);
    j.reason = Some("no room".into());
    fake.tell(&j);
    for n in 0..200 {
        let what = n.to_string();
        let host = "beta".to_owned();
        fake.events.send(ApiEvent::Peer { host, what }).unwrap();
    }
    let e = soon(ended.next()).await.unwrap();
    let e = e.args().unwrap();
    assert_eq!((e.result, e.reason), ("failed", "no room"));
}

#[tokio::test]
async fn each_end_is_told_once_by_the_moves_own_signal() {
    let (bus, _fake, _service) = served().await;
    let (c, m) = client(&bus).await;
    for (n, (feature, result, reason)) in [
        ("cache", "done", ""),
        ("broken", "failed", "criu: cannot dump an io_uring"),
        ("slow", "timeout", "restore took longer than 60 s"),
        ("same", "skipped", "it is there already"),
        ("stuck", "canceled", "canceled by a user"),
    ]
    .into_iter()
    .enumerate()
    {
        let path = format!("/org/drover1/move/0000000{n}_aaaa");
        let own = MoveProxy::new(&c, path.clone()).await.unwrap();
        let mut ended = own.receive_ended().await.unwrap();
        let begun = m.migrate("web", feature, "", "").await.unwrap();
        assert_eq!(begun.as_str(), path);
        if feature == "stuck" {
            own.abort().await.unwrap();
        }
        let end = soon(ended.next()).await.unwrap();
        let end = end.args().unwrap();
        assert_eq!((end.result, end.reason), (result, reason), "{feature}");
        let object = MoveProxy::builder(&c).path(path);
        let object = object
            .cache_properties(zbus::proxy::CacheProperties::No)
            .build()
            .await
            .unwrap();
        assert_eq!(object.result().await.unwrap(), result);
        let again = tokio::time::timeout(std::time::Duration::from_millis(100), ended.next());
        assert!(again.await.is_err(), "{feature}: told twice");
    }
}
