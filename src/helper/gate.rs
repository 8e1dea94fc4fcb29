//! The gate of a restore: the supervisor (main process of the feature's unit) runs criu and holds
//! it before the restored tasks may run; the daemon tells it, over a socket, when to go on.
//!
//! ```text
//! daemon                         supervisor (in the feature's unit)
//!   connect gate.sock  ------->    state, at once and at every change:
//!   <-----  waiting | restoring | ready MS | running PID | failed WHY
//!   restore ROUND      ------->    criu RESTORE up to its post-restore step
//!   resume             ------->    criu goes on
//!   discard            ------->    criu gives up, the supervisor ends
//! ```
//! The state is also in `gate.json`, for a daemon that was restarted. Either side may be
//! restarted as long as the other lives: the daemon connects anew.

use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::criu::rpc::{CGROUPS_IGNORE, Kind, NETWORK_LOCK_SKIP, Opts};
use super::criu::{self, Criu, CriuError, Incoming, Job};
use super::urgent::Urgent;
use super::{cgroup, netns, paths, sockets};
use crate::feature::{FeatureName, FeatureSpec};

/// Why a restore did not lead to a running feature.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    /// The socket or a file failed.
    #[error("the gate of move {0} failed: {1}")]
    Io(String, io::Error),
    /// criu failed.
    #[error(transparent)]
    Criu(#[from] CriuError),
    /// criu's answer lacks the process.
    #[error("criu restored without naming the process")]
    NoPid,
    /// The daemon gave the move up.
    #[error("the move was discarded")]
    Discarded,
}

/// Where a restore stands, as said on the socket and kept in `gate.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// criu is started and waits for the images.
    Waiting,
    /// criu restores.
    Restoring,
    /// At the gate.
    Ready {
        /// Milliseconds the restore took.
        ms: u64,
    },
    /// Runs.
    Running {
        /// Root task.
        pid: i32,
    },
    /// Failed; the supervisor ends.
    Failed {
        /// Why.
        why: String,
    },
}

/// What the daemon says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Restore from this round.
    Restore {
        /// Last round.
        round: u16,
    },
    /// Let it run.
    Resume,
    /// Give up.
    Discard,
}

fn socket_path(dir: &Path) -> PathBuf {
    dir.join("gate.sock")
}

/// The state that the supervisor of the move in `dir` wrote last.
pub fn last_state(dir: &Path) -> Option<State> {
    serde_json::from_slice(&std::fs::read(dir.join("gate.json")).ok()?).ok()
}

/// The daemon's end of a gate.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
    line: String,
}

impl Client {
    /// Connects to the supervisor of the move in `dir`.
    pub fn connect(dir: &Path) -> io::Result<Self> {
        Ok(Self {
            stream: BufReader::new(UnixStream::connect(socket_path(dir))?),
            line: String::new(),
        })
    }

    /// Sends an order.
    pub fn order(&mut self, order: &Order) -> io::Result<()> {
        let mut line = serde_json::to_vec(order)?;
        line.push(b'\n');
        self.stream.get_mut().write_all(&line)
    }

    /// The next state; `None` when none came within `timeout`. An error: the supervisor is gone.
    pub fn state(&mut self, timeout: Duration) -> io::Result<Option<State>> {
        self.stream.get_ref().set_read_timeout(Some(timeout))?;
        match self.stream.read_line(&mut self.line) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {
                let state = serde_json::from_str(&self.line)?;
                self.line.clear();
                Ok(Some(state))
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(e) => Err(e),
        }
    }
}

/// Replaces the state (a feature that comes without a supervisor has one too), also when the images' tmpfs is full: a spare page, taken when the restore
/// began, is given up for it then.
pub fn write_state(dir: &Path, state: &State) -> io::Result<()> {
    let text = serde_json::to_vec(state)?;
    let (tmp, spare) = (dir.join("gate.json.new"), dir.join("gate.spare"));
    if std::fs::write(&tmp, &text).is_err() {
        let _ = std::fs::remove_file(&spare);
        std::fs::write(&tmp, &text)?;
    }
    std::fs::rename(&tmp, dir.join("gate.json"))
}

struct Server {
    dir: PathBuf,
    id: String,
    listener: UnixListener,
    peer: Option<BufReader<UnixStream>>,
    state: State,
}

