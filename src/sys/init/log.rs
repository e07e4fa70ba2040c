//! What the children and init itself say: to the console, and kept in a bounded log that `pvemesh logs` reads.

use std::io::{self, Read as _, Write};
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};

use tracing_subscriber::fmt::MakeWriter;

use crate::plan::guest::LOG;
use crate::sys::log_ring::Ring;

fn kept() -> &'static Mutex<Ring> {
    static KEPT: OnceLock<Mutex<Ring>> = OnceLock::new();
    KEPT.get_or_init(|| Mutex::new(Ring::open(Path::new(LOG))))
}

/// Writes to the console, and keeps it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tee;

impl Write for Tee {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = kept().lock().unwrap_or_else(PoisonError::into_inner).write_all(bytes);
        let mut console = io::stderr().lock();
        console.write_all(bytes).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Tee {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        *self
    }
}

/// Has what a child says go through us. If that cannot be, it goes to the console alone, as it would have.
pub(super) fn keep(command: &mut Command) {
    let Ok((mut reader, writer)) = io::pipe() else { return };
    let Ok(second) = writer.try_clone() else { return };
    let copied = std::thread::Builder::new().name("log".to_owned()).spawn(move || {
        let mut buffer = [0; 4096];
        // The end comes when the child and all its own children have ended.
        while let Ok(count @ 1..) = reader.read(&mut buffer) {
            let _ = Tee.write(buffer.get(..count).unwrap_or_default());
        }
    });
    if copied.is_ok() {
        command.stdout(writer).stderr(second);
    }
}
