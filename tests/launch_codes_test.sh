#!/usr/bin/env bash
# What `carousel launch` does after each exit code, in whole runs with real causes; and what it makes of surroundings that are not
# kind to it.
#   launch_codes_test.sh CAROUSEL POISON_TOKENS FAULTY_TRAIN [CASE...]
set -euo pipefail
carousel=$1 poison=$2 faulty=$3
shift 3
source_dir=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
launcher= other=
trap '[ -z "$launcher" ] || kill -KILL "$launcher" 2>/dev/null; [ -z "$other" ] || kill "$other" 2>/dev/null; rm -rf "$work"' EXIT
cd "$work"
# shellcheck source=tests/launch_testing.sh
. "$source_dir/tests/launch_testing.sh"

# Steps 60 and 61 of 90 are noise.
"$poison" tokens 200000 32 8 5 60 61
cat >run.textproto <<END
model { embedding_dim: 32 num_blocks: 2 num_heads: 2 chunk_length: 16 igate_bias_init: -2 slstm_at: [1] }
data { train { path: "tokens" } sequence_length: 32 }
train { steps: 90 global_batch: 8 micro_batch: 2 compute: F32 seed: 5 }
schedule { kind: CONSTANT peak_lr: 3e-3 warmup_steps: 5 }
parallel { threads: 1 }
eval { every_steps: 0 }
checkpoint { every_steps: 10 keep_last: 2 good_after_steps: 5 asynchronous: false }
log { every_steps: 30 }
END
launch=("$carousel" launch --backoff 0 --failure_grace 5)
train=(train --config run.textproto --run_dir)
expect() { # expect CODE RUN ATTEMPTS COMMAND...: the launch of RUN ends with CODE after so many attempts, and leaves nothing behind
  local expected=$1 run=$2 attempts=$3 code=0
  shift 3
  "$@" >"log_$run" 2>&1 || code=$?
  [ "$code" -eq "$expected" ] || fail "$run: exit status $code, not $expected"
  [ "$(ls "$run/attempts" | wc -l)" -eq "$attempts" ] || fail "$run: $(ls "$run/attempts" | wc -l) attempts, not $attempts"
  no_orphans "$run"
}
code_of() { field "$1/attempts/$2/exit.json" exit_code; } # code_of RUN ATTEMPT
same() { # same RUN RUN
  "$carousel" checkpoint diff "$1" "$2" >log_diff 2>&1 || fail "$2: other weights or moments than $1"
  diff <(record "$1") <(record "$2") >log_diff || fail "$2: other metrics than $1"
}
# Two "hosts" with host names of their own: an agent that runs on this machine what mpirun would run on others.
cat >agent <<'SCRIPT'
#!/bin/bash
host=$1
shift
while [ -e slow ] && [ "$1" = uname ]; do sleep 0.2; done
[ ! -e "named.$host" ] || exec unshare --uts bash -c 'hostname "$1"; shift; exec bash -c "$*"' - "$(cat "named.$host")" "$@"
exec bash -c "$*"
SCRIPT
chmod +x agent

# 72: from the newest checkpoint that is marked as good. A NaN that does not come again is overcome; data that is bad is bad again.
numeric() {
  "$carousel" "${train[@]}" whole >log_whole 2>&1 || fail "the undisturbed run"
  FAULTY_TRAIN="1 300 nan" expect 0 nan 2 "${launch[@]}" -n 2 --program "$faulty" --export FAULTY_TRAIN "${train[@]}" nan \
    --set health.on_non_finite=STOP
  [ "$(code_of nan 1)" -eq 72 ] || fail "the first attempt: $(code_of nan 1)"
  grep -- " --from_good" nan/attempts/2/command.txt >/dev/null || fail "not from a good checkpoint: $(cat nan/attempts/2/command.txt)"
  says log_nan "restart 1 in 0 s, from the checkpoint of step [1-6]0"
  same whole nan
  expect 72 spike 2 "${launch[@]}" -n 1 --max_no_progress 1 "${train[@]}" spike --set health.on_spike=STOP
  says log_spike "restart 1 in 0 s, from the checkpoint of step 50"
  says log_spike "giving up: 1 restarts in a row brought no new checkpoint beyond step [56]0"
  # The message of the rank, and where there is more, are the last words.
  tail -2 log_spike | grep "rank 0 on .*: step 60: the loss .* health.on_spike is STOP" >/dev/null || fail "the reason is not at the end"
}

