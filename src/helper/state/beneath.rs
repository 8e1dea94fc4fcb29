//! System calls relative to an open directory that never leave it: no symbolic link on the way,
//! no `..`, no other mount (openat2(2)).

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::libc;

/// A C string of a path.
pub fn c(path: &[u8]) -> io::Result<CString> {
    CString::new(path).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// Opens what is at `path` beneath `dir`; the empty path is `dir` itself. Never follows a link.
pub fn open(dir: BorrowedFd<'_>, path: &[u8], flags: i32, mode: u32) -> io::Result<OwnedFd> {
    let path = c(if path.is_empty() { b"." } else { path })?;
    // SAFETY: open_how is plain data for which zeroes are valid; path and struct outlive the
    // call, which gets the struct's size. The descriptor is new and owned by nobody else.
    unsafe {
        let mut how: libc::open_how = std::mem::zeroed();
        how.flags = (flags | libc::O_CLOEXEC | libc::O_NOFOLLOW) as u64;
        how.mode = u64::from(if flags & libc::O_CREAT == 0 { 0 } else { mode });
        how.resolve = libc::RESOLVE_BENEATH
            | libc::RESOLVE_NO_SYMLINKS
            | libc::RESOLVE_NO_MAGICLINKS
            | libc::RESOLVE_NO_XDEV;
        let fd = libc::syscall(
            libc::SYS_openat2,
            dir.as_raw_fd(),
            path.as_ptr(),
            &raw mut how,
            size_of::<libc::open_how>(),
        );
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(OwnedFd::from_raw_fd(fd as i32))
    }
}

/// The directory that `path` is in, and its name there.
pub fn parent<'p>(dir: BorrowedFd<'_>, path: &'p [u8]) -> io::Result<(OwnedFd, &'p [u8])> {
    let (above, name) = match path.iter().rposition(|b| *b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&path[..0], path),
    };
    let fd = open(dir, above, libc::O_RDONLY | libc::O_DIRECTORY, 0)?;
    Ok((fd, name))
}

