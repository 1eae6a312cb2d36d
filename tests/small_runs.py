"""Small runs for tests: a recipe on tiny random networks, and a run of the toy through the Python interface."""

from pathlib import Path

import numpy as np
import soundfile

from dragontune.algorithms.dragon import Dragon
from dragontune.rewards.alignment import Alignment
from dragontune.sampling import Sampler
from dragontune.testing import Toy, ToyEncoder
from dragontune.training.loop import Loop
from dragontune.training.run_folder import RunFolder
from tiny_models import save_tiny_clap, save_tiny_music

PROMPTS = ("a reel in G major", "a jig for flute", "a reel for violin", "a jig for organ")
TOY_PROMPTS = ("left", "right", "both", "either", "any")


def make_workplace(folder: Path) -> Path:
    """Models, exemplars, prompts and a recipe of less than a second, all by paths relative to `folder`."""
    save_tiny_music(folder / "music")
    save_tiny_clap(folder / "clap")
    (folder / "real").mkdir()
    noise = np.random.default_rng(0)
    for number in range(12):
        soundfile.write(folder / "real" / f"{number:02d}.wav", 0.1 * noise.standard_normal(4096), 16000)
    (folder / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    (folder / "reward.yaml").write_text(
        "class_path: Alignment\ninit_args: {encoder: {class_path: TinyClap, init_args: {model: clap}}}\n"
    )
    (folder / "encoder.yaml").write_text("class_path: TinyClap\ninit_args: {model: clap}\n")
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


RECIPE = """\
model: music
lora: {rank: 2, alpha: 2}
reward:
  class_path: SetFrechet
  init_args: {encoder: {class_path: TinyClap, init_args: {model: clap}}, exemplars: real}
algorithm: {class_path: Dragon, init_args: {beta: 50, sampler: {steps: 3, guidance: 2.0}}}
loop: {rounds: 3, pairs: 6, updates: 2, batch: 6, lr: 1.0e-3, max_norm: 1.0, sample_every: 2, sample_count: 2}
prompts: prompts.txt
evaluation:
  prompts: prompts.txt
  count: 4
  subset: 3
  subsets: 5
  scales: [0, 1]
  players: 1
  rewards: {alignment: {class_path: Alignment, init_args: {encoder: {class_path: TinyClap, init_args: {model: clap}}}}}
"""


def toy_dragon(micro_batch: int = 40) -> Dragon:
    """Towards the right half of the plane: points that agree with the text `right`."""
    reward = Alignment(ToyEncoder())
    return Dragon(Toy(), reward, beta=2.0, sampler=Sampler(steps=4), micro_batch=micro_batch)


def run_toy(folder: RunFolder, loop: Loop) -> bytes:
    """Tune the toy in `folder`, going on where it stopped, and return the bytes of the adapter."""
    algorithm = toy_dragon()
    loop.run(algorithm, TOY_PROMPTS, folder)
    folder.save_adapter(algorithm.generator)
    return (folder.adapter / "adapter_model.safetensors").read_bytes()
