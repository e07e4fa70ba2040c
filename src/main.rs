//! The pvemesh program.

use std::process::ExitCode;

fn main() -> ExitCode {
    if pvemesh::sys::init::is_init() {
        return pvemesh::sys::init::main();
    }
    pvemesh::cli::main()
}
