"""Programs of other kinds: adversarial, sparse, fine-tuned, reinforcement, densities, physics, graphs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.corpus.ledger import Ledger
from benchmarks.corpus.program import Program
from benchmarks.corpus.programs.datasets import dataset, python_text
from benchmarks.corpus.programs.feedforward import dense_stack, make_criterion
from benchmarks.corpus.programs.modules import ACTIVATIONS, accuracy_skill, batches, normalization, variance_skill


def adversarial(
    ledger: Ledger,
    batch: int,
    *,
    data: str = "ring",
    modes: int = 8,
    hidden: int = 48,
    critic_steps: int = 1,
    wasserstein: bool = False,
    weight_clamp: float = 0.05,
    together: bool = False,
    gain: float = 1.0,
) -> Program:
    """A generative adversarial network of points: two optimizers taking turns. Skill: share of modes covered."""
    if data == "ring":
        angle = torch.arange(modes) * 2 * math.pi / modes
        centres = torch.stack([angle.cos(), angle.sin()], 1)
    else:
        side = math.isqrt(modes)
        centres = torch.cartesian_prod(torch.linspace(-1, 1, side), torch.linspace(-1, 1, side))
    ledger.group = 0
    generate, _ = dense_stack(ledger, [4, hidden, hidden, 2], activation="relu", prefix="generator.")
    ledger.group = 1
    judge, _ = dense_stack(ledger, [2, hidden, hidden, 1], activation="leaky_relu", prefix="discriminator.")
    if gain != 1.0:
        ledger.initialize("he", gain)
    critic = ledger.parameters(1)

    def real() -> Tensor:
        return centres[torch.randint(len(centres), (batch,))] + 0.03 * torch.randn(batch, 2)

    def turn(step: int) -> int | None:
        if together:
            return None
        return 0 if step % (critic_steps + 1) == critic_steps else 1

    def critic_loss(fake: Tensor) -> Tensor:
        if wasserstein:
            return judge(fake).mean() - judge(real()).mean()
        return functional.softplus(judge(fake)).mean() + functional.softplus(-judge(real())).mean()

    def generator_loss(fake: Tensor) -> Tensor:
        return -judge(fake).mean() if wasserstein else functional.softplus(-judge(fake)).mean()

    def step_loss(step: int) -> Tensor:
        fake = generate(torch.randn(batch, 4))
        now = turn(step)
        if now == 1:
            return critic_loss(fake.detach())
        return generator_loss(fake)

    def after_step(step: int) -> None:  # noqa: ARG001
        if wasserstein:
            with torch.no_grad():
                for parameter in critic:
                    parameter.clamp_(-weight_clamp, weight_clamp)

    def skill() -> float:
        points = generate(torch.randn(2000, 4))
        distance = torch.cdist(points, centres)
        nearest = distance.argmin(1)[distance.min(1).values < 0.25]
        hits = torch.bincount(nearest, minlength=len(centres)).double() / len(points)
        return float((hits > 0.25 / len(centres)).double().mean())

    return Program(loss=step_loss, skill=skill, inputs=torch.randn(batch, 4), turn=turn, after_step=after_step)


def bag_of_words(
    ledger: Ledger,
    batch: int,
    *,
    words: int = 2000,
    topics: int = 6,
    width: int = 16,
    sparse: bool = False,
    hidden: int | None = None,
    activation: str = "relu",
    embedding_scale: float = 0.1,
) -> Program:
    """Classify short documents by a bag of embedded words. Most words are absent from any batch."""
    frequency = 1.0 / torch.arange(1, words + 1).float()
    preference = torch.rand(topics, words) < 0.08
    weights = frequency * (0.25 + 4 * preference)
    bag = ledger.add(nn.EmbeddingBag(words, width, mode="mean", sparse=sparse), "words")
    nn.init.normal_(bag.weight, 0.0, embedding_scale)
    sizes = [width, topics] if hidden is None else [width, hidden, topics]
    if sparse:  # an optimizer for sparse gradients trains the embedding alone
        head = torch.randn(width, topics)
        forward: Callable[[Tensor], Tensor] = lambda x: bag(x) @ head  # noqa: E731
    else:
        top, _ = dense_stack(ledger, sizes, activation=activation, prefix="head.")
        forward = lambda x: top(bag(x))  # noqa: E731

    def draw(count: int) -> tuple[Tensor, Tensor]:
        y = torch.randint(topics, (count,))
        return torch.multinomial(weights[y], 30, replacement=True), y

    def step_loss(step: int) -> Tensor:  # noqa: ARG001
        x, y = draw(batch)
        return functional.cross_entropy(forward(x), y)

    eval_x, eval_y = draw(1000)
    return Program(loss=step_loss, skill=lambda: accuracy_skill(forward(eval_x), eval_y, topics))


def skip_gram(ledger: Ledger, batch: int, *, words: int = 300, width: int = 16, scale: float = 0.1) -> Program:
    """Word vectors by negative sampling, of a language whose words come in clusters."""
    clusters = 10
    centre = ledger.add(nn.Embedding(words, width), "centre")
    context = ledger.add(nn.Embedding(words, width), "context")
    for embedding in (centre, context):
        nn.init.normal_(embedding.weight, 0.0, scale)
    cluster = torch.arange(words) % clusters

    def pairs(count: int) -> tuple[Tensor, Tensor, Tensor]:
        a = torch.randint(words, (count,))
        b = (torch.randint(words // clusters, (count,)) * clusters + cluster[a]) % words
        return a, b, torch.randint(words, (count, 4))

    def step_loss(step: int) -> Tensor:  # noqa: ARG001
        a, b, negatives = pairs(batch)
        near = (centre(a) * context(b)).sum(-1)
        far = (centre(a)[:, None] * context(negatives)).sum(-1)
        return functional.softplus(-near).mean() + functional.softplus(far).sum(-1).mean()

    def skill() -> float:
        scores = centre.weight @ context.weight.T
        same = cluster[:, None] == cluster[None, :]
        top = scores.topk(words // clusters, dim=1).indices
        precision = float(same.gather(1, top).double().mean())
        return (precision - 1 / clusters) / (1 - 1 / clusters)

    return Program(loss=step_loss, skill=skill)


def fine_tune(
    ledger: Ledger,
    batch: int,
    *,
    data: str = "digits",
    method: str = "frozen",
    rank: int = 4,
    hidden: int = 64,
    activation: str = "relu",
    adapter_gain: float = 1.0,
    head_gain: float = 1.0,
) -> Program:
    """Pretrains a body on half of the classes, then tunes: `frozen` body, `lora` adapters, `adapters` or `all`."""
    made = dataset(data)
    half = made.classes // 2
    body = [nn.Linear(made.x.shape[1], hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)]
    old_head = nn.Linear(hidden, made.classes)
    act = ACTIVATIONS[activation]

    def features(x: Tensor, extra: list[Callable[[Tensor], Tensor]] | None = None) -> Tensor:
        for index, layer in enumerate(body):
            x = act(layer(x) + extra[index](x) if extra is not None else layer(x))
        return x

    old = made.y < half
    draw_old = batches(made.x[old], made.y[old], 64)
    pretraining = torch.optim.Adam([p for m in [*body, old_head] for p in m.parameters()], lr=3e-3)
    for _ in range(150):
        x, y = draw_old()
        pretraining.zero_grad()
        torch.autograd.backward(functional.cross_entropy(old_head(features(x)), y))
        pretraining.step()

    downs: list[nn.Linear] = []
    ups: list[nn.Linear] = []
    for index, layer in enumerate(body):
        ledger.add(layer, f"body.{index}", activation=activation, frozen=method != "all")
        if method == "lora":
            downs.append(ledger.add(nn.Linear(layer.in_features, rank, bias=False), f"body.{index}.down", branch=True))
            ups.append(ledger.add(nn.Linear(rank, layer.out_features, bias=False), f"body.{index}.up", branch=True))
            nn.init.zeros_(ups[-1].weight)
    ledger.rescale(lambda record: record.name.endswith("down.weight"), adapter_gain)
    head = ledger.add(nn.Linear(hidden, made.classes), "head")
    ledger.rescale(lambda record: record.name == "head.weight", head_gain)
    extra: list[Callable[[Tensor], Tensor]] | None = None
    if downs:
        extra = [nn.Sequential(down, up) for down, up in zip(downs, ups, strict=True)]
    draw = batches(made.x, made.y, batch)

    def step_loss(step: int) -> Tensor:  # noqa: ARG001
        x, y = draw()
        return functional.cross_entropy(head(features(x, extra)), y)

    return Program(
        loss=step_loss,
        skill=lambda: accuracy_skill(head(features(made.eval_x, extra)), made.eval_y, made.classes),
        inputs=draw()[0],
    )


def temporal_difference(
    ledger: Ledger,
    batch: int,
    *,
    states: int = 12,
    hidden: list[int] | None = None,
    discount: float = 0.9,
    target_every: int = 20,
    reward_scale: float = 1.0,
    activation: str = "relu",
    off_policy_twin: bool = False,
    feature_scale: float = 1.0,
    init: str = "default",
    gain: float = 1.0,
) -> Program:
    """Learns action values of a corridor by bootstrapping from a target network (`target_every` 0: from itself).

    `off_policy_twin`: instead, linear values of two states with features 1 and 2, updated off their policy, which
    diverge for a discount above 1/2 (Tsitsiklis & Van Roy 1997). Skill: explained variance of the true values.
    """
    if off_policy_twin:
        weight = ledger.add(nn.Linear(1, 1, bias=False), "value")
        nn.init.ones_(weight.weight)

        def twin_loss(step: int) -> Tensor:  # noqa: ARG001
            value: Tensor = weight(torch.ones(1, 1) * feature_scale)
            following = weight(torch.full((1, 1), 2.0) * feature_scale).detach()
            error: Tensor = value - discount * following + 0.05 * torch.randn(1, 1)
            return error.square().mean()

        return Program(loss=twin_loss, skill=lambda: 1.0 - float(weight.weight.abs().max()), inputs=torch.ones(1, 1))
    forward, _ = dense_stack(ledger, [states, *(hidden or [32, 32]), 2], activation=activation)
    ledger.initialize(init, gain)
    one_hot = torch.eye(states) * feature_scale
    step_to = torch.stack([torch.arange(states) - 1, torch.arange(states) + 1], 1).clamp(0, states - 1)
    reward = torch.zeros(states, 2)
    reward[states - 2, 1] = reward_scale
    reward[:, 0] = 0.05 * reward_scale
    done = torch.zeros(states, 2)
    done[states - 2, 1] = 1.0
    true = torch.zeros(states, 2)
    for _ in range(300):
        true = reward + discount * (1 - done) * true.max(1).values[step_to]
    frozen: list[list[Tensor]] = [[p.detach().clone() for p in ledger.parameters()]]

    def target_values(x: Tensor) -> Tensor:
        with torch.no_grad():
            if target_every == 0:
                return forward(x)
            live = [p.detach().clone() for p in ledger.parameters()]
            for parameter, old in zip(ledger.parameters(), frozen[0], strict=True):
                parameter.copy_(old)
            out = forward(x)
            for parameter, now in zip(ledger.parameters(), live, strict=True):
                parameter.copy_(now)
            return out

    def step_loss(step: int) -> Tensor:  # noqa: ARG001
        s, a = torch.randint(states - 1, (batch,)), torch.randint(2, (batch,))
        best = target_values(one_hot[step_to[s, a]]).max(1).values
        goal = reward[s, a] + discount * (1 - done[s, a]) * best
        return functional.mse_loss(forward(one_hot[s]).gather(1, a[:, None])[:, 0], goal)

    def after_step(step: int) -> None:
        if target_every and step % target_every == 0:
            frozen[0] = [p.detach().clone() for p in ledger.parameters()]

    def skill() -> float:
        return variance_skill(forward(one_hot[:-1]).flatten(), true[:-1].flatten())

    return Program(loss=step_loss, skill=skill, inputs=one_hot[:batch], after_step=after_step)


def policy_gradient(
    ledger: Ledger,
    batch: int,
    *,
    actions: int = 5,
    baseline: bool = True,
    entropy: float = 0.01,
    hidden: int = 32,
    reward_scale: float = 1.0,
) -> Program:
    """REINFORCE on contextual bandits: a noisy loss of both signs. Skill: share of the best return."""
    contexts = torch.randn(400, 6)
    value = torch.tanh(contexts @ torch.randn(6, actions))
    forward, _ = dense_stack(ledger, [6, hidden, actions], activation="tanh")
    average = [0.0]

    def step_loss(step: int) -> Tensor:  # noqa: ARG001
        chosen = torch.randint(len(contexts), (batch,))
        log_probability = torch.log_softmax(forward(contexts[chosen]), -1)
        action = torch.multinomial(log_probability.exp().detach(), 1)
        reward = (value[chosen].gather(1, action) + 0.3 * torch.randn(batch, 1)) * reward_scale
        advantage = reward - (average[0] if baseline else 0.0)
        average[0] = 0.95 * average[0] + 0.05 * float(reward.mean())
        spread = -(log_probability.exp() * log_probability).sum(-1).mean()
        return -(log_probability.gather(1, action) * advantage).mean() - entropy * spread

    def skill() -> float:
        picked = value.gather(1, forward(contexts).argmax(1, keepdim=True)).mean()
        return float((picked - value.mean()) / (value.max(1).values.mean() - value.mean()))

    return Program(loss=step_loss, skill=skill, inputs=contexts[:batch])


def mixture_density(
    ledger: Ledger,
    batch: int,
    *,
    components: int = 4,
    hidden: list[int] | None = None,
    activation: str = "tanh",
    scale_map: str = "softplus",
    target_scale: float = 1.0,
    init: str = "default",
    gain: float = 1.0,
) -> Program:
    """A mixture density network of a curve with several answers; its loss, a likelihood, may be negative."""
    t = torch.rand(3000, 1)
    x = t + 0.3 * (2 * math.pi * t).sin() + 0.03 * torch.randn(3000, 1)
    x, t = (x - x.mean()) / x.std(), (t - t.mean()) / t.std() * target_scale
    forward, _ = dense_stack(ledger, [1, *(hidden or [32, 32]), 3 * components], activation=activation)
    ledger.initialize(init, gain)

    def likelihood(x: Tensor, t: Tensor) -> Tensor:
        weight, mean, raw = forward(x).chunk(3, -1)
        scale = raw.exp() if scale_map == "exp" else functional.softplus(raw) + 1e-3
        density = -0.5 * ((t - mean) / scale).square() - scale.log() - 0.919
        return -torch.logsumexp(torch.log_softmax(weight, -1) + density, -1).mean()

    draw = batches(x[:2500], t[:2500], batch)

    def skill() -> float:
        plain = 0.5 * math.log(2 * math.pi * math.e) + math.log(target_scale)
        return plain - float(likelihood(x[2500:], t[2500:]))

    inputs, targets = draw()
    return Program(loss=lambda step: likelihood(*draw()), skill=skill, inputs=inputs, targets=targets)  # noqa: ARG005


def coupling_flow(
    ledger: Ledger,
    batch: int,
    *,
    data: str = "moons",
    couplings: int = 6,
    hidden: int = 32,
    bounded: bool = True,
    data_scale: float = 1.0,
    gain: float = 1.0,
) -> Program:
    """A normalizing flow of affine couplings. `bounded` passes the log-scales through tanh."""
    made = dataset(data, inputs="std")
    nets = []
    for index in range(couplings):
        net, _ = dense_stack(ledger, [1, hidden, hidden, 2], activation="relu", prefix=f"coupling{index}.")
        nets.append(net)
    ledger.initialize("default" if gain == 1.0 else "he", gain)

    def likelihood(x: Tensor) -> Tensor:
        x = x * data_scale
        log_volume = torch.full((len(x),), 2 * math.log(data_scale))
        for index, net in enumerate(nets):
            a, b = (x[:, :1], x[:, 1:]) if index % 2 == 0 else (x[:, 1:], x[:, :1])
            log_scale, shift = net(a).chunk(2, -1)
            log_scale = torch.tanh(log_scale) * 2 if bounded else log_scale
            b = b * log_scale.exp() + shift
            x = torch.cat([a, b] if index % 2 == 0 else [b, a], 1)
            log_volume = log_volume + log_scale[:, 0]
        return (0.5 * x.square().sum(1) + 1.838 - log_volume).mean()

    draw = batches(made.x, made.y, batch)
    plain = 2 * 0.5 * math.log(2 * math.pi * math.e)
    return Program(
        loss=lambda step: likelihood(draw()[0]),  # noqa: ARG005
        skill=lambda: plain - float(likelihood(made.eval_x)),
        inputs=draw()[0] * data_scale,
    )


def contrastive(
    ledger: Ledger,
    batch: int,
    *,
    data: str = "digits",
    temperature: float = 0.2,
    hidden: list[int] | None = None,
    activation: str = "relu",
    margin: float | None = None,
    normalize: bool = True,
    init: str = "default",
    gain: float = 1.0,
    norm: str | None = None,
) -> Program:
    """Learns an embedding from pairs of noisy views (InfoNCE), or from labelled triplets with a `margin`.

    Skill: accuracy of the nearest class centre, against that of an embedding of constants.
    """
    made = dataset(data)
    forward, modules = dense_stack(ledger, [made.x.shape[1], *(hidden or [64]), 16], activation=activation, norm=norm)
    ledger.initialize(init, gain)
    draw = batches(made.x, made.y, batch)

    def embed(x: Tensor) -> Tensor:
        z = forward(x)
        return functional.normalize(z, dim=-1) if normalize else z

    def step_loss(step: int) -> Tensor:  # noqa: ARG001
        x, y = draw()
        if margin is None:
            a, b = embed(x + 0.3 * torch.randn_like(x)), embed(x + 0.3 * torch.randn_like(x))
            return functional.cross_entropy(a @ b.T / temperature, torch.arange(len(x)))
        z = embed(x)
        distance = (z[:, None] - z[None]).square().sum(-1)
        same = (y[:, None] == y[None]).float()
        hardest_same = (distance * same).max(1).values
        nearest_other = (distance + 1e6 * same).min(1).values
        return functional.relu(hardest_same - nearest_other + margin).mean()

    def skill() -> float:
        for module in modules:
            module.eval()
        z, held = embed(made.x), embed(made.eval_x)
        centres = torch.stack([z[made.y == c].mean(0) for c in range(made.classes)])
        spread = float(z.var(0).sum())
        if spread < 1e-10:
            return 0.0
        return accuracy_skill(-torch.cdist(held, centres), made.eval_y, made.classes)

    return Program(loss=step_loss, skill=skill, inputs=draw()[0])


def physics_informed(
    ledger: Ledger,
    batch: int,
    *,
    hidden: list[int] | None = None,
    activation: str = "tanh",
    frequency: float = 2.0,
    boundary_weight: float = 10.0,
    init: str = "xavier",
    gain: float = 1.0,
    residual: str | None = None,
) -> Program:
    """Solves u'' = -w^2 u, u(0) = 0, u'(0) = w by its residual: gradients of gradients."""
    forward, _ = dense_stack(ledger, [1, *(hidden or [24, 24, 24]), 1], activation=activation, residual=residual)
    ledger.initialize(init, gain)

    def slope(u: Tensor, t: Tensor) -> Tensor:
        return torch.autograd.grad(u.sum(), t, create_graph=True)[0]

    def step_loss(step: int) -> Tensor:  # noqa: ARG001
        t = (torch.rand(batch, 1) * 3).requires_grad_()
        u = forward(t)
        residual_ = slope(slope(u, t), t) + frequency**2 * u
        zero = torch.zeros(1, 1, requires_grad=True)
        start = forward(zero)
        begin = start.square() + (slope(start, zero) - frequency).square()
        return residual_.square().mean() / frequency**2 + boundary_weight * begin.mean()

    def skill() -> float:
        t = torch.linspace(0, 3, 200)[:, None]
        return variance_skill(forward(t), (frequency * t).sin())

    return Program(loss=step_loss, skill=skill, inputs=torch.rand(batch, 1) * 3)


