//! Moves by hand to where the feature is already: there is nothing to do, which is no failure.

use crate::api::{ApiError, ApiEvent, Destination, Job, JobResult, MoveDetail};
use crate::feature::FeatureName;
use crate::store::Change;

use super::{Daemon, clock, lock};

/// Whether a destination is the place where a feature is.
fn is_here(to: &Destination, host: &str, domain: &str) -> bool {
    to.host.as_deref() == Some(host) && to.domain.as_deref().is_none_or(|d| d == domain)
}

impl Daemon {
    /// The move as it begins; it ends as skipped at once, told and recorded as every move. `None`
    /// when `to` is another place, or none in particular.
    pub(super) async fn skipped(
        &self,
        domain: &str,
        feature: &FeatureName,
        to: &Destination,
    ) -> Result<Option<Job>, ApiError> {
        if !is_here(to, self.name(), domain) {
            return Ok(None);
        }
        {
            let instances = lock(&self.instances);
            let (_, f) = self.find(&instances, domain, feature)?;
            if f.moving.is_some() {
                // It is on its way: that move decides where it is.
                return Ok(None);
            }
        }
        let now = clock::now_ms();
        let begun = Job {
            id: uuid::Uuid::new_v4().to_string(),
            feature: feature.clone(),
            from_host: self.name().to_owned(),
            from_domain: domain.to_owned(),
            to_host: self.name().to_owned(),
            to_domain: domain.to_owned(),
            cause: "manual".into(),
            state: "preparing".into(),
            result: None,
            reason: None,
            rounds: 0,
            bytes_sent: 0,
            freeze_ms: None,
            started_ms: now,
            ended_ms: None,
            history: Vec::new(),
            detail: MoveDetail::default(),
        };
        let ended = Job {
            state: "ended".into(),
            result: Some(JobResult::Skipped),
            reason: Some(format!(
                "it is in domain '{domain}' on host '{}' already",
                self.name()
            )),
            ended_ms: Some(now),
            ..begun.clone()
        };
        let record = Change::PutJob(Box::new(ended.clone()));
        let written = self.write(vec![record]).await;
        written.map_err(|e| ApiError::Failed(format!("the journal cannot be written: {e}")))?;
        // Both, so that the move has an object whose own signal tells the end.
        for job in [begun.clone(), ended] {
            self.emit(ApiEvent::Move { job });
        }
        Ok(Some(begun))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn here_and_elsewhere() {
        let to = |host: Option<&str>, domain: Option<&str>| Destination {
            host: host.map(str::to_owned),
            domain: domain.map(str::to_owned),
            method: None,
        };
        assert!(is_here(&to(Some("h1"), None), "h1", "g1"));
        assert!(is_here(&to(Some("h1"), Some("g1")), "h1", "g1"));
        for other in [
            to(None, None),
            to(Some("h2"), None),
            to(Some("h1"), Some("g1b")),
            to(Some("h2"), Some("g1")),
        ] {
            assert!(!is_here(&other, "h1", "g1"), "{other:?}");
        }
    }
}
