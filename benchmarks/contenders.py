"""The loops that `speed.py` sets against each other, each in a process of its own.

A contender is a generator function: it prepares itself, then yields its batch size once, and afterwards trains
`steps` steps each time it is sent a number. The bare loops are what one would write by hand for one model: data in
memory, no logging, no checks. gentrain's contender is its whole trainer with logging, validation, pictures and
checkpoints at their default intervals.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Generator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Loop = Generator[int, int, None]


def mnist() -> Tensor:
    """The 50,000 training images as floats in [0, 1], (50000, 784)."""
    from gentrain.data.vision import mnist as load

    return load(root=None, download=True, validation=None).splits["train"].x.flatten(1).float() / 255


# --- VAE 784-400-20 -------------------------------------------------------------------------------------------------


class BareVAE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.mu, self.logvar = nn.Linear(784, 400), nn.Linear(400, 20), nn.Linear(400, 20)
        self.fc3, self.fc4 = nn.Linear(20, 400), nn.Linear(400, 784)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = F.relu(self.fc1(x))
        mu, logvar = self.mu(h), self.logvar(h)
        z = mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)
        return self.fc4(F.relu(self.fc3(z))), mu, logvar


def vae_bare(fused: bool, compiled: bool = False) -> Loop:
    """A hand-written loop: `fused` with losses on logits and a fused Adam, else as the textbooks write it; `compiled`
    in bfloat16."""
    batch, x, model = 128, mnist(), BareVAE()

    def negative_elbo(v: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=compiled):
            logits, mu, logvar = (t.float() for t in model(v))
        if fused:
            reconstruction = F.binary_cross_entropy_with_logits(logits, v, reduction="sum")
        else:
            reconstruction = F.binary_cross_entropy(torch.sigmoid(logits), v, reduction="sum")
        return reconstruction - 0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())

    if compiled:
        negative_elbo = torch.compile(negative_elbo)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=fused or None)
    order, at = torch.randperm(len(x)), 0
    steps = yield batch
    while True:
        for _ in range(steps):
            if at + batch > len(x):
                order, at = torch.randperm(len(x)), 0
            v = x[order[at : at + batch]]
            at += batch
            optimizer.zero_grad()
            negative_elbo(v).backward()
            optimizer.step()
        steps = yield batch


# --- RBM 784-500, CD-1 and PCD-1 with as many particles as examples in a batch ----------------------------------------


def rbm_bare(fast: bool, persistent: bool = False) -> Loop:
    """Without autograd: `fast` draws bits by comparing with uniforms in place, else by torch.bernoulli."""
    batch, x, rate = 100, (mnist() > 0.5).float(), 0.05
    w, b, c = 0.01 * torch.randn(500, 784), torch.zeros(784), torch.zeros(500)
    uh, uv = torch.empty(batch, 500), torch.empty(batch, 784)
    h = torch.rand(batch, 500).round()
    order, at = torch.randperm(len(x)), 0

    def draw(p: Tensor, u: Tensor) -> Tensor:
        return torch.lt(u.uniform_(), p, out=u) if fast else torch.bernoulli(p)

    steps = yield batch
    while True:
        with torch.no_grad():
            for _ in range(steps):
                if at + batch > len(x):
                    order, at = torch.randperm(len(x)), 0
                v = x.index_select(0, order[at : at + batch])
                at += batch
                ph = torch.sigmoid(torch.addmm(c, v, w.t()))
                v1 = draw(torch.sigmoid(torch.addmm(b, h if persistent else draw(ph, uh), w)), uv)
                ph1 = torch.sigmoid(torch.addmm(c, v1, w.t()))
                h = draw(ph1, uh) if persistent else h
                w.addmm_(ph.t(), v, alpha=rate / batch).addmm_(ph1.t(), v1, alpha=-rate / batch)
                b.add_((v - v1).mean(0), alpha=rate)
                c.add_((ph - ph1).mean(0), alpha=rate)
        steps = yield batch


def rbm_scikit_learn() -> Loop:
    """BernoulliRBM, which learns by PCD-1 with as many chains as examples in a batch, a batch a call, in float32."""
    from sklearn.neural_network import BernoulliRBM

    batch, x = 100, (mnist() > 0.5).float().numpy()
    rbm = BernoulliRBM(n_components=500, learning_rate=0.05, batch_size=batch, random_state=0)
    order, at = torch.randperm(len(x)).numpy(), 0
    steps = yield batch
    while True:
        for _ in range(steps):
            if at + batch > len(x):
                order, at = torch.randperm(len(x)).numpy(), 0
            rbm.partial_fit(x[order[at : at + batch]])
            at += batch
        steps = yield batch


# --- DCGAN 28x28 ----------------------------------------------------------------------------------------------------


def dcgan_bare(generator_passes: int) -> Loop:
    """gentrain's default DCGAN by hand; with one generator pass the discriminator's fakes also train the generator."""
    from gentrain.models.gan import DCGAN

    batch = 128
    x = mnist().view(-1, 1, 28, 28) * 2 - 1
    model = DCGAN((1, 28, 28), levels=256)
    latent = model.prior.event_shape[0]
    g, d = model.generator, model.discriminator
    g_opt = torch.optim.Adam(g.parameters(), 2e-4, betas=(0.5, 0.999))
    d_opt = torch.optim.Adam(d.parameters(), 2e-4, betas=(0.5, 0.999))
    one, zero = torch.ones(batch), torch.zeros(batch)
    loss = F.binary_cross_entropy_with_logits
    order, at = torch.randperm(len(x)), 0
    steps = yield batch
    while True:
        for _ in range(steps):
            if at + batch > len(x):
                order, at = torch.randperm(len(x)), 0
            real = x[order[at : at + batch]]
            at += batch
            fake = model.decode(torch.randn(batch, latent))
            d_opt.zero_grad()
            d_loss = loss(model.discriminate(real), one) + loss(model.discriminate(fake.detach()), zero)
            d_loss.backward()
            d_opt.step()
            if generator_passes == 2:
                fake = model.decode(torch.randn(batch, latent))
            g_opt.zero_grad()
            loss(model.discriminate(fake), one).backward(inputs=list(g.parameters()))
            g_opt.step()
        steps = yield batch


# --- gentrain -------------------------------------------------------------------------------------------------------


def gentrain(*overrides: str) -> Loop:
    """gentrain's own trainer as the command runs it, in pieces."""
    from gentrain import config
    from gentrain import device as devices
    from gentrain.run import Run
    from gentrain.settings import DeviceSettings
    from gentrain.signals import Stop
    from gentrain.tasks.assemble import assemble
    from gentrain.tasks.train import prepare

    cfg = config.compose("train", ["device=cpu", "trainer.steps=1000000", *overrides])
    device = devices.setup(DeviceSettings(**config.check(cfg)["device"]))
    assembly = assemble(cfg, device)
    with tempfile.TemporaryDirectory() as folder:
        run = Run.create(Path(folder), "speed", assembly.name)
        trainer, _ = prepare(assembly, device, run.path, config.stored(cfg), True, 0)
        steps = yield assembly.pipeline.batch_size
        while True:
            trainer.total = trainer.step + steps
            trainer.fit(Stop())
            steps = yield assembly.pipeline.batch_size