def tied_network(
    ledger: Ledger,
    batch: int,
    *,
    data: str = "digits",
    width: int = 32,
    applications: int = 12,
    activation: str = "relu",
    init: str = "he",
    gain: float = 1.0,
    norm: str | None = None,
    residual: float | None = None,
) -> Program:
    """One hidden layer applied again and again; with `residual`, as small steps of a differential equation."""
    made = dataset(data)
    first = ledger.add(nn.Linear(made.x.shape[1], width), "first", activation=activation)
    shared = ledger.add(
        nn.Linear(width, width),
        "shared",
        activation=activation,
        normalized=norm is not None,
        branch=residual is not None,
    )
    norm_module = ledger.add(normalization(norm, width), "norm") if norm is not None else None
    last = ledger.add(nn.Linear(width, made.classes or 1), "last")
    ledger.initialize(init)
    ledger.rescale(lambda record: record.name == "shared.weight", gain)
    act = ACTIVATIONS[activation]
    criterion = make_criterion("ce" if made.classes else "mse", made.classes)

    def forward(x: Tensor) -> Tensor:
        h = act(first(x))
        for _ in range(applications):
            change = shared(h)
            if norm_module is not None:
                change = norm_module(change)
            change = act(change)
            h = change if residual is None else h + residual * change
        out: Tensor = last(h)
        return out

    draw = batches(made.x, made.y, batch)

    def step_loss(step: int) -> Tensor:  # noqa: ARG001
        x, y = draw()
        return criterion(forward(x), y)

    def skill() -> float:
        if norm_module is not None:
            norm_module.eval()
        out = forward(made.eval_x)
        if made.classes:
            return accuracy_skill(out, made.eval_y, made.classes)
        return variance_skill(out, made.eval_y)

    return Program(loss=step_loss, skill=skill, inputs=draw()[0], targets=None)


