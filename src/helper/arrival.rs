//! Whether this guest can take a feature: looked at for `drover check`, and once more before a move
//! changes anything here. Changes nothing.

use std::collections::HashSet;
use std::net::IpAddr;
use std::path::Path;

use super::moves::{self, Failure};
use super::state::{StateError, place};
use super::{anew, criu, features, netns, preflight, unit};
use crate::feature::{FeatureName, FeatureSpec, Managed};
use crate::method::Method;
use crate::reason::{Code, Reason};
use crate::wire::guest::{ErrorKind, FileDigest, Preflight};

/// Memory that must be left beside the images, bytes.
pub const RESERVE: u64 = 48 << 20;
/// Most reasons that are listed; more say the same.
const MOST: usize = 20;

/// What a source's preflight asks of the target.
#[derive(Debug, Clone, Copy)]
pub struct Needs<'a> {
    /// Files that must be the same here.
    pub files: &'a [FileDigest],
    /// Directories that must be here.
    pub directories: &'a [String],
    /// Bytes of the state directories.
    pub state_bytes: u64,
    /// Bytes of the images, as far as they are known.
    pub image_bytes: u64,
    /// How the feature would come.
    pub method: Method,
}

impl<'a> From<&'a Preflight> for Needs<'a> {
    fn from(p: &'a Preflight) -> Self {
        Self {
            files: &p.files,
            directories: &p.directories,
            state_bytes: p.state_bytes,
            image_bytes: p.resident_bytes,
            method: p.method,
        }
    }
}

/// Everything that keeps this guest from taking the feature.
pub fn reasons(spec: &FeatureSpec, needs: &Needs<'_>) -> Vec<Reason> {
    let mut out = Vec::new();
    let name = &spec.name;
    let Some(managed) = spec.managed() else {
        let why = format!("feature '{name}' is not run by Drover");
        return vec![Reason::new(Code::NotMovable, why)];
    };
    let under_way = moves::recorded();
    if let Some((other, _)) = under_way.iter().find(|(_, r)| r.feature == *name) {
        out.push(Reason::new(
            Code::MovingAlready,
            format!("feature '{name}' is part of move {other} here; discard or release that first"),
        ));
    } else if unit::running(name) || netns::exists(name) {
        out.push(Reason::new(
            Code::NameTaken,
            format!("feature '{name}' is in this guest already; stop it here first"),
        ));
    }
    address(name, managed, &mut out);
    if !Path::new("/sys/class/net").join(&managed.uplink).exists() {
        out.push(Reason::new(
            Code::Uplink,
            format!(
                "the guest has no interface '{}'; name one that all guests have as 'uplink'",
                managed.uplink
            ),
        ));
    }
    for dir in &managed.state {
        if let Err(e) = place::check(dir, name, needs.state_bytes) {
            out.push(e.into());
        }
    }
    out.extend(
        needs
            .files
            .iter()
            .filter_map(|f| preflight::compare(f).err()),
    );
    for dir in needs.directories {
        let path = Path::new(dir);
        if !path.is_dir() && !managed.state.iter().any(|s| path.starts_with(s)) {
            out.push(Reason::new(
                Code::DirectoryAbsent,
                format!("the directory {dir} is not here; make it as in the source guest"),
            ));
        }
    }
    let method = needs.method;
    out.extend(anew::reasons(spec, method, anew::target_hooks(method)));
    if method != Method::Live {
        out.truncate(MOST);
        return out;
    }
    let (version, problem) = criu::probed();
    if !problem.is_empty() {
        let why = format!("criu {version} does not work here: {problem}");
        out.push(Reason::new(Code::Criu, why));
    }
    let room = preflight::room();
    if room <= RESERVE {
        out.push(Reason::new(
            Code::Room,
            format!(
                "{} MiB of memory are free for images in this guest, and {} MiB must be left; give \
                 it more memory",
                room >> 20,
                RESERVE >> 20
            ),
        ));
    } else if let Some(why) = preflight::too_large(needs.image_bytes) {
        out.push(Reason::new(Code::Room, why));
    }
    out.truncate(MOST);
    out
}

fn address(name: &FeatureName, managed: &Managed, out: &mut Vec<Reason>) {
    for other in features::all().iter().filter(|f| f.name != *name) {
        if let Some(a) = other.managed().and_then(|m| managed.shared_address(m)) {
            out.push(Reason::new(
                Code::Address,
                format!(
                    "address {} belongs to feature '{}' of this guest",
                    a.address, other.name
                ),
            ));
        }
    }
    let here = local_addresses();
    for a in managed
        .all_addresses()
        .filter(|a| here.contains(&a.address))
    {
        let why = format!("address {} is one of this guest's own", a.address);
        out.push(Reason::new(Code::Address, why));
    }
}

/// Addresses of the calling thread's network namespace.
fn local_addresses() -> HashSet<IpAddr> {
    let Ok(all) = nix::ifaddrs::getifaddrs() else {
        return HashSet::new();
    };
    all.filter_map(|i| {
        let address = i.address?;
        let v4 = address.as_sockaddr_in().map(|a| a.ip().into());
        v4.or_else(|| address.as_sockaddr_in6().map(|a| a.ip().into()))
    })
    .collect()
}

impl From<StateError> for Reason {
    fn from(e: StateError) -> Self {
        let code = match e {
            StateError::NoRoom(_) | StateError::Short(_) => Code::Room,
            _ => Code::State,
        };
        Self::new(code, e.to_string())
    }
}

impl From<Reason> for Failure {
    fn from(r: Reason) -> Self {
        let kind = match r.code {
            Code::Room => ErrorKind::NoRoom,
            _ => ErrorKind::Refused,
        };
        Self::new(kind, r.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let t = tempfile::tempdir().unwrap();
        let file = t.path().join("program");
        std::fs::write(&file, "other").unwrap();
        let digest = |path: &Path| FileDigest {
            path: path.display().to_string(),
            size: 4,
            sum: 1,
        };
        let mut m = Managed::new(vec!["/bin/x".into()], "127.0.0.1/8".parse().unwrap());
        m.uplink = "nosuch0".into();
        std::fs::create_dir(t.path().join("state")).unwrap();
        m.state = vec![t.path().join("program")];
        let spec = FeatureSpec::new(
            FeatureName::new("no-such-feature").unwrap(),
            crate::feature::Workload::Managed(m),
        );
        let needs = Needs {
            files: &[digest(&file), digest(&t.path().join("absent"))],
            directories: &["/no/such".into(), t.path().display().to_string()],
            state_bytes: 0,
            image_bytes: u64::MAX / 2,
            method: Method::Live,
        };
        let found: HashSet<Code> = reasons(&spec, &needs).iter().map(|r| r.code).collect();
        for code in [
            Code::Address,
            Code::Uplink,
            Code::State,
            Code::FileDiffers,
            Code::FileAbsent,
            Code::DirectoryAbsent,
            Code::Room,
        ] {
            assert!(found.contains(&code), "{code}: {found:?}");
        }
        assert!(!found.contains(&Code::NameTaken));
    }
}
