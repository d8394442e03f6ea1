"""How messages list names."""

from modes_fx.errors import listed


def test_a_few_names_are_listed_in_order():
    assert listed(["b", "a"]) == "a, b"


def test_many_names_are_cut_and_counted():
    assert listed("edcba", limit=2) == "a, b and 3 more"