def multi_task(
    ledger: Ledger,
    batch: int,
    *,
    hidden: list[int] | None = None,
    activation: str = "relu",
    regression_scale: float = 1.0,
    regression_weight: float = 1.0,
    init: str = "default",
    gain: float = 1.0,
    norm: str | None = None,
    alternate: bool = False,
) -> Program:
    """One trunk and two heads: the digit and its brightness. With `alternate`, each step trains one head."""
    made = dataset("digits")
    brightness = made.x.mean(1, keepdim=True)
    eval_brightness = made.eval_x.mean(1, keepdim=True)
    mean, std = brightness.mean(), brightness.std()
    brightness = (brightness - mean) / std * regression_scale
    eval_brightness = (eval_brightness - mean) / std * regression_scale
    sizes = [made.x.shape[1], *(hidden or [48, 48])]
    trunk, modules = dense_stack(
        ledger, sizes, activation=activation, norm=norm, out_activation=activation, prefix="trunk."
    )
    classify = ledger.add(nn.Linear(sizes[-1], 10), "classify")
    regress = ledger.add(nn.Linear(sizes[-1], 1), "regress")
    ledger.initialize(init, gain)

    def step_loss(step: int) -> Tensor:
        chosen = torch.randint(len(made.x), (batch,))
        h = trunk(made.x[chosen])
        if alternate and step % 2:
            return regression_weight * functional.mse_loss(regress(h), brightness[chosen])
        first = functional.cross_entropy(classify(h), made.y[chosen])
        if alternate:
            return first
        return first + regression_weight * functional.mse_loss(regress(h), brightness[chosen])

    def skill() -> float:
        for module in modules:
            module.eval()
        h = trunk(made.eval_x)
        return 0.5 * accuracy_skill(classify(h), made.eval_y, 10) + 0.5 * max(
            0.0, variance_skill(regress(h), eval_brightness)
        )

    return Program(loss=step_loss, skill=skill, inputs=made.x[:batch], targets=brightness[:batch])


