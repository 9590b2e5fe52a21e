"""Exchange with the real Python package xlstm (xLSTMLMModel), both ways. Run by xlstm_package_test.sh.

Models with random weights that the package makes are imported in both layouts of the sLSTM weights, compared by their
logits, exported and loaded by the package again. Then a model that was trained here is exported and loaded as the
README.md beside it says.
"""

import argparse
import dataclasses
import json
import os
import re
import subprocess

import dacite
import safetensors.torch
import torch
import xlstm
from xlstm.blocks.slstm.cell import sLSTMCell_cuda

TEXT = "It is a truth universally acknowledged, that a single man in possession of a good fortune. " * 4
LENGTHS = (0, 1, 5, 63, 64, 200)
LOGIT_TOLERANCE = 1e-4  # f32 on both sides
KERNEL, BIAS = "._recurrent_kernel_", "._bias_"

MODELS = {
    "mixed": dict(
        mlstm_block={"mlstm": {"num_heads": 2}},
        slstm_block={"slstm": {"num_heads": 4}},
        num_blocks=3, embedding_dim=64, slstm_at=[1]),
    "mlstm_tied": dict(
        mlstm_block={"mlstm": {"num_heads": 4, "qkv_proj_blocksize": 16, "conv1d_kernel_size": 3}},
        num_blocks=2, embedding_dim=48, tie_weights=True, add_post_blocks_norm=False),
    "slstm_all": dict(
        slstm_block={"slstm": {"num_heads": 1}, "feedforward": {"proj_factor": 2.0, "bias": True}},
        num_blocks=2, embedding_dim=32, slstm_at="all"),
    "no_conv": dict(
        slstm_block={"slstm": {"num_heads": 2, "conv1d_kernel_size": 0, "group_norm_weight": False},
                     "feedforward": None},
        num_blocks=3, embedding_dim=40),
    "biases": dict(
        mlstm_block={"mlstm": {"num_heads": 1, "qkv_proj_blocksize": 8, "proj_factor": 1.4,
                               "round_proj_up_to_multiple_of": 8}},
        slstm_block={"slstm": {"num_heads": 8, "conv1d_kernel_size": 6, "bias_init": "small_init"},
                     "feedforward": {"round_proj_up_dim_up": False, "round_proj_up_to_multiple_of": 16}},
        num_blocks=4, embedding_dim=80, slstm_at=[0, -1], bias=True, dropout=0.1, add_embedding_dropout=True,
        weight_decay_on_embedding=True),
}


def check(condition, what):
    if not condition:
        raise AssertionError(what)


class Carousel:
    """The program under test, in a scratch directory."""

    def __init__(self, program, work):
        self.program = program
        self.work = work

    def path(self, name):
        return os.path.join(self.work, name)

    def run(self, *args, stdin=None, fails=False):
        done = subprocess.run([self.program, *args], input=stdin, capture_output=True, check=False)
        check((done.returncode != 0) == fails, f"carousel {' '.join(args)} exits {done.returncode}\n{done.stderr.decode()}")
        return done.stderr.decode() if fails else done.stdout

    def logits(self, model, text):
        """(input ids, logits of every token) of a prompt."""
        file = self.path("logits.safetensors")
        if os.path.exists(file):
            os.remove(file)
        self.run("generate", "--model", model, "--prompt", "-", "--max_tokens", "0", "--prompt_logits", file,
                 stdin=text.encode())
        tensors = safetensors.torch.load_file(file)
        return tensors["input_ids"].long(), tensors["logits"]


def build(settings):
    """A model of the package with the given settings, random in every parameter."""
    settings = dict(settings, vocab_size=320, context_length=256)
    if "slstm_block" in settings:
        settings["slstm_block"] = dict(settings["slstm_block"])
        settings["slstm_block"]["slstm"] = dict(settings["slstm_block"]["slstm"], backend="vanilla")
    model = xlstm.xLSTMLMModel(dacite.from_dict(xlstm.xLSTMLMModelConfig, settings))
    model.reset_parameters()
    with torch.no_grad():  # also what is initialised to zeros or ones
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.2 if parameter.dim() == 1 else 0.1))
    return model.eval()


def cells(model):
    return {name: module for name, module in model.named_modules() if name.endswith(".slstm_cell")}


def to_cuda_layout(model, state):
    """The state dict as the backend cuda of the package stores it, by the package's own conversions."""
    state = dict(state)
    for name, cell in cells(model).items():
        cuda = sLSTMCell_cuda(cell.config, skip_backend_init=True)
        kernel, bias = name + KERNEL, name + BIAS
        state[kernel] = cuda._recurrent_kernel_ext2int(cell._recurrent_kernel_int2ext(state[kernel])).contiguous()
        state[bias] = cuda._bias_ext2int(cell._bias_int2ext(state[bias])).contiguous()
    return state


def load(directory):
    """Loads an exported directory; the layout must be that of the backend that its config names."""
    with open(os.path.join(directory, "config.json"), encoding="utf-8") as file:
        config = dacite.from_dict(xlstm.xLSTMLMModelConfig, json.load(file))
    model = xlstm.xLSTMLMModel(config)
    model.load_state_dict(safetensors.torch.load_file(os.path.join(directory, "model.safetensors")), strict=True)
    return model.eval()


