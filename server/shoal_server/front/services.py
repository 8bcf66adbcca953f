"""Which services a front offers: those configured, and health and reflection always."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from shoal_server import config
from shoal_server.front.classify import ClassifyService
from shoal_server.front.front import Front
from shoal_server.front.generate import GenerateService
from shoal_server.front.health import NAME as HEALTH_NAME
from shoal_server.front.health import HealthService
from shoal_server.front.interceptors import Service
from shoal_server.front.models import ModelService
from shoal_server.front.reflection import ReflectionService
from shoal_server.front.train import TrainService

_BUILDERS: Final[dict[config.Service, Callable[[Front], Service]]] = {
    "classify": lambda front: ClassifyService(front).service(),
    "generate": lambda front: GenerateService(front).service(),
    "models": lambda front: ModelService(front).service(),
    "train": lambda front: TrainService(front).service(),
}


def services_of(front: Front) -> list[Service]:
    """Everything to register; what is not configured is absent and so answers UNIMPLEMENTED."""
    offered = [_BUILDERS[name](front) for name in front.config.services]
    names = [service.name for service in offered]
    return [*offered, HealthService(front.health).service(), ReflectionService([*names, HEALTH_NAME]).service()]
