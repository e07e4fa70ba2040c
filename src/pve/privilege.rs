//! Which privilege which call needs: one table, for the check before a run and for the role that `pvemesh init --print-role` prints.
//!
//! Sources: the `permissions` of the API schema, and for what the code checks besides them pve-container's `check_ct_modify_config_perm`
//! and `check_bridge_access`. What only the literal `root@pam` may do is no privilege; [`root_only`] knows it.

use super::{Method, Param, Properties, Request, Version};

/// Where a privilege is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum At {
    /// The guest in the path.
    Guest,
    /// The guest that the call makes: `newid`, or `vmid`.
    NewGuest,
    /// The storage in the path.
    Storage,
    /// The storage of `rootfs`.
    RootStorage,
    /// The storage of `ostemplate`.
    TemplateStorage,
    /// The storage named by `storage`.
    TargetStorage,
    /// The bridges of `net[n]`.
    Bridge,
}

impl At {
    /// The access control path above all of its kind.
    const fn above(self) -> &'static str {
        match self {
            Self::Guest | Self::NewGuest => "/vms",
            Self::Storage | Self::RootStorage | Self::TemplateStorage | Self::TargetStorage => "/storage",
            Self::Bridge => "/sdn/zones",
        }
    }
}

/// Why a privilege is part of the printed role, if it is.
#[derive(Debug, Clone, Copy)]
enum InRole {
    /// pvemesh makes the call with a token.
    Yes,
    /// Only on hosts from, or before, the version that brought `env`: the way a configuration reaches a guest differs.
    WithEnvironment,
    WithoutEnvironment,
    /// Not with a token: root's alone for other reasons, or done without where it is missing.
    No,
}

struct Rule {
    method: Method,
    /// The path, its variables in braces.
    path: &'static str,
    /// The parameters that make it needed, without their numbers; none for every call of the path.
    with: &'static [&'static str],
    at: At,
    any_of: &'static [&'static str],
    since: Version,
    until: Version,
    role: InRole,
    /// The commands that make the call.
    used_by: &'static str,
}

const FIRST: Version = Version::new(0, 0, 0);
const LAST: Version = Version::new(u16::MAX, 0, 0);
/// Bridges got access control with pve-container 5.0.1.
const BRIDGES: Version = Version::new(8, 0, 0);
/// `VM.Monitor` was split into `VM.GuestAgent.*`.
const GUEST_AGENT: Version = Version::new(9, 0, 0);

const NEW: &str = "/nodes/{node}/lxc";
const CONFIG: &str = "/nodes/{node}/lxc/{vmid}/config";
const CLONE: &str = "/nodes/{node}/lxc/{vmid}/clone";
const CONTENT: &str = "/nodes/{node}/storage/{storage}/content";
const AGENT: &str = "/nodes/{node}/qemu/{vmid}/agent/network-get-interfaces";
const OPTIONS: &[&str] = &["arch", "ostype", "onboot", "cmode", "tags", "description", "env", "startup", "protection"];

