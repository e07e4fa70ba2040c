//! Storages: what they hold, uploads, templates, volumes.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::http::{Reply, Request};
use super::schema::{self, Params};
use super::{Context, Core, Inner, Options, Storage, tasks};

/// The directory of a storage as a host sees it: the first host's and the shared ones in one place, those of others in theirs.
pub fn directory(options: &Options, host: &str, storage: &str) -> PathBuf {
    let common = host == options.node || options.shared.iter().any(|s| s == storage);
    if common { options.dir.join("storage").join(storage) } else { options.dir.join("hosts").join(host).join("storage").join(storage) }
}

impl Core {
    /// Under what a storage's free bytes are kept.
    pub fn room_key(&self, host: &str, storage: &str) -> (String, String) {
        let shared = self.options.shared.iter().any(|s| s == storage);
        (if shared { String::new() } else { host.to_owned() }, storage.to_owned())
    }

    /// Whether a storage has room for so many bytes; takes them if so.
    pub fn take_room(&self, host: &str, storage: &str, bytes: u64) -> bool {
        let key = self.room_key(host, storage);
        let mut inner = self.inner.lock().unwrap();
        match inner.room.get_mut(&key) {
            Some(free) if *free < bytes => false,
            Some(free) => {
                *free -= bytes;
                true
            }
            None => true,
        }
    }

    /// Gives bytes of a limited storage back.
    pub fn give_room(&self, host: &str, storage: &str, bytes: u64) {
        let key = self.room_key(host, storage);
        if let Some(free) = self.inner.lock().unwrap().room.get_mut(&key) {
            *free += bytes;
        }
    }
}

fn find<'a>(context: &'a Context, name: &str) -> Result<&'a Storage, Reply> {
    let here = context.host();
    if let Some(known) = here.storages.iter().find(|s| s.name == name) {
        return Ok(known);
    }
    let elsewhere = context.core.hosts.iter().any(|host| host.storages.iter().any(|s| s.name == name));
    let what = if elsewhere { format!("is not available on node '{}'", here.name) } else { "does not exist".to_owned() };
    Err(Reply::died(&format!("storage '{name}' {what}")))
}

/// The storages the caller may see.
pub fn visible<'a>(context: &'a Context, inner: &'a Inner) -> impl Iterator<Item = &'a Storage> {
    context.host().storages.iter().filter(|s| is_visible(context, inner, &s.name))
}

/// Whether the caller may see a storage.
pub fn is_visible(context: &Context, inner: &Inner, name: &str) -> bool {
    inner.access.has(&context.caller, &format!("/storage/{name}"), "Datastore.Audit|Datastore.AllocateSpace")
}

/// Size of every storage here.
const TOTAL: u64 = 270_553_174_016;

fn row(context: &Context, inner: &Inner, storage: &Storage) -> Value {
    let core = &context.core;
    let free = inner.room.get(&core.room_key(&context.host, &storage.name)).copied().unwrap_or(251_464_126_464);
    let used = TOTAL - free.min(TOTAL);
    let shared = u8::from(core.options.shared.contains(&storage.name));
    json!({ "storage": storage.name, "type": storage.kind, "content": storage.content, "active": 1, "enabled": 1, "shared": shared,
            "total": TOTAL, "used": used, "avail": free, "used_fraction": used as f64 / TOTAL as f64 })
}

pub fn list(context: &Context, params: &Params) -> Reply {
    let inner = context.core.inner.lock().unwrap();
    let wanted: Vec<_> = params.get("content").map(|c| c.split(',').collect()).unwrap_or_default();
    let rows = visible(context, &inner).filter(|s| params.get("storage").is_none_or(|n| *n == s.name));
    Reply::data(rows.filter(|s| wanted.is_empty() || wanted.iter().any(|c| s.holds(c))).map(|s| row(context, &inner, s)).collect())
}

/// `GET /storage`: how they are defined for the whole cluster.
pub fn definitions(context: &Context) -> Reply {
    let inner = context.core.inner.lock().unwrap();
    let shown = |storage: &Storage| {
        let mut row = json!({ "storage": storage.name, "type": storage.kind, "content": storage.content, "digest": "0" });
        if storage.kind == "dir" {
            row["path"] = json!(context.core.options.dir.join("storage").join(&storage.name));
        }
        if context.core.options.shared.contains(&storage.name) {
            row["shared"] = json!(1);
        }
        row
    };
    Reply::data(visible(context, &inner).map(shown).collect())
}

