//! Storages: what they hold, uploads, templates, volumes.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::http::{Reply, Request};
use super::schema::{self, Params};
use super::{Context, Inner, Storage, tasks};

fn find<'a>(context: &'a Context, name: &str) -> Result<&'a Storage, Reply> {
    let known = context.core.options.storages.iter().find(|s| s.name == name);
    known.ok_or_else(|| Reply::died(&format!("storage '{name}' does not exist")))
}

/// The storages the caller may see.
pub fn visible<'a>(context: &'a Context, inner: &'a Inner) -> impl Iterator<Item = &'a Storage> {
    context
        .core
        .options
        .storages
        .iter()
        .filter(|s| inner.access.has(&context.caller, &format!("/storage/{}", s.name), "Datastore.Audit|Datastore.AllocateSpace"))
}

fn row(storage: &Storage) -> Value {
    let (total, used) = (270_553_174_016_u64, 19_089_047_552_u64);
    json!({ "storage": storage.name, "type": storage.kind, "content": storage.content, "active": 1, "enabled": 1, "shared": 0,
            "total": total, "used": used, "avail": total - used, "used_fraction": used as f64 / total as f64 })
}

pub fn list(context: &Context, params: &Params) -> Reply {
    let inner = context.core.inner.lock().unwrap();
    let wanted: Vec<_> = params.get("content").map(|c| c.split(',').collect()).unwrap_or_default();
    let rows = visible(context, &inner).filter(|s| params.get("storage").is_none_or(|n| *n == s.name));
    Reply::data(rows.filter(|s| wanted.is_empty() || wanted.iter().any(|c| s.holds(c))).map(row).collect())
}

/// `GET /storage`: how they are defined for the whole cluster.
pub fn definitions(context: &Context) -> Reply {
    let inner = context.core.inner.lock().unwrap();
    let shown = |storage: &Storage| {
        let mut row = json!({ "storage": storage.name, "type": storage.kind, "content": storage.content, "digest": "0" });
        if storage.kind == "dir" {
            row["path"] = json!(context.core.options.dir.join("storage").join(&storage.name));
        }
        row
    };
    Reply::data(visible(context, &inner).map(shown).collect())
}

pub fn status(context: &Context, params: &Params) -> Result<Reply, Reply> {
    let storage = find(context, &params["storage"]).map_err(|_| Reply::parameter("storage", "No such storage."))?;
    Ok(Reply::data(row(storage)))
}

fn folder(context: &Context, storage: &str, content: &str) -> PathBuf {
    let sub = match content {
        "vztmpl" => "template/cache",
        "iso" => "template/iso",
        other => other,
    };
    context.core.options.dir.join("storage").join(storage).join(sub)
}

pub fn content(context: &Context, params: &Params) -> Result<Reply, Reply> {
    let storage = find(context, &params["storage"])?;
    let mut rows = Vec::new();
    for content in ["iso", "snippets", "vztmpl"].into_iter().filter(|c| params.get("content").is_none_or(|w| w == c)) {
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
        for (id, config) in &inner.guests {
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
    let upid = tasks::spawn(context, "imgdel", &format!("{}@{}", context.core.options.node, storage.name), move |log| {
        log.checkpoint()?;
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
        ("node".to_owned(), super::http::Param::Text(context.core.options.node.clone())),
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
    let params = schema::check(properties, fields, context.core.options.version)?;
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
    let known: &[&str] = if content == "iso" { &[".iso", ".img"] } else { &[".tar.gz", ".tar.xz", ".tar.zst", ".tar.bz2"] };
    let plain_tar = name.ends_with(".tar") && context.core.options.version >= super::Version::V9_1;
    if content != "import" && !plain_tar && !known.iter().any(|e| name.ends_with(e)) {
        return Err(Reply::parameter("filename", "wrong file extension"));
    }
    let data = data?;
    let target = folder(context, &storage.name, content).join(name);
    let expected = params.get("checksum").cloned();
    let upid = tasks::spawn(context, "imgcopy", "", move |log| {
        log.line(format!("starting file import to: {}", target.display()));
        if let Some(expected) = expected {
            let got: String = Sha256::digest(&data).iter().map(|b| format!("{b:02x}")).collect();
            if got != expected.to_lowercase() {
                return Err(format!("checksum mismatch: got '{got}' != expect '{expected}'"));
            }
        }
        log.checkpoint()?;
        let written = target.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| std::fs::write(&target, &data));
        written.map_err(|e| format!("import failed: {e}"))?;
        log.line("finished file import successfully");
        Ok(())
    });
    Ok(Reply::data(json!(upid)))
}
