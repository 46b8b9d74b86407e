#!/usr/bin/env bash
# Fetches the pictures of Pillow's own test suite: damaged, huge, tiny and odd files of every kind.
#
# In: python3 with pip, the network (47 MB from PyPI). Out: DIR/images (about 780 files) and DIR/LICENSE (MIT-CMU).
# A small part is committed as tests/data/torture. Usage: tools/pillow-images.sh DIR, then
# engine caption DIR/images/* --out captions.jsonl
set -euo pipefail

dir="${1:?usage: tools/pillow-images.sh DIR}"
version=13.0.0
mkdir -p "$dir"
python3 -m pip download -q --no-deps --no-binary pillow -d "$dir" "pillow==$version"
tar -xzf "$dir/pillow-$version.tar.gz" -C "$dir" --strip-components=1 "pillow-$version/Tests/images" "pillow-$version/LICENSE"
mv "$dir/Tests/images" "$dir/images"
rmdir "$dir/Tests"
echo "$dir/images: $(find "$dir/images" -type f | wc -l) files"
