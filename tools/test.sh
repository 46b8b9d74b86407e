#!/usr/bin/env bash
# Runs all tests from a clean clone, with what can be had of their needs.
#
# In: Rust; for the CUDA kernels python3 with pip and the network, or a CUDA toolkit. Out: the tests' verdict.
# Needs no GPU: kernels run on the software GPU (tools/softgpu). Usage: tools/test.sh [cargo test arguments]
set -euo pipefail
cd "$(dirname "$0")/.."

# Two parts of machine code are enough to read ptxas' reports; PTX, which the software GPU runs, is always made.
export ENGINE_CUDA_ARCHS="${ENGINE_CUDA_ARCHS-80,90}"
toolchain="${CARGO_TARGET_DIR:-target}/cuda-toolchain"

have_nvcc=yes
if [[ -z "${NVCC:-}" && ! -x "${CUDA_HOME:-}/bin/nvcc" && ! -x "${CUDA_PATH:-}/bin/nvcc" ]] && ! command -v nvcc >/dev/null; then
  if ! bash tools/cuda-toolchain.sh && [[ ! -x "$toolchain/bin/nvcc" ]]; then
    have_nvcc=no
    echo "test: no nvcc, so the CUDA kernels are not built and not tested; everything else is" >&2
  fi
fi

# The whole workspace each time: another set of packages would build the shared crates with other features again.
cargo test --release --workspace "$@"

if [[ "$have_nvcc" == yes && -x tools/softgpu/run.sh ]]; then
  for test in tests/cuda_*.rs tests/cuda_*/main.rs; do
    name="${test#tests/}"
    name="${name%/main.rs}"
    tools/softgpu/run.sh cargo test --release --workspace --test "${name%.rs}" "$@"
  done
fi