VAE = ("model=vae", "data=mnist", "model.hidden=[400]", "model.latent_dim=20", "data.batch_size=128")
RBM = ("model=rbm", "data=mnist", "model.hidden=500", "objective=cd", "objective.k=1", "data.batch_size=100")
PERSISTENT = ("model=rbm", "data=mnist", "model.hidden=500", "data.batch_size=100")  # their own default is k=1
PLAIN = ("optim.momentum=0", "optim.weight_decay=0")  # as the bare loop, which has neither
BLIND = ("trainer.evaluate_every=0", "trainer.sample_every=0", "trainer.checkpoint_every=0")  # the steps by themselves
DCGAN = ("model=dcgan", "data=mnist", "data.batch_size=128")

CONTENDERS = {
    "vae": {
        "bare loop": lambda: vae_bare(fused=False),
        "bare loop, fused, logits": lambda: vae_bare(fused=True),
        "bare loop, fused, logits, bf16, compiled": lambda: vae_bare(fused=True, compiled=True),
        "gentrain": lambda: gentrain(*VAE, "data.binarization=threshold"),
        "gentrain, compiled": lambda: gentrain(*VAE, "data.binarization=threshold", "device.compile=true"),
        "gentrain, dynamic binarization": lambda: gentrain(*VAE),
        "gentrain, bf16, compiled": lambda: gentrain(
            *VAE, "data.binarization=threshold", "device.precision=bf16", "device.compile=true"
        ),
    },
    "rbm": {
        "bare loop": lambda: rbm_bare(fast=False),
        "bare loop, fast draws": lambda: rbm_bare(fast=True),
        "gentrain": lambda: gentrain(*RBM, *PLAIN, "data.binarization=threshold"),
        "gentrain, without looking": lambda: gentrain(*RBM, *PLAIN, *BLIND, "data.binarization=threshold"),
        "gentrain, bf16": lambda: gentrain(*RBM, *PLAIN, "data.binarization=threshold", "device.precision=bf16"),
        "gentrain, its defaults (momentum, weight decay, dynamic binarization)": lambda: gentrain(*RBM),
        "scikit-learn's BernoulliRBM (PCD-1)": rbm_scikit_learn,
    },
    "pcd": {
        "bare loop": lambda: rbm_bare(fast=False, persistent=True),
        "bare loop, fast draws": lambda: rbm_bare(fast=True, persistent=True),
        "gentrain": lambda: gentrain(*PERSISTENT, "objective=pcd", *PLAIN, "data.binarization=threshold"),
        "gentrain, without looking": lambda: gentrain(
            *PERSISTENT, "objective=pcd", *PLAIN, *BLIND, "data.binarization=threshold"
        ),
        "gentrain, its defaults (momentum, weight decay, dynamic binarization)": lambda: gentrain(
            *PERSISTENT, "objective=pcd"
        ),
        "gentrain, centering": lambda: gentrain(
            *PERSISTENT, "objective=pcd", *PLAIN, "data.binarization=threshold", "objective.refine.centering=0.01"
        ),
        "gentrain, fast weights": lambda: gentrain(
            *PERSISTENT, "objective=fpcd", *PLAIN, "data.binarization=threshold"
        ),
        "scikit-learn's BernoulliRBM": rbm_scikit_learn,
    },
    "dcgan": {
        "bare loop": lambda: dcgan_bare(2),
        "bare loop, one generator pass": lambda: dcgan_bare(1),
        "gentrain": lambda: gentrain(*DCGAN),
    },
}


def main() -> None:
    """Speak with `speed.py`: a number of steps in, seconds out, a line each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("work")
    parser.add_argument("name")
    arguments = parser.parse_args()
    answer, sys.stdout = sys.stdout, sys.stderr  # gentrain's own lines must not mix with the answers
    torch.manual_seed(0)
    loop = CONTENDERS[arguments.work][arguments.name]()
    print(next(loop), file=answer, flush=True)
    for line in sys.stdin:
        began = time.perf_counter()
        loop.send(int(line))
        print(time.perf_counter() - began, file=answer, flush=True)


if __name__ == "__main__":
    main()
