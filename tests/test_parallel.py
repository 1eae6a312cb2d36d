"""Two processes (gloo, on this machine) make the same demonstrations as one."""

from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from dragontune.algorithms.dragon import Dragon
from dragontune.parallel import gather_rows, is_main, share
from dragontune.rewards.diversity import Vendi
from dragontune.sampling import Sampler
from dragontune.seeding import Key
from dragontune.testing import Toy, ToyEncoder

PROMPTS = ["left", "right", "any", "left", "right"]


def collected() -> torch.Tensor:
    torch.set_num_threads(1)
    experience, _ = Dragon(Toy(), Vendi(ToyEncoder()), sampler=Sampler(steps=4)).collect(PROMPTS, Key(0))
    return torch.stack([experience.positive.latents, experience.negative.latents])


def worker(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    assert is_main() == (rank == 0)
    assert share(5).tolist() == ([0, 1, 2] if rank == 0 else [3, 4])
    torch.save(collected(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_are_one(tmp_path: Path):
    mp.spawn(worker, (str(tmp_path),), nprocs=2)  # pyright: ignore[reportPrivateImportUsage]
    alone = collected()
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt", weights_only=True), alone, atol=1e-5, rtol=1e-5)


def test_one_process_is_main_and_does_everything():
    assert is_main()
    assert share(4).tolist() == [0, 1, 2, 3]
    rows = torch.arange(3)
    assert gather_rows(rows) is rows
