//! libvirt hook.
fn main() {}
