"""Adaptive projected guidance against diffusers'."""

import pytest
import torch
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance

from dragontune.guidance_apg import AdaptiveProjection
from dragontune.seeding import Key


@pytest.mark.parametrize("scale", [1.0, 3.0, 7.0])
@pytest.mark.parametrize(("parallel", "threshold", "momentum"), [(0.0, 2.5, -0.75), (0.3, 20.0, 0.5), (1.0, 1e9, 0.0)])
def test_it_is_diffusers_over_several_steps(scale, parallel, threshold, momentum):
    projection = AdaptiveProjection(momentum, parallel, threshold)
    buffer, average = MomentumBuffer(momentum), torch.zeros(2, 4, 50)
    for step in range(3):
        conditional, free = (Key(step).fold(name).normal(range(2), (4, 50)) for name in ("with", "without"))
        guided, average = projection.guide(conditional, free, average, scale)
        expected = normalized_guidance(
            conditional.mT,
            free.mT,
            scale - 1,
            buffer,
            parallel,
            threshold,
            use_original_formulation=True,
            norm_dim=(1,),
        )
        torch.testing.assert_close(guided, expected.mT, atol=1e-5, rtol=1e-5)


def test_without_its_three_devices_it_is_classifier_free_guidance():
    conditional, free = Key(0).normal([0], (4, 50)), Key(1).normal([0], (4, 50))
    plain = AdaptiveProjection(momentum=0.0, parallel=1.0, threshold=1e9)
    guided, _ = plain.guide(conditional, free, torch.zeros(1, 4, 50), 3.0)
    torch.testing.assert_close(guided, free + 3 * (conditional - free))


def test_the_change_is_at_right_angles_to_the_conditional_output():
    conditional, free = Key(0).normal([0], (4, 50)), Key(1).normal([0], (4, 50))
    guided, _ = AdaptiveProjection().guide(conditional, free, torch.zeros(1, 4, 50), 7.0)
    change = guided - conditional
    torch.testing.assert_close((change * conditional).sum(2), torch.zeros(1, 4), atol=1e-3, rtol=0)
    assert (change.norm(dim=2) <= 6 * 2.5 + 1e-3).all()
