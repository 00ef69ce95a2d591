"""Whether publishes are traced, and the way to OpenTelemetry if they are.

It is an optional extra, and costs a second to load: nothing of it is imported
unless the configuration asks for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from repl_broker.config import Config
from repl_broker.errors import ConfigError

if TYPE_CHECKING:
    from repl_broker.otel import Tracing

__all__ = ["asked_by", "open_tracing"]

# OpenTelemetry's environment variable specification.
_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


def asked_by(config: Config, environ: Mapping[str, str]) -> str | None:
    """The setting that turns tracing on; None if it is off.

    The standard variables turn it on as the configuration does, and off again:
    OTEL_SDK_DISABLED and OTEL_TRACES_EXPORTER=none beat everything.
    """
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    if environ.get("OTEL_TRACES_EXPORTER", "").strip().lower() == "none":
        return None
    if config.tracing.endpoint is not None:
        return "[tracing] endpoint"
    return next((name for name in _ENDPOINTS if environ.get(name)), None)


def open_tracing(config: Config, environ: Mapping[str, str]) -> Tracing | None:
    """What traces the node's publishes; None if nobody has asked for it.

    Raises ConfigError: it was asked for, and OpenTelemetry is not installed.
    """
    setting = asked_by(config, environ)
    if setting is None:
        return None
    try:
        from repl_broker import otel
    except ImportError as error:
        raise ConfigError(
            f"{setting} asks for traces, which need OpenTelemetry, and it is not installed "
            f'({error}); run pip install "repl-broker[otel]", or take {setting} away'
        ) from None
    return otel.open_tracing(config)