const fn rule(method: Method, path: &'static str, with: &'static [&'static str], at: At, any_of: &'static [&'static str]) -> Rule {
    Rule { method, path, with, at, any_of, since: FIRST, until: LAST, role: InRole::Yes, used_by: "" }
}

impl Rule {
    const fn by(self, used_by: &'static str) -> Self {
        Self { used_by, ..self }
    }

    const fn since(self, since: Version) -> Self {
        Self { since, ..self }
    }

    const fn until(self, until: Version) -> Self {
        Self { until, ..self }
    }

    const fn role(self, role: InRole) -> Self {
        Self { role, ..self }
    }

    fn holds_at(&self, version: Version) -> bool {
        self.since <= version && version < self.until
    }
}

const RULES: &[Rule] = &[
    rule(Method::Post, NEW, &[], At::NewGuest, &["VM.Allocate"]).by("create-*"),
    rule(Method::Post, NEW, &["rootfs"], At::NewGuest, &["VM.Config.Disk"]).by("create-* without a golden container"),
    rule(Method::Post, NEW, &["rootfs"], At::RootStorage, &["Datastore.AllocateSpace"]).by("create-*"),
    rule(Method::Post, NEW, &["ostemplate"], At::TemplateStorage, &["Datastore.AllocateSpace", "Datastore.Audit"]).by("create-*"),
    rule(Method::Post, NEW, &["cores"], At::NewGuest, &["VM.Config.CPU"]).by("create-*"),
    rule(Method::Post, NEW, &["memory", "swap"], At::NewGuest, &["VM.Config.Memory"]).by("create-*"),
    rule(Method::Post, NEW, &["net", "hostname"], At::NewGuest, &["VM.Config.Network"]).by("create-*"),
    rule(Method::Post, NEW, &["net"], At::Bridge, &["SDN.Use"]).since(BRIDGES).by("create-*"),
    rule(Method::Post, NEW, OPTIONS, At::NewGuest, &["VM.Config.Options"]).by("create-*"),
    rule(Method::Post, CLONE, &[], At::Guest, &["VM.Clone"]).role(InRole::WithEnvironment).by("create-* from a golden container"),
    rule(Method::Post, CLONE, &[], At::NewGuest, &["VM.Allocate"]).by("create-* from a golden container"),
    rule(Method::Post, CLONE, &["storage"], At::TargetStorage, &["Datastore.AllocateSpace"]).by("create-* from a golden container"),
    rule(Method::Put, CONFIG, &["cores"], At::Guest, &["VM.Config.CPU"]).by("create-*"),
    rule(Method::Put, CONFIG, &["memory", "swap"], At::Guest, &["VM.Config.Memory"]).by("create-*"),
    rule(Method::Put, CONFIG, &["net", "hostname"], At::Guest, &["VM.Config.Network"]).by("create-*"),
    rule(Method::Put, CONFIG, &["net"], At::Bridge, &["SDN.Use"]).since(BRIDGES).by("create-*"),
    rule(Method::Put, CONFIG, OPTIONS, At::Guest, &["VM.Config.Options"]).by("create-* (notes, tags, configuration)"),
    rule(Method::Post, "/nodes/{node}/lxc/{vmid}/status/start", &[], At::Guest, &["VM.PowerMgmt"]).by("create-*"),
    rule(Method::Post, "/nodes/{node}/lxc/{vmid}/status/stop", &[], At::Guest, &["VM.PowerMgmt"]).by("taking a failed run back"),
    rule(Method::Post, "/nodes/{node}/lxc/{vmid}/status/shutdown", &[], At::Guest, &["VM.PowerMgmt"]).by("destroy"),
    rule(Method::Delete, "/nodes/{node}/lxc/{vmid}", &[], At::Guest, &["VM.Allocate"]).by("destroy, taking a failed run back"),
    rule(Method::Get, CONFIG, &[], At::Guest, &["VM.Audit"]).by("all commands"),
    rule(Method::Get, "/nodes/{node}/lxc/{vmid}/status/current", &[], At::Guest, &["VM.Audit"]).by("list, status"),
    rule(Method::Get, "/nodes/{node}/lxc/{vmid}/interfaces", &[], At::Guest, &["VM.Audit"]).by("create-*, list, status"),
    rule(Method::Get, CONTENT, &[], At::Storage, &["Datastore.AllocateSpace", "Datastore.Audit"]).by("create-*"),
    rule(Method::Post, "/nodes/{node}/storage/{storage}/upload", &[], At::Storage, &["Datastore.AllocateTemplate"])
        .by("create-* without a golden container"),
    // The image that serves all guests may stay; one with a guest's configuration in it must not.
    rule(Method::Delete, "/nodes/{node}/storage/{storage}/content/{volume}", &[], At::Storage, &["Datastore.Allocate"])
        .role(InRole::WithoutEnvironment)
        .by("create-*, to remove an image with a configuration in it"),
    rule(Method::Post, "/nodes/{node}/lxc/{vmid}/template", &[], At::Guest, &["VM.Allocate"]).role(InRole::No).by("image golden"),
    rule(Method::Get, AGENT, &[], At::Guest, &["VM.GuestAgent.Audit", "VM.GuestAgent.Unrestricted"])
        .since(GUEST_AGENT)
        .by("attach, to learn a virtual machine's addresses"),
    rule(Method::Get, AGENT, &[], At::Guest, &["VM.Monitor"]).until(GUEST_AGENT).by("attach, to learn a virtual machine's addresses"),
];

/// One privilege that a call needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Need {
    /// The access control path.
    pub path: String,
    /// One of these at that path will do.
    pub any_of: &'static [&'static str],
    /// The parameter that makes it needed, if not the call itself does.
    pub parameter: Option<String>,
}

impl Need {
    /// The privileges in words, as in `SDN.Use`.
    pub fn words(&self) -> String {
        self.any_of.join(" or ")
    }
}

/// The variables of a path that fits a pattern.
fn bound<'p>(pattern: &'static str, path: &'p str) -> Option<Vec<(&'static str, &'p str)>> {
    let mut variables = Vec::new();
    let mut rest = path.strip_prefix('/')?;
    let mut parts = pattern.strip_prefix('/')?.split('/').peekable();
    while let Some(part) = parts.next() {
        // The last variable takes the rest: names of volumes hold slashes.
        let (given, after) = if parts.peek().is_none() { (rest, "") } else { rest.split_once('/')? };
        match part.strip_prefix('{').and_then(|p| p.strip_suffix('}')) {
            Some("volume") => variables.push(("volume", given)),
            Some(_) if given.contains('/') => return None,
            Some(name) => variables.push((name, given)),
            None if part == given => {}
            None => return None,
        }
        rest = after;
    }
    Some(variables)
}

