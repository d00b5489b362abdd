"""`streamavg merge --method` and `--batchnorm`, as they are typed, on files that Keras wrote."""

import json
import re

import numpy as np
import pytest

from tests.builders import DIGITS, FIXTURES, LAYOUTS, contents, run, stored

THREE = [DIGITS / f"epoch-{n}.keras" for n in (18, 19, 20)]
STRAY = FIXTURES / "digits-keras2" / "epoch-20.keras"
TRIPLET = [LAYOUTS / f"keras3.15.1-tf-cnn_{x}.weights.h5" for x in "abc"]
KERNEL = "layers/conv2d/vars/0"


class TestGeometricMedian:
    def test_plans_the_coefficients_that_it_merges_with(self, tmp_path):
        arguments = ("merge", *THREE, STRAY, "--preprocessing", "reference", "--method",
                     "geometric-median")  # fmt: skip
        planned = run(*arguments, "--dry-run", cwd=tmp_path)
        assert (planned.returncode, planned.stderr) == (0, "")
        assert contents(tmp_path) == {}
        done = run(*arguments, "--json", cwd=tmp_path)
        shares = [entry["coefficient"] for entry in json.loads(done.stdout)["inputs"]]
        shown = [float(line.split()[0]) for line in planned.stdout.splitlines()[1:5]]
        assert shown == pytest.approx(shares, abs=1e-6)
        assert shares[3] < 0.02
        kernels = [stored(path)[KERNEL].astype("f8") for path in (*THREE, STRAY)]
        expected = sum(s * k for s, k in zip(shares, kernels, strict=True))
        found = stored(tmp_path / "averaged.keras")[KERNEL]
        np.testing.assert_allclose(found, expected, rtol=1e-6)

    def test_says_how_it_found_them_and_what_it_reads(self, tmp_path):
        done = run("merge", *THREE, "--method", "geometric-median", "--dry-run", cwd=tmp_path)
        assert re.search(r"coefficients: geometric median, found in \d+ iterations", done.stdout)
        assert "11.2 KiB to read (5.6 KiB of it before, to measure)" in done.stdout

    def test_of_two_says_that_it_is_their_mean(self, tmp_path):
        done = run("merge", *THREE[:2], "--method", "geometric-median", cwd=tmp_path)
        assert "equally good geometric medians: their mean is taken." in done.stderr

    def test_refuses_nan_that_would_be_allowed(self, tmp_path):
        done = run("merge", *THREE, "--method", "geometric-median", "--allow-non-finite",
                   cwd=tmp_path)  # fmt: skip
        assert done.returncode == 2
        assert "--allow-non-finite and --method geometric-median exclude" in done.stderr


class TestSlerp:
    def test_is_between_two(self, tmp_path):
        done = run("merge", *THREE[:2], "--method", "slerp", "--weights", "0.7,0.3", "--json",
                   cwd=tmp_path)  # fmt: skip
        assert done.returncode == 0, done.stderr
        variables = {v["path"]: v for v in json.loads(done.stdout)["variables"]}
        factors = variables[KERNEL]["factors"]
        kernels = [stored(path)[KERNEL].astype("f8") for path in THREE[:2]]
        expected = factors[0] * kernels[0] + factors[1] * kernels[1]
        found = stored(tmp_path / "averaged.keras")[KERNEL]
        assert found.tolist() == expected.astype("f4").tolist()
        assert sum(factors) > 1

    def test_shows_the_angle_of_each_variable(self, tmp_path):
        done = run("merge", *THREE, "--last", "2", "--method", "slerp", "--dry-run", cwd=tmp_path)
        assert f"average  {KERNEL}  5 x 5 x 1 x 12  float32  (6.56 degrees apart)" in done.stdout
        assert "method   slerp: turns between 2 values" in done.stdout

    def test_of_three_is_wrong_usage(self, tmp_path):
        done = run("merge", *THREE, "--method", "slerp", cwd=tmp_path)
        assert done.returncode == 2
        assert "two checkpoints, 3 given. Pick two with --last 2 or --best 2" in done.stderr


class TestBatchnorm:
    def test_pooled_is_shown_in_the_plan(self, tmp_path):
        done = run("merge", *TRIPLET, "--batchnorm", "pooled", "--dry-run", cwd=tmp_path)
        layer = "layers/batch_normalization/vars"
        assert f"average  {layer}/2  4  float32  (moving mean)" in done.stdout
        assert f"pooled   {layer}/3  4  float32  (moving variance)" in done.stdout

    def test_reference_is_shown_in_the_plan(self, tmp_path):
        done = run("merge", *TRIPLET, "--batchnorm", "reference", "--dry-run", cwd=tmp_path)
        layer = "layers/batch_normalization/vars"
        assert f"carry    {layer}/2  4  float32  (moving statistics)" in done.stdout
        assert f"carry    {layer}/3  4  float32  (moving statistics)" in done.stdout

    def test_of_a_model_without_is_wrong_usage(self, tmp_path):
        paths = [tmp_path / f"{x}.weights.h5" for x in "ab"]
        for path in paths:
            path.write_bytes((LAYOUTS / "keras3.10.0-jax-subclassed.weights.h5").read_bytes())
        done = run("merge", *paths, "--batchnorm", "pooled", cwd=tmp_path)
        assert done.returncode == 2
        assert "has no BatchNormalization layer. Use --batchnorm mean" in done.stderr
