//! `pvemesh coordinator backup` and `restore`.

use std::path::PathBuf;

use zeroize::Zeroizing;

use super::{Place, failure};
use crate::cli::{Exit, Failure, Output};
use crate::sys::admin::AdminError;
use crate::sys::coordinator::STATE_DIR;
use crate::sys::store::StoreError;
use crate::sys::store::backup::{self, BackupError};

/// Where to save what.
#[derive(Debug, clap::Args)]
pub(crate) struct Backup {
    /// The file to make (mode 0600); it must not exist. It is as secret as the coordinator's key, which is in it.
    file: PathBuf,
    /// Directory of the state, for a coordinator that does not run.
    #[arg(long, value_name = "DIR", default_value = STATE_DIR)]
    state_dir: PathBuf,
    #[command(flatten)]
    place: Place,
}

/// What to put in place where.
#[derive(Debug, clap::Args)]
pub(crate) struct Restore {
    /// A file made by `pvemesh coordinator backup`.
    file: PathBuf,
    /// Directory of the state.
    #[arg(long, value_name = "DIR", default_value = STATE_DIR)]
    state_dir: PathBuf,
    /// Replace the state that is there; it is kept beside the new one, under names ending in .old.
    #[arg(long)]
    force: bool,
}

pub(super) fn run(command: &Backup, output: &Output) -> Result<(), Failure> {
    const TRIED: &str = "back the coordinator up";
    let refused = |error: BackupError| backup_failure(TRIED, &error);
    let bytes: Zeroizing<Vec<u8>> = command.place.run(TRIED, async |admin| match admin.backup().await {
        Ok(bytes) => Ok(bytes),
        // It does not run: then its files can be read.
        Err(error @ AdminError::Unreachable { .. }) => match backup::of_directory(&command.state_dir) {
            Err(BackupError::Nothing(_)) => Err(failure(TRIED, &error)),
            other => other.map_err(refused),
        },
        Err(error) => Err(failure(TRIED, &error)),
    })?;
    backup::save(&bytes, &command.file).map_err(refused)?;
    let shown = serde_json::json!({ "file": command.file, "bytes": bytes.len() });
    output.result(&shown, format!("everything is in {} ({} bytes); keep it secret", command.file.display(), bytes.len()));
    Ok(())
}

pub(super) fn restore(command: &Restore, output: &Output) -> Result<(), Failure> {
    let contents = backup::restore(&command.file, &command.state_dir, command.force)
        .map_err(|error| backup_failure("restore the coordinator", &error))?;
    let text = format!(
        "{} nodes and {} users are back in {}; start the coordinator: clients find it by its old key {}",
        contents.nodes,
        contents.users,
        command.state_dir.display(),
        contents.server_key
    );
    output.result(&contents, text);
    Ok(())
}

fn backup_failure(tried: &str, error: &BackupError) -> Failure {
    let (next, exit) = match error {
        BackupError::Unusable { .. } => ("use another backup; nothing was changed", Exit::Usage),
        BackupError::Occupied(_) => ("move it away, or give --force, which keeps it under names ending in .old", Exit::Conflict),
        BackupError::Nothing(_) => ("name the directory of the state with --state-dir", Exit::Usage),
        BackupError::Io { source, .. } if source.kind() == std::io::ErrorKind::AlreadyExists => {
            ("name a file that does not exist: a backup is never overwritten", Exit::Conflict)
        }
        BackupError::Io { .. } => ("check the path, its permissions and the free space", Exit::Failed),
        BackupError::Store(StoreError::InUse(_)) => ("stop the coordinator first", Exit::Conflict),
        BackupError::Store(_) => ("follow the message; nothing was changed", Exit::Failed),
    };
    Failure::new(tried, error, next).exit(exit)
}
