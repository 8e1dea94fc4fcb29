//! Owner, mode, times and extended attributes of entries.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::libc;

use super::beneath::c;
use crate::wire::state::{MAX_XATTRS, Meta};

/// Attributes of Drover's own, which do not move.
const OWN: &[u8] = b"trusted.drover.";

/// What makes an entry, of its status; attributes are [`xattrs`].
pub fn of(s: &libc::stat) -> Meta {
    Meta {
        mode: s.st_mode & 0o7777,
        uid: s.st_uid,
        gid: s.st_gid,
        mtime_s: s.st_mtime,
        mtime_ns: s.st_mtime_nsec as u32,
        xattrs: Vec::new(),
    }
}

/// Calls that fill a buffer and tell the size they need.
fn sized(call: impl Fn(*mut u8, usize) -> isize) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0_u8; 4096];
    loop {
        let n = call(buffer.as_mut_ptr(), buffer.len());
        if n >= 0 {
            buffer.truncate(n.unsigned_abs());
            return Ok(buffer);
        }
        let e = io::Error::last_os_error();
        if e.raw_os_error() == Some(libc::ERANGE) && buffer.len() < MAX_XATTRS {
            buffer.resize(buffer.len() * 4, 0);
        } else {
            return Err(e);
        }
    }
}

fn names(fd: BorrowedFd<'_>) -> io::Result<Vec<CString>> {
    // SAFETY: the buffer is as long as told.
    let list = sized(|p, n| unsafe { libc::flistxattr(fd.as_raw_fd(), p.cast(), n) });
    let list = match list {
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => Vec::new(),
        other => other?,
    };
    let mut names: Vec<CString> = list
        .split(|b| *b == 0)
        .filter(|n| !n.is_empty() && !n.starts_with(OWN))
        .filter_map(|n| c(n).ok())
        .collect();
    names.sort();
    Ok(names)
}

/// Extended attributes of an open file or directory, by name.
pub fn xattrs(fd: BorrowedFd<'_>) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut found = Vec::new();
    let mut total = 0;
    for name in names(fd)? {
        // SAFETY: the buffer is as long as told, the name outlives the call.
        let value =
            sized(|p, n| unsafe { libc::fgetxattr(fd.as_raw_fd(), name.as_ptr(), p.cast(), n) });
        match value {
            Ok(v) => {
                total += v.len() + name.as_bytes().len();
                if total > MAX_XATTRS {
                    let why = "it has more than 256 KiB of extended attributes";
                    return Err(io::Error::other(why));
                }
                found.push((name.into_bytes(), v));
            }
            // Gone meanwhile.
            Err(e) if e.raw_os_error() == Some(libc::ENODATA) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(found)
}

fn done(result: i32) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// The value of one attribute; `None` without it.
pub fn xattr(fd: BorrowedFd<'_>, name: &str) -> io::Result<Option<Vec<u8>>> {
    let name = c(name.as_bytes())?;
    // SAFETY: the buffer is as long as told, the name outlives the call.
    let value =
        sized(|p, n| unsafe { libc::fgetxattr(fd.as_raw_fd(), name.as_ptr(), p.cast(), n) });
    match value {
        Ok(v) => Ok(Some(v)),
        Err(e) if e.raw_os_error() == Some(libc::ENODATA) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Sets one attribute.
pub fn set_xattr(fd: BorrowedFd<'_>, name: &[u8], value: &[u8]) -> io::Result<()> {
    let name = c(name)?;
    // SAFETY: name and value outlive the call, which gets the value's size.
    done(unsafe {
        libc::fsetxattr(
            fd.as_raw_fd(),
            name.as_ptr(),
            value.as_ptr().cast(),
            value.len(),
            0,
        )
    })
}

/// Removes one attribute; its absence is fine.
pub fn remove_xattr(fd: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    let name = c(name)?;
    // SAFETY: the name outlives the call.
    match done(unsafe { libc::fremovexattr(fd.as_raw_fd(), name.as_ptr()) }) {
        Err(e) if e.raw_os_error() == Some(libc::ENODATA) => Ok(()),
        other => other,
    }
}

fn times(meta: &Meta) -> [libc::timespec; 2] {
    // SAFETY: plain data for which zeroes are valid.
    let mut t: [libc::timespec; 2] = unsafe { std::mem::zeroed() };
    t[0].tv_nsec = libc::UTIME_OMIT;
    t[1].tv_sec = meta.mtime_s;
    t[1].tv_nsec = i64::from(meta.mtime_ns.min(999_999_999));
    t
}

/// Makes an open file or directory what `meta` says. Attributes that it has and `meta` lacks go.
pub fn apply(fd: BorrowedFd<'_>, meta: &Meta) -> io::Result<()> {
    let raw = fd.as_raw_fd();
    // The order counts: a change of owner clears setuid and capabilities.
    // SAFETY: fchown and fchmod take numbers only.
    done(unsafe { libc::fchown(raw, meta.uid, meta.gid) })?;
    // SAFETY: as above.
    done(unsafe { libc::fchmod(raw, meta.mode) })?;
    for name in names(fd)? {
        if !meta.xattrs.iter().any(|(n, _)| n == name.as_bytes()) {
            remove_xattr(fd, name.as_bytes())?;
        }
    }
    for (name, value) in &meta.xattrs {
        if name.starts_with(OWN) {
            continue;
        }
        set_xattr(fd, name, value)?;
    }
    let t = times(meta);
    // SAFETY: the array of two outlives the call.
    done(unsafe { libc::futimens(raw, t.as_ptr()) })
}

/// Gives a link or pipe in a directory its owner, mode and time.
pub fn apply_at(dir: BorrowedFd<'_>, name: &[u8], meta: &Meta, link: bool) -> io::Result<()> {
    let (raw, name) = (dir.as_raw_fd(), c(name)?);
    let flags = libc::AT_SYMLINK_NOFOLLOW;
    // SAFETY: the name outlives the call.
    done(unsafe { libc::fchownat(raw, name.as_ptr(), meta.uid, meta.gid, flags) })?;
    if !link {
        // SAFETY: as above. Nobody but this guest's root can put a link in its place.
        done(unsafe { libc::fchmodat(raw, name.as_ptr(), meta.mode, 0) })?;
    }
    let t = times(meta);
    // SAFETY: name and array outlive the call.
    done(unsafe { libc::utimensat(raw, name.as_ptr(), t.as_ptr(), flags) })
}
