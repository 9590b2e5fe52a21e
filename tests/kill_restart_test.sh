#!/usr/bin/env bash
# A run whose ranks are killed again and again, while they load, train, evaluate or save, and which is started again each time, on
# another number of ranks, ends with the weights and the metrics of a run that nobody disturbed, to the bit.
#   kill_restart_test.sh CAROUSEL [KILLS [SEED]]
set -euo pipefail
carousel=$1
kills=${2:-20}
seed=${3:-1}
source_dir=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
launcher=
trap '[ -z "$launcher" ] || kill -KILL $launcher 2>/dev/null; rm -rf "$work"' EXIT
cd "$work"
RANDOM=$seed
export OMPI_MCA_odls_base_sigkill_timeout=0  # nothing is left to save in a rank whose neighbour was killed

fail() { echo "FAIL (seed $seed): $*" >&2; tail -30 log; ls -la killed/checkpoints || true; exit 1; }
mpirun() { "$source_dir/launcher/scripts/mpirun.sh" "$@"; }
ours() { # processes of this program that train in $1
  for process in /proc/[0-9]*; do
    if [ "$(readlink "$process/cwd" 2>/dev/null)" = "$(pwd -P)" ] &&
      { tr '\0' ' ' <"$process/cmdline"; } 2>/dev/null | grep -- "^$carousel train .*--run_dir $1 " >/dev/null; then
      echo "${process#/proc/}"
    fi
  done
}
record() { # what a run's metrics say, without clocks, what saves took and who was slow
  grep -v '^{"checkpoint"\|"kind":"straggler"' "$1/metrics.jsonl" | sed 's/,"seconds":.*"data_digest"/,"data_digest"/'
}

"$carousel" data synth --output corpus.txt --bytes 100000 >/dev/null
"$carousel" data build --input corpus.txt --output tokens --validation_fraction 0.1 >/dev/null
cat >tiny.textproto <<END
model { embedding_dim: 64 num_blocks: 2 num_heads: 2 chunk_length: 16 igate_bias_init: -2 slstm_at: 1 }
data { train { path: "tokens_train" } validation { path: "tokens_valid" } sequence_length: 64 }
train { steps: $((80 * kills)) global_batch: 8 micro_batch: 2 compute: F32 }
parallel { threads: 1 }
eval { every_steps: 7 num_windows: 8 }
checkpoint { every_steps: 5 keep_last: 2 }
END
train=("$carousel" train --config tiny.textproto)
"${train[@]}" --run_dir whole --set checkpoint.every_steps=0 >log 2>&1 || fail "the undisturbed run"

# Waits until it is time to kill: $1 = save: a checkpoint is being written; otherwise up to a second after the ranks are there.
wait_for_moment() {
  while kill -0 "$launcher" 2>/dev/null && [ -z "$(ours killed)" ]; do sleep 0.01; done
  if [ "$1" = save ]; then
    for _ in $(seq 400); do
      kill -0 "$launcher" 2>/dev/null || return 0
      compgen -G 'killed/checkpoints/.tmp-*' >/dev/null && break
      sleep 0.002
    done
    sleep "0.0$((RANDOM % 10))"
  else
    sleep "$(printf '0.%03d' $((RANDOM % 999)))"
  fi
}

meshes=("1" "2" "2 --set parallel.shard=2" "4 --set parallel.shard=2" "4")
killed=0 finished=0 attempts=0
declare -A moments=()
while [ "$finished" -eq 0 ]; do
  attempts=$((attempts + 1))
  [ "$attempts" -le $((4 * kills + 20)) ] || fail "no end after $attempts attempts"
  read -r ranks options <<<"${meshes[RANDOM % ${#meshes[@]}]}"
  # shellcheck disable=SC2086
  mpirun -np "$ranks" "${train[@]}" --run_dir killed $options --set log.every_steps=1000 >log 2>&1 &
  launcher=$!
  if [ "$killed" -lt "$kills" ]; then
    moment=$([ $((RANDOM % 2)) -eq 0 ] && echo save || echo time)
    wait_for_moment "$moment"
    mapfile -t processes < <(ours killed)
    if [ "${#processes[@]}" -gt 0 ]; then
      if kill -KILL "${processes[RANDOM % ${#processes[@]}]}" 2>/dev/null; then
        killed=$((killed + 1))
        moments[$moment]=$((${moments[$moment]:-0} + 1))
      fi
    fi
  fi
  if wait "$launcher"; then finished=1; fi
  launcher=
  for _ in $(seq 100); do
    [ -z "$(ours killed)" ] && break
    sleep 0.05
  done
  [ -z "$(ours killed)" ] || fail "processes are left: $(ours killed)"
  # Whatever the moment was: what is there can be read.
  if [ "$finished" -eq 0 ] && compgen -G 'killed/checkpoints/step-*' >/dev/null; then
    "$carousel" checkpoint verify "$(ls -d killed/checkpoints/step-* | tail -1)" >log_verify 2>&1 || { cat log_verify; fail "a damaged checkpoint"; }
  fi
done
[ "$killed" -ge $((kills * 3 / 4)) ] || fail "only $killed kills before the end"

diff <(record whole) <(record killed) >log_diff || { head log_diff; fail "metrics are not those of the undisturbed run"; }
"$carousel" checkpoint diff whole killed || fail "weights or moments are not those of the undisturbed run"
left=$(find killed \( -name '.tmp-*' -o -name '.trash-*' -o -name '.bad-*' -o -name '*.tmp' \) | sed -n 1,10p)
[ -z "$left" ] || fail "left behind: $left"
echo "$killed ranks killed in $attempts attempts (while saving ${moments[save]:-0}, at any time ${moments[time]:-0}): same weights, same metrics"
