#!/usr/bin/env python3
"""Times this project's cells and public kernels for the same cells side by side on one GPU.

Ours run through the program (`carousel bench cells`); the public ones in this process, when they can be imported:
mlstm_kernels, fla (flash-linear-attention: simple_gla), flashrnn. Protocol: kernel only, CUDA events, median of the
repeats after a warm-up with the allocator warm, inputs rotated over three sets, forward and backward apart, the best
chunk size of theirs. Beside the times stand errors against double on one short sequence with the same bf16 inputs: of
theirs computed here, of ours by `carousel verify` on a dump written here. Theirs is missing the gradient through the
normaliser (mlstm_kernels); so its gradients are also compared with that part left out.

Needs PyTorch with CUDA for anything but ours. Exits 77 if there is no GPU.
"""
import argparse
import importlib
import json
import os
import struct
import subprocess
import sys
import tempfile

# name -> heads, width of q and k, width of v; the shapes of the published measurements, and of a 1.4B model
MLSTM_SHAPES = {"A": (8, 256, 512), "B": (16, 128, 256), "C": (32, 128, 128), "D": (64, 64, 64), "E": (4, 256, 512)}
SLSTM_SHAPES = {"64": (64, 12), "128": (128, 8), "256": (256, 4), "512": (512, 4)}  # width of a head, heads
ERROR_TOKENS = 512
INPUT_SETS = 3


# ---- pure parts
def median(values):
    """Median; of an even number of values the mean of the middle ones."""
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def markdown_table(header, rows):
    """Rows of anything as a Markdown table; None is an empty cell, numbers get three significant digits."""

    def text(cell):
        if cell is None:
            return ""
        if isinstance(cell, float):
            return f"{cell:.3g}"
        return str(cell).replace("|", "/")

    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"a row of {len(row)} cells under {len(header)} columns")
        lines.append("| " + " | ".join(text(cell) for cell in row) + " |")
    return "\n".join(lines)


def parse_cells(output):
    """Milliseconds per call by op, of the table that `carousel bench cells` prints."""
    column, times = None, {}
    for line in output.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if "ms per call" in cells:
            column = cells.index("ms per call")
        elif column is not None and line.startswith("|") and not line.startswith("|--") and len(cells) > column:
            times[cells[0]] = float(cells[column])
    if not times:
        raise ValueError("there is no table with a column 'ms per call'")
    return times


def parse_verify(output):
    """Relative errors by tensor, of the last table that `carousel verify --dtype bf16` prints (bf16 against f64)."""
    errors, inside = {}, False
    for line in output.splitlines():
        if line.startswith("bf16 against f64"):
            errors, inside = {}, True
        elif inside and len(line.split()) >= 4 and line.split()[-1] in ("ok", "FAIL", "BAD", "no"):
            name, value = line[:20].strip(), line[20:].split()[0]
            errors[name.rstrip(" *")] = float(value)
    if not errors:
        raise ValueError("there is no table 'bf16 against f64'")
    return errors


def pack_safetensors(tensors, metadata):
    """A safetensors file of F64 tensors: name -> (shape, little-endian bytes)."""
    header, at = {"__metadata__": metadata}, 0
    for name, (shape, data) in tensors.items():
        count = 1
        for dim in shape:
            count *= dim
        if len(data) != 8 * count:
            raise ValueError(f"{name}: {len(data)} bytes for {count} numbers")
        header[name] = {"dtype": "F64", "shape": list(shape), "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(data for _, data in tensors.values())


def ratio(theirs, ours):
    return f"{theirs / ours:.2f}x" if theirs is not None and ours else None


# ---- the program
def run_program(arguments):
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stdout + done.stderr


def ours_times(options, heads, qk, v, slstm_head, slstm_tokens):
    status, output, everything = run_program(
        [options.carousel, "bench", "cells", "--device", f"cuda:{options.device}", "--batch", str(options.batch),
         "--tokens", str(options.tokens), "--heads", str(heads), "--qk", str(qk), "--v", str(v), "--repeats",
         str(options.repeats), "--slstm_head", str(slstm_head), "--slstm_batch", str(options.slstm_batch),
         "--slstm_tokens", str(slstm_tokens)])
    if status != 0:
        raise RuntimeError(f"carousel bench cells: {everything.strip()[-500:]}")
    return parse_cells(output)


def ours_errors(options, dump):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "cell.safetensors")
        with open(path, "wb") as file:
            file.write(dump)
        status, output, everything = run_program(
            [options.carousel, "verify", "--backend", options.backend, "--dtype", "bf16", path])
    try:
        return parse_verify(output), status == 0
    except ValueError as error:
        raise RuntimeError(f"carousel verify: {everything.strip()[-500:]}") from error


