//! `pvemesh node dns`: what the coordinator says of names.

use std::fmt::Write as _;

use super::show::printable;
use super::{Exit, Failure, Output, unreached};
use crate::node::{DnsStatus, NameAnswer, Outcome, RecordType};
use crate::sys::local_api::{Client, Query};

/// Names.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Dns {
    /// Show what the coordinator has delivered: suffix, resolvers, split routes, search domains, records.
    Status,
    /// Look a name up in the network map. No name server is asked.
    Query {
        /// A node's name, short or complete, or an address.
        name: String,
        /// What is wanted.
        #[arg(value_enum, ignore_case = true, default_value = "a")]
        kind: Kind,
    },
}

/// What is wanted of a name.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(super) enum Kind {
    /// IPv4 addresses.
    A,
    /// IPv6 addresses.
    Aaaa,
    /// The name of an address.
    Ptr,
}

pub(super) async fn run(dns: &Dns, client: &Client, output: &Output) -> Result<(), Failure> {
    match dns {
        Dns::Status => {
            let status = client.dns().await.map_err(|e| unreached("show the names", &e))?;
            output.result(&status, shown(&status).trim_end());
            Ok(())
        }
        Dns::Query { name, kind } => query(name, *kind, client, output).await,
    }
}

async fn query(name: &str, kind: Kind, client: &Client, output: &Output) -> Result<(), Failure> {
    let kind = match kind {
        Kind::A => RecordType::A,
        Kind::Aaaa => RecordType::Aaaa,
        Kind::Ptr => RecordType::Ptr,
    };
    let tried = format!("look up {}", printable(name));
    let answer = client.query(&Query { name: name.to_owned(), kind }).await.map_err(|e| unreached(&tried, &e))?;
    output.note(format_args!("from the network map; no name server was asked"));
    if answer.outcome == Outcome::Found || output.json() {
        output.result(&answer, answer.records.iter().map(|record| printable(record)).collect::<Vec<_>>().join("\n"));
    }
    match answer.outcome {
        Outcome::Found => Ok(()),
        _ => Err(Failure::new(tried, happened(&answer), "`pvemesh node status` lists the nodes' names").exit(Exit::Conflict)),
    }
}

fn happened(answer: &NameAnswer) -> String {
    let note = if answer.note.is_empty() { String::new() } else { format!(" ({})", answer.note) };
    let name = printable(&answer.name);
    match answer.outcome {
        Outcome::Found => name,
        Outcome::NoData => format!("{name} has no such record{note}"),
        Outcome::NoSuchName => format!("there is no {name} in the mesh{note}"),
        Outcome::Elsewhere if answer.resolvers.is_empty() => {
            format!("{name} is no name of the mesh; this machine's own resolvers would be asked")
        }
        Outcome::Elsewhere => {
            let resolvers: Vec<String> = answer.resolvers.iter().map(|resolver| printable(resolver)).collect();
            format!("{name} is no name of the mesh; {} would be asked", resolvers.join(", "))
        }
    }
}

fn shown(status: &DnsStatus) -> String {
    let list = |values: &[String]| if values.is_empty() { "none".to_owned() } else { join(values) };
    let mut text = String::new();
    let _ = writeln!(text, "MagicDNS        {}", if status.enabled { "on" } else { "off" });
    let _ = writeln!(text, "suffix          {}", printable(&status.suffix));
    let _ = writeln!(text, "own name        {}", printable(&status.self_name));
    let _ = writeln!(text, "search domains  {}", list(&status.search_domains));
    let _ = writeln!(text, "resolvers       {}", list(&status.resolvers));
    let _ = writeln!(text, "fallback        {}", list(&status.fallback_resolvers));
    let _ = writeln!(text, "certificates    {}", list(&status.cert_domains));
    for (suffix, resolvers) in &status.routes {
        let to = if resolvers.is_empty() { "the network map".to_owned() } else { join(resolvers) };
        let _ = writeln!(text, "route           {} -> {to}", printable(suffix));
    }
    for record in &status.extra_records {
        let _ = writeln!(text, "record          {} {}", printable(&record.name), printable(&record.value));
    }
    let follows = if status.accepted { "accepted (--accept-dns)" } else { "not accepted (--accept-dns=false)" };
    let listening: Vec<String> = status.listening.iter().map(ToString::to_string).collect();
    let _ = writeln!(text, "answered on     {}", list(&listening));
    let led_by = status.led_by.as_deref().map_or("nobody; this machine's programs ask its own name servers".to_owned(), printable);
    let _ = writeln!(text, "led there by    {led_by}");
    let _ =
        writeln!(text, "\nThis is what the coordinator delivered; it is {follows}. `pvemesh node dns query NAME` looks a name up in it.");
    text
}

fn join(values: &[String]) -> String {
    values.iter().map(|value| printable(value)).collect::<Vec<_>>().join(", ")
}
