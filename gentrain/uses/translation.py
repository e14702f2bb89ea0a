"""Examples of one domain as examples of the other."""

from __future__ import annotations

from gentrain import pictures
from gentrain.errors import UsageError
from gentrain.evaluation.estimator import Subject
from gentrain.models.base import Generative
from gentrain.models.domains import TranslatesBack, Translator
from gentrain.uses.base import Data, Drawn, Use


class Translate(Use):
    """Test examples, each followed by its translation.

    Then comes what the model makes of that when it translates it back, if it goes both ways, and at last the true
    answer where the data have it. Several such rows stand side by side. Of points the picture shows the translations.

    Args:
        back: from the domain that batches call x to that of `pair`, rather than from `pair` to x.
    """

    needs = (Translator,)

    def __init__(self, back: bool = False):
        self.back = back

    def unfit(self, model: Generative) -> str | None:
        if self.back and isinstance(model, Translator) and not isinstance(model, TranslatesBack):
            return "translates one way and not back; leave kind.back=true out"
        return super().unfit(model)

    def __call__(self, model: Generative, n: int, data: Data) -> Drawn:
        assert isinstance(model, Translator)
        subject = data()
        if subject.spec.pairs is None:
            raise UsageError(f"kind=translate: data={subject.spec.name} has no pairs; take a run on pairs")
        shown = next(subject.batches(limit=1)), self.back
        columns = 2 + isinstance(model, TranslatesBack) + (subject.pipeline.answers(*shown) is not None)
        wanted, have = max(1, n // columns), source_size(subject, self.back)
        if wanted > have:
            raise UsageError(f"n={n}: {subject.spec.name} has {have} test examples to translate; ask for fewer")
        batch = next(subject.batches(limit=wanted, batch_size=wanted))
        x = batch.x if self.back else batch.pair
        assert x is not None
        rows = pictures.translations(model, x, subject.pipeline.answers(batch, self.back), back=self.back)
        arrays = {"given": x, "translated": rows[:, 1]}
        if not pictures.is_image(model.shape):
            return Drawn(rows[:, 1], arrays=arrays)
        tiles, columns = pictures.abreast(rows)
        return Drawn(tiles, columns, arrays=arrays)


def source_size(subject: Subject, back: bool) -> int:
    """How many different examples of the split there are to be translated."""
    source = subject.pipeline if back else subject.pipeline.other_domain
    return min(subject.size(), source.spec.sizes.get(subject.split, 0))
