"""Chooses the next token of every sequence of a step in one vectorised pass.

Filters apply in the order of generate.proto: repetition penalty, temperature, top_k, top_p, min_p. Randomness is a
function of a request's seed and the index of the token alone, so that a seed gives the same text whatever else is in
the batch. A batch that is all greedy costs one argmax.

W wanted rows, R rows among them with some need, V vocabulary, K candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from shoal_server.engine.request import GenerateRequest
from shoal_server.ipc.messages import Sampling, TokenLogprobs

_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15
_NUM_CANDIDATES = 1024  # first try of top_p
_MORE_CANDIDATES = 8  # times as many in each further one
_GREEDY_BELOW = 1e-5  # a temperature that leaves nothing to chance
_BLOCK = 128  # tokens summed at once when the cumulated distribution is searched


class NotFiniteLogits(Exception):
    """Some rows hold NaN or infinity; `rows` says which."""

    def __init__(self, rows: list[int]) -> None:
        super().__init__(f"logits of {len(rows)} sequences are not finite")
        self.rows = rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """What was chosen for each wanted row."""

    token_ids: list[int]
    logprobs: dict[int, TokenLogprobs]  # by row, for those that asked


def choose(logits_WV: Tensor, requests: Sequence[GenerateRequest]) -> Choices:
    """The next token of each request; the logits may be overwritten.

    Raises:
        NotFiniteLogits: the model computed NaN or infinity for some rows; nothing was chosen for any.
    """
    with_logprobs = [row for row, request in enumerate(requests) if request.num_logprobs is not None]
    log_probs_RV = torch.log_softmax(logits_WV[with_logprobs], dim=-1) if with_logprobs else None
    _penalise_repetition(logits_WV, requests)
    _mask_ends(logits_WV, requests)
    token_ids = _argmax(logits_WV)
    drawn = [row for row, request in enumerate(requests) if request.sampling.temperature > _GREEDY_BELOW]
    if drawn:
        rows_RV = logits_WV if len(drawn) == len(requests) else logits_WV[drawn]
        for row, token_id in zip(drawn, _draw(rows_RV, [requests[row] for row in drawn]), strict=True):
            token_ids[row] = token_id
    logprobs = _logprobs(log_probs_RV, with_logprobs, requests, token_ids) if log_probs_RV is not None else {}
    return Choices(token_ids=token_ids, logprobs=logprobs)


def uniform(seed: int, index: int) -> float:
    """A number in [0, 1) that depends on the seed and the token's index only.

    Source: splitmix64 (Steele, Lea, Flood 2014), once over the seed and once over the counter.
    """
    return (_splitmix64((_splitmix64(seed & _MASK) + (index + 1) * _GOLDEN) & _MASK) >> 11) * 2.0**-53


def _splitmix64(value: int) -> int:
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _MASK
    return value ^ (value >> 31)


def _penalise_repetition(logits_WV: Tensor, requests: Sequence[GenerateRequest]) -> None:
    rows = [row for row, request in enumerate(requests) if request.sampling.repetition_penalty != 1.0]
    if not rows:
        return
    seen = [requests[row].tokens[: requests[row].num_tokens].astype(np.int64) for row in rows]
    lengths = [len(ids) for ids in seen]
    penalties = np.array([requests[row].sampling.repetition_penalty for row in rows], dtype=np.float32)
    device = logits_WV.device
    rows_N = torch.from_numpy(np.repeat(np.array(rows, dtype=np.int64), lengths)).to(device)
    ids_N = torch.from_numpy(np.concatenate(seen)).to(device)
    penalties_N = torch.from_numpy(np.repeat(penalties, lengths)).to(device)
    values_N = logits_WV[rows_N, ids_N]
    # A token seen twice is written twice with the same value.
    logits_WV[rows_N, ids_N] = torch.where(values_N > 0, values_N / penalties_N, values_N * penalties_N)


def _mask_ends(logits_WV: Tensor, requests: Sequence[GenerateRequest]) -> None:
    """Before `min_new_tokens` nothing that would end the completion can be chosen."""
    for row, request in enumerate(requests):
        if request.num_new < request.min_new_tokens and (request.end_ids or request.stop_ids):
            banned = [i for i in request.end_ids | request.stop_ids if 0 <= i < logits_WV.shape[1]]
            logits_WV[row, banned] = float("-inf")


def _argmax(logits_WV: Tensor) -> list[int]:
    """Best token of each row, the lowest id among equals; checks that the best is finite."""
    if logits_WV.device.type == "cpu":  # numpy's argmax is eight times as fast as torch's
        values_WV = logits_WV.numpy()
        ids = values_WV.argmax(axis=-1)
        finite = np.isfinite(values_WV[np.arange(len(ids)), ids]).tolist()
        token_ids: list[int] = ids.tolist()
    else:
        best_W, ids_W = logits_WV.max(dim=-1)
        pairs = torch.stack((ids_W, torch.isfinite(best_W).to(torch.int64))).tolist()  # one wait for the device
        token_ids, finite = pairs
    if not all(finite):
        raise NotFiniteLogits([row for row, is_finite in enumerate(finite) if not is_finite])
    return token_ids


def _draw(logits_RV: Tensor, requests: Sequence[GenerateRequest]) -> list[int]:
    """A token of each row from its filtered distribution.

    Weights are probabilities up to a factor: the likeliest token of a row has 1, so min_p is a bound on them as it is.
    """
    params = [request.sampling for request in requests]
    weights_RV = logits_RV - logits_RV.amax(dim=-1, keepdim=True)  # before the temperature, which may be tiny
    weights_RV.div_(_column([p.temperature for p in params], logits_RV)).exp_()
    least_R1 = _least_weight(weights_RV, params)
    if least_R1 is not None:  # as numbers: masks of booleans take several times as long
        weights_RV.mul_(torch.ge(weights_RV, least_R1, out=torch.empty_like(weights_RV)))
    uniforms = [uniform(request.sampling.seed, request.num_new) for request in requests]
    return _invert(weights_RV, torch.tensor(uniforms, dtype=torch.float64, device=logits_RV.device))


def _least_weight(weights_RV: Tensor, params: Sequence[Sampling]) -> Tensor | None:
    """Least weight that each row keeps, (R, 1); None when no row filters. Equals of the last one kept are kept too."""
    vocabulary_size = weights_RV.shape[1]
    top_ks = [p.top_k if 0 < p.top_k < vocabulary_size else vocabulary_size for p in params]
    limited = [row for row, p in enumerate(params) if top_ks[row] < vocabulary_size or p.top_p < 1.0]
    if not limited and all(p.min_p <= 0 for p in params):
        return None
    least_R1 = _column([p.min_p for p in params], weights_RV)
    if limited:
        rows_RV = weights_RV if len(limited) == len(params) else weights_RV[limited]
        ks, ps = [top_ks[row] for row in limited], [params[row].top_p for row in limited]
        nucleus_R1 = _nucleus(rows_RV, ks, ps, num_candidates=_NUM_CANDIDATES)
        least_R1[limited] = torch.maximum(least_R1[limited], nucleus_R1)
    return least_R1


def _nucleus(weights_RV: Tensor, top_ks: list[int], top_ps: list[float], *, num_candidates: int) -> Tensor:
    """Least weight kept by top_k, then by top_p over what top_k kept, (R, 1).

    Looks at the best candidates only; rows so flat that those do not reach top_p are tried again with more.
    """
    vocabulary_size = weights_RV.shape[1]
    most_kept = max((k for k in top_ks if k < vocabulary_size), default=1)
    if vocabulary_size in top_ks:
        most_kept = min(max(most_kept, num_candidates), vocabulary_size)
    best_RK = _largest(weights_RV, most_kept)
    ranks_1K = torch.arange(most_kept, device=best_RK.device)[None]
    top_ks_R1 = torch.tensor(top_ks, device=best_RK.device)[:, None]
    cumulated_RK = torch.where(ranks_1K < top_ks_R1, best_RK, 0.0).cumsum(dim=-1, dtype=torch.float64)
    everything_R1 = _block_sums(weights_RV).sum(dim=-1, keepdim=True)
    totals_R1 = torch.where(top_ks_R1 < vocabulary_size, cumulated_RK[:, -1:], everything_R1)
    wanted_R1 = totals_R1 * torch.tensor(top_ps, dtype=torch.float64, device=best_RK.device)[:, None]
    num_kept_R1 = torch.searchsorted(cumulated_RK, wanted_R1) + 1  # the first with which the sum reaches top_p
    num_kept_R1 = torch.where(wanted_R1 < totals_R1, torch.minimum(num_kept_R1, top_ks_R1), top_ks_R1)
    least_R1 = best_RK.gather(1, num_kept_R1.clamp(max=most_kept) - 1)
    short = (num_kept_R1[:, 0] > most_kept).nonzero()[:, 0].tolist()
    if short and most_kept < vocabulary_size:
        ks, ps = [top_ks[row] for row in short], [top_ps[row] for row in short]
        least_R1[short] = _nucleus(weights_RV[short], ks, ps, num_candidates=num_candidates * _MORE_CANDIDATES)
    return least_R1


def _largest(weights_RV: Tensor, num: int) -> Tensor:
    """The `num` largest weights of each row, descending, (R, num)."""
    if weights_RV.device.type != "cpu":
        return weights_RV.topk(num, dim=-1).values
    values_RV = weights_RV.numpy()  # numpy's vectorised partition and sort are ten times as fast as torch's
    if num < values_RV.shape[1]:
        values_RV = np.partition(values_RV, -num, axis=-1)[:, -num:]
    return torch.from_numpy(np.sort(values_RV, axis=-1)[:, ::-1].copy())


def _invert(weights_RV: Tensor, uniforms_R: Tensor) -> list[int]:
    """The token at which the cumulated weights pass `uniforms_R` of their sum, in order of token ids.

    By id and not by rank: two tokens about equally likely may change ranks with the last bit of a logit. In two levels,
    since a cumulated sum over a whole vocabulary is slow and, in float32, not exact.
    """
    vocabulary_size = weights_RV.shape[1]
    sums_RN = _block_sums(weights_RV).cumsum(dim=-1)
    target_R1 = sums_RN[:, -1:] * uniforms_R[:, None]
    block_R1 = torch.searchsorted(sums_RN, target_R1, right=True).clamp(max=sums_RN.shape[1] - 1)
    before_R1 = torch.where(block_R1 > 0, sums_RN.gather(1, (block_R1 - 1).clamp(min=0)), 0.0)
    places_RB = block_R1 * _BLOCK + torch.arange(_BLOCK, device=weights_RV.device)
    inside_RB = weights_RV.gather(1, places_RB.clamp(max=vocabulary_size - 1))
    cumulated_RB = torch.where(places_RB < vocabulary_size, inside_RB, 0.0).cumsum(dim=-1, dtype=torch.float64)
    inner_R1 = torch.searchsorted(cumulated_RB, target_R1 - before_R1, right=True)
    # Rounding may place the target on the block's very end: then the last token there that has any weight.
    last_R1 = torch.searchsorted(cumulated_RB, cumulated_RB[:, -1:].contiguous())
    token_ids: list[int] = (block_R1 * _BLOCK + torch.minimum(inner_R1, last_R1))[:, 0].tolist()
    return token_ids


def _block_sums(weights_RV: Tensor) -> Tensor:
    """Sums of so many neighbours, (R, N), float64; the last block may be short."""
    vocabulary_size = weights_RV.shape[1]
    whole = vocabulary_size - vocabulary_size % _BLOCK
    blocks_RNB = weights_RV[:, :whole].reshape(len(weights_RV), -1, _BLOCK)
    sums_RN = blocks_RNB.sum(dim=-1).to(torch.float64)
    if whole == vocabulary_size:
        return sums_RN
    rest_R1 = weights_RV[:, whole:].sum(dim=-1, keepdim=True).to(torch.float64)
    return torch.cat((sums_RN, rest_R1), dim=1)


def _logprobs(
    log_probs_RV: Tensor, rows: list[int], requests: Sequence[GenerateRequest], token_ids: list[int]
) -> dict[int, TokenLogprobs]:
    chosen_R1 = torch.tensor([[token_ids[row]] for row in rows], device=log_probs_RV.device)
    values = log_probs_RV.gather(1, chosen_R1)[:, 0].tolist()
    counts = [requests[row].num_logprobs or 0 for row in rows]
    best = log_probs_RV.topk(min(max(counts), log_probs_RV.shape[1]), dim=-1)
    best_values, best_ids = best.values.tolist(), best.indices.tolist()
    return {
        row: TokenLogprobs(logprob=values[i], token_ids=best_ids[i][: counts[i]], logprobs=best_values[i][: counts[i]])
        for i, row in enumerate(rows)
    }


def _column(values: list[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=like.device)[:, None]
