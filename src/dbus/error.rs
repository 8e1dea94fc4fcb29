//! D-Bus errors `org.drover1.Error.NAME`.

use crate::api::ApiError;
use crate::feature::FeatureError;

/// One D-Bus error per kind of [`ApiError`]; the text is for people.
#[derive(Debug, Clone, PartialEq, zbus::DBusError)]
#[zbus(prefix = "org.drover1.Error")]
pub enum Error {
    /// Errors of the bus itself.
    #[zbus(error)]
    ZBus(zbus::Error),
    /// A domain, feature, host or move that is not there.
    NotFound(String),
    /// Input that cannot be right.
    Invalid(String),
    /// Understood, but refused, with the reason.
    Refused(String),
    /// Not now.
    Busy(String),
    /// No answer in time.
    Timeout(String),
    /// Anything else.
    Failed(String),
}

impl From<ApiError> for Error {
    fn from(e: ApiError) -> Self {
        match e {
            ApiError::NotFound(s) => Self::NotFound(s),
            ApiError::Invalid(s) => Self::Invalid(s),
            ApiError::Refused(s) => Self::Refused(s),
            ApiError::Busy(s) => Self::Busy(s),
            ApiError::Timeout(s) => Self::Timeout(s),
            ApiError::Failed(s) => Self::Failed(s),
        }
    }
}

impl From<FeatureError> for Error {
    fn from(e: FeatureError) -> Self {
        Self::Invalid(e.to_string())
    }
}

/// JSON for the bus.
pub(super) fn json<T: serde::Serialize>(value: &T) -> Result<String, Error> {
    serde_json::to_string(value)
        .map_err(|e| Error::Failed(format!("an answer cannot be written as JSON: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use zbus::DBusError;

    #[test]
    fn names() {
        for (e, name) in [
            (ApiError::NotFound("x".into()), "NotFound"),
            (ApiError::Invalid("x".into()), "Invalid"),
            (ApiError::Refused("x".into()), "Refused"),
            (ApiError::Busy("x".into()), "Busy"),
            (ApiError::Timeout("x".into()), "Timeout"),
            (ApiError::Failed("x".into()), "Failed"),
        ] {
            let e = Error::from(e);
            assert_eq!(e.name().as_str(), format!("org.drover1.Error.{name}"));
            assert_eq!(e.description(), Some("x"));
        }
    }
}