def matrix_factorization(
    ledger: Ledger,
    batch: int,
    *,
    users: int = 120,
    items: int = 80,
    rank: int = 6,
    scale: float = 0.3,
    rating_scale: float = 1.0,
    full: bool = False,
) -> Program:
    """Factor a table of ratings. The loss is bilinear, so that large steps diverge."""
    truth = torch.randn(users, rank) @ torch.randn(rank, items) / math.sqrt(rank) * rating_scale
    left = ledger.add(nn.Embedding(users, rank), "users")
    right = ledger.add(nn.Embedding(items, rank), "items")
    for embedding in (left, right):
        nn.init.normal_(embedding.weight, 0.0, scale)

    def step_loss(step: int) -> Tensor:  # noqa: ARG001
        if full:
            return (left.weight @ right.weight.T - truth).square().mean() * items
        u, i = torch.randint(users, (batch,)), torch.randint(items, (batch,))
        error: Tensor = (left(u) * right(i)).sum(-1) - truth[u, i]
        return error.square().mean()

    return Program(
        loss=step_loss, skill=lambda: variance_skill((left.weight @ right.weight.T).flatten(), truth.flatten())
    )


def graph_network(
    ledger: Ledger,
    batch: int,
    *,
    layers: int = 2,
    width: int = 16,
    activation: str = "relu",
    norm: str | None = None,
    residual: bool = False,
    init: str = "default",
    gain: float = 1.0,
    normalized_graph: bool = True,
) -> Program:
    """Graph convolutions on a graph of four communities; unnormalized, every layer multiplies by the degree."""
    nodes, classes = 160, 4
    y = torch.arange(nodes) % classes
    same = y[:, None] == y[None, :]
    adjacency = (torch.rand(nodes, nodes) < torch.where(same, 0.16, 0.02)).float()
    adjacency = ((adjacency + adjacency.T) > 0).float() + torch.eye(nodes)
    if normalized_graph:
        root = adjacency.sum(1).rsqrt()
        adjacency = root[:, None] * adjacency * root[None, :]
    x = torch.randn(nodes, 12) + 0.8 * torch.randn(classes, 12)[y]
    labelled = torch.rand(nodes) < 0.5
    act = ACTIVATIONS[activation]
    first = ledger.add(nn.Linear(12, width), "conv0", activation=activation)
    middle: list[tuple[nn.Module, nn.Module | None]] = []
    for index in range(1, layers):
        linear = ledger.add(
            nn.Linear(width, width), f"conv{index}", activation=activation, normalized=norm is not None, branch=residual
        )
        norm_module = ledger.add(normalization(norm, width), f"norm{index}", branch=residual) if norm else None
        middle.append((linear, norm_module))
    last = ledger.add(nn.Linear(width, classes), "out")
    ledger.initialize(init, gain)

    def forward() -> Tensor:
        h = act(adjacency @ first(x))
        for linear, norm_module in middle:
            change = adjacency @ linear(h)
            if norm_module is not None:
                change = norm_module(change)
            change = act(change)
            h = h + change if residual else change
        out: Tensor = last(h)
        return out

    def step_loss(step: int) -> Tensor:  # noqa: ARG001
        chosen = labelled & (torch.rand(nodes) < min(1.0, batch / nodes))
        return functional.cross_entropy(forward()[chosen], y[chosen])

    return Program(loss=step_loss, skill=lambda: accuracy_skill(forward()[~labelled], y[~labelled], classes), inputs=x)