/// The parameters a request sets or deletes.
fn touched(request: &Request) -> impl Iterator<Item = &str> {
    let deleted = request.params.get("delete").map_or("", Param::expose).split([',', ';', ' ']).filter(|key| !key.is_empty());
    request.params.keys().map(String::as_str).filter(|key| *key != "delete").chain(deleted)
}

fn stem(parameter: &str) -> &str {
    parameter.trim_end_matches(|c: char| c.is_ascii_digit())
}

/// What a request needs on a host of this version. Calls that are not in the table need nothing, or nothing that pvemesh knows of.
pub fn needs(request: &Request, version: Version) -> Vec<Need> {
    let mut needs: Vec<Need> = Vec::new();
    for rule in RULES.iter().filter(|rule| rule.method == request.method && rule.holds_at(version)) {
        let Some(variables) = bound(rule.path, &request.path) else { continue };
        let parameter = touched(request).find(|key| rule.with.contains(&stem(key)));
        if !rule.with.is_empty() && parameter.is_none() {
            continue;
        }
        for path in places(rule.at, request, &variables) {
            let there = needs.iter().any(|need| need.path == path && need.any_of == rule.any_of);
            if !there {
                needs.push(Need { path, any_of: rule.any_of, parameter: parameter.map(ToOwned::to_owned) });
            }
        }
    }
    needs
}

fn places(at: At, request: &Request, variables: &[(&'static str, &str)]) -> Vec<String> {
    let variable = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
    let parameter = |name: &str| request.params.get(name).map(|value| value.expose().to_owned());
    let storage_of = |volume: Option<String>| Some(volume?.split_once(':')?.0.to_owned());
    let one = |above: &str, name: Option<String>| name.map(|name| format!("{above}/{name}")).into_iter().collect();
    match at {
        At::Guest => one("/vms", variable("vmid")),
        At::NewGuest => one("/vms", parameter("newid").or_else(|| parameter("vmid"))),
        At::Storage => one("/storage", variable("storage")),
        At::RootStorage => one("/storage", storage_of(parameter("rootfs"))),
        At::TemplateStorage => one("/storage", storage_of(parameter("ostemplate"))),
        At::TargetStorage => one("/storage", parameter("storage")),
        At::Bridge => {
            let nets = request.params.iter().filter(|(name, _)| stem(name) == "net" && name.len() > 3);
            let bridges = nets.filter_map(|(_, value)| Properties::parse(value.expose(), "").value("bridge").map(ToOwned::to_owned));
            bridges.map(|bridge| format!("/sdn/zones/localnetwork/{bridge}")).collect()
        }
    }
}

/// The parameter of a request that only the literal `root@pam` may set, if it has one. No role changes that.
pub fn root_only(request: &Request) -> Option<&str> {
    let sets = matches!(request.method, Method::Post | Method::Put) && request.path.contains("/lxc");
    touched(request).find(|key| sets && key.len() > stem(key).len() && stem(key) == "dev" || sets && *key == "hookscript")
}

/// One privilege of the role for API tokens.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Granted {
    /// The privilege.
    pub privilege: &'static str,
    /// The access control path below which it is needed.
    pub path: &'static str,
    /// The calls that need it, with the commands that make them.
    pub calls: Vec<String>,
}

/// The privileges that pvemesh needs with an API token on a host of this version, each with the calls that need it.
pub fn role(version: Version) -> Vec<Granted> {
    let has_environment = version >= Version::ENVIRONMENT;
    let mut granted: Vec<Granted> = Vec::new();
    for rule in RULES.iter().filter(|rule| rule.holds_at(version)) {
        let wanted = match rule.role {
            InRole::Yes => true,
            InRole::WithEnvironment => has_environment,
            InRole::WithoutEnvironment => !has_environment,
            InRole::No => false,
        };
        let Some(privilege) = rule.any_of.first().filter(|_| wanted) else { continue };
        let with = if rule.with.is_empty() { String::new() } else { format!(" {}", rule.with.join("/")) };
        let call = format!("{} {}{with} ({})", rule.method, rule.path, rule.used_by);
        match granted.iter_mut().find(|g| g.privilege == *privilege) {
            Some(known) => known.calls.push(call),
            None => granted.push(Granted { privilege, path: rule.at.above(), calls: vec![call] }),
        }
    }
    granted.sort_by_key(|g| (g.path, g.privilege));
    granted
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, reason = "test code")]
mod tests {
    use super::*;