def compare_logits(carousel, source, model, what):
    worst = 0.0
    for length in LENGTHS:
        ids, ours = carousel.logits(source, TEXT[:length])
        with torch.no_grad():
            theirs = model(ids[None])[0]
        check(ours.shape == theirs.shape, f"{what}: shapes {ours.shape} and {theirs.shape}")
        worst = max(worst, (ours - theirs).abs().max().item())
    check(worst <= LOGIT_TOLERANCE, f"{what}: max |delta logit| = {worst}")
    print(f"{what}: max |delta logit| = {worst:.2g}")


def compare_states(expected, actual, what):
    check(list(expected) == list(actual) or set(expected) == set(actual), f"{what}: other names")
    for name, value in expected.items():
        check(torch.equal(value, actual[name]), f"{what}: {name} changed on its way")


def random_model(carousel, name, settings):
    torch.manual_seed(len(name))
    model = build(settings)
    vanilla = {key: value.clone() for key, value in model.state_dict().items()}
    stored = {"vanilla": vanilla, "cuda": to_cuda_layout(model, vanilla)}
    for backend in ("vanilla", "cuda") if cells(model) else ("vanilla",):
        source, run = carousel.path(f"{name}_{backend}"), carousel.path(f"{name}_{backend}_run")
        os.mkdir(source)
        with open(os.path.join(source, "config.json"), "w", encoding="utf-8") as file:
            json.dump(dataclasses.asdict(model.config), file)
        state = dict(stored[backend])
        if settings.get("tie_weights"):
            del state["lm_head.weight"]
        safetensors.torch.save_file(state, os.path.join(source, "model.safetensors"))
        carousel.run("import", "--model", source, "--out", run, "--set", "data.tokenizer=BYTES")
        carousel.run("checkpoint", "verify", run)
        compare_logits(carousel, run, model, f"{name} from {backend}")
        for target in ("vanilla", "cuda"):
            exported = carousel.path(f"{name}_{backend}_{target}")
            carousel.run("export", "--format", "xlstm", "--slstm_backend", target, "--model", run, "--out", exported)
            file = os.path.join(exported, "model.safetensors")
            compare_states(stored[target], safetensors.torch.load_file(file), f"{name} to {target}")
            if cells(model):
                with safetensors.safe_open(file, framework="pt") as opened:
                    check(opened.metadata()["slstm_backend"] == target, f"{name}: metadata {opened.metadata()}")
        again = load(carousel.path(f"{name}_{backend}_vanilla"))
        ids = torch.randint(320, (2, 50))
        with torch.no_grad():
            check(torch.equal(again(ids), model(ids)), f"{name}: the package computes something else after a round trip")
    print(f"{name}: both layouts round-trip bit for bit")


def trained_model(carousel):
    with open(carousel.path("text.txt"), "w", encoding="utf-8") as file:
        file.write(TEXT * 60)
    with open(carousel.path("run.textproto"), "w", encoding="utf-8") as file:
        file.write(f"""model {{ family: XLSTM_PAPER embedding_dim: 64 num_blocks: 2 num_heads: 2 slstm_at: 1 }}
            data {{ train {{ path: "{carousel.path('tokens')}" }} sequence_length: 128 }}
            schedule {{ peak_lr: 3e-3 }} train {{ steps: 20 global_batch: 4 compute: F32 }}""")
    carousel.run("data", "build", "--input", carousel.path("text.txt"), "--output", carousel.path("tokens"))
    carousel.run("train", "--config", carousel.path("run.textproto"), "--run_dir", carousel.path("run"))
    exported = carousel.path("exported")
    carousel.run("export", "--model", carousel.path("run"), "--out", exported)
    with open(os.path.join(exported, "README.md"), encoding="utf-8") as file:
        snippet = re.search(r"```python\n(.*?)```", file.read(), re.DOTALL).group(1)
    os.chdir(carousel.work)
    names = {}
    exec(snippet, names)  # pylint: disable=exec-used
    model = names["model"]
    check(model.config.context_length == 128, "context_length is not data.sequence_length")
    ids, ours = carousel.logits(exported, "It is a truth")
    check(ids.tolist() == [256] + list(b"It is a truth"), f"input ids {ids.tolist()}")
    worst = (names["logits"][0] - ours).abs().max().item()
    check(worst <= LOGIT_TOLERANCE, f"the snippet of the README: max |delta logit| = {worst}")
    print(f"the snippet of the README: max |delta logit| = {worst:.2g}")

    ids = [256] + list(b"It is a")
    for _ in range(30):
        with torch.no_grad():
            ids.append(model(torch.tensor([ids]))[0, -1].argmax().item())
    text = carousel.run("generate", "--model", exported, "--prompt", "It is a", "--temperature", "0", "--max_tokens",
                        "30", "--no_echo")
    check(text.rstrip(b"\n") == bytes(ids[8:]).rstrip(b"\n"), f"greedy: ours {text!r}, the package {bytes(ids[8:])!r}")
    print("greedy continuations are equal")
    error = carousel.run("export", "--format", "hf", "--model", carousel.path("run"), "--out", carousel.path("hf"), fails=True)
    check("XLSTM_PAPER" in error, f"no word of the family: {error}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--carousel", required=True)
    parser.add_argument("--work", required=True)
    args = parser.parse_args()
    torch.set_num_threads(2)
    print(f"torch {torch.__version__}, safetensors {safetensors.__version__}")
    carousel = Carousel(args.carousel, args.work)
    for name, settings in MODELS.items():
        random_model(carousel, name, settings)
    trained_model(carousel)
    print("ok")


if __name__ == "__main__":
    main()