def denoising_diffusion(
    ledger: Ledger,
    batch: int,
    *,
    data: str = "moons",
    hidden: list[int] | None = None,
    activation: str = "silu",
    residual: str | None = None,
    norm: str | None = None,
    init: str = "default",
    gain: float = 1.0,
    data_scale: float = 1.0,
) -> Program:
    """Predict the noise in a noised point. The loss stays high and noisy, however well the network learns."""
    made = dataset(data)
    made.x, made.eval_x = made.x * data_scale, made.eval_x * data_scale
    forward, _ = dense_stack(
        ledger, [4, *(hidden or [64, 64, 64]), 2], activation=activation, residual=residual, norm=norm
    )
    ledger.initialize(init, gain)

    def errors(x: Tensor) -> tuple[Tensor, Tensor]:
        level = torch.rand(len(x), 1)
        keep = (level * math.pi / 2).cos()
        noise = torch.randn_like(x)
        noised = keep * x + (1 - keep.square()).sqrt() * noise
        return forward(torch.cat([noised, level, keep], 1)), noise

    draw = batches(made.x, made.y, batch)

    def step_loss(step: int) -> Tensor:  # noqa: ARG001
        predicted, noise = errors(draw()[0])
        return functional.mse_loss(predicted, noise)

    def skill() -> float:
        predicted, noise = errors(made.eval_x.repeat(8, 1))
        return variance_skill(predicted, noise)

    return Program(loss=step_loss, skill=skill, inputs=draw()[0], targets=torch.randn(batch, 2))