# ---- double
def mlstm_inputs(torch, shape, tokens, device, seed, batch=1):
    """q, k, v, i, f, dh, normal, as (batch, heads, tokens, width), rounded to bf16, in double."""
    heads, qk, v = shape
    generator = torch.Generator().manual_seed(seed)
    sizes = [(batch, heads, tokens, width) for width in (qk, qk, v)] + [(batch, heads, tokens)] * 2
    sizes.append((batch, heads, tokens, v))
    return [torch.randn(s, generator=generator).to(torch.bfloat16).double().to(device) for s in sizes]


def mlstm_double(torch, inputs, gate="exp", normalizer="full"):
    """h and the gradients of q, k, v, i, f, and the last state, of the quadratic form in double. gate: exp with the
    normaliser, sigmoid without it. normalizer: full, or frozen: held constant by the gradient."""
    q, k, v, i, f = [x.clone().requires_grad_(True) for x in inputs[:5]]
    dh, width, tokens = inputs[5], q.shape[-1], q.shape[-2]
    decay = torch.cumsum(torch.nn.functional.logsigmoid(f), -1)
    gates = i if gate == "exp" else torch.nn.functional.logsigmoid(i)
    log_weight = decay[..., :, None] - decay[..., None, :] + gates[..., None, :]
    seen = torch.ones(tokens, tokens, dtype=torch.bool, device=q.device).tril()
    log_weight = log_weight.masked_fill(~seen, float("-inf"))
    # any constant per row cancels
    m = log_weight.max(-1, keepdim=True).values.detach() if gate == "exp" else 0.0
    weights = torch.exp(log_weight - m) * (q @ k.transpose(-1, -2)) * width**-0.5
    h = weights @ v
    if gate == "exp":
        n = torch.maximum(weights.sum(-1, keepdim=True).abs(), torch.exp(-m))
        h = h / (n.detach() if normalizer == "frozen" else n)
    (h * dh).sum().backward()
    with torch.no_grad():
        last = log_weight[..., -1, :] - (m[..., -1, :] if gate == "exp" else 0.0)
        kept = torch.exp(last)[..., None] * k
        result = {"h": h.detach(), "c_last": kept.transpose(-1, -2) @ v, "n_last": kept.sum(-2), "m_last": None,
                  "loss": (h * dh).sum().reshape(1)}
        if gate == "exp":
            result["m_last"] = m[..., -1, :]
    for name, x in zip("qkvif", (q, k, v, i, f)):
        result["grad." + name] = x.grad
    return result


def mlstm_dump(inputs, result, shape):
    """What `carousel verify` reads."""
    tensors = dict(zip(("q", "k", "v", "i", "f", "dh"), inputs))
    tensors.update(result)
    packed = {name: (tuple(x.shape), x.detach().cpu().contiguous().numpy().astype("<f8").tobytes())
              for name, x in tensors.items()}
    heads, qk, v = shape
    return pack_safetensors(packed, {"cell": "mlstm", "input_gate": "exp", "eps": "0", "chunk": "64",
                                     "shape": str((1, heads, inputs[0].shape[2], qk, v)), "qk_scale": "q/sqrt(dk)"})


def slstm_double(torch, wx, recurrent, bias):
    """y (batch, tokens, heads, width) of wx (batch, tokens, 4, heads, width), gates in the order i, f, z, o;
    recurrent (4, heads, width, width) is symmetric: whichever way round a kernel keeps it."""
    batch, tokens, _, heads, width = wx.shape
    y = torch.zeros(batch, heads, width, dtype=wx.dtype, device=wx.device)
    c, n, m = torch.zeros_like(y), torch.zeros_like(y), torch.zeros_like(y)
    outputs = []
    for t in range(tokens):
        i, f, z, o = (wx[:, t] + bias + torch.einsum("ghij,bhj->bghi", recurrent, y)).unbind(1)
        log_f = torch.nn.functional.logsigmoid(f) + m
        m_next = torch.where(n == 0, i, torch.maximum(log_f, i))
        keep, take = torch.exp(log_f - m_next), torch.exp(i - m_next)
        c, n, m = keep * c + take * torch.tanh(z), keep * n + take, m_next
        y = torch.sigmoid(o) * c / n
        outputs.append(y)
    return torch.stack(outputs, 1)


def relative_error(x, expected):
    return float((x.double() - expected).norm() / expected.norm())


