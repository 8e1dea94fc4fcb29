//! What can go wrong with a QMP connection.

/// Why QMP failed.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// The socket cannot be reached or broke.
    #[error("QMP socket")]
    Io(#[from] std::io::Error),
    /// QEMU closed the connection.
    #[error("QEMU closed the QMP connection")]
    Closed,
    /// No answer in time.
    #[error("QEMU did not answer '{command}' within {ms} ms")]
    Timeout {
        /// Command.
        command: &'static str,
        /// Limit, milliseconds.
        ms: u128,
    },
    /// A line longer than [`crate::codec::MAX_LINE`].
    #[error("QMP line of {0} bytes or more")]
    TooLong(usize),
    /// A line that is not JSON.
    #[error("QMP line is not JSON")]
    NotJson(#[source] serde_json::Error),
    /// QEMU refused the command.
    #[error("QEMU refused '{command}': {class}: {description}")]
    Refused {
        /// Command.
        command: &'static str,
        /// QEMU's error class.
        class: String,
        /// QEMU's words.
        description: String,
    },
    /// An answer that does not have the expected form.
    #[error("QEMU's answer to '{command}' is not understood")]
    Answer {
        /// Command.
        command: &'static str,
        /// Cause.
        #[source]
        source: serde_json::Error,
    },
    /// Something that has no place in the protocol.
    #[error("unexpected on the QMP connection: {0}")]
    Unexpected(String),
}
