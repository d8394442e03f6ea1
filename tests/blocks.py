"""Hand-written MoE layers in styles that no library model uses, and a tiny model around one."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HIDDEN, WIDTH, EXPERTS, TOP_K = 16, 12, 6, 2


class TinyModel(nn.Module):
    """Embeds tokens, runs one MoE layer, adds the residual."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.embed = nn.Embedding(32, HIDDEN)
        self.layer = layer
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            parameter.data.normal_(std=0.5, generator=generator)
        self.eval().requires_grad_(False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """``[B, S]`` -> ``[B, S, H]``."""
        x = self.embed(input_ids)
        return x + self.layer(x)


def prompt(batch: int = 2, length: int = 7) -> dict[str, Tensor]:
    """Token ids for a :class:`TinyModel`."""
    return {"input_ids": (torch.arange(batch * length).view(batch, length) * 5) % 32}


class Routed(nn.Module):
    """Routes tokens to experts that are called as ``(x, index, weight)``."""

    def __init__(self, experts: nn.Module) -> None:
        super().__init__()
        self.router = nn.Linear(HIDDEN, EXPERTS, bias=False)
        self.experts = experts

    def forward(self, x: Tensor) -> Tensor:
        """``[B, S, H]`` -> ``[B, S, H]``."""
        rows = x.reshape(-1, HIDDEN)
        weight, index = self.router(rows).softmax(-1).topk(TOP_K, dim=-1)
        return self.experts(rows, index, weight).view_as(x)


class IndexAddLoop(nn.Module):
    """Experts in a list, a loop over all of them, ``index_add`` of what each gives."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(Expert() for _ in range(EXPERTS))

    def forward(self, x: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            token, slot = torch.where(index == e)
            if len(token):
                out.index_add_(0, token, self.one(e, expert, x[token], weight[token, slot, None]))
        return self.finish(out)

    def one(self, e: int, expert: nn.Module, rows: Tensor, weight: Tensor) -> Tensor:
        return expert(rows) * weight

    def finish(self, out: Tensor) -> Tensor:
        return out


class Expert(nn.Module):
    """A gated expert with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(HIDDEN, 2 * WIDTH)
        self.down = nn.Linear(WIDTH, HIDDEN, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.up(x).chunk(2, dim=-1)
        return self.down(F.gelu(gate) * up)


class TallMatrices(nn.Module):
    """All experts below each other in 2-D parameters, and a loop over those that are hit."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.empty(EXPERTS * WIDTH, HIDDEN))
        self.down = nn.Parameter(torch.empty(EXPERTS * WIDTH, HIDDEN))

    def forward(self, x: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for e in index.unique().tolist():
            token, slot = torch.where(index == e)
            mine = slice(e * WIDTH, (e + 1) * WIDTH)
            rows = F.relu(x[token] @ self.up[mine].T).square() @ self.down[mine]
            out[token] += weight[token, slot, None] * rows
        return out


class OneHotChoice(nn.Module):
    """The choice arrives one-hot, with tokens beyond an expert's capacity left out."""

    capacity = 2

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(HIDDEN, EXPERTS, bias=False)
        self.experts = OneHotExperts()

    def forward(self, x: Tensor) -> Tensor:
        probability = self.router(x).softmax(-1)
        chosen = F.one_hot(probability.argmax(-1), EXPERTS)
        chosen = chosen * (chosen.cumsum(-2) <= self.capacity)
        weight = probability.amax(-1)
        rows = x.reshape(-1, HIDDEN)
        out = self.experts(rows, chosen.view(-1, 1, EXPERTS), weight.view(-1, 1))
        return out.view_as(x)


class OneHotExperts(nn.ModuleDict):
    def __init__(self) -> None:
        super().__init__({f"expert_{e}": Expert() for e in range(EXPERTS)})

    def forward(self, x: Tensor, chosen: Tensor, weight: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for e, slot, token in chosen.permute(2, 1, 0).nonzero().tolist():
            out[token] += self[f"expert_{e}"](x[token, None])[0] * weight[token, slot]
        return out


class WithIdentity(nn.Module):
    """Ids after those of the experts stand for the token itself."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.empty(EXPERTS, WIDTH, HIDDEN))
        self.down = nn.Parameter(torch.empty(EXPERTS - 2, HIDDEN, WIDTH))

    def forward(self, x: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for e in index.unique().tolist():
            token, slot = torch.where(index == e)
            rows = x[token]
            if e < EXPERTS - 2:
                rows = F.linear(F.silu(F.linear(rows, self.up[e])), self.down[e])
            out.index_add_(0, token, rows * weight[token, slot, None])
        return out
