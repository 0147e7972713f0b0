"""Configuration: JSON both ways, unknown keys refused, values checked."""

from __future__ import annotations

import pytest

from ragembed.config import ChunkingConfig, RetrievalConfig, ScanConfig
from ragembed.errors import InvalidInput


def test_json_round_trip_and_fingerprint() -> None:
    config = ScanConfig(include=("*.md",), hidden=True)
    assert ScanConfig.from_json(config.to_json()) == config
    assert config.fingerprint() == ScanConfig.from_json(config.to_json()).fingerprint()
    assert config.fingerprint() != ScanConfig().fingerprint()


def test_an_unknown_key_is_an_error() -> None:
    with pytest.raises(InvalidInput, match="no setting windw"):
        ChunkingConfig.from_json({"windw": 3})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ChunkingConfig(window=4), "window is 4"),
        (lambda: ChunkingConfig(overlap=65), "overlap is 65"),
        (lambda: ChunkingConfig(passage=100), "passage is 100"),
        (lambda: ChunkingConfig(characters_per_token=1), "characters_per_token is 1"),
        (lambda: RetrievalConfig(candidates=0), "candidates is 0"),
        (lambda: RetrievalConfig(dense_weight=1.5), "dense_weight is 1.5"),
        (lambda: ScanConfig(max_file_size=0), "max_file_size is 0"),
        (lambda: ScanConfig(encoding="klingon"), "no text encoding 'klingon'"),
    ],
)
def test_values_are_checked(make: object, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        make()  # type: ignore[operator]
