//! A client of the bus.

use std::time::Duration;

use drover::dbus::client::ManagerProxy;
use drover::dbus::connect;
use zbus::Connection;

use crate::dbus_support::Bus;

pub async fn client(bus: &Bus) -> (Connection, ManagerProxy<'static>) {
    let c = connect(Some(&bus.address), Some(Duration::from_secs(10)))
        .await
        .unwrap();
    let m = ManagerProxy::new(&c).await.unwrap();
    (c, m)
}

/// The name of a D-Bus error, without the prefix, and its text.
pub fn error_of<T: std::fmt::Debug>(r: zbus::Result<T>) -> (String, String) {
    match r.unwrap_err() {
        zbus::Error::MethodError(n, text, _) => (
            n.as_str()
                .strip_prefix("org.drover1.Error.")
                .unwrap()
                .to_owned(),
            text.unwrap(),
        ),
        e => panic!("not an error of org.drover1: {e:?}"),
    }
}

pub async fn soon<T>(f: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), f)
        .await
        .expect("within 10 s")
}
