//! Target of the helper.
