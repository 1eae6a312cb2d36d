import json
import subprocess
import sys
from importlib import import_module

import pytest

import dragontune

HEAVY = ("torch", "diffusers", "transformers", "scipy", "peft", "accelerate", "matplotlib", "jsonargparse")


def run(code: str):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_importing_is_light():
    code = f"import dragontune, json, sys; print(json.dumps([m for m in {HEAVY} if m in sys.modules]))"
    assert run(code) == []


def test_importing_is_fast():
    code = "import torch, time; t = time.perf_counter(); import dragontune; print(time.perf_counter() - t)"
    assert run(code) < 0.5


def test_the_core_needs_neither_diffusers_nor_scipy():
    names = ("Key", "Samples", "Audio", "Edm", "Sampler", "Generator", "Encoder", "Reward", "Kto", "contrast")
    wanted = "; ".join(f"dragontune.{name}" for name in names)
    heavy = ("diffusers", "transformers", "scipy", "peft", "accelerate", "matplotlib")
    code = f"import dragontune, json, sys; {wanted}; print(json.dumps([m for m in {heavy} if m in sys.modules]))"
    assert run(code) == []


@pytest.mark.parametrize("name", sorted(set(dir(dragontune)) - {"__version__"}))
def test_every_name_leads_somewhere(name):
    assert getattr(dragontune, name) is getattr(import_module(f"dragontune.{dragontune._HOME[name]}"), name)


def test_a_wrong_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="Dragn"):
        _ = dragontune.Dragn