fn done(result: i32) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// What is at a name in a directory, links not followed; `None` when nothing is.
pub fn stat(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<Option<libc::stat>> {
    let name = c(name)?;
    // SAFETY: the struct is plain data, filled by the call; both outlive it.
    unsafe {
        let mut found: libc::stat = std::mem::zeroed();
        let at = libc::fstatat(
            dir.as_raw_fd(),
            name.as_ptr(),
            &raw mut found,
            libc::AT_SYMLINK_NOFOLLOW,
        );
        match done(at) {
            Ok(()) => Ok(Some(found)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }
}

/// What an open file is.
pub fn fstat(fd: BorrowedFd<'_>) -> io::Result<libc::stat> {
    // SAFETY: the struct is plain data, filled by the call.
    unsafe {
        let mut found: libc::stat = std::mem::zeroed();
        done(libc::fstat(fd.as_raw_fd(), &raw mut found))?;
        Ok(found)
    }
}

/// The kind bits of a mode.
pub fn kind(s: &libc::stat) -> u32 {
    s.st_mode & libc::S_IFMT
}

/// Names in a directory, without `.` and `..`, at most `most`.
pub fn names(dir: BorrowedFd<'_>, most: usize) -> io::Result<Vec<Vec<u8>>> {
    let again = open(dir, b"", libc::O_RDONLY | libc::O_DIRECTORY, 0)?;
    let mut listed = nix::dir::Dir::from_fd(again)?;
    let mut names = Vec::new();
    for entry in listed.iter() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
        if names.len() > most {
            break;
        }
    }
    Ok(names)
}

/// Makes a directory, private for now.
pub fn make_dir(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    let name = c(name)?;
    // SAFETY: the name outlives the call.
    done(unsafe { libc::mkdirat(dir.as_raw_fd(), name.as_ptr(), 0o700) })
}

/// Makes a symbolic link.
pub fn make_link(dir: BorrowedFd<'_>, name: &[u8], to: &[u8]) -> io::Result<()> {
    let (name, to) = (c(name)?, c(to)?);
    // SAFETY: both strings outlive the call.
    done(unsafe { libc::symlinkat(to.as_ptr(), dir.as_raw_fd(), name.as_ptr()) })
}

/// Makes a named pipe.
pub fn make_fifo(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    let name = c(name)?;
    // SAFETY: the name outlives the call.
    done(unsafe { libc::mkfifoat(dir.as_raw_fd(), name.as_ptr(), 0o600) })
}

/// Gives a file another name; a link is not followed.
pub fn link(from: (BorrowedFd<'_>, &[u8]), to: (BorrowedFd<'_>, &[u8])) -> io::Result<()> {
    let (old, new) = (c(from.1)?, c(to.1)?);
    // SAFETY: both names outlive the call.
    done(unsafe {
        libc::linkat(
            from.0.as_raw_fd(),
            old.as_ptr(),
            to.0.as_raw_fd(),
            new.as_ptr(),
            0,
        )
    })
}

/// Where a link points.
pub fn read_link(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<Vec<u8>> {
    let name = c(name)?;
    let mut to = vec![0_u8; 4097];
    // SAFETY: the buffer is as long as told, and outlives the call.
    let n = unsafe {
        libc::readlinkat(
            dir.as_raw_fd(),
            name.as_ptr(),
            to.as_mut_ptr().cast(),
            to.len(),
        )
    };
    let n = usize::try_from(n).map_err(|_| io::Error::last_os_error())?;
    to.truncate(n);
    Ok(to)
}

/// Removes whatever is at a name, with all that is in it; `gone` is told the path of each entry
/// removed, `at` being that of this one. Absence is fine.
pub fn remove(
    dir: BorrowedFd<'_>,
    name: &[u8],
    at: &[u8],
    gone: &mut dyn FnMut(&[u8]),
) -> io::Result<()> {
    let Some(found) = stat(dir, name)? else {
        return Ok(());
    };
    let mut flags = 0;
    if kind(&found) == libc::S_IFDIR {
        let inside = open(dir, name, libc::O_RDONLY | libc::O_DIRECTORY, 0)?;
        empty(inside.as_fd(), at, gone)?;
        flags = libc::AT_REMOVEDIR;
    }
    let c_name = c(name)?;
    // SAFETY: the name outlives the call.
    match done(unsafe { libc::unlinkat(dir.as_raw_fd(), c_name.as_ptr(), flags) }) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => {
            gone(at);
            Ok(())
        }
    }
}

/// Removes all that is in a directory, see [`remove`].
pub fn empty(dir: BorrowedFd<'_>, at: &[u8], gone: &mut dyn FnMut(&[u8])) -> io::Result<()> {
    for name in names(dir, usize::MAX)? {
        remove(dir, &name, &join(at, &name), gone)?;
    }
    Ok(())
}

/// A path with one more component.
pub fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() {
        name.to_vec()
    } else {
        [path, b"/", name].concat()
    }
}

/// The next data of a file from `from`: where it begins; `None` when only a hole is left.
pub fn next_data(file: &File, from: u64) -> io::Result<Option<u64>> {
    seek(file, from, libc::SEEK_DATA)
}

/// The next hole of a file from `from`; its end counts as one.
pub fn next_hole(file: &File, from: u64) -> io::Result<Option<u64>> {
    seek(file, from, libc::SEEK_HOLE)
}

fn seek(file: &File, from: u64, what: i32) -> io::Result<Option<u64>> {
    // SAFETY: lseek takes numbers only.
    let at = unsafe { libc::lseek(file.as_raw_fd(), from.cast_signed(), what) };
    if at >= 0 {
        return Ok(Some(at as u64));
    }
    let e = io::Error::last_os_error();
    if e.raw_os_error() == Some(libc::ENXIO) {
        Ok(None)
    } else {
        Err(e)
    }
}

/// Makes a hole where bytes are; zeroes where the file system has no holes.
pub fn punch(file: &File, offset: u64, length: u64) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: fallocate takes numbers only.
    let result = unsafe {
        libc::fallocate(
            file.as_raw_fd(),
            mode,
            offset.cast_signed(),
            length.cast_signed(),
        )
    };
    match done(result) {
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            let zeroes = [0; 4 << 10];
            let mut at = offset;
            while at < offset + length {
                let n = (offset + length - at).min(zeroes.len() as u64) as usize;
                file.write_all_at(&zeroes[..n], at)?;
                at += n as u64;
            }
            Ok(())
        }
        other => other,
    }
}
