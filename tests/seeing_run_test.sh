#!/usr/bin/env bash
# Everything that shows a run, as a user gets it: the report while it goes on, after it and after it went on; the Prometheus
# file, TensorBoard's files, the profile of a few steps, JSON on the console. With Chromium the report is opened: no errors on
# its console, and its picture has curves. With TensorBoard (a python3 that imports it, $TENSORBOARD_PYTHON) its own reader
# reads the files.
#   seeing_run_test.sh CAROUSEL
set -euo pipefail
carousel=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

fail() { echo "FAIL: $*" >&2; [ -e log ] && tail -20 log >&2; exit 1; }
has() { grep -F -- "$2" "$1" >/dev/null || fail "no \"$2\" in $1"; }

"$carousel" data synth --output corpus.txt --bytes 60000 >/dev/null
"$carousel" data build --input corpus.txt --output tokens --validation_fraction 0.1 >/dev/null
cat >tiny.textproto <<'CONFIG'
model { embedding_dim: 32 num_blocks: 2 num_heads: 2 chunk_length: 16 igate_bias_init: -2 slstm_at: 1 }
data { train { path: "tokens_train" } validation { path: "tokens_valid" } sequence_length: 32 }
train { steps: 120 global_batch: 4 micro_batch: 2 compute: F32 }
parallel { threads: 1 }
eval { every_steps: 20 num_windows: 4 }
sample { every_steps: 40 num_tokens: 40 }
checkpoint { every_steps: 30 }
health { gate_stats_every_steps: 10 }
log { every_steps: 5 report_every_seconds: 0.2 }
CONFIG
"$carousel" train --config tiny.textproto --run_dir run --set train.max_tokens=$((60 * 128)) >log 2>&1 || fail "the first part"
[ -e run/report.html ] || fail "no report"
has run/report.html "token budget used up"
"$carousel" train --run_dir run --set train.max_tokens=0 --profile steps:70-72 --log_format json >log 2>&1 || fail "the second part"

# The console in JSON: each line an object, the steps among them.
grep '^{"step":' log >steps || fail "no steps in JSON"
[ "$(wc -l <steps)" -ge 12 ] || fail "few steps in JSON"
if grep -v '^{.*}$' log | grep -v '^\[' >other; then fail "not JSON: $(head -1 other)"; fi

# The report: both starts, all kinds of sections, nothing from elsewhere.
for text in 'finished' 'Loss' 'Gradient norm' 'Throughput' 'Input gate, mean' 'Samples' 'train.steps' 'went on from step 60' \
  "http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'" 'single tokens' 'guessing'; do
  has run/report.html "$text"
done
[ "$(grep -c '"start"' run/starts.jsonl)" -eq 2 ] || fail "not two starts"
[ "$(grep -c '"end"' run/starts.jsonl)" -eq 2 ] || fail "not two ends"
"$carousel" report --run_dir run --out later.html >out || fail "carousel report"
has out later.html
has later.html 'went on from step 60'
mkdir empty
if "$carousel" report --run_dir empty >out 2>&1; then fail "a report of nothing"; fi
has out 'holds no run'

# Prometheus: the newest numbers, no temporary file left.
has run/metrics.prom 'carousel_steps_total{run="run"} 120'
has run/metrics.prom 'carousel_running{run="run"} 0'
has run/metrics.prom '# TYPE carousel_loss gauge'
[ -z "$(find run -name '*.tmp*')" ] || fail "temporary files: $(find run -name '*.tmp*')"

# TensorBoard: a file for each start.
[ "$(find run/tensorboard -name 'events.out.tfevents.*' | wc -l)" -eq 2 ] || fail "not two event files"

# The profile.
grep -F 'profile of steps 70 to 72 on rank 0' log >/dev/null || fail "no profile told"
has run/profile/steps-70-72.rank-0.txt Matmul
has run/profile/steps-70-72.rank-0.json '"name":"SlstmForward"'

# Steps are trained alike, whatever is shown.
"$carousel" train --config tiny.textproto --run_dir plain --set log.tensorboard=false --set log.prometheus=false \
  --set log.report=false >log 2>&1 || fail "the plain run"
for file in report.html metrics.prom tensorboard; do [ ! -e plain/$file ] || fail "$file though it is off"; done
record() { grep '^{"step"' "$1/metrics.jsonl" | sed 's/,"seconds":.*"data_digest"/,"data_digest"/'; }
diff <(record run) <(record plain) >/dev/null || fail "what is shown changes what is trained"

# A sink that cannot write: told once, the run goes on.
mkdir broken && echo x >broken/tensorboard && mkdir broken/report.html
"$carousel" train --config tiny.textproto --run_dir broken --set train.steps=20 --set schedule.warmup_steps=2 \
  --set log.prometheus_path=/nonexistent/a.prom >log 2>&1 || fail "broken sinks end the run"
