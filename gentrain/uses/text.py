"""Writing."""

from __future__ import annotations

import torch

from gentrain.errors import UsageError
from gentrain.models.base import Generative
from gentrain.models.sequence import Writes
from gentrain.types import PositiveFloat, PositiveInt
from gentrain.uses.base import Data, Drawn, Use


class Text(Use):
    """Texts that the model writes, of any length, from the beginning or going on after a given one.

    Args:
        length: characters to write.
        prime: the text to go on after; it comes before each one.
        temperature: the next character is drawn from p^(1/temperature), normalised. 1 draws from the model itself;
            lower is more regular and less varied, and no sample of the model's any more.
    """

    needs = (Writes,)

    def __init__(self, length: PositiveInt = 400, prime: str = "", temperature: PositiveFloat = 1.0):
        self.length, self.prime, self.temperature = length, prime, temperature

    def __call__(self, model: Generative, n: int, data: Data) -> Drawn:
        assert isinstance(model, Writes)
        try:
            texts = model.write(n, self.length, self.prime, self.temperature)
        except UsageError as error:
            raise UsageError(f"kind.{error}") from error
        tokens = [[model.vocabulary.index(character) for character in text] for text in texts]
        return Drawn(torch.tensor(tokens), texts=texts)
