//! Warns in the log before this host's certificates expire.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::transport::pki;

use super::{Daemon, clock};

/// Pause between looks.
const LOOK: Duration = Duration::from_secs(6 * 3600);
/// Time before the end from which it is warned of, seconds.
const SOON_S: i64 = 30 * 86_400;

/// What is to be said about a certificate that expires in `left_s` seconds (negative: it has).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Far,
    InDays(i64),
    Past,
}

fn judge(left_s: i64) -> End {
    match left_s {
        ..0 => End::Past,
        0..SOON_S => End::InDays(left_s / 86_400),
        _ => End::Far,
    }
}

fn tell(what: &str, path: &Path, end: End) {
    let path = path.display();
    match end {
        End::Far => {}
        End::InDays(days) => tracing::warn!(
            what, %path, days,
            "a certificate expires soon; issue a new one and restart droverd"
        ),
        End::Past => tracing::error!(
            what, %path,
            "a certificate has expired, peers refuse this host; issue a new one and restart droverd"
        ),
    }
}

/// Looks at the certificates at start and every six hours.
pub(super) async fn watch(daemon: Arc<Daemon>) {
    let Some(section) = daemon.config.peer.clone() else {
        return;
    };
    loop {
        let now_s = clock::now_ms() / 1_000;
        for (what, path) in [
            ("CA", &section.ca),
            ("server", &section.server_cert),
            ("client", &section.client_cert),
        ] {
            // One that cannot be read is told of where it is used.
            if let Some(end) = pki::expires(path) {
                let left_s = i64::try_from(end).unwrap_or(i64::MAX).saturating_sub(now_s);
                tell(what, path, judge(left_s));
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thirty_days() {
        assert_eq!(judge(-1), End::Past);
        assert_eq!(judge(0), End::InDays(0));
        assert_eq!(judge(29 * 86_400), End::InDays(29));
        assert_eq!(judge(30 * 86_400), End::Far);
    }
}
