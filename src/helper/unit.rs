//! Unit of the helper.
