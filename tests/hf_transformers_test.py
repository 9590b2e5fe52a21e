"""Exchange with the real Hugging Face Transformers, both ways. Run by hf_transformers_test.sh.

Trains a small model for a few steps, exports it and compares: logits, greedy text, tokenizer, files. Then models
with random weights that Transformers writes are read, compared, imported and trained on.
"""

import argparse
import glob
import json
import os
import subprocess
import unittest.mock

import safetensors
import safetensors.torch
import torch
import transformers

TEXTS = [
    "It is a truth",
    "",
    "two  spaces,\ttab\nnewline \r\n",
    "na\u00efve caf\u00e9 \u2014 \u65e5\u672c\u8a9e \U0001f680",
    "<|endoftext|> is text here, <|pad|> as well",
    "x" * 300,
]
LOGIT_TOLERANCE = 1e-4  # f32 on both sides


class Carousel:
    """The program under test, in a scratch directory."""

    def __init__(self, program, work):
        self.program = program
        self.work = work

    def path(self, name):
        return os.path.join(self.work, name)

    def run(self, *args, stdin=None):
        done = subprocess.run([self.program, *args], input=stdin, capture_output=True, check=False)
        if done.returncode != 0:
            raise AssertionError(f"carousel {' '.join(args)} exits {done.returncode}\n{done.stderr.decode()}")
        return done.stdout

    def logits(self, model, text):
        """(input ids, logits of every token) of a prompt."""
        file = self.path("logits.safetensors")
        if os.path.exists(file):
            os.remove(file)
        self.run("generate", "--model", model, "--prompt", "-", "--max_tokens", "0", "--prompt_logits", file,
                 stdin=text.encode())
        tensors = safetensors.torch.load_file(file)
        return tensors["input_ids"].long(), tensors["logits"]

    def greedy(self, model, text, count):
        return self.run("generate", "--model", model, "--prompt", "-", "--max_tokens", str(count), "--temperature",
                        "0", "--no_echo", stdin=text.encode())


def check(condition, what):
    if not condition:
        raise AssertionError(what)


def load(directory, dtype=torch.float32):
    model, info = transformers.AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True, dtype=dtype)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        check(not info[kind], f"{directory}: {kind}: {info[kind]}")
    return model.eval()


def compare_logits(carousel, directory, model, lengths):
    worst = 0.0
    for length in lengths:
        text = ("It is a truth universally acknowledged, that a single man in possession. " * 20)[:length]
        ids, ours = carousel.logits(directory, text)
        with torch.no_grad():
            theirs = model(ids[None], use_cache=False).logits[0]
        worst = max(worst, (ours - theirs).abs().max().item())
    check(worst <= LOGIT_TOLERANCE, f"{directory}: max |delta logit| = {worst}")
    print(f"{os.path.basename(directory)}: max |delta logit| = {worst:.2g}, prompts of {list(lengths)} bytes")


def compare_tokenizer(directory):
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        check(ids == [256] + list(text.encode()), f"{text!r} becomes {ids}")
        check(tokenizer.decode(ids, skip_special_tokens=True) == text, f"{text!r} does not round-trip")
    special = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    check(special == (256, 256, 257), f"special ids {special}")
    print(f"tokenizer ({type(tokenizer).__name__}): {len(TEXTS)} texts round-trip")
    return tokenizer


def compare_greedy(carousel, directory, model, tokenizer):
    for text, count in (("It is", 60), ("the single man of good fortune " * 5, 40)):
        inputs = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            new = model.generate(input_ids=inputs["input_ids"], max_new_tokens=count, do_sample=False)[0]
        theirs = bytes(i for i in new[inputs["input_ids"].shape[1]:].tolist() if i < 256)
        ours = carousel.greedy(directory, text, count)
        check(ours.rstrip(b"\n") == theirs.rstrip(b"\n"), f"greedy: ours {ours!r}, Transformers {theirs!r}")
    print("greedy continuations are equal")


def check_files(directory):
    for file in glob.glob(os.path.join(directory, "*.safetensors")):
        with safetensors.safe_open(file, framework="pt") as opened:
            check(opened.metadata() == {"format": "pt"}, f"{file}: metadata {opened.metadata()}")
            for name in opened.keys():
                check(torch.isfinite(opened.get_tensor(name).float()).all(), f"{file}: {name}")


