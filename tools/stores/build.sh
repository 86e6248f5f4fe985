#!/bin/sh
# Build MinIO, a store for the tests of outputs, as a Go module; what is there already is left alone.
#   build.sh [FOLDER]      default: ${XDG_CACHE_HOME:-~/.cache}/stoop/stores
# Needs Go (go.mod names the version) and some 3 GiB for the module and build caches. MinIO is AGPL: a test server only.
set -eu
out=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/stoop/stores}
cd "$(dirname "$0")"
mkdir -p "$out"
stamp=$(cat go.mod go.sum | sha256sum | cut -c1-16)
if [ -x "$out/minio" ] && [ "$(cat "$out/minio.from" 2>/dev/null)" = "$stamp" ]; then
    echo "build.sh: minio is there"
    exit 0
fi
began=$(date +%s)
# Built beside its place and renamed, so that a build that was broken off never counts as there.
CGO_ENABLED=0 GOFLAGS="-mod=readonly -buildvcs=false" go build -trimpath -ldflags "-s -w" \
    -o "$out/.minio.new" github.com/minio/minio
mv "$out/.minio.new" "$out/minio"
echo "$stamp" > "$out/minio.from"
echo "build.sh: minio built in $(($(date +%s) - began)) s"
