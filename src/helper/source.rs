//! Source of the helper.
