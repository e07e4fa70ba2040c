//! A log on disk that never grows beyond a bound: two files, of which the older one is thrown away when the newer one is full.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Bytes in each of the two files; some thousand lines.
const LIMIT: u64 = 256 * 1024;
/// How often a follower looks for more.
const LOOK: Duration = Duration::from_millis(250);

/// The log, for its one writer.
#[derive(Debug)]
pub struct Ring {
    path: PathBuf,
    file: Option<File>,
    size: u64,
    limit: u64,
}

impl Ring {
    /// The log in this file, and beside it; what is there is kept. A log that cannot be written is no reason to end.
    pub fn open(path: &Path) -> Self {
        Self::with_limit(path, LIMIT)
    }

    fn with_limit(path: &Path, limit: u64) -> Self {
        let mut ring = Self { path: path.to_owned(), file: None, size: 0, limit };
        ring.reopen();
        ring
    }

    fn reopen(&mut self) {
        // The first to write here may come before whoever makes the directory.
        if let Some(parent) = self.path.parent() {
            let _ = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(parent);
        }
        let opened = OpenOptions::new().create(true).append(true).mode(0o600).open(&self.path);
        self.size = opened.as_ref().ok().and_then(|file| file.metadata().ok()).map_or(0, |meta| meta.len());
        self.file = opened.ok();
    }
}

impl Write for Ring {
    /// Takes everything, whether or not the disk does.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.size.saturating_add(bytes.len() as u64) > self.limit && self.size > 0 {
            let _ = std::fs::rename(&self.path, older(&self.path));
            self.reopen();
        }
        if let Some(file) = &mut self.file
            && file.write_all(bytes).is_ok()
        {
            self.size += bytes.len() as u64;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn older(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

/// The last lines of a log.
///
/// # Errors
/// There is none, or it cannot be read.
pub fn tail(path: &Path, lines: usize) -> io::Result<Vec<u8>> {
    let mut all = std::fs::read(older(path)).unwrap_or_default();
    all.extend(std::fs::read(path)?);
    // The last line may not have its end yet.
    let body = all.strip_suffix(b"\n").unwrap_or(&all);
    let begin = if lines == 0 {
        all.len()
    } else {
        body.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n').nth(lines - 1).map_or(0, |(at, _)| at + 1)
    };
    Ok(all.split_off(begin))
}

/// Gives the last lines and then what is added, for ever, across the change of files; ends when `sink` does not take any more.
///
/// # Errors
/// There is no log, or it cannot be read.
pub fn follow(path: &Path, lines: usize, sink: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut file = File::open(path)?;
    sink(&tail(path, lines)?)?;
    file.seek(SeekFrom::End(0))?;
    loop {
        let mut more = Vec::new();
        file.read_to_end(&mut more)?;
        if !more.is_empty() {
            sink(&more)?;
            continue;
        }
        let same = |file: &File| -> io::Result<bool> {
            use std::os::unix::fs::MetadataExt as _;
            Ok(std::fs::metadata(path)?.ino() == file.metadata()?.ino())
        };
        if same(&file).is_ok_and(|same| !same) {
            // What came between the last look and the change of files.
            file.read_to_end(&mut more)?;
            sink(&more)?;
            file = File::open(path)?;
            continue;
        }
        std::thread::sleep(LOOK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_keeps_its_end_and_stays_within_its_bound() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("log");
        let mut ring = Ring::with_limit(&path, 100);
        for number in 0..100 {
            writeln!(ring, "line {number:03}").unwrap();
        }
        let size = |path: &Path| std::fs::metadata(path).unwrap().len();
        assert!(size(&path) <= 100 && size(&older(&path)) <= 100);
        let text = |lines| String::from_utf8(tail(&path, lines).unwrap()).unwrap();
        assert_eq!(text(2), "line 098\nline 099\n");
        assert_eq!(text(0), "");
        assert!(text(1000).ends_with("line 099\n") && text(1000).lines().count() > 11, "{}", text(1000));
        // A second writer after a restart goes on where the first ended.
        drop(ring);
        let mut ring = Ring::with_limit(&path, 100);
        ring.write_all(b"again").unwrap();
        assert_eq!(text(2), "line 099\nagain");
        assert_eq!(std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions()) & 0o777, 0o600);
    }

    #[test]
    fn a_log_is_there_from_the_first_line_though_its_directory_was_not() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("pvemesh/log");
        Ring::open(&path).write_all(b"first\n").unwrap();
        assert_eq!(tail(&path, 1).unwrap(), b"first\n");
    }

    #[test]
    fn a_follower_sees_what_is_added_after_the_files_changed() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("log");
        let mut ring = Ring::with_limit(&path, 50);
        ring.write_all(b"first\n").unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        let followed = path.clone();
        let follower = std::thread::spawn(move || {
            follow(&followed, 1, &mut |bytes| {
                let text = String::from_utf8_lossy(bytes).into_owned();
                tell.send(text.clone()).unwrap();
                if text.contains("last") { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(()) }
            })
        });
        assert_eq!(told.recv().unwrap(), "first\n");
        ring.write_all(&[b'x'; 48]).unwrap();
        ring.write_all(b"\nlast\n").unwrap();
        assert!(follower.join().unwrap().is_err());
        assert!(told.try_iter().collect::<String>().contains("last"));
    }
}