# 76: a device that computes wrong. Without its host, which the list knows by another name; with no other host that is the end.
hardware() {
  export FAULTY_TRAIN="1 300 nan"
  expect 76 alone 1 "${launch[@]}" -n 2 --program "$faulty" --export FAULTY_TRAIN "${train[@]}" alone --set health.rerun=true
  says log_alone "giving up: the run cannot go on without $(hostname)"
  says log_alone "suspected: $(hostname)"
  if ! unshare --uts true 2>/dev/null; then
    echo "hardware: hosts with names of their own cannot be made here"
    return 0
  fi
  echo node-a.cluster >named.hostA
  echo node-b.cluster >named.hostB
  FAULTY_TRAIN_HOST=node-b.cluster expect 0 hosts 2 "${launch[@]}" --host hostA:1,hostB:1 --rsh_agent "$work/agent" --program "$faulty" \
    --export FAULTY_TRAIN --export FAULTY_TRAIN_HOST "${train[@]}" hosts --set health.rerun=true
  rm named.*
  [ "$(code_of hosts 1)" -eq 76 ] || fail "the first attempt: $(code_of hosts 1)"
  says log_hosts "hostB is suspected and not used again by this launch"
  [ "$(cat hosts/attempts/2/hosts)" = "hostA slots=1" ] || fail "hosts of the second attempt: $(cat hosts/attempts/2/hosts)"
  unset FAULTY_TRAIN
}

# 64, 73, 74, 77: another start would fail alike.
no_restart() {
  "$carousel" "${train[@]}" made --set train.steps=10 >log_made 2>&1 || fail "a short run"
  expect 64 made 1 "${launch[@]}" -n 2 "${train[@]}" made --fresh --set train.steps=10
  says log_made "fresh, but .*made holds 1 checkpoint"
  local shard
  shard=$(ls made/checkpoints/step-*/model-*.safetensors | sed -n 1p)
  printf 'sixteen bytes of' | dd of="$shard" bs=1 seek=$(($(stat -c %s "$shard") - 5000)) conv=notrunc status=none
  expect 74 made 2 "${launch[@]}" -n 2 "${train[@]}" made --set train.steps=20 --accept_change
  says log_made "checksum"
  expect 74 nodata 1 "${launch[@]}" -n 2 "${train[@]}" nodata --set data.train.path=nowhere
  NCCL_SOCKET_IFNAME=nothere0 expect 77 refused 1 "${launch[@]}" -n 2 "${train[@]}" refused
  says log_refused "nothere0"
  # Another run holds the directory.
  "${launch[@]}" -n 1 "${train[@]}" held --set train.steps=1000000 >log_holder 2>&1 &
  launcher=$!
  wait_for_step held 3
  local code=0
  "${launch[@]}" -n 1 "${train[@]}" held --set train.steps=1000000 >log_held 2>&1 || code=$?
  [ "$code" -eq 73 ] || fail "a second launch in one directory: exit status $code, not 73"
  kill -TERM "$launcher"
  wait "$launcher" || code=$?
  launcher=
  [ "$code" -eq 75 ] || fail "the first launch of the directory: exit status $code, not 75"
  no_orphans held
  # A disk without room for the records of an attempt.
  mkdir full
  if mount -t tmpfs -o size=64k,mode=755 none full 2>/dev/null; then
    head -c 1000000 /dev/zero >full/filler 2>/dev/null || true
    code=0
    "${launch[@]}" -n 1 "${train[@]}" full/run >log_full 2>&1 || code=$?
    umount full
    [ "$code" -eq 73 ] || fail "a full disk: exit status $code, not 73"
    says log_full "No space left on device"
  fi
}

