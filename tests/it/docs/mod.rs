//! Pages that are made from the code: of the metrics, of each kind of sink and source, the lists of
//! kinds in other pages, and what a stream of events needs.
//! `UPDATE_GOLDEN=1 cargo test --test it docs::` writes them anew.

mod head;
mod keys;
mod kinds;
mod lists;
mod metrics;
mod scaling;

use std::fs;
use std::path::{Path, PathBuf};

/// A file of the repository.
fn in_repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Fails unless the file holds this, after writing it if it is to be written anew.
fn assert_written(path: &str, page: &str) {
    let file = in_repository(path);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, page).unwrap();
    }
    let written = fs::read_to_string(&file).unwrap_or_default();
    assert!(
        written == page,
        "{path} is not what the code says: UPDATE_GOLDEN=1 cargo test --test it docs::"
    );
}
