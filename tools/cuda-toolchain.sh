#!/usr/bin/env bash
# Puts nvcc, ptxas and the CUDA headers under TARGET/cuda-toolchain, where build.rs looks.
#
# In: python3 with pip, the network (about 80 MB of wheels). Out: bin/, include/, nvvm/, lib/ that need no driver and
# no root. Does nothing where the pinned versions are already there. Not here: a GPU driver.
# Usage: tools/cuda-toolchain.sh
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(
  nvidia-cuda-nvcc==13.5.37
  nvidia-cuda-crt==13.5.37
  nvidia-nvvm==13.5.37
  nvidia-cuda-runtime==13.5.37
  nvidia-cuda-cccl==13.3.5.0.6
)
dest="${CARGO_TARGET_DIR:-target}/cuda-toolchain"
want="${packages[*]}"

if [[ -x "$dest/bin/nvcc" && "$(cat "$dest/stamp" 2>/dev/null)" == "$want" ]]; then
  echo "cuda-toolchain: $dest is up to date"
  exit 0
fi
if ! python3 -m pip --version >/dev/null 2>&1; then
  echo "cuda-toolchain: needs python3 with pip; or install the CUDA toolkit (13 or later) and set CUDA_HOME" >&2
  exit 1
fi

mkdir -p "$dest"
work="$(mktemp -d "$dest/install.XXXXXX")"
trap 'rm -rf "$work"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --no-input --root-user-action=ignore \
  --no-deps --only-binary=:all: --target "$work" "${packages[@]}"

# The wheels share one tree, nvidia/cu13.
tree="$(dirname "$(dirname "$(find "$work" -path '*/bin/nvcc' -print -quit)")")"
for part in bin include nvvm lib; do
  rm -rf "${dest:?}/$part"
  mv "$tree/$part" "$dest/$part"
done
# The archive may have lost the permissions.
chmod +x "$dest"/bin/* "$dest"/nvvm/bin/* 2>/dev/null || true
"$dest/bin/nvcc" --version | tail -2 | head -1
# Last: a build that sees it finds everything in place, and runs its build script again.
printf '%s' "$want" >"$dest/stamp"
echo "cuda-toolchain: installed in $dest"
