//! The pvemesh program.

use std::process::ExitCode;

fn main() -> ExitCode {
    pvemesh::cli::main()
}
