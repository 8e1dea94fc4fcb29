//! Criu of the helper.
