//! Meter of the helper.
