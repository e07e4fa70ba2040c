//! From a request to the endpoint that answers it, with PVE's order of refusals.

use std::sync::LazyLock;

use serde_json::Value;

use super::access::{Caller, Login};
use super::http::{Param, Reply, Request, percent_decode};
use super::schema::{self, Params};
use super::{
    Context, Version, accounts, clone, firewall, guests, ha, inventory, lifecycle, migrate, pmxcfs, qemu, snapshot, storage, tasks,
};

/// The path templates known, split at slashes.
static TEMPLATES: LazyLock<Vec<(String, Vec<String>)>> = LazyLock::new(|| {
    let schema: Value = serde_json::from_str(include_str!("../../fixtures/pve/schema-9.1.json")).expect("the schema excerpt is JSON");
    let methods = schema["methods"].as_object().expect("methods by path").keys();
    methods.map(|path| (path.clone(), path.split('/').skip(1).map(str::to_owned).collect())).collect()
});

/// Matches a path with a template; the last variable takes the rest, since volume names hold slashes.
fn bind(template: &[String], path: &[&str]) -> Option<Vec<(String, String)>> {
    let mut bound = Vec::new();
    for (at, part) in template.iter().enumerate() {
        let given = path.get(at)?;
        match part.strip_prefix('{').and_then(|p| p.strip_suffix('}')) {
            Some("volume") => {
                bound.push(("volume".to_owned(), percent_decode(&path.get(at..)?.join("/"))));
                return Some(bound);
            }
            Some(name) => bound.push((name.to_owned(), percent_decode(given))),
            None if part == given => {}
            None => return None,
        }
    }
    (template.len() == path.len()).then_some(bound)
}

/// Answers one request; `caller` is set where no credentials are asked for.
pub fn answer(context: &mut Context, request: &Request, caller: Option<Caller>) -> Reply {
    carry_out(context, request, caller).unwrap_or_else(|refusal| refusal)
}

fn carry_out(context: &mut Context, request: &Request, caller: Option<Caller>) -> Result<Reply, Reply> {
    let Some(path) = request.path.strip_prefix("/api2/json") else {
        return Err(Reply::text(501, &format!("no such file '{}'", request.path)));
    };
    if request.method == "POST" && path == "/access/ticket" {
        let properties = schema::method(path, "POST").expect("in the schema");
        let params = schema::check(properties, &request.parameters()?, context.core.entry().version)?;
        let get = |name: &str| params.get(name).map_or("", String::as_str);
        let user = if get("realm").is_empty() { get("username").to_owned() } else { format!("{}@{}", get("username"), get("realm")) };
        let login = Login { user: &user, password: get("password"), otp: get("otp"), challenge: get("tfa-challenge") };
        if !login.otp.is_empty() && !login.challenge.is_empty() {
            return Err(Reply::parameter("otp", "the \"otp\" parameter cannot be used together with \"tfa-challenge\""));
        }
        let new_format = get("new-format") == "1" || context.core.options.version >= Version(8, 0);
        return Ok(context.core.inner.lock().unwrap().access.log_in(&login, new_format));
    }
    let on_host = caller.is_some();
    context.caller = match caller {
        Some(caller) => caller,
        None => context.core.inner.lock().unwrap().access.authenticate(request)?,
    };
    let parts: Vec<_> = path.split('/').skip(1).collect();
    let method = request.method.as_str();
    let known = TEMPLATES.iter().find_map(|(template, pattern)| {
        let bound = bind(pattern, &parts)?;
        let properties = schema::method(template, method)?;
        Some((template.as_str(), bound, properties))
    });
    // The host that a call is for says what there is.
    let version = known.as_ref().and_then(|(_, bound, _)| bound.iter().find(|(name, _)| name == "node"));
    let version = version.and_then(|(_, host)| context.core.host(host)).unwrap_or_else(|| context.core.entry()).version;
    let known = known.filter(|(template, ..)| is_there(template, version));
    let Some((template, bound, properties)) = known else {
        let message = format!("Method '{method} {path}' not implemented");
        let mut reply = Reply::error(501, &message);
        reply.json = Some(serde_json::json!({ "data": null, "message": message }));
        return Err(reply);
    };
    let mut given = request.parameters()?;
    for (name, value) in &bound {
        if given.insert(name.clone(), Param::Text(value.clone())).is_some_and(|other| other != Param::Text(value.clone())) {
            return Err(Reply::parameter(name, "duplicate parameter (already defined in URI)"));
        }
    }
    let bound: Params = bound.into_iter().collect();
    declared_privileges(context, method, template, &bound)?;
    let of = |name: &str| bound.get(name).map_or("", String::as_str);
    context.go_to(of("node"))?;
    {
        let core = context.core.clone();
        pmxcfs::refresh(&core, &mut core.inner.lock().unwrap());
    }
    if template.ends_with("/upload") && on_host {
        return storage::take(context, of("storage"), &given);
    }
    if template.ends_with("/upload") {
        return storage::upload(context, of("storage"), request);
    }
    let params = schema::check(properties, &given, version)?;
    quorum(context, method, template, &params)?;
    dispatch(context, method, template, &params)
}