# The wait doubles up to its limit, and three starts that bring nothing are the end.
backoff() {
  printf '#!/bin/sh\necho no such luck >&2\nexit 70\n' >broken
  chmod +x broken
  local begin=$SECONDS
  expect 70 waits 4 "$carousel" launch -n 1 --backoff 0.5 --max_backoff 1.5 --failure_grace 1 --program "$work/broken" "${train[@]}" waits
  for wait in "restart 1 in 0.5 s" "restart 2 in 1 s" "restart 3 in 1.5 s"; do says log_waits "$wait"; done
  says log_waits "giving up: 3 restarts in a row brought no new checkpoint beyond the beginning"
  [ $((SECONDS - begin)) -ge 3 ] || fail "it did not wait"
  expect 70 limit 2 "$carousel" launch -n 1 --backoff 0 --max_restarts 1 --failure_grace 1 --program "$work/broken" "${train[@]}" limit
  says log_limit "giving up: --max_restarts 1 are used up"
}

# A rollback that leaves out data: stopped in it, and gone on with to the same bits.
skipping() {
  local back=(--set health.on_spike=ROLLBACK --set health.data_skip_steps=2 --set train.steps=300) code=0
  "$carousel" "${train[@]}" back "${back[@]}" >log_back 2>&1 || fail "the undisturbed run"
  "${launch[@]}" -n 2 "${train[@]}" skipped "${back[@]}" >log_skipped 2>&1 &
  launcher=$!
  until [ -e skipped/rollbacks.jsonl ]; do kill -0 "$launcher" 2>/dev/null || fail "no rollback"; sleep 0.01; done
  kill -TERM "$launcher"
  wait "$launcher" || code=$?
  launcher=
  [ "$code" -eq 75 ] || fail "stopped while data was skipped: exit status $code, not 75"
  no_orphans skipped
  "$carousel" checkpoint verify "$(ls -d skipped/checkpoints/step-* | tail -1)" >log_verify 2>&1 || fail "a damaged checkpoint"
  "${launch[@]}" -n 1 "${train[@]}" skipped "${back[@]}" >log_skipped 2>&1 || fail "it does not go on"
  same back skipped
}

# Signals that come twice, and one that means it.
twice() {
  local code begin
  for signals in "HUP HUP" "TERM TERM" "HUP TERM"; do
    "${launch[@]}" -n 2 "${train[@]}" twice --set train.steps=1000000 >log_twice 2>&1 &
    launcher=$!
    wait_for_step twice $((code_steps = $(steps_of twice | grep . || echo 0) + 3))
    for signal in $signals; do kill "-$signal" "$launcher" 2>/dev/null || true; done
    code=0
    wait "$launcher" || code=$?
    launcher=
    [ "$code" -eq 75 ] || fail "$signals: exit status $code, not 75"
    no_orphans twice
  done
  "${launch[@]}" -n 2 "${train[@]}" hurried --set train.steps=1000000 --set checkpoint.every_steps=0 >log_hurried 2>&1 &
  launcher=$!
  wait_for_step hurried 3
  kill -STOP $(ranks hurried)
  kill -TERM "$launcher"
  sleep 3
  begin=$SECONDS
  kill -TERM "$launcher"
  code=0
  wait "$launcher" || code=$?
  launcher=
  [ "$code" -eq 143 ] || fail "told twice while nothing could be saved: exit status $code, not 143"
  [ $((SECONDS - begin)) -le 30 ] || fail "at once took $((SECONDS - begin)) s"
  no_orphans hurried
}

