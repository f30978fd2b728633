//! Files of the daemon's own, and files that others give it.

pub mod disk;
pub(crate) mod random;
pub(crate) mod regular_file;
pub(crate) mod socket_file;
pub(crate) mod state_dir;
pub(crate) mod state_file;
pub(crate) mod unit_paths;
pub(crate) mod unwritable;
