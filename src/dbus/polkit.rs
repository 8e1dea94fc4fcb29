//! A client of polkit's authority, `org.freedesktop.PolicyKit1`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use zbus::{Connection, Variant};

const NAME: &str = "org.freedesktop.PolicyKit1";
const PATH: &str = "/org/freedesktop/PolicyKit1/Authority";
const INTERFACE: &str = "org.freedesktop.PolicyKit1.Authority";
/// Flag of `CheckAuthorization`: the user may be asked for a password.
const ALLOW_USER_INTERACTION: u32 = 1;

/// What polkit says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// Granted.
    Yes,
    /// Denied.
    No,
    /// Granted with a password only, which could not be asked for.
    Challenge,
    /// It does not run and cannot be started.
    Absent,
    /// No answer in this time.
    Silent(Duration),
    /// It answered with an error.
    Failed(String),
}

/// Asks whether the sender (a unique name of this bus) may do `action`. polkit looks the sender's
/// process up itself. With `interactive` it may ask the user for a password within `limit`.
pub(super) async fn check(
    connection: &Connection,
    sender: &str,
    action: &str,
    details: HashMap<&str, &str>,
    interactive: bool,
    limit: Duration,
) -> Answer {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let cancel = format!("drover-{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let subject = (
        "system-bus-name",
        HashMap::from([("name", Variant::from(sender))]),
    );
    let flags = if interactive {
        ALLOW_USER_INTERACTION
    } else {
        0
    };
    let body = (subject, action, details, flags, cancel.as_str());
    let asked = connection.call_method(
        Some(NAME),
        PATH,
        Some(INTERFACE),
        "CheckAuthorization",
        &body,
    );
    match tokio::time::timeout(limit, asked).await {
        Ok(Ok(reply)) => {
            let body = reply.body();
            match body.deserialize::<(bool, bool, HashMap<String, String>)>() {
                Ok((true, _, _)) => Answer::Yes,
                Ok((false, true, _)) => Answer::Challenge,
                Ok((false, false, _)) => Answer::No,
                Err(e) => Answer::Failed(format!("its answer is not understood: {e}")),
            }
        }
        Ok(Err(e)) => failed(&e),
        Err(_) => {
            // So that no dialog stays open for an answer that nobody waits for.
            let cancelled = connection.call_method(
                Some(NAME),
                PATH,
                Some(INTERFACE),
                "CancelCheckAuthorization",
                &cancel,
            );
            let cancelled = tokio::time::timeout(Duration::from_secs(1), cancelled).await;
            tracing::debug!(?cancelled, "polkit was asked to forget a question");
            Answer::Silent(limit)
        }
    }
}

fn failed(e: &zbus::Error) -> Answer {
    use zbus::fdo::Error as Fdo;
    if let zbus::Error::FDO(e) = e
        && let Fdo::ServiceUnknown(_) | Fdo::NameHasNoOwner(_) | Fdo::SpawnServiceNotFound(_) =
            e.as_ref()
    {
        return Answer::Absent;
    }
    Answer::Failed(e.to_string())
}
