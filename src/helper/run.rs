//! `drover-guest run NAME`: the main process of a managed feature's unit. It starts the workload
//! in namespaces of its own, or takes it over from criu, and supervises it.
//!
//! The workload is a session leader in a PID namespace and an IPC namespace of its own, beside a
//! small first process that stays root ([`super::init`]); its network is the feature's namespace;
//! its mounts are the guest's (criu refuses a copy of them). Its output goes to a FIFO that the
//! supervisor passes on to its own standard error, as criu cannot dump a connection to journald. It
//! inherits nothing else.

use std::convert::Infallible;
use std::ffi::{CStr, CString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, sigaction};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid};

use crate::feature::{FeatureName, Managed};
use crate::helper::cgroup;
use crate::helper::command::PATH;
use crate::helper::features::{self, FeatureFileError};
use crate::helper::init;
use crate::helper::netns::{self, NetError};
use crate::helper::paths;

/// Why a workload could not be started or supervised.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// No usable definition.
    #[error(transparent)]
    Definition(#[from] FeatureFileError),
    /// The feature is a unit of the guest's own.
    #[error("feature '{0}' is an existing unit of the guest; there is nothing to run")]
    NotManaged(FeatureName),
    /// No namespace.
    #[error(transparent)]
    Network(#[from] NetError),
    /// A system call failed.
    #[error("feature '{0}': cannot {1}: {2}")]
    System(FeatureName, &'static str, io::Error),
    /// The program could not be executed.
    #[error("feature '{0}' did not start: {1}")]
    Start(FeatureName, String),
    /// criu could not restore it.
    #[error("feature '{0}' was not restored: {1}")]
    Restore(FeatureName, String),
}

/// Brings the workload back from a move's images and returns its first process, a child of the
/// caller. Called inside the unit's cgroup, with the log FIFO open for reading and SIGTERM,
/// SIGINT and SIGCHLD blocked; see [`default_signals`].
pub type Restore<'a> = &'a dyn Fn(&FeatureName) -> Result<Pid, String>;

/// Runs the feature to its end and returns the exit status for the unit.
pub fn run(name: &FeatureName, restore: Option<Restore>) -> Result<i32, RunError> {
    let outcome = run_to_end(name, restore);
    if let Err(e) = &outcome {
        leave_word(name, &e.to_string());
    }
    outcome
}

fn run_to_end(name: &FeatureName, restore: Option<Restore>) -> Result<i32, RunError> {
    let system = |what| move |e: io::Error| RunError::System(name.clone(), what, e);
    let spec = features::get(name)?;
    let managed = spec
        .managed()
        .ok_or_else(|| RunError::NotManaged(name.clone()))?;
    let log = open_log(name).map_err(system("make its log FIFO"))?;
    // The daemon made it before, outside of this unit's CPU limit, unless the unit was started
    // by hand.
    if !netns::ready(name) {
        netns::create(name, managed, restore.is_none())?;
    }
    let signals = block_signals().map_err(system("block signals"))?;
    fs::create_dir_all(paths::workload_cgroup(name)).map_err(system("make a cgroup"))?;
    let child = match restore {
        None => start(name, managed)?,
        Some(restore) => restore(name).map_err(|e| RunError::Restore(name.clone(), e))?,
    };
    let pid = format!("{child}\n");
    features::write_atomically(&paths::feature_pid(name), pid.as_bytes())
        .map_err(system("write its PID file"))?;
    supervise(name, child, &signals, log).map_err(system("supervise it"))
}

/// Resets what a child of the supervisor must not inherit: the blocked signals, and SIGPIPE,
/// which the Rust runtime ignores.
pub fn default_signals() -> io::Result<()> {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: installs the default action, no handler code of ours.
    unsafe { sigaction(Signal::SIGPIPE, &default) }?;
    SigSet::empty().thread_set_mask()?;
    Ok(())
}

/// Makes the FIFO, the same mode in every guest as criu compares it, and opens it. Opened for
/// writing too, so that it never reads as ended.
fn open_log(name: &FeatureName) -> io::Result<File> {
    let path = features::log_fifo(name);
    features::remove_file(&path)?;
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
}

fn block_signals() -> io::Result<SignalFd> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD] {
        set.add(signal);
    }
    set.thread_block()?;
    Ok(SignalFd::with_flags(
        &set,
        SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK,
    )?)
}

