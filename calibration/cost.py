"""What a calibration took, beside what the published procedures take on the same model."""

from dataclasses import dataclass

from modes_fx.calibration.evaluator import Evaluator
from modes_fx.calibration.options import CalibrationOptions, Candidate
from modes_fx.calibration.tuning import Tuned

PUBLISHED_GRID = 100
"""Steps of the published grid, in each direction."""


@dataclass(frozen=True)
class Cost:
    """Counts: a pass takes all samples through the model, a layer-forward one through a layer.

    Attributes:
        alpha_layer_forwards: of the first pass and of alpha, a sample.
        alpha_plain_layer_forwards: where each layer is removed in a pass of its own.
        passes: of everything, in multiples of all samples; a partial pass counts as its part.
        tau_passes: those after alpha.
        sweep_passes: the least and the most that the published sweep takes for these targets.
        brute_force_passes: what its grid has cells.
        grid: the steps of that grid, in each direction.
    """

    alpha_layer_forwards: float
    alpha_plain_layer_forwards: int
    passes: float
    tau_passes: float
    sweep_passes: tuple[int, int]
    brute_force_passes: int
    grid: int

    @staticmethod
    def of(
        evaluator: Evaluator,
        for_alpha: int,
        tuned: Tuned,
        modalities: int,
        options: CalibrationOptions,
    ) -> "Cost":
        """Count what an evaluator has done for a calibration that is complete.

        Args:
            evaluator: that was used.
            for_alpha: its layer-forwards when alpha was measured.
            tuned: what was found.
            modalities: how many there are.
            options: how it was calibrated.
        """
        layers, samples = len(evaluator.layers), evaluator.reference.samples
        groups = modalities if options.alpha_mode == "per_modality" else 1
        grid = options.size if options.search != "places" else PUBLISHED_GRID
        targets = len(tuned.chosen)
        after_alpha = evaluator.ledger.layer_forwards - for_alpha
        return Cost(
            alpha_layer_forwards=for_alpha / samples,
            alpha_plain_layer_forwards=layers * (groups * layers + 1),
            passes=evaluator.passes,
            tau_passes=after_alpha / (samples * layers),
            sweep_passes=(targets * grid, targets * (2 * grid - 1)),
            brute_force_passes=grid * grid,
            grid=grid,
        )


def expected_passes(options: CalibrationOptions, layers: int, modalities: int, targets: int) -> int:
    """Return about how many passes the steps after alpha take."""
    searched = {
        "places": 16 if modalities > 1 else 4,
        "bounded": options.size // 2,
        "sweep": 3 * options.size // 2,
        "brute_force": options.size**2,
    }[options.search]
    choices = len(options.exponents) - 1 + len(options.extras)
    again = 8 if modalities > 1 and options.extras != (Candidate(),) else 2
    needs_means = any(extras.adds_means for extras in options.extras)
    refining = 2 * layers * modalities * options.refine_rounds
    return targets * (searched + choices + needs_means + again + refining)
