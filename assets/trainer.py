"""One training loop for the three networks: Adam, warm-up and cosine decay, moving average, resumable at any step."""

import math
import random
from collections.abc import Callable
from pathlib import Path

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def train(
    name: str,
    modules: dict[str, nn.Module],
    loss: Callable[[torch.Generator, random.Random], Tensor],
    build: Path,
    steps: int,
    lr: float,
    warmup: int = 200,
    average: float = 0.999,
    clip: float = 1.0,
    save_every: int = 100,
) -> None:
    """Minimise `loss`, which draws its own batch from the generators it is given (seeded by the step)."""
    for module in modules.values():
        nn.Module.to(module, DEVICE)
    weights = {f"{m}.{n}": p for m, module in modules.items() for n, p in module.named_parameters()}
    optimizer = torch.optim.AdamW(weights.values(), lr=lr, betas=(0.9, 0.99), weight_decay=1e-3)
    shadow = {n: p.detach().clone() for n, p in weights.items()}
    file = build / f"{name}.safetensors"
    start = _load(file, weights, shadow, optimizer) if file.exists() else 0
    count = TextColumn("{task.completed}/{task.total}")
    columns = (TextColumn("{task.description}"), BarColumn(), count, TimeRemainingColumn())
    with Progress(*columns) as progress:
        bar = progress.add_task(name, total=steps, completed=start)
        running = 0.0
        for step in range(start, steps):
            scale = min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / steps))
            for group in optimizer.param_groups:
                group["lr"] = lr * max(scale, 0.01)
            value = loss(torch.Generator().manual_seed(step * 7919 + 1), random.Random(step))
            optimizer.zero_grad()
            value.backward()
            nn.utils.clip_grad_norm_(weights.values(), clip)
            optimizer.step()
            with torch.no_grad():
                keep = min(average, (step + 1) / (step + 10))
                torch._foreach_lerp_(list(shadow.values()), list(weights.values()), 1 - keep)
            running = value.item() if step == start else 0.98 * running + 0.02 * value.item()
            if (step + 1) % 50 == 0:
                progress.update(bar, completed=step + 1, description=f"{name} {running:.4f}")
            if (step + 1) % save_every == 0 or step + 1 == steps:
                print(f"{name} step {step + 1} loss {running:.4f}", flush=True)
                _save(file, step + 1, weights, shadow, optimizer)
    with torch.no_grad():
        for n, p in weights.items():
            p.copy_(shadow[n])
    for module in modules.values():
        nn.Module.to(module, "cpu")


def _save(file: Path, step: int, weights: dict, shadow: dict, optimizer: torch.optim.Optimizer) -> None:
    tensors = {f"weight.{n}": p.detach() for n, p in weights.items()} | {f"shadow.{n}": p for n, p in shadow.items()}
    for n, p in weights.items():
        state = optimizer.state[p]
        tensors |= {f"adam.{k}.{n}": v for k, v in state.items()}
    scratch = file.with_suffix(".tmp")
    save_file({k: v.contiguous() for k, v in tensors.items()}, scratch, {"step": str(step)})
    scratch.rename(file)


def _load(file: Path, weights: dict, shadow: dict, optimizer: torch.optim.Optimizer) -> int:
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        step = int(opened.metadata()["step"])
    tensors = load_file(file)
    with torch.no_grad():
        for n, p in weights.items():
            p.copy_(tensors[f"weight.{n}"])
            shadow[n].copy_(tensors[f"shadow.{n}"])
            optimizer.state[p] = {k: tensors[f"adam.{k}.{n}"].to(DEVICE) for k in ("exp_avg", "exp_avg_sq")}
            optimizer.state[p]["step"] = tensors[f"adam.step.{n}"]
    return step
