//! `pct` here and through `ssh`: programs, files, and what both say when it does not work.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::time::Duration;

use pvemesh::ident::Vmid;
use pvemesh::sys::pve::inside::{Push, Run, Source, run_well};
use pvemesh::sys::pve::{Inside, InsideError, Pct};
use zeroize::Zeroizing;

use crate::site::Site;
use crate::standin::Version;

fn vmid(id: u32) -> Vmid {
    id.try_into().unwrap()
}

fn block<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// Both ways.
fn ways(site: &Site) -> [Pct; 2] {
    let at = |name: &str| site.path("bin").join(name).display().to_string();
    [Pct::here(), Pct::ssh("root@pve".parse().unwrap())].map(|way| way.programs(at("pct"), at("ssh")))
}

#[test]
fn programs_run_in_a_guest_with_input_and_limits() {
    let Some(site) = Site::new() else { return };
    site.busybox(105, &[]);
    for way in ways(&site) {
        programs(&way);
        files(&site, &way);
    }
    let [here, _] = ways(&site);
    block(async {
        let gone = here.run(vmid(999), &Run::new(["true"])).await.unwrap_err();
        assert!(matches!(gone, InsideError::NotThere { .. }), "{gone}");
        let at = |name: &str| site.path("bin").join(name).display().to_string();
        let nowhere = Pct::ssh("root@nowhere".parse().unwrap()).programs(at("pct"), at("ssh"));
        let lost = nowhere.run(vmid(105), &Run::new(["true"])).await.unwrap_err();
        assert!(matches!(&lost, InsideError::NoWay { why, .. } if why.contains("No route to host")), "{lost}");
        site.stop(105);
        let stopped = here.run(vmid(105), &Run::new(["true"])).await.unwrap_err();
        assert!(matches!(stopped, InsideError::NotRunning(_)), "{stopped}");
    });
}

fn programs(way: &Pct) {
    block(async {
        let id = vmid(105);
        let words = ["printf", "[%s]", "two words", "it's", "$(reboot)", "`id`", ";&|", "", "a\nb"];
        let said = run_well(way, id, &Run::new(words)).await.unwrap();
        assert_eq!(String::from_utf8(said.output).unwrap(), "[two words][it's][$(reboot)][`id`][;&|][][a\nb]");
        let echoed = run_well(way, id, &Run::new(["cat"]).input("a secret\n")).await.unwrap();
        assert_eq!(echoed.text(), "a secret");
        let failed = way.run(id, &Run::new(["sh", "-c", "echo out; echo why >&2; exit 7"])).await.unwrap();
        assert_eq!((failed.code, failed.text().as_str(), failed.last_words().as_str()), (Some(7), "out", "why"));
        let missing = way.run(id, &Run::new(["/no/such/program"])).await.unwrap_err();
        assert!(matches!(missing, InsideError::NoProgram { .. }), "{missing}");
        let slow = way.run(id, &Run::new(["sleep", "30"]).limit(Duration::from_secs(1))).await.unwrap_err();
        assert!(matches!(slow, InsideError::TooLong { .. }), "{slow}");
        let mut flood = Run::new(["sh", "-c", "seq 1 100000"]);
        flood.max_output = 1000;
        assert_eq!(run_well(way, id, &flood).await.unwrap().output.len(), 1000);
        let environment = run_well(way, id, &Run::new(["cat", "/proc/self/environ"])).await.unwrap().text();
        assert!(!environment.contains("PVEMESH") && !environment.contains("CARGO"), "{environment}");
        let mut followed = Vec::new();
        let argv = ["sh", "-c", "echo one; sleep 0.2; echo two"].map(str::to_owned);
        let mut sink = |bytes: &[u8]| followed.push(bytes.to_vec());
        assert_eq!(way.follow(id, &argv, &mut sink).await.unwrap(), Some(0));
        assert_eq!((followed.len(), followed.concat()), (2, b"one\ntwo\n".to_vec()));
    });
}

fn files(site: &Site, way: &Pct) {
    let bytes = |text: &[u8]| Source::Bytes(Zeroizing::new(text.to_vec()));
    let push = |to: &str, content: &[u8]| Push { source: bytes(content), to: to.to_owned(), mode: 0o640, owner: (0, 7) };
    block(async {
        let id = vmid(105);
        way.push(id, &push("/root/a file", b"\0first\xff")).await.unwrap();
        let meta = std::fs::metadata(site.rootfs(105, "/root/a file")).unwrap();
        assert_eq!((meta.permissions().mode() & 0o777, meta.uid(), meta.gid()), (0o640, 100_000, 100_007));
        assert_eq!(way.pull(id, "/root/a file", 100).await.unwrap().unwrap().as_slice(), b"\0first\xff");
        assert_eq!(way.pull(id, "/root/a file", 3).await.unwrap().unwrap().len(), 3);
        assert_eq!(way.pull(id, "/root/none", 100).await.unwrap(), None);
        // `pct push` ends with 0 here, too.
        let lost = way.push(id, &push("/no/directory", b"x")).await.unwrap_err();
        assert!(matches!(lost, InsideError::NotCopied { .. }), "{lost}");
        // A program that runs cannot be written over; reading back shows the old one.
        let busy = way.push(id, &push("/bin/busybox", b"x")).await.unwrap_err();
        assert!(matches!(busy, InsideError::NotCopied { .. }), "{busy}");
        let big = site.path("big");
        std::fs::write(&big, vec![b'x'; 5 << 20]).unwrap();
        way.push(id, &Push { source: Source::File(big), ..push("/root/big", b"") }).await.unwrap();
        assert_eq!(std::fs::metadata(site.rootfs(105, "/root/big")).unwrap().len(), 5 << 20);
    });
    let left: Vec<_> =
        std::fs::read_dir("/var/tmp").unwrap().flatten().filter(|e| e.file_name().to_string_lossy().starts_with("pvemesh-")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_pct_that_does_not_know_an_option_is_used_without_it() {
    let Some(site) = Site::with(Version(7, 4), true) else { return };
    site.busybox(105, &[]);
    for way in ways(&site) {
        let said = block(run_well(&way, vmid(105), &Run::new(["echo", "hello"]))).unwrap();
        assert_eq!(said.text(), "hello");
    }
}
