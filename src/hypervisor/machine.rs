//! What the machine's own files tell of its network and storage, where the configuration does not.

use std::fs;
use std::path::{Path, PathBuf};

use crate::host::StorageKind;

/// Where libvirt keeps disks of guests.
const IMAGES: &str = "/var/lib/libvirt/images";

/// Fastest link of a physical interface that is up, Mbit/s, and its name.
pub fn network_speed() -> Option<(f64, String)> {
    network_in(Path::new("/sys/class/net"))
}

fn network_in(class: &Path) -> Option<(f64, String)> {
    let text = |path: PathBuf| fs::read_to_string(path).ok();
    fs::read_dir(class)
        .ok()?
        .flatten()
        .filter(|e| e.path().join("device").exists())
        .filter(|e| text(e.path().join("operstate")).is_some_and(|s| s.trim() == "up"))
        .filter_map(|e| {
            let speed: f64 = text(e.path().join("speed"))?.trim().parse().ok()?;
            // Virtual cards say -1.
            (speed > 0.0).then(|| (speed, e.file_name().to_string_lossy().into_owned()))
        })
        .max_by(|a, b| a.0.total_cmp(&b.0))
}

/// Kind of the disk on which libvirt keeps images, and its name.
pub fn storage_kind() -> Option<(StorageKind, String)> {
    use std::os::unix::fs::MetadataExt;
    let mut path = Path::new(IMAGES);
    let device = loop {
        match fs::metadata(path) {
            Ok(m) => break m.dev(),
            Err(_) => path = path.parent()?,
        }
    };
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    storage_of(Path::new("/sys"), &format!("{major}:{minor}"))
}

fn storage_of(sys: &Path, number: &str) -> Option<(StorageKind, String)> {
    let mut disk = fs::canonicalize(sys.join("dev/block").join(number)).ok()?;
    for _ in 0..8 {
        if disk.join("partition").exists() {
            disk = disk.parent()?.to_owned();
        }
        // LVM, dm-crypt and RAID: the first disk below.
        let below = fs::read_dir(disk.join("slaves")).ok();
        match below.and_then(|mut d| d.next()?.ok()) {
            Some(slave) => disk = fs::canonicalize(slave.path()).ok()?,
            None => break,
        }
    }
    let name = disk.file_name()?.to_string_lossy().into_owned();
    let rotational = fs::read_to_string(disk.join("queue/rotational")).ok()?;
    let kind = match (name.starts_with("nvme"), rotational.trim()) {
        (true, _) => StorageKind::Nvme,
        (false, "0") => StorageKind::Ssd,
        (false, "1") => StorageKind::Hdd,
        _ => return None,
    };
    Some((kind, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fastest_physical_link_that_is_up() {
        let root = tempfile::tempdir().unwrap();
        for (name, device, state, speed) in [
            ("lo", false, "up", "10"),
            ("slow", true, "up", "1000"),
            ("fast", true, "up", "10000"),
            ("down", true, "down", "40000"),
            ("virtual", true, "up", "-1"),
        ] {
            let dir = root.path().join(name);
            fs::create_dir(&dir).unwrap();
            if device {
                fs::create_dir(dir.join("device")).unwrap();
            }
            fs::write(dir.join("operstate"), format!("{state}\n")).unwrap();
            fs::write(dir.join("speed"), format!("{speed}\n")).unwrap();
        }
        assert_eq!(network_in(root.path()), Some((10_000.0, "fast".into())));
        assert_eq!(network_in(&root.path().join("absent")), None);
    }

    #[test]
    fn the_disk_below_a_volume_on_a_partition() {
        let root = tempfile::tempdir().unwrap();
        let sys = root.path();
        let disk = sys.join("devices/sda");
        fs::create_dir_all(disk.join("sda1")).unwrap();
        fs::create_dir_all(disk.join("queue")).unwrap();
        fs::write(disk.join("queue/rotational"), "1\n").unwrap();
        fs::write(disk.join("sda1/partition"), "1\n").unwrap();
        let volume = sys.join("devices/dm-0");
        fs::create_dir_all(volume.join("slaves")).unwrap();
        std::os::unix::fs::symlink(disk.join("sda1"), volume.join("slaves/sda1")).unwrap();
        fs::create_dir_all(sys.join("dev/block")).unwrap();
        std::os::unix::fs::symlink(&volume, sys.join("dev/block/253:0")).unwrap();
        assert_eq!(
            storage_of(sys, "253:0"),
            Some((StorageKind::Hdd, "sda".into()))
        );
        assert_eq!(storage_of(sys, "1:1"), None);
    }
}
