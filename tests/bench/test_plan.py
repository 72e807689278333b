"""The formulas for a cluster: what must hold between them, and what is refused."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyak.bench.cost import STORED, moved
from polyak.bench.plan import LIVE, Cluster, Row, parse, plan
from polyak.errors import ConfigError

CLUSTERS = st.builds(
    Cluster,
    params=st.floats(1e9, 1e12),
    gpus=st.integers(8, 10_000),
    group=st.integers(2, 8),
    live=st.sampled_from(sorted(LIVE)),
    dtype=st.sampled_from(sorted(STORED)),
    tracks=st.integers(1, 4),
    every=st.integers(1, 20),
)


def rows(cluster: Cluster) -> dict[str, Row]:
    return {row.mode: row for row in plan(cluster)}


@given(CLUSTERS)
def test_all_gpus_together_hold_one_average_for_each_copy_of_the_model(c: Cluster) -> None:
    found, whole = rows(c), c.params * STORED[c.dtype] * c.tracks
    for mode, copies in {
        "DDP": c.gpus,
        "DDP, shard=": 1,
        "fully_shard": 1,
        "hybrid": c.gpus / c.group,
        "tensor parallel": c.gpus / c.group,
    }.items():
        assert found[mode].held * c.gpus == pytest.approx(whole * copies)
        assert found[mode].each * c.params == pytest.approx(found[mode].held)
        assert found[mode].host == 0


@given(CLUSTERS)
def test_an_update_moves_the_bytes_of_the_gpus_own_part(c: Cluster) -> None:
    each = moved(LIVE[c.live], STORED[c.dtype], c.tracks)
    for mode, pieces in {"DDP": 1, "fully_shard": c.gpus, "hybrid": c.group}.items():
        found = rows(c)[mode].update * c.every * c.bandwidth
        assert found == pytest.approx(c.params * each / pieces)


@given(CLUSTERS)
def test_the_host_holds_averages_and_a_buffer_for_the_model_and_the_gpu_neither(c: Cluster) -> None:
    found = rows(c)
    for mode in ("DDP", "fully_shard"):
        beside, off = found[mode], found[f"{mode}, host"]
        pieces = 1 if mode == "DDP" else c.gpus
        assert off.held == 0
        assert off.host == pytest.approx(beside.held + c.params * LIVE[c.live] / pieces)
        live, stored = LIVE[c.live], STORED[c.dtype]
        memory = 2 * live + 2 * stored * c.tracks  # θ is written there by the copy, then read
        assert off.update == pytest.approx(c.params / pieces * (live / c.link + memory / c.host) / c.every)


@given(CLUSTERS)
def test_only_averages_that_the_model_does_not_hold_alike_are_sent_to_be_seen(c: Cluster) -> None:
    found = rows(c)
    assert {mode for mode, row in found.items() if row.block} == {"DDP, shard="}
    assert {mode for mode, row in found.items() if not row.file} == {"DDP", "DDP, host"}
    theta = c.params * LIVE[c.live]
    assert found["DDP, shard="].block == pytest.approx(2 * theta * (c.gpus - 1) / c.gpus)


def test_one_gpu_is_one_process() -> None:
    for row in plan(Cluster(1e9, 1)):
        assert (row.each, row.block, row.file) == (4, 0, 0)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["params=1e9"], "--plan needs gpus="),
        (["gpus=8"], "--plan needs params="),
        (
            ["params=1e9", "gpus=8", "cards=3"],
            "cards=3: must be NAME=VALUE, of the names params, gpus, group",
        ),
        (["params"], "params: must be a number, such as params=1000"),
        (["params=much", "gpus=8"], "params=much: must be a number, such as params=1000 or params=1e3"),
        (["params=1e9", "gpus=inf"], "gpus=inf: must be a whole number"),
        (["params=1e9", "gpus=8.5"], "gpus=8.5: must be a whole number"),
        (["params=nan", "gpus=8"], "params=nan: must be at least 1, and finite"),
        (["params=inf", "gpus=8"], "params=inf: must be at least 1, and finite"),
        (["params=1e9", "gpus=0"], "gpus=0: must be at least 1"),
        (["params=1e9", "gpus=8", "every=-1"], "every=-1: must be at least 1"),
        (["params=1e9", "gpus=8", "link=0"], "link=0.0: must be at least 1"),
        (["params=1e9", "params=2e9", "gpus=8"], "params=2e9: params is given twice"),
        (["params=1e9", "gpus=8", "dtype=int8"], "dtype=int8: must be one of float64, float32, bfloat16"),
        (["params=1e9", "gpus=8", "live=split"], "live=split: must be one of float32, float64, bfloat16"),
    ],
)
def test_a_cluster_that_cannot_be_is_refused(texts: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(texts)
    assert message in str(error.value)


def test_numbers_may_be_written_as_powers_of_ten() -> None:
    cluster = parse(["gpus=1e3", "params=7e9", "dtype=split", "every=10", "host=2.5e10"])
    assert cluster == Cluster(7e9, 1000, dtype="split", every=10, host=2.5e10)
    assert math.isclose(rows(cluster)["fully_shard"].each, 0.003)
