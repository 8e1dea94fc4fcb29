//! Helper (edge).
