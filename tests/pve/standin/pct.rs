//! The host's `pct` command for the containers of [`super::lxc`], as a shell script with the real one's quirks: `exec` leaks nothing with
//! `--keep-env 0`, and gives the program's exit code; `push` and `pull` need a running container, take its configuration lock, write in place
//! (a running program refuses), make no directories, and end with 0 even when nothing was copied.

use std::path::Path;

/// The script. `dir` and `prefix` are those of the backend; `namespace` is the host's network namespace, where LXC's command sockets are.
/// With `old`, `exec` does not know `--keep-env` yet.
pub fn script(dir: &Path, prefix: &str, namespace: Option<&Path>, old: bool) -> String {
    let enter = namespace.map(|path| format!("nsenter --net={} ", path.display())).unwrap_or_default();
    TEXT.replace("@DIR@", &dir.join("containers").display().to_string())
        .replace("@STATE@", &dir.display().to_string())
        .replace("@PREFIX@", prefix)
        .replace("@ENTER@", &enter)
        .replace("@OLD@", if old { "1" } else { "" })
}

const TEXT: &str = r#"#!/bin/sh
# pct VERB ID ...
verb=$1; id=$2; shift 2 2>/dev/null || { echo "ERROR: no command specified" >&2; exit 255; }
conf=none
for there in "@STATE@"/etc/pve/nodes/*/lxc/"$id.conf"; do if [ -e "$there" ]; then conf=$there; fi; done
if [ ! -e "$conf" ]; then echo "Configuration file 'nodes/pve/lxc/$id.conf' does not exist" >&2; exit 2; fi
lxc() { program=$1; shift; @ENTER@"$program" -P "@DIR@" -n "@PREFIX@-$id" "$@"; }
pid=$(lxc lxc-info -p -H 2>/dev/null </dev/null)
running() { if [ -z "$pid" ]; then echo "CT $id not running" >&2; exit 255; fi; }
locked() {
    exec 9>"@STATE@/pve-config-$id.lock"
    flock -w 10 9 || { echo "can't lock file '/run/lock/lxc/pve-config-$id.lock' - got timeout" >&2; exit 255; }
}
case $verb in
status) if [ -n "$pid" ]; then echo "status: running"; else echo "status: stopped"; fi ;;
config) sed '/^\[/,$d' "$conf" ;;
exec)
    clear=
    while [ $# -gt 0 ]; do
        case $1 in
        --keep-env)
            if [ -n "@OLD@" ]; then echo "Unknown option: keep-env" >&2; echo "400 unable to parse option" >&2; exit 255; fi
            [ "$2" = 0 ] && clear=--clear-env; shift 2 ;;
        --) shift; break ;;
        *) break ;;
        esac
    done
    running
    @ENTER@lxc-attach -P "@DIR@" -n "@PREFIX@-$id" $clear -- "$@"
    exit $? ;;
push)
    from=$1; to=$2; shift 2; perms=; user=0; group=0
    while [ $# -gt 1 ]; do
        case $1 in --perms) perms=$2 ;; --user) user=$2 ;; --group) group=$2 ;; esac; shift 2
    done
    running; locked
    shift_by=$(awk '$2 > 0 || $1 == 0 { print $2; exit }' "/proc/$pid/uid_map")
    inside="/proc/$pid/root$to"
    # The copy is a task of its own, whose failure the command does not tell. It is made by the container's root, within its quotas and mounts.
    as=; if [ "$shift_by" != 0 ]; then as="nsenter -t $pid -U -S 0 -G 0"; fi
    $as sh -c 'cat > "$1" && chown "$2" "$1" && { [ -z "$3" ] || chmod "$3" "$1"; }' sh "$inside" "$user:$group" "$perms" < "$from" ||
        echo "failed to copy: open $to failed" >&2
    exit 0 ;;
pull)
    from=$1; to=$2
    running; locked
    cat "/proc/$pid/root$from" > "$to.part" 2>/dev/null && mv "$to.part" "$to" || { rm -f "$to.part"; echo "failed to open $from: No such file or directory" >&2; }
    exit 0 ;;
*) echo "ERROR: unknown command 'pct $verb'" >&2; exit 255 ;;
esac
"#;