# ---- public kernels
class Skip(Exception):
    """Why something is not measured."""


def load(module, name):
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # what an import of others may raise
        raise Skip(f"{module}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}") from error


def time_calls(torch, calls, warmup, repeats):
    """Median milliseconds of one call, going round the calls (one per input set)."""
    for index in range(max(warmup, len(calls))):
        calls[index % len(calls)]()
    torch.cuda.synchronize()
    flush = torch.empty(128 << 20, dtype=torch.uint8, device="cuda")  # more than the second-level cache
    times = []
    for index in range(repeats):
        flush.zero_()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        calls[index % len(calls)]()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return median(times)


def mlstm_kernels_pair():
    forward = load("mlstm_kernels.torch.chunkwise.triton_xl_chunk.fw", "mlstm_chunkwise_fw")
    backward = load("mlstm_kernels.torch.chunkwise.triton_xl_chunk.bw", "mlstm_chunkwise_bw")

    def run_forward(torch, x, chunk):
        h, n, m, _, _ = forward(*x[:5], chunk_size=chunk, output_dtype=torch.bfloat16, eps=1e-6)
        return h, (n, m)

    def run_backward(_, x, saved, chunk):
        return backward(*x[:5], vecN_out=saved[0], vecM_out=saved[1], matDeltaH_out=x[5], chunk_size=chunk, eps=1e-6)

    return run_forward, run_backward, (64, 128, 256)


def measure_mlstm_kernels(torch, options, shape):
    forward, backward, chunks = mlstm_kernels_pair()
    sets = []
    for index in range(INPUT_SETS):
        x = mlstm_inputs(torch, shape, options.tokens, "cuda", 100 + index, options.batch)
        sets.append([y.to(torch.bfloat16) for y in x])
    best, notes = {}, []
    for chunk in chunks:
        try:
            fw = time_calls(torch, [lambda x=x: forward(torch, x, chunk) for x in sets], options.warmup, options.repeats)
            saved = [forward(torch, x, chunk)[1] for x in sets]
            bw = time_calls(torch, [lambda x=x, s=s: backward(torch, x, s, chunk) for x, s in zip(sets, saved)],
                            options.warmup, options.repeats)
        except Exception as error:  # a chunk size may not fit
            notes.append(f"chunk {chunk}: {type(error).__name__}")
            continue
        if "forward" not in best or fw + bw < best["forward"] + best["backward"]:
            best = {"forward": fw, "backward": bw, "chunk": chunk}
    if not best:
        raise Skip("; ".join(notes))
    x = mlstm_inputs(torch, (1,) + shape[1:], ERROR_TOKENS, "cuda", 7)
    narrow = [y.to(torch.bfloat16) for y in x]
    h, saved = forward(torch, narrow, best["chunk"])
    gradients = backward(torch, narrow, saved, best["chunk"])
    for kind in ("full", "frozen"):
        expected = mlstm_double(torch, x, normalizer=kind)
        best["h"] = relative_error(h, expected["h"])
        best[kind] = max(relative_error(g, expected["grad." + name]) for name, g in zip("qkv", gradients[:3]))
    return best


def measure_simple_gla(torch, options, shape):
    kernel = load("fla.ops.simple_gla", "chunk_simple_gla")

    def prepared(x):  # (batch, tokens, heads, width); k carries the sigmoid input gate
        q, k, v = (y.to(torch.bfloat16).transpose(1, 2).contiguous() for y in x[:3])
        k = k * torch.sigmoid(x[3].float()).transpose(1, 2)[..., None].to(k.dtype)
        g = torch.nn.functional.logsigmoid(x[4].float()).transpose(1, 2).contiguous()
        return [y.requires_grad_(True) for y in (q, k, v, g)]

    def run(p, dh):
        o = kernel(p[0], p[1], p[2], g=p[3])
        o = o[0] if isinstance(o, tuple) else o
        return o, lambda: torch.autograd.grad(o, p, dh, retain_graph=True)

    sets, gradients_out = [], []
    for index in range(INPUT_SETS):
        x = mlstm_inputs(torch, shape, options.tokens, "cuda", 100 + index, options.batch)
        sets.append(prepared(x))
        gradients_out.append(x[5].to(torch.bfloat16).transpose(1, 2).contiguous())
    best = {"chunk": 64}  # the kernel has its own
    best["forward"] = time_calls(torch, [lambda p=p, d=d: run(p, d)[0] for p, d in zip(sets, gradients_out)],
                                 options.warmup, options.repeats)
    backward = [run(p, d)[1] for p, d in zip(sets, gradients_out)]
    best["backward"] = time_calls(torch, backward, options.warmup, options.repeats)
    x = mlstm_inputs(torch, (1,) + shape[1:], ERROR_TOKENS, "cuda", 7)
    expected = mlstm_double(torch, x, gate="sigmoid")
    p = prepared(x)
    o, gradient = run(p, x[5].to(torch.bfloat16).transpose(1, 2).contiguous())
    dq, dk, dv, _ = gradient()
    best["h"] = relative_error(o.transpose(1, 2), expected["h"])
    scale = torch.sigmoid(x[3])[..., None]
    best["full"] = max(relative_error(dq.transpose(1, 2), expected["grad.q"]),
                       relative_error(dk.transpose(1, 2).double() * scale, expected["grad.k"]),
                       relative_error(dv.transpose(1, 2), expected["grad.v"]))
    return best