    const V9_1: Version = Version::new(9, 1, 9);

    fn shown(request: &Request, version: Version) -> Vec<String> {
        needs(request, version).iter().map(|need| format!("{} {}", need.path, need.words())).collect()
    }

    #[test]
    fn a_new_container_needs_what_its_parameters_need() {
        let request = Request::new(Method::Post, "/nodes/pve/lxc")
            .with("vmid", "101")
            .with("ostemplate", "local:vztmpl/x.tar.gz")
            .with("rootfs", "local-lvm:0.25")
            .with("net0", "name=eth0,bridge=vmbr1,ip=dhcp")
            .with("tags", "pvemesh");
        assert_eq!(
            shown(&request, V9_1),
            [
                "/vms/101 VM.Allocate",
                "/vms/101 VM.Config.Disk",
                "/storage/local-lvm Datastore.AllocateSpace",
                "/storage/local Datastore.AllocateSpace or Datastore.Audit",
                "/vms/101 VM.Config.Network",
                "/sdn/zones/localnetwork/vmbr1 SDN.Use",
                "/vms/101 VM.Config.Options",
            ]
        );
        assert!(!shown(&request, Version::new(7, 4, 0)).iter().any(|need| need.contains("SDN")));
    }

    #[test]
    fn a_deleted_key_counts_as_a_set_one() {
        let request = Request::new(Method::Put, "/nodes/pve/lxc/101/config").with("delete", "env");
        assert_eq!(shown(&request, V9_1), ["/vms/101 VM.Config.Options"]);
        assert_eq!(root_only(&Request::new(Method::Put, "/nodes/pve/lxc/101/config").with("delete", "dev0")), Some("dev0"));
        assert_eq!(root_only(&Request::new(Method::Get, "/nodes/pve/lxc/101/config").with("dev0", "x")), None);
        assert_eq!(root_only(&Request::new(Method::Put, "/nodes/pve/lxc/101/config").with("net0", "x")), None);
    }

    #[test]
    fn a_clone_is_asked_for_at_both_guests() {
        let request = Request::new(Method::Post, "/nodes/pve/lxc/9000/clone").with("newid", "101").with("storage", "tank");
        assert_eq!(shown(&request, V9_1), ["/vms/9000 VM.Clone", "/vms/101 VM.Allocate", "/storage/tank Datastore.AllocateSpace"]);
    }

    #[test]
    fn a_volume_s_name_may_hold_slashes_and_a_guest_s_number_may_not() {
        let volume = Request::new(Method::Delete, "/nodes/pve/storage/local/content/local:vztmpl/x.tar.gz");
        assert_eq!(shown(&volume, V9_1), ["/storage/local Datastore.Allocate"]);
        assert_eq!(shown(&Request::new(Method::Delete, "/nodes/pve/lxc/101/snapshot"), V9_1), Vec::<String>::new());
    }

    #[test]
    fn the_role_follows_the_version() {
        let names = |version| role(version).iter().map(|g| g.privilege).collect::<Vec<_>>();
        let (old, new) = (names(Version::new(7, 4, 3)), names(V9_1));
        for (privilege, before, after) in [
            ("SDN.Use", false, true),
            ("VM.Clone", false, true),
            ("VM.GuestAgent.Audit", false, true),
            ("VM.Monitor", true, false),
            ("Datastore.Allocate", true, false),
            ("VM.Allocate", true, true),
        ] {
            assert_eq!((old.contains(&privilege), new.contains(&privilege)), (before, after), "{privilege}");
        }
        assert!(role(V9_1).iter().all(|g| !g.calls.is_empty()));
    }

    /// Of two privileges that will do the role has one; no call of the role is left without.
    #[test]
    fn the_role_is_enough_for_every_call_in_it() {
        for version in [Version::new(7, 4, 0), Version::new(8, 0, 0), Version::new(8, 4, 0), Version::new(9, 0, 0), V9_1] {
            let role = role(version);
            for rule in RULES.iter().filter(|rule| rule.holds_at(version)) {
                let granted = role.iter().any(|g| rule.any_of.contains(&g.privilege));
                let left_out = match rule.role {
                    InRole::Yes => false,
                    InRole::WithEnvironment => version < Version::ENVIRONMENT,
                    InRole::WithoutEnvironment => version >= Version::ENVIRONMENT,
                    InRole::No => true,
                };
                assert!(granted || left_out, "{version}: {} {} {:?}", rule.method, rule.path, rule.any_of);
                assert!(!rule.used_by.is_empty(), "{} {}", rule.method, rule.path);
            }
        }
    }
}
