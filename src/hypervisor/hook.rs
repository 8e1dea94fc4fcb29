//! Where the notices of `drover-hook` arrive: a datagram socket.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tokio::net::UnixDatagram;
use tokio::sync::mpsc;

/// Longest datagram, bytes.
const MAX_DATAGRAM: usize = 8 << 10;
/// Longest field of a notice, bytes.
const MAX_FIELD: usize = 1024;
/// Notices that wait for the daemon.
const QUEUE: usize = 256;

/// Why the hook's socket cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// The directory cannot be made or prepared.
    #[error("cannot prepare the directory of the hook's socket {path}")]
    Directory {
        /// Socket.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The socket cannot be bound.
    #[error("cannot listen for the libvirt hook at {path}; is another droverd running?")]
    Bind {
        /// Socket.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
}

/// What the hook was told by libvirt. A fast hint: libvirt's events are the truth.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HookNotice {
    /// Domain's name.
    pub domain: String,
    /// Operation: `prepare`, `start`, `started`, `stopped`, `release`, `migrate`, `restore`,
    /// `reconnect`, `attach`.
    pub operation: String,
    /// Sub-operation: `begin` or `end`.
    pub sub: String,
    /// Extra argument, `-` when there is none.
    pub extra: String,
}

/// Takes a datagram apart; `None` when it is not a notice.
pub(super) fn parse(datagram: &[u8]) -> Option<HookNotice> {
    if datagram.len() > MAX_DATAGRAM {
        return None;
    }
    let notice: HookNotice = serde_json::from_slice(datagram).ok()?;
    let fields = [
        &notice.domain,
        &notice.operation,
        &notice.sub,
        &notice.extra,
    ];
    let plain = fields
        .iter()
        .all(|f| f.len() <= MAX_FIELD && !f.contains(|c: char| c.is_control()));
    (plain && !notice.domain.is_empty()).then_some(notice)
}

/// Listens at `path`, replacing a socket that an earlier daemon left there. Only root may send.
/// The listener ends with the receiver. Must be called within a tokio runtime.
pub fn listen(path: &Path) -> Result<mpsc::Receiver<HookNotice>, HookError> {
    let directory = |source| HookError::Directory {
        path: path.to_owned(),
        source,
    };
    let bind = |source| HookError::Bind {
        path: path.to_owned(),
        source,
    };
    if let Some(dir) = path.parent().filter(|d| !d.exists()) {
        std::fs::create_dir_all(dir).map_err(directory)?;
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755)).map_err(directory)?;
    }
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(bind(e)),
        _ => {}
    }
    let socket = UnixDatagram::bind(path).map_err(bind)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(bind)?;
    let (tx, rx) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        let mut buf = vec![0; MAX_DATAGRAM + 1];
        loop {
            let received = tokio::select! {
                r = socket.recv(&mut buf) => r,
                () = tx.closed() => return,
            };
            match received {
                Ok(n) => {
                    let Some(notice) = parse(&buf[..n]) else {
                        tracing::debug!(bytes = n, "garbage on the hook's socket dropped");
                        continue;
                    };
                    if let Err(mpsc::error::TrySendError::Full(n)) = tx.try_send(notice) {
                        tracing::debug!(domain = n.domain, "hook notice dropped: queue full");
                    }
                }
                Err(e) => {
                    tracing::warn!(error = %e, "hook's socket failed");
                    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                }
            }
        }
    });
    Ok(rx)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_notices_pass() {
        let good = br#"{"domain":"g1","operation":"started","sub":"begin","extra":"-"}"#;
        assert_eq!(parse(good).unwrap().operation, "started");
        for bad in [
            &b""[..],
            b"\xff\xfe",
            b"{}",
            br#"{"domain":"","operation":"started","sub":"begin","extra":"-"}"#,
            br#"{"domain":"a\nb","operation":"started","sub":"begin","extra":"-"}"#,
            br#"{"domain":"a","operation":"x","sub":"begin","extra":"-","more":1}"#,
            &[b'['; MAX_DATAGRAM + 1],
        ] {
            assert_eq!(parse(bad), None);
        }
    }
}
