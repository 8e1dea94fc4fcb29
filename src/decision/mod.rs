//! Decision (pure).
