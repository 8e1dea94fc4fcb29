//! Client of `criu swrk`: one process per request, spoken to over a packet socket.
//!
//! The caller drives the conversation: [`Criu::request`], then [`Criu::next`] until the final
//! answer, with [`Criu::answer`] to every step. A step that is not answered holds criu there:
//! this is the gate of a move. Dropping a [`Criu`] closes the socket; criu then gives up at its
//! next step, resumes the tasks it stopped and ends by itself. It is never killed: that would
//! leave its parasite code in the tasks.

pub mod rpc;
pub mod stats;

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use prost::Message;

use rpc::{Kind, Opts, Request, Response};

/// Where criu is.
pub const PROGRAM: &str = "/usr/sbin/criu";
/// What criu knows of the kernel, kept between its runs.
const KERNEL_DATA: &str = "/run/criu.kdat";
/// cgroup of criu's own processes, one directory per move below it: neither the helper's unit
/// nor a feature's limits touch them.
const CGROUP: &str = "/sys/fs/cgroup/drover-criu";
/// Longest wait for criu between two steps.
pub const STEP: Duration = Duration::from_secs(120);
/// Longest wait for criu to end after its last answer.
pub const END: Duration = Duration::from_secs(30);

/// Why criu did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum CriuError {
    /// It could not be started.
    #[error("criu cannot be started: {0}; install the criu package in the guest")]
    Start(io::Error),
    /// The conversation broke.
    #[error("criu ended without an answer ({0}){1}")]
    Gone(String, LogTail),
    /// It did not answer in time.
    #[error("criu did not answer within {0} s; it is left to end by itself{1}")]
    Slow(u64, LogTail),
    /// It failed.
    #[error("criu {what} failed{log}")]
    Failed {
        /// Which request.
        what: &'static str,
        /// Last error lines.
        log: LogTail,
    },
}

/// The last error lines of a criu log, for messages.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogTail(pub Vec<String>);

impl std::fmt::Display for LogTail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() {
            Ok(())
        } else {
            write!(f, ": {}", self.0.join(" | "))
        }
    }
}

impl LogTail {
    /// Reads the last error lines of the log at `path`; empty when there are none.
    pub fn read(path: &Path) -> Self {
        let text = std::fs::read(path).unwrap_or_default();
        Self::from_text(&String::from_utf8_lossy(&text))
    }

    fn from_text(text: &str) -> Self {
        let errors: Vec<&str> = text
            .lines()
            .filter(|l| l.contains("Error (") || l.contains("Error:"))
            .collect();
        let from = errors.len().saturating_sub(4);
        Self(
            errors[from..]
                .iter()
                .map(|l| {
                    // "(00.012345) Error (criu/x.c:1): text" -> "text (criu/x.c:1)"
                    let l = l.find("Error").map_or(*l, |at| &l[at..]);
                    l.chars().take(200).collect()
                })
                .collect(),
        )
    }
}

/// What criu said.
#[derive(Debug)]
pub enum Incoming {
    /// A step was reached; criu waits for [`Criu::answer`].
    Step(String),
    /// The final answer, positive.
    Done(Response),
}

/// A `criu swrk` process.
#[derive(Debug)]
pub struct Criu {
    child: Option<Child>,
    socket: OwnedFd,
    what: &'static str,
    log: PathBuf,
    // Open while criu may look at them through /proc.
    dirs: Vec<File>,
}

/// A request with the directories it needs.
#[derive(Debug)]
pub struct Job<'a> {
    /// What is asked.
    pub kind: Kind,
    /// Directory of the images.
    pub images: &'a Path,
    /// Directory of log and statistics.
    pub work: &'a Path,
    /// Name of the log file in `work`.
    pub log: &'a str,
    /// Everything else; the directories and the log are filled in.
    pub opts: Opts,
}

