//! The id of the queue whose spill is in a folder, on which the ids of its batches are built. Stores
//! know by those what they have already, so the id must be the same after a power failure too.

use std::io::{self, IoSlice};

use super::disk::{Disk, DiskFile};

const NAME: &str = "queue-id";
const NEW: &str = "queue-id.new";

/// Longer than an id is written.
const MOST: usize = 64;

/// The id of the queue in this folder. Made at random once; when this returns, it lasts.
pub fn of<D: Disk>(disk: &D) -> io::Result<u128> {
    if let Some(id) = read(disk)? {
        return Ok(id);
    }
    match disk.remove(NEW) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let id = u128::from(fastrand::u64(..)) << 64 | u128::from(fastrand::u64(..));
    let file = disk.create(NEW)?;
    file.append(&mut [IoSlice::new(format!("{id:032x}\n").as_bytes())])?;
    file.sync()?;
    disk.rename(NEW, NAME)?;
    disk.sync_names()?;
    Ok(id)
}

/// `None` if there is none that can be understood. A file that cannot be read now is an error: a new
/// id in its place would be another queue's.
fn read<D: Disk>(disk: &D) -> io::Result<Option<u128>> {
    let file = match disk.open(NAME) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let mut bytes = [0; MOST];
    let read = file.read_at(&mut bytes, 0)?;
    let text = std::str::from_utf8(bytes.get(..read).unwrap_or_default()).unwrap_or_default();
    Ok(u128::from_str_radix(text.trim(), 16).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spill::model::SimDisk;

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
