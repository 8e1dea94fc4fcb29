//! Daemon of the helper.
