"""What models that translate claim."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from gentrain.models.domains import TranslatesBack, Translator
from gentrain.truth.base import Case, Unchecked, Verdict, claims
from gentrain.truth.models import misfits


def ways(case: Case) -> Iterator[tuple[str, Callable[[Tensor], Tensor], Tensor]]:
    """Each way that the model goes: its name, the translation, and examples for it."""
    model, batch = case.model, case.batches[0]
    if batch.pair is None:
        raise Unchecked("these data have no pairs")
    assert isinstance(model, Translator)
    yield "translate", model.translate, batch.pair
    if isinstance(model, TranslatesBack):
        yield "translate_back", model.translate_back, batch.x


@claims("translations lie in the support", Translator)
def translations_fit(case: Case) -> Verdict:
    found, count = [], 0
    for name, translate, x in ways(case):
        found += [f"{name}: {what}" for what in misfits(translate(x), case.model, case.levels, len(x))]
        count += len(x)
    words = f"{count} translations: {'; '.join(found) or f'{tuple(case.model.shape)}, {case.model.support}'}"
    return len(found), 0, words


@claims("a translation is of its example and declared noise", Translator)
def translations_are_functions(case: Case) -> Verdict:
    """The same seed gives the same again; another seed another one, where the model says that it is noisy, and else the
    same; what else is in the batch has no part in it."""
    model, found = case.model, []
    assert isinstance(model, Translator)
    for name, translate, x in ways(case):

        def drawn(x: Tensor, seed: int, translate: Callable[[Tensor], Tensor] = translate) -> Tensor:
            torch.manual_seed(seed)
            return translate(x)

        first, again, other = drawn(x, 1), drawn(x, 1), drawn(x, 2)
        among_others = drawn(x[:1].expand_as(x).contiguous(), 1)[0]
        found += [] if torch.equal(first, again) else [f"{name}: the same seed gives another"]
        if torch.equal(first, other) == model.noisy:
            found.append(f"{name}: another seed gives {'the same' if model.noisy else 'another'}")
        apart = (among_others - first[0]).abs().max() / (1e-6 + first[0].abs().max())
        found += [] if apart < 1e-4 else [f"{name}: changes with the other examples of the batch"]
    return len(found), 0, "; ".join(found) or f"{'one seed' if model.noisy else 'any seed'} and any batch, the same"
