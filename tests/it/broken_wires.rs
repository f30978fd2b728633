use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::harness::proxy::{Proxy, Way};

const LIMIT: Duration = Duration::from_mins(2);

/// Nothing must come for this long before a test believes that nothing comes.
const SILENCE: Duration = Duration::from_millis(200);

/// A server that sends back all it gets, each connection in turn, and says how each ended.
struct Echo {
    address: SocketAddr,
    ends: Receiver<Result<usize, ErrorKind>>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    fn start(connections: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (end, ends) = channel();
        let run = move || {
            for _ in 0..connections {
                let (mut stream, _) = listener.accept().unwrap();
                let (mut buffer, mut total) = ([0; 4096], 0);
                let result = loop {
                    match stream.read(&mut buffer) {
                        Ok(0) => break Ok(total),
                        Ok(count) => {
                            total += count;
                            if let Err(error) = stream.write_all(&buffer[..count]) {
                                break Err(error.kind());
                            }
                        }
                        Err(error) => break Err(error.kind()),
                    }
                };
                end.send(result).unwrap();
            }
        };
        Echo { address, ends, thread: Some(std::thread::spawn(run)) }
    }

    fn end(&self) -> Result<usize, ErrorKind> {
        self.ends.recv_timeout(LIMIT).unwrap()
    }

    /// Every connection must have ended.
    fn join(mut self) {
        self.thread.take().unwrap().join().unwrap();
    }
}

fn connect(proxy: &Proxy) -> TcpStream {
    let stream = TcpStream::connect(proxy.address()).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream
}

fn assert_echoes(stream: &mut TcpStream) {
    stream.write_all(b"hello").unwrap();
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"hello");
}

/// The kind of error that reading ends with.
fn read_error(stream: &mut TcpStream) -> ErrorKind {
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => panic!("the stream ended well"),
            Ok(_) => {}
            Err(error) => return error.kind(),
        }
    }
}

fn assert_silent(stream: &mut TcpStream) {
    stream.set_read_timeout(Some(SILENCE)).unwrap();
    let kind = stream.read(&mut [0; 10]).unwrap_err().kind();
    assert!(matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut), "{kind:?}");
    stream.set_read_timeout(Some(LIMIT)).unwrap();
}

#[test]
fn forwards_both_ways_to_the_end() {
    let echo = Echo::start(1);
    let proxy = Proxy::start(echo.address);
    let mut client = connect(&proxy);
    client.write_all(&vec![7; 100_000]).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).unwrap();
    assert_eq!(answer, vec![7; 100_000]);
    assert_eq!(echo.end(), Ok(100_000));
    echo.join();
}

#[test]
fn resets_both_ends() {
    let echo = Echo::start(1);
    let proxy = Proxy::start(echo.address);
    let mut client = connect(&proxy);
    assert_echoes(&mut client);
    proxy.reset();
    assert_eq!(read_error(&mut client), ErrorKind::ConnectionReset);
    assert_eq!(echo.end(), Err(ErrorKind::ConnectionReset));
    echo.join();
}

#[test]
fn resets_after_some_bytes_once() {
    let echo = Echo::start(2);
    let proxy = Proxy::start(echo.address);
    let mut client = connect(&proxy);
    proxy.reset_after(Way::ToClient, 12);
    assert_echoes(&mut client);
    assert_echoes(&mut client);
    client.write_all(b"hello").unwrap();
    assert_eq!(read_error(&mut client), ErrorKind::ConnectionReset);
    assert!(echo.end().is_err());
    let mut client = connect(&proxy);
    for _ in 0..10 {
        assert_echoes(&mut client);
    }
    drop(client);
    assert_eq!(echo.end(), Ok(50));
    echo.join();
}

#[test]
fn swallows_and_heals() {
    let echo = Echo::start(2);
    let proxy = Proxy::start(echo.address);
    let mut lossy = connect(&proxy);
    let mut quiet = connect(&proxy);
    assert_echoes(&mut lossy);
    proxy.black_hole();
    lossy.write_all(b"hello").unwrap();
    assert_silent(&mut lossy);
    proxy.heal();
    assert_eq!(read_error(&mut lossy), ErrorKind::ConnectionReset);
    assert_eq!(echo.end(), Err(ErrorKind::ConnectionReset));
    assert_echoes(&mut quiet);
    drop(quiet);
    assert_eq!(echo.end(), Ok(5));
    echo.join();
}

#[test]
fn lets_one_way_die() {
    let echo = Echo::start(1);
    let proxy = Proxy::start(echo.address);
    let mut client = connect(&proxy);
    assert_echoes(&mut client);
    proxy.half_open(Way::ToClient);
    client.write_all(b"hello").unwrap();
    assert_silent(&mut client);
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(echo.end(), Ok(10));
    echo.join();
}

#[test]
fn refuses_goes_elsewhere_and_keeps_its_port() {
    let (first, second) = (Echo::start(1), Echo::start(1));
    let proxy = Proxy::start(first.address);
    let mut old = connect(&proxy);
    assert_echoes(&mut old);
    proxy.refuse();
    proxy.refuse();
    let error = TcpStream::connect(proxy.address()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    assert_echoes(&mut old);
    proxy.forward_to(second.address);
    proxy.heal();
    let mut new = connect(&proxy);
    assert_echoes(&mut new);
    drop((old, new));
    assert_eq!((first.end(), second.end()), (Ok(10), Ok(5)));
    first.join();
    second.join();
    let port = proxy.address().port();
    drop(proxy);
    let again = Proxy::start_at(port, SocketAddr::from(([127, 0, 0, 1], 1)));
    assert_eq!(again.address().port(), port);
    assert_eq!(read_error(&mut connect(&again)), ErrorKind::ConnectionReset);
}

#[test]
fn holds_back() {
    let echo = Echo::start(1);
    let proxy = Proxy::start(echo.address);
    proxy.delay(SILENCE);
    let mut client = connect(&proxy);
    let began = Instant::now();
    assert_echoes(&mut client);
    assert!(began.elapsed() >= SILENCE * 2, "there and back");
    drop(client);
    assert_eq!(echo.end(), Ok(5));
    echo.join();
}