impl Server {
    fn new(id: &str) -> Result<Self, GateError> {
        let dir = paths::move_dir(id);
        let err = |e| GateError::Io(id.to_owned(), e);
        let path = socket_path(&dir);
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).map_err(err)?;
        let mut server = Self {
            dir,
            id: id.to_owned(),
            listener,
            peer: None,
            state: State::Waiting,
        };
        std::fs::write(server.dir.join("gate.spare"), [0; 4096]).map_err(err)?;
        server.set(State::Waiting)?;
        Ok(server)
    }

    fn set(&mut self, state: State) -> Result<(), GateError> {
        let err = |e| GateError::Io(self.id.clone(), e);
        write_state(&self.dir, &state).map_err(err)?;
        self.state = state;
        self.tell();
        Ok(())
    }

    /// The feature runs: from here on nothing may end it for want of a record.
    fn set_running(&mut self, pid: Pid) {
        let state = State::Running { pid: pid.as_raw() };
        if let Err(e) = self.set(state.clone()) {
            tracing::error!("{e}; the feature runs, but that is only known while its unit lives");
            self.state = state;
            self.tell();
        }
    }

    fn tell(&mut self) {
        let Ok(mut line) = serde_json::to_vec(&self.state) else {
            return;
        };
        line.push(b'\n');
        if let Some(p) = &mut self.peer
            && p.get_mut().write_all(&line).is_err()
        {
            self.peer = None;
        }
    }

    /// Waits for an order, across the daemon's restarts.
    fn order(&mut self) -> Result<Order, GateError> {
        loop {
            let buffered = self.peer.as_ref().is_some_and(|p| !p.buffer().is_empty());
            if !buffered {
                let mut fds = vec![PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
                if let Some(p) = &self.peer {
                    fds.push(PollFd::new(p.get_ref().as_fd(), PollFlags::POLLIN));
                }
                match poll(&mut fds, PollTimeout::NONE) {
                    Ok(_) | Err(nix::Error::EINTR) => {}
                    Err(e) => return Err(GateError::Io(self.id.clone(), e.into())),
                }
                let ready = |i: usize| {
                    let fd: Option<&PollFd<'_>> = fds.get(i);
                    fd.is_some_and(|f| f.revents().is_some_and(|r| !r.is_empty()))
                };
                let (knocks, speaks) = (ready(0), ready(1));
                if knocks {
                    // A new daemon, or a new request of the same one, replaces the old talk.
                    if let Ok((stream, _)) = self.listener.accept() {
                        let _ = stream.set_write_timeout(Some(Duration::from_secs(5)));
                        let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
                        self.peer = Some(BufReader::new(stream));
                        self.tell();
                    }
                    continue;
                }
                if !speaks {
                    continue;
                }
            }
            let mut line = String::new();
            match self.peer.as_mut().map(|p| p.read_line(&mut line)) {
                Some(Ok(n)) if n > 0 => match serde_json::from_str(&line) {
                    Ok(order) => return Ok(order),
                    Err(e) => tracing::warn!("gate of {}: not an order: {e}", self.id),
                },
                _ => self.peer = None,
            }
        }
    }
}

/// Runs the restore of a move: called by the supervisor, inside the feature's cgroup. Blocks
/// through the gate until the feature runs. The returned process is a child of the caller.
pub fn restore(name: &FeatureName, spec: &FeatureSpec, id: &str) -> Result<Pid, GateError> {
    let mut server = Server::new(id)?;
    let end = serve(name, spec, &mut server);
    if let Err(e) = &end {
        let _ = server.set(State::Failed { why: e.to_string() });
    }
    end
}

