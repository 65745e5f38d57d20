"""Log-probabilities of given tokens under a diffusion language model. Works on token ids; knows no text and no HTTP.

likelihood = Likelihood(backbone, special)
scores = likelihood.score([prompt_ids], [completion_ids], LladaMC(mc_num=128), seed=0)
[chain] = likelihood.score([token_ids[:1]], [token_ids[1:]], Ar(), per_token=True).per_token
replayed = likelihood.replay_logprobs(prompt_ids, canvas_ids, step_map)
"""

from dlm.likelihood.estimates import Scored, TokenScores
from dlm.likelihood.likelihood import Likelihood
from dlm.likelihood.replay import Replay
from dlm.likelihood.schemes import SCHEMES, Ar, BlockCausal, Coupled, D1OneStep, LladaMC, Scheme

__all__ = [
    "SCHEMES",
    "Ar",
    "BlockCausal",
    "Coupled",
    "D1OneStep",
    "Likelihood",
    "LladaMC",
    "Replay",
    "Scheme",
    "Scored",
    "TokenScores",
]
