"""The tokens of a row as controls want them: an array that grows, and which tokens occur how often."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class History:
    """Prompt and text of a row. Only tokens that stay are appended."""

    def __init__(self, prompt: Sequence[int], new: int) -> None:
        """prompt: tokens.  new: how many may follow."""
        self.prompt_length = self.length = len(prompt)
        self._ids = torch.empty(1, len(prompt) + new, dtype=torch.long)
        self._ids[0, : self.length] = torch.tensor(prompt)
        self._place = {token: place for place, token in enumerate(dict.fromkeys(prompt))}
        self._seen = np.zeros(len(self._place) + new, dtype=np.int64)
        self._seen[: len(self._place)] = list(self._place)
        self._written = np.zeros(len(self._seen), dtype=np.float32)

    def append(self, token: int) -> None:
        """One more token of the text."""
        self._ids[0, self.length] = token
        self.length += 1
        place = self._place.setdefault(token, len(self._place))
        self._seen[place] = token
        self._written[place] += 1

    def ids(self, device: torch.device) -> Tensor:
        """int64[1, n]: all tokens. What was handed out does not change when more are appended."""
        return self._ids[:, : self.length].to(device)

    def last(self, count: int) -> Tensor:
        """int64[count]: the last tokens, on the host, -1 where the text is shorter."""
        tail = self._ids[0, max(0, self.length - count) : self.length]
        return torch.nn.functional.pad(tail, (count - len(tail), 0), value=-1)

    @property
    def seen(self) -> Tensor:
        """int64[U]: the tokens that occur, in the order in which they came, on the host."""
        return torch.from_numpy(self._seen[: len(self._place)])

    @property
    def written(self) -> Tensor:
        """float32[U]: how often each of `seen` was generated."""
        return torch.from_numpy(self._written[: len(self._place)])