def exported_model(carousel):
    words = "the truth of a single man in good fortune is universally acknowledged".split()
    with open(carousel.path("text.txt"), "w", encoding="utf-8") as file:
        file.write(" ".join(words[(i * i + i // 7) % len(words)] for i in range(20000)))
    with open(carousel.path("run.textproto"), "w", encoding="utf-8") as file:
        file.write(f"""model {{ embedding_dim: 128 num_blocks: 2 num_heads: 2 }}
            data {{ train {{ path: "{carousel.path('tokens')}" }} sequence_length: 128 }}
            schedule {{ peak_lr: 3e-3 }} train {{ steps: 20 global_batch: 4 compute: F32 }}""")
    carousel.run("data", "build", "--input", carousel.path("text.txt"), "--output", carousel.path("tokens"))
    carousel.run("train", "--config", carousel.path("run.textproto"), "--run_dir", carousel.path("run"))

    single, sharded = carousel.path("exported"), carousel.path("sharded")
    carousel.run("export", "--format", "hf", "--model", carousel.path("run"), "--out", single)
    carousel.run("export", "--format", "hf", "--model", carousel.path("run"), "--out", sharded, "--dtype", "bf16",
                 "--max_shard_bytes", "3e5")
    check_files(single)
    check_files(sharded)
    model = load(single)
    compare_logits(carousel, single, model, (0, 1, 30, 62, 63, 64, 127, 128, 300))
    compare_greedy(carousel, single, model, compare_tokenizer(single))
    compare_logits(carousel, sharded, load(sharded), (30, 200))


def random_model(carousel, name, save=None, dtype=torch.float32, **config):
    """Writes a model with random weights, reads it, imports it, exports it again."""
    torch.manual_seed(len(name))
    settings = dict(vocab_size=320, hidden_size=128, num_hidden_layers=2, num_heads=4, bos_token_id=256,
                    eos_token_id=256, pad_token_id=257)
    settings.update(config)
    model = transformers.xLSTMForCausalLM(transformers.xLSTMConfig(**settings))
    with torch.no_grad():  # also what is initialised to zeros or ones
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.1 if parameter.dim() == 1 else 0.05))
    directory = carousel.path(name)
    model.to(dtype).save_pretrained(directory, **(save or {}))
    model = load(directory)
    compare_logits(carousel, directory, model, (30, 150))

    run, again = carousel.path(name + "_run"), carousel.path(name + "_again")
    carousel.run("import", "--model", directory, "--out", run)
    carousel.run("checkpoint", "verify", run)
    carousel.run("export", "--format", "hf", "--model", run, "--out", again)
    if settings.get("weight_mode", "single") == "single":
        for key, value in load(again).state_dict().items():
            check(torch.equal(value, model.state_dict()[key]), f"{name}: {key} changed on its way")
    compare_logits(carousel, again, model, (150,))
    return run


def train_on(carousel, run):
    """An imported run goes on from its weights."""
    carousel.run("train", "--config", os.path.join(run, "config.textproto"), "--run_dir", run, "--accept_change",
                 "--set", f"data.train.path={carousel.path('tokens')}", "--set", "train.steps=3",
                 "--set", "train.global_batch=2", "--set", "data.sequence_length=32")
    with open(os.path.join(run, "metrics.jsonl"), encoding="utf-8") as file:
        steps = [json.loads(line)["step"] for line in file if "\"step\"" in line and line.startswith("{\"step\"")]
    check(steps == [1, 2, 3], f"steps after the import: {steps}")
    print("an imported run trains on")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--carousel", required=True)
    parser.add_argument("--work", required=True)
    args = parser.parse_args()
    torch.set_num_threads(2)
    transformers.utils.logging.disable_progress_bar()
    print(f"transformers {transformers.__version__}, torch {torch.__version__}, safetensors {safetensors.__version__}")
    carousel = Carousel(args.carousel, args.work)
    exported_model(carousel)
    run = random_model(carousel, "hf_single")
    random_model(carousel, "hf_shards", save={"max_shard_size": "200KB"})
    random_model(carousel, "hf_bf16", dtype=torch.bfloat16)
    random_model(carousel, "hf_f16", dtype=torch.float16)
    random_model(carousel, "hf_factors", qk_dim_factor=1.0, v_dim_factor=2.0, ffn_proj_factor=1.7, num_heads=2,
                 gate_soft_cap=7.5, output_logit_soft_cap=20.0, norm_eps=1e-5, eps=1e-4, chunk_size=32)
    random_model(carousel, "hf_biases", use_bias=True)
    # Transformers cannot initialise its own fused weights.
    with unittest.mock.patch.object(transformers.xLSTMPreTrainedModel, "_init_weights", lambda *_: None):
        random_model(carousel, "hf_fused", weight_mode="fused", num_heads=2)
    train_on(carousel, run)
    print("ok")


if __name__ == "__main__":
    main()
