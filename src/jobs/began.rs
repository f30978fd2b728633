//! The time at which a job began: the time in its id. If the id tells none, or one to come, it is
//! the time of the first news of the job. Ids are free text: anybody may name a job after a day in
//! ten years.

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

/// The time that a job's id tells in UTC.
pub(super) fn time_in(jid: &str) -> Option<Timestamp> {
    let digits = jid.get(..20).filter(|_| crate::event::is_jid(jid))?;
    let (seconds, fraction) = digits.split_at(14);
    let time = DateTime::strptime("%Y%m%d%H%M%S", seconds).ok()?;
    let time = time.with().subsec_nanosecond(fraction.parse::<i32>().ok()? * 1000).build().ok()?;
    TimeZone::UTC.to_timestamp(time).ok()
}

/// The time at which a job began that was first heard of at `first_seen`; both in microseconds
/// since 1970.
pub(crate) fn began(jid: &str, first_seen: i64) -> i64 {
    time_in(jid).map_or(first_seen, |time| time.as_microsecond().min(first_seen))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_began_at_the_time_in_its_id_unless_that_is_in_the_future() {
        let now = 1_795_304_177_692_890;
        assert_eq!(began("20261121233336123456", now), 1_795_304_016_123_456);
        assert_eq!(began("20261121233336123456_77", now), 1_795_304_016_123_456);
        for jid in ["20361121233336123456", "deploy-42", "20261321233336123456", "20261121"] {
            assert_eq!(began(jid, now), now, "{jid}");
        }
    }
}