/// Starts the workload and waits until its program was executed.
fn start(name: &FeatureName, managed: &Managed) -> Result<Pid, RunError> {
    let system = |what| move |e: io::Error| RunError::System(name.clone(), what, e);
    let workload = Workload::new(name, managed)?;
    let (report, child_report) = pipe().map_err(system("make a pipe"))?;
    let own = File::open("/proc/self/ns/pid").map_err(system("open its PID namespace"))?;
    unshare(CloneFlags::CLONE_NEWPID).map_err(|e| system("make a PID namespace")(e.into()))?;
    // SAFETY: this process has a single thread here, so the child may do anything.
    let child = match unsafe { nix::unistd::fork() } {
        Ok(ForkResult::Parent { child }) => child,
        Ok(ForkResult::Child) => {
            drop(report);
            let Err(why) = workload.first_process(&child_report);
            let _ = File::from(child_report).write_all(why.as_bytes());
            // SAFETY: ends the child without running the parent's exit handlers.
            unsafe { libc::_exit(127) }
        }
        Err(e) => return Err(system("start a process")(e.into())),
    };
    // Later children and threads belong into the guest's PID namespace again.
    setns(&own, CloneFlags::CLONE_NEWPID)
        .map_err(|e| system("return to the guest's PID namespace")(e.into()))?;
    drop(child_report);
    let mut why = String::new();
    File::from(report)
        .read_to_string(&mut why)
        .map_err(system("read the start report"))?;
    if why.is_empty() {
        return Ok(child);
    }
    let _ = waitpid(child, None);
    Err(RunError::Start(name.clone(), why))
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?)
}

/// What the first process executes.
struct First {
    program: CString,
    arguments: [CString; 2],
}

/// What the child needs, prepared before the fork.
struct Workload {
    first: Option<First>,
    program: CString,
    arguments: Vec<CString>,
    environment: Vec<CString>,
    network: File,
    cgroup: File,
    log: std::path::PathBuf,
}

