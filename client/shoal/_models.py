"""Calls of ModelService: building requests, reading answers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Unpack

from shoal import types
from shoal._connection import Connection
from shoal._methods import DELETE_MODEL_VERSION, GET_MODEL, LIST_MODELS, LOAD_MODEL, SET_MODEL_LABEL, UNLOAD_MODEL
from shoal._refs import checked_version
from shoal._words import Words, optional_seconds, optional_time
from shoal.v1 import classify_pb2, model_pb2

KINDS = Words(model_pb2.ModelKind)
STATES = Words(model_pb2.VersionState)
HEADS = Words(classify_pb2.HeadKind)
PAGE_SIZE = 1000


class ModelCalls:
    """What `AsyncClient` offers of ModelService."""

    _connection: Connection

    async def list_models(self, **options: Unpack[types.CallOptions]) -> list[types.Model]:
        """All models of the repository by name."""
        models: list[types.Model] = []
        page_token = ""
        while True:
            request = model_pb2.ListModelsRequest(page_size=PAGE_SIZE, page_token=page_token)
            page = await self._connection.unary(LIST_MODELS, request, self._connection.ticket(LIST_MODELS, options))
            models += [_read_model(model) for model in page.models]
            page_token = page.next_page_token
            if not page_token:
                return models

    async def get_model(self, name: str, **options: Unpack[types.CallOptions]) -> types.Model:
        """One model, its versions, their states and, for a refused one, the reason.

        Raises:
            NotFoundError: there is no such model; the message lists what there is.
        """
        request = model_pb2.GetModelRequest(name=name)
        response = await self._connection.unary(GET_MODEL, request, self._connection.ticket(GET_MODEL, options))
        return _read_model(response.model)

    async def load_model(
        self, name: str, version: int | None = None, **options: Unpack[types.CallOptions]
    ) -> types.ModelVersion:
        """Load a version, by default the newest, and answer when it is live. Default deadline: 900 s.

        Raises:
            NotFoundError: there is no such model or version.
            PreconditionError: the version was refused; the message says why.
        """
        ticket = self._connection.ticket(LOAD_MODEL, options)
        request = model_pb2.LoadModelRequest(name=name, version=_version(version))
        response = await self._connection.unary(LOAD_MODEL, request, ticket)
        return _read_version(response.version)

    async def unload_model(
        self, name: str, version: int | None = None, **options: Unpack[types.CallOptions]
    ) -> tuple[int, ...]:
        """Unload one version, or all of a model; it stays unloaded until an explicit load.

        Returns:
            the versions that began to drain.
        """
        ticket = self._connection.ticket(UNLOAD_MODEL, options)
        request = model_pb2.UnloadModelRequest(name=name, version=_version(version))
        return tuple((await self._connection.unary(UNLOAD_MODEL, request, ticket)).versions)

    async def delete_model_version(self, name: str, version: int, **options: Unpack[types.CallOptions]) -> None:
        """Delete a version from the repository.

        Raises:
            NotFoundError: there is no such version.
            PreconditionError: it is live, idle, draining, loading or labelled.
        """
        ticket = self._connection.ticket(DELETE_MODEL_VERSION, options)
        request = model_pb2.DeleteModelVersionRequest(name=name, version=checked_version("version", version))
        await self._connection.unary(DELETE_MODEL_VERSION, request, ticket)

    async def set_model_label(
        self,
        name: str,
        label: str,
        version: int | None,
        *,
        expected_version: int | None = None,
        **options: Unpack[types.CallOptions],
    ) -> types.Model:
        """Point a label at a version; None removes it.

        With `expected_version` the change happens only if the label points there now (0: nowhere).

        Raises:
            ConflictError: the label stands elsewhere than expected.
        """
        ticket = self._connection.ticket(SET_MODEL_LABEL, options)
        request = model_pb2.SetModelLabelRequest(
            name=name, label=label, version=_version(version), expected_version=expected_version
        )
        return _read_model((await self._connection.unary(SET_MODEL_LABEL, request, ticket)).model)


def read_metrics(metrics: Iterable[model_pb2.Metric]) -> dict[str, float]:
    """Figures by name."""
    return {metric.name: metric.value for metric in metrics}


def _version(version: int | None) -> int | None:
    return None if version is None else checked_version("version", version)


def _read_model(model: model_pb2.Model) -> types.Model:
    return types.Model(
        name=model.name,
        kind=KINDS.word(model.kind),
        versions=tuple(_read_version(version) for version in model.versions),
        default_version=model.default_version,
    )


def _read_version(version: model_pb2.ModelVersion) -> types.ModelVersion:
    return types.ModelVersion(
        version=version.version,
        state=STATES.word(version.state),
        reason=version.reason,
        labels=tuple(version.labels),
        publish_time=optional_time(version, "publish_time"),
        load_s=optional_seconds(version, "load_duration"),
        weight_bytes=version.weight_bytes,
        memory_bytes=version.memory_bytes,
        execution=version.execution,
        compute_dtype=version.compute_dtype,
        architecture=version.architecture,
        max_tokens=version.max_tokens,
        class_labels=tuple(version.class_labels),
        head=HEADS.word(version.head),
        chat=version.chat,
        job_id=version.job_id,
        metrics=read_metrics(version.metrics),
    )
