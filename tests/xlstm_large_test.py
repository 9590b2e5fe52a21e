"""Exchange with the real xLSTMLarge of the Python package xlstm, both ways. Run by xlstm_large_test.sh.

Directories that the package's own classes describe (config.yaml by OmegaConf, weights in one file or several) are read,
compared by their logits, imported, exported and loaded again by load_from_pretrained. Then a model that was trained here
is exported and loaded as the README.md beside it says.
"""

import argparse
import dataclasses
import glob
import os
import re
import subprocess

import omegaconf
import safetensors.torch
import torch
from xlstm.xlstm_large.from_pretrained import load_from_pretrained
from xlstm.xlstm_large.model import xLSTMLarge, xLSTMLargeConfig
from xlstm.xlstm_large.utils import convert_single_weights_to_fused_weights

TEXT = "It is a truth universally acknowledged, that a single man in possession of a good fortune. " * 4
LENGTHS = (0, 1, 5, 63, 64, 200)
LOGIT_TOLERANCE = 1e-4  # f32 on both sides
VOCABULARY = 320

NATIVE = dict(chunkwise_kernel="chunkwise--native_autograd", sequence_kernel="native_sequence__native",
              step_kernel="native", mode="inference", return_last_states=True, vocab_size=VOCABULARY)
MODELS = {
    "published": dict(embedding_dim=128, num_heads=4, num_blocks=2),
    "biases": dict(embedding_dim=64, num_heads=2, num_blocks=2, use_bias=True, norm_eps=1e-5, eps=1e-7,
                   ffn_proj_factor=2.0),
    "widths": dict(embedding_dim=48, num_heads=3, num_blocks=3, qk_dim_factor=0.25, v_dim_factor=0.75,
                   ffn_round_up_to_multiple_of=8, gate_soft_cap=7.5, output_logit_soft_cap=11.0),
    "bare": dict(embedding_dim=40, num_heads=1, num_blocks=1, add_out_norm=False, gate_soft_cap=None,
                 output_logit_soft_cap=None, chunkwise_kernel="chunkwise--native_custbw"),
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


def load_state(directory):
    return {key: value for file in glob.glob(os.path.join(directory, "*.safetensors"))
            for key, value in safetensors.torch.load_file(file).items()}


def compare_logits(carousel, source, model, what):
    worst = 0.0
    for length in LENGTHS:
        ids, ours = carousel.logits(source, TEXT[:length])
        with torch.no_grad():
            theirs = model(ids[None])[0][0]
        check(ours.shape == theirs.shape, f"{what}: shapes {ours.shape} and {theirs.shape}")
        worst = max(worst, (ours - theirs).abs().max().item())
    check(worst <= LOGIT_TOLERANCE, f"{what}: max |delta logit| = {worst}")
    print(f"{what}: max |delta logit| = {worst:.2g}")


def write(directory, config, state, num_files):
    """As the package's loader expects it: config.yaml, and model.safetensors or model_0.safetensors and so on."""
    os.mkdir(directory)
    omegaconf.OmegaConf.save(omegaconf.OmegaConf.create(config), os.path.join(directory, "config.yaml"))
    state = {key: value.contiguous() for key, value in state.items()}
    if num_files == 1:
        safetensors.torch.save_file(state, os.path.join(directory, "model.safetensors"))
        return
    names = sorted(state)
    for n in range(num_files):
        part = {name: state[name] for name in names[n::num_files]}
        safetensors.torch.save_file(part, os.path.join(directory, f"model_{n}.safetensors"))


def random_model(carousel, name, settings):
    torch.manual_seed(len(name))
    config = dataclasses.asdict(xLSTMLargeConfig(**{**NATIVE, **settings}))
    model = xLSTMLarge(xLSTMLargeConfig(**config)).eval()
    with torch.no_grad():  # also what is initialised to zeros or ones
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.2 if parameter.dim() == 1 else 0.1))
    state = {key: value.clone() for key, value in model.state_dict().items()}

    for num_files in (1, 3):
        source, run = carousel.path(f"{name}_{num_files}"), carousel.path(f"{name}_{num_files}_run")
        write(source, config, state, num_files)
        carousel.run("import", "--model", source, "--out", run, "--set", "data.tokenizer=BYTES")
        carousel.run("checkpoint", "verify", run)
        compare_logits(carousel, run, model, f"{name} from {num_files} files")
        for max_shard_bytes in ("5e9", "100000"):
            exported = carousel.path(f"{name}_{num_files}_{max_shard_bytes}")
            carousel.run("export", "--format", "nxai", "--model", run, "--out", exported, "--max_shard_bytes",
                         max_shard_bytes)
            again = load_from_pretrained(exported).eval()
            there = load_state(exported)
            check(set(there) == set(state), f"{name}: other names")
            for key, value in state.items():
                check(torch.equal(value, there[key]), f"{name}: {key} changed on its way")
            model.load_state_dict(there, strict=True)
            for field in ("norm_eps", "eps", "gate_soft_cap", "output_logit_soft_cap", "use_bias", "add_out_norm"):
                ours, theirs = getattr(again.config, field), config[field]
                check(ours == theirs and type(ours) is type(theirs), f"{name}: {field} is {ours!r}, was {theirs!r}")
            ids = torch.randint(VOCABULARY, (2, 150))
            with torch.no_grad():
                check(torch.equal(again(ids)[0], model(ids)[0]),
                      f"{name}: the package computes something else after a round trip")

    fused = carousel.path(f"{name}_fused")
    write(fused, dict(config, weight_mode="fused"), convert_single_weights_to_fused_weights(dict(state)), 2)
    carousel.run("import", "--model", fused, "--out", fused + "_run", "--set", "data.tokenizer=BYTES")
    compare_logits(carousel, fused + "_run", model, f"{name} from fused weights")


