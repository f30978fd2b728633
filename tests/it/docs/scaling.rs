//! The figures of the page of scaling, which `load-tests/scaling.py` computes.

use std::process::Command;

use super::in_repository;
use super::lists::write_blocks;

#[test]
fn the_figures_of_scaling_are_what_the_script_computes() {
    let script = in_repository("load-tests/scaling.py");
    let output = Command::new("python3").arg(script).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let printed = String::from_utf8(output.stdout).unwrap();
    let (table, death) = printed.split_once("\n\n").unwrap();
    let blocks = [("needs", &*format!("{table}\n")), ("death", death)];
    write_blocks("docs/scaling.md", &blocks);
}
