"""How much memory training takes at its peak, and what to lower where it is too much.

Everything is in bytes, and for rows of the full length. With H the hidden width, A that of all
heads, C that of the key heads, M the MLP's, L layers, V tokens, P prompt, S suffix (trace, tag,
answer); numbers are of 4 bytes, under autocast 2 in activations:

    total = process + weights + optimizer + copies + max(sampling, training)

``training`` is the larger of two moments: the backward of a forward's last layer, when everything
is kept that the forward computed, and its end, when gradients are whole. What autograd keeps of a
Llama's layer is counted in tests/cli/test_cli_memory.py; benchmarks/memory/run.py sets totals
against measured ones.
"""

from dataclasses import dataclass

#: Bytes of logits that exist at a time, on a CPU or elsewhere: those of head.py, without torch.
_PIECE = {True: 2**22, False: 2**29}
#: Bytes of them that a forward keeps.
_KEPT = {True: 2**26, False: 2**29}
#: The process itself on a CPU: 475 MB once torch, transformers and a trainer are imported, and what
#: allocators keep beside what is counted here (70 to 470 MB in benchmarks/memory/run.py).
PROCESS = 650_000_000
#: Tokens of a suffix beside trace and answer: the prompt's last, a tag, what stands behind it.
_BETWEEN = 4


@dataclass(frozen=True)
class Shape:
    """A model: its parameters, ``width`` bytes each, and the widths named above. ``trained`` of
    the parameters are; ``fixed_head``: its head's weights are not among them."""

    parameters: int
    trained: int
    width: int
    vocabulary: int
    hidden: int
    layers: int
    mlp: int
    heads: int
    attention: int
    keys: int
    fixed_head: bool = False


@dataclass(frozen=True)
class Load:
    """What a step does: lengths in tokens, ``prompts`` of a micro-batch with ``traces`` each (0:
    only empty ones), ``micros`` backwards per optimiser step, ``sampled`` prompts at once, ``rows``
    of a forward at most, ``doubled`` rows where answers are sampled, ``number`` bytes of an
    activation."""

    prompt: int
    trace: int
    answer: int
    prompts: int
    traces: int
    micros: int
    sampled: int
    rows: int | None = None
    checkpointing: bool = False
    doubled: bool = False
    copies: int = 0
    number: int = 4
    cpu: bool = True


@dataclass(frozen=True)
class Memory:
    """Bytes by what they are for; ``sampling`` and ``training`` are never there together."""

    process: int
    weights: int
    optimizer: int
    copies: int
    gradients: int
    activations: int
    head: int
    training: int
    sampling: int

    @property
    def fixed(self) -> int:
        """What is there all the time."""
        return self.process + self.weights + self.optimizer + self.copies

    def peak(self, part: str | None = None) -> int:
        """Of "sampling" or "training"; None: of both."""
        parts = (self.sampling, self.training) if part is None else (getattr(self, part),)
        return self.fixed + max(parts)

    @property
    def total(self) -> int:
        """The peak."""
        return self.peak()


def predict(shape: Shape, load: Load) -> Memory:
    """See above. ``weights``: the parameters; ``gradients``, ``copies``: those that are trained;
    ``optimizer``: two moments of each; ``head``: V·H twice where it is trained (its gradient, and
    that of the rows in use), three pieces of logits, and those that are kept."""
    weights = shape.parameters * shape.width
    trained = shape.trained * shape.width
    table = shape.vocabulary * shape.hidden * shape.width
    _, rows, suffix = forward_of(load)
    logits = min(4 * rows * suffix * shape.vocabulary, _KEPT[load.cpu])
    head = (0 if shape.fixed_head else 2 * table) + 3 * _PIECE[load.cpu] + logits
    kept, cache = activations(shape, load)
    forward = kept + max(head, cache)
    split = load.rows is not None and load.rows < load.prompts * load.traces
    several = load.micros > 1 or split
    return Memory(
        process=PROCESS if load.cpu else 0,
        weights=weights,
        optimizer=2 * trained,
        copies=load.copies * trained,
        gradients=trained,
        activations=kept,
        head=head,
        training=trained + forward if several else max(forward, trained + head),
        sampling=sampling(shape, load) if load.traces else 0,
    )


