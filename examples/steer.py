"""Choose while generating: the same model, better clips by a reward of one's own, and a varied batch of one prompt.

python examples/steer.py
"""

from dragontune import Audio, BestOfN, Function, Key, Sampler, Svdd, TinyClap, Vendi, load


def steady(media: Audio, prompts: tuple[str, ...]) -> list[float]:
    """How little the loudness of a clip changes between its quarters, in decibels, as a negative number."""
    quarters = media.waveform.mean(1).unflatten(1, (4, -1)).square().mean(2).clamp(min=1e-8)
    return (-10 * quarters.log10().std(1)).tolist()


def main() -> None:
    generator = load("tiny-music")
    sampler = Sampler(steps=8, guidance=2.0, order=1, eta=1.0)  # its steps draw at random
    prompts = ["a lively reel for flute", "a slow air for choir"]

    reward = Function(steady)
    for name, steering in {
        "plain": None,
        "best of 4": BestOfN(reward, n=4),
        "SVDD, 4 candidates": Svdd(reward, candidates=4),
    }.items():
        samples = sampler.sample(generator, prompts, Key(0), steer=steering)
        calls = sampler.calls(2) if steering is None else steering.budget(sampler, 2, Key(0)).calls
        print(f"{name:20} {reward(samples).mean():+.3f} dB, {calls} denoiser calls")

    varied = Vendi(TinyClap())
    for name, steering in {"plain": None, "steered": Svdd(varied, candidates=4)}.items():
        samples = sampler.sample(generator, ["a reel"] * 8, Key(1), steer=steering)
        print(f"eight reels, {name:8} {varied(samples):.2f} different ones")


if __name__ == "__main__":
    main()
