//! The real binary after it was killed again and again.

use std::fs::File;

use crate::harness::beside::{DEADLINE, Daemon};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixListener;
use tokio::time::timeout;

fn event(tag: &str) -> Vec<u8> {
    let body = [tag.as_bytes(), b"\n\n\x81\xa1a\x01"].concat();
    let len = u8::try_from(body.len()).unwrap();
    [b"\x82\xa4head\x80\xa4body\xc4", &[len][..], &body].concat()
}

#[tokio::test]
async fn invariant_5_events_in_flight_at_three_kills_are_stored_by_the_next_process() {
    let mut daemon = Daemon::start("salt_bus: {address: FOLDER/bus}");
    // Nobody can write to the file while its lock is held, so that a begun batch stays under way.
    let lock = File::options().create(true).append(true).open(daemon.path("out")).unwrap();
    lock.lock().unwrap();
    let listener = UnixListener::bind(daemon.path("bus")).unwrap();
    let mut bus = timeout(DEADLINE, listener.accept()).await.unwrap().unwrap().0;
    let tags: Vec<_> = (0..20).map(|n| format!("in/flight/{n}/")).collect();
    let events: Vec<_> = tags.iter().map(|tag| event(tag)).collect();
    bus.write_all(&events.concat()).await.unwrap();
    let progress = daemon.path("state/spill/out/progress");
    let is_begun = || {
        let bytes = std::fs::read(&progress).unwrap_or_default();
        bytes.windows(4).any(|word| word == b"BEGN")
    };
    daemon.until("a batch to be begun", is_begun).await;
    for deaths in 1..=3 {
        daemon.kill();
        daemon.start_again();
        let started = || daemon.log().matches("\"message\":\"started\"").count() > deaths;
        daemon.until("it to start", started).await;
    }
    daemon.wait_for_log("the process has died again and again").await;
    lock.unlock().unwrap();
    for tag in &tags {
        daemon.wait_for_event(tag).await;
    }
    assert!(daemon.known_metric("saltern_sink_rejected_events_total") < 1.0);
    let folder = daemon.stop().await;
    let deaths = std::fs::read_to_string(folder.path().join("state/deaths")).unwrap();
    assert!(deaths.starts_with("died ") && !deaths.contains("under_way"), "{deaths}");
}