def coordinate_network(
    ledger: Ledger,
    batch: int,
    *,
    hidden: list[int] | None = None,
    activation: str = "sin",
    omega: float = 10.0,
    siren_init: bool = True,
    gain: float = 1.0,
) -> Program:
    """Fits an image as a function of its coordinates, with sines for activations (Sitzmann et al. 2020)."""
    side = 24
    axis = torch.linspace(-1, 1, side)
    points = torch.cartesian_prod(axis, axis)
    values = ((6 * points[:, :1]).sin() * (4 * points[:, 1:]).cos() + (points.norm(dim=1, keepdim=True) < 0.5)).float()
    values = (values - values.mean()) / values.std()
    sizes = [2, *(hidden or [48, 48, 48]), 1]
    forward, _ = dense_stack(ledger, sizes, activation=activation)
    if siren_init:
        for index, entry in enumerate(e for e in ledger.entries if e.record.role == "weight"):
            fan = entry.parameter.shape[1]
            bound = omega / fan if index == 0 else math.sqrt(6 / fan)
            nn.init.uniform_(entry.parameter, -bound * gain, bound * gain)
    draw = batches(points, values, batch)

    def step_loss(step: int) -> Tensor:  # noqa: ARG001
        x, y = draw()
        return functional.mse_loss(forward(x), y)

    x, y = draw()
    return Program(loss=step_loss, skill=lambda: variance_skill(forward(points), values), inputs=x, targets=y)


