"""Functions of the user's own through the command line: what is refused, what is scored, whole runs."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from dragontune import cli
from dragontune.commands import parsing, shorthand
from dragontune.rewards import source
from own_files import REWARDS, own_files
from small_runs import make_workplace

RECIPE_FILE = Path(__file__).parents[1] / "recipes" / "own_reward.py"


@pytest.fixture
def folder(tmp_path):
    with own_files(tmp_path) as path:
        yield path


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return make_workplace(tmp_path_factory.mktemp("workplace"))


@pytest.fixture
def workplace(built, folder):
    shutil.copytree(built, folder, dirs_exist_ok=True)
    return folder


def refused(capsys, *arguments, code=2):
    capsys.readouterr()
    assert cli.run(list(arguments)) == code
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1, said
    assert said[0].startswith("dragontune: ")
    return said[0]


WRONG = [
    ("raises", ["ValueError: no such beat (my_rewards.py, line"], 2),
    ("quits", ["SystemExit: 0"], 2),
    ("nothing", ["got None", "return a list"], 2),
    ("words", ["got str 'loud'"], 2),
    ("mapping", ["got dict"], 2),
    ("mean", ["of shape ()"], 2),
    ("tall", ["1) and type float32"], 2),
    ("longer", ["got a list of "], 2),
    ("turned", ["complex128"], 2),
    ("unpaired", ["expected a pair (scores, metadata)"], 2),
    ("broken", ["gave nan for item 1 of the", "(prompt '"], 5),
    ("one", ["one(media)"], 2),
    ("number", ["int 3"], 2),
    ("missing", ["there is Quiet"], 2),
]


@pytest.mark.parametrize(("name", "words", "code"), WRONG)
def test_wrong_functions_through_the_command_line(workplace, capsys, name, words, code):
    (workplace / "reward-own.yaml").write_text(f"reward: my_rewards.py:{name}\n")
    for arguments in (
        ["score", "real", "--reward", f"my_rewards.py:{name}"],
        ["score", "real", "--reward", "reward-own.yaml", "--json"],
        ["tune", "recipe.yaml", "--reward", f"my_rewards.py:{name}", "--evaluation", "null"],
    ):
        said = refused(capsys, *arguments, code=code)
        for word in [f"my_rewards.py:{name}" if name != "one" else "my_rewards.py", *words]:
            assert word in said
        if arguments[0] == "score" and name not in ("one", "number", "missing"):
            assert "while scoring real/00.wav" in said
    assert not (workplace / "runs" / "recipe" / "log.jsonl").exists()


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ("gone.py:level", ["gone.py", "not there"]),
        ("unfinished.py:f", ["SyntaxError", "line 1"]),
        ("my_rewards.py", ["file.py:name"]),
        ("nowhere.rewards:f", ["nowhere.rewards", "ModuleNotFoundError"]),
        ("gone.yaml", ["gone.yaml", "not there"]),
    ],
)
def test_wrong_names_through_the_command_line(workplace, capsys, named, words):
    (workplace / "unfinished.py").write_text("def f(media, prompts:\n")
    said = refused(capsys, "score", "real", "--reward", named)
    for word in words:
        assert word in said


def test_wrong_classes_through_the_command_line(workplace, capsys):
    (workplace / "quiet.yaml").write_text("class_path: my_rewards.py:Quiet\ninit_args: {scal: 2}\n")
    assert "got scal" in refused(capsys, "score", "real", "--reward", "quiet.yaml")
    (workplace / "quiet.yaml").write_text("class_path: my_rewards.py:Quieter\n")
    assert "there is Quiet" in refused(capsys, "score", "real", "--reward", "quiet.yaml")
    (workplace / "quiet.yaml").write_text("class_path: my_rewards.py:dataclass\n")
    said = refused(capsys, "score", "real", "--reward", "quiet.yaml")
    assert "dataclass" in said
    (workplace / "my_rewards.py").write_text(REWARDS + "\n\nclass Other:\n    pass\n")
    (workplace / "quiet.yaml").write_text("class_path: my_rewards.py:Other\n")
    said = refused(capsys, "score", "real", "--reward", "quiet.yaml")
    assert "my_rewards.py:Other, which is none" in said


def scores(capsys, *arguments):
    capsys.readouterr()
    assert cli.run(["score", "real", "--json", "--reward", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def test_score_alone(workplace, capsys):
    found = scores(capsys, "my_rewards.py:level")
    assert found["scope"] == "instance"
    assert [row["file"] for row in found["files"]] == [f"{i:02d}.wav" for i in range(12)]
    (workplace / "quiet.yaml").write_text("class_path: my_rewards.py:Quiet\ninit_args: {scale: 2}\n")
    negated = scores(capsys, "quiet.yaml")
    assert [-row["score"] for row in negated["files"]] == pytest.approx([row["score"] for row in found["files"]])
    assert scores(capsys, "my_rewards.py:Quiet")["score"] == pytest.approx(-found["score"] / 2)
    (workplace / "sub").mkdir()
    shutil.copy("my_rewards.py", "sub/others.py")
    (workplace / "sub" / "reward.yaml").write_text(
        "class_path: SetFunction\ninit_args: {function: others.py:spread, least: 2}\n"
    )
    assert scores(capsys, "sub/reward.yaml")["scope"] == "set"
    assert cli.run(["score", "real", "--reward", "my_rewards.py:level"]) == 0
    assert "07.wav" in capsys.readouterr().out


SUM = {
    "class_path": "Sum",
    "init_args": {"rewards": {"level": "my_rewards.py:level", "quiet": {"class_path": "my_rewards.py:Quiet"}}},
}


def recipe(workplace, reward, evaluation):
    """The small recipe with another reward, in a folder of its own; the name of its file."""
    settings = yaml.safe_load((workplace / "recipe.yaml").read_text())
    settings["reward"] = reward
    settings["evaluation"]["rewards"] = evaluation
    settings["evaluation"]["count"] = 4
    (workplace / "mine.yaml").write_text(yaml.safe_dump(settings))
    return "mine.yaml"


@pytest.mark.parametrize(
    ("reward", "evaluation"),
    [
        ("own_reward.py:brightness", {"level": "my_rewards.py:level"}),
        (
            "my_rewards.py:trl",
            {"spread": {"class_path": "SetFunction", "init_args": {"function": "my_rewards.py:spread"}}},
        ),
        (SUM, {"quiet": "my_rewards.py:Quiet"}),
    ],
    ids=["plain", "trl", "sum"],
)
def test_a_run(workplace, capsys, reward, evaluation):
    """Ten lines and a recipe are a run, with a report; the recipe it leaves behind is the same run."""
    shutil.copy(RECIPE_FILE, workplace / "own_reward.py")
    path = recipe(workplace, reward, evaluation)
    assert cli.run(["tune", path, "--out", "run"]) == 0
    metrics = json.loads((workplace / "run/report/metrics.json").read_text())["rewards"]
    assert set(metrics) == {"target", *evaluation}
    written = (workplace / "run/recipe.yaml").read_text()
    assert source.PREFIX not in written
    assert cli.run(["tune", "run/recipe.yaml", "--out", "again", "--evaluation", "null"]) == 0
    one, other = (workplace / name / "adapter/adapter_model.safetensors" for name in ("run", "again"))
    assert one.read_bytes() == other.read_bytes()
    assert cli.run(["tune", str(workplace / path), "--out", "run", "--resume"]) == 0
    assert "nothing left to do" in capsys.readouterr().out
    shutil.copytree("run", "elsewhere")
    for file in ("my_rewards.py", "own_reward.py"):
        (workplace / file).unlink()
    assert cli.run(["generate", "--adapter", "elsewhere", "--prompt", "a reel", "--out", "clips"]) == 0


def test_a_function_beside_its_recipe(workplace, monkeypatch, capsys):
    (workplace / "inside").mkdir()
    path = recipe(workplace, "beside_me.py:f", {})
    shutil.move(path, "inside/mine.yaml")
    (workplace / "inside" / "beside_me.py").write_text("def f(media, prompts):\n    return media.loudness()\n")
    for name in ("inside/mine.yaml", str(workplace / "inside/mine.yaml")):
        _, text, fixed = parsing.read_recipe(Path(name), [])
        assert yaml.safe_load(text)["reward"]["init_args"]["function"] == "inside/beside_me.py:f"
        assert json.loads(fixed)["reward"]["init_args"]["function"] == "inside/beside_me.py:f"
    with pytest.raises(SystemExit):
        cli.run(["tune", "inside/mine.yaml", "--reward", "my_rewards.py:Quiet", "--print_config"])
    printed = capsys.readouterr().out
    assert "class_path: my_rewards.py:Quiet" in printed
    assert source.PREFIX not in printed
    monkeypatch.chdir(workplace / "inside")
    _, text, _ = parsing.read_recipe(Path("mine.yaml"), ["--reward=../my_rewards.py:level"])
    assert yaml.safe_load(text)["reward"]["init_args"]["function"] == "../my_rewards.py:level"


def test_the_functions_of_the_docs(workplace, capsys):
    """Both are run as the page says."""
    page = (Path(__file__).parents[1] / "docs" / "extend.md").read_text("utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    for name in ("def brightness(media, prompts)", "def level(samples, prompts, metadata)"):
        (workplace / "documented.py").write_text(next(block for block in blocks if name in block))
        found = scores(capsys, f"documented.py:{name[4 : name.index('(')]}")
        assert found["scope"] == "instance"
        assert 0 < found["score"] < 8
    settings = yaml.safe_load(next(b for b in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL) if "SetFunction" in b))
    (workplace / "my_rewards.py").write_text(REWARDS + "\n\nbrightness = level\n")
    full = shorthand.expanded(settings, workplace)
    assert full["reward"]["class_path"] == full["evaluation"]["rewards"]["level"]["class_path"] == shorthand.FUNCTION


def test_shorthand_leaves_the_rest_alone(folder):
    settings = yaml.safe_load((Path(__file__).parents[1] / "recipes" / "demo.yaml").read_text())
    assert shorthand.expanded(settings, folder) == settings
    assert shorthand.reward("Vendi", folder) == "Vendi"
    assert (
        shorthand.expanded({"prompts": "odd.py:prompts", "rewards": ["a.py:b"]}, folder)["prompts"] == "odd.py:prompts"
    )
    short = {"reward": "my_rewards.py:level", "members": [{"class_path": "my_rewards.py:Quiet"}]}
    full = shorthand.expanded(short, folder)
    assert full["members"][0]["class_path"].startswith(source.PREFIX)
    assert shorthand.restored(full) == {
        "reward": {"class_path": shorthand.FUNCTION, "init_args": {"function": "my_rewards.py:level"}},
        "members": [{"class_path": "my_rewards.py:Quiet"}],
    }
    words = [
        "--rewards",
        "{a: 'my_rewards.py:level'}",
        "--reward=my_rewards.py:level",
        "--loop.rounds",
        "3",
        "--reward",
    ]
    said = shorthand.overrides(words, folder)
    assert json.loads(said[1])["a"]["class_path"] == shorthand.FUNCTION
    assert json.loads(said[2].partition("=")[2])["class_path"] == shorthand.FUNCTION
    assert said[3:] == words[3:]
