#!/bin/sh
# Build the Kubernetes programs that tests need, out of Go modules; what is there already is left alone.
#   build.sh [FOLDER]      default: ${XDG_CACHE_HOME:-~/.cache}/stoop/kube-VERSION
#   STOOP_KUBE_PROGRAMS    which ones: kube-apiserver unless told; go.mod has the others too
# Needs Go 1.25 or newer. kube-apiserver takes some 6 min on 2 cores with nothing cached, and 5 GiB in Go's caches.
set -eu
version=v1.34.4
out=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/stoop/kube-$version}
programs=${STOOP_KUBE_PROGRAMS:-kube-apiserver}
here=$(cd "$(dirname "$0")" && pwd)

mkdir -p "$out"
out=$(cd "$out" && pwd)
# Without gitVersion a program calls itself v0.0.0, and checks of versions fail.
flags="-s -w -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=34"
flags="$flags -X k8s.io/component-base/version.gitVersion=$version -X k8s.io/client-go/pkg/version.gitVersion=$version"
cd "$here"
for program in $programs; do
    if [ -x "$out/$program" ]; then
        echo "build.sh: $program is there"
        continue
    fi
    command -v go >/dev/null || { echo "build.sh: no go here: $program can't be built (go.dev, 1.25 or newer)"; exit 2; }
    began=$(date +%s)
    # Built beside its place and renamed: a build that was broken off never counts as there.
    CGO_ENABLED=0 GOFLAGS="-mod=readonly -buildvcs=false" go build -trimpath -ldflags "$flags" \
        -o "$out/.$program.new" "k8s.io/kubernetes/cmd/$program"
    mv "$out/.$program.new" "$out/$program"
    echo "build.sh: $program built in $(($(date +%s) - began)) s"
done