def mixture_of_experts(
    ledger: Ledger,
    batch: int,
    *,
    data: str = "spirals:3",
    experts: int = 6,
    hidden: int = 24,
    gain: float = 1.0,
) -> Program:
    """Each example uses one expert. Experts that no example of a batch uses are absent in that step."""
    made = dataset(data)
    gate = ledger.add(nn.Linear(made.x.shape[1], experts), "gate", activation="softmax")
    bodies = []
    for index in range(experts):
        body, _ = dense_stack(ledger, [made.x.shape[1], hidden, made.classes], prefix=f"expert{index}.")
        bodies.append(body)
    ledger.initialize("default", gain)

    def forward(x: Tensor) -> Tensor:
        share = torch.softmax(gate(x), -1)
        best = share.argmax(-1)
        out = torch.zeros(len(x), made.classes)
        for index, body in enumerate(bodies):
            mine = best == index
            if bool(mine.any()):
                out = out.index_put((torch.nonzero(mine)[:, 0],), share[mine, index][:, None] * body(x[mine]) * 4)
        return out

    draw = batches(made.x, made.y, batch)

    def step_loss(step: int) -> Tensor:  # noqa: ARG001
        x, y = draw()
        return functional.cross_entropy(forward(x), y)

    return Program(
        loss=step_loss,
        skill=lambda: accuracy_skill(forward(made.eval_x), made.eval_y, made.classes),
        inputs=draw()[0],
    )


def unrolled_simulation(
    ledger: Ledger,
    batch: int,
    *,
    horizon: int = 20,
    step_size: float = 0.1,
    hidden: int = 24,
    activation: str = "tanh",
    gain: float = 1.0,
    system: str = "pendulum",
) -> Program:
    """Learns a system's dynamics through its simulated path: backpropagation through a differential equation."""

    def derivative(state: Tensor) -> Tensor:
        a, b = state[:, :1], state[:, 1:]
        if system == "pendulum":
            return torch.cat([b, -a.sin() * 2 - 0.1 * b], 1)
        return torch.cat([a * (1 - b), b * (a - 1)], 1)

    def path(flow: Callable[[Tensor], Tensor], state: Tensor) -> Tensor:
        states = []
        for _ in range(horizon):
            state = state + step_size * flow(state)
            states.append(state)
        return torch.stack(states, 1)

    forward, _ = dense_stack(ledger, [2, hidden, hidden, 2], activation=activation)
    ledger.initialize("default", gain)

    def begin(count: int) -> Tensor:
        return torch.rand(count, 2) * 2 - 1 if system == "pendulum" else torch.rand(count, 2) + 0.5

    def step_loss(step: int) -> Tensor:  # noqa: ARG001
        start = begin(batch)
        return functional.mse_loss(path(forward, start), path(derivative, start))

    def skill() -> float:
        start = begin(300)
        return variance_skill(path(forward, start), path(derivative, start))

    return Program(loss=step_loss, skill=skill, inputs=begin(batch), targets=path(derivative, begin(batch)))


def variational_regression(
    ledger: Ledger,
    batch: int,
    *,
    data: str = "sine",
    hidden: int = 24,
    initial_log_std: float = -3.0,
    divergence_weight: float = 1e-3,
    noise_scale: float = 0.2,
) -> Program:
    """A network with a distribution over every weight, sampled anew at each step."""
    made = dataset(data)
    sizes = [made.x.shape[1], hidden, hidden, 1]
    means: list[nn.Parameter] = []
    spreads: list[nn.Parameter] = []
    for index, (a, b) in enumerate(itertools.pairwise(sizes)):
        mean = nn.Parameter(torch.randn(b, a + 1) / math.sqrt(a))
        spread = nn.Parameter(torch.full((b, a + 1), initial_log_std))
        act = "tanh" if index < 2 else "linear"
        means.append(ledger.add_parameter(mean, f"{index}.mean", kind="BayesianLinear", role="weight", activation=act))
        spreads.append(
            ledger.add_parameter(spread, f"{index}.log_std", kind="BayesianLinear", role="weight", activation=act)
        )

    def forward(x: Tensor, sample: bool) -> Tensor:
        for index, (mean, spread) in enumerate(zip(means, spreads, strict=True)):
            weight = mean + spread.exp() * torch.randn_like(mean) if sample else mean
            x = functional.linear(x, weight[:, :-1], weight[:, -1])
            x = torch.tanh(x) if index < len(means) - 1 else x
        return x

    draw = batches(made.x, made.y, batch)

    def step_loss(step: int) -> Tensor:  # noqa: ARG001
        x, y = draw()
        divergence = sum(
            (0.5 * (m.square() + (2 * s).exp()) - s - 0.5).sum() for m, s in zip(means, spreads, strict=True)
        )
        error: Tensor = functional.mse_loss(forward(x, True), y) / (2 * noise_scale**2) + divergence_weight * divergence
        return error

    x, y = draw()
    return Program(
        loss=step_loss, skill=lambda: variance_skill(forward(made.eval_x, False), made.eval_y), inputs=x, targets=y
    )


