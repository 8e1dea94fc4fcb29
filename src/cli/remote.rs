//! `--connect HOST`: the system bus of another host, over ssh and `drover bridge` there. Tables,
//! files, editors and Ctrl-C stay here.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use zbus::Connection;
use zbus::connection::socket::{self, Socket, Split};

use super::bridge::GREETING;
use super::client::Result;
use super::error::CliError;

/// Longest wait for ssh to log in: somebody may have to type a password.
const LOGIN: Duration = Duration::from_secs(90);
/// Most bytes that login scripts may print before the bridge speaks.
const NOISE: usize = 64 << 10;
/// ssh's own exit code when it could not connect or log in.
const SSH_FAILED: i32 = 255;
/// A shell's exit code when there is no such program.
const NO_PROGRAM: i32 = 127;

/// Checks the host's name, which becomes an argument of ssh.
pub fn host(text: &str) -> std::result::Result<String, String> {
    let text = text
        .strip_prefix("ssh://")
        .unwrap_or(text)
        .trim_end_matches('/');
    let fine = |c: char| !c.is_whitespace() && !c.is_control();
    if text.is_empty() || text.starts_with('-') || !text.chars().all(fine) {
        return Err("not a host: write HOST or USER@HOST, as for ssh".to_owned());
    }
    Ok(text.to_owned())
}

/// ssh to a host, with a program there. `DROVER_SSH` names another ssh.
fn ssh(host: &str, there: &[&str], keep: bool) -> Result<Command> {
    let program = std::env::var_os("DROVER_SSH").unwrap_or_else(|| "ssh".into());
    let mut c = Command::new(program);
    // No terminal there, no forwarding, no escape character in what is not text.
    c.args(["-T", "-x", "-a", "-e", "none"]);
    if keep && let Some(dir) = std::env::var_os("XDG_RUNTIME_DIR") {
        // The interactive shell connects for each command: one login serves them all.
        let path = std::path::Path::new(&dir).join("drover-ssh-%C");
        c.args(["-o", "ControlMaster=auto", "-o", "ControlPersist=60", "-o"]);
        c.arg(format!("ControlPath={}", path.display()));
    }
    let line = shlex::try_join(there.iter().copied())
        .map_err(|e| CliError::Usage(format!("cannot be passed on: {e}")))?;
    c.arg("--").arg(host).arg(line).kill_on_drop(true);
    Ok(c)
}

/// Connects to the system bus of `host`; `timeout` is the longest wait for each answer.
pub async fn connect(host: &str, timeout: Duration, keep: bool) -> Result<Connection> {
    let mut child = ssh(host, &["drover", "bridge"], keep)?
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|e| {
            CliError::Failed(format!("cannot run ssh: {e}; is openssh-client installed?"))
        })?;
    let (Some(stdin), Some(mut stdout)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(CliError::Failed("ssh has no pipes".to_owned()));
    };
    let login = async {
        if greeted(&mut stdout).await {
            return Ok(());
        }
        let code = child.wait().await.ok().and_then(|s| s.code());
        Err(CliError::Failed(match code {
            Some(SSH_FAILED) => {
                format!("cannot log in on host '{host}' by ssh; see what \"ssh {host} true\" says")
            }
            Some(NO_PROGRAM) => format!(
                "host '{host}' has no drover of its own; install Drover there, or see where its PATH leads"
            ),
            _ => format!("\"drover bridge\" on host '{host}' ended before it answered"),
        }))
    };
    tokio::time::timeout(LOGIN.max(timeout), login)
        .await
        .map_err(|_| {
            CliError::Timeout(format!(
                "host '{host}' did not let us in within {} s; see what \"ssh {host} true\" says",
                LOGIN.max(timeout).as_secs()
            ))
        })??;
    let pipe = Pipe {
        child,
        stdin,
        stdout,
    };
    let guid = zbus::Guid::generate();
    let connecting = async {
        let connection = zbus::connection::Builder::authenticated_socket(pipe, guid)
            .method_timeout(timeout)
            .build()
            .await?;
        // zbus leaves the greeting of the bus to whoever authenticated.
        let (bus, path) = ("org.freedesktop.DBus", "/org/freedesktop/DBus");
        connection
            .call_method(Some(bus), path, Some(bus), "Hello", &())
            .await?;
        Ok::<_, zbus::Error>(connection)
    };
    match tokio::time::timeout(timeout, connecting).await {
        Ok(Ok(c)) => Ok(c),
        Ok(Err(e)) => Err(CliError::Failed(format!(
            "the system bus of host '{host}' does not answer: {e}"
        ))),
        Err(_) => Err(CliError::Timeout(format!(
            "the system bus of host '{host}' did not answer within {} s",
            timeout.as_secs_f64()
        ))),
    }
}

/// Reads up to the bridge's greeting; false when the output ends before it.
async fn greeted(from: &mut ChildStdout) -> bool {
    let mut line = Vec::new();
    for _ in 0..NOISE {
        match from.read_u8().await {
            Ok(b'\n') => {
                if line.ends_with(GREETING.as_bytes()) {
                    return true;
                }
                line.clear();
            }
            Ok(b) => line.push(b),
            Err(_) => return false,
        }
    }
    false
}

/// Runs `drover ARGS` on the host itself, its output being ours; its exit code.
pub async fn run_there(host: &str, args: &[&str]) -> Result<i32> {
    let there = [&["drover"], args].concat();
    let status = ssh(host, &there, false)?
        .stdin(Stdio::null())
        .status()
        .await
        .map_err(|e| CliError::Failed(format!("cannot run ssh: {e}")))?;
    match status.code() {
        Some(SSH_FAILED) | None => Err(CliError::Failed(format!(
            "cannot run drover on host '{host}' by ssh"
        ))),
        Some(code) => Ok(code),
    }
}

/// The pipes of ssh as zbus takes them; ssh ends with them.
#[derive(Debug)]
struct Pipe {
    child: Child,
    stdin: ChildStdin,
    stdout: ChildStdout,
}

impl Socket for Pipe {
    type ReadHalf = Reader;
    type WriteHalf = Writer;

    fn split(self) -> Split<Reader, Writer> {
        Split::new(
            Reader(self.stdout),
            Writer {
                to: self.stdin,
                _child: self.child,
            },
        )
    }
}

#[derive(Debug)]
struct Reader(ChildStdout);

#[async_trait]
impl socket::ReadHalf for Reader {
    async fn recvmsg(&mut self, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
        Ok((self.0.read(buffer).await?, Vec::new()))
    }
}

#[derive(Debug)]
struct Writer {
    to: ChildStdin,
    _child: Child,
}

#[async_trait]
impl socket::WriteHalf for Writer {
    async fn sendmsg(&mut self, buffer: &[u8], _fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
        self.to.write(buffer).await
    }

    async fn flush(&mut self) -> io::Result<()> {
        self.to.flush().await
    }

    async fn close(&mut self) -> io::Result<()> {
        self.to.shutdown().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_no_options() {
        assert_eq!(host("root@h1").unwrap(), "root@h1");
        assert_eq!(host("ssh://h1/").unwrap(), "h1");
        for bad in ["", "-oProxyCommand=x", "a b", "a\nb"] {
            assert!(host(bad).is_err(), "{bad}");
        }
    }
}