pub fn status(context: &Context, params: &Params) -> Result<Reply, Reply> {
    let storage = find(context, &params["storage"]).map_err(|_| Reply::parameter("storage", "No such storage."))?;
    Ok(Reply::data(row(context, &context.core.inner.lock().unwrap(), storage)))
}

fn folder(context: &Context, storage: &str, content: &str) -> PathBuf {
    let sub = match content {
        "vztmpl" => "template/cache",
        "iso" => "template/iso",
        other => other,
    };
    directory(&context.core.options, &context.host, storage).join(sub)
}

pub fn content(context: &Context, params: &Params) -> Result<Reply, Reply> {
    let storage = find(context, &params["storage"])?;
    let mut rows = Vec::new();
    // A file is listed only where the storage is said to hold its kind.
    let listed = |content: &&str| storage.holds(content) && params.get("content").is_none_or(|wanted| wanted == content);
    for content in ["iso", "snippets", "vztmpl"].into_iter().filter(listed) {
        for entry in std::fs::read_dir(folder(context, &storage.name, content)).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Ok(meta) = entry.metadata() else { continue };
            let seconds = meta.modified().ok().and_then(|m| m.duration_since(std::time::UNIX_EPOCH).ok()).map_or(0, |d| d.as_secs());
            let format = match (content, name.rsplit('.').next().unwrap_or_default()) {
                ("snippets", _) => "snippet",
                (_, "gz") => "tgz",
                (_, "xz") => "txz",
                (_, "zst") => "tzst",
                (_, other) => other,
            };
            let volume = format!("{}:{content}/{name}", storage.name);
            rows.push(json!({ "volid": volume, "content": content, "format": format, "size": meta.len(), "ctime": seconds }));
        }
    }
    if params.get("content").is_none_or(|w| w == "rootdir" || w == "images") {
        let inner = context.core.inner.lock().unwrap();
        let shared = context.core.options.shared.contains(&storage.name);
        for (id, config) in inner.guests.iter().filter(|(id, _)| shared || inner.place_of(**id) == Some(&context.host)) {
            let volume = config.get("rootfs").and_then(|r| r.split(',').next()).unwrap_or_default();
            if volume.starts_with(&format!("{}:", storage.name)) && params.get("vmid").is_none_or(|v| *v == id.to_string()) {
                rows.push(json!({ "volid": volume, "content": "rootdir", "format": "raw", "vmid": id, "size": 0 }));
            }
        }
    }
    Ok(Reply::data(json!(rows)))
}

/// `DELETE content/{volume}`: needs more than uploading it did.
pub fn delete(context: &Context, params: &Params) -> Result<Reply, Reply> {
    let storage = find(context, &params["storage"])?;
    context.core.inner.lock().unwrap().access.need(&context.caller, &format!("/storage/{}", storage.name), "Datastore.Allocate")?;
    let volume = &params["volume"];
    let name = volume.strip_prefix(&format!("{}:", storage.name)).unwrap_or(volume);
    let (content, file) = name.split_once('/').ok_or_else(|| Reply::died(&format!("unable to parse directory volume name '{name}'")))?;
    let path = folder(context, &storage.name, content).join(file);
    let (core, host, name_kept) = (context.core.clone(), context.host.clone(), storage.name.clone());
    let upid = tasks::spawn(context, "imgdel", &format!("{}@{}", context.host, storage.name), move |log| {
        log.checkpoint()?;
        let bytes = std::fs::metadata(&path).map_or(0, |m| m.len());
        core.give_room(&host, &name_kept, bytes);
        std::fs::remove_file(&path).map_err(|e| format!("unlink '{}' failed: {e}", path.display()))?;
        log.line(format!("Removed volume '{}'", path.display()));
        Ok(())
    });
    Ok(Reply::data(json!(upid)))
}

