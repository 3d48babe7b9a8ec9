"""A features extractor for observations that are tokens."""

import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from sb3_delight.arguments import is_whole, require

__all__ = ["CausalTransformer"]


class CausalTransformer(BaseFeaturesExtractor):
    """A pre-norm transformer with learned positions and a causal mask; the features are those of the last token seen.

    So the policy's head on top of it predicts the next token, as in a language model. Slots after the last token hold
    ``padding``, and what they hold changes nothing: no token looks ahead. Every row pays for all its slots.

    Give it to a policy by ``policy_kwargs={"features_extractor_class": CausalTransformer, "net_arch": [],
    "features_extractor_kwargs": {"padding": 2}, "ortho_init": False, "share_features_extractor": False}``. Unless told
    not to, actor and critic share one, and stable-baselines3 makes every linear layer orthogonal: either made token
    reversal far slower to learn.

    Embeddings start normal with variance 1 / width, the rest as torch's layers do.

    :param observation_space: one entry a slot: a one-dimensional MultiDiscrete with equal counts, or a one-dimensional
        Box of whole numbers from 0
    :param layers: transformer blocks. The defaults are the sizes of ``examples/reproduce/token_reversal.py``.
    :param width: of the residual stream, which is the number of features
    :param heads: of attention in each block; they divide the width
    :param feedforward: hidden units of each block's two-layer perceptron
    :param padding: the symbol of slots not filled yet, ``env.unwrapped.padding`` of TokenReversal; ``None``: every slot
        is filled, and the features are the last slot's
    :raises ValueError: for an argument outside its range; it names the argument
    """

    def __init__(
        self,
        observation_space: spaces.MultiDiscrete | spaces.Box,
        layers: int = 2,
        width: int = 64,
        heads: int = 2,
        feedforward: int = 128,
        padding: int | None = None,
    ) -> None:
        sizes = {"layers": layers, "width": width, "heads": heads, "feedforward": feedforward}
        for name, value in sizes.items():
            require(is_whole(value), name, value, "a whole number, 1 or more")
        require(width % heads == 0, "heads", heads, f"a divisor of the width, {width}")
        super().__init__(observation_space, width)
        self.one_hot = isinstance(observation_space, spaces.MultiDiscrete)
        self.slots, self.symbols = _slots_and_symbols(observation_space)
        known = padding is None or (is_whole(padding, least=0) and padding < self.symbols)
        require(known, "padding", padding, f"one of the {self.symbols} symbols, numbered from 0, or None")
        self.padding = padding
        self.tokens, self.positions = nn.Embedding(self.symbols, width), nn.Embedding(self.slots, width)
        for embedding in (self.tokens, self.positions):
            nn.init.normal_(embedding.weight, std=width**-0.5)
        # Not nn.TransformerEncoder: its layers start as copies of one.
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, feedforward, dropout=0.0, batch_first=True, norm_first=True)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.mask = nn.Buffer(nn.Transformer.generate_square_subsequent_mask(self.slots), persistent=False)
        self.places = nn.Buffer(torch.arange(self.slots), persistent=False)

    def forward(self, observations: Tensor) -> Tensor:
        """
        :param observations: as stable-baselines3 prepares them, one-hot ``[B, slots * symbols]`` of a MultiDiscrete
            space, token numbers ``[B, slots]`` of a Box
        :return: ``[B, width]``
        """
        rows = len(observations)
        tokens = observations.view(rows, self.slots, -1).argmax(-1) if self.one_hot else observations.long()
        hidden = self.tokens(tokens) + self.positions.weight
        for block in self.blocks:
            hidden = block(hidden, src_mask=self.mask, is_causal=True)
        if self.padding is None:
            last = hidden[:, -1]
        else:
            place = torch.where(tokens == self.padding, 0, self.places).amax(dim=1)
            last = hidden[torch.arange(rows, device=hidden.device), place]
        return torch.as_tensor(self.norm(last))


def _slots_and_symbols(space: spaces.MultiDiscrete | spaces.Box) -> tuple[int, int]:
    allowed = "a one-dimensional MultiDiscrete with equal counts, or a one-dimensional Box of whole numbers from 0"
    if isinstance(space, spaces.MultiDiscrete):
        fits = space.nvec.ndim == 1 and (space.nvec == space.nvec[0]).all()
        require(bool(fits), "observation_space", space, allowed)
        return len(space.nvec), int(space.nvec[0])
    fits = isinstance(space, spaces.Box) and len(space.shape) == 1 and space.is_bounded() and not space.low.any()
    require(bool(fits), "observation_space", space, allowed)
    return space.shape[0], int(space.high.max()) + 1
