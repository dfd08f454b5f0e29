#!/usr/bin/env bash
# Run the tree in this folder on a newer Debian's Python, in a chroot: newer_python.sh SUITE ARGUMENT...
#
# The arguments are Python's. Needs root and mmdebstrap; without them it ends with 77. The suite and its
# packages are kept under the user's cache, for the next time. The tree's folder is the same in there.
set -euo pipefail
suite=$1
shift
export DEBIAN_FRONTEND=noninteractive
keys=/usr/share/keyrings/debian-archive-keyring.gpg
home=${XDG_CACHE_HOME:-$HOME/.cache}/upcall-trace/roots/$suite
packages=python3-venv,ca-certificates,git,make,procps,strace,tmux
if [ "$(id -u)" != 0 ] || [ ! -e $keys ] || ! command -v mmdebstrap >/dev/null; then
    echo "newer_python.sh: needs root, mmdebstrap, and the keys of Debian at $keys" >&2
    exit 77
fi
if [ ! -d "$home" ]; then
    mkdir -p "${home%/*}"
    new=$(mktemp -d "$home.XXXXXX")
    trap 'rm -rf "$new"' EXIT
    # A mirror that stands still serves lists past their date; their signatures are checked as ever.
    mmdebstrap --quiet --variant=minbase --include=$packages \
        --aptopt='Acquire::Check-Valid-Until "false"' "$suite" "$new/root" \
        "deb [signed-by=$keys] http://deb.debian.org/debian $suite main" >&2
    # pip in there reaches the index as pip out here does.
    cp -L /etc/resolv.conf "$new/root/etc/resolv.conf"
    cp -L /etc/ssl/certs/ca-certificates.crt "$new/root/etc/ssl/certs/ca-certificates.crt"
    mv -T "$new/root" "$home"
fi
# Of its own, and gone with the last process in it: mounts, process numbers, /tmp.
exec unshare --mount --pid --fork --kill-child /bin/bash -euc '
    root=$1 tree=$PWD umask=$(umask)
    shift
    umask 022
    mount -t proc proc "$root/proc"
    mount -t sysfs sys "$root/sys"
    mount --rbind /dev "$root/dev"
    mount -t tmpfs tmpfs "$root/tmp"
    mkdir -p "$root$tree"
    mount --bind "$tree" "$root$tree"
    umask "$umask"
    exec chroot "$root" /usr/bin/env -i PATH=/usr/bin:/bin:/usr/sbin:/sbin HOME=/root LANG=C.UTF-8 \
        /bin/bash -euc '\''
        cd "$1"
        shift
        if ! cmp -s requirements/test.txt /env/installed.txt; then
            rm -rf /env
            python3 -m venv /env
            /env/bin/pip install -q --disable-pip-version-check --require-hashes -r requirements/test.txt
            cp requirements/test.txt /env/installed.txt
        fi
        /env/bin/pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
        /env/bin/python --version
        # This shell is the first process in there, and clears away those whose parents have ended.
        code=0
        /env/bin/python "$@" || code=$?
        exit $code'\'' - "$tree" "$@"' - "$home" "$@"
