//! What long-running commands say while they run: lines on standard error.

use super::Output;

/// Starts logging: at `info`, `debug` with `-v`, `trace` with `-vv`, or as `RUST_LOG` says.
pub(super) fn start(output: &Output) {
    let format = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(output.colour())
        .with_target(false)
        .with_env_filter(filter(output));
    // Fails only if something logs already, which is as good.
    let _ = format.try_init();
}

fn filter(output: &Output) -> tracing_subscriber::EnvFilter {
    // boringtun calls a peer that does not answer an error; what that means here is said by the packet engine.
    let level = match output.verbose() {
        0 => "info,boringtun=off",
        1 => "pvemesh=debug,info,boringtun=off",
        _ => "pvemesh=trace,debug",
    };
    tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| level.into())
}

/// The same, and all of it is kept in a file that never grows beyond a bound.
pub(super) fn start_kept(output: &Output, path: &std::path::Path) {
    use tracing_subscriber::fmt::writer::MakeWriterExt as _;
    let ring = std::sync::Mutex::new(crate::sys::log_ring::Ring::open(path));
    let filter = filter(output);
    let writer = std::io::stderr.and(ring);
    let format = tracing_subscriber::fmt().with_writer(writer).with_ansi(false).with_target(false).with_env_filter(filter);
    let _ = format.try_init();
}
