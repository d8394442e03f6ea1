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


class Block(nn.Module):
    """A layer that routes tokens itself; ``keep`` lets a test set small weights to 0."""

    @staticmethod
    def keep(weight: Tensor) -> Tensor:
        return weight


class CountsOnTheHost(Block):
    """Sorted tokens, numbers of them read on the host, shared expert; as remote code often has."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(HIDDEN, EXPERTS, bias=False)
        self.experts = nn.ModuleList(Expert() for _ in range(EXPERTS))
        self.shared = Expert()

    def forward(self, x: Tensor) -> Tensor:
        rows = x.view(-1, HIDDEN)
        weight, index = self.gate(rows).sigmoid().topk(TOP_K, dim=-1, sorted=False)
        weight = self.keep(weight / weight.sum(-1, keepdim=True) * 1.5)
        return self.routed(rows, index, weight).view(*x.shape) + self.shared(x)

    def routed(self, x: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        counts = index.new_zeros((len(x), EXPERTS)).scatter_(1, index, 1).sum(0).cpu().numpy()
        order = index.view(-1).argsort()
        rows, outputs, start = x[order // TOP_K], [], 0
        for expert, count in zip(self.experts, counts, strict=True):
            if count == 0:
                continue
            outputs.append(expert(rows[start : start + count]))
            start += count
        joined = torch.cat(outputs)
        restored = torch.empty_like(joined)
        restored[order] = joined
        return (restored.view(*index.shape, -1) * weight.unsqueeze(-1)).sum(1)


class OneHotMasks(Block):
    """One-hot masks, a loop over all experts, ``index_add``; also returns the router's logits."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(HIDDEN, EXPERTS, bias=False)
        self.experts = nn.ModuleList(Expert() for _ in range(EXPERTS))

    def forward(self, x: Tensor) -> Tensor:
        return self.with_logits(x)[0]

    def with_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        batch, length, hidden = x.shape
        rows = x.view(-1, hidden)
        logits = self.gate(rows)
        weight, index = logits.float().softmax(1).topk(TOP_K, dim=-1)
        weight /= weight.sum(dim=-1, keepdim=True)
        weight = self.keep(weight.to(x.dtype))
        out = torch.zeros((batch * length, hidden), dtype=x.dtype)
        mask = F.one_hot(index, num_classes=EXPERTS).permute(2, 1, 0)
        for e in range(EXPERTS):
            slot, token = torch.where(mask[e])
            state = rows[None, token].reshape(-1, hidden)
            out.index_add_(0, token, self.experts[e](state) * weight[token, slot, None])
        return out.reshape(batch, length, hidden), logits


class ReturnsLogits(nn.Module):
    """A model part that calls a block with two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.block = OneHotMasks()
        self.block.forward = self.block.with_logits

    def forward(self, x: Tensor) -> Tensor:
        out, logits = self.block(x)
        return out + logits.mean()


class SortedSegments(Block):
    """All tokens sorted by expert, both matrices applied segment by segment, bias at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(HIDDEN, EXPERTS, bias=False)
        self.up = Segments(WIDTH, HIDDEN)
        self.down = Segments(HIDDEN, WIDTH)
        self.bias = nn.Parameter(torch.empty(HIDDEN))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, HIDDEN)
        weight, index = self.router(rows).topk(TOP_K, dim=1)
        weight = self.keep(weight.softmax(dim=1))
        sizes = index.flatten().bincount(minlength=EXPERTS).tolist()
        order = index.flatten().argsort()
        token = order.div(TOP_K, rounding_mode="trunc")
        hidden = F.silu(self.up(rows[token], sizes))
        out = self.down(hidden, sizes) * weight.flatten()[order, None]
        return torch.zeros_like(rows).index_add(0, token, out).view_as(x) + self.bias


class Segments(nn.Module):
    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(EXPERTS, width, depth))

    def forward(self, rows: Tensor, sizes: list[int]) -> Tensor:
        parts = zip(rows.split(sizes), self.weight, strict=True)
        return torch.cat([F.linear(part, weight) for part, weight in parts])


