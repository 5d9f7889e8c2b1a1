"""What each rank runs of a batch: every row once, and in step with the others where that is asked for."""

import pytest

from learners.network.micro_batch import Pack, PassSizes, packs_of_rank, shard

LENGTHS = [3, 9, 2, 7, 7, 1, 4, 8, 5]


def packs_of_ranks(num_rows: int, world_size: int, *, in_step: bool) -> list[list[Pack]]:
    dealt = [shard(range(num_rows), rank, world_size) for rank in range(world_size)]
    lengths = [(length,) for length in LENGTHS]
    return [packs_of_rank(dealt, lengths, PassSizes(max_tokens=10), rank=rank, in_step=in_step) for rank in range(world_size)]


@pytest.mark.parametrize("in_step", [False, True])
@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("num_rows", [1, 3, 9])
def test_every_row_counts_once(num_rows: int, world_size: int, in_step: bool) -> None:
    packs_R = packs_of_ranks(num_rows, world_size, in_step=in_step)
    counted = [row for packs in packs_R for pack in packs for row in pack.rows if pack.weight == 1]
    assert sorted(counted) == list(range(num_rows))


@pytest.mark.parametrize("num_rows", [1, 3, 9])
def test_ranks_in_step_run_equally_many_packs_and_a_short_row_fills_up(num_rows: int) -> None:
    """The shortest of the rank's own, which it has fetched; a rank without rows takes the shortest of all."""
    packs_R = packs_of_ranks(num_rows, 4, in_step=True)
    assert len({len(packs) for packs in packs_R}) == 1
    for rank, packs in enumerate(packs_R):
        own = shard(LENGTHS[:num_rows], rank, 4) or LENGTHS[:num_rows]
        assert all(LENGTHS[row] == min(own) for pack in packs if pack.weight == 0 for row in pack.rows)
    assert any(pack.weight == 0 for packs in packs_R for pack in packs) or num_rows == 9
    assert all(pack.weight == 1 for packs in packs_of_ranks(num_rows, 4, in_step=False) for pack in packs)
