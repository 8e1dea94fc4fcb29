//! Finds a workload's cgroup in the guest, as a path below the hierarchy's root.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;

use crate::feature::{FeatureName, Workload};
use crate::helper::{command, paths};

use super::hierarchy::Hierarchy;

/// Directories looked at in search of a container's cgroup.
const MOST_DIRECTORIES: usize = 20_000;
/// Levels below the root at which container engines put cgroups.
const DEEPEST: usize = 8;
/// Longest wait for systemd, podman or docker.
const ASK: Duration = Duration::from_secs(5);
/// Largest file of an engine that is read.
const MOST_BYTES: u64 = 8 << 20;

/// Where the workload's cgroup is when it is at its usual place. Cheap: looks at one directory.
pub fn usual(hierarchy: &Hierarchy, name: &FeatureName, workload: &Workload) -> Option<String> {
    let path = match workload {
        Workload::Managed(_) => format!("/drover.slice/{}", paths::unit_name(name)),
        Workload::Cgroup { cgroup } => cgroup.clone(),
        Workload::Unit { unit } => unit_path(unit),
        Workload::Container { .. } => return None,
    };
    hierarchy.directory(&path).map(|_| path)
}

/// Asks systemd or the container engine, and looks through the hierarchy. Takes seconds at worst.
pub fn ask(hierarchy: &Hierarchy, workload: &Workload) -> Option<String> {
    match workload {
        Workload::Unit { unit } => {
            let args = ["show", "-p", "ControlGroup", "--value", "--", unit];
            match command::run("systemctl", &args, "", ASK) {
                Ok(group) => {
                    let group = group.trim();
                    hierarchy.directory(group).map(|_| group.to_owned())
                }
                Err(e) => {
                    tracing::warn!("cannot find the cgroup of {unit}: {e}");
                    None
                }
            }
        }
        Workload::Container { container } => {
            let id = container_id(Path::new("/"), container).or_else(|| inspect(container))?;
            hierarchy
                .roots()
                .into_iter()
                .find_map(|root| container_path(root, &id))
        }
        Workload::Cgroup { .. } | Workload::Managed(_) => None,
    }
}

/// Where systemd puts a unit unless it says `Slice=`; slices are below the slices that their
/// names begin with.
fn unit_path(unit: &str) -> String {
    let Some(slice) = unit.strip_suffix(".slice") else {
        return format!("/system.slice/{unit}");
    };
    let mut path = String::new();
    for (at, _) in slice.match_indices('-') {
        path.push('/');
        path.push_str(&slice[..at]);
        path.push_str(".slice");
    }
    format!("{path}/{unit}")
}

#[derive(Deserialize)]
struct PodmanContainer {
    id: String,
    #[serde(default)]
    names: Vec<String>,
}

#[derive(Deserialize)]
struct DockerContainer {
    #[serde(rename = "ID")]
    id: String,
    #[serde(rename = "Name", default)]
    name: String,
}

/// The identifier of a container from the files of podman and docker below `root`; the text
/// itself when it is one.
fn container_id(root: &Path, container: &str) -> Option<String> {
    let text = |path: &Path| {
        let metadata = fs::metadata(path).ok()?;
        (metadata.len() <= MOST_BYTES)
            .then(|| fs::read_to_string(path).ok())
            .flatten()
    };
    for storage in ["var/lib/containers/storage", "run/containers/storage"] {
        for kind in ["overlay-containers", "vfs-containers", "btrfs-containers"] {
            let path = root.join(storage).join(kind).join("containers.json");
            let all: Vec<PodmanContainer> = text(&path)
                .and_then(|t| serde_json::from_str(&t).ok())
                .unwrap_or_default();
            let found = all
                .into_iter()
                .find(|c| c.names.iter().any(|n| n == container));
            if let Some(c) = found {
                return plain(c.id);
            }
        }
    }
    let directories = fs::read_dir(root.join("var/lib/docker/containers"));
    for entry in directories.into_iter().flatten().filter_map(Result::ok) {
        let found: Option<DockerContainer> =
            text(&entry.path().join("config.v2.json")).and_then(|t| serde_json::from_str(&t).ok());
        if let Some(c) = found
            && c.name.trim_start_matches('/') == container
        {
            return plain(c.id);
        }
    }
    let hexadecimal = container.len() >= 12 && container.bytes().all(|b| b.is_ascii_hexdigit());
    hexadecimal.then(|| container.to_ascii_lowercase())
}

