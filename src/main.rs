//! The command line of saltern.

use std::process::ExitCode;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // The allocator asks the kernel for pages of 2 MiB. Every thread then holds some that it hardly
    // uses: that takes twice the memory, and clears whole pages at each burst. Without them nothing
    // is slower. If the kernel does not know the call, only the memory is larger.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    // Each segment of a spill is an open file, so sixteen sinks that are down for long have a
    // thousand. That is where a shell or systemd sets the limit that a process may raise by itself.
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    saltern::cli::main()
}
