//! Transport (edge).
