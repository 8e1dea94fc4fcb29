//! Where state arrives: directories that are new or empty, marked until the feature runs there.
//!
//! The mark is an extended attribute with the feature's name. It outlives the guest's reboot, so
//! that what a move left is known as such and may be replaced by the next one.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{StateError, beneath, meta, walk::open_root};
use crate::feature::FeatureName;

/// Attribute of a directory whose feature has not arrived yet.
const MARK: &str = "trusted.drover.arriving";

/// A directory made ready, and how to undo that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The state directory.
    pub path: PathBuf,
    /// Directories that were made, outermost first; the last one is `path` itself unless it was
    /// there.
    pub made: Vec<PathBuf>,
    /// Mode, owner and group that the directory had.
    pub before: Option<(u32, u32, u32)>,
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateError {
    StateError::io(what, path.as_os_str().as_encoded_bytes())
}

/// Looks whether state may arrive at `path`, without changing anything.
pub fn check(path: &Path, feature: &FeatureName, need: u64) -> Result<(), StateError> {
    let refused = |why: String| Err(StateError::Refused(why));
    let shown = path.display();
    let mut above = path;
    while !above.exists() && fs::symlink_metadata(above).is_err() {
        above = above.parent().unwrap_or(Path::new("/"));
    }
    if let Ok(found) = nix::sys::statvfs::statvfs(above) {
        let free = found
            .blocks_available()
            .saturating_mul(found.fragment_size());
        if found
            .flags()
            .contains(nix::sys::statvfs::FsFlags::ST_RDONLY)
        {
            return refused(format!("{shown} is on a read-only file system here"));
        }
        if free < need {
            return Err(StateError::Short(format!(
                "{} MiB are free on the file system of {shown} here; the state needs {} MiB",
                free >> 20,
                need >> 20
            )));
        }
    }
    if above != path {
        return Ok(());
    }
    let found = fs::symlink_metadata(path).map_err(failed("cannot look at", path))?;
    if !found.is_dir() {
        return refused(format!("{shown} is not a directory here; remove it"));
    }
    let fd = open_root(path).map_err(failed("cannot open", path))?;
    match meta::xattr(fd.as_fd(), MARK) {
        Ok(Some(who)) if who == feature.as_str().as_bytes() => return Ok(()),
        _ => {}
    }
    let names = beneath::names(fd.as_fd(), 1).map_err(failed("cannot list", path))?;
    if names.iter().any(|n| n != b"lost+found") {
        return refused(format!(
            "{shown} exists here and is not empty; move what is in it out of the way"
        ));
    }
    Ok(())
}

/// Makes a checked directory ready: there, empty, marked.
pub fn prepare(path: &Path, feature: &FeatureName) -> Result<Place, StateError> {
    let mut place = Place {
        path: path.to_owned(),
        made: Vec::new(),
        before: None,
    };
    let mut missing = Vec::new();
    let mut above = path;
    while fs::symlink_metadata(above).is_err() {
        missing.push(above.to_owned());
        above = above.parent().unwrap_or(Path::new("/"));
    }
    for dir in missing.into_iter().rev() {
        let mode = if dir == path { 0o700 } else { 0o755 };
        let made = fs::DirBuilder::new().mode(mode).create(&dir);
        if let Err(e) = made {
            let _ = undo(&place);
            return Err(failed("cannot make", &dir)(e));
        }
        place.made.push(dir);
    }
    let ready = || -> Result<Option<(u32, u32, u32)>, StateError> {
        let fd = open_root(path).map_err(failed("cannot open", path))?;
        let m = fs::metadata(path).map_err(failed("cannot look at", path))?;
        let marked = meta::xattr(fd.as_fd(), MARK).ok().flatten().is_some();
        meta::set_xattr(fd.as_fd(), MARK.as_bytes(), feature.as_str().as_bytes()).map_err(
            failed("cannot mark (its file system has no attributes?)", path),
        )?;
        if marked {
            // Left by a move that a reboot cut short.
            beneath::empty(fd.as_fd(), b"", &mut |_| {}).map_err(failed("cannot empty", path))?;
        }
        Ok((place.made.last().map(PathBuf::as_path) != Some(path))
            .then(|| (m.mode() & 0o7777, m.uid(), m.gid())))
    };
    match ready() {
        Ok(before) => {
            place.before = before;
            Ok(place)
        }
        Err(e) => {
            let _ = undo(&place);
            Err(e)
        }
    }
}

/// Leaves nothing of an arrival that was given up. Idempotent.
pub fn undo(place: &Place) -> Result<(), StateError> {
    let path = &place.path;
    let made = place.made.last() == Some(path);
    if made || place.before.is_some() {
        let fd = match open_root(path) {
            Ok(fd) => fd,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return remove_made(place),
            Err(e) => return Err(failed("cannot open", path)(e)),
        };
        if meta::xattr(fd.as_fd(), MARK).ok().flatten().is_none() && !made {
            return Ok(()); // not ours any more
        }
        beneath::empty(fd.as_fd(), b"", &mut |_| {}).map_err(failed("cannot empty", path))?;
        if let Some((mode, uid, gid)) = place.before {
            let was = crate::wire::state::Meta {
                mode,
                uid,
                gid,
                ..meta::of(&beneath::fstat(fd.as_fd()).map_err(failed("cannot look at", path))?)
            };
            meta::apply(fd.as_fd(), &was).map_err(failed("cannot put back", path))?;
            meta::remove_xattr(fd.as_fd(), MARK.as_bytes())
                .map_err(failed("cannot unmark", path))?;
        }
    }
    remove_made(place)
}

fn remove_made(place: &Place) -> Result<(), StateError> {
    for dir in place.made.iter().rev() {
        match fs::remove_dir(dir) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            // Somebody else uses it by now.
            Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty && *dir != place.path => {}
            Err(e) => return Err(failed("cannot remove", dir)(e)),
        }
    }
    Ok(())
}

/// The feature runs here: the directory is its own. Idempotent.
pub fn settle(place: &Place) -> Result<(), StateError> {
    let path = &place.path;
    let fd = open_root(path).map_err(failed("cannot open", path))?;
    meta::remove_xattr(fd.as_fd(), MARK.as_bytes()).map_err(failed("cannot unmark", path))
}

/// The feature left: removes its state directory. One that is a mount point stays, empty.
/// Idempotent.
pub fn remove(path: &Path) -> Result<(), StateError> {
    let fd = match open_root(path) {
        Ok(fd) => fd,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed("cannot open", path)(e)),
    };
    beneath::empty(fd.as_fd(), b"", &mut |_| {}).map_err(failed("cannot empty", path))?;
    match fs::remove_dir(path) {
        Err(e)
            if e.kind() != io::ErrorKind::NotFound
                && e.raw_os_error() != Some(nix::libc::EBUSY) =>
        {
            Err(failed("cannot remove", path)(e))
        }
        _ => Ok(()),
    }
}
