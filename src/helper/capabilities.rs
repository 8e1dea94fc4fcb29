//! What this guest can take: kernel, criu, CPU flags, systemd.

use std::fs;
use std::sync::OnceLock;
use std::time::Duration;

use crate::helper::command::{self, CommandError};
use crate::wire::guest::Reply;

/// `criu check` probes the kernel when it runs for the first time.
const LIMIT: Duration = Duration::from_secs(60);

/// The answer to `Capabilities`; found out once.
pub fn reply() -> Reply {
    static FOUND: OnceLock<Reply> = OnceLock::new();
    FOUND.get_or_init(find_out).clone()
}

fn find_out() -> Reply {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let (criu, criu_problem) = criu();
    let systemd = command::run("systemctl", &["--version"], "", LIMIT).unwrap_or_default();
    Reply::Capabilities {
        kernel: kernel.trim().to_owned(),
        criu,
        criu_problem,
        cpu_flags: flags_digest(&cpuinfo),
        systemd: second_word(&systemd),
    }
}

fn criu() -> (String, String) {
    match command::run("criu", &["--version"], "", LIMIT) {
        Ok(version) => {
            let problem = match command::run("criu", &["check"], "", LIMIT) {
                Ok(_) => String::new(),
                Err(CommandError::Failed { detail, .. }) => detail,
                Err(e) => e.to_string(),
            };
            (second_word(&version), problem)
        }
        Err(CommandError::Spawn { .. }) => (
            String::new(),
            "criu is not installed; install the package 'criu' in the guest".to_owned(),
        ),
        Err(e) => (String::new(), e.to_string()),
    }
}

/// `Version: 4.1.1`, `systemd 257 (257.9-1)`.
fn second_word(text: &str) -> String {
    let word = text.split_whitespace().nth(1).unwrap_or_default();
    word.chars().take(64).collect()
}

/// CRC-32 of the first processor's sorted flags, in hexadecimal.
fn flags_digest(cpuinfo: &str) -> String {
    let mut flags: Vec<&str> = cpuinfo
        .lines()
        .find_map(|l| l.split_once(':').filter(|(k, _)| k.trim() == "flags"))
        .map(|(_, v)| v.split_whitespace().collect())
        .unwrap_or_default();
    flags.sort_unstable();
    format!("{:08x}", crc32fast::hash(flags.join(" ").as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_does_not_depend_on_the_order() {
        let a = flags_digest("processor\t: 0\nflags\t\t: sse fpu avx\n");
        let b = flags_digest("flags\t\t: fpu avx sse\nflags : other\n");
        assert_eq!(a, b);
        assert_ne!(a, flags_digest("flags : fpu avx\n"));
    }

    #[test]
    fn versions() {
        assert_eq!(second_word("Version: 4.1.1\nGitID: x\n"), "4.1.1");
        assert_eq!(second_word("systemd 257 (257.9-1~deb13u1)\n+PAM"), "257");
        assert_eq!(second_word(""), "");
    }
}
