"""Recurrent networks over characters, and backpropagation through time in pieces, against plain loops and sums."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator

import pytest
import torch
from helpers import build
from scipy.stats import chisquare
from torch import Tensor

from gentrain import noise
from gentrain.batch import Batch
from gentrain.errors import UsageError
from gentrain.models.char_rnn import CharRNN
from gentrain.models.sequence import Memory
from gentrain.objectives.tbptt import TBPTT
from gentrain.optim import Adam
from gentrain.truth.base import Case, prove

CELLS = ["rnn", "gru", "lstm"]
K, L = 3, 4


def make(cell: str = "lstm", seed: int = 0, **options: object) -> CharRNN:
    """A small one over the three characters a, b and ?, in float64, with parameters of order one."""
    torch.manual_seed(seed)
    settings: dict = {"hidden": 5, "layers": 2, "embedding": 3} | options
    model = CharRNN((L,), levels=K, vocabulary="ab?", cell=cell, **settings).double()  # type: ignore[arg-type]
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p))
    return model.eval()


def strings(length: int = L) -> Tensor:
    return torch.tensor(list(itertools.product(range(K), repeat=length)))


def somewhere(model: CharRNN, n: int) -> Memory:
    """Memories of n different pasts."""
    torch.manual_seed(1)
    return model.read(torch.randint(0, K, (n, 7)), model.blank(n))[1]


def by_hand(model: CharRNN, x: list[int]) -> float:
    """log p(x) by the cells' formulas, one character and one layer at a time."""
    h = [torch.zeros(model.hidden, dtype=torch.float64) for _ in range(model.layers)]
    c = [torch.zeros_like(v) for v in h]
    total, before = 0.0, K
    for token in x:
        one_hot = torch.eye(K + 1, dtype=torch.float64)[before]
        u = one_hot if model.embed is None else one_hot @ model.embed.weight
        for i, layer in enumerate(model.stack):
            w, r = layer.get_parameter("weight_ih_l0"), layer.get_parameter("weight_hh_l0")
            a, b = w @ u + layer.get_parameter("bias_ih_l0"), r @ h[i] + layer.get_parameter("bias_hh_l0")
            if model.cell == "rnn":
                h[i] = torch.tanh(a + b)
            elif model.cell == "gru":
                (ar, az, an), (br, bz, bn) = a.chunk(3), b.chunk(3)
                z = torch.sigmoid(az + bz)
                h[i] = (1 - z) * torch.tanh(an + torch.sigmoid(ar + br) * bn) + z * h[i]
            else:
                gi, gf, gg, go = (a + b).chunk(4)
                c[i] = torch.sigmoid(gf) * c[i] + torch.sigmoid(gi) * torch.tanh(gg)
                h[i] = torch.sigmoid(go) * torch.tanh(c[i])
            u = h[i]
        total += torch.log_softmax(model.head.weight @ u + model.head.bias, 0)[token].item()
        before = token
    return total


@pytest.mark.parametrize("embedding", [3, None])
@pytest.mark.parametrize("cell", CELLS)
class TestDensity:
    """log p(x) of every string of four characters out of three."""

    def test_it_is_what_the_formulas_say(self, cell: str, embedding: int | None) -> None:
        model, x = make(cell, embedding=embedding), strings()[::7]
        torch.testing.assert_close(
            model.log_prob(x), torch.tensor([by_hand(model, row) for row in x.tolist()]).double()
        )

    def test_strings_sum_to_one_whatever_came_before(self, cell: str, embedding: int | None) -> None:
        model, x = make(cell, embedding=embedding), strings()
        assert model.log_prob(x).exp().sum().item() == pytest.approx(1, abs=1e-12)
        memory = Memory(*(part[:1].expand(len(x), *part.shape[1:]) for part in somewhere(model, 1)))
        assert model.read(x, memory)[0].sum(1).exp().sum().item() == pytest.approx(1, abs=1e-12)

    def test_read_in_pieces_it_is_one_long_pass(self, cell: str, embedding: int | None) -> None:
        model = make(cell, embedding=embedding)
        x = torch.randint(0, K, (3, 40))
        whole, end = model.read(x, model.blank(3))
        for cuts in ([1] * 40, [17, 1, 22], [39, 1]):
            memory, found = model.blank(3), []
            for piece in x.split(cuts, 1):
                log_p, memory = model.read(piece, memory)
                found.append(log_p)
            torch.testing.assert_close(torch.cat(found, 1), whole, rtol=0, atol=1e-12)
            torch.testing.assert_close(memory.state, end.state, rtol=0, atol=1e-12)
            assert torch.equal(memory.last, x[:, -1])

    def test_a_character_depends_on_those_before_it_alone(self, cell: str, embedding: int | None) -> None:
        model = make(cell, embedding=embedding)
        x = torch.randint(0, K, (1, 6))
        log_p, _ = model.read(x, model.blank(1))
        for t in range(6):
            other = x.clone()
            other[0, t] = (x[0, t] + 1) % K
            changed = (model.read(other, model.blank(1))[0] - log_p)[0].abs() > 1e-9
            assert not changed[:t].any() and changed[t:].all()


