//! The command line of saltern.

use std::process::ExitCode;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // The allocator asks the kernel for pages of 2 MiB, of which every thread then holds some that
    // it hardly uses: twice the memory, and whole pages to be cleared at each burst. Without them
    // nothing is slower. Where the kernel does not know the call it is only larger.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    // Each segment of a spill is an open file, so sixteen sinks that are down for long have a
    // thousand. That is where a shell or systemd sets the limit that a process may raise by itself.
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    saltern::cli::main()
}
