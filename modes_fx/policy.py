"""SkipPolicy: the calibrated constants of one model, and the thresholds they give."""

import math
import os
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import BaseModel, Field, InstanceOf, ValidationError, model_validator

from modes_fx.errors import PolicyError, listed
from modes_fx.fingerprint import config_hash
from modes_fx.policy_card import policy_card
from modes_fx.policy_fields import (
    FROZEN,
    ByTarget,
    Constant,
    PerLayer,
    PerModality,
    Provenance,
    Strength,
    target_key,
)
from modes_fx.policy_file import (
    POLICY_FILE,
    locate_means,
    locate_policy,
    means_file,
    read_fields,
    upload_policy,
    write_card,
    write_policy,
)
from modes_fx.policy_means import Means, scaled, strengths
from modes_fx.vocabulary import CALIBRATED, Modality, ModalityName, Share, default_share

SCHEMA_VERSION = 3
"""2 added ``mean_strength`` and ``means_sha256``, 3 strengths by modality. Older files are read."""


class SkipPolicy(BaseModel):
    """The constants that decide which experts a token skips, for one model.

    A layer is named by the path of the module that owns its experts, a modality by "text",
    "vision" or "audio", a target by the skip ratio it was calibrated for.

    Attributes:
        alpha: The importance of the experts of {layer: {modality: alpha >= 0}}.
        tau: The constant that alpha is compared with: {target: {modality: tau >= 0}}. A modality
            that is not named is never skipped.
        layer_tau: {target: {layer: {modality: tau}}}, in place of ``tau`` where it has an entry.
        share: What is compared with the threshold (see ``share_for``); None: by the model's top-k.
        alpha_mode: Whether alpha was measured for every modality or is shared by them.
        alpha_exponent: The exponent on alpha in tau / alpha**exponent.
        kept_mass_exponent: Kept weights are multiplied by (kept share mass)**-exponent; 0: never.
        mean_strength: How much of the mean output of its skipped pairs a token gets: from 0, none,
            to 1, all; one number, or one by modality.
        means: Those mean outputs; stored in a file of their own.
        means_sha256: The digest of that file.
        min_k: How many experts, at least, every token keeps.
        special_tokens: Whether tokenizer special tokens are never skipped or count as text.
        special_token_ids: Their ids.
        model_id: The model that was calibrated, for readers.
        model_type: Its architecture, for readers.
        config_hash: Its ``modes_fx.fingerprint.config_hash``; None: not checked.
        provenance: Where the constants come from.
        schema_version: The version of the file format.
    """

    model_config = FROZEN

    alpha: PerLayer
    tau: ByTarget[PerModality]
    layer_tau: ByTarget[PerLayer] | None = None
    share: Share | None = None
    alpha_mode: Literal["per_modality", "shared"] = "per_modality"
    alpha_exponent: Constant = 1.0
    kept_mass_exponent: Constant = 0.0
    mean_strength: Strength = 0.0
    means: InstanceOf[Means] | None = Field(default=None, exclude=True)
    means_sha256: str | None = None
    min_k: int = Field(default=0, ge=0)
    special_tokens: Literal["keep", "text"] = "keep"
    special_token_ids: list[int] = []
    model_id: str | None = None
    model_type: str | None = None
    config_hash: str | None = None
    provenance: Provenance = Provenance()
    schema_version: int = Field(default=SCHEMA_VERSION, ge=1, le=SCHEMA_VERSION)

    def __init__(self, alpha: dict[str, Any], tau: dict[Any, Any], **options: Any) -> None:
        """Checks and stores the constants; ``options`` are the other attributes by name.

        Raises:
            PolicyError: Something is missing, unknown, of the wrong type or contradictory.
        """
        newer = options.get("schema_version")
        if isinstance(newer, int) and newer > SCHEMA_VERSION:
            raise PolicyError(
                f"the policy has schema version {newer}, this modes-fx reads up to "
                f"{SCHEMA_VERSION}: upgrade modes-fx"
            )
        if isinstance(means := options.get("means"), Means):
            options["means_sha256"] = options.get("means_sha256") or means.sha256
        try:
            super().__init__(alpha=alpha, tau=tau, **options)
        except ValidationError as error:
            raise PolicyError(_in_words(error)) from None

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        for target, layers in (self.layer_tau or {}).items():
            if target not in self.tau:
                raise ValueError(f"layer_tau has the target {target}, tau has not")
            if unknown := layers.keys() - self.alpha.keys():
                raise ValueError(f"layer_tau.{target} has layers without alpha: {listed(unknown)}")
        for target in self.tau:
            for layer, alpha in self.alpha.items():
                skipping = {name for name, tau in self._tau(layer, target).items() if tau > 0}
                if missing := skipping - alpha.keys():
                    raise ValueError(
                        f"alpha.{layer} has no constant for {listed(missing)}, "
                        f"which target {target} skips"
                    )
        if self.adds_means and self.means_sha256 is None:
            raise ValueError(f"mean_strength is {self.mean_strength}, but there are no means")
        if self.means is not None:
            if self.means.sha256 != self.means_sha256:
                raise ValueError("means_sha256 is not the digest of means")
            self.means.check(self.alpha, self.tau)
        if self.alpha_mode == "shared":
            for layer, alpha in self.alpha.items():
                if len(set(alpha.values())) > 1:
                    raise ValueError(f'alpha_mode is "shared" but alpha.{layer} is {alpha}')
        return self

    @property
    def adds_means(self) -> bool:
        """Whether a token gets something in the place of its skipped pairs."""
        return any(strengths(self.mean_strength).values())

    @property
    def targets(self) -> list[float]:
        """The skip ratios that the policy was calibrated for, ascending."""
        return sorted(map(float, self.tau))

    def share_for(self, top_k: int) -> Share:
        """The share that is compared with the threshold in a model with ``top_k`` experts a token.

        "renormalised": the combine weight over the sum of the token's; "weight": the combine
        weight itself; "router": the probability before the model renormalised or scaled it. With
        one expert a token the renormalised share is always 1, so the default is "weight" there.
        """
        return self.share or default_share(top_k)

    def theta(self, layer: str, target: float | str | None) -> torch.Tensor:
        """The thresholds of one layer: a pair is kept if its share is >= its token's threshold.

        Args:
            layer: The path of the module that owns the experts.
            target: One of ``targets``; None keeps all experts of all tokens but padding.

        Returns:
            float32 [5] on the CPU, by modality code: tau / alpha**alpha_exponent, computed in
            float64 and rounded; -inf where nothing is skipped (tau 0, no tau, OTHER), +inf where
            everything is (alpha 0, PADDING).

        Raises:
            PolicyError: The policy has no such layer or target.
        """
        if layer not in self.alpha:
            raise PolicyError(
                f"the policy has no layer {layer!r}; its {len(self.alpha)} layers are "
                f"{listed(self.alpha)}"
            )
        taus = {} if target is None else self._tau(layer, self._known(target))
        tau = torch.zeros(len(Modality), dtype=torch.float64)
        alpha = torch.ones_like(tau)
        for name, modality in CALIBRATED.items():
            tau[modality] = taus.get(name, 0.0)
            alpha[modality] = self.alpha[layer].get(name, 1.0)
        theta = tau / alpha.pow(self.alpha_exponent)
        theta[alpha == 0] = math.inf
        theta[tau == 0] = -math.inf
        theta[Modality.PADDING] = math.inf
        return theta.to(torch.float32)

    def mean_outputs(self, layer: str, target: float | str | None) -> torch.Tensor | None:
        """What a token gets for each skipped pair of one layer, times the pair's combine weight.

        Args:
            layer: The path of the module that owns the experts.
            target: One of ``targets``; None keeps all experts.

        Returns:
            [C, E, H] on the CPU, by modality code and expert: mean_strength times the means; tokens
            of codes >= C get nothing. None where the policy adds nothing.

        Raises:
            PolicyError: The policy has no such target, or was read without its means.
        """
        if target is None or not self.adds_means:
            return None
        if self.means is None:
            raise PolicyError(
                "the policy adds mean outputs of skipped experts, but was made without them: read "
                "it with SkipPolicy.from_pretrained"
            )
        table = self.means.at(self._known(target)).get(layer)
        return None if table is None else scaled(table, self.mean_strength)

    def check_model(self, model: torch.nn.Module) -> None:
        """Checks that the policy was calibrated for this model.

        Raises:
            PolicyError: The configuration's hash differs, or the model has no module at the path
                of a layer.
        """
        config = getattr(model, "config", None)
        if self.config_hash is not None:
            found = config and config_hash(config)
            if found != self.config_hash:
                raise PolicyError(
                    f"the policy is for {self._model_in_words()} with config hash "
                    f"{self.config_hash:.12}, this {type(model).__name__} has "
                    f"{found or 'no config':.12}: load that model, or calibrate a policy for this "
                    f"one with modes_fx.calibrate"
                )
        modules = {path for path, _ in model.named_modules()}
        if missing := [path for path in self.alpha if path not in modules]:
            raise PolicyError(
                f"{len(missing)} of the policy's {len(self.alpha)} layers are not modules of this "
                f"{type(model).__name__}: {listed(missing)}. The policy is for "
                f"{self._model_in_words()}; pass the whole model, not a part or a compiled wrapper "
                f"of it, or calibrate a policy for this one with modes_fx.calibrate"
            )

    def save_pretrained(self, directory: str | os.PathLike[str], *, card: bool = True) -> Path:
        """Writes ``modes_policy.json`` into a folder, all of it or nothing, and returns its path.

        Means go into a safetensors file beside it. The folder is made if there is none; an
        existing policy is replaced. In the folder of its model, ``modes_fx.attach(model)`` finds
        it.

        Args:
            directory: The folder.
            card: Whether a ``README.md`` that describes the policy is written as well; one that
                is not of a policy is left as it is.

        Raises:
            PolicyError: The policy was made without the means that it names.
        """
        path = write_policy(directory, self._files())
        if card:
            write_card(directory, policy_card(self, "path/to/this/folder"))
        return path

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike[str], revision: str | None = None) -> Self:
        """Reads a policy that ``save_pretrained`` or ``push_to_hub`` wrote.

        Args:
            source: A folder, or the id of a Hugging Face hub repository, "namespace/name".
            revision: The branch, tag or commit in the hub repository.

        Raises:
            PolicyError: There is no such file, or it is not a policy; says what and where.
        """
        path = locate_policy(source, revision)
        try:
            fields = read_fields(path, required={"alpha", "tau", "schema_version"})
            digest = fields.get("means_sha256")
            if isinstance(digest, str):
                file = locate_means(source, revision, path, digest)
                fields["means"] = Means.read(file, digest)
            return cls(**fields)
        except PolicyError as error:
            raise PolicyError(f"{path}: {error}") from None

    def push_to_hub(
        self, repo_id: str, *, private: bool | None = None, token: str | None = None
    ) -> str:
        """Uploads what ``save_pretrained`` writes to a hub repository, made if needed.

        Args:
            repo_id: Of the repository: one of its own, or that of its model.
            private: Whether a repository that is made is private; None: as the account has it.
            token: Of the account; None: the one that is logged in.

        Returns:
            The repository's URL.
        """

        def card(full_id: str) -> str:
            return policy_card(self, full_id)

        return upload_policy(repo_id, self._files(), card, private=private, token=token)

    def _files(self) -> dict[str, bytes]:
        """The content of the policy's files by name, the one that names others last."""
        files = {}
        if self.means_sha256 is not None:
            if self.means is None:
                raise PolicyError("the policy names means that it was made without")
            files[means_file(self.means_sha256)] = self.means.file
        text = self.model_dump_json(indent=2) + "\n"
        return {**files, POLICY_FILE: text.encode()}

    def _known(self, target: float | str) -> str:
        key = target_key(target)
        if key not in self.tau:
            raise PolicyError(
                f"the policy was not calibrated for target {key}; it has {listed(self.tau)}"
            )
        return key

    def _tau(self, layer: str, target: str) -> dict[ModalityName, float]:
        overrides = (self.layer_tau or {}).get(target, {}).get(layer, {})
        return {**self.tau[target], **overrides}

    def _model_in_words(self) -> str:
        named = self.model_id or self.model_type or "another model"
        version = self.provenance.versions.get("transformers")
        return f"{named} (transformers {version})" if version else named


def _in_words(error: ValidationError) -> str:
    problems = []
    for problem in error.errors():
        place = ".".join(map(str, problem["loc"]))
        if problem["type"] == "extra_forbidden":
            problems.append(f"unknown field {place!r}")
        else:
            reason = problem["msg"].removeprefix("Value error, ")
            problems.append(f"{place}: {reason}" if place else reason)
    return "; ".join(problems)
