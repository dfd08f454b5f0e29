#!/usr/bin/env bash
# Programs of another Debian suite in a folder of their own: suite.sh SUITE PROGRAM PACKAGE
#
# Nothing is installed and no root is needed: the packages are unpacked under the user's cache, beside
# a small script that starts PROGRAM with the libraries it was built for. Prints where the script is.
set -euo pipefail
suite=$1 program=$2 package=$3
home=${XDG_CACHE_HOME:-$HOME/.cache}/upcall-trace/suites/$suite
if [ -x "$home/bin/$program" ]; then
    echo "$home/bin/$program"
    exit
fi
keys=/usr/share/keyrings/debian-archive-keyring.gpg
[ -e $keys ] || { echo "suite.sh: no keys of Debian at $keys" >&2; exit 1; }
mkdir -p "${home%/*}"
new=$(mktemp -d "$home.XXXXXX")
trap 'rm -rf "$new"' EXIT
mkdir -p "$new"/apt/{etc/apt.conf.d,etc/preferences.d,state/lists/partial,cache/archives/partial}
: >"$new/apt/status"
echo "deb [signed-by=$keys] http://deb.debian.org/debian $suite main" >"$new/apt/etc/sources.list"
of_suite=(
    -qq -o "Dir::Etc=$new/apt/etc" -o "Dir::State=$new/apt/state" -o "Dir::Cache=$new/apt/cache"
    -o "Dir::State::status=$new/apt/status" -o Acquire::Languages=none -o APT::Sandbox::User=
    # A mirror that stands still serves lists past their date; their signatures are checked as ever.
    -o Acquire::Check-Valid-Until=false
)
apt-get "${of_suite[@]}" update
apt-get "${of_suite[@]}" -y --no-install-recommends --download-only install "$package" >&2
mkdir "$new/bin" "$new/root"
for each in "$new"/apt/cache/archives/*.deb; do dpkg-deb -x "$each" "$new/root"; done
rm -rf "$new/apt" "$new"/root/usr/share/{doc,man,locale,info}
# Links to /… would lead to this machine's own files.
find "$new/root" -type l -lname '/*' -printf '%p\t%l\n' | while IFS=$'\t' read -r link to; do
    ln -sfn "$(realpath -m --relative-to="${link%/*}" "$new/root$to")" "$link"
done
cat >"$new/bin/$program" <<'SCRIPT'
#!/bin/sh
root=$(readlink -f "$(dirname "$0")/../root")
loader=$(ls "$root"/usr/lib/*/ld-linux*.so.* "$root"/lib/*/ld-linux*.so.* 2>/dev/null | head -n 1)
libraries=$(echo "$root"/usr/lib/*-linux-gnu*)
export WIRESHARK_DATA_DIR="$root/usr/share/wireshark" WIRESHARK_PLUGIN_DIR="$libraries/wireshark/plugins"
set -- "$loader" --library-path "${loader%/*}:$libraries" "$root/usr/bin/$(basename "$0")" "$@"
# Wireshark runs no scripts for root. In a user namespace of its own it does not know that it is root.
[ "$(id -u)" != 0 ] || set -- unshare --user "$@"
exec "$@"
SCRIPT
chmod +x "$new/bin/$program"
chmod 755 "$new"
"$new/bin/$program" --version >/dev/null 2>&1 || { echo "suite.sh: $program of $suite does not start" >&2; exit 1; }
mv -T "$new" "$home" 2>/dev/null || [ -x "$home/bin/$program" ] # another one was faster
echo "$home/bin/$program"