/// Whether a release has an endpoint.
fn is_there(template: &str, version: Version) -> bool {
    let since = match template {
        t if t.ends_with("/interfaces") => Version::V8_1,
        t if t.starts_with("/cluster/ha/rules") => Version::V9_0,
        _ => return true,
    };
    version >= since
}

/// Without a quorum the cluster's files cannot be written.
fn quorum(context: &Context, method: &str, template: &str, params: &Params) -> Result<(), Reply> {
    let tail = template.strip_prefix("/nodes/{node}").unwrap_or(template);
    if method == "GET" || context.core.inner.lock().unwrap().is_quorate() {
        return Ok(());
    }
    match tail {
        "/lxc/{vmid}/config" | "/qemu/{vmid}/config" => {
            let (host, id) = (&context.host, guests::id_of(params));
            Err(Reply::died(&format!("unable to open file '/etc/pve/nodes/{host}/lxc/{id}.conf.tmp.4711' - Permission denied")))
        }
        // These fail within their tasks, or need no file of the cluster's.
        t if t.contains("/status/") || t.starts_with("/storage/") || t.starts_with("/tasks/") => Ok(()),
        _ => Err(Reply::died("cluster not ready - no quorum?")),
    }
}

/// The privileges the schema declares for an endpoint; others are checked by the endpoint itself.
fn declared_privileges(context: &Context, method: &str, template: &str, bound: &Params) -> Result<(), Reply> {
    let of = |name: &str| bound.get(name).map_or("", String::as_str);
    let guest = format!("/vms/{}", of("vmid"));
    let inner = context.core.inner.lock().unwrap();
    let need = |path: &str, any_of: &str| inner.access.need(&context.caller, path, any_of);
    let tail = template.strip_prefix("/nodes/{node}").unwrap_or(template);
    match (method, tail) {
        ("GET", "/lxc/{vmid}/config" | "/lxc/{vmid}/pending" | "/lxc/{vmid}/status/current" | "/lxc/{vmid}/interfaces") => {
            need(&guest, "VM.Audit")
        }
        ("GET", "/qemu/{vmid}/config" | "/qemu/{vmid}/status/current" | "/lxc/{vmid}/snapshot") => need(&guest, "VM.Audit"),
        ("GET", "/qemu/{vmid}/agent/network-get-interfaces") => {
            let version = context.core.host(of("node")).map_or(Version::V9_1, |host| host.version);
            let before = if context.caller.is_root() { "VM.Audit" } else { "VM.Monitor" };
            need(&guest, if version >= Version::V9_0 { "VM.GuestAgent.Audit|VM.GuestAgent.Unrestricted" } else { before })
        }
        ("POST", t) if t.starts_with("/lxc/{vmid}/status/") || t.starts_with("/qemu/{vmid}/status/") => need(&guest, "VM.PowerMgmt"),
        ("POST", "/lxc/{vmid}/migrate" | "/qemu/{vmid}/migrate") => need(&guest, "VM.Migrate"),
        ("POST", "/lxc/{vmid}/template") => need(&guest, "VM.Allocate"),
        ("POST", "/lxc/{vmid}/snapshot") | ("DELETE", "/lxc/{vmid}/snapshot/{snapname}") => need(&guest, "VM.Snapshot"),
        ("POST", "/lxc/{vmid}/snapshot/{snapname}/rollback") => need(&guest, "VM.Snapshot|VM.Snapshot.Rollback"),
        ("GET", t) if t.starts_with("/cluster/ha/") || t == "/cluster/config/join" || t == "/cluster/config/nodes" => {
            need("/", "Sys.Audit")
        }
        (_, t) if t.starts_with("/cluster/ha/") => need("/", "Sys.Console"),
        ("PUT", "/lxc/{vmid}/config" | "/qemu/{vmid}/config") => {
            let any = "VM.Config.Disk|VM.Config.CPU|VM.Config.Memory|VM.Config.Network|VM.Config.Options";
            need(&guest, any)
        }
        ("DELETE", "/lxc/{vmid}" | "/qemu/{vmid}") => need(&guest, "VM.Allocate"),
        ("GET", t) if t.starts_with("/lxc/{vmid}/firewall/") => need(&guest, "VM.Audit"),
        (_, t) if t.starts_with("/lxc/{vmid}/firewall/") => need(&guest, "VM.Config.Network"),
        ("GET", "/cluster/firewall/options") => need("/", "Sys.Audit"),
        (_, "/cluster/firewall/options") => need("/", "Sys.Modify"),
        ("POST", "/lxc/{vmid}/clone") => need(&guest, "VM.Clone"),
        ("POST", "/access/roles") | ("PUT", "/access/roles/{roleid}") => need("/access", "Sys.Modify"),
        ("POST", "/access/users") => need("/access/realm/pve", "Realm.AllocateUser"),
        ("PUT", "/access/acl") => need("/access", "Permissions.Modify"),
        ("POST", "/access/users/{userid}/token/{tokenid}") => need("/access/groups", "User.Modify"),
        ("GET", t) if t.starts_with("/storage/{storage}") => {
            need(&format!("/storage/{}", of("storage")), "Datastore.Audit|Datastore.AllocateSpace")
        }
        ("POST", "/storage/{storage}/upload") => {
            need(&format!("/storage/{}", of("storage")), "Datastore.AllocateTemplate").map_err(|refusal| Reply::empty(403, &refusal.reason))
        }
        ("GET", "/status" | "/time") => need(&format!("/nodes/{}", of("node")), "Sys.Audit"),
        ("GET", "/cluster/status") => need("/", "Sys.Audit"),
        _ => Ok(()),
    }
}

