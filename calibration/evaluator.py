"""Measure what given thresholds cost and save, with the same rewritten op as inference."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch._dynamo.exc import BackendCompilerFailed
from transformers import PreTrainedModel

from modes_fx.attach import (
    attach,
    attached,
    detach,
    find_expert_modules,
    pair_counts,
    set_thetas,
)
from modes_fx.backend import modes_backend
from modes_fx.calibration.data import Batch
from modes_fx.calibration.journal import Journal
from modes_fx.calibration.ledger import Ledger
from modes_fx.calibration.measurement import Measurement, combine, quantised
from modes_fx.calibration.placement import without_transfers
from modes_fx.calibration.processes import Processes
from modes_fx.calibration.reference import Reference, answer_logits, own_places, places_of
from modes_fx.calibration.request import HALVES, Part, Request
from modes_fx.compensation import put_means
from modes_fx.errors import MatchError
from modes_fx.hooks import GATE
from modes_fx.policy import SkipPolicy
from modes_fx.policy_means import scaled


class Outcome(NamedTuple):
    """What one batch gave under one request.

    Attributes:
        logits: ``[A, V]`` of the batch's answer tokens, as ``answer_logits`` returns them.
        counts: by layer path int64 ``[M, 2]``: all pairs and kept pairs of each modality code.
        layers: how many MoE layers the batch was run through for it.
    """

    logits: Tensor
    counts: Mapping[str, Tensor]
    layers: int


Run = Callable[[Batch], Outcome]


class Evaluator:
    """A model attached and compiled for measuring, for as long as the ``with`` block lasts.

    What was measured once is not measured again: not in this run, and with a journal not in a
    later one either. So whatever decides by measurements alone decides the same again, at once, up
    to where an earlier run was stopped. Of several processes each runs a part of the batches; all
    get the same measurements and are to make the same calls.

    Only the modules around the experts are compiled. The op is the same as in a model compiled
    whole, but capturing the rest, and again for every number of images, would take longer than
    all the measuring.

    Attributes:
        model: the model; unchanged again after the block.
        layers: the paths of its modules that own experts.
        reference: the samples, and what the full model says to them.
        policy: what says how pairs are compared with thresholds (share, special tokens).
        processes: those that measure together.
        ledger: what was measured so far, and what it took.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        reference: Reference,
        policy: SkipPolicy | None = None,
        *,
        compiler: str = "eager",
        journal: Journal | None = None,
        processes: Processes | None = None,
    ) -> None:
        """Remember what to measure; nothing is changed yet.

        Args:
            model: a transformers model that is not attached.
            reference: of the same model; what is not recorded yet is recorded when it is needed.
            policy: by default one with no options.
            compiler: see ``modes_fx.backend.BackendOptions``.
            journal: where measurements are kept, in the main process; None in the others.
            processes: by default this one and those that ``accelerate launch`` started with it.
        """
        self.model = model
        self.layers = list(find_expert_modules(model))
        self.reference = reference
        self.policy = policy or keep_all_policy(model)
        self.processes = processes or Processes()
        self.ledger = Ledger(reference.samples, journal, self.processes)
        self._compiler = compiler
        self._means: dict[str, Mapping[str, Tensor]] = {}
        self._undo: ExitStack | None = None

    @property
    def passes(self) -> float:
        """How often the samples went through the model so far, journalled measurements included."""
        return self.ledger.passes

    @property
    def is_attached(self) -> bool:
        """Whether the model is attached at the moment, to measure."""
        return self._undo is not None

    @property
    def can_hold_back(self) -> bool:
        """Whether there are samples of both halves."""
        return len({held_back for _, held_back in self.reference.layout}) == 2

    @property
    def own_places(self) -> list[int]:
        """The places of the batches that this process runs."""
        return self._own("all")

    def _own(self, part: Part) -> list[int]:
        return own_places(self.reference.layout, self.processes, part)

    def __enter__(self) -> Self:
        """Begin; the model is attached and compiled when something has to be measured."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave the model as it was."""
        self._detach()

    def measure(self, request: Request) -> Measurement:
        """Run the samples with what is requested, unless that was done before.

        Returns:
            The same for the same request.

        Raises:
            MatchError: an MoE layer could not be rewritten.
            ValueError: an unknown layer, means that were not added, no samples in the part, or NaN
                logits.
        """
        self._check(request)

        def run(batch: Batch) -> Outcome:
            self.apply(request)
            pair_counts(self.model, reset=True)
            logits = answer_logits(self.model, batch)
            counts = {path: count.cpu() for path, count in pair_counts(self.model).items()}
            return Outcome(logits, counts, layers=len(counts))

        return self.measure_as(request.on("all").to_dict(), run, request.part)

    def measure_as(
        self, description: Mapping[str, Any], run: Run, part: Part = "all"
    ) -> Measurement:
        """Measure something that is run in another way, unless it was measured before.

        Args:
            description: JSON-ready values that say all of what is run; equal ones are the same
                measurement.
            run: called with each batch of this process's share; the model is attached, unless the
                call is made inside :meth:`unmodified`.
            part: the samples.

        Raises:
            MatchError: an MoE layer could not be rewritten, or computed no pair at all.
            ValueError: there are no samples in the part, or a logit is NaN.
        """
        described = {half: {**description, "part": half} for half in self._halves(part)}
        return combine(
            [
                self.ledger.measurement(full, partial(self._run, half, run))
                for half, full in described.items()
            ]
        )

    def collect(
        self,
        name: str,
        request: Request,
        read: Callable[[], Mapping[str, Tensor]],
        begin: Callable[[], None] = lambda: None,
    ) -> dict[str, Tensor]:
        """Add up statistics over the samples of a run, the same in any number of processes.

        Args:
            name: of the statistics; with the request it names what is kept in the journal.
            request: what is skipped meanwhile.
            read: returns the sums of the batch that just ran, by name; every batch has the same.
            begin: called before each batch.

        Returns:
            float64 sums, rounded to multiples of ``QUANTUM``, so that the order does not matter.
        """
        self._check(request)

        def compute() -> dict[str, Tensor]:
            own: dict[str, Tensor] = {}
            for place in self._own(request.part):
                self.apply(request)
                begin()
                answer_logits(self.model, self.reference.batches[place])
                _add(own, read())
            return own

        def gathered() -> dict[str, Tensor]:
            self._prepare(request.part)
            total: dict[str, Tensor] = {}
            for own in self.processes.gather(compute):
                _add(total, own)
            return total

        description = {**request.to_dict(), "collect": name}
        samples = sum(
            len(self.reference.layout[place][0])
            for place in places_of(self.reference.layout, request.part)
        )
        return self.ledger.tensors(description, gathered, samples * len(self.layers), samples)

    def apply(self, request: Request) -> None:
        """Make the attached model skip what is requested."""
        self._attach()
        set_thetas(self.model, {path: request.theta(path) for path in self.layers})
        for layer in attached(self.model).layers.values():
            gate = getattr(layer, GATE)
            options = (request.kept_mass_exponent, request.min_k)
            if options != (gate.kept_mass_exponent, gate.min_k):
                exponent, min_k = options
                changed = replace(gate, kept_mass_exponent=exponent, min_k=min_k)
                setattr(layer, GATE, changed)
        means = self._means[request.means] if request.means is not None else {}
        put_means(
            attached(self.model),
            {path: scaled(table, dict(request.mean_strength)) for path, table in means.items()},
        )

    def add_means(self, means: Mapping[str, Tensor]) -> str:
        """Take means that requests may add in place of skipped slots.

        Args:
            means: by layer path.

        Returns:
            Their hash, for ``Request.means``.
        """
        digest = hashlib.sha256()
        for path, table in sorted(means.items()):
            digest.update(f"{path} {tuple(table.shape)} {table.dtype}".encode())
            digest.update(table.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        self._means[digest.hexdigest()] = means
        return digest.hexdigest()

    @contextmanager
    def unmodified(self) -> Iterator[PreTrainedModel]:
        """Give the model as it was, not attached, while the ``with`` block lasts."""
        self._detach()
        yield self.model

    def _check(self, request: Request) -> None:
        layers = self.layers
        if unknown := [path for path, _ in request.thetas if path not in layers]:
            raise ValueError(
                f"the model has no MoE layer {unknown[0]!r}; it has {', '.join(layers)}"
            )
        if request.means is not None and request.means not in self._means:
            raise ValueError(f"the means {request.means:.12} were not given to add_means")

    def _halves(self, part: Part) -> list[Part]:
        """The halves that a part consists of and that have samples."""
        wanted = HALVES if part == "all" else (part,)
        found = [half for half in wanted if places_of(self.reference.layout, half)]
        if not found:
            raise ValueError(
                f"no sample is of the part {part!r}: hold back some batches (Batch.held_back), or "
                "calibrate on more samples"
            )
        return found

    def _prepare(self, part: Part) -> None:
        """Record what the full model says to this process's share, where that is not yet known."""
        missing = self.reference.missing(self._own(part))
        if any(self.processes.gather(lambda: len(missing))):
            self._detach()
            self.processes.gather(lambda: self.reference.record_at(self.model, missing))

    def _run(self, part: Part, run: Run) -> Measurement:
        self._prepare(part)

        def own() -> list[Measurement]:
            try:
                return [self._run_batch(place, run) for place in self._own(part)]
            except BackendCompilerFailed as error:
                raise MatchError(
                    f"calibration cannot run this model: {error.inner_exception}"
                ) from None

        measured = combine([m for share in self.processes.gather(own) for m in share])
        counts = measured.counts
        if uncounted := [path for path, count in counts.items() if not count.any()]:
            raise MatchError(
                f"{len(uncounted)} of {len(counts)} MoE layers computed no pair (the first: "
                f"{uncounted[0]}): nothing is known about skipping there"
            )
        return measured

    def _run_batch(self, place: int, run: Run) -> Measurement:
        batch = self.reference.batches[place]
        outcome = run(batch)
        difference = self.reference.difference(place, outcome.logits)
        return Measurement(difference, outcome.counts, outcome.layers * len(batch.samples))

    def _attach(self) -> None:
        if self._undo is not None:
            return
        with ExitStack() as undo:
            own = (self.reference.batches[place] for place in self.own_places)
            most = max((batch.answer_mask.numel() for batch in own), default=1)
            around = {path.rpartition(".")[0] for path in self.layers}
            undo.enter_context(without_transfers([self.model.get_submodule(p) for p in around]))
            attach(self.model, self.policy, count_pairs=True, max_tokens=most)
            undo.callback(detach, self.model)
            options = {"compiler": self._compiler, "strict": True}
            for block in _blocks(self.model):
                undo.callback(setattr, block, "_compiled_call_impl", block._compiled_call_impl)
                block.compile(backend=modes_backend, options=options)
            self._undo = undo.pop_all()

    def _detach(self) -> None:
        if self._undo is not None:
            self._undo.close()
            self._undo = None


def keep_all_policy(model: PreTrainedModel) -> SkipPolicy:
    """Return a policy for a model that keeps every pair of every token."""
    return SkipPolicy(alpha={path: {} for path in find_expert_modules(model)}, tau={0.0: {}})


def _add(total: dict[str, Tensor], more: Mapping[str, Tensor]) -> None:
    for name, values in more.items():
        rounded = quantised(values.detach().cpu().double())
        total[name] = total[name] + rounded if name in total else rounded


def _blocks(model: PreTrainedModel) -> list[nn.Module]:
    """The modules to compile: loops by themselves, others with the router in front of them."""
    attachment = attached(model)
    paths = {p if p in attachment.loops else p.rpartition(".")[0] for p in attachment.layers}
    return [model.get_submodule(path) for path in sorted(paths)]
