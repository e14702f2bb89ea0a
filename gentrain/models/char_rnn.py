"""Recurrent networks over characters."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from gentrain.errors import UsageError
from gentrain.models.layers import Dropout
from gentrain.models.sequence import Memory, Recurrent, Writes
from gentrain.types import OpenFraction, PositiveInt, Shape

_CELLS = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}


class CharRNN(Recurrent, Writes):
    """p(x) = Π_t p(x_t | x_<t) over L characters; p(x_t | x_<t) = softmax(W h_t + b), h_t = cell(x_{t-1}, h_{t-1}).

    A stack of recurrent layers (Sutskever et al. 2011; Graves 2013, arXiv:1308.0850; Karpathy 2015, char-rnn). With
    i, f, o, g the gates and z, r GRU's, biases left out:

        rnn    h <- tanh(W x + U h)
        gru    h <- (1 - z) tanh(W x + r U h) + z h                    (Cho et al. 2014, arXiv:1406.1078)
        lstm   c <- f c + i g,  h <- o tanh(c); f's bias starts at 1   (Hochreiter & Schmidhuber 1997)

    The first character of a sequence is predicted from h = 0 and a symbol of its own for the beginning, whose embedding
    is learned like any other. So `log_prob` of a window counts its early characters too, of whose past the model knows
    little; texts are better judged by `read` with the memory of what came before.

    Args:
        shape: (L,), of one window; the memory reaches beyond it.
        levels: K, size of the vocabulary.
        vocabulary: its K characters, the last one for any other.
        cell: of the layers.
        hidden: units of a layer.
        layers: how many, one upon another.
        embedding: dimensions in which a character is given to the first layer; None gives it one-hot, as char-rnn does.
        dropout: between layers and before the softmax, not through time (Zaremba et al. 2014, arXiv:1409.2329).

    Raises:
        UsageError: the data are no text.

    >>> model = CharRNN((4,), levels=3, vocabulary="ab?", cell="gru", hidden=8, layers=2)
    >>> x = torch.tensor([[0, 1, 2, 0]])
    >>> first, memory = model.read(x[:, :3], model.blank(1))
    >>> rest, _ = model.read(x[:, 3:], memory)
    >>> bool((torch.cat([first, rest], 1).sum(1) - model.log_prob(x)).abs() < 1e-5), model.sample(2).shape
    (True, torch.Size([2, 4]))
    """

    support = "tokens"

    def __init__(
        self,
        shape: Shape,
        levels: PositiveInt | None = None,
        vocabulary: str | None = None,
        cell: Literal["rnn", "gru", "lstm"] = "lstm",
        hidden: PositiveInt = 256,
        layers: PositiveInt = 1,
        embedding: PositiveInt | None = 64,
        dropout: OpenFraction = 0.0,
    ):
        super().__init__()
        if levels is None or vocabulary is None or len(shape) != 1:
            raise UsageError(
                f"model=char_rnn models text, and these data have none (shape {list(shape)}): use data=pydoc, or"
                " data=text data.path=FILE"
            )
        if len(vocabulary) != levels:
            raise UsageError(f"model.vocabulary: has {len(vocabulary)} characters, model.levels is {levels}")
        self.shape, self.levels, self.vocabulary = tuple(shape), levels, vocabulary
        self.cell, self.hidden, self.layers = cell, hidden, layers
        self.embed = None if embedding is None else nn.Embedding(levels + 1, embedding)
        sizes = [embedding or levels + 1, *[hidden] * layers]
        self.stack = nn.ModuleList(_CELLS[cell](size, hidden, batch_first=True) for size in sizes[:-1])
        self.drop = Dropout(dropout)
        self.head = nn.Linear(hidden, levels)
        if cell == "lstm":
            self._remember()

    @torch.no_grad()
    def _remember(self) -> None:
        """Start with forget gates rather open (Jozefowicz et al. 2015): a gate's two biases, of i, f, g, o, add up."""
        for layer in self.stack:
            layer.get_parameter("bias_ih_l0")[self.hidden : 2 * self.hidden] = 1.0
            layer.get_parameter("bias_hh_l0")[self.hidden : 2 * self.hidden] = 0.0

    def _inputs(self, tokens: Tensor) -> Tensor:
        """What the first layer is given for tokens (B, T), -1 for the beginning: (B, T, size)."""
        tokens = tokens.remainder(self.levels + 1)  # the beginning comes last
        if self.embed is not None:
            return self.embed(tokens)
        return one_hot(tokens, self.levels + 1).to(self.head.weight.dtype)

    def logits(self, tokens: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of what follows each of tokens (B, T), (B, T, K), and the state after them."""
        h, states = self._inputs(tokens), []
        for i, layer in enumerate(self.stack):
            before = state[:, i].transpose(0, 1).contiguous()  # (2, B, hidden), as torch wants it
            if self.cell == "lstm":
                h, after = layer(h, (before[:1], before[1:]))
            else:
                h, hidden = layer(h, before[:1])
                after = hidden, before[1:]
            states.append(torch.cat(after).transpose(0, 1))
            h = self.drop(h)
        return self.head(h), torch.stack(states, 1).to(state.dtype)

    def read(self, x: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        before = torch.cat([memory.last[:, None], x[:, :-1]], 1)
        logits, state = self.logits(before, memory.state)
        log_p = torch.log_softmax(logits.to(memory.state.dtype), -1)
        return log_p.gather(2, x[:, :, None])[:, :, 0], Memory(state, x[:, -1])

    @torch.no_grad()
    def _continue(self, memory: Memory, length: int, temperature: float) -> Tensor:
        """Draws of the next `length` tokens, (B, length)."""
        state, last = memory
        tokens = torch.empty(len(last), length, dtype=torch.int64, device=last.device)
        for t in range(length):
            logits, state = self.logits(last[:, None], state)
            p = torch.softmax(logits[:, 0].to(state.dtype) / temperature, -1)
            last = torch.multinomial(p, 1)[:, 0]
            tokens[:, t] = last
        return tokens

    def sample(self, n: int) -> Tensor:
        return self._continue(self.blank(n), self.shape[0], 1.0)

    @torch.no_grad()
    def write(self, n: int, length: int, prime: str = "", temperature: float = 1.0) -> list[str]:
        memory = self.blank(n)
        if prime:
            _, memory = self.read(self._encode(prime).expand(n, -1), memory)
        return [prime + text for text in self.texts(self._continue(memory, length, temperature))]

    def _encode(self, text: str) -> Tensor:
        """Tokens of a text, (len(text),).

        Raises:
            UsageError: it has characters that the vocabulary lacks.
        """
        unknown = sorted(set(text) - set(self.vocabulary))
        if unknown:
            raise UsageError(
                f"prime={text!r}: the model knows no {', '.join(map(repr, unknown))}; it knows {self.vocabulary[:-1]!r}"
            )
        return torch.tensor([self.vocabulary.index(character) for character in text], device=self.device)
