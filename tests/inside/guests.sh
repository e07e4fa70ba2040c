#!/bin/sh
# Root file systems of other people's distributions, for tests: Debian with systemd, with OpenRC and with runit, each a template in the
# directory given. The packages are those of this machine's own sources, unpacked and not installed: the three are to be made within seconds, and
# what maintainer scripts would do for the programs needed here is little, and done below.
set -eu
out=$(cd "$1" && pwd)
work=$out/work
rm -rf "$work"
mkdir -p "$work/archives/partial" "$work/none/partial"
chmod 755 "$work"
: >"$work/status"

apt() {
    apt-get -qq -o Dir::State::status="$work/status" -o Dir::Cache::archives="$work/archives" -o Dir::Cache::pkgcache="$work/pkgcache" -o Dir::Cache::srcpkgcache="$work/srcpkgcache" \
        -o APT::Sandbox::User=root -o APT::Install-Recommends=false -o Debug::NoLocking=1 -y "$@"
}

base="base-files base-passwd coreutils dash debianutils findutils grep hostname iproute2 libc-bin login mawk mount procps sed util-linux"

# The archives that these packages and what they need come in. What was fetched before is not told again, hence the place where nothing is.
archives() {
    # shellcheck disable=SC2086
    apt -o Dir::Cache::archives="$work/none" --print-uris install $base "$@" | awk '{ print $2 }' | sort
    # shellcheck disable=SC2086
    apt --download-only install $base "$@"
}

# Unpacks the archives named on standard input. The perl of maintainer scripts is left out.
unpack() {
    grep -Ev '^(perl(-base|-modules.*)?|libperl.*|usrmerge|debconf)_' | while read -r name; do
        dpkg-deb --fsys-tarfile "$work/archives/$name" | tar -x -C "$1" --keep-directory-symlink --exclude './usr/share/doc/*' \
            --exclude './usr/share/man/*' --exclude './usr/share/locale/*' --exclude './usr/lib/*/gconv/*'
    done
}

# Flavour, and the packages that make it out of the base.
make_one() {
    flavour=$1
    shift
    root=$work/$flavour
    archives "$@" >"$root.list"
    cp -a "$work/base" "$root"
    comm -13 "$work/base.list" "$root.list" | unpack "$root"
    case $flavour in
    openrc) grep -v getty "$root/usr/share/sysvinit/inittab" >"$root/etc/inittab" ;;
    runit)
        ln -s default "$root/etc/runit/runsvdir/current"
        # It has no services of System V, for which it would wait, now and then up to 90 seconds for none.
        : >"$root/etc/runit/no.emulate.sysv"
        ;;
    esac
    tar -C "$root" --numeric-owner -c . | zstd -q -1 -o "$root.tar.zst"
    rm -rf "$root"
}

root=$work/base
mkdir -p "$root/usr/bin" "$root/usr/sbin" "$root/usr/lib" "$root/usr/lib64" "$root/proc" "$root/sys" "$root/dev" "$root/run" "$root/tmp" "$root/usr/local/bin" "$root/usr/local/sbin"
for d in bin sbin lib lib64; do ln -s "usr/$d" "$root/$d"; done
archives >"$root.list"
unpack "$root" <"$root.list"
cp "$root/usr/share/base-passwd/passwd.master" "$root/etc/passwd"
cp "$root/usr/share/base-passwd/group.master" "$root/etc/group"
ln -sf dash "$root/usr/bin/sh"
ln -sf mawk "$root/usr/bin/awk"
chmod 1777 "$root/tmp"
echo "nameserver 192.168.60.1" >"$root/etc/resolv.conf"
# An empty one is made up at each start; without one systemd asks at the console who we are.
: >"$root/etc/machine-id"

make_one systemd systemd-sysv
make_one openrc openrc sysvinit-core
make_one runit runit runit-init
mv "$work"/*.tar.zst "$out"
rm -rf "$work"
