"""A run that does not fit is refused before anything starts, with the numbers and the setting that helps."""

import socket
from pathlib import Path

import pytest

from cluster.errors import ConfigError
from cluster.processes import placement
from cluster.processes.placement import Machine, RoleRequest, check_placement, cluster_address, place_on_nodes, this_machine

TWO_CPUS = Machine(num_cpus=2, num_gpus=0)


def request(role: str, count: int, *, num_cpus: float = 0.0, num_gpus: float = 0.0) -> RoleRequest:
    return RoleRequest(role=role, count=count, num_cpus=num_cpus, num_gpus=num_gpus, setting=f"{role}.num_replicas")


def test_a_request_of_exactly_everything_fits() -> None:
    check_placement([request("generator", 3, num_cpus=0.5), request("learner", 1, num_cpus=0.5)], TWO_CPUS)


def test_thirds_that_add_up_to_the_machine_fit() -> None:
    # 0.1 * 20 is 2.0000000000000004 when it is summed one by one
    check_placement([request(f"scorer {index}", 1, num_cpus=0.1) for index in range(20)], TWO_CPUS)


def test_nothing_fits_anywhere() -> None:
    check_placement([], Machine(num_cpus=0, num_gpus=0))


def test_too_few_cpus_are_explained() -> None:
    with pytest.raises(ConfigError) as caught:
        check_placement([request("generator", 4, num_cpus=1.0), request("learner", 1, num_cpus=0.5)], TWO_CPUS)
    (problem,) = caught.value.problems
    assert problem.startswith("placement needs 4.5 CPUs (4 generator + 0.5 learner), this machine has 2")
    assert problem.endswith("; lower generator.num_replicas (now 4) or generator.num_cpus (now 1)")


def test_a_single_process_is_not_told_to_become_fewer() -> None:
    with pytest.raises(ConfigError, match=r"this machine has 2; lower generator.num_cpus \(now 64\)$"):
        check_placement([request("generator", 1, num_cpus=64.0)], TWO_CPUS)


def test_cpus_and_gpus_are_reported_together() -> None:
    with pytest.raises(ConfigError) as caught:
        check_placement([request("generator", 2, num_cpus=2.0, num_gpus=1.0)], Machine(num_cpus=2, num_gpus=1))
    assert [problem.split(" (")[0] for problem in caught.value.problems] == ["placement needs 4 CPUs", "placement needs 2 GPUs"]


def test_roles_that_take_nothing_of_a_resource_are_not_blamed_for_it() -> None:
    requests = [request("generator", 1, num_gpus=1.0), request("learner", 5, num_cpus=0.1)]
    with pytest.raises(ConfigError, match=r"needs 1 GPUs \(1 generator\)"):
        check_placement(requests, TWO_CPUS)


def test_gpus_are_counted_from_the_drivers_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(placement, "NVIDIA_DEVICES", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert this_machine().num_gpus == 2
    for visible, number in (("1", 1), ("0,1,2,3", 2), ("", 0), ("-1", 0)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert this_machine().num_gpus == number
    monkeypatch.setattr(placement, "NVIDIA_DEVICES", tmp_path / "absent")
    assert this_machine().num_gpus == 0
    assert this_machine().num_cpus >= 1


@pytest.mark.parametrize(("named", "address"), [(None, None), ("", None), ("local", None), ("auto", "auto")])
def test_a_cluster_is_joined_where_the_environment_names_one(
    named: str | None, address: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if named is not None:
        monkeypatch.setenv("RAY_ADDRESS", named)
    assert cluster_address() == address


def test_an_address_of_ray_client_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "ray://10.0.0.1:10001")
    with pytest.raises(ConfigError, match="RAY_ADDRESS=ray://10.0.0.1:10001.*ray job submit"):
        cluster_address()


def test_somebody_must_listen_at_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        assert cluster_address() == address
    with pytest.raises(ConfigError, match=f"RAY_ADDRESS={address}: no Ray cluster answers there .*; start it with ray start"):
        cluster_address()
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:99999")
    with pytest.raises(ConfigError, match="no Ray cluster answers there"):
        cluster_address()


def test_what_does_not_fit_a_cluster_names_it() -> None:
    with pytest.raises(ConfigError, match="the Ray cluster at 10.0.0.1:6379 has 1.5; lower"):
        check_placement(
            [request("generator", 2, num_cpus=1.0)], Machine(num_cpus=1.5, num_gpus=0, name="the Ray cluster at 10.0.0.1:6379")
        )


@pytest.mark.parametrize(
    ("own", "files", "quota"),
    [
        ("0::/\n", {"cpu.max": "250000 100000\n"}, 2.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, float("inf")),
        ("0::/pod/run\n", {"pod/cpu.max": "100000 100000\n", "pod/run/cpu.max": "max 100000\n"}, 1.0),  # the tightest above
        ("4:cpu,cpuacct:/\n3:memory:/\n", {"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.5),
        ("4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, float("inf")),
    ],
)
def test_a_containers_cpu_quota_counts(
    own: str, files: dict[str, str], quota: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "self").write_text(own)
    for name, content in files.items():
        (tmp_path / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cgroup" / name).write_text(content)
    monkeypatch.setattr(placement, "OWN_CGROUPS", tmp_path / "self")
    monkeypatch.setattr(placement, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(placement.os, "sched_getaffinity", lambda pid: set(range(64)))
    assert this_machine().num_cpus == max(1, int(min(quota, 64)))


def test_what_fits_in_sum_must_fit_on_nodes() -> None:
    nodes = [Machine(num_cpus=2, num_gpus=1, name=name) for name in ("left", "right")]
    requests = [request("learner", 2, num_cpus=0.5), request("generator", 2, num_cpus=1.5, num_gpus=1.0)]
    assert place_on_nodes(requests, nodes) == [{"generator": 1, "learner": 1}, {"generator": 1, "learner": 1}]
    assert place_on_nodes(requests[:1], nodes) == [{"learner": 2}, {}]
    with pytest.raises(ConfigError, match=r"generator 1 of 1 needs 1 CPUs and 2 GPUs on one node.*left \(2 CPUs, 1 GPUs\)"):
        place_on_nodes([request("generator", 1, num_cpus=1.0, num_gpus=2.0)], nodes)
    with pytest.raises(ConfigError, match=r"learner 3 of 3 .* lower learner.num_replicas \(now 3\)"):
        place_on_nodes([request("learner", 3, num_cpus=1.25)], nodes)
