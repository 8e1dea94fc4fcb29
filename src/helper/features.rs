//! Features of the helper.