/// Where a template is; whether the file is there is for the task to find out.
pub fn template(context: &Context, inner: &Inner, volume: &str) -> Result<PathBuf, Reply> {
    if volume.starts_with('/') {
        if context.caller.is_root() {
            return Ok(PathBuf::from(volume));
        }
        return Err(Reply::died("Only root can pass arbitrary filesystem paths. at /usr/share/perl5/PVE/Storage.pm line 651."));
    }
    let (storage, name) = volume.split_once(':').ok_or_else(|| Reply::died(&format!("unable to parse volume ID '{volume}'")))?;
    find(context, storage)?;
    inner.access.need(&context.caller, &format!("/storage/{storage}"), "Datastore.AllocateSpace|Datastore.Audit")?;
    let wrong = || Reply::died(&format!("unable to use volume {volume} - content type needs to be 'vztmpl'"));
    let file = name.strip_prefix("vztmpl/").filter(|f| !f.contains('/')).ok_or_else(wrong)?;
    Ok(folder(context, storage, "vztmpl").join(file))
}

/// The root volume a create call asks for, as its configuration will name it.
pub fn new_volume(context: &Context, inner: &Inner, id: u32, params: &Params) -> Result<String, Reply> {
    let default = params.get("storage").map_or("local", String::as_str);
    let wanted = params.get("rootfs").map_or("4", String::as_str).split(',').next().unwrap_or_default();
    let wanted = wanted.strip_prefix("volume=").unwrap_or(wanted);
    let (storage, size) = wanted.split_once(':').unwrap_or((default, wanted));
    let storage = find(context, storage)?;
    if !storage.holds("rootdir") {
        return Err(Reply::parameter("storage", &format!("storage '{}' does not support container directories", storage.name)));
    }
    inner.access.need(&context.caller, &format!("/storage/{}", storage.name), "Datastore.AllocateSpace")?;
    let gib: f64 = size.parse().map_err(|_| Reply::died(&format!("unable to parse volume size '{size}'")))?;
    let mib = (gib * 1024.0) as u64;
    let size = if mib.is_multiple_of(1024) { format!("{}G", mib / 1024) } else { format!("{mib}M") };
    let name = &storage.name;
    Ok(match (storage.kind.as_str(), mib) {
        ("dir", 0) => format!("{name}:{id}/subvol-{id}-disk-0.subvol,size=0T"),
        ("dir", _) => format!("{name}:{id}/vm-{id}-disk-0.raw,size={size}"),
        _ => format!("{name}:vm-{id}-disk-0,size={size}"),
    })
}

struct Part {
    name: String,
    file: Option<String>,
    data: Vec<u8>,
}

fn cut<'a>(from: &'a [u8], at: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let place = from.windows(at.len()).position(|w| w == at)?;
    Some((from.get(..place)?, from.get(place + at.len()..)?))
}

fn attribute(header: &str, name: &str) -> Option<String> {
    header.split(';').find_map(|p| p.trim().strip_prefix(&format!("{name}=")).map(|v| v.trim_matches('"').to_owned()))
}

/// Splits a multipart body; `Content-Disposition` must be the first header of each part.
fn parts(request: &Request) -> Option<Vec<Part>> {
    let boundary = request.header("content-type").split("boundary=").nth(1).filter(|b| !b.starts_with('"'))?;
    let line = format!("--{boundary}");
    let (_, mut rest) = cut(&request.body, line.as_bytes())?;
    let mut found = Vec::new();
    while let Some(after) = rest.strip_prefix(b"\r\n") {
        let (head, body) = cut(after, b"\r\n\r\n")?;
        let (data, next) = cut(body, format!("\r\n{line}").as_bytes())?;
        let head = String::from_utf8_lossy(head);
        let first = head.lines().next().filter(|l| l.to_ascii_lowercase().starts_with("content-disposition:"))?;
        found.push(Part { name: attribute(first, "name")?, file: attribute(first, "filename"), data: data.to_vec() });
        rest = next;
    }
    Some(found)
}

