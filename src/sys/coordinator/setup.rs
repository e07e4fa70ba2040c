//! From options to what a coordinator starts with: checks of the settings, the certificate's source, limits of the system.

use std::io;
use std::path::{Path, PathBuf};

use tokio_rustls::TlsAcceptor;

use super::{Options, StartError};
use crate::ident::NodeName;
use crate::sys::certificate::{Files, Source, acceptor, acme};
use crate::wire::control::{DerpMap, json as lenient};

/// A DNS name has 253 characters; a node's name and a dot come before the base domain.
const MAX_BASE_DOMAIN: usize = 253 - 64;

/// The core's settings, if those of the options make sense.
pub(super) fn check(options: &Options) -> Result<crate::coord::server::Settings, StartError> {
    let url = options.settings.url.trim_end_matches('/').to_owned();
    let uri: http::Uri = match url.parse() {
        Ok(uri) => uri,
        Err(e) => return wrong(format!("the address {url} is not a URL ({e}): give http(s)://HOST[:PORT]")),
    };
    let (Some(scheme @ ("http" | "https")), Some(host), "" | "/") = (uri.scheme_str(), uri.host(), uri.path()) else {
        return wrong(format!("the address {url} is not of the form http(s)://HOST[:PORT]"));
    };
    let base = options.settings.base_domain.clone();
    let labels_fit = base.split('.').all(|label| label.parse::<NodeName>().is_ok());
    if base.len() > MAX_BASE_DOMAIN || !labels_fit {
        return wrong(format!("the base domain {base} is not a domain name such as mesh.internal"));
    }
    // Names under the base domain are resolved through the mesh: the way to the coordinator must not need the mesh.
    if host.eq_ignore_ascii_case(&base) || host.to_ascii_lowercase().ends_with(&format!(".{}", base.to_ascii_lowercase())) {
        return wrong(format!("the coordinator's own name {host} lies under the base domain {base}: choose another base domain"));
    }
    check_front(options, &url, scheme == "https", host)?;
    let derp_map = options.derp_map.as_deref().map(read_derp_map).transpose()?;
    Ok(crate::coord::server::Settings {
        derp_map,
        key_life: options.lifetimes.key,
        ephemeral_after: options.lifetimes.ephemeral,
        ..crate::coord::server::Settings::new(url, base.to_ascii_lowercase())
    })
}

/// Whether certificate, second listener and address fit each other.
fn check_front(options: &Options, url: &str, https: bool, host: &str) -> Result<(), StartError> {
    let front = &options.settings.front;
    let tls = front.certificate.is_some() || front.acme.is_some();
    if front.certificate.is_some() && front.acme.is_some() {
        return wrong("a certificate comes from files or by ACME, not both".to_owned());
    }
    if tls && !https {
        return wrong(format!("clients are told {url}, but the listener speaks TLS: tell them https://{host}"));
    }
    if front.listen_http.is_some() && !tls {
        return wrong("a second listener without TLS is of use only where the first has a certificate".to_owned());
    }
    match &front.acme {
        Some(acme) if !acme.domain.eq_ignore_ascii_case(host) => {
            wrong(format!("the certificate would be for {}, but clients are told {host}", acme.domain))
        }
        Some(acme) if host.parse::<std::net::IpAddr>().is_ok() || host.starts_with('[') => {
            wrong(format!("ACME gives certificates for names, not for the address {}", acme.domain))
        }
        _ => Ok(()),
    }
}

fn wrong<T>(text: String) -> Result<T, StartError> {
    Err(StartError::Setting(text))
}

pub(super) fn read_derp_map(path: &Path) -> Result<DerpMap, StartError> {
    let bytes = std::fs::read(path).map_err(path_error("read the relay map", path))?;
    lenient::from_slice(&bytes).map_err(|e| path_error("read the relay map", path)(io::Error::other(e)))
}

/// TLS for the listener and where its certificate comes from, if it has one.
pub(super) fn tls(options: &Options) -> Result<Option<(TlsAcceptor, Source)>, StartError> {
    let failed = |(path, source): (PathBuf, io::Error)| StartError::Path { what: "use for the certificate", path, source };
    let front = &options.settings.front;
    if let Some(files) = &front.certificate {
        let opened = Files::open(files).map_err(failed)?;
        let acceptor = acceptor(opened.served(), false).map_err(|e| failed((files.chain.clone(), e)))?;
        return Ok(Some((acceptor, Source::Files(opened))));
    }
    let Some(settings) = &front.acme else { return Ok(None) };
    let directory = options.state_dir.join("acme");
    let acme = acme::Acme::open(settings, directory.clone()).map_err(failed)?;
    let acceptor = acceptor(acme.certificates(), true).map_err(|e| failed((directory, e)))?;
    Ok(Some((acceptor, Source::Acme(acme))))
}

pub(super) fn path_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StartError + use<> {
    let path = path.to_owned();
    move |source| StartError::Path { what, path, source }
}