impl Workload {
    fn new(name: &FeatureName, managed: &Managed) -> Result<Self, RunError> {
        let bad = |_| RunError::Start(name.clone(), "a NUL byte in exec or environment".into());
        let arguments = managed
            .exec
            .iter()
            .map(|a| CString::new(a.as_str()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(bad)?;
        let program = arguments
            .first()
            .cloned()
            .ok_or_else(|| RunError::Start(name.clone(), "exec is empty".into()))?;
        let mut environment = Vec::new();
        if !managed.environment.contains_key("PATH") {
            environment.push(CString::new(format!("PATH={PATH}")).map_err(bad)?);
        }
        for (key, value) in &managed.environment {
            environment.push(CString::new(format!("{key}={value}")).map_err(bad)?);
        }
        let network = File::open(paths::netns(name))
            .map_err(|e| RunError::System(name.clone(), "open its network namespace", e))?;
        let cgroup = cgroup::entrance(&paths::workload_cgroup(name))
            .map_err(|e| RunError::System(name.clone(), "open its cgroup", e))?;
        // Without it the workload itself is the first process, and must stay root to be moved.
        let first = match init::install() {
            Ok(path) => path.map(|p| p.display().to_string()),
            Err(e) => {
                tracing::warn!("{} cannot be written: {e}", init::PROGRAM);
                None
            }
        };
        let first = match first {
            Some(path) => {
                let status = init::status_file(name).display().to_string();
                let text = |t: String| CString::new(t).map_err(bad);
                Some(First {
                    program: text(path)?,
                    arguments: [text("drover-init".to_owned())?, text(status)?],
                })
            }
            None => None,
        };
        Ok(Self {
            first,
            program,
            arguments,
            environment,
            network,
            cgroup,
            log: features::log_fifo(name),
        })
    }

    /// In the first process of the PID namespace: becomes the workload, or what waits for it; or
    /// says why not.
    fn first_process(&self, report: &OwnedFd) -> Result<Infallible, String> {
        let at = |what: &'static str| move |e: Errno| format!("cannot {what}: {}", e.desc());
        let io = |what: &'static str| move |e: io::Error| format!("cannot {what}: {e}");
        (&self.cgroup)
            .write_all(b"0")
            .map_err(io("enter its cgroup"))?;
        setns(&self.network, CloneFlags::CLONE_NEWNET).map_err(at("enter its network"))?;
        // System V shared memory and semaphores: criu carries those of a namespace only.
        unshare(CloneFlags::CLONE_NEWIPC).map_err(at("make an IPC namespace"))?;
        nix::unistd::chdir("/").map_err(at("change to /"))?;
        nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
        let Some(first) = &self.first else {
            return self.become_it(report);
        };
        // SAFETY: this process has a single thread, so the child may do anything.
        match unsafe { nix::unistd::fork() }.map_err(at("start a process"))? {
            ForkResult::Child => self.become_it(report),
            ForkResult::Parent { .. } => {
                nix::unistd::setsid().map_err(at("start a session"))?;
                let null = OpenOptions::new()
                    .read(true)
                    .write(true)
                    .open("/dev/null")
                    .map_err(io("open /dev/null"))?;
                nix::unistd::dup2_stdin(&null).map_err(at("set standard input"))?;
                nix::unistd::dup2_stdout(&null).map_err(at("set standard output"))?;
                nix::unistd::dup2_stderr(&null).map_err(at("set standard error"))?;
                let none: [&CStr; 0] = [];
                execute(report, &first.program, &first.arguments, &none)
            }
        }
    }

    /// Becomes the workload, or says why not.
    fn become_it(&self, report: &OwnedFd) -> Result<Infallible, String> {
        let at = |what: &'static str| move |e: Errno| format!("cannot {what}: {}", e.desc());
        let io = |what: &'static str| move |e: io::Error| format!("cannot {what}: {e}");
        nix::unistd::setsid().map_err(at("start a session"))?;
        let null = File::open("/dev/null").map_err(io("open /dev/null"))?;
        let log = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&self.log)
            .map_err(io("open its log FIFO"))?;
        nix::unistd::dup2_stdin(&null).map_err(at("set standard input"))?;
        nix::unistd::dup2_stdout(&log).map_err(at("set standard output"))?;
        nix::unistd::dup2_stderr(&log).map_err(at("set standard error"))?;
        execute(report, &self.program, &self.arguments, &self.environment)
    }
}

/// Executes a program with no descriptors but the first three, and no signal blocked or ignored; or
/// says why not.
fn execute<A: AsRef<CStr>, E: AsRef<CStr>>(
    report: &OwnedFd,
    program: &CString,
    arguments: &[A],
    environment: &[E],
) -> Result<Infallible, String> {
    debug_assert!(report.as_raw_fd() > 2);
    // SAFETY: marks descriptors close-on-exec, closes nothing that is owned here.
    let marked = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3_u32,
            u32::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    Errno::result(marked).map_err(|e| format!("cannot close inherited files: {}", e.desc()))?;
    default_signals().map_err(|e| format!("cannot reset signals: {e}"))?;
    let Err(e) = nix::unistd::execve(program, arguments, environment);
    Err(format!(
        "cannot execute {}: {}",
        program.to_string_lossy(),
        e.desc()
    ))
}

/// Passes signals on and the log along, until the workload ends; returns the exit status.
fn supervise(name: &FeatureName, child: Pid, signals: &SignalFd, mut log: File) -> io::Result<i32> {
    let mut stopping = false;
    loop {
        if let Some(status) = reap(child)? {
            pass_on(&mut log);
            // Of the workload itself, when the first process waited for it.
            let status = init::take_status(name, child).unwrap_or(status);
            let (code, mut word) = describe(status);
            if stopping {
                return Ok(0);
            }
            let events = paths::cgroup_dir(name).join("memory.events");
            if code == 137 && had_oom_kill(&fs::read_to_string(events).unwrap_or_default()) {
                word.push_str(" for lack of memory");
            }
            eprintln!("workload of feature '{name}' {word}");
            leave_word(name, &word);
            return Ok(code);
        }
        let mut fds = [
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(log.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
        pass_on(&mut log);
        while let Some(signal) = signals.read_signal()? {
            if signal.ssi_signo == Signal::SIGCHLD as u32 {
                continue;
            }
            stopping = true;
            let workload = init::workload(name, child);
            // The first process of a PID namespace never dies of a signal it does not handle.
            let signal = if workload.is_some() || heeds_termination(child) {
                Signal::SIGTERM
            } else {
                Signal::SIGKILL
            };
            match kill(workload.unwrap_or(child), signal) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

/// Collects every dead child; the status of `child` when it is among them.
fn reap(child: Pid) -> io::Result<Option<WaitStatus>> {
    let mut found = None;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(found),
            Ok(status @ (WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, _, _)))
                if pid == child =>
            {
                found = Some(status);
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

fn describe(status: WaitStatus) -> (i32, String) {
    match status {
        WaitStatus::Exited(_, code) => (code, format!("exited with status {code}")),
        WaitStatus::Signaled(_, signal, _) => (
            128 + signal as i32,
            format!("was killed by {}", signal.as_str()),
        ),
        other => (1, format!("ended: {other:?}")),
    }
}

fn had_oom_kill(events: &str) -> bool {
    events
        .lines()
        .filter_map(|l| l.strip_prefix("oom_kill "))
        .any(|count| count.trim() != "0")
}

/// Whether the process handles, blocks (to wait for it) or ignores SIGTERM itself.
fn heeds_termination(pid: Pid) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    mask_has_term(&status)
}

fn mask_has_term(status: &str) -> bool {
    let bit = 1_u64 << (Signal::SIGTERM as u32 - 1);
    status.lines().any(|line| {
        line.split_once(':').is_some_and(|(key, value)| {
            ["SigCgt", "SigBlk", "SigIgn"].contains(&key)
                && u64::from_str_radix(value.trim(), 16).is_ok_and(|mask| mask & bit != 0)
        })
    })
}

/// Writes what is in the FIFO to standard error. A reader that cannot keep up loses nothing: the
/// FIFO holds 64 KiB and then the workload waits.
fn pass_on(log: &mut File) {
    let mut buffer = [0_u8; 16384];
    while let Ok(n @ 1..) = log.read(&mut buffer) {
        let _ = io::stderr().write_all(&buffer[..n]);
    }
}

/// Run by systemd after the unit's end: tells of a supervisor that could not do so itself.
/// `result` is systemd's `$SERVICE_RESULT`.
pub fn after_end(name: &FeatureName, result: &str) {
    let supervisor_died = ["signal", "core-dump", "oom-kill", "watchdog"].contains(&result);
    if supervisor_died && !features::exit_file(name).exists() {
        leave_word(
            name,
            &format!("lost its supervisor ({result}) and was ended"),
        );
    }
}

/// Leaves a sentence for the daemon, which makes an event of it.
fn leave_word(name: &FeatureName, word: &str) {
    if let Err(e) = features::write_atomically(&features::exit_file(name), word.as_bytes()) {
        eprintln!("cannot tell that feature '{name}' {word}: {e}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_who_heeds_sigterm() {
        assert!(mask_has_term(
            "SigBlk:\t0000000000000000\nSigCgt:\t0000000000004000\n"
        ));
        assert!(!mask_has_term(
            "SigBlk:\t0000000000000000\nSigCgt:\t0000000000000001\n"
        ));
    }

    #[test]
    fn knows_a_kill_for_lack_of_memory() {
        assert!(had_oom_kill("low 0\noom 1\noom_kill 1\noom_group_kill 0\n"));
        assert!(!had_oom_kill("oom 0\noom_kill 0\n"));
    }

    #[test]
    fn describes_ends() {
        let pid = Pid::from_raw(5);
        assert_eq!(
            describe(WaitStatus::Exited(pid, 3)),
            (3, "exited with status 3".into())
        );
        assert_eq!(
            describe(WaitStatus::Signaled(pid, Signal::SIGKILL, false)),
            (137, "was killed by SIGKILL".into())
        );
    }
}
