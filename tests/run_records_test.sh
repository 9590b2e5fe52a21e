#!/usr/bin/env bash
# What lives in a run directory: which run it is, where its config comes from, going back to a good checkpoint, a full disk.
#   run_records_test.sh CAROUSEL
set -uo pipefail
export LC_ALL=C
carousel=$1
source_dir=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'umount "$work/small" 2>/dev/null; rm -rf "$work"' EXIT
cd "$work" || exit 1
failures=0

fail() { echo "FAIL: $*"; cat out; failures=$((failures + 1)); }
must() { "$@" >out 2>&1 || fail "$*"; }
# refused NAME CODE TEXT... -- COMMAND...: the command exits with CODE and says every TEXT (an extended regular expression).
refused() {
  local name=$1 code=$2 texts=() status
  shift 2
  while [ "$1" != -- ]; do texts+=("$1"); shift; done
  shift
  "$@" >out 2>&1
  status=$?
  [ $status -eq "$code" ] || fail "$name: exit status $status, should be $code"
  for text in "${texts[@]}"; do grep -Eq -- "$text" out || fail "$name: it does not say /$text/"; done
  echo "ok    $name"
}
says() { grep -Eq -- "$1" out || fail "it does not say /$1/"; }
id_of() { cut -d' ' -f2 "$1/run_id"; }
manifest_id() { grep -m1 -o '"run_id": "[^"]*"' "$1/MANIFEST.json" | cut -d'"' -f4; }
steps_of() { (cd "$1/checkpoints" && find . -maxdepth 1 -name '*step-*' | sed 's|^./||' | sort | tr '\n' ' '); }

"$carousel" data synth --output corpus.txt --bytes 60000 >/dev/null || exit 1
"$carousel" data build --input corpus.txt --output tokens --validation_fraction 0.1 >/dev/null || exit 1
cat >tiny.textproto <<'END'
model { embedding_dim: 64 num_blocks: 1 num_heads: 2 }
data { train { path: "tokens_train" } validation { path: "tokens_valid" } sequence_length: 32 }
schedule { warmup_steps: 2 }
train { steps: 8 global_batch: 4 micro_batch: 1 compute: F32 }
parallel { threads: 1 }
eval { every_steps: 0 }
checkpoint { every_steps: 2 keep_last: 0 good_after_steps: 1000 asynchronous: false }
END
train() { "$carousel" train --config tiny.textproto "$@"; }

# ---- which run it is
must train --run_dir a
must train --run_dir b --set train.seed=1
a=$(id_of a) b=$(id_of b)
[[ $a =~ ^[0-9a-f]{32}$ && $b =~ ^[0-9a-f]{32}$ && $a != "$b" ]] || fail "ids $a and $b"
[ "$(manifest_id a/checkpoints/step-000000008)" = "$a" ] || fail "the manifest's id is not the directory's"
must "$carousel" checkpoint stat a
says "^run +$a"
refused "reshard into another run" 70 "$a" "$b" "does not exist yet" -- "$carousel" checkpoint reshard a b
refused "merge into another run" 70 "$a" "$b" -- "$carousel" checkpoint merge a b/all.safetensors
refused "merge among checkpoints" 70 "among the checkpoints" -- "$carousel" checkpoint merge a a/checkpoints/all.safetensors
[ "$(steps_of b)" = "step-000000002 step-000000004 step-000000006 step-000000008 " ] || fail "b holds $(steps_of b)"

cp -r a mixed && cp -r b/checkpoints/step-000000008 mixed/checkpoints/step-000000009
refused "a later checkpoint of another run" 64 "step-000000009/MANIFEST.pb" "$a" "$b" "directory of their own" -- train --run_dir mixed
refused "a tool meets it" 70 "step-000000009/MANIFEST.pb is of another run" "$a" "$b" -- "$carousel" checkpoint stat mixed
must "$carousel" checkpoint ls mixed
says "step-000000009 .* refused: .* is of another run"
must "$carousel" checkpoint prune mixed --keep_last 1 --yes
says "keep +step-000000009 .*of another run"
[ "$(steps_of mixed)" = "step-000000008 step-000000009 " ] || fail "prune left $(steps_of mixed)"
must train --run_dir mixed --checkpoint_fallback --set train.steps=10 --accept_change
[ "$(steps_of mixed)" = ".bad-step-000000009 step-000000008 step-000000010 " ] || fail "fallback left $(steps_of mixed)"

cp -r a copied
must train --run_dir copied --set train.steps=10 --accept_change
[ "$(manifest_id copied/checkpoints/step-000000010)" = "$a" ] || fail "a copy is the same run"
rm copied/run_id
must train --run_dir copied --set train.steps=12 --accept_change
[ "$(id_of copied)" = "$a" ] || fail "the checkpoints say which run it is"
must "$carousel" checkpoint reshard a resharded --ranks 3
[ "$(id_of resharded)" = "$a" ] || fail "what was resharded is the same run"
refused "reshard to no ranks" 64 "0 ranks" -- "$carousel" checkpoint reshard a/checkpoints/step-000000008 deep/down --ranks 0
[ ! -e deep ] || fail "a reshard that failed left a directory"
if mpirun=$(command -v mpirun); then
  must "$source_dir/launcher/scripts/mpirun.sh" -np 2 "$carousel" train --config tiny.textproto --run_dir two
  [ "$(manifest_id two/checkpoints/step-000000008)" = "$(id_of two)" ] || fail "ranks disagree about the run"
  echo "ok    ranks agree on the id (${mpirun})"
