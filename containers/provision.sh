#!/bin/sh
# Makes an image's whole content out of a bare Debian 12, as root.
#
#   containers/provision.sh [--dry-run] FLAVOUR [PREFIX]
#
# FLAVOUR    torch-cpu, torch-cuda, paddle-cpu or paddle-gpu
# PREFIX     the virtual environment to make; /opt/polyak unless given
# --dry-run  print the commands, run none
#
# In the environment, all optional:
#
# POLYAK         the polyak to install: a released version, or a wheel under dist/; unless given, this clone
# JUPYTER        1 for JupyterLab, too
# WHEELS         one more package index, for frameworks that the usual one does not have
# PIP_INDEX_URL  pip's own: another index instead of the usual one
# APT_MIRROR     the server that replaces http://deb.debian.org
set -eu

dry=false
if [ "${1-}" = --dry-run ]; then
    dry=true
    shift
fi
flavour=${1-}
prefix=${2:-/opt/polyak}
sources=$(cd "$(dirname "$0")/.." && pwd)

run() {
    echo "+ $*"
    "$dry" || "$@"
}

refuse() {
    echo "$*" >&2
    exit 2
}

locked() {
    sed -n "s/^$1==\([^ ;]*\).*/\1/p" "$constraints"
}

# Each framework has a lock of its own. Paddle's holds no CUDA: its builds for GPUs name the very packages they want.
case $flavour in
torch-*) constraints=$sources/constraints.txt ;;
*) constraints=$sources/constraints-paddle.txt ;;
esac
case $flavour in
# PyTorch's own index labels its builds; without the label pip would take CUDA from the usual one.
torch-cpu) framework="torch==$(locked torch)+cpu" ;;
torch-cuda) framework="torch==$(locked torch)" ;;
paddle-cpu) framework="paddlepaddle==$(locked paddlepaddle)" ;;
paddle-gpu) framework="paddlepaddle-gpu==$(locked paddlepaddle)" ;;
*) refuse "FLAVOUR='$flavour' is not known; choose torch-cpu, torch-cuda, paddle-cpu or paddle-gpu" ;;
esac

compiler=
case ${POLYAK-} in
'') polyak="${sources}[images]" compiler=yes ;;
*.whl)
    polyak="$sources/${POLYAK}[images]"
    [ -f "$sources/$POLYAK" ] || refuse "POLYAK='$POLYAK' is not a file of the clone; put the wheel into dist/"
    ;;
*) polyak="polyak[images]==$POLYAK" ;;
esac
# Triton builds its launcher on the GPU it first meets.
[ "$flavour" != torch-cuda ] || compiler=yes

case ${APT_MIRROR-} in
'' | http://*) ;;
*) refuse "APT_MIRROR='$APT_MIRROR' does not begin with http://; a bare Debian has no certificates for https" ;;
esac

export DEBIAN_FRONTEND=noninteractive
[ -z "${APT_MIRROR-}" ] || run sed -i "s|http://deb.debian.org|${APT_MIRROR%/}|" /etc/apt/sources.list.d/debian.sources
run apt-get update -qq
run apt-get install -qq --no-install-recommends \
    python3 python3-venv libgomp1 dataset-fashion-mnist ${compiler:+gcc libc6-dev python3-dev}

run python3 -m venv "$prefix"
export PIP_CONSTRAINT="$constraints" PIP_NO_CACHE_DIR=1
[ -z "${WHEELS-}" ] || export PIP_EXTRA_INDEX_URL="$WHEELS${PIP_EXTRA_INDEX_URL:+ $PIP_EXTRA_INDEX_URL}"
run "$prefix/bin/python" "$sources/containers/offered.py" "$flavour" "$framework" "$constraints"
run "$prefix/bin/pip" install "$framework" "$polyak"
# It is in no lock; what it shares with the rest stays as locked.
[ "${JUPYTER-}" != 1 ] || run "$prefix/bin/pip" install "jupyterlab>=4"

# Only the C kernel needed these.
[ "$flavour" = torch-cuda ] || [ -z "$compiler" ] || run apt-get purge -qq --auto-remove gcc libc6-dev python3-dev
run rm -rf /var/lib/apt/lists /var/cache/apt
# A number that is known beforehand: owners of mounted folders and Kubernetes are told it.
run useradd --uid 10001 --create-home --home-dir /var/lib/polyak polyak
run cp -R "$sources/experiments" /var/lib/polyak/

"$dry" && exit
# CUDA comes in packages named nvidia-…; without the right index pip takes the other kind of build.
cuda=$("$prefix/bin/pip" list | grep -c '^nvidia-' || true)
case $flavour-$cuda in
*-cpu-0 | *-cuda-[1-9]* | *-gpu-[1-9]*) ;;
*)
    echo "$framework came with $cuda packages of CUDA: not $flavour. Set WHEELS to the index of its builds" >&2
    exit 1
    ;;
esac
