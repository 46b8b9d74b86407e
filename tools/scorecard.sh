#!/usr/bin/env bash
# Makes bench/scorecard.json and bench/scorecard.md: what is known of every CUDA kernel without a GPU.
#
# In: the kernels; nvcc (tools/cuda-toolchain.sh); python3 with pip and the network for cuobjdump, without which the
# instructions a multiply are left out. Out: the two files, the table on stdout. Runs on the software GPU.
# Usage: tools/scorecard.sh
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(nvidia-cuda-cuobjdump==13.5.37 nvidia-cuda-nvdisasm==13.5.37)
target="${CARGO_TARGET_DIR:-target}"
tools="$target/scorecard"
if [[ -z "${CUOBJDUMP:-}" && ! -x "$tools/bin/cuobjdump" ]]; then
  work="$(mktemp -d)"
  trap 'rm -rf "$work"' EXIT
  if python3 -m pip install --quiet --disable-pip-version-check --no-input --root-user-action=ignore \
    --no-deps --only-binary=:all: --target "$work" "${packages[@]}"; then
    mkdir -p "$tools/bin"
    find "$work" -type f \( -name cuobjdump -o -name nvdisasm \) -exec cp {} "$tools/bin/" \;
    chmod +x "$tools"/bin/*
  else
    echo "scorecard: no cuobjdump, so no instructions a multiply" >&2
  fi
fi

export ENGINE_CUDA_ARCHS="${ENGINE_CUDA_ARCHS-80,86,89,90}"
SCORECARD_WRITE="$PWD/bench" tools/softgpu/run.sh cargo test --release --workspace --test cuda_scorecard -- \
  --exact no_kernel_falls_behind_its_row --nocapture