# A stop while hosts are asked whether they are there.
asking() {
  local code=0 begin
  "${launch[@]}" --host hostA:1,hostB:1 --rsh_agent "$work/agent" "${train[@]}" asked --set train.steps=1000000 >log_asked 2>&1 &
  launcher=$!
  wait_for_step asked 3
  touch slow
  kill -KILL "$(ranks asked | tail -1)"
  for _ in $(seq 1200); do
    grep -q "restart 1 in 0 s" log_asked && break
    sleep 0.05
  done
  sleep 0.5
  begin=$SECONDS
  kill -TERM "$launcher"
  wait "$launcher" || code=$?
  launcher=
  rm slow
  [ "$code" -eq 75 ] || fail "stopped while hosts are asked: exit status $code, not 75"
  [ $((SECONDS - begin)) -le 10 ] || fail "the stop took $((SECONDS - begin)) s"
  no_orphans asked
}

# A console that takes nothing, one that is gone, and much output that is no text: none of it harms the run.
console() {
  local code=0
  cat >noisy <<SCRIPT
#!/bin/sh
head -c 300000 /dev/urandom
head -c 300000 /dev/urandom >&2
exec "$carousel" "\$@"
SCRIPT
  chmod +x noisy
  mkfifo pipe
  sleep 1000 <pipe &
  other=$!
  "${launch[@]}" -n 2 --program "$work/noisy" "${train[@]}" stuck --set train.steps=1000000 >pipe 2>&1 &
  launcher=$!
  wait_for_step stuck 20
  kill -TERM "$launcher"
  wait "$launcher" || code=$?
  launcher=
  kill "$other"
  other=
  [ "$code" -eq 75 ] || fail "with a console that takes nothing: exit status $code, not 75"
  no_orphans stuck
  [ "$(stat -c %s stuck/attempts/1/launcher.log)" -ge 1000000 ] || fail "launcher.log has not all output"
  code=0
  { "${launch[@]}" -n 2 --program "$work/noisy" "${train[@]}" gone --set train.steps=20 2>&1 || echo $? >code_gone; } | head -c 10 >/dev/null
  [ ! -e code_gone ] || fail "with a console that is gone: exit status $(cat code_gone)"
  [ -e gone/checkpoints/step-000000020 ] || fail "a run whose console is gone did not end well"
  no_orphans gone
}

# What is no surrounding for a launch is refused, and what lies about in attempts is not counted.
surroundings() {
  local code=0
  OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_RANK=0 "${launch[@]}" -n 2 "${train[@]}" no >log_no 2>&1 || code=$?
  [ "$code" -eq 64 ] || fail "under mpirun: exit status $code, not 64"
  says log_no "start it once, without mpirun"
  code=0
  CAROUSEL_RANK=1 "${launch[@]}" -n 2 "${train[@]}" no >log_no 2>&1 || code=$?
  [ "$code" -eq 64 ] || fail "with variables of TCP: exit status $code, not 64"
  says log_no "CAROUSEL_RANK is set"
  [ ! -e no ] || fail "a launch that was refused made a directory"
  mkdir -p odd/attempts/9223372036854775807 odd/attempts/-3 odd/attempts/more
  umask 000
  CAROUSEL_API_TOKEN=xyzzy4711 CAROUSEL_NOTE=shown "${launch[@]}" -n 1 "${train[@]}" odd --set train.steps=5 >log_odd 2>&1 || fail "an odd attempts"
  umask 022
  [ -e odd/attempts/1/exit.json ] || fail "the first attempt is not attempts/1"
  grep -x "CAROUSEL_NOTE=shown" odd/attempts/1/environment >/dev/null || fail "the environment is not recorded"
  if grep -r "xyzzy4711" odd >/dev/null; then fail "a secret is in a file of the run"; fi
  # Whatever the umask: nobody else reads what a run leaves here.
  [ -z "$(find odd/attempts/1 -perm /o+rwx)" ] || fail "open to all: $(find odd/attempts/1 -perm /o+rwx)"
}

[ $# -gt 0 ] || set -- numeric hardware no_restart backoff skipping twice asking console surroundings
for name in "$@"; do
  start=$SECONDS
  $name
  echo "$name: ok, $((SECONDS - start)) s"
done
