//! Preflight of the helper.
