//! Files of the daemon's own, and files that others give it.

pub mod regular_file;
pub mod socket_file;
pub mod state_dir;
pub mod state_file;
pub mod unit_paths;
pub mod unwritable;
