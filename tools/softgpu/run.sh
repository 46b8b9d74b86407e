#!/usr/bin/env bash
# tools/softgpu/run.sh COMMAND...: runs a program with softgpu as its CUDA driver (libcuda.so.1).
# Builds the library when it is missing. SOFTGPU_* variables: see tools/softgpu/README.md.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
library=${SOFTGPU_LIBRARY:-$target/release/libsoftgpu.so}
if [ ! -e "$library" ]; then
    (cd "$root" && cargo build --release -p softgpu >&2)
fi
place=$target/softgpu
mkdir -p "$place"
for name in libcuda.so libcuda.so.1; do
    # Renaming a fresh link over the old one keeps parallel runs from seeing neither.
    ln -s "$library" "$place/$name.$$" && mv -T "$place/$name.$$" "$place/$name"
done
export LD_LIBRARY_PATH=$place${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
exec "$@"
