"""Reads every shard of a checkpoint with the safetensors library, as FORMAT.md describes it, and compares all digests.

Nothing of Carousel's own code takes part: the boxes come from the shards' metadata, the digests are computed here with NumPy and
compared with those of MANIFEST.json.
usage: checkpoint_shards_test.py CHECKPOINT_DIR
"""

import json
import pathlib
import sys

import numpy as np
from safetensors import safe_open

MASK = np.uint64(0xFFFFFFFFFFFFFFFF)


def mix(x):
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def digest(tensor):
    bits = tensor.reshape(-1).view({4: np.uint32, 8: np.uint64}[tensor.dtype.itemsize]).astype(np.uint64)
    index = np.arange(bits.size, dtype=np.uint64)
    return int(np.sum((mix(index) | np.uint64(1)) * mix(bits ^ np.uint64(0x9E3779B97F4A7C15)), dtype=np.uint64) & MASK)


def main():
    directory = pathlib.Path(sys.argv[1])
    assert digest(np.array([1, 2], dtype=np.float32)) == 0x461B2C51E31E12CB, "the example of FORMAT.md"
    manifest = json.loads((directory / "MANIFEST.json").read_text())
    suffix = {"weight": "", "exp_avg": ".exp_avg", "exp_avg_sq": ".exp_avg_sq"}
    wanted = {t["name"] + suffix[t["kind"]]: t for t in manifest["tensors"]}
    tensors, covered, num_boxes = {}, {}, 0
    shards = sorted(directory.glob("*.safetensors"))
    assert {s.name for s in shards} == {f["name"] for f in manifest["files"] if f["name"].endswith(".safetensors")}
    for shard in shards:
        with safe_open(shard, framework="numpy") as opened:
            metadata = opened.metadata()
            assert int(metadata["step"]) == manifest["step"] and metadata["run_id"] == manifest["run_id"], shard
            for key in opened.keys():
                name, number = key.rsplit("#", 1)
                box, place = opened.get_tensor(key), json.loads(metadata[key])
                listed = wanted[name]["boxes"][int(number)]
                assert place["global_shape"] == wanted[name]["shape"], key
                assert place["offset"] == listed["offset"] and list(box.shape) == listed["size"], key
                assert listed["file"] == shard.name, key
                whole = tensors.setdefault(name, np.zeros(place["global_shape"], box.dtype))
                count = covered.setdefault(name, np.zeros(place["global_shape"], np.int32))
                where = tuple(slice(o, o + s) for o, s in zip(place["offset"], box.shape))
                whole[where] = box
                count[where] += 1
                num_boxes += 1
    assert set(tensors) == set(wanted)
    for name, tensor in tensors.items():
        assert (covered[name] == 1).all(), f"{name}: the boxes do not tile it"
        assert f"{digest(tensor):016x}" == wanted[name]["digest"], f"{name}: another digest"
    print(f"{len(shards)} shards, {num_boxes} boxes, {len(tensors)} tensors of {manifest['world_size']} ranks: all digests agree")


if __name__ == "__main__":
    main()
