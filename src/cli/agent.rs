//! polkit's agent on this terminal, so that a user who is not root is asked for a password, as
//! systemctl does.

use std::io::{IsTerminal, Read};
use std::process::{Child, Command, Stdio};

/// The agent; it ends with this.
#[derive(Debug)]
pub struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts `pkttyagent` for this process and waits until it is registered. `None` for root, off a
/// terminal, and where there is no polkit: then nobody is asked.
pub fn start() -> Option<Agent> {
    let terminal = std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
    if nix::unistd::geteuid().is_root() || !terminal {
        return None;
    }
    let (mut registered, tell) = std::io::pipe().ok()?;
    // The agent must inherit this end, and nobody else: so it goes as its standard output, which
    // it does not use.
    let child = Command::new("pkttyagent")
        .args(["--fallback", "--notify-fd", "1", "--process"])
        .arg(std::process::id().to_string())
        .stdin(Stdio::null())
        .stdout(tell)
        .stderr(Stdio::inherit())
        .spawn()
        .ok()?;
    let agent = Agent(child);
    // It closes the pipe once it is registered, or ends.
    let mut rest = Vec::new();
    let _ = registered.read_to_end(&mut rest);
    Some(agent)
}