impl Criu {
    /// Starts criu, in the network namespace `netns` and the cgroup `cgroup` (made when absent).
    /// It then waits for a request at no cost.
    pub fn spawn(netns: &Path, cgroup: &Path) -> Result<Self, CriuError> {
        let start = |e: nix::Error| CriuError::Start(e.into());
        let (ours, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .map_err(start)?;
        let ns = File::open(netns).map_err(CriuError::Start)?;
        std::fs::create_dir_all(cgroup).map_err(CriuError::Start)?;
        let procs = super::cgroup::entrance(cgroup).map_err(CriuError::Start)?;
        let mut command = Command::new(PROGRAM);
        command
            .args(["swrk", "3"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .current_dir("/");
        let fd = theirs.as_raw_fd();
        // SAFETY: the closure runs between fork and exec and makes only system calls on
        // descriptors opened before; it allocates nothing.
        unsafe {
            command.pre_exec(move || {
                (&procs).write_all(b"0")?;
                setns(&ns, CloneFlags::CLONE_NEWNET)?;
                super::run::default_signals()?;
                keep_as_three(fd)
            });
        }
        let child = command.spawn().map_err(CriuError::Start)?;
        Ok(Self {
            child: Some(child),
            socket: ours,
            what: "start",
            log: PathBuf::new(),
            dirs: Vec::new(),
        })
    }

    /// Sends the request.
    pub fn request(&mut self, job: Job<'_>) -> Result<(), CriuError> {
        let images = File::open(job.images).map_err(CriuError::Start)?;
        let work = File::open(job.work).map_err(CriuError::Start)?;
        self.what = match job.kind {
            Kind::Dump => "dump",
            Kind::PreDump => "pre-dump",
            Kind::Restore => "restore",
            _ => "request",
        };
        self.log = job.work.join(job.log);
        let opts = Opts {
            images_dir_fd: images.as_raw_fd(),
            work_dir_fd: Some(work.as_raw_fd()),
            log_file: Some(job.log.to_owned()),
            ..job.opts
        };
        self.dirs = vec![images, work];
        self.send(&Request {
            kind: job.kind as i32,
            opts: Some(opts),
            notify_success: None,
        })
    }

    /// Lets criu go before everything else in the guest from now on.
    pub fn urge(&self) {
        if let Some(child) = &self.child {
            super::urgent::process(child.id());
        }
    }

    /// Answers the step criu waits at.
    pub fn answer(&mut self, go_on: bool) -> Result<(), CriuError> {
        self.send(&Request {
            kind: Kind::Notify as i32,
            opts: None,
            notify_success: Some(go_on),
        })
    }

    fn send(&mut self, r: &Request) -> Result<(), CriuError> {
        send(
            self.socket.as_raw_fd(),
            &r.encode_to_vec(),
            MsgFlags::MSG_NOSIGNAL,
        )
        .map(drop)
        .map_err(|e| CriuError::Gone(e.desc().to_owned(), LogTail::read(&self.log)))
    }

    /// Waits for what criu says next.
    pub fn next(&mut self, timeout: Duration) -> Result<Incoming, CriuError> {
        let r = self.receive(timeout)?;
        if r.kind == Kind::Notify as i32 {
            let step = r.notify.and_then(|n| n.script).unwrap_or_default();
            return Ok(Incoming::Step(step));
        }
        if r.success {
            return Ok(Incoming::Done(r));
        }
        let mut log = LogTail::read(&self.log);
        if log.0.is_empty() {
            log.0.extend(r.message);
        }
        Err(CriuError::Failed {
            what: self.what,
            log,
        })
    }

    /// Lets it pass every step up to its final answer.
    pub fn to_end(&mut self) -> Result<(), CriuError> {
        loop {
            match self.next(STEP)? {
                Incoming::Step(_) => self.answer(true)?,
                Incoming::Done(_) => return Ok(()),
            }
        }
    }

    fn receive(&mut self, timeout: Duration) -> Result<Response, CriuError> {
        let until = Instant::now() + timeout;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let ms = u16::try_from(left.as_millis().min(60_000)).unwrap_or(u16::MAX);
            let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::from(ms)) {
                Ok(0) if left.is_zero() => {
                    return Err(CriuError::Slow(timeout.as_secs(), LogTail::read(&self.log)));
                }
                Ok(0) | Err(nix::Error::EINTR) => {}
                Ok(_) => break,
                Err(e) => return Err(self.gone(e.desc())),
            }
        }
        let mut buf = vec![0; 64 << 10];
        match recv(self.socket.as_raw_fd(), &mut buf, MsgFlags::empty()) {
            Ok(0) => Err(self.gone("end of file")),
            Ok(n) => Response::decode(&buf[..n]).map_err(|_| self.gone("an answer it cannot mean")),
            Err(e) => Err(self.gone(e.desc())),
        }
    }

    fn gone(&self, why: &str) -> CriuError {
        CriuError::Gone(why.to_owned(), LogTail::read(&self.log))
    }

    /// Waits until criu has ended, at most `timeout`; whether it has.
    pub fn wait_end(mut self, timeout: Duration) -> bool {
        let Some(mut child) = self.child.take() else {
            return true;
        };
        let until = Instant::now() + timeout;
        loop {
            match child.try_wait() {
                Ok(Some(_)) | Err(_) => return true,
                Ok(None) if Instant::now() >= until => {
                    self.child = Some(child);
                    return false;
                }
                Ok(None) => std::thread::sleep(Duration::from_millis(2)),
            }
        }
    }
}

impl Drop for Criu {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // The socket closes with this value; somebody must collect the process.
            std::thread::spawn(move || child.wait());
        }
    }
}

