//! Whom a relay serves.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

pub use super::asked::Asked;
use crate::ident::NodePublic;

/// Bytes of a list of nodes.
const MAX_LIST: u64 = 8 << 20;

/// Whom a relay serves.
#[derive(Clone)]
pub enum Admission {
    /// Whoever comes. Anybody can use the relay then.
    Anyone,
    /// The nodes in a file, a key a line; `#` starts a comment. It is read each time: a change needs no restart.
    List(PathBuf),
    /// Whom the coordinator at this address knows (`POST {"NodePublic":..}`, answered by `{"Allow":..}`). While it is away, whoever it
    /// allowed before.
    Ask(Asked),
    /// Whom the coordinator in this process knows.
    Local(Known),
}

/// Whether the coordinator in this process knows a node.
pub type Known = Arc<dyn Fn(&NodePublic) -> bool + Send + Sync>;

impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anyone => f.write_str("Anyone"),
            Self::List(path) => f.debug_tuple("List").field(path).finish(),
            Self::Ask(asked) => f.debug_tuple("Ask").field(&asked.url()).finish(),
            Self::Local(_) => f.write_str("Local"),
        }
    }
}

impl Admission {
    /// Whether a node is served.
    pub(super) async fn allows(&self, node: NodePublic, source: IpAddr) -> bool {
        match self {
            Self::Anyone => true,
            Self::Local(known) => known(&node),
            Self::Ask(asked) => asked.allows(node, source).await,
            Self::List(path) => match listed(path) {
                Ok(nodes) => nodes.contains(&node),
                Err(error) => {
                    tracing::warn!(file = %path.display(), %error, "the list of nodes does not read: nobody is served");
                    false
                }
            },
        }
    }
}

/// The nodes in a file.
///
/// # Errors
/// It cannot be read, or holds something else.
pub fn listed(path: &std::path::Path) -> std::io::Result<Vec<NodePublic>> {
    use std::io::Read as _;
    let mut text = String::new();
    std::fs::File::open(path)?.take(MAX_LIST).read_to_string(&mut text)?;
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim()).filter(|line| !line.is_empty());
    let failed =
        |line: &str| std::io::Error::other(format!("`{}` is not a node key", line.chars().take(80).collect::<String>().escape_debug()));
    lines.map(|line| line.parse().map_err(|_| failed(line))).collect()
}
