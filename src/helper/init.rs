//! The first process of a feature's PID namespace: a program of 121 bytes that stays root, waits for
//! the workload (number 2 there), writes its wait status to the file that its argument names, and
//! exits as the workload did.
//!
//! criu has the first process mount a /proc of the namespace, for which it must be root. With this
//! one in its place a workload may give up root, and need not reap orphans. criu dumps it along, so it
//! is as small as can be: one page of code, a stack, no descriptor but three on /dev/null, and no
//! library. It is the same for every version of the helper, so that it never stands in the way of a
//! move between guests with other versions.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;

use super::{cgroup, features, paths};
use crate::feature::FeatureName;

/// Where it is; the same in every guest, since criu opens it there. Not below /run, where nothing
/// may be executed in many guests.
pub const PROGRAM: &str = "/var/lib/drover/init";
/// The workload's number in its PID namespace.
const WORKLOAD: &str = "2";

/// Machine code of the program, position-independent.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const CODE: [u8; 121] = [
    0x4c, 0x8b, 0x64, 0x24, 0x10,       // mov r12, [rsp+16]      argv[1]: the file
    0x48, 0x83, 0xec, 0x10,             // sub rsp, 16            room for the status
    // again:
    0xbf, 0xff, 0xff, 0xff, 0xff,       // mov edi, -1
    0x48, 0x89, 0xe6,                   // mov rsi, rsp
    0x31, 0xd2,                         // xor edx, edx
    0x45, 0x31, 0xd2,                   // xor r10d, r10d
    0xb8, 0x3d, 0x00, 0x00, 0x00,       // mov eax, 61            wait4(-1, &status, 0, NULL)
    0x0f, 0x05,                         // syscall
    0x83, 0xf8, 0xfc,                   // cmp eax, -4            EINTR
    0x74, 0xe7,                         // je again
    0x85, 0xc0,                         // test eax, eax
    0x78, 0x47,                         // js lost
    0x83, 0xf8, 0x02,                   // cmp eax, 2             an orphan of the workload's?
    0x75, 0xde,                         // jne again
    0xbf, 0x9c, 0xff, 0xff, 0xff,       // mov edi, AT_FDCWD
    0x4c, 0x89, 0xe6,                   // mov rsi, r12
    0xba, 0x41, 0x02, 0x08, 0x00,       // mov edx, O_WRONLY|O_CREAT|O_TRUNC|O_CLOEXEC
    0x41, 0xba, 0x80, 0x01, 0x00, 0x00, // mov r10d, 0600
    0xb8, 0x01, 0x01, 0x00, 0x00,       // mov eax, 257           openat
    0x0f, 0x05,                         // syscall
    0x89, 0xc7,                         // mov edi, eax
    0x48, 0x89, 0xe6,                   // mov rsi, rsp
    0xba, 0x04, 0x00, 0x00, 0x00,       // mov edx, 4
    0xb8, 0x01, 0x00, 0x00, 0x00,       // mov eax, 1             write
    0x0f, 0x05,                         // syscall
    0x8b, 0x04, 0x24,                   // mov eax, [rsp]
    0x89, 0xc7,                         // mov edi, eax
    0x83, 0xe7, 0x7f,                   // and edi, 127           the signal, if any
    0x75, 0x05,                         // jnz killed
    0x0f, 0xb6, 0xfc,                   // movzx edi, ah          the exit status
    0xeb, 0x0d,                         // jmp end
    // killed:
    0x81, 0xc7, 0x80, 0x00, 0x00, 0x00, // add edi, 128
    0xeb, 0x05,                         // jmp end
    // lost:
    0xbf, 0xff, 0x00, 0x00, 0x00,       // mov edi, 255
    // end:
    0xb8, 0xe7, 0x00, 0x00, 0x00,       // mov eax, 231           exit_group
    0x0f, 0x05,                         // syscall
];

/// The program as an ELF file; `None` on processors for which there is none: a feature does
/// without it there.
#[cfg_attr(
    target_arch = "x86_64",
    expect(clippy::unnecessary_wraps, reason = "none elsewhere")
)]
fn elf() -> Option<Vec<u8>> {
    #[cfg(target_arch = "x86_64")]
    {
        const BASE: u64 = 0x40_0000;
        const HEADERS: u64 = 64 + 2 * 56;
        let size = HEADERS + CODE.len() as u64;
        let mut e = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0];
        e.resize(16, 0);
        let half = |e: &mut Vec<u8>, v: u16| e.extend_from_slice(&v.to_le_bytes());
        let word = |e: &mut Vec<u8>, v: u32| e.extend_from_slice(&v.to_le_bytes());
        let long = |e: &mut Vec<u8>, v: u64| e.extend_from_slice(&v.to_le_bytes());
        half(&mut e, 2); // executable
        half(&mut e, 62); // x86-64
        word(&mut e, 1);
        long(&mut e, BASE + HEADERS); // entry
        long(&mut e, 64); // program headers
        long(&mut e, 0); // no section headers
        word(&mut e, 0);
        for v in [64, 56, 2, 0, 0, 0] {
            half(&mut e, v);
        }
        // Loaded whole: read and executed.
        word(&mut e, 1);
        word(&mut e, 5);
        for v in [0, BASE, BASE, size, size, 0x1000] {
            long(&mut e, v);
        }
        // The stack: read and written.
        word(&mut e, 0x6474_e551);
        word(&mut e, 6);
        for v in [0, 0, 0, 0, 0, 16] {
            long(&mut e, v);
        }
        e.extend_from_slice(&CODE);
        Some(e)
    }
    #[cfg(not(target_arch = "x86_64"))]
    None
}

