"""kernels/bench/compare_public.py without a GPU: statistics, tables, what it reads of the program's output, its
arguments; and, where PyTorch is, its double references against the program's.   compare_public_test.py CAROUSEL"""
import argparse
import json
import os
import struct
import subprocess
import sys
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, "kernels", "bench"))
sys.dont_write_bytecode = True
import compare_public  # noqa: E402

CAROUSEL = ""


def run(*arguments):
    return subprocess.run([CAROUSEL, *arguments], capture_output=True, text=True, check=True).stdout


class ComparePublic(unittest.TestCase):
    def test_median_is_the_middle_of_any_order(self):
        self.assertEqual(compare_public.median([5, 1, 3]), 3)
        self.assertEqual(compare_public.median([4, 1, 2, 3]), 2.5)
        with self.assertRaises(ValueError):
            compare_public.median([])

    def test_table_has_a_cell_per_column(self):
        self.assertEqual(compare_public.markdown_table(["a", "b"], [[1.23456, None], ["x|y", 3]]),
                         "| a | b |\n|---|---|\n| 1.23 |  |\n| x/y | 3 |")
        with self.assertRaises(ValueError):
            compare_public.markdown_table(["a", "b"], [[1]])

    def test_times_are_read_from_the_program(self):
        output = run("bench", "cells", "--batch", "1", "--tokens", "32", "--heads", "1", "--qk", "8", "--v", "8",
                     "--slstm_head", "8", "--repeats", "1", "--threads", "1")
        times = compare_public.parse_cells(output)
        for op in ("mlstm forward", "mlstm backward", "slstm forward", "slstm backward"):
            self.assertGreater(times[op], 0)
        with self.assertRaises(ValueError):
            compare_public.parse_cells("carousel: no such device")

    def test_errors_are_read_from_the_program(self):
        output = run("verify", "--dtype", "bf16", os.path.join(ROOT, "tests/golden/mlstm_zero_state.safetensors"))
        errors = compare_public.parse_verify(output)
        for name in ("h", "grad.q", "grad.k", "grad.v", "grad.i", "grad.f", "loss"):
            self.assertGreater(errors[name], 1e-7, name)  # of bf16, not the f64 table above it
            self.assertLess(errors[name], 2e-2, name)
        failing = "bf16 against f64 on the same bf16 inputs:\n" + "h                      9.000e-01   8.0e-03  FAIL\n"
        self.assertEqual(compare_public.parse_verify(failing), {"h": 0.9})
        with self.assertRaises(ValueError):
            compare_public.parse_verify("carousel: cannot open")

    def test_safetensors_hold_what_was_packed(self):
        data = compare_public.pack_safetensors({"x": ((2,), struct.pack("<2d", 1.5, -2)), "y": ((1, 1), bytes(8))},
                                               {"cell": "mlstm"})
        size = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8:8 + size])
        begin, end = header["x"]["data_offsets"]
        self.assertEqual(struct.unpack("<2d", data[8 + size + begin:8 + size + end]), (1.5, -2))
        self.assertEqual(len(data), 8 + size + 24)
        self.assertEqual(size % 8, 0)
        with self.assertRaises(ValueError):
            compare_public.pack_safetensors({"x": ((3,), bytes(8))}, {})

    def test_arguments_are_checked(self):
        options = compare_public.parse_arguments(["--carousel", CAROUSEL, "--shapes", "B,D", "--slstm_tokens", "7"])
        self.assertEqual((options.shapes, options.slstm_tokens, options.tokens), (["B", "D"], [7], 8192))
        script = os.path.join(ROOT, "kernels/bench/compare_public.py")
        for bad in (["--carousel", "/nowhere"], ["--shapes", "Z"], ["--repeats", "0"], ["--device", "-1"], ["--batch", "x"]):
            done = subprocess.run([sys.executable, "-B", script, "--carousel", CAROUSEL, *bad], capture_output=True,
                                  text=True, check=False)
            self.assertEqual(done.returncode, 2, bad)
            self.assertIn(bad[0], done.stderr)

    def test_double_references_equal_the_program(self):
        try:
            import torch
        except ImportError:
            self.skipTest("Python has no PyTorch")
        shape = (2, 16, 24)
        inputs = compare_public.mlstm_inputs(torch, shape, 70, "cpu", 7)
        dump = compare_public.mlstm_dump(inputs, compare_public.mlstm_double(torch, inputs), shape)
        options = argparse.Namespace(carousel=CAROUSEL, backend="cpu")
        errors, passed = compare_public.ours_errors(options, dump)  # which first compares f64 with the dump
        self.assertTrue(passed)
        self.assertLess(errors["h"], 8e-3)


if __name__ == "__main__":
    CAROUSEL = os.path.abspath(sys.argv.pop(1))
    unittest.main(verbosity=2)
