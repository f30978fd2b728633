//! The users whose processes listen at a port of this machine: `/proc/net/tcp` of proc(5).
//!
//! Any user may listen at a port while the daemon does not run, and would be sent its token.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The state of a socket that listens, and its place and those of address and user in a line.
const LISTENS: &str = "0A";
const ADDRESS: usize = 1;
const STATE: usize = 3;
const USER: usize = 7;

/// A user who listens at the port and cannot be the daemon of this `state_dir`; `None` if there is
/// none, or the kernel does not say.
pub(super) fn stranger(port: u16, state_dir: &Path) -> Option<u32> {
    let owner = state_dir.metadata().ok().map(|found| found.uid());
    let own = rustix::process::geteuid().as_raw();
    let may_be = |user: &u32| *user == 0 || *user == own || Some(*user) == owner;
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(std::fs::read_to_string);
    let mut users = tables.iter().flatten().flat_map(|table| users_at(port, table));
    users.find(|user| !may_be(user))
}

fn users_at(port: u16, table: &str) -> impl Iterator<Item = u32> {
    table.lines().filter_map(move |line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (_, at) = fields.get(ADDRESS)?.rsplit_once(':')?;
        let listens = fields.get(STATE) == Some(&LISTENS);
        let is_there = listens && u16::from_str_radix(at, 16) == Ok(port);
        is_there.then(|| fields.get(USER)?.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn the_user_of_a_listener_is_told() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n   \
                     0: 0100007F:119B 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000 0 1\n   \
                     1: 0100007F:119B 0100007F:9999 01 00000000:00000000 00:00000000 00000000  1001 0 2\n   \
                     2: 0100007F:119C 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1002 0 3\n";
        assert_eq!(users_at(4507, table).collect::<Vec<_>>(), [1000]);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
        let own = rustix::process::geteuid().as_raw();
        assert_eq!(users_at(port, &table).collect::<Vec<_>>(), [own]);
        assert_eq!(stranger(port, Path::new("/nowhere")), None);
    }
}
