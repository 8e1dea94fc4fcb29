//! Test tool.
fn main() {}
