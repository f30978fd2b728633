//! The id of the queue whose spill is in a folder. The ids of its batches are built on it. Stores
//! recognise batches by those, so the id must be the same after a power failure too.

use std::io;

use crate::files::disk::{Disk, DiskFile};
use crate::files::random;

const NAME: &str = "queue-id";
const NEW: &str = "queue-id.new";

/// Longer than an id is written.
const MOST: usize = 64;

/// The id of the queue in this folder. It is made at random once; when this returns, it lasts. A
/// file that cannot be understood is put aside. A file that cannot be read now is an error: a new
/// id in its place would be another queue's.
pub(crate) fn of<D: Disk>(disk: &D) -> io::Result<u128> {
    for name in [NAME, NEW] {
        disk.put_foreign_aside(name)?;
    }
    match disk.open(NAME) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        opened => {
            let mut bytes = [0; MOST];
            let read = opened?.read_at(&mut bytes, 0)?;
            let text = String::from_utf8_lossy(bytes.get(..read).unwrap_or_default());
            match u128::from_str_radix(text.trim(), 16) {
                Ok(id) => return Ok(id),
                Err(error) => disk.put_aside(NAME, &error)?,
            }
        }
    }
    let id = random::number()?;
    note(disk, id)?;
    Ok(id)
}

/// Writes the id down, whole or not at all; when this returns, it lasts.
pub(crate) fn note<D: Disk>(disk: &D, id: u128) -> io::Result<()> {
    disk.replace(NAME, format!("{id:032x}\n").as_bytes())?;
    disk.sync_names()
}

#[cfg(test)]
mod tests {
    use crate::queue::spill::model::SimDisk;
    use crate::queue::spill::queue_id::*;

    #[test]
    fn invariant_4_a_queue_keeps_its_id_when_the_power_goes() {
        for luck in 0..64 {
            let disk = SimDisk::new();
            let id = of(&disk).unwrap();
            disk.lose_power(luck);
            assert_eq!(of(&disk).unwrap(), id);
        }
    }

    #[test]
    fn a_queue_whose_id_cannot_be_read_now_does_not_get_another() {
        let disk = SimDisk::new();
        let id = of(&disk).unwrap();
        disk.set_failing_reads(true);
        assert!(of(&disk).is_err());
        disk.set_failing_reads(false);
        assert_eq!(of(&disk).unwrap(), id);
    }
}
