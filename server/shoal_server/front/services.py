"""Which services a front offers: those configured, and health and reflection always."""

from __future__ import annotations

from shoal_server.front.front import Front
from shoal_server.front.health import NAME as HEALTH_NAME
from shoal_server.front.health import HealthService
from shoal_server.front.interceptors import Service
from shoal_server.front.reflection import ReflectionService


def services_of(front: Front) -> list[Service]:
    """Everything to register; what is not configured is absent and so answers UNIMPLEMENTED."""
    offered: list[Service] = []
    names = [service.name for service in offered]
    return [*offered, HealthService(front.health).service(), ReflectionService([*names, HEALTH_NAME]).service()]
