"""Files of tensors: parts that follow one another, and files written one tensor at a time."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from learners.network.sharding import Shard, gathering
from learners.network.tensor_files import TensorFiles, write_tensors

WEIGHT = torch.arange(30.0).view(10, 3)


@pytest.mark.parametrize("num_rows", [0, 1, 3, 4, 10])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_shards_are_the_chunks_of_torch(num_rows: int, count: int) -> None:
    chunks = list(torch.arange(num_rows).chunk(count))
    chunks += [torch.arange(0)] * (count - len(chunks))
    found = [torch.arange(num_rows)[Shard(index=index, count=count).rows(num_rows)] for index in range(count)]
    assert [part.tolist() for part in found] == [chunk.tolist() for chunk in chunks]


@pytest.mark.parametrize("num_files", [1, 2, 4, 7])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 6])
def test_a_shard_is_read_from_parts_of_any_number(tmp_path: Path, num_files: int, count: int) -> None:
    paths = []
    for index in range(num_files):
        paths.append(tmp_path / f"{index}.safetensors")
        rows = Shard(index=index, count=num_files).rows(len(WEIGHT))
        save_file({"weight": WEIGHT[rows].clone(), "step": torch.tensor(7.0)}, paths[-1])
    with TensorFiles(paths) as files:
        assert sorted(files.names()) == ["step", "weight"]
        parts = [files.part("weight", Shard(index=index, count=count)) for index in range(count)]
        assert [len(part) for part in parts] == [
            len(WEIGHT[Shard(index=index, count=count).rows(len(WEIGHT))]) for index in range(count)
        ]
        assert torch.cat(parts).equal(WEIGHT)
        assert files.tensor("weight").equal(WEIGHT)
        assert [files.part("step", Shard(index=index, count=count)) for index in range(count)] == [7.0] * count


def test_what_is_written_one_by_one_is_what_safetensors_reads(tmp_path: Path) -> None:
    tensors = {
        "a": torch.randn(3, 5).bfloat16(),
        "scalar": torch.tensor(2.5),
        "none": torch.zeros(0, 4),
        "turned": torch.arange(6.0).view(2, 3).t(),
        "half": torch.ones(7, dtype=torch.float16),
    }
    with gathering(tensors) as gathered:
        write_tensors(tmp_path / "written.safetensors", gathered, {"format": "pt"})
    found: dict[str, Tensor] = load_file(tmp_path / "written.safetensors")
    assert found.keys() == tensors.keys()
    assert all(found[name].equal(tensor) and found[name].dtype == tensor.dtype for name, tensor in tensors.items())


def test_who_stops_half_way_still_takes_part_in_the_rest() -> None:
    taken: list[str] = []

    class Noted(dict[str, Tensor]):
        def values(self) -> object:  # type: ignore[override]
            for name, tensor in self.items():
                taken.append(name)
                yield tensor

    with gathering(Noted(a=WEIGHT, b=WEIGHT, c=WEIGHT)) as gathered:
        next(gathered.values)
    assert taken == ["a", "b", "c"]
