"""Entry point of the package: scores given tokens with one model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from dlm.decoding.layout import IntArray
from dlm.decoding.params import MIN_TEMPERATURE, check_real, check_whole
from dlm.errors import NotFiniteError, RequestError
from dlm.likelihood.attention_layout import ScoredText, presentation_of
from dlm.likelihood.estimates import Estimator, Scored, TokenScores
from dlm.likelihood.replay import Replay, check_steps, replayed
from dlm.likelihood.schemes import Scheme
from dlm.likelihood.token_scorer import TokenScorer
from dlm.likelihood.windows import ScoringBatch
from dlm.models.attention import AttentionBackend
from dlm.models.backbone import Backbone
from dlm.models.families import SpecialTokens


class Likelihood:
    """Log-probabilities of given tokens, in nats.

    Sequences are packed without padding in batches of bounded size. A sequence's result does not depend on what it is
    batched with: on a CPU in float32 and float64 it is bit-identical.

    All results are float64 on the model's device, computed from logits in at least float32. With `gradients` they keep
    the graph (the model needs `requires_grad_(True)`); each batch is then recomputed in the backward pass, so that
    memory is bounded by one batch there too.

    Args:
        backbone: the model.
        special: its mask id is fed at hidden positions.
        max_tokens: rows of one forward; a longer sequence runs alone.
        logits_mib: memory for logits, in MiB; more rows are processed in chunks.
        backend: the attention to use; None chooses by device and dtype.

    Raises:
        RequestError: a shifted model that attends in blocks, which the decoder does not run either.
    """

    def __init__(
        self,
        backbone: Backbone,
        special: SpecialTokens,
        *,
        max_tokens: int = 8192,
        logits_mib: float = 512,
        backend: AttentionBackend | None = None,
    ) -> None:
        check_whole("max_tokens", max_tokens, 1)
        check_real("logits_mib", logits_mib, 0.0, None, open_low=True)
        self.backbone, self.special = backbone, special
        self.presentation = presentation_of(backbone.config, special.mask_id)
        self.given = TokenScorer(backbone, max_tokens=max_tokens, logits_mib=logits_mib, backend=backend)

    def score(
        self,
        prompts: Sequence[Sequence[int]],
        completions: Sequence[Sequence[int]],
        scheme: Scheme,
        *,
        seed: int | Sequence[int] = 0,
        per_token: bool = False,
        gradients: bool = False,
    ) -> TokenScores:
        """Estimate log p(completion | prompt) of `n` pairs.

        Masks depend only on the seed, the draw and the position, so equal seeds give equal estimates in any batch, and
        completions of equal length are compared under the same masks.

        Args:
            prompts: `n` lists of token ids, none empty; masks in them stay masks.
            completions: `n` lists of token ids, none empty and without masks.
            scheme: the estimator; see `dlm.likelihood.schemes`.
            seed: mask seed, at least 0; one for all, or one for each pair.
            per_token: also return `TokenScores.per_token`.
            gradients: keep the graph, for `mean` and `per_token`.

        Raises:
            RequestError: pairs or settings that cannot be scored; names the first.
            NotFiniteError: the model's logits are not finite; names the first pair. Not raised with `gradients`, where
                values stay on the device.
        """
        self._check_gradients(gradients)
        if len(prompts) != len(completions):
            raise RequestError(f"{len(prompts)} prompts and {len(completions)} completions; give one for each prompt")
        seeds = seed if isinstance(seed, Sequence) else [seed] * len(prompts)
        if len(seeds) != len(prompts):
            raise RequestError(f"{len(prompts)} prompts and {len(seeds)} seeds; give one for all, or one for each")
        plans = [
            self._plan(f"completion {index}", prompt, completion, scheme, own)
            for index, (prompt, completion, own) in enumerate(zip(prompts, completions, seeds, strict=True))
        ]
        if not plans:
            nothing = torch.zeros(0, dtype=torch.float64, device=self.backbone.device)
            return TokenScores(nothing, nothing, [] if per_token else None)
        logprobs = self.given.logprobs((plan.sheet for plan in plans), gradients=gradients)
        values = torch.split(logprobs, [len(plan.places) for plan in plans])
        if not gradients:
            check_finite("completion", values)
        terms = [plan.terms(each, len(given)) for plan, each, given in zip(plans, values, completions, strict=True)]
        device = self.backbone.device
        errors = [plan.stderr(each) for plan, each in zip(plans, values, strict=True)]
        return TokenScores(
            torch.stack([each.sum() for each in terms]).to(device),
            torch.tensor(errors, dtype=torch.float64, device=device),
            [each.to(device) for each in terms] if per_token else None,
        )

    def score_in_slices(
        self, prompt: Sequence[int], completion: Sequence[int], scheme: Scheme, *, seed: int = 0
    ) -> Iterator[Scored | None]:
        """`score` for one pair without gradients, one forward at a time.

        Args:
            prompt, completion, scheme, seed: as in `score`.

        Yields:
            None after each forward, then the result.

        Raises:
            RequestError: as in `score`, before the first forward.
            NotFiniteError: as in `score`, after the last.
        """
        plan = self._plan("the completion", prompt, completion, scheme, seed)
        return self._in_slices(plan, len(completion))

    def _in_slices(self, plan: Estimator, length: int) -> Iterator[Scored | None]:
        parts = []
        for part in self.given.measure([plan.sheet]):
            parts.append(part)
            yield None
        measured = np.concatenate(parts, axis=1)
        check_finite("completion", [torch.from_numpy(measured[0])])
        yield plan.scored(measured, length)

    def _plan(
        self, name: str, prompt: Sequence[int], completion: Sequence[int], scheme: Scheme, seed: int
    ) -> Estimator:
        check_whole("seed", seed, 0, 2**63 - 1)
        target = self._target(prompt, completion)
        self._refuse_masks(name, target.tokens[target.prompt_length :])
        return scheme.plan(target, self.presentation, seed)

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
        canvas_length: int | None = None,
        gradients: bool = False,
    ) -> Tensor:
        """Recompute the log-probability of each token at the forward that revealed it: for each step, the canvas with
        earlier tokens visible and all others masked, without a cache. Not an autoregressive likelihood.

        For engines that recompute everything or cache exactly, this matches what the decoder recorded in
        `Completion.logprobs`: bit for bit with `full` on a CPU (without gradients, temperature 1), up to rounding with
        `block_causal`, `causal_commit` and `autoregressive` (its block_length is 1). It differs by design where the
        recorded forwards saw something else: the stale keys and values of `prefix_cache`, `dual_cache`, `vicinity` and
        `sparse`, the inputs of `smooth`, the drafts of `linear_spec`, guidance (`cfg_scale`), masks inside a prompt
        that were filled in later, a canvas that grew (`initial_gen_length`), and tokens that were edited or masked
        again (`llada21_edit`, `remask_hierarchy`), for which a step map keeps only the last forward. Those are
        replayed the same way.

        Args:
            prompt_ids: the prompt, filled in.
            replay_token_ids: tokens after the prompt, at least to the end of the last block; the mask id where nothing
                was revealed.
            replay_step_map: for each of them, the 1-based forward that revealed it; 0 if none did.
            shrink: number of consecutive steps merged into one (TraceRL, arXiv 2509.06949): within a block for models
                with blocks, else within the canvas.
            temperature: of log softmax(logits / temperature), above 0.
            block_length, align_blocks: as used for decoding; None is the model's block length. No effect for a
                bidirectional model.
            canvas_length: positions after the prompt in the decoder's canvas; those after `replay_token_ids` were
                always masks, which a bidirectional model sees. None: the length of `replay_token_ids`.
            gradients: keep the graph.

        Returns:
            `[len(replay_token_ids)]` float64; 0 where nothing was revealed, so that it adds nothing to sums and losses.

        Raises:
            RequestError: inconsistent values, or values that do not fit the model.
            NotFiniteError: the model's logits are not finite; not raised with `gradients`.
        """
        replay = Replay(prompt_ids, replay_token_ids, replay_step_map, block_length, align_blocks, canvas_length)
        return self.replay_batch([replay], shrink=shrink, temperature=temperature, gradients=gradients)[0]

    def replay_batch(
        self, replays: Sequence[Replay], *, shrink: int = 1, temperature: float = 1.0, gradients: bool = False
    ) -> list[Tensor]:
        """`replay_logprobs` of several canvases, whose states share packed forwards; the results do not depend on one
        another. Raises as `replay_logprobs` does; `NotFiniteError` names the first canvas."""
        check_whole("shrink", shrink, 1)
        check_real("temperature", temperature, 0.0, None, open_low=True, least=MIN_TEMPERATURE)
        self._check_gradients(gradients)
        sheets, places = [], []
        for replay in replays:
            sheet, asked = self._states(replay, shrink)
            places.append(asked)
            if sheet is not None:
                sheets.append(sheet)
        results = [torch.zeros(len(one.token_ids), dtype=torch.float64, device=self.backbone.device) for one in replays]
        if not sheets:
            return results
        logprobs = self.given.logprobs(sheets, temperature=temperature, gradients=gradients).to(self.backbone.device)
        parts = torch.split(logprobs, [len(asked) for asked in places])
        if not gradients:
            check_finite("canvas", parts)
        return [
            result.index_copy(0, torch.from_numpy(asked).to(result.device), part)
            for result, asked, part in zip(results, places, parts, strict=True)
        ]

    def _states(self, replay: Replay, shrink: int) -> tuple[ScoringBatch | None, IntArray]:
        """Batch that replays a canvas, None if nothing was revealed; and the indices of the tokens scored."""
        if replay.block_length is not None:
            check_whole("block_length", replay.block_length, 1)
        given, presentation = len(replay.token_ids), self.presentation
        if self.backbone.config.attention != "bidirectional":
            size = replay.block_length or presentation.block_length
            presentation = replace(presentation, block_length=size, commits=True, aligned=replay.align_blocks)
        if replay.canvas_length is not None:
            check_whole("canvas_length", replay.canvas_length, given)
        spare = [self.special.mask_id] * ((replay.canvas_length or given) - given)
        target = self._target(replay.prompt_ids, [*replay.token_ids, *spare])
        steps = np.array([*replay.step_map, *(0 for _ in spare)], dtype=np.int64)
        check_steps(target, steps, self.special.mask_id)
        questions = replayed(presentation, target, steps, shrink)
        if not questions:
            return None, np.zeros(0, dtype=np.int64)
        asked = np.concatenate([question.asked for question in questions])
        return presentation.sheet(target, questions), asked - target.prompt_length

    def _target(self, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> ScoredText:
        """Prompt and completion, checked against the model."""
        config = self.backbone.config
        if not len(prompt_ids):
            raise RequestError("the prompt is empty; give at least one token")
        if not len(completion_ids):
            raise RequestError("the completion is empty; give at least one token")
        tokens: IntArray = np.array([*prompt_ids, *completion_ids], dtype=np.int64)
        outside = tokens[(tokens < 0) | (tokens >= config.vocab_size)]
        if len(outside):
            raise RequestError(f"token {outside[0]} is outside the vocabulary 0..{config.vocab_size - 1}")
        if len(tokens) > config.max_positions:
            raise RequestError(
                f"prompt of {len(prompt_ids)} and completion of {len(completion_ids)} tokens make {len(tokens)} "
                f"positions, but the model has {config.max_positions}; shorten one of them"
            )
        return ScoredText(tokens, len(prompt_ids))

    def _refuse_masks(self, name: str, tokens: IntArray) -> None:
        if self.special.mask_id in tokens:
            raise RequestError(f"{name} contains the mask id {self.special.mask_id}, which has no likelihood")

    def _check_gradients(self, gradients: bool) -> None:
        if gradients and not torch.is_grad_enabled():
            raise RequestError("gradients=True inside torch.no_grad() or inference_mode(); call it outside")
        if gradients and not any(parameter.requires_grad for parameter in self.backbone.parameters()):
            raise RequestError("gradients=True, but no parameter of the model has requires_grad; set it first")


def check_finite(what: str, logprobs: Sequence[Tensor]) -> None:
    """Raise `NotFiniteError` naming the first text (`what` and its index) with a nan log-probability."""
    for index, each in enumerate(logprobs):
        if each.isnan().any():
            raise NotFiniteError(
                f"{what} {index}: the model's logits are not finite; its weights are damaged or overflow in this dtype "
                "(try dtype=float32)"
            )
