//! ssh instead of TLS, for hosts without certificates of their own: `ssh` runs
//! `drover peer-stdio` on the other host, which passes standard input and output on to droverd's
//! socket there.
//!
//! ```text
//! droverd ─ socketpair ─ ssh ═══ sshd ─ drover peer-stdio --from NAME ─ unix socket ─ droverd
//! ```
//!
//! The other host is who its host key says (`peer.ssh_known_hosts`). This host is who the other
//! side's `authorized_keys` says: the forced command there names it. The socket is root's alone,
//! so whoever writes a name into it is root on that host or was let in by sshd under that name.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncWriteExt, copy_bidirectional};
use tokio::net::{UnixListener, UnixStream};

use super::stream::{read_answer, read_line};
use super::{Cut, Link, Protocol, TransportError};

/// Longest first line on the socket, bytes.
const MAX_HELLO: usize = 512;

/// How a peer is reached by ssh.
#[derive(Debug, Clone)]
pub struct Ssh {
    /// `[user@]host`.
    pub destination: String,
    /// This host's name; a forced command on the other side overrides it.
    pub me: String,
    /// Private key.
    pub key: PathBuf,
    /// Host keys.
    pub known_hosts: PathBuf,
}

impl Ssh {
    fn command(&self, protocol: Protocol, dead_after: Duration) -> tokio::process::Command {
        let option = |name: &str, value: &dyn std::fmt::Display| format!("-o{name}={value}");
        let seconds = (dead_after.as_secs_f64() / 3.0).ceil().max(1.0) as u64;
        let mut ssh = tokio::process::Command::new("ssh");
        // Nothing of a user's own configuration: it is not there under systemd's confinement, and
        // what reaches a peer shall be in drover.toml alone.
        ssh.args(["-F", "none", "-T", "-x", "-a"])
            .arg("-i")
            .arg(&self.key)
            .arg(option("UserKnownHostsFile", &self.known_hosts.display()))
            .args([
                "-oGlobalKnownHostsFile=none",
                "-oStrictHostKeyChecking=yes",
                "-oBatchMode=yes",
                "-oIdentitiesOnly=yes",
                "-oPasswordAuthentication=no",
                "-oServerAliveCountMax=2",
            ])
            .arg(option("ServerAliveInterval", &seconds))
            .arg("--")
            .arg(&self.destination)
            .args(["drover", "peer-stdio", "--from", &self.me, protocol.word()]);
        ssh
    }

    /// Starts ssh and waits for the other droverd's greeting.
    pub(super) async fn connect(
        &self,
        protocol: Protocol,
        dead_after: Duration,
    ) -> Result<Link, String> {
        let (here, there) = std::os::unix::net::UnixStream::pair().map_err(|e| e.to_string())?;
        let cut = Cut::Unix(here.try_clone().map_err(|e| e.to_string())?);
        here.set_nonblocking(true).map_err(|e| e.to_string())?;
        let out = there.try_clone().map_err(|e| e.to_string())?;
        let mut child = self
            .command(protocol, dead_after)
            .stdin(std::os::fd::OwnedFd::from(there))
            .stdout(std::os::fd::OwnedFd::from(out))
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| format!("cannot start ssh: {e}; is openssh-client installed?"))?;
        let said = child.stderr.take();
        let mut stream: super::Stream =
            Box::new(UnixStream::from_std(here).map_err(|e| e.to_string())?);
        let answer = read_answer(&mut stream).await;
        if let Err(why) = answer {
            // ssh tells on standard error what is wrong, in its own words.
            let _ = child.start_kill();
            let own = match said {
                Some(mut pipe) => last_line(&mut pipe).await,
                None => String::new(),
            };
            let _ = child.wait().await;
            return Err(if own.is_empty() {
                why
            } else {
                format!("ssh: {own}")
            });
        }
        // It ends when its socket does, and is waited for then.
        tokio::spawn(async move {
            let _ = child.wait().await;
        });
        Ok(Link { stream, cut })
    }
}

async fn last_line(pipe: &mut tokio::process::ChildStderr) -> String {
    use tokio::io::AsyncReadExt;
    let mut text = Vec::new();
    let mut pipe = pipe.take(16 << 10);
    let _ = tokio::time::timeout(Duration::from_secs(1), pipe.read_to_end(&mut text)).await;
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().rfind(|l| !l.trim().is_empty());
    let line = line.unwrap_or_default().trim().chars();
    line.filter(|c| !c.is_control()).take(300).collect()
}

/// Binds the socket for `drover peer-stdio`, root's alone; one that a killed daemon left is
/// replaced.
pub(super) fn bind(path: &Path) -> Result<UnixListener, TransportError> {
    let socket = |source| TransportError::Socket {
        path: path.to_owned(),
        source,
    };
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(socket(e)),
        _ => {}
    }
    // Made under another name that nobody can use yet, so that it is never open to others.
    let before = path.with_extension("new");
    let _ = std::fs::remove_file(&before);
    let listener = UnixListener::bind(&before).map_err(socket)?;
    std::fs::set_permissions(&before, std::fs::Permissions::from_mode(0o600)).map_err(socket)?;
    std::fs::rename(&before, path).map_err(socket)?;
    Ok(listener)
}

/// Reads who comes and for what.
pub(super) async fn hello(stream: &mut UnixStream) -> Result<(String, Protocol), String> {
    let line = read_line(stream, MAX_HELLO)
        .await
        .map_err(|e| e.to_string())?;
    let (word, name) = line.split_once(' ').ok_or("no name in the first line")?;
    let protocol = Protocol::from_word(word)
        .ok_or("the two sides speak different versions of the peer protocol")?;
    Ok((name.to_owned(), protocol))
}

/// `drover peer-stdio`: connects standard input and output to droverd, as peer `from`.
pub async fn stdio(socket: &Path, from: &str, protocol: Protocol) -> std::io::Result<()> {
    let mut there = UnixStream::connect(socket).await?;
    there
        .write_all(format!("{} {from}\n", protocol.word()).as_bytes())
        .await?;
    let mut here = tokio::io::join(tokio::io::stdin(), tokio::io::stdout());
    copy_bidirectional(&mut here, &mut there).await?;
    Ok(())
}
