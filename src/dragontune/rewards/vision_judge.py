"""A vision-language model as a reward: it looks at a picture, or at four frames of a video, and gives a whole number.

After Free2Guide (Kim et al. 2025, arXiv 2411.17041), whose code scores early clean estimates so: four key frames in a
2 x 2 grid, reasoning first, then a number from 1 to 9, temperature 0.3, seed 42. Differences: any endpoint that speaks
OpenAI's chat completions; an answer that says nothing counts as the middle of the scale (their code: 0, which is worse
than the worst verdict). Left out: several pictures in a question, examples in the question, and judges of audio.
"""

import base64
import hashlib
import json
import math
import os
import re
import tempfile
import threading
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from dragontune.data import Media, Samples
from dragontune.errors import InputError, NonFiniteError
from dragontune.media.image import Images, pixels, png
from dragontune.media.video import Video
from dragontune.rewards.base import InstanceReward
from dragontune.rewards.chat import Chat, Outcome

QUESTION = "What was asked for: {prompt}\nHow well does what you see fit it?"
ORDER = (
    "The picture is a grid of four frames of one video, evenly spaced in time: the first is top left, the second top "
    "right, the third bottom left, the fourth bottom right. Judge the video, its motion included, not the grid. "
)
TASK = (
    "You are a careful judge of generated media. {order}First reason in a few sentences about what was asked for and "
    "what can be seen. Then end with a last line that holds nothing but your score, a whole number from {least} (the "
    "worst) to {most} (the best)."
)


@dataclass
class Tally:
    """What a judge has been asked so far, in this process."""

    requests: int = 0
    retries: int = 0
    """Requests that repeated one which came to nothing."""
    failures: int = 0
    """Items that got the neutral score."""
    hits: int = 0
    """Items that needed no request: their verdict was known, or an equal item stood in the same batch."""
    reached: bool = False
    """Whether the endpoint ever answered."""
    in_a_row: int = 0
    """Questions without a verdict since the last verdict."""


