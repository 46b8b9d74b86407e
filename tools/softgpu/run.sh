#!/usr/bin/env bash
# tools/softgpu/run.sh COMMAND...: runs a program with softgpu as its CUDA driver (libcuda.so.1).
# Builds the library when it is missing or older than its sources. SOFTGPU_* variables: see tools/softgpu/README.md.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
library=${SOFTGPU_LIBRARY:-$target/release/libsoftgpu.so}
if [ ! -e "$library" ] || { [ -z "${SOFTGPU_LIBRARY:-}" ] &&
    [ -n "$(find "$root/tools/softgpu/src" -newer "$library" -print -quit)" ]; }; then
    (cd "$root" && cargo build --release -p softgpu >&2)
fi
place=$target/softgpu
if [ -n "${SOFTGPU_HIDE:-}" ]; then
    # A library without some entry points, as an older driver's: in a copy their names are changed, in the table of dynamic
    # symbols, to ones nobody asks for. Both names have one length, so nothing moves.
    place=$place/hide-$(cksum <<< "$SOFTGPU_HIDE" | cut -d ' ' -f 1)
    mkdir -p "$place"
    pattern=
    for name in ${SOFTGPU_HIDE//,/ }; do
        pattern+="|${name#cu}"
    done
    sed -z -E "s/^cu((${pattern#|})(_v[0-9]+)?)$/qu\1/" "$library" > "$place/libsoftgpu.so.$$"
    mv -T "$place/libsoftgpu.so.$$" "$place/libsoftgpu.so"
    library=$place/libsoftgpu.so
fi
mkdir -p "$place"
for name in libcuda.so libcuda.so.1; do
    # Renaming a fresh link over the old one keeps parallel runs from seeing neither.
    ln -s "$library" "$place/$name.$$" && mv -T "$place/$name.$$" "$place/$name"
done
export LD_LIBRARY_PATH=$place${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
exec "$@"
