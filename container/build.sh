#!/usr/bin/env bash
# build.sh PYZ: an image `upcall-trace` of the distribution's packages and the single file.
# Needs mmdebstrap and buildah, no root and no registry. Then:
#   podman run --rm --network none -v "$PWD":/captures upcall-trace diagnose failure.upcap
set -euo pipefail
pyz=$(realpath "$1")
here=$(dirname "$(realpath "$0")")
# The file runs on the Python that it was made with.
suite=${SUITE:-$(. /etc/os-release && echo "$VERSION_CODENAME")}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mmdebstrap --quiet --variant=essential --include=python3,libstdc++6 \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    "$suite" "$work/root.tar"
cp "$pyz" "$work/upcall-trace.pyz"
cp "$here/Containerfile" "$work/"
buildah build --isolation "${ISOLATION:-chroot}" -t upcall-trace "$work"
# What was built runs, as nobody in particular.
container=$(buildah from --pull-never upcall-trace)
trap 'buildah rm "$container" >/dev/null; rm -rf "$work"' EXIT
buildah run --isolation "${ISOLATION:-chroot}" \
    -v "$here/../captures:/captures:ro" "$container" -- \
    /usr/local/bin/upcall-trace diagnose /captures/guest_oops.upcap