class SeparateWhere(Block):
    """The mask of each expert by itself, rows written where it holds; every expert has a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.classify = nn.Linear(HIDDEN, EXPERTS)
        self.experts = nn.ModuleDict({str(e): Expert() for e in range(EXPERTS)})

    def forward(self, x: Tensor) -> Tensor:
        probability = self.classify(x).softmax(-1)
        best, choice = probability.max(dim=-1)
        best = self.keep(best)
        out = torch.zeros_like(x)
        for e in range(EXPERTS):
            mask = choice == e
            if mask.any():
                out[mask] = self.experts[str(e)](x[mask]) * best[mask][:, None]
        return out


class Crowded(SeparateWhere):
    """An expert takes only its first tokens, which shows when many tokens choose it."""

    capacity = 40

    def forward(self, x: Tensor) -> Tensor:
        best, choice = self.classify(x).softmax(-1).max(dim=-1)
        out = torch.zeros_like(x)
        for e in range(EXPERTS):
            mask = choice == e
            mask &= mask.flatten().cumsum(0).view_as(mask) <= self.capacity
            if mask.any():
                out[mask] = self.experts[str(e)](x[mask]) * best[mask][:, None]
        return out


class TallBlock(Block):
    """Routes tokens to experts that lie below each other in 2-D parameters of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(HIDDEN, EXPERTS, bias=False)
        self.up = nn.Parameter(torch.empty(EXPERTS * WIDTH, HIDDEN))
        self.down = nn.Parameter(torch.empty(EXPERTS * WIDTH, HIDDEN))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, HIDDEN)
        weight, index = self.router(rows).softmax(-1).topk(TOP_K, dim=-1)
        weight = self.keep(weight)
        ups, downs = self.up.chunk(EXPERTS), self.down.chunk(EXPERTS)
        out = x.reshape(-1, HIDDEN).clone()
        for e in range(EXPERTS):
            token, slot = (index == e).nonzero(as_tuple=True)
            given = F.silu(rows[token] @ ups[e].T) @ downs[e]
            out.index_add_(0, token, given * weight[token, slot, None])
        return out.view_as(x)


class StackedBlock(Block):
    """A router and stacked matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(HIDDEN, EXPERTS, bias=False)
        self.up = nn.Parameter(torch.empty(EXPERTS, HIDDEN, WIDTH))
        self.down = nn.Parameter(torch.empty(EXPERTS, WIDTH, HIDDEN))


class CapacityEinsum(StackedBlock):
    """Dispatch and combine tensors ``[T, E, C]``; tokens beyond an expert's capacity are lost."""

    capacity = 4

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, HIDDEN)
        probability = self.router(rows).softmax(-1)
        best, choice = probability.max(-1)
        chosen = F.one_hot(choice, EXPERTS)
        place = (chosen.cumsum(0) - 1) * chosen
        fits = (place < self.capacity) & chosen.bool()
        dispatch = F.one_hot(place.clamp(max=self.capacity - 1), self.capacity) * fits[..., None]
        bins = torch.einsum("tec,th->ech", dispatch.to(x.dtype), rows)
        bins = torch.einsum(
            "eci,eih->ech", F.gelu(torch.einsum("ech,ehi->eci", bins, self.up)), self.down
        )
        combine = dispatch.to(x.dtype) * best[:, None, None]
        return torch.einsum("tec,ech->th", combine, bins).view_as(x)


class PaddedBlocks(StackedBlock):
    """Tokens sorted into blocks of equal size for each expert, one batched product for all."""

    block = 4

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, HIDDEN)
        weight, index = self.router(rows).softmax(-1).topk(TOP_K, dim=-1)
        order = index.flatten().argsort(stable=True)
        counts = index.flatten().bincount(minlength=EXPERTS)
        blocks = -(-counts // self.block)
        starts = (blocks.cumsum(0) - blocks) * self.block
        sorted_expert = index.flatten()[order]
        within = torch.arange(len(order)) - (counts.cumsum(0) - counts)[sorted_expert]
        place = starts[sorted_expert] + within
        padded = rows.new_zeros(int(blocks.sum()) * self.block, HIDDEN)
        padded[place] = rows[order // TOP_K]
        owner = torch.arange(EXPERTS).repeat_interleave(blocks)
        hidden = torch.bmm(padded.view(-1, self.block, HIDDEN), self.up[owner])
        out = torch.bmm(F.silu(hidden), self.down[owner]).view(-1, HIDDEN)[place]
        out = out * weight.flatten()[order, None]
        return torch.zeros_like(rows).index_add(0, order // TOP_K, out).view_as(x)
