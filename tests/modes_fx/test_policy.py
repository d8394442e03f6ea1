"""SkipPolicy: what it stores, what it refuses, and the thresholds it gives."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

from modes_fx.errors import PolicyError
from modes_fx.fingerprint import config_hash
from modes_fx.policy import SkipPolicy
from modes_fx.policy_fields import Provenance, Reached
from modes_fx.vocabulary import Modality

LAYER = "model.language_model.layers.0.mlp.experts"
INF = math.inf

constants = st.floats(0, 1e6)
names = st.sampled_from(["text", "vision", "audio"])
alphas = st.fixed_dictionaries({"text": constants, "vision": constants, "audio": constants})
policies = st.builds(
    SkipPolicy,
    alpha=st.dictionaries(st.text(min_size=1), alphas, min_size=1, max_size=3),
    tau=st.dictionaries(
        st.floats(0, 1).map(lambda t: round(t, 3)), st.dictionaries(names, constants)
    ),
    share=st.sampled_from([None, "renormalised", "weight", "router"]),
    alpha_exponent=st.floats(0, 4),
    min_k=st.integers(0, 8),
    special_token_ids=st.lists(st.integers(0, 2**20)),
    model_id=st.none() | st.text(),
)


def make_policy(**options):
    fields = {"alpha": {LAYER: {"text": 0.5, "vision": 2.0}}, "tau": {0.5: {"text": 0.1}}}
    return SkipPolicy(**{**fields, **options})


@pytest.fixture(scope="module")
def tiny_model():
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
    config = Qwen3VLMoeConfig(
        text_config={
            "vocab_size": 128,
            "hidden_size": 32,
            "intermediate_size": 64,
            "moe_intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "rope_parameters": rope,
        },
        vision_config={
            "depth": 1,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_heads": 2,
            "out_hidden_size": 32,
            "patch_size": 4,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
        },
        image_token_id=100,
        video_token_id=101,
    )
    return Qwen3VLMoeForConditionalGeneration(config)


class TestFields:
    def test_alpha_and_tau_may_be_given_by_position(self):
        policy = SkipPolicy({LAYER: {"text": 1.0}}, {0.5: {"text": 0.1}})
        assert policy.alpha == {LAYER: {"text": 1.0}}

    def test_targets_are_spelled_one_way(self):
        policy = make_policy(tau={"0.50": {"text": 0.1}, 0.88: {}, 0: {}})
        assert list(policy.tau) == ["0.5", "0.88", "0.0"]
        assert policy.targets == [0.0, 0.5, 0.88]

    def test_a_policy_cannot_be_changed(self):
        with pytest.raises(ValueError, match="frozen"):
            make_policy().min_k = 1

    @pytest.mark.parametrize(
        ("top_k", "share"), [(8, "renormalised"), (2, "renormalised"), (1, "weight")]
    )
    def test_default_share_follows_top_k(self, top_k, share):
        assert make_policy().share_for(top_k) == share
        assert make_policy(share="router").share_for(top_k) == "router"

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"bogus": 1}, "unknown field 'bogus'"),
            ({"provenance": {"sed": 1}}, "unknown field 'provenance.sed'"),
            ({"schema_version": 4}, "schema version 4.*upgrade"),
            ({"schema_version": 4, "bogus": 1}, "schema version 4.*upgrade"),
            ({"alpha": {LAYER: {"text": "0.5"}}}, rf"alpha\.{LAYER}\.text: .*number"),
            ({"alpha": {LAYER: {"text": -1.0}}}, rf"alpha\.{LAYER}\.text: .*greater"),
            ({"alpha": {LAYER: {"text": math.nan}}}, "finite"),
            ({"alpha": {LAYER: {"vison": 1.0}}}, "vison.*'text', 'vision' or 'audio'"),
            ({"alpha": [1.0]}, "alpha: .*dictionary"),
            ({"tau": {0.5: {"text": math.inf}}}, r"tau\.0\.5\.text: .*finite"),
            ({"tau": {1.5: {}}}, "between 0 and 1, not 1.5"),
            ({"tau": {"half": {}}}, "between 0 and 1, not 'half'"),
            ({"tau": {True: {}}}, "between 0 and 1, not True"),
            ({"tau": {"0.5": {}, "0.50": {}}}, "given twice: '0.5', '0.50'"),
            ({"tau": {0.5: {"audio": 0.1}}}, "no constant for audio, which target 0.5 skips"),
            ({"layer_tau": {0.7: {}}}, "layer_tau has the target 0.7"),
            ({"layer_tau": {0.5: {"elsewhere": {}}}}, "layers without alpha: elsewhere"),
            ({"share": "mine"}, "share: .*'renormalised'"),
            ({"min_k": 1.5}, "min_k: .*integer"),
            ({"alpha_mode": "shared"}, 'alpha_mode is "shared" but'),
        ],
    )
    def test_what_is_wrong_is_named(self, fields, message):
        with pytest.raises(PolicyError, match=message):
            make_policy(**fields)


class TestTheta:
    def test_is_tau_over_alpha_by_modality_code(self):
        theta = make_policy(tau={0.5: {"text": 0.1, "vision": 0.3}}).theta(LAYER, 0.5)
        expected = torch.tensor([0.1 / 0.5, 0.3 / 2.0, -INF, -INF, INF], dtype=torch.float32)
        assert theta.dtype == torch.float32
        torch.testing.assert_close(theta, expected, rtol=0, atol=0)

    @pytest.mark.parametrize(
        ("alpha", "tau", "expected"),
        [
            (0.0, 0.0, -INF),
            (0.5, 0.0, -INF),
            (0.0, 0.1, INF),
            (1e-300, 1e300, INF),
            (1e300, 1e-300, 0.0),
        ],
    )
    @pytest.mark.parametrize("exponent", [1.0, 0.5, 2.0])
    def test_edges(self, alpha, tau, expected, exponent):
        policy = make_policy(
            alpha={LAYER: {"text": alpha}}, tau={0.5: {"text": tau}}, alpha_exponent=exponent
        )
        assert policy.theta(LAYER, 0.5)[Modality.TEXT] == expected

    def test_no_tau_for_a_modality_keeps_it(self):
        assert make_policy().theta(LAYER, 0.5)[Modality.VISION] == -INF

    def test_no_target_keeps_all_but_padding(self):
        assert make_policy().theta(LAYER, None).tolist() == [-INF, -INF, -INF, -INF, INF]

    def test_exponent_weakens_alpha(self):
        policy = make_policy(tau={0.5: {"text": 0.1, "vision": 0.3}}, alpha_exponent=0.5)
        theta = policy.theta(LAYER, 0.5)
        assert theta[Modality.VISION].item() == pytest.approx(0.3 / math.sqrt(2.0))

    def test_layer_tau_replaces_tau_where_it_has_an_entry(self):
        other = LAYER.replace("0", "1")
        policy = make_policy(
            alpha={LAYER: {"text": 0.5, "vision": 2.0}, other: {"text": 0.5, "vision": 2.0}},
            tau={0.5: {"text": 0.1, "vision": 0.4}},
            layer_tau={0.5: {other: {"text": 0.3}}},
        )
        assert policy.theta(LAYER, 0.5)[:2].tolist() == pytest.approx([0.2, 0.2])
        assert policy.theta(other, 0.5)[:2].tolist() == pytest.approx([0.6, 0.2])

    @given(alpha=constants, taus=st.tuples(constants, constants))
    def test_grows_with_tau(self, alpha, taus):
        low, high = (
            make_policy(alpha={LAYER: {"text": alpha}}, tau={0.5: {"text": tau}}).theta(LAYER, 0.5)
            for tau in sorted(taus)
        )
        assert (low <= high).all()

    def test_unknown_target_lists_the_calibrated_ones(self):
        with pytest.raises(PolicyError, match=r"not calibrated for target 0\.6; it has 0\.5"):
            make_policy().theta(LAYER, 0.6)

    def test_unknown_layer_lists_the_known_ones(self):
        with pytest.raises(PolicyError, match=f"no layer 'layers.9'.*{LAYER}"):
            make_policy().theta("layers.9", 0.5)


class TestFile:
    @given(policy=policies)
    def test_saved_and_loaded_is_equal(self, policy, tmp_path_factory):
        folder = tmp_path_factory.mktemp("policy")
        policy.save_pretrained(folder)
        assert SkipPolicy.from_pretrained(folder) == policy

    def test_provenance_survives(self, tmp_path):
        reached = {0.5: Reached(kl=0.01, skip_ratio=0.501, skip_ratio_by_modality={"text": 0.4})}
        provenance = Provenance(data="digits", samples=256, seed=0, reached=reached)
        make_policy(provenance=provenance).save_pretrained(tmp_path)
        loaded = SkipPolicy.from_pretrained(tmp_path).provenance
        assert loaded == provenance
        assert loaded.reached["0.5"].skip_ratio == 0.501

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ('{"alpha": {},\n "tau": ', "not JSON at line 2, column 9"),
            ('{"alpha": {}, "tau": {}, "schema_version": 1, "means": 2}', "means: .*Means"),
            ("", "not JSON at line 1"),
            ("[]", "JSON list where an object is expected"),
            ("{}", "lacks the fields alpha, schema_version, tau"),
            ('{"alpha": {}, "tau": 3, "schema_version": 1}', "tau: .*dictionary"),
            ('{"alpha": {}, "tau": {}, "schema_version": "1"}', "schema_version: .*integer"),
            ('{"alpha": {}, "tau": {}, "schema_version": 7}', "schema version 7"),
            ('{"alpha": {}, "tau": {}, "schema_version": 1, "beta": 2}', "unknown field 'beta'"),
            ('{"alpha": {}, "tau": {"0.5": {"text": NaN}}, "schema_version": 1}', "finite"),
        ],
    )
    def test_a_corrupt_file_is_named_with_the_fault(self, tmp_path, text, message):
        (tmp_path / "modes_policy.json").write_text(text)
        with pytest.raises(PolicyError, match=rf"(?s)modes_policy\.json: .*{message}"):
            SkipPolicy.from_pretrained(tmp_path)


class TestModel:
    def test_its_own_model_is_accepted(self, tiny_model):
        make_policy(config_hash=config_hash(tiny_model.config)).check_model(tiny_model)
        make_policy().check_model(tiny_model)

    def test_another_configuration_is_refused(self, tiny_model):
        policy = make_policy(config_hash="0" * 64, model_id="org/other")
        with pytest.raises(
            PolicyError, match="for org/other with config hash 000000000000, this Q"
        ):
            policy.check_model(tiny_model)

    def test_a_model_without_configuration_is_refused(self):
        with pytest.raises(PolicyError, match="this Identity has no config"):
            make_policy(config_hash="0" * 64).check_model(torch.nn.Identity())

    def test_layers_that_the_model_lacks_are_counted_and_named(self, tiny_model):
        alpha = {LAYER: {"text": 0.5}, "model.layers.9.experts": {"text": 1.0}}
        with pytest.raises(PolicyError, match=r"1 of the policy's 2 layers.*model\.layers\.9"):
            make_policy(alpha=alpha).check_model(tiny_model)
