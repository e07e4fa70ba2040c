//! What long-running commands say while they run: lines on standard error.

use super::Output;

/// Starts logging: at `info`, `debug` with `-v`, `trace` with `-vv`, or as `RUST_LOG` says.
pub(super) fn start(output: &Output) {
    // boringtun calls a peer that does not answer an error; what that means here is said by the packet engine.
    let level = match output.verbose() {
        0 => "info,boringtun=off",
        1 => "pvemesh=debug,info,boringtun=off",
        _ => "pvemesh=trace,debug",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| level.into());
    let format =
        tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(output.colour()).with_target(false).with_env_filter(filter);
    // Fails only if something logs already, which is as good.
    let _ = format.try_init();
}