/// What concerns more than one host or a virtual machine; nothing if it is another call.
fn dispatch_wide(context: &Context, method: &str, tail: &str, params: &Params) -> Option<Result<Reply, Reply>> {
    Some(match (method, tail) {
        (_, t) if t.starts_with("/cluster/ha/") => ha::answer(context, method, t, params),
        (_, t) if t.contains("/firewall/") => firewall::answer(context, method, t, params),
        (_, t) if t == "/qemu" || t.starts_with("/qemu/") => qemu::answer(context, method, t, params),
        ("GET", "/cluster/config/join") => Ok(inventory::join(context)),
        ("GET", "/cluster/config/nodes") => Ok(inventory::members(context)),
        ("POST", "/lxc/{vmid}/migrate") => migrate::migrate(context, params),
        ("POST", "/lxc/{vmid}/template") => migrate::template(context, params),
        ("GET", "/lxc/{vmid}/snapshot") => snapshot::list(context, params),
        ("POST", "/lxc/{vmid}/snapshot") => snapshot::take(context, params),
        ("DELETE", "/lxc/{vmid}/snapshot/{snapname}") => snapshot::remove(context, params),
        ("POST", "/lxc/{vmid}/snapshot/{snapname}/rollback") => snapshot::rollback(context, params),
        _ => return None,
    })
}

