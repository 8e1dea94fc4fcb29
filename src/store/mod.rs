//! Store (edge).
