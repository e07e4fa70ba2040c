//! The node's own firewall table, set over netlink without the `nft` program.
//!
//! ```text
//! table inet pvemesh {
//!     flags owner
//!     chain forward {
//!         type filter hook forward priority filter; policy accept;
//!         oifname "pvemesh0" tcp flags syn tcp option maxseg size set rt mtu        # a node that forwards
//!         iifname "pvemesh0" meta mark set meta mark & 0xff00ffff | 0x00040000      # one that masquerades
//!         iifname != "pvemesh0" oifname "pvemesh0" meta mark set meta mark & 0xff00ffff | 0x00020000      # a gateway of its LAN
//!         iifname "pvemesh0" ct state & (established | related) == 0 drop           # shields up
//!     }
//!     chain postrouting {                                                           # one that translates
//!         type nat hook postrouting priority srcnat; policy accept;
//!         oifname != "pvemesh0" meta mark & 0x00ff0000 == 0x00040000 masquerade     # one that masquerades
//!         oifname "pvemesh0" meta mark & 0x00ff0000 == 0x00020000 meta nfproto ipv4 snat ip to 100.64.0.1      # a gateway of its LAN
//!     }
//!     chain input {                                                                 # shields up
//!         type filter hook input priority filter; policy accept;
//!         iifname "pvemesh0" ct state & (established | related) == 0 drop
//!     }
//! }
//! ```
//!
//! A table of its own, so that nobody's rules are edited and nobody edits ours; owned by its socket (kernel 5.12 on), so that it goes when
//! the process does and that reloading the machine's firewall does not take it away. It cannot overrule a `drop` in another table.
//! The choice is explained in docs/decisions/own-firewall-table.md.

mod message;

use std::io;
use std::net::IpAddr;

use netlink_packet_core::{NLM_F_ACK, NetlinkBuffer, NetlinkMessage, NetlinkPayload, Parseable as _};
use netlink_packet_netfilter::NetfilterMessage;
use netlink_packet_netfilter::nftables::TableFlags;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

/// The table's name; its family is `inet`.
pub const TABLE: &str = "pvemesh";

/// Replies to one batch are an acknowledgement each, and our own rules few; far below this.
const MAX_REPLY: usize = 64 * 1024;

/// Why the firewall was not changed.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// The kernel gives no netfilter socket.
    #[error("open a netfilter socket: {0}; is nf_tables missing from the kernel?")]
    Open(io::Error),
    /// Another process holds the table.
    #[error("firewall table `{TABLE}` belongs to another process: is another node running in this network?")]
    Owned,
    /// The kernel refused the change; nothing of it took effect.
    #[error("{tried} firewall table `{TABLE}`: {error}")]
    Refused {
        /// What was tried.
        tried: &'static str,
        /// What the kernel said.
        error: io::Error,
    },
}

/// What the table does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// The interface that the mesh's packets come in by.
    pub interface: String,
    /// This machine forwards: connections that go into the mesh from its other networks are told what fits through the tunnel, because the message
    /// that says so later is lost in many networks (RFC 4459, section 3.2).
    pub forward: bool,
    /// What is forwarded leaves with this machine's own address.
    pub masquerade: bool,
    /// What goes into the mesh from the machine's other networks has one of these addresses there; one a family. Not the interface's first:
    /// it has others beside the node's.
    pub lan_gateway: Vec<IpAddr>,
    /// Nothing that comes in by the interface opens a connection, to this machine or past it.
    pub shields_up: bool,
}

/// The table, there as long as this value is.
pub struct Firewall {
    socket: Socket,
    /// What it was last given.
    set: Option<Rules>,
    /// Whether the kernel can change the size that a connection is told; all from 4.15 on that were built for it.
    clamps: bool,
}

impl std::fmt::Debug for Firewall {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Firewall")
    }
}

impl Firewall {
    /// Makes the table, in place of one that is there already.
    ///
    /// # Errors
    ///
    /// When the kernel has no nf_tables, refuses, or the table belongs to another process.
    pub fn install(rules: &Rules) -> Result<Self, NftError> {
        let mut socket = Socket::new(NETLINK_NETFILTER).map_err(NftError::Open)?;
        socket.bind_auto().map_err(NftError::Open)?;
        // The kernel handles a batch within the send, so the replies are there when it returns.
        socket.set_non_blocking(true).map_err(NftError::Open)?;
        let mut firewall = Self { socket, set: None, clamps: true };
        firewall.apply(rules)?;
        Ok(firewall)
    }

    /// Replaces the table's content, in one transaction.
    ///
    /// # Errors
    ///
    /// When the kernel refuses; the old content then stays.
    pub fn apply(&mut self, rules: &Rules) -> Result<(), NftError> {
        self.set = None;
        let refused = |error: io::Error| match error.raw_os_error() {
            Some(libc::EPERM) if rustix::process::geteuid().is_root() => NftError::Owned,
            _ => NftError::Refused { tried: "set", error },
        };
        if self.clamps && rules.forward && matches!(self.set_table(rules), Err(error) if error.raw_os_error() == Some(libc::ENOENT)) {
            tracing::info!("this kernel cannot clamp the segment size of TCP; networks that lose ICMP messages may stall");
            self.clamps = false;
        }
        self.set_table(rules).map_err(refused)?;
        self.set = Some(rules.clone());
        Ok(())
    }