def frequencies(texts: list[str]) -> Tensor:
    found = torch.zeros(len(strings()), dtype=torch.float64)
    place = {"".join("ab?"[i] for i in row): j for j, row in enumerate(strings().tolist())}
    for text in texts:
        found[place[text]] += 1
    return found


def fits(observed: Tensor, p: Tensor) -> bool:
    expected = p / p.sum() * observed.sum()
    likely = expected >= 5
    seen, wanted = (torch.cat([v[likely], v[~likely].sum()[None]]) for v in (observed, expected))
    return chisquare(seen, wanted).pvalue > 1e-4


@pytest.mark.parametrize("cell", CELLS)
@torch.no_grad()
def test_samples_follow_the_density(cell: str) -> None:
    model, p = make(cell), make(cell).log_prob(strings()).exp()
    torch.manual_seed(3)
    assert fits(frequencies(model.texts(model.sample(5000))), p)
    assert fits(frequencies(model.write(5000, L)), p)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@torch.no_grad()
def test_what_it_writes_goes_on_after_the_prime_at_the_temperature(temperature: float) -> None:
    model, x, prime = make("gru", layers=1), strings(), "ab?ba"
    past = torch.tensor([["ab?".index(c) for c in prime]]).expand(len(x), -1)
    memory = model.read(past, model.blank(len(x)))[1]
    p = torch.ones(len(x), dtype=torch.float64)
    for t in range(L):  # every conditional by itself, over the three characters that could follow
        options = [model.read(torch.full((len(x), 1), k), memory)[0][:, 0] for k in range(K)]
        tempered = torch.softmax(torch.stack(options, 1) / temperature, 1)
        p = p * tempered.gather(1, x[:, t : t + 1])[:, 0]
        memory = model.read(x[:, t : t + 1], memory)[1]
    torch.manual_seed(4)
    texts = model.write(5000, L, prime, temperature)
    assert {text[:5] for text in texts} == {prime}
    assert fits(frequencies([text[5:] for text in texts]), p)
    if temperature != 1:
        assert not fits(frequencies([text[5:] for text in model.write(5000, L, prime)]), p)


def test_a_prime_of_unknown_characters_is_refused() -> None:
    with pytest.raises(UsageError, match=r"prime='aXbé': the model knows no 'X', 'é'; it knows 'ab'"):
        make().write(1, 3, "aXbé")


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("cell", CELLS)
def test_the_gradient_is_that_of_the_window_from_a_constant_state(cell: str, dropout: float) -> None:
    model, objective = make(cell, dropout=dropout).train(), TBPTT(streams=2, layers=2, hidden=5).double()
    x = torch.randint(0, K, (2, 12))
    batches = [Batch(piece, starts=torch.full((2,), i == 0)) for i, piece in enumerate(x.split(4, 1))]
    names, parameters = zip(*model.named_parameters(), strict=True)
    torch.manual_seed(5)
    losses, found = [], []
    for batch in batches:
        (update,) = objective(model, batch, 0.0)
        assert update.loss is not None
        losses.append(update.loss)
        found.append(torch.autograd.grad(update.loss, parameters))
    torch.manual_seed(5)
    memory = model.blank(2)
    for i, batch in enumerate(batches):
        log_p, memory = model.read(batch.x, Memory(memory.state.detach(), memory.last))
        wanted = torch.autograd.grad(-log_p.mean(), parameters)
        for name, a, b in zip(names, found[i], wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12, msg=f"{name} at window {i}")
    if not dropout:  # the losses are those of one long pass, its gradient another
        log_p, _ = model.read(x, model.blank(2))
        torch.testing.assert_close(torch.stack(losses), -log_p.view(2, 3, 4).mean((0, 2)))
        through = torch.autograd.grad(-log_p[:, 8:].mean(), parameters)
        assert any((a - b).abs().max() > 1e-3 for a, b in zip(found[2], through, strict=True))


