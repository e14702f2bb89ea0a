"""What models with an encoder beside a generator claim, and the critics of their pairs."""

from __future__ import annotations

import torch

from gentrain.models.base import Generative
from gentrain.models.critics import Bidirectional
from gentrain.truth.base import Case, Verdict, claims
from gentrain.truth.objectives import copies, train_alone


@claims("the critic of pairs looks at both", Bidirectional)
def critic_sees_pairs(case: Case) -> Verdict:
    model, blind = case.model, 0
    assert isinstance(model, Bidirectional)
    with torch.enable_grad():
        x = case.x.detach().clone().requires_grad_()
        z = model.codes(case.x).detach().requires_grad_()
        for gradient in torch.autograd.grad(model.discriminate_pair(x, z).sum(), [x, z]):
            blind += int((gradient.flatten(1).norm(dim=1) == 0).sum()) + int((~gradient.isfinite()).sum())
    return blind, len(case.x) // 4, f"gradients of {2 * len(case.x)}, of x and z, that are nothing or not finite"


@claims("the critic learns to tell pairs, the others to please it", Bidirectional)
def three_pull_the_right_way(case: Case) -> Verdict | None:
    """Each alone: the critic parts data's pairs from the generator's, the generator raises its own, the encoder lowers
    data's."""
    if set(case.objective.parts) != {"discriminator", "generator", "encoder"}:
        return None

    def outputs(model: Generative) -> tuple[float, float]:
        """Mean outputs for pairs of data, and of the generator."""
        assert isinstance(model, Bidirectional)
        torch.manual_seed(case.seed)
        with torch.no_grad():
            z = model.prior.sample(torch.Size([256]))
            real, fake = (
                model.discriminate_pair(case.x, model.infer(case.x)),
                model.discriminate_pair(model.decode(z), z),
            )
            return float(real.mean()), float(fake.mean())

    before, critic, maker, coder = (
        outputs(model)
        for model in (
            copies(case)[0],
            *(train_alone(case, part)[0] for part in ("discriminator", "generator", "encoder")),
        )
    )
    told = (critic[0] - critic[1]) - (before[0] - before[1])
    made, coded = maker[1] - before[1], before[0] - coder[0]
    words = f"data's minus generated {told:+.3g} as D learns alone, generated {made:+.3g} as G does, data's"
    return max(-told, -made, -coded), -1e-6, f"critic's outputs: {words} {-coded:+.3g} as E does"
