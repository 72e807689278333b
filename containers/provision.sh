#!/bin/sh
# Makes an image's whole content out of a bare Debian 12, as root.
#
#   containers/provision.sh [--dry-run] FLAVOUR [PREFIX]
#
# FLAVOUR    torch-cpu, torch-cuda, paddle-cpu or paddle-gpu
# PREFIX     the virtual environment to make; /opt/polyak unless given
# --dry-run  print the commands, run none
#
# WHEELS, in the environment, is one more package index, for frameworks that the usual one does not have.
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

locked() {
    sed -n "s/^$1==\([^ ;]*\).*/\1/p" "$constraints"
}

# Each framework has a lock of its own. Paddle's holds no CUDA: its builds for GPUs name the very packages they want.
case $flavour in
torch-*) constraints=$sources/constraints.txt ;;
*) constraints=$sources/constraints-paddle.txt ;;
esac
case $flavour in
torch-cpu | torch-cuda) framework="torch==$(locked torch)" ;;
paddle-cpu) framework="paddlepaddle==$(locked paddlepaddle)" ;;
paddle-gpu) framework="paddlepaddle-gpu==$(locked paddlepaddle)" ;;
*)
    echo "FLAVOUR='$flavour' is not known; choose torch-cpu, torch-cuda, paddle-cpu or paddle-gpu" >&2
    exit 2
    ;;
esac

export DEBIAN_FRONTEND=noninteractive
run apt-get update -qq
run apt-get install -qq --no-install-recommends \
    python3 python3-venv libgomp1 dataset-fashion-mnist gcc libc6-dev python3-dev

run python3 -m venv "$prefix"
export PIP_CONSTRAINT="$constraints" PIP_NO_CACHE_DIR=1
run "$prefix/bin/pip" install ${WHEELS:+--extra-index-url "$WHEELS"} "$framework" "${sources}[images]"

# Only the C kernel needed these. Triton needs them again: it builds its launcher on the GPU it first meets.
[ "$flavour" = torch-cuda ] || run apt-get purge -qq --auto-remove gcc libc6-dev python3-dev
run rm -rf /var/lib/apt/lists /var/cache/apt
run useradd --system --create-home --home-dir /var/lib/polyak polyak

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
