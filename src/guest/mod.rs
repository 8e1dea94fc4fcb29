//! Guest (edge).
