//! Port of the helper.
