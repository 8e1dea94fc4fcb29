//! Runs a command to its end, with a timeout.

use std::io::{self, Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Where the guest's own tools are looked up.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why a command gave no result.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// Not installed or not executable.
    #[error("cannot run {command}: {source}; is it installed in the guest?")]
    Spawn {
        /// Command line.
        command: String,
        /// Cause.
        source: std::io::Error,
    },
    /// Ended with a failure.
    #[error("{command} failed ({status}): {detail}")]
    Failed {
        /// Command line.
        command: String,
        /// How it ended.
        status: String,
        /// Its exit code, when it exited by itself.
        code: Option<i32>,
        /// What it wrote, shortened.
        detail: String,
    },
    /// Took too long and was killed.
    #[error("{command} did not end within {seconds} s and was killed")]
    Timeout {
        /// Command line.
        command: String,
        /// Limit.
        seconds: u64,
    },
}

/// Runs `program` with `args`, gives it `stdin`, and returns its standard output. The namespaces
/// are those of the calling thread. Killed after `timeout`.
pub fn run(
    program: &str,
    args: &[&str],
    stdin: &str,
    timeout: Duration,
) -> Result<String, CommandError> {
    let command = || {
        let mut line = program.to_owned();
        for a in args {
            line.push(' ');
            line.push_str(a);
        }
        line
    };
    let spawn = |source| CommandError::Spawn {
        command: command(),
        source,
    };
    let mut child = Command::new(program)
        .args(args)
        .env("PATH", PATH)
        .env("LC_ALL", "C")
        .stdin(if stdin.is_empty() {
            Stdio::null()
        } else {
            Stdio::piped()
        })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(spawn)?;
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let input = child.stdin.take();
    std::thread::scope(|scope| {
        let out = scope.spawn(move || read_all(out));
        let err = scope.spawn(move || read_all(err));
        if let Some(mut pipe) = input {
            // A command that does not read its input tells why by its status.
            let _ = pipe.write_all(stdin.as_bytes());
        }
        let Some(status) = wait(&mut child, timeout, || true).map_err(spawn)? else {
            return Err(CommandError::Timeout {
                command: command(),
                seconds: timeout.as_secs(),
            });
        };
        let out = out.join().unwrap_or_default();
        let err = err.join().unwrap_or_default();
        if status.success() {
            return Ok(out);
        }
        let detail = if err.trim().is_empty() { &out } else { &err };
        Err(CommandError::Failed {
            command: command(),
            status: status.to_string(),
            code: status.code(),
            detail: detail
                .trim()
                .chars()
                .take(500)
                .collect::<String>()
                .replace('\n', "; "),
        })
    })
}

/// Waits for the end of `child`, as long as `go_on` says so and at most `timeout`; then kills it:
/// `None`.
pub fn wait(
    child: &mut Child,
    timeout: Duration,
    go_on: impl Fn() -> bool,
) -> io::Result<Option<ExitStatus>> {
    let end = Instant::now() + timeout;
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= end || !go_on() {
            let _ = child.kill();
            let _ = child.wait();
            return Ok(None);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

fn read_all(pipe: Option<impl Read>) -> String {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        // 1 MiB is far more than any of the commands used here writes.
        let _ = pipe.take(1 << 20).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_output_failure_and_timeout() {
        let second = Duration::from_secs(5);
        assert_eq!(run("cat", &[], "hello", second).unwrap(), "hello");
        let failed = run("sh", &["-c", "echo why >&2; exit 3"], "", second).unwrap_err();
        assert!(
            matches!(&failed, CommandError::Failed { code: Some(3), detail, .. } if detail == "why")
        );
        let slow = run("sleep", &["60"], "", Duration::from_millis(50)).unwrap_err();
        assert!(matches!(slow, CommandError::Timeout { .. }));
        let absent = run("/nonexistent", &[], "", second).unwrap_err();
        assert!(absent.to_string().contains("is it installed"));
    }
}
