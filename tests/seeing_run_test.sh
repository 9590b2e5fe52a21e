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
status=0
"$carousel" train --run_dir run --profile steps:70-72 >log 2>&1 || status=$?
[ $status -eq 64 ] || fail "a profile of steps that are done: exit status $status"
has log 'choose later ones'
[ "$(grep -c '"start"' run/starts.jsonl)" -eq 2 ] || fail "a start that was refused is noted"

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

# pictures NAME SCHEME HTML: what Chromium draws of the page in this colour scheme (1: light, 0: dark), NAME.png, and for every
# chart of it, NAME.curves: "CHART:NAME OF THE CURVE WIDTH", the part of its drawing's columns that have pixels of the curve's
# colour. A page with the picture in a canvas counts them, beside a copy of the report that says where its curves are.
browse() { # LOG OPTION... PAGE
  timeout 120 "$browser" --headless --no-sandbox --disable-gpu --disable-dev-shm-usage --user-data-dir="$work/profile" \
    --enable-logging=stderr --log-level=0 --hide-scrollbars --force-device-scale-factor=1 --window-size=1280,1800 "${@:2}" 2>"$1"
}
pictures() {
  browse "$1.log" --blink-settings=preferredColorScheme="$2" --screenshot="$work/$1.png" "file://$work/$3" >/dev/null || return 1
  [ -s "$1.png" ] || return 1
  { # The copy may run one more script.
    sed 's/<meta http-equiv="Content-Security-Policy"[^>]*>//' "$3"
    printf '<img id="shot" hidden src="data:image/png;base64,%s"><script>' "$(base64 -w0 "$1.png")"
    cat <<'SCRIPT'
addEventListener('load', () => {
  const shot = document.getElementById('shot'), canvas = document.createElement('canvas'), lines = [];
  const width = canvas.width = shot.naturalWidth, height = canvas.height = shot.naturalHeight;
  const context = canvas.getContext('2d', {willReadFrequently: true});
  context.drawImage(shot, 0, 0);
  for (const svg of document.querySelectorAll('svg.chart')) {
    const box = svg.getBoundingClientRect(), scale = box.width / svg.viewBox.baseVal.width;
    if (box.bottom > height) continue;
    const [left, right] = svg.dataset.x.split(' ').slice(2).map(x => Math.round(box.left + scale * x));
    const [low, high] = svg.dataset.y.split(' ').slice(2).map(y => Math.round(box.top + scale * y));
    const pixels = context.getImageData(left, high - 2, right - left, low - high + 4).data;
    for (const path of svg.querySelectorAll('path.line')) {
      const color = getComputedStyle(path).stroke.match(/\d+/g).map(Number), columns = new Set();
      for (let i = 0; i < pixels.length; i += 4)
        if ([0, 1, 2].every(c => Math.abs(pixels[i + c] - color[c]) < 24)) columns.add(i / 4 % (right - left));
      lines.push('CURVE ' + svg.getAttribute('aria-label') + ':' + path.dataset.name + ' ' +
                 Math.round(100 * columns.size / (right - left)));
    }
  }
  document.body.textContent = 'PICTURE ' + width + ' ' + height + '\n' + lines.join('\n') + '\n';
});
SCRIPT
    echo '</script>'
  } >"$1.count.html"
  browse "$1.count.log" --blink-settings=preferredColorScheme="$2" --virtual-time-budget=20000 --dump-dom \
    "file://$work/$1.count.html" >"$1.dom" || return 1
  grep -aE '^(CURVE|.*PICTURE) ' "$1.dom" >"$1.curves"
}
quiet() { # LOG: nothing on the page's console, nothing refused
  if grep -aE ':CONSOLE|Refused to|Uncaught' "$1" >console; then fail "the report's console: $(sed -n 1,3p console)"; fi
}
curve() { # NAME "CHART:CURVE" PERCENT: it is seen in at least so many columns of its chart
  local seen
  seen=$(sed -n "s|^CURVE $2 \\([0-9]*\\)\$|\\1|p" "$1.curves")
  [ "${seen:-0}" -ge "$3" ] || fail "$1: \"$2\" is seen in ${seen:-no} % of its columns: $(cat "$1.curves")"
}

browser=$(command -v chromium || command -v chromium-browser || command -v google-chrome || true)
if [ -z "$browser" ]; then
  skipped="$skipped; the report in a browser: no chromium"
elif ! pictures light 1 run/report.html || ! pictures dark 0 run/report.html; then
  skipped="$skipped; the report in $browser: it made no picture here ($(cat light.log dark.log 2>/dev/null | tail -1))"
else
  for name in light dark; do
    quiet $name.log
    has $name.curves 'PICTURE 1280 1800'
    curve $name Loss:training 70
    curve $name Loss:validation 70
    curve $name 'Gradient norm:norm' 95
    curve $name 'Learning rate:rate' 95
    curve $name Throughput:tokens/s 95
    curve $name 'Memory of rank 0:MiB' 95
  done
  cmp -s light.png dark.png && fail "the dark picture is the light one"
  # The counting itself: it finds no curve where none is drawn.
  { cat run/report.html; echo '<style>path.line, path.faint, path.band, circle { opacity: 0 !important }</style>'; } >blind.html
  pictures blind 1 blind.html || fail "no picture without curves"
  [ "$(grep -c '^CURVE [^:]*:[^:]* 0$' blind.curves)" -eq "$(grep -c '^CURVE ' light.curves)" ] ||
    fail "curves in a picture that has none: $(cat blind.curves)"
fi
echo "seeing_run_test: ok${skipped:+, left out${skipped}}"
