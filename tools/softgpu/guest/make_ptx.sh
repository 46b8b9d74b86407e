#!/usr/bin/env bash
# Compiles the guest kernels beside this script to the PTX the tests run. Needs nvcc (NVCC, or PATH); the PTX is committed.
set -euo pipefail
cd "$(dirname "$0")"
NVCC=${NVCC:-nvcc}
for source in basic gemm features bugs; do
    "$NVCC" -ptx -lineinfo -std=c++17 -arch=compute_80 "$source.cu" -o "$source.ptx.new"
    # Paths of the machine that compiled are no part of the fixture.
    sed -E 's#^(\s*\.file\s+[0-9]+ )".*/([^"/]+)"#\1"\2"#' "$source.ptx.new" > "$source.ptx"
    rm "$source.ptx.new"
done
# The same kernel in fatbins: as it is, LZ4, zstd.
for mode in none speed size; do
    "$NVCC" -fatbin -gencode arch=compute_80,code=compute_80 --compress-mode=$mode small.cu -o "small.$mode.fatbin"
done
# One with machine code only.
"$NVCC" -fatbin -gencode arch=compute_80,code=sm_80 small.cu -o small.cubin.fatbin