def bad_directories(carousel):
    """Errors name the file and everything that is wrong."""
    config = dataclasses.asdict(xLSTMLargeConfig(**{**NATIVE, **MODELS["published"]}))
    state = xLSTMLarge(xLSTMLargeConfig(**config)).state_dict()
    state["lm_head.wait"] = state.pop("lm_head.weight")
    state["backbone.out_norm.weight"] = torch.ones(3)
    bad = carousel.path("bad_tensors")
    write(bad, config, state, 1)
    error = carousel.run("generate", "--model", bad, fails=True)
    for text in (bad, "lm_head.weight", "lm_head.wait", "backbone.out_norm.weight"):
        check(text in error, f"no word of {text}: {error}")
    bad = carousel.path("bad_config")
    write(bad, dict(config, slstm_at=[1], num_heads="four"), state, 1)
    error = carousel.run("import", "--model", bad, "--out", carousel.path("nothing"), fails=True)
    for text in ("config.yaml", "slstm_at", "num_heads"):
        check(text in error, f"no word of {text}: {error}")
    check(not os.path.exists(carousel.path("nothing")), "a failed import left something behind")


def trained_model(carousel):
    with open(carousel.path("text.txt"), "w", encoding="utf-8") as file:
        file.write(TEXT * 60)
    with open(carousel.path("run.textproto"), "w", encoding="utf-8") as file:
        file.write(f"""model {{ embedding_dim: 128 num_blocks: 2 num_heads: 2 }}
            data {{ train {{ path: "{carousel.path('tokens')}" }} sequence_length: 128 }}
            schedule {{ peak_lr: 3e-3 }} train {{ steps: 20 global_batch: 4 compute: F32 }}""")
    carousel.run("data", "build", "--input", carousel.path("text.txt"), "--output", carousel.path("tokens"))
    carousel.run("train", "--config", carousel.path("run.textproto"), "--run_dir", carousel.path("run"))
    exported = carousel.path("exported")
    carousel.run("export", "--format", "nxai", "--model", carousel.path("run"), "--out", exported)
    with open(os.path.join(exported, "README.md"), encoding="utf-8") as file:
        snippet = re.search(r"```python\n(.*?)```", file.read(), re.DOTALL).group(1)
    os.chdir(carousel.work)
    names = {}
    exec(snippet, names)  # pylint: disable=exec-used
    ids, ours = carousel.logits(exported, "It is a truth")
    check(ids.tolist() == [256] + list(b"It is a truth"), f"input ids {ids.tolist()}")
    worst = (names["logits"][0] - ours).abs().max().item()
    check(worst <= LOGIT_TOLERANCE, f"the snippet of the README: max |delta logit| = {worst}")
    print(f"the snippet of the README: max |delta logit| = {worst:.2g}")

    prompt = torch.tensor([[256] + list(b"It is a")])
    with torch.no_grad():
        theirs, _ = names["model"].generate(prompt, max_length=30)
    text = carousel.run("generate", "--model", exported, "--prompt", "It is a", "--temperature", "0", "--max_tokens",
                        "30", "--no_echo")
    expected = bytes(theirs[0].tolist())
    check(text.rstrip(b"\n") == expected.rstrip(b"\n"), f"greedy: ours {text!r}, the package {expected!r}")
    print("greedy continuations are equal")

    rounded = carousel.path("exported_bf16")
    carousel.run("export", "--format", "nxai", "--model", carousel.path("run"), "--out", rounded, "--dtype", "bf16")
    exact, half = load_state(exported), load_state(rounded)
    for key, value in exact.items():
        check(torch.equal(value.bfloat16(), half[key]), f"bf16: {key} is not rounded to nearest even")
    compare_logits(carousel, rounded, load_from_pretrained(rounded).eval(), "bf16 weights")


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
    bad_directories(carousel)
    trained_model(carousel)
    print("ok")


if __name__ == "__main__":
    main()