fn serve(name: &FeatureName, spec: &FeatureSpec, server: &mut Server) -> Result<Pid, GateError> {
    let ns = paths::netns(name);
    // The restore is part of the downtime: the feature's own CPU limit comes back with it.
    let _unlimited = cgroup::Unlimited::new(&paths::cgroup_dir(name));
    let mut criu = Criu::spawn(&ns, &paths::workload_cgroup(name))?;
    let round = loop {
        match server.order()? {
            Order::Restore { round } => break round,
            Order::Discard => return Err(GateError::Discarded),
            Order::Resume => tracing::warn!("move {}: nothing to resume yet", server.id),
        }
    };
    // The feature stands still from here until it runs.
    let urgent = Urgent::here();
    criu.urge();
    server.set(State::Restoring)?;
    let begin = Instant::now();
    to_gate(&mut criu, &server.id, round)?;
    let ms = begin.elapsed().as_millis() as u64;
    server.set(State::Ready { ms })?;
    // While the host records that it is ready.
    let peers = sockets::peers(&cgroup::processes(&paths::workload_cgroup(name)));
    loop {
        match server.order()? {
            Order::Resume => break,
            Order::Restore { .. } => server.tell(),
            Order::Discard => {
                criu.answer(false)?;
                // criu kills what it restored; this takes a moment and its result is known.
                let _ = criu.next(criu::STEP);
                criu.wait_end(Duration::from_secs(10));
                return Err(GateError::Discarded);
            }
        }
    }
    // First the network: criu's last steps make the sockets speak, and what the peers send from
    // now on meets restored sockets.
    open(name, spec);
    let pid = match through_gate(criu, name, &peers) {
        Ok(pid) => pid,
        Err(e) => {
            // Committed: only this guest may run the feature, and the images are still here.
            tracing::warn!("feature {name}: {e}; restoring once more");
            if let Err(e) = netns::gate(name) {
                tracing::warn!("feature {name}: {e}");
            }
            clear(name).map_err(|e| GateError::Io(server.id.clone(), e))?;
            let mut criu = Criu::spawn(&ns, &paths::workload_cgroup(name))?;
            to_gate(&mut criu, &server.id, round)?;
            open(name, spec);
            through_gate(criu, name, &peers)?
        }
    };
    server.set_running(pid);
    drop(urgent);
    Ok(pid)
}

/// Opens the feature's network and announces its address. The move is committed: it runs in any
/// case, and a resume that is asked for once more tries this again.
fn open(name: &FeatureName, spec: &FeatureSpec) {
    if let Some(m) = spec.managed()
        && let Err(e) = netns::announce(name, m)
    {
        tracing::error!("feature {name} is restored but cut off: {e}");
    }
}

/// Kills what a failed restore left: tasks that hold the feature's ports, maybe a criu.
fn clear(name: &FeatureName) -> io::Result<()> {
    cgroup::kill(&paths::workload_cgroup(name), Duration::from_secs(10))
}

/// Has criu restore up to its post-restore step.
fn to_gate(criu: &mut Criu, id: &str, round: u16) -> Result<(), GateError> {
    criu.request(Job {
        kind: Kind::Restore,
        images: &paths::round_dir(id, round),
        work: &paths::move_dir(id),
        log: "restore.log",
        opts: Opts {
            tcp_established: Some(true),
            file_locks: Some(true),
            log_level: Some(2),
            notify_scripts: Some(true),
            rst_sibling: Some(true),
            manage_cgroups_mode: Some(CGROUPS_IGNORE),
            network_lock: Some(NETWORK_LOCK_SKIP),
            ..Opts::default()
        },
    })?;
    loop {
        match criu.next(criu::STEP)? {
            Incoming::Step(s) if s == "post-restore" => return Ok(()),
            Incoming::Step(_) => criu.answer(true)?,
            Incoming::Done(_) => return Err(GateError::NoPid),
        }
    }
}

/// Lets criu go on behind the gate until it reports success. Peers are nudged as soon as the
/// tasks run, which is before criu is through.
fn through_gate(
    mut criu: Criu,
    name: &FeatureName,
    peers: &[sockets::Peer],
) -> Result<Pid, GateError> {
    criu.answer(true)?;
    loop {
        match criu.next(criu::STEP)? {
            Incoming::Step(s) => {
                criu.answer(true)?;
                if s == "pre-resume" {
                    sockets::nudge(name, peers);
                }
            }
            Incoming::Done(r) => {
                let pid = r.restore.ok_or(GateError::NoPid)?.pid;
                return Ok(Pid::from_raw(pid));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_replaced_and_the_spare_page_kept_while_there_is_room() {
        let t = tempfile::tempdir().unwrap();
        std::fs::write(t.path().join("gate.spare"), [0; 4096]).unwrap();
        let state = State::Ready { ms: 7 };
        write_state(t.path(), &state).unwrap();
        assert_eq!(last_state(t.path()), Some(State::Ready { ms: 7 }));
        assert!(t.path().join("gate.spare").exists());
        // No room for the new file (here: a directory in its place): the spare page goes.
        std::fs::create_dir(t.path().join("gate.json.new")).unwrap();
        assert!(write_state(t.path(), &state).is_err());
        assert!(!t.path().join("gate.spare").exists());
        assert_eq!(last_state(t.path()), Some(State::Ready { ms: 7 }));
    }
}
