"""Spectra of codes that are read in their context: the decoder of `mel_vq`.

A code's mean log spectrum, and what a small network makes of the codes before it: causal convolutions of growing dilation.
Nothing looks ahead, so the spectra of a stream are those of the whole sequence, and none is held back.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

KERNEL = 3
DILATIONS = (1, 1, 2, 2)
REACH = (KERNEL - 1) * sum(DILATIONS)
"""Codes before it that what is said of a code depends on."""
_GAP = (KERNEL - 1) * max(DILATIONS)  # places between two utterances of one row, so that neither reaches into the other
_ROW, _ROWS = 128, 8  # codes to a row and rows to a step of training
_EPOCHS, _RATE, _WARM_UP = 7, 6e-3, 0.05
_SPREAD, _MOST_LOST = 0.6, 4.0  # part of the lost spread that is restored, and how much it is taken to be at most
_MOST_ROWS = 8192  # codes whose spectra decide the components


class ContextDecoder(nn.Module):
    """Log spectra of codes by their components.

    Args:
        codebook_size: codes.
        width: of the network.
        components: of the log spectra of a code; more keep finer detail.
        spectrum: numbers in them, frames per code times bins.
    """

    mean: Tensor
    basis: Tensor
    table: Tensor

    def __init__(self, codebook_size: int, width: int, components: int, spectrum: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(spectrum))
        self.register_buffer("basis", torch.zeros(spectrum, components))
        self.register_buffer("table", torch.zeros(codebook_size, components))
        self.codes = nn.Embedding(codebook_size, width)
        self.convolutions = nn.ModuleList(nn.Conv1d(width, width, KERNEL, dilation=step) for step in DILATIONS)
        self.mixers = nn.ModuleList(nn.Linear(width, width) for _ in DILATIONS)
        self.out = nn.Linear(width, components)

    def forward(self, codes: Tensor, heard: Tensor) -> Tensor:
        """Components of each code: `(rows, length)` to `(rows, length, components)`; heard: 0 where there is no code."""
        there = heard[..., None]
        x = self.codes(codes) * there
        for convolution, mixer, step in zip(self.convolutions, self.mixers, DILATIONS, strict=True):
            padded = nn.functional.pad(x.transpose(1, 2), ((KERNEL - 1) * step, 0))
            x = (x + mixer(nn.functional.gelu(convolution(padded)).transpose(1, 2))) * there
        mixed: Tensor = self.table[codes] + self.out(nn.functional.gelu(x))
        return mixed

    def components(self, codes: Tensor, before: Tensor | None = None) -> Tensor:
        """Components `(n, components)` of codes `(n,)` of one utterance; the same function as `forward`.

        before: the codes before them, of which the last `REACH` count.
        """
        x = self.codes(codes if before is None else torch.cat((before[-REACH:], codes)))
        for convolution, mixer, step in zip(self.convolutions, self.mixers, DILATIONS, strict=True):
            assert isinstance(convolution, nn.Conv1d)
            # a product with few rows: a tenth of the time that a convolution and its transposes take for ten codes
            padded = nn.functional.pad(x, (0, 0, (KERNEL - 1) * step, 0))
            taps = torch.stack([padded[k * step : k * step + len(x)] for k in range(KERNEL)], dim=2).flatten(1)
            heard = nn.functional.linear(taps, convolution.weight.flatten(1), convolution.bias)
            x = x + mixer(nn.functional.gelu(heard))
        mixed: Tensor = self.table[codes] + self.out(nn.functional.gelu(x[len(x) - len(codes) :]))
        return mixed

    def spectra(self, components: Tensor) -> Tensor:
        """`(n, components)` to log spectra `(n, spectrum)`."""
        return torch.addmm(self.mean, components, self.basis.T)

    def fit(
        self, codes: Sequence[Tensor], spectra: Callable[[int], Tensor], points: Tensor, generator: torch.Generator
    ) -> None:
        """Learns the log spectra of utterances from their codes; the same arguments give the same network.

        Args:
            codes: of each utterance, `(n,) int64`.
            spectra: gives the log spectra of an utterance by its number, `(n, spectrum)`.
            points: `(codebook_size, anything)`, where each code lies; near ones begin alike.
        """
        order = torch.randperm(len(codes), generator=generator).tolist()
        with torch.no_grad():
            self._find_components(codes, spectra, order, generator)
            wanted = [(spectra(number) - self.mean) @ self.basis for number in range(len(codes))]
            sums = torch.zeros_like(self.table).index_add_(0, torch.cat(list(codes)), torch.cat(wanted))
            counts = torch.bincount(torch.cat(list(codes)), minlength=len(self.table))
            self.table.copy_(sums / counts.clamp(min=1)[:, None])
            self._begin(points, generator)
        self._train([(codes[number], wanted[number]) for number in order], generator)
        with torch.no_grad():
            self._restore_spread(codes, wanted)

    def _find_components(
        self, codes: Sequence[Tensor], spectra: Callable[[int], Tensor], order: list[int], generator: torch.Generator
    ) -> None:
        """Principal components of the log spectra by subspace iteration; of all, as many utterances as give enough rows."""
        rows, found = [], 0
        for number in order:
            rows.append(spectra(number))
            found += len(codes[number])
            if found >= _MOST_ROWS:
                break
        sample = torch.cat(rows)
        self.mean.copy_(sample.mean(dim=0))
        sample -= self.mean
        basis = torch.randn(self.basis.shape, generator=generator)
        for _ in range(3):
            basis = torch.linalg.qr(sample.T @ (sample @ basis)).Q
        self.basis.copy_(basis)

    def _begin(self, points: Tensor, generator: torch.Generator) -> None:
        """Random weights, by the generator alone; the output begins at nothing, so that training starts at the table."""
        for name, weight in self.named_parameters():
            if name.endswith("bias") or name.startswith("out."):
                weight.zero_()
            else:
                bound = 1 / math.sqrt(weight[0].numel())
                weight.copy_(torch.rand(weight.shape, generator=generator) * 2 * bound - bound)
        spread = torch.randn(points.shape[1], self.codes.embedding_dim, generator=generator)
        self.codes.weight.copy_((points / points.std()) @ spread / math.sqrt(points.shape[1]))

    def _restore_spread(self, codes: Sequence[Tensor], wanted: Sequence[Tensor]) -> None:
        """Gives each component a part of the spread back that least squares take from what they cannot tell.

        The error grows, and fewer words are lost: a dull spectrum is nearer to the true one than it sounds.
        """
        made = torch.cat([self(row[None], torch.ones(1, len(row)))[0] for row in codes])
        true = torch.cat(list(wanted))
        lost = true.std(dim=0, correction=0) / made.std(dim=0, correction=0).clamp(min=1e-6)
        factors = 1 + _SPREAD * (lost.clamp(max=_MOST_LOST) - 1)
        self.table *= factors
        self.out.weight *= factors[:, None]
        self.out.bias.mul_(factors).add_(true.mean(dim=0) * (1 - factors))

    def _train(self, utterances: Sequence[tuple[Tensor, Tensor]], generator: torch.Generator) -> None:
        codes, wanted, heard = _rows(utterances)
        steps_an_epoch = math.ceil(len(codes) / _ROWS)
        steps = _EPOCHS * steps_an_epoch
        optimizer = torch.optim.AdamW(self.parameters(), lr=_RATE, betas=(0.9, 0.98))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: min((step + 1) / (_WARM_UP * steps), 1) * 0.5 * (1 + math.cos(math.pi * step / steps)),
        )
        with torch.enable_grad():
            for _ in range(_EPOCHS):
                for part in torch.randperm(len(codes), generator=generator).split(_ROWS):
                    errors = (self(codes[part], heard[part]) - wanted[part]).square().mean(dim=2)
                    loss = (errors * heard[part]).sum() / heard[part].sum()
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    schedule.step()


def _rows(utterances: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Utterances one after another, cut into rows of one length: codes, what is wanted, and 1 where there is a code."""
    codes = torch.cat([nn.functional.pad(code, (0, _GAP)) for code, _ in utterances])
    wanted = torch.cat([nn.functional.pad(want, (0, 0, 0, _GAP)) for _, want in utterances])
    heard = torch.cat([nn.functional.pad(torch.ones(len(code)), (0, _GAP)) for code, _ in utterances])
    more = -len(codes) % _ROW
    codes, heard = nn.functional.pad(codes, (0, more)), nn.functional.pad(heard, (0, more))
    wanted = nn.functional.pad(wanted, (0, 0, 0, more))
    return codes.view(-1, _ROW), wanted.view(-1, _ROW, wanted.shape[1]), heard.view(-1, _ROW)
