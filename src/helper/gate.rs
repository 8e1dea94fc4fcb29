//! Gate of the helper.
