//! Dbus (edge).