fi

# ---- import and export
must "$carousel" export --format nxai --model a --out exported
refused "import into a run" 70 "run $b with 4 checkpoints" -- "$carousel" import --model exported --out b
must "$carousel" import --model exported --out imported
cp -r exported imported_from
[[ $(id_of imported) =~ ^[0-9a-f]{32}$ && $(id_of imported) != "$a" ]] || fail "an imported run has an id of its own"
for out in corpus.txt/below corpus.txt . "" a/checkpoints/exported a/checkpoints/step-000000008/exported /proc/none; do
  for force in "" --force; do
    # shellcheck disable=SC2086
    "$carousel" export --format nxai --model a --out "$out" $force >out 2>&1 && fail "export to '$out'"
    "$carousel" import --model exported --out "$out" >out 2>&1 && [ "$out" != . ] && fail "import to '$out'"
  done
done
rm -rf checkpoints run_id config.textproto build.txt # of the import to .
ln -s nowhere dangling
refused "export to a link that leads nowhere" 70 "dangling is a link" -- "$carousel" export --format nxai --model a --out dangling
mkdir holds && cp -r exported/. holds/ && cp -r a holds/run
refused "export over its own source" 64 "holds/run.*to be exported" -- "$carousel" export --format nxai --model holds/run --out holds --force
mkdir -p begun/checkpoints && cp -r exported/. begun/
refused "export over a run" 70 "is a run directory" -- "$carousel" export --format nxai --model a --out begun --force
must "$carousel" export --format nxai --model a/checkpoints --out exported --force
must "$carousel" checkpoint verify a
for strange in pipe directory empty link; do
  for file in config.yaml model.safetensors; do
    rm -rf strange && cp -r exported strange && rm "strange/$file"
    case $strange in
      pipe) mkfifo "strange/$file" ;;
      directory) mkdir "strange/$file" ;;
      empty) : >"strange/$file" ;;
      link) ln -s "$file" "strange/$file" ;;
    esac
    timeout 20 "$carousel" import --model strange --out not/there >out 2>&1
    status=$?
    [ $status -ge 64 ] && [ $status -le 77 ] && grep -q "strange" out || fail "import of a $strange as $file: exit status $status"
    [ ! -e not ] || fail "an import of a $strange left a directory"
  done
done
truncate -s -1000 exported/model.safetensors
refused "import of a damaged model" 64 "model.safetensors" -- "$carousel" import --model exported --out not/there
[ ! -e not ] || fail "an import that failed left a directory"

# ---- the config
cp -r a lost && rm lost/config.textproto
must "$carousel" train --run_dir lost --set train.steps=10 --accept_change
says "lost/config.textproto is missing; the run goes on with lost/checkpoints/step-000000008/config.textproto"
[ -s lost/config.textproto ] || fail "it is written again"
rm lost/config.textproto && : >lost/checkpoints/step-000000010/MANIFEST.pb
must "$carousel" train --run_dir lost --checkpoint_fallback
says "goes on with lost/checkpoints/step-000000008/config.textproto"
rm -rf lost/checkpoints lost/config.textproto
refused "neither config nor checkpoint" 64 "no config.textproto and no checkpoint; give --config" -- "$carousel" train --run_dir lost

# ---- back to a good checkpoint
refused "no good checkpoint" 64 "marked as good" "without --from_good" -- train --run_dir a --from_good
must train --run_dir good --set checkpoint.good_after_steps=3 --set train.steps=8
[ "$(ls good/checkpoints/marks)" = "$(printf 'step-000000002.good\nstep-000000004.good')" ] || fail "marks: $(ls good/checkpoints/marks)"
must train --run_dir good --set checkpoint.good_after_steps=3 --from_good
says "going back to good/checkpoints/step-000000004: .*set aside as good/checkpoints/.aside-step-000000008"
says "step +8/8 "
[ "$(steps_of good)" = ".aside-step-000000006 .aside-step-000000008 step-000000002 step-000000004 step-000000006 step-000000008 " ] ||
  fail "it left $(steps_of good)"
[ "$(grep -c '^{"step":' good/metrics.jsonl)" = 8 ] || fail "metrics repeat a step"
must "$carousel" checkpoint diff good/checkpoints/step-000000008 good/checkpoints/.aside-step-000000008
must "$carousel" checkpoint ls good
says "\.aside-step-000000008 .*set aside"
refused "--from_good and --fresh" 64 "fresh" -- train --run_dir good --from_good --fresh