/// `POST upload`: the fields in their order, then the file.
pub fn upload(context: &Context, storage: &str, request: &Request) -> Result<Reply, Reply> {
    let parts = parts(request).ok_or_else(|| Reply::died("upload failed: unable to parse multipart body"))?;
    let order = ["content", "checksum-algorithm", "checksum", "filename"];
    let mut fields = BTreeMap::from([
        ("node".to_owned(), super::http::Param::Text(context.host.clone())),
        ("storage".to_owned(), super::http::Param::Text(storage.to_owned())),
    ]);
    let (mut place, mut file) = (0, None);
    for part in parts {
        let Some(at) = order.iter().position(|o| *o == part.name).filter(|at| *at >= place && file.is_none()) else { break };
        place = at + 1;
        let text = match &part.file {
            Some(name) if part.name == "filename" => name.clone(),
            _ => String::from_utf8_lossy(&part.data).into_owned(),
        };
        fields.insert(part.name.clone(), super::http::Param::Text(text));
        if part.name == "filename" {
            file = part.file.map(|_| part.data);
        }
    }
    let data = file.ok_or_else(|| Reply::parameter("filename", "property is missing and it is not optional"));
    store(context, storage, &fields, data)
}

/// The upload that `pvesh` makes on the host: the file is there already, and is taken away.
pub fn take(context: &Context, storage: &str, fields: &BTreeMap<String, super::http::Param>) -> Result<Reply, Reply> {
    let Some(super::http::Param::Text(path)) = fields.get("tmpfilename") else {
        return Err(Reply::parameter("tmpfilename", "property is missing and it is not optional"));
    };
    let name = path.strip_prefix("/var/tmp/pveupload-").filter(|n| !n.is_empty() && n.bytes().all(|b| b"0123456789abcdef".contains(&b)));
    if name.is_none() {
        return Err(Reply::parameter("tmpfilename", "value does not match the regex pattern"));
    }
    let data = std::fs::read(path).map_err(|e| Reply::died(&format!("unable to open '{path}': {e}")));
    let reply = store(context, storage, fields, data)?;
    let _ = std::fs::remove_file(path);
    Ok(reply)
}

fn store(
    context: &Context,
    storage: &str,
    fields: &BTreeMap<String, super::http::Param>,
    data: Result<Vec<u8>, Reply>,
) -> Result<Reply, Reply> {
    let properties = schema::method("/nodes/{node}/storage/{storage}/upload", "POST").expect("in the schema");
    let version = context.host().version;
    let params = schema::check(properties, fields, version)?;
    let storage = find(context, storage)?;
    if storage.kind != "dir" {
        return Err(Reply::died(&format!("can't upload to storage type '{}', not a file based storage!", storage.kind)));
    }
    let content = &params["content"];
    if !storage.holds(content) {
        return Err(Reply::died(&format!("storage '{}' does not support '{content}' content", storage.name)));
    }
    let name: String = params["filename"].rsplit(['/', '\\']).next().unwrap_or_default().to_owned();
    let name: String = name.chars().map(|c| if c.is_ascii_alphanumeric() || "_.-".contains(c) { c } else { '_' }).collect();
    let known: &[&str] = match content.as_str() {
        "iso" => &[".iso", ".img"],
        _ if version >= super::Version::V8_3 => &[".tar.gz", ".tar.xz", ".tar.zst", ".tar.bz2"],
        _ => &[".tar.gz", ".tar.xz", ".tar.zst"],
    };
    let plain_tar = name.ends_with(".tar") && version >= super::Version::V9_1;
    if content != "import" && !plain_tar && !known.iter().any(|e| name.ends_with(e)) {
        return Err(Reply::parameter("filename", "wrong file extension"));
    }
    let data = data?;
    let target = folder(context, &storage.name, content).join(name);
    let expected = params.get("checksum").cloned();
    let (core, host, storage) = (context.core.clone(), context.host.clone(), storage.name.clone());
    // The host that takes the calls spools the file and copies it on.
    let upid = tasks::spawn_on(context, &context.core.entry().name, "imgcopy", "", move |log| {
        log.line(format!("starting file import to: {}", target.display()));
        if let Some(expected) = expected {
            let got: String = Sha256::digest(&data).iter().map(|b| format!("{b:02x}")).collect();
            if got != expected.to_lowercase() {
                return Err(format!("checksum mismatch: got '{got}' != expect '{expected}'"));
            }
        }
        log.checkpoint()?;
        if !core.take_room(&host, &storage, data.len() as u64) {
            return Err(format!("import failed: cp: error writing '{}': No space left on device", target.display()));
        }
        let written = target.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| std::fs::write(&target, &data));
        written.map_err(|e| format!("import failed: {e}"))?;
        log.line("finished file import successfully");
        Ok(())
    });
    Ok(Reply::data(json!(upid)))
}
