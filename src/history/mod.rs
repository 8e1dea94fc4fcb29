//! History (edge).