/// Makes `fd` descriptor 3, open across exec. Called between fork and exec.
fn keep_as_three(fd: i32) -> io::Result<()> {
    // SAFETY: dup2 and fcntl on descriptors of this process.
    let done = unsafe {
        if fd == 3 {
            nix::libc::fcntl(3, nix::libc::F_SETFD, 0)
        } else {
            nix::libc::dup2(fd, 3)
        }
    };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// cgroup of the criu processes that dump for a move.
pub fn cgroup(id: &str) -> PathBuf {
    Path::new(CGROUP).join(id)
}

/// Waits until no criu process of the move is left, at most `timeout`, and removes their cgroup.
/// Whether none is left.
pub fn wait_none(id: &str, timeout: Duration) -> bool {
    let dir = cgroup(id);
    let until = Instant::now() + timeout;
    loop {
        let Ok(events) = std::fs::read_to_string(dir.join("cgroup.events")) else {
            return true;
        };
        if events.contains("populated 0") {
            let _ = std::fs::remove_dir(&dir);
            let _ = std::fs::remove_dir(CGROUP);
            return true;
        }
        if Instant::now() >= until {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// criu's version and what `criu check` finds wrong (empty: nothing). Both empty strings mean
/// that criu is there and well; an absent criu has an empty version and says so in the problem.
pub fn probe() -> (String, String) {
    let version = match Command::new(PROGRAM).arg("--version").output() {
        Ok(o) => String::from_utf8_lossy(&o.stdout)
            .lines()
            .find_map(|l| l.strip_prefix("Version:"))
            .map(|v| v.trim().to_owned())
            .unwrap_or_default(),
        Err(e) => return (String::new(), format!("criu cannot be started: {e}")),
    };
    let problem = match Command::new(PROGRAM).arg("check").output() {
        Ok(o) if o.status.success() => String::new(),
        Ok(o) => {
            let text = String::from_utf8_lossy(&o.stderr).into_owned();
            let first = text.lines().find(|l| l.contains("Error"));
            first
                .or(text.lines().last())
                .unwrap_or("criu check failed")
                .to_owned()
        }
        Err(e) => format!("criu check cannot be run: {e}"),
    };
    (version, problem)
}

/// [`probe`], run once as long as its result is good. It also makes criu look at the kernel and
/// keep what it found in `/run/criu.kdat`: doing that inside a feature's network namespace hangs
/// criu 4.1.1.
pub fn probed() -> (String, String) {
    static GOOD: Mutex<Option<String>> = Mutex::new(None);
    let mut good = GOOD.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(version) = good.as_ref()
        && Path::new(KERNEL_DATA).exists()
    {
        return (version.clone(), String::new());
    }
    let (version, problem) = probe();
    *good = problem.is_empty().then(|| version.clone());
    (version, problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_of_a_log_is_its_last_errors() {
        let log = "(00.01) Warn  (criu/a.c:1): soft\n(00.02) Error (criu/b.c:2): one\n\
                   (00.03) info\n(00.04) Error (criu/c.c:3): two\n";
        let t = LogTail::from_text(log);
        assert_eq!(
            t.to_string(),
            ": Error (criu/b.c:2): one | Error (criu/c.c:3): two"
        );
        assert_eq!(LogTail::from_text("fine\n").to_string(), "");
    }
}
