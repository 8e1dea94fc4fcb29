//! A feature's own commands around a move: run as root in the feature's network namespace and
//! environment, in a cgroup beside its workload, so that they are metered with it, are never part
//! of a dump, and end with their time, children included.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::command::{self, PATH};
use super::moves::{Failure, Record, Side};
use super::{cgroup, features, init, netns, paths, urgent};
use nix::unistd::Pid;

use crate::feature::{FeatureName, FeatureSpec};
use crate::method::{Hook, HookName};
use crate::wire::guest::{ErrorKind, Event};

/// Bytes of a command's output that are kept; the first ones.
const OUTPUT: usize = 2048;
/// Pause between attempts of `health`.
const AGAIN: Duration = Duration::from_millis(250);
/// Longest wait for killed processes to end.
const DYING: Duration = Duration::from_secs(5);

/// Runs the commands of a feature that is part of a move.
pub struct Hooks<'a> {
    /// Move.
    pub id: &'a str,
    /// Its record.
    pub record: &'a Record,
    /// Ends a command early.
    pub cancel: &'a AtomicBool,
    /// Where to tell of each.
    pub events: &'a dyn Fn(Event),
}

impl Hooks<'_> {
    /// Runs one, if the feature has it. `health` is asked until it is good, for as long as it may
    /// take.
    pub fn run(&self, name: HookName) -> Result<(), Failure> {
        let spec = self.record.definition()?;
        let Some(hook) = spec.hooks().get(name) else {
            return Ok(());
        };
        let limit = Duration::from_secs(hook.timeout_s);
        let begin = Instant::now();
        loop {
            let left = limit.saturating_sub(begin.elapsed());
            let end = self.once(&spec, name, hook, left.max(AGAIN));
            let again = name == HookName::Health
                && begin.elapsed() + AGAIN < limit
                && !self.cancel.load(Ordering::Relaxed);
            if end.is_ok() || !again {
                self.tell(&spec.name, name, begin, &end);
                return end
                    .map(|_| ())
                    .map_err(|why| failure(&spec.name, name, &why));
            }
            std::thread::sleep(AGAIN);
        }
    }

    fn tell(
        &self,
        feature: &FeatureName,
        name: HookName,
        begin: Instant,
        end: &Result<String, String>,
    ) {
        let (id, name, ms) = (self.id, name.as_str(), begin.elapsed().as_millis());
        let text = match end {
            Ok(output) => format!("{name} done in {ms} ms{output}"),
            Err(why) => format!("{name} {why} ({ms} ms)"),
        };
        if end.is_ok() {
            tracing::info!("move {id} of {feature}: {text}");
        } else {
            tracing::warn!("move {id} of {feature}: {text}");
        }
        (self.events)(Event::Hook {
            id: id.to_owned(),
            feature: feature.clone(),
            text,
        });
    }

    /// One attempt: what it wrote, or how it failed.
    fn once(
        &self,
        spec: &FeatureSpec,
        name: HookName,
        hook: &Hook,
        limit: Duration,
    ) -> Result<String, String> {
        let group = Group::new(&spec.name, name)?;
        let (mut reader, mut child) = self.spawn(spec, name, hook, &group)?;
        let reading = std::thread::spawn(move || {
            let (mut kept, mut buffer) = (Vec::new(), [0; 4096]);
            while let Ok(n @ 1..) = reader.read(&mut buffer) {
                let room = OUTPUT - kept.len();
                kept.extend_from_slice(&buffer[..n.min(room)]);
            }
            kept
        });
        let end = command::wait(&mut child, limit, || !self.cancel.load(Ordering::Relaxed))
            .map_err(|e| format!("cannot be waited for: {e}"));
        // Whatever it started ends with it, or the pipe would stay open.
        if let Err(e) = cgroup::kill(&group.0, DYING) {
            tracing::warn!("after {} of {}: {e}", name.as_str(), spec.name);
        }
        let output = shown(&reading.join().unwrap_or_default());
        match end? {
            Some(status) if status.success() => Ok(output),
            Some(status) => Err(format!("failed ({status}){output}")),
            None if self.cancel.load(Ordering::Relaxed) => {
                Err("was cut short, as the move was given up".to_owned())
            }
            None => Err(format!(
                "did not end within {} s and was killed{output}",
                limit.as_secs_f32().round()
            )),
        }
    }

    fn spawn(
        &self,
        spec: &FeatureSpec,
        name: HookName,
        hook: &Hook,
        group: &Group,
    ) -> Result<(File, Child), String> {
        let pipe = || nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC);
        let (reader, writer) = pipe().map_err(|e| format!("has no pipe: {e}"))?;
        let second = writer
            .try_clone()
            .map_err(|e| format!("has no pipe: {e}"))?;
        let program = hook.exec.first().map_or("", String::as_str);
        let mut command = Command::new(program);
        command
            .args(hook.exec.iter().skip(1))
            .env_clear()
            .env("PATH", PATH)
            .envs(spec.managed().map(|m| &m.environment).into_iter().flatten())
            .env("DROVER_HOOK", name.as_str())
            .env("DROVER_FEATURE", spec.name.as_str())
            .env("DROVER_MOVE", self.id)
            .env("DROVER_METHOD", self.record.method.as_str())
            .env(
                "DROVER_SIDE",
                match self.record.side {
                    Side::Source => "source",
                    Side::Target => "target",
                },
            )
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(writer)
            .stderr(second);
        if let Some(first) = features::pid(&spec.name).map(Pid::from_raw) {
            let pid = init::workload(&spec.name, first).unwrap_or(first);
            command.env("DROVER_PID", pid.to_string());
        }
        let procs = cgroup::entrance(&group.0).map_err(|e| format!("has no cgroup: {e}"))?;
        // SAFETY: between fork and exec only a write to a file that is open already, and setsid.
        unsafe {
            command.pre_exec(move || {
                (&procs).write_all(b"0")?;
                nix::unistd::setsid()?;
                Ok(())
            });
        }
        let spawned = netns::within(&spec.name, move || {
            // Not before the feature that it waits for.
            urgent::usual();
            command.spawn()
        });
        let child = spawned
            .map_err(|e| e.to_string())?
            .map_err(|e| format!("cannot run {program}: {e}"))?;
        Ok((File::from(reader), child))
    }
}

fn failure(feature: &FeatureName, name: HookName, why: &str) -> Failure {
    Failure::new(
        ErrorKind::Refused,
        format!("hooks.{} of feature '{feature}' {why}", name.as_str()),
    )
}

/// Output for logs and reasons: one line, bounded.
fn shown(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    let text = text.trim().replace('\n', "; ");
    if text.is_empty() {
        return String::new();
    }
    format!(": {}", text.chars().take(500).collect::<String>())
}

/// The cgroup of a command.
struct Group(PathBuf);

impl Group {
    /// A group of its own for each: what kills the rest of one hook must not meet the next.
    fn new(feature: &FeatureName, hook: HookName) -> Result<Self, String> {
        let dir = paths::cgroup_dir(feature).join(format!("hook-{}", hook.as_str()));
        match fs::create_dir(&dir) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
                Err(format!("cannot run, as the feature does not: {e}"))
            }
            _ => Ok(Self(dir)),
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_one_bounded_line() {
        assert_eq!(shown(b" \n"), "");
        assert_eq!(shown(b"a\nb\n"), ": a; b");
        assert_eq!(shown(&[b'x'; OUTPUT]).len(), 502);
    }
}