/// Writes the program unless it is there; what runs is never replaced. `None`: there is none for
/// this processor.
pub fn install() -> io::Result<Option<&'static Path>> {
    let Some(program) = elf() else {
        return Ok(None);
    };
    let path = Path::new(PROGRAM);
    install_at(path, &program)?;
    Ok(Some(path))
}

fn install_at(path: &Path, program: &[u8]) -> io::Result<()> {
    if fs::read(path).is_ok_and(|there| there == program) {
        return Ok(());
    }
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    features::write_with_mode(path, program, 0o755)
}

/// Where it leaves the workload's wait status.
pub fn status_file(name: &FeatureName) -> PathBuf {
    features::directory().join(format!("{name}.status"))
}

/// Whether a process is this program.
fn is(pid: Pid) -> bool {
    fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == Path::new(PROGRAM))
}

/// The feature's workload beside its `first` process; `None` when that is the workload itself.
pub fn workload(name: &FeatureName, first: Pid) -> Option<Pid> {
    if !is(first) {
        return None;
    }
    cgroup::processes(&paths::workload_cgroup(name))
        .into_iter()
        .find(|pid| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            number(&status) == Some(WORKLOAD)
        })
        .map(Pid::from_raw)
}

/// The number of a process in its own PID namespace.
fn number(status: &str) -> Option<&str> {
    let line = status.lines().find_map(|l| l.strip_prefix("NSpid:"))?;
    line.split_ascii_whitespace().last()
}

/// How the workload ended, when its first process tells.
pub fn take_status(name: &FeatureName, first: Pid) -> Option<WaitStatus> {
    let file = status_file(name);
    let bytes = fs::read(&file).ok()?;
    if let Err(e) = features::remove_file(&file) {
        tracing::warn!("cannot remove {}: {e}", file.display());
    }
    decode(&bytes, first)
}

fn decode(bytes: &[u8], first: Pid) -> Option<WaitStatus> {
    let raw = i32::from_ne_bytes(bytes.try_into().ok()?);
    WaitStatus::from_raw(first, raw).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::signal::Signal;
    use std::process::Command;

    #[test]
    fn the_number_is_that_of_the_innermost_namespace() {
        assert_eq!(
            number("Name:\tx\nNSpid:\t4711\t2\nNSsid:\t1\t1\n"),
            Some("2")
        );
        assert_eq!(number("Name:\tx\n"), None);
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn it_exits_as_the_workload_did() {
        let t = tempfile::tempdir().unwrap();
        let (program, status) = (t.path().join("init"), t.path().join("status"));
        install_at(&program, &elf().unwrap()).unwrap();
        install_at(&program, &elf().unwrap()).unwrap();
        // Alone it has nothing to wait for.
        let alone = Command::new(&program).arg(&status).status().unwrap();
        assert_eq!(alone.code(), Some(255));
        let namespaces = |script: &str| {
            Command::new("unshare")
                .args(["-r", "-p", "-f", "sh", "-c", script])
                .status()
        };
        if !namespaces("true").is_ok_and(|s| s.success()) {
            return; // not for this user
        }
        let first = Pid::from_raw(1);
        for (workload, code, want) in [
            ("exit 3", 3, WaitStatus::Exited(first, 3)),
            ("(sleep 0.1 &); exit 0", 0, WaitStatus::Exited(first, 0)),
            (
                "kill -9 $$",
                137,
                WaitStatus::Signaled(first, Signal::SIGKILL, false),
            ),
        ] {
            let script = format!(
                "sh -c '{workload}' & exec {} {}",
                program.display(),
                status.display()
            );
            let end = namespaces(&script).unwrap();
            assert_eq!(end.code(), Some(code), "{workload}");
            let told = decode(&fs::read(&status).unwrap(), first);
            assert_eq!(told, Some(want), "{workload}");
        }
        assert_eq!(decode(b"123", first), None);
    }
}