[ "$(grep -c 'tensorboard misses something' log)" -eq 1 ] || fail "not one warning about tensorboard"
[ "$(grep -c 'prometheus misses something' log)" -eq 1 ] || fail "not one warning about prometheus"
has log 'report.html'
[ "$(grep -c '^{"step"' broken/metrics.jsonl)" -eq 20 ] || fail "not 20 steps beside broken sinks"

skipped=""
python=${TENSORBOARD_PYTHON:-python3}
if "$python" -c 'import tensorboard' 2>/dev/null; then
  "$python" - run/tensorboard <<'PYTHON' || fail "TensorBoard's reader"
import sys
from tensorboard.backend.event_processing import event_accumulator
events = event_accumulator.EventAccumulator(sys.argv[1], size_guidance={"scalars": 0, "tensors": 0})
events.Reload()
tags = events.Tags()
loss = events.Scalars("loss/train")
assert [e.step for e in loss] == list(range(1, 121)), [e.step for e in loss]
assert [e.step for e in events.Scalars("loss/validation")] == list(range(20, 121, 20))
assert "gates_input/block_00_mean" in tags["scalars"], tags
text = events.Tensors("sample")
assert [e.step for e in text] == [40, 80, 120]
assert text[0].tensor_proto.string_val[0].decode("utf-8").startswith("    ")
assert events.SummaryMetadata("sample").plugin_data.plugin_name == "text"
assert "_hparams_/session_start_info" in events.summary_metadata
PYTHON
else
  skipped="$skipped; TensorBoard's reader: $python does not import tensorboard"
fi

browser=$(command -v chromium || command -v chromium-browser || command -v google-chrome || true)
if [ -n "$browser" ]; then
  shot() { # NAME SCHEME
    timeout 120 "$browser" --headless --no-sandbox --disable-gpu --disable-dev-shm-usage --user-data-dir="$work/profile" \
      --enable-logging=stderr --log-level=0 --hide-scrollbars --window-size=1280,1000 --screenshot="$work/$1.png" \
      "file://$work/run/report.html" >browser.log 2>&1 || return 1
    [ -s "$1.png" ]
  }
  if shot page; then
    if grep -E ':CONSOLE|Refused to|Uncaught' browser.log >console; then fail "the report's console: $(head -3 console)"; fi
    if command -v python3 >/dev/null; then
      python3 - page.png <<'PYTHON' || fail "the report's picture"
import struct, sys, zlib
data = open(sys.argv[1], "rb").read()
at, idat = 8, b""
while at < len(data):
    size, kind = struct.unpack(">I4s", data[at:at + 8])
    body = data[at + 8:at + 8 + size]
    if kind == b"IHDR": width, height, depth, color = struct.unpack(">IIBB", body[:10])
    if kind == b"IDAT": idat += body
    at += 12 + size
assert depth == 8 and color in (2, 6)
channels = 3 if color == 2 else 4
raw, stride, before, curves = zlib.decompress(idat), width * channels, bytearray(width * channels), {}
wanted = {"training": (0x2f, 0x6f, 0xde), "validation": (0xd9, 0x73, 0x0d), "norm": (0x8b, 0x4f, 0xd9)}
columns = {name: set() for name in wanted}
for y in range(height):
    kind, row = raw[y * (stride + 1)], bytearray(raw[y * (stride + 1) + 1:(y + 1) * (stride + 1)])
    for i in range(stride):
        left = row[i - channels] if i >= channels else 0
        up, corner = before[i], before[i - channels] if i >= channels else 0
        if kind == 1: row[i] = (row[i] + left) & 255
        elif kind == 2: row[i] = (row[i] + up) & 255
        elif kind == 3: row[i] = (row[i] + (left + up) // 2) & 255
        elif kind == 4:
            p = left + up - corner
            a, b, c = abs(p - left), abs(p - up), abs(p - corner)
            row[i] = (row[i] + (left if a <= b and a <= c else up if b <= c else corner)) & 255
    before = row
    for name, rgb in wanted.items():
        for x in range(width):
            o = x * channels
            if all(abs(row[o + k] - rgb[k]) < 24 for k in range(3)): columns[name].add(x)
# The curves go from left to right.
for name, found in columns.items():
    assert len(found) > width * (0.6 if name == "training" else 0.2), (name, len(found), width)
PYTHON
    else
      skipped="$skipped; the report's picture: no python3"
    fi
  else
    skipped="$skipped; the report in $browser: it made no picture here ($(tail -1 browser.log))"
  fi
else
  skipped="$skipped; the report in a browser: no chromium"
fi
echo "seeing_run_test: ok${skipped:+, left out${skipped}}"
