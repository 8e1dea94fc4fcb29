//! Hosts, instances and features as objects.
//!
//! ```text
//! /org/drover1/host/NAME              org.drover1.Host, this host and its peers
//! /org/drover1/instance/DOMAIN        org.drover1.Instance, domains of this host
//! /org/drover1/feature/DOMAIN/NAME    org.drover1.Feature, features of this host
//! ```
//!
//! There may be thousands of features, so nothing of them is kept here but marks of what was told:
//! their objects ask the daemon when they are read.
//!
//! The daemon is asked anew when it tells of a change and every two seconds, less often when there
//! are so many features that looking takes long; what differs is told
//! by `InterfacesAdded`, `InterfacesRemoved` and `PropertiesChanged`. What is measured changes
//! with every sample: those properties can be read, but do not announce themselves.

mod feature;
mod features;
mod host;
mod instance;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write;
use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::Mutex;
use zbus::fdo::Properties;
use zbus::names::InterfaceName;
use zbus::object_server::{Interface, SignalEmitter};
use zbus::{Connection, ObjectPath, Variant};

use super::PATH;
use crate::api::Api;
use crate::host::{HostState, InstanceState};

pub use feature::FEATURE;
pub use host::HOST;
pub use instance::INSTANCE;

/// What stands for a number that is not known.
const UNKNOWN: f64 = -1.0;

/// A name as an element of an object path: other characters than letters and digits become `_`
/// and their two hexadecimal digits, byte by byte, as systemd does.
pub fn escape(name: &str) -> String {
    if name.is_empty() {
        return "_".to_owned();
    }
    let mut out = String::with_capacity(name.len());
    for b in name.bytes() {
        if b.is_ascii_alphanumeric() {
            out.push(char::from(b));
        } else {
            // Writing to a text cannot fail.
            let _ = write!(out, "_{b:02x}");
        }
    }
    out
}

fn path(kind: &str, names: &[&str]) -> zbus::Result<ObjectPath<'static>> {
    let names: Vec<String> = names.iter().map(|n| escape(n)).collect();
    let text = format!("{PATH}/{kind}/{}", names.join("/"));
    ObjectPath::try_from(text).map_err(|e| zbus::Error::Failure(e.to_string()))
}

/// The object of a host.
pub fn host_path(name: &str) -> zbus::Result<ObjectPath<'static>> {
    path("host", &[name])
}

/// The object of a domain of this host.
pub fn instance_path(domain: &str) -> zbus::Result<ObjectPath<'static>> {
    path("instance", &[domain])
}

/// The object of a feature of this host.
pub fn feature_path(domain: &str, name: &str) -> zbus::Result<ObjectPath<'static>> {
    path("feature", &[domain, name])
}

/// A noun that has an object.
trait Shown: Clone + PartialEq + Send + Sync + 'static {
    /// Its interface on the bus.
    type Object: Interface;
    /// The object in front of what is known now.
    fn object(slot: Slot<Self>) -> Self::Object;
    /// The properties that announce their changes.
    fn announced(&self) -> Announced;
}

/// Properties that announce their changes, and their values.
type Announced = Vec<(&'static str, Variant<'static>)>;

type Slot<T> = Arc<RwLock<T>>;

fn read<T: Clone>(slot: &RwLock<T>) -> T {
    slot.read().unwrap_or_else(PoisonError::into_inner).clone()
}

type Shelf<T> = BTreeMap<String, (ObjectPath<'static>, Slot<T>)>;

/// All of them.
pub(super) struct Objects {
    api: Arc<dyn Api>,
    me: String,
    shelves: Mutex<Shelves>,
}

#[derive(Default)]
struct Shelves {
    hosts: Shelf<HostState>,
    instances: Shelf<(String, InstanceState)>,
    features: features::Shelf,
}

impl Objects {
    pub(super) fn new(api: Arc<dyn Api>, me: &str) -> Self {
        Self {
            api,
            me: me.to_owned(),
            shelves: Mutex::default(),
        }
    }

    /// Makes, removes and changes objects so that they are as the daemon says now.
    pub(super) async fn refresh(&self, connection: &Connection) -> zbus::Result<()> {
        let mut shelves = self.shelves.lock().await;
        // What features do is told by their own objects.
        let mut hosts = self.api.outlines().await;
        let own = hosts.iter_mut().filter(|h| h.name == self.me);
        let instances: Vec<InstanceState> =
            own.flat_map(|h| std::mem::take(&mut h.instances)).collect();
        let instances = instances
            .into_iter()
            .map(|i| Ok((instance_path(&i.domain)?, (self.me.clone(), i))));
        let instances = instances.collect::<zbus::Result<_>>()?;
        let hosts = hosts.into_iter().map(|h| Ok((host_path(&h.name)?, h)));
        let hosts = hosts.collect::<zbus::Result<_>>()?;
        sync(connection, &mut shelves.hosts, hosts).await?;
        sync(connection, &mut shelves.instances, instances).await?;
        shelves.features.sync(connection, &self.api).await
    }
}

async fn sync<T: Shown>(
    connection: &Connection,
    shelf: &mut Shelf<T>,
    now: Vec<(ObjectPath<'static>, T)>,
) -> zbus::Result<()> {
    let server = connection.object_server();
    let here: HashSet<&str> = now.iter().map(|(p, _)| p.as_str()).collect();
    let gone = shelf.keys().filter(|k| !here.contains(k.as_str()));
    let gone: Vec<String> = gone.cloned().collect();
    for key in gone {
        if let Some((path, _)) = shelf.remove(&key) {
            server.remove::<T::Object, _>(path).await?;
        }
    }
    for (path, value) in now {
        let Some((_, slot)) = shelf.get(path.as_str()) else {
            let slot = Arc::new(RwLock::new(value));
            server
                .at(path.clone(), T::object(Arc::clone(&slot)))
                .await?;
            shelf.insert(path.to_string(), (path, slot));
            continue;
        };
        let before = read(slot);
        if before == value {
            continue;
        }
        let old = before.announced();
        let mut changed = value.announced();
        changed.retain(|p| !old.contains(p));
        *slot.write().unwrap_or_else(PoisonError::into_inner) = value;
        tell::<T::Object>(connection, path, changed).await?;
    }
    Ok(())
}

/// Announces what changed, if anything did.
async fn tell<O: Interface>(
    connection: &Connection,
    path: ObjectPath<'static>,
    changed: Announced,
) -> zbus::Result<()> {
    if changed.is_empty() {
        return Ok(());
    }
    let emitter = SignalEmitter::new(connection, path)?;
    let interface: InterfaceName<'_> = O::name();
    let changed: HashMap<&str, Variant<'_>> = changed.into_iter().collect();
    Properties::properties_changed(&emitter, interface, changed, (&[][..]).into()).await
}

/// JSON of plain data, which cannot fail; should it ever, the reader sees it as text.
fn json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_else(|e| format!("{{\"error\":\"{e}\"}}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_valid_and_distinct() {
        for (domain, name, path) in [
            ("web", "cache", "/org/drover1/feature/web/cache"),
            ("web-1", "a_b", "/org/drover1/feature/web_2d1/a_5fb"),
            ("ü /", "x", "/org/drover1/feature/_c3_bc_20_2f/x"),
        ] {
            assert_eq!(feature_path(domain, name).unwrap().as_str(), path);
        }
        assert_ne!(escape("a-b"), escape("a_b"));
        assert_eq!(
            host_path("h1.example").unwrap().as_str(),
            "/org/drover1/host/h1_2eexample"
        );
        assert_eq!(escape(""), "_");
    }
}
