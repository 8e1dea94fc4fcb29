//! Bulk of the helper.
