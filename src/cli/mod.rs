//! Cli (edge).
