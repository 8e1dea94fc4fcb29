//! Thresholds: grammar and evaluation (pure).