def measure_flashrnn(torch, options, width, heads, tokens):
    kernel = load("flashrnn", "flashrnn")
    best = {}

    def inputs(count, seed):
        generator = torch.Generator().manual_seed(seed)
        wx = torch.randn((options.slstm_batch, count, 4, heads, width), generator=generator)
        recurrent = torch.randn((4, heads, width, width), generator=generator) * (0.3 * width**-0.5)
        recurrent = recurrent + recurrent.transpose(-1, -2)
        bias = torch.randn((4, heads, width), generator=generator) * 0.1
        return [x.to(torch.bfloat16).cuda() for x in (wx, recurrent, bias)]

    for backend in ("cuda_fused", "cuda"):
        try:
            def run(x):
                return kernel(*x, function="slstm", backend=backend, dtype="bfloat16")[0][0]

            sets = [[y.requires_grad_(True) for y in inputs(tokens, 100 + index)] for index in range(INPUT_SETS)]
            forward = time_calls(torch, [lambda x=x: run(x) for x in sets], options.warmup, options.repeats)
            outputs = [run(x) for x in sets]
            gradients = [torch.randn_like(y) for y in outputs]
            backward = time_calls(
                torch, [lambda y=y, x=x, g=g: torch.autograd.grad(y, x, g, retain_graph=True)
                        for y, x, g in zip(outputs, sets, gradients)], options.warmup, options.repeats)
            short = inputs(64, 7)
            expected = slstm_double(torch, *[y.double() for y in short])
            y = run(short).reshape(expected.shape)
        except Exception as error:  # a backend may not build for the shape
            best.setdefault("notes", []).append(f"{backend}: {type(error).__name__}")
            continue
        if "forward" not in best or forward + backward < best["forward"] + best["backward"]:
            best.update(forward=forward, backward=backward, chunk=backend, h=relative_error(y, expected))
    if "forward" not in best:
        raise Skip("; ".join(best["notes"]))
    return best


# ---- the tables
def compare_mlstm(torch, options):
    rows, skipped = [], {}
    for name in options.shapes:
        shape = MLSTM_SHAPES[name]
        title = f"{name}: {shape[0]} heads of {shape[1]}/{shape[2]}"
        ours = ours_times(options, *shape, slstm_head=64, slstm_tokens=8)
        forward, backward = ours["mlstm forward"], ours["mlstm backward"]
        errors, note = {}, None
        if torch is not None:
            one = (1,) + shape[1:]
            x = mlstm_inputs(torch, one, ERROR_TOKENS, "cuda", 7)
            errors, passed = ours_errors(options, mlstm_dump(x, mlstm_double(torch, x), one))
            note = None if passed else "carousel verify FAILED"
        gradient = max((errors[g] for g in ("grad.q", "grad.k", "grad.v") if g in errors), default=None)
        rows.append([title, "carousel", note, forward, backward, errors.get("h"), gradient, None, None])
        for label, measure in (("mlstm_kernels", measure_mlstm_kernels), ("simple_gla", measure_simple_gla)):
            if label in options.leave_out:
                continue
            try:
                if torch is None:
                    raise Skip("PyTorch with CUDA is not installed")
                best = measure(torch, options, shape)
            except Skip as reason:
                skipped[label] = str(reason)
                continue
            except Exception as error:  # of one public kernel: the others still count
                skipped[f"{label}, {title}"] = f"{type(error).__name__}: {error}"
                continue
            rows.append([title, label, f"chunk {best['chunk']}", best["forward"], best["backward"], best["h"],
                         best["full"], best.get("frozen"),
                         ratio(best["forward"] + best["backward"], forward + backward)])
    header = ["shape", "kernel", "", "forward ms", "backward ms", "error of h", "largest error of dq, dk, dv",
              "the same, normaliser held", "time / ours"]
    return markdown_table(header, rows), skipped


