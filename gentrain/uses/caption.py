"""Drawing what words say."""

from __future__ import annotations

from gentrain.errors import UsageError
from gentrain.models.base import Generative
from gentrain.models.captions import Captioned
from gentrain.uses.base import Data, Drawn, Use


class Caption(Use):
    """Examples of a caption, which need not be one of the data's: of their words others can be made.

    Args:
        text: the caption, e.g. "a thick seven".
    """

    needs = (Captioned,)
    conditional = True

    def __init__(self, text: str | None = None):
        self.text = text

    def unfit(self, model: Generative) -> str | None:
        if isinstance(model, Captioned) and not model.words:
            return "was trained on labels that say nothing; train it on data=captioned_digits"
        return super().unfit(model)

    def __call__(self, model: Generative, n: int, data: Data) -> Drawn:
        assert isinstance(model, Captioned)
        if self.text is None:
            raise UsageError(f"kind.text=null: say what to draw in the words {', '.join(model.words)}")
        try:
            return Drawn(model.sample_text(n, self.text))
        except UsageError as error:
            raise UsageError(f"kind.{error}") from error