@dataclass(frozen=True)
class VisionJudge(InstanceReward[Tensor]):
    """The score, a whole number from `least` to `most`, that a vision-language model gives to each picture or video.

    `endpoint`, `key_variable`, `timeout`, `retries`, `backoff` and `longest_wait` are those of `Chat`; `model` is what
    the endpoint calls the model. Media are `Images`, `Video`s or image tensors (n, 3, height, width) in [0, 1]. In
    `question`, `{prompt}` stands for the item's prompt. `temperature` and `seed` are left to the endpoint where they
    are null. `workers` questions are under way at a time. Verdicts are remembered by a SHA-256 of the pixels and all
    else that is asked, in memory and, with `cache`, in that folder; equal items are asked about once.

    An item whose attempts all fail gets `neutral` (null: the middle of the scale), is counted in `tally`, and is asked
    about anew when it comes again; a warning names how many there were. More than `max_failures` such questions in a
    row stop the run, and so does an endpoint that gives no answer of any kind when it is first asked.

    >>> VisionJudge("http://localhost:8000/v1", "Qwen/Qwen2.5-VL-7B-Instruct")(samples)
    tensor([7., 3.], dtype=torch.float64)

    Raises:
        InputError: as `Chat`, a scale that is none, media that are no pictures, or an endpoint as above.
        NonFiniteError: a pixel is NaN or infinite.
    """

    endpoint: str
    model: str
    key_variable: str = ""
    question: str = QUESTION
    temperature: float | None = 0.3
    seed: int | None = 42
    timeout: float = 60.0
    retries: int = 4
    backoff: float = 1.0
    longest_wait: float = 60.0
    workers: int = 4
    least: int = 1
    most: int = 9
    neutral: float | None = None
    max_failures: int = 8
    cache: str | None = None

    def __post_init__(self) -> None:
        _ = self.chat
        if not self.model:
            raise InputError("expected the name of a model, got nothing; set model to what the endpoint calls it")
        if not 0 <= self.least < self.most:
            raise InputError(
                f"expected a scale from 0 or more upwards, got {self.least} to {self.most}; 1 to 9 is usual"
            )
        if self.neutral is not None and not math.isfinite(self.neutral):
            raise InputError(f"expected a finite neutral score, got {self.neutral}; null is the middle of the scale")
        if self.temperature is not None and not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise InputError(f"expected a temperature of 0 or more, got {self.temperature}; 0.3 is usual")
        if not 1 <= self.workers <= 256:
            raise InputError(f"expected 1 to 256 workers, got {self.workers}; 4 are usual")
        if self.max_failures < 0:
            raise InputError(f"expected max_failures of 0 or more, got {self.max_failures}; 8 are usual")

    @property
    def needs_prompts(self) -> bool:
        """Unless the question leaves them out."""
        return "{prompt}" in self.question

    @property
    def chat(self) -> Chat:
        """The endpoint."""
        return Chat(self.endpoint, self.key_variable, self.timeout, self.retries, self.backoff, self.longest_wait)

    @property
    def middle(self) -> float:
        """The neutral score."""
        return (self.least + self.most) / 2 if self.neutral is None else self.neutral

    @cached_property
    def tally(self) -> Tally:
        """Counts, kept up to date."""
        return Tally()

    @cached_property
    def known(self) -> dict[str, int]:
        """Verdicts by digest."""
        return {}

    @torch.no_grad()
    def encode(self, samples: Samples) -> Float[Tensor, " n"]:
        """The scores, float64 on the CPU."""
        questions = [
            _Question.of(picture, self._asked(prompt, isinstance(samples.media, Video)))
            for picture, prompt in zip(_pictures(samples.media), samples.prompts, strict=True)
        ]
        new = {question.digest: question for question in questions if self._recall(question.digest) is None}
        troubles = self._ask(new) if new else {}
        self.tally.hits += len(questions) - len(new)
        verdicts = [self.known.get(question.digest) for question in questions]
        failed = verdicts.count(None)
        if failed:
            self.tally.failures += failed
            warnings.warn(
                f"{failed} of {len(verdicts)} items got no verdict of {self.model} ({next(iter(troubles.values()))}) "
                f"and the neutral score {self.middle:g} instead",
                stacklevel=1,  # this module's own, which the command line shows
            )
        return torch.tensor([self.middle if v is None else float(v) for v in verdicts], dtype=torch.float64)

    def score(self, features: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The scores as they are."""
        return features

    def _asked(self, prompt: str, moving: bool) -> dict[str, Any]:
        """All of the request but the picture."""
        task = TASK.format(order=ORDER if moving else "", least=self.least, most=self.most)
        wanted = {"model": self.model, "temperature": self.temperature, "seed": self.seed}
        chosen = {name: value for name, value in wanted.items() if value is not None}
        return chosen | {"task": task, "question": self.question.replace("{prompt}", prompt)}

    def _ask(self, questions: Mapping[str, "_Question"]) -> dict[str, str]:
        """Put the verdicts into `known`, in any order; what was wrong where there is none."""
        chat, troubles = self.chat, dict[str, str]()
        with _pool(self.workers) as (pool, stop):
            asked: dict[Future[Outcome], str] = {
                pool.submit(lambda q: chat.ask(q.body(), self._read, stop, q.digest), question): digest
                for digest, question in questions.items()
            }
            for future in as_completed(asked):
                self._note(asked[future], future.result(), troubles)
        return troubles

    def _note(self, digest: str, outcome: Outcome, troubles: dict[str, str]) -> None:
        tally = self.tally
        tally.requests += outcome.requests
        tally.retries += max(outcome.requests - 1, 0)
        tally.reached |= outcome.reached
        if outcome.value is not None:
            tally.in_a_row = 0
            self._remember(digest, outcome.value)
            return
        troubles[digest] = outcome.trouble
        tally.in_a_row += 1
        if not tally.reached:
            raise InputError(
                f"expected a chat model at {self.endpoint}, got {outcome.trouble} in {outcome.requests} attempts; "
                "start the server, or correct the endpoint"
            )
        if tally.in_a_row > self.max_failures:
            raise InputError(
                f"expected verdicts of {self.model} at {self.endpoint}, got none for {tally.in_a_row} questions in a "
                f"row (the last: {outcome.trouble}); see to the server, or raise max_failures or timeout"
            )

    def _read(self, reply: str) -> int | None:
        return verdict(reply, self.least, self.most)

    def _recall(self, digest: str) -> int | None:
        """A verdict from memory or the folder, where a torn or strange file counts for nothing."""
        if digest not in self.known and self.cache is not None:
            with suppress(OSError, ValueError, RecursionError):
                match json.loads((Path(self.cache) / f"{digest}.json").read_bytes()):
                    case {"score": int(score)} if self.least <= score <= self.most and not isinstance(score, bool):
                        self.known[digest] = score
        return self.known.get(digest)

    def _remember(self, digest: str, score: int) -> None:
        self.known[digest] = score
        if self.cache is None:
            return
        try:
            folder = Path(self.cache)
            folder.mkdir(parents=True, exist_ok=True)
            number, beside = tempfile.mkstemp(suffix=".partial", dir=folder)
            with os.fdopen(number, "wb") as file:
                file.write(json.dumps({"score": score}).encode())
            Path(beside).replace(folder / f"{digest}.json")
        except OSError as error:
            raise InputError(f"expected a folder to keep verdicts in, got {self.cache} ({error}); set cache") from error


def verdict(reply: str, least: int, most: int) -> int | None:
    """The last number of a reply, if it is a whole one from `least` to `most`.

    The scale itself does not count: `7/9`, `7 out of 9` and `7 (from 1 to 9)` are 7 on a scale from 1 to 9.
    """
    reply = re.sub(rf"(?<![0-9.,]){least}\s*(?:-|–|—|to|through)\s*{most}(?![0-9])", " ", reply)
    reply = re.sub(rf"out\s+of\s+{most}(?![0-9])|(?<=[0-9*_`])\s*/\s*{most}(?![0-9])", " ", reply)
    numbers = re.findall(r"(?<![A-Za-z0-9.,])[-+−]?[0-9]++(?:[.,][0-9]++)*+(?![A-Za-z0-9])", reply)
    if not numbers or not re.fullmatch(r"\+?[0-9]{1,9}(?:\.0+)?", numbers[-1]):
        return None
    value = int(float(numbers[-1]))
    return value if least <= value <= most else None


@dataclass(frozen=True, eq=False)
class _Question:
    picture: UInt8[Tensor, " height width 3"]
    asked: Mapping[str, Any]
    digest: str = field(repr=False)

    @classmethod
    def of(cls, picture: UInt8[Tensor, " height width 3"], asked: Mapping[str, Any]) -> "_Question":
        """With the SHA-256 (hex) of all that it says."""
        total = hashlib.sha256(json.dumps([list(picture.shape), dict(asked)], sort_keys=True).encode())
        total.update(picture.numpy().tobytes())
        return cls(picture, asked, total.hexdigest())

    def body(self) -> dict[str, Any]:
        """The request."""
        url = f"data:image/png;base64,{base64.b64encode(png(self.picture)).decode()}"
        picture = {"type": "image_url", "image_url": {"url": url}}
        messages = [
            {"role": "system", "content": self.asked["task"]},
            {"role": "user", "content": [{"type": "text", "text": self.asked["question"]}, picture]},
        ]
        rest = {name: value for name, value in self.asked.items() if name not in ("task", "question")}
        return {**rest, "messages": messages}


@contextmanager
def _pool(workers: int) -> Iterator[tuple[ThreadPoolExecutor, threading.Event]]:
    """Threads that drop what they have not begun where something goes wrong.

    What is under way ends by itself, after its `timeout` at most, while the caller sees to what went wrong.
    """
    stop = threading.Event()
    pool = ThreadPoolExecutor(workers, "judge")
    try:
        yield pool, stop
    finally:
        stop.set()
        pool.shutdown(wait=False, cancel_futures=True)


def _pictures(media: Media | None) -> Iterator[UInt8[Tensor, " height width 3"]]:
    """What the judge is shown of each item."""
    if media is None:
        raise ValueError("a judge looks at media, but these samples were not decoded")
    if not isinstance(media, Tensor | Images | Video):
        raise InputError(f"expected Video or images to judge, got {type(media).__name__}; use a model that makes them")
    if isinstance(media, Tensor) and (media.ndim != 4 or media.shape[1] != 3 or not media.is_floating_point()):
        raise InputError(
            f"expected images of shape (n, 3, height, width) or a Video to judge, got shape {tuple(media.shape)}; use "
            "a model of images or videos"
        )
    for row in range(len(media)):
        one = media[torch.tensor([row], device=media.device if isinstance(media, Tensor) else None)]
        try:
            match one:
                case Images():
                    shown = one.pixels
                case Video():
                    shown = one.grid()
                case _:
                    shown = one
            yield pixels(shown)[0]
        except NonFiniteError as error:
            raise NonFiniteError(f"{error} (item {row + 1} of the {len(media)} judged)") from None
