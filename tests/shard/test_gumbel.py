import numpy as np
import pytest
import torch
from scipy import stats

from shard.gumbel import gumbel, row_key, uniform

MASK_32, MASK_64 = (1 << 32) - 1, (1 << 64) - 1


def _signed_64(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _reference_uniform(seed: int, position: int, token_id: int) -> float:
    """The same hash in Python's unbounded integers."""

    def mix64(x: int) -> int:
        x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) & MASK_64
        x = ((x ^ x >> 27) * 0x94D049BB133111EB) & MASK_64
        return x ^ x >> 31

    def products(x: int) -> int:
        x = ((x ^ x >> 16) * 0x7FEB352D) & MASK_32
        return ((x ^ x >> 15) * 0x846CA68B) & MASK_32

    key = mix64((mix64((seed + 0x9E3779B97F4A7C15) & MASK_64) + position) & MASK_64)
    x = products((products(token_id ^ (key & MASK_32)) + (key >> 32)) & MASK_32)
    top = (x ^ x >> 16) >> 9
    # The sign bit of 23 is read as an offset: i + 2^22 modulo 2^23.
    return (((top + (1 << 22)) % (1 << 23)) + 0.5) / (1 << 23)


def _noise(seeds: torch.Tensor, positions: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return gumbel(seeds[:, None, None], positions[None, :, None], ids[None, None, :], torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniforms_equal_a_reference_in_unbounded_integers(dtype: torch.dtype) -> None:
    seeds = [0, 1, MASK_64, 1 << 63, 0x0123456789ABCDEF, 1 << 32]
    positions = [0, 1, 4095, 1 << 31, 1 << 40]
    ids = [0, 1, 49151, 262143]
    for seed in seeds:
        for position in positions:
            key = row_key(torch.tensor([_signed_64(seed)]), torch.tensor([position]))
            found = uniform(key, torch.tensor(ids), dtype)
            assert found.dtype == dtype
            assert found.tolist() == [_reference_uniform(seed, position, i) for i in ids]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_is_the_same_bits_whatever_the_shape_of_the_call(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    vocab = 5003
    seeds, positions = torch.tensor([3, -5, 1 << 40]), torch.tensor([0, 17, 9999])
    whole = gumbel(seeds[:, None], positions[:, None], torch.arange(vocab), dtype)
    for _ in range(100):
        start, length = (int(torch.randint(low, high, (), generator=generator)) for low, high in [(0, 4900), (1, 100)])
        part = gumbel(seeds[:, None], positions[:, None], torch.arange(start, start + length), dtype)
        assert torch.equal(part, whole[:, start : start + length])
        rows = torch.randint(0, 3, (length,), generator=generator)
        ids = torch.randint(0, vocab, (length,), generator=generator)
        assert torch.equal(gumbel(seeds[rows], positions[rows], ids, dtype), whole[rows, ids])


def test_noise_is_of_the_gumbel_law() -> None:
    for axis in range(3):
        sizes = [20, 20, 20]
        sizes[axis] = 500
        seeds, positions, ids = (torch.arange(size) for size in sizes)
        sample = _noise(seeds, positions, ids).flatten().numpy()
        assert stats.kstest(sample, "gumbel_r").pvalue > 1e-3


def test_neighbouring_seeds_positions_and_ids_are_independent() -> None:
    noise = _noise(torch.arange(60), torch.arange(60), torch.arange(60)).numpy()
    scaled = np.exp(-np.exp(-noise)) - 0.5  # uniform again: no heavy tail
    for shift in [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, -1, 0), (0, 1, -1), (0, 0, 2), (0, 2, 0), (32, 0, 0)]:
        other = np.roll(scaled, shift, axis=(0, 1, 2))
        correlation = float((scaled * other).mean()) * 12
        assert abs(correlation) < 4.5 / np.sqrt(noise.size), shift
        # Correlation misses what is not linear: neighbours must also fill an 8 × 8 table evenly.
        counts = np.histogram2d(scaled.ravel(), other.ravel(), bins=8, range=[[-0.5, 0.5]] * 2)[0]
        assert stats.chisquare(counts.ravel()).pvalue > 1e-5, shift


def test_both_halves_of_the_seed_and_of_the_position_count() -> None:
    ids = torch.arange(100)
    rows = [(5, 7), (5 + (1 << 32), 7), (5, 7 + (1 << 32)), (5 + (1 << 62), 7), (-5, 7), (7, 5)]
    noises = {tuple(gumbel(torch.tensor(seed), torch.tensor(at), ids, torch.float32).tolist()) for seed, at in rows}
    assert len(noises) == len(rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_is_finite_and_within_its_bounds_at_the_extreme_uniforms(dtype: torch.dtype) -> None:
    extremes = torch.tensor([2.0**-24, 1 - 2.0**-24], dtype=dtype)
    low, high = (-(-extremes.log()).log()).tolist()
    assert (low, high) == pytest.approx((-2.8115, 16.6355), abs=1e-3)
    noise = gumbel(torch.arange(40)[:, None], torch.tensor(0), torch.arange(50_000), dtype)
    assert low <= float(noise.min())
    assert float(noise.max()) <= high
