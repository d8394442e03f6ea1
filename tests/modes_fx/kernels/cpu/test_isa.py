"""Which instruction set is chosen."""

import pytest

from modes_fx.kernels.cpu.isa import ISAS, detect_isa


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)
def test_one_can_be_named(isa, monkeypatch) -> None:
    monkeypatch.setenv("MODES_FX_ISA", isa.name)
    assert detect_isa() == isa


def test_an_unknown_name_is_refused_with_those_that_there_are(monkeypatch) -> None:
    monkeypatch.setenv("MODES_FX_ISA", "avx1024")
    with pytest.raises(ValueError, match="'avx1024'; kernels are built for amx_bf16, avx512_bf16"):
        detect_isa()


@pytest.mark.parametrize(
    ("capability", "bf16", "amx", "name"),
    [
        ("AVX512", True, True, "amx_bf16"),
        ("AVX512", True, False, "avx512_bf16"),
        ("AVX512", False, False, "avx512"),
        ("AVX2", True, True, "avx2"),
        ("SVE256", False, False, "default"),
    ],
)
def test_the_fastest_one_is_found(capability, bf16, amx, name, monkeypatch) -> None:
    monkeypatch.delenv("MODES_FX_ISA", raising=False)
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: capability)
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: amx)
    assert detect_isa().name == name
