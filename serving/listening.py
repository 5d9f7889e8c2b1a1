"""Where an endpoint listens and to whom, checked before anything is started."""

import socket
from pathlib import Path

from cluster.errors import ConfigError, DataError
from serving.config import ListenConfig
from serving.guard.keys.key_file import default_key_file, read_keys


def key_file(config: ListenConfig) -> Path | None:
    """The file of keys, read once; None where no key is asked for. Raises `ConfigError` where others could ask without one."""
    if config.keys is None and config.is_loopback:
        return None
    path = default_key_file() if config.keys is None else Path(config.keys).expanduser().resolve()
    try:
        keys = read_keys(path)
    except DataError as error:
        raise ConfigError(f"host={config.host} needs keys: {error}") from error
    if not keys:
        raise ConfigError(f"the file of keys {path} has none, so nobody could ask; make one with: rayward keys add NAME")
    return path


def bound_socket(host: str, port: int) -> socket.socket:
    """Bound, and not listening yet; port 0 picks a free one. Raises `ConfigError` where another program listens there."""
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise ConfigError(f"port {port} on {host}: {error.strerror}; choose another with --port, or 0 for a free one") from error
    return bound


def available_port(host: str, port: int) -> int:
    """`port`, or a free one for 0. Raises `ConfigError` where another program listens on it."""
    with bound_socket(host, port) as probe:
        return int(probe.getsockname()[1])
