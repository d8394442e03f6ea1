"""Tuning: the fastest right configuration wins, and an interrupted run goes on."""

import pytest
import torch

from modes_fx.bench.gpu import tuning
from modes_fx.kernels.triton import config, launch
from modes_fx.kernels.triton.config import GemmConfig

CPU = torch.device("cpu")
SLOW, FAST, WIDE = (
    GemmConfig(block_m=m, block_n=n, block_k=32, warps=4, stages=2, occupancy=1)
    for m, n in ((16, 16), (32, 16), (32, 32))
)


def milliseconds(call) -> float:
    """A device on which high, narrow tiles are fast."""
    return 100 / call.options["BM"] + call.options["BN"] / 1000


def tune(small, notebook, **options):
    options = {"rows": (2.0, 8.0), "tried": [SLOW, FAST, WIDE], "time_call": milliseconds} | options
    return tuning.tune(small, torch.float32, CPU, notebook, **options)


def test_the_fastest_configuration_is_kept_and_used(small, tmp_path) -> None:
    found = tune(small, tuning.Notebook(tmp_path / "trials.jsonl"))
    assert [rule.up for rule in found.prefill_float32] == [FAST, FAST]
    assert [rule.up_to_rows for rule in found.prefill_float32] == [2.0, None]
    assert (found.origin, found.device) == ("tuned", "interpreter")
    tuning.save(found)
    assert config.choose("sm_90", found.shape, "interpreter") == found


def test_an_interrupted_run_goes_on_where_it_was(small, tmp_path) -> None:
    path = tmp_path / "trials.jsonl"
    done = []

    def stop(trial) -> None:
        done.append(trial)
        if len(done) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(small, tuning.Notebook(path), on_trial=stop)
    with path.open("a") as file:
        file.write('{"rows": 8.0, "sta')  # the process was killed while it wrote
    again = []
    tune(small, tuning.Notebook(path), on_trial=again.append)
    assert len(done) + len(again) == 2 * 3 * 2  # rows, configurations, GEMMs
    assert not {trial.key for trial in done} & {trial.key for trial in again}


def test_a_wrong_result_is_never_taken_however_fast(small, tmp_path, monkeypatch) -> None:
    right = launch.run_prefill

    def run_prefill(problem, rule, slots):
        out = right(problem, rule, slots)
        return out * 2 if rule.up.block_m == FAST.block_m else out

    monkeypatch.setattr(launch, "run_prefill", run_prefill)
    notebook = tuning.Notebook(tmp_path / "trials.jsonl")
    found = tune(small, notebook, rows=(4.0,))
    assert found.prefill_float32[0].up == SLOW
    with pytest.raises(RuntimeError, match="none of 1 configurations computes small right"):
        tune(small, tuning.Notebook(tmp_path / "others.jsonl"), rows=(4.0,), tried=[FAST])


def test_candidates_are_many_and_differ() -> None:
    tried = list(tuning.candidates())
    assert 50 < len(tried) == len(set(tried)) < 200
