//! Who may change things. Reading is for all that the bus lets in.

use zbus::Connection;
use zbus::message::Header;

use super::error::Error;

/// The rule: a set of user ids that may change things.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    uids: Vec<u32>,
}

impl Access {
    /// Root only.
    pub fn root() -> Self {
        Self { uids: vec![0] }
    }

    /// The given users only.
    pub fn users(uids: &[u32]) -> Self {
        Self {
            uids: uids.to_vec(),
        }
    }

    /// The check itself: may the user `uid` do `what` (a verb and its object)? `Refused` with
    /// the way out when not; a user that the bus does not tell may not.
    pub fn check(&self, uid: Option<u32>, what: &str) -> Result<(), Error> {
        match uid {
            Some(uid) if self.uids.contains(&uid) => Ok(()),
            Some(uid) => Err(Error::Refused(format!(
                "user {uid} may not {what}: only root may; run it as root, for instance with sudo"
            ))),
            None => Err(Error::Refused(format!(
                "an unknown user may not {what}: the bus did not tell who asks"
            ))),
        }
    }

    /// Asks the bus who sent `header` and checks.
    pub(super) async fn sender(
        &self,
        connection: &Connection,
        header: &Header<'_>,
        what: &str,
    ) -> Result<(), Error> {
        let uid = match header.sender() {
            Some(sender) => ask(connection, sender.clone()).await,
            None => None,
        };
        let verdict = self.check(uid, what);
        if verdict.is_err() {
            tracing::warn!(?uid, what, "refused a change on the bus");
        }
        verdict
    }
}

/// The sender's user, `None` when the bus does not tell in time.
async fn ask(connection: &Connection, sender: zbus::names::UniqueName<'_>) -> Option<u32> {
    let asked = async {
        let bus = "org.freedesktop.DBus";
        let path = "/org/freedesktop/DBus";
        let method = "GetConnectionUnixUser";
        let reply = connection
            .call_method(Some(bus), path, Some(bus), method, &sender)
            .await?;
        reply.body().deserialize::<u32>()
    };
    match tokio::time::timeout(std::time::Duration::from_secs(5), asked).await {
        Ok(Ok(uid)) => Some(uid),
        Ok(Err(error)) => {
            tracing::warn!(%error, "the bus does not tell the sender's user");
            None
        }
        Err(_) => {
            tracing::warn!("the bus did not tell the sender's user within 5 s");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_root() {
        let a = Access::root();
        assert_eq!(a.check(Some(0), "enable 'web/cache'"), Ok(()));
        let Err(Error::Refused(why)) = a.check(Some(1000), "enable 'web/cache'") else {
            panic!("not refused");
        };
        assert!(why.contains("user 1000"), "{why}");
        assert!(why.contains("enable 'web/cache'"), "{why}");
        assert!(why.contains("sudo"), "{why}");
        assert!(matches!(a.check(None, "x"), Err(Error::Refused(_))));
    }

    #[test]
    fn named_users() {
        let a = Access::users(&[7]);
        assert_eq!(a.check(Some(7), "x"), Ok(()));
        assert!(a.check(Some(0), "x").is_err());
    }
}
