//! Ports for servers that choose none themselves.

use std::net::TcpListener;
use std::sync::Mutex;

/// Ports that nobody listens on, each given out once in this process. They lie below the range that
/// the kernel gives to outgoing connections. So none is lost between looking for it and the
/// server's bind, or while a server is restarted.
pub(crate) fn free_ports<const N: usize>() -> [u16; N] {
    static NEXT: Mutex<u16> = Mutex::new(0);
    let mut next = NEXT.lock().unwrap();
    let offset = u16::try_from(std::process::id() % 600).unwrap() * 20;
    std::array::from_fn(|_| {
        loop {
            let port = 20_000 + (offset + *next) % 12_000;
            *next += 1;
            if TcpListener::bind(("127.0.0.1", port)).is_ok() {
                return port;
            }
        }
    })
}