def test_a_row_that_starts_knows_nothing_of_the_batch_before() -> None:
    model, objective = make(), TBPTT(streams=2, layers=2, hidden=5).double()
    x, again = torch.randint(0, K, (2, 2, L))
    for starts, batch in (([True, True], x), ([False, True], again)):
        (update,) = objective(model, Batch(batch, starts=torch.tensor(starts)), 0.0)
    carried = model.read(again, model.read(x, model.blank(2))[1])[0]
    blank = model.read(again, model.blank(2))[0]
    expected = -torch.cat([carried[0], blank[1]]).mean()
    torch.testing.assert_close(update.metrics["cross_entropy"], expected)
    assert not torch.isclose(carried, blank).all()


def test_each_of_several_processes_reads_on_in_its_own_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = make(), torch.randint(0, K, (2, 4, L))
    alone = TBPTT(streams=4, layers=2, hidden=5).double()
    list(alone(model, Batch(x[0], starts=torch.ones(4).bool()), 0.0))
    state = copy.deepcopy(alone.state_dict())
    (second,) = alone(model, Batch(x[1], starts=torch.zeros(4).bool()), 0.0)
    shares = []
    monkeypatch.setattr(noise, "of_all_processes", lambda t: torch.cat([t, t]))  # what the other sends is of no matter
    for rank in (0, 1):
        mine = TBPTT(streams=4, layers=2, hidden=5).double()
        mine.load_state_dict(state)
        noise.shard(rank, 2)
        try:
            (update,) = mine(model, Batch(x[1, 2 * rank : 2 * rank + 2], starts=torch.zeros(2).bool()), 0.0)
        finally:
            noise.shard(0, 1)
        shares.append(update.metrics["cross_entropy"])
    torch.testing.assert_close(torch.stack(shares).mean(), second.metrics["cross_entropy"])


class Forgetful(CharRNN):
    """Hands on what was read last, and of the state the first layer alone."""

    def read(self, x: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        log_p, after = super().read(x, memory)
        return log_p, Memory(after.state * torch.tensor([1.0, 0.0]).view(2, 1, 1), after.last)


class Peeking(CharRNN):
    """Goes by the next character but one."""

    def read(self, x: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        log_p, after = super().read(x, memory)
        return log_p - 0.1 * (x == 0).roll(-1, 1) * (x != 0), after


class Generous(CharRNN):
    def read(self, x: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        log_p, after = super().read(x, memory)
        return log_p + 0.01, after


@pytest.mark.parametrize(
    ("kind", "claim"),
    [
        (Forgetful, "its memory holds all of the past"),
        (Peeking, "what it says of an element hangs on earlier ones alone"),
        (Generous, "what it says of an element hangs on earlier ones alone"),
    ],
)
def test_faults_are_found_by_the_claim_that_they_break(kind: type[CharRNN], claim: str) -> None:
    def proved(model: CharRNN) -> bool | None:
        case = Case(model, TBPTT(2, 2, 5), Adam(1e-3, 0.0, "constant", 0.0, 0.0, None, (0.9, 0.999), 1e-8),
                    [Batch(torch.randint(0, K, (12, L)))], lambda: model, K)  # fmt: skip
        (found,) = prove(case, {claim})
        return found.held

    torch.manual_seed(0)
    faulty = kind((L,), levels=K, vocabulary="ab?", hidden=5, layers=2).eval()
    assert proved(CharRNN((L,), levels=K, vocabulary="ab?", hidden=5, layers=2).eval()) is True
    assert proved(faulty) is False


def refusals() -> Iterator[tuple[list[str], str]]:
    yield ["data=digits"], r"model=char_rnn models text, and these data have none \(shape \[1, 8, 8\]\): use data=pydoc"
    yield ["data=ring"], r"model=char_rnn models text"
    yield ["data=pydoc", "data.order=shuffled"], r"objective=TBPTT: .*data=pydoc come shuffled; set data\.order=stream"


@pytest.mark.parametrize(("overrides", "words"), list(refusals()))
def test_data_that_it_can_not_take_are_refused(overrides: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        build("model=char_rnn", *overrides)


def test_windows_shuffled_are_fine_without_a_memory() -> None:
    made = build("model=char_rnn", "model.hidden=8", "objective=likelihood", "data=pydoc", "data.order=shuffled")
    batch = made.pipeline.batch(0)
    (update,) = made.objective(made.model, batch, 0.0)
    assert batch.starts is None and update.loss is not None
    assert update.loss.item() / 128 == pytest.approx(torch.tensor(97.0).log().item(), rel=0.05)  # untrained: uniform