fn dispatch(context: &Context, method: &str, template: &str, params: &Params) -> Result<Reply, Reply> {
    if template == "/storage" {
        return Ok(storage::definitions(context));
    }
    let tail = template.strip_prefix("/nodes/{node}").filter(|t| !t.is_empty());
    if let Some(answer) = dispatch_wide(context, method, tail.unwrap_or(template), params) {
        return answer;
    }
    match (method, tail.unwrap_or(template)) {
        ("GET", "/access/permissions") => {
            let inner = context.core.inner.lock().unwrap();
            Ok(Reply::data(inner.access.permissions(&context.caller, params.get("path").map(String::as_str))))
        }
        ("GET", "/access/roles") => Ok(accounts::roles(context)),
        ("POST", "/access/roles") => accounts::set_role(context, params, true),
        ("PUT", "/access/roles/{roleid}") => accounts::set_role(context, params, false),
        ("GET", "/access/users") => Ok(accounts::users(context)),
        ("POST", "/access/users") => accounts::add_user(context, params),
        ("PUT", "/access/acl") => accounts::set_acl(context, params),
        ("POST", "/access/users/{userid}/token/{tokenid}") => accounts::add_token(context, params),
        ("GET", "/version") => Ok(inventory::version(context)),
        ("GET", "/nodes") => Ok(inventory::nodes(context)),
        ("GET", "/status") => Ok(inventory::node_status(context)),
        ("GET", "/time") => Ok(inventory::time(context)),
        ("GET", "/network") => Ok(inventory::network(context, params)),
        ("GET", "/certificates/info") => Ok(inventory::certificates(context)),
        ("GET", "/cluster/nextid") => inventory::next_id(context, params),
        ("GET", "/cluster/resources") => Ok(inventory::resources(context, params)),
        ("GET", "/cluster/status") => Ok(inventory::cluster_status(context)),
        ("GET", "/tasks") => Ok(tasks::list(context, params)),
        ("DELETE", "/tasks/{upid}") => Ok(tasks::abort(context, params)),
        ("GET", "/tasks/{upid}/status") => tasks::status(context, params),
        ("GET", "/tasks/{upid}/log") => Ok(tasks::log(context, params)),
        ("GET", "/storage") => Ok(storage::list(context, params)),
        ("GET", "/storage/{storage}/status") => storage::status(context, params),
        ("GET", "/storage/{storage}/content") => storage::content(context, params),
        ("DELETE", "/storage/{storage}/content/{volume}") => storage::delete(context, params),
        ("GET", "/lxc") => Ok(guests::list(context)),
        ("POST", "/lxc") => guests::create(context, params),
        ("DELETE", "/lxc/{vmid}") => lifecycle::destroy(context, params),
        ("GET", "/lxc/{vmid}/config") => guests::config(context, params),
        ("GET", "/lxc/{vmid}/pending") => guests::pending(context, params),
        ("PUT", "/lxc/{vmid}/config") => guests::set_config(context, params),
        ("POST", "/lxc/{vmid}/clone") => clone::clone(context, params),
        ("GET", "/lxc/{vmid}/status/current") => guests::status(context, params),
        ("GET", "/lxc/{vmid}/interfaces") => guests::interfaces(context, params),
        ("POST", "/lxc/{vmid}/status/start") => lifecycle::start(context, params),
        ("POST", "/lxc/{vmid}/status/stop") => lifecycle::stop(context, params),
        ("POST", "/lxc/{vmid}/status/shutdown") => lifecycle::shutdown(context, params),
        ("POST", "/lxc/{vmid}/status/reboot") => lifecycle::reboot(context, params),
        _ => Err(Reply::error(501, &format!("Method '{method} {template}' is not played by the stand-in"))),
    }
}
