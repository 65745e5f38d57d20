"""Rollouts for reinforcement learning, decoded in the calling process.

    rollouts = Rollouts.load("demo")                                # its own weights
    rollouts = Rollouts(checkpoint, trainer=checkpoint.backbone)    # shares the weights being trained
    batch = rollouts.generate(prompts, SamplingParams(temperature=1.0), n=8)
    policy = rollouts.replay(batch, gradients=True)                 # differentiable log-probabilities
    rollouts.sync(version=step)                                     # after the optimizer step

Uses the same decoder as prediction and serving. Knows nothing about Trainers, rewards or HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from numbers import Integral
from os import PathLike
from typing import Any, Self

import torch
from torch import Tensor

from dlm.decoding.decoder import Decoder
from dlm.decoding.options import DecoderOptions, StepReport
from dlm.decoding.params import check_whole
from dlm.decoding.request import Request
from dlm.errors import ConfigError, RequestError
from dlm.inputs import Prompt, choose_device, one_each, prompt_list
from dlm.likelihood import SCHEMES, Likelihood, LladaMC, Scheme, TokenScores
from dlm.models.backbone import Backbone
from dlm.models.io.loading import Checkpoint
from dlm.models.io.model_source import CheckpointSource
from dlm.rl.rollout import Rollout, rollout_of
from dlm.rl.weights.control import TAGS, WEIGHTS, WeightControl
from dlm.sampling_params import SamplingParams
from dlm.text import TextCodec

DRAWS = 128
"""Default number of masks that `llada_mc` draws."""


class Rollouts(WeightControl):
    """Samples answers and scores tokens; `WeightControl` describes weight updates and sleep.

    Only one call runs at a time: a call made while another is in progress, from a callback or another thread, raises
    `RunError` and changes nothing.

    Args:
        checkpoint: the model that decodes.
        trainer: the module being trained, of the same architecture; scores, replays and gradients go through it. If it
            is `checkpoint.backbone` itself, the weights are shared: the optimizer changes them in place, and `sync`
            only sets their version. None: this object has its own weights.
        codec: the tokenizer, for text prompts and stop strings; None: token ids only.
        options: decoder limits; by default the KV cache takes a quarter of the free memory.
        score_tokens: rows in one scoring or replay forward (the micro-batch); bounds memory, with gradients too.
        logits_mib: memory for the logits of those forwards, in MiB.
        weight_version: version of the current weights.

    Raises:
        ConfigError: the trainer's module is not a `Backbone`, or has a different architecture.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        trainer: Backbone | None = None,
        codec: TextCodec | None = None,
        options: DecoderOptions | None = None,
        score_tokens: int = 8192,
        logits_mib: float = 512,
        weight_version: int = 0,
    ) -> None:
        super().__init__(checkpoint, trainer, weight_version)
        self.codec, self.options = codec, options or DecoderOptions()
        scored = checkpoint.backbone if trainer is None else trainer
        self.likelihood = Likelihood(scored, checkpoint.special, max_tokens=score_tokens, logits_mib=logits_mib)

    @classmethod
    def load(
        cls,
        model: str | PathLike[str],
        *,
        revision: str | None = None,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device = "auto",
        trainer: Backbone | None = None,
        options: DecoderOptions | None = None,
        score_tokens: int = 8192,
    ) -> Self:
        """Load a checkpoint; the rollouts have their own weights.

        Args:
            model, revision, dtype, device: as in `dlm.LLM`.
            trainer, options, score_tokens: as above.

        Raises:
            ConfigError: a value is invalid or unavailable here.
            CheckpointError: the model cannot be loaded.
        """
        source = CheckpointSource(str(model), revision, str(dtype).removeprefix("torch."))
        faults = source.faults()
        if faults:
            raise ConfigError("; ".join(faults))
        codec = TextCodec.load(source.tokenizer_folder())
        checkpoint = source.load(choose_device(device))
        return cls(checkpoint, trainer=trainer, codec=codec, options=options, score_tokens=score_tokens)

    # Rollouts

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        n: int = 1,
        distributions: bool = True,
        on_step: Callable[[StepReport], None] | None = None,
    ) -> list[Rollout]:
        """Decode `n` samples of each prompt, all packed together.

        A prompt's samples depend only on that prompt, its parameters and its seed. Sample k draws its noise from
        (seed, k), so equal prompts with equal seeds give equal samples: use `n` to sample a group.

        Args:
            prompts: texts, formatted with the chat template if there is one, or lists of token ids.
            params: one for all prompts, or one per prompt; None is `SamplingParams()`. Their `n` must be 1; without
                `seed` one is drawn for each prompt.
            n: samples per prompt.
            distributions: record `Rollout.logprobs_processed` and `entropies`; costs another pass over the logits in
                each forward.
            on_step: called after each forward.

        Returns:
            `len(prompts) * n` rollouts in order, grouped by prompt.

        Raises:
            RequestError: some prompts cannot be decoded (lists them with reasons); nothing was decoded.
            RunError: a forward failed, weights or KV cache are asleep, or another call is in progress.
        """
        given = prompt_list(prompts)
        asked = one_each("params", SamplingParams() if params is None else params, SamplingParams, len(given))
        check_whole("n", n, 1)
        with self._alone("generate"), torch.autocast(self.checkpoint.backbone.device.type, enabled=False):
            self._refuse_without(*TAGS)
            decoder = self._ready_decoder()
            requests = self._requests(decoder, given, asked, n, distributions)
            found: dict[tuple[int, int], Rollout] = {}
            try:
                with closing(decoder.run(requests, on_step=on_step)) as completions:  # type: ignore[type-var]  # declared as an iterator
                    for completion in completions:
                        index = int(completion.request_id)
                        found[index, completion.sample] = rollout_of(
                            completion,
                            requests[index],
                            stop=asked[index].stop,
                            codec=self.codec,
                            mask_id=self.checkpoint.special.mask_id,
                            weight_version=self._version,
                        )
            except BaseException:
                self._decoder = None  # it may be in an inconsistent state
                raise
        return [found[index, sample] for index in range(len(given)) for sample in range(n)]

    def check(self, prompts: Prompt | Sequence[Prompt], params: SamplingParams | None = None) -> None:
        """Raise the error that `generate` would raise for prompts that cannot be decoded."""
        given = prompt_list(prompts)
        asked = one_each("params", SamplingParams() if params is None else params, SamplingParams, len(given))
        with self._alone("check"):
            self._requests(self._ready_decoder(), given, asked, 1, False)

    def _ready_decoder(self) -> Decoder:
        if self._decoder is None:
            self._decoder = Decoder(self.checkpoint.backbone, self.checkpoint.special, self.options)
        return self._decoder

    def _requests(
        self, decoder: Decoder, prompts: Sequence[Prompt], params: Sequence[SamplingParams], n: int, token_stats: bool
    ) -> list[Request]:
        requests: list[Request] = []
        faults: dict[str, list[int]] = {}
        for index, (prompt, one) in enumerate(zip(prompts, params, strict=True)):
            try:
                request = self._request(index, prompt, one, n, token_stats)
                decoder.check(request)
            except RequestError as error:
                faults.setdefault(str(error), []).append(index)
            else:
                requests.append(request)
        if faults:
            raise RequestError("; ".join(f"{_named(places)}: {fault}" for fault, places in faults.items()))
        return requests

    def _request(self, index: int, prompt: Prompt, params: SamplingParams, n: int, token_stats: bool) -> Request:
        config = self.checkpoint.backbone.config
        if params.n != 1:
            raise RequestError(f"n={params.n} in the parameters; pass n to generate instead")
        if self.codec is None and (params.stop or isinstance(prompt, str)):
            what = "stop strings need" if params.stop else "a text needs"
            raise RequestError(f"{what} a tokenizer; pass codec=, or token ids and no stop")
        translated, engine, sampler = params.translate(self.checkpoint.family, config.attention, config.block_length)
        if isinstance(prompt, str):
            assert self.codec is not None  # texts without one were refused above
            self.codec.check_fits(prompt, config.max_positions)
            token_ids = self.codec.encode(prompt) if prompt else ()
        else:
            token_ids = tuple(map(int, prompt))
        stop = None if self.codec is None else self.codec.stop_check(params.stop)
        translated = replace(translated, n=n, record=True)
        return Request(str(index), token_ids, translated, engine, sampler, stop, token_stats=token_stats)

    # Scores

    def score(
        self,
        prompt_ids: Sequence[int] | Sequence[Sequence[int]],
        completion_ids: Sequence[int] | Sequence[Sequence[int]],
        *,
        scheme: str | Scheme,
        mc_num: int = DRAWS,
        seed: int = 0,
        per_token: bool = False,
        gradients: bool = False,
    ) -> TokenScores:
        """Estimate log p(completion | prompt) for one or more pairs, with the trainer's module if there is one.

        Args:
            prompt_ids: token ids of one prompt, or one list per pair.
            completion_ids: the same for the completions.
            scheme: a name in `dlm.likelihood.SCHEMES` for default settings, or a scheme object.
            mc_num: number of `llada_mc` draws.
            seed: mask seed.
            per_token: also return the per-token terms.
            gradients: keep the graph; no cache is used, and memory is bounded by `score_tokens`.

        Returns:
            `mean` and `stderr`, `[pairs]` float64.

        Raises:
            RequestError: a pair cannot be scored.
            RunError: the weights are asleep, or another call is in progress.
        """
        chosen = scheme
        if isinstance(chosen, str):
            if chosen not in SCHEMES:
                raise RequestError(f"scheme={chosen!r} is unknown; known: {', '.join(SCHEMES)}")
            chosen = LladaMC(mc_num) if chosen == LladaMC.name else SCHEMES[chosen]()
        if mc_num != DRAWS and (chosen.name != LladaMC.name or not isinstance(scheme, str)):
            raise RequestError(f"mc_num={mc_num} applies only to scheme='{LladaMC.name}'; leave it out")
        with self._scoring("score"):
            return self.likelihood.score(
                _texts(prompt_ids), _texts(completion_ids), chosen, seed=seed, per_token=per_token, gradients=gradients
            )

    def replay_logprobs(
        self,
        prompt_ids: Sequence[int],
        replay_token_ids: Sequence[int],
        replay_step_map: Sequence[int],
        *,
        shrink: int = 1,
        temperature: float = 1.0,
        block_length: int | None = None,
        align_blocks: bool = False,
        gradients: bool = False,
    ) -> Tensor:
        """Log-probability of each token at the forward that revealed it, recomputed with the trainer's module if there
        is one. Not an autoregressive likelihood.

        Arguments and semantics are those of `dlm.likelihood.Likelihood.replay_logprobs`.

        Returns:
            `[len(replay_token_ids)]` float64; 0 where nothing was revealed.

        Raises:
            RequestError: values do not match each other or the model.
            RunError: the weights are asleep, or another call is in progress.
        """
        with self._scoring("replay_logprobs"):
            return self.likelihood.replay_logprobs(
                prompt_ids,
                replay_token_ids,
                replay_step_map,
                shrink=shrink,
                temperature=temperature,
                block_length=block_length,
                align_blocks=align_blocks,
                gradients=gradients,
            )

    def replay(
        self,
        rollouts: Iterable[Rollout],
        *,
        shrink: int = 1,
        temperature: float = 1.0,
        align_blocks: bool = False,
        gradients: bool = False,
    ) -> list[Tensor]:
        """`replay_logprobs` of many rollouts, packed into forwards of up to `score_tokens` rows.

        Returns:
            For each rollout `[len(replay_token_ids)]` float64, comparable with its `logprobs_raw`.
        """
        canvases = [rollout.replay(align_blocks=align_blocks) for rollout in rollouts]
        with self._scoring("replay"):
            return self.likelihood.replay_batch(canvases, shrink=shrink, temperature=temperature, gradients=gradients)

    @contextmanager
    def _scoring(self, what: str) -> Iterator[None]:
        with self._alone(what):
            if self.trainer is None or self.shared:
                self._refuse_without(WEIGHTS)
            yield


def _named(places: Sequence[int]) -> str:
    """`prompts[3]`, or the first of several and the number of others."""
    others = len(places) - 1
    return f"prompts[{places[0]}]" + (f" and {others} other{'s' if others > 1 else ''}" if others else "")


def _texts(given: Any) -> list[Sequence[int]]:
    """Token ids as a list of rows, from one row or several, lists or tensors. Raises `RequestError` for texts."""
    rows = given.tolist() if isinstance(given, Tensor) else given
    if isinstance(rows, str) or any(isinstance(row, str) for row in rows):
        raise RequestError("score takes token ids, not texts; encode them first (dlm.text.TextCodec.encode)")
    if len(rows) and isinstance(rows[0], Integral):
        return [rows]
    return [row.tolist() if isinstance(row, Tensor) else row for row in rows]
