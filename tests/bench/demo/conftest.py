"""A small report made by hand, so that rendering is tested without running the demo."""

import pytest

from modes_fx.bench.demo.comparison import METHODS, OURS
from modes_fx.bench.demo.report import (
    CalibrationSection,
    DemoReport,
    Environment,
    Measured,
    Result,
    Scores,
    Tau0Check,
    TimedCase,
    TimingSection,
)
from modes_fx.bench.timing import Spread, Timing
from modes_fx.passes.report import LayerReport

LAYERS = ("layers.0.mlp.experts", "layers.1.mlp.experts")
TARGETS = (0.5, 0.88)


def scores(accuracy: float) -> dict:
    return {
        "questions": 200,
        "accuracy": accuracy,
        "accuracy_interval": (accuracy - 0.05, accuracy + 0.04),
        "accuracy_image": accuracy - 0.03,
        "accuracy_text": accuracy + 0.03,
        "accuracy_by_kind": {"digit": accuracy - 0.03, "plus": accuracy + 0.03},
    }


def result(method: str, target: float) -> Result:
    place = METHODS.index(method)
    compared = {} if method == OURS else {"ahead_of_default": -0.01 * place}
    interval = {} if method == OURS else {"ahead_of_default_interval": (-0.02 * place, 0.005)}
    return Result(
        **scores(0.9 - 0.011 * place - 0.1 * target),
        **compared,
        **interval,
        method=method,
        target=target,
        skip_ratio=target - 0.003,
        skip_ratio_by_modality={"text": target - 0.1, "vision": target + 0.1},
        skip_ratio_by_layer=dict.fromkeys(LAYERS, target),
        kl=0.0123 * (place + 1) * target,
    )


def measured(target: float) -> Measured:
    return Measured(
        tau={"text": 0.001 * target, "vision": 0.02 * target},
        kl=0.017 * target,
        skip_ratio=target,
        skip_ratio_by_modality={"text": target - 0.1, "vision": target + 0.1},
    )


def timed(name: str, *, ours: bool, speedup: float) -> TimedCase:
    timing = Timing(
        wall=Spread(0.0431 / speedup, 0.04, 0.05),
        cpu=Spread(0.04, 0.039, 0.041),
        speedup=Spread(speedup, speedup - 0.1, speedup + 0.1),
    )
    return TimedCase(
        name=name,
        compile_seconds=31.0 if ours else None,
        target=0.5 if ours else None,
        ours=ours,
        prefill=timing,
        decode=timing,
        decode_tokens_per_second=1234.0 * speedup,
    )


@pytest.fixture
def report() -> DemoReport:
    return make_report()


def make_report() -> DemoReport:
    return DemoReport(
        created="2026-01-02T03:04:05+00:00",
        quick=False,
        environment=Environment(
            processor="Test processor",
            cores=2,
            threads=1,
            memory_gib=7.5,
            platform="Linux x86_64",
            versions={"torch": "2.13.0"},
        ),
        parameters=4_600_000,
        moe_layers=2,
        matched=2,
        layers=[
            LayerReport(path, "rewritten", "grouped_mm", "", 32, 8, 128, 32, "silu", True, 2e-7)
            for path in LAYERS
        ],
        graphs=12,
        graph_breaks=["Data dependent operator"],
        tau0_max_error=4e-7,
        tau0=Tau0Check(
            errors={"text only": 4e-7, "padded batch": 3e-7},
            tolerance=1e-5,
            generated_tokens=68,
            tokens_equal=True,
        ),
        calibration=CalibrationSection(
            policy="out/demo/policy",
            samples=120,
            tokens={"text": 1846, "vision": 1296},
            special_tokens="text",
            special_token_share=0.231,
            alpha={LAYERS[0]: {"text": 0.9, "vision": 1.0}, LAYERS[1]: {"text": 0.1, "vision": 0}},
            targets={target: measured(target) for target in TARGETS},
            searched=[measured(target) for target in (0.4, *TARGETS)],
            alpha_exponent=0.0,
            kept_mass_exponent=0.25,
            mean_strength={"text": 0.5, "vision": 1.0},
            passes=80.0,
            sweep_passes=(300, 597),
        ),
        full=Scores(**scores(0.95)),
        results=[result(method, target) for target in TARGETS for method in METHODS],
        timing=TimingSection(
            batch=8,
            prompt_tokens=29,
            new_tokens=17,
            rounds=15,
            prefill_baseline="HF compiled",
            decode_baseline="HF compiled",
            tokens_equal=True,
            cases=[
                timed("HF compiled", ours=False, speedup=1.0),
                timed("MoDES-FX, target 50%", ours=True, speedup=0.87),
            ],
        ),
        seconds={"load": 0.4, "evaluate": 62.0},
        failures=[],
    )
