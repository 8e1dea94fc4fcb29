//! libvirt hook: tells droverd that libvirt is about to do, or did, something with an instance.
//!
//! libvirt runs it synchronously, without a timeout, and takes what it prints at `migrate` and
//! `restore` for a new definition; a failure of some operations kills the guest. So it prints
//! nothing, reads nothing (the domain's definition on standard input is not needed; libvirt does
//! not mind that nobody reads it), sends one datagram that cannot block, and always succeeds.
//! droverd takes the notice as a hint only: libvirt's own events are the truth.

use std::ffi::OsString;
use std::fmt::Write;
use std::os::unix::net::UnixDatagram;
use std::process::ExitCode;

/// Where droverd listens.
const SOCKET: &str = "/run/drover/hook.sock";
/// Another socket, for tests.
const SOCKET_VARIABLE: &str = "DROVER_HOOK_SOCKET";
/// Longest field, characters.
const MAX_FIELD: usize = 255;

fn main() -> ExitCode {
    let notice = notice(std::env::args_os().skip(1));
    let socket = std::env::var_os(SOCKET_VARIABLE).unwrap_or_else(|| SOCKET.into());
    // Whatever fails here - no daemon, a full queue, a daemon that hangs - is not libvirt's
    // business.
    if let Ok(sender) = UnixDatagram::unbound()
        && sender.set_nonblocking(true).is_ok()
    {
        let _ = sender.send_to(notice.as_bytes(), socket);
    }
    ExitCode::SUCCESS
}

/// The datagram: domain, operation, sub-operation and extra argument as JSON.
fn notice(mut args: impl Iterator<Item = OsString>) -> String {
    let mut out = String::from("{");
    for (i, key) in ["domain", "operation", "sub", "extra"].iter().enumerate() {
        let value = args.next().unwrap_or_default();
        if i > 0 {
            out.push(',');
        }
        out.push('"');
        out.push_str(key);
        out.push_str("\":\"");
        escape(&value.to_string_lossy(), &mut out);
        out.push('"');
    }
    out.push('}');
    out
}

/// Appends a bounded piece of `text` as the inside of a JSON string.
fn escape(text: &str, out: &mut String) {
    for c in text.chars().take(MAX_FIELD) {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if c.is_control() => {
                // Control characters are all below 0x100: one unit of UTF-16.
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(list: &[&str]) -> String {
        notice(list.iter().map(OsString::from))
    }

    #[test]
    fn a_notice() {
        assert_eq!(
            args(&["g1", "started", "begin", "-"]),
            r#"{"domain":"g1","operation":"started","sub":"begin","extra":"-"}"#
        );
        assert_eq!(
            args(&[]),
            r#"{"domain":"","operation":"","sub":"","extra":""}"#
        );
    }

    #[test]
    fn hostile_arguments_stay_inside_their_string() {
        let text = args(&["a\"b\\c\nd\u{7f}", &"x".repeat(5000)]);
        assert!(text.starts_with(r#"{"domain":"a\"b\\c\u000ad\u007f","operation":"xxx"#));
        assert!(text.len() < 400);
    }
}
