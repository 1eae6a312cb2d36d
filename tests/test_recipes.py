import time
from pathlib import Path

import pytest
import yaml

from dragontune import cli
from dragontune.commands import parsing
from dragontune.embedded import ASSETS

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))
RECIPES += sorted((Path(__file__).parents[1] / "recipes" / "gradients").glob("*.yaml"))
RECIPES += sorted((Path(__file__).parents[1] / "recipes" / "models").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_it_can_be_read(path):
    recipe, text, _ = parsing.read_recipe(path, [])
    assert recipe.loop.rounds >= 1
    assert "class_path" in text


REMOTE = """
class_path: InstanceSum
init_args:
  rewards:
    far: {class_path: RemoteReward, init_args: {addresses: ["http://%s:8750"], timeout: %d, chunk: %d}}
"""


def test_the_way_to_a_service_may_change_when_a_run_goes_on(tmp_path):
    text = (RECIPES[0].parent / "smoke.yaml").read_text()

    def fixed(place, timeout, chunk):
        settings = yaml.safe_load(text) | {"reward": yaml.safe_load(REMOTE % (place, timeout, chunk))}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings))
        return parsing.read_recipe(tmp_path / "recipe.yaml", [])[2]

    assert fixed("gpu-1", 10, 4) == fixed("gpu-2", 20, 4)
    assert fixed("gpu-1", 10, 4) != fixed("gpu-1", 10, 5)  # other batches are rounded otherwise


def test_the_two_that_must_be_there():
    assert {"smoke", "demo"} <= {path.stem for path in RECIPES}


@pytest.mark.skipif(not (ASSETS / "tiny-music" / "model_index.json").exists(), reason="the embedded model is not built")
def test_smoke_is_a_whole_run(tmp_path):
    start = time.monotonic()
    assert cli.run(["tune", str(RECIPES[0].parent / "smoke.yaml"), "--out", str(tmp_path / "run")]) == 0
    assert time.monotonic() - start < 180  # under 60 s on two cores with nothing else to do
    assert (tmp_path / "run" / "report" / "index.html").exists()