    fn set_table(&self, rules: &Rules) -> io::Result<()> {
        match self.send(&message::replace(rules, self.clamps, TableFlags::Owner)) {
            // A kernel before 5.12, or a table there that has no owner: the latter cannot get one.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => {
                self.send(&message::replace(rules, self.clamps, TableFlags::empty()))
            }
            result => result,
        }
    }

    /// Whether the table has just these rules still. An owned one can be changed by nobody else; others may flush or remove the plain one
    /// that kernels before 5.12 have.
    ///
    /// # Errors
    ///
    /// When the kernel does not say.
    pub fn holds(&self, rules: &Rules) -> Result<bool, NftError> {
        let refused = |error| NftError::Refused { tried: "list", error };
        Ok(self.set.as_ref() == Some(rules) && self.count_rules().map_err(refused)? == message::count(rules, self.clamps))
    }

    /// The number of rules in the table; none, if it is not there.
    fn count_rules(&self) -> io::Result<usize> {
        self.socket.send_to(&message::list(), &SocketAddr::new(0, 0), 0)?;
        let (mut count, mut reply) = (0, Vec::with_capacity(MAX_REPLY));
        loop {
            reply.clear();
            self.socket.recv(&mut reply, 0)?;
            for part in parts(&reply) {
                match part {
                    NetlinkPayload::InnerMessage(_) => count += 1,
                    NetlinkPayload::Error(error) if error.raw_code() == -libc::ENOENT => return Ok(0),
                    NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                    NetlinkPayload::Done(_) => return Ok(count),
                    _ => {}
                }
            }
        }
    }

    /// Removes the table.
    ///
    /// # Errors
    ///
    /// When the kernel refuses. That the table is not there is no error.
    pub fn remove(self) -> Result<(), NftError> {
        match self.send(&[message::delete()]) {
            Err(error) if error.raw_os_error() != Some(libc::ENOENT) => Err(NftError::Refused { tried: "remove", error }),
            _ => Ok(()),
        }
    }

    /// Sends messages as one transaction and reads what the kernel says to each.
    fn send(&self, messages: &[NetlinkMessage<NetfilterMessage>]) -> io::Result<()> {
        let bytes = message::batch(messages);
        self.socket.send_to(&bytes, &SocketAddr::new(0, 0), 0)?;
        let expected = messages.iter().filter(|m| m.header.flags & NLM_F_ACK != 0).count();
        let mut first = Ok(());
        let mut seen = 0;
        let mut reply = Vec::with_capacity(MAX_REPLY);
        while seen < expected {
            reply.clear();
            match self.socket.recv(&mut reply, 0) {
                Ok(_) => {}
                // After a refusal the rest may stay unanswered.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && first.is_err() => break,
                Err(error) => return Err(error),
            }
            for answer in answers(&reply) {
                seen += 1;
                if first.is_ok() {
                    first = answer;
                }
            }
        }
        // Nothing of this batch may be taken for an answer to the next.
        reply.clear();
        while self.socket.recv(&mut reply, 0).is_ok() {
            reply.clear();
        }
        first
    }
}

/// The messages in one datagram from the kernel.
fn parts(mut bytes: &[u8]) -> Vec<NetlinkPayload<NetfilterMessage>> {
    let mut found = Vec::new();
    while let Ok(buffer) = NetlinkBuffer::new_checked(&bytes) {
        let length = (buffer.length() as usize).next_multiple_of(4);
        if let Ok(message) = NetlinkMessage::<NetfilterMessage>::parse(&buffer) {
            found.push(message.payload);
        }
        match bytes.get(length..) {
            Some(rest) if length > 0 => bytes = rest,
            _ => break,
        }
    }
    found
}

/// What the kernel says to each message, in one datagram.
fn answers(bytes: &[u8]) -> impl Iterator<Item = io::Result<()>> {
    parts(bytes).into_iter().filter_map(|part| match part {
        NetlinkPayload::Error(error) => {
            Some(error.code.map_or(Ok(()), |code| Err(io::Error::from_raw_os_error(code.get().saturating_neg()))))
        }
        _ => None,
    })
}

/// Why the packet filter cannot be used here; `None` if it can. Nothing is changed.
pub fn trouble() -> Option<String> {
    let opened = Socket::new(NETLINK_NETFILTER).and_then(|mut socket| {
        socket.bind_auto()?;
        socket.set_non_blocking(true)?;
        Ok(socket)
    });
    let counted = opened.and_then(|socket| Firewall { socket, set: None, clamps: true }.count_rules());
    counted.err().map(|error| match error.raw_os_error() {
        Some(libc::EOPNOTSUPP | libc::EINVAL | libc::EPROTONOSUPPORT) => "the kernel has no nf_tables".to_owned(),
        _ => error.to_string(),
    })
}

/// Removes a table that nobody owns, as an older kernel keeps after a crash. That there is none, or no nf_tables at all, is no error.
///
/// # Errors
///
/// When the kernel refuses for another reason.
pub fn remove_leftover() -> Result<(), NftError> {
    let Ok(mut socket) = Socket::new(NETLINK_NETFILTER) else { return Ok(()) };
    socket.bind_auto().and_then(|_| socket.set_non_blocking(true)).map_err(NftError::Open)?;
    match (Firewall { socket, set: None, clamps: true }).remove() {
        // The kernel refuses so when the table has a living owner, when we are not root, or when it has no nf_tables.
        Err(NftError::Refused { error, .. }) if matches!(error.raw_os_error(), Some(libc::EPERM | libc::EOPNOTSUPP | libc::EINVAL)) => {
            Ok(())
        }
        result => result,
    }
}
