"""Input noise: random tokens among the inputs of a training, whose targets stay as they are.

A text that is trained on many times is soon known by heart. When some of what a token follows is
wrong, in each pass elsewhere, the model must rely on more than the last few tokens, and it learns
from the same text for longer (Xie et al., arXiv 1703.02573; many passes: arXiv 2606.16246).

Shapes in comments: b windows, t tokens.
"""

import numpy as np
import tiktoken
import torch
from torch import Tensor

from golpo.loss import IGNORED

STREAM = 5  # 1 to 4 are the random numbers of shifts, requests, packing and trimming


class InputNoise:
    """Replaces a share of the input tokens by random ones of the vocabulary, all as likely.

    Story markers stay, and none is put in. So do tokens that predict nothing, such as those of a
    request. The noise of a window is a function of seed, epoch and window alone: the same after a
    resume, in micro batches and over several processes.
    """

    def __init__(self, share: float, tokenizer: tiktoken.Encoding, length: int, seed: int):
        """length: the longest window. Raises ValueError without a tokenizer."""
        if tokenizer is None:
            raise ValueError(
                f"input_noise is {share}, but no tokenizer says which tokens are markers; give "
                f"one, or set input_noise=0"
            )
        self.share = share
        self.length = length
        self.seed = seed
        specials = [tokenizer.encode_single_token(one) for one in tokenizer.special_tokens_set]
        self.markers = torch.tensor(sorted(specials))
        self.words = np.setdiff1d(np.arange(tokenizer.n_vocab), specials)

    def apply(self, inputs: Tensor, targets: Tensor, windows: np.ndarray, epoch: int) -> Tensor:
        """The inputs (b, t) of `windows` (b,) in an epoch, with noise. targets: (b, t)."""
        chosen, words = zip(*(self.noise(int(one), epoch) for one in windows), strict=True)
        width = inputs.shape[1]
        replaced = torch.from_numpy(np.stack(chosen)[:, :width]).to(inputs.device)  # (b, t)
        others = torch.from_numpy(np.stack(words)[:, :width]).to(inputs.device)  # (b, t)
        kept = torch.isin(inputs, self.markers.to(inputs.device)) | (targets == IGNORED)
        return inputs.where(kept | ~replaced, others)

    def noise(self, window: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Which tokens of a window are replaced, and by what, (length,) each."""
        rng = np.random.default_rng([self.seed, epoch, STREAM, window])
        return rng.random(self.length) < self.share, rng.choice(self.words, self.length)
