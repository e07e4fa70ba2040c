//! `pvemesh image`: the appliance root file system.

use std::path::PathBuf;

use super::golden::{self, Golden};
use super::{Exit, Failure, Output};
use crate::settings::Guest;
use crate::sys::image;

/// The appliance image.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Image {
    /// Build the appliance root file system from this very program.
    ///
    /// The same program and configuration give the same bytes.
    Build {
        /// Where to write it; the name must end in `.tar.gz` for Proxmox.
        #[arg(long, value_name = "FILE", default_value_t = default_output())]
        output: String,
        /// A guest configuration to put into it, for one container only. The image is then as secret as the file.
        #[arg(long, value_name = "FILE")]
        guest_config: Option<PathBuf>,
    },
    /// Make the golden container, which API tokens clone, or replace it by one of this version (as root).
    Golden(Golden),
}

fn default_output() -> String {
    format!("pvemesh-{}-{}.tar.gz", env!("CARGO_PKG_VERSION"), std::env::consts::ARCH)
}

/// Runs the command.
pub(super) async fn run(command: Image, output: &Output) -> Result<(), Failure> {
    match command {
        Image::Build { output: path, guest_config } => build(&path, guest_config, output),
        Image::Golden(args) => golden::run(args, output).await,
    }
}

fn build(path: &str, guest_config: Option<PathBuf>, output: &Output) -> Result<(), Failure> {
    let tried = "build the appliance image";
    if !path.ends_with(".tar.gz") {
        return Err(Failure::new(tried, format!("`{path}` does not end in .tar.gz"), "choose a name that does: Proxmox goes by it")
            .exit(Exit::Usage));
    }
    let config = guest_config.map(|file| read_config(&file)).transpose()?;
    let binary = image::own_binary().map_err(|error| Failure::new(tried, error, "mount /proc"))?;
    let built = image::build(&binary, config.as_deref(), path.as_ref()).map_err(|error| {
        let next = match error {
            image::ImageError::NotStatic { .. } | image::ImageError::NotElf(_) => {
                "use the released binary, or build in the repository, which links statically"
            }
            image::ImageError::File { .. } => "check the path and the free space",
        };
        Failure::new(tried, error, next)
    })?;
    let text = format!("{}\n{} bytes\nsha256 {}", built.path.display(), built.size, built.sha256);
    output.result(&built, text);
    Ok(())
}

fn read_config(file: &std::path::Path) -> Result<String, Failure> {
    let tried = format!("read the guest configuration {}", file.display());
    let text = std::fs::read_to_string(file).map_err(|error| Failure::new(&tried, error, "check the path").exit(Exit::Usage))?;
    Guest::from_toml(&text).map_err(|error| Failure::new(&tried, error, "correct that line").exit(Exit::Usage))?;
    Ok(text)
}
