#!/usr/bin/env bash
# From a bare Debian 12 to a trained, exported and sampled xLSTM, on CPU, in about ten minutes:
#   ./launcher/quickstart.sh
# Installs packages (root or sudo), builds, prepares Jane Austen's novels, trains configs/demo_bytes.textproto on two MPI
# ranks, exports for Hugging Face Transformers, and lets the model write. Run again, it goes on from the last checkpoint.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
data=$root/data/austen
run=$root/runs/demo
config=configs/demo_bytes.textproto
carousel=$root/build/launcher/carousel
start=$SECONDS

step() { printf '\n== %s  [%d s]\n' "$*" "$((SECONDS - start))"; }

step "1/6 packages"
./launcher/scripts/install_packages.sh

step "2/6 build"
cmake --preset cpu -DCAROUSEL_TESTS=OFF >/dev/null
cmake --build --preset cpu --target carousel

step "3/6 data: the novels of Jane Austen (Debian package r-cran-janeaustenr)"
# Leaves the text in $1, or fails.
fetch_austen() {
  local work
  work=$(mktemp -d)
  (
    cd "$work"
    apt-get download -qq r-cran-janeaustenr 2>/dev/null || {
      if [ "$(id -u)" -eq 0 ]; then apt-get update -qq; else sudo -n apt-get update -qq; fi
      apt-get download -qq r-cran-janeaustenr
    }
    dpkg-deb -x r-cran-janeaustenr_*.deb .
    "$root/launcher/scripts/austen_text.pl" "$(find . -path '*data/Rdata.rdb' | head -n 1)" >austen.txt
    echo "65b434d16a8755142bfa95ba19c5f9abd0d30cf3dffe3b6793e834f9f56dcc96  austen.txt" | sha256sum --check --quiet
  ) && mv "$work/austen.txt" "$1"
  local status=$?
  rm -rf "$work"
  return $status
}
mkdir -p "$data"
if [ ! -e "$data/tokens_valid.idx" ] || [ ! -e "$data/tokens_train.idx" ]; then
  if fetch_austen "$data/austen.txt"; then
    "$carousel" data build --input "$data/austen.txt" --output "$data/tokens" --validation_fraction 0.1 --force
  else
    echo "The package could not be had: training on generated text of known entropy instead."
    "$carousel" data synth --output "$data/synthetic.txt" --bytes 4000000 --force
    "$carousel" data build --input "$data/synthetic.txt" --output "$data/tokens" --validation_fraction 0.1 --force
  fi
fi

step "4/6 training: mpirun -np 2 carousel train --config $config"
./launcher/scripts/mpirun.sh -np 2 "$carousel" train --config "$config" --run_dir "$run"

step "5/6 export"
"$carousel" export --format hf --model "$run" --out "$run/export" --force

step "6/6 sample"
"$carousel" generate --model "$run/export" --prompt "It is a truth universally acknowledged" --max_tokens 400 --seed 1

cat <<END

== done  [$((SECONDS - start)) s]
  run             $run   (metrics.jsonl, config.textproto, checkpoints/)
  export          $run/export   (loads with Hugging Face Transformers: AutoModelForCausalLM.from_pretrained)
  tokens          $data/tokens_{train,valid}.{bin,idx}
  program         $carousel --help
  train longer    ./launcher/scripts/mpirun.sh -np 2 $carousel train --config $config --run_dir runs/longer --set train.steps=4000
END
