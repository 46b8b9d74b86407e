#!/usr/bin/env bash
# Checks what the layout promises and no compiler does.
#
# In: the files git knows or would add. Out: one line for each breach, exit 1 where there is one. Needs git, grep, awk.
# Usage: tools/check-layout.sh
set -euo pipefail
cd "$(dirname "$0")/.."

breaches=0
breach() {
  echo "layout: $*"
  breaches=$((breaches + 1))
}

# Tracked and new files that match the pathspecs; deleted ones are not there any more.
files() {
  git ls-files --cached --others --exclude-standard -- "$@" | sort -u | while IFS= read -r file; do
    if [[ -f "$file" ]]; then echo "$file"; fi
  done
}

# Reports every line of the named files (standard input) that matches an extended regular expression.
forbid() { # WHAT REGEX [-i]
  local line
  while IFS= read -r file; do
    while IFS= read -r line; do
      breach "$file:$line: $1"
    done < <(grep -nE ${3:+"$3"} -- "$2" "$file" | cut -c1-160 || true)
  done
}

# 1. No file grows beyond what one reads at a sitting.
max_lines=600
while IFS= read -r file; do
  lines=$(wc -l <"$file")
  if ((lines > max_lines)); then breach "$file: $lines lines, at most $max_lines"; fi
done < <(files '*.rs' '*.cu' '*.cuh' '*.py' '*.sh')

# 2. Families are named in their own files, in tests, tools, benchmarks and the README alone.
families='idefics|blip-?2|llava|joycaption|minicpm|internvl|qwen|cogvlm|florence-?2|minigpt|xgen'
forbid 'a family name outside of engine/models' "$families" -i < <(
  files engine kernels build.rs Cargo.toml | grep -v '^engine/models/'
)

# 3. One file knows the driver's bindings.
forbid 'cudarc outside of engine/backend/cuda/driver.rs' 'cudarc' < <(
  files engine kernels | grep -v '^engine/backend/cuda/driver.rs$'
)

# 4. No arrow runs back: FOLDER must not use any of MODULES (a|b|c). Whole files are searched, as a `use` may span
# lines; comments may speak of anything.
arrow() { # FOLDER MODULES
  local file found
  while IFS= read -r file; do
    found=$(sed -E 's://.*$::' "$file" | tr '\n' ' ' |
      grep -oE "(crate|engine)::(($2)\b|\{([^;]*[ ,{])?($2)\b)" | head -1 || true)
    if [[ -n "$found" ]]; then breach "$file: uses ${found##*[:, \{]}, which $1 must not see"; fi
  done < <(files "engine/$1/*.rs" "engine/$1.rs")
}
arrow error 'backend|checkpoint|cli|graph|input|inspect|models|run|schedule|serve|tensor'
arrow tensor 'backend|checkpoint|cli|graph|input|inspect|models|run|schedule|serve'
arrow graph 'backend|checkpoint|cli|input|inspect|models|run|schedule|serve'
arrow models 'backend|cli|inspect|run|schedule|serve'
arrow backend 'checkpoint|cli|input|inspect|models|run|schedule|serve'
arrow checkpoint 'backend|cli|graph|input|inspect|models|run|schedule|serve'
arrow schedule 'backend|checkpoint|cli|graph|inspect|models|run|serve'
arrow run 'cli|serve'

# 5. Nothing is left for later, and no test is asleep.
forbid 'unfinished' '(^|[^A-Za-z_])(TODO|FIXME)([^A-Za-z_]|$)|unimplemented!|todo!\(|#\[ignore' < <(
  files '*.rs' '*.cu' '*.cuh' '*.py' '*.sh' | grep -v '^tools/check-layout.sh$'
)

if ((breaches > 0)); then
  echo "layout: $breaches breaches"
  exit 1
fi
echo "layout: ok"