/// An identifier as the engines make them, so that nothing else gets into paths.
fn plain(id: String) -> Option<String> {
    (id.len() >= 12 && id.len() <= 64 && id.bytes().all(|b| b.is_ascii_hexdigit())).then_some(id)
}

/// Asks the engines themselves, for storage at unusual places.
fn inspect(container: &str) -> Option<String> {
    for engine in ["podman", "docker"] {
        let args = [
            "container",
            "inspect",
            "--format",
            "{{.Id}}",
            "--",
            container,
        ];
        if let Ok(id) = command::run(engine, &args, "", ASK)
            && let Some(id) = plain(id.trim().to_owned())
        {
            return Some(id);
        }
    }
    None
}

/// The cgroup of a container below `root`: `libpod-ID.scope`, `docker-ID.scope`,
/// `libpod-payload-ID`, or the identifier alone. Conmon's (`libpod-conmon-ID.scope`) is not it.
fn container_path(root: &Path, id: &str) -> Option<String> {
    let is_it = |name: &str| {
        let name = name.strip_suffix(".scope").unwrap_or(name);
        let found = [
            "libpod-payload-",
            "libpod-",
            "docker-",
            "cri-containerd-",
            "crio-",
        ]
        .into_iter()
        .find_map(|p| name.strip_prefix(p))
        .unwrap_or(name);
        found.len() >= 12 && found.bytes().all(|b| b.is_ascii_hexdigit()) && found.starts_with(id)
    };
    let mut level = vec![String::new()];
    let mut seen = 0;
    for _ in 0..DEEPEST {
        let mut next = Vec::new();
        for path in level {
            let entries = fs::read_dir(root.join(path.trim_start_matches('/')));
            for entry in entries.into_iter().flatten().filter_map(Result::ok) {
                if !entry.file_type().is_ok_and(|t| t.is_dir()) {
                    continue;
                }
                let file = entry.file_name();
                let Some(name) = file.to_str() else { continue };
                let below = format!("{path}/{name}");
                if is_it(name) {
                    return Some(below);
                }
                next.push(below);
                seen += 1;
                if seen > MOST_DIRECTORIES {
                    return None;
                }
            }
        }
        level = next;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn units_and_slices() {
        assert_eq!(unit_path("nginx.service"), "/system.slice/nginx.service");
        assert_eq!(unit_path("batch.slice"), "/batch.slice");
        assert_eq!(unit_path("a-b-c.slice"), "/a.slice/a-b.slice/a-b-c.slice");
    }

    #[test]
    fn identifiers_from_the_engines_files() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: String| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write(
            "var/lib/containers/storage/overlay-containers/containers.json",
            format!(r#"[{{"id":"{ID}","names":["web","other"],"image":"x"}},{{"id":"x"}}]"#),
        );
        let docker = ID.replace('0', "f");
        write(
            &format!("var/lib/docker/containers/{docker}/config.v2.json"),
            format!(r#"{{"ID":"{docker}","Name":"/db","State":{{}}}}"#),
        );
        write("var/lib/docker/containers/bad/config.v2.json", "{".into());
        assert_eq!(container_id(root.path(), "web").as_deref(), Some(ID));
        assert_eq!(container_id(root.path(), "db"), Some(docker));
        assert_eq!(container_id(root.path(), "absent"), None);
        assert_eq!(
            container_id(root.path(), "0123456789AB").as_deref(),
            Some("0123456789ab")
        );
        assert_eq!(
            container_id(root.path(), "beef"),
            None,
            "too short for an identifier"
        );
    }

    #[test]
    fn containers_in_the_hierarchy() {
        for path in [
            format!("/machine.slice/libpod-{ID}.scope"),
            format!("/system.slice/docker-{ID}.scope"),
            format!("/docker/{ID}"),
            format!("/system.slice/web.service/libpod-payload-{ID}"),
            format!("/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope"),
        ] {
            let root = tempfile::tempdir().unwrap();
            let conmon = root
                .path()
                .join(format!("machine.slice/libpod-conmon-{ID}.scope"));
            fs::create_dir_all(conmon).unwrap();
            assert_eq!(container_path(root.path(), ID), None);
            fs::create_dir_all(root.path().join(&path[1..]).join("container")).unwrap();
            assert_eq!(container_path(root.path(), ID), Some(path.clone()));
            assert_eq!(container_path(root.path(), &ID[..12]), Some(path));
        }
    }
}
