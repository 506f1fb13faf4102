"""Parts of messages that more than one receiver uses."""

from __future__ import annotations

import msgspec


class Message(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Base of all control messages: immutable, closed unions by tag."""


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of what messages are made of."""


class Peer(Part, frozen=True):
    """One process that can be connected to on the data plane."""

    worker: str
    incarnation: int
    address: dict[str, str]


class StructureSpec(Part, frozen=True):
    """What the output of a sequence must look like: `kind` says how `text` is to be read.

    json: a JSON schema; json_object: any JSON object, `text` is empty; regex; grammar (EBNF);
    choice: a JSON list of the strings that are allowed. `param` is what the request called it, for
    errors. What is allowed: `wire.structure`.
    """

    kind: str
    text: str = ""
    param: str = "structure"


class SamplingSpec(Part, frozen=True):
    """How the tokens of one sequence are chosen; the names and meanings are vLLM's.

    Stop strings are not here: the gateway matches them on the text and aborts.
    """

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    ignore_eos: bool = False
    stop_token_ids: list[int] = []
    logprobs: int | None = None
    structure: StructureSpec | None = None


class TokenLogprobs(Part, frozen=True):
    """Log probabilities at one position: the chosen token's, then those of the n most likely.

    The chosen one is there twice if it is among them; `rank` says so (1: the most likely).
    """

    token_ids: list[int]
    logprobs: list[float]
    rank: int


class TokenDelta(Part, frozen=True):
    """New tokens of one sequence.

    `index` is the position of the first of them in the sequence's output, so that a token that
    arrives twice is seen as such. `finish` is vLLM's finish reason, set on the last delta.
    `masked`: (token, layer, expert) calls left out because nobody served the expert. `attempt`:
    that of the Submit it answers.
    """

    request: str
    index: int
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None
    finish: str | None = None
    stop_reason: int | None = None
    masked: int = 0
    attempt: int = 1


class Resumption(Part, frozen=True):
    """How an AW came to go on with a sequence that another one had begun.

    `restored`: tokens whose KV came from a checkpoint store, `cached`: from the AW's own prefix
    cache, `computed`: the rest of its tokens, which ran through the model (1 if the commit was
    current). `nbytes` came from the store; `seconds` from the Submit to the first new token.
    `reason`: why nothing was restored, or empty.
    """

    request: str
    attempt: int
    restored: int
    cached: int
    computed: int
    nbytes: int
    seconds: float
    reason: str = ""


class Unanswered(Part, frozen=True):
    """Experts that an EW was told to load, or to drop if not `load`, and has not answered for."""

    load: bool
    experts: list[int]


class Standing(Part, frozen=True):
    """What a worker has become under an earlier head of its run.

    `welcomed`: it was let in, and told to load `experts`. `detail`: of its Ready; None: it is not
    ready yet. `holds`: what an EW can serve now. `orders`: oldest first. `table_sent`,
    `table_applied`: epochs of the newest table that an AW was sent, and of the one it routes by.
    `stores`: those it was told of last, their incarnations by their ids. `leaving`: it was told to.
    """

    welcomed: bool = False
    experts: list[int] = []
    detail: dict[str, str | int | float | list[int]] | None = None
    holds: list[int] = []
    orders: list[Unanswered] = []
    table_sent: int = 0
    table_applied: int = 0
    stores: dict[str, int] = {}
    leaving: bool = False
