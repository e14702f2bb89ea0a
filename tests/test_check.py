"""gentrain check: whatever ships holds, and faults that are planted are found, by the claim that they break."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from helpers import covering_pairs
from torch import Tensor, nn
from torch.distributions import register_kl
from torch.nn.functional import softplus

from gentrain.batch import Batch
from gentrain.cli import main
from gentrain.data.synthetic import bars_distribution
from gentrain.errors import UsageError
from gentrain.models.autoencoding_gan import AutoencodingGAN
from gentrain.models.factorial import Factorial
from gentrain.models.flows import Logit
from gentrain.models.gan import GAN
from gentrain.models.layers import DiagonalNormal, UnitNormal
from gentrain.models.likelihoods import IndependentBits
from gentrain.models.maf import MAF
from gentrain.models.rbm import RBM
from gentrain.models.vae import VAE
from gentrain.objectives.adversarial import NonSaturating
from gentrain.objectives.contrastive import CD
from gentrain.objectives.counting import Counting
from gentrain.objectives.ebgan import EBGAN
from gentrain.objectives.elbo import ELBO
from gentrain.objectives.hinge import Hinge
from gentrain.objectives.least_squares import LeastSquares
from gentrain.objectives.likelihood import Likelihood
from gentrain.optim import Adam
from gentrain.tasks.check import check
from gentrain.truth.base import Check, prove, truths
from gentrain.truth.objectives import case_of
from gentrain.truth.spaces import chi_square, critical, discrete, grid, sigmas
from gentrain.update import Objective, Score, Update

ADAM = Adam(1e-2, 0.0, "constant", 0.0, 0.0, None, (0.9, 0.999), 1e-8)
SHAPE = (1, 3, 3)


def checks(build: Callable[[], nn.Module], objective: Objective, only: set[str] | None = None) -> dict[str, Check]:
    """What becomes of every claim, or of `only` those, of a model on bars and stripes."""
    torch.manual_seed(0)
    model = build()
    x = bars_distribution(3)[0].float()
    batches = [Batch(x[torch.randint(len(x), (32,))]) for _ in range(20)]
    if getattr(model, "support", "") == "signed":
        batches = [Batch(2 * b.x - 1) for b in batches]
    case = case_of(model, objective, ADAM, batches, build, 2, n=4000)  # type: ignore[arg-type]
    return {c.name: c for c in prove(case, only)}


def failed(build: Callable[[], nn.Module], objective: Objective, only: set[str] | None = None) -> set[str]:
    return {name for name, c in checks(build, objective, only).items() if c.held is False}


def rbm(kind: type[RBM] = RBM) -> Callable[[], RBM]:
    return lambda: kind(SHAPE, hidden=6, burn_in=50)


def vae(kind: type[VAE] = VAE) -> Callable[[], VAE]:
    return lambda: kind(SHAPE, levels=2, latent_dim=2, hidden=[8])


def gan(kind: type[GAN] = GAN) -> Callable[[], GAN]:
    return lambda: kind(SHAPE, levels=2, latent_dim=2, hidden=[8])


# --- what holds -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "objective"), covering_pairs())
def test_whatever_ships_holds(model: str, objective: str):
    found = check([f"model={model}", f"objective={objective}"], n=4000)
    assert [c for c in found if c.held is False] == []
    assert sum(c.held is True for c in found) >= 7
    assert {c.name for c in found if c.held is None} <= {"a second device agrees"}


def test_sound_models_break_nothing_here():
    for build, objective in ((rbm(), CD()), (vae(), ELBO()), (gan(), NonSaturating())):
        assert failed(build, objective) == set()


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["model=rbm", "data=digits", "model.hidden=30"], "2^64 states"),
        (["model=vae", "model.latent_dim=5"], "codes of 5 real dimensions"),
    ],
)
def test_what_is_too_large_is_said_and_not_passed(overrides: list[str], named: str):
    found = [c for c in check(overrides, n=500) if c.held is None]
    assert any(named in c.words for c in found)
    assert all(c.words.startswith("not checked: ") and math.isnan(c.measured) for c in found)


# --- faults of models -------------------------------------------------------------------------------------------------


class Greedy(Factorial):
    def log_prob(self, x: Tensor) -> Tensor:
        return super().log_prob(x) + math.log(1.1)


class Hotter(Factorial):
    """Samples a distribution that is a little flatter than the one it weighs by."""

    def probabilities(self) -> Tensor:
        p = super().probabilities()
        return p if torch.is_grad_enabled() else p**0.7 / (p**0.7).sum(0)

    def log_prob(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            return super().log_prob(x)


class Stubborn(Factorial):
    """Draws from a generator of its own."""

    def sample(self, n: int) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return torch.bernoulli(self.probabilities()[1].expand(n, -1), generator=generator).view(n, *self.shape)


class Grey(Factorial):
    def sample(self, n: int) -> Tensor:
        return self.probabilities()[1].view(1, *self.shape) + 0 * torch.rand(n, *self.shape)


class Counted(Factorial):
    """Learns something whenever it is looked at."""

    def log_prob(self, x: Tensor) -> Tensor:
        self.counts += 1
        return super().log_prob(x)


class Comparing(Factorial):
    """Judges an example by those that it comes with."""

    def log_prob(self, x: Tensor) -> Tensor:
        found = super().log_prob(x)
        return found - 0.1 * found.mean()


@pytest.mark.parametrize(
    ("kind", "claims"),
    [
        (Greedy, {"probabilities sum to one"}),
        (Hotter, {"samples follow p(x)", "completions follow p(missing | known)"}),
        (Stubborn, {"samples follow the seed"}),
        (
            Grey,
            {
                "samples lie in the support",
                "samples follow p(x)",
                "samples follow the seed",
                "completions follow p(missing | known)",
            },
        ),
        (Counted, {"looking changes nothing", "an example is judged by itself"}),
        (Comparing, {"an example is judged by itself", "probabilities sum to one"}),
    ],
)
def test_a_density_that_is_wrong(kind: type[Factorial], claims: set[str]):
    found = failed(lambda: kind(SHAPE, levels=2), Counting())
    assert found >= claims
    assert found <= claims | {"held-out numbers are what they are called"}


class Forgetful(RBM):
    """F without the hidden bias."""

    def free_energy(self, x: Tensor) -> Tensor:
        v = x.flatten(1)
        return -(v @ self.visible_bias) - softplus(v @ self.weight.t()).sum(-1)


class Biased(RBM):
    """A Gibbs step that leaves out the visible bias."""

    def visible_field(self, h: Tensor) -> Tensor:
        return h @ self.weight


class Upside(RBM):
    def energy_gradient(self, data, chain):
        return {name: -g for name, g in super().energy_gradient(data, chain).items()}


class Partial(RBM):
    def energy_gradient(self, data, chain):
        return {n: g for n, g in super().energy_gradient(data, chain).items() if n != "hidden_bias"}


class Wasteful(RBM):
    def log_partition(self) -> Tensor:
        return super().log_partition() + 0.01


class Miscounting(RBM):
    """Scales the pseudo-likelihood of a few bits as if one more had been drawn."""

    def pseudo_log_likelihood(self, x: Tensor, bits: int | None = None) -> Tensor:
        found = super().pseudo_log_likelihood(x, bits)
        return found if bits is None else found * bits / (bits + 1)


class Frozen(RBM):
    def gibbs(self, x: Tensor, k: int) -> Tensor:
        return x.clone()


class Unheeding(RBM):
    """Keeps what is known, and fills in the rest without regard to it."""

    def complete(self, x: Tensor, known: Tensor) -> Tensor:
        return torch.where(known, x, self.sample(len(x)))


class Overwriting(RBM):
    """The right chain, and the states that it is given are lost."""

    def gibbs(self, x: Tensor, k: int) -> Tensor:
        return x.copy_(super().gibbs(x.clone(), k))


@pytest.mark.parametrize(
    ("kind", "claims"),
    [
        (
            Forgetful,
            {"log Z is the sum over all states", "a step of the chain keeps p(x)", "the energy gradient is autograd's",
             "probabilities sum to one"},
        ),
        (Biased, {"samples follow p(x)", "a step of the chain keeps p(x)"}),
        (Upside, {"the energy gradient is autograd's", "the update descends -log p(x)"}),
        (Partial, {"the energy gradient is autograd's", "every parameter learns"}),
        (Wasteful, {"log Z is the sum over all states", "probabilities sum to one"}),
        (Miscounting, {"pseudo-likelihood is the sum of conditionals"}),
        (Frozen, {"a step of the chain keeps p(x)", "samples follow p(x)"}),
        (Overwriting, {"a step of the chain keeps p(x)"}),
        (Unheeding, {"completions follow p(missing | known)"}),
    ],
)  # fmt: skip
def test_an_energy_model_that_is_wrong(kind: type[RBM], claims: set[str]):
    assert failed(rbm(kind), CD(), claims) == claims


class Sloppy(DiagonalNormal):
    """The same normal with a divergence of its own, which lacks the log-variance."""


@register_kl(Sloppy, UnitNormal)
def _sloppy(q: Sloppy, p: UnitNormal) -> Tensor:
    return 0.5 * (q.loc.square() + q.scale.square() - 1).sum(-1)


class WrongKL(VAE):
    def encode(self, x: Tensor) -> DiagonalNormal:
        q = super().encode(x)
        return Sloppy(q.loc, q.log_variance)


class Narrow(VAE):
    """Samples codes from a narrower prior than the one it is trained with."""

    def sample(self, n: int) -> Tensor:
        return self.decode(0.3 * self.prior.sample(torch.Size([n]))).sample()


class Loose(DiagonalNormal):
    """Draws with twice the deviation that it weighs by."""

    def sample(self, sample_shape=torch.Size()) -> Tensor:  # noqa: B008
        return self.loc + 2 * (super().sample(sample_shape) - self.loc)


class WrongPosterior(VAE):
    def encode(self, x: Tensor) -> DiagonalNormal:
        q = super().encode(x)
        return Loose(q.loc, q.log_variance)


class Unnormalised(VAE):
    def decode(self, z: Tensor):
        p = super().decode(z)
        weigh = p.log_prob
        p.log_prob = lambda value: 0.9 * weigh(value)  # type: ignore[method-assign]
        return p


class Light(DiagonalNormal):
    """Weighs less than it draws."""

    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(value) - 0.5

    def draw(self, epsilon: Tensor) -> tuple[Tensor, Tensor]:
        z, log_q = super().draw(epsilon)
        return z, log_q - 0.5


class LightPosterior(VAE):
    def encode(self, x: Tensor) -> DiagonalNormal:
        q = super().encode(x)
        return Light(q.loc, q.log_variance)


class Dim(IndependentBits):
    @property
    def mean(self) -> Tensor:
        return 0.9 * self.base_dist.probs


class WrongMean(VAE):
    def decode(self, z: Tensor) -> Dim:
        p = super().decode(z)
        assert isinstance(p, IndependentBits)
        return Dim(p.base_dist, 3)


@pytest.mark.parametrize(
    ("kind", "claims"),
    [
        (LightPosterior, {"q(z|x) draws what it weighs", "the bounds rise to log p(x)"}),
        (WrongMean, {"p(x|z) has its mean"}),
        (WrongKL, {"KL(q‖p) in closed form"}),
        (Narrow, {"samples follow p(x)"}),
        (WrongPosterior, {"q(z|x) draws what it weighs", "KL(q‖p) in closed form"}),
        (Unnormalised, {"p(x|z) sums to one and draws what it weighs"}),
    ],
)
def test_a_latent_variable_model_that_is_wrong(kind: type[VAE], claims: set[str]):
    assert failed(vae(kind), ELBO(), claims) == claims


class Drifting(MAF):
    """A way back that ends a little beside where the way there began."""

    def invert(self, z: Tensor) -> Tensor:
        return super().invert(z) + 1e-3


class Unstretched(MAF):
    """Leaves the logit's derivative out of log |det|, and so out of log p."""

    def transform(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z, log_det = super().transform(x)
        return z, log_det - Logit(0.05)(x)[1]


class Flat(MAF):
    def log_prob(self, x: Tensor) -> Tensor:
        return super().log_prob(x) - 0.1


@pytest.mark.parametrize(
    ("kind", "claims"),
    [
        (Drifting, {"the flow can be undone"}),
        (Unstretched, {"log |det| is the Jacobian's"}),
        (Flat, {"log p(x) is the code's and log |det|"}),
    ],
)
def test_a_flow_that_is_wrong(kind: type[MAF], claims: set[str]):
    def build() -> MAF:
        return kind(SHAPE, levels=2, layers=2, hidden=[8])

    assert failed(build, Likelihood()) == claims


class Unbounded(GAN):
    def decode(self, z: Tensor) -> Tensor:
        return 1.1 * super().decode(z)


class Severed(GAN):
    def decode(self, z: Tensor) -> Tensor:
        return super().decode(z).detach().requires_grad_()


class Inverted(GAN):
    def discriminate(self, x: Tensor) -> Tensor:
        return super().discriminate(x)[:, None]


class Stepped(GAN):
    """A critic that sees signs, and so gives the generator no direction."""

    def discriminate(self, x: Tensor) -> Tensor:
        return super().discriminate(x.sign())


@pytest.mark.parametrize(
    ("kind", "claims"),
    [
        (Stepped, {"the critic's gradient reaches x"}),
        (Unbounded, {"the decoder is smooth and in the support"}),
        (Severed, {"the decoder is smooth and in the support", "every parameter learns"}),
        (Inverted, {"what it computes is finite and shaped"}),
    ],
)
def test_a_game_that_is_wrong(kind: type[GAN], claims: set[str]):
    assert failed(gan(kind), NonSaturating(), claims) == claims


# --- faults of objectives ---------------------------------------------------------------------------------------------


class Deaf(ELBO):
    """No gradient reaches the encoder's last layer through the code, and the KL is left out."""

    def terms(self, model: VAE, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        q = model.encode(x)
        kl = torch.zeros(len(x))
        return model.decode(q.mean.detach()).log_prob(x), kl


class Rising(ELBO):
    def forward(self, model: VAE, batch: Batch, progress: float) -> Iterator[Update]:
        for update in super().forward(model, batch, progress):
            assert update.loss is not None
            yield Update(update.loss.detach() + 0 * update.loss)


class Meddling(ELBO):
    def forward(self, model: VAE, batch: Batch, progress: float) -> Iterator[Update]:
        with torch.no_grad():
            model.likelihood.bias.add_(0.01)
        yield from super().forward(model, batch, progress)


class Boastful(ELBO):
    """Calls a bound of five samples the ELBO's, and reports twice what it is."""

    def validate(self, model: VAE, batch: Batch) -> dict[str, Score]:
        return {"elbo": Score(0.5 * super().validate(model, batch)["elbo"].values, "elbo")}


class Reversed(NonSaturating):
    def discriminator_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        return super().discriminator_loss(fake, real)


class Fleeing(LeastSquares):
    def generator_loss(self, fake: Tensor) -> Tensor:
        return -super().generator_loss(fake)


class Numb(GAN):
    """A critic of whose layers the last alone can learn."""

    def discriminate(self, x: Tensor) -> Tensor:
        return self.discriminator[-1](self.features(x).detach()).flatten()


class Praising(AutoencodingGAN):
    def discriminate(self, x: Tensor) -> Tensor:
        return -super().discriminate(x)


def praising() -> Praising:
    return Praising(SHAPE, levels=2, latent_dim=2, hidden=[8])


class Overflowing(NonSaturating):
    def generator_loss(self, fake: Tensor) -> Tensor:
        return -torch.log(torch.sigmoid(fake)).mean()


@pytest.mark.parametrize(
    ("build", "objective", "claim", "words"),
    [
        (vae(), Deaf(), "every parameter learns", "no gradient reaches encoder"),
        (vae(), Rising(), "the loss falls", "60 steps"),
        (vae(), Meddling(), "updates are sound", "likelihood.bias changes while an update is computed"),
        (vae(), Boastful(), "held-out numbers are what they are called", "elbo is elbo but off by"),
        (gan(), Reversed(), "the critic learns to tell, the generator to please it", "output for real minus"),
        (gan(), Fleeing(), "the critic learns to tell, the generator to please it", "distance of generated from 1"),
        (gan(Numb), Hinge(), "every parameter learns", "discriminator.1.weight"),
        (praising, EBGAN(), "the critic's output is minus an error", "32 of 32"),
        (gan(), Overflowing(), "losses stay finite at any logit", "logits"),
    ],
)
def test_an_objective_that_is_wrong(build: Callable, objective: Objective, claim: str, words: str):
    found = checks(build, objective, {claim})[claim]
    assert found.held is False and words in found.words


def test_a_claim_that_raises_has_failed_and_the_others_go_on():
    class Broken(Factorial):
        def log_prob(self, x: Tensor) -> Tensor:
            if len(x) == 512:
                raise ZeroDivisionError("of the user's own")
            return super().log_prob(x)

    found = checks(lambda: Broken(SHAPE, levels=2), Counting())
    assert found["probabilities sum to one"].held is False
    assert "ZeroDivisionError: of the user's own (test_check.py:" in found["probabilities sum to one"].words
    assert found["samples lie in the support"].held is True


# --- the mathematics --------------------------------------------------------------------------------------------------


def test_chi_square_has_its_level():
    """Of fair draws one in twenty exceeds the 5 % point; of unfair ones nearly all do."""
    torch.manual_seed(0)
    p = torch.softmax(torch.randn(30), 0)
    other = torch.softmax(p.log() + 0.2 * torch.randn(30), 0)
    exceeded = {}
    for name, q in (("fair", p), ("unfair", other)):
        count = 0
        for _ in range(400):
            observed = torch.bincount(torch.multinomial(q, 5000, replacement=True), minlength=30)
            statistic, freedom = chi_square(observed, 5000 * p)
            count += statistic > critical(freedom, 0.05)
        exceeded[name] = count / 400
    assert 0.02 < exceeded["fair"] < 0.09 and exceeded["unfair"] > 0.99


def test_spaces_hold_all_there_is():
    space = discrete((2, 2), 3, torch.int64)
    assert len(torch.unique(space.points, dim=0)) == 81
    assert torch.equal(space.locate(space.points), torch.arange(81))
    assert space.locate(torch.tensor([[[0, 3], [0, 0]]])).item() == -1
    plane = grid(torch.tensor([-6.0, -5.0]), torch.tensor([6.0, 7.0]), (2,), 20, 18)
    log_p = -plane.points.square().sum(1) / 2 - math.log(2 * math.pi)
    assert float(plane.log_total(log_p)) == pytest.approx(0, abs=1e-5) and plane.uncertainty(log_p) < 1e-5
    assert torch.equal(plane.locate(plane.points), plane.bin)
    draws = torch.randn(20_000, 2)
    observed = torch.bincount(plane.locate(draws), minlength=plane.bins)
    assert chi_square(observed, 20_000 * plane.masses(log_p))[0] < 300
    sharp = -plane.points.square().sum(1) * 1e6
    assert plane.uncertainty(sharp) > 0.05
    assert sigmas(torch.tensor([[1.0], [3.0]]), torch.tensor([0.0])) == pytest.approx(2, rel=1e-3)


def test_every_claim_stands_in_a_test_of_a_fault():
    """No check without a planted fault, but for the one that needs another device."""
    text = "".join(file.read_text() for file in Path(__file__).parent.glob("test_*.py"))
    assert [t.claim for t in truths() if f'"{t.claim}"' not in text] == []


# --- the verb ---------------------------------------------------------------------------------------------------------

OWN = '''
"""A density with a running average that it forgets to register."""
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits as nll
from gentrain.models.base import Density
from gentrain.objectives.elbo import ELBO
from gentrain.update import Objective, Update


class Coins(Density):
    support = "binary"

    def __init__(self, shape, decay: float = {decay}):
        super().__init__()
        self.shape, self.decay = tuple(shape), decay
        self.bias = nn.Parameter(torch.zeros(self.shape))
        self.mean = torch.zeros(self.shape)

    def log_prob(self, x):
        return -nll((self.bias + self.decay * self.mean).expand_as(x), x, reduction="none").flatten(1).sum(1)

    def sample(self, n):
        return torch.bernoulli(torch.sigmoid(self.bias + self.decay * self.mean).detach().expand(n, *self.shape))


class Likelihood(Objective):
    needs = Density

    def forward(self, model, batch, progress):
        model.mean = 0.9 * model.mean + 0.1 * batch.x.mean(0)
        yield Update(-model.log_prob(batch.x).mean())
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, float], list[str]]:
    """own(name, decay): the words that check a user's own model, with its unsaved average in use (1) or not (0)."""

    def write(name: str, decay: float) -> list[str]:
        (tmp_path / f"{name}.py").write_text(OWN.replace("{decay}", str(decay)))
        for group, target in (("model", "Coins"), ("objective", "Likelihood")):
            (tmp_path / "conf" / group).mkdir(parents=True, exist_ok=True)
            arguments = "shape: ${data.shape}\n" if group == "model" else ""
            head = "defaults:\n  - override /objective@_global_.objective: coins\n  - _self_\n"
            text = f"# Coins\n{head if group == 'model' else ''}_target_: {name}.{target}\n{arguments}"
            (tmp_path / "conf" / group / "coins.yaml").write_text(text)
        monkeypatch.syspath_prepend(tmp_path)
        return ["check", "--config-dir", str(tmp_path / "conf"), "model=coins", f"trust=[{name}]", "n=2000"]

    return write


def test_a_users_own_model_is_proved(own: Callable, capsys: pytest.CaptureFixture[str]):
    assert main(own("sound_coins", 0.0)) == 0
    out = capsys.readouterr().out
    assert "coins-likelihood on bars (1x3x3, binary), 9 parameters" in out
    lines = {line.split("  ")[0]: line for line in out.splitlines()}
    assert "held" in lines["probabilities sum to one"] and "512 states is 1.00" in lines["probabilities sum to one"]
    assert "0 failed" in out.splitlines()[-1]


def test_state_that_is_not_saved_is_found(own: Callable, capsys: pytest.CaptureFixture[str]):
    assert main(own("leaky_coins", 1.0)) == 1
    out = capsys.readouterr().out
    for claim in ("its state is all in the file", "a resumed training is the uninterrupted one"):
        [line] = [line for line in out.splitlines() if line.startswith(claim)]
        assert "FAILED" in line and "differ" in line
    last = out.splitlines()[-1]
    assert "2 failed" in last and "a resumed training is the uninterrupted one" in last


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["model=rmb"], "Did you mean 'rbm'?"),
        (["model=rbm", "objective=elbo"], "Objectives that fit the model: cd"),
        (["model=dcgan", "data=ring"], "model=gan"),
        (["n=0"], "n=0: must be a whole number of at least 1"),
        (["model.hiden=3"], "Did you mean 'hidden'?"),
    ],
)
def test_a_wrong_check_is_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]):
    assert main(["check", *words]) == 2
    out, complaint = capsys.readouterr()
    assert out == "" and complaint.count("\n") == 1 and said in complaint


def test_a_mistake_is_answered_without_torch(tmp_path: Path):
    code = "import sys; from gentrain.cli import main; print(main(['check', 'model=vea']), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.split() == ["2", "False"] and "Did you mean 'vae'?" in done.stderr


def test_sizes_are_small_unless_named(capsys: pytest.CaptureFixture[str]):
    assert main(["check", "model=gan", "model.hidden=[5]", "data=ring", "n=100"]) == 0
    assert "gan-non_saturating on ring (2, real), 48 parameters: model.latent_dim=2 model.hidden=[5]" in (
        capsys.readouterr().out
    )


def test_a_model_that_cannot_train_says_so():
    with pytest.raises(UsageError):
        check(["model=vae", "model.network=conv", "data=bars"])
    [*_, last] = check(["model=vae", "optim.lr=1e30", "n=100"][:2], n=100)
    assert last.name == "it trains" and last.held is False and "stopped before the step" in last.words