def compare_slstm(torch, options):
    rows, skipped = [], {}
    for name in options.slstm:
        width, heads = SLSTM_SHAPES[name]
        for tokens in options.slstm_tokens:
            title = f"{heads} heads of {width}, {options.slstm_batch} x {tokens}"
            small = argparse.Namespace(**{**vars(options), "batch": 1, "tokens": 64})
            ours = ours_times(small, heads, 64, 64, slstm_head=width, slstm_tokens=tokens)
            forward, backward = ours["slstm forward"], ours["slstm backward"]
            rows.append([title, "carousel", None, forward * 1e3 / tokens, backward * 1e3 / tokens, None, None])
            if "flashrnn" in options.leave_out:
                continue
            try:
                if torch is None:
                    raise Skip("PyTorch with CUDA is not installed")
                best = measure_flashrnn(torch, options, width, heads, tokens)
            except Skip as reason:
                skipped["flashrnn"] = str(reason)
                continue
            rows.append([title, "flashrnn", best["chunk"], best["forward"] * 1e3 / tokens,
                         best["backward"] * 1e3 / tokens, best["h"],
                         ratio(best["forward"] + best["backward"], forward + backward)])
    header = ["shape", "kernel", "", "forward us per step", "backward us per step", "error of y", "time / ours"]
    return markdown_table(header, rows), skipped


def positive(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def choices(known):
    def parse(text):
        chosen = [part for part in text.split(",") if part]
        for part in chosen:
            if part not in known:
                raise argparse.ArgumentTypeError(f"'{part}' is none of {', '.join(known)}")
        return chosen

    return parse


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--carousel", required=True, help="the program, built with CUDA")
    parser.add_argument("--device", type=int, default=0, help="the GPU's number (0)")
    parser.add_argument("--shapes", type=choices(MLSTM_SHAPES), default=list(MLSTM_SHAPES),
                        help="mLSTM shapes, of " + ", ".join(f"{k} = {v}" for k, v in MLSTM_SHAPES.items()))
    parser.add_argument("--slstm", type=choices(SLSTM_SHAPES), default=list(SLSTM_SHAPES),
                        help="widths of sLSTM heads, of " + ", ".join(SLSTM_SHAPES))
    parser.add_argument("--batch", type=positive, default=8, help="sequences of the mLSTM (8)")
    parser.add_argument("--tokens", type=positive, default=8192, help="tokens of a sequence of the mLSTM (8192)")
    parser.add_argument("--slstm_batch", type=positive, default=16, help="sequences of the sLSTM (16)")
    parser.add_argument("--slstm_tokens", type=lambda text: [positive(part) for part in text.split(",")],
                        default=[1024, 8192], help="tokens of a sequence of the sLSTM (1024,8192)")
    parser.add_argument("--warmup", type=positive, default=10, help="calls before those that count (10)")
    parser.add_argument("--repeats", type=positive, default=30, help="calls of which the median counts (30)")
    parser.add_argument("--leave_out", type=choices(("mlstm_kernels", "simple_gla", "flashrnn")), default=[],
                        help="public kernels not to measure")
    options = parser.parse_args(arguments)
    if options.device < 0:
        parser.error(f"argument --device: {options.device} is not the number of a GPU")
    if not os.access(options.carousel, os.X_OK) or os.path.isdir(options.carousel):
        parser.error(f"argument --carousel: {options.carousel} is not a program")
    options.backend = f"cuda:{options.device}"
    return options


def main(arguments):
    options = parse_arguments(arguments)
    try:
        import torch
        torch = torch if torch.cuda.is_available() and options.device < torch.cuda.device_count() else None
    except ImportError:
        torch = None
    if torch is not None:
        torch.cuda.set_device(options.device)
    elif not os.path.exists("/dev/nvidiactl"):
        print("there is no GPU here: nothing is measured", file=sys.stderr)
        return 77
    skipped = {}
    for title, compare, chosen in (("mLSTM, bf16", compare_mlstm, options.shapes),
                                   ("sLSTM, bf16", compare_slstm, options.slstm)):
        if not chosen:
            continue
        table, reasons = compare(torch, options)
        skipped.update(reasons)
        print(f"## {title}\n\n{table}\n", flush=True)
    for name, reason in skipped.items():
        print(f"Not measured: {name}: {reason}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
