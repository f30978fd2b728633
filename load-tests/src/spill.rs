//! The spill by itself: the speed of appending beside `dd`, and the bytes that recovery reads.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use saltern::event::chunk::{Chunk, Share};
use saltern::event::{Event, Origin};
use saltern::files::disk::Folder;
use saltern::queue::spill::record::Body;
use saltern::queue::spill::{Settings, Spill};

use crate::Failure;

const SETTINGS: Settings =
    Settings { segment_bytes: 64 << 20, max_bytes: u64::MAX, compress: false };

/// Bytes of a record: about what one read of a busy bus gives.
const RECORD: usize = 192 << 10;

/// Measures both in `folder`, which is emptied before and after, and prints a table.
pub(crate) fn print(
    folder: &Path,
    mib: u64,
    acknowledged: u64,
    waiting: u64,
) -> Result<(), Failure> {
    let share = share();
    println!("| what | measured | reference | |");
    println!("|---|---|---|---|");
    let (mut best, mut pairs) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let ours = append(folder, mib << 20, &share)?;
        let dd = dd(folder, mib)?;
        best.push(ours / dd);
        pairs.push((ours, dd));
    }
    best.sort_by(f64::total_cmp);
    pairs.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (Some((ours, dd)), Some(ratio)) = (pairs.get(1), best.get(1)) else {
        return Err("no rounds".into());
    };
    println!(
        "| append {mib} MiB, then sync | {:.0} MB/s | `dd conv=fdatasync`: {:.0} MB/s | {ratio:.2} (goal 0.7) |",
        ours / 1e6,
        dd / 1e6
    );
    recovery(folder, acknowledged << 20, waiting << 20, &share)
}

fn share() -> Share {
    let origin = Arc::new(Origin { source: "bus".into(), master_id: "master".into() });
    let event = |n: usize| Event::new(&format!("salt/job/{n:020}/ret/web-1"), &[0xc0; 2960]);
    let events = (0..RECORD / 3000).map(event).collect();
    Share::all(Arc::new(Chunk::new(origin, 1, events)))
}

fn fresh(folder: &Path) -> Result<Spill<Folder>, Failure> {
    if folder.exists() {
        std::fs::remove_dir_all(folder)?;
    }
    Ok(Spill::open(Folder::create(folder)?, SETTINGS)?)
}

fn fill(spill: &mut Spill<Folder>, bytes: u64, share: &Share) -> Result<(), Failure> {
    let until = spill.bytes() + bytes;
    while spill.bytes() < until {
        let body = Body::encode(share, false)?;
        spill.append(spill.next(), share, &body)?;
    }
    Ok(())
}

/// Bytes a second, encoding, checksums and the last sync included.
fn append(folder: &Path, bytes: u64, share: &Share) -> Result<f64, Failure> {
    let mut spill = fresh(folder)?;
    let began = Instant::now();
    fill(&mut spill, bytes, share)?;
    if let Some(job) = spill.begin_sync() {
        job.run()?;
    }
    let rate = rate(spill.bytes(), began.elapsed());
    std::fs::remove_dir_all(folder)?;
    Ok(rate)
}

fn dd(folder: &Path, mib: u64) -> Result<f64, Failure> {
    std::fs::create_dir_all(folder)?;
    let file = folder.join("dd");
    let began = Instant::now();
    let ran = Command::new("dd")
        .args(["if=/dev/zero", "bs=192K", "conv=fdatasync"])
        .arg(format!("of={}", file.display()))
        .arg(format!("count={}", (mib << 20) / RECORD as u64))
        .stderr(Stdio::null())
        .status()?;
    let rate = rate(mib << 20, began.elapsed());
    std::fs::remove_dir_all(folder)?;
    ran.success().then_some(rate).ok_or_else(|| "dd failed".into())
}

/// Opens a spill in which acknowledged segments were not removed yet, as after a crash.
fn recovery(folder: &Path, acknowledged: u64, waiting: u64, share: &Share) -> Result<(), Failure> {
    let mut spill = fresh(folder)?;
    fill(&mut spill, acknowledged, share)?;
    let up_to = spill.next();
    fill(&mut spill, waiting, share)?;
    // Acknowledging removes the segments, so they are put back.
    let aside = folder.with_extension("aside");
    std::fs::create_dir_all(&aside)?;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        std::fs::hard_link(entry.path(), aside.join(entry.file_name()))?;
    }
    spill.acknowledge(up_to)?;
    spill.note_acknowledged()?;
    drop(spill);
    for entry in std::fs::read_dir(&aside)? {
        let entry = entry?;
        // The file that is still there is the newer one.
        let _ = std::fs::hard_link(entry.path(), folder.join(entry.file_name()));
    }
    std::fs::remove_dir_all(&aside)?;

    let (before, began) = (bytes_read()?, Instant::now());
    let mut spill = Spill::open(Folder::create(folder)?, SETTINGS)?;
    let (opened, opening) = (began.elapsed(), bytes_read()? - before);
    while spill.read()?.is_some() {}
    let (all, reading) = (began.elapsed(), bytes_read()? - before);
    std::fs::remove_dir_all(folder)?;
    let mib = |bytes: u64| bytes >> 20;
    println!(
        "| recover from {} MiB acknowledged and {} MiB waiting | {:.2} s, {} MiB read | | |",
        mib(acknowledged),
        mib(waiting),
        opened.as_secs_f64(),
        mib(opening)
    );
    println!(
        "| and read what waits | {:.2} s, {} MiB read | only the {} MiB are needed | |",
        all.as_secs_f64(),
        mib(reading),
        mib(waiting)
    );
    Ok(())
}

/// Bytes that this process has read from files so far, cached or not.
fn bytes_read() -> Result<u64, Failure> {
    let io = std::fs::read_to_string("/proc/self/io")?;
    let line = io.lines().find_map(|line| line.strip_prefix("rchar: "));
    Ok(line.ok_or("/proc/self/io has no rchar")?.parse()?)
}

fn rate(bytes: u64, took: Duration) -> f64 {
    #[allow(clippy::cast_precision_loss)]
    let bytes = bytes as f64;
    bytes / took.as_secs_f64()
}