def highway(
    ledger: Ledger,
    batch: int,
    *,
    data: str = "digits",
    layers: int = 20,
    width: int = 32,
    gate_bias: float = -2.0,
    activation: str = "relu",
    gated: bool = True,
    init: str = "he",
) -> Program:
    """Gated identity paths (Srivastava et al. 2015); `gated=False` leaves the plain deep network."""
    made = dataset(data)
    act = ACTIVATIONS[activation]
    first = ledger.add(nn.Linear(made.x.shape[1], width), "first", activation=activation)
    plains = [
        ledger.add(nn.Linear(width, width), f"{i}.plain", activation=activation, branch=gated) for i in range(layers)
    ]
    last = nn.Linear(width, made.classes)
    gates: list[nn.Linear] = []
    if gated:
        for index in range(layers):
            gates.append(ledger.add(nn.Linear(width, width), f"{index}.gate", activation="sigmoid", branch=True))
            nn.init.constant_(gates[-1].bias, gate_bias)
    ledger.add(last, "last")
    ledger.initialize(init)

    def forward(x: Tensor) -> Tensor:
        h = act(first(x))
        for index, plain in enumerate(plains):
            change = act(plain(h))
            if gated:
                gate = torch.sigmoid(gates[index](h))
                change = gate * change + (1 - gate) * h
            h = change
        out: Tensor = last(h)
        return out

    draw = batches(made.x, made.y, batch)

    def step_loss(step: int) -> Tensor:  # noqa: ARG001
        x, y = draw()
        return functional.cross_entropy(forward(x), y)

    return Program(
        loss=step_loss,
        skill=lambda: accuracy_skill(forward(made.eval_x), made.eval_y, made.classes),
        inputs=draw()[0],
    )


def distillation(
    ledger: Ledger,
    batch: int,
    *,
    data: str = "digits",
    temperature: float = 4.0,
    hidden: int = 24,
    init: str = "default",
    gain: float = 1.0,
) -> Program:
    """A small student learns the softened answers of a teacher. The loss starts very small."""
    made = dataset(data)
    teacher_ledger = Ledger()
    teacher, _ = dense_stack(teacher_ledger, [made.x.shape[1], 64, made.classes])
    optimizer = torch.optim.Adam(teacher_ledger.parameters(), lr=3e-3)
    for _ in range(200):
        chosen = torch.randint(len(made.x), (64,))
        optimizer.zero_grad()
        torch.autograd.backward(functional.cross_entropy(teacher(made.x[chosen]), made.y[chosen]))
        optimizer.step()
    student, _ = dense_stack(ledger, [made.x.shape[1], hidden, made.classes])
    ledger.initialize(init, gain)

    def step_loss(step: int) -> Tensor:  # noqa: ARG001
        x = made.x[torch.randint(len(made.x), (batch,))]
        goal = torch.softmax(teacher(x).detach() / temperature, -1)
        return functional.kl_div(torch.log_softmax(student(x) / temperature, -1), goal, reduction="batchmean")

    return Program(
        loss=step_loss,
        skill=lambda: accuracy_skill(student(made.eval_x), made.eval_y, made.classes),
        inputs=made.x[:batch],
    )


def count_words(
    ledger: Ledger,
    batch: int,
    *,
    source: str = "argparse",
    context: int = 3,
    width: int = 12,
    hidden: int = 48,
    activation: str = "tanh",
    init: str = "default",
    gain: float = 1.0,
) -> Program:
    """A feed-forward language model over the last characters (Bengio et al. 2003)."""
    text, alphabet = python_text(source)
    embedding = ledger.add(nn.Embedding(alphabet, width), "embedding")
    forward, _ = dense_stack(ledger, [context * width, hidden, alphabet], activation=activation)
    ledger.initialize(init, gain)

    def contexts(starts: Tensor) -> tuple[Tensor, Tensor]:
        window = text[starts[:, None] + torch.arange(context + 1)]
        return window[:, :-1], window[:, -1]

    def loss_of(starts: Tensor) -> Tensor:
        x, y = contexts(starts)
        return functional.cross_entropy(forward(embedding(x).flatten(1)), y)

    def skill() -> float:
        from benchmarks.corpus.programs.datasets import unigram_entropy

        entropy = unigram_entropy(text)
        return (entropy - float(loss_of(torch.arange(len(text) - 4000, len(text) - context)))) / entropy

    return Program(loss=lambda step: loss_of(torch.randint(len(text) - 5000, (batch,))), skill=skill)  # noqa: ARG005
