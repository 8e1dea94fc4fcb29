//! Files and commands in a guest through its QEMU guest agent.

use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::InstallError;
use crate::hypervisor::{AgentProblem, Hypervisor, HypervisorError};

/// Bytes of a file written at a time. A request must fit into the buffer of the socket between
/// libvirt and QEMU (208 KiB by default, net.core.wmem_default) after base64: beyond it, libvirt
/// 9.0 garbles the request.
const CHUNK: usize = 96 << 10;
/// Limit of one agent command, seconds.
const COMMAND_S: u32 = 15;
/// Pause between two looks at a command under way.
const POLL: Duration = Duration::from_millis(150);
/// Commands of the agent that files and commands need.
const NEEDED: [&str; 5] = [
    "guest-exec",
    "guest-exec-status",
    "guest-file-open",
    "guest-file-write",
    "guest-file-close",
];

/// Whether an agent that answered `guest-info` so takes a command.
pub(super) fn allows(info: &Value, command: &str) -> bool {
    info.get("supported_commands")
        .and_then(Value::as_array)
        .is_some_and(|all| {
            all.iter().any(|c| {
                c.get("name").and_then(Value::as_str) == Some(command)
                    && c.get("enabled").and_then(Value::as_bool) == Some(true)
            })
        })
}

/// Access to a guest's agent.
pub(super) struct Shell<'a> {
    hv: &'a Hypervisor,
    domain: &'a str,
}

impl<'a> Shell<'a> {
    /// Checks that the agent answers and allows what is needed.
    pub async fn open(hv: &'a Hypervisor, domain: &'a str) -> Result<Self, InstallError> {
        let this = Self { hv, domain };
        let info = this.agent("guest-info", &json!({})).await?;
        let missing: Vec<&str> = NEEDED.into_iter().filter(|c| !allows(&info, c)).collect();
        if missing.is_empty() {
            Ok(this)
        } else {
            Err(InstallError::Forbidden {
                domain: domain.to_owned(),
                commands: missing.join(", "),
            })
        }
    }

    /// Access without a check.
    pub fn new(hv: &'a Hypervisor, domain: &'a str) -> Self {
        Self { hv, domain }
    }

    async fn agent(&self, name: &str, arguments: &Value) -> Result<Value, InstallError> {
        let command = json!({"execute": name, "arguments": arguments});
        self.hv
            .agent(self.domain, &command, COMMAND_S)
            .await
            .map_err(|e| match e {
                HypervisorError::Agent {
                    problem: AgentProblem::NotConfigured | AgentProblem::NotAnswering,
                    ..
                } => InstallError::NoAgent {
                    domain: self.domain.to_owned(),
                    source: e,
                },
                HypervisorError::Agent {
                    problem: AgentProblem::Disabled,
                    ..
                } => InstallError::Forbidden {
                    domain: self.domain.to_owned(),
                    commands: name.to_owned(),
                },
                other => InstallError::Hypervisor(other),
            })
    }

    fn odd(&self, what: &str) -> InstallError {
        InstallError::Step {
            domain: self.domain.to_owned(),
            step: what.to_owned(),
            output: "the guest agent's answer cannot be understood".into(),
        }
    }

    /// Runs a script by `/bin/sh` in the guest; what it printed. Fails, naming `step`, with its
    /// output when it fails or takes longer than `limit`.
    pub async fn run(
        &self,
        step: &str,
        script: &str,
        limit: Duration,
    ) -> Result<String, InstallError> {
        let output = self
            .raw(step, &format!("exec 2>&1\n{script}"), limit)
            .await?;
        Ok(trimmed(&output))
    }

    /// The same with all that it printed to its standard output, and nothing else.
    pub async fn raw(
        &self,
        step: &str,
        script: &str,
        limit: Duration,
    ) -> Result<String, InstallError> {
        let failed = |output: String| InstallError::Step {
            domain: self.domain.to_owned(),
            step: step.to_owned(),
            output,
        };
        let started = self
            .agent(
                "guest-exec",
                &json!({"path": "/bin/sh", "arg": ["-c", script], "capture-output": true}),
            )
            .await?;
        let pid = started
            .get("pid")
            .and_then(Value::as_i64)
            .ok_or_else(|| self.odd(step))?;
        let start = Instant::now();
        loop {
            let status = self
                .agent("guest-exec-status", &json!({"pid": pid}))
                .await?;
            if status.get("exited").and_then(Value::as_bool) == Some(true) {
                let output = status
                    .get("out-data")
                    .and_then(Value::as_str)
                    .and_then(|d| STANDARD.decode(d).ok())
                    .unwrap_or_default();
                let output = String::from_utf8_lossy(&output).into_owned();
                return match status.get("exitcode").and_then(Value::as_i64) {
                    Some(0) => Ok(output),
                    Some(code) => Err(failed(format!("exit code {code}: {}", trimmed(&output)))),
                    None => Err(failed(format!("killed by a signal: {}", trimmed(&output)))),
                };
            }
            if start.elapsed() > limit {
                return Err(failed(format!("no end within {} s", limit.as_secs())));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Writes a file in the guest, replacing what was there. Not atomic: write beside the real
    /// name and rename. `progress` gets the bytes written so far.
    pub async fn write(
        &self,
        path: &str,
        content: &[u8],
        progress: impl Fn(usize),
    ) -> Result<(), InstallError> {
        let handle = self
            .agent("guest-file-open", &json!({"path": path, "mode": "w"}))
            .await?
            .as_i64()
            .ok_or_else(|| self.odd(path))?;
        let written = self.write_all(handle, path, content, progress).await;
        // Closing reports what buffered writing did not.
        let closed = self
            .agent("guest-file-close", &json!({"handle": handle}))
            .await;
        written?;
        closed.map(drop)
    }

    async fn write_all(
        &self,
        handle: i64,
        path: &str,
        content: &[u8],
        progress: impl Fn(usize),
    ) -> Result<(), InstallError> {
        let mut at = 0;
        while at < content.len() {
            let piece = &content[at..content.len().min(at + CHUNK)];
            let answer = self
                .agent(
                    "guest-file-write",
                    &json!({"handle": handle, "buf-b64": STANDARD.encode(piece)}),
                )
                .await?;
            let count = answer
                .get("count")
                .and_then(Value::as_u64)
                .and_then(|n| usize::try_from(n).ok())
                .filter(|n| (1..=piece.len()).contains(n))
                .ok_or_else(|| self.odd(path))?;
            at += count;
            progress(at);
        }
        Ok(())
    }
}

/// The end of a guest's output, without control characters.
fn trimmed(text: &str) -> String {
    const MOST: usize = 2000;
    let clean: Vec<char> = text
        .trim()
        .chars()
        .filter(|c| !c.is_control() || *c == '\n')
        .collect();
    clean[clean.len().saturating_sub(MOST)..].iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_cut_at_its_beginning() {
        assert_eq!(trimmed(" a\x1bb\nc \n"), "ab\nc");
        let long = format!("{}end", "x".repeat(5000));
        assert!(trimmed(&long).ends_with("xend"));
        assert_eq!(trimmed(&long).len(), 2000);
    }

    #[test]
    fn a_chunk_fits_into_the_agents_socket() {
        let request = json!({"execute": "guest-file-write", "arguments":
            {"handle": 1000, "buf-b64": STANDARD.encode(vec![0; CHUNK])}});
        assert!(request.to_string().len() < 208 << 10);
    }
}