def forward_of(load: Load) -> tuple[int, int, int]:
    """Prompts, rows and suffix length of a training forward. Where it is split, the empty traces
    are scored beforehand."""
    suffix = load.trace + load.answer + _BETWEEN
    each = load.traces * (2 if load.doubled else 1)
    if load.rows is None or load.rows >= load.prompts * load.traces:
        return load.prompts, load.prompts * (each + 1), suffix
    groups = max(load.rows // load.traces, 1)
    return groups, load.rows * (2 if load.doubled else 1), suffix


def layer_bytes(shape: Shape, load: Load) -> int:
    """What one layer keeps for the backward pass. Per position 4 H in float32 (two norms: what
    comes in, is normed), 2 H of their outputs (5 under autocast: each product has its own), 2 A
    (queries, output), 4 M; per row the keys and values of prompt and suffix, repeated for every
    head, and the mask (S, P + S). The prompt, alone in its forward, has its keys once and no mask.
    With checkpointing prompts are in every row."""
    prompts, rows, suffix = forward_of(load)
    exact = 4 * (4 * shape.hidden + shape.heads + 2)
    outputs = 2 if load.number == 4 else 5
    inexact = load.number * (outputs * shape.hidden + 2 * shape.attention + 4 * shape.mlp)
    each, keys = exact + inexact, 2 * load.number * shape.keys
    if load.checkpointing:
        prompts, suffix, before = 0, load.prompt + suffix, 0
    else:
        before = load.prompt
    seen = load.number * (2 * shape.attention + suffix)
    own = rows * (suffix * each + (before + suffix) * seen)
    masked = load.number * before if prompts > 1 else 0
    return own + prompts * before * (each + keys + masked)


def activations(shape: Shape, load: Load) -> tuple[int, int]:
    """What a forward keeps, and its key-value cache, which is there until the forward ends.

    L layers (with checkpointing what comes into each, and one whole layer twice), and about 4 H per
    position outside them, 3 H per scored one; under autocast the weights once more.
    """
    prompts, rows, suffix = forward_of(load)
    whole, layer = rows * (load.prompt + suffix), layer_bytes(shape, load)
    if load.checkpointing:
        kept = 2 * layer + load.number * shape.layers * whole * shape.hidden
        return kept + 4 * 7 * whole * shape.hidden, 0
    positions = prompts * load.prompt + rows * suffix
    casts = load.number * shape.parameters if load.number < shape.width else 0
    outside = casts + 4 * shape.hidden * (4 * positions + 3 * rows * suffix)
    cache = load.number * whole * 2 * shape.keys * shape.layers
    return shape.layers * layer + outside, cache


def sampling(shape: Shape, load: Load) -> int:
    """Keys and values of each prompt once; of the rows' own tokens in buffers that double from 64,
    and once more while rows leave the batch; of logits 20 bytes each (a token's, and the sums when
    it is drawn); attention's scores three times; one layer of the prompts' forward; and, on a CPU
    in float32, a packed copy of the head."""
    rows, room = load.sampled * load.traces, 64
    tokens = load.trace + (load.answer if load.doubled else 0)
    while room < tokens:
        room *= 2
    keys = 2 * shape.keys * shape.layers * load.number
    cache = keys * (load.sampled * load.prompt + 2 * rows * room)
    logits = 20 * rows * shape.vocabulary
    scores = 3 * 4 * rows * shape.heads * (load.prompt + tokens)
    positions = load.sampled * load.prompt
    prefill = load.number * positions * (6 * shape.hidden + 3 * shape.mlp + load.prompt)
    packed = shape.vocabulary * shape.hidden * 4 if load.cpu and load.number == 4 else 0
    return cache + max(logits + scores, prefill) + packed