# ---- a plain file at a step's path
must train --run_dir plain --set train.steps=2
echo mine >plain/checkpoints/step-000000004
must train --run_dir plain --set train.steps=4 --accept_change
says "step-000000004 is a file and not a checkpoint; moved to .*bad-step-000000004"
[ "$(cat plain/checkpoints/.bad-step-000000004)" = mine ] || fail "somebody's file is gone"

# ---- paths and counts
for path in a a/ a/checkpoints a/checkpoints/ a/checkpoints/step-000000008; do
  must "$carousel" checkpoint ls "$path"
  says "step-000000008 .* complete"
  must "$carousel" checkpoint stat "$path"
  says "^checkpoint +a/+checkpoints/+step-000000008"
done
(cd a/checkpoints && must "$carousel" checkpoint ls . && must "$carousel" checkpoint verify .)
must "$carousel" checkpoint ls a
listed=$(awk '$1 == "step-000000008" { print $5 }' out)
must "$carousel" checkpoint stat a
stated=$(awk '$1 == "files" { print $2 }' out)
rows=$(awk '/^file /{on=1;next} /^$/{on=0} on && !/not counted/' out | wc -l)
must "$carousel" checkpoint verify a/checkpoints/step-000000008
says "ok, $listed files, "
[ "$listed" = "$stated" ] && [ "$listed" = "$rows" ] || fail "ls counts $listed files, stat $stated and lists $rows"
rm a/checkpoints/step-000000008/optim-*
refused "a missing shard" 70 "optim-00000-of-00001.safetensors.*holds tensors .* more, [0-9]+ in all" -- "$carousel" checkpoint verify a/checkpoints/step-000000008
[ "$(wc -c <out)" -lt 800 ] || fail "too many names"

# ---- a directory that cannot be read or written
if [ "$(id -u)" = 0 ] && command -v setpriv >/dev/null; then
  chmod 755 "$work"
  other() { setpriv --reuid=65534 --regid=65534 --clear-groups "$carousel" "$@"; }
  cp -r b closed && chmod 000 closed/checkpoints/step-000000006
  must other checkpoint ls closed
  says "step-000000008 .* complete"
  says "step-000000006 .*cannot be read: .*Permission denied"
  refused "verify of what cannot be read" 70 "step-000000008: ok" "step-000000006: CANNOT BE READ" "1 of 4" -- other checkpoint verify closed
  refused "prune of what cannot be written" 70 "Permission denied" -- other checkpoint prune b --keep_last 1 --yes
  refused "reshard to where nothing can be written" 70 "Permission denied" -- other checkpoint reshard b out_of_reach
  refused "merge to where nothing can be written" 70 "Permission denied" -- other checkpoint merge b out_of_reach
  refused "import to where nothing can be written" 70 "Permission denied.*--out" -- other import --model imported_from --out out_of_reach
  [ ! -e out_of_reach ] || fail "something was written"
  echo "ok    directories of somebody else"
fi

# ---- a full disk
if mkdir small && mount -t tmpfs -o size=4m tmpfs small 2>/dev/null; then
  must train --run_dir small/run --set train.steps=2
  # The checks before the start would say that no checkpoint fits; people may want to go on all the same.
  # Metrics of a life that reached step 9000 and was lost: no second copy of the file fits.
  for step in $(seq 3 9000); do echo "{\"step\":$step,\"pad\":\"$(printf '%0120d' "$step")\"}"; done >>small/run/metrics.jsonl
  dd if=/dev/zero of=small/ballast bs=4k 2>/dev/null; truncate -s -128k small/ballast
  must train --preflight=off --run_dir small/run --set train.steps=2
  [ "$(grep -c '^{"step":' small/run/metrics.jsonl)" = 2 ] || fail "the metrics were not cut"
  # The same with a line in between that stays.
  echo "{\"sample\":{\"step\":1,\"text\":\"$(head -c 300000 /dev/zero | tr '\0' x)\"}}" >>small/run/metrics.jsonl
  cp small/run/metrics.jsonl kept
  { for step in $(seq 3 5000); do echo "{\"step\":$step,\"pad\":\"$(printf '%0120d' "$step")\"}"; done
    echo '{"evaluation":{"step":2,"loss":1.5}}'; } >>small/run/metrics.jsonl
  dd if=/dev/zero bs=4k of=small/more 2>/dev/null; truncate -s -96k small/more
  must train --preflight=off --run_dir small/run --set train.steps=2
  echo '{"evaluation":{"step":2,"loss":1.5}}' >>kept
  cmp -s kept small/run/metrics.jsonl || fail "the metrics are not those that were to stay: $(head -c 600 small/run/metrics.jsonl)"
  dd if=/dev/zero bs=4k of=small/rest 2>/dev/null
  refused "no space at all" 73 "[0-9]+ bytes are free in small/run and [0-9]+ are needed" -- train --preflight=off --run_dir small/run --set train.steps=4 --accept_change
  echo "ok    a full disk"
else
  echo "skip  a full disk (needs root)"
fi

[ $failures -eq 0 ] || { echo "$failures failures"; exit 1; }
