//! The program `amphora`; all of it is in the library.

use std::process::ExitCode;

/// Many small, short-lived allocations on several threads: what mimalloc is made for.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    amphora::cli::main()
}
